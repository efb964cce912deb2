"""BSON as bytes: cutting streams and replies into documents and comparing `_id` values, without decoding documents.

The sizes of the value types are those of the BSON specification 1.1 (https://bsonspec.org/spec.html).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import bson
from bson.codec_options import CodecOptions
from bson.decimal128 import Decimal128
from bson.raw_bson import RawBSONDocument

RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)

# The server's own limit for what is inside a reply or a command: 16 MiB and 16 KiB of overhead.
LARGEST = 16 * 1024 * 1024 + 16 * 1024
SMALLEST = 5

DOUBLE, STRING, DOCUMENT, ARRAY, UNDEFINED, REGEX, SYMBOL = 0x01, 0x02, 0x03, 0x04, 0x06, 0x0B, 0x0E
INT32, INT64, DECIMAL = 0x10, 0x12, 0x13

_FIXED = {
    DOUBLE: 8,
    UNDEFINED: 0,
    0x07: 12,
    0x08: 1,
    0x09: 8,
    0x0A: 0,
    INT32: 4,
    0x11: 8,
    INT64: 8,
    DECIMAL: 16,
    0xFF: 0,
    0x7F: 0,
}
_PREFIXED = {STRING: 4, DOCUMENT: 0, ARRAY: 0, 0x05: 5, 0x0C: 16, 0x0D: 4, SYMBOL: 4, 0x0F: 0}
_length_at = struct.Struct("<i").unpack_from


class NotBson(ValueError):
    """The bytes are not a sequence of BSON documents."""


def elements(raw: bytes) -> Iterator[tuple[int, bytes, int, int]]:
    """Walks a document's top level: (type, name, start and end of the value)."""
    position, end = 4, len(raw) - 1
    while position < end:
        kind = raw[position]
        name_end = raw.index(b"\0", position + 1)
        start = name_end + 1
        stop = _value_end(kind, raw, start)
        yield kind, raw[position + 1 : name_end], start, stop
        position = stop
    if position != end:
        raise NotBson("a document's elements do not fill its length")


def _value_end(kind: int, raw: bytes, start: int) -> int:
    if kind in _FIXED:
        return start + _FIXED[kind]
    if kind in _PREFIXED:
        return start + int(_length_at(raw, start)[0]) + _PREFIXED[kind]
    if kind == REGEX:
        return raw.index(b"\0", raw.index(b"\0", start) + 1) + 1
    raise NotBson(f"unknown BSON type 0x{kind:02x}")


def split_array(raw: bytes, start: int, end: int) -> list[bytes]:
    """The documents of an array of documents; start and end are those of the array's value.

    The keys of an array are its indexes, so their lengths are known and nothing has to be searched for.
    """
    found = []
    position, end = start + 4, end - 1
    header, limit = 3, 10
    while position < end:
        position += header
        length = _length_at(raw, position)[0]
        found.append(raw[position : position + length])
        position += length
        if len(found) == limit:
            header, limit = header + 1, limit * 10
    if position != end:
        raise NotBson("an array in a reply does not fill its length")
    return found


def frames(pieces: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Cuts a stream of concatenated documents, in pieces of any size, into lists of whole documents.

    Raises NotBson when a length is impossible, a document does not end in NUL, or the stream ends inside one.
    """
    rest = bytearray()
    for piece in pieces:
        rest += piece
        view = bytes(rest) if _complete(rest) else b""
        documents, position = _cut(view)
        if documents:
            yield documents
            del rest[:position]
    if rest:
        raise NotBson("the stream ends inside a document")


def _complete(buffer: bytearray) -> bool:
    if len(buffer) < 4:
        return False
    length = int(_length_at(buffer, 0)[0])
    if not SMALLEST <= length <= LARGEST:
        raise NotBson(f"a document of {length} bytes cannot be")
    return len(buffer) >= length


def _cut(view: bytes) -> tuple[list[bytes], int]:
    documents = []
    position, end = 0, len(view)
    while end - position >= 4:
        length = _length_at(view, position)[0]
        if not SMALLEST <= length <= LARGEST:
            raise NotBson(f"a document of {length} bytes cannot be")
        if position + length > end:
            break
        if view[position + length - 1]:
            raise NotBson("a document does not end in NUL")
        documents.append(view[position : position + length])
        position += length
    return documents, position


def id_of(document: bytes) -> bytes | None:
    """The `_id` as type byte and value; None if there is none. The server keeps it first."""
    if document[5:9] == b"_id\0":
        return document[4:5] + document[9 : _value_end(document[4], document, 9)]
    for kind, name, start, stop in elements(document):
        if name == b"_id":
            return bytes([kind]) + document[start:stop]
    return None


def key_of(value: bytes) -> bytes:
    """A key that is equal for all `_id` values that the server holds to be equal (1, 1.0 and NumberLong(1)).

    Collations are left out on purpose: a key may be finer than the server's equality, never coarser.
    """
    kind = value[0]
    if kind in (DOUBLE, INT32, INT64, DECIMAL):
        return b"#" + _number_key(kind, value[1:])
    if kind == SYMBOL:
        return bytes([STRING]) + value[1:]
    if kind in (DOCUMENT, ARRAY):
        raw = value[1:]
        parts = []
        for inner, name, start, stop in elements(raw):
            key = key_of(bytes([inner]) + raw[start:stop])
            parts.append(name + b"\0" + len(key).to_bytes(4, "little") + key)
        return bytes([kind]) + b"".join(parts)
    return value


def _number_key(kind: int, raw: bytes) -> bytes:
    number: Any
    if kind in (INT32, INT64):
        return str(int.from_bytes(raw, "little", signed=True)).encode()
    if kind == DOUBLE:
        number = struct.unpack("<d", raw)[0]
        if not math.isfinite(number):
            return str(number).encode()
    else:
        number = Decimal128.from_bid(raw).to_decimal()
        if not number.is_finite():
            return b"nan" if number.is_nan() else (b"inf" if number > 0 else b"-inf")
        if number and abs(number.adjusted()) > 400:
            return _large_decimal(number)
    return str(Fraction(number)).encode()


def _large_decimal(number: Decimal) -> bytes:
    """Beyond what a double can hold only decimals can be equal; their normal form says it without huge integers."""
    sign, digits, exponent = number.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    stripped = text.rstrip("0")
    return f"{'-' if sign else ''}{stripped}e{int(exponent) + len(text) - len(stripped)}".encode()


def id_document(value: bytes) -> bytes:
    """`{_id: value}` as bytes."""
    body = value[:1] + b"_id\0" + value[1:] + b"\0"
    return (len(body) + 4).to_bytes(4, "little") + body


def in_filter(values: Iterable[bytes]) -> RawBSONDocument:
    """`{_id: {$in: [values]}}`, put together from raw values."""
    items = b"".join(value[:1] + str(index).encode() + b"\0" + value[1:] for index, value in enumerate(values))
    array = _wrap(items)
    condition = _wrap(bytes([ARRAY]) + b"$in\0" + array)
    return RawBSONDocument(_wrap(bytes([DOCUMENT]) + b"_id\0" + condition), RAW)


def _wrap(body: bytes) -> bytes:
    return (len(body) + SMALLEST).to_bytes(4, "little") + body + b"\0"


def decode(document: bytes) -> RawBSONDocument:
    """A document whose inner documents stay raw, so that it can be sent again byte for byte."""
    return RawBSONDocument(document, RAW)


def encode(document: Any) -> bytes:
    """A document made here, in the order of its keys."""
    return bson.encode(document)
