"""Catalogs, and processes on them: each with a context, a faulty store and a worker of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import sqlalchemy as sa

from simulation.world.surroundings import Databases, Seeded
from strongroom.backups import snapshots
from strongroom.backups.context import Context, Options
from strongroom.backups.creation import BackupJob
from strongroom.backups.deletion import DeleteJob
from strongroom.backups.reconciling import ReconcileJob
from strongroom.backups.removal import RemoveJob
from strongroom.backups.restoration import RestoreJob
from strongroom.backups.verification import VerifyJob
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, Guard, open_catalog
from strongroom.identity import tables as identity  # noqa: F401  (its tables are part of the catalog)
from strongroom.identity.secrets import Sealer
from strongroom.jobs.clock import AmbientClock
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import Handler
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.repository.keys import RootKey
from strongroom.storage.faults import Effect, Fault, FaultyStore
from strongroom.storage.memory import MemoryStore

ROOT = bytes(range(32))
TTL = 6.0
"""Seconds that a lease lasts."""
OPTIONS = Options(chunk_average=256, pack_target=1500)

Rows = dict[str, list[tuple[Any, ...]]]


class Turns(Protocol):
    """Is told of the catalog's transactions, and may raise what a database would."""

    def begins(self, reads: bool) -> None:
        """One is about to begin, with nothing of it begun."""

    def committing(self) -> None:
        """All of it was done but the commit: what is raised here undoes it."""

    def committed(self) -> None:
        """It is committed: what is raised here loses the answer."""


class _Quiet:
    def begins(self, reads: bool) -> None:
        """Nothing."""

    def committing(self) -> None:
        """Nothing."""

    def committed(self) -> None:
        """Nothing."""


class _BoundedCatalog(Catalog):
    """The shipped catalog; `turns` is told of each transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine)
        self.turns: Turns = _Quiet()
        self.commits = 0

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        self.turns.begins(True)
        with super().read() as conn:
            yield conn

    @contextmanager
    def write(self, guard: Guard | None = None) -> Iterator[sa.Connection]:
        self.turns.begins(False)
        with super().write(guard) as conn:
            yield conn
            self.turns.committing()
        self.commits += 1
        self.turns.committed()


class SimCatalog:
    """A catalog in memory on one connection: no task changes within a transaction. Made once, emptied for each history."""

    made: ClassVar[list[SimCatalog]] = []

    def __init__(self) -> None:
        self.catalog = _BoundedCatalog(open_catalog("sqlite://").engine)
        t.metadata.create_all(self.catalog.engine)
        lent = self.catalog.engine.raw_connection()
        self.raw: sqlite3.Connection = lent.driver_connection  # type: ignore[assignment]
        lent.close()
        self._due_at: tuple[int, float, bool] = (-1, 0.0, False)
        self.made.append(self)

    @property
    def commits(self) -> int:
        """Writing transactions so far."""
        return self.catalog.commits

    def dump(self) -> Rows:
        """Every row of every table."""
        return {table.name: self.raw.execute(f'SELECT * FROM "{table.name}"').fetchall() for table in t.metadata.sorted_tables}  # noqa: S608

    def load(self, rows: Rows) -> None:
        """Makes the catalog hold these rows and no others."""
        self.raw.execute("BEGIN IMMEDIATE")
        for table in reversed(t.metadata.sorted_tables):
            self.raw.execute(f'DELETE FROM "{table.name}"')  # noqa: S608
        for name, some in rows.items():
            if some:
                marks = ",".join("?" * len(some[0]))
                self.raw.executemany(f'INSERT INTO "{name}" VALUES ({marks})', some)  # noqa: S608
        self.raw.execute("COMMIT")
        self.catalog.commits += 1

    def due(self, now: float) -> bool:
        """Whether a job could be claimed; remembered until something is committed or time passes."""
        if self._due_at[:2] != (self.commits, now):
            row = self.raw.execute(
                "SELECT 1 FROM job j WHERE (state = 'RUNNING' AND lease_until < ?) OR (state = 'QUEUED' AND run_after <= ?"
                " AND NOT EXISTS (SELECT 1 FROM job o WHERE o.serial = j.serial AND o.state = 'RUNNING')) LIMIT 1",
                (now, now),
            ).fetchone()
            self._due_at = self.commits, now, row is not None
        return self._due_at[2]

    def soonest(self, now: float) -> float | None:
        """When the next job may become due; None: there is none at all."""
        soonest, active = self.raw.execute(
            "SELECT min(at) FILTER (WHERE at > ?), count(*) FROM (SELECT CASE state WHEN 'QUEUED' THEN run_after"
            " ELSE lease_until END AS at FROM job WHERE state IN ('QUEUED', 'RUNNING'))",
            (now,),
        ).fetchone()
        return None if not active else now + 1.0 if soonest is None else float(soonest)

    def rest(self) -> None:
        """A history is over: nobody is told anything any more."""
        self.catalog.turns = _Quiet()


class Process:
    """One process of the service on a catalog: `ctx` for users' calls, `worker` for jobs. It dies by `alive` alone."""

    def __init__(
        self,
        name: str,
        sim: SimCatalog,
        inner: MemoryStore,
        plan: Callable[[Process, Effect], Fault | None],
        engine: Databases,
        ambient: Seeded,
        scratch: Path,
    ) -> None:
        self.name, self.alive, self.paused_until = name, True, 0
        self.sim = sim
        self.belongs = True  # False once the catalog was replaced under it, or beside it
        self.beside = False  # True once another catalog was made beside its own
        self.spared = False  # meets no trouble
        self.slips = 0  # batches that it removed after its catalog was replaced
        self.store = FaultyStore(inner, lambda effect: plan(self, effect))
        jobs = LeasedJobs(sim.catalog, ambient, AmbientClock(ambient))
        folder = scratch / name.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        self.ctx = Context(
            sim.catalog, self.store, jobs, {"plain": engine}, RootKey(ROOT), Sealer(ROOT), ambient, folder, OPTIONS
        )
        handlers: dict[str, Handler] = {
            "backup": BackupJob(self.ctx), "restore": RestoreJob(self.ctx), "delete": DeleteJob(self.ctx),
            "remove": RemoveJob(self.ctx), "verify": VerifyJob(self.ctx), "reconcile": ReconcileJob(self.ctx),
            snapshots.KIND: snapshots.SnapshotJob(self.ctx),
        }  # fmt: skip
        self.worker = StepwiseWorker(jobs, handlers, ["default"], owner=name, ttl=TTL)

    @property
    def kind(self) -> str:
        """What it does: worker, users, operator, checker."""
        return self.name.split(" ")[0]
