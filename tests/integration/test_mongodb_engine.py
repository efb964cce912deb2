"""The MongoDB engine on real servers: what is captured and restored is equal, and what goes wrong says so."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bson
import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from strongroom.engines.base import (
    CaptureBroken,
    EngineDenied,
    EngineError,
    EngineUnreachable,
    EngineUnsupported,
    RestoreBroken,
    Target,
)
from strongroom.engines.mongodb import MongoEngine, capture
from strongroom.engines.mongodb.connection import snapshot_time
from support.mongodb_fakes import Cancelled, Kept, QuietControl, captured, once, restored
from support.mongodb_router import router
from support.mongodb_samples import description, fill, without_standing_users
from support.mongodb_server import ROLES, MongoServer, needs_mongod, running, shared, wiped

pytestmark = needs_mongod

STANDING = {f"admin.{user}" for user in ROLES}


source, other = wiped(0), wiped(1)


def test_every_kind_of_collection_comes_back_equal_in_a_fresh_server(source: MongoServer, other: MongoServer) -> None:
    """Options, indexes, hashes of documents, users and roles agree on both sides, with only the two built-in roles used."""
    with source.client() as old, other.client() as new:
        fill(old)
        expected = without_standing_users(description(old), STANDING)
        kept = captured(source.target("keeper"))
        restored(other.target("filler"), kept)
        assert without_standing_users(description(new), STANDING) == expected
        assert len(list(new["shop"]["series"].find({"m.host": 3}))) == 400
        assert new["shop"]["aview of a view"].count_documents({}) == 2994


def test_the_same_server_becomes_what_the_backup_was(source: MongoServer) -> None:
    """Changed, emptied, dropped and new collections, changed options, users and roles: all go back; what is new goes."""
    with source.client() as client:
        fill(client)
        expected = description(client)
        kept = captured(source.target("keeper"))
        shop = client["shop"]
        shop["plain"].update_many({}, {"$set": {"number": 0}})
        shop.drop_collection("capped")
        shop.drop_collection("series")
        shop.drop_collection("view")
        shop["view"].insert_one({"now": "a collection"})
        shop.command("createUser", "intruder", pwd="x", roles=[])
        shop.command("dropRole", "reader")
        client["new"]["thing"].insert_one({})
        client["new"].command("createUser", "also new", pwd="x", roles=[])
        client["admin"]["extra"].insert_one({})
        client.drop_database("odd_Nämes-1")
        summary = restored(source.target("filler"), kept)
        assert description(client) == expected
        assert any("system.js" in warning for warning in summary.warnings)
        assert not [name for name in client["admin"].list_collection_names() if "temp" in name or "strongroom" in name]


def test_users_log_in_with_their_old_passwords_and_nobody_is_locked_out(source: MongoServer) -> None:
    """Of `admin` only what is missing comes back; a password changed since the backup stays the new one."""
    with source.client() as client:
        fill(client)
        kept = captured(source.target("keeper"))
        client["shop"].command("updateUser", "ann", pwd="changed")
        client["admin"].command("dropUser", "boss")
        client["admin"].command("updateUser", "keeper", pwd="a newer one")
        try:
            restored(source.target("filler"), kept)
            with MongoClient[Any](source.address, username="ann", password="pw ann", authSource="shop") as ann:
                assert ann["shop"]["plain"].count_documents({}) == 3000
            with source.client("boss", "pw boss") as boss:
                assert "shop" in boss.list_database_names()
            assert MongoEngine().probe(source.target("keeper", "a newer one")).mode == "ReplicaSet"
        finally:
            client["admin"].command("updateUser", "keeper", pwd=source.target("keeper").password)


def test_what_did_not_change_is_captured_in_the_same_bytes(source: MongoServer) -> None:
    """Two captures of an idle server are identical, and after one change only that collection's entries differ."""
    with source.client() as client:
        fill(client)
        first = captured(source.target("keeper"))
        second = captured(source.target("keeper"))
        assert second.blobs == first.blobs
        client["shop"]["plain"].insert_one({"number": -1, "email": "new"})
        third = captured(source.target("keeper"))
        assert {name for name in third.blobs if third.blobs[name] != first.blobs.get(name)} == {"data/shop/plain"}


