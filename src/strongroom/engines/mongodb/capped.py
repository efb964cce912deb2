"""Capped collections at one point in time: the server refuses snapshot reads of them, so the oplog makes up for it.

A rough copy is read shortly before T1 is chosen. What the oplog tells of the collection between the two turns the copy into
its state at T1: deletes (the server logs those of its own overflow too) take away, inserts add in their order, with the
documents that the log holds. Documents that were updated in between are read afterwards, and count only if they were not
changed again by then. The order of insertion is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure

from strongroom.engines.base import Control
from strongroom.engines.mongodb.catalogue import Collection
from strongroom.engines.mongodb.connection import Client, as_timestamp, note_time
from strongroom.engines.mongodb.documents import decode, frames, id_of, in_filter, key_of
from strongroom.engines.mongodb.oplog import OplogTail
from strongroom.engines.mongodb.reading import average_and_size, batch_size, pieces_of, raw_batches

_OVERTAKEN = frozenset({26, 136, 175})


class Unsettled(Exception):
    """The state at the chosen time cannot be read any more: choose a later one."""


@dataclass(frozen=True, slots=True)
class _Rough:
    """A copy read after `time`, each document at a moment of its own."""

    time: int
    uuid: bytes
    path: str


@dataclass(slots=True)
class Events:
    """What the oplog tells of one collection in an interval, folded in its order."""

    changed: set[bytes] = field(default_factory=set)  # keys of all documents that it names
    inserted: dict[bytes, bytes] = field(default_factory=dict)  # alive at the end and inserted in it, in order
    updated: dict[bytes, bytes] = field(default_factory=dict)  # key: raw `_id`; alive at the end, their content unknown

    def fold(self, kind: str, described: bytes) -> None:
        """Takes the next operation: i, u or d, and the document (or for u, d at least its `_id`)."""
        value = id_of(described)
        if value is None:
            raise Unsettled("a document without _id")
        key = key_of(value)
        self.changed.add(key)
        if kind == "i":
            self.inserted[key] = described
        elif kind == "u":
            self.updated[key] = value
        else:
            self.inserted.pop(key, None)
            self.updated.pop(key, None)
        if kind == "i":
            self.updated.pop(key, None)


class CappedReader:
    """Reads capped collections as they were at a time."""

    def __init__(
        self,
        client: Client,
        session: ClientSession,
        tail: OplogTail,
        control: Control,
        new_file: Callable[[], str],
    ) -> None:
        self._client = client
        self._session = session
        self._tail = tail
        self._control = control
        self._new_file = new_file
        self._rough: dict[str, _Rough] = {}

    def prepare(self, collections: Iterable[Collection]) -> None:
        """Reads rough copies; the time wanted must be chosen soon after."""
        self._rough.clear()
        for item in collections:
            time, path = note_time(self._client), self._new_file()
            average, _ = average_and_size(self._client, item.database, item.name)
            try:
                with open(path, "wb") as file:
                    for batch in self._find(item.database, {"find": item.name}, batch_size(average)):
                        file.write(b"".join(batch))
            except OperationFailure as error:
                if error.code not in _OVERTAKEN:
                    raise
                continue
            self._rough[item.namespace] = _Rough(time, item.uuid, path)

    def documents_at(self, item: Collection, time: int) -> Iterator[list[bytes]]:
        """Its documents at the time, in order. Raises Unsettled if that cannot be told."""
        rough = self._rough.get(item.namespace)
        if rough is None or rough.uuid != item.uuid or self._tail.reshapes.reshaped(item.namespace, rough.time, time):
            raise Unsettled(item.namespace)
        events = self._events(item.namespace, rough.time, time)
        contents = self._updated(item, events, time)
        for documents in frames(pieces_of(rough.path)):
            kept = []
            for document in documents:
                key = key_of(id_of(document) or b"\0")
                if key not in events.changed:
                    kept.append(document)
                elif key in events.updated and key not in events.inserted:
                    kept.append(contents[key])
            yield kept
        yield [contents.get(key, document) for key, document in events.inserted.items()]

    def _updated(self, item: Collection, events: Events, time: int) -> dict[bytes, bytes]:
        """The updated documents, read now; they must not have changed since `time`."""
        if not events.updated:
            return {}
        command = {"find": item.name, "filter": in_filter(events.updated.values())}
        found = {}
        for batch in self._find(item.database, command, 1000):
            found.update({key_of(id_of(document) or b"\0"): document for document in batch})
        end = note_time(self._client)
        self._tail.wait_for(end, self._control)
        later = self._events(item.namespace, time, end)
        if set(events.updated) - set(found) or set(events.updated) & later.changed:
            raise Unsettled(item.namespace)
        return found

    def _events(self, namespace: str, after: int, upto: int) -> Events:
        events = Events()
        where = {
            "ts": {"$gt": as_timestamp(after), "$lte": as_timestamp(upto)},
            "$or": [{"ns": namespace}, {"o.applyOps.ns": namespace}],
        }
        for batch in self._find("local", {"find": "oplog.rs", "filter": where}, 1000):
            for entry in map(decode, batch):
                for operation in _operations(entry):
                    if operation["ns"] == namespace and operation["op"] in ("i", "u", "d"):
                        described = operation["o2"] if operation["op"] == "u" else operation["o"]
                        events.fold(operation["op"], bytes(described.raw))
        return events

    def _find(self, database: str, command: dict[str, Any], size: int) -> Iterator[list[bytes]]:
        for batch in raw_batches(self._client, self._session, database, command, size=size):
            self._control.check()
            yield batch


def _operations(entry: RawBSONDocument) -> Iterator[RawBSONDocument]:
    if entry["op"] == "c":
        yield from entry["o"].get("applyOps", [])
    else:
        yield entry
