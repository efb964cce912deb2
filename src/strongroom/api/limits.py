"""Our own calls about being kind to the sources: limits of an instance, and of each worker process, also while jobs run.

The workers serve every account of the installation, so their limits are for the first account's administrator alone.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Response
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from strongroom.api.administrators import require_holder
from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import InstanceId
from strongroom.api.services import given
from strongroom.backups import pacing
from strongroom.backups.context import Context
from strongroom.backups.registered import find_instance
from strongroom.identity import audit
from strongroom.identity.principal import Principal
from strongroom.settings import LEAST_SOURCE_RATE

router = authenticated_router("Limits")
Here = Annotated[Context, given(Context)]
Rate = Annotated[int | None, Field(ge=LEAST_SOURCE_RATE, le=1 << 40, strict=True)]

_WORKERS = "strongroom:worker:limit"


class InstanceLimits(BaseModel):
    """Bytes a second that a capture takes from the instance; null: as fast as they come."""

    bytes_per_second: Rate


class WorkerLimits(BaseModel):
    """Of each worker process: bytes a second that its captures take together, backups and restores at once; null: no limit."""

    bytes_per_second: Rate = None
    jobs: Annotated[int | None, Field(ge=0, le=256, strict=True)] = None


@router.get("/strongroom/v1/{project_id}/instances/{instance_id}/limits")
def show_instance_limits(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("strongroom:instance:get")]
) -> dict[str, Any]:
    """How fast captures take bytes from an instance. `default`: nobody has set it."""
    with ctx.catalog.read() as conn:
        find_instance(conn, caller.required_project(), instance_id)
        found = pacing.limits_of(ctx, conn, instance_id)
    return {"bytes_per_second": found.bytes_per_second, "default": found.default}


@router.put("/strongroom/v1/{project_id}/instances/{instance_id}/limits")
def set_instance_limits(
    instance_id: InstanceId,
    request: InstanceLimits,
    ctx: Here,
    caller: Annotated[Principal, may("strongroom:instance:limit")],
) -> dict[str, Any]:
    """Sets them; a running capture follows within a second or two."""
    _set(ctx, caller, instance_id, pacing.Limits(request.bytes_per_second), request.model_dump())
    return show_instance_limits(instance_id, ctx, caller)


@router.delete("/strongroom/v1/{project_id}/instances/{instance_id}/limits")
def reset_instance_limits(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("strongroom:instance:limit")]
) -> dict[str, Any]:
    """Goes back to the default."""
    _set(ctx, caller, instance_id, None, {})
    return show_instance_limits(instance_id, ctx, caller)


@router.get("/strongroom/v1/{project_id}/limits")
def show_worker_limits(ctx: Here, caller: Annotated[Principal, may(_WORKERS)]) -> dict[str, Any]:
    """The limits of each worker process."""
    require_holder(ctx, caller, _WORKERS)
    with ctx.catalog.read() as conn:
        found = pacing.limits_of(ctx, conn, pacing.WORKER)
    return {"bytes_per_second": found.bytes_per_second, "jobs": found.jobs}


@router.put("/strongroom/v1/{project_id}/limits")
def set_worker_limits(request: WorkerLimits, ctx: Here, caller: Annotated[Principal, may(_WORKERS)]) -> dict[str, Any]:
    """Sets both; running captures follow within a second or two, and jobs that run already go on. `jobs` 0 begins none."""
    require_holder(ctx, caller, _WORKERS)

    def note(conn: Connection) -> None:
        detail = request.model_dump()
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomLimitWorkers", "worker", "", detail=detail))

    pacing.set_for_workers(ctx, pacing.Limits(request.bytes_per_second, request.jobs), note)
    return show_worker_limits(ctx, caller)


@router.delete("/strongroom/v1/{project_id}/limits", status_code=204)
def reset_worker_limits(ctx: Here, caller: Annotated[Principal, may(_WORKERS)]) -> Response:
    """Lifts both."""
    require_holder(ctx, caller, _WORKERS)

    def note(conn: Connection) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomLimitWorkers", "worker", ""))

    pacing.set_for_workers(ctx, None, note)
    return Response(status_code=204)


def _set(ctx: Context, caller: Principal, instance: str, limits: pacing.Limits | None, detail: dict[str, Any]) -> None:
    def note(conn: Connection) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomLimitInstance", "instance", instance, detail=detail))

    pacing.set_for_instance(ctx, caller.required_project(), instance, limits, note)
