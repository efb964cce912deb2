"""A vault in a harsh world: its clock is ours, its store fails on command, its processes die and are taken over.

    vault = HarshVault(tmp_path)
    vault.plan = lambda effect: …           what the store does wrong, see strongroom.storage.faults
    with vault.dying(at=17): …              the process ends at its 17th effect
    other = vault.another_process()         a second worker on the same catalog, store and databases
    saved = vault.save(); HarshVault.revive(folder, saved)      the same world again, as often as wanted

Nothing sleeps: a pause moves the clock. SQLite does not wait for the disk, since here processes die and machines do not.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from strongroom.ambient import Machine
from strongroom.backups import snapshots
from strongroom.backups.automation import AutomateJob, ExpireJob
from strongroom.backups.context import Context, Options
from strongroom.backups.creation import BackupJob
from strongroom.backups.deletion import DeleteJob
from strongroom.backups.locating import CatalogLocator, read_manifest
from strongroom.backups.policies import AUTOMATE, EXPIRE
from strongroom.backups.removal import RemoveJob
from strongroom.backups.restoration import RestoreJob
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.identity.secrets import Sealer
from strongroom.jobs.clock import AmbientClock
from strongroom.jobs.embedded import forget_leases
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import Handler
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.repository.keys import RootKey
from strongroom.repository.reader import BackupReader
from strongroom.storage.base import Store
from strongroom.storage.faults import Effect, Fault, FaultyStore
from strongroom.storage.memory import MemoryStore
from support.vault import ROOT, DictEngine, Vault

TTL = 6.0
"""Seconds that a lease lasts here."""


class Clock(Machine):
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.began = super().now()

    def now(self) -> float:
        return self.began + self.passed

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.passed += max(seconds, 0.5)


class Died(BaseException):
    """The process is gone."""


@dataclass(frozen=True)
class Saved:
    """A world at rest."""

    catalog: bytes
    objects: dict[str, bytes]
    databases: dict[str, dict[str, bytes]]
    wanted: dict[str, dict[str, bytes]]
    options: Options
    project: str
    source: str
    target: str


class HarshVault(Vault):
    """See the head of this module."""

    def __init__(self, folder: Path, options: Options | None = None, inner: Store | None = None) -> None:
        self._begin(folder, inner if inner is not None else MemoryStore())
        super().__init__(folder, store=self.store, catalog=self.catalog, options=options)

    def _begin(self, folder: Path, inner: Store, catalog: Catalog | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.plan: Callable[[Effect], Fault | None] = lambda _effect: None
        self.nature: Callable[[Effect], Fault | None] = lambda _effect: None  # what the store is like, whatever the plan
        self.clock = Clock()
        self.inner = inner
        self.store: Store = FaultyStore(inner, lambda effect: self.plan(effect) or self.nature(effect))
        self.catalog = catalog or fast_catalog(folder / "catalog.db")

    @property
    def faulty(self) -> FaultyStore:
        """The store as this process sees it."""
        assert isinstance(self.store, FaultyStore)
        return self.store

    def restart(self) -> None:
        """A new process on the same catalog, store and databases: it forgets the leases of the one that died."""
        self.ambient = self.clock
        self.ctx, self.worker = self._process(self.store, "stepwise")
        self.jobs = self.ctx.jobs
        with self.catalog.write() as conn:
            forget_leases(conn)

    def another_process(self, plan: Callable[[Effect], Fault | None] = lambda _effect: None) -> StepwiseWorker:
        """A second process beside this one, which keeps its leases; its store has faults of its own."""
        return self._process(FaultyStore(self.inner, plan), "another")[1]

    def _process(self, store: Store, owner: str) -> tuple[Context, StepwiseWorker]:
        jobs = LeasedJobs(self.catalog, self.clock, AmbientClock(self.clock))
        scratch = self.folder / f"scratch-{owner}"
        scratch.mkdir(exist_ok=True)
        ctx = Context(
            self.catalog, store, jobs, {"plain": self.engine}, RootKey(ROOT), Sealer(ROOT), self.clock, scratch, self.options
        )
        return ctx, StepwiseWorker(jobs, self.handlers(ctx), self.queues, owner=owner, ttl=TTL)

    queues: Sequence[str] = ("default",)
    """Those that its workers serve."""

    def handlers(self, ctx: Context) -> dict[str, Handler]:
        """The jobs that its workers run."""
        return {
            "backup": BackupJob(ctx), "restore": RestoreJob(ctx), "delete": DeleteJob(ctx), "remove": RemoveJob(ctx),
            AUTOMATE: AutomateJob(ctx), EXPIRE: ExpireJob(ctx), snapshots.KIND: snapshots.SnapshotJob(ctx),
        }  # fmt: skip

    def run(self) -> None:
        """Runs jobs until none is active; the clock goes to where the next is due."""
        self.run_with(self.worker)

    def snapshot(self) -> None:
        """A snapshot of the catalog, and whatever else is to be done."""
        snapshots.submit(self.ctx)
        self.run()

    def run_with(self, worker: StepwiseWorker, pauses: int = 400) -> None:
        """Runs jobs by this worker until none is active. AssertionError: one comes back again and again."""
        for _ in range(pauses):
            while worker.step() is not None:
                pass
            with self.catalog.read() as conn:
                active = conn.execute(sa.select(t.job).where(t.job.c.state.in_(("QUEUED", "RUNNING")))).all()
            if not active:
                return
            self.clock.sleep(TTL)
        raise AssertionError(f"a job is stuck: {[(row.kind, row.state, row.error) for row in active]}")

    # ---- worlds that are the same again -------------------------------------------------------------------------------

    def save(self) -> Saved:
        """Everything there is, at rest."""
        assert isinstance(self.inner, MemoryStore)
        return Saved(
            copy_of(self.catalog, self.folder / "saved.db"), dict(self.inner._objects),
            copy.deepcopy(self.engine.databases), dict(self.wanted), self.options, self.project, self.source, self.target,
        )  # fmt: skip

    @classmethod
    def revive(cls, folder: Path, saved: Saved, instead: HarshVault | None = None) -> HarshVault:
        """The saved world in a folder of its own; quicker `instead` of one in the same folder that is not needed any more."""
        catalog = None if instead is None else instead._let_go()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "catalog.db").write_bytes(saved.catalog)
        inner = MemoryStore()
        inner._objects.update(saved.objects)
        vault = cls.__new__(cls)
        vault._begin(folder, inner, catalog)
        vault.folder, vault.options, vault.engine = folder, saved.options, DictEngine()
        vault.engine.databases = copy.deepcopy(saved.databases)
        vault.wanted = dict(saved.wanted)
        vault.project, vault.source, vault.target = saved.project, saved.source, saved.target
        vault.restart()
        return vault

    def _let_go(self) -> Catalog:
        """The catalog's engine, with its compiled statements and nothing else of this world."""
        self.catalog.engine.dispose()
        return self.catalog

    # ---- death ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def dying(self, at: int | None) -> Iterator[Fate]:
        """Within the block the process dies at its effect number `at` (1 is the first), and after that can do nothing more.

        Effects are calls of the store, before and after each, and transactions of the catalog, before each begins and commits.
        """
        fate = Fate(at)
        with self.watching(fate), suppress(Died):
            yield fate

    @contextmanager
    def watching(self, told: Callable[[Effect | str], Fault | None]) -> Iterator[None]:
        """Within the block every effect is told, and what is answered to the store's happens."""

        def begin(_conn: sa.Connection) -> None:
            told("begin")

        def commit(_conn: sa.Connection) -> None:
            told("commit")

        sa.event.listen(self.catalog.engine, "begin", begin, insert=True)
        sa.event.listen(self.catalog.engine, "commit", commit)
        before, self.plan = self.plan, told
        try:
            yield
        finally:
            sa.event.remove(self.catalog.engine, "begin", begin)
            sa.event.remove(self.catalog.engine, "commit", commit)
            self.plan = before

    # ---- what is so -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """At rest: every backup reads back byte for byte, and the store holds exactly what the catalog names."""
        for key, data in self.wanted.items():
            assert self.read_back(key) == data, f"backup {key} is not what it was"
        self.check_accounts()

    def read_back(self, key: str) -> dict[str, bytes]:
        """What a restore would hand to the engine, without the job around it."""
        with self.catalog.read() as conn:
            part = conn.execute(sa.select(t.part).where(t.part.c.backup == key)).one()
        keys, locator = self.ctx.keys(part.lineage), CatalogLocator(self.ctx, part.lineage)
        manifest = read_manifest(self.ctx, keys, part.lineage, part.seq)
        with BackupReader(manifest, self.inner, keys, locator) as reader:
            return {entry.name: b"".join(reader.read(entry.name)) for entry in reader.entries()}

    def expect_surviving(self, before: dict[str, dict[str, bytes]]) -> None:
        """After a death: what the catalog shows as COMPLETED must restore; what it does not show is not expected.

        A backup that nobody could note down holds what the source holds.
        """
        hoped = before | self.wanted
        source = self.engine.databases["plain://source"]
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(t.backup.c.id, t.backup.c.state)).all()
        states = {row.id: row.state for row in rows}
        assert set(states.values()) <= {"COMPLETED", "DELETED", "FAILED"}, states
        self.wanted = {key: hoped.get(key, source) for key, state in states.items() if state == "COMPLETED"}


