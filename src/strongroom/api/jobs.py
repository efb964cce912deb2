"""Jobs: the contract's list, and our own detail, cancel included."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from sqlalchemy import Connection, Row

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import (
    InstanceId,
    JobId,
    JobPage,
    JobStatus,
    Limit100,
    RowPage,
    TaskStatus,
    Text,
    Time,
    check_span,
    filled_span,
    time_text,
)
from strongroom.api.pending import pending_fields
from strongroom.api.services import given
from strongroom.api.times import iso
from strongroom.backups import errors, listing, pending
from strongroom.backups.context import Context
from strongroom.identity import audit
from strongroom.identity.principal import Principal
from strongroom.jobs.port import JobView

router = authenticated_router("Jobs")
Here = Annotated[Context, given(Context)]

NAMES = {
    "backup": "BackupInstance",
    "restore": "RestoreInstance",
    "import": "ImportFiles",
    "delete": "DeleteBackup",
    "remove": "StopBackup",
    "verify": "VerifyBackups",
    "rehearse": "TestRestore",
    "reconcile": "ReconcileStore",
    "expire": "DeleteAutomatedBackups",
    "notify-test": "TestNotification",
}
"""Kinds of jobs by the names that the contract and we give them."""
_STATUS = {"QUEUED": "Running", "RUNNING": "Running", "DONE": "Completed", "FAILED": "Failed", "CANCELLED": "Failed"}
_TASK_STATUS = {
    "QUEUED": "Pending", "RUNNING": "Running", "DONE": "Completed", "FAILED": "Failed", "CANCELLED": "Canceled",
}  # fmt: skip
_TASK_DAYS = 7 * 86_400
_STATES = {"Running": ("QUEUED", "RUNNING"), "Completed": ("DONE",), "Failed": ("FAILED", "CANCELLED")}


class JobFilters(JobPage):
    """Filters of the contract's list."""

    id: JobId | None = None
    name: Text | None = None
    status: JobStatus | None = None
    start_time: Time | None = None
    end_time: Time | None = None


class ScheduleFilters(RowPage):
    """Filters of the contract's list of scheduled tasks."""

    limit: Limit100 = 10
    job_name: Text | None = None
    job_status: TaskStatus | None = None
    instance_id: InstanceId | None = None
    start_time: Time | None = None
    end_time: Time | None = None


@router.get("/v3/{project_id}/jobs")
def list_jobs(
    filters: Annotated[JobFilters, Query()], ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:task:list")]
) -> dict[str, Any]:
    """Jobs of the project, newest first. A job stays findable by its id."""
    begin, end = filled_span(filters.start_time, filters.end_time, ctx.ambient.now())
    kinds = [kind for kind, name in NAMES.items() if name == filters.name] if filters.name is not None else None
    with ctx.catalog.read() as conn:
        total, jobs = ctx.jobs.list(
            conn, caller.required_project(), id=filters.id, kinds=kinds,
            states=_STATES[filters.status] if filters.status else None, created_from=begin, created_to=end,
            limit=filters.limit, offset=filters.first_row,
        )  # fmt: skip
        shown = [_contract_fields(conn, job) for job in jobs]
    return {"jobs": shown, "total_count": total}


