"""InfluxDB through Strongroom, beside InfluxDB's own tool, in one run.

    python -m benchmarks.influxdb --work FOLDER [--mib 256] [--runs 3] [--out results.jsonl]

A real influxd is filled with a database of 20 shards: most of it texts, the rest numbers. Each run takes a first backup by both
tools, restores it by both into a server without data, and by Strongroom also over the data that is there (which is tried under
another name first). Then 1 % more points are added, once as newest ones and once spread over all shards, and both back up again.
`influxd backup -portable` always stores all; its `-since` stores files that are newer than a time.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.house import House, opened
from benchmarks.peers.folders import fresh
from benchmarks.reporting import MiB, Results, table
from strongroom.backups.context import Options
from strongroom.engines.influxdb import InfluxEngine

SHARDS = 20
_TEXT = 600  # bytes of one text
_WEEK = 7 * 86_400_000_000_000
_BEGIN = 1_600_000_000_000_000_000
_BATCH = 2000
_COLUMNS = ("run", "what", "tool", "seconds", "mb_per_s", "stored", "load")


class Influxd:
    """A server in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        fresh(folder)
        self.folder, self.port, self.backup_port = folder, _free_port(), _free_port()
        (folder / "conf").write_text(f"""
reporting-disabled = true
bind-address = "127.0.0.1:{self.backup_port}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  query-log-enabled = false
[http]
  bind-address = "127.0.0.1:{self.port}"
  log-enabled = false
[monitor]
  store-enabled = false
""")
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(["influxd", "-config", str(folder / "conf")], stdout=log, stderr=log)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=120)
        while True:
            try:
                self.http.get("/ping")
                return
            except httpx.HTTPError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"influxd did not start; see {folder / 'log'}") from None
                time.sleep(0.05)

    @property
    def address(self) -> str:
        """As Strongroom registers it."""
        return f"influxdb://127.0.0.1:{self.port}/?backup=127.0.0.1:{self.backup_port}"

    def query(self, statement: str) -> Any:
        """What a statement gives."""
        answer = self.http.post("/query", data={"q": statement, "db": "bench"}).json()["results"]
        assert not any("error" in one for one in answer), answer
        return answer

    def write(self, lines: Sequence[str]) -> None:
        """Points."""
        self.http.post("/write", params={"db": "bench"}, content="\n".join(lines).encode()).raise_for_status()

    def tool(self, *words: str) -> None:
        """`influxd backup …` or `influxd restore …` against this server."""
        place = ["-host", f"127.0.0.1:{self.backup_port}"]
        subprocess.run(["influxd", words[0], "-portable", *place, *words[1:]], check=True, capture_output=True)

    def settle(self) -> None:
        """Waits until nothing is compacted any more, and everything is on disk."""
        os.sync()
        before: object = None
        while before != (now := _listing(self.folder / "data")):
            before = now
            time.sleep(3)

    def stop(self) -> None:
        """Ends it."""
        self.http.close()
        self.process.terminate()
        self.process.wait()


@contextmanager
def server(folder: Path) -> Iterator[Influxd]:
    """A running server without data, ended and removed with the block."""
    running = Influxd(folder)
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


