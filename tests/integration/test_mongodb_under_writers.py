"""Captures beside running writers: exact at one point in time, whatever was written, created, dropped or renamed."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import bson
import pytest
from bson.timestamp import Timestamp
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from strongroom.engines.base import CaptureBroken, EngineUnreachable
from strongroom.engines.mongodb import capped, patch
from strongroom.engines.mongodb.connection import note_time
from support.mongodb_fakes import Kept, captured, captured_into, once, restored
from support.mongodb_server import MongoServer, needs_mongod, running, wiped

pytestmark = needs_mongod

ACCOUNTS = 200
EACH = 1000


source, other = wiped(0), wiped(1)


def prepare(client: MongoClient[Any]) -> None:
    """What the writers keep: the sum of all accounts, and one journal entry for each transfer."""
    bank = client["bank"]
    bank["left"].insert_many([{"_id": number, "money": EACH, "pad": "x" * 3000} for number in range(ACCOUNTS)])
    bank["right"].insert_many([{"_id": number, "money": EACH, "pad": "x" * 3000} for number in range(ACCOUNTS)])
    bank["counter"].insert_one({"_id": "transfers", "n": 0})
    bank.create_collection("journal")
    bank.create_collection("ring", capped=True, size=32 * 1024, max=30)
    bank["various"].insert_many([{"_id": number, "n": 0, "list": [], "pad": "y" * 2000} for number in range(1000)])
    bank.create_collection("series", timeseries={"timeField": "t", "metaField": "m"})


class Writers:
    """Threads that write until they are told to stop; an error of theirs fails the test."""

    def __init__(self, server: MongoServer) -> None:
        self._server = server
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self.rounds = 0

    def __enter__(self) -> Writers:
        jobs = (self._transfer, self._vary, self._reshape)
        self._threads = [threading.Thread(target=self._run, args=(job,)) for job in jobs]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors

    def _run(self, job: Any) -> None:
        try:
            with self._server.client() as client:
                dice = random.Random(job.__name__)
                count = 0
                while not self._stop.is_set():
                    job(client, dice, count)
                    count += 1
                    self.rounds += 1
        except BaseException as error:
            self._errors.append(error)

    def _transfer(self, client: MongoClient[Any], dice: random.Random, count: int) -> None:
        bank, amount = client["bank"], dice.randrange(1, 50)
        with client.start_session() as session, session.start_transaction():
            bank["left"].update_one({"_id": dice.randrange(ACCOUNTS)}, {"$inc": {"money": -amount}}, session=session)
            bank["right"].update_one({"_id": dice.randrange(ACCOUNTS)}, {"$inc": {"money": amount}}, session=session)
            bank["counter"].update_one({"_id": "transfers"}, {"$inc": {"n": 1}}, session=session)
            bank["journal"].insert_one({"_id": count + 1, "amount": amount}, session=session)

    def _vary(self, client: MongoClient[Any], dice: random.Random, count: int) -> None:
        various, number = client["bank"]["various"], dice.randrange(1500)
        kind = count % 7
        if kind == 0:
            various.update_one({"_id": number}, {"$inc": {"n": 1}}, upsert=True)
        elif kind == 1:
            various.update_one({"_id": number}, {"$push": {"list": count}})
        elif kind == 2:
            various.delete_one({"_id": number})
        elif kind == 3:
            various.replace_one({"_id": float(number)}, {"replaced": count}, upsert=True)
        elif kind == 4:
            various.update_one({"_id": number}, {"$unset": {"list": ""}})
        elif kind == 5:
            client["bank"]["ring"].insert_one({"count": count, "flag": 0})
            client["bank"]["ring"].update_one({"flag": 0}, {"$set": {"flag": count}})
        else:
            moment = bson.datetime_ms.DatetimeMS(1_700_000_000_000 + count * 1000).as_datetime()
            client["bank"]["series"].insert_one({"t": moment, "m": count % 3, "v": count})

    def _reshape(self, client: MongoClient[Any], dice: random.Random, count: int) -> None:
        moving = client["moving"]
        name = f"c{dice.randrange(4)}"
        kind = count % 6
        if kind in (0, 1):
            moving[name].insert_many([{"_id": count * 100 + one} for one in range(5)])
        elif kind == 2:
            with contextlib.suppress(OperationFailure):  # there is none of that name
                moving[name].rename(f"c{dice.randrange(4)}", dropTarget=True)
        elif kind == 3:
            moving.drop_collection(name)
        elif kind == 4:
            moving[name].create_index("x")
        else:
            with contextlib.suppress(OperationFailure):
                moving.command("create", f"v{dice.randrange(3)}", viewOn=name, pipeline=[])
            moving.drop_collection(f"v{dice.randrange(3)}")
        time.sleep(0.03)


def catalogue_by_oplog(client: MongoClient[Any], database: str, upto: Timestamp) -> dict[str, set[Any]]:
    """An independent word on what there was at a time: collections and the ids in them, by replaying the oplog."""
    state: dict[str, set[Any]] = {}
    for entry in client["local"]["oplog.rs"].find({"ts": {"$lte": upto}, "ns": {"$regex": f"^{database}\\."}}):
        name, o = entry["ns"].partition(".")[2], entry["o"]
        if entry["op"] == "i" and not name.startswith("system."):
            state[name].add(o["_id"])
        elif entry["op"] == "d" and not name.startswith("system."):
            state[name].discard(o["_id"])
        elif entry["op"] == "c" and "create" in o and not o["create"].startswith("system."):
            state[o["create"]] = set()
        elif entry["op"] == "c" and "drop" in o:
            state.pop(o["drop"], None)
        elif entry["op"] == "c" and "renameCollection" in o:
            state[o["to"].partition(".")[2]] = state.pop(o["renameCollection"].partition(".")[2])
    return state


def ring_by_oplog(client: MongoClient[Any], since: Timestamp, upto: Timestamp) -> list[tuple[Any, int]]:
    """Ids and flags of the capped collection in order, at a time: the server itself has no snapshots of capped collections."""
    alive: dict[Any, int] = {}
    for entry in client["local"]["oplog.rs"].find({"ts": {"$gte": since, "$lte": upto}, "ns": "bank.ring"}):
        if entry["op"] == "i":
            alive[entry["o"]["_id"]] = entry["o"]["flag"]
        elif entry["op"] == "u":
            alive[entry["o2"]["_id"]] = entry["o"]["diff"]["u"]["flag"]
        elif entry["op"] == "d":
            del alive[entry["o"]["_id"]]
    return list(alive.items())


def now(client: MongoClient[Any]) -> Timestamp:
    """The server's time, as the oplog counts."""
    moment = client.admin.command("appendOplogNote", data={"test": 1})["operationTime"]
    assert isinstance(moment, Timestamp)
    return moment


def at(kept: Kept) -> Timestamp:
    """The time at which the capture says that it is consistent."""
    moment = kept.summary.facts["consistent_at"]
    return Timestamp(moment["seconds"], moment["increment"])


def as_of(client: MongoClient[Any], database: str, name: str, moment: Timestamp) -> dict[bytes, bytes]:
    """The documents at a time, by the server's own snapshot."""
    concern = {"level": "snapshot", "atClusterTime": moment}
    with client.start_session(causal_consistency=False) as session:
        reply = client[database].command({"find": name, "batchSize": 10**6, "readConcern": concern}, session=session)
        assert reply["cursor"]["id"] == 0
    return by_id(reply["cursor"]["firstBatch"])


def by_id(documents: Any) -> dict[bytes, bytes]:
    return {bson.encode({"_id": document["_id"]}): bson.encode(document) for document in documents}


def slowly() -> None:
    """The sink's back-pressure, so that much is written while the capture runs."""
    time.sleep(0.15)


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
        _assert_invariants(new)
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


def _assert_invariants(client: MongoClient[Any]) -> None:
    bank = client["bank"]
    money = [sum(document["money"] for document in bank[name].find()) for name in ("left", "right")]
    assert sum(money) == 2 * ACCOUNTS * EACH
    transfers = bank["counter"].find_one({})
    assert transfers is not None
    assert transfers["n"] > 0
    journal = [document["_id"] for document in bank["journal"].find()]
    assert sorted(journal) == list(range(1, transfers["n"] + 1))
    assert money[1] - ACCOUNTS * EACH == sum(document["amount"] for document in bank["journal"].find())


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
        _assert_invariants(new)
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
            _assert_invariants(new)


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

        def exact(self: Any, moment: int, whole: Any, changed: Any) -> Any:
            if not times:
                old["d"]["a"].drop()
                old["d"]["new"].insert_one({"_id": 1})
            times.append(moment)
            return genuine(self, moment, whole, changed)

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
