"""What every store does with the bytes it is given and asked for."""

from __future__ import annotations

from collections.abc import Sequence


def pieces_of(data: bytes | memoryview | Sequence[bytes | memoryview]) -> list[memoryview]:
    """The pieces as flat views of bytes, the empty ones left out. Copies nothing."""
    given = [data] if isinstance(data, (bytes, bytearray, memoryview)) else data
    return [memoryview(piece).cast("B") for piece in given if memoryview(piece).nbytes]


def size_of(pieces: Sequence[memoryview]) -> int:
    """Bytes in all pieces."""
    return sum(piece.nbytes for piece in pieces)


def span(size: int, start: int, length: int | None) -> tuple[int, int]:
    """The first byte and the end of what `get(name, start, length)` gives of an object of `size` bytes."""
    if length is not None and length < 0:
        raise ValueError(f"a length cannot be negative: {length}")
    first = max(size + start, 0) if start < 0 else min(start, size)
    return first, size if length is None else min(first + length, size)
