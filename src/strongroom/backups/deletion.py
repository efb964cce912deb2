"""Deleting a backup: from the door to the receipt.

    preview     what would go and what would wait, at the lineages' version
    delete      one transaction decides everything: may it go, its parts leave their chains, the promise, the audit event, the job
    DeleteJob   only removes: sweep → grave → manifests → condemned objects → rewrite in budget → read back what was shared →
                receipt and DELETED, last

Promise = result: preview and promise are one function on a read-only snapshot at version v; the transaction compares v under the
lineages' locks and computes again if it moved, the third time inside. From the 202 on the backup is hidden from every list.

Where the project's deletions wait (pending.py), that transaction only asks whether the backup may go and leaves a mark; the job
decides later, by the same code, and asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups import aftercheck, errors, holds, pending, policies, removal, rewriting, staleness
from strongroom.backups.context import Context
from strongroom.backups.objects import close_lineage, plan_grave
from strongroom.catalog import lifespans, logs, sweeping
from strongroom.catalog import tables as t
from strongroom.catalog.space import Forecast, Partly, Toll, condemn
from strongroom.identity import audit
from strongroom.jobs.port import Running, TryAgain
from strongroom.notifications import outbox
from strongroom.repository.errors import RepositoryError
from strongroom.storage.base import StoreError

MOST = 10
"""Backups in one batch."""

Note = Callable[[Connection, str, str], None]
"""Writes the audit event of one accepted delete (backup id, name); called last in the deciding transaction, and not for one that
changes nothing, as of a backup whose deletion runs."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What deleting one backup does, in bytes."""

    owned: int = 0
    freed: int = 0
    waiting: int = 0
    undecided: int = 0
    objects: int = 0

    def __add__(self, other: Promise) -> Promise:
        return Promise(
            self.owned + other.owned, self.freed + other.freed, self.waiting + other.waiting,
            self.undecided + other.undecided, self.objects + other.objects,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Preview:
    """What deleting a set of backups does, one after the other in the given order: neighbours share."""

    version: str  # of the lineages: a delete accepted at it has equal numbers
    promises: Mapping[str, Promise]
    refusals: Mapping[str, errors.Refused]
    thorough: Partly  # what will be partly dead in their lineages: what a thorough delete of the last writes and gives back
    parts: Mapping[str, Sequence[tuple[str, int]]] = field(repr=False, default_factory=dict)

    @property
    def total(self) -> Promise:
        """All of the set."""
        return sum(self.promises.values(), Promise())


def preview(ctx: Context, project: str, ids: Sequence[str], *, priced: bool = True) -> Preview:
    """Computes what deleting these backups would do. Earlier sweeps of their lineages are finished first. Raises NoSuchBackup.

    `priced`: also what a thorough delete would rewrite, which takes looking at every object that would lose something.
    """
    _finish_sweeps(ctx, project, ids)
    with ctx.catalog.read() as conn:
        return _compute(conn, project, ids, now=ctx.ambient.now(), priced=priced)


def delete(
    ctx: Context,
    project: str,
    backup: str,
    note: Note,
    if_match: str | None = None,
    *,
    by: pending.Person | None = None,
    thorough: bool = False,
    expiring: bool = False,
) -> str:
    """Decides the deletion of one backup, or has it decided later, and returns its job's id; the same job while one is pending
    or runs. Raises errors.Refused.

    `by`: who asks; another user has to approve it where the project says so. `thorough`: the job rewrites all that is partly dead
    in the backup's lineages, whatever it costs; the preview says what. `expiring`: it goes by its instance's policy, so that
    being automated is no reason to refuse and nothing is waited for.
    """
    return _decide(ctx, _Order(project, [backup], note, if_match, by, thorough, expiring))[0]


def delete_batch(ctx: Context, project: str, ids: Sequence[str], note: Note, *, by: pending.Person | None = None) -> list[str]:
    """All or nothing: 1 to 10 different ids, checked in one transaction; the first refusal is raised and nothing is decided."""
    if not 1 <= len(ids) <= MOST or len(set(ids)) != len(ids):
        raise errors.BadBatch(f"backup_ids takes 1 to {MOST} different ids; there are {len(ids)}, {len(set(ids))} different")
    return _decide(ctx, _Order(project, ids, note, by=by))


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be decided."""

    project: str
    ids: Sequence[str]
    note: Note
    if_match: str | None = None
    by: pending.Person | None = None
    thorough: bool = False
    expiring: bool = False
    job: Running | None = None  # a pending deletion's own: its time has come


def _decide(ctx: Context, order: _Order) -> list[str]:
    for attempt in (1, 2, 3):
        _finish_sweeps(ctx, order.project, order.ids)
        with ctx.catalog.read() as conn:
            seen = _seen(ctx, conn, order)
        lineages = [lineage for parts in seen.parts.values() for lineage, _ in parts]
        guard = None if order.job is None else order.job.guard
        try:
            with ctx.catalog.decide(guard, backups=order.ids, lineages=lineages) as conn:
                return _accept(ctx, conn, order, seen, last=attempt == 3)
        except (_Moved, lifespans.NotSwept):
            continue
    raise errors.InstanceBusy("the lineage keeps moving; nothing was decided: try again")


def _seen(ctx: Context, conn: Connection, order: _Order, now: float | None = None) -> Preview:
    """What the order would do. What is pending already goes another time, so that its neighbours' shares are as if it stayed."""
    return _compute(
        conn, order.project, order.ids, now=ctx.ambient.now() if now is None else now, priced=order.thorough,
        expiring=order.expiring, with_pending=order.job is not None,
    )  # fmt: skip


class _Moved(Exception):
    """The lineages moved between the snapshot and the locks."""


def _accept(ctx: Context, conn: Connection, order: _Order, seen: Preview, *, last: bool) -> list[str]:
    """The deciding transaction, everything locked, by one reading of the clock."""
    now, ids = ctx.ambient.now(), order.ids
    rows = {key: _backup(conn, order.project, key) for key in ids}
    if order.job is None:
        known = {key: _known_job(conn, row) for key, row in rows.items()}
    else:
        known = dict.fromkeys(ids)
        pending.due(conn, ids[0], order.job.id, now)
    fresh = [key for key in ids if known[key] is None and rows[key].state != "DELETING"]
    for key in fresh:
        refusal = _refusal(conn, rows[key], now, order.expiring)
        if refusal is not None:
            raise refusal
    if any(key not in seen.parts for key in fresh):
        raise _Moved
    for lineage in {lineage for key in fresh for lineage, _ in seen.parts[key]}:
        lifespans.require_swept(conn, lineage)
    locked = _version(conn, [lineage for key in fresh for lineage, _ in seen.parts[key]], ahead=1)
    if order.if_match is not None and fresh and order.if_match != locked:
        raise errors.PreviewMoved(f"the preview was made at {order.if_match}, now it is {locked}: preview again")
    if locked != (seen.version if fresh == list(ids) else _version_of(seen, fresh)):
        if not last:
            raise _Moved
        seen = _seen(ctx, conn, order, now)
    price = seen.thorough.living if order.thorough else None
    at_once = order.expiring or order.job is not None
    policy = pending.AT_ONCE if at_once else pending.policy_of(conn, order.project)
    jobs: dict[str, str] = {}
    changed = set(fresh)
    room = min(sweeping.AT_ONCE, sweeping.BATCH)
    for key in ids:
        job = known[key]
        if job is not None:
            jobs[key] = job
            if order.thorough and pending.make_thorough(conn, key):
                changed.add(key)
        elif rows[key].state == "DELETING":
            jobs[key] = _resume(ctx, conn, rows[key], price)
            changed.add(key)
        elif policy.waits:
            unique = removal.of_delete(key)
            jobs[key] = pending.ask(ctx, conn, rows[key], policy, unique, by=order.by, thorough=order.thorough, now=now)
        else:
            jobs[key] = _submit(ctx, conn, rows[key]) if order.job is None else order.job.id
            room = _take_out(ctx, conn, rows[key], jobs[key], seen.parts[key], seen.promises[key], price, locked, room)
    for key in ids:
        if key in changed:
            order.note(conn, key, rows[key].name)
    return [jobs[key] for key in ids]


def _submit(ctx: Context, conn: Connection, backup: Row[Any]) -> str:
    """The job that removes what the deletion condemns."""
    return ctx.jobs.submit(
        conn, "delete", {"backup": backup.id}, project=backup.project, instance=backup.instance, backup=backup.id,
        unique_key=removal.of_delete(backup.id),
    )  # fmt: skip


def _take_out(
    ctx: Context,
    conn: Connection,
    backup: Row[Any],
    job: str,
    parts: Sequence[tuple[str, int]],
    promise: Promise,
    price: int | None,
    version: str,
    room: int,
) -> int:
    """The backup's parts leave their chains; what fits into `room` is swept. Returns the room that is left.

    `price`: of a thorough one, None for one within the budget."""
    key = removal.of_delete(backup.id)
    conn.execute(
        t.deletion.insert().values(
            backup=backup.id, project=backup.project, job=job, state="RUNNING", at_version=version, owned=promise.owned,
            promised_freed=promise.freed, promised_waiting=promise.waiting, promised_undecided=promise.undecided,
            promised_objects=promise.objects, thorough=price is not None, promised_rewrite=price or 0,
            freed=0, waiting=0, removed_objects=0, hidden=0, put_bytes=0,
            rewrite_read=0, rewrite_written=0, rewrite_dropped=0, accepted_at=ctx.ambient.now(),
        )
    )  # fmt: skip
    pending.forget(conn, backup.id, state="DELETING")
    for lineage, seq in parts:
        gap = lifespans.retire(conn, lineage, seq)
        condemn(conn, _manifests(conn, lineage, seq), key)
        empty = gap.before == 0 and gap.after is None
        if empty:
            close_lineage(conn, ctx, lineage, key)
        else:
            attempt = conn.execute(
                sa.select(t.part.c.attempt).where(t.part.c.lineage == lineage, t.part.c.seq == seq)
            ).scalar_one()
            plan_grave(conn, ctx, lineage, seq, attempt, key)
            logs.bury(conn, lineage, key)
        room = sweeping.record(conn, lineage, "DELETE", backup.id, gap, key, room=room)
    return room


def _resume(ctx: Context, conn: Connection, backup: Row[Any], price: int | None) -> str:
    """A deletion whose job Failed goes on in a new job, with what is condemned still condemned; thorough if any call says so."""
    job = _submit(ctx, conn, backup)
    here = t.deletion.c.backup == backup.id
    conn.execute(sa.update(t.deletion).where(here).values(job=job, state="RUNNING", fail_reason=None))
    if price is not None:
        conn.execute(sa.update(t.deletion).where(here).values(thorough=True))
    return job


def _compute(
    conn: Connection,
    project: str,
    ids: Sequence[str],
    *,
    now: float,
    priced: bool,
    expiring: bool = False,
    with_pending: bool = True,
) -> Preview:
    """The one function behind preview and promise. `priced`: also what a thorough delete would rewrite."""
    parts: dict[str, Sequence[tuple[str, int]]] = {}
    promises: dict[str, Promise] = {}
    refusals: dict[str, errors.Refused] = {}
    forecasts: dict[str, Forecast] = {}
    away: dict[str, set[int]] = {}
    for key in ids:
        row = _backup(conn, project, key)
        if row.state == "DELETING" or (row.state == "PENDING" and not with_pending):
            continue
        refusal = _refusal(conn, row, now, expiring)
        if refusal is not None:
            refusals[key] = refusal
            continue
        parts[key] = _parts(conn, key)
        promise = Promise()
        for lineage, seq in parts[key]:
            forecast = forecasts.setdefault(lineage, Forecast(conn, lineage))
            promise += _promise(conn, forecast, lineage, seq, away.setdefault(lineage, set()))
            away[lineage].add(seq)
        promises[key] = promise
    thorough = sum((one.partly_dead() for one in forecasts.values()), Partly()) if priced else Partly()
    version = _version(conn, [lineage for some in parts.values() for lineage, _ in some])
    return Preview(version, promises, refusals, thorough, parts)


def _promise(conn: Connection, forecast: Forecast, lineage: str, seq: int, away: set[int]) -> Promise:
    """One part's share: what its gap kills, its manifests, the log that nobody can go on by without it, and the lineage's own
    objects if it was the last."""
    gap = lifespans.neighbours(conn, lineage, seq, away)
    toll: Toll = forecast.add(gap)
    where = sa.and_(t.object_.c.kind == "manifest", t.object_.c.seq == seq)
    log = logs.weigh(conn, lineage, {*away, seq}) - logs.weigh(conn, lineage, away)
    if gap.before == 0 and gap.after is None:
        where = sa.or_(where, t.object_.c.kind.in_(("grave", "key")), logs.unfinished())
    extra = conn.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(t.object_.c.bytes), 0)).where(
            t.object_.c.lineage == lineage, t.object_.c.state == "STORED", where
        )
    ).one()
    return Promise(
        owned=toll.owned + int(extra[1]) + log.bytes, freed=toll.freed + int(extra[1]) + log.bytes, waiting=toll.waiting,
        undecided=sweeping.undecided_bytes(conn, lineage, gap), objects=toll.objects + extra[0] + log.objects,
    )  # fmt: skip


