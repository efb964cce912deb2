"""Moving chunks out of objects that are partly dead into new ones, still sealed.

Survivors of several objects are gathered in one spool, each source read once; new objects are then made of them in any grouping.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from numpy.typing import NDArray
from pyroaring import BitMap

from strongroom.ambient import Ambient
from strongroom.repository._columns import U32, U64
from strongroom.repository.errors import Damaged, MissingChunk, Misuse
from strongroom.repository.fetching import ranges
from strongroom.repository.keys import LineageKeys
from strongroom.repository.pack import HeldPack, ObjectIndex, Piece, object_header, seal_index
from strongroom.storage.base import Store

_NONE = np.empty(0, np.uint64)


class Held(NamedTuple):
    """What a new object holds of one pack."""

    pack: int
    numbers: BitMap
    sealed_bytes: int


class Copy(NamedTuple):
    """A new object, not put yet."""

    pieces: list[Piece]
    holdings: list[Held]
    size: int  # bytes of the object


@dataclass(slots=True)
class _Gathered:
    """Chunks of one pack out of one source: where they lie in the spool."""

    held: HeldPack  # numbers and sealed lengths, ascending
    places: U64


class Survivors:
    """Living chunks, proven and still sealed, between the objects that they come from and those that they go into."""

    def __init__(self, store: Store, keys: LineageKeys, lineage: str, spool: IO[bytes]) -> None:
        self._store, self._keys, self._lineage, self._spool = store, keys, lineage, spool
        self._packs: defaultdict[int, list[_Gathered]] = defaultdict(list)
        self._end = 0

    def gather(self, index: ObjectIndex, living: Mapping[int, BitMap]) -> None:
        """Reads the living chunks of one object, each opened once to prove it. Raises Damaged if one does not prove, MissingChunk
        if the object has not what it is said to have, and the store's errors: then nothing of it counts."""
        found = [_positions(index, pack, numbers) for pack, numbers in sorted(living.items()) if numbers]
        if not found:
            return
        owner = np.repeat(np.arange(len(found)), [len(at) for _, at in found])
        offsets = np.concatenate([held.offsets[at] for held, at in found])
        lengths = np.concatenate([held.lengths[at] for held, at in found])
        numbers = np.concatenate([held.numbers[at] for held, at in found])
        places = np.empty(len(offsets), np.uint64)
        self._spool.seek(self._end)
        end = self._end
        for chosen in ranges(offsets, lengths):
            first = int(offsets[chosen[0]])
            data = memoryview(self._store.get(index.name, first, int(offsets[chosen[-1]] + lengths[chosen[-1]]) - first))
            for at in chosen.tolist():
                start = int(offsets[at]) - first
                sealed = data[start : start + int(lengths[at])]
                _prove(index, found[owner[at]][0].pack, int(numbers[at]), sealed)
                self._spool.write(sealed)
                places[at] = end
                end += len(sealed)
        self._end = end
        for one, (held, at) in enumerate(found):
            mine = owner == one
            part = HeldPack(held.pack, held.born, held.total, held.wrapped_key, held.numbers[at], held.lengths[at], _NONE)
            self._packs[held.pack].append(_Gathered(part, places[mine]))

    def make(self, object_id: str, wanted: Mapping[int, BitMap], *, ambient: Ambient, level: int = 1) -> Copy:
        """A new object of the wanted chunks, pack by pack in the order given; pack keys are carried over as they are wrapped.

        Takes about the object's size in memory; puts nothing. Raises Misuse if nothing is wanted or something was not gathered.
        """
        parts: list[HeldPack] = []
        pieces: list[Piece] = [object_header()]
        for pack, numbers in wanted.items():
            if numbers:
                part, places = self._take(pack, numbers)
                parts.append(part)
                for place, length in zip(places.tolist(), part.lengths.tolist(), strict=True):
                    self._spool.seek(place)
                    pieces.append(self._spool.read(length))
        if not parts:
            raise Misuse(f"nothing to put into {object_id}")
        pieces.append(seal_index(self._keys, self._lineage, object_id, ambient.key(), parts, level))
        holdings = [Held(part.pack, part.number_set, int(part.lengths.sum(dtype=np.uint64))) for part in parts]
        return Copy(pieces, holdings, sum(len(piece) for piece in pieces))

    def _take(self, pack: int, numbers: BitMap) -> tuple[HeldPack, U64]:
        """Wanted chunks of a pack, whichever sources they came from."""
        sources = self._packs.get(pack, [])
        have = np.concatenate([one.held.numbers for one in sources]) if sources else np.empty(0, np.uint32)
        order = np.argsort(have, kind="stable")
        wanted = np.array(numbers.to_array(), np.uint32)
        at = np.searchsorted(have[order], wanted)
        if not len(have) or at.max() >= len(have) or not np.array_equal(have[order][at], wanted):
            raise Misuse(f"pack {pack} was not gathered in full")
        chosen = order[at]
        lengths: U32 = np.concatenate([one.held.lengths for one in sources])[chosen]
        places: U64 = np.concatenate([one.places for one in sources])[chosen]
        first = sources[0].held
        return HeldPack(pack, first.born, first.total, first.wrapped_key, wanted, lengths, _NONE), places


def sizes_in(index: ObjectIndex, pack: int, numbers: BitMap) -> U32:
    """Sealed bytes of each of the numbers, ascending. Raises MissingChunk if the object does not hold them all."""
    held, at = _positions(index, pack, numbers)
    return held.lengths[at]


def _positions(index: ObjectIndex, pack: int, numbers: BitMap) -> tuple[HeldPack, NDArray[np.intp]]:
    held = index.packs.get(pack)
    wanted = np.array(numbers.to_array(), np.uint32)
    here, at = held.positions(wanted) if held is not None else (np.zeros(len(wanted), np.bool_), wanted.astype(np.intp))
    if held is None or not here.all():
        number = int(wanted[~here][0])
        raise MissingChunk(
            f"{index.name} does not hold chunk {number} of pack {pack}", object_name=index.name, pack=pack, number=number
        )
    return held, at


def _prove(index: ObjectIndex, pack: int, number: int, sealed: memoryview) -> None:
    try:
        index.cipher(pack).open(number, sealed)
    except InvalidTag:
        raise Damaged(
            f"{index.name} is damaged: chunk {number} of pack {pack} is not what was written",
            object_name=index.name, pack=pack, number=number,
        ) from None  # fmt: skip
