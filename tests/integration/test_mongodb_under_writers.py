"""Captures beside running writers: exact at one point in time, whatever was written, created, dropped or renamed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import bson
import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from strongroom.engines.base import CaptureBroken, EngineUnreachable
from strongroom.engines.mongodb import capped, patch
from strongroom.engines.mongodb.connection import note_time
from support.mongodb_fakes import captured, captured_into, once, restored
from support.mongodb_server import MongoServer, needs_mongod, running, wiped
from support.mongodb_writers import (
    Writers,
    as_of,
    assert_invariants,
    at,
    by_id,
    catalogue_by_oplog,
    now,
    prepare,
    ring_by_oplog,
    slowly,
)

pytestmark = needs_mongod

source, other = wiped(0), wiped(1)


def test_a_capture_beside_writers_is_exact_at_the_time_that_it_tells(source: MongoServer, other: MongoServer) -> None:
    """Sums and counters agree with each other and with the oplog; documents equal the server's snapshot of that time;
    created, dropped and renamed collections are those that the oplog replays to."""
    with source.client() as old, other.client() as new:
        since = now(old)
        prepare(old)
        with Writers(source) as writers:
            time.sleep(0.3)
            before = writers.rounds
            kept = captured(source.target("keeper"), on_write=slowly)
            during = writers.rounds - before
            time.sleep(0.2)
        assert during > 100
        moment = at(kept)
        restored(other.target("filler"), kept)
        assert_invariants(new)
        updates = {"ns": "admin.$cmd", "o.applyOps.ns": "bank.counter", "ts": {"$gte": since, "$lte": moment}}
        assert old["local"]["oplog.rs"].count_documents(updates) == next(new["bank"]["counter"].find())["n"]
        for name in ("left", "right", "counter", "journal", "various", "system.buckets.series"):
            expected = as_of(old, "bank", name, moment)
            assert by_id(new["bank"][name].find()) == expected, name
        expected_catalogue = catalogue_by_oplog(old, "moving", moment)
        found = {
            entry["name"]: {document["_id"] for document in new["moving"][entry["name"]].find()}
            for entry in new["moving"].list_collections(filter={"type": "collection"})
            if not entry["name"].startswith("system.")
        }
        assert found == expected_catalogue
        ring = [(document["_id"], document["flag"]) for document in new["bank"]["ring"].find()]
        assert ring == ring_by_oplog(old, since, moment)


def test_loose_rounds_leave_the_result_exact(source: MongoServer, other: MongoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a threshold of zero every changed document goes through all rounds; those changed again are read again."""
    monkeypatch.setattr(patch, "EXACT_AT_MOST", 0)
    rounds: list[int] = []

    def counted(client: Any) -> int:
        rounds.append(1)
        time.sleep(0.1)
        return note_time(client)

    monkeypatch.setattr(patch, "note_time", counted)
    with source.client() as old, other.client() as new:
        prepare(old)
        with Writers(source):
            time.sleep(0.2)
            kept = captured(source.target("keeper"), on_write=slowly)
        assert len(rounds) >= patch.LOOSE_ROUNDS
        restored(other.target("filler"), kept)
        assert_invariants(new)
        for name in ("left", "right", "various", "journal"):
            assert by_id(new["bank"][name].find()) == as_of(old, "bank", name, at(kept)), name


def test_without_the_patch_the_dump_would_not_be_consistent(source: MongoServer, other: MongoServer) -> None:
    """Proves that the invariants can fail: the same backup less its patches breaks them."""
    with source.client() as old, other.client() as new:
        prepare(old)
        with Writers(source):
            kept = captured(source.target("keeper"), on_write=slowly)
        for name in list(kept.blobs):
            if name.startswith(("patch/", "touched/")) and "moving" not in name and "ring" not in name:
                del kept.blobs[name]
        restored(other.target("filler"), kept)
        with pytest.raises(AssertionError):
            assert_invariants(new)