def _refusal(conn: Connection, backup: Row[Any], now: float, expiring: bool) -> errors.Refused | None:
    """Why this backup may not go now, in the contract's order."""
    if backup.state == "BUILDING":
        return errors.BackupBuilding(f"backup {backup.id} is being built: stop it first")
    if holds.is_held(backup, now):
        return errors.BackupHeld(f"backup {backup.id} is held ({holds.told(backup)}): release it first")
    restoring = conn.execute(
        sa.select(t.job.c.id).where(
            t.job.c.backup == backup.id, t.job.c.kind == "restore", t.job.c.state.in_(("QUEUED", "RUNNING"))
        )
    ).first()
    if restoring is not None:
        return errors.BackupRestoring(f"backup {backup.id} is being restored by job {restoring.id}: wait for its end")
    by_policy = backup.origin == "Auto" and not expiring and policies.is_on(conn, backup.instance)
    if by_policy and pending.state_of(conn, backup) == "COMPLETED":
        return errors.BackupAutomated(f"backup {backup.id} is automated and goes by its instance's policy: turn that off first")
    return None


def _finish_sweeps(ctx: Context, project: str, ids: Sequence[str]) -> None:
    """Earlier decisions first: a promise over an unswept gap would be wrong. Raises NoSuchBackup."""
    with ctx.catalog.read() as conn:
        rows = [_backup(conn, project, key) for key in ids]
        lineages = sorted({lineage for row in rows for lineage, _ in _parts(conn, row.id)})
    for lineage in lineages:
        sweeping.finish(ctx.catalog, lineage)


