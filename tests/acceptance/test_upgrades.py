"""What a released version has left is read, used and rebuilt by this one: real servers on copies of kept data folders."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups.incarnation import _IDENTITY
from strongroom.catalog.database import open_catalog
from strongroom.catalog.migrating import migrate
from strongroom.catalog.tables import metadata
from support.content import mongo_content, redis_content
from support.mongodb_server import MongoServer, find_mongod, wiped
from support.postgres import PostgresServer
from support.receiver import receiver
from support.redis_server import RedisServer, binaries, redis_server
from support.released import HELD, REDIS_PASSWORD, Release, move, releases
from support.schemas import shape, shape_of_the_code
from support.server import ServerProcess

pytestmark = pytest.mark.skipif(not binaries() or find_mongod() is None, reason="needs a redis-server and a mongod")

each_release = pytest.mark.parametrize("release", releases(), ids=lambda release: release.version)
target = wiped(0)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """The fixture's Redis at another place, with other data; its instance there is told so."""
    with redis_server(tmp_path, password=REDIS_PASSWORD) as server:
        with server.client() as client:
            client.mset({f"key:{number:04}": f"of today {number}" for number in range(50)})
        yield server


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[RedisServer]:
    """Where backups of Redis are restored."""
    with redis_server(tmp_path) as server:
        yield server


def restored(server: ServerProcess, release: Release, name: str, empty: RedisServer) -> bool:
    """Whether a Redis holds what a backup held, after its restore."""
    server.cli("backup", "restore", release.backup(name), "--into", "empty", "--overwrite", "--wait")
    with empty.client() as client:
        return redis_content(client) == release.content(name)


def documents_restored(server: ServerProcess, release: Release, name: str, target: MongoServer) -> bool:
    """The same of MongoDB."""
    server.cli("backup", "restore", release.backup(name), "--into", "target", "--overwrite", "--wait")
    with target.client() as client:
        return mongo_content(client, "shop") == release.content(name)


def register_targets(server: ServerProcess, empty: RedisServer, target: MongoServer) -> None:
    """Fresh databases to restore into."""
    server.cli("instance", "add", "empty", "--engine", "redis", "--address", empty.address)
    place = target.target("admin")
    words = ("instance", "add", "target", "--engine", "mongodb", "--address", place.address, "--password-stdin")
    server.cli(*words, stdin=f"{place.password}\n")


def until_ended(server: ServerProcess, backup: str) -> str:
    """A backup's state once it is not being taken any more."""
    end = time.monotonic() + 120
    while (state := str(server.cli("backup", "show", backup)["status"])) == "BUILDING":
        assert time.monotonic() < end, server.log[-3000:]
        time.sleep(0.2)
    return state


def require_people(server: ServerProcess, release: Release) -> None:
    """Keys sign, passwords are taken, policies decide, and the held backup may not go."""
    ann, bob, gone = release.keys("ann"), release.keys("bob"), release.backup("third")
    assert server.token(bob)
    with server.http(ann) as client:
        assert client.get(f"/v3.1/{ann.project}/backups").status_code == 200
        assert client.delete(f"/v3/{ann.project}/backups/{gone}").status_code == 403
    with server.http(bob) as client:
        path = f"/strongroom/v1/{bob.project}/verifications"
        assert client.post(path, json={"backup_id": release.backup("shop-first")}).status_code == 202
        assert client.delete(f"/v3/{bob.project}/backups/{gone}").status_code == 403
    admin = release.keys("admin")
    with server.http(admin) as client:
        answer = client.delete(f"/v3/{admin.project}/backups/{release.backup('shop-first')}")
        assert answer.is_client_error
        assert HELD in answer.text
    hold = server.cli("backup", "show", release.backup("shop-first"))["hold"]
    assert (hold["kind"], hold["reason"], hold["until"]) == ("pin", HELD, None)
    assert server.cli("backup", "show", gone)["hold"] is None


def require_settings(server: ServerProcess) -> None:
    """What was set is as it was set."""
    assert server.cli("instance", "list", "--tag", "env=production")["instances"][0]["name"] == "cache"
    policy = server.cli("schedule", "show", "docs")
    assert (policy["keep_days"], policy["start_time"], policy["period"]) == (7, "02:00-03:00", "1,3")
    quotas = {one["type"]: one["quota"] for one in server.cli("quota", "show")["quotas"]}
    assert quotas["backup"] == 100


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@each_release
def test_the_server_goes_on_with_what_was_released(
    release: Release,
    tmp_path: Path,
    redis: RedisServer,
    empty: RedisServer,
    target: MongoServer,
    kind: str,
    request: pytest.FixtureRequest,
) -> None:
    """All is there; what was under way when the old server was stopped is ended; backups restore; a delete gives what it promises
    and rewrites old objects; the trail is whole."""
    folder, environ = release.unpack(tmp_path), {"STRONGROOM_NOTIFY_NETWORKS": "127.0.0.1"}
    with receiver() as told:
        move(folder, "instance", "cache", redis.address)
        move(folder, "webhook", release.facts["webhook"]["name"], told.url("/ok"))
        if kind == "postgres":
            server_of = request.getfixturevalue("postgres")
            environ["STRONGROOM_CATALOG_URL"] = server_of.url(as_released(server_of, release, folder))
        with ServerProcess(folder, environ) as server:
            listed = {one["id"] for one in server.cli("backup", "list")["backups"]}
            assert set(release.facts["listed"]) <= listed
            gone = release.facts["deletion"]["backup_id"]
            assert gone not in listed
            deletion = server.cli("deletion", "show", gone)
            for part in ("promised", "receipt"):
                assert deletion[part].items() >= release.facts["deletion"][part].items()
            assert server.cli("backup", "show", release.facts["failed"])["status"] == "FAILED"
            require_people(server, release)
            require_settings(server)
            (hook,) = server.cli("notify", "list")["webhooks"]
            assert "test_restore_failed" in hook["events"], "it was registered for all"
            server.cli("notify", "test", release.facts["webhook"]["name"])
            assert any(one.is_signed(release.facts["webhook"]["secret"]) for one in told.told)

            unfinished = release.facts["unfinished"]
            assert until_ended(server, unfinished["backup"]) == "COMPLETED"
            assert server.cli("job", "watch", unfinished["verification"])["result"]["outcome"] == "sound"
            register_targets(server, empty, target)
            server.cli("backup", "restore", unfinished["backup"], "--into", "empty", "--wait")
            with empty.client() as client, redis.client() as source:
                assert redis_content(client) == redis_content(source)
            assert restored(server, release, "first", empty)
            assert documents_restored(server, release, "shop-second", target)

            delete(server, release.backup("first"))
            assert restored(server, release, "third", empty)
            new = server.cli("backup", "create", "cache", "of-this-version", "--wait")
            assert new["job"]["status"] == "Completed"
            assert server.cli("verify", "--all", "--wait")["job"]["result"]["outcome"] == "sound"
            assert server.cli("reconcile", "--wait")["job"]["result"]["outcome"] == "clean"
            assert server.cli("audit", "verify", "--kept", release.facts["head"])["outcome"] == "whole"
            assert server.stop() == 0


def delete(server: ServerProcess, backup: str) -> None:
    """Deletes it, and gives back all that waits: preview = promise = receipt = the change in its lineage's folder."""
    (lineage,) = {one["lineage"] for one in server.cli("backup", "show", backup)["parts"]}
    place = server.folder / "store" / "objects" / lineage
    preview, before = server.cli("backup", "preview", backup), stored(place)
    server.cli("backup", "delete", backup, "--thorough", "--yes", "--wait")
    told = server.cli("deletion", "show", backup)
    promised, receipt = told["promised"], told["receipt"]
    for name in ("owned", "freed", "waiting", "undecided"):
        assert promised[name] == preview[name]
        assert receipt.get(name, promised[name]) == promised[name]
    assert receipt["freed"] > 0
    assert receipt["reclaimed"]["dropped"] > 0, "no old object was rewritten"
    assert stored(place) - before == receipt["put_bytes"] - receipt["freed"] - receipt["reclaimed"]["net"]


def stored(place: Path) -> int:
    """Bytes of the objects below a folder."""
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def rebuilt(release: Release, tmp_path: Path, *, snapshots: bool) -> tuple[ServerProcess, list[str]]:
    """A data folder made from the store and the root key alone, and what the rebuild reported."""
    old, new = release.unpack(tmp_path), tmp_path / "new"
    new.mkdir()
    shutil.copytree(old / "store", new / "store")
    shutil.copy(old / "root.key", new / "root.key")
    if not snapshots:
        shutil.rmtree(new / "store" / "objects" / "catalog")
    server = ServerProcess(new)
    return server, server.cli("catalog", "rebuild")["report"]


@each_release
def test_a_rebuild_takes_the_release_s_own_snapshot_as_its_base(
    release: Release, tmp_path: Path, empty: RedisServer, target: MongoServer
) -> None:
    """Users, policies, settings, holds and the trail with its segment come back, and the backups with them."""
    process, report = rebuilt(release, tmp_path, snapshots=True)
    assert any("is the base" in line for line in report)
    with process as server:
        found = {one["id"] for one in server.cli("backup", "list")["backups"]}
        assert found == {release.backup(name) for name in release.facts["backups"]}
        require_people(server, release)
        require_settings(server)
        register_targets(server, empty, target)
        assert restored(server, release, "third", empty)
        assert documents_restored(server, release, "shop-first", target)
        delete(server, release.backup("first"))
        assert restored(server, release, "third", empty)
        assert server.cli("audit", "verify", "--kept", release.facts["head"])["outcome"] == "whole"


