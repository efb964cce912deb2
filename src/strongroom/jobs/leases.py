"""The caller's side of the jobs port, on the catalog's own tables: a job is submitted, or not, with the caller's transaction.

How a job's row shows its state:
    QUEUED or RUNNING with `finished_at` set    cancelled while it was queued. Readers see CANCELLED from that moment on; a
                                                worker still claims it, before all others, to call its handler's `give_up`
    RUNNING with `cancel_asked`                 the worker that runs it has been asked to end it
    lease_until                                 until when nobody else may take a RUNNING job, by the lease clock

A cancelled job waits for its follow-up behind a running job of its serial key, as its work would have: what `give_up` does
to the subject never runs beside other work on it. Until then it holds its unique key.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row
from sqlalchemy.dialects import postgresql, sqlite

from strongroom.ambient import Ambient
from strongroom.catalog.database import Catalog, after_commit
from strongroom.catalog.tables import job as t
from strongroom.jobs.clock import DatabaseClock, LeaseClock
from strongroom.jobs.port import DuplicateJob, JobView

CHANNEL = "strongroom_jobs"
"""The PostgreSQL channel that tells workers of new work."""

ACTIVE = t.c.state.in_(("QUEUED", "RUNNING"))


class LeasedJobs:
    """Jobs in the catalog, SQLite or PostgreSQL. Safe for many threads."""

    def __init__(self, catalog: Catalog, ambient: Ambient, clock: LeaseClock | None = None) -> None:
        self.catalog, self.ambient = catalog, ambient
        self.clock: LeaseClock = clock or DatabaseClock(catalog.postgres)
        self._wakes: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def submit(
        self,
        conn: Connection,
        kind: str,
        args: Mapping[str, Any],
        *,
        id: str | None = None,
        project: str | None = None,
        instance: str | None = None,
        backup: str | None = None,
        queue: str = "default",
        serial: str | None = None,
        unique_key: str | None = None,
        priority: int = 100,
        delay: float = 0.0,
        max_attempts: int | None = None,
        timeout: float | None = None,
    ) -> str:
        """See the port. `timeout` counts from now; a job that takes longer ends as CANCELLED. Raises DuplicateJob, and
        ValueError for an id that was used before."""
        key, now = id or self.ambient.uuid(), self.clock.now()
        row = {
            "id": key, "kind": kind, "args": json.dumps(dict(args)), "project": project, "instance": instance, "backup": backup,
            "queue": queue, "serial": serial, "unique_key": unique_key, "priority": priority, "state": "QUEUED", "epoch": 0,
            "run_after": now + delay, "attempts": 0, "max_attempts": max_attempts, "cancel_asked": False,
            "deadline": None if timeout is None else now + timeout, "created_at": now,
        }  # fmt: skip
        while not self._insert(conn, row):
            self._explain(conn, key, unique_key)
        self._announce(conn)
        return key

    def _insert(self, conn: Connection, row: Mapping[str, Any]) -> bool:
        make = postgresql.insert if self.catalog.postgres else sqlite.insert
        return conn.execute(make(t).values(row).on_conflict_do_nothing().returning(t.c.id)).first() is not None

    def _explain(self, conn: Connection, key: str, unique_key: str | None) -> None:
        """Raises why a row was not inserted; returns if the reason has passed meanwhile."""
        if conn.execute(sa.select(t.c.id).where(t.c.id == key)).first() is not None:
            raise ValueError(f"a job {key} has been submitted before")
        other = conn.execute(sa.select(t.c.id).where(t.c.unique_key == unique_key, ACTIVE)).scalar()
        if other is not None:
            raise DuplicateJob(other)

    def cancel(self, conn: Connection, id: str) -> None:
        """See the port. Locks the job's row: call it before backups and lineages are locked (catalog.database's order)."""
        now = self.clock.now()
        queued = t.c.state == "QUEUED"
        conn.execute(
            sa.update(t)
            .where(t.c.id == id, ACTIVE, t.c.finished_at.is_(None))
            .values(
                cancel_asked=True,
                finished_at=sa.case((queued, now), else_=t.c.finished_at),
                run_after=sa.case((queued, now), else_=t.c.run_after),
            )
        )
        self._announce(conn)

    def revoke(self, conn: Connection, id: str, reason: str) -> None:
        """See the port."""
        fresh = sa.and_(t.c.id == id, ACTIVE, t.c.finished_at.is_(None))
        values = {"state": "CANCELLED", "owner": None, "lease_until": None, "finished_at": self.clock.now(), "error": reason}
        conn.execute(sa.update(t).where(fresh).values(values))
        self._announce(conn)

    def reschedule(self, conn: Connection, id: str, delay: float) -> None:
        """See the port."""
        waiting = sa.and_(t.c.id == id, t.c.state == "QUEUED", t.c.finished_at.is_(None))
        conn.execute(sa.update(t).where(waiting).values(run_after=self.clock.now() + delay))
        self._announce(conn)

    def get(self, conn: Connection, id: str) -> JobView | None:
        """See the port."""
        row = conn.execute(sa.select(t).where(t.c.id == id)).first()
        return None if row is None else view(row)

    def list(
        self,
        conn: Connection,
        project: str,
        *,
        id: str | None = None,
        instance: str | None = None,
        kinds: Iterable[str] | None = None,
        states: Iterable[str] | None = None,
        created_from: float | None = None,
        created_to: float | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> tuple[int, Sequence[JobView]]:
        """How many of the project's jobs fit, and a page of them, newest first. States as JobView shows them; times inclusive."""
        where = [t.c.project == project]
        if id is not None:
            where.append(t.c.id == id)
        if instance is not None:
            where.append(t.c.instance == instance)
        if kinds is not None:
            where.append(t.c.kind.in_([*kinds]))
        if states is not None:
            where.append(shown_state().in_([*states]))
        if created_from is not None:
            where.append(t.c.created_at >= created_from)
        if created_to is not None:
            where.append(t.c.created_at <= created_to)
        total = conn.execute(sa.select(sa.func.count()).select_from(t).where(*where)).scalar_one()
        page = sa.select(t).where(*where).order_by(t.c.created_at.desc(), t.c.id).limit(limit).offset(offset)
        return total, [view(row) for row in conn.execute(page)]

    def subscribe(self, wake: Callable[[], None]) -> None:
        """`wake` is called after every transaction that submitted or cancelled through this object; it may be called in vain."""
        with self._lock:
            self._wakes.append(wake)

    def unsubscribe(self, wake: Callable[[], None]) -> None:
        """Ends `subscribe`."""
        with self._lock:
            self._wakes.remove(wake)

    def _announce(self, conn: Connection) -> None:
        """Tells this process's workers after the commit, and all others by NOTIFY."""
        after_commit(conn, self._wake)
        if self.catalog.postgres:
            conn.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))

    def _wake(self) -> None:
        with self._lock:
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()


def shown_state() -> sa.ColumnElement[str]:
    """A job's state as readers see it."""
    return sa.case((sa.and_(ACTIVE, t.c.finished_at.is_not(None)), "CANCELLED"), else_=t.c.state)


def view(row: Row[Any]) -> JobView:
    """A row as readers see it."""
    cancelled = row.finished_at is not None and row.state in ("QUEUED", "RUNNING")
    return JobView(
        id=row.id, kind=row.kind, args=json.loads(row.args), project=row.project, instance=row.instance, backup=row.backup,
        state="CANCELLED" if cancelled else row.state, attempts=row.attempts, progress=_json(row.progress),
        result=_json(row.result), error=row.error, created_at=row.created_at, started_at=row.started_at,
        finished_at=row.finished_at,
    )  # fmt: skip


def _json(text: str | None) -> Mapping[str, Any] | None:
    loaded: Mapping[str, Any] | None = None if text is None else json.loads(text)
    return loaded
