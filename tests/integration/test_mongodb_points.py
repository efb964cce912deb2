"""Points in time of MongoDB on real servers: recorded in several runs, replayed on top of a backup, refused untouched."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bson
import pytest
from bson.timestamp import Timestamp
from pymongo import MongoClient

from strongroom.engines.base import (
    EngineDenied,
    EngineUnreachable,
    EngineUnsupported,
    RestoreBroken,
    Summary,
    Target,
    target_state,
)
from strongroom.engines.log import LogGap, Mark
from strongroom.engines.mongodb import MongoEngine
from strongroom.engines.mongodb.recording import time_of
from support.logs import MemoryLog, Recording
from support.mongodb_fakes import Cancelled, Kept, QuietControl, captured
from support.mongodb_samples import description, fill, without_standing_users
from support.mongodb_server import ROLES, MongoServer, needs_mongod, running, shared
from support.mongodb_writers import Writers, as_of, assert_invariants, by_id, prepare

pytestmark = needs_mongod

REPLAYER, PASSWORD = "replayer", "pw replayer 5"
STANDING = {f"admin.{user}" for user in [*ROLES, REPLAYER]}


def allow_replay(server: MongoServer) -> Target:
    """A user who may use applyOps, with the role that the documentation tells to make."""
    with server.client() as client:
        everything = {"resource": {"anyResource": True}, "actions": ["anyAction"]}
        client.admin.command("createRole", "strongroomReplay", privileges=[everything], roles=[])
        client.admin.command("createUser", REPLAYER, pwd=PASSWORD, roles=["strongroomReplay"])
    return server.target(REPLAYER, PASSWORD)


def mark_of(kept: Kept) -> Mark:
    found = MongoEngine().mark_of(kept.summary.facts)
    assert found is not None
    return found


def record(target: Target, since: Mark, sink: Recording, until: float, control: QuietControl | None = None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        MongoEngine().record(target, since, sink, control or QuietControl(), until, scratch)


def restored_to(target: Target, kept: Kept, log: MemoryLog, control: QuietControl | None = None) -> Summary:
    with tempfile.TemporaryDirectory() as scratch:
        facts = kept.summary.facts
        return MongoEngine().restore_to(target, kept, facts, log, control or QuietControl(), scratch)


def moment(mark: Mark) -> Timestamp:
    return Timestamp(time_of(mark.order) >> 32, time_of(mark.order) & 0xFFFFFFFF)


def reshape(client: MongoClient[Any]) -> None:
    """One of everything that the oplog has an entry for."""
    shop, moved = client["shop"], client["moved"]
    shop.command("create", "late view", viewOn="plain", pipeline=[{"$match": {"number": 1}}])
    shop.command("collMod", "late view", viewOn="plain", pipeline=[{"$match": {"number": 2}}])
    shop.drop_collection("view")
    for name in ("late series", "short series"):
        shop.create_collection(name, timeseries={"timeField": "t", "metaField": "m"})
        shop[name].insert_many([{"t": datetime.datetime(2026, 1, 1, 0, 0, n), "m": n % 2, "v": n} for n in range(30)])
    shop["late series"].create_index([("m", 1)])
    shop["late series"].create_index([("v", 1)])
    shop["late series"].drop_index("v_1")
    shop["series"].drop_index("m.host_1_t_1")
    shop.command("collMod", "late series", expireAfterSeconds=10**9, timeseries={"granularity": "hours"})
    shop.drop_collection("short series")
    shop["series"].insert_one({"t": datetime.datetime(2026, 1, 1, 5), "m": {"host": 3}, "v": -1})
    shop["capped"].insert_many([{"_id": 5000 + n} for n in range(30)])
    shop.create_collection("small ring", capped=True, size=4096, max=3).insert_many([{"_id": n} for n in range(7)])
    shop["to be capped"].insert_many([{"_id": n} for n in range(3)])
    shop.command("convertToCapped", "to be capped", size=4096)
    shop["plain"].drop_index("two fields")
    shop["plain"].create_index([("number", 1), ("any", 1)], name="late")
    shop.command("collMod", "plain", index={"name": "when_1", "expireAfterSeconds": 10**9})
    shop.command("collMod", "plain", index={"name": "late", "hidden": True})
    shop["nocase"].create_index("late", collation={"locale": "simple"})
    shop["ids of all kinds"].create_index("u", sparse=True)
    shop.command("collMod", "ids of all kinds", index={"name": "u_1", "prepareUnique": True})
    shop.command("collMod", "ids of all kinds", index={"name": "u_1", "unique": True})
    shop.command("collMod", "plain", validator={"late": {"$exists": False}}, validationAction="warn")
    shop["plain"].insert_one({"_id": "breaks it", "late": 1, "email": "late"})
    shop.command("collMod", "plain", validationAction="error")
    moved["target"].insert_one({"_id": "goes"})
    moved["source"].insert_one({"_id": "stays"})
    moved["source"].create_index("x")
    moved["source"].rename("target", dropTarget=True)
    client.admin.command("renameCollection", "moved.target", to="afar.away")
    shop["plain"].aggregate([{"$match": {"number": {"$lt": 20}}}, {"$out": "outcome"}])
    client["gone"]["x"].insert_one({})
    client["gone"].command("create", "v", viewOn="x", pipeline=[])
    client.drop_database("gone")
    client.drop_database("views")
    client.drop_database("lost")
    client["had_views"].command("create", "again", viewOn="x", pipeline=[])
    shop["nocase"].delete_one({"_id": "AB"})
    shop["nocase"].update_one({"_id": "cd"}, {"$set": {"x": 1}})
    shop["clustered"].update_one({"_id": 3}, {"$set": {"x": 1}})
    shop["clustered"].delete_one({"_id": 9})
    shop["images"].update_one({"_id": 1}, {"$set": {"x": 1}})
    shop["plain"].find_one_and_update({"number": 7}, {"$unset": {"text": ""}})
    with client.start_session() as session, session.start_transaction():
        shop["made inside"].insert_one({"_id": 1}, session=session)
        shop["plain"].delete_one({"number": 8}, session=session)
    shop["large"].insert_one({"_id": 1, "data": bytes(16 * 1024 * 1024 - len(bson.encode({"_id": 1, "data": b""})))})
    with client.start_session() as session, session.start_transaction():  # over 16 MiB: several entries
        for number in range(25):
            shop["large"].insert_one({"_id": 100 + number, "data": "x" * 700_000}, session=session)
        shop["images"].insert_one({"_id": "with the large ones"}, session=session)
    shop.command("dropUser", "ann")
    shop.command("createUser", "bea", pwd="pw bea", roles=["reader"])
    shop.command("createRole", "short", privileges=[], roles=[])
    shop.command("grantRolesToUser", "bea", roles=["short"])
    shop.command("dropRole", "short")
    shop.command("updateUser", "bea", pwd="pw bea two")
    client["admin"].command("updateUser", "boss", pwd="pw boss two")
    client["admin"].command("updateUser", "keeper", customData={"seen": 1})


class Story:
    """One source, written to while it was recorded in two runs, and what it held at some times."""

    def __init__(self, source: MongoServer) -> None:
        keeper = source.target("keeper")
        with source.client() as client:
            fill(client)
            prepare(client)
            for name in ("had_views", "lost"):
                client[name]["x"].insert_one({})
                client[name].command("create", "v", viewOn="x", pipeline=[])
                client[name].drop_collection("v")
            self.first = captured(keeper)
            since = mark_of(self.first)
            self.sink = Recording(since)
            with Writers(source), ThreadPoolExecutor(1) as aside:
                first = aside.submit(record, keeper, since, self.sink, time.time() + 2.5)
                time.sleep(0.5)
                self.second = captured(keeper)
                first.result()
                self.resumed_at = self.sink.marks[-1][0]
                time.sleep(1.1)
                self.until = time.time() + 1.5
                record(keeper, self.resumed_at, self.sink, self.until)
            self.middle = self._middle(client)
            reshape(client)
            record(keeper, self.sink.marks[-1][0], self.sink, time.time())
            self.final = without_standing_users(description(client), STANDING)

    def _middle(self, client: MongoClient[Any]) -> dict[Mark, dict[str, Any]]:
        """What the source itself held at the marks, by its own snapshots."""
        names = ("left", "right", "counter", "journal", "various", "system.buckets.series")
        return {mark: {name: as_of(client, "bank", name, moment(mark)) for name in names} for mark, _ in self.sink.marks}


@pytest.fixture(scope="module")
def other() -> Iterator[MongoServer]:
    """The target, and a user who may replay in it."""
    server = shared(1)
    server.wipe()
    allow_replay(server)
    yield server
    server.wipe()


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    server = shared(0)
    server.wipe()
    yield Story(server)
    server.wipe()


def replayer(server: MongoServer) -> Target:
    return server.target(REPLAYER, PASSWORD)


def test_marks_come_each_second_in_order_and_a_recording_goes_on_from_the_last(story: Story) -> None:
    """Their times and orders grow, the last of a run is near its end, and two runs leave no gap between them."""
    marks = [mark for mark, _ in story.sink.marks]
    assert len(marks) >= 6
    assert all(one.order <= next_.order and one.at <= next_.at for one, next_ in itertools.pairwise(marks))
    assert all(one.at < next_.at + 0.001 and next_.at - one.at < 2.2 for one, next_ in itertools.pairwise(marks[:-2]))
    assert max(mark.at for mark in story.middle) == pytest.approx(story.until, abs=1.0)
    entries = bson.decode_all(bytes(story.sink.data))
    times = [entry["ts"] for entry in entries]
    assert times == sorted(set(times))
    with shared(0).client() as client:
        window = {"ts": {"$gt": moment(story.sink.begin), "$lte": times[-1]}}
        assert len(times) == client["local"]["oplog.rs"].count_documents(window)
    for mark, size in story.sink.marks:
        before = [entry["ts"] for entry in bson.decode_all(bytes(story.sink.data[:size]))]
        assert (before or [moment(story.sink.begin)])[-1] == moment(mark)
        if mark.at == int(mark.at):
            assert all(one.time < mark.at for one in before)
            assert all(one.time >= mark.at for one in times[len(before) :])


def test_a_second_in_which_something_was_written_has_a_mark_at_its_end() -> None:
    """However long nothing follows it: a moment in the silence holds what was written before."""
    with shared(0).client() as client:
        client.app.notes.insert_one({"_id": 1})
        since = mark_of(captured(shared(0).target("keeper")))
        client.app.notes.insert_one({"_id": 2})
        time.sleep(3.2)
        client.app.notes.insert_one({"_id": 3})
        sink = Recording(since)
        record(shared(0).target("keeper"), since, sink, time.time() + 1.2)
        client.drop_database("app")
    entries = [one for one in bson.decode_all(bytes(sink.data)) if one["ns"] == "app.notes"]
    written, next_ = (one["ts"].time for one in entries)
    assert next_ - written > 2
    (size,) = [size for mark, size in sink.marks if mark.at == written + 1]
    assert [one["o"]["_id"] for one in bson.decode_all(bytes(sink.data[:size])) if one["ns"] == "app.notes"] == [2]


def test_a_restore_to_the_end_equals_the_source(story: Story, other: MongoServer) -> None:
    """Options, indexes, hashes, order, users and roles: from the first backup, through all that was written since."""
    other.wipe()  # of `admin` a restore only adds what is missing
    allow_replay(other)
    with other.client() as client:
        client["intruder"]["x"].insert_one({})
        summary = restored_to(replayer(other), story.first, story.sink.log(mark_of(story.first)))
        found = without_standing_users(description(client), STANDING)
        found["roles"] = [role for role in found["roles"] if role["_id"] != "admin.strongroomReplay"]
        assert found.keys() == story.final.keys()
        for name, expected in story.final.items():
            assert found[name] == expected, name
        assert not [name for name in client["admin"].list_collection_names() if "temp" in name or "strongroom" in name]
        assert client["admin"]["system.users"].find_one({"_id": "admin.keeper"}, {"customData": 1}).keys() == {"_id"}
    with MongoClient[Any](other.address, username="bea", password="pw bea two", authSource="shop") as bea:
        assert bea["shop"].command("connectionStatus")["ok"]
    assert summary.entries > 10


def test_a_restore_to_a_mark_in_between_is_what_the_source_held_then(story: Story, other: MongoServer) -> None:
    """From a backup in the middle of the log, which begins before it; counters and sums agree, documents equal a snapshot."""
    since = mark_of(story.second)
    after = [mark for mark in story.middle if mark.order > since.order]
    with other.client() as client:
        for mark in (after[0], after[-2]):
            restored_to(replayer(other), story.second, story.sink.log(since, mark))
            assert_invariants(client)
            for name, expected in story.middle[mark].items():
                assert by_id(client["bank"][name].find()) == expected, (name, mark)


def test_a_log_without_anything_after_the_backup_changes_nothing_of_it(story: Story, other: MongoServer) -> None:
    """The time wanted is the backup's."""
    since = mark_of(story.first)
    log = MemoryLog(since, since, since, b"")
    with other.client() as client:
        restored_to(replayer(other), story.first, log)
        assert client["shop"]["plain"].count_documents({}) == 3000
        assert "late view" not in client["shop"].list_collection_names()


