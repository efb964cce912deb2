"""Where chunks lie in an object, in the pieces in which they are best read; and sets of chunks, as pack → numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from strongroom.repository._columns import U32, U64
from strongroom.repository.errors import MissingChunk
from strongroom.repository.fetching import ranges
from strongroom.repository.pack import ObjectIndex
from strongroom.repository.records import by_pack

_NONE: U64 = np.empty(0, np.uint64)


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
    for pack in index.packs if wanted is None else [pack for pack in wanted if pack in index.packs]:
        held = index.packs[pack]
        asked = held.numbers if wanted is None else np.array(wanted[pack].to_array(), np.uint32)
        here, at = held.positions(asked)
        at = at[here]
        packs.append(np.full(len(at), pack, np.uint64))
        numbers.append(held.numbers[at])
        offsets.append(held.offsets[at])
        lengths.append(held.lengths[at])
    return Places(np.concatenate(packs), np.concatenate(numbers), np.concatenate(offsets), np.concatenate(lengths))


def all_places(index: ObjectIndex, wanted: Mapping[int, BitMap]) -> Places:
    """Where the wanted chunks lie in an object. Raises MissingChunk if it does not hold them all."""
    found = places(index, wanted)
    for pack, numbers in take_chunks(wanted, found.chunks).items():
        raise MissingChunk(
            f"{index.name} does not hold chunk {numbers[0]} of pack {pack}", object_name=index.name, pack=pack, number=numbers[0]
        )
    return found


def add_chunks(to: dict[int, BitMap], chunks: Mapping[int, BitMap]) -> None:
    """Adds sets of chunks, as pack → numbers."""
    for pack, numbers in chunks.items():
        to[pack] = to.get(pack, BitMap()) | numbers


def take_chunks(chunks: Mapping[int, BitMap], away: Mapping[int, BitMap]) -> dict[int, BitMap]:
    """Those of the chunks that are not in `away`, as pack → numbers, no set empty."""
    left = {pack: numbers - away.get(pack, BitMap()) for pack, numbers in chunks.items()}
    return {pack: numbers for pack, numbers in left.items() if numbers}
