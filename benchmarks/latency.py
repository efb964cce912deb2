"""How long a caller waits for the 202 of a DELETE: on an idle server, and while backups are being written.

    python -m benchmarks.latency --work FOLDER [--deletes 100] [--out results.jsonl]

A real server process is asked over HTTP with signed requests, one at a time, on one connection. In the place of a database
stands an engine that makes up its data (`noise://MIB`), so that the server does everything that it does for a backup and nothing
waits for an engine: chunks, seals, packs, their rows and the store. The busy half deletes while backups of --busy-mib of
fresh data follow each other on another instance.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.folders import fresh
from benchmarks.reporting import Results, table
from strongroom import server
from strongroom.cli.client import Answer, Client
from strongroom.cli.connection import find
from strongroom.engines.base import CaptureSink, Control, Probe, RestoreSource, Summary, Target
from strongroom.settings import CREDENTIALS_FILE, Settings

_MIB = 1 << 20
_COLUMNS = ("case", "deletes", "p10_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms", "until_gone_p50_ms", "backups_meanwhile")


class NoiseEngine:
    """Made-up data under the name of an engine that the API knows."""

    name = "redis"
    id_suffix = "14"

    def probe(self, target: Target) -> Probe:
        """As large as the address says."""
        return Probe("7.0", "Single", _size(target))

    def capture(self, target: Target, sink: CaptureSink, control: Control, scratch: str) -> Summary:
        """One entry of fresh random bytes."""
        del scratch
        with sink.entry("noise") as entry:
            for _ in range(_size(target) // _MIB):
                control.check()
                entry.write(os.urandom(_MIB))
            entry.finish()
        return Summary(1, _size(target))

    def restore(self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str) -> Summary:
        """Not needed here."""
        raise NotImplementedError

    def export(self, source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
        """Not needed here."""
        raise NotImplementedError

    def recover(self, target: Target) -> None:
        """Leaves nothing behind."""


def _size(target: Target) -> int:
    return int(target.address.removeprefix("noise://")) * _MIB


def serve(data: Path) -> None:
    """The shipped server with the made-up engine, on a free port."""
    server.engines = lambda: {NoiseEngine.name: NoiseEngine()}
    environment = {"STRONGROOM_RATE_PER_USER": "off", "STRONGROOM_RATE_PER_ADDRESS": "off"}
    server.serve(Settings.load(data, {**os.environ, **environment}, port=0))


class Caller:
    """What the benchmark asks of the server."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def register(self, name: str, mib: int) -> str:
        """A made-up instance of this size; returns its id."""
        body = {"name": name, "engine": NoiseEngine.name, "address": f"noise://{mib}"}
        return str(self._client.own("POST", "instances", body=body)["id"])

    def back_up(self, instance: str, name: str) -> str:
        """Takes a backup to its end; returns its id."""
        made = self._client.contract("POST", f"v3/instances/{instance}/backups", body={"name": name})
        self._until(lambda: self._client.job(str(made["job_id"])), "Completed")
        return str(made["backup_id"])

    def delete(self, backup: str) -> tuple[float, float]:
        """Seconds to the 202, and until the deletion's receipt is there."""
        begun = time.perf_counter()
        self._client.contract("DELETE", f"v3/backups/{backup}")
        accepted = time.perf_counter() - begun
        self._until(lambda: self._client.deletion(backup), "done")
        return accepted, time.perf_counter() - begun

    def _until(self, ask: Any, wanted: str) -> None:
        while True:
            answer: Answer = ask()
            state = answer.get("status") or answer.get("state")
            if state == wanted:
                return
            if state not in ("Running", "running"):
                raise RuntimeError(f"not {wanted}: {answer}")
            time.sleep(0.005)


@contextmanager
def running(data: Path) -> Iterator[Path]:
    """A server process on a fresh data folder."""
    with (data.parent / "server.log").open("wb") as log:
        words = [sys.executable, "-m", "benchmarks.latency", "--work", str(data.parent), "--serve"]
        process = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            _wait_for(data / CREDENTIALS_FILE, process)
            yield data
        finally:
            process.terminate()
            process.wait()


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the server did not start: see server.log")
        time.sleep(0.05)
    time.sleep(1.0)  # the API comes up after the credentials


@contextmanager
def busy(data: Path, mib: int, taken: list[str]) -> Iterator[None]:
    """Backups that follow each other for as long as the block runs."""
    stop = threading.Event()
    caller = Caller(Client(find(str(data), None, None, {})))
    instance = caller.register("busy", mib)

    def keep_on() -> None:
        while not stop.is_set():
            taken.append(caller.back_up(instance, f"busy-{len(taken)}"))

    thread = threading.Thread(target=keep_on)
    thread.start()
    try:
        time.sleep(1.0)  # the first one is being written
        yield
    finally:
        stop.set()
        thread.join()


def measure(caller: Caller, victims: Sequence[str]) -> dict[str, Any]:
    """Deletes one after the other; milliseconds."""
    waits = [caller.delete(victim) for victim in victims]
    accepted = sorted(wait[0] * 1000 for wait in waits)
    tenths = {"p10_ms": 0.1, "p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "max_ms": 1.0}
    until_gone = statistics.median(wait[1] * 1000 for wait in waits)
    return {
        "deletes": len(waits),
        **{name: round(_at(accepted, share), 1) for name, share in tenths.items()},
        "until_gone_p50_ms": round(until_gone, 1),
    }


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--deletes", type=int, default=100, help="of each half")
    parser.add_argument("--busy-mib", type=int, default=2048)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    data = options.work.resolve() / "data"
    if options.serve:
        serve(data)
        return
    results = Results(options.out)
    with running(fresh(data)):
        caller = Caller(Client(find(str(data), None, None, {})))
        instance = caller.register("victims", 1)
        backups = [caller.back_up(instance, f"victim-{number}") for number in range(2 * options.deletes + 1)][:-1]
        random.Random(1).shuffle(backups)
        idle, beside = backups[: options.deletes], backups[options.deletes :]
        results.add(benchmark="latency", case="idle", **measure(caller, idle))
        taken: list[str] = []
        with busy(data, options.busy_mib, taken):
            figures = measure(caller, beside)
            results.add(benchmark="latency", case="while backups run", backups_meanwhile=len(taken), **figures)
    print(table(results.rows, _COLUMNS))


if __name__ == "__main__":
    main()
