"""The InfluxDB engine on real servers: what is captured and restored is equal, point by point."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from strongroom.engines.base import CaptureBroken, EngineUnsupported, Target
from strongroom.engines.influxdb import capture
from support.influxdb_server import (
    BINARY,
    ENGINE,
    At,
    InfluxServer,
    captured,
    influx_server,
    needs_influxd,
    quoted,
    restored,
    rows,
)
from support.redis_dumps import MemoryBackup, Quiet

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
    server.query("CREATE CONTINUOUS QUERY q2 ON shop BEGIN SELECT max(v) INTO bar FROM shop.autogen.base GROUP BY time(1h) END")
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


# One database


def test_one_database_comes_back_under_a_new_name_beside_its_original(source: InfluxServer) -> None:
    """Its continuous queries read and write the new one; nothing else of the server changes."""
    fill(source)
    before = source.description()
    backup = captured(source.target("shop"))
    summary = restored(source.target("shop copy"), backup)
    after = source.description()
    copy = after.pop("shop copy")
    assert after == before
    assert copy["points"] == before["shop"]["points"]
    assert copy["policies"] == before["shop"]["policies"]
    assert [query.count('"shop copy"') for _, query in copy["queries"]] == [3, 3]
    assert not any("shop." in query or "ON shop " in query for _, query in copy["queries"])
    (warning,) = summary.warnings
    assert "subscriptions of shop are not made" in warning


def test_one_database_is_replaced_and_the_others_stay(source: InfluxServer) -> None:
    """The target's address names it, or the backup is of it alone."""
    fill(source)
    backup = captured(source.target("shop"))
    shop = source.describe("shop")
    for target in (source.target("shop"), source.target()):
        source.query("DROP MEASUREMENT cpu; CREATE DATABASE other", "shop")
        restored(target, backup)
        assert source.describe("shop") == shop
        assert "other" in source.databases()


def test_one_database_of_a_whole_backup_can_be_restored(source: InfluxServer, other: InfluxServer) -> None:
    """By naming it; a name that the backup does not have is refused."""
    fill(source)
    backup = captured(source.target())
    other.query("CREATE DATABASE mine")
    restored(other.target("shop"), backup)
    assert other.databases() == ["mine", "shop"]
    assert other.describe("shop") == source.describe("shop")
    with pytest.raises(EngineUnsupported, match="names the database 'nothing'"):
        restored(other.target("nothing"), backup)
    assert other.databases() == ["mine", "shop"]


def test_a_backup_of_one_database_tells_nothing_of_the_others(source: InfluxServer) -> None:
    """Neither names nor users nor hashes are in it."""
    fill(source)
    source.query("CREATE USER zoe WITH PASSWORD 'x'; CREATE USER ann WITH PASSWORD 'y'; GRANT READ ON shop TO ann")
    backup = captured(source.target("shop"))
    meta = backup.kept["meta"][0]
    assert b"ann" in meta
    assert b"zoe" not in meta
    assert b"odd" not in meta
    assert b"$2a$" not in meta


# What there is nothing of, much of, or a hard name for


def test_an_empty_server_empties_its_target(source: InfluxServer, other: InfluxServer) -> None:
    """A backup without a database; a database without a point is in `fill`."""
    backup = captured(source.target())
    fill(other)
    restored(other.target(), backup)
    assert other.databases() == []


ODD = ["a b", "dots.and..more", "quo'te\"s", "ünïcödé-数据-🚀", "-", "select", "x" * 255, "é" * 127]


def test_odd_names_come_back(source: InfluxServer, other: InfluxServer) -> None:
    """Of databases, policies, measurements, tags and fields: spaces, dots, quotes, Unicode, key words, 255 bytes."""
    for name in ODD:
        source.query(f"CREATE DATABASE {quoted(name)}")
        source.query(f"CREATE RETENTION POLICY {quoted(name)} ON {quoted(name)} DURATION INF REPLICATION 1 DEFAULT")
        key, text = name.replace(" ", "\\ "), name.replace('"', '\\"')
        source.write(name, [f"{key},{key}={key} {key}=1 {BEGIN}", f'{key},{key}={key} text="{text}" {BEGIN + 1}'])
        source.query(
            f"CREATE CONTINUOUS QUERY {quoted(name)} ON {quoted(name)} BEGIN SELECT max({quoted(name)}) "  # noqa: S608
            f"INTO {quoted('max ' + name)} FROM {quoted(name)} GROUP BY time(1h) END"
        )
    expected = source.description()
    assert len(expected["x" * 255]["points"]["x" * 255]) == 1
    backup = captured(source.target())
    summary = restored(other.target(), backup)
    assert other.description() == expected
    restored(other.target(), backup)
    assert other.description() == expected
    assert list(summary.warnings) == []


