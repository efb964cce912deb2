"""Points in time: the contract's calls for a Redis and its periods for every engine, and our own for every engine that records.

The contract tells a Redis' moments as a list, those at which a piece of its log ends; every moment between them can be restored
too.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import (
    InstanceId,
    JobAccepted,
    MomentPage,
    PeriodPage,
    Time,
    check_span,
    coded,
    time_text,
)
from strongroom.api.errors import ApiError
from strongroom.api.services import given
from strongroom.api.times import Moment, iso, iso_not_before
from strongroom.backups import recording, replaying, restoration
from strongroom.backups.context import Context
from strongroom.backups.recording import INTERVAL, KEEP_DAYS, Policy
from strongroom.backups.registered import find_instance
from strongroom.identity import audit
from strongroom.identity.principal import Principal

router = authenticated_router("Points in time")
Here = Annotated[Context, given(Context)]

_GB = 1 << 30
_POLICY_EVENT = "NoSQLSetPitrPolicy"

Interval = Annotated[
    int, Field(ge=5, le=120, strict=True), coded("DBS.280001", "Parameter error: interval: 5 to 120.")
]  # fmt: skip
KeepDays = Annotated[int, Field(ge=1, le=7, strict=True), coded("DBS.280214", "Invalid retention period: 1 to 7.")]


class Periods(PeriodPage):
    """Which restorable periods; times default as the contract says."""

    start_time: Time | None = None
    end_time: Time | None = None


class Moments(MomentPage):
    """Which moments a Redis can be restored to."""

    start_time: Time
    end_time: Time


class PitrPolicy(BaseModel):
    """Points in time: at most how many minutes are not in the store yet, and for how many days they can be restored."""

    enabled: Annotated[bool, Field(strict=True)]
    interval: Interval | None = None
    keep_days: KeepDays | None = None

    def policy(self) -> Policy:
        """With what holds where nothing is said."""
        return Policy(self.enabled, self.interval or INTERVAL, self.keep_days or KEEP_DAYS)


class PitrRequest(BaseModel):
    """The moment that a Redis goes back to."""

    restore_time: Time


class MomentRequest(BaseModel):
    """What the instance is to hold: what `source_instance_id`, by default itself, held at `moment`. `overwrite` as in a
    recovery."""

    moment: Moment
    source_instance_id: InstanceId | None = None
    overwrite: Annotated[bool | None, Field(strict=True)] = None


# --- the contract's ----------------------------------------------------------------------------------------------------


@router.get("/v3/{project_id}/instances/{instance_id}/backups/restorable-time-periods")
def list_restorable_periods(
    instance_id: InstanceId,
    page: Annotated[Periods, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:listRestorableInstances")],
) -> dict[str, Any]:
    """Periods of which every moment can be restored, in milliseconds."""
    if page.start_time is not None and page.end_time is not None:
        check_span(page.start_time, page.end_time)
    begin, end = page.start_time or 0.0, float("inf") if page.end_time is None else page.end_time
    with ctx.catalog.read() as conn:
        find_instance(conn, caller.required_project(), instance_id)
        found = [(max(one, begin), min(other, end)) for one, other in replaying.periods(conn, instance_id)]
    shown = [{"start_time": _up(one), "end_time": int(other * 1000)} for one, other in found if one < other]
    return {"restorable_time_periods": shown[page.first_row : page.first_row + page.limit], "total_count": len(shown)}


@router.get("/v3/{project_id}/redis/instances/{instance_id}/pitr")
def show_redis_pitr(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:instance:getBackupPolicy")]
) -> dict[str, Any]:
    """The room that the log takes, in GB."""
    with ctx.catalog.read() as conn:
        _require_redis(conn, caller, instance_id)
        size = replaying.size_of_log(conn, instance_id)
    return {"storage": f"{size / _GB:.3f}".rstrip("0").rstrip(".")}


@router.get("/v3/{project_id}/redis/instances/{instance_id}/pitr/policy")
def show_redis_pitr_policy(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:instance:getBackupPolicy")]
) -> dict[str, Any]:
    """Whether it is on. Interval and days are told only while it is."""
    with ctx.catalog.read() as conn:
        _require_redis(conn, caller, instance_id)
        policy, _ = recording.show(conn, caller.required_project(), instance_id)
    return _told(policy) if policy.enabled else {"enabled": False}


@router.put("/v3/{project_id}/redis/instances/{instance_id}/pitr/policy", status_code=202)
def set_redis_pitr_policy(
    instance_id: InstanceId,
    request: PitrPolicy,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:setBackupPolicy")],
) -> dict[str, Any]:
    """Turns points in time on or off. Off, what is recorded stays for its days."""
    with ctx.catalog.read() as conn:
        _require_redis(conn, caller, instance_id)
    _put(ctx, caller, instance_id, request)
    return {}


@router.get("/v3/{project_id}/redis/instances/{instance_id}/pitr/restorable-time-periods")
def list_redis_moments(
    instance_id: InstanceId,
    page: Annotated[Moments, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:listRestorableInstances")],
) -> dict[str, Any]:
    """Moments that the instance can be restored to, the newest first: backups, and ends of pieces of the log."""
    check_span(page.start_time, page.end_time)
    with ctx.catalog.read() as conn:
        _require_redis(conn, caller, instance_id)
        found = replaying.marked(conn, instance_id, page.start_time, page.end_time)
    shown = [time_text(one) for one in found[page.first_row : page.first_row + page.limit]]
    return {"restore_time": shown, "total_count": len(found)}


@router.put("/v3/{project_id}/redis/instances/{instance_id}/pitr", status_code=202)
def restore_redis_pitr(
    instance_id: InstanceId,
    request: PitrRequest,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:restore")],
) -> JobAccepted:
    """Takes a Redis back to a moment: what it holds now is replaced, as the contract has it."""
    with ctx.catalog.read() as conn:
        _require_redis(conn, caller, instance_id)
    return _restore(ctx, caller, instance_id, instance_id, request.restore_time, None)


# --- our own -----------------------------------------------------------------------------------------------------------


@router.get("/strongroom/v1/{project_id}/instances/{instance_id}/recording")
def show_recording(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("strongroom:instance:get")]
) -> dict[str, Any]:
    """Whether an instance's log is recorded, what of it is stored, and which moments can be restored."""
    with ctx.catalog.read() as conn:
        policy, trouble = recording.show(conn, caller.required_project(), instance_id)
        size, found = replaying.size_of_log(conn, instance_id), replaying.periods(conn, instance_id)
    periods = [{"begin": iso_not_before(begin), "end": iso(end)} for begin, end in found]
    return {**_told(policy), "stored_bytes": size, "trouble": trouble, "periods": periods}


