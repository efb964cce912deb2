"""What deciding and sweeping a delete costs in catalogs of 1 TB, through the shipped functions on a real database.

    python -m benchmarks.catalog_scale [--postgres URL] [--contiguous 10,100,1000] [--scattered 10,35,100] …

For each synthetic catalog (synthetic.py) and for its oldest, middle and newest backup, each on a fresh copy of the database:

    preview     strongroom.backups.deletion.preview
    decide      strongroom.backups.deletion.delete: all that a caller waits for before the 202, computing the promise included
    locked      the longest time that one of its transactions held the write lock or the rows
    sweep       strongroom.catalog.sweeping.finish: the removal job's first step
    swept       the longest of the sweep's transactions
    begin       sweeping.finish_and_reopen: what the next backup has to do first after this delete
    grew        memory that all of this took, at its peak

Afterwards the promise is compared with what the tables say was done. The files lie in the page cache (they were just copied).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from benchmarks.databases import Databases, PostgresServer, SqliteFiles
from benchmarks.measuring import peak_memory, reset_peak_memory
from benchmarks.reporting import Results, table
from benchmarks.synthetic import History, Pattern, Shape, backup_id
from strongroom.ambient import Machine
from strongroom.backups import deletion
from strongroom.backups.context import Context
from strongroom.catalog import sweeping
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.catalog.migrating import migrate
from strongroom.identity import accounts, audit
from strongroom.identity.secrets import Sealer
from strongroom.jobs.leases import LeasedJobs
from strongroom.repository.keys import LineageKeys, RootKey, seal_lineage_keys
from strongroom.storage.memory import MemoryStore

COLUMNS = (
    "database", "catalog", "victim", "packs", "deaths", "db_mib", "preview_s", "decide_s", "locked_s", "sweep_s", "swept_s",
    "begin_s", "freed_mib", "waiting_mib", "grew_mib",
)  # fmt: skip

_ROOT = bytes(32)


@dataclass
class Clock:
    """Times how long each writing transaction of a catalog is open: from its lock to the end of its commit."""

    held: list[float] = field(default_factory=list)
    _since: dict[int, float] = field(default_factory=dict)

    def watch(self, catalog: Catalog) -> None:
        """Begins to listen."""
        sa.event.listen(catalog.engine, "begin", self._began)
        sa.event.listen(catalog.engine, "checkin", self._ended)

    def longest(self) -> float:
        """The longest since the last call, in seconds."""
        longest = max(self.held, default=0.0)
        self.held.clear()
        return longest

    def _began(self, conn: Connection) -> None:
        if not conn.get_execution_options().get("strongroom_read"):
            self._since[id(conn.connection.dbapi_connection)] = time.perf_counter()

    def _ended(self, raw: Any, _record: Any) -> None:
        since = self._since.pop(id(raw), None)
        if since is not None:
            self.held.append(time.perf_counter() - since)


@dataclass(frozen=True)
class Built:
    """A loaded catalog."""

    url: str
    project: str
    lineage: str
    counts: dict[str, int]


def build(databases: Databases, shape: Shape) -> Built:
    """Makes the catalog of this shape."""
    url = databases.create(shape.name)
    catalog = open_catalog(url)
    try:
        migrate(catalog)
        with catalog.write() as conn:
            project = accounts.found(conn, Machine(), "benchmark", "default", "admin", None).project
        history = History(shape, project)
        with catalog.write() as conn:
            _add_owner_rows(conn, history)
    finally:
        catalog.close()
    counts = {"pack": 0, "death": 0, "object": 0}
    with databases.loader(url) as loader:
        for day in history.days():
            loader.add("backup", [day.backup])
            loader.add("part", [day.part])
            loader.add("object", day.objects)
            loader.add("pack", day.packs)
            loader.add("holding", day.holdings)
            loader.add("death", day.deaths)
            for name, rows in (("pack", day.packs), ("death", day.deaths), ("object", day.objects)):
                counts[name] += len(rows)
    return Built(url, project, history.lineage, counts)


def _add_owner_rows(conn: Connection, history: History) -> None:
    now = 0.0
    conn.execute(
        t.instance.insert().values(
            id=history.instance, project=history.project, name="synthetic", engine="redis", address="redis://127.0.0.1",
            mode="Single", version="7.0", state="REGISTERED", labels="{}", created_at=now, updated_at=now,
        )
    )  # fmt: skip
    keys = seal_lineage_keys(RootKey(_ROOT), history.lineage, LineageKeys.create(Machine()))
    conn.execute(
        t.lineage.insert().values(
            id=history.lineage, project=history.project, instance=history.instance, scope="", node="", state="OPEN",
            counter=history.shape.backups, version=0, chunk_average=history.shape.chunk, pack_target=history.shape.pack,
            sealed_keys=keys,
        )
    )  # fmt: skip


def measure(url: str, built: Built, victim: str, scratch: Path) -> dict[str, Any]:
    """Deletes one backup of the catalog at `url`; returns seconds and bytes."""
    catalog, clock = open_catalog(url), Clock()
    clock.watch(catalog)
    ambient = Machine()
    ctx = Context(catalog, MemoryStore(), LeasedJobs(catalog, ambient), {}, RootKey(_ROOT), Sealer(_ROOT), ambient, scratch)

    def note(conn: Connection, backup: str, name: str) -> None:
        audit.append(conn, ambient, audit.Entry("NoSQLDeleteBackup", "backup", backup, name, project=built.project))

    seconds: dict[str, float] = {}
    resident = reset_peak_memory()
    try:
        with timed(seconds, "preview_s"):
            promised = deletion.preview(ctx, built.project, [victim]).total
        clock.longest()
        with timed(seconds, "decide_s"):
            deletion.delete(ctx, built.project, victim, note)
        seconds["locked_s"] = clock.longest()
        with timed(seconds, "sweep_s"):
            sweeping.finish(catalog, built.lineage)
        seconds["swept_s"] = clock.longest()
        with timed(seconds, "begin_s"):
            sweeping.finish_and_reopen(catalog, built.lineage)
        with catalog.read() as conn:
            check_promise(conn, victim, promised)
    finally:
        catalog.close()
    return {
        **{name: round(value, 4) for name, value in seconds.items()},
        "freed_mib": round(int(promised.freed) / (1 << 20), 1), "waiting_mib": round(promised.waiting / (1 << 20), 1),
        "objects": promised.objects, "grew_mib": round((peak_memory() - resident) / (1 << 20)),
    }  # fmt: skip


def check_promise(conn: Connection, victim: str, promised: deletion.Promise) -> None:
    """Promise = result: what the sweep condemned and marked dead is what the preview said. Raises AssertionError."""
    condemned = conn.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(t.object_.c.bytes), 0)).where(
            t.object_.c.removal == f"delete:{victim}", t.object_.c.state == "CONDEMNED"
        )
    ).one()
    waiting = conn.execute(sa.select(t.deletion.c.waiting).where(t.deletion.c.backup == victim)).scalar_one()
    done = (int(condemned[0]), int(condemned[1]), int(waiting))
    if done != (promised.objects, promised.freed, promised.waiting):
        raise AssertionError(f"promised {promised}, done {done}")


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes how long the block takes."""
    begun = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begun


