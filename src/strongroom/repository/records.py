"""Records: what a manifest says of chunks, in columns; and trees, the pages that hold many of them.

A record is (hash 16 bytes, pack u64, number u32, plain length u32, sealed length u32). A tree of depth 0 is its records; of depth
d, its records name pages, and the records in those pages are the tree of depth d-1. Pages are chunks like any other. Where a page
ends is decided by the hashes of its own records, so that what has not changed has the same pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from strongroom.repository._columns import U8, U32, U64, deltas, from_planes, to_planes, undeltas

HASH = 16  # bytes of a record's hash
TOP = 32
"""At most so many records need no page."""

_LEAST, _MEAN, _MOST = 32, 128, 512  # records of a page
_RECORD = HASH + 8 + 4 + 4 + 4
_OVERHEAD = 21  # what frame and tag add to a chunk that did not shrink


@dataclass(frozen=True, eq=False, slots=True)
class Records:
    """Columns of equal length."""

    hashes: U8  # (n, 16)
    packs: U64
    numbers: U32
    plains: U32
    sealeds: U32

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, chosen: slice | NDArray[Any]) -> Records:
        return Records(self.hashes[chosen], self.packs[chosen], self.numbers[chosen], self.plains[chosen], self.sealeds[chosen])

    @classmethod
    def none(cls) -> Records:
        """No records."""
        empty = np.empty(0, np.uint32)
        return cls(np.empty((0, HASH), np.uint8), np.empty(0, np.uint64), empty, empty, empty)

    @classmethod
    def one(cls, digest: bytes, pack: int, number: int, plain: int, sealed: int) -> Records:
        """A single record."""
        return cls(
            np.frombuffer(digest, np.uint8).reshape(1, HASH), np.array([pack], np.uint64), np.array([number], np.uint32),
            np.array([plain], np.uint32), np.array([sealed], np.uint32),
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: Sequence[Records]) -> Records:
        """All of them, one after the other."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.none()
        return cls(
            np.concatenate([part.hashes for part in parts]), np.concatenate([part.packs for part in parts]),
            np.concatenate([part.numbers for part in parts]), np.concatenate([part.plains for part in parts]),
            np.concatenate([part.sealeds for part in parts]),
        )  # fmt: skip

    def to_bytes(self) -> bytes:
        """count u32 │ hashes │ packs │ numbers as differences │ plain lengths │ plain length + 21 - sealed length; in planes."""
        saved = self.plains + np.uint32(_OVERHEAD) - self.sealeds
        return b"".join(
            (
                len(self).to_bytes(4, "big"), self.hashes.tobytes(), to_planes(self.packs, 8), to_planes(deltas(self.numbers), 4),
                to_planes(self.plains, 4), to_planes(saved, 4),
            )
        )  # fmt: skip

    @classmethod
    def from_bytes(cls, data: bytes) -> Records:
        """What to_bytes gave. Raises ValueError if it is not that."""
        count = int.from_bytes(data[:4], "big")
        if len(data) != 4 + count * _RECORD:
            raise ValueError(f"{len(data)} bytes cannot be {count} records")
        view, at, columns = memoryview(data), 4 + HASH * count, []
        for width in (8, 4, 4, 4):
            columns.append(from_planes(view[at : at + width * count], width, count))
            at += width * count
        packs, numbers, plains, saved = columns
        hashes = np.frombuffer(view[4 : 4 + HASH * count], np.uint8).reshape(count, HASH)
        return cls(hashes, packs, undeltas(numbers), plains, plains + np.uint32(_OVERHEAD) - saved)


@dataclass(frozen=True, slots=True)
class Tree:
    """The top of a tree of records."""

    depth: int
    top: Records


