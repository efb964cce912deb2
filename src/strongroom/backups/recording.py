"""Points in time: whether an instance's log of changes is recorded between its backups, and for how long it is kept.

    put, drop       the policy: whether, how often, for how long; and the log thrown away
    TrimJob         every hour: log that is older than `keep_days` goes

Recording itself is following.py, restoring replaying.py; which piece of log lives how long is decided in catalog/logs.py alone.

A *chain* is a stretch of log without a hole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups import errors, removal
from strongroom.backups.context import Context
from strongroom.backups.registered import find_instance, lock_instance
from strongroom.backups.scope import WHOLE
from strongroom.catalog import logs
from strongroom.catalog import tables as t
from strongroom.engines.log import Recorder
from strongroom.jobs.port import Running
from strongroom.jobs.schedules import Schedule, put_schedule, remove_schedule

RECORD = "record"
"""The kind of job that follows an instance's log."""

QUEUE = "recordings"
"""Their queue: each holds a thread for as long as its policy is on, and takes none from backups and deletions."""

TRIM = "trim"
"""The kind of job that lets old log go."""

HOURLY = Schedule("old log", TRIM, 3600.0, {}, serial=TRIM)

INTERVAL, KEEP_DAYS = 20, 7
"""What holds where nobody says: minutes between pieces, days that moments can be restored for."""

_DAY = 86400.0
EVERY = 10.0  # seconds until a recording that has ended is begun again


@dataclass(frozen=True, slots=True)
class Policy:
    """Whether the log is recorded; `interval` 5 … 120 minutes, `keep_days` 1 … 7."""

    enabled: bool = False
    interval: int = INTERVAL
    keep_days: int = KEEP_DAYS


OFF = Policy()


def show(conn: Connection, project: str, instance: str) -> tuple[Policy, str | None]:
    """The policy of a registered instance, and why its recording does not go on, if so. Raises errors.NoSuchInstance."""
    find_instance(conn, project, instance)
    row = row_of(conn, instance)
    return (OFF, None) if row is None else (Policy(row.enabled, row.interval, row.keep_days), row.trouble)


def put(ctx: Context, project: str, instance: str, policy: Policy, note: Callable[[Connection], None]) -> None:
    """Turns recording on, off, or changes it. What was recorded until now is put into the store within seconds, also where
    nothing changes; what waits to be tried again is tried at once. Off, it stays for `keep_days`. Raises errors.NoSuchInstance,
    NotOffered."""
    with ctx.catalog.write() as conn:
        _try_now(ctx, conn, instance)
        lock_instance(conn, project, instance)
        row = find_instance(conn, project, instance)
        if policy.enabled and not isinstance(ctx.engines.get(row.engine), Recorder):
            raise errors.NotOffered(f"changes of {row.engine} are not recorded: backups are restored as they were taken")
        if policy.enabled and row.mode == "Cluster":
            raise errors.NotOffered("changes of a cluster are not recorded, since its nodes have no order in common")
        values: dict[str, Any] = {
            "enabled": policy.enabled, "interval": policy.interval, "keep_days": policy.keep_days, "updated_at": ctx.ambient.now()
        }  # fmt: skip
        known = row_of(conn, instance)
        if known is None:
            conn.execute(t.recording.insert().values(instance=instance, **_left(conn, instance), **values))
        else:
            if policy.enabled and not known.enabled:  # a person wants it now: a backup is taken for it if there has to be one
                values["asked_at"] = None
            conn.execute(sa.update(t.recording).where(t.recording.c.instance == instance).values(trouble=None, **values))
        if policy.enabled:
            put_schedule(ctx.jobs, conn, _every(instance), first=ctx.ambient.now())
        else:
            remove_schedule(conn, _schedule(instance))
        note(conn)


def connect_anew(ctx: Context, conn: Connection, instance: str) -> None:
    """The instance is entered in another way from now on: its recording ends, and begins again where it was, at once."""
    _try_now(ctx, conn, instance)
    on = sa.and_(t.recording.c.instance == instance, t.recording.c.enabled)
    now = ctx.ambient.now()
    if conn.execute(sa.update(t.recording).where(on).values(trouble=None, updated_at=now)).rowcount:
        put_schedule(ctx.jobs, conn, _every(instance), first=now)


def _try_now(ctx: Context, conn: Connection, instance: str) -> None:
    waiting = sa.select(t.job.c.id).where(t.job.c.serial == f"record:{instance}", t.job.c.state == "QUEUED")
    for job in conn.scalars(waiting).all():
        ctx.jobs.reschedule(conn, job, 0.0)


def _left(conn: Connection, instance: str) -> Mapping[str, Any]:
    """Where a recording of before stands, of which nothing is left but what it has stored (after a rebuild without a
    snapshot)."""
    s, p, lineage = t.segment.c, t.part.c, lineage_of(conn, instance)
    chain = conn.execute(
        sa.select(s.chain).where(s.lineage == lineage).order_by(s.end_at.desc(), s.upto.desc()).limit(1)
    ).scalar()
    if chain is None:
        return {"chains": 0}
    here = (s.lineage == lineage, s.chain == chain)
    ends = conn.execute(sa.select(sa.func.min(s.since), sa.func.max(s.upto), sa.func.max(s.end_at)).where(*here)).one()
    of_chain = (p.lineage == lineage, p.log_chain == chain)
    stream = conn.execute(sa.select(p.log_stream).where(*of_chain).order_by(p.seq.desc()).limit(1)).scalar()
    return {
        "chains": chain, "lineage": lineage, "chain": chain, "began": ends[0], "stream": stream, "position": ends[1],
        "reached_at": ends[2],
    }  # fmt: skip


