"""Writers that keep invariants while a capture runs, and independent words on what there was at a time."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import Any

import bson
from bson.timestamp import Timestamp
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from support.mongodb_fakes import Kept
from support.mongodb_server import MongoServer

ACCOUNTS = 200
EACH = 1000


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


def assert_invariants(client: MongoClient[Any]) -> None:
    bank = client["bank"]
    money = [sum(document["money"] for document in bank[name].find()) for name in ("left", "right")]
    assert sum(money) == 2 * ACCOUNTS * EACH
    transfers = bank["counter"].find_one({})
    assert transfers is not None
    assert transfers["n"] > 0
    journal = [document["_id"] for document in bank["journal"].find()]
    assert sorted(journal) == list(range(1, transfers["n"] + 1))
    assert money[1] - ACCOUNTS * EACH == sum(document["amount"] for document in bank["journal"].find())
