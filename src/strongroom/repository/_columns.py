"""Numbers in columns: the most significant bytes of all numbers first, then the next: what is alike lies together and shrinks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]


def to_planes(values: NDArray[Any], width: int) -> bytes:
    """`width` bytes a number."""
    return values.astype(f">u{width}").view(np.uint8).reshape(-1, width).T.tobytes()


def from_planes(data: bytes | memoryview, width: int, count: int) -> NDArray[Any]:
    """What to_planes took, as native numbers. Raises ValueError if the length does not fit."""
    planes = np.frombuffer(data, np.uint8).reshape(width, count)
    return np.ascontiguousarray(planes.T).view(f">u{width}").reshape(count).astype(f"=u{width}")


def deltas(values: U32) -> U32:
    """The first, then each one's difference to the one before it, modulo 2^32."""
    return np.diff(values, prepend=values.dtype.type(0))


def undeltas(values: U32) -> U32:
    """What deltas took."""
    return np.cumsum(values, dtype=np.uint32)