@router.get("/v3/{project_id}/scheduled-jobs")
def list_scheduled_jobs(
    filters: Annotated[ScheduleFilters, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:task:list")],
) -> dict[str, Any]:
    """The same jobs as tasks: one that nothing has begun yet is Pending. Of the last seven days unless a time is given."""
    end = filters.end_time
    begin = filters.start_time
    if begin is None:
        begin = (ctx.ambient.now() if end is None else end) - _TASK_DAYS
    if end is not None:
        check_span(begin, end)
    kinds = [kind for kind, name in NAMES.items() if name == filters.job_name] if filters.job_name else None
    with ctx.catalog.read() as conn:
        total, jobs = ctx.jobs.list(
            conn, caller.required_project(), instance=filters.instance_id, kinds=kinds,
            states=[state for state, word in _TASK_STATUS.items() if filters.job_status in (None, word)],
            created_from=begin, created_to=end, limit=filters.limit, offset=filters.first_row,
        )  # fmt: skip
        shown = [_task_fields(conn, job) for job in jobs]
    return {"schedules": shown, "total_count": str(total)}


@router.delete("/v3/{project_id}/scheduled-jobs/{job_id}", status_code=202)
def cancel_scheduled_job(
    job_id: JobId, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:task:cancel")]
) -> dict[str, Any]:
    """Cancels a task that is Pending. A deletion that is decided cannot be called back, one that waits by undelete."""
    with ctx.catalog.write() as conn:
        job = _find(ctx, conn, caller, job_id)
        if job.state != "QUEUED":
            raise errors.NotPending(f"job {job.id} is not pending: it is {_TASK_STATUS[job.state]}")
        _cancel(ctx, conn, caller, job)
    return {}


@router.get("/strongroom/v1/{project_id}/jobs/{job_id}")
def show_job(job_id: JobId, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:task:list")]) -> dict[str, Any]:
    """One job with its progress and result; `pending`: what a deletion waits for before it is decided."""
    with ctx.catalog.read() as conn:
        job = _find(ctx, conn, caller, job_id)
        return {**_own_fields(job), "pending": pending_fields(_mark(conn, job))}


@router.post("/strongroom/v1/{project_id}/jobs/{job_id}/cancel", status_code=202)
def cancel_job(job_id: JobId, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:task:cancel")]) -> dict[str, Any]:
    """Asks a backup, restore or import to end. A deletion that is decided cannot be called back, one that waits by undelete."""
    with ctx.catalog.write() as conn:
        _cancel(ctx, conn, caller, _find(ctx, conn, caller, job_id))
    return {}


def _cancel(ctx: Context, conn: Connection, caller: Principal, job: JobView) -> None:
    if _mark(conn, job) is not None:
        raise errors.InstanceBusy(f"job {job.id} is a deletion that waits: undelete backup {job.backup} instead")
    if job.kind not in ("backup", "restore", "import", "verify", "rehearse", "reconcile"):
        raise errors.InstanceBusy(f"a job of kind {NAMES.get(job.kind, job.kind)} cannot be cancelled")
    ctx.jobs.cancel(conn, job.id)
    audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomCancelJob", "job", job.id))


def _mark(conn: Connection, job: JobView) -> Row[Any] | None:
    """What a deletion's job waits for, if it is not decided."""
    mark = pending.mark_of(conn, job.backup) if job.kind == "delete" and job.backup is not None else None
    return mark if mark is not None and mark.job == job.id else None


def _find(ctx: Context, conn: Connection, caller: Principal, job_id: str) -> JobView:
    job = ctx.jobs.get(conn, job_id)
    if job is None or job.project != caller.required_project():
        raise errors.NoSuchJob(f"there is no job {job_id} in this project")
    return job


def _contract_fields(conn: Connection, job: JobView) -> dict[str, Any]:
    return {
        "id": job.id, "name": NAMES.get(job.kind, job.kind), "status": _STATUS[job.state],
        "start_time": time_text(job.created_at),
        "end_time": "" if job.finished_at is None else time_text(job.finished_at), "progress": _percent(job),
        "instance": {"id": job.instance or "", "name": listing.instance_name(conn, job.instance)},
        "fail_reason": _reason(job),
    }  # fmt: skip


def _task_fields(conn: Connection, job: JobView) -> dict[str, Any]:
    ended = "" if job.finished_at is None else time_text(job.finished_at)
    engine = listing.instance_engine(conn, job.instance)
    return {
        "job_id": job.id, "instance_id": job.instance or "", "instance_name": listing.instance_name(conn, job.instance),
        "instance_status": "normal", "datastore_type": engine, "job_name": NAMES.get(job.kind, job.kind),
        "job_status": _TASK_STATUS[job.state], "create_time": time_text(job.created_at),
        "start_time": "" if job.started_at is None else time_text(job.started_at), "end_time": ended,
    }  # fmt: skip


def _own_fields(job: JobView) -> dict[str, Any]:
    return {
        "id": job.id, "kind": job.kind, "name": NAMES.get(job.kind, job.kind),
        "status": "Cancelled" if job.state == "CANCELLED" else _STATUS[job.state], "progress": job.progress,
        "fail_reason": why_not(job) or _reason(job), "result": job.result, "instance_id": job.instance, "backup_id": job.backup,
        "created_at": iso(job.created_at), "started_at": iso(job.started_at), "finished_at": iso(job.finished_at),
    }  # fmt: skip


def why_not(job: JobView | None) -> str | None:
    """What the last try of a job that has not ended met; it is tried again. None if it met nothing, or has ended.

    For our own calls: in the contract's list a reason means that the job has failed.
    """
    return job.error if job is not None and job.active else None


def _reason(job: JobView) -> str:
    if job.state == "CANCELLED":
        return job.error or "cancelled"
    return (job.error or "") if job.state == "FAILED" else ""


def _percent(job: JobView) -> str:
    """ "60%" while the job runs, else nothing."""
    if not job.active:
        return ""
    told = job.progress or {}
    total = told.get("total")
    return f"{min(99, int(100 * told.get('done', 0) / total))}%" if total else "0%"