class Fate:
    """Counts effects and ends the process at one of them."""

    def __init__(self, at: int | None) -> None:
        self.count, self.at, self.alive = 0, at, True

    def __call__(self, effect: Effect | str) -> Fault | None:
        if not self.alive:
            raise Died
        self.count += 1
        if self.at is not None and self.count >= self.at:
            self.alive = False
            raise Died
        return None


def fast_catalog(file: Path) -> Catalog:
    """An SQLite catalog that does not wait for the disk; its tables are made if there are none."""
    fresh = not file.exists()
    catalog = open_catalog(f"sqlite:///{file}")

    @sa.event.listens_for(catalog.engine, "connect")
    def hurry(raw: Any, _record: Any) -> None:
        raw.execute("PRAGMA synchronous=OFF")

    if fresh:
        t.metadata.create_all(catalog.engine)
    return catalog


def copy_of(catalog: Catalog, file: Path) -> bytes:
    """The database's content at rest, as the bytes of one file."""
    file.unlink(missing_ok=True)
    raw = catalog.engine.raw_connection()
    try:
        raw.driver_connection.execute("VACUUM INTO ?", (str(file),))  # type: ignore[union-attr]
    finally:
        raw.close()
    return file.read_bytes()


class Reviving:
    """The world after one backup of each of these, at rest, as often as wanted; one at a time."""

    def __init__(self, folder: Path, options: Options, backups: Iterable[dict[str, bytes]]) -> None:
        self._folder = folder
        self._last = HarshVault(folder, options)
        for data in backups:
            self._last.backup(data)
        self._saved = self._last.save()

    def again(self) -> HarshVault:
        """The world anew; the one before is not needed any more, and lends it its compiled statements."""
        self._last = HarshVault.revive(self._folder, self._saved, self._last)
        return self._last
