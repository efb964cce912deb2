"""What the oplog tells: which documents changed, which collections were made, dropped or renamed, which catalogues changed.

Entries are only read for *what* they touch, never applied: the state itself is read from the collections afterwards. So
naming too much (an aborted transaction's documents) costs a read and is never wrong; naming too little would be.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure

from strongroom.engines.base import CaptureBroken, Control, EngineError, EngineUnsupported
from strongroom.engines.mongodb.connection import Client, as_number, as_timestamp, translated
from strongroom.engines.mongodb.documents import UNDEFINED, decode, id_of, key_of
from strongroom.engines.mongodb.names import split_namespace
from strongroom.engines.mongodb.reading import raw_batches
from strongroom.engines.mongodb.touched import TouchedIds

POSITION_LOST = 136
_WAIT_MS = 200
_BATCH = 2000

ROLLED_OVER = (
    "the oplog rolled over while the capture ran: what changed at its beginning is no longer known. Make the oplog larger "
    "(db.adminCommand({replSetResizeOplog: 1, size: <MB>})) or capture when there are fewer writes"
)

SHARDED = "the oplog holds a prepared transaction: sharded clusters are not supported"


@dataclass(frozen=True, slots=True)
class Touched:
    """A document was inserted, changed or deleted; `value` is its `_id` as type byte and value."""

    namespace: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Reshaped:
    """A collection was made, dropped, renamed or emptied: what was read of it before says nothing. "db." means all of db."""

    namespace: str


@dataclass(frozen=True, slots=True)
class Relisted:
    """A collection's options or indexes, or a view, changed."""

    namespace: str


Change = Touched | Reshaped | Relisted

_RESHAPING = frozenset({"create", "drop", "convertToCapped", "emptycapped"})
_RELISTING = frozenset(
    {
        "collMod",
        "createIndexes",
        "startIndexBuild",
        "commitIndexBuild",
        "abortIndexBuild",
        "dropIndexes",
        "dropIndex",
        "deleteIndexes",
        "deleteIndex",
    }
)
_HARMLESS = frozenset({"abortTransaction", "dbCheck"})


def changes(entry: Mapping[str, Any]) -> Iterator[Change]:
    """What one entry touches. `o` and `o2` are raw. Raises EngineUnsupported for what this adapter does not know."""
    kind = entry["op"]
    if kind == "n":
        return
    namespace = str(entry["ns"])
    database, collection = split_namespace(namespace)
    if kind == "c":
        yield from _command_changes(database, entry["o"])
    elif kind in ("i", "u", "d"):
        if database in ("local", "config"):
            return
        if collection == "system.views":
            yield Relisted(namespace)
            return
        described = entry["o2"] if kind == "u" else entry["o"]
        value = id_of(bytes(described.raw))
        if value is None or value[0] == UNDEFINED:  # cannot be asked for by its _id
            yield Reshaped(namespace)
        else:
            yield Touched(namespace, value)
    else:
        raise EngineUnsupported(f"the oplog holds an operation of the unknown kind {kind!r}")


def _command_changes(database: str, command: RawBSONDocument) -> Iterator[Change]:
    name = next(iter(command))
    if name == "applyOps":
        if command.get("prepare"):
            raise EngineUnsupported(SHARDED)
        for inner in command["applyOps"]:
            yield from changes(inner)
    elif name == "renameCollection":
        yield Reshaped(str(command[name]))
        yield Reshaped(str(command["to"]))
    elif name == "dropDatabase":
        yield Reshaped(f"{database}.")
    elif name in _RESHAPING:
        yield Reshaped(f"{database}.{command[name]}")
    elif name in _RELISTING:
        yield Relisted(f"{database}.{command[name]}")
    elif name == "commitTransaction":
        raise EngineUnsupported(SHARDED)
    elif name not in _HARMLESS:
        raise EngineUnsupported(f"the oplog holds the unknown command {name!r}")


def earlier_part(entry: Mapping[str, Any]) -> int:
    """The time of the entry before this one in a transaction that fills several; 0 if there is none."""
    if entry["op"] != "c" or "prevOpTime" not in entry or next(iter(entry["o"])) != "applyOps":
        return 0
    return as_number(entry["prevOpTime"]["ts"])


def entry_at(client: Client, session: ClientSession, time: Timestamp) -> RawBSONDocument | None:
    """The entry of exactly this time; None if the oplog has none."""
    command = {"find": "oplog.rs", "filter": {"ts": time}, "limit": 1}
    for batch in raw_batches(client, session, "local", command):
        if batch:
            return decode(batch[0])
    return None


def oldest_time(client: Client, session: ClientSession) -> int | None:
    """The time of the oldest entry; None if there is none."""
    command = {"find": "oplog.rs", "sort": {"$natural": 1}, "limit": 1, "projection": {"ts": 1}}
    oldest = client.local.command(command, session=session)["cursor"]["firstBatch"]
    return as_number(oldest[0]["ts"]) if oldest else None


