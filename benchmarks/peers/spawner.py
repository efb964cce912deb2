"""A small process that starts the commands to be measured.

The peak memory that the system tells of a finished command is never below that of the process which started it, so that must
not be the driver with its test data. Reads one JSON object a line on standard input (`argv`, `env`, `out`, `err`: files) and
answers each with one line: exit code, seconds, processor seconds, peak bytes, bytes read and written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Runs one command to its end and tells what it cost."""
    with open(order["out"], "wb") as out, open(order["err"], "wb") as err:
        begun = time.monotonic()
        try:
            process = subprocess.Popen(order["argv"], env=order["env"], stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        except OSError as error:
            err.write(str(error).encode())
            return {"code": 127, "wall": 0.0, "cpu": 0.0, "peak": 0, "read": 0, "written": 0}
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wall = time.monotonic() - begun
        moved = _moved(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "code": process.returncode, "wall": round(wall, 4), "cpu": round(usage.ru_utime + usage.ru_stime, 3),
        "peak": usage.ru_maxrss << 10, "read": moved.get("rchar", 0), "written": moved.get("wchar", 0),
    }  # fmt: skip


def _moved(pid: int) -> dict[str, int]:
    """Bytes through the system calls of a process that has ended and was not waited for yet."""
    try:
        with open(f"/proc/{pid}/io", encoding="ascii") as file:
            pairs = (line.split(": ") for line in file)
            return {name: int(value) for name, value in pairs}
    except OSError:
        return {}


def main() -> None:
    """Serves until standard input ends."""
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
