"""Running commands and knowing what they cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

Argv = Sequence[str]


@dataclass(frozen=True)
class Cost:
    """One finished command. Seconds and bytes; `read` and `written` are what went through its system calls."""

    code: int
    wall: float
    cpu: float
    peak: int
    read: int
    written: int
    out: str = ""
    err: str = ""

    @property
    def brief(self) -> dict[str, Any]:
        """What a result line keeps."""
        return {"code": self.code, "wall": self.wall, "cpu": self.cpu, "peak_mib": round(self.peak / (1 << 20))}


def together(costs: Sequence[Cost]) -> dict[str, Any]:
    """Several commands that do one thing, as one result."""
    return {
        "wall": round(sum(cost.wall for cost in costs), 4), "walls": [cost.wall for cost in costs],
        "cpu": round(sum(cost.cpu for cost in costs), 3), "peak_mib": round(max(cost.peak for cost in costs) / (1 << 20)),
        "read": sum(cost.read for cost in costs), "written": sum(cost.written for cost in costs),
        "codes": [cost.code for cost in costs],
    }  # fmt: skip


class Commands:
    """Starts commands one at a time, through a small process of its own (spawner.py)."""

    def __init__(self, work: Path) -> None:
        self._out, self._err = work / "out.txt", work / "err.txt"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.spawner"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, argv: Argv, env: Mapping[str, str]) -> Cost:
        """Runs a command to its end. Never raises for a failing command: its code tells."""
        order = {"argv": list(argv), "env": {**os.environ, **env}, "out": str(self._out), "err": str(self._err)}
        self._pipe(self._process.stdin).write(json.dumps(order) + "\n")
        self._pipe(self._process.stdin).flush()
        told = json.loads(self._pipe(self._process.stdout).readline())
        return Cost(**told, out=self._out.read_text("utf-8", "replace"), err=self._err.read_text("utf-8", "replace")[-2000:])

    def close(self) -> None:
        """Ends the small process."""
        self._pipe(self._process.stdin).close()
        self._process.wait()
        self._pipe(self._process.stdout).close()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe
