"""The patch: what turns a dump that was read while writers went on into the exact state at one time T1.

For each collection either the whole of it at T1, or its changed documents at T1. Documents that changed before a *loose*
round and not since need no snapshot: their newest state is their state at T1. The same holds for a large collection that was
made or renamed meanwhile: it is copied without a snapshot, and what changed after the copy began comes on top. So only the
last few changes have to be read within the server's snapshot window (five minutes by default), however long the capture ran
and however much of it is new. Each attempt that finds the window too short leaves less to the next.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure

from strongroom.engines.base import Control
from strongroom.engines.mongodb.capped import CappedReader, Unsettled
from strongroom.engines.mongodb.catalogue import Collection
from strongroom.engines.mongodb.connection import Client, note_time
from strongroom.engines.mongodb.documents import frames, id_of, in_filter, key_of
from strongroom.engines.mongodb.names import split_namespace
from strongroom.engines.mongodb.oplog import OplogTail
from strongroom.engines.mongodb.reading import at_time, average_and_size, batch_size, pieces_of, raw_batches
from strongroom.engines.mongodb.touched import TouchedIds

LOOSE_ROUNDS = 4  # at most, for each attempt
EXACT_AT_MOST = 20_000  # changed documents that are left to the snapshot; each attempt halves it
COPY_AT_LEAST = 16 * 1024 * 1024  # bytes of a collection that is copied first; each attempt halves it

_SNAPSHOT_LOST = frozenset({239, 246})  # SnapshotTooOld, SnapshotUnavailable
_GONE = frozenset({26, 175})  # NamespaceNotFound, QueryPlanKilled
_OVERTAKEN = _GONE | {136}  # CappedPositionLost: the collection became another one while it was read


@dataclass(frozen=True, slots=True)
class Patch:
    """What belongs on top of one collection's dump; `whole` means instead of it."""

    database: str
    collection: str  # where the documents are stored
    whole: bool
    documents: int
    path: str

    def pieces(self) -> Iterator[bytes]:
        """The documents, concatenated."""
        return pieces_of(self.path)


@dataclass(slots=True)
class _Loose:
    """One loose round: its time, and where it put the documents of each namespace."""

    time: int
    paths: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Copy:
    """A collection as it was read without a snapshot after `time`."""

    time: int
    uuid: bytes
    path: str


