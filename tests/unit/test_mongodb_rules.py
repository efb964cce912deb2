"""Rules that need no server: who may enter, which versions fit, what belongs into a backup, what makes one whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo.errors import AutoReconnect, ConfigurationError, OperationFailure, ServerSelectionTimeoutError

from strongroom.engines.base import (
    CaptureBroken,
    EngineDenied,
    EngineError,
    EngineUnreachable,
    EngineUnsupported,
    Target,
)
from strongroom.engines.mongodb import contents, restore
from strongroom.engines.mongodb.catalogue import Collection, belongs, packed, unpack
from strongroom.engines.mongodb.connection import (
    CAPTURE_RIGHTS,
    RESTORE_RIGHTS,
    Right,
    Server,
    allowed,
    connected,
    release_of,
    require_oplog,
    require_primary,
    translated,
)
from strongroom.engines.mongodb.documents import NotBson, decode
from strongroom.engines.mongodb.reading import BATCH_BYTES, batch_size
from strongroom.engines.mongodb.touched import TouchedIds
from support.mongodb_fakes import Kept, QuietControl


@pytest.mark.parametrize(
    ("version", "feature", "fits"),
    [("6.0.5", "6.0", True), ("6.0.1", "6.0", True), ("7.0.2", "7.0", True), ("5.0.9", "5.0", False), ("7.0.2", "5.0", False)],
)
def test_a_backup_is_not_restored_into_an_older_server(version: str, feature: str, fits: bool) -> None:
    """By release and by compatibility setting; the patch level does not matter."""
    facts = {"version": "6.0.5", "feature_version": "6.0"}
    if fits:
        restore.require_version(version, feature, facts)
    else:
        with pytest.raises(EngineUnsupported, match=r"older|setFeatureCompatibilityVersion"):
            restore.require_version(version, feature, facts)


def test_a_backup_that_does_not_tell_its_version_is_refused() -> None:
    """It cannot be one of ours."""
    with pytest.raises(EngineUnsupported):
        restore.require_version("6.0.5", "6.0", {})


@pytest.mark.parametrize(("version", "set_name"), [("4.4.29", "rs0"), ("3.6", "rs0"), ("garbage", "rs0"), ("6.0.5", None)])
def test_old_servers_and_stand_alone_ones_are_no_source(version: str, set_name: str | None) -> None:
    """Snapshot reads outside transactions came with 5.0; without a replica set there is no oplog."""
    with pytest.raises(EngineUnsupported):
        require_oplog(Server(version, version, set_name, ("", "")))
    require_oplog(Server("5.0.0", "5.0", "rs0", ("", "")))


def test_routers_are_refused_for_good_and_secondaries_for_now() -> None:
    """A secondary may be primary tomorrow."""
    with pytest.raises(EngineUnsupported, match="mongos"):
        require_primary({"msg": "isdbgrid", "isWritablePrimary": True})
    with pytest.raises(EngineUnsupported, match="config server"):
        require_primary({"configsvr": 2, "isWritablePrimary": True})
    with pytest.raises(EngineUnreachable):
        require_primary({"isWritablePrimary": False, "secondary": True, "setName": "rs0"})
    require_primary({"isWritablePrimary": True})


def test_versions_are_compared_as_numbers() -> None:
    """10.0 is newer than 9.1."""
    assert release_of("10.0.1") > release_of("9.1") > release_of("nonsense")


def test_rights_are_found_in_privileges_of_every_shape() -> None:
    """By exact resource, by database, by collection, by wildcard; never a system collection by a wildcard."""
    any_normal = {"resource": {"db": "", "collection": ""}, "actions": ["find"]}
    assert allowed([any_normal], Right("", "", ("find",)))
    assert allowed([any_normal], Right("local", "oplog.rs", ("find",)))
    assert not allowed([any_normal], Right("admin", "system.users", ("find",)))
    assert not allowed([any_normal], Right("", "", ("find", "insert")))
    assert not allowed([any_normal], Right(None, None, ("find",)))
    assert not allowed([{"resource": {"db": "one", "collection": ""}, "actions": ["find"]}], Right("", "", ("find",)))
    assert allowed(
        [{"resource": {"db": "", "collection": "system.users"}, "actions": ["find"]}], Right("admin", "system.users", ("find",))
    )
    assert allowed([{"resource": {"cluster": True}, "actions": ["listDatabases"]}], Right(None, None, ("listDatabases",)))
    everything = [{"resource": {"anyResource": True}, "actions": ["anyAction"]}]
    assert all(allowed(everything, right) for right in (*CAPTURE_RIGHTS, *RESTORE_RIGHTS))
    assert not any(allowed([], right) for right in (*CAPTURE_RIGHTS, *RESTORE_RIGHTS))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OperationFailure("Authentication failed.", 18), EngineDenied),
        (OperationFailure("not authorized on d to execute command", 13), EngineDenied),
        (OperationFailure("not primary", 10107), EngineUnreachable),
        (OperationFailure("operation exceeded time limit", 50), EngineUnreachable),
        (OperationFailure("cursor id 5 not found", 43), CaptureBroken),
        (OperationFailure("something", 9999), EngineError),
        (ServerSelectionTimeoutError("127.0.0.1:1: refused"), EngineUnreachable),
        (AutoReconnect("connection closed"), EngineUnreachable),
        (ConfigurationError("mongodb://u:secret@h is wrong"), EngineUnsupported),
    ],
)
def test_the_drivers_errors_become_the_ports(error: Exception, expected: type[EngineError]) -> None:
    """And none of their texts quotes the address."""
    with pytest.raises(EngineError) as caught, translated():
        raise error
    assert type(caught.value) is expected
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://h/", "h:27017", "mongodb://user:secret@h/"])
def test_addresses_that_are_not_ours_are_refused_without_repeating_them(address: str) -> None:
    """A password does not belong into an address."""
    with pytest.raises(EngineUnsupported) as caught, connected(Target(address)):
        pass
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("database", "name", "expected"),
    [
        ("shop", "orders", True),
        ("shop", "system.js", True),
        ("shop", "system.views", False),
        ("shop", "system.profile", False),
        ("shop", "system.buckets.series", False),
        ("admin", "mine", True),
        ("admin", "system.users", False),
        ("admin", "tempusers", False),
        ("local", "startup_log", False),
        ("config", "transactions", False),
    ],
)
def test_what_belongs_into_a_backup(database: str, name: str, expected: bool) -> None:
    """Not what the server keeps for itself or makes by itself."""
    assert belongs(database, name) is expected


def collection(database: str, name: str, kind: str = "collection", **options: Any) -> Collection:
    index = decode(bson.encode({"v": 2, "key": {"x": bson.Int64(1)}, "name": "x_1"}))
    return Collection(database, name, kind, decode(bson.encode(options)), (index,), b"some uuid")


def test_the_catalogue_comes_back_and_its_bytes_do_not_depend_on_order_or_uuid() -> None:
    """Else two captures of the same thing would differ."""
    one, other = collection("b", "x", validator={"a": 1.0}), collection("a", "y", "view", viewOn="x", pipeline=[])
    raw = list(packed([one, other]))
    assert raw == list(packed([other, one]))
    back = [unpack(document) for document in raw]
    assert [(item.database, item.name, item.kind) for item in back] == [("a", "y", "view"), ("b", "x", "collection")]
    assert list(packed(back)) == raw
    with pytest.raises(NotBson):
        unpack(bson.encode({"db": "x"}))


def test_a_time_series_keeps_its_documents_in_buckets_and_a_view_has_none() -> None:
    """What is dumped and inserted."""
    assert collection("d", "s", "timeseries").namespace == "d.system.buckets.s"
    assert not collection("d", "v", "view").has_documents


@given(st.lists(st.binary(max_size=300), max_size=60), st.integers(1, 10), st.integers(100, 500))
def test_batches_keep_order_and_limits(documents: list[bytes], number: int, weight: int) -> None:
    """A document larger than a batch goes alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "INSERT_DOCUMENTS", number)
        patch.setattr(restore, "INSERT_BYTES", weight)
        cut = list(restore.batches(documents))
    assert [document for batch in cut for document in batch] == documents
    assert all(batch and len(batch) <= number for batch in cut)
    assert all(sum(map(len, batch)) <= weight or len(batch) == 1 for batch in cut)