@each_release
def test_a_rebuild_from_the_release_s_backups_alone(
    release: Release, tmp_path: Path, empty: RedisServer, target: MongoServer
) -> None:
    """Without any snapshot: every backup comes back, held, and restores."""
    process, report = rebuilt(release, tmp_path, snapshots=False)
    assert any("no snapshot of the catalog opens" in line for line in report)
    with process as server:
        found = {one["id"]: server.cli("backup", "show", one["id"])["hold"] for one in server.cli("backup", "list")["backups"]}
        assert found.keys() == {release.backup(name) for name in release.facts["backups"]}
        assert {hold["kind"] for hold in found.values()} == {"recovered"}
        register_targets(server, empty, target)
        for name in ("first", "third"):
            assert restored(server, release, name, empty)
        assert documents_restored(server, release, "shop-second", target)


# ---- the schema -----------------------------------------------------------------------------------------------------------


def contents(url: str) -> dict[str, list[Any]]:
    """All rows of a catalog, as the code's tables read them."""
    catalog = open_catalog(url)
    try:
        with catalog.read() as conn:
            return {
                table.name: [tuple(row) for row in conn.execute(sa.select(table).order_by(*table.primary_key.columns))]
                for table in metadata.sorted_tables
            }
    finally:
        catalog.close()


def upgraded(url: str) -> dict[str, dict[str, Any]]:
    """Migrates, and tells the schema that this made."""
    catalog = open_catalog(url)
    try:
        migrate(catalog)
        return shape(catalog)
    finally:
        catalog.close()


def as_released(server: PostgresServer, release: Release, old: Path) -> str:
    """A database with the release's own schema on PostgreSQL, and the rows of its fixture; returns its name."""
    name = server.create_database()
    engine = sa.create_engine(sa.make_url(server.url(name)).set(drivername="postgresql+psycopg"), poolclass=sa.NullPool)
    with engine.begin() as conn:
        conn.exec_driver_sql((release.folder / "postgres.sql").read_text("utf-8"))
    tables = sa.MetaData()
    with contextlib.closing(sqlite3.connect(old / "catalog.db")) as rows, engine.begin() as conn:
        rows.row_factory = sqlite3.Row
        tables.reflect(conn)
        for table in tables.sorted_tables:
            booleans = [column.name for column in table.c if isinstance(column.type, sa.Boolean)]
            found = [dict(row) for row in rows.execute(f'SELECT * FROM "{table.name}"')]  # noqa: S608  its own names
            for row in found:
                row |= {column: bool(row[column]) for column in booleans if row[column] is not None}
            if found:
                conn.execute(sa.insert(table), found)
            for column in table.primary_key.columns:
                if column.server_default is not None:  # it counts by itself: it goes on after these
                    highest = sa.select(sa.func.max(column)).scalar_subquery()
                    sequence = sa.func.pg_get_serial_sequence(f'"{table.name}"', column.name)
                    conn.execute(sa.select(sa.func.setval(sequence, sa.func.coalesce(highest, 1))))
        known = f"UPDATE installation SET incarnation = ({_IDENTITY})"  # noqa: S608  our own words
        conn.exec_driver_sql(known)  # as if it had run on this server
    engine.dispose()
    return name


@each_release
def test_a_released_schema_becomes_the_code_s_on_sqlite(release: Release, tmp_path: Path) -> None:
    """Tables, keys, checks and indexes are those that the code names."""
    folder = release.unpack(tmp_path)
    assert upgraded(f"sqlite:///{folder}/catalog.db") == shape_of_the_code(f"sqlite:///{tmp_path}/created.db")


@each_release
def test_a_released_schema_becomes_the_code_s_on_postgres(release: Release, tmp_path: Path, postgres: PostgresServer) -> None:
    """The same, and every row says what the same row says on SQLite."""
    folder = release.unpack(tmp_path)
    name, created = as_released(postgres, release, folder), postgres.create_database()
    try:
        assert upgraded(postgres.url(name)) == shape_of_the_code(postgres.url(created))
        upgraded(f"sqlite:///{folder}/catalog.db")
        rows, same = contents(postgres.url(name)), contents(f"sqlite:///{folder}/catalog.db")
        del rows["installation"], same["installation"]  # says which database it is
        assert rows == same
        assert len(rows["audit"]) > 2000
    finally:
        postgres.drop_database(name)
        postgres.drop_database(created)


# ---- an older version ---------------------------------------------------------------------------------------------------


def test_a_catalog_of_a_newer_version_is_refused_with_words_and_left_alone(tmp_path: Path) -> None:
    """`serve`, an export and a rotation each say which way out there is; not a byte of the catalog changes."""
    folder = releases()[-1].unpack(tmp_path)
    with contextlib.closing(sqlite3.connect(folder / "catalog.db")) as conn, conn:
        conn.execute("UPDATE alembic_version SET version_num = '9999'")
    before = hashlib.sha256((folder / "catalog.db").read_bytes()).hexdigest()
    backup = releases()[-1].backup("first")
    for words in (("serve", "--port", "0"), ("backup", "export", backup, str(tmp_path / "out")), ("key", "rotate")):
        command = [sys.executable, "-m", "strongroom", *words, "--data", str(folder), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1, done.stderr
        assert "made by a newer version of Strongroom: use that one" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert hashlib.sha256((folder / "catalog.db").read_bytes()).hexdigest() == before
    assert json.loads((folder / "credentials.json").read_text())["project_id"]
