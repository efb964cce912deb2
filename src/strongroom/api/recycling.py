"""The contract's recycle bin: which instances were unregistered lately, and for how long that is told."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, Field

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import RowPage, coded, time_text
from strongroom.api.services import given
from strongroom.backups import recycling
from strongroom.backups.context import Context
from strongroom.identity import audit
from strongroom.identity.principal import Principal

router = authenticated_router("Recycle bin")
Here = Annotated[Context, given(Context)]


class RecyclePolicy(BaseModel):
    """For how many days."""

    retention_period_in_days: Annotated[
        int, Field(ge=1, le=7, strict=True), coded("DBS.280214", "Invalid retention period: 1 to 7.")
    ] = recycling.DEFAULT_DAYS


class RecyclePolicyRequest(BaseModel):
    """The policy."""

    recycle_policy: RecyclePolicy


@router.get("/v3/{project_id}/recycle-instances")
def list_recycled_instances(
    page: Annotated[RowPage, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:listRecycled")],
) -> dict[str, Any]:
    """Instances that were unregistered within the policy's days, the last first; backup_id is their newest backup."""
    with ctx.catalog.read() as conn:
        total, found = recycling.list_recycled(
            conn, caller.required_project(), ctx.ambient.now(), page.first_row, page.limit
        )  # fmt: skip
    return {"instances": [_fields(one) for one in found], "total_count": total}


@router.get("/v3/{project_id}/instances/recycle-policy")
def show_recycle_policy(
    ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:instance:getRecyclePolicy")]
) -> RecyclePolicyRequest:
    """For how many days unregistered instances are in the bin."""
    with ctx.catalog.read() as conn:
        days = recycling.days(conn, caller.required_project())
    return RecyclePolicyRequest(recycle_policy=RecyclePolicy(retention_period_in_days=days))


@router.put("/v3/{project_id}/instances/recycle-policy", status_code=202)
def set_recycle_policy(
    request: RecyclePolicyRequest,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:setRecyclePolicy")],
) -> dict[str, Any]:
    """Sets it, for what is in the bin already too."""
    project, days = caller.required_project(), request.recycle_policy.retention_period_in_days
    with ctx.catalog.write() as conn:
        recycling.put_days(conn, project, days)
        entry = audit.Entry.by(caller, "NoSQLSetRecyclePolicy", "project", project, detail={"days": days})
        audit.append(conn, ctx.ambient, entry)
    return {}


def _fields(one: recycling.Recycled) -> dict[str, Any]:
    return {
        "id": one.id, "name": one.name, "mode": one.mode, "product_type": "", "charge_type": "0",
        "data_store": {"type": one.engine, "version": one.version}, "enterprise_project_id": "0", "backup_id": one.backup or "",
        "created_at": time_text(one.created_at), "deleted_at": time_text(one.removed_at),
        "retained_until": time_text(one.retained_until),
    }  # fmt: skip
