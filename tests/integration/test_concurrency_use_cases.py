"""Everything at once in the threads of real workers: backups, deletes, batches, restores, stops, previews, of several instances.

Two workers with a catalog each on PostgreSQL, one on SQLite. While it runs every refusal must be one that the use cases name; at
rest every backup that is left restores, the accounts add up, each receipt equals what the store saw, and nothing is stuck.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import creation, deletion, errors, restoration
from strongroom.backups.context import Context, Options
from strongroom.backups.creation import BackupJob
from strongroom.backups.deletion import DeleteJob
from strongroom.backups.removal import RemoveJob
from strongroom.backups.restoration import RestoreJob
from strongroom.catalog import sweeping
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.engines.base import Control, RestoreSource, Summary, Target
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import Handler
from strongroom.jobs.worker import Worker
from strongroom.storage.base import Stat
from strongroom.storage.memory import MemoryStore
from support.postgres import PostgresServer
from support.vault import DictEngine, Vault, edited, noise

INSTANCES, TARGETS, DRIVERS = 3, 2, 5
EXPECTED = (
    errors.NoSuchBackup,
    errors.InstanceBusy,
    errors.BackupBuilding,
    errors.BackupRestoring,
    errors.BackupNotBuilding,
    errors.NotRestorable,
    errors.PreviewMoved,
)


class StampedEngine(DictEngine):
    """Each state of a database carries a stamp, so that a restore can be compared with what the database was at that time."""

    def __init__(self) -> None:
        super().__init__()
        self.was: dict[bytes, dict[str, bytes]] = {}
        self.wrong: list[str] = []
        self._stamps = itertools.count(1)
        self._lock = threading.Lock()

    def change(self, address: str, data: dict[str, bytes]) -> None:
        """The database holds `data` and a new stamp from now on."""
        with self._lock:
            stamped = data | {"stamp": str(next(self._stamps)).encode()}
            self.was[stamped["stamp"]] = stamped
            self.databases[address] = stamped

    def restore(self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str) -> Summary:
        summary = super().restore(target, source, facts, control, scratch)
        found = self.databases[target.address]
        if found != self.was[found["stamp"]]:
            self.wrong.append(f"{target.address}: stamp {found['stamp']!r}")
        return summary


class CountingStore(MemoryStore):
    """A store in memory that books what is put and removed by what the catalog says it belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.catalog: Catalog | None = None
        self.removed: dict[str, int] = defaultdict(int)  # bytes by removal
        self._marks: dict[str, tuple[str, int]] = {}  # graves and closing marks by name: whose, and bytes
        self.rewritten = 0  # bytes of rewritten objects that were put
        self.lost = 0  # … and of those removed again that never counted as stored
        self._books = threading.Lock()

    def put_new(self, name: str, data: bytes | memoryview | Sequence[bytes | memoryview]) -> int:
        size = super().put_new(name, data)
        kind = name.split("/")[1]
        with self._books:
            if kind == "rewrite":
                self.rewritten += size
            elif kind in ("grave", "closed"):
                self._marks[name] = (self._row(name)[0], size)
        return size

    def delete_many(self, names: Sequence[str]) -> None:
        with self._books:
            for name in names:
                found: Stat | None = self.stat(name)
                if found is None:
                    continue
                removal, size = self._row(name)
                if size == 0 and name.split("/")[1] == "rewrite":
                    self.lost += found.size
                elif size == 0 and name in self._marks:
                    del self._marks[name]
                else:
                    self.removed[removal] += found.size
            super().delete_many(names)

    def marks(self, removal: str) -> int:
        """Bytes of marks that a removal has put and that stayed."""
        return sum(size for of, size in self._marks.values() if of == removal)

    def _row(self, name: str) -> tuple[str, int]:
        assert self.catalog is not None
        with self.catalog.read() as conn:
            row = conn.execute(sa.select(t.object_.c.removal, t.object_.c.bytes).where(t.object_.c.name == name)).one()
        return str(row.removal), int(row.bytes)


