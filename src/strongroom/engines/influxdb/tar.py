"""The tar of a shard, as the backup port hands it out and takes it.

No error is told by the port: a server that fails or dies just closes the connection. So a tar counts only if it walks to its
end, closes with exactly 1,024 zero bytes, and nothing follows.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

BLOCK = 512
END = bytes(2 * BLOCK)
_PIECE = 1 << 20
_MOST_NAME = 1 << 20  # bytes of a long name's record; more is no name


class CutShort(Exception):
    """The stream ended, or went on, where a whole tar does not."""


class Bytes(Protocol):
    """Where a tar is read from."""

    def read_into(self, buffer: memoryview) -> int:
        """Fills the front of the buffer; how many bytes came, 0 at the end."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar."""

    name: str
    size: int

    @property
    def file(self) -> str:
        """The name inside the shard's folder: `database/policy/shard/` is cut off."""
        return self.name.split("/", 3)[-1]


class ShardTar:
    """Reads a tar once from front to end. `empty` tells after a CutShort whether there was nothing at all."""

    def __init__(self, stream: Bytes) -> None:
        self._stream = stream
        self._head = memoryview(bytearray(BLOCK))
        self._piece = memoryview(bytearray(_PIECE))
        self._left = 0  # bytes of the present file, padding not counted
        self._padding = 0
        self.empty = True

    def members(self) -> Iterator[Member]:
        """The regular files in order; each may be read by `pieces` before the next one. Raises CutShort."""
        long_name: str | None = None
        while True:
            self._skip()
            self._fill(self._head)
            if not any(self._head):
                break
            try:
                info = tarfile.TarInfo.frombuf(bytes(self._head), "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise CutShort(f"a head that cannot be read: {error}") from None
            self._left, self._padding = info.size, -info.size % BLOCK
            if info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
                long_name = _long_name(info.type, self._whole()) or long_name
            elif info.isreg():
                yield Member(long_name or info.name, info.size)
                long_name = None
            else:
                long_name = None
        self._fill(self._head)
        if any(self._head):
            raise CutShort("one block of zeros where two end a tar")
        if self._stream.read_into(self._head) > 0:
            raise CutShort("bytes after the end")

    def pieces(self) -> Iterator[memoryview]:
        """The present file's bytes; each piece is valid until the next one."""
        while self._left:
            got = self._stream.read_into(self._piece[: min(self._left, _PIECE)])
            if got == 0:
                raise CutShort("it ends inside a file")
            self._left -= got
            yield self._piece[:got]

    def _whole(self) -> bytes:
        if self._left > _MOST_NAME:
            raise CutShort("a name that is too long")
        return b"".join(map(bytes, self.pieces()))

    def _skip(self) -> None:
        for _ in self.pieces():
            pass
        if self._padding:
            self._fill(self._head[: self._padding])
            self._padding = 0

    def _fill(self, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            got = self._stream.read_into(buffer[done:])
            if got == 0:
                raise CutShort("it ends without its end mark")
            self.empty = False
            done += got


def _long_name(kind: bytes, data: bytes) -> str | None:
    """Of a record before a file: GNU's long name, or `path` among the pairs of POSIX's."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    name, at = None, 0
    while at < len(data):
        length, space, _ = data[at:].partition(b" ")
        if not space or not length.isdigit() or int(length) <= len(length) + 1:
            raise CutShort("a record of names that cannot be read")
        key, _, value = data[at + len(length) + 1 : at + int(length)].rstrip(b"\n").partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        at += int(length)
    return name


def head(name: str, size: int) -> bytes:
    """What stands before a file of this name; long names get a record of their own."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    """What follows a file of this size up to the next block."""
    return bytes(-size % BLOCK)