def stop(conn: Connection, instance: str) -> None:
    """The instance is unregistered: nothing is recorded from here on. What is stays for as long as its policy said."""
    conn.execute(sa.update(t.recording).where(t.recording.c.instance == instance).values(enabled=False))
    remove_schedule(conn, _schedule(instance))


def refill(conn: Connection, instance: str) -> None:
    """The instance gets other contents, by a restore: its log ends there, and may begin anew with a backup at once."""
    conn.execute(sa.update(t.recording).where(t.recording.c.instance == instance).values(asked_at=None))


def drop(ctx: Context, project: str, instance: str, note: Callable[[Connection], None]) -> None:
    """Throws away what is recorded of an instance; recording has to be off. Raises errors.NoSuchInstance, InstanceBusy."""
    with ctx.catalog.read() as conn:
        find_instance(conn, project, instance)
        lineages = list(conn.scalars(_lineages_with_log().where(t.lineage.c.instance == instance)))
    with ctx.catalog.decide(partial(lock_instance, project=project, instance=instance), lineages=lineages) as conn:
        row = row_of(conn, instance)
        if row is not None and row.enabled:
            raise errors.InstanceBusy("its log is being recorded: turn that off first")
        for lineage in lineages:
            if _restoring(conn, lineage):
                raise errors.InstanceBusy("a restore replays the log: wait for its end")
            for chain in conn.scalars(sa.select(t.segment.c.chain).where(t.segment.c.lineage == lineage).distinct()).all():
                logs.cut(conn, lineage, chain, None)
            forget_chain(conn, lineage)
            let_go(ctx, conn, lineage)
        note(conn)


def _every(instance: str) -> Schedule:
    return Schedule(_schedule(instance), RECORD, EVERY, {"instance": instance}, queue=QUEUE, serial=f"record:{instance}")


def _schedule(instance: str) -> str:
    return f"recording of {instance}"


def row_of(conn: Connection, instance: str) -> Row[Any] | None:
    """The recording of an instance; None if it never was on."""
    return conn.execute(sa.select(t.recording).where(t.recording.c.instance == instance)).first()


def forget_chain(conn: Connection, lineage: str) -> None:
    """What is recorded next begins a new chain."""
    nothing = dict.fromkeys(("lineage", "chain", "began", "stream", "position", "reached_at"))
    conn.execute(sa.update(t.recording).where(t.recording.c.lineage == lineage).values(nothing))


def let_go(ctx: Context, conn: Connection, lineage: str) -> bool:
    """Condemns what nobody can go on by, and has it removed; whether there was anything."""
    found = logs.bury(conn, lineage, removal.of_lineage(lineage))
    if found:
        removal.submit(ctx, conn, lineage)
    return found


def lineage_of(conn: Connection, instance: str) -> str | None:
    """The lineage that the instance's whole backups go on in."""
    line = t.lineage.c
    here = (line.instance == instance, line.scope == WHOLE, line.node == "", line.state == "OPEN")
    return conn.execute(sa.select(line.id).where(*here)).scalar()


def _lineages_with_log() -> sa.Select[Any]:
    some = sa.exists().where(t.segment.c.lineage == t.lineage.c.id)
    return sa.select(t.lineage.c.id).where(t.lineage.c.state == "OPEN", some).order_by(t.lineage.c.id)


def _restoring(conn: Connection, lineage: str) -> bool:
    """Whether a restore may be reading the lineage's log."""
    of = sa.select(t.part.c.backup).where(t.part.c.lineage == lineage)
    here = (t.job.c.kind == "restore", t.job.c.state.in_(("QUEUED", "RUNNING")), t.job.c.backup.in_(of))
    return conn.execute(sa.select(t.job.c.id).where(*here)).first() is not None


class TrimJob:
    """The job `trim`. A moment stays restorable for `keep_days`: for that the newest backup before them stays with all that
    follows it; what leads to older moments alone goes."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        ctx = self._ctx
        with ctx.catalog.read() as conn:
            lineages = list(conn.scalars(_lineages_with_log()))
        trimmed = 0
        for lineage in lineages:
            job.check()
            with ctx.catalog.decide(job.guard, lineages=[lineage]) as conn:
                trimmed += self._trim(conn, lineage)
        return {"lineages": trimmed}

    def _trim(self, conn: Connection, lineage: str) -> bool:
        if _restoring(conn, lineage):
            return False  # the next hour's does
        s, p = t.segment.c, t.part.c
        of = sa.select(t.lineage.c.instance).where(t.lineage.c.id == lineage).scalar_subquery()
        days = conn.execute(sa.select(t.recording.c.keep_days).where(t.recording.c.instance == of)).scalar()
        before = self._ctx.ambient.now() - _DAY * (KEEP_DAYS if days is None else days)
        ends = sa.select(s.chain, sa.func.max(s.end_at).label("end_at")).where(s.lineage == lineage).group_by(s.chain)
        for row in conn.execute(ends).all():
            if row.end_at <= before:
                logs.cut(conn, lineage, row.chain, None)
                continue
            here = (p.lineage == lineage, p.state == "COMPLETED", p.log_chain == row.chain, p.log_at <= before)
            newest = conn.execute(sa.select(sa.func.max(p.log_order)).where(*here)).scalar()
            if newest is not None:
                logs.cut(conn, lineage, row.chain, int(newest))
        return let_go(self._ctx, conn, lineage)

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Nothing hangs on it: the next hour's goes on."""
