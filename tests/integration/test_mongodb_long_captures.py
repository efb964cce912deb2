"""Captures that take longer than the server keeps snapshots, or than its oplog reaches back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo import MongoClient

from strongroom.engines.base import CaptureBroken
from strongroom.engines.mongodb import capture, oplog, patch
from support.mongodb_fakes import captured, once, restored
from support.mongodb_server import MongoServer, needs_mongod, running, wiped
from support.mongodb_writers import Writers, assert_invariants, at, catalogue_by_oplog, now, prepare, ring_by_oplog

pytestmark = needs_mongod

WINDOW = 1  # seconds

source, other = wiped(0), wiped(1)


@pytest.fixture
def short_window(source: MongoServer) -> Iterator[None]:
    """The server gives up snapshots after a second."""
    with source.client() as client:
        client.admin.command("setParameter", 1, minSnapshotHistoryWindowInSeconds=WINDOW)
        yield
        client.admin.command("setParameter", 1, minSnapshotHistoryWindowInSeconds=300)


@contextlib.contextmanager
def slow_reads(of: str, seconds: float) -> Iterator[list[bool]]:
    """Each reply of a collection takes a while on its way, once the dump is over; lists whether each was read by snapshot."""
    genuine = patch.raw_batches
    told: list[bool] = []

    def raw_batches(client: Any, session: Any, database: str, command: Any, **more: Any) -> Iterator[list[bytes]]:
        for batch in genuine(client, session, database, command, **more):
            if command.get("find") == of:
                told.append("readConcern" in command)
                time.sleep(seconds)
            yield batch

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patch, "raw_batches", raw_batches)
        yield told


@contextlib.contextmanager
def ticking(server: MongoServer) -> Iterator[None]:
    """Some other collection is written to all the time: a server's window moves on with its writes."""
    stop = threading.Event()

    def write() -> None:
        with server.client() as client:
            while not stop.wait(0.02):
                client["ticks"]["a"].insert_one({})

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Adding:
    """A thread that inserts and changes documents of one collection: their numbers are without a gap."""

    def __init__(self, client: MongoClient[Any], size: int = 2000) -> None:
        self._collection = client["late"]["big"]
        self._size = size
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._errors: list[BaseException] = []
        self.last = 0

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        assert not self._errors, self._errors

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.last += 1
                self._collection.insert_one({"_id": 1_000_000 + self.last, "pad": "n" * self._size})
                self._collection.update_one({"_id": self.last % 5000}, {"$set": {"seen": self.last}})
                time.sleep(0.002)
        except BaseException as error:
            self._errors.append(error)


def test_a_capture_beside_writers_that_outlives_the_window_is_exact(
    source: MongoServer, other: MongoServer, short_window: None
) -> None:
    """Transactions over several collections, capped and time series, and DDL, through some ten windows."""
    with source.client() as old, other.client() as new:
        since = now(old)
        prepare(old)
        begun = time.monotonic()
        with Writers(source) as writers:
            before = writers.rounds
            kept = captured(source.target("keeper"), on_write=lambda: time.sleep(0.4))
            took, during = time.monotonic() - begun, writers.rounds - before
            time.sleep(0.2)
        assert took > 5 * WINDOW
        assert during > 500
        moment = at(kept)
        restored(other.target("filler"), kept)
        assert_invariants(new)
        updates = {"ns": "admin.$cmd", "o.applyOps.ns": "bank.counter", "ts": {"$gte": since, "$lte": moment}}
        assert old["local"]["oplog.rs"].count_documents(updates) == next(new["bank"]["counter"].find())["n"]
        found = {
            entry["name"]: {document["_id"] for document in new["moving"][entry["name"]].find()}
            for entry in new["moving"].list_collections(filter={"type": "collection"})
            if not entry["name"].startswith("system.")
        }
        assert found == catalogue_by_oplog(old, "moving", moment)
        ring = [(document["_id"], document["flag"]) for document in new["bank"]["ring"].find()]
        assert ring == ring_by_oplog(old, since, moment)


def test_a_large_collection_made_during_the_capture_needs_no_snapshot_of_it_all(
    source: MongoServer, other: MongoServer, short_window: None
) -> None:
    """Its reading takes longer than the window, and it is written to all the time: it is copied, then made exact."""
    with source.client() as old, other.client() as new:
        old["seed"]["a"].insert_one({"_id": 1})
        adding = Adding(old)

        def appear() -> None:
            for start in range(0, 10_000, 1000):
                old["late"]["before"].insert_many([{"_id": start + one, "pad": "x" * 2000} for one in range(1000)])
            old["late"]["before"].rename("big")
            adding.begin()

        with slow_reads("big", 0.5) as by_snapshot:
            try:
                kept = captured(source.target("keeper"), on_write=once(appear))
            finally:
                adding.end()
        assert by_snapshot.count(False) >= 5
        assert kept.facts["patch/late/big"]["whole"]
        restored(other.target("filler"), kept)
        _assert_as_replayed(old, new, at(kept))