def run(databases: Databases, shape: Shape, results: Results, scratch: Path) -> None:
    """One catalog, three victims."""
    begun = time.perf_counter()
    built = build(databases, shape)
    took, size = time.perf_counter() - begun, databases.size(built.url)
    try:
        for name, seq in (("oldest", 1), ("middle", shape.backups // 2 + 1), ("newest", shape.backups)):
            with databases.copied(built.url) as url:
                figures = measure(url, built, backup_id(seq), scratch)
            results.add(
                benchmark="catalog", database=databases.name, catalog=shape.name, victim=name, packs=built.counts["pack"],
                deaths=built.counts["death"], objects_total=built.counts["object"], db_mib=round(size / (1 << 20)),
                build_s=round(took, 1), **figures,
            )  # fmt: skip
    finally:
        databases.drop(built.url)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the databases (some GB)")
    parser.add_argument("--out", type=Path, help="append results here, one JSON line each")
    parser.add_argument("--postgres", help="URL of a PostgreSQL server to use instead of SQLite files")
    parser.add_argument("--contiguous", default="10,100,1000", help="numbers of backups")
    parser.add_argument("--scattered", default="10,35,100", help="numbers of backups")
    parser.add_argument("--packs", type=int, default=65_536, help="full packs of 16 MiB in the first backup")
    parser.add_argument("--chunk-kib", type=int, default=64)
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    databases: Databases = PostgresServer(options.postgres) if options.postgres else SqliteFiles(options.work)
    results = Results(options.out)
    wanted: list[tuple[Pattern, str]] = [("contiguous", options.contiguous), ("scattered", options.scattered)]
    for pattern, counts in wanted:
        for count in (int(word) for word in counts.split(",") if word):
            shape = Shape(pattern, count, packs=options.packs, chunk=options.chunk_kib << 10)
            run(databases, shape, results, options.work)
    print(table(results.rows, COLUMNS))


if __name__ == "__main__":
    main()
