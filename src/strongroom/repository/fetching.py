"""Fetching chunks by what manifests say of them: wherever they lie now, verified, in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from numpy.typing import NDArray
from pyroaring import BitMap

from strongroom.repository._columns import U32, U64
from strongroom.repository.codec import Decoder, FrameError
from strongroom.repository.errors import Damaged, MissingChunk, MissingObject
from strongroom.repository.keys import LineageKeys
from strongroom.repository.pack import ObjectIndex, read_index
from strongroom.repository.records import HASH, Records, by_pack
from strongroom.storage.base import ObjectMissing, Store

GAP = 128 << 10
"""Bytes between two chunks that are rather read than asked for apart."""

_MOST_RANGE = 8 << 20
_MOST_INDEXES = 16 << 20
_MOST_PACKS = 4096

HEAL = "verify this backup, then take a new one: it stores anew what is damaged"


class Holder(NamedTuple):
    """An object that holds chunks of a pack."""

    object_id: str
    name: str
    numbers: BitMap | None  # which; None: all, or whatever its index says


class Locator(Protocol):
    """Knows where packs are now."""

    def objects_of(self, pack: int) -> Sequence[Holder]:
        """Every object that holds chunks of the pack, the best first."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Chunks of one pack in one object: positions in the caller's records, offsets and sealed lengths in the object."""

    pack: int
    where: NDArray[np.intp]
    offsets: U64
    lengths: U32


