"""The RDB format: finding the parts of a dump without understanding its values, and proving that a dump is whole.

Layout (rdb.c and rdb.h of Redis 6.2 to 7.4 and Valkey 7.2 to 9.1): `REDIS` and four digits of version, or `VALKEY` and
three; then opcodes and records; 0xFF; CRC64 of all before it, little endian, or zero where the server has `rdbchecksum no`.
A record is an optional expiry, optional eviction hints, a type byte, the key and the value. Values are skipped, never changed.
Whatever is not known here raises EngineUnsupported: a dump that is not understood to its end is never called a backup.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from strongroom.engines.base import CaptureBroken, EngineUnsupported
from strongroom.engines.redis.checksum import Crc64
from strongroom.engines.redis.versions import FIRST_VALKEY_RDB

Buffer = bytes | mmap.mmap

NEWEST_VERSION = 12  # of Redis 7.4 and 8.0; what is new in it (fields with expiry) is refused by its type
NEWEST_VALKEY = 80  # of Valkey 9.0 and 9.1
HEADER_BYTES = 9
FOOTER_BYTES = 9  # the end code and the checksum
EXPIRY_MS, EXPIRY_S, IDLE, FREQ = 0xFC, 0xFD, 0xF8, 0xF9
AUX, RESIZE, SELECT, FUNCTION, END = 0xFA, 0xFB, 0xFE, 0xF5, 0xFF
MODULE_AUX, FUNCTION_PRE_GA, SLOT_INFO, SLOT_IMPORT = 0xF7, 0xF6, 0xF4, 0xF3
SET_TABLE, HASH_TABLE = 2, 4  # the encodings whose members come in the order of a hash table,
HASH_EXPIRING = 22  # as they do in this one of Valkey, where each field has a time as well
TEXT_LIMIT = 512  # bytes of a key that take part in ordering as they are
_BATCH = 20_000  # members between two looks at the job
_PIECE = 1 << 20


class Aux(NamedTuple):
    """A named fact about the dump, decoded, and where it lies."""

    name: bytes
    value: bytes
    start: int
    end: int


class Function(NamedTuple):
    """A function library (Redis 7.0): opcode and code."""

    start: int
    end: int


class Record(NamedTuple):
    """One key. `expiry` is the raw opcode and time, or empty; [start, end) are type, key and value."""

    db: int
    expiry: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Dump:
    """What a whole dump's outside says."""

    version: int
    size: int
    checked: bool  # False: the server wrote no checksum


def verify(path: str, advance: Callable[[int], None]) -> Dump:
    """Proves by its header, end code and CRC64 that the file is a whole RDB; `advance` is told the bytes read.

    Raises CaptureBroken for a damaged or cut one, EngineUnsupported for a version that cannot be read here.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        version = version_of(file.read(HEADER_BYTES))
        if size < HEADER_BYTES + FOOTER_BYTES:
            raise CaptureBroken(f"the dump ends after {size} bytes")
        file.seek(0)
        checksum, left = Crc64(), size - 8
        last = b""
        while left:
            piece = file.read(min(_PIECE, left))
            if not piece:
                raise CaptureBroken("the dump became shorter while it was read")
            checksum.update(piece)
            advance(len(piece))
            left -= len(piece)
            last = piece
        footer = file.read(8)
    if last[-1] != END:
        raise CaptureBroken("the dump has no end mark: it was cut")
    checked = footer != bytes(8)
    if checked and footer != checksum.footer():
        raise CaptureBroken("the dump's checksum does not match its bytes")
    return Dump(version, size, checked)


def version_of(header: bytes) -> int:
    """The RDB version that a dump's first nine bytes tell; from 80 on it is one of Valkey."""
    for name, first, newest in ((b"REDIS", 1, NEWEST_VERSION), (b"VALKEY", FIRST_VALKEY_RDB, NEWEST_VALKEY)):
        digits = header.removeprefix(name)
        if digits == header or not digits.isdigit() or len(header) != HEADER_BYTES:
            continue
        if int(digits) > newest:
            raise EngineUnsupported(f"RDB version {int(digits)} is newer than {newest}, the newest that is understood")
        if int(digits) >= first:
            return int(digits)
    raise EngineUnsupported(f"this is not a dump of Redis or Valkey: it begins with {header!r}")


def header_of(version: int) -> bytes:
    """The nine bytes that a dump of this version begins with."""
    return b"VALKEY%03d" % version if version >= FIRST_VALKEY_RDB else b"REDIS%04d" % version


# Lengths and strings. A position beyond the end shows as IndexError, which walk() turns into CaptureBroken.


