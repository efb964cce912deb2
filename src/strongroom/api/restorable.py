"""The contract's look-ups of what can be restored beside whole backups: versions, databases and tables, points in time.

Where an engine is backed up whole there are no tables to choose, and point in time is off: those lists are empty and the
call that would turn it on is refused with words (those that use it: refused.py).
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, Field

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import (
    DatastoreType,
    Filter,
    InstanceId,
    MomentPage,
    PeriodPage,
    RowPage,
    Text,
    Time,
    check_span,
    coded,
)
from strongroom.api.errors import ApiError
from strongroom.api.refused import MOMENTS
from strongroom.api.services import given
from strongroom.backups import errors, instances
from strongroom.backups.context import Context
from strongroom.backups.registered import find_instance
from strongroom.engines.base import Versioned
from strongroom.identity.principal import Principal

router = authenticated_router("Restorable")
Here = Annotated[Context, given(Context)]


class TablesPage(RowPage):
    """The database whose tables are listed."""

    database_name: Annotated[Text, Field(min_length=1)]


class Period(Filter):
    """A span of time; times default as the contract says."""

    start_time: Time | None = None
    end_time: Time | None = None


class Periods(Period, PeriodPage):
    """Which restorable periods."""


class Moments(MomentPage):
    """Which moments a Redis can be restored to."""

    start_time: Time
    end_time: Time


class PitrPolicy(BaseModel):
    """Point in time of a Redis: how often, in minutes, and for how many days."""

    enabled: Annotated[bool, Field(strict=True)]
    interval: Annotated[
        int | None, Field(ge=5, le=120, strict=True), coded("DBS.280001", "Parameter error: interval: 5 to 120.")
    ] = None
    keep_days: Annotated[int | None, Field(ge=1, le=7, strict=True), coded("DBS.280214", "Invalid retention period: 1 to 7.")] = (
        None
    )


@router.get("/v3/{project_id}/datastores/{datastore_name}/versions", dependencies=[may("gaussdbfornosql:instance:list")])
def list_datastore_versions(datastore_name: DatastoreType, ctx: Here) -> dict[str, Any]:
    """Releases of an engine that backups are tested with; none where the engine is not backed up yet."""
    engine = ctx.engines.get(datastore_name)
    return {"versions": list(engine.versions) if isinstance(engine, Versioned) else []}


@router.get("/v3/{project_id}/instances/{instance_id}/databases")
def list_restorable_databases(
    instance_id: InstanceId,
    page: Annotated[RowPage, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:listDatabase")],
) -> dict[str, Any]:
    """Databases whose tables can be backed up and restored one by one, as they are now."""
    found = list(instances.tables_of(ctx, caller.required_project(), instance_id))
    return {"database_names": found[page.first_row : page.first_row + page.limit], "total_count": len(found)}


@router.get("/v3/{project_id}/instances/{instance_id}/tables")
def list_restorable_tables(
    instance_id: InstanceId,
    page: Annotated[TablesPage, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:listDatabase")],
) -> dict[str, Any]:
    """Tables of one of those databases."""
    found = instances.tables_of(ctx, caller.required_project(), instance_id).get(page.database_name, [])
    return {"table_names": list(found[page.first_row : page.first_row + page.limit]), "total_count": len(found)}


@router.get("/v3/{project_id}/instances/{instance_id}/backups/restorable-time-periods")
def list_restorable_periods(
    instance_id: InstanceId,
    page: Annotated[Periods, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:listRestorableInstances")],
) -> dict[str, Any]:
    """Periods of which every moment can be restored."""
    _check_order(page.start_time, page.end_time)
    _engine(ctx, caller, instance_id)
    return {"restorable_time_periods": [], "total_count": 0}


@router.get("/v3/{project_id}/redis/instances/{instance_id}/pitr")
def show_redis_pitr(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:instance:getBackupPolicy")]
) -> dict[str, Any]:
    """The room that point in time takes, in GB: none."""
    _redis(ctx, caller, instance_id)
    return {"storage": "0"}


@router.get("/v3/{project_id}/redis/instances/{instance_id}/pitr/policy")
def show_redis_pitr_policy(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:instance:getBackupPolicy")]
) -> dict[str, Any]:
    """Off. Interval and days are told only while it is on."""
    _redis(ctx, caller, instance_id)
    return {"enabled": False}


@router.put("/v3/{project_id}/redis/instances/{instance_id}/pitr/policy", status_code=202)
def set_redis_pitr_policy(
    instance_id: InstanceId,
    request: PitrPolicy,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:setBackupPolicy")],
) -> dict[str, Any]:
    """Off stays off; turning it on is refused."""
    _redis(ctx, caller, instance_id)
    if request.enabled:
        raise errors.NotOffered(MOMENTS)
    return {}


@router.get("/v3/{project_id}/redis/instances/{instance_id}/pitr/restorable-time-periods")
def list_redis_moments(
    instance_id: InstanceId,
    page: Annotated[Moments, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:listRestorableInstances")],
) -> dict[str, Any]:
    """Moments that the instance can be restored to: none."""
    check_span(page.start_time, page.end_time)
    _redis(ctx, caller, instance_id)
    return {"restore_time": [], "total_count": 0}


def _check_order(begin: float | None, end: float | None) -> None:
    if begin is not None and end is not None:
        check_span(begin, end)


def _engine(ctx: Context, caller: Principal, instance: str) -> str:
    with ctx.catalog.read() as conn:
        return str(find_instance(conn, caller.required_project(), instance).engine)


def _redis(ctx: Context, caller: Principal, instance: str) -> None:
    if (engine := _engine(ctx, caller, instance)) != "redis":
        raise ApiError(400, "DBS.280347", f"Unsupported database type: this call is for redis, the instance is {engine}.")
