"""Compression in a frame: what is inside everything that is sealed, so that codec and plain length are sealed too.

codec u8 (0 as it is, 1 zstd) │ plain length u32 big-endian │ payload
"""

from __future__ import annotations

import struct

import zstandard

_FRAME = struct.Struct(">BI")
AS_IT_IS, ZSTD = 0, 1
FRAME_BYTES = _FRAME.size

_SAMPLED_FROM = 8 << 10  # bytes; below, a sample costs as much as trying
_SAMPLE = 2 << 10


class FrameError(Exception):
    """The bytes are no frame. Only seen where what was sealed was not made by us; callers turn it into Damaged."""


class Encoder:
    """Frames bytes at a zstd level; level 0 compresses nothing. Not for several threads at once."""

    def __init__(self, level: int) -> None:
        self._zstd = zstandard.ZstdCompressor(level=level) if level else None

    def encode(self, plain: bytes | memoryview) -> bytes:
        """The frame: compressed where that is shorter. Two samples of a larger piece say first whether it is worth trying."""
        size = len(plain)
        if self._zstd is not None and size and (size < _SAMPLED_FROM or self._shrinks(plain)):
            packed = self._zstd.compress(plain)
            if len(packed) < size:
                return _FRAME.pack(ZSTD, size) + packed
        return b"".join((_FRAME.pack(AS_IT_IS, size), plain))

    def _shrinks(self, plain: bytes | memoryview) -> bool:
        assert self._zstd is not None
        quarter = len(plain) // 4
        sample = b"".join((plain[quarter : quarter + _SAMPLE], plain[3 * quarter : 3 * quarter + _SAMPLE]))
        return len(self._zstd.compress(sample)) * 32 < len(sample) * 31


class Decoder:
    """Opens frames. Not for several threads at once."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()

    def decode(self, frame: bytes) -> bytes:
        """The plain bytes. Raises FrameError."""
        if len(frame) < FRAME_BYTES:
            raise FrameError(f"a frame of {len(frame)} bytes")
        codec, size = _FRAME.unpack_from(frame)
        payload = memoryview(frame)[FRAME_BYTES:]
        if codec == AS_IT_IS:
            plain = bytes(payload)
        elif codec == ZSTD:
            plain = self._decompress(payload, size)
        else:
            raise FrameError(f"codec {codec} is unknown")
        if len(plain) != size:
            raise FrameError(f"{len(plain)} bytes where {size} are said to be")
        return plain

    def _decompress(self, payload: memoryview, size: int) -> bytes:
        try:
            if zstandard.frame_content_size(payload[:18]) != size:
                raise FrameError("the compressed frame tells another length")
            return self._zstd.decompress(payload, max_output_size=size)
        except zstandard.ZstdError as error:
            raise FrameError(str(error)) from error
