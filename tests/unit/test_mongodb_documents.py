"""Cutting and comparing raw BSON, against the driver's own encoder and decoder."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import bson
import pytest
from bson.raw_bson import RawBSONDocument
from hypothesis import given
from hypothesis import strategies as st

from strongroom.engines.mongodb.documents import (
    NotBson,
    decode,
    elements,
    frames,
    id_document,
    id_of,
    in_filter,
    key_of,
    split_array,
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1).map(bson.Int64),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.binary(min_size=12, max_size=12).map(bson.ObjectId),
    st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2100, 1, 1)),
    st.decimals(allow_nan=False, places=3, min_value=-(10**9), max_value=10**9).map(bson.Decimal128),
    st.sampled_from([bson.MinKey(), bson.MaxKey(), bson.Regex("a.*", "i"), bson.Code("x"), bson.Code("x", {"y": 1})]),
    st.builds(bson.Timestamp, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.binary(max_size=9).map(lambda data: bson.Binary(data, 128)),
)
names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=8
)
documents = st.dictionaries(names, values, max_size=6)


def value_of(document: dict[str, Any]) -> bytes:
    value = id_of(bson.encode(document))
    assert value is not None
    return value


@given(st.lists(documents, max_size=120))
def test_the_documents_of_an_array_are_cut_as_the_driver_wrote_them(many: list[dict[str, Any]]) -> None:
    """Also past 10 and 100 documents, where the keys grow."""
    written = [bson.encode(one) for one in many]  # which puts a document's _id first, but not that of one inside another
    raw = bson.encode({"before": 1, "batch": [RawBSONDocument(one) for one in written]})
    ((_, _, start, stop),) = [found for found in elements(raw) if found[1] == b"batch"]
    assert split_array(raw, start, stop) == written


def test_keys_of_arrays_grow_at_every_power_of_ten() -> None:
    """One digit more at 10, 100, 1000 and 10000."""
    many = [{"_id": number} for number in range(10_001)]
    raw = bson.encode({"batch": many})
    ((_, _, start, stop),) = list(elements(raw))
    assert split_array(raw, start, stop) == [bson.encode(one) for one in many]


@given(documents)
def test_elements_walk_every_type(document: dict[str, Any]) -> None:
    """Names in order, and the last value ends where the document does."""
    raw = bson.encode(document)
    found = list(elements(raw))
    assert [name.decode() for _, name, _, _ in found] == list(document)
    if found:
        assert found[-1][3] == len(raw) - 1


@given(st.lists(documents, max_size=20), st.data())
def test_a_stream_is_cut_into_its_documents_whatever_the_pieces(many: list[dict[str, Any]], data: st.DataObject) -> None:
    """Nothing is lost, doubled or reordered at the borders of pieces."""
    stream = b"".join(map(bson.encode, many))
    pieces, position = [], 0
    while position < len(stream):
        size = data.draw(st.integers(1, 40))
        pieces.append(stream[position : position + size])
        position += size
    assert [one for batch in frames(pieces) for one in batch] == [bson.encode(one) for one in many]


@given(st.lists(documents, min_size=1, max_size=5), st.integers(1, 10**6))
def test_a_stream_cut_short_is_noticed(many: list[dict[str, Any]], cut: int) -> None:
    """Wherever it ends inside a document."""
    stream = b"".join(map(bson.encode, many))
    last = len(bson.encode(many[-1]))
    short = stream[: len(stream) - 1 - cut % (last - 1)] if last > 1 else stream
    with pytest.raises(NotBson):
        list(frames([short]))


@pytest.mark.parametrize("damage", [b"\4\0\0\0\0", b"\xff\xff\xff\x7f\0", b"\0\0\0\x80\0", b"\5\0\0\0\1"])
def test_impossible_lengths_and_ends_are_noticed(damage: bytes) -> None:
    """A length under 5, over the limit or below zero, and a document that does not end in NUL."""
    with pytest.raises(NotBson):
        list(frames([bson.encode({"a": 1}) + damage]))


@given(values)
def test_the_id_is_found_wherever_it_stands(value: Any) -> None:
    """First, as the server keeps it, or later; and a document without one has none."""
    expected = bson.encode({"_id": value})
    for document in ({"_id": value, "a": 1}, {"a": [1, {"_id": 2}], "_id": value}):
        found = id_of(bson.encode(document))
        assert found is not None
        assert id_document(found) == expected
    assert id_of(bson.encode({"a": value})) is None


@given(st.lists(values, max_size=30))
def test_the_filter_asks_for_exactly_the_raw_values(many: list[Any]) -> None:
    """As the driver would have encoded it."""
    raw = in_filter(value_of({"_id": value}) for value in many)
    assert bytes(raw.raw) == bson.encode({"_id": {"$in": many}})


@given(st.integers(-(2**53), 2**53))
def test_one_number_in_four_types_has_one_key(number: int) -> None:
    """The server holds 1, NumberLong(1), 1.0 and NumberDecimal("1.00") to be the same `_id`; nested ones too."""
    same: list[Any] = [bson.Int64(number), float(number), bson.Decimal128(Decimal(number)), bson.Decimal128(f"{number}.00")]
    assert len({key_of(value_of({"_id": one})) for one in same}) == 1
    assert len({key_of(value_of({"_id": {"a": {"b": one}}})) for one in same}) == 1


@given(values, values)
def test_different_values_have_different_keys(one: Any, other: Any) -> None:
    """A key that two `_id`s share would let one document's change hide the other."""
    if bson.encode({"v": one}) != bson.encode({"v": other}) and not _loosely_equal(one, other):
        assert key_of(value_of({"_id": one})) != key_of(value_of({"_id": other}))


def _loosely_equal(one: Any, other: Any) -> bool:
    """Equal for the server: numbers by value, at any depth."""
    return bool(_plain(one) == _plain(other))


def _plain(value: Any) -> Any:
    if isinstance(value, bson.Decimal128):
        value = value.to_decimal()
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return "nan" if value != value else ("number", value)
    if isinstance(value, dict):
        return {"document": [(name, _plain(inner)) for name, inner in value.items()]}
    if isinstance(value, list):
        return ["array", *map(_plain, value)]
    return (type(value).__name__, value)


def test_special_numbers_have_keys_of_their_own() -> None:
    """NaN equals NaN, infinities equal by sign across types, -0.0 is 0, huge decimals compare by value."""

    def key(value: Any) -> bytes:
        return key_of(value_of({"_id": value}))

    assert key(float("nan")) == key(bson.Decimal128("NaN"))
    assert key(float("inf")) == key(bson.Decimal128("Infinity")) != key(float("-inf"))
    assert key(-0.0) == key(0) == key(bson.Decimal128("-0E+3"))
    assert key(bson.Decimal128("1E+6000")) == key(bson.Decimal128("10E+5999")) != key(bson.Decimal128("-1E+6000"))
    assert key(bson.Decimal128("0.5")) == key(0.5)
    assert key(0.1) != key(bson.Decimal128("0.1"))


def test_a_decoded_document_is_sent_again_byte_for_byte() -> None:
    """Options and index specifications must not lose a type on their way through a backup."""
    raw = bson.encode({"a": {"b": bson.Int64(1), "c": 1.0, "d": [1, {"e": bson.Decimal128("1.0")}]}})
    assert bson.encode({"options": decode(raw)["a"]}) == bson.encode({"options": bson.decode(raw)["a"]})