class Town:
    """Several instances, worked on by several contexts and drivers at once."""

    def __init__(self, folder: Path, url: str, workers: int, stack: ExitStack, seed: int) -> None:
        self.store = CountingStore()
        catalog = open_catalog(url)
        stack.callback(catalog.close)
        self.store.catalog = catalog
        self.vault = Vault(folder, self.store, catalog, Options(chunk_average=4096, pack_target=32768))
        self.engine = StampedEngine()
        self.vault.engine = self.engine
        self.engine.databases = {"plain://target": {}}
        self.vault.restart()
        self.random = random.Random(seed)
        names = [f"source-{n}" for n in range(INSTANCES)] + [f"target-{n}" for n in range(TARGETS)]
        for name in names:
            self.engine.change(f"plain://{name}", {"a": noise(60_000, self.random.randrange(1 << 30))})
        keys = {name: self.vault._register(name) for name in names}
        self.sources = {keys[name]: f"plain://{name}" for name in names[:INSTANCES]}
        self.targets = [keys[name] for name in names[INSTANCES:]]
        self._stack = stack
        self.contexts = [self.vault.ctx] + [self._context(url, stack) for _ in range(workers - 1)]
        self.workers = [self._worker(ctx) for ctx in self.contexts]
        self.known: list[str] = []
        self.failures: list[BaseException] = []
        self.done: dict[str, int] = defaultdict(int)
        self.jobs_of: dict[str, set[str]] = defaultdict(set)

    def _context(self, url: str, stack: ExitStack) -> Context:
        catalog = open_catalog(url)
        stack.callback(catalog.close)
        return replace(self.vault.ctx, catalog=catalog, jobs=LeasedJobs(catalog, self.vault.ambient), checked={})

    def _worker(self, ctx: Context) -> Worker:
        handlers: dict[str, Handler] = {
            "backup": BackupJob(ctx), "restore": RestoreJob(ctx), "delete": DeleteJob(ctx), "remove": RemoveJob(ctx),
        }  # fmt: skip
        worker = Worker(ctx.jobs, handlers, ["default"], ttl=15, beat=0.5, poll=0.3, threads=4)
        worker.start()
        self._stack.callback(worker.shutdown, 10)
        return worker

    def replace_worker(self) -> None:
        """A worker's process is restarted under load: what it runs is given back after a moment, done or not."""
        self.workers[0].shutdown(0.2)
        self.workers[0] = self._worker(self.contexts[0])

    # ---- what drivers do ------------------------------------------------------------------------------------------------

    def drive(self, seconds: float) -> None:
        """Drivers in threads of their own for some seconds; whatever is no expected refusal is raised here."""
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=self._driver, args=(until, self.random.randrange(1 << 30))) for _ in range(DRIVERS)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            time.sleep(seconds / 4)
            self.replace_worker()
        for thread in threads:
            thread.join(seconds + 60)
            assert not thread.is_alive(), "a driver hangs"
        if self.failures:
            raise self.failures[0]

    def _driver(self, until: float, seed: int) -> None:
        rnd = random.Random(seed)
        acts: list[tuple[Callable[[random.Random], str], int]] = [
            (self._create, 8), (self._delete, 3), (self._delete_at_once, 1), (self._delete_batch, 1), (self._restore, 3),
            (self._stop, 1), (self._preview_and_delete, 2), (self._restore_beside_delete, 1),
        ]  # fmt: skip
        while time.monotonic() < until and not self.failures:
            (act,) = rnd.choices([act for act, _ in acts], [weight for _, weight in acts])
            try:
                self.done[act(rnd)] += 1
            except EXPECTED as refusal:
                self.done[type(refusal).__name__] += 1
            except BaseException as error:
                self.failures.append(error)
            time.sleep(rnd.random() * 0.05)

    def ctx(self, rnd: random.Random) -> Context:
        return rnd.choice(self.contexts)

    def some(self, rnd: random.Random) -> str:
        known = self.known[-12:]
        if not known:
            raise errors.NoSuchBackup("none yet")
        return rnd.choice(known)

    def _create(self, rnd: random.Random) -> str:
        instance, address = rnd.choice(sorted(self.sources.items()))
        old = {name: data for name, data in self.engine.databases[address].items() if name != "stamp"}
        old["a"] = edited(old["a"], rnd.randrange(1 << 30), rnd.randrange(4))
        old[f"n{rnd.randrange(3)}"] = noise(rnd.randrange(1, 40_000), rnd.randrange(1 << 30))
        self.engine.change(address, old)
        key, _ = creation.create(self.ctx(rnd), self.vault.project, instance, creation.Wanted("b"), lambda conn, key: None)
        self.known.append(key)
        return "created"

    def _delete(self, rnd: random.Random, backup: str | None = None, if_match: str | None = None) -> str:
        self._decide_alone(rnd, backup or self.some(rnd), if_match)
        return "deleted"

    def _decide_alone(self, rnd: random.Random, backup: str, if_match: str | None) -> bool:
        """Whether this very call decided: another's may have, of the backup in a set, whose promises are those of the set."""
        decided = False

        def note(conn: sa.Connection, backup: str, name: str) -> None:
            nonlocal decided
            decided = True

        job = deletion.delete(self.ctx(rnd), self.vault.project, backup, note, if_match)
        self.jobs_of[backup].add(job)
        return decided

    def _preview_and_delete(self, rnd: random.Random) -> str:
        backup = self.some(rnd)
        seen = deletion.preview(self.ctx(rnd), self.vault.project, [backup])
        if backup not in seen.promises:
            return "previewed"
        if not self._decide_alone(rnd, backup, seen.version):
            return "deleted by another"
        with self.vault.catalog.read() as conn:
            row = conn.execute(sa.select(t.deletion).where(t.deletion.c.backup == backup)).one()
        promise = seen.promises[backup]
        promised = (row.owned, row.promised_freed, row.promised_waiting, row.promised_undecided, row.promised_objects)
        assert row.at_version == seen.version
        assert promised == (promise.owned, promise.freed, promise.waiting, promise.undecided, promise.objects)
        return "deleted as previewed"

    def _delete_at_once(self, rnd: random.Random) -> str:
        """The same backup from several threads."""
        backup, seeds = self.some(rnd), [rnd.randrange(1 << 30) for _ in range(4)]

        def one(seed: int) -> None:
            try:
                self._delete(random.Random(seed), backup)
            except EXPECTED:
                pass
            except BaseException as error:
                self.failures.append(error)

        threads = [threading.Thread(target=one, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return "deleted at once"

    def _delete_batch(self, rnd: random.Random) -> str:
        ids = list({self.some(rnd) for _ in range(3)})
        rnd.shuffle(ids)
        jobs = deletion.delete_batch(self.ctx(rnd), self.vault.project, ids, lambda conn, b, n: None)
        for backup, job in zip(ids, jobs, strict=True):
            self.jobs_of[backup].add(job)
        return "batches"

    def _restore(self, rnd: random.Random, backup: str | None = None) -> str:
        backup = backup or self.some(rnd)
        restoration.restore(self.ctx(rnd), self.vault.project, backup, rnd.choice(self.targets), lambda conn: None, True)
        return "restores"

    def _restore_beside_delete(self, rnd: random.Random) -> str:
        """At most one of both is accepted at a time: whichever was first."""
        backup, seed, won = self.some(rnd), rnd.randrange(1 << 30), []

        def restore() -> None:
            try:
                won.append(self._restore(random.Random(seed), backup))
            except EXPECTED:
                pass
            except BaseException as error:
                self.failures.append(error)

        thread = threading.Thread(target=restore)
        thread.start()
        with suppress(*EXPECTED):
            won.append(self._delete(rnd, backup))
        thread.join()
        return "restore or delete: " + (won[0] if won else "neither")

    def _stop(self, rnd: random.Random) -> str:
        creation.stop(self.ctx(rnd), self.vault.project, self.some(rnd), lambda conn: None)
        return "stopped"

    # ---- what must be so at rest ----------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Waits until no job is queued or running, then ends the workers."""
        until = time.monotonic() + 60
        while active := self._active():
            assert time.monotonic() < until, f"stuck: {active}"
            time.sleep(0.1)
        for worker in self.workers:
            worker.shutdown(10)

    def _active(self) -> list[Any]:
        with self.vault.catalog.read() as conn:
            job = t.job.c
            return list(
                conn.execute(
                    sa.select(job.kind, job.state, job.attempts, job.error, job.backup).where(
                        job.state.in_(("QUEUED", "RUNNING"))
                    )
                ).all()
            )

    def check(self) -> None:
        """All that a quiet house promises."""
        assert self.engine.wrong == []
        with self.vault.catalog.read() as conn:
            backups = conn.execute(sa.select(t.backup)).all()
            jobs = conn.execute(sa.select(t.job)).all()
            deletions = conn.execute(sa.select(t.deletion)).all()
        assert {b.state for b in backups} <= {"COMPLETED", "FAILED", "DELETED"}
        assert {b.fail_reason for b in backups} <= {None, "stopped by a user"}
        ended = {(j.kind, j.state, j.error) for j in jobs if j.state != "DONE"}
        assert {(kind, state) for kind, state, _ in ended} <= {("backup", "CANCELLED")}, ended
        assert all(row.state == "DONE" for row in deletions)
        for backup, ids in self.jobs_of.items():
            assert len(ids) == 1, f"backup {backup} had several deletions: {ids}"
        self._check_receipts([row.backup for row in deletions])
        for row in backups:
            if row.state == "COMPLETED":
                found = self.vault.restored(row.id)
                assert found == self.engine.was[found["stamp"]]
        self.vault.check_accounts()

    def _check_receipts(self, deleted: list[str]) -> None:
        receipts = {key: self.vault.receipt(key) for key in deleted}
        for key, receipt in receipts.items():
            promised = receipt["promised"]
            assert (receipt["freed"], receipt["waiting"]) == (promised["freed"], promised["waiting"])
            assert receipt["removed_objects"] == promised["objects"]
            if receipt["undecided"] == 0:
                assert (receipt["settled_freed"], receipt["settled_waiting"]) == (0, 0)
            lost = self.store.removed[f"delete:{key}"] - self.store.marks(f"delete:{key}")
            assert lost == receipt["freed"] - receipt["put_bytes"], "the store lost what the receipt says"
            assert self.store.removed[f"rewrite:{key}"] <= receipt["reclaimed"]["dropped"]
            assert receipt["reclaimed"]["written"] <= promised["owned"]
        net = sum(receipt["reclaimed"]["net"] for receipt in receipts.values())
        replaced = sum(size for removal, size in self.store.removed.items() if removal.startswith("rewrite:"))
        assert net == replaced + self.store.lost - self.store.rewritten, "rewriting gave back what the receipts say together"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.mark.slow
@pytest.mark.parametrize("batch", [sweeping.BATCH, 4])
def test_two_workers_on_postgres_keep_every_promise_at_once(
    tmp_path: Path, postgres: PostgresServer, postgres_url: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Some seconds of everything, sweeps whole or in many small transactions; PostgreSQL saw no deadlock."""
    monkeypatch.setattr(sweeping, "BATCH", batch)
    before = (postgres.folder / "log").stat().st_size
    town = Town(tmp_path, postgres_url, workers=2, stack=stack, seed=random.randrange(1 << 30))
    town.drive(15)
    town.settle()
    town.check()
    log = (postgres.folder / "log").read_bytes()[before:].decode()
    assert "deadlock detected" not in log, log[-4000:]
    assert town.done["created"] > 10
    assert town.done["deleted"] > 3


@pytest.mark.slow
@pytest.mark.parametrize("batch", [sweeping.BATCH, 4])
def test_one_worker_on_sqlite_keeps_every_promise_at_once(
    tmp_path: Path, sqlite_url: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """The same on the embedded catalog, with one worker's threads."""
    monkeypatch.setattr(sweeping, "BATCH", batch)
    town = Town(tmp_path, sqlite_url, workers=1, stack=stack, seed=random.randrange(1 << 30))
    town.drive(12)
    town.settle()
    town.check()
    assert town.done["created"] > 10
