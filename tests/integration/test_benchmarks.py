"""The benchmarks against the engines' own tools still run, on very little data: they drive shipped code, which changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.influxdb_server import BINARY

_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "steps"),
    [
        (["engines", "redis,mongodb"], {"first backup", "backup after 1 % anywhere", "1 % anywhere", "restore"}),
        (["influxdb"], {"first backup", "1 % newer", "1 % everywhere", "restore"}),
    ],
    ids=["engines", "influxdb"],
)
def test_a_benchmark_takes_restores_and_reports(tmp_path: Path, command: list[str], steps: set[str]) -> None:
    """It ends well, which it does not where what was restored differs, and has figures for each step."""
    if command[0] == "influxdb" and BINARY is None:
        pytest.skip("InfluxDB is not installed")
    module, *engines = command
    words = [
        sys.executable,
        "-m",
        f"benchmarks.{module}",
        *engines,
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run([*words, "--mib", "1", "--runs", "1"], cwd=_ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert steps <= {row.get("step", row.get("what")) for row in rows}
    assert all(row["seconds"] > 0 for row in rows if "seconds" in row)
