"""The capture: a loose dump in natural order beside running writers, then a patch that makes it exact at one time T1.

Order of events: T0 is a time before which nothing can change any more; the tail notes every change after T0; every
collection is read, unhurried and without a snapshot; T1 is chosen so that the catalogue just listed is the one of T1; the
documents that changed in (T0, T1], and whole the collections that were made, dropped or renamed in it, are read as they
were at T1. The dump less the changed documents plus the patch is the state at T1. What did not change is byte-identical
between captures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure

from strongroom.engines.base import CaptureBroken, CaptureSink, Control, Summary, Target
from strongroom.engines.mongodb.capped import Unsettled
from strongroom.engines.mongodb.catalogue import Catalogue, Collection, packed
from strongroom.engines.mongodb.connection import (
    Client,
    Server,
    connected,
    history,
    inspect,
    note_time,
    require_source,
    snapshot_time,
)
from strongroom.engines.mongodb.documents import NotBson, id_document
from strongroom.engines.mongodb.names import CATALOG, DATA, PATCH, ROLES, TOUCHED, USERS, entry_name
from strongroom.engines.mongodb.oplog import OplogTail
from strongroom.engines.mongodb.patch import Patch, PatchReader
from strongroom.engines.mongodb.reading import average_and_size, batch_size, raw_batches
from strongroom.engines.mongodb.touched import TouchedIds

SETTLING_ATTEMPTS = 30
LISTING_ATTEMPTS = 300

# Ends of a cursor that mean "dropped, renamed or overrun while it was read": the patch will hold the whole collection.
_OVERTAKEN = frozenset({26, 136, 175})


@dataclass(frozen=True, slots=True)
class _Dumped:
    """What of a collection was dumped: which one it was, and whether its cursor came to its end."""

    uuid: bytes
    finished: bool


def capture(target: Target, sink: CaptureSink, control: Control, scratch: str) -> Summary:
    """See `Engine.capture`."""
    with connected(target) as client:
        server = require_source(client)
        start = snapshot_time(client)
        touched = TouchedIds(os.path.join(scratch, "touched"))
        try:
            with (
                OplogTail(client, start, touched) as tail,
                client.start_session(causal_consistency=False) as session,
            ):
                tail.wait_for(start, control)
                run = _Capture(client, session, tail, touched, sink, control, scratch, start)
                return run.run(server)
        except NotBson as error:
            raise CaptureBroken(f"MongoDB's answer cannot be read: {error}") from error
        finally:
            touched.close()


class _Capture:
    def __init__(
        self,
        client: Client,
        session: ClientSession,
        tail: OplogTail,
        touched: TouchedIds,
        sink: CaptureSink,
        control: Control,
        scratch: str,
        start: int,
    ) -> None:
        self._client = client
        self._session = session
        self._tail = tail
        self._touched = touched
        self._sink = sink
        self._control = control
        self._start = start
        self._catalogue = Catalogue(client, session, tail.reshapes)
        self._patches = PatchReader(client, session, tail, touched, scratch, control)
        self._dumped: dict[str, _Dumped] = {}
        self._entries = 0
        self._bytes = 0

    def run(self, server: Server) -> Summary:
        self._catalogue.begin(self._start, self._control)
        documents = self._dump_all()
        time, collections, patches, accounts = self._settle()
        for patch in patches:
            self._write_patch(patch)
        for name, account in ((USERS, "system.users"), (ROLES, "system.roles")):
            self._write(name, accounts[account].pieces(), {"documents": accounts[account].documents})
        self._write(CATALOG, packed(collections), {"collections": len(collections)})
        self._require_same_primary(server)
        facts = {
            "version": server.version,
            "feature_version": server.feature_version,
            "history": history(self._client, server),
            "consistent_at": {"seconds": time >> 32, "increment": time & 0xFFFFFFFF},
            "collections": len(collections),
            "documents_read": documents,
            "documents_patched": sum(patch.documents for patch in patches),
        }
        return Summary(self._entries, self._bytes, facts, sorted(self._catalogue.warnings))

    def _dump_all(self) -> int:
        plan = [item for item in self._catalogue.collections() if item.has_documents]
        sizes = {}
        for item in plan:
            self._control.check()
            sizes[item.namespace] = average_and_size(self._client, item.database, item.stored_as)
        total = sum(size for _, size in sizes.values())
        return sum(self._dump(item, sizes[item.namespace][0], total) for item in plan)

    def _dump(self, item: Collection, average: int, total: int) -> int:
        documents, finished = 0, True
        command = {"find": item.stored_as, "noCursorTimeout": True}
        with self._sink.entry(entry_name(DATA, item.database, item.stored_as)) as writer:
            try:
                for batch in raw_batches(self._client, self._session, item.database, command, size=batch_size(average)):
                    self._control.check()
                    self._tail.check()
                    data = b"".join(batch)
                    writer.write(data)
                    documents += len(batch)
                    self._bytes += len(data)
                    self._control.progress("data", self._bytes, max(total, self._bytes))
            except OperationFailure as error:
                if error.code not in _OVERTAKEN:
                    raise
                finished = False
            writer.finish({"documents": documents})
        self._entries += 1
        self._dumped[item.namespace] = _Dumped(item.uuid, finished)
        return documents

    def _settle(self) -> tuple[int, list[Collection], list[Patch], Mapping[str, Patch]]:
        """Chooses T1 and reads the patch at it; where something was dropped too early, or there was too much to read, at a
        later one."""
        reason = ""
        for attempt in range(SETTLING_ATTEMPTS):
            time = self._settle_catalogue()
            self._patches.loosen(self._start, self._to_patch(self._catalogue.collections(), time)[0], attempt)
            time = self._settle_catalogue()
            self._patches.prepare(self._to_patch(self._catalogue.collections(), time)[0])
            time = self._settle_catalogue()
            self._touched.freeze()
            collections = self._catalogue.collections()
            whole, changed = self._to_patch(collections, time)
            try:
                patches, accounts = self._patches.exact(self._start, time, whole, changed)
            except Unsettled as error:
                reason = str(error)
                self._touched.thaw()
                continue
            return time, collections, patches, accounts
        raise CaptureBroken(
            f"{reason} could not be read at one point in time: it is dropped, created or renamed all the time, or reading "
            "what changed took longer than the server keeps snapshots (minSnapshotHistoryWindowInSeconds). "
            "Capture when there is less of it"
        )

    def _settle_catalogue(self) -> int:
        """A time at which the catalogue, as we know it, was the server's."""
        for _ in range(LISTING_ATTEMPTS):
            time = note_time(self._client)
            self._tail.wait_for(time, self._control)
            if not self._catalogue.refresh(time, self._control):
                return time
        raise CaptureBroken("collections or indexes are changed faster than they can be listed; capture when there is less of it")

    def _to_patch(self, collections: list[Collection], time: int) -> tuple[list[Collection], list[Collection]]:
        """Which collections are needed whole at `time`, and of which only the changed documents."""
        changed_in = set(self._touched.namespaces())
        whole, changed = [], []
        for item in collections:
            if not item.has_documents:
                continue
            dumped = self._dumped.get(item.namespace)
            altered = item.namespace in changed_in
            if (
                dumped is None
                or not dumped.finished
                or dumped.uuid != item.uuid
                or self._tail.reshapes.reshaped(item.namespace, self._start, time)
                or (item.capped and altered)
            ):
                whole.append(item)
            elif altered:
                changed.append(item)
        return whole, changed

    def _write_patch(self, patch: Patch) -> None:
        facts = {"whole": patch.whole, "documents": patch.documents}
        self._write(entry_name(PATCH, patch.database, patch.collection), patch.pieces(), facts)
        if not patch.whole:
            self._write(entry_name(TOUCHED, patch.database, patch.collection), self._touched_ids(patch), {})

    def _touched_ids(self, patch: Patch) -> Iterator[bytes]:
        beyond = b""
        while page := self._touched.page(f"{patch.database}.{patch.collection}", beyond=beyond):
            beyond = page[-1][0]
            yield b"".join(id_document(value) for _, value in page)

    def _write(self, name: str, pieces: Iterator[bytes], facts: Mapping[str, Any]) -> None:
        with self._sink.entry(name) as writer:
            for piece in pieces:
                self._control.check()
                writer.write(piece)
                self._bytes += len(piece)
            writer.finish(facts)
        self._entries += 1

    def _require_same_primary(self, server: Server) -> None:
        """What a primary told and its successor rolled back must not be kept."""
        self._tail.check()
        if inspect(self._client).identity != server.identity:
            raise CaptureBroken("another primary was elected while the capture ran; capture again")
