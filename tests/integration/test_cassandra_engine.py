"""One real Cassandra node, with passwords: captures, what is adopted unread and what never is, crashes, restores."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from integration.test_engine_behaviour import Job, Memory
from strongroom.backups import errors, restoration
from strongroom.backups.reading import reading
from strongroom.engines.base import EngineDenied, EngineUnreachable, EngineUnsupported, RestoreBroken, Tables, Target
from strongroom.engines.cassandra import CassandraEngine, restore
from strongroom.engines.cassandra.jmx import Jmx
from strongroom.engines.cassandra.schema import split
from support.cassandra_house import CassandraHouse
from support.cassandra_node import CassandraNode, require_cassandra
from support.cassandra_samples import (
    ROLE,
    ROLE_PASSWORD,
    drop_all,
    fill,
    fill_small,
    insert,
    make_roles,
    make_shop,
    make_small,
    picture,
)
from support.server import ServerProcess

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CassandraNode]:
    require_cassandra()
    one = CassandraNode(tmp_path_factory.mktemp("cassandra") / "node", auth=True, outlives_kills=False).start()
    yield one
    one.kill()


@pytest.fixture
def session(node: CassandraNode) -> Iterator[Any]:
    """A superuser's, with the node as it was at first. Other tests may have restarted it."""
    if node.snapshots():
        with Jmx("127.0.0.1", node.jmx_port) as jmx:
            for tag in node.snapshots():
                jmx.clear(tag)
    with node.session() as opened:
        drop_all(opened)
        yield opened


@pytest.fixture
def shop(session: Any) -> Any:
    """The session, with one small table."""
    make_small(session)
    return session


@pytest.fixture
def house(tmp_path: Path, node: CassandraNode) -> Iterator[CassandraHouse]:
    del node
    with CassandraHouse(tmp_path) as opened:
        yield opened


def test_three_backups_the_middle_deleted_the_rest_restored(session: Any, node: CassandraNode, house: CassandraHouse) -> None:
    shop = session
    make_shop(shop)
    make_roles(shop)
    instance = house.register(node)
    seen: dict[str, dict[str, Any]] = {}
    told: list[dict[str, Any]] = []
    for seed in (1, 2, 3):
        fill(shop, seed, 200)
        if seed == 3:
            shop.execute("ALTER TABLE shop.orders ADD later text")
        key, result = house.backup(instance)
        seen[key] = picture(shop)
        told.append(result)
    assert len({str(one) for one in seen.values()}) == 3
    first, middle, last = seen
    house.at_rest()
    assert len(node.snapshots()) == 1, "only the head's anchor stays"
    before = house.size()
    receipt = house.delete(middle)
    assert before - house.size() == receipt["freed"] + receipt["reclaimed"]["net"] - receipt["put_bytes"]
    shop.execute("DROP ROLE readers")
    shop.execute("CREATE KEYSPACE later WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}")
    for key in (last, first):
        fill(shop, 9, 30)
        assert house.restore(key, instance)["warnings"] == []
        assert picture(shop) == seen[key]
    with node.session(ROLE, ROLE_PASSWORD) as bob:
        assert bob.execute("SELECT count(*) FROM shop.plain").one()[0] == 199
        with pytest.raises(Exception, match="MODIFY"):
            bob.execute("INSERT INTO shop.empty (id) VALUES (1)")
    assert told[0]["stored_bytes"] > 0
    house.delete(first)
    house.delete(last)
    house.at_rest()


