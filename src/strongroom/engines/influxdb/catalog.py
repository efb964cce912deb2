"""The last entry of a backup, `catalog`: which files make up each shard. Files that it does not name belong to nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from strongroom.engines.base import EngineUnsupported, RestoreSource
from strongroom.engines.influxdb.metastore import Metastore, parse
from strongroom.engines.influxdb.protobuf import NotProtobuf

META = "meta"
CATALOG = "catalog"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class File:
    """A TSM file of a shard."""

    name: str
    size: int
    digest: str  # BLAKE3 of its bytes, in hex


def entry_name(shard: int, file: str) -> str:
    """The entry that holds a file. Shards have one number each in the whole server."""
    return f"shard/{shard}/{file}"


def pack(shards: Mapping[int, Sequence[File]]) -> bytes:
    """The entry's bytes."""
    rows = {str(shard): [[one.name, one.size, one.digest] for one in files] for shard, files in sorted(shards.items())}
    return json.dumps({"format": FORMAT, "shards": rows}, separators=(",", ":")).encode()


def unpack(data: bytes) -> dict[int, list[File]]:
    """Back from `pack`. Raises EngineUnsupported."""
    try:
        told = json.loads(data)
        if told["format"] != FORMAT:
            raise EngineUnsupported(f"the backup's catalog has format {told['format']}, this version reads {FORMAT}")
        shards = {int(shard): [File(str(n), int(s), str(d)) for n, s, d in files] for shard, files in told["shards"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineUnsupported(f"the backup's catalog cannot be read: {error}") from error
    for files in shards.values():
        if any("/" in one.name or not one.name.endswith(".tsm") for one in files):
            raise EngineUnsupported("the backup's catalog names files that no shard has")
    return shards


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds, read from `meta` and `catalog` and compared with its entries."""

    blob: bytes  # the server's metastore message
    metastore: Metastore
    shards: Mapping[int, Sequence[File]]

    def size(self, shard: int) -> int:
        """Bytes of a shard's files."""
        return sum(one.size for one in self.shards.get(shard, ()))


def read_backup(source: RestoreSource) -> Backup:
    """Raises EngineUnsupported if it is no backup of this engine, or lacks a file."""
    sizes = {entry.name: entry.size for entry in source.entries()}
    if META not in sizes or CATALOG not in sizes:
        raise EngineUnsupported("the backup holds no InfluxDB: `meta` and `catalog` are missing")
    blob = _whole(source, META)
    try:
        found = parse(blob)
    except NotProtobuf as error:
        raise EngineUnsupported(f"the backup's metastore cannot be read: {error}") from error
    shards = unpack(_whole(source, CATALOG))
    for shard, files in shards.items():
        for file in files:
            if sizes.get(entry_name(shard, file.name)) != file.size:
                raise EngineUnsupported(f"the backup lacks the file {file.name} of shard {shard}, or it has another size")
    return Backup(blob, found, shards)


def pieces_of(source: RestoreSource, shard: int, file: File) -> Iterator[bytes]:
    """A file's bytes, as many as it must have. Raises EngineUnsupported otherwise."""
    done = 0
    for piece in source.read(entry_name(shard, file.name)):
        done += len(piece)
        if done > file.size:
            break
        yield piece
    if done != file.size:
        raise EngineUnsupported(f"the file {file.name} of shard {shard} has {done} bytes, not {file.size}")


def _whole(source: RestoreSource, name: str) -> bytes:
    return b"".join(source.read(name))