@contextlib.contextmanager
def untouched(server: MongoServer) -> Iterator[None]:
    """Nothing of the target changes inside the block, but what its own clock writes."""
    with server.client() as client:
        client["kept"]["x"].drop()
        client["kept"]["x"].insert_one({"_id": 1})
        before = description(client)
        yield
        assert description(client) == before


def test_a_user_who_may_not_replay_is_told_which_role_it_takes(story: Story, other: MongoServer) -> None:
    """Before anything is changed."""
    with untouched(other), pytest.raises(EngineDenied, match=r"createRole.*anyAction.*grantRolesToUser\('filler'"):
        restored_to(other.target("filler"), story.first, story.sink.log(mark_of(story.first)))


def _cut(log: MemoryLog) -> None:
    log.data = log.data[:-7]


def _shortened(log: MemoryLog) -> None:
    length = int.from_bytes(log.data[:4], "little")
    size = 0
    while size + length < len(log.data):
        size += length
        length = int.from_bytes(log.data[size : size + 4], "little")
    log.data = log.data[:size]


def _swapped(log: MemoryLog) -> None:
    length = int.from_bytes(log.data[:4], "little")
    log.data = log.data[length:] + log.data[:length]


def _garbled(log: MemoryLog) -> None:
    data = bytearray(log.data)
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    log.data = bytes(data)


