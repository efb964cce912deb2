"""Content-defined cutting: a change moves the cuts near it and no others, whatever the length of the pieces that come in."""

from __future__ import annotations

from pyfastcdc import FastCDC

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

SMALLEST_AVERAGE, LARGEST_AVERAGE = 4 * KIB, MIB
_BLOCK = 2 * MIB


def choose_chunk_average(size_bytes: int, records: bool) -> int:
    """Bytes: for a lineage whose first backup has about this size. Kept for the lineage's life: another average shares nothing.

    Small chunks make scattered changes cheap and cost an index entry each; these steps keep a part at or below some 32 M chunks
    up to 2 TiB. Files that never change die whole, so that large chunks lose nothing there.
    """
    if not records:
        return MIB
    if size_bytes <= 32 * GIB:
        return 4 * KIB
    return 16 * KIB if size_bytes <= 512 * GIB else 64 * KIB


def choose_pack_target(size_bytes: int) -> int:
    """Sealed bytes at which a pack is full: fewer objects and rows for lineages that are large."""
    return 16 * MIB if size_bytes <= 512 * GIB else 64 * MIB


class Cutter:
    """Cuts one stream. Not for several threads at once.

    Chunks are at least a quarter and at most eight times the average, but for the last one of a stream, which may be smaller.
    (The algorithm's own average is a quarter larger than the one named.)
    """

    def __init__(self, average: int) -> None:
        self._cdc = FastCDC(average, min_size=average // 4, max_size=average * 8, normalized_chunking=1, seed=0)
        self._pending = bytearray()
        self._enough = self._step = max(_BLOCK, 2 * average)

    def feed(self, data: bytes | bytearray | memoryview) -> tuple[memoryview, list[int]] | None:
        """Takes the next bytes; gives (buffer, lengths of the chunks that lie in it one after the other) once there is enough.

        The buffer belongs to the caller.
        """
        self._pending += data
        if len(self._pending) < self._enough:
            return None
        return self._cut(final=False)

    def finish(self) -> tuple[memoryview, list[int]] | None:
        """The stream has ended: the rest, if there is any. The cutter is ready for the next stream."""
        return self._cut(final=True) if self._pending else None

    def _cut(self, final: bool) -> tuple[memoryview, list[int]] | None:
        lengths = [chunk.length for chunk in self._cdc.cut_buf(self._pending)]
        if not final:
            lengths.pop()  # where the buffer ends is no cut
        if not lengths:
            self._enough += self._step
            return None
        size = sum(lengths)
        buffer = memoryview(self._pending)[:size]
        self._pending = bytearray(memoryview(self._pending)[size:])
        self._enough = self._step
        return buffer, lengths
