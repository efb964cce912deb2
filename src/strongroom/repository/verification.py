"""Verifying objects: whether every byte of one is what was written."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from cryptography.exceptions import InvalidTag
from pyroaring import BitMap

from strongroom.repository.fetching import ranges
from strongroom.repository.keys import LineageKeys
from strongroom.repository.pack import HeldPack, ObjectIndex, check_header, read_index
from strongroom.storage.base import Store


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


def check_object(store: Store, keys: LineageKeys, lineage: str, object_id: str, name: str) -> Checked:
    """Opens every chunk of an object of chunks; reads some MiB at a time.

    Raises Damaged if its header or index is not what was written: then all that it holds is lost. Raises UnknownFormat, and the
    store's ObjectMissing. That a chunk is what a manifest means by it is for the reader to prove, by the record's hash.
    """
    check_header(store, name)
    index = read_index(store, keys, lineage, object_id, name)
    damaged: dict[int, BitMap] = {}
    for pack, held in index.packs.items():
        bad = _bad_numbers(store, index, held)
        if bad:
            damaged[pack] = bad
    chunks = sum(len(held.numbers) for held in index.packs.values())
    return Checked(chunks, sum(int(held.lengths.sum(dtype=np.uint64)) for held in index.packs.values()), damaged)


def _bad_numbers(store: Store, index: ObjectIndex, held: HeldPack) -> BitMap:
    cipher, bad = index.cipher(held.pack), BitMap()
    for chosen in ranges(held.offsets, held.lengths):
        first = int(held.offsets[chosen[0]])
        data = memoryview(store.get(index.name, first, int(held.offsets[chosen[-1]] + held.lengths[chosen[-1]]) - first))
        for at in chosen.tolist():
            start, number = int(held.offsets[at]) - first, int(held.numbers[at])
            try:
                cipher.open(number, data[start : start + int(held.lengths[at])])
            except InvalidTag:
                bad.add(number)
    return bad
