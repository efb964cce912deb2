"""A whole instance over the network, the way a replica gets it: exact at the moment when the server forks.

`REPLCONF rdb-only 1` asks for the dump alone: the server then keeps no stream of commands for us, so a slow reader is not
cut off by its output limit. The dump goes to the scratch folder first, because a server that sends from memory closes a
reader that stalls; nothing reaches the sink before the whole dump has passed its end test.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from strongroom.ambient import Ambient
from strongroom.engines.base import (
    CaptureBroken,
    CaptureControl,
    CaptureSink,
    EngineError,
    EngineUnreachable,
    EngineUnsupported,
    Summary,
    Target,
)
from strongroom.engines.redis import rdb
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.sorting import Contents, sort_dump
from strongroom.engines.redis.wire import STREAM_SECONDS, Wire, open_wire, scratch_errors

ENTRY = "rdb"
_PIECE = 1 << 18
_MARK_BYTES = 40
_KNOWN_VALKEY = "9.1.0"  # whose dumps are understood here
_FORK_SECONDS = 120.0  # a server says nothing at all while it forks; afterwards it sends newlines


@dataclass(frozen=True, slots=True)
class Origin:
    """The point in the server's replication history that a dump shows."""

    replid: str
    offset: int
    at: float  # when we heard of it, in seconds since the epoch: all that it shows was written before


def capture(target: Target, sink: CaptureSink, control: CaptureControl, scratch: str, ambient: Ambient) -> Summary:
    """See Engine.capture. One entry, `rdb`: the sorted dump."""
    path = os.path.join(scratch, "original.rdb")
    origin = spool(target, control, path, scratch, ambient)
    try:
        dump = rdb.verify(path, Pace(control, "check", os.path.getsize(path)).advance)
        with sink.entry(ENTRY) as writer:
            paces = (Pace(control, "sort", dump.size), Pace(control, "save", dump.size))
            contents = sort_dump(path, scratch, writer.write, paces)
            facts = facts_of(contents, origin)
            writer.finish(facts)
    finally:
        os.unlink(path)
    warnings = [] if dump.checked else ["The server writes no checksums (rdbchecksum no): damage on the way would go unseen."]
    return Summary(entries=1, bytes=contents.size, facts=facts, warnings=warnings)


def facts_of(contents: Contents, origin: Origin) -> dict[str, Any]:
    """What a person wants to know of a dump."""
    head = contents.head
    return {
        "version": head.get("valkey-ver") or head.get("redis-ver", ""),
        "product": "Valkey" if "valkey-ver" in head else "Redis",
        "rdb_version": contents.version,
        "keys": {str(db): count for db, count in sorted(contents.keys.items())},
        "functions": contents.functions,
        "replid": origin.replid,
        "offset": origin.offset,
        "stream_db": int(head.get("repl-stream-db", "-1")),  # the database that what the server sends next is meant for
        "time": int(head.get("ctime", "0")),  # seconds since the epoch on the server's clock
        "at": origin.at,
        "used_memory": int(head.get("used-mem", "0")),
    }


def announce(wire: Wire) -> None:
    """Says what kind of replica we are; proves the right to REPLCONF and that the server knows rdb-only (6.2).

    `version` comes last, for a server takes what comes before a word that it does not know: only Valkey knows it, which
    otherwise fails at a dump of what came with 9.0.
    """
    try:
        wire.command("REPLCONF", "capa", "eof", "capa", "psync2", "rdb-only", "1", "version", _KNOWN_VALKEY)
    except EngineError as error:
        if "Unrecognized REPLCONF option: version" in str(error):
            return
        if "Unrecognized REPLCONF option" in str(error):
            raise EngineUnsupported("this server is older than Redis 6.2, which is needed for a backup") from error
        raise


def spool(target: Target, control: CaptureControl, path: str, scratch: str, ambient: Ambient) -> Origin:
    """Fetches the dump as it comes into a new file."""
    pace = Pace(control, "read")
    with open_wire(target, ambient, pace.beat) as wire:
        announce(wire)
        origin = _asked(wire, ambient)
        header = _header(wire)
        with scratch_errors(scratch), open(path, "xb") as file:
            try:
                if header.startswith(b"$EOF:"):
                    _copy_to_mark(wire, file, header[5:], pace, control)
                else:
                    _copy(wire, file, int(header[1:]), pace, control)
            except EngineUnreachable as error:
                raise EngineUnreachable(f"{error}, {pace.done} bytes into the dump; nothing of it is kept") from error
    pace.finish()
    return origin


def _asked(wire: Wire, ambient: Ambient) -> Origin:
    answer = wire.command("PSYNC", "?", "-1", patience=_FORK_SECONDS)
    words = answer.split() if isinstance(answer, bytes) else []
    if len(words) != 3 or words[0] != b"FULLRESYNC" or not words[2].isdigit():
        raise EngineUnsupported("the server does not answer PSYNC with a full synchronisation")
    return Origin(words[1].decode("ascii", "replace"), int(words[2]), ambient.now())


def _header(wire: Wire) -> bytes:
    """The line before the dump: `$` and a size, or `$EOF:` and the mark that ends it."""
    header = wire.line(_FORK_SECONDS)
    if header.startswith(b"-"):
        said = header[1:201].decode("utf-8", "replace")
        raise CaptureBroken(f"the server could not make its dump: {said}; see its log (memory for a fork, room on its disk)")
    marked = header.startswith(b"$EOF:") and len(header) == 5 + _MARK_BYTES
    if not marked and not (header[:1] == b"$" and header[1:].isdigit()):
        raise EngineUnsupported("the server announces its dump in an unknown form")
    return header


def _copy(wire: Wire, file: BinaryIO, size: int, pace: Pace, control: CaptureControl) -> None:
    pace.expect(size)
    left = size
    while left:
        piece = wire.read(min(_PIECE, left), STREAM_SECONDS)
        file.write(piece)
        left -= len(piece)
        pace.advance(len(piece))
        control.took(len(piece))


def _copy_to_mark(wire: Wire, file: BinaryIO, mark: bytes, pace: Pace, control: CaptureControl) -> None:
    """Copies until the last bytes are the mark. It counts only at the very end: the server sends nothing after it."""
    tail = b""
    while tail != mark:
        piece = wire.read(_PIECE, STREAM_SECONDS)
        tail += piece
        file.write(tail[:-_MARK_BYTES])
        pace.advance(max(0, len(tail) - _MARK_BYTES))
        tail = tail[-_MARK_BYTES:]
        if tail != mark:  # the server is done with us
            control.took(len(piece))
