"""Our own calls about backups and deletions: the preview, a backup's detail, holds, deletions with their receipts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Response
from pydantic import BaseModel, FailFast, Field
from sqlalchemy import Connection, Row

from strongroom.api import errors as border
from strongroom.api.authentication import authenticated_router, may
from strongroom.api.backups import backup_fields
from strongroom.api.contract import BackupId, RowPage, Time, time_text
from strongroom.api.jobs import why_not
from strongroom.api.pending import pending_fields
from strongroom.api.services import given
from strongroom.api.times import iso
from strongroom.backups import deletion, holding, holds, listing, pending
from strongroom.backups.context import Context
from strongroom.identity import audit
from strongroom.identity.principal import Principal

router = authenticated_router("Strongroom")
Here = Annotated[Context, given(Context)]


class PreviewRequest(BaseModel):
    """Backups whose deletion is previewed as a set, in this order."""

    backup_ids: Annotated[list[BackupId], Field(min_length=1, max_length=100), FailFast()]


class HoldRequest(BaseModel):
    """Why the backup must not go, and until when; without `until` until it is released."""

    reason: Annotated[str, Field(min_length=1, max_length=256)]
    kind: Literal["legal", "pin"] = "pin"
    until: Time | None = None


class DeletionFilters(RowPage):
    """Filters of the list of deletions."""

    state: Literal["pending", "running", "failed", "done"] | None = None


@router.post("/strongroom/v1/{project_id}/backups/preview")
def preview(
    request: PreviewRequest,
    response: Response,
    ctx: Here,
    caller: Annotated[Principal, may("strongroom:backup:preview")],
) -> dict[str, Any]:
    """What deleting a set of backups would free at once and what would wait; changes nothing."""
    if len(set(request.backup_ids)) != len(request.backup_ids):
        raise border.ParameterError("Parameter error: backup_ids: an id stands there twice.")
    project = caller.required_project()
    seen = deletion.preview(ctx, project, request.backup_ids)
    with ctx.catalog.read() as conn:
        rows = [row for key in request.backup_ids if (row := listing.present(conn, project, key)) is not None]
    response.headers["ETag"] = f'"{seen.version}"'
    return {
        "version": seen.version,
        **_promise_fields(seen.total),
        "thorough": {"rewrite": seen.thorough.living, "gives_back": seen.thorough.dead, "objects": seen.thorough.objects},
        "backups": [_previewed(row, seen) for row in rows],
    }


@router.get("/strongroom/v1/{project_id}/backups/{backup_id}")
def show_backup(
    backup_id: BackupId, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:backup:list")]
) -> dict[str, Any]:
    """One backup in detail: what it stores, what it shares, what its deletion would free."""
    project = caller.required_project()
    owned = deletion.preview(ctx, project, [backup_id], priced=False).promises.get(backup_id)
    with ctx.catalog.read() as conn:
        row = listing.find_backup(conn, project, backup_id, with_pending=True)
        parts = listing.parts_of(conn, backup_id)
        mark = pending.mark_of(conn, backup_id)
    return {
        **backup_fields(row),
        "state": row.state, "fail_reason": row.fail_reason, "pending": pending_fields(mark),
        **_hold_fields(row, ctx.ambient.now()),
        "plain_bytes": row.plain_bytes,
        "entries": sum(part.entries for part in parts), "stored_bytes": sum(part.stored_bytes for part in parts),
        "adopted_bytes": sum(part.adopted_bytes for part in parts), "owned_bytes": None if owned is None else owned.owned,
        "parts": [
            {"lineage": part.lineage, "seq": part.seq, "attempt": part.attempt, "state": part.state, "node": part.node}
            for part in parts
        ],
    }  # fmt: skip


@router.put("/strongroom/v1/{project_id}/backups/{backup_id}/hold")
def hold_backup(
    backup_id: BackupId,
    request: HoldRequest,
    ctx: Here,
    caller: Annotated[Principal, may("strongroom:backup:hold")],
) -> dict[str, Any]:
    """Holds a backup, in place of any hold before: its deletion is refused, with who, why and until when."""
    if request.until is not None and request.until <= ctx.ambient.now():
        raise border.ParameterError("Parameter error: until is over already.")
    wanted = holds.Hold(request.reason, request.kind, caller.user_name, request.until)
    return _hold(ctx, caller, backup_id, wanted, "StrongroomHoldBackup")


@router.delete("/strongroom/v1/{project_id}/backups/{backup_id}/hold")
def release_backup(backup_id: BackupId, ctx: Here, caller: Annotated[Principal, may("strongroom:backup:hold")]) -> dict[str, Any]:
    """Releases a held backup."""
    return _hold(ctx, caller, backup_id, None, "StrongroomReleaseBackup")


@router.get("/strongroom/v1/{project_id}/deletions")
def list_deletions(
    filters: Annotated[DeletionFilters, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("strongroom:deletion:list")],
) -> dict[str, Any]:
    """Deletions, newest first: pending ones before all others, then those that are decided, each with its receipt."""
    state = filters.state.upper() if filters.state else None
    with ctx.catalog.read() as conn:
        page = listing.list_deletions(conn, caller.required_project(), state, filters.first_row, filters.limit)
        rows = [_deletion(ctx, conn, row) for row in page.rows]
    return {"deletions": rows, "total_count": page.total}


@router.get("/strongroom/v1/{project_id}/deletions/{backup_id}")
def show_deletion(backup_id: BackupId, ctx: Here, caller: Annotated[Principal, may("strongroom:deletion:get")]) -> dict[str, Any]:
    """The deletion of one backup: what it waits for, or promise, progress and receipt."""
    with ctx.catalog.read() as conn:
        return _deletion(ctx, conn, listing.find_deletion(conn, caller.required_project(), backup_id))


def _hold(ctx: Context, caller: Principal, backup_id: str, wanted: holds.Hold | None, event: str) -> dict[str, Any]:
    detail = {} if wanted is None else {"reason": wanted.reason, "kind": wanted.kind, "until": wanted.until}

    def note(conn: Connection) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, event, "backup", backup_id, detail=detail))

    holding.hold(ctx, caller.required_project(), backup_id, wanted, note)
    return {}


def _hold_fields(row: Row[Any], now: float) -> dict[str, Any]:
    """`held`: why, while a hold is in force."""
    if not holds.is_held(row, now):
        return {"held": None, "hold": None}
    since, until = (None if at is None else time_text(at) for at in (row.held_at, row.held_until))
    hold = {"kind": row.held_kind, "by": row.held_by, "since": since, "until": until, "reason": row.held}
    return {"held": row.held, "hold": hold}


def _previewed(row: Row[Any], seen: deletion.Preview) -> dict[str, Any]:
    refusal = seen.refusals.get(row.id)
    told = None
    if refusal is not None:
        answer = border.ANSWERS[type(refusal)]
        told = {"code": answer.code, "message": str(refusal)}
    promise = seen.promises.get(row.id, deletion.Promise())
    return {
        "id": row.id, "name": row.name, "instance_name": row.instance_name, "refusal": told, **_promise_fields(promise)
    }  # fmt: skip


def _promise_fields(promise: deletion.Promise) -> dict[str, int]:
    return {
        "owned": promise.owned, "freed": promise.freed, "waiting": promise.waiting, "undecided": promise.undecided,
        "objects": promise.objects,
    }  # fmt: skip


def _deletion(ctx: Context, conn: Connection, row: Row[Any]) -> dict[str, Any]:
    view = listing.deletion_view(conn, row)
    job = ctx.jobs.get(conn, row.job)
    progress = job.progress if job is not None and job.active else None
    return {
        **view, "accepted_at": iso(view["accepted_at"]), "finished_at": iso(view["finished_at"]), "progress": progress,
        "pending": pending_fields(view["pending"]), "fail_reason": view["fail_reason"] or why_not(job),
    }  # fmt: skip