def length(data: Buffer, at: int) -> tuple[int, int]:
    """(value, position behind it) of a length that must be a plain one."""
    first = data[at]
    if first < 0x40:
        return first, at + 1
    if first < 0x80:
        return (first & 0x3F) << 8 | data[at + 1], at + 2
    if first == 0x80:
        return int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
    if first == 0x81:
        return int.from_bytes(data[at + 1 : at + 9], "big"), at + 9
    raise CaptureBroken(f"the dump has no length where one must be, at byte {at}")


def packed_length(value: int) -> bytes:
    """A length in its shortest form, as a server writes it."""
    if value < 0x40:
        return bytes([value])
    if value < 0x4000:
        return (0x4000 | value).to_bytes(2, "big")
    if value < 1 << 32:
        return b"\x80" + value.to_bytes(4, "big")
    return b"\x81" + value.to_bytes(8, "big")


def skip_string(data: Buffer, at: int) -> int:
    """The position behind the string at `at`."""
    first = data[at]
    if first < 0x40:
        return at + 1 + first
    if first < 0xC0:
        size, at = length(data, at)
        return at + size
    if first <= 0xC2:
        return at + 1 + (1 << (first - 0xC0))
    if first == 0xC3:
        packed, at = length(data, at + 1)
        _, at = length(data, at)
        return at + packed
    raise EngineUnsupported(f"the dump has an unknown string encoding {first:#x} at byte {at}")


def text(data: Buffer, at: int, limit: int) -> bytes:
    """The first `limit` bytes of the string at `at`, decoded."""
    first = data[at]
    if first < 0xC0:
        size, at = length(data, at)
        return data[at : at + min(size, limit)]
    if first <= 0xC2:
        size = 1 << (first - 0xC0)
        return b"%d" % int.from_bytes(data[at + 1 : at + 1 + size], "little", signed=True)
    packed, at = length(data, at + 1)
    size, at = length(data, at)
    return unpacked(data, at, at + packed, min(size, limit))


def unpacked(data: Buffer, at: int, end: int, limit: int) -> bytes:
    """The first `limit` bytes that the LZF stream in [at, end) stands for."""
    out = bytearray()
    while at < end and len(out) < limit:
        control = data[at]
        at += 1
        if control < 0x20:
            out += data[at : at + control + 1]
            at += control + 1
            continue
        size = control >> 5
        if size == 7:
            size += data[at]
            at += 1
        source = len(out) - ((control & 0x1F) << 8 | data[at]) - 1
        at += 1
        if source < 0:
            raise CaptureBroken(f"the dump has a damaged compressed string before byte {at}")
        for place in range(source, source + size + 2):
            out.append(out[place])
    return bytes(out[:limit])


def order_of(data: Buffer, at: int) -> bytes:
    """What the string at `at` is ordered by: its own bytes; for a long one its beginning and a digest of it all.

    So a key of half a gigabyte costs no more memory than any other, and the order is the same every time.
    """
    first = data[at]
    if first < 0x40:  # nearly always
        return data[at + 1 : at + 1 + first]
    head = text(data, at, TEXT_LIMIT + 1)
    if len(head) <= TEXT_LIMIT:
        return head
    end = skip_string(data, at)
    digest = hashlib.blake2b(digest_size=16)
    for start in range(at, end, _PIECE):
        digest.update(data[start : min(start + _PIECE, end)])
    return head[:TEXT_LIMIT] + digest.digest()


def key_of(data: Buffer, record: Record) -> bytes:
    """A record's whole key."""
    return text(data, record.start + 1, 1 << 32)


def expiry_of(record: Record) -> int | None:
    """When a record expires, in milliseconds since the epoch; None if never."""
    if not record.expiry:
        return None
    value = int.from_bytes(record.expiry[1:], "little", signed=True)
    return value if record.expiry[0] == EXPIRY_MS else value * 1000


# Values.

_STRINGS = frozenset((0, 9, 10, 11, 12, 13, 16, 17, 20))  # plain ones, and packed collections that are one string
_STREAMS = frozenset((15, 19, 21))
_VALUES = _STRINGS | _STREAMS | {1, SET_TABLE, 3, HASH_TABLE, 5, 14, 18}