class TreeBuilder:
    """Takes the records of one tree in order and hands out full pages on the way. `emit` stores a page and gives its record."""

    def __init__(self, emit: Callable[[bytes], Records]) -> None:
        self._emit = emit
        self._levels: list[_Level] = [_Level()]

    def add(self, records: Records) -> None:
        """The next records."""
        self._add(0, records)

    def finish(self) -> Tree:
        """The tree; the builder is used up."""
        depth = 0
        while True:
            level = self._levels[depth]
            rest = Records.joined(level.waiting)
            if not level.paged and len(rest) <= TOP:
                return Tree(depth, rest)
            self._page(depth, rest, least=1)
            level.waiting = []
            depth += 1

    def _add(self, depth: int, records: Records) -> None:
        level = self._levels[depth]
        level.waiting.append(records)
        level.count += len(records)
        if level.count >= _MOST:
            rest = self._page(depth, Records.joined(level.waiting), least=_MOST)
            level.waiting, level.count = [rest], len(rest)

    def _page(self, depth: int, records: Records, least: int) -> Records:
        """Stores pages while `least` records are left, so that each ends where it would with all that follows; gives the rest."""
        self._levels[depth].paged = True
        if depth + 1 == len(self._levels):
            self._levels.append(_Level())
        while len(records) >= least:
            end = _boundary(records)
            self._add(depth + 1, self._emit(records[:end].to_bytes()))
            records = records[end:]
        return records


class _Level:
    """Records of one depth that have no page yet."""

    def __init__(self) -> None:
        self.waiting: list[Records] = []
        self.count = 0
        self.paged = False


def _boundary(records: Records) -> int:
    """Where the first page of these records ends: behind the first record, from _LEAST on, whose hash says so."""
    window = records.hashes[_LEAST - 1 : _MOST, HASH - 1]
    ends = np.flatnonzero(window % _MEAN == 0)
    return _LEAST + int(ends[0]) if len(ends) else min(_MOST, len(records))


def walk(tree: Tree, read: Callable[[Records], Sequence[bytes]], at_once: int = 256) -> Iterator[tuple[int, Records]]:
    """(depth, records) of a tree from the top down, in order; depth 0 is what the tree is about, the others are its pages.

    `read` gives the plain pages that records name. Holds `at_once` pages of each depth in memory.
    """
    yield tree.depth, tree.top
    if tree.depth == 0:
        return
    for start in range(0, len(tree.top), at_once):
        below = Records.joined([Records.from_bytes(page) for page in read(tree.top[start : start + at_once])])
        yield from walk(Tree(tree.depth - 1, below), read, at_once)


def by_pack(packs: U64, numbers: U32) -> Iterator[tuple[int, U32, NDArray[np.intp]]]:
    """(pack, numbers, their positions) for each pack that occurs."""
    if not len(packs):
        return
    order = np.argsort(packs, kind="stable")
    ordered = packs[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        where = order[start:end]
        yield int(ordered[start]), numbers[where], where


def without(records: Records, excluded: Mapping[int, BitMap]) -> Records:
    """The records whose chunk is not excluded."""
    if not excluded:
        return records
    keep = np.ones(len(records), np.bool_)
    for pack, numbers, where in by_pack(records.packs, records.numbers):
        out = excluded.get(pack)
        if out is not None:
            keep[where] = [number not in out for number in numbers.tolist()]
    return records if keep.all() else records[keep]


class Named:
    """Which chunks are named, and the sealed bytes of each counted once."""

    def __init__(self) -> None:
        self.numbers: dict[int, BitMap] = {}

    def add(self, records: Records, but: Mapping[int, BitMap] | None = None) -> Iterable[tuple[int, BitMap, int]]:
        """Adds what is not named yet (nor in `but`); gives (pack, new numbers, their sealed bytes) for each pack."""
        for pack, numbers, where in by_pack(records.packs, records.numbers):
            fresh = BitMap(numbers)
            if but is not None and pack in but:
                fresh -= but[pack]
            known = self.numbers.setdefault(pack, BitMap())
            fresh -= known
            if not fresh:
                continue
            known |= fresh
            yield pack, fresh, _sealed_of(fresh, numbers, records.sealeds[where])


def _sealed_of(chosen: BitMap, numbers: U32, sealeds: U32) -> int:
    if len(chosen) == len(numbers):
        return int(sealeds.sum(dtype=np.uint64))
    unique, first = np.unique(numbers, return_index=True)
    return int(sealeds[first][np.isin(unique, np.array(chosen.to_array(), np.uint32))].sum(dtype=np.uint64))
