"""Which surviving chunks share an object: those that the head still needs apart from those whose end is known, and these by their
end, so that a later deletion finds whole objects to free. Arithmetic only; backups/rewriting.py carries it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

_ENTRY, _GROUP, _FRAME = 8, 84, 256
"""Most bytes that an object's index takes for a chunk, for a pack, and beside them."""


@dataclass(frozen=True, slots=True)
class Class:
    """Chunks of one pack with one end. They die together, unless a deletion of heads opens some of them again."""

    pack: int
    last: int | None  # the part after which the head stopped needing them; None: the head needs them
    numbers: BitMap
    sizes: NDArray[Any]  # sealed bytes of each number, ascending


@dataclass(frozen=True, slots=True)
class Group:
    """What one new object will hold."""

    numbers: dict[int, BitMap] = field(default_factory=dict)  # by pack, in the order in which they will lie
    sizes: dict[int, NDArray[Any]] = field(default_factory=dict)  # as Class.sizes

    @property
    def most_bytes(self) -> int:
        """What the object takes at most."""
        chunks = sum(len(one) for one in self.numbers.values())
        sealed = sum(int(one.sum(dtype=np.uint64)) for one in self.sizes.values())
        return sealed + chunks * _ENTRY + len(self.numbers) * _GROUP + _FRAME


def group(classes: Sequence[Class], target: int) -> list[Group]:
    """Groups of even size, as few as hold all at no more than `target` sealed bytes each.

    Open and ended chunks share a group only where there are too few of one kind (under an eighth of `target`): small objects cost
    more in requests and rows than the apartness gives.
    """
    ended = sorted((one for one in classes if one.last is not None), key=lambda one: (one.last, one.pack))
    opened = sorted((one for one in classes if one.last is None), key=lambda one: one.pack)
    few = target // 8
    if min(_bytes(ended), _bytes(opened)) < few:
        return _cut([*ended, *opened], target)
    return [*_cut(ended, target), *_cut(opened, target)]


def _bytes(classes: Sequence[Class]) -> int:
    return sum(int(one.sizes.sum(dtype=np.uint64)) for one in classes)


def _cut(classes: Sequence[Class], target: int) -> list[Group]:
    """The classes in their order, cut into groups of even size between any two chunks."""
    total = _bytes(classes)
    count = max(1, -(-total // target))
    found: list[Group] = [Group() for _ in range(count)]
    before = 0
    for one in classes:
        begins = before + np.cumsum(one.sizes, dtype=np.int64) - one.sizes
        into = np.minimum(begins * count // total, count - 1)
        numbers = np.array(one.numbers.to_array(), np.uint32)
        for at in np.unique(into).tolist():
            mine = into == at
            _add(found[at], one.pack, numbers[mine], one.sizes[mine])
        before += int(one.sizes.sum(dtype=np.uint64))
    return [one for one in found if one.numbers]


def _add(into: Group, pack: int, numbers: NDArray[np.uint32], sizes: NDArray[Any]) -> None:
    """Chunks of a pack beside those of it that are there already."""
    known = into.numbers.get(pack)
    if known is not None:
        numbers = np.concatenate([np.array(known.to_array(), np.uint32), numbers])
        sizes = np.concatenate([into.sizes[pack], sizes])
        order = np.argsort(numbers)
        numbers, sizes = numbers[order], sizes[order]
    into.numbers[pack] = BitMap(numbers)
    into.sizes[pack] = sizes


__all__ = ["Class", "Group", "group"]