def _backup(conn: Connection, project: str, key: str) -> Row[Any]:
    row = conn.execute(sa.select(t.backup).where(t.backup.c.id == key, t.backup.c.project == project)).first()
    if row is None or row.state == "DELETED":
        raise errors.NoSuchBackup(f"there is no backup {key} in this project")
    return row


def _parts(conn: Connection, backup: str) -> list[tuple[str, int]]:
    """The backup's parts in a chain, as (lineage, seq)."""
    rows = conn.execute(
        sa.select(t.part.c.lineage, t.part.c.seq)
        .where(t.part.c.backup == backup, t.part.c.state != "RETIRED")
        .order_by(t.part.c.lineage, t.part.c.seq)
    )
    return [(row.lineage, row.seq) for row in rows]


def _manifests(conn: Connection, lineage: str, seq: int) -> list[str]:
    rows = conn.execute(
        sa.select(t.object_.c.id).where(t.object_.c.lineage == lineage, t.object_.c.kind == "manifest", t.object_.c.seq == seq)
    )
    return [row.id for row in rows]


def _known_job(conn: Connection, backup: Row[Any]) -> str | None:
    """The job of the backup's deletion that is pending or runs."""
    mark = pending.mark_of(conn, backup.id)
    if mark is not None:
        return str(mark.job)
    if backup.state != "DELETING":
        return None
    row = conn.execute(sa.select(t.deletion).where(t.deletion.c.backup == backup.id)).one()
    return row.job if row.state == "RUNNING" else None


