"""The process of a throw-away server: what it is told of ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from strongroom.ambient import Machine
from strongroom.engines import sandboxing
from support.redis_dumps import Quiet

_PROGRAM = """
import json, os, sys, time
with open("seen.new", "w") as out:
    json.dump(dict(os.environ), out)
os.rename("seen.new", "seen")
time.sleep(600)
"""


def test_a_throw_away_server_sees_none_of_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root key or a password in it is nobody's business, and InfluxDB would take settings from it."""
    monkeypatch.setenv("STRONGROOM_ROOT_KEY", "secret")
    monkeypatch.setenv("INFLUXDB_HTTP_BIND_ADDRESS", "0.0.0.0:1")
    seen = tmp_path / "seen"
    command = [sys.executable, "-c", _PROGRAM]
    with sandboxing.running(lambda port: command, lambda port: seen.exists(), tmp_path, Quiet(), Machine()):
        told = json.loads(seen.read_text())
    assert told["HOME"] == str(tmp_path)
    assert "PATH" in told
    assert not {name for name in told if name.startswith(("STRONGROOM_", "INFLUXDB_"))}