def test_an_increment_reads_and_stores_only_what_is_new(shop: Any, node: CassandraNode, house: CassandraHouse) -> None:
    instance = house.register(node)
    fill_small(shop, 1, 2000)
    with Jmx("127.0.0.1", node.jmx_port) as jmx:
        for tag in ("somebody's", "strongroom-another"):
            jmx.snapshot(tag, "1d", ["shop"])
    key, _ = house.backup(instance)
    full = facts_of(house, key)
    assert full["taken_over"] == 0
    unchanged, told = house.backup(instance)
    same = facts_of(house, unchanged)
    assert (same["read"], same["taken_over"]) == (0, full["read"])
    assert told["stored_bytes"] == 0, "names and pages are the parent's too"
    insert(shop, "INSERT INTO shop.plain (id, name) VALUES (?, ?)", [(n, "new") for n in range(20)])
    changed, told = house.backup(instance)
    some = facts_of(house, changed)
    assert 0 < some["read"] < full["read"] / 10
    assert some["taken_over"] == full["read"]
    assert told["stored_bytes"] < 3 * some["read"], "new files and their pages"
    house.at_rest()
    assert node.snapshots() == {"somebody's", "strongroom-another", some["anchor"]}, "what is not ours is left alone"
    with Jmx("127.0.0.1", node.jmx_port) as jmx:
        for tag in node.snapshots():
            jmx.clear(tag)
    anew, told = house.backup(instance)
    read = facts_of(house, anew)
    assert (read["taken_over"], read["read"]) == (0, some["read"] + some["taken_over"]), "without the anchor nothing is proven"
    assert told["stored_bytes"] < 5_000, "and yet nothing is stored twice"
    assert sstables(house.read(anew)) == sstables(house.read(changed))


def test_an_older_backup_is_the_parent_when_the_head_was_deleted(shop: Any, node: CassandraNode, house: CassandraHouse) -> None:
    """Its anchor is gone, the head's is not its own: everything is read, and right."""
    instance = house.register(node)
    fill_small(shop, 1, 100)
    first, _ = house.backup(instance)
    fill_small(shop, 2, 100)
    second, _ = house.backup(instance)
    held = sstables(house.read(second))
    house.delete(second)
    third, told = house.backup(instance)
    assert facts_of(house, third)["taken_over"] == 0
    assert told["adopted_bytes"] > 0
    house.delete(first)
    assert sstables(house.read(third)) == held
    house.at_rest()
    assert node.snapshots() == {facts_of(house, third)["anchor"]}


def test_a_file_of_the_same_name_is_not_the_same_file(shop: Any, node: CassandraNode, house: CassandraHouse) -> None:
    """After TRUNCATE and a restart Cassandra counts its files from one again: other rows in a file of the old name."""
    instance = house.register(node)
    insert(shop, "INSERT INTO shop.plain (id, name) VALUES (?, ?)", [(n, "old") for n in range(100)])
    first, _ = house.backup(instance)
    shop.execute("TRUNCATE shop.plain")
    node.stop()
    node.start()
    with node.session() as session:
        insert(session, "INSERT INTO shop.plain (id, name) VALUES (?, ?)", [(n, "new") for n in range(100)])
        second, _ = house.backup(instance)
        older, newer = house.read(first), house.read(second)
        twice = [name for name in older if name in newer and name.endswith("-Data.db") and "/plain-" in name]
        assert twice, "the case that this is about"
        assert older[twice[0]] != newer[twice[0]]
        house.restore(first, instance)
        assert {row.name for row in session.execute("SELECT name FROM shop.plain")} == {"old"}


