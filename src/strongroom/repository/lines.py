"""Rows as lines of JSON, held compressed: what snapshots of the catalog and segments of the audit trail hold.

A line is `[table, {column: value}]`, keys in order, no spaces; bytes are base64. All lines together are one zstd frame.
However many there are, memory holds the compressed bytes and one line.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import zstandard
from blake3 import blake3

from strongroom.repository.errors import Damaged

_LEVEL = 3
_PIECE = 64 << 10

Line = tuple[str, Mapping[str, Any]]


class LineWriter:
    """Takes lines and holds them compressed. `digest` is of the lines that were added with `counts`."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        self._hash = blake3()
        self._pieces: list[bytes] = []
        self._waiting: list[bytes] = []
        self._size = 0

    def add(self, table: str, row: Mapping[str, Any], *, counts: bool = True) -> None:
        """One more line."""
        line = json.dumps([table, row], sort_keys=True, separators=(",", ":")).encode() + b"\n"
        if counts:
            self._hash.update(line)
        self._waiting.append(line)
        self._size += len(line)
        if self._size >= _PIECE:
            self._compress()

    @property
    def digest(self) -> str:
        """BLAKE3 in hex: equal for equal lines."""
        return self._hash.hexdigest()

    def finish(self) -> bytes:
        """The zstd frame; the writer is used up."""
        self._compress()
        return b"".join([*self._pieces, self._zstd.flush()])

    def _compress(self) -> None:
        self._pieces.append(self._zstd.compress(b"".join(self._waiting)))
        self._waiting, self._size = [], 0


def read_lines(packed: bytes, what: str) -> Iterator[Line]:
    """The lines in their order. Raises Damaged; `what` names the object there."""
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed))
    try:
        for line in io.TextIOWrapper(io.BufferedReader(reader, _PIECE), "utf-8", newline="\n"):
            table, row = json.loads(line)
            yield str(table), dict(row)
    except (zstandard.ZstdError, ValueError, TypeError) as error:
        raise Damaged(f"{what} is damaged: its lines cannot be read: {error}", object_name=what) from error


def digest_of(lines: Iterator[Line]) -> str:
    """What LineWriter.digest was for these lines."""
    hashed = blake3()
    for table, row in lines:
        hashed.update(json.dumps([table, row], sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return hashed.hexdigest()