def _assert_as_replayed(old: MongoClient[Any], new: MongoClient[Any], moment: Any) -> None:
    """What the writer did up to that time, as the oplog tells it, and nothing later, is in the collection."""
    expected: dict[int, int | None] = {}
    for entry in old["local"]["oplog.rs"].find({"ns": "late.big", "ts": {"$lte": moment}}):
        if entry["op"] == "i":
            expected[entry["o"]["_id"]] = None
        else:
            difference = entry["o"]["diff"]
            expected[entry["o2"]["_id"]] = difference.get("i", difference.get("u"))["seen"]
    found = {document["_id"]: document.get("seen") for document in new["late"]["big"].find()}
    assert {key: value for key, value in found.items() if key >= 10_000} == {
        key: value for key, value in expected.items() if key >= 10_000
    }
    assert {key: value for key, value in found.items() if value is not None} == {
        key: value for key, value in expected.items() if value is not None
    }
    assert len(found) == 10_000 + sum(key >= 10_000 for key in expected)
    assert any(key >= 10_000 for key in expected)


def test_more_changes_than_the_window_takes_are_left_to_later_attempts(
    source: MongoServer, other: MongoServer, short_window: None
) -> None:
    """Fewer documents than are worth a loose round, over a link so slow that the snapshot is given up: each attempt leaves
    less to it, until it fits."""
    with source.client() as old, other.client() as new:
        old["d"]["many"].insert_many([{"_id": number, "n": 0} for number in range(8000)])

        def change() -> None:
            old["d"]["many"].update_many({}, {"$inc": {"n": 1}})

        with ticking(source), slow_reads("many", 0.4) as by_snapshot:
            kept = captured(source.target("keeper"), on_write=once(change))
        assert True in by_snapshot
        assert False in by_snapshot
        restored(other.target("filler"), kept)
        assert new["d"].command("dbHash")["collections"] == old["d"].command("dbHash")["collections"]


def test_an_attempt_that_is_given_up_leaves_no_files(
    source: MongoServer, monkeypatch: pytest.MonkeyPatch, short_window: None
) -> None:
    """The scratch folder holds what one attempt needs, however many there are."""
    from pathlib import Path

    seen: list[int] = []
    genuine = patch.PatchReader.exact

    def exact(self: Any, start: int, moment: int, whole: Any, changed: Any) -> Any:
        seen.append(len(list(Path(self._scratch).glob("patch-*"))))
        return genuine(self, start, moment, whole, changed)

    monkeypatch.setattr(patch.PatchReader, "exact", exact)
    monkeypatch.setattr(patch, "EXACT_AT_MOST", 1 << 40)
    monkeypatch.setattr(capture, "SETTLING_ATTEMPTS", 3)
    with source.client() as old:
        old["d"]["many"].insert_many([{"_id": number, "n": 0} for number in range(5000)])
        change = once(lambda: old["d"]["many"].update_many({}, {"$inc": {"n": 1}}))
        with ticking(source), slow_reads("many", 0.5), pytest.raises(CaptureBroken, match="minSnapshotHistoryWindowInSeconds"):
            captured(source.target("keeper"), on_write=change)
    assert seen == [0, 0, 0]


def _flood(client: MongoClient[Any], mebibytes: int) -> None:
    """Writes that push everything before them out of a small oplog."""
    for _ in range(mebibytes):
        client["flood"]["a"].insert_many([{"x": "y" * 100_000} for _ in range(10)])


def _until_cut(client: MongoClient[Any], since: Any) -> None:
    """Waits until the oplog does not reach back to a time, writing on."""
    deadline = time.monotonic() + 30
    while client["local"]["oplog.rs"].find_one({}, sort=[("$natural", 1)])["ts"] <= since:
        assert time.monotonic() < deadline
        _flood(client, 2)
        time.sleep(0.1)


def test_an_oplog_that_rolls_over_before_it_is_read_breaks_the_capture() -> None:
    """The reader of the oplog is behind when its place is cut off: the text says what to do."""
    with running(oplog_mib=4) as server, server.client() as client:
        client["some"]["data"].insert_many([{"x": "y" * 2000} for _ in range(10)])
        since = now(client)
        resume = threading.Event()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(oplog.OplogTail, "_take", _held_until(resume))
            patched.setattr(oplog, "_BATCH", 5)

            def overrun() -> None:
                _until_cut(client, since)
                resume.set()

            with pytest.raises(CaptureBroken, match="replSetResizeOplog"):
                captured(server.target("keeper"), on_write=once(overrun))


def _held_until(resume: threading.Event) -> Callable[..., None]:
    """Takes what the capture needs to begin, then nothing until it is told to."""
    genuine, taken = oplog.OplogTail._take, []

    def take(self: Any, session: Any, batch: list[bytes]) -> None:
        if taken:
            assert resume.wait(60)
        taken.append(1)
        genuine(self, session, batch)

    return take


def test_a_capture_that_keeps_up_may_outlive_the_oplog(other: MongoServer) -> None:
    """What was read of the oplog is noted: it need not reach back to the capture's beginning."""
    with running(oplog_mib=4) as server, server.client() as old, other.client() as new:
        old["some"]["data"].insert_many([{"_id": number, "n": 0, "pad": "y" * 2000} for number in range(100)])
        since = now(old)

        def overrun() -> None:
            old["some"]["data"].update_one({"_id": 7}, {"$set": {"n": 1}})
            old["some"]["data"].delete_one({"_id": 8})
            _until_cut(old, since)

        kept = captured(server.target("keeper"), on_write=once(overrun))
        restored(other.target("filler"), kept)
        for database in ("some", "flood"):
            assert new[database].command("dbHash")["collections"] == old[database].command("dbHash")["collections"]
