"""Refused calls in the audit trail: what a known caller wanted to change and might not, or could not as things stand.

Not recorded: requests that do not fit the call (nobody was refused anything), callers that nobody knows, and too many requests.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sqlalchemy.exc import DBAPIError

from strongroom.api.errors import PARAMETER_ERROR, ApiError, row_of
from strongroom.api.services import Services
from strongroom.identity import audit
from strongroom.identity.errors import WrongProject
from strongroom.identity.principal import Principal

log = logging.getLogger("strongroom.api")

_LONGEST_REASON = 500

EVENTS: Mapping[str, tuple[str, str, str]] = {
    "create_backup": ("NoSQLCreateBackup", "instance", "instance_id"),
    "stop_backup": ("NoSQLStopBackup", "backup", "backup_id"),
    "delete_backup": ("NoSQLDeleteBackup", "backup", "backup_id"),
    "delete_backups": ("NoSQLDeleteBackup", "backup", ""),
    "restore_backup": ("NoSQLRestoreInstance", "instance", "instance_id"),
    "import_redis_files": ("NoSQLRestoreInstance", "instance", "instance_id"),
    "create_instance": ("NoSQLCreateInstance", "instance", ""),
    "delete_instance": ("NoSQLDeleteInstance", "instance", "instance_id"),
    "register_instance": ("StrongroomRegisterInstance", "instance", ""),
    "set_instance_access": ("StrongroomSetInstanceAccess", "instance", "instance_id"),
    "unregister_instance": ("StrongroomRemoveInstance", "instance", "instance_id"),
    "set_backup_policy": ("NoSQLSetBackupPolicy", "instance", "instance_id"),
    "set_redis_pitr_policy": ("NoSQLSetPitrPolicy", "instance", "instance_id"),
    "set_recording": ("NoSQLSetPitrPolicy", "instance", "instance_id"),
    "drop_recording": ("StrongroomDropLog", "instance", "instance_id"),
    "restore_redis_pitr": ("NoSQLRestoreInstance", "instance", "instance_id"),
    "restore_moment": ("NoSQLRestoreInstance", "instance", "instance_id"),
    "set_recycle_policy": ("NoSQLSetRecyclePolicy", "project", "project_id"),
    "change_instance_tags": ("NoSQLTagInstance", "instance", "instance_id"),
    "cancel_scheduled_job": ("StrongroomCancelJob", "job", "job_id"),
    "cancel_job": ("StrongroomCancelJob", "job", "job_id"),
    "hold_backup": ("StrongroomHoldBackup", "backup", "backup_id"),
    "release_backup": ("StrongroomReleaseBackup", "backup", "backup_id"),
    "set_deletion_policy": ("StrongroomSetDeletionPolicy", "project", "project_id"),
    "undelete_backup": ("StrongroomUndeleteBackup", "backup", "backup_id"),
    "approve_deletion": ("StrongroomApproveDeletion", "backup", "backup_id"),
    "set_instance_limits": ("StrongroomLimitInstance", "instance", "instance_id"),
    "reset_instance_limits": ("StrongroomLimitInstance", "instance", "instance_id"),
    "set_worker_limits": ("StrongroomLimitWorkers", "worker", ""),
    "reset_worker_limits": ("StrongroomLimitWorkers", "worker", ""),
    "set_quotas": ("StrongroomSetQuotas", "project", "project_id"),
    "add_webhook": ("StrongroomAddWebhook", "webhook", ""),
    "rotate_webhook_secret": ("StrongroomRotateWebhookSecret", "webhook", "webhook"),
    "remove_webhook": ("StrongroomRemoveWebhook", "webhook", "webhook"),
    "send_test": ("StrongroomTestNotification", "project", "project_id"),
    "set_project_hours": ("StrongroomSetBackupAge", "project", "project_id"),
    "reset_project_hours": ("StrongroomSetBackupAge", "project", "project_id"),
    "set_instance_hours": ("StrongroomSetBackupAge", "instance", "instance_id"),
    "reset_instance_hours": ("StrongroomSetBackupAge", "instance", "instance_id"),
    "verify": ("StrongroomVerify", "project", "project_id"),
    "set_test_restores": ("StrongroomScheduleTestRestores", "instance", "instance_id"),
    "rehearse": ("StrongroomTestRestore", "project", "project_id"),
    "reconcile": ("StrongroomReconcile", "project", "project_id"),
    "quarantine": ("StrongroomQuarantine", "project", "project_id"),
    "create_user": ("createUser", "user", ""),
    "change_user": ("updateUser", "user", "user"),
    "delete_user": ("deleteUser", "user", "user"),
    "enrol": ("createMFADevice", "user", "user"),
    "confirm": ("bindMFADevice", "user", "user"),
    "remove_factor": ("unbindMFADevice", "user", "user"),
    "create_key": ("createCredential", "user", "user"),
    "change_key": ("updateCredential", "credential", "key"),
    "delete_key": ("deleteCredential", "credential", "key"),
    "create_group": ("createGroup", "group", ""),
    "delete_group": ("deleteGroup", "group", "group"),
    "join": ("addUserToGroup", "group", "group"),
    "leave": ("removeUserFromGroup", "group", "group"),
    "put_policy": ("updatePolicy", "policy", "policy"),
    "delete_policy": ("deletePolicy", "policy", "policy"),
    "grant": ("grantPolicy", "holder", "holder"),
    "revoke": ("revokePolicy", "holder", "holder"),
    "create_project": ("createProject", "project", ""),
}
"""Of each handler that changes something: its event, the kind of what it changes, and the path's parameter that names it."""

READS = frozenset(
    {
        "preview", "simulate_policy", "find_instances_by_tags", "find_instances_by_tags_older", "revoke_token",
        "create_security_token",
    }
)  # fmt: skip
"""Handlers of other methods than GET that change nothing of what is looked after. Tokens have records of their own."""


def note_refusal(services: Services, caller: Principal, handler: str, path: Mapping[str, str], error: Exception) -> None:
    """Records a refusal of this handler, if `error` is one. That the record cannot be written does not change the answer."""
    if handler not in EVENTS or (told := _status_and_code(error)) is None:
        return
    event, kind, parameter = EVENTS[handler]
    status, code = told
    detail = {"status": status, "error_code": code, "reason": str(error)[:_LONGEST_REASON]}
    if isinstance(error, WrongProject):  # it is in the trail of the caller's own account, and of no project
        detail["project"] = path.get("project_id", "")[:200]
    entry = audit.Entry.by(caller, event, kind, path.get(parameter, "")[:200], outcome="REFUSED", detail=detail)
    try:
        with services.catalog.write() as conn:
            audit.append(conn, services.ambient, entry)
    except DBAPIError as failure:
        log.warning("a refusal of %s is not in the audit trail: %s", event, failure.orig)


def _status_and_code(error: Exception) -> tuple[int, str] | None:
    if isinstance(error, ApiError):
        fits = 400 <= error.status < 500 and error.code != PARAMETER_ERROR
        return (error.status, error.code) if fits else None
    row = row_of(error)
    return None if row is None or row.status >= 500 else (row.status, row.code)
