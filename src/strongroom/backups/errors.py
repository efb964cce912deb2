"""Why a use case refuses. Each class is mapped to the contract's status and code in api/refusals.py.

Refused
├── NoSuchInstance, NoSuchBackup, NoSuchJob     unknown here, or another project's: a caller must not learn whose
├── InstanceBusy        something else runs on the instance
├── InstanceNameTaken
├── InstanceUnusable    it cannot be entered or is of a kind that cannot be backed up
├── NotRestorable       the backup or the target does not fit
├── NoSuchFile          a file that was to be imported is not where an operator has to put it
├── BackupBuilding      stop it first
├── BackupRestoring     a restore reads it
├── BackupHeld          a hold names its reason
├── BackupAutomated     its instance's policy is on
├── DeletionPending     its deletion is asked for: undelete it first
├── NoDeletionPending   nothing of it is to be called back or approved
├── DeletionDecided     too late: it is being deleted
├── NotApproved         the second person's word did not come in time
├── SamePerson          who asked for a deletion cannot approve it
├── BackupNotBuilding   only a backup that is being built can be stopped
├── PreviewMoved        what the caller previewed is not what would happen now
├── BadScope            tables cannot be chosen so, or not of this engine
├── QuotaReached        the project may not use more
├── TooManyTags
├── NotPending          a job that has begun is no scheduled task any more
├── NotOffered          this server does not do that; the text says what it does instead
├── NoSuchWebhook
├── BadWebhook          its name is taken, there are too many, or its URL cannot be a webhook's
└── BadBatch            a batch is 1 to 10 different ids
"""

from __future__ import annotations


class Refused(Exception):
    """The use case changed nothing. The text is for people and says what to do."""


class NoSuchInstance(Refused):
    """There is no such instance in the project."""


class NoSuchBackup(Refused):
    """There is no such backup in the project."""


class NoSuchJob(Refused):
    """There is no such job in the project."""


class InstanceBusy(Refused):
    """Another operation runs on the instance."""


class InstanceNameTaken(Refused):
    """An instance of this name is registered in the project."""


class InstanceUnusable(Refused):
    """The instance cannot be entered, or cannot be backed up as it is."""


class NotRestorable(Refused):
    """The backup cannot be restored there."""


class NoSuchFile(Refused):
    """There is no such bucket or file for the project."""


class BackupBuilding(Refused):
    """The backup is being built."""


class BackupNotBuilding(Refused):
    """The backup is not being built."""


class BackupRestoring(Refused):
    """A restore of the backup is queued or running."""


class BackupHeld(Refused):
    """The backup is held."""


class BackupAutomated(Refused):
    """The backup goes by its instance's policy."""


class DeletionPending(Refused):
    """A deletion of the backup is asked for and not decided yet."""


class NoDeletionPending(Refused):
    """There is no deletion of the backup to be called back or approved."""


class DeletionDecided(Refused):
    """The backup's deletion is decided: it cannot be called back."""


class NotApproved(Refused):
    """Nobody has approved the deletion in time."""


class SamePerson(Refused):
    """The user who asked for a deletion cannot approve it."""


class PreviewMoved(Refused):
    """The lineage moved since the preview."""


class BadScope(Refused):
    """Tables cannot be chosen so, or not of this engine."""


class QuotaReached(Refused):
    """The project's quota of instances, backups or stored bytes is used up."""


class TooManyTags(Refused):
    """The instance would have more tags than it may."""


class NotPending(Refused):
    """The job has begun or ended."""


class NotOffered(Refused):
    """Strongroom, or this engine, does not do that."""


class NoSuchWebhook(Refused):
    """There is no such webhook in the project."""


class BadWebhook(Refused):
    """The project cannot have this webhook."""


class BadBatch(Refused):
    """A batch is 1 to 10 different ids."""
