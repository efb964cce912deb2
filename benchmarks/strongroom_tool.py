"""Strongroom as a command, for driving it beside other tools. Its data lies in ROOT/repo (the store) and ROOT/state.

    python -m benchmarks.strongroom_tool ROOT init
    python -m benchmarks.strongroom_tool ROOT backup TREE NAME          prints the backup's id
    python -m benchmarks.strongroom_tool ROOT backup-stream TREE NAME   the same, of standard input in the tree's place
    python -m benchmarks.strongroom_tool ROOT delete ID                 returns when everything is removed
    python -m benchmarks.strongroom_tool ROOT restore ID FOLDER
    python -m benchmarks.strongroom_tool ROOT check
    python -m benchmarks.strongroom_tool ROOT serve                     stays open

`serve` listens on the socket ROOT/state/s. A connection sends its words as one JSON line, for backup-stream then the data to its
end, and gets one JSON line back: code, seconds, processor seconds, peak memory of the service, bytes read and written, out, err.
There `delete` returns once the delete is decided, and `wait` when everything that was decided is removed.
"""

from __future__ import annotations

import json
import resource
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from benchmarks.house import House, JobUnsuccessful, opened
from benchmarks.measuring import moved_bytes, peak_memory, reset_peak_memory
from benchmarks.tree_engine import Readable
from strongroom.backups.errors import Refused
from strongroom.storage.base import StoreError

THREADS = 4


class Misspoken(Exception):
    """The words make no command."""


def perform(house: House, words: Sequence[str], stream: Readable) -> Mapping[str, Any]:
    """Does what the words say; returns what to print."""
    match words:
        case ["init"]:
            return {}
        case ["backup", tree, name]:
            key, job = house.backup(Path(tree), name)
            return {"id": key, **(job.result or {})}
        case ["backup-stream", tree, name]:
            key, job = house.backup(Path(tree), name, stream)
            return {"id": key, **(job.result or {})}
        case ["delete", key]:
            return {"job": house.delete(key)}
        case ["wait"]:
            house.finish_deletes()
            return {}
        case ["restore", key, folder]:
            return house.restore(key, Path(folder)).result or {}
        case ["check"]:
            wrong = house.check()
            if wrong:
                raise JobUnsuccessful("; ".join(wrong))
            return {}
    raise Misspoken(f"no command: {' '.join(words)}")


def measured(house: House, words: Sequence[str], stream: Readable) -> dict[str, Any]:
    """Performs, and tells what it cost this process."""
    reset_peak_memory()
    cpu, (read, written), begun = _cpu(), moved_bytes(), time.monotonic()
    code, out, err = 0, "", ""
    try:
        out = json.dumps(perform(house, words, stream))
    except (Misspoken, JobUnsuccessful, Refused, StoreError, SQLAlchemyError, OSError) as error:
        code, err = 1, f"{type(error).__name__}: {error}"
    wall = time.monotonic() - begun
    after = moved_bytes()
    return {
        "code": code, "wall": round(wall, 4), "cpu": round(_cpu() - cpu, 3), "peak": peak_memory(), "read": after[0] - read,
        "written": after[1] - written, "out": out, "err": err,
    }  # fmt: skip


def serve(house: House, path: Path) -> None:
    """Answers on the socket until SIGTERM."""

    class Asked(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            words = json.loads(self.rfile.readline())
            self.wfile.write(json.dumps(measured(house, words, self.rfile)).encode() + b"\n")

    class Listening(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    path.unlink(missing_ok=True)
    with Listening(str(path), Asked) as server:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: stop.set())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stop.wait()
        server.shutdown()
    path.unlink(missing_ok=True)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    root, words = Path(words[0]), words[1:]
    resident = words == ["serve"]
    with opened(root / "repo", root / "state" / "data", threads=THREADS if resident else 0) as house:
        if resident:
            serve(house, root / "state" / "s")
            return 0
        told = measured(house, words, sys.stdin.buffer)
        if told["code"] == 0 and words[0] == "delete":
            house.finish_deletes()
    print(told["out"] or told["err"])
    return int(told["code"])


if __name__ == "__main__":
    sys.exit(main())
