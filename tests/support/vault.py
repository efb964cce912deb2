"""A whole service without sockets: real use cases on a real catalog and store, with an engine whose databases are dictionaries.

vault = Vault(tmp_path)
first = vault.backup({"a": b"…"})
vault.delete(first); vault.check()
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.ambient import Machine
from strongroom.backups import creation, deletion, instances, restoration
from strongroom.backups.automation import ExpireJob
from strongroom.backups.context import Context, Options
from strongroom.backups.creation import BackupJob
from strongroom.backups.deletion import DeleteJob
from strongroom.backups.incarnation import take_possession
from strongroom.backups.policies import EXPIRE
from strongroom.backups.removal import RemoveJob
from strongroom.backups.restoration import RestoreJob
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.engines.base import (
    CaptureSink,
    Control,
    EngineUnreachable,
    EngineUnsupported,
    Ground,
    Probe,
    RestoreBroken,
    RestoreSource,
    Summary,
    Target,
    tell_target,
)
from strongroom.engines.exporting import write_file
from strongroom.identity import accounts
from strongroom.identity import tables as identity  # noqa: F401  (its tables are part of the catalog)
from strongroom.identity.secrets import Sealer
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import Handler
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.repository.keys import RootKey
from strongroom.storage.base import Store
from strongroom.storage.memory import MemoryStore
from support.accounts import HOLDINGS, check_books

ROOT = bytes(range(32))


class DictEngine:
    """Databases are dictionaries by address; `broken` makes the next capture or restore fail half-way."""

    name = "plain"
    id_suffix = "99"

    def __init__(self) -> None:
        self.databases: dict[str, dict[str, bytes]] = {}
        self.broken: str | None = None
        self.during: Any = None  # called half-way through a capture
        self.restoring: Any = None  # called when a restore has changed half of its target
        self.warnings: list[str] = []

    def probe(self, target: Target) -> Probe:
        if target.address not in self.databases:
            raise EngineUnreachable(f"nothing listens on {target.address}: start it")
        return Probe("1.0", "Single", sum(len(v) for v in self.databases[target.address].values()))

    def capture(self, target: Target, sink: CaptureSink, control: Control, scratch: str) -> Summary:
        data = dict(self.databases[target.address])
        for number, (name, content) in enumerate(sorted(data.items())):
            control.check()
            if self.during is not None and number == len(data) // 2:
                self.during()
            if self.broken is not None and number == len(data) // 2:
                raise EngineUnreachable(self.broken)
            with sink.entry(name) as entry:
                for start in range(0, len(content), 1000):
                    entry.write(content[start : start + 1000])
                entry.finish({"length": len(content)})
        return Summary(len(data), sum(len(v) for v in data.values()), {"count": len(data)})

    def survey(self, target: Target, facts: Mapping[str, Any], size: int) -> Ground:
        if target.address not in self.databases:
            raise EngineUnreachable(f"nothing listens on {target.address}: start it")
        held = self.databases[target.address]
        return Ground(f"{len(held)} entries" if held else None, self.warnings)

    def restore(self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str) -> Summary:
        found = {entry.name: b"".join(source.read(entry.name)) for entry in source.entries()}
        assert len(found) == facts["count"]
        control.check()
        if self.broken is not None:
            raise RestoreBroken(self.broken, "as it was")
        if self.restoring is not None:
            half = dict(list(found.items())[: len(found) // 2])
            self.databases[target.address] = half
            try:
                self.restoring()
                control.check()
            except Exception as error:
                tell_target(error, f"{len(half)} of {len(found)} entries")
                raise
        self.databases[target.address] = found
        return Summary(len(found), sum(len(v) for v in found.values()))

    def export(self, source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
        found = {entry.name: b"".join(source.read(entry.name)) for entry in source.entries()}
        for name, content in found.items():
            control.check()
            if self.broken is not None:
                raise EngineUnsupported(self.broken)
            write_file(folder / name, [content])
        return Summary(len(found), sum(len(v) for v in found.values()))

    def recover(self, target: Target) -> None:
        pass


class Vault:
    """One project with one instance, and what each of its backups must restore to."""

    def __init__(
        self,
        folder: Path,
        store: Store | None = None,
        catalog: Catalog | None = None,
        options: Options | None = None,
        engine: DictEngine | None = None,
    ) -> None:
        self.folder = folder
        self.ambient = Machine()
        self.engine = engine or DictEngine()
        self.store = store if store is not None else MemoryStore()
        self.catalog = catalog if catalog is not None else self._new_catalog()
        self.options = options or Options(chunk_average=4096, pack_target=32768)
        self.wanted: dict[str, dict[str, bytes]] = {}
        self.restart()
        take_possession(self.ctx)
        with self.catalog.write() as conn:
            self.project = accounts.found(conn, self.ambient, "account", "project", "admin", None).project
        self.engine.databases = {"plain://source": {}, "plain://target": {}}
        self.source = self._register("source")
        self.target = self._register("target")

    def _new_catalog(self) -> Catalog:
        catalog = open_catalog(f"sqlite:///{self.folder / 'catalog.db'}")
        t.metadata.create_all(catalog.engine)
        return catalog

    def restart(self) -> None:
        """A new process on the same catalog, store and databases."""
        self.jobs = LeasedJobs(self.catalog, self.ambient)
        scratch = self.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        self.ctx = Context(
            self.catalog, self.store, self.jobs, {"plain": self.engine}, RootKey(ROOT), Sealer(ROOT), self.ambient, scratch,
            self.options,
        )  # fmt: skip
        ctx = self.ctx
        handlers: dict[str, Handler] = {
            "backup": BackupJob(ctx), "restore": RestoreJob(ctx), "delete": DeleteJob(ctx), "remove": RemoveJob(ctx),
            EXPIRE: ExpireJob(ctx),
        }  # fmt: skip
        self.worker = StepwiseWorker(self.jobs, handlers, ["default"])

    def _register(self, name: str) -> str:
        new = instances.NewInstance(name, "plain", f"plain://{name}")
        return instances.register(self.ctx, self.project, new, lambda conn, key: None)

    # ---- what users do ------------------------------------------------------------------------------------------------

    def create(self, data: dict[str, bytes] | None = None) -> tuple[str, str]:
        """Accepts a backup of the source, which holds `data` from now on; returns (backup, job)."""
        if data is not None:
            self.engine.databases["plain://source"] = dict(data)
        return creation.create(self.ctx, self.project, self.source, creation.Wanted("a-backup"), lambda conn, key: None)

    def backup(self, data: dict[str, bytes]) -> str:
        """A completed backup of `data`."""
        key, job = self.create(data)
        self.run()
        assert self.state(key) == "COMPLETED", self.job(job).error
        self.wanted[key] = dict(data)
        return key

    def delete(self, key: str, if_match: str | None = None, *, thorough: bool = False) -> str:
        """Accepts a deletion; returns its job."""
        job = deletion.delete(self.ctx, self.project, key, lambda conn, b, n: None, if_match, thorough=thorough)
        self.wanted.pop(key, None)
        return job

    def preview(self, *keys: str) -> deletion.Preview:
        return deletion.preview(self.ctx, self.project, list(keys))

    def restore(self, key: str) -> str:
        """Accepts a restore into the target; returns its job."""
        return restoration.restore(self.ctx, self.project, key, self.target, lambda conn: None, overwrite=True)

    def run(self) -> None:
        """Runs jobs until none is active; those that pause are waited for, some seconds at most."""
        end = self.ambient.monotonic() + 20
        while self.ambient.monotonic() < end:
            if self.worker.step() is not None:
                continue
            with self.catalog.read() as conn:
                if conn.execute(sa.select(t.job.c.id).where(t.job.c.state.in_(("QUEUED", "RUNNING")))).first() is None:
                    return
            self.ambient.sleep(0.05)
        raise AssertionError("a job is stuck")

    # ---- what is so ---------------------------------------------------------------------------------------------------

    def state(self, key: str) -> str:
        with self.catalog.read() as conn:
            return str(conn.execute(sa.select(t.backup.c.state).where(t.backup.c.id == key)).scalar_one())

    def job(self, key: str) -> Any:
        with self.catalog.read() as conn:
            return self.jobs.get(conn, key)

    def receipt(self, key: str) -> dict[str, Any]:
        with self.catalog.read() as conn:
            return deletion.receipt(conn, key)

    def size(self) -> int:
        """Bytes in the store."""
        return sum(stat.size for stat in self.store.list(""))

    def waiting(self) -> int:
        """Dead bytes inside objects that live on."""
        with self.catalog.read() as conn:
            stored = sa.select(sa.func.coalesce(sa.func.sum(t.object_.c.dead_bytes), 0)).where(t.object_.c.state == "STORED")
            return int(conn.execute(stored).scalar_one())

    def restored(self, key: str) -> dict[str, bytes]:
        """What the backup restores to, through the real restore."""
        job = self.restore(key)
        self.run()
        view = self.job(job)
        assert view.state == "DONE", view.error
        return self.engine.databases["plain://target"]

    def check(self) -> None:
        """At rest: every backup restores byte for byte, and the store holds exactly what the catalog names."""
        for key, data in self.wanted.items():
            assert self.restored(key) == data, f"backup {key} is not what it was"
        self.check_accounts()

    def check_accounts(self) -> None:
        """Objects in the store = objects in the catalog, byte for byte; nothing waits to be removed; dead bytes add up."""
        there = {stat.name: stat.size for stat in self.store.list("")}
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(t.object_)).all()
            waiting = conn.execute(sa.select(t.decision.c.id).where(t.decision.c.swept.is_(False))).all()
            held = conn.execute(sa.text(HOLDINGS)).all()
            active = conn.execute(sa.select(t.job.c.kind).where(t.job.c.state.in_(("QUEUED", "RUNNING")))).all()
        assert {row.name: row.bytes for row in rows if row.state == "STORED"} == there
        assert {row.state for row in rows} <= {"STORED", "LATE"}, [(row.name, row.state) for row in rows if row.state != "STORED"]
        assert not waiting, "every decision is swept"
        assert not active, f"no job is stuck: {active}"
        check_books(chunk_objects(rows), held, pytest.fail)


def chunk_objects(rows: Iterable[Any]) -> list[tuple[str, str, int, int]]:
    """Of rows of `object`, what check_books takes."""
    return [
        (row.id, row.name, row.live, row.dead_bytes) for row in rows if row.kind in ("pack", "rewrite") and row.state == "STORED"
    ]


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress and do not repeat."""
    return random.Random(seed).randbytes(size)


def edited(data: bytes, seed: int, edits: int = 3) -> bytes:
    """The data with a few places overwritten."""
    rnd, out = random.Random(seed), bytearray(data)
    for _ in range(edits):
        place = rnd.randrange(max(1, len(out) - 200))
        out[place : place + 200] = rnd.randbytes(200)
    return bytes(out[: len(data)])


def generations(count: int, seed: int = 1) -> Iterator[dict[str, bytes]]:
    """Databases that follow one another: one entry is edited in places, one is new each time, one never changes."""
    base = noise(120_000, seed)
    still = noise(60_000, seed + 1)
    for number in range(count):
        base = edited(base, seed * 1000 + number)
        yield {"edited": base, "own": noise(50_000, seed * 77 + number), "still": still}
