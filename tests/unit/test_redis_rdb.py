"""Reading the outside and the structure of RDB files, with dumps made by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from strongroom.engines.base import CaptureBroken, EngineUnsupported
from strongroom.engines.redis import rdb
from strongroom.engines.redis.checksum import Crc64
from support.redis_dumps import aux, dump, library, pairs, record, select, string, strings

STREAM_VALUES = {
    # entries, then lengths (3 or 8), then groups: name, id (+ entries read), pending entries, consumers
    15: b"\x01" + string(bytes(16)) + string(b"pack") + b"\x01\x05\x01" + b"\x01" + string(b"g") + b"\x05\x01"
    + b"\x01" + bytes(24) + b"\x02" + b"\x01" + string(b"c") + bytes(8) + b"\x01" + bytes(16),
    19: b"\x01" + string(bytes(16)) + string(b"pack") + b"\x01\x05\x01\x05\x00\x00\x00\x01"
    + b"\x01" + string(b"g") + b"\x05\x01\x01" + b"\x01" + bytes(24) + b"\x02" + b"\x01" + string(b"c") + bytes(8) + b"\x00",
    21: b"\x00" + b"\x00" * 8 + b"\x01" + string(b"g") + b"\x05\x01\x01" + b"\x00" + b"\x01" + string(b"c") + bytes(16) + b"\x00",
}  # fmt: skip
VALUES = {
    0: string(b"plain"),
    1: strings(b"a", b"b"),
    2: strings(b"m", b"n"),
    3: b"\x03" + string(b"a") + b"\x031.5" + string(b"b") + b"\xfe" + string(b"c") + b"\xfd",
    4: pairs({b"f": b"v", b"g": b"w"}),
    5: b"\x02" + string(b"a") + struct.pack("<d", 1.5) + string(b"b") + struct.pack("<d", 2),
    14: strings(b"ziplist one", b"ziplist two"),
    18: b"\x02\x01" + string(b"plain node") + b"\x02" + string(b"packed node"),
    **{kind: string(b"one packed string") for kind in (9, 10, 11, 12, 13, 16, 17, 20)},
    **STREAM_VALUES,
}


def walked(raw: bytes) -> list[rdb.Aux | rdb.Function | rdb.Record]:
    return list(rdb.walk(raw, lambda: None))


def verified(raw: bytes, folder: Path) -> rdb.Dump:
    path = folder / "dump.rdb"
    path.write_bytes(raw)
    return rdb.verify(str(path), lambda _: None)


def test_the_checksum_is_the_one_redis_uses_and_may_be_fed_in_pieces() -> None:
    """The published check value of CRC-64/REDIS, at once and in pieces."""
    whole, pieces = Crc64(), Crc64()
    whole.update(b"123456789")
    for piece in (b"12", b"", b"3456", b"789"):
        pieces.update(piece)
    assert whole.value == pieces.value == 0xE9C6D914C4B8D9CA


@pytest.mark.parametrize("kind", sorted(VALUES))
def test_a_value_of_every_known_type_is_skipped_to_its_last_byte(kind: int) -> None:
    """A record behind the value is found where it is, so the skip ended exactly at the value's end."""
    first = record(b"first", kind, VALUES[kind])
    raw = dump(select(3), first, record(b"second"))
    found = [part for part in walked(raw) if isinstance(part, rdb.Record)]
    assert [raw[part.start : part.end] for part in found] == [first, record(b"second")]
    assert {part.db for part in found} == {3}


@pytest.mark.parametrize(
    ("encoded", "decoded"),
    [
        (b"\x03abc", b"abc"),
        (b"\x41\x00" + b"x" * 256, b"x" * 256),
        (b"\x80\x00\x00\x00\x02hi", b"hi"),
        (b"\x81" + (2).to_bytes(8, "big") + b"hi", b"hi"),
        (b"\xc0\xff", b"-1"),
        (b"\xc1\x39\x30", b"12345"),
        (b"\xc2\x00\x00\x00\x80", b"-2147483648"),
        (b"\xc3\x05\x0a\x00a\xe0\x00\x00", b"a" * 10),  # LZF: one literal, then a run that reads what it writes
    ],
)
def test_strings_of_every_encoding_are_decoded_and_skipped(encoded: bytes, decoded: bytes) -> None:
    """Ordering needs a key's text whatever way the server chose to write it."""
    assert rdb.text(encoded, 0, 1000) == decoded
    assert rdb.text(encoded, 0, 2) == (decoded[:2] if encoded[0] not in (0xC0, 0xC1, 0xC2) else decoded)
    assert rdb.skip_string(encoded, 0) == len(encoded)


@pytest.mark.parametrize("value", [0, 63, 64, 16383, 16384, (1 << 32) - 1, 1 << 32])
def test_a_length_reads_back_as_it_was_written(value: int) -> None:
    """All four forms of a length, at their borders."""
    packed = rdb.packed_length(value)
    assert rdb.length(packed, 0) == (value, len(packed))


def test_keys_of_any_length_are_ordered_by_few_bytes_and_never_mixed_up() -> None:
    """Two keys of a megabyte that differ in the last byte have different orders of bounded length."""
    long = [string(b"k" * 1_000_000 + end) for end in (b"a", b"b")]
    orders = [rdb.order_of(data, 0) for data in long]
    assert orders[0] != orders[1]
    assert max(map(len, orders)) < 600
    assert rdb.order_of(string(b"short"), 0) == b"short"