def test_writers_go_on_and_the_backup_holds_what_was_acknowledged(shop: Any, node: CassandraNode, house: CassandraHouse) -> None:
    """One writer, one row after the other: a backup holds rows up to some row, and none acknowledged before it is missing."""
    instance = house.register(node)
    fill_small(shop, 1)
    acknowledged, stop = [0], threading.Event()

    def write() -> None:
        prepared = shop.prepare("INSERT INTO shop.plain (id, name) VALUES (?, 'w')")
        while not stop.is_set():
            shop.execute(prepared, [1_000_000 + acknowledged[0]])
            acknowledged[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        house.until(lambda: acknowledged[0] > 50, "the writer writes")
        begun = acknowledged[0]
        key, _ = house.backup(instance)
    finally:
        stop.set()
        writer.join()
    house.restore(key, instance)
    kept = sorted(row.id - 1_000_000 for row in shop.execute("SELECT id FROM shop.plain") if row.id >= 1_000_000)
    assert kept == list(range(len(kept)))
    assert begun <= len(kept) <= acknowledged[0]


def test_a_killed_server_leaves_a_snapshot_that_the_next_one_finds(shop: Any, node: CassandraNode, tmp_path: Path) -> None:
    """kill -9 between the snapshot and the end of the backup; the job is taken up again, and one snapshot is left: the head's."""
    fill_small(shop, 1, 3000)
    server = ServerProcess(tmp_path / "data")
    with server:
        body = {"name": "cluster", "engine": "cassandra", "address": node.url, "password": "cassandra"}
        with server.http() as client:
            project = server.owner.project
            added = client.post(f"/strongroom/v1/{project}/instances", json=body)
            assert added.status_code == 201, added.text
            instance = added.json()["id"]
            before = node.snapshots()
            made = client.post(f"/v3/{project}/instances/{instance}/backups", json={"name": "nightly"})
            assert made.status_code == 202, made.text
        end = time.monotonic() + 60
        while not node.snapshots() - before:
            assert time.monotonic() < end, server.log[-3000:]
        server.kill()
        left = node.snapshots() - before
        assert len(left) == 1
        server.start()
        assert server.wait(made.json()["job_id"], 90).status == "Completed"
        kept = node.snapshots() - before
        assert len(kept) == 1
        assert kept != left, "the one of the crash was removed, another was taken"
        with server.http() as client:
            chosen = [{"database_name": "shop", "table_names": ["plain"]}]
            body = {"name": "one-table", "database_tables": chosen}
            table = client.post(f"/v3/{project}/instances/{instance}/backups", json=body)
            assert server.wait(table.json()["job_id"], 90).status == "Completed"
            lists = [client.get(f"/v4/{project}/backups?type={kind}").json() for kind in ("Instance", "DatabaseTable")]
            assert [[one["name"] for one in each["backups"]] for each in lists] == [["nightly"], ["one-table"]]
            assert [one.get("database_tables") for each in lists for one in each["backups"]] == [None, chosen]
            server.cli("backup", "export", table.json()["backup_id"], str(tmp_path / "out"))
            assert len(list(tmp_path.glob("out/*/shop/plain/*-Data.db"))) == 1
            gone = client.delete(f"/v3/{project}/backups/{made.json()['backup_id']}")
            assert server.wait(gone.json()["job_id"]).status == "Completed"


def test_a_failed_backup_leaves_no_snapshot(shop: Any, node: CassandraNode, house: CassandraHouse, monkeypatch: Any) -> None:
    """Somebody clears the snapshot while it is read. The backup fails and owns nothing; the parent's anchor stays."""
    instance = house.register(node)
    fill_small(shop, 1, 100)
    kept, _ = house.backup(instance)
    house.at_rest()
    anchor, size = node.snapshots(), house.size()
    fill_small(shop, 2, 100)
    real = CassandraEngine.capture

    def broken(self: CassandraEngine, target: Target, sink: Any, control: Any, scratch: str) -> Any:
        class Removing:
            """A hand that clears the snapshot in the middle."""

            def __getattr__(self, name: str) -> Any:
                return getattr(sink, name)

            def adopt_entry(self, name: str) -> bool:
                with Jmx("127.0.0.1", node.jmx_port) as jmx:
                    for tag in node.snapshots() - anchor:
                        jmx.clear(tag)
                return bool(sink.adopt_entry(name))

        return real(self, target, Removing(), control, scratch)

    monkeypatch.setattr(CassandraEngine, "capture", broken)
    key, job = house.create(instance)
    view = house.ended(job)
    assert (view.state, house.state(key)) == ("FAILED", "FAILED")
    assert "snapshot" in str(view.error) or "No such file" in str(view.error)
    house.at_rest()
    assert node.snapshots() == anchor, "the parent's anchor stays, for it is the parent of the next one"
    assert house.size() < size + 2000, "a failed backup owns nothing but its grave"
    monkeypatch.undo()
    _, told = house.backup(instance)
    assert told["adopted_bytes"] > 0
    assert house.state(kept) == "COMPLETED"


def test_single_tables_are_backed_up_and_put_back_and_others_left(
    session: Any, node: CassandraNode, house: CassandraHouse
) -> None:
    """One table with an index and a view, and all tables of a keyspace; into the cluster as it is, and into an empty one."""
    make_shop(session)
    fill(session, 1, 60)
    instance = house.register(node)
    chosen = (Tables("shop", ("orders",)), Tables("OddName"))
    key, _ = house.backup(instance, *chosen)
    again, told = house.backup(instance, *chosen)
    assert told["stored_bytes"] == 0
    assert {name.split("/")[3].rpartition("-")[0] for name in sstables(house.read(key))} == {"orders", "T"}
    then = picture(session)
    session.execute("CREATE ROLE IF NOT EXISTS reader")
    session.execute("GRANT SELECT ON TABLE shop.orders TO reader")
    fill(session, 2, 60)
    session.execute("ALTER TABLE shop.orders ADD later text")
    session.execute(
        "CREATE MATERIALIZED VIEW shop.late AS SELECT * FROM shop.orders WHERE note IS NOT NULL AND id IS NOT NULL"
        " PRIMARY KEY (note, id)"
    )
    now = picture(session)
    house.delete(key)
    assert house.restore(again, instance)["warnings"] == []
    mine = {one for one in now if "OddName" in one or "orders" in one or "shop.v" in one or one == "by note"}
    want = {name: then[name] if name in mine else value for name, value in now.items() if ".late" not in name}
    assert picture(session) == want
    granted = session.execute("SELECT permissions FROM system_auth.role_permissions WHERE role = 'reader'").all()
    assert [set(row.permissions) for row in granted] == [{"SELECT"}], "granted again on the table made anew"
    drop_all(session)
    house.restore(again, instance)
    back = picture(session)
    assert {name: back[name] for name in mine if name in back} == {name: then[name] for name in mine if name in back}
    assert "rows of shop.orders" in back
    assert "table shop.plain" not in back
    _, job = house.create(instance, Tables("shop", ("v",)))
    assert "there is no table shop.v" in house.ended(job).error


def test_an_index_that_cannot_be_built_ends_the_restore_with_words(
    session: Any, node: CassandraNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte of the rows was wrong on the source's disk already: the node takes the file and fails silently at its index."""
    monkeypatch.setattr(restore, "_INDEX_IDLE", 3.0)
    make_shop(session)
    fill(session, 1, 200)
    engine, kept, target = CassandraEngine(), Memory(), Target(node.url, "cassandra")
    (member,) = engine.nodes(target)
    (tmp_path / "capture").mkdir()
    facts = engine.capture(replace(target, node=member.id), kept, Job(), str(tmp_path / "capture")).facts
    for name in [one for one in kept.kept if "/shop/plain-" in one and one.endswith("-Data.db")]:
        data, of_file = kept.kept[name]
        middle = len(data) // 2
        kept.kept[name] = (data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], of_file)
    (tmp_path / "restore").mkdir()
    with pytest.raises(RestoreBroken, match=r"has not built 1 indexes, first shop\.plain_name.*not all of their indexes"):
        engine.restore(target, kept, facts, Job(), str(tmp_path / "restore"))


def test_an_export_is_loaded_by_cassandras_own_tools(
    shop: Any, node: CassandraNode, house: CassandraHouse, tmp_path: Path
) -> None:
    instance = house.register(node)
    fill_small(shop, 1)
    key, _ = house.backup(instance)
    folder = tmp_path / "export"
    folder.mkdir(mode=0o700)
    with reading(house.ctx, house.parts(key)) as (source, facts):
        summary = CassandraEngine().export(source, facts, folder, _NoJob())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert (summary.entries, summary.bytes) == (len(files), sum(path.stat().st_size for path in files))
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    seen = picture(shop)
    drop_all(shop)
    for statement in split((folder / "schema.cql").read_text()):
        shop.execute(statement)
    (table,) = folder.glob("*/shop/plain")
    words = ["-d", node.address, "-p", str(node.cql_port), "-sp", str(node.storage_port), "-u", "cassandra", "-pw", "cassandra"]
    done = node.tool("org.apache.cassandra.tools.BulkLoader", *words, "--no-progress", str(table))
    assert done.returncode == 0, done.stdout + done.stderr
    assert picture(shop) == seen
    assert 'CREATE ROLE IF NOT EXISTS "cassandra" WITH SUPERUSER = true' in (folder / "roles.cql").read_text()


class _NoJob:
    """A control that never ends the work."""

    def check(self) -> None:
        pass

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        pass


def test_who_may_not_is_told_at_once(session: Any, node: CassandraNode, house: CassandraHouse) -> None:
    session.execute("CREATE ROLE IF NOT EXISTS nobody WITH PASSWORD = 'n' AND LOGIN = true")
    engine = CassandraEngine()
    with pytest.raises(EngineDenied, match="user or the password"):
        engine.probe(Target(node.url, "wrong"))
    with pytest.raises(EngineDenied, match="system_auth"):
        engine.probe(Target(node.url.replace("cassandra@", "nobody@"), "n"))
    with pytest.raises(EngineUnreachable):
        engine.probe(Target("cassandra://127.0.0.1:1"))
    with pytest.raises(EngineUnsupported, match="password"):
        engine.probe(Target("cassandra://me:secret@127.0.0.1"))
    with pytest.raises(errors.InstanceUnusable, match="password") as refused:
        house.register(node, "wrong", password="wrong")
    assert "wrong" not in str(refused.value)


def test_the_rights_that_the_docs_name_are_enough_for_backups_and_not_for_restores(
    session: Any, node: CassandraNode, house: CassandraHouse
) -> None:
    """An empty cluster, and one with a table; a restore is refused before anything is changed."""
    session.execute("CREATE ROLE IF NOT EXISTS keeper WITH PASSWORD = 'k' AND LOGIN = true")
    for keyspace in ("system_auth", "system_views"):
        session.execute(f"GRANT SELECT ON KEYSPACE {keyspace} TO keeper")
    instance = house.register(node, user="keeper", password="k")
    empty, told = house.backup(instance)
    assert told["entries"] == 3
    make_small(session)
    fill_small(session, 1, 50)
    key, _ = house.backup(instance)
    seen = picture(session)
    view = house.ended(restoration.restore(house.ctx, house.project, key, instance, lambda conn: None))
    assert view.state == "FAILED"
    assert "superuser" in str(view.error)
    assert picture(session) == seen
    owner = house.register(node, "owner")
    house.restore(empty, owner)
    assert picture(session) == {}
    house.restore(key, owner)
    assert picture(session) == seen


def facts_of(house: CassandraHouse, backup: str) -> dict[str, Any]:
    """The engine's facts of a backup of one node."""
    with reading(house.ctx, house.parts(backup)) as (_, facts):
        return dict(facts)


def sstables(entries: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in entries.items() if "/data/" in name}


def test_the_tables_that_can_be_chosen_are_told(shop: Any, node: CassandraNode) -> None:
    """Users' keyspaces, an empty one too, and their tables in order, without views and the system's own."""
    shop.execute("CREATE KEYSPACE empty WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}")
    shop.execute("CREATE TABLE shop.another (id int PRIMARY KEY)")
    found = CassandraEngine().list_tables(Target(node.url, "cassandra"))
    assert {name: list(tables) for name, tables in found.items()} == {"empty": [], "shop": ["another", "plain"]}
    with pytest.raises(EngineUnreachable):
        CassandraEngine().list_tables(Target("cassandra://127.0.0.1:1"))