def _of_another_backup(log: MemoryLog) -> None:
    log.since = Mark(log.since.stream, log.since.order + 1, log.since.at)


def _of_another_set(log: MemoryLog) -> None:
    log.begin = Mark("rs1/00", log.begin.order, log.begin.at)


def _beginning_late(log: MemoryLog) -> None:
    log.begin = Mark(log.begin.stream, log.since.order + 1, log.begin.at)


def _with_an_unknown_command(log: MemoryLog) -> None:
    strange = {"op": "c", "ns": "d.$cmd", "o": {"frobnicate": 1}, "ts": bson.decode_all(log.data)[-1]["ts"]}
    _shortened(log)
    log.data += bson.encode(strange)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, "ends inside"),
        (_shortened, "ends at another time"),
        (_swapped, "order of their times"),
        (_garbled, "cannot be read"),
        (_of_another_backup, "does not follow the backup"),
        (_of_another_set, "another replica set"),
        (_beginning_late, "does not reach"),
        (_with_an_unknown_command, "frobnicate"),
    ],
)
def test_a_log_that_is_not_whole_is_refused_untouched(
    story: Story, other: MongoServer, damage: Callable[[MemoryLog], None], words: str
) -> None:
    """All of it is read, and translated, before the point of no return."""
    mark = next(mark for mark in story.middle if mark.order > mark_of(story.first).order)
    log = story.sink.log(mark_of(story.first), mark)
    damage(log)
    with other.client() as client:
        client["kept"]["x"].drop()
        client["kept"]["x"].insert_one({"_id": 1})
        with pytest.raises(EngineUnsupported, match=words):
            restored_to(replayer(other), story.first, log)
        assert client["kept"]["x"].count_documents({}) == 1
        assert "strongroom_restore" not in client["admin"].list_collection_names()


