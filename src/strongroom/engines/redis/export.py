"""The way out: the dump as a file that any Redis starts from; of a cluster one for each shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from strongroom.engines.base import CaptureBroken, Control, RestoreSource, Summary
from strongroom.engines.exporting import write_file
from strongroom.engines.redis import rdb
from strongroom.engines.redis.capture import ENTRY
from strongroom.engines.redis.cluster_capture import PREFIX
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.restore import names_of

FILE = "dump.rdb"


def export(source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
    """See Engine.export: `dump.rdb`, or of a cluster `dump-<first slot>.rdb` for each shard, read back and proved whole."""
    names = names_of(source, facts)
    sizes = {entry.name: entry.size for entry in source.entries()}
    told: dict[str, Any] = {"version": str(facts.get("version", "")), "rdb_version": 0, "keys": facts.get("keys", {})}
    total = 0
    for name in names:
        dump = _exported(source, name, sizes[name], folder / file_of(name), control)
        told["rdb_version"] = max(told["rdb_version"], dump.version)
        total += dump.size
    if names == [ENTRY]:
        told["file"] = FILE
    else:
        told["shards"] = [
            {"file": file_of(f"{PREFIX}{shard['slots'][0][0]:05d}"), "slots": shard["slots"]} for shard in facts.get("shards", [])
        ]
    return Summary(entries=len(names), bytes=total, facts=told)


def file_of(name: str) -> str:
    """The file of an entry."""
    return FILE if name == ENTRY else f"dump-{name.removeprefix(PREFIX)}.rdb"


def _exported(source: RestoreSource, name: str, expected: int, path: Path, control: Control) -> rdb.Dump:
    size = write_file(path, _paced(source.read(name), Pace(control, "write", expected)))
    if size != expected:
        raise CaptureBroken(f"the dump in this backup has {size} bytes, not {expected}")
    return rdb.verify(str(path), Pace(control, "check", size).advance)


def _paced(pieces: Iterator[bytes], pace: Pace) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        pace.advance(len(piece))
    pace.finish()