def test_restoring_keeps_the_bytes_for_the_next_capture(source: MongoServer, other: MongoServer) -> None:
    """A capture of the restored server equals the one it came from: a restore does not cost the next backup its sharing."""
    with source.client() as client:
        fill(client)
    first = captured(source.target("keeper"))
    restored(other.target("filler"), first)
    second = captured(other.target("keeper"))
    same = {name for name in first.blobs if name.startswith("data/") or name == "catalog"}
    assert {name: second.blobs[name] for name in same} == {name: first.blobs[name] for name in same}


def test_the_largest_documents_go_there_and_back(source: MongoServer, other: MongoServer) -> None:
    """Documents of 16 MiB, the server's limit, are read, patched and inserted like any other."""
    with source.client() as old, other.client() as new:
        room = 16 * 1024 * 1024 - len(bson.encode({"_id": 1, "data": b""}))
        for number in range(3):
            old["big"]["c"].insert_one({"_id": number, "data": bytes(room)})
        old["big"]["c"].insert_many([{"_id": number + 10, "data": b"x"} for number in range(3)])

        def replace() -> None:
            old["big"]["c"].replace_one({"_id": 1}, {"data": b"\1" * room})

        kept = captured(source.target("keeper"), on_write=once(replace))
        assert kept.facts["patch/big/c"] == {"whole": False, "documents": 1}
        restored(other.target("filler"), kept)
        for database in (old, new):
            assert database["big"]["c"].count_documents({}) == 6
        assert new["big"].command("dbHash")["collections"] == old["big"].command("dbHash")["collections"]


def test_probe_tells_version_mode_and_size(source: MongoServer) -> None:
    """The figures that a backup is begun with."""
    with source.client() as client:
        client["some"]["data"].insert_many([{"x": "y" * 1000} for _ in range(1000)])
    probe = MongoEngine().probe(source.target("keeper"))
    assert probe.version.split(".")[0].isdigit()
    assert probe.mode == "ReplicaSet"
    assert 1_000_000 < probe.size < 1_200_000
    assert probe.records


@pytest.mark.parametrize("user", ["filler", "nobody"])
def test_a_capture_without_the_backup_role_is_denied_with_its_name(source: MongoServer, user: str) -> None:
    """Before anything is read."""
    with pytest.raises(EngineDenied, match="'backup'"):
        captured(source.target(user))


@pytest.mark.parametrize("user", ["keeper", "nobody"])
def test_a_restore_without_the_restore_role_changes_nothing(source: MongoServer, other: MongoServer, user: str) -> None:
    """It is denied before the point of no return."""
    kept = captured(source.target("keeper"))
    with other.client() as client:
        client["precious"]["c"].insert_one({"_id": 1})
        with pytest.raises(EngineDenied, match="'restore'"):
            restored(other.target(user), kept)
        assert client["precious"]["c"].count_documents({}) == 1


def test_no_credentials_at_all_are_denied(source: MongoServer) -> None:
    """The server lets anyone say hello; that must not pass for a right."""
    with pytest.raises(EngineDenied):
        MongoEngine().probe(Target(source.address))


def test_a_server_that_is_not_there_is_unreachable_within_ten_seconds() -> None:
    """And that may pass."""
    with pytest.raises(EngineUnreachable) as caught:
        MongoEngine().probe(Target("mongodb://keeper@127.0.0.1:1/", "x"))
    assert not caught.value.permanent


def test_a_stand_alone_server_is_refused_with_the_way_out() -> None:
    """There is no oplog; the text says how to make a replica set of one node. As a target it will do."""
    with running(replica_set=False) as server:
        with pytest.raises(EngineUnsupported, match=r"--replSet.*rs\.initiate"):
            captured(server.target("keeper"))
        shared(0).wipe()
        with shared(0).client() as client:
            client["some"]["data"].insert_one({"_id": 1})
        restored(server.target("filler"), captured(shared(0).target("keeper")))
        with server.client() as client:
            assert client["some"]["data"].count_documents({}) == 1


def test_a_router_of_a_sharded_cluster_is_refused_before_anything_is_asked_of_it() -> None:
    """By what mongos says of itself; a probe, a capture and a restore go no further than that."""
    with router() as (address, asked):
        with pytest.raises(EngineUnsupported, match="mongos router: sharded clusters are not supported"):
            MongoEngine().probe(Target(address))
        with pytest.raises(EngineUnsupported, match="mongos router"):
            captured(Target(address))
        kept = Kept()
        with pytest.raises(EngineUnsupported, match="mongos router"):
            restored(Target(address), kept)
        assert set(asked) <= {"hello", "ismaster", "isMaster"}


