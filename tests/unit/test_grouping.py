"""Which surviving chunks share an object: each goes into one, those that die together side by side."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from strongroom.backups.grouping import Class, Group, group

TARGET = 10_000


def chunks(pack: int, last: int | None, first: int, count: int, size: int = 100) -> Class:
    return Class(pack, last, BitMap(range(first, first + count)), np.full(count, size, np.uint32))


@st.composite
def survivors(draw: st.DrawFn) -> list[Class]:
    """Classes of some packs; a pack's numbers have one end each."""
    found = []
    for pack in range(draw(st.integers(1, 6))):
        ends = draw(st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=1, max_size=30))
        by_end: dict[int | None, list[int]] = defaultdict(list)
        for number, last in enumerate(ends):
            by_end[last].append(number)
        for last, numbers in by_end.items():
            sizes = draw(st.lists(st.integers(1, 3000), min_size=len(numbers), max_size=len(numbers)))
            found.append(Class(pack, last, BitMap(numbers), np.array(sizes, np.uint32)))
    return found


def ends_in(groups: list[Group], classes: list[Class]) -> list[set[int | None]]:
    """The ends of the chunks of each group."""
    end = {(one.pack, number): one.last for one in classes for number in one.numbers}
    return [{end[pack, number] for pack, numbers in one.numbers.items() for number in numbers} for one in groups]


@given(survivors())
def test_every_chunk_goes_into_one_group_with_its_size(classes: list[Class]) -> None:
    """Nothing is lost, nothing is there twice, and sizes stay beside their numbers."""
    wanted = {(one.pack, number): int(size) for one in classes for number, size in zip(one.numbers, one.sizes, strict=True)}
    found: dict[tuple[int, int], int] = {}
    for one in group(classes, TARGET):
        for pack, numbers in one.numbers.items():
            assert len(numbers) == len(one.sizes[pack])
            for number, size in zip(numbers, one.sizes[pack], strict=True):
                assert (pack, number) not in found
                found[pack, number] = int(size)
    assert found == wanted


@given(survivors())
def test_groups_are_few_and_none_is_over_full(classes: list[Class]) -> None:
    """Each holds the target and at most a chunk more; there are at most two more than their bytes need."""
    groups = group(classes, TARGET)
    largest = max(int(one.sizes.max()) for one in classes)
    total = sum(int(one.sizes.sum()) for one in classes)
    assert all(sum(int(sizes.sum()) for sizes in one.sizes.values()) <= TARGET + largest for one in groups)
    assert len(groups) <= total // TARGET + 2


def test_what_the_head_needs_lies_apart_from_what_has_an_end() -> None:
    """Half of each of three packs is open: no group holds both kinds."""
    classes = [chunks(pack, last, first, 40) for pack in range(3) for last, first in ((None, 0), (7, 40))]
    assert ends_in(group(classes, TARGET), classes) == [{7}, {7}, {None}, {None}]


def test_what_ends_together_lies_together() -> None:
    """Chunks of ten packs that end after one of three parts: in order of their ends, cut into full groups."""
    classes = [chunks(pack, last, last * 10, 10) for pack in range(10) for last in (1, 2, 3)]
    assert ends_in(group(classes, TARGET), classes) == [{1}, {2}, {3}]


def test_a_few_chunks_of_one_kind_make_no_object_of_their_own() -> None:
    """One open chunk among fifty with an end."""
    classes = [chunks(1, None, 0, 1), chunks(1, 4, 1, 50)]
    assert ends_in(group(classes, TARGET), classes) == [{None, 4}]