class PatchReader:
    """Reads patches into files in `scratch`."""

    def __init__(
        self,
        client: Client,
        session: ClientSession,
        tail: OplogTail,
        touched: TouchedIds,
        scratch: str,
        control: Control,
    ) -> None:
        self._client = client
        self._session = session
        self._tail = tail
        self._touched = touched
        self._scratch = scratch
        self._control = control
        self._rounds: list[_Loose] = []
        self._copies: dict[str, _Copy] = {}
        self._files = 0
        self._capped = CappedReader(client, session, tail, control, self._new_file)

    def loosen(self, start: int, whole: Sequence[Collection], attempt: int) -> None:
        """Reads without a snapshot, until what is left to it is little: large collections of those that are needed `whole`,
        then what changed after `start` or the round before, again and again. The later the attempt, the less is left."""
        for item in whole:
            if not item.capped and self._copy_of(item) is None:
                _, size = average_and_size(self._client, item.database, item.stored_as)
                if size >= COPY_AT_LEAST >> attempt:
                    self._copy(item)
        for _ in range(LOOSE_ROUNDS):
            if self._touched.count(self._since(start)) <= EXACT_AT_MOST >> attempt:
                return
            self._round(start)

    def _copy(self, item: Collection) -> None:
        time, path = self._noted(), self._new_file()
        average, _ = average_and_size(self._client, item.database, item.stored_as)
        command = {"find": item.stored_as, "noCursorTimeout": True}
        try:
            with open(path, "wb") as file:
                for batch in self._read(item.database, command, batch_size(average)):
                    file.write(b"".join(batch))
        except OperationFailure as error:
            if error.code not in _OVERTAKEN:
                raise
            os.unlink(path)
            return
        former = self._copies.pop(item.namespace, None)
        if former is not None:
            os.unlink(former.path)
        self._copies[item.namespace] = _Copy(time, item.uuid, path)

    def _copy_of(self, item: Collection) -> _Copy | None:
        """The copy of this very collection, unless it was reshaped since."""
        found = self._copies.get(item.namespace)
        if found is None or found.uuid != item.uuid or self._tail.reshapes.reshaped(item.namespace, found.time):
            return None
        return found

    def _round(self, start: int) -> None:
        made = _Loose(self._noted())
        for namespace in self._touched.namespaces(self._since(start)):
            made.paths[namespace] = self._new_file()
            with open(made.paths[namespace], "wb") as file:
                self._read_changed(namespace, self._since(start), None, file)
        self._rounds.append(made)

    def _noted(self) -> int:
        """A time at or after everything acknowledged before the call, and all up to it is noted."""
        time = note_time(self._client)
        self._tail.wait_for(time, self._control)
        return time

    def prepare(self, whole: Sequence[Collection]) -> None:
        """To be called just before the time for `exact` is chosen: capped collections need a copy from before."""
        self._capped.prepare(item for item in whole if item.capped)

    def exact(
        self, start: int, time: int, whole: Sequence[Collection], changed: Sequence[Collection]
    ) -> tuple[list[Patch], dict[str, Patch]]:
        """The patches at this time, and users and roles by the name of their collection; `changed` were dumped from `start` on.

        The touched ids must be frozen. Raises Unsettled, and keeps no file of the attempt, if something was dropped or renamed
        before it was read, or the server gave up the snapshot."""
        before = self._files
        try:
            return self._exact(start, time, whole, changed)
        except Unsettled:
            for number in range(before + 1, self._files + 1):
                os.unlink(self._file(number))
            raise

    def _exact(
        self, start: int, time: int, whole: Sequence[Collection], changed: Sequence[Collection]
    ) -> tuple[list[Patch], dict[str, Patch]]:
        patches, accounts = [], {}
        for collection in whole:
            copy = self._copy_of(collection)
            if collection.capped:
                patches.append(self._spooled(collection, self._capped.documents_at(collection, time)))
            elif copy is not None:
                patches.append(self._completed(collection, copy, time))
            else:
                patches.append(self._whole(collection.database, collection.stored_as, time, {}))
        for name in ("system.users", "system.roles"):
            accounts[name] = self._whole("admin", name, time, {"sort": {"_id": 1}})
        self._require_settled(time, [*whole])
        for collection in changed:
            patches.append(self._changed(collection, start, time))
        self._require_settled(time, [*changed])
        return patches, accounts

    def _since(self, start: int) -> int:
        return self._rounds[-1].time if self._rounds else start

    def _require_settled(self, time: int, collections: Sequence[Collection]) -> None:
        """A snapshot read of what was dropped or renamed after its time is empty, without an error: the oplog must tell."""
        end = self._noted()
        for collection in collections:
            if self._tail.reshapes.reshaped(collection.namespace, time, end):
                raise Unsettled(collection.namespace)

    def _whole(self, database: str, collection: str, time: int, extra: Mapping[str, Any]) -> Patch:
        path, documents = self._new_file(), 0
        average, _ = average_and_size(self._client, database, collection)
        command = {"find": collection, **extra, **at_time(time), "noCursorTimeout": True}
        with open(path, "wb") as file:
            for found in self._find(database, command, batch_size(average)):
                file.write(b"".join(found))
                documents += len(found)
        return Patch(database, collection, True, documents, path)

    def _spooled(self, collection: Collection, batches: Iterator[list[bytes]]) -> Patch:
        path, documents = self._new_file(), 0
        with open(path, "wb") as file:
            for batch in batches:
                file.write(b"".join(batch))
                documents += len(batch)
        return Patch(collection.database, collection.stored_as, True, documents, path)

    def _changed(self, collection: Collection, since: int, time: int) -> Patch:
        path = self._new_file()
        with open(path, "wb") as file:
            documents = self._write_changed(collection.namespace, since, time, file)
        return Patch(collection.database, collection.stored_as, False, documents, path)

    def _completed(self, collection: Collection, copy: _Copy, time: int) -> Patch:
        """The whole of a collection: its copy less what changed since, and that."""
        path = self._new_file()
        with open(path, "wb") as file:
            documents = self._keep(collection.namespace, copy.path, file, upto=copy.time)
            documents += self._write_changed(collection.namespace, copy.time, time, file)
        return Patch(collection.database, collection.stored_as, True, documents, path)

    def _write_changed(self, namespace: str, since: int, time: int, file: BinaryIO) -> int:
        """What changed later than `since` as it was at `time`: from loose rounds what they hold, the rest by snapshot."""
        documents = 0
        for made in self._rounds:
            if made.time > since and namespace in made.paths:
                documents += self._keep(namespace, made.paths[namespace], file, upto=made.time, after=since)
        return documents + self._read_changed(namespace, max(since, self._since(since)), time, file)

    def _keep(self, namespace: str, path: str, file: BinaryIO, *, upto: int, after: int | None = None) -> int:
        """Takes from a file the documents that did not change later than `upto`, and those only that changed later than
        `after`, if that is given."""
        kept = 0
        for documents in frames(pieces_of(path)):
            self._control.check()
            keys = [key_of(id_of(document) or b"\0") for document in documents]
            stale = self._touched.changed_after(namespace, keys, upto)
            wanted = set(keys) if after is None else self._touched.changed_after(namespace, keys, after)
            valid = [document for key, document in zip(keys, documents, strict=True) if key in wanted and key not in stale]
            file.write(b"".join(valid))
            kept += len(valid)
        return kept

    def _read_changed(self, namespace: str, since: int, time: int | None, file: BinaryIO) -> int:
        """Documents changed later than `since`, as they are now or at a time; of those deleted nothing is found."""
        database, collection = split_namespace(namespace)
        beyond, count = b"", 0
        while page := self._touched.page(namespace, since, beyond):
            keys = {key for key, _ in page}
            beyond = page[-1][0]
            command: dict[str, Any] = {"find": collection, "filter": in_filter(value for _, value in page)}
            if time is not None:
                command.update(at_time(time))
            for found in self._find(database, command, 1000, missing=time is None):
                # A collation may find more than was asked for.
                wanted = [document for document in found if key_of(id_of(document) or b"\0") in keys]
                file.write(b"".join(wanted))
                count += len(wanted)
        return count

    def _find(self, database: str, command: Mapping[str, Any], size: int, *, missing: bool = False) -> Iterator[list[bytes]]:
        try:
            yield from self._read(database, command, size)
        except OperationFailure as error:
            if error.code in _GONE and missing:
                return
            if error.code in _SNAPSHOT_LOST | _GONE:
                raise Unsettled(f"{database}.{command['find']}") from error
            raise

    def _read(self, database: str, command: Mapping[str, Any], size: int) -> Iterator[list[bytes]]:
        for batch in raw_batches(self._client, self._session, database, command, size=size):
            self._control.check()
            self._tail.check()
            yield batch

    def _new_file(self) -> str:
        self._files += 1
        return self._file(self._files)

    def _file(self, number: int) -> str:
        return os.path.join(self._scratch, f"patch-{number}")
