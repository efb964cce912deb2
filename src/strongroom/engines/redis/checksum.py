"""CRC64 as Redis writes it at the end of an RDB: the Jones polynomial, reflected, from 0 (check value e9c6d914c4b8d9ca)."""

from __future__ import annotations

import anycrc

_CRC = anycrc.CRC(width=64, poly=0xAD93D23594C935A9, init=0, refin=True, refout=True, xorout=0)


class Crc64:
    """A running checksum: feed it pieces in order, read `value` at any time."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, piece: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes."""
        self.value = _CRC.calc(piece, self.value)

    def footer(self) -> bytes:
        """The eight bytes that end an RDB."""
        return self.value.to_bytes(8, "little")