class ChunkFetcher:
    """Reads chunks of one lineage. Safe for several threads.

    An object is kept with its index as a pair. If the object is gone, the pack is looked up again, since a rewrite may have moved
    it; only the same object missing twice is an error.
    """

    def __init__(self, store: Store, keys: LineageKeys, lineage: str, locator: Locator) -> None:
        self._store, self._keys, self._lineage, self._locator = store, keys, lineage, locator
        self._lock = threading.Lock()
        self._indexes: OrderedDict[str, ObjectIndex] = OrderedDict()
        self._indexes_bytes = 0
        self._objects: OrderedDict[int, Sequence[Holder]] = OrderedDict()
        self._local = threading.local()

    def fetch(self, records: Records) -> list[bytes]:
        """The plain chunks, in the order of the records, each proven to be what the record says.

        Raises Damaged (with object, pack and number), MissingChunk, MissingObject, and the store's errors.
        """
        out: list[bytes] = [b""] * len(records)
        pending = np.arange(len(records))
        missing: set[str] = set()
        while len(pending):
            failed: list[NDArray[np.intp]] = []
            for index, places in self._resolve(records, pending, missing):
                try:
                    self._read(index, places, records, out)
                except ObjectMissing as error:
                    self._note_missing(index.object_id, index.name, missing, error)
                    failed += [place.where for place in places]
            pending = np.concatenate(failed) if failed else np.empty(0, np.intp)
        return out

    # Where the chunks are

    def _resolve(self, records: Records, pending: NDArray[np.intp], missing: set[str]) -> list[tuple[ObjectIndex, list[_Place]]]:
        found: dict[str, tuple[ObjectIndex, list[_Place]]] = {}
        for pack, _, at in by_pack(records.packs[pending], records.numbers[pending]):
            for index, place in self._find(pack, records.numbers, pending[at], missing):
                found.setdefault(index.object_id, (index, []))[1].append(place)
        return list(found.values())

    def _find(self, pack: int, numbers: U32, where: NDArray[np.intp], missing: set[str]) -> list[tuple[ObjectIndex, _Place]]:
        """Places for all of the numbers at `where`; asks anew where what is remembered does not have them all."""
        fresh = False
        while True:
            with self._lock:
                known = self._objects.get(pack)
            if known is None:
                known, fresh = self._locator.objects_of(pack), True
                self._remember(pack, known)
            found, rest = self._among(known, pack, numbers, where, missing)
            if not len(rest):
                return found
            self._forget(pack)
            if fresh and not any(one.object_id in missing for one in known):
                number = int(numbers[rest[0]])
                text = f"chunk {number} of pack {pack} is in none of the {len(known)} objects that hold the pack: {HEAL}"
                raise MissingChunk(text, object_name=known[0].name if known else None, pack=pack, number=number)

    def _among(
        self, objects: Sequence[Holder], pack: int, numbers: U32, where: NDArray[np.intp], missing: set[str]
    ) -> tuple[list[tuple[ObjectIndex, _Place]], NDArray[np.intp]]:
        found: list[tuple[ObjectIndex, _Place]] = []
        for key, name, said in objects:
            if not len(where):
                break
            if said is not None and said.isdisjoint(BitMap(numbers[where])):
                continue
            try:
                index = self._index(key, name)
            except ObjectMissing as error:
                self._note_missing(key, name, missing, error)
                continue
            held = index.packs.get(pack)
            if held is None:
                continue
            here, at = held.positions(numbers[where])
            if here.any():
                found.append((index, _Place(pack, where[here], held.offsets[at[here]], held.lengths[at[here]])))
                where = where[~here]
        return found, where

    def _note_missing(self, key: str, name: str, missing: set[str], error: ObjectMissing) -> None:
        self._drop(key)
        if key in missing:
            raise MissingObject(f"{name} is missing, and nothing has taken its place: {HEAL}", object_name=name) from error
        missing.add(key)

    # What is remembered

    def _index(self, key: str, name: str) -> ObjectIndex:
        with self._lock:
            known = self._indexes.get(key)
            if known is not None:
                self._indexes.move_to_end(key)
                return known
        index = read_index(self._store, self._keys, self._lineage, key, name)
        with self._lock:
            if key not in self._indexes:
                self._indexes[key] = index
                self._indexes_bytes += index.memory
            while self._indexes_bytes > _MOST_INDEXES and len(self._indexes) > 1:
                _, old = self._indexes.popitem(last=False)
                self._indexes_bytes -= old.memory
        return index

    def _drop(self, key: str) -> None:
        """Forgets an object, and everything said of packs that named it."""
        with self._lock:
            index = self._indexes.pop(key, None)
            if index is not None:
                self._indexes_bytes -= index.memory
            for pack in [pack for pack, objects in self._objects.items() if any(one.object_id == key for one in objects)]:
                del self._objects[pack]

    def _remember(self, pack: int, objects: Sequence[Holder]) -> None:
        with self._lock:
            self._objects[pack] = objects
            while len(self._objects) > _MOST_PACKS:
                self._objects.popitem(last=False)

    def _forget(self, pack: int) -> None:
        with self._lock:
            self._objects.pop(pack, None)

    # Reading

    def _read(self, index: ObjectIndex, places: Sequence[_Place], records: Records, out: list[bytes]) -> None:
        offsets = np.concatenate([place.offsets for place in places])
        lengths = np.concatenate([place.lengths for place in places])
        where = np.concatenate([place.where for place in places])
        for chosen in ranges(offsets, lengths):
            first = int(offsets[chosen[0]])
            end = int((offsets[chosen] + lengths[chosen]).max())
            data = memoryview(self._store.get(index.name, first, end - first))
            starts = (offsets[chosen] - np.uint64(first)).tolist()
            for at, start, length in zip(where[chosen].tolist(), starts, lengths[chosen].tolist(), strict=True):
                out[at] = self._open(index, records, at, data[start : start + length])

    def _open(self, index: ObjectIndex, records: Records, at: int, sealed: memoryview) -> bytes:
        pack, number = int(records.packs[at]), int(records.numbers[at])
        try:
            plain = self._decoder.decode(index.cipher(pack).open(number, sealed))
            right = blake3(plain, key=self._keys.dedup).digest(HASH) == records.hashes[at].tobytes()
        except (InvalidTag, FrameError):
            right = False
        if not right or len(plain) != records.plains[at]:
            text = f"{index.name} is damaged: chunk {number} of pack {pack} is not what was written: {HEAL}"
            raise Damaged(text, object_name=index.name, pack=pack, number=number)
        return plain

    @property
    def _decoder(self) -> Decoder:
        found: Any = getattr(self._local, "decoder", None)
        if found is None:
            found = self._local.decoder = Decoder()
        assert isinstance(found, Decoder)
        return found


def ranges(offsets: U64, lengths: U32) -> Iterator[NDArray[np.intp]]:
    """Positions of chunks that one read gets, ascending by offset: merged over gaps of up to GAP, up to some MiB a read."""
    order = np.argsort(offsets, kind="stable")
    starts = offsets[order].astype(np.int64)
    ends = starts + lengths[order]
    begin = 0
    for at in np.flatnonzero(starts[1:] - ends[:-1] > GAP) + 1:
        yield from _split(order[begin:at], starts[begin:at], ends[begin:at])
        begin = int(at)
    yield from _split(order[begin:], starts[begin:], ends[begin:])


def _split(order: NDArray[np.intp], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[NDArray[np.intp]]:
    while len(order):
        end = max(int(np.searchsorted(ends, starts[0] + _MOST_RANGE, side="right")), 1)
        yield order[:end]
        order, starts, ends = order[end:], starts[end:], ends[end:]
