"""Our own calls about deletions that wait: the project's policy, calling one back, a second person's word."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Row

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import BackupId
from strongroom.api.errors import ParameterError
from strongroom.api.services import given
from strongroom.api.times import iso
from strongroom.backups import pending
from strongroom.backups.context import Context
from strongroom.identity import audit
from strongroom.identity.principal import Principal

router = authenticated_router("Pending deletions")
Here = Annotated[Context, given(Context)]


class DeletionPolicyRequest(BaseModel):
    """What is named is set. `undelete_hours`: for so long a deletion can be called back; 0: it is decided at once."""

    model_config = ConfigDict(extra="forbid")

    undelete_hours: Annotated[int | None, Field(ge=0, le=pending.LONGEST, strict=True)] = None
    second_person: Annotated[bool | None, Field(strict=True)] = None


@router.get("/strongroom/v1/{project_id}/deletion-policy")
def show_deletion_policy(ctx: Here, caller: Annotated[Principal, may("strongroom:deletion:getPolicy")]) -> dict[str, Any]:
    """What the project's deletions wait for before they are decided."""
    with ctx.catalog.read() as conn:
        return _policy_fields(pending.policy_of(conn, caller.required_project()))


@router.put("/strongroom/v1/{project_id}/deletion-policy")
def set_deletion_policy(
    request: DeletionPolicyRequest, ctx: Here, caller: Annotated[Principal, may("strongroom:deletion:setPolicy")]
) -> dict[str, Any]:
    """Sets it for deletions that are asked for from now on; what is pending waits for what it did."""
    if request.undelete_hours is None and request.second_person is None:
        raise ParameterError("Parameter error: name undelete_hours, second_person or both.")
    project = caller.required_project()

    def note(conn: Connection, before: pending.Policy, after: pending.Policy) -> None:
        detail = {**_policy_fields(after), "before": _policy_fields(before)}
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomSetDeletionPolicy", "project", project, detail=detail))

    return _policy_fields(
        pending.put_policy(ctx, project, note, undelete_hours=request.undelete_hours, second_person=request.second_person)
    )


@router.post("/strongroom/v1/{project_id}/backups/{backup_id}/undelete")
def undelete_backup(
    backup_id: BackupId, ctx: Here, caller: Annotated[Principal, may("strongroom:backup:undelete")]
) -> dict[str, Any]:
    """Calls a pending deletion back: the backup is what it was, and its job has ended."""

    def note(conn: Connection) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomUndeleteBackup", "backup", backup_id))

    pending.undelete(ctx, caller.required_project(), backup_id, person(caller), note)
    return {}


@router.post("/strongroom/v1/{project_id}/backups/{backup_id}/approve")
def approve_deletion(
    backup_id: BackupId, ctx: Here, caller: Annotated[Principal, may("strongroom:deletion:approve")]
) -> dict[str, Any]:
    """A second person's word for a pending deletion: it is decided once the project's hours are over."""

    def note(conn: Connection) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomApproveDeletion", "backup", backup_id))

    mark = pending.approve(ctx, caller.required_project(), backup_id, person(caller), note)
    return {"pending": pending_fields(mark)}


def person(caller: Principal) -> pending.Person:
    """The user behind a request, whichever of the user's keys or tokens made it."""
    return pending.Person(caller.user, caller.user_name)


def pending_fields(mark: Row[Any] | None) -> dict[str, Any] | None:
    """What a deletion waits for; None where it waits for nothing."""
    if mark is None:
        return None
    return {
        "asked_by": mark.asked_name, "asked_at": iso(mark.asked_at), "until": iso(mark.until), "thorough": mark.thorough,
        "second_person": mark.lapses is not None, "approve_by": iso(mark.lapses), "approved_by": mark.approved_name,
        "approved_at": iso(mark.approved_at), "words": pending.told(mark),
    }  # fmt: skip


def _policy_fields(policy: pending.Policy) -> dict[str, Any]:
    return {"undelete_hours": policy.undelete_hours, "second_person": policy.second_person}
