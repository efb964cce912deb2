"""Test restores of InfluxDB on real servers: what the throw-away server does not do by itself, and which differences are told."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from strongroom.engines.base import Comparison, Target
from strongroom.engines.influxdb.http import Http
from strongroom.engines.influxdb.place import parse_target
from support.influxdb_server import ENGINE, InfluxBackup, InfluxServer, captured, influx_server, needs_influxd, restored
from support.redis_dumps import Quiet

pytestmark = needs_influxd


@pytest.fixture
def source(tmp_path: Path) -> Iterator[InfluxServer]:
    """A server with users."""
    with influx_server(tmp_path, auth=True) as server:
        yield server


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Target]:
    """A throw-away server."""
    folder = tmp_path / "sandbox"
    folder.mkdir(mode=0o700)
    with ENGINE.sandbox(folder, Quiet()) as target:
        yield target


def compared(target: Target, backup: InfluxBackup) -> Comparison:
    return ENGINE.compare(target, backup, backup.summary.facts, Quiet(), "")


def write(target: Target, lines: list[str]) -> None:
    """Points into `shop`, of which the server makes a file."""
    place = parse_target(target)
    answer = httpx.post(
        f"{place.url}/write", params={"db": "shop"}, content="\n".join(lines), auth=(place.user or "", place.password or ""),
        trust_env=False,
    )  # fmt: skip
    assert answer.status_code == 204, answer.text
    captured(target)


def test_nothing_expires_runs_or_leaves_in_the_throw_away_server(source: InfluxServer, sandbox: Target) -> None:
    """Points older than their policy keeps, continuous queries and subscriptions come back and stay; who subscribes hears nothing
    of it; users have their rights; and the server takes points like another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setblocking(False)
        place = f"udp://127.0.0.1:{listener.getsockname()[1]}"
        source.query("CREATE DATABASE shop; CREATE RETENTION POLICY brief ON shop DURATION INF REPLICATION 1 SHARD DURATION 1h")
        source.write("shop", [f"old v={at} {at}" for at in range(100)], policy="brief")
        source.write("shop", [f"cpu,host=h{at % 3} v={at} {at * 10**9}" for at in range(500)])
        source.flush("shop")
        source.query("CREATE CONTINUOUS QUERY q ON shop BEGIN SELECT max(v) INTO highest FROM cpu GROUP BY time(1h) END")
        source.query(f"CREATE SUBSCRIPTION s ON shop.autogen DESTINATIONS ALL '{place}'")
        source.query("CREATE USER reader WITH PASSWORD 'x'; GRANT READ ON shop TO reader")
        backup = captured(source.target())
        restored(sandbox, backup)
        found = compared(sandbox, backup)
        assert list(found.differences) == []
        assert found.found == found.expected
        assert (found.expected["databases"], found.expected["continuous queries"]) == (1, 1)
        assert found.digests == found.expected["files"] >= 2
        write(sandbox, ["cpu,host=new v=1 1"])
        with pytest.raises(BlockingIOError):
            listener.recv(1)


def test_the_policy_of_a_day_ago_does_not_empty_the_throw_away_server(source: InfluxServer, sandbox: Target) -> None:
    """The policy that comes back would have the server drop its shard at once."""
    source.query("CREATE DATABASE shop")
    source.write("shop", [f"old v={at} {at}" for at in range(100)])
    source.flush("shop")
    source.query("ALTER RETENTION POLICY autogen ON shop DURATION 1h SHARD DURATION 1h")
    backup = captured(source.target())
    assert backup.summary.entries > 2
    restored(sandbox, backup)
    found = compared(sandbox, backup)
    assert list(found.differences) == []
    assert found.found["files"] == 1


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DROP DATABASE shop", "the database 'shop' is missing"),
        ("DROP SHARD 1", "shard shop/autogen/"),
        ("DROP CONTINUOUS QUERY q ON shop", "continuous queries"),
        ("ALTER RETENTION POLICY autogen ON shop DURATION 900w", "retention policies"),
        ('CREATE RETENTION POLICY "p" ON shop DURATION INF REPLICATION 1 DEFAULT', "default policy 'p'"),
        ("CREATE DATABASE later", "'later' is not in the backup"),
        ("REVOKE READ ON shop FROM reader", "rights on 'shop'"),
    ],
)
def test_each_difference_is_told(source: InfluxServer, sandbox: Target, statement: str, told: str) -> None:
    """One statement changes the restored server."""
    source.query("CREATE DATABASE shop; CREATE USER reader WITH PASSWORD 'x'; GRANT READ ON shop TO reader")
    source.query("CREATE CONTINUOUS QUERY q ON shop BEGIN SELECT max(v) INTO highest FROM cpu GROUP BY time(1h) END")
    source.write("shop", [f"cpu v={at} {at}" for at in range(100)])
    backup = captured(source.target())
    restored(sandbox, backup)
    assert list(compared(sandbox, backup).differences) == []
    with Http(parse_target(sandbox)) as http:
        http.run(statement)
    found = compared(sandbox, backup)
    assert any(told in sentence for sentence in found.differences), found.differences


def test_points_that_were_not_captured_are_told(source: InfluxServer, sandbox: Target) -> None:
    """In a shard of the backup, and in one that it does not have."""
    source.query("CREATE DATABASE shop")
    source.write("shop", [f"cpu v={at} {at}" for at in range(100)])
    backup = captured(source.target())
    restored(sandbox, backup)
    write(sandbox, ["cpu v=1 200"])
    found = compared(sandbox, backup)
    assert any("holds 1 others" in sentence for sentence in found.differences), found.differences
    write(sandbox, [f"cpu v=1 {10**18}"])
    found = compared(sandbox, backup)
    assert any("a shard of 'autogen' that was not captured" in sentence for sentence in found.differences), found.differences
    assert found.found["shards"] == found.expected["shards"] + 1


def test_files_that_the_throw_away_server_has_compacted_are_no_difference(source: InfluxServer, sandbox: Target) -> None:
    """It compacts once it has eight of a level: a warning says so."""
    source.query("CREATE DATABASE shop")
    source.write("shop", [f"cpu v={at} {at}" for at in range(100)])
    backup = captured(source.target())
    restored(sandbox, backup)
    for _ in range(12):
        write(sandbox, ["cpu v=0 0"])  # as it is there already
    end = time.monotonic() + 60
    while not (found := compared(sandbox, backup)).warnings:
        assert time.monotonic() < end, found
        time.sleep(0.2)
    assert list(found.differences) == []
    assert "1 shards were compacted" in found.warnings[0]