def test_everything_beside_records_is_found(tmp_path: Path) -> None:
    """Head fields, libraries, expiries; eviction hints and size hints are passed over."""
    raw = dump(
        aux(b"redis-ver", b"7.0.15"),
        library(b"#!lua name=x"),
        select(0, 2, 1),
        record(b"a", expires=1234, hints=b"\xf9\x05"),
        record(b"b", hints=b"\xf8\x41\x00"),
        b"\xfd" + struct.pack("<i", 99) + record(b"c"),
    )
    head, code, *records = walked(raw)
    assert isinstance(head, rdb.Aux)
    assert (head.name, head.value) == (b"redis-ver", b"7.0.15")
    assert isinstance(code, rdb.Function)
    assert [part.expiry for part in records if isinstance(part, rdb.Record)] == [
        b"\xfc" + struct.pack("<q", 1234),
        b"",
        b"\xfd" + struct.pack("<i", 99),
    ]
    assert verified(raw, tmp_path) == rdb.Dump(version=10, size=len(raw), checked=True)


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (record(b"k", 6, b"\x00"), "module"),
        (record(b"k", 7, b"\x00"), "module"),
        (b"\xf7\x81" + bytes(8) + b"\x00", "module"),
        (record(b"k", 22, b"\x00"), "fields expire"),
        (record(b"k", 25, b"\x00"), "fields expire"),
        (b"\xf6\x00", "release candidate"),
        (b"\xf3\x00", "slots are being imported"),
        (record(b"k", 99, b"\x00"), "type 99"),
        (record(b"k", 0, b"\xc4"), "string encoding"),
    ],
)
def test_what_is_not_understood_is_refused_and_never_skipped(part: bytes, names: str) -> None:
    """Modules, fields with expiry and unknown types end the reading with a sentence that names them."""
    with pytest.raises(EngineUnsupported, match=names):
        walked(dump(select(0), record(b"before"), part))


@pytest.mark.parametrize("version", [13, 79, 81])
def test_a_dump_of_a_newer_format_is_refused(version: int, tmp_path: Path) -> None:
    """Nothing is guessed about formats to come."""
    with pytest.raises(EngineUnsupported, match="newer"):
        verified(dump(version=version), tmp_path)


def test_how_many_keys_a_slot_has_is_skipped() -> None:
    """A hint of Redis in cluster mode: three lengths."""
    parts = walked(dump(select(0), b"\xf4\x4b\xb1\x02\x00", record(b"a"), b"\xf4\x01\x01\x00", record(b"b")))
    assert len([part for part in parts if isinstance(part, rdb.Record)]) == 2


def test_hashes_whose_fields_expire_are_known_of_valkey_and_not_of_redis() -> None:
    """The two give the same number to two different forms."""
    value = b"\x02" + b"".join(string(word) + string(b"v") + bytes(8) for word in (b"f", b"g"))
    parts = walked(dump(select(0), record(b"k", 22, value), record(b"l"), version=80))
    assert len([part for part in parts if isinstance(part, rdb.Record)]) == 2
    with pytest.raises(EngineUnsupported, match="fields expire"):
        walked(dump(select(0), record(b"k", 22, value), record(b"l"), version=12))


def test_what_is_no_dump_is_refused(tmp_path: Path) -> None:
    """Neither another file nor a fork's header passes."""
    for raw in (b"VALKEY079" + bytes(20), b"VALKEY80\0" + bytes(20), b"", b"REDIS", b"VALKEY", b"hello world, hello world"):
        with pytest.raises(EngineUnsupported, match="not a dump of Redis or Valkey"):
            verified(raw, tmp_path)


def test_a_cut_dump_is_never_whole(tmp_path: Path) -> None:
    """Whatever number of bytes is missing at the end, it is noticed."""
    raw = dump(select(0), record(b"key", 1, strings(b"a", b"b")), record(b"other"))
    for size in range(rdb.HEADER_BYTES, len(raw)):
        with pytest.raises(CaptureBroken):
            verified(raw[:size], tmp_path)


def test_a_flipped_bit_is_always_noticed(tmp_path: Path) -> None:
    """One bit in any byte behind the header."""
    raw = dump(select(0), record(b"key", 1, strings(b"a", b"b")))
    for at in range(rdb.HEADER_BYTES, len(raw)):
        damaged = bytearray(raw)
        damaged[at] ^= 0x10
        with pytest.raises(CaptureBroken):
            verified(bytes(damaged), tmp_path)


def test_a_dump_without_checksum_passes_but_says_so(tmp_path: Path) -> None:
    """Servers with `rdbchecksum no` write zeros."""
    assert verified(dump(record(b"k"), checksum=False), tmp_path).checked is False


@pytest.mark.parametrize(
    "part",
    [
        record(b"k", 1, b"\x05" + string(b"only one")),
        record(b"k", 0, b"\x3fshort"),
        record(b"k", 4, b"\x80\xff\xff\xff\xff" + string(b"f")),
        b"\xfc" + bytes(8),
        record(b"k") + b"\xff" + record(b"behind the end"),
    ],
)
def test_a_structure_that_does_not_fit_the_length_is_refused(part: bytes) -> None:
    """Even where the checksum is right or missing, values must end where the dump does."""
    with pytest.raises((CaptureBroken, EngineUnsupported)):
        walked(dump(part))
