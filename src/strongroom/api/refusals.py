"""What the use cases' refusals are in the contract: one row each."""

from __future__ import annotations

from strongroom.api.errors import ANSWERS, Answer
from strongroom.backups import errors

REFUSALS: dict[type[Exception], Answer] = {
    errors.NoSuchBackup: Answer(400, "DBS.201214", "The backup file does not exist: {}."),
    errors.NoSuchInstance: Answer(404, "DBS.200002", "The DB instance does not exist: {}."),
    errors.NoSuchJob: Answer(404, "DBS.280016", "Resource not found: {}."),
    errors.InstanceBusy: Answer(403, "DBS.200019"),
    errors.InstanceNameTaken: Answer(400, "DBS.200022"),
    errors.InstanceUnusable: Answer(400, "DBS.200047"),
    errors.NotRestorable: Answer(400, "DBS.301024"),
    errors.NoSuchFile: Answer(400, "DBS.200001"),
    errors.BackupBuilding: Answer(403, "DBS.200019"),
    errors.BackupNotBuilding: Answer(400, "DBS.201202"),
    errors.BackupRestoring: Answer(400, "DBS.201319"),
    errors.BackupHeld: Answer(400, "DBS.212003"),
    errors.BackupAutomated: Answer(400, "DBS.212003"),
    errors.DeletionPending: Answer(400, "DBS.212003"),
    errors.NoDeletionPending: Answer(400, "DBS.212003"),
    errors.DeletionDecided: Answer(400, "DBS.212003"),
    errors.NotApproved: Answer(400, "DBS.212003"),
    errors.SamePerson: Answer(400, "DBS.212003"),
    errors.PreviewMoved: Answer(412, "DBS.212003"),
    errors.QuotaReached: Answer(400, "DBS.212003"),
    errors.TooManyTags: Answer(400, "DBS.212003"),
    errors.NotPending: Answer(400, "DBS.212003"),
    errors.NotOffered: Answer(400, "DBS.212003"),
    errors.NoSuchWebhook: Answer(404, "DBS.280016", "Resource not found: {}."),
    errors.BadWebhook: Answer(400, "DBS.200001", "Parameter error: {}."),
    errors.BadBatch: Answer(400, "DBS.200001"),
    errors.BadScope: Answer(400, "DBS.200001", "Parameter error: {}."),
}


def register_refusals() -> None:
    """Makes the border answer them; call it before the app is built."""
    ANSWERS.update(REFUSALS)