def _version(conn: Connection, lineages: Sequence[str], ahead: int = 0) -> str:
    """One word for the versions of some lineages. `ahead`: how far this transaction's own locks have moved them."""
    rows = conn.execute(
        sa.select(t.lineage.c.id, t.lineage.c.version).where(t.lineage.c.id.in_(set(lineages))).order_by(t.lineage.c.id)
    )
    return ",".join(f"{row.id}.{row.version - ahead}" for row in rows) or "none"


def _version_of(seen: Preview, ids: Sequence[str]) -> str:
    wanted = {lineage for key in ids for lineage, _ in seen.parts.get(key, ())}
    return ",".join(word for word in seen.version.split(",") if word.split(".")[0] in wanted) or "none"


class DeleteJob:
    """The job `delete`: decides a deletion that was pending, and carries a decided one out."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any] | None:
        ctx, backup = self._ctx, str(job.args["backup"])
        key = removal.of_delete(backup)
        with ctx.catalog.read() as conn:
            row = conn.execute(sa.select(t.backup).where(t.backup.c.id == backup)).one()
            lineages = [
                row.lineage for row in conn.execute(sa.select(t.part.c.lineage).where(t.part.c.backup == backup).distinct())
            ]
        if row.state != "DELETING" and not self._decided(job, row):
            return None
        try:
            rewriting.abandon(ctx, job, key)
            removal.carry_out(ctx, job, lineages, key)
            rewritten = rewriting.reclaim(ctx, job, lineages, backup)
            aftercheck.verify(ctx, job, backup, rewritten)
        except (StoreError, RepositoryError, staleness.CatalogOutdated) as error:
            end = removal.ending(error)
            if isinstance(end, TryAgain):
                raise end from error
            self._fail(job, backup, str(error))
            return None
        self._finish(job, backup)
        return None

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """The backup stays DELETING with what is condemned; a repeated DELETE goes on from there. One that was only pending, and
        ends so, is there again."""
        del outcome
        self._fail(job, str(job.args["backup"]), reason)

    def _decided(self, job: Running, backup: Row[Any]) -> bool:
        """Decides the pending deletion; False if the backup may not go, and is there again. Raises TryAgain until its time has
        come, Cancelled where nobody asks for it any more."""
        ctx = self._ctx
        try:
            with ctx.catalog.read() as conn:
                mark = pending.due(conn, backup.id, job.id, ctx.ambient.now())

            def note(conn: Connection, key: str, name: str) -> None:
                entry = audit.Entry(
                    "StrongroomDecideDeletion", "backup", key, name, project=backup.project,
                    detail={**pending.record(mark), "job": job.id},
                )  # fmt: skip
                audit.append(conn, ctx.ambient, entry)

            _decide(ctx, _Order(backup.project, [backup.id], note, thorough=mark.thorough, job=job))
        except (errors.BackupRestoring, errors.InstanceBusy) as error:
            raise TryAgain(str(error)) from error
        except errors.Refused as error:
            self._fail(job, backup.id, str(error))
            return False
        return True

    def _finish(self, job: Running, backup: str) -> None:
        ctx = self._ctx
        with ctx.catalog.decide(job.guard, backups=[backup]) as conn:
            left = conn.execute(
                sa.select(t.object_.c.id)
                .where(t.object_.c.removal == removal.of_delete(backup), t.object_.c.state == "CONDEMNED")
                .limit(1)
            ).first()
            if left is not None:
                raise TryAgain("objects of this deletion were condemned while it ran", 0.0)
            now = ctx.ambient.now()
            conn.execute(sa.update(t.deletion).where(t.deletion.c.backup == backup).values(state="DONE", finished_at=now))
            conn.execute(sa.update(t.backup).where(t.backup.c.id == backup).values(state="DELETED"))
            job.finish(conn, receipt(conn, backup))

    def _fail(self, job: Running, backup: str, reason: str) -> None:
        """Nothing where the deletion is neither pending, by this job, nor decided: it was called back."""
        ctx = self._ctx
        with ctx.catalog.decide(job.guard, backups=[backup]) as conn:
            row = conn.execute(sa.select(t.backup).where(t.backup.c.id == backup)).one()
            mark = pending.mark_of(conn, backup)
            if mark is not None and mark.job == job.id:
                job.fail(conn, reason)
                pending.call_off(ctx, conn, mark, reason)
                return
            if row.state != "DELETING":
                return
            conn.execute(
                sa.update(t.deletion)
                .where(t.deletion.c.backup == backup, t.deletion.c.state == "RUNNING")
                .values(state="FAILED", fail_reason=reason)
            )
            job.fail(conn, reason)
            outbox.deletion_failed(ctx, conn, row, job.id, reason)
            audit.append(
                conn, ctx.ambient,
                audit.Entry(
                    "NoSQLDeleteBackupFailed", "backup", backup, row.name, outcome="FAILED", level="Major",
                    project=row.project, detail={"reason": reason, "job": job.id},
                ),
            )  # fmt: skip


def receipt(conn: Connection, backup: str) -> dict[str, Any]:
    """What a deletion promised and did, in bytes, from its rows."""
    row = conn.execute(sa.select(t.deletion).where(t.deletion.c.backup == backup)).one()
    settled = conn.execute(
        sa.select(
            sa.func.coalesce(sa.func.sum(t.decision.c.settled_freed), 0),
            sa.func.coalesce(sa.func.sum(t.decision.c.settled_waiting), 0),
        ).where(t.decision.c.backup == backup, t.decision.c.cause == "DELETE")
    ).one()
    return {
        "promised": {
            "owned": row.owned, "freed": row.promised_freed, "waiting": row.promised_waiting,
            "undecided": row.promised_undecided, "objects": row.promised_objects,
        },
        "thorough": {"rewrite": row.promised_rewrite} if row.thorough else None,
        "freed": row.freed, "waiting": row.waiting, "undecided": row.promised_undecided,
        "settled_freed": int(settled[0]), "settled_waiting": int(settled[1]),
        "removed_objects": row.removed_objects, "hidden": row.hidden, "put_bytes": row.put_bytes,
        "reclaimed": {
            "read": row.rewrite_read, "written": row.rewrite_written, "dropped": row.rewrite_dropped,
            "net": row.rewrite_dropped - row.rewrite_written,
        },
        "verified": aftercheck.of_receipt(row.verified),
    }  # fmt: skip


__all__ = ["DeleteJob", "Preview", "Promise", "delete", "delete_batch", "preview", "receipt"]