def test_an_operation_that_the_target_refuses_breaks_the_restore_without_telling_data(story: Story, other: MongoServer) -> None:
    """An update of a document that is not there: never made up for by an insert."""
    since = mark_of(story.first)
    until = Mark(since.stream, since.order + 1, since.at)
    change = {"$v": 2, "diff": {"u": {"password": "s3cret"}}}
    entry = {"ts": moment(until), "op": "u", "ns": "shop.plain", "o": change, "o2": {"_id": "nobody"}}
    log = MemoryLog(since, since, until, bson.encode(entry))
    with pytest.raises(RestoreBroken, match=r"'u' on shop\.plain") as caught:
        restored_to(replayer(other), story.first, log)
    assert "s3cret" not in str(caught.value)
    assert "a part of what was written after it" in caught.value.target_state
    MongoEngine().recover(replayer(other))


def test_nothing_expires_until_all_is_replayed(story: Story, other: MongoServer) -> None:
    """What the source kept alive later is in the backup with its old date. The switch is as it was after the end, after a
    cancelled restore, and after the recovery of one that died."""
    since = mark_of(story.first)
    until = next(mark for mark in story.middle if mark.order > since.order)
    log = story.sink.log(since, until)
    seen: dict[str, list[bool]] = {}
    cancelled: list[bool] = []
    with other.client() as client:

        def expiring() -> bool:
            return bool(client.admin.command("getParameter", 1, ttlMonitorEnabled=1)["ttlMonitorEnabled"])

        class Watching(QuietControl):
            def progress(self, phase: str, done: int, total: int | None = None) -> None:
                if phase not in self.phases or done == total:
                    seen.setdefault(phase, []).append(expiring())
                    if phase == "log" and cancelled:
                        raise Cancelled
                self.phases[phase] = done

        client.admin.command("setParameter", 1, ttlMonitorEnabled=True)
        try:
            restored_to(replayer(other), story.first, log, Watching())
            assert seen["check log"] == [True]
            assert seen["log"]
            assert not any(seen["log"])
            assert expiring()

            cancelled.append(True)
            with pytest.raises(Cancelled) as caught:
                restored_to(replayer(other), story.first, log, Watching())
            assert "a part of what was written after it" in str(target_state(caught.value))
            assert expiring()
            client.admin["strongroom_restore"].update_one({"_id": "ttlMonitorEnabled"}, {"$set": {"paused": True}}, upsert=True)
            client.admin.command("setParameter", 1, ttlMonitorEnabled=False)
            MongoEngine().recover(replayer(other))
            assert expiring()
            assert "strongroom_restore" not in client["admin"].list_collection_names()
        finally:
            client.admin.command("setParameter", 1, ttlMonitorEnabled=False)


