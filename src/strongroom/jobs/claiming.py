"""A worker's statements: claim, prove, renew, end, give back. Every one names owner and epoch, and so touches nobody else's job.

Taking a dead worker's job over is the claim itself: a RUNNING job whose lease has run out is as claimable as a QUEUED one. The
claim raises the epoch, which fences whoever held it. Where many rows are touched at once those that another transaction holds are
passed over, never waited for, so that no statement here can be part of a deadlock.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from strongroom.catalog.tables import job as t
from strongroom.jobs.leases import LeasedJobs


@dataclass(frozen=True, slots=True)
class Claim:
    """One claimed job, as its row was just after the claim."""

    id: str
    kind: str
    args: Mapping[str, Any]
    epoch: int
    attempts: int
    max_attempts: int | None
    cancel_asked: bool
    cancelled: bool  # while it was queued: only its give_up is owed
    overdue: bool  # its deadline has passed
    error: str | None  # why the run before ended


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a heartbeat brings back of one job."""

    cancel_asked: bool
    overdue: bool


Held = tuple[str, int]
"""(id, epoch): one claim of a job."""


class Claims:
    """The statements of one owner."""

    def __init__(self, jobs: LeasedJobs, owner: str, ttl: float) -> None:
        self.jobs, self.owner, self.ttl = jobs, owner, ttl

    def claim(
        self, queues: Collection[str], kinds: Collection[str], *, take_over: bool, but: Collection[str] = ()
    ) -> Claim | None:
        """Takes the first job that is due, or with `take_over` one whose lease has run out; never one of the ids in `but`.

        Cancelled jobs first, then by priority and age. Raises DBAPIError.
        """
        now = self.jobs.clock.now()
        cancelled = t.c.finished_at.is_not(None)
        statement = (
            sa.update(t)
            .where(t.c.id == self._candidate(queues, kinds, take_over, but).scalar_subquery())
            .values(
                state="RUNNING",
                owner=self.owner,
                epoch=t.c.epoch + 1,
                attempts=t.c.attempts + sa.case((cancelled, 0), else_=1),
                lease_until=now + self.ttl,
                started_at=sa.func.coalesce(t.c.started_at, sa.case((cancelled, None), else_=now)),
            )
            .returning(t, self._overdue().label("overdue"))
        )
        try:
            with self.jobs.catalog.write() as conn:
                row = conn.execute(statement).first()
        except IntegrityError:  # another worker was faster with a job of the same serial key
            return None
        if row is None:
            return None
        return Claim(
            id=row.id, kind=row.kind, args=json.loads(row.args), epoch=row.epoch, attempts=row.attempts,
            max_attempts=row.max_attempts, cancel_asked=row.cancel_asked, cancelled=row.finished_at is not None,
            overdue=row.overdue, error=row.error,
        )  # fmt: skip

    def _candidate(
        self, queues: Collection[str], kinds: Collection[str], take_over: bool, but: Collection[str]
    ) -> sa.Select[tuple[str]]:
        now, j, other = self.jobs.clock.now(), t.alias("j"), t.alias("other")
        due = sa.and_(j.c.state == "QUEUED", j.c.run_after <= now)
        if take_over:
            due = sa.or_(due, sa.and_(j.c.state == "RUNNING", j.c.lease_until < now))
        same_serial = sa.exists().where(other.c.serial == j.c.serial, other.c.state == "RUNNING", other.c.id != j.c.id)
        where = [j.c.queue.in_(queues), j.c.kind.in_(kinds), j.c.state.in_(("QUEUED", "RUNNING")), due]
        if but:
            where.append(j.c.id.not_in(but))
        return (
            sa.select(j.c.id)
            .where(*where, sa.or_(j.c.serial.is_(None), ~same_serial))
            .order_by(sa.case((j.c.finished_at.is_not(None), 0), else_=1), j.c.priority, j.c.created_at, j.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )

    def prove(self, conn: Connection, held: Held) -> bool:
        """Locks the job's row and says whether it is still ours; the lease begins anew."""
        statement = sa.update(t).where(*self._ours(held)).values(lease_until=self.jobs.clock.now() + self.ttl)
        return conn.execute(statement).rowcount == 1

    def holds(self, held: Held) -> bool:
        """Whether the job is still ours, by a read alone. Raises DBAPIError."""
        with self.jobs.catalog.read() as conn:
            return conn.execute(sa.select(t.c.id).where(*self._ours(held))).first() is not None

    def renew(self, progress: Mapping[Held, str | None]) -> tuple[dict[Held, Renewal], set[Held]]:
        """One statement for all jobs that are running here: renews their leases, writes their progress, asks for news.

        Returns the news, and which jobs are lost. A row that a transaction holds just now (mostly one of its handler's own, which
        renews by itself) is in neither. Raises DBAPIError.
        """
        mine = sa.select(t.c.id).where(
            t.c.owner == self.owner, t.c.state == "RUNNING", sa.tuple_(t.c.id, t.c.epoch).in_(progress.keys())
        )
        free = mine.with_for_update(skip_locked=True).cte("mine")
        told = {id: text for (id, _), text in progress.items() if text is not None}
        values: dict[str, Any] = {"lease_until": self.jobs.clock.now() + self.ttl}
        if told:
            values["progress"] = sa.case(told, value=t.c.id, else_=t.c.progress)
        statement = sa.update(t).where(t.c.id.in_(sa.select(free.c.id))).values(values)
        with self.jobs.catalog.write() as conn:
            rows = conn.execute(statement.returning(t.c.id, t.c.epoch, t.c.cancel_asked, self._overdue().label("overdue"))).all()
            news: dict[Held, Renewal] = {(row.id, row.epoch): Renewal(row.cancel_asked, row.overdue) for row in rows}
            unheard = progress.keys() - news.keys()
            lost = self._lost(conn, unheard) if unheard else set()
        return news, lost

    def _lost(self, conn: Connection, held: Collection[Held]) -> set[Held]:
        """Which of these are somebody else's, or nobody's; one that its own handler has ended is not lost."""
        rows = conn.execute(sa.select(t.c.id, t.c.epoch, t.c.owner, t.c.state).where(t.c.id.in_([id for id, _ in held]))).all()
        kept = {
            (row.id, row.epoch)
            for row in rows
            if row.state in ("DONE", "FAILED", "CANCELLED") or (row.state == "RUNNING" and row.owner == self.owner)
        }
        return set(held) - kept

    def end(
        self,
        conn: Connection,
        held: Held,
        state: str,
        *,
        result: Mapping[str, Any] | None = None,
        error: str | None = None,
        progress: str | None = None,
    ) -> bool:
        """Ends the job as DONE, FAILED or CANCELLED; one cancelled while it was queued stays CANCELLED. False: it is not ours."""
        statement = sa.update(t).where(*self._ours(held)).values(
            state=sa.case((t.c.finished_at.is_not(None), "CANCELLED"), else_=state),
            owner=None,
            lease_until=None,
            finished_at=sa.func.coalesce(t.c.finished_at, self.jobs.clock.now()),
            result=None if result is None else json.dumps(dict(result)),
            error=error,
            progress=sa.func.coalesce(progress, t.c.progress),
        )  # fmt: skip
        return conn.execute(statement).rowcount == 1

    def queue_again(
        self, conn: Connection, held: Held, pause: float, *, counted: bool, error: str | None = None, progress: str | None = None
    ) -> bool:
        """Gives the job back for `pause` seconds or longer; not `counted`: this run was no attempt. False: it is not ours."""
        now = self.jobs.clock.now()
        fresh = t.c.finished_at.is_(None)
        statement = sa.update(t).where(*self._ours(held)).values(
            state="QUEUED",
            owner=None,
            lease_until=None,
            run_after=now + pause,
            attempts=t.c.attempts if counted else t.c.attempts - sa.case((fresh, 1), else_=0),
            finished_at=sa.case((sa.and_(fresh, t.c.cancel_asked), now), else_=t.c.finished_at),
            error=sa.func.coalesce(error, t.c.error),
            progress=sa.func.coalesce(progress, t.c.progress),
        )  # fmt: skip
        return conn.execute(statement).rowcount == 1

    def ended_here(self, conn: Connection, held: Held) -> bool:
        """Whether this claim of the job has brought it to its end."""
        row = conn.execute(sa.select(t.c.epoch, t.c.state).where(t.c.id == held[0])).first()
        return row is not None and row.epoch == held[1] and row.state in ("DONE", "FAILED", "CANCELLED")

    def _ours(self, held: Held) -> tuple[sa.ColumnElement[bool], ...]:
        return (t.c.id == held[0], t.c.epoch == held[1], t.c.owner == self.owner, t.c.state == "RUNNING")

    def _overdue(self) -> sa.ColumnElement[bool]:
        return sa.func.coalesce(t.c.deadline < self.jobs.clock.now(), sa.false())
