"""How a loaded database feels a backup: latencies of a paced client with and without one, at several limits.

A Redis and a MongoDB of their own, each filled with random values; a client in a process of its own sends reads and writes at a
steady rate and takes each one's time from the moment it was due, so that a stall counts for all that had to wait. Meanwhile a
real server reads the database again and again for backups, or records what changes in it. It runs at the lowest priority, as if
on a machine of its own: what is measured is what the database itself has to do.

    PYTHONPATH=scripts python -m benchmarks.kindness --work /var/tmp/bench --out kindness.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from benchmarks.reporting import MiB, Results, table
from demo_engines import Mongo, Redis, mongo, redis  # scripts/
from strongroom.ambient import Machine
from strongroom.cli.client import Answer, Client
from strongroom.cli.connection import find
from strongroom.cli.errors import Refused
from strongroom.engines.base import Target
from strongroom.engines.redis.wire import open_wire
from strongroom.settings import CREDENTIALS_FILE

_VALUE = 2048
_READING = ("read", "data")  # the phases in which a capture asks the database for bytes
_ALONE, _RECORDING = "no backup", "recording"
_LIMITS = {"no limit": None, "64 MiB/s": 64 * MiB, "16 MiB/s": 16 * MiB, "4 MiB/s": 4 * MiB}
_CASES = (_ALONE, _RECORDING, *_LIMITS)
_COLUMNS = ("engine", "case", "requests", "p50_ms", "p99_ms", "p999_ms", "max_ms", "backups", "read_mib_s")


def redis_requests(address: str, password: str, keys: int) -> Callable[[random.Random], None]:
    """One request: a GET or a SET of a random key."""
    wire = open_wire(Target(address, password), Machine())

    def request(dice: random.Random) -> None:
        key = f"order:{dice.randrange(keys):06}"
        wire.command(*(("GET", key) if dice.random() < 0.8 else ("SET", key, dice.randbytes(_VALUE))))

    return request


def mongo_requests(address: str, keys: int) -> Callable[[random.Random], None]:
    """One request: a document read by its id, or changed."""
    orders = MongoClient[Any](address)["shop"]["orders"]

    def request(dice: random.Random) -> None:
        number = dice.randrange(keys)
        if dice.random() < 0.8:
            orders.find_one({"_id": number})
        else:
            orders.update_one({"_id": number}, {"$set": {"body": dice.randbytes(_VALUE)}})

    return request


def drive(request: Callable[[random.Random], None], rate: float, seconds: float) -> list[float]:
    """Milliseconds from when each request was due to its answer."""
    dice, waits = random.Random(1), []
    begun = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = begun + number / rate
        pause = due - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        request(dice)
        waits.append((time.perf_counter() - due) * 1000)
    return sorted(waits)


class Service:
    """The server, and the one instance that is backed up."""

    def __init__(self, data: Path, database: Redis | Mongo) -> None:
        self._client = Client(find(str(data), None, None, {}))
        body = {"name": database.name, "engine": database.engine, "address": database.address, "password": database.password}
        self._instance = str(self._client.own("POST", "instances", body=body)["id"])
        self.taken, self.read, self.spent = 0, 0, 0.0

    @contextlib.contextmanager
    def backing_up(self, rate: int | None) -> Iterator[None]:
        """Backups follow each other while the block runs; the last one is stopped with it."""
        self._client.own("PUT", f"instances/{self._instance}/limits", body={"bytes_per_second": rate})
        stop = threading.Event()
        self.taken, self.read, self.spent = 0, 0, 0.0
        thread = threading.Thread(target=self._keep_on, args=(stop,))
        thread.start()
        try:
            time.sleep(1.0)
            yield
        finally:
            stop.set()
            thread.join()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """What changes is recorded while the block runs; the backup that it goes on from has been taken before."""
        path, begun = f"instances/{self._instance}/recording", datetime.now(UTC)
        periods: list[dict[str, str]] = []
        while not any(datetime.fromisoformat(one["end"]) > begun for one in periods):  # to ask again stores what is there
            periods = self._client.own("PUT", path, body={"enabled": True, "interval": 5, "keep_days": 1})["periods"]
            time.sleep(1.0)
        try:
            yield
        finally:
            self._client.own("PUT", path, body={"enabled": False, "interval": 5, "keep_days": 1})

    def beside(self, case: str) -> contextlib.AbstractContextManager[None]:
        """What goes on in one of the cases."""
        if case == _ALONE:
            return contextlib.nullcontext()
        return self.recording() if case == _RECORDING else self.backing_up(_LIMITS[case])

    def _keep_on(self, stop: threading.Event) -> None:
        """One backup after the other, each stopped once it has read all: what follows does not concern the database."""
        while not stop.is_set():
            begun, read = time.monotonic(), 0
            made = self._begin()
            while (job := self._client.job(str(made["job_id"])))["status"] == "Running":
                progress = job["progress"] or {}
                if progress.get("phase") in _READING:
                    read = progress["done"]
                if stop.wait(0.1) or progress.get("phase") not in (*_READING, None):
                    break
            self.taken, self.read, self.spent = self.taken + 1, self.read + read, self.spent + time.monotonic() - begun
            self._end(str(made["backup_id"]), str(made["job_id"]))

    def _begin(self) -> Answer:
        while True:
            try:
                return self._client.contract("POST", f"v3/instances/{self._instance}/backups", body={"name": "kindness"})
            except Refused:  # what the one before left is being removed
                time.sleep(0.2)

    def _end(self, backup: str, job: str) -> None:
        with contextlib.suppress(Refused):  # it has just ended
            self._client.contract("PUT", f"v3/backups/{backup}", body={"action": "stop"})
        while (ended := self._client.job(job))["status"] == "Running":
            time.sleep(0.05)
        if ended["status"] == "Failed":
            raise RuntimeError(f"a backup failed: {ended}")


@contextlib.contextmanager
def serving(data: Path) -> Iterator[None]:
    """A server process on a fresh data folder."""
    shutil.rmtree(data, ignore_errors=True)
    with (data.parent / "server.log").open("wb") as log:
        command = ["nice", "-n", "39", sys.executable, "-m", "strongroom", "serve", "--data", str(data), "--port", "0"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while "port" not in _credentials(data):
                if process.poll() is not None:
                    raise RuntimeError("the server did not start: see server.log")
                time.sleep(0.1)
            time.sleep(1.5)  # the API comes up after the credentials
            yield
        finally:
            process.terminate()
            process.wait()


def _credentials(data: Path) -> str:
    path = data / CREDENTIALS_FILE
    return "port" + path.read_text("utf-8") if path.exists() else ""


def measure(engine: str, database: Redis | Mongo, data: Path, options: argparse.Namespace, results: Results) -> None:
    """All cases of one engine in turn, again and again, so that what else the machine does falls on all of them; medians over the
    rounds."""
    keys = options.mib * MiB // _VALUE
    for first in range(8000, keys, 5000):
        database.put("order" if engine == "redis" else "orders", first, min(first + 5000, keys))
    service = Service(data, database)
    waits: dict[str, list[list[float]]] = {name: [] for name in _CASES}
    told: dict[str, tuple[int, int, float]] = {}
    for _ in range(options.rounds):
        for name in _CASES:
            with service.beside(name):
                waits[name].append(_client_process(engine, database, keys, options))
            taken, read, spent = told.get(name, (0, 0, 0.0))
            told[name] = (taken + service.taken, read + service.read, spent + service.spent)
            service.taken, service.read, service.spent = 0, 0, 0.0
    for name in _CASES:
        taken, read, spent = told[name]
        figures = {label: statistics.median(_at(one, share) for one in waits[name]) for label, share in _SHARES.items()}
        results.add(
            benchmark="kindness", engine=engine, version=database.version, mib=options.mib, rate=options.rate, case=name,
            requests=sum(map(len, waits[name])), **{label: round(figure, 2) for label, figure in figures.items()},
            backups=taken, read_mib_s=round(read / MiB / spent, 1) if spent else None,
        )  # fmt: skip


_SHARES = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _client_process(engine: str, database: Redis | Mongo, keys: int, options: argparse.Namespace) -> list[float]:
    """The client, in a process of its own; it gets address and password by its standard input."""
    address = database.owner if isinstance(database, Mongo) else database.address
    told = {
        "engine": engine, "address": address, "password": database.password, "keys": keys, "rate": options.rate,
        "seconds": options.seconds,
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.kindness", "--client", "--work", str(options.work)]
    done = subprocess.run(command, input=json.dumps(told), capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout)
    return found


def be_client() -> None:
    """The client's process."""
    told = json.load(sys.stdin)
    if told["engine"] == "redis":
        request = redis_requests(told["address"], told["password"], told["keys"])
    else:
        request = mongo_requests(told["address"], told["keys"])
    for _ in range(50):
        request(random.Random(2))
    json.dump([round(wait, 3) for wait in drive(request, told["rate"], told["seconds"])], sys.stdout)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--engines", default="redis,mongodb")
    parser.add_argument("--mib", type=int, default=256, help="data in each database")
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each case in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--priority", type=int, default=0, help="of database and client: below 0 keeps neighbours out, as root")
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.client:
        be_client()
        return
    os.setpriority(os.PRIO_PROCESS, 0, options.priority)
    work = options.work.resolve() / "kindness"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    results = Results(options.out)
    for engine, opened in (("redis", redis), ("mongodb", mongo)):
        if engine in options.engines.split(","):
            with opened(work / engine) as database, serving(work / f"{engine}-data"):
                measure(engine, database, work / f"{engine}-data", options, results)
    print(table(results.rows, _COLUMNS))


if __name__ == "__main__":
    main()
