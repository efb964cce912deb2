"""Our own calls that look after the store: verifications, test restores, reconciliations, the quarantine.

A verification is about the caller's project. A reconciliation and the quarantine are for the account's administrator, and for
the project in the path; what lies in no project's lineage is told to, and moved by, the first account's administrator alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, FailFast, Field
from sqlalchemy import Connection

from strongroom.api.administrators import require_administrator
from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import BackupId, InstanceId, JobAccepted
from strongroom.api.errors import SERVER_ERROR, ApiError, ParameterError
from strongroom.api.services import given
from strongroom.backups import quarantining, reconciling, rehearsal, verification
from strongroom.backups.context import Context
from strongroom.backups.staleness import CatalogOutdated
from strongroom.identity import audit
from strongroom.identity.principal import Principal
from strongroom.storage.base import StoreError

router = authenticated_router("Maintenance")
Here = Annotated[Context, given(Context)]

_RECONCILE = "strongroom:store:reconcile"
_QUARANTINE = "strongroom:store:quarantine"


class VerificationRequest(BaseModel):
    """One backup, an instance's, or with neither all of the project's; `sample` in percent of the chunks."""

    backup_id: BackupId | None = None
    instance_id: InstanceId | None = None
    sample: Annotated[float | None, Field(gt=0, le=100, strict=True)] = None


class RehearsalRequest(BaseModel):
    """One backup, or an instance's newest."""

    backup_id: BackupId | None = None
    instance_id: InstanceId | None = None


class RegularRehearsals(BaseModel):
    """Every how many days; null: no more."""

    every_days: Annotated[int | None, Field(ge=1, le=366, strict=True)]


class ReconciliationRequest(BaseModel):
    """`close_late`: the writers whose puts may have landed late are known to be gone, so their rows may go."""

    close_late: Annotated[bool, Field(strict=True)] = False


class QuarantineRequest(BaseModel):
    """Unknown objects, by the names that a reconciliation told."""

    names: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=900)]],
        Field(min_length=1, max_length=quarantining.MOST_AT_ONCE),
        FailFast(),
    ]


@router.post("/strongroom/v1/{project_id}/verifications", status_code=202)
def verify(request: VerificationRequest, ctx: Here, caller: Annotated[Principal, may("strongroom:store:verify")]) -> JobAccepted:
    """Reads what a restore would read. The job's result tells what is damaged and which backups that touches."""
    if request.backup_id is not None and request.instance_id is not None:
        raise ParameterError("Parameter error: give backup_id or instance_id, not both.")
    detail = request.model_dump(exclude_none=True)
    kind = "backup" if request.backup_id else "instance" if request.instance_id else "project"
    project = caller.required_project()
    subject = request.backup_id or request.instance_id or project

    def note(conn: Connection) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomVerify", kind, subject, detail=detail))

    job = verification.verify(ctx, project, note, backup=request.backup_id, instance=request.instance_id, sample=request.sample)
    return JobAccepted(job_id=job)


@router.post("/strongroom/v1/{project_id}/test-restores", status_code=202)
def rehearse(request: RehearsalRequest, ctx: Here, caller: Annotated[Principal, may("strongroom:store:verify")]) -> JobAccepted:
    """Restores into a server that is started for it beside the worker, compares counts and content, and throws it away."""
    if (request.backup_id is None) is (request.instance_id is None):
        raise ParameterError("Parameter error: give backup_id or instance_id.")
    detail = request.model_dump(exclude_none=True)
    kind, subject = ("backup", request.backup_id) if request.backup_id else ("instance", request.instance_id)

    def note(conn: Connection) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomTestRestore", kind, str(subject), detail=detail))

    project = caller.required_project()
    job = rehearsal.rehearse(ctx, project, note, backup=request.backup_id, instance=request.instance_id)
    return JobAccepted(job_id=job)


@router.get("/strongroom/v1/{project_id}/instances/{instance_id}/test-restores")
def show_test_restores(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("strongroom:instance:get")]
) -> dict[str, Any]:
    """Every how many days the newest backup of an instance is tried out by itself; null: it is not."""
    with ctx.catalog.read() as conn:
        return {"every_days": rehearsal.regular(conn, caller.required_project(), instance_id)}


@router.put("/strongroom/v1/{project_id}/instances/{instance_id}/test-restores")
def set_test_restores(
    instance_id: InstanceId,
    request: RegularRehearsals,
    ctx: Here,
    caller: Annotated[Principal, may("strongroom:store:verify")],
) -> dict[str, Any]:
    """Has the newest backup tried out every so many days, for the first time at once; null ends it."""

    def note(conn: Connection) -> None:
        detail = request.model_dump()
        event = "StrongroomScheduleTestRestores"
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, event, "instance", instance_id, detail=detail))

    rehearsal.put_regular(ctx, caller.required_project(), instance_id, request.every_days, note)
    return {"every_days": request.every_days}


@router.post("/strongroom/v1/{project_id}/reconciliations", status_code=202)
def reconcile(request: ReconciliationRequest, ctx: Here, caller: Annotated[Principal, may(_RECONCILE)]) -> JobAccepted:
    """Compares store and catalog. The job's result tells what is unknown, missing or of another size; only LATE objects go."""
    require_administrator(caller, _RECONCILE)
    project = caller.required_project()

    def note(conn: Connection) -> None:
        detail = {"close_late": request.close_late}
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomReconcile", "project", project, detail=detail))

    outside = _outside(ctx, caller)
    return JobAccepted(job_id=reconciling.reconcile(ctx, project, note, outside=outside, close_late=request.close_late))


@router.post("/strongroom/v1/{project_id}/quarantine")
def quarantine(request: QuarantineRequest, ctx: Here, caller: Annotated[Principal, may(_QUARANTINE)]) -> dict[str, Any]:
    """Moves unknown objects below quarantine/. Refuses, moving nothing, if the catalog knows one of them."""
    require_administrator(caller, _QUARANTINE)
    project = caller.required_project()

    def note(conn: Connection, moves: Mapping[str, str]) -> None:
        entry = audit.Entry.by(caller, "StrongroomQuarantine", "project", project, level="Major", detail={"moves": dict(moves)})
        audit.append(conn, ctx.ambient, entry)

    try:
        moved = quarantining.quarantine(ctx, project, request.names, note, outside=_outside(ctx, caller))
    except quarantining.NotQuarantined as error:
        raise ParameterError(f"Nothing more was moved: {error}.") from error
    except CatalogOutdated as error:
        raise ApiError(403, "DBS.200019", str(error)) from error
    except StoreError as error:
        raise ApiError(500, SERVER_ERROR, f"The store failed: {error}. What is not in quarantine is in its place.") from error
    return {"quarantined": [{"name": one.name, "moved_to": one.moved_to, "bytes": one.bytes} for one in moved]}


def _outside(ctx: Context, caller: Principal) -> bool:
    with ctx.catalog.read() as conn:
        return reconciling.holds_the_rest(conn, caller.account)