@given(st.integers(0, 2**31))
def test_replies_are_asked_for_in_about_the_same_bytes(average: int) -> None:
    """At least one document, never more than the bytes allow."""
    size = batch_size(average)
    assert size >= 1
    assert size == 1 or size * average <= BATCH_BYTES


def whole_backup() -> Kept:
    """Two collections, one of them patched, and one view."""
    kept = Kept()
    documents = [bson.encode({"_id": number}) for number in range(3)]
    items = [collection("d", "a"), collection("d", "b"), collection("d", "v", "view")]
    kept.blobs = {
        "data/d/a": b"".join(documents),
        "data/d/b": b"".join(documents),
        "patch/d/b": documents[0],
        "touched/d/b": b"".join(documents[:2]),
        "users": b"",
        "roles": b"",
        "catalog": b"".join(packed(items)),
    }
    kept.facts = {name: {} for name in kept.blobs}
    kept.facts["data/d/a"] = {"documents": 3}
    kept.facts["patch/d/b"] = {"whole": False, "documents": 1}
    return kept


def read_all(kept: Kept, folder: Path) -> Any:
    touched = TouchedIds(str(folder / "touched"))
    try:
        return contents.read_all(kept, touched, QuietControl()), touched.count()
    finally:
        touched.close()


def test_a_whole_backup_is_accepted(tmp_path: Path) -> None:
    """And every byte of it is counted."""
    plan, touched = read_all(whole_backup(), tmp_path)
    assert plan.size == sum(map(len, whole_backup().blobs.values()))
    assert touched == 2
    assert len(plan.collections) == 3


@pytest.mark.parametrize("lost", ["data/d/a", "data/d/b", "patch/d/b", "touched/d/b", "users", "roles", "catalog"])
def test_no_entry_may_be_missing(lost: str, tmp_path: Path) -> None:
    """Each is needed; a patch without its ids, or ids without a patch, would give a wrong state."""
    kept = whole_backup()
    del kept.blobs[lost]
    if lost == "catalog":
        kept.blobs = {name: blob for name, blob in kept.blobs.items() if "/" not in name}
    with pytest.raises(EngineUnsupported, match="lacks"):
        read_all(kept, tmp_path)


@pytest.mark.parametrize("name", ["data/d/a", "touched/d/b", "catalog"])
def test_no_entry_may_be_cut(name: str, tmp_path: Path) -> None:
    """Its text names the entry."""
    kept = whole_backup()
    kept.blobs[name] = kept.blobs[name][:-1]
    with pytest.raises(EngineUnsupported, match=name):
        read_all(kept, tmp_path)


def test_entries_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    """A backup of a later version may hold what we would not restore."""
    kept = whole_backup()
    kept.blobs["more/d/a"] = b""
    kept.facts["more/d/a"] = {}
    with pytest.raises(EngineUnsupported, match="more/d/a"):
        read_all(kept, tmp_path)
