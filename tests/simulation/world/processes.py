"""Catalogs, and processes on them: each with a context, a faulty store and a worker of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from simulation.world.surroundings import Databases, Seeded
from strongroom.backups.context import Context, Options
from strongroom.backups.creation import BackupJob
from strongroom.backups.deletion import DeleteJob
from strongroom.backups.removal import RemoveJob
from strongroom.backups.restoration import RestoreJob
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


class _BoundedCatalog(Catalog):
    """The shipped catalog; `before` is called where a transaction is about to begin, with nothing of it begun."""

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine)
        self.before: Callable[[bool], None] = lambda _reads: None
        self.commits = 0

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        self.before(True)
        with super().read() as conn:
            yield conn

    @contextmanager
    def write(self, guard: Guard | None = None) -> Iterator[sa.Connection]:
        self.before(False)
        with super().write(guard) as conn:
            yield conn
        self.commits += 1


class SimCatalog:
    """A catalog in memory on one connection: no task changes within a transaction. Made once, emptied for each history."""

    def __init__(self) -> None:
        self.catalog = _BoundedCatalog(open_catalog("sqlite://").engine)
        t.metadata.create_all(self.catalog.engine)
        lent = self.catalog.engine.raw_connection()
        self.raw: sqlite3.Connection = lent.driver_connection  # type: ignore[assignment]
        lent.close()

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
        self.belongs = True  # False once the catalog was replaced under it
        self.store = FaultyStore(inner, lambda effect: plan(self, effect))
        jobs = LeasedJobs(sim.catalog, ambient, AmbientClock(ambient))
        folder = scratch / name.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        self.ctx = Context(
            sim.catalog, self.store, jobs, {"plain": engine}, RootKey(ROOT), Sealer(ROOT), ambient, folder, OPTIONS
        )
        handlers: dict[str, Handler] = {
            "backup": BackupJob(self.ctx), "restore": RestoreJob(self.ctx), "delete": DeleteJob(self.ctx),
            "remove": RemoveJob(self.ctx),
        }  # fmt: skip
        self.worker = StepwiseWorker(jobs, handlers, ["default"], owner=name, ttl=TTL)
