"""Cutting, frames, columns, records and trees: the parts that a manifest is made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from strongroom.repository._columns import deltas, from_planes, to_planes, undeltas
from strongroom.repository.chunking import GIB, KIB, MIB, Cutter, choose_chunk_average, choose_pack_target
from strongroom.repository.codec import Decoder, Encoder, FrameError
from strongroom.repository.records import Named, Records, Tree, TreeBuilder, walk, without
from support.repository import noise, rows


def lengths_of(data: bytes, average: int, step: int) -> list[int]:
    """Lengths of all chunks of data that comes in steps."""
    cutter = Cutter(average)
    found = [cutter.feed(data[at : at + step]) for at in range(0, len(data), step)]
    found.append(cutter.finish())
    out: list[int] = []
    rebuilt = b""
    for one in found:
        if one is not None:
            assert sum(one[1]) == len(one[0])
            rebuilt += bytes(one[0])
            out += one[1]
    assert rebuilt == data
    return out


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([0, 1, 3 * MIB, 5 * MIB + 7]), st.integers(50_000, 3 * MIB), st.integers(0, 3), st.booleans())
def test_cuts_do_not_depend_on_how_the_bytes_come_in(size: int, step: int, seed: int, zeros: bool) -> None:
    """Whatever the pieces, the chunks are the same, within their limits, and the whole is there."""
    data = (noise(size // 2, seed) + bytes(size))[:size] if zeros else noise(size, seed)
    whole = lengths_of(data, 64 * KIB, max(size, 1))
    assert lengths_of(data, 64 * KIB, step) == whole
    assert all(16 * KIB <= length <= 512 * KIB for length in whole[:-1])


def test_an_insertion_moves_the_cuts_near_it_and_no_others() -> None:
    """Chunks before and behind are cut alike: that is what makes a second backup small."""
    data = noise(4 * MIB)
    changed = data[: 2 * MIB] + b"inserted" + data[2 * MIB :]

    def chunks(whole: bytes) -> set[bytes]:
        out, at = set(), 0
        for length in lengths_of(whole, 4 * KIB, MIB):
            out.add(whole[at : at + length])
            at += length
        return out

    assert len(chunks(changed) - chunks(data)) <= 5


def test_chunk_and_pack_sizes_follow_what_was_measured() -> None:
    """1 MiB for files that never change; 4, 16, 64 KiB for records; large packs for large lineages."""
    assert choose_chunk_average(1, records=False) == choose_chunk_average(10**13, records=False) == MIB
    sizes = (0, 32 * GIB, 32 * GIB + 1, 512 * GIB, 512 * GIB + 1)
    assert [choose_chunk_average(size, records=True) for size in sizes] == [4 * KIB, 4 * KIB, 16 * KIB, 16 * KIB, 64 * KIB]
    assert [choose_pack_target(size) for size in (0, 512 * GIB, 512 * GIB + 1)] == [16 * MIB, 16 * MIB, 64 * MIB]


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.binary(max_size=300), st.integers(0, 40_000).map(noise), st.integers(0, 40_000).map(bytes)),
    st.sampled_from([0, 1, 3]),
)
def test_a_frame_gives_back_its_bytes_and_never_grows(plain: bytes, level: int) -> None:
    """For any content and level; the frame adds five bytes at most."""
    frame = Encoder(level).encode(plain)
    assert Decoder().decode(frame) == plain
    assert len(frame) <= len(plain) + 5


def test_what_shrinks_is_compressed_and_what_does_not_is_left_alone() -> None:
    """Records shrink to less than half; noise, and noise with a head that shrinks, pass as they are."""
    encoder = Encoder(1)
    assert len(encoder.encode(rows(2000))) < len(rows(2000)) // 2
    assert encoder.encode(noise(50_000))[0] == 0
    assert encoder.encode(bytes(50_000))[0] == 1
    assert Encoder(0).encode(bytes(50_000))[0] == 0


@pytest.mark.parametrize("frame", [b"", b"\0\0\0\0", b"\0\0\0\0\2x", b"\2\0\0\0\1x", b"\1\0\0\0\1x"])
def test_bytes_that_are_no_frame_are_refused(frame: bytes) -> None:
    """Too short, another length than said, an unknown codec, no zstd inside."""
    with pytest.raises(FrameError):
        Decoder().decode(frame)


def test_a_frame_that_tells_a_smaller_length_than_it_holds_is_refused() -> None:
    """The length bounds what is unpacked, so nothing can blow up memory."""
    frame = bytearray(Encoder(1).encode(bytes(1 << 20)))
    frame[1:5] = (100).to_bytes(4, "big")
    with pytest.raises(FrameError):
        Decoder().decode(bytes(frame))


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_columns_come_back(values: list[int]) -> None:
    """Planes and differences lose nothing, at the ends of the range too."""
    column = np.array(values, np.uint32)
    assert undeltas(deltas(column)).tolist() == values
    assert from_planes(to_planes(column, 4), 4, len(values)).tolist() == values
    assert from_planes(to_planes(column.astype(np.uint64) << np.uint64(31), 8), 8, len(values)).tolist() == [
        v << 31 for v in values
    ]


def records(count: int, seed: int = 0) -> Records:
    """Records with random columns."""
    random = np.random.default_rng(seed)
    return Records(
        np.frombuffer(noise(16 * count, seed), np.uint8).reshape(count, 16),
        random.integers(1, 4, count).astype(np.uint64) << np.uint64(60),
        random.integers(0, 1 << 32, count).astype(np.uint32),
        random.integers(0, 1 << 32, count).astype(np.uint32),
        random.integers(0, 1 << 32, count).astype(np.uint32),
    )


def same(one: Records, other: Records) -> bool:
    """Whether all columns are equal."""
    return one.to_bytes() == other.to_bytes()


@given(st.integers(0, 600), st.integers(0, 5))
def test_records_come_back(count: int, seed: int) -> None:
    """All columns, whatever their values."""
    given_records = records(count, seed)
    back = Records.from_bytes(given_records.to_bytes())
    for column in ("hashes", "packs", "numbers", "plains", "sealeds"):
        assert (getattr(back, column) == getattr(given_records, column)).all()
    with pytest.raises(ValueError, match="cannot be"):
        Records.from_bytes(given_records.to_bytes() + b"x")


class Pages:
    """Stores pages by number."""

    def __init__(self) -> None:
        self.pages: list[bytes] = []

    def emit(self, page: bytes) -> Records:
        self.pages.append(page)
        return Records.one(noise(16, len(self.pages)), 1, len(self.pages) - 1, len(page), len(page))

    def read(self, names: Records) -> list[bytes]:
        return [self.pages[number] for number in names.numbers.tolist()]


def build(given_records: Records, step: int, pages: Pages) -> Tree:
    """A tree of records that come in steps."""
    builder = TreeBuilder(pages.emit)
    for at in range(0, len(given_records), step):
        builder.add(given_records[at : at + step])
    return builder.finish()


@settings(max_examples=30, deadline=None)
@given(st.one_of(st.integers(0, 70), st.integers(500, 20_000)), st.integers(1, 3000), st.integers(1, 300))
def test_a_tree_gives_back_its_records_however_they_came(count: int, step: int, at_once: int) -> None:
    """In order, all of them; the pages are the same whatever the steps."""
    given_records, pages, again = records(count), Pages(), Pages()
    tree = build(given_records, step, pages)
    leaves = [found for depth, found in walk(tree, pages.read, at_once) if depth == 0]
    assert same(Records.joined(leaves), given_records)
    build(given_records, max(count, 1), again)
    assert set(again.pages) == set(pages.pages)
    assert len(tree.top) <= 32


def test_a_tree_of_any_length_around_a_page_is_whole() -> None:
    """Whatever is left when the last full page has gone, down to nothing, is kept beside it."""
    all_records, rests = records(1200), set[int]()
    for count in range(480, 1200):
        pages = Pages()
        tree = build(all_records[:count], count, pages)
        leaves = Records.joined([found for depth, found in walk(tree, pages.read) if depth == 0])
        assert same(leaves, all_records[:count])
        rests.add(int.from_bytes(pages.pages[-1][:4], "big"))
    assert {1, 2, 30, 32} <= rests


def test_a_change_in_a_tree_makes_few_new_pages() -> None:
    """A removed record moves the ends of pages near it and no others."""
    given_records, before, after = records(20_000), Pages(), Pages()
    build(given_records, 20_000, before)
    build(Records.joined([given_records[:9000], given_records[9001:]]), 20_000, after)
    data_pages = {page for page in before.pages if len(page) > 2000}
    assert len(data_pages - set(after.pages)) <= 6


def test_sealed_bytes_are_counted_once_however_often_a_chunk_is_named() -> None:
    """Also across batches, and not for what is to be left out."""
    named = Named()
    twice = Records.joined([records(10), records(10)])
    first = {pack: (numbers, size) for pack, numbers, size in named.add(twice)}
    assert sum(size for _, size in first.values()) == int(records(10).sealeds.sum(dtype=np.uint64))
    assert list(named.add(records(10))) == []
    pack, (numbers, _) = next(iter(first.items()))
    rest = {key: found for key, found, _ in Named().add(twice, but={pack: numbers})}
    assert pack not in rest
    assert len(rest) == len(first) - 1


def test_without_leaves_out_exactly_the_excluded() -> None:
    """By pack and number, not by either alone."""
    given_records = records(50)
    pack, number = int(given_records.packs[7]), int(given_records.numbers[7])
    assert len(without(given_records, {pack: BitMap([number])})) == 49
    assert len(without(given_records, {pack + 1: BitMap([number])})) == 50
