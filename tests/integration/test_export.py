"""What is exported is loaded by the engines' own programs, and by hand as the manual says; Strongroom is not needed."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom.engines.base import CaptureBroken, EngineUnsupported, Target
from strongroom.engines.mongodb import MongoEngine
from strongroom.engines.mongodb.export import file_name
from strongroom.engines.redis import RedisEngine
from support.mongodb_dump import find_mongorestore, load, mongorestore, names_in
from support.mongodb_fakes import Kept, QuietControl, captured, once
from support.mongodb_samples import ODD_NAMES, description, fill, put, without_standing_users
from support.mongodb_server import ROLES, MongoServer, needs_mongod, wiped
from support.redis_dumps import MemoryBackup, Quiet
from support.redis_server import RedisServer, binaries, redis_server, version_of
from support.server import ServerProcess

STANDING = {f"admin.{user}" for user in ROLES}
needs_redis = pytest.mark.skipif(not binaries(), reason="no redis-server here")

source, other = wiped(0), wiped(1)


@pytest.fixture(params=binaries(), ids=lambda binary: "redis-" + ".".join(map(str, version_of(binary))))
def redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """Each redis-server of this machine in turn, with some data in two databases."""
    with redis_server(tmp_path, binary=str(request.param)) as server:
        for db in (0, 3):
            with server.client(db=db) as client:
                client.mset({f"k {number}": "v" * number for number in range(1000)})
                client.rpush(b"list \xff\x00", *range(500))
                client.set("expires", 1, ex=100_000)
        yield server


def digest(server: RedisServer) -> bytes:
    with server.client() as client:
        found: bytes = client.execute_command("DEBUG", "DIGEST")
        return found


@needs_redis
def test_a_redis_starts_from_the_exported_dump(redis: RedisServer, tmp_path: Path) -> None:
    """The file in a fresh server's folder is all it takes: Redis' own digest is equal."""
    backup = MemoryBackup()
    engine = RedisEngine()
    (tmp_path / "scratch").mkdir()
    summary = engine.capture(_target(redis), backup, Quiet(), str(tmp_path / "scratch"))
    out = tmp_path / "out"
    out.mkdir()
    made = engine.export(backup, summary.facts, out, Quiet())
    assert {path.name for path in out.iterdir()} == {"dump.rdb"}
    assert (made.entries, made.bytes) == (1, (out / "dump.rdb").stat().st_size)
    assert stat.S_IMODE((out / "dump.rdb").stat().st_mode) == 0o600
    with redis_server(tmp_path, {"dir": str(out)}, binary=redis.binary) as fresh:
        assert digest(fresh) == digest(redis)


def _target(server: RedisServer) -> Target:
    return Target(server.address, server.password)


@needs_redis
def test_a_damaged_dump_is_not_exported(redis: RedisServer, tmp_path: Path) -> None:
    """A bit that the repository did not see flips: the file is read back and refused."""
    backup = MemoryBackup()
    engine = RedisEngine()
    (tmp_path / "scratch").mkdir()
    engine.capture(_target(redis), backup, Quiet(), str(tmp_path / "scratch"))
    data = bytearray(backup.rdb)
    data[len(data) // 2] ^= 1
    (tmp_path / "out").mkdir()
    with pytest.raises(CaptureBroken, match="checksum"):
        engine.export(MemoryBackup({"rdb": bytes(data)}), {}, tmp_path / "out", Quiet())


def exported(kept: Kept, folder: Path) -> Path:
    """The folder that mongorestore is given."""
    folder.mkdir()
    made = MongoEngine().export(kept, kept.summary.facts, folder, QuietControl())
    assert {path.name for path in folder.iterdir()} == {"dump"}
    assert made.entries == sum(path.is_file() for path in folder.rglob("*"))
    assert made.bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o600}
    return folder / "dump"


@needs_mongod
@pytest.mark.parametrize("way", ["mongorestore", "by hand"])
def test_every_kind_of_collection_is_loaded_from_an_export(
    source: MongoServer, other: MongoServer, tmp_path: Path, way: str
) -> None:
    """Options, indexes, hashes of documents, order of capped ones, users and roles: as with our own restore."""
    if way == "mongorestore" and find_mongorestore() is None:
        pytest.skip("needs mongorestore on PATH or in MONGORESTORE")
    with source.client() as old, other.client() as new:
        fill(old)
        expected = without_standing_users(description(old), STANDING)
        folder = exported(captured(source.target("keeper")), tmp_path / "out")
        if way == "mongorestore":
            mongorestore(other, folder, tmp_path / "config")
        else:
            load(new, folder)
        assert without_standing_users(description(new), STANDING) == expected


@needs_mongod
def test_what_changed_during_the_capture_is_exported_as_it_was_at_its_time(
    source: MongoServer, other: MongoServer, tmp_path: Path
) -> None:
    """Documents changed and deleted while they were read, a collection made meanwhile: the export holds no half of it."""
    with source.client() as old, other.client() as new:
        old["shop"]["c"].insert_many([{"_id": number, "x": 0} for number in range(1000)])

        def change() -> None:
            old["shop"]["c"].update_many({"_id": {"$lt": 10}}, {"$set": {"x": 1}})
            old["shop"]["c"].delete_one({"_id": 500})
            old["shop"]["late"].insert_one({"_id": 1})

        kept = captured(source.target("keeper"), on_write=once(change))
        assert "touched/shop/c" in kept.blobs
        load(new, exported(kept, tmp_path / "out"))
        assert new["shop"].command("dbHash")["collections"] == old["shop"].command("dbHash")["collections"]


@needs_mongod
def test_names_of_any_form_and_length_become_files(source: MongoServer, other: MongoServer, tmp_path: Path) -> None:
    """Odd characters are percent-encoded; a name too long for a file is cut, hashed and told whole by its metadata."""
    long = ["x" * 200 + "ü" * 20, "y" * 235]
    with source.client() as old, other.client() as new:
        for name in (*ODD_NAMES, *long):
            put(old["odd"], name, {"_id": name})
        folder = exported(captured(source.target("keeper")), tmp_path / "out")
        assert names_in(folder) >= {f"odd/{name}" for name in (*ODD_NAMES, long[1])}
        assert len(file_name(long[0])) == 238
        told = json.loads((folder / "odd" / f"{file_name(long[0])}.metadata.json").read_text("utf-8"))
        assert told["collectionName"] == long[0]
        if find_mongorestore() is not None:
            mongorestore(other, folder, tmp_path / "config")
        else:
            load(new, folder)
        assert set(new["odd"].list_collection_names()) == {*ODD_NAMES, *long}


@needs_mongod
def test_a_backup_that_is_not_whole_is_not_exported(source: MongoServer, tmp_path: Path) -> None:
    """An entry is missing: nothing is written that could pass for an export."""
    with source.client() as client:
        client["some"]["data"].insert_one({"_id": 1})
    kept = captured(source.target("keeper"))
    del kept.blobs["data/some/data"]
    (tmp_path / "out").mkdir()
    with pytest.raises(EngineUnsupported, match="lacks"):
        MongoEngine().export(kept, kept.summary.facts, tmp_path / "out", QuietControl())
    assert list((tmp_path / "out").iterdir()) == []


@needs_redis
def test_a_backup_is_exported_by_one_command_with_and_without_its_server(tmp_path: Path) -> None:
    """Beside the running server, and from its folder alone; a used folder is status 1 with words."""
    out = tmp_path / "out"
    out.mkdir()
    with redis_server(tmp_path) as redis, ServerProcess(tmp_path / "data") as server:
        with redis.client() as client:
            client.mset({f"k {number}": "v" * number for number in range(1000)})
        server.cli("instance", "add", "cache", "--engine", "redis", "--address", redis.address)
        backup = server.cli("backup", "create", "cache", "first", "--wait")["backup_id"]
        told = server.cli("backup", "export", backup, str(out / "running"))
        assert (told["whole"], told["engine"], told["facts"]["file"]) == (True, "redis", "dump.rdb")
        assert server.cli("backup", "export", backup, str(out / "running"), status=1) is None
        server.stop()
        server.cli("backup", "export", backup, str(out / "alone"))
        assert {path.name for path in out.iterdir()} == {"running", "alone"}
        assert (out / "running" / "dump.rdb").read_bytes() == (out / "alone" / "dump.rdb").read_bytes()
        with redis_server(tmp_path, {"dir": str(out / "alone")}, binary=redis.binary) as fresh:
            assert digest(fresh) == digest(redis)
