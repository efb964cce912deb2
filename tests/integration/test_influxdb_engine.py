"""The InfluxDB engine on real servers: what is captured and restored is equal, point by point."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from strongroom.engines.base import Target
from support.influxdb_server import (
    ENGINE,
    InfluxServer,
    captured,
    influx_server,
    needs_influxd,
    quoted,
    restored,
    rows,
)

pytestmark = needs_influxd

DAY = 86_400_000_000_000
BEGIN = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[InfluxServer, InfluxServer]]:
    """Two servers, the second with its index on disk."""
    folder = tmp_path_factory.mktemp("influxdb")
    with influx_server(folder) as one, influx_server(folder, settings={"index-version": '"tsi1"'}) as two:
        yield one, two


@pytest.fixture
def source(servers: tuple[InfluxServer, InfluxServer]) -> InfluxServer:
    """A server without databases."""
    return emptied(servers[0])


@pytest.fixture
def other(servers: tuple[InfluxServer, InfluxServer]) -> InfluxServer:
    """Another one."""
    return emptied(servers[1])


def emptied(server: InfluxServer) -> InfluxServer:
    for name in server.databases():
        server.query(f"DROP DATABASE {quoted(name)}")
    for name, _ in rows(server.query("SHOW USERS")):
        server.query(f"DROP USER {quoted(name)}")
    return server


def fill(server: InfluxServer) -> None:
    """Two databases with all kinds of fields, several shards and policies, queries, and names that are hard to write."""
    server.query('CREATE DATABASE shop; CREATE DATABASE "o\'dd db.é \\"x\\"; empty"')
    server.query('CREATE RETENTION POLICY "a week" ON shop DURATION 5200w REPLICATION 1 SHARD DURATION 2d')
    server.query('CREATE RETENTION POLICY "for ever" ON shop DURATION INF REPLICATION 1 SHARD DURATION 1d DEFAULT')
    lines = [
        f'cpu,host=h{host},rack=r{host % 2} load={host * 0.5 + at / 7},busy={at}i,up={"t" if at % 2 else "f"},note="n {at} é" '
        f"{BEGIN + at * DAY // 10 + host}"
        for at in range(60)
        for host in range(8)
    ]
    server.write("shop", lines)
    server.write("shop", [f"old,host=h1 v={at} {BEGIN + at * DAY}" for at in range(9)], policy="a week")
    server.write("shop", [f"base,x=1 v={at} {at}" for at in range(5)], policy="autogen")
    server.query(
        'CREATE CONTINUOUS QUERY "c q" ON shop BEGIN SELECT mean(load) INTO "a week"."m f" FROM cpu GROUP BY time(5m), * END'
    )
    server.query(
        "CREATE CONTINUOUS QUERY q2 ON shop RESAMPLE EVERY 1h BEGIN SELECT max(v) INTO bar FROM shop.autogen.base GROUP BY time(1h) END"
    )
    server.query("CREATE SUBSCRIPTION \"s 1\" ON shop.\"a week\" DESTINATIONS ALL 'udp://127.0.0.1:9', 'udp://127.0.0.1:19'")


def test_a_whole_server_comes_back_equal_in_a_new_one(source: InfluxServer, other: InfluxServer) -> None:
    """Every point with its type, policies, queries, subscriptions; also in a server with another kind of index."""
    fill(source)
    expected = source.description()
    assert len(expected["shop"]["points"]["for ever"]) == 8
    backup = captured(source.target())
    summary = restored(other.target(), backup)
    assert other.description() == expected
    assert list(summary.warnings) == []
    other.write("shop", [f"cpu,host=h0,rack=r0 load=1 {BEGIN + 1}"])
    assert source.description() == expected


def test_the_same_server_becomes_what_the_backup_was(source: InfluxServer) -> None:
    """Points changed, deleted and added, policies, queries and databases dropped and added: all go back; what is new goes."""
    fill(source)
    expected = source.description()
    backup = captured(source.target())
    source.query("DELETE FROM cpu WHERE host = 'h3'; DROP RETENTION POLICY \"a week\" ON shop", "shop")
    source.query('DROP CONTINUOUS QUERY "c q" ON shop; CREATE DATABASE later')
    source.write("shop", [f"cpu,host=h0,rack=r0 load=99 {BEGIN}", f"stray v=1 {BEGIN}"])
    restored(source.target(), backup)
    assert source.description() == expected


def test_probe_tells_version_size_and_what_to_mind(source: InfluxServer) -> None:
    """Of a server that lets anyone in."""
    fill(source)
    source.flush("shop")
    probe = ENGINE.probe(Target(source.address))
    assert probe.version == "1.6.7"
    assert (probe.mode, probe.records) == ("Single", False)
    assert probe.size > 1000
    (warning,) = probe.warnings
    assert "authentication is off" in warning
