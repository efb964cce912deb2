"""The contract's calls about automated backups: an instance's policy."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Response
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import BackupPolicy, InstanceId
from strongroom.api.pending import person
from strongroom.api.services import given
from strongroom.backups import policies
from strongroom.backups.context import Context
from strongroom.identity import audit
from strongroom.identity.principal import Principal

router = authenticated_router("Backup policies")
Here = Annotated[Context, given(Context)]


class SetPolicyRequest(BaseModel):
    """The policy. Ours beside the contract: with keep_days 0, `delete_auto_backups` has the automated backups deleted."""

    backup_policy: BackupPolicy
    delete_auto_backups: Annotated[bool, Field(strict=True)] = False


@router.put("/v3/{project_id}/instances/{instance_id}/backups/policy", status_code=204)
def set_backup_policy(
    instance_id: InstanceId,
    request: SetPolicyRequest,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:setBackupPolicy")],
) -> Response:
    """Turns automated backups on, changes them, or turns them off."""
    wanted = request.backup_policy.checked()
    policy = (
        policies.OFF if wanted.keep_days == 0 else policies.Policy(wanted.keep_days, wanted.start_time or "", wanted.period or "")
    )

    def note(conn: Connection) -> None:
        detail = {
            "keep_days": policy.keep_days, "start_time": policy.start_time, "period": policy.period,
            "delete_auto_backups": request.delete_auto_backups,
        }  # fmt: skip
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "NoSQLSetBackupPolicy", "instance", instance_id, detail=detail))

    project = caller.required_project()
    policies.put(
        ctx, project, instance_id, policy, note, delete_automated=request.delete_auto_backups, by=person(caller)
    )  # fmt: skip
    return Response(status_code=204)


@router.get("/v3/{project_id}/instances/{instance_id}/backups/policy")
def show_backup_policy(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:instance:getBackupPolicy")]
) -> dict[str, Any]:
    """An instance's policy; keep_days 0 and nothing else where automated backups are off."""
    with ctx.catalog.read() as conn:
        policy = policies.show(conn, caller.required_project(), instance_id)
    return {"backup_policy": {"keep_days": policy.keep_days, "start_time": policy.start_time, "period": policy.period}}


@router.get("/v3.1/{project_id}/instances/{instance_id}/backups/policy")
def show_backup_policy_v31(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:instance:getBackupPolicy")]
) -> dict[str, Any]:
    """The same."""
    return show_backup_policy(instance_id, ctx, caller)