def test_big_values_and_many_points_come_back(source: InfluxServer, other: InfluxServer) -> None:
    """A text of 8 MiB, 200,000 points of one series, 5,000 series, and 60 shards of a point each."""
    source.query("CREATE DATABASE big; CREATE RETENTION POLICY days ON big DURATION INF REPLICATION 1 SHARD DURATION 1d")
    text = random.Random(1).randbytes(4 << 20).hex()
    source.write("big", [f'large text="{text}" {BEGIN}'])
    source.write("big", [f"long v={at}i {BEGIN + at}" for at in range(200_000)])
    source.write("big", [f"wide,id={at} v={at / 3} {BEGIN}" for at in range(5_000)])
    source.write("big", [f"thin v={at} {BEGIN + at * DAY}" for at in range(60)], policy="days")
    backup = captured(source.target())
    assert backup.summary.facts["shards"] == 61
    restored(other.target(), backup)
    for query in (
        "SELECT count(v), sum(v), first(v), last(v) FROM long",
        "SELECT count(v), sum(v) FROM wide",
        "SELECT * FROM days.thin",
        "SHOW SERIES CARDINALITY",
    ):
        assert other.query(query, "big") == source.query(query, "big")
    assert rows(other.query("SELECT text FROM large", "big")) == [[BEGIN, text]]
    assert other.count("big", "v from long") == 200_000


# What the next backup stores


def test_what_did_not_change_gives_the_same_entries(source: InfluxServer) -> None:
    """Byte for byte and name for name; points in one shard add a file to that shard and leave the others."""
    fill(source)
    first = captured(source.target())
    again = captured(source.target())
    assert shards_of(again) == shards_of(first)
    source.write("shop", [f"cpu,host=new load=1 {BEGIN + 2}"])
    third = captured(source.target())
    added = {name: data for name, data in shards_of(third).items() if name not in shards_of(first)}
    assert {name: data for name, data in shards_of(third).items() if name not in added} == shards_of(first)
    assert len(added) == 1


def shards_of(backup: MemoryBackup) -> dict[str, bytes]:
    return {name: data for name, (data, _) in backup.kept.items() if name.startswith("shard/")}


# Deleted points


@pytest.mark.parametrize("how", ["DELETE FROM cpu WHERE host = 'h7' AND time < 1702000000s", "DROP MEASUREMENT cpu"])
def test_deleted_points_stay_deleted(source: InfluxServer, other: InfluxServer, how: str) -> None:
    """The backup is taken at once after the deletion, while its tombstones lie beside the files."""
    fill(source)
    source.flush("shop")
    source.query(how, "shop")
    tombstones = list(source.folder.glob("data/shop/**/*.tombstone"))
    backup = captured(source.target())
    expected = source.description()
    restored(other.target(), backup)
    assert other.description() == expected
    assert tombstones, "the server had removed them before the backup began: the test shows nothing"


