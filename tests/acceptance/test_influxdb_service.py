"""InfluxDB through the whole service: register, back up, delete the middle one, restore the others, verify."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.influxdb_server import ADMIN_PASSWORD, BINARY, InfluxServer, influx_server, needs_influxd
from support.server import ServerProcess

pytestmark = needs_influxd

BEGIN = 1_700_000_000_000_000_000
WEEK = 7 * 86_400_000_000_000


@pytest.fixture
def influx(tmp_path: Path) -> Iterator[InfluxServer]:
    """An InfluxDB with users and a database of ten shards."""
    with influx_server(tmp_path, auth=True) as server:
        server.query("CREATE DATABASE metrics")
        for week in range(10):
            put(server, week)
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A Strongroom for all of them; each registers instances of its own."""
    with ServerProcess(tmp_path_factory.mktemp("strongroom") / "data") as running:
        yield running


def put(influx: InfluxServer, week: int, seed: int = 0) -> None:
    """Points of one shard, which hardly compress."""
    rnd = random.Random(week * 1000 + seed)
    influx.write(
        "metrics", [f"m,host=h{at % 10} v={rnd.random()} {BEGIN + week * WEEK + seed + at * 10**9}" for at in range(3000)]
    )


def add(server: ServerProcess, name: str, address: str, status: int = 0, password: str = ADMIN_PASSWORD) -> Any:
    words = ("instance", "add", name, "--engine", "influxdb", "--address", address)
    if not password:
        return server.cli(*words, status=status)
    return server.cli(*words, "--password-stdin", stdin=password + "\n", status=status)


def back_up(server: ServerProcess, instance: str, name: str) -> dict[str, Any]:
    made: dict[str, Any] = server.cli("backup", "create", instance, name, "--wait")["backup"]
    assert made["status"] == "COMPLETED"
    return made


def test_three_backups_of_which_the_middle_one_is_deleted(server: ServerProcess, influx: InfluxServer) -> None:
    """Later backups store what is new alone; the delete frees what it promised; the first and the last restore point by point."""
    shown = server.cli("instance", "show", add(server, "metrics", influx.address)["id"])
    assert (shown["engine"], shown["version"], shown["mode"]) == ("influxdb", "1.6.7", "Single")
    first, before = back_up(server, "metrics", "first"), influx.description()
    size = server.store_size()
    put(influx, 3, seed=1)
    influx.query("CREATE DATABASE passing")
    influx.write("passing", [f'big text="{random.Random(5).randbytes(60_000).hex()}" {BEGIN}'])
    middle = back_up(server, "metrics", "middle")
    assert 0 < server.store_size() - size < size, "nine of ten shards are shared"
    influx.query("DROP DATABASE passing")
    put(influx, 10)
    last, after = back_up(server, "metrics", "last"), influx.description()

    preview = server.cli("backup", "preview", middle["id"])
    assert preview["owned"] > 60_000
    (deletion,) = server.cli("backup", "delete", middle["id"], "--if-match", preview["version"], "--yes", "--wait")["deletions"]
    for name in ("freed", "waiting", "undecided"):
        assert deletion["receipt"][name] == deletion["promised"][name] == preview[name]
    listed = server.cli("backup", "list", "--engine", "influxdb", "--instance", "metrics")["backups"]
    assert [one["id"] for one in listed] == [last["id"], first["id"]]
    assert {one["datastore"]["type"] for one in listed} == {"influxdb"}
    assert all(key.endswith("br12") for key in (first["id"], last["id"]))

    influx.query("DROP MEASUREMENT m; CREATE DATABASE stray", "metrics")
    for backup, wanted in ((first, before), (last, after)):
        assert (
            server.cli("backup", "restore", backup["id"], "--into", "metrics", "--overwrite", "--wait")["job"]["status"]
            == "Completed"
        )
        assert influx.description() == wanted
    assert server.cli("verify", "--all", "--wait")["job"]["status"] == "Completed"


def test_a_backup_goes_into_one_database_of_another_server(server: ServerProcess, influx: InfluxServer, tmp_path: Path) -> None:
    """An instance's address may name a database: then that one alone is backed up, and restored under its name."""
    put(influx, 1, seed=2)
    add(server, "single", influx.at("metrics"))
    backup = back_up(server, "single", "only")
    with influx_server(tmp_path) as other:
        other.query("CREATE DATABASE copy; CREATE DATABASE own")
        other.write("own", [f"m v=1 {BEGIN}"])
        add(server, "copies", other.at("copy"), password="")
        with server.http() as http:
            found = http.get(f"/v3/{server.owner.project}/backups/{backup['id']}/restorable-instances").json()
        assert {"single", "copies"} <= {one["instance_name"] for one in found["restorable_instances"]}
        assert server.cli("backup", "restore", backup["id"], "--into", "copies", "--wait")["job"]["status"] == "Completed"
        assert other.databases() == ["copy", "own"]
        assert other.describe("copy")["points"] == influx.describe("metrics")["points"]
        refused = server.cli("backup", "restore", backup["id"], "--into", "copies", "--wait", status=1)["job"]
        assert "10 shards of data in 1 databases" in refused["fail_reason"]
        folder = tmp_path / "export"
        server.cli("backup", "export", backup["id"], str(folder))
        load = [BINARY, "restore", "-portable", "-host", f"127.0.0.1:{other.backup_port}", "-db", "metrics", str(folder)]
        subprocess.run(load, capture_output=True, check=True)
        until_settled(other)
        assert other.describe("metrics")["points"] == influx.describe("metrics")["points"]


def until_settled(influx: InfluxServer) -> None:
    """The engine's own tool ends before the server has put the last shard in its place."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(AssertionError):  # "engine is closed"
            if influx.count("metrics", "v from m") == 10 * 3000 + 3000:
                return
        time.sleep(0.1)


def test_what_cannot_be_entered_is_not_registered_and_what_dies_fails_with_words(
    server: ServerProcess, influx: InfluxServer
) -> None:
    """A wrong password; an engine that is stopped after it was registered, and comes back."""
    add(server, "wrong", influx.address, status=1, password="wrong pass word")
    add(server, "mortal", influx.address)
    influx.kill()
    ended = server.cli("backup", "create", "mortal", "dead", "--wait", status=1)
    assert "does not answer" in ended["job"]["fail_reason"]
    influx.start()
    back_up(server, "mortal", "alive")
    assert "wrong pass word" not in server.log
    assert ADMIN_PASSWORD not in server.log