class _Skipper:
    """Skips values. `beat` is called often inside large ones."""

    def __init__(self, data: Buffer, beat: Callable[[], None]) -> None:
        self._data = data
        self._beat = beat

    def value(self, kind: int, at: int) -> int:
        """The position behind the value at `at`; `kind` is one of the known types."""
        data = self._data
        if kind in _STRINGS:
            return skip_string(data, at)
        if kind in (1, SET_TABLE, 14):
            return self._counted(at, lambda at: skip_string(data, at))
        if kind == HASH_TABLE:
            return self._counted(at, lambda at: skip_string(data, skip_string(data, at)))
        if kind == HASH_EXPIRING:
            return self._counted(at, lambda at: skip_string(data, skip_string(data, at)) + 8)
        if kind == 3:
            return self._counted(at, self._score_as_text)
        if kind == 5:
            return self._counted(at, lambda at: skip_string(data, at) + 8)
        if kind == 18:
            return self._counted(at, lambda at: skip_string(data, length(data, at)[1]))
        return self._stream(kind, at)

    def _counted(self, at: int, skip: Callable[[int], int]) -> int:
        left, at = length(self._data, at)
        while left:
            for _ in range(min(left, _BATCH)):
                at = skip(at)
            left -= min(left, _BATCH)
            if left:
                self._beat()
        return at

    def _score_as_text(self, at: int) -> int:
        at = skip_string(self._data, at)
        size = self._data[at]
        return at + 1 + (size if size < 253 else 0)

    def _lengths(self, count: int, at: int) -> int:
        for _ in range(count):
            _, at = length(self._data, at)
        return at

    def _stream(self, kind: int, at: int) -> int:
        at = self._counted(at, lambda at: skip_string(self._data, skip_string(self._data, at)))
        at = self._lengths(3 if kind == 15 else 8, at)
        return self._counted(at, lambda at: self._group(kind, at))

    def _group(self, kind: int, at: int) -> int:
        at = self._lengths(2 if kind == 15 else 3, skip_string(self._data, at))
        at = self._counted(at, lambda at: self._lengths(1, at + 24))
        return self._counted(at, lambda at: self._consumer(kind, at))

    def _consumer(self, kind: int, at: int) -> int:
        at = skip_string(self._data, at) + (16 if kind == 21 else 8)
        count, at = length(self._data, at)
        return at + 16 * count


def _unknown(kind: int) -> str:
    if kind in (6, 7, MODULE_AUX):
        return "the data contains values or settings of a Redis module, which cannot be saved: unload it or remove its keys"
    if kind in (22, 23, 24, 25):
        return "the data contains hashes whose fields expire (Redis 7.4), which cannot be saved"
    if kind == SLOT_IMPORT:
        return "slots are being imported into this node: a backup can be taken when that is done"
    if kind == FUNCTION_PRE_GA:
        return "the data contains functions of a release candidate of Redis 7.0, which cannot be saved"
    return f"the data contains something of type {kind}, which is not known and cannot be saved"


def walk(data: Buffer, beat: Callable[[], None]) -> Iterator[Aux | Function | Record]:
    """Everything in a dump that `verify` has passed, in the dump's order, except size hints and eviction hints.

    Raises EngineUnsupported for what is not known and CaptureBroken where the structure does not hold to the last byte.
    """
    try:
        yield from _walk(data, beat)
    except IndexError:
        raise CaptureBroken("the dump's structure runs over its end") from None


def _walk(data: Buffer, beat: Callable[[], None]) -> Iterator[Aux | Function | Record]:
    skipper = _Skipper(data, beat)
    at, end = HEADER_BYTES, len(data) - FOOTER_BYTES
    values = _VALUES | {HASH_EXPIRING} if version_of(data[:HEADER_BYTES]) >= FIRST_VALKEY_RDB else _VALUES
    db, expiry = 0, b""
    while at < end:
        start, kind = at, data[at]
        at += 1
        if kind in values:
            at = skipper.value(kind, skip_string(data, at))
            if at > end:
                break
            yield Record(db, expiry, start, at)
            expiry = b""
        elif kind in (EXPIRY_MS, EXPIRY_S):
            at += 8 if kind == EXPIRY_MS else 4
            expiry = data[start:at]
        elif kind == FREQ:
            at += 1
        elif kind == IDLE:
            _, at = length(data, at)
        elif kind == SELECT:
            db, at = length(data, at)
        elif kind == RESIZE:
            at = length(data, length(data, at)[1])[1]
        elif kind == SLOT_INFO:
            at = length(data, length(data, length(data, at)[1])[1])[1]
        elif kind == AUX:
            value = skip_string(data, at)
            aux = Aux(text(data, at, 1 << 10), text(data, value, 1 << 10), start, skip_string(data, value))
            at = aux.end
            yield aux
        elif kind == FUNCTION:
            at = skip_string(data, at)
            yield Function(start, at)
        elif kind == END:
            break
        else:
            raise EngineUnsupported(_unknown(kind))
    if at != end or expiry:
        raise CaptureBroken(f"the dump's structure does not fit its length ({at} of {end} bytes)")