def test_tombstones_that_stay_fail_the_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot compact: no backup is made that would bring the points back, and the reason is said."""
    monkeypatch.setattr(capture, "PATIENCE_SECONDS", 2.0)
    with influx_server(tmp_path) as server:
        fill(server)
        server.flush("shop")
        for file in server.folder.glob("data/shop/*/*/*.tsm"):  # where a compaction of it would write
            for sequence in range(2, 9):
                (file.parent / f"{file.name[:9]}-{sequence:09}.tsm.tmp").mkdir()
        server.query("DELETE FROM cpu WHERE host = 'h7'", "shop")
        with pytest.raises(CaptureBroken, match=r"points that were deleted.*\.tombstone.*for 2 seconds"):
            captured(server.target())


def test_a_shard_that_the_server_cannot_open_is_a_warning(tmp_path: Path) -> None:
    """It cannot be read, and the server tells of it in its log alone."""
    with influx_server(tmp_path) as server:
        server.query("CREATE DATABASE shop")
        server.write("shop", [f"m v={at} {BEGIN + at * 7 * DAY}" for at in range(3)])
        server.flush("shop")
        server.stop()
        broken = sorted((server.folder / "wal/shop/autogen").iterdir())[1]
        shutil.rmtree(broken)
        broken.write_text("no folder")
        server.start()
        backup = captured(server.target())
        (warning,) = backup.summary.warnings
        assert warning.startswith(f"shard {broken.name} of shop.autogen is not open on the server and not in the backup")
        assert backup.summary.facts["shards"] == 2


# While others write, create and drop


def test_a_shard_is_exact_at_one_moment_while_it_is_written_to(source: InfluxServer, other: InfluxServer) -> None:
    """Two series are written in turns, a point a request: both come back without a gap, and one is at most a point ahead."""
    source.query("CREATE DATABASE live")
    stop, written = threading.Event(), [0]

    def write() -> None:
        while not stop.is_set():
            for name in "ab":
                source.write("live", [f"{name} v={written[0]}i {BEGIN + written[0]}"])
            written[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for round in range(4):
            while written[0] < 50 * (round + 1):
                time.sleep(0.005)
            before = written[0]
            backup = captured(source.target())
            assert not stop.is_set()
            emptied(other)
            restored(other.target(), backup)
            found = [[row[1] for row in rows(other.query(f"SELECT v FROM {name}", "live"))] for name in "ab"]  # noqa: S608
            assert all(values == list(range(len(values))) for values in found)
            assert len(found[0]) >= before
            assert 0 <= len(found[0]) - len(found[1]) <= 1
    finally:
        stop.set()
        writer.join()


def test_shards_that_come_during_a_capture_are_in_it(source: InfluxServer, other: InfluxServer) -> None:
    """A database, a policy and a shard that are made while another is read."""
    fill(source)

    def make() -> None:
        source.query("CREATE DATABASE late")
        source.write("late", [f"m v=1 {BEGIN}"])
        source.write("shop", [f"cpu,host=h0 load=1 {BEGIN + 900 * DAY}"])

    backup = captured(source.target(), At("data", 1, make))
    restored(other.target(), backup)
    assert other.description() == source.description()


@pytest.mark.parametrize("what", ["DROP DATABASE shop", 'DROP RETENTION POLICY "for ever" ON shop'])
def test_shards_that_go_during_a_capture_are_not_in_it(source: InfluxServer, other: InfluxServer, what: str) -> None:
    """Dropped when the first of their files is being read."""
    fill(source)
    source.query("CREATE DATABASE zebra; ALTER RETENTION POLICY autogen ON shop DEFAULT")
    source.write("zebra", [f"m v=1 {BEGIN}"])
    backup = captured(source.target(), At("data", 1, lambda: source.query(what)))
    summary = restored(other.target(), backup)
    expected = source.description()
    if "shop" in expected:  # its queries name the policy that is gone: the server keeps them, but would not make them anew
        assert len(expected["shop"].pop("queries")) == len(summary.warnings) == 2
        assert all("retention policy not found" in warning for warning in summary.warnings)
        expected["shop"]["queries"] = []
    assert other.description() == expected


def test_a_continuous_query_may_name_a_database_that_is_restored_after_its_own(source: InfluxServer, other: InfluxServer) -> None:
    """Queries come when all databases are there."""
    source.query("CREATE DATABASE a; CREATE DATABASE b")
    source.query("CREATE CONTINUOUS QUERY q ON a BEGIN SELECT mean(v) INTO b.autogen.m FROM a.autogen.m GROUP BY time(1h) END")
    expected = source.description()
    backup = captured(source.target())
    for _ in range(2):
        assert list(restored(other.target(), backup).warnings) == []
        assert other.description() == expected


def test_a_policy_that_has_expired_everything_comes_back_whole_and_expires_then(
    source: InfluxServer, other: InfluxServer
) -> None:
    """What is older than its policy allows is restored and looked at; the target's own retention then removes it."""
    source.query("CREATE DATABASE old; CREATE RETENTION POLICY short ON old DURATION INF REPLICATION 1 SHARD DURATION 1d DEFAULT")
    source.write("old", [f"m v={at} {BEGIN + at * DAY}" for at in range(5)])
    source.query("ALTER RETENTION POLICY short ON old DURATION 2d SHARD DURATION 1d")
    expected = source.description()
    assert len(expected["old"]["points"]["short"]) == 1
    backup = captured(source.target())
    for _ in range(2):
        restored(other.target(), backup)
        assert other.description() == expected


# The way out


def test_an_export_is_loaded_by_the_engines_own_tool(source: InfluxServer, other: InfluxServer, tmp_path: Path) -> None:
    """`influxd restore -portable` brings back all that it can: everything but continuous queries."""
    fill(source)
    expected = source.description()
    backup = captured(source.target())
    control = Quiet()
    summary = ENGINE.export(backup, backup.summary.facts, tmp_path, control)
    assert summary.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert summary.entries == len(list(tmp_path.iterdir()))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    load(other, tmp_path)
    wanted = {name: {**one, "queries": []} for name, one in expected.items()}
    assert settled(other.description, wanted) == wanted
    with pytest.raises(FileExistsError):
        ENGINE.export(backup, backup.summary.facts, tmp_path, control)


def test_an_export_of_one_database_is_loaded_under_a_new_name(source: InfluxServer, other: InfluxServer, tmp_path: Path) -> None:
    """By the tool's own option."""
    fill(source)
    backup = captured(source.target("shop"))
    ENGINE.export(backup, backup.summary.facts, tmp_path, Quiet())
    load(other, tmp_path, "-db", "shop", "-newdb", "shop 2")
    wanted = {**source.describe("shop"), "queries": [], "subscriptions": []}
    assert settled(lambda: {**other.describe("shop 2"), "subscriptions": []}, wanted) == wanted


def settled(look: Callable[[], dict[str, Any]], wanted: dict[str, Any]) -> dict[str, Any]:
    """What is there once it is what is wanted, or after a while: the engine's tool ends before the server has finished."""
    end = time.monotonic() + 30
    found: dict[str, Any] = {}
    while found != wanted and time.monotonic() < end:
        try:
            found = look()
        except AssertionError as error:  # "engine is closed", while a shard is being put in its place
            found = {"error": str(error)}
            time.sleep(0.05)
    return found


def load(server: InfluxServer, folder: Path, *options: str) -> None:
    assert BINARY is not None
    place = ["-host", f"127.0.0.1:{server.backup_port}"]
    done = subprocess.run(
        [BINARY, "restore", "-portable", *place, *options, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
