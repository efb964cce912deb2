"""Verifying objects: whether every byte of one is what was written."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from cryptography.exceptions import InvalidTag
from pyroaring import BitMap

from strongroom.repository.keys import LineageKeys
from strongroom.repository.pack import ObjectIndex, check_header, read_index
from strongroom.repository.places import Places, add_chunks, places
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
