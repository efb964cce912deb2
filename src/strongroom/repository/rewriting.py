"""Copying chunks out of objects that are partly dead into a new one, still sealed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from numpy.typing import NDArray
from pyroaring import BitMap

from strongroom.ambient import Ambient
from strongroom.repository._columns import U32
from strongroom.repository.errors import Damaged, MissingChunk, Misuse
from strongroom.repository.fetching import ranges
from strongroom.repository.keys import LineageKeys
from strongroom.repository.pack import HeldPack, ObjectIndex, Piece, object_header, read_index, seal_index
from strongroom.storage.base import Store


class Held(NamedTuple):
    """What the new object holds of one pack."""

    pack: int
    numbers: BitMap
    sealed_bytes: int


class Copy(NamedTuple):
    """A new object, not put yet."""

    pieces: list[Piece]
    holdings: list[Held]
    size: int  # bytes of the object


def rewrite(
    store: Store,
    keys: LineageKeys,
    lineage: str,
    sources: Sequence[tuple[str, str, Mapping[int, BitMap]]],
    new_object_id: str,
    *,
    ambient: Ambient,
    level: int = 1,
) -> Copy:
    """Copies the living chunks of `sources`, each (object id, name, pack → living numbers), in the order given.

    Every chunk is opened once to prove it, and copied as it is sealed; pack keys are carried over as they are wrapped. Takes
    about the new object's size in memory. Raises Damaged if a chunk does not prove, MissingChunk if an object has not what it is
    said to have, Misuse if nothing lives or a pack comes from two sources, and the store's errors. Puts and removes nothing.
    """
    parts: list[HeldPack] = []
    sealed: list[bytes] = []
    for object_id, name, living in sources:
        index = read_index(store, keys, lineage, object_id, name)
        for pack, numbers in sorted(living.items()):
            if numbers:
                part, chunks = _copy(store, index, pack, numbers)
                parts.append(part)
                sealed += chunks
    if not parts or len({part.pack for part in parts}) != len(parts):
        raise Misuse(f"nothing to copy into {new_object_id}, or a pack comes from two objects")
    tail = seal_index(keys, lineage, new_object_id, ambient.key(), parts, level)
    pieces: list[Piece] = [object_header(), *sealed, tail]
    holdings = [Held(part.pack, part.number_set, int(part.lengths.sum(dtype=np.uint64))) for part in parts]
    return Copy(pieces, holdings, sum(len(piece) for piece in pieces))


def _copy(store: Store, index: ObjectIndex, pack: int, numbers: BitMap) -> tuple[HeldPack, list[bytes]]:
    held = index.packs.get(pack)
    wanted = np.array(numbers.to_array(), np.uint32)
    here, at = held.positions(wanted) if held is not None else (np.zeros(len(wanted), np.bool_), wanted.astype(np.intp))
    if held is None or not here.all():
        number = int(wanted[~here][0])
        raise MissingChunk(
            f"{index.name} does not hold chunk {number} of pack {pack}",
            object_name=index.name,
            pack=pack,
            number=number,
        )
    chunks: list[bytes] = [b""] * len(wanted)
    for position, data in read_sealed(store, index, held, wanted, at):
        chunks[position] = data
    part = HeldPack(pack, held.born, held.total, held.wrapped_key, wanted, held.lengths[at], np.empty(0, np.uint64))
    return part, chunks


def read_sealed(
    store: Store, index: ObjectIndex, held: HeldPack, numbers: U32, at: NDArray[np.intp]
) -> Iterator[tuple[int, bytes]]:
    """(position, sealed chunk) of numbers that lie at `at` in the columns, each proven. Raises Damaged."""
    cipher = index.cipher(held.pack)
    offsets, lengths = held.offsets[at], held.lengths[at]
    for chosen in ranges(offsets, lengths):
        first = int(offsets[chosen[0]])
        last = int(offsets[chosen[-1]] + lengths[chosen[-1]])
        data = store.get(index.name, first, last - first)
        for position in chosen.tolist():
            start = int(offsets[position]) - first
            sealed, number = data[start : start + int(lengths[position])], int(numbers[position])
            try:
                cipher.open(number, sealed)
            except InvalidTag:
                raise Damaged(
                    f"{index.name} is damaged: chunk {number} of pack {held.pack} is not what was written",
                    object_name=index.name, pack=held.pack, number=number,
                ) from None  # fmt: skip
            yield position, sealed