def fill(influx: Influxd, rnd: random.Random, first: int, points: int, shards: range) -> None:
    """`points` texts and ten times as many numbers, spread over these shards; `first` keeps their times apart from others'."""
    lines: list[str] = []
    for at in range(first, first + points):
        when = _BEGIN + shards[at % len(shards)] * _WEEK + at * 1_000_000
        text = rnd.randbytes(_TEXT // 2).hex()
        lines.append(f'event,host=h{at % 50} text="{text}" {when}')
        lines += [f"load,host=h{at % 50},cpu=c{cpu} v={rnd.random()} {when}" for cpu in range(10)]
        if len(lines) > _BATCH * 10:
            influx.write(lines)
            lines = []
    influx.write(lines)


def one_run(run: int, work: Path, mib: int, results: Results) -> None:
    """Everything once."""
    rnd = random.Random(run)
    points = mib * MiB // 600
    engines = (InfluxEngine(),)
    with (
        server(work / "source") as source,
        opened(fresh(work / "store"), fresh(work / "data"), threads=2, options=Options(), engines=engines) as house,
    ):
        source.query("CREATE DATABASE bench")
        fill(source, rnd, 0, points, range(SHARDS))
        source.tool("backup", str(fresh(work / "flush")))
        shutil.rmtree(work / "flush")
        source.settle()
        size = sum(length for _, length in _listing(source.folder / "data"))
        instance = house.register("influxdb", source.address)
        note = _Notes(run, results, size)

        backups: list[str] = []
        acts: list[tuple[str, Callable[[], object]]] = [
            ("strongroom", lambda: backups.append(house.back_up(instance, "first")[0])),
            ("influxd backup", lambda: source.tool("backup", str(fresh(work / "own")))),
        ]
        for tool, act in acts if run % 2 else reversed(acts):
            note.timed("first backup", tool, act, work / ("store" if tool == "strongroom" else "own"))
        _restores(house, backups[0], work, note)

        for what, shards in (("1 % newer", range(SHARDS - 1, SHARDS)), ("1 % everywhere", range(SHARDS))):
            since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            time.sleep(1.1)  # -since has whole seconds
            fill(source, rnd, 2 * points if len(shards) == 1 else 3 * points, max(points // 100, len(shards)), shards)
            before = _bytes(work / "store")
            seconds = _seconds(lambda: house.back_up(instance, "second"))
            note.add(what, "strongroom", seconds, _bytes(work / "store") - before)
            note.timed(what, "influxd backup", lambda: source.tool("backup", str(fresh(work / "own"))), work / "own")
            note.timed(
                what,
                "influxd backup -since",
                lambda at=since: source.tool("backup", "-since", at, str(fresh(work / "own"))),
                work / "own",
            )
        assert house.check() == []


def _restores(house: House, backup: str, work: Path, note: _Notes) -> None:
    with server(work / "target") as target:
        instance = house.register("influxdb", target.address)
        note.timed("restore", "strongroom", lambda: house.restore_into(backup, instance))
        note.timed("restore over data", "strongroom", lambda: house.restore_into(backup, instance))
        ours = target.query("SELECT count(v), sum(v) FROM load")
    with server(work / "target") as target:
        note.timed("restore", "influxd restore", lambda: target.tool("restore", str(work / "own")))
        assert target.query("SELECT count(v), sum(v) FROM load") == ours


class _Notes:
    def __init__(self, run: int, results: Results, size: int) -> None:
        self._run, self._results, self._size = run, results, size

    def timed(self, what: str, tool: str, act: Callable[[], object], folder: Path | None = None) -> None:
        """Does it and notes how long it took, and what the folder holds then."""
        seconds = _seconds(act)
        self.add(what, tool, seconds, None if folder is None else _bytes(folder))

    def add(self, what: str, tool: str, seconds: float, stored: int | None) -> None:
        """One result. MB/s are of the server's files."""
        self._results.add(
            run=self._run, what=what, tool=tool, seconds=seconds, mb_per_s=self._size / seconds / 1e6, stored=stored,
            data=self._size, load=os.getloadavg()[0],
        )  # fmt: skip


def ratios(rows: Sequence[dict[str, Any]]) -> str:
    """Strongroom against InfluxDB's tool, medians over the runs: seconds and stored bytes, below 1 is better."""
    shown = []
    for what in dict.fromkeys(row["what"] for row in rows):
        ours = [row for row in rows if row["what"] == what and row["tool"] == "strongroom"]
        for tool in dict.fromkeys(row["tool"] for row in rows if row["what"] == what and row["tool"] != "strongroom"):
            theirs = [row for row in rows if row["what"] == what and row["tool"] == tool]
            pairs = list(zip(ours, theirs, strict=True))
            stored = [one["stored"] / two["stored"] for one, two in pairs if one["stored"] and two["stored"]]
            shown.append(
                {
                    "what": what,
                    "beside": tool,
                    "seconds": statistics.median(one["seconds"] / two["seconds"] for one, two in pairs),
                    "stored": statistics.median(stored) if stored else None,
                }
            )
    return table(shown, ("what", "beside", "seconds", "stored"))


def _seconds(act: Callable[[], object]) -> float:
    begin = time.monotonic()
    act()
    return time.monotonic() - begin


def _listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_size) for path in folder.rglob("*.tsm"))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder on the disk to measure")
    parser.add_argument("--mib", type=int, default=256, help="of texts; files of about that size")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON lines are appended here")
    options = parser.parse_args()
    results = Results(options.out)
    for run in range(options.runs):
        one_run(run, options.work, options.mib, results)
    print(table(results.rows, _COLUMNS))
    print()
    print(ratios(results.rows))


if __name__ == "__main__":
    main()