def test_a_transaction_of_many_oplog_entries_is_patched_whole(source: MongoServer, other: MongoServer) -> None:
    """Over 16 MiB in one transaction fill several entries; all of their documents belong to the patch."""
    with source.client() as old, other.client() as new:
        old["t"]["a"].insert_many([{"_id": number, "data": "x" * 700_000} for number in range(40)])
        old["t"]["b"].insert_one({"_id": 1, "data": "z" * 6_000_000})
        done: list[int] = []

        def transact() -> None:
            if done:
                return
            done.append(1)
            with old.start_session() as session, session.start_transaction():
                for number in range(40):
                    replacement = {"data": chr(97 + number % 26) * 700_000}
                    old["t"]["a"].replace_one({"_id": number}, replacement, session=session)
                old["t"]["b"].delete_one({"_id": 1}, session=session)

        kept = captured(source.target("keeper"), on_write=transact)
        assert kept.facts["patch/t/a"]["documents"] == 40
        restored(other.target("filler"), kept)
        assert new["t"].command("dbHash")["collections"] == old["t"].command("dbHash")["collections"]
        assert new["t"]["b"].count_documents({}) == 0


def test_a_collection_dropped_and_made_again_while_it_is_read_is_taken_whole(source: MongoServer, other: MongoServer) -> None:
    """The cursor dies with the old collection; the new one, and one renamed into another's place, come from T1."""
    with source.client() as old, other.client() as new:
        pad = "x" * 3000
        old["d"]["a"].insert_many([{"_id": number, "pad": pad} for number in range(5000)])
        old["d"]["b"].insert_many([{"_id": number, "pad": pad} for number in range(100)])
        done: list[int] = []

        def reshape() -> None:
            if not done:
                done.append(1)
                old["d"]["a"].drop()
                old["d"]["b"].rename("a")
                old["d"]["c"].insert_one({"_id": "new"})
                old["d"]["c"].create_index("x")
                old["d"].create_collection("e")
                old["d"].drop_collection("e")

        kept = captured(source.target("keeper"), on_write=reshape)
        assert kept.facts["patch/d/a"] == {"whole": True, "documents": 100}
        restored(other.target("filler"), kept)
        assert sorted(new["d"].list_collection_names()) == ["a", "c"]
        assert new["d"].command("dbHash")["collections"] == old["d"].command("dbHash")["collections"]
        assert set(new["d"]["c"].index_information()) == {"_id_", "x_1"}