def test_a_config_server_and_a_shard_are_refused() -> None:
    """Real servers of a sharded cluster: each alone would give a part of the data, at a time of its own."""
    with running(config_server=True) as server, pytest.raises(EngineUnsupported, match="config server"):
        captured(server.target("keeper"))
    with running() as server, server.client() as client:
        client.admin["system.version"].insert_one({"_id": "shardIdentity", "shardName": "first"})
        with pytest.raises(EngineUnsupported, match="shard of a sharded cluster"):
            captured(server.target("keeper"))


def test_an_oplog_that_rolled_over_breaks_the_capture_with_advice() -> None:
    """What changed at the beginning is not known any more; the text says what to do."""
    with running() as server, server.client() as client:
        client.admin.command("replSetResizeOplog", 1, size=990.0)
        client["some"]["data"].insert_many([{"x": "y" * 2000} for _ in range(10)])
        with _slow_tail(), pytest.raises(CaptureBroken, match="replSetResizeOplog"):
            captured(server.target("keeper"))


@contextlib.contextmanager
def _slow_tail() -> Iterator[None]:
    """The tail begins so far back that the oplog cannot reach there, as if it had lost its oldest entries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture, "snapshot_time", lambda client: snapshot_time(client) - (3600 << 32))
        yield


def test_a_cancelled_capture_ends_with_the_jobs_own_error(source: MongoServer) -> None:
    """And leaves no thread behind."""
    with source.client() as client:
        client["some"]["data"].insert_many([{"x": "y" * 2000} for _ in range(10000)])

    def cancel(count: int) -> None:
        if count > 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        captured(source.target("keeper"), QuietControl(cancel))


def test_damage_is_found_before_the_target_is_touched(source: MongoServer, other: MongoServer) -> None:
    """A cut entry, a missing entry and a wrong count are each found while the target still holds its own data."""
    with source.client() as client:
        client["some"]["data"].insert_many([{"_id": number} for number in range(100)])
    with other.client() as client:
        client["precious"]["c"].insert_one({"_id": 1})
        for damage in (_cut, _lose, _shorten):
            kept = captured(source.target("keeper"))
            damage(kept)
            with pytest.raises(EngineUnsupported):
                restored(other.target("filler"), kept)
            assert client["precious"]["c"].count_documents({}) == 1
            assert client["admin"].list_collection_names(filter={"name": "strongroom_restore"}) == []


def _cut(kept: Kept) -> None:
    kept.blobs["data/some/data"] = kept.blobs["data/some/data"][:-5]


def _lose(kept: Kept) -> None:
    del kept.blobs["data/some/data"]


def _shorten(kept: Kept) -> None:
    length = len(bson.encode({"_id": 0}))
    kept.blobs["data/some/data"] = kept.blobs["data/some/data"][:-length]


def test_a_restore_that_fails_says_what_the_target_holds_and_can_be_run_again(source: MongoServer, other: MongoServer) -> None:
    """Past the point of no return the state is told in words; recover() and a second restore put it right."""
    with source.client() as old, other.client() as new:
        for number in range(5):
            old["some"][f"c{number}"].insert_many([{"_id": one, "x": one} for one in range(100)])
        old["some"]["c3"].insert_one({"_id": "twice", "x": 1})
        kept = captured(source.target("keeper"))
        twice = bson.encode({"_id": "twice", "x": 1})
        good = kept.blobs["data/some/c3"]
        kept.blobs["data/some/c3"] = good.replace(bson.encode({"_id": 0, "x": 0}), twice)
        with pytest.raises(RestoreBroken) as caught:
            restored(other.target("filler"), kept)
        assert "3 are complete" in caught.value.target_state
        assert "some.c3" in caught.value.target_state
        kept.blobs["data/some/c3"] = good
        for _ in range(2):
            MongoEngine().recover(other.target("filler"))
        restored(other.target("filler"), kept)
        assert new["some"].command("dbHash")["md5"] == old["some"].command("dbHash")["md5"]


def test_a_restore_cancelled_past_the_point_tells_the_state_in_a_note(source: MongoServer, other: MongoServer) -> None:
    """The job's own error keeps its type."""
    with source.client() as client:
        for number in range(20):
            client["some"][f"c{number}"].insert_one({"_id": 1})
    kept = captured(source.target("keeper"))
    control = QuietControl()

    def cancel(count: int) -> None:
        if control.phases.get("data"):
            raise Cancelled

    control.on_check = cancel
    with pytest.raises(Cancelled) as caught:
        restored(other.target("filler"), kept, control)
    assert any("former data is gone" in note for note in caught.value.__notes__)
    MongoEngine().recover(other.target("filler"))
    with other.client() as client:
        assert "strongroom_restore" not in client["admin"].list_collection_names()


