"""Verifying objects: whether every byte of one is what was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from numpy.typing import NDArray
from pyroaring import BitMap

from strongroom.repository._columns import U32, U64
from strongroom.repository.fetching import ranges
from strongroom.repository.keys import LineageKeys
from strongroom.repository.pack import ObjectIndex, check_header, read_index
from strongroom.repository.records import by_pack
from strongroom.storage.base import Store

_NONE: U64 = np.empty(0, np.uint64)


@dataclass(frozen=True)
class Checked:
    """What a check of one object found."""

    chunks: int
    sealed_bytes: int
    damaged: dict[int, BitMap] = field(default_factory=dict)  # pack → numbers that do not prove: suspect from now on

    @property
    def sound(self) -> bool:
        """Whether all of it is what was written."""
        return not self.damaged


@dataclass(frozen=True, eq=False, slots=True)
class Places:
    """Chunks of one object, of whichever packs: columns of equal length."""

    packs: U64
    numbers: U32
    offsets: U64
    lengths: U32  # sealed bytes

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, chosen: slice | NDArray[Any]) -> Places:
        return Places(self.packs[chosen], self.numbers[chosen], self.offsets[chosen], self.lengths[chosen])

    @property
    def sealed_bytes(self) -> int:
        """Of the chunks together."""
        return int(self.lengths.sum(dtype=np.uint64))

    @property
    def chunks(self) -> dict[int, BitMap]:
        """The same as pack → numbers."""
        return {pack: BitMap(numbers) for pack, numbers, _ in by_pack(self.packs, self.numbers)}

    def reads(self) -> Iterator[Places]:
        """What is got by one read each, some MiB at most, in the order in which it lies."""
        for chosen in ranges(self.offsets, self.lengths):
            yield self[chosen]


def places(index: ObjectIndex, wanted: Mapping[int, BitMap] | None = None) -> Places:
    """Where chunks lie in an object: all that it holds, or those of the wanted that it does."""
    packs, numbers, offsets, lengths = [_NONE], [_NONE.astype(np.uint32)], [_NONE], [_NONE.astype(np.uint32)]
    for pack, held in index.packs.items():
        asked = held.numbers if wanted is None else np.array(wanted.get(pack, BitMap()).to_array(), np.uint32)
        here, at = held.positions(asked)
        at = at[here]
        packs.append(np.full(len(at), pack, np.uint64))
        numbers.append(held.numbers[at])
        offsets.append(held.offsets[at])
        lengths.append(held.lengths[at])
    return Places(np.concatenate(packs), np.concatenate(numbers), np.concatenate(offsets), np.concatenate(lengths))


def check_object(store: Store, keys: LineageKeys, lineage: str, object_id: str, name: str) -> Checked:
    """Opens every chunk of an object of chunks; reads some MiB at a time.

    Raises Damaged if its header or index is not what was written: then all that it holds is lost. Raises UnknownFormat, and the
    store's ObjectMissing. That a chunk is what a manifest means by it is for the reader to prove, by the record's hash.
    """
    check_header(store, name)
    index = read_index(store, keys, lineage, object_id, name)
    everything = places(index)
    damaged: dict[int, BitMap] = {}
    for some in everything.reads():
        add_chunks(damaged, check_chunks(store, index, some))
    return Checked(len(everything), everything.sealed_bytes, damaged)


def check_chunks(store: Store, index: ObjectIndex, some: Places) -> dict[int, BitMap]:
    """Gets these chunks by one read and opens each; those that do not prove, as pack → numbers.

    Raises Damaged if the key of a pack is not what was written, and the store's errors.
    """
    first = int(some.offsets.min())
    data = memoryview(store.get(index.name, first, int((some.offsets + some.lengths).max()) - first))
    starts = (some.offsets - np.uint64(first)).tolist()
    bad: dict[int, BitMap] = {}
    for pack, number, start, length in zip(
        some.packs.tolist(), some.numbers.tolist(), starts, some.lengths.tolist(), strict=True
    ):
        try:
            index.cipher(pack).open(number, data[start : start + length])
        except InvalidTag:
            bad.setdefault(pack, BitMap()).add(number)
    return bad


def add_chunks(to: dict[int, BitMap], chunks: Mapping[int, BitMap]) -> None:
    """Adds sets of chunks, as pack → numbers."""
    for pack, numbers in chunks.items():
        to[pack] = to.get(pack, BitMap()) | numbers


def take_chunks(chunks: Mapping[int, BitMap], away: Mapping[int, BitMap]) -> dict[int, BitMap]:
    """Those of the chunks that are not in `away`, as pack → numbers, no set empty."""
    left = {pack: numbers - away.get(pack, BitMap()) for pack, numbers in chunks.items()}
    return {pack: numbers for pack, numbers in left.items() if numbers}
