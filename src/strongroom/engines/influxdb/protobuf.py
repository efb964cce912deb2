"""The wire form of Protocol Buffers, as far as InfluxDB's metastore uses it: varints and byte strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Value = int | bytes

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class NotProtobuf(ValueError):
    """The bytes are no message."""


def fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """(number, value) in order: varints as unsigned integers, all else as bytes. Raises NotProtobuf."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise NotProtobuf("a field with number 0")
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise NotProtobuf(f"a field of kind {kind}")
        if at + size > len(data):
            raise NotProtobuf("a field beyond the end")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise NotProtobuf("a number beyond the end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7


def message(items: Iterable[tuple[int, Value | str]]) -> bytes:
    """The fields as bytes, in the order given; negative numbers as InfluxDB writes them, in ten bytes."""
    out = bytearray()
    for number, value in items:
        if isinstance(value, int):
            out += _packed(number << 3 | _VARINT) + _packed(value & 0xFFFFFFFFFFFFFFFF)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _packed(number << 3 | _BYTES) + _packed(len(data)) + data
    return bytes(out)


def _packed(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed(value: int) -> int:
    """An int64 that came as a varint."""
    return value - (1 << 64) if value >> 63 else value