def test_a_server_killed_in_mid_restore_leaves_a_state_that_is_told(source: MongoServer) -> None:
    """The error says what the target holds; once it is back, recover() and a second restore put it right."""
    with source.client() as client:
        for number in range(5):
            client["some"][f"c{number}"].insert_many([{"_id": one} for one in range(100)])
    kept = captured(source.target("keeper"))
    with running() as server:
        control = QuietControl()

        def kill(count: int) -> None:
            if control.phases.get("data") and server.process is not None:
                server.kill()

        control.on_check = kill
        with pytest.raises(RestoreBroken, match="former data is gone; of 5 collections"):
            restored(server.target("filler"), kept, control)
        server.start()
        MongoEngine().recover(server.target("filler"))
        restored(server.target("filler"), kept)
        with server.client() as client:
            assert [client["some"][f"c{number}"].count_documents({}) for number in range(5)] == [100] * 5


def test_an_unknown_option_of_a_target_is_refused(source: MongoServer) -> None:
    """A typing error in an option must not silently mean the default."""
    with pytest.raises(EngineUnsupported, match="tlz"):
        MongoEngine().probe(source.target("keeper", tlz=True))


def test_the_scratch_folder_is_all_that_a_capture_writes(source: MongoServer) -> None:
    """Spills are where the caller can count and remove them."""
    with source.client() as client, tempfile.TemporaryDirectory() as scratch:
        client["some"]["data"].insert_one({"_id": 1})
        MongoEngine().capture(source.target("keeper"), Kept(), QuietControl(), scratch)
        assert {path.name.split("-")[0] for path in Path(scratch).iterdir()} <= {"touched", "patch"}


def test_the_restore_role_alone_could_not_read_what_it_restored(source: MongoServer) -> None:
    """Guards the claim in the documentation that the two roles are apart."""
    with source.client("filler") as client, pytest.raises(OperationFailure):
        client["some"]["data"].find_one()
    assert issubclass(EngineDenied, EngineError)


def test_a_survey_tells_what_a_restore_would_replace(source: MongoServer, other: MongoServer) -> None:
    """Collections, and users of other databases; not what a restore leaves as it is. The role restore suffices."""
    facts = captured(source.target("keeper")).summary.facts
    engine, target = MongoEngine(), other.target("filler")
    assert engine.survey(target, facts, 1000).holds is None
    with other.client() as client:
        client["shop"].command("createUser", "ann", pwd="x", roles=[])
        assert engine.survey(target, facts, 1000).holds == "1 users"
        client["shop"]["a"].insert_one({})
        client["shop"]["b"].insert_one({})
        client["admin"]["c"].insert_one({})
        assert engine.survey(target, facts, 1000).holds == "3 collections in 2 databases and 1 users"


def test_a_survey_refuses_a_target_that_could_not_take_the_backup(source: MongoServer, other: MongoServer) -> None:
    """No room on its disk, where the user may ask; a newer backup; a right that is missing. A tight disk is a warning."""
    facts = captured(source.target("keeper")).summary.facts
    engine = MongoEngine()
    with other.client() as client:
        stats = client.admin.command("dbStats")
        free = int(stats["fsTotalSize"] - stats["fsUsedSize"])
    with pytest.raises(EngineUnsupported, match="make room"):
        engine.survey(other.target("admin"), facts, free * 8)
    assert "bytes free" in engine.survey(other.target("admin"), facts, free * 2).warnings[0]
    assert list(engine.survey(other.target("admin"), facts, 1000).warnings) == []
    with pytest.raises(EngineUnsupported, match="older"):
        engine.survey(other.target("filler"), {**facts, "version": "99.0.0"}, 1000)
    with pytest.raises(EngineDenied, match="'restore'"):
        engine.survey(other.target("keeper"), facts, 1000)