@router.put("/strongroom/v1/{project_id}/instances/{instance_id}/recording")
def set_recording(
    instance_id: InstanceId,
    request: PitrPolicy,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:setBackupPolicy")],
) -> dict[str, Any]:
    """Turns recording on or off, for every engine whose changes can be recorded."""
    _put(ctx, caller, instance_id, request)
    return show_recording(instance_id, ctx, caller)


@router.delete("/strongroom/v1/{project_id}/instances/{instance_id}/recording", status_code=204)
def drop_recording(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("strongroom:instance:dropLog")]
) -> Response:
    """Throws away what is recorded, once recording is off: no moment can be restored then, but whole backups can."""

    def note(conn: Connection) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomDropLog", "instance", instance_id))

    recording.drop(ctx, caller.required_project(), instance_id, note)
    return Response(status_code=204)


@router.post("/strongroom/v1/{project_id}/instances/{instance_id}/moments", status_code=202)
def restore_moment(
    instance_id: InstanceId,
    request: MomentRequest,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:restore")],
) -> JobAccepted:
    """Makes an instance hold what it or another of its engine held at a moment."""
    source = request.source_instance_id or instance_id
    return _restore(ctx, caller, source, instance_id, request.moment, request.overwrite)


def _put(ctx: Context, caller: Principal, instance: str, request: PitrPolicy) -> None:
    policy = request.policy()

    def note(conn: Connection) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, _POLICY_EVENT, "instance", instance, detail=_told(policy)))

    recording.put(ctx, caller.required_project(), instance, policy, note)


def _restore(ctx: Context, caller: Principal, source: str, instance: str, moment: float, overwrite: bool | None) -> JobAccepted:
    def note(conn: Connection, backup: str) -> None:
        detail = {"backup": backup, "source": source, "moment": iso(moment)}
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "NoSQLRestoreInstance", "instance", instance, detail=detail))

    job = restoration.restore_to(ctx, caller.required_project(), source, moment, instance, note, overwrite)
    return JobAccepted(job_id=job)


def _told(policy: Policy) -> dict[str, Any]:
    return {"enabled": policy.enabled, "interval": policy.interval, "keep_days": policy.keep_days}


def _up(seconds: float) -> int:
    """Whole milliseconds, not before."""
    return math.ceil(seconds * 1000)


def _require_redis(conn: Connection, caller: Principal, instance: str) -> None:
    engine = find_instance(conn, caller.required_project(), instance).engine
    if engine != "redis":
        raise ApiError(400, "DBS.280347", f"Unsupported database type: this call is for redis, the instance is {engine}.")
