"""The way out: the dump as a file that any Redis starts from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from strongroom.engines.base import CaptureBroken, Control, EngineUnsupported, RestoreSource, Summary
from strongroom.engines.exporting import write_file
from strongroom.engines.redis import rdb
from strongroom.engines.redis.capture import ENTRY
from strongroom.engines.redis.pacing import Pace

FILE = "dump.rdb"


def export(source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
    """See Engine.export: one file, `dump.rdb`, read back and proved whole."""
    sizes = {entry.name: entry.size for entry in source.entries()}
    if ENTRY not in sizes:
        raise EngineUnsupported("this backup holds no Redis dump")
    path = folder / FILE
    size = write_file(path, _paced(source.read(ENTRY), Pace(control, "write", sizes[ENTRY])))
    if size != sizes[ENTRY]:
        raise CaptureBroken(f"the dump in this backup has {size} bytes, not {sizes[ENTRY]}")
    dump = rdb.verify(str(path), Pace(control, "check", size).advance)
    told = {"file": FILE, "version": str(facts.get("version", "")), "rdb_version": dump.version, "keys": facts.get("keys", {})}
    return Summary(entries=1, bytes=size, facts=told)


def _paced(pieces: Iterator[bytes], pace: Pace) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        pace.advance(len(piece))
    pace.finish()