def test_a_drop_between_the_chosen_time_and_its_read_moves_the_time(
    source: MongoServer, other: MongoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot read of a dropped collection is empty without an error: the capture notices, and takes a later time."""
    with source.client() as old, other.client() as new:
        old["d"]["a"].insert_many([{"_id": number} for number in range(10)])
        old["d"]["b"].insert_many([{"_id": number} for number in range(10)])
        genuine = patch.PatchReader.exact
        times: list[int] = []

        def exact(self: Any, start: int, moment: int, whole: Any, changed: Any) -> Any:
            if not times:
                old["d"]["a"].drop()
                old["d"]["new"].insert_one({"_id": 1})
            times.append(moment)
            return genuine(self, start, moment, whole, changed)

        monkeypatch.setattr(patch.PatchReader, "exact", exact)
        kept = captured(source.target("keeper"), on_write=lambda: _touch(old))
        assert len(times) == 2
        restored(other.target("filler"), kept)
        assert sorted(new["d"].list_collection_names()) == ["b", "new"]


def _touch(client: MongoClient[Any]) -> None:
    client["d"]["a"].update_one({"_id": 1}, {"$set": {"x": 1}})


def test_a_capped_collection_is_brought_to_its_time_by_the_oplog(
    source: MongoServer, other: MongoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overflow, inserts and updates between the rough copy and T1 are all in the backup, in the order of insertion."""
    with source.client() as old, other.client() as new:
        ring = old["d"].create_collection("ring", capped=True, size=8192, max=5)
        ring.insert_many([{"_id": number, "n": 0} for number in range(5)])
        genuine = capped.CappedReader.prepare

        def prepare_and_write(self: Any, collections: Any) -> None:
            genuine(self, collections)
            ring.insert_many([{"_id": number, "n": 0} for number in (10, 11, 12)])
            ring.update_one({"_id": 4}, {"$set": {"n": 1}})
            ring.update_one({"_id": 11}, {"$set": {"n": 2}})

        monkeypatch.setattr(capped.CappedReader, "prepare", prepare_and_write)
        touch = iter([lambda: ring.update_one({"_id": 3}, {"$set": {"n": 9}})])
        kept = captured(source.target("keeper"), on_write=lambda: next(touch, lambda: None)())
        assert kept.facts["patch/d/ring"] == {"whole": True, "documents": 5}
        restored(other.target("filler"), kept)
        expected = [(3, 9), (4, 1), (10, 0), (11, 2), (12, 0)]
        assert [(one["_id"], one["n"]) for one in new["d"]["ring"].find()] == expected
        assert [(one["_id"], one["n"]) for one in ring.find()] == expected


def test_ids_equal_but_of_another_type_or_letter_case_are_one_document(source: MongoServer, other: MongoServer) -> None:
    """1 and 1.0 are one `_id`; under a collation that ignores case "Ab" and "AB" are."""
    with source.client() as old, other.client() as new:
        collation = {"locale": "en", "strength": 2}
        old["d"].create_collection("nocase", collation=collation).insert_many([{"_id": "Ab"}, {"_id": "cd"}])
        old["d"]["numbers"].insert_many([{"_id": 1}, {"_id": 2}, {"_id": 3.5}])
        done: list[int] = []

        def replace() -> None:
            if not done:
                done.append(1)
                old["d"]["nocase"].delete_one({"_id": "ab"})
                old["d"]["nocase"].insert_one({"_id": "AB", "n": 1})
                old["d"]["numbers"].delete_one({"_id": 1.0})
                old["d"]["numbers"].insert_one({"_id": bson.Int64(1), "n": 1})
                old["d"]["numbers"].update_one({"_id": bson.Decimal128("2.0")}, {"$set": {"n": 2}})

        kept = captured(source.target("keeper"), on_write=replace)
        restored(other.target("filler"), kept)
        assert new["d"].command("dbHash")["collections"] == old["d"].command("dbHash")["collections"]


def test_many_changes_during_the_capture_cost_little_memory(source: MongoServer) -> None:
    """A hundred thousand changed documents stay on disk: the capture's own memory does not grow with them."""
    import tracemalloc

    with source.client() as client:
        client["m"]["seed"].insert_one({"_id": 1})
        done: list[int] = []

        def write() -> None:
            if not done:
                done.append(1)
                for start in range(0, 100_000, 10_000):
                    client["m"]["c"].insert_many([{"_id": start + one} for one in range(10_000)])

        client["m"]["c"].insert_one({"_id": -1})
        sink = _Discarding(write)
        tracemalloc.start()
        try:
            captured_into(sink, source.target("keeper"))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert sink.bytes["patch/m/c"] == len(bson.encode({"_id": 1})) * 100_000
        assert peak < 60 * 1024 * 1024


class _Discarding:
    """A sink that counts, and forgets."""

    def __init__(self, on_write: Any) -> None:
        self.bytes: dict[str, int] = {}
        self._on_write = on_write
        self._name = ""

    @contextlib.contextmanager
    def entry(self, name: str) -> Iterator[_Discarding]:
        self.bytes[name] = 0
        self._name = name
        yield self

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.bytes[self._name] += len(data)
        self._on_write()

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        return


def test_another_election_breaks_the_capture() -> None:
    """What the former primary told may have been rolled back."""
    with running() as server, server.client() as client:
        client["d"]["a"].insert_many([{"pad": "x" * 3000} for _ in range(100)])

        def elect() -> None:
            with contextlib.suppress(OperationFailure):
                client.admin.command("replSetStepDown", 1, force=True)
            for _ in range(200):
                if client.admin.command("hello")["isWritablePrimary"]:
                    return
                time.sleep(0.1)

        with pytest.raises((CaptureBroken, EngineUnreachable)):
            captured(server.target("keeper"), on_write=once(elect))
