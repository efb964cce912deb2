"""Recordings and logs in memory, for tests of engines alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from strongroom.engines.log import Mark


@dataclass
class Recording:
    """A LogSink that keeps everything."""

    begin: Mark
    data: bytearray = field(default_factory=bytearray)
    marks: list[tuple[Mark, int]] = field(default_factory=list)  # with the bytes up to each

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See LogSink."""
        self.data += data

    def mark(self, mark: Mark) -> None:
        """See LogSink."""
        self.marks.append((mark, len(self.data)))

    def log(self, since: Mark, until: Mark | None = None) -> MemoryLog:
        """What was recorded up to a mark, by default to the last."""
        last, size = self.marks[-1] if until is None else next(one for one in self.marks if one[0] == until)
        return MemoryLog(self.begin, since, last, bytes(self.data[:size]))


@dataclass
class MemoryLog:
    """A Log, handed out in small uneven pieces."""

    begin: Mark
    since: Mark
    until: Mark
    data: bytes
    piece: int = 1013

    def read(self) -> Iterator[bytes]:
        """See Log."""
        for start in range(0, len(self.data), self.piece):
            yield self.data[start : start + self.piece]