class Reshapes:
    """When collections were reshaped and relisted. Written by the tail, read by the capture; both under a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reshaped: defaultdict[str, list[int]] = defaultdict(list)
        self._relisted: dict[str, int] = {}

    def add(self, change: Reshaped | Relisted, time: int) -> None:
        """Notes one change at a time; times come in order."""
        with self._lock:
            self._relisted[change.namespace] = time
            if isinstance(change, Reshaped):
                self._reshaped[change.namespace].append(time)

    def reshaped(self, namespace: str, after: int, upto: int | None = None) -> bool:
        """Whether the collection was reshaped in (after, upto], or after `after` at all as far as is noted."""
        database, _ = split_namespace(namespace)
        last = upto if upto is not None else 1 << 64
        with self._lock:
            return any(after < time <= last for name in (namespace, f"{database}.") for time in self._reshaped.get(name, ()))

    def relisted(self, namespace: str, after: int) -> bool:
        """Whether the collection's options, indexes or existence changed later than `after`."""
        database, _ = split_namespace(namespace)
        with self._lock:
            return any(self._relisted.get(name, 0) > after for name in (namespace, f"{database}."))

    def databases(self) -> dict[str, int]:
        """The databases in which anything was relisted, with the time of the last."""
        latest: dict[str, int] = {}
        with self._lock:
            for namespace, time in self._relisted.items():
                database, _ = split_namespace(namespace)
                latest[database] = max(latest.get(database, 0), time)
        return latest


# Of what a document was before or after, only its _id is needed: entries of large documents stay small on the way.
_PROJECTION = {
    "ts": 1,
    "op": 1,
    "ns": 1,
    "o2": 1,
    "prevOpTime": 1,
    "o": {"$cond": [{"$eq": ["$op", "c"]}, "$o", {"_id": "$o._id"}]},
}


class OplogTail:
    """Follows the oplog from a time on in a thread of its own, into `touched` and `reshapes`."""

    def __init__(self, client: Client, start: int, touched: TouchedIds) -> None:
        self.reshapes = Reshapes()
        self._client = client
        self._start = start
        self._touched = touched
        self._reached = -1  # nothing is noted before the oplog is known to reach back to the start
        self._failure: EngineError | None = None
        self._stopping = False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="mongodb-oplog-tail", daemon=True)

    def __enter__(self) -> OplogTail:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()

    def check(self) -> None:
        """Raises what ended the tail, if anything did."""
        with self._moved:
            if self._failure is not None:
                raise self._failure

    def wait_for(self, time: int, control: Control) -> None:
        """Returns when everything up to and including this time is noted."""
        while True:
            control.check()
            self.check()
            with self._moved:
                if self._reached >= time or (self._failure is None and self._moved.wait(0.2) and self._reached >= time):
                    return

    def _run(self) -> None:
        try:
            with translated(), self._client.start_session(causal_consistency=False) as session:
                self._follow(session)
        except EngineError as error:
            with self._moved:
                self._failure = error
                self._moved.notify_all()

    def _follow(self, session: ClientSession) -> None:
        command = {
            "find": "oplog.rs",
            "filter": {"ts": {"$gte": as_timestamp(self._start)}},
            "projection": _PROJECTION,
            "tailable": True,
            "awaitData": True,
            "noCursorTimeout": True,
        }
        first = True
        try:
            for batch in raw_batches(self._client, session, "local", command, size=_BATCH, more={"maxTimeMS": _WAIT_MS}):
                if first:
                    self._require_start(session)
                    first = False
                self._take(session, batch)
                if self._stopping:
                    return
        except OperationFailure as error:
            if error.code == POSITION_LOST:
                raise CaptureBroken(ROLLED_OVER) from error
            raise
        raise CaptureBroken(ROLLED_OVER)

    def _require_start(self, session: ClientSession) -> None:
        """The oplog loses its oldest entries only: if an entry at or before the start is there, nothing since is missing."""
        oldest = oldest_time(self._client, session)
        if oldest is None or oldest > self._start:
            raise CaptureBroken(ROLLED_OVER)

    def _take(self, session: ClientSession, batch: list[bytes]) -> None:
        rows: dict[tuple[str, bytes], tuple[str, bytes, bytes, int]] = {}
        reached = max(self._reached, self._start)
        for document in batch:
            entry = decode(document)
            time = as_number(entry["ts"])
            if time <= self._start:
                continue
            for part in self._with_earlier_parts(session, entry):
                self._note(changes(part), time, rows)
            reached = time
        if rows:
            self._touched.add(rows.values())
        if reached > self._reached:
            with self._moved:
                self._reached = reached
                self._moved.notify_all()

    def _note(self, found: Iterable[Change], time: int, rows: dict[tuple[str, bytes], tuple[str, bytes, bytes, int]]) -> None:
        for change in found:
            if isinstance(change, Touched):
                key = key_of(change.value)
                rows[change.namespace, key] = change.namespace, key, change.value, time
            else:
                self.reshapes.add(change, time)

    def _with_earlier_parts(self, session: ClientSession, entry: RawBSONDocument) -> Iterator[RawBSONDocument]:
        """The entry, and the parts of its transaction that lie at or before the start: they took effect with the last."""
        yield entry
        earlier = earlier_part(entry)
        while 0 < earlier <= self._start:
            part = self._entry_at(session, as_timestamp(earlier))
            if not part["o"].get("partialTxn"):
                return
            yield part
            earlier = earlier_part(part)

    def _entry_at(self, session: ClientSession, time: Timestamp) -> RawBSONDocument:
        found = entry_at(self._client, session, time)
        if found is None:
            raise CaptureBroken(ROLLED_OVER)
        return found