def test_recording_begins_only_where_the_oplog_holds_the_mark(story: Story) -> None:
    """Rolled over, set back, ahead of the server, or of another set: nothing is written, and the words say what to do."""
    held = story.sink.begin
    for since, words in (
        (Mark(held.stream, 1 << 32, held.at), "replSetResizeOplog"),
        (Mark(held.stream, held.order | 0xFFFFFFFF, held.at), "another history"),
        (Mark(held.stream, held.order + (10_000 << 32), held.at), "another history"),
        (Mark("rs0/0011", held.order, held.at), "another history"),
    ):
        sink = Recording(since)
        with pytest.raises(LogGap, match=words):
            record(shared(0).target("keeper"), since, sink, time.time() + 60)
        assert not sink.data
        assert not sink.marks


def test_what_the_job_raises_ends_a_recording_at_once(story: Story) -> None:
    """And what was marked is kept by who holds the sink."""

    def cancel(checks: int) -> None:
        if checks == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        record(shared(0).target("keeper"), story.resumed_at, Recording(story.resumed_at), time.time() + 600, QuietControl(cancel))


def inserts(data: bytes | bytearray) -> int:
    return sum(one["op"] == "i" for one in bson.decode_all(bytes(data)))


def test_what_was_marked_before_the_server_died_is_good_and_recording_goes_on_after(other: MongoServer) -> None:
    """No gap, and no entry twice, between the recording that was cut off and the next one."""
    with running() as server, other.client() as restored:
        keeper = server.target("keeper")
        with server.client(serverSelectionTimeoutMS=100) as client:
            client["d"]["a"].insert_one({"_id": 0})
            kept = captured(keeper)
            since = mark_of(kept)
            sink = Recording(since)
            written = itertools.count(1)

            def write_and_die(_: int) -> None:
                client["d"]["a"].insert_one({"_id": next(written)})
                if sink.marks and inserts(sink.data[: sink.marks[-1][1]]) > 2:
                    server.kill()

            with pytest.raises(EngineUnreachable):
                record(keeper, since, sink, time.time() + 600, QuietControl(write_and_die))
        server.start()
        last, size = sink.marks[-1]
        del sink.data[size:]
        restored_to(replayer(other), kept, sink.log(since))
        found = sorted(one["_id"] for one in restored["d"]["a"].find())
        assert found == list(range(len(found)))
        assert len(found) == 1 + inserts(sink.data)
        with server.client() as client:
            client["d"]["a"].insert_one({"_id": "after"})
            record(keeper, last, sink, time.time())
            restored_to(replayer(other), kept, sink.log(since))
            assert restored["d"].command("dbHash")["collections"] == client["d"].command("dbHash")["collections"]
