"""Recording: the entries of the oplog after a mark, as the server's own bytes, until it is time to end.

Only what a majority has acknowledged is read, so nothing that is recorded is ever rolled back. A mark's order is the time of an
entry of the oplog, which the next recording must find there. A mark at second s says that every entry of before s was written;
none lies inside a transaction of several entries.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure

from strongroom.ambient import Ambient
from strongroom.engines.base import Control, EngineError, EngineUnreachable, Target
from strongroom.engines.log import LogGap, LogSink, Mark
from strongroom.engines.mongodb.connection import (
    CURSOR_LOST,
    Client,
    as_number,
    as_timestamp,
    connected,
    history,
    note_time,
    require_source,
)
from strongroom.engines.mongodb.documents import NotBson, decode
from strongroom.engines.mongodb.oplog import POSITION_LOST, earlier_part, entry_at, oldest_time
from strongroom.engines.mongodb.reading import raw_batches

_ZERO = 1 << 30  # the second that orders count from, so that they fit 63 bits until 2072
_WAIT_MS = 500
_BATCH = 2000
_LAST_SECONDS = 5.0  # how long the last entry is waited for

ROLLED_OVER = (
    "the oplog no longer reaches back to where the recording stood: what was written since is not known. Make the oplog larger "
    "(db.adminCommand({replSetResizeOplog: 1, size: <MB>})) and back up again, recording begins anew from there"
)
ANOTHER_HISTORY = (
    "the oplog does not hold the entry at which the recording stood: the replica set has another history now (it was made anew, "
    "or set back to an older state). Back up again, recording begins anew from there"
)


def order_of(time: int) -> int:
    """A cluster time (`as_number`) as a mark's order."""
    return time - (_ZERO << 32)


def time_of(order: int) -> int:
    """Back from `order_of`."""
    return order + (_ZERO << 32)


def mark_of(facts: Mapping[str, Any]) -> Mark | None:
    """See `Recorder`: T1 of the capture. None for captures of releases that did not note the history."""
    stream, at = facts.get("history"), facts.get("consistent_at")
    if not isinstance(stream, str) or not isinstance(at, Mapping):
        return None
    seconds = int(at["seconds"])
    return Mark(stream, order_of((seconds << 32) | int(at["increment"])), float(seconds))


def record(target: Target, since: Mark | None, sink: LogSink, control: Control, until: float, ambient: Ambient) -> None:
    """See `Recorder`. Nothing is spilled: the server keeps what was not read yet, in its oplog."""
    with connected(target) as client:
        stream = history(client, require_source(client))
        if since is None:
            now = note_time(client)
            since = Mark(stream, order_of(now), float(now >> 32))
            sink.mark(since)
        if stream != since.stream:
            raise LogGap(ANOTHER_HISTORY)
        with client.start_session(causal_consistency=False) as session:
            try:
                _Recording(client, session, since, sink, control, ambient).run(until)
            except (NotBson, InvalidBSON) as error:
                raise EngineError(f"MongoDB's answer cannot be read: {error}") from error


class _Recording:
    def __init__(
        self, client: Client, session: ClientSession, since: Mark, sink: LogSink, control: Control, ambient: Ambient
    ) -> None:
        self._client = client
        self._session = session
        self._stream = since.stream
        self._start = time_of(since.order)
        self._sink = sink
        self._control = control
        self._ambient = ambient
        self._last = self._start  # the time of the last entry that was written
        self._wall = 0.0
        self._marked = since.at
        self._found = False  # whether the oplog was seen to hold the entry of the start
        self._inside = False  # a transaction of several entries
        self._written = 0

    def run(self, until: float) -> None:
        """To the end: a note at `until`, and all that lies before it."""
        if note_time(self._client) < self._start:
            raise LogGap(ANOTHER_HISTORY)
        command = {
            "find": "oplog.rs",
            "filter": {"ts": {"$gte": as_timestamp(self._start)}},
            "tailable": True,
            "awaitData": True,
            "noCursorTimeout": True,
            "readConcern": {"level": "majority"},
        }
        end, patience = None, 0.0
        try:
            for batch in raw_batches(self._client, self._session, "local", command, size=_BATCH, more={"maxTimeMS": _WAIT_MS}):
                self._control.check()
                self._take(batch)
                if end is None and self._ambient.now() >= until:
                    end, patience = note_time(self._client), self._ambient.monotonic() + _LAST_SECONDS
                if end is not None and (self._last >= end or self._ambient.monotonic() > patience):
                    self._mark_end()
                    return
        except OperationFailure as error:
            if error.code == POSITION_LOST:
                raise LogGap(ROLLED_OVER) from error
            if error.code == CURSOR_LOST:
                raise EngineUnreachable("MongoDB gave up the cursor on its oplog") from error
            raise
        raise LogGap(ROLLED_OVER)

    def _take(self, batch: list[bytes]) -> None:
        entries = list(map(decode, batch))
        if not self._found and entries:
            self._require_start(entries.pop(0))
        if self._last == self._start and entries:
            self._write(self._earlier_parts(entries[0]))
        run: list[RawBSONDocument] = []
        for entry in entries:
            time = as_number(entry["ts"])
            if time >> 32 > self._last >> 32:
                self._write(run)
                run = []
                over = (self._last >> 32) + 1
                self._mark(float(over))
                if time >> 32 > over:  # nothing came between
                    self._mark(float(time >> 32))
            run.append(entry)
            self._last = time
            self._inside = entry["op"] == "c" and bool(entry["o"].get("partialTxn"))
        self._write(run)
        if entries:
            self._wall = _seconds(entries[-1].get("wall"))

    def _write(self, entries: list[RawBSONDocument]) -> None:
        if entries:
            data = b"".join(entry.raw for entry in entries)
            self._sink.write(data)
            self._written += len(data)
            self._control.progress("log", self._written)

    def _mark(self, at: float) -> None:
        if not self._inside and at >= self._marked:
            self._sink.mark(Mark(self._stream, order_of(self._last), at))
            self._marked = at

    def _mark_end(self) -> None:
        """The source stood there at some time of the last entry's second, which the entry tells in milliseconds."""
        second = self._last >> 32
        if self._found:
            self._mark(max(min(max(self._wall, float(second)), second + 0.999), self._marked))

    def _require_start(self, first: RawBSONDocument) -> None:
        if as_number(first["ts"]) != self._start:
            oldest = oldest_time(self._client, self._session)
            raise LogGap(ROLLED_OVER if oldest is None or oldest > self._start else ANOTHER_HISTORY)
        self._found = True

    def _earlier_parts(self, entry: RawBSONDocument) -> list[RawBSONDocument]:
        """The parts up to the start of a transaction that the start lies inside of: it took effect after it."""
        parts: list[RawBSONDocument] = []
        earlier = earlier_part(entry)
        while 0 < earlier <= self._start:
            part = entry_at(self._client, self._session, as_timestamp(earlier))
            if part is None:
                raise LogGap(ROLLED_OVER)
            if not part["o"].get("partialTxn"):
                break
            parts.insert(0, part)
            earlier = earlier_part(part)
        return parts


def _seconds(wall: Any) -> float:
    return wall.replace(tzinfo=datetime.UTC).timestamp() if isinstance(wall, datetime.datetime) else 0.0
