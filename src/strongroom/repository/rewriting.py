"""Moving chunks out of objects that are partly dead into new ones, still sealed.

Survivors of several objects are gathered in one spool, each source read once; new objects are then made of them in any grouping.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import IO, NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from pyroaring import BitMap

from strongroom.ambient import Ambient
from strongroom.repository._columns import U32, U64
from strongroom.repository.errors import Damaged, Misuse
from strongroom.repository.keys import LineageKeys
from strongroom.repository.pack import HeldPack, ObjectIndex, Piece, object_header, seal_index
from strongroom.repository.places import Places, all_places
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


class _Gathered(NamedTuple):
    """Chunks of one pack out of one source: where they lie in the spool."""

    numbers: U32
    lengths: U32  # sealed bytes
    spooled: U64


class Survivors:
    """Living chunks, proven and still sealed, between the objects that they come from and those that they go into."""

    def __init__(self, store: Store, keys: LineageKeys, lineage: str, spool: IO[bytes]) -> None:
        self._store, self._keys, self._lineage, self._spool = store, keys, lineage, spool
        self._packs: defaultdict[int, list[_Gathered]] = defaultdict(list)
        self._facts: dict[int, HeldPack] = {}  # of each pack: its birth, its chunks in all and its key
        self._end = 0

    def gather(self, index: ObjectIndex, living: Mapping[int, BitMap]) -> None:
        """Reads the living chunks of one object, each opened once to prove it. Raises Damaged if one does not prove, MissingChunk
        if the object has not what it is said to have, and the store's errors: then nothing of it counts."""
        end = self._end
        self._spool.seek(end)
        found: list[tuple[Places, U64]] = []
        for some in all_places(index, living).reads():
            first = int(some.offsets[0])
            data = memoryview(self._store.get(index.name, first, int(some.offsets[-1] + some.lengths[-1]) - first))
            for pack, number, start, length in zip(
                some.packs.tolist(), some.numbers.tolist(), (some.offsets - first).tolist(), some.lengths.tolist(), strict=True
            ):
                sealed = data[start : start + length]
                _prove(index, pack, number, sealed)
                self._spool.write(sealed)
            ends = end + some.lengths.cumsum(dtype=np.uint64)
            found.append((some, (ends - some.lengths).astype(np.uint64)))
            end = int(ends[-1])
        self._end = end
        for some, spooled in found:
            for pack in np.unique(some.packs).tolist():
                mine = some.packs == pack
                self._facts.setdefault(pack, index.packs[pack])
                self._packs[pack].append(_Gathered(some.numbers[mine], some.lengths[mine], spooled[mine]))

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
        have = np.concatenate([one.numbers for one in sources]) if sources else np.empty(0, np.uint32)
        order = np.argsort(have, kind="stable")
        wanted = np.array(numbers.to_array(), np.uint32)
        at = np.searchsorted(have[order], wanted)
        if not len(have) or at.max() >= len(have) or not np.array_equal(have[order][at], wanted):
            raise Misuse(f"pack {pack} was not gathered in full")
        chosen = order[at]
        lengths: U32 = np.concatenate([one.lengths for one in sources])[chosen]
        spooled: U64 = np.concatenate([one.spooled for one in sources])[chosen]
        facts = self._facts[pack]
        return HeldPack(pack, facts.born, facts.total, facts.wrapped_key, wanted, lengths, _NONE), spooled


def _prove(index: ObjectIndex, pack: int, number: int, sealed: memoryview) -> None:
    try:
        index.cipher(pack).open(number, sealed)
    except InvalidTag:
        raise Damaged(
            f"{index.name} is damaged: chunk {number} of pack {pack} is not what was written",
            object_name=index.name, pack=pack, number=number,
        ) from None  # fmt: skip
