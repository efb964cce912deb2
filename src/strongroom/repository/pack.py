"""Objects that hold chunks: how one is laid out, built and read.

    header (8): "SRPK" │ format u16 │ 0 u16
    sealed chunks, one after the other
    sealed index: AES-256-GCM under a random key of this object, nonce 0
    footer (70): wrapped index key (60) │ length of the sealed index u32 │ format u16 │ "SRPE"

The index is found from the tail, by one ranged read unless it is unusually long. Chunks of several packs may share an object
(after regrouping); the index says for each pack which numbers are here, in the order in which they lie.
"""

from __future__ import annotations

import mmap
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray
from pyroaring import BitMap

from strongroom.ambient import Ambient
from strongroom.repository._aead import KEY, OVERHEAD, TAG
from strongroom.repository._columns import U32, U64, deltas, from_planes, to_planes, undeltas
from strongroom.repository._document import FORMAT
from strongroom.repository.codec import Decoder, Encoder, FrameError
from strongroom.repository.errors import Damaged, Misuse, UnknownFormat
from strongroom.repository.keys import LineageKeys
from strongroom.repository.sealing import LARGEST_PACK_ID, ChunkCipher, unwrap_pack_key, wrap_pack_key
from strongroom.storage.base import Store

Piece = bytes | memoryview

_MAGIC, _END = b"SRPK", b"SRPE"
_FOOTER = struct.Struct(f">{KEY + OVERHEAD}sIH4s")
_GROUP = struct.Struct(f">QQI{KEY + OVERHEAD}sI")
_FIRST_READ = 64 << 10
_SPOOL_STEP = 4 << 20

HEADER_BYTES = 8
MOST_CHUNKS = 1 << 24
"""In one pack: far beyond what fits, so that a number never comes near the end of its 32 bits."""
UNKNOWN_TOTAL = (1 << 32) - 1


@dataclass(frozen=True, eq=False)
class HeldPack:
    """What one object holds of one pack. Numbers ascend; `offsets` are from the beginning of the object."""

    pack: int
    born: int  # seq of the part that wrote it
    total: int | None  # chunks in the whole pack, if it was known
    wrapped_key: bytes
    numbers: U32
    lengths: U32  # sealed bytes
    offsets: U64

    @property
    def number_set(self) -> BitMap:
        """The numbers that are here."""
        return BitMap(self.numbers)

    def positions(self, numbers: U32) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """For each number whether it is here, and where in the columns (anything where it is not)."""
        if not len(self.numbers):
            return np.zeros(len(numbers), np.bool_), np.zeros(len(numbers), np.intp)
        at = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return self.numbers[at] == numbers, at


class ObjectIndex:
    """The opened index of one object, and the ciphers of the packs in it."""

    def __init__(self, keys: LineageKeys, lineage: str, object_id: str, name: str, held: Sequence[HeldPack]) -> None:
        self.object_id, self.name = object_id, name
        self.packs: dict[int, HeldPack] = {one.pack: one for one in held}
        self._keys, self._lineage = keys, lineage
        self._ciphers: dict[int, ChunkCipher] = {}

    @property
    def memory(self) -> int:
        """Bytes that it takes, roughly."""
        return 512 + sum(512 + 16 * len(one.numbers) for one in self.packs.values())

    def cipher(self, pack: int) -> ChunkCipher:
        """Opens the chunks of a pack. Raises Damaged if its wrapped key is not what was written."""
        found = self._ciphers.get(pack)
        if found is None:
            try:
                key = unwrap_pack_key(self._keys, self._lineage, pack, self.packs[pack].wrapped_key)
            except InvalidTag:
                raise Damaged(f"{self.name}: the key of pack {pack} is damaged", object_name=self.name, pack=pack) from None
            found = self._ciphers[pack] = ChunkCipher(self._lineage, pack, key)
        return found

    def locate(self, pack: int, numbers: BitMap) -> list[tuple[int, int, int]]:
        """(number, offset, sealed length) of those of the numbers that are here, in ascending order."""
        held = self.packs.get(pack)
        if held is None or not numbers:
            return []
        wanted = np.array(numbers.to_array(), dtype=np.uint32)
        here, at = held.positions(wanted)
        chosen = at[here]
        return list(zip(wanted[here].tolist(), held.offsets[chosen].tolist(), held.lengths[chosen].tolist(), strict=True))


class PackBuilder:
    """Fills one pack, whose object holds nothing else. Draws the pack's key; use one builder for one slot, once.

    With `spool`, a folder, what was sealed waits in a file there (without a name) and not in memory.
    """

    def __init__(
        self,
        keys: LineageKeys,
        lineage: str,
        pack: int,
        object_id: str,
        born: int,
        ambient: Ambient,
        *,
        level: int = 1,
        spool: Path | None = None,
    ) -> None:
        if not 0 < pack <= LARGEST_PACK_ID:
            raise Misuse(f"a pack's id is a positive number of 63 bits, not {pack}")
        key = ambient.key()
        self.pack, self.object_id, self.born = pack, object_id, born
        self.sealed_bytes = 0
        self.sizes: list[int] = []
        self._keys, self._lineage, self._level = keys, lineage, level
        self._wrapped = wrap_pack_key(keys, lineage, pack, key)
        self._index_key = ambient.key()
        self._seal = ChunkCipher(lineage, pack, key).seal
        self._pieces: list[Piece] = [object_header()]
        self._spool = None if spool is None else tempfile.TemporaryFile(dir=spool)  # noqa: SIM115  lives as long as the pack is filled
        self._unspooled = 0
        self._finished = False

    def __len__(self) -> int:
        return len(self.sizes)

    def add(self, frame: bytes) -> tuple[int, int]:
        """Seals the next chunk's frame; gives (number, sealed length)."""
        number = len(self.sizes)
        if self._finished or number >= MOST_CHUNKS:
            raise Misuse(f"pack {self.pack} is finished or full")
        sealed = self._seal(number, frame)
        self._pieces.append(sealed)
        self.sizes.append(len(sealed))
        self.sealed_bytes += len(sealed)
        if self._spool is not None:
            self._unspooled += len(sealed)
            if self._unspooled >= _SPOOL_STEP:
                self._flush()
        return number, len(sealed)

    def finish(self) -> list[Piece]:
        """The object's bytes, in pieces."""
        self._finished = True
        lengths = np.array(self.sizes, dtype=np.uint32)
        numbers = np.arange(len(lengths), dtype=np.uint32)
        held = HeldPack(self.pack, self.born, len(lengths), self._wrapped, numbers, lengths, np.empty(0, np.uint64))
        tail = seal_index(self._keys, self._lineage, self.object_id, self._index_key, [held], self._level)
        if self._spool is None:
            return [*self._pieces, tail]
        self._flush()
        with self._spool as file:
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return [memoryview(mapped), tail]

    def discard(self) -> None:
        """Lets go of what waits on disk; for a pack that will not be put."""
        self._pieces.clear()
        if self._spool is not None:
            self._spool.close()

    def _flush(self) -> None:
        assert self._spool is not None
        self._spool.write(b"".join(self._pieces))
        self._pieces.clear()
        self._unspooled = 0


def seal_index(
    keys: LineageKeys, lineage: str, object_id: str, index_key: bytes, held: Sequence[HeldPack], level: int = 1
) -> bytes:
    """Sealed index and footer of an object whose chunks lie in the order of `held`. The index key is fresh for each object."""
    plain = [len(held).to_bytes(4, "big")]
    for one in held:
        total = UNKNOWN_TOTAL if one.total is None else one.total
        plain.append(_GROUP.pack(one.pack, one.born, total, one.wrapped_key, len(one.numbers)))
        plain += (to_planes(deltas(one.numbers), 4), to_planes(one.lengths, 4))
    about = _about_index(lineage, object_id)
    sealed = AESGCM(index_key).encrypt(bytes(12), Encoder(level).encode(b"".join(plain)), about)
    wrapped = keys.indexes.seal(index_key, about)
    return sealed + _FOOTER.pack(wrapped, len(sealed), FORMAT, _END)


def read_index(store: Store, keys: LineageKeys, lineage: str, object_id: str, name: str) -> ObjectIndex:
    """Reads an object's index from its tail. Raises Damaged, UnknownFormat, and the store's ObjectMissing."""
    tail = store.get(name, -_FIRST_READ)
    wrapped, length = _read_footer(tail, name)
    needed = length + _FOOTER.size
    if needed > len(tail):
        if len(tail) < _FIRST_READ:
            raise Damaged(f"{name} is damaged: it is shorter than its index", object_name=name)
        tail = store.get(name, -needed)
        if len(tail) < needed:
            raise Damaged(f"{name} is damaged: it is shorter than its index", object_name=name)
    about = _about_index(lineage, object_id)
    try:
        key = keys.indexes.open(wrapped, about)
        frame = AESGCM(key).decrypt(bytes(12), tail[-needed : -_FOOTER.size], about)
        held = _parse_index(Decoder().decode(frame))
    except InvalidTag:
        raise Damaged(f"{name} is damaged: its index does not open", object_name=name) from None
    except (FrameError, struct.error, ValueError) as error:
        raise Damaged(f"{name} is damaged: its index cannot be read ({error})", object_name=name) from error
    return ObjectIndex(keys, lineage, object_id, name, held)


def check_header(store: Store, name: str) -> None:
    """Raises Damaged or UnknownFormat unless the object begins as ours do."""
    head = store.get(name, 0, HEADER_BYTES)
    if head == object_header():
        return
    if head[:4] == _MAGIC and len(head) == HEADER_BYTES and head[4:6] != object_header()[4:6]:
        raise UnknownFormat(f"{name} has format {int.from_bytes(head[4:6], 'big')}; this version reads format {FORMAT}")
    raise Damaged(f"{name} is damaged: it begins with {head!r}", object_name=name)


def object_header() -> bytes:
    """How an object of chunks begins."""
    return _MAGIC + FORMAT.to_bytes(2, "big") + bytes(2)


def _about_index(lineage: str, object_id: str) -> bytes:
    return b"index" + FORMAT.to_bytes(2, "big") + lineage.encode() + b"/" + object_id.encode()


def _read_footer(tail: bytes, name: str) -> tuple[bytes, int]:
    if len(tail) < _FOOTER.size + HEADER_BYTES:
        raise Damaged(f"{name} is damaged: it has {len(tail)} bytes", object_name=name)
    wrapped, length, version, end = _FOOTER.unpack_from(tail, len(tail) - _FOOTER.size)
    if end != _END:
        raise Damaged(f"{name} is damaged: it does not end as an object of chunks does", object_name=name)
    if version != FORMAT:
        raise UnknownFormat(f"{name} has format {version}; this version reads format {FORMAT}: use a newer one")
    if length < TAG:
        raise Damaged(f"{name} is damaged: its index cannot be {length} bytes", object_name=name)
    return wrapped, length


def _parse_index(plain: bytes) -> list[HeldPack]:
    held: list[HeldPack] = []
    at, offset = 4, HEADER_BYTES
    for _ in range(int.from_bytes(plain[:4], "big")):
        pack, born, total, wrapped, count = _GROUP.unpack_from(plain, at)
        at += _GROUP.size
        numbers = undeltas(from_planes(memoryview(plain)[at : at + 4 * count], 4, count))
        lengths: U32 = from_planes(memoryview(plain)[at + 4 * count : at + 8 * count], 4, count)
        at += 8 * count
        ends = np.cumsum(lengths, dtype=np.uint64) + np.uint64(offset)
        offset = int(ends[-1]) if count else offset
        known = None if total == UNKNOWN_TOTAL else total
        held.append(HeldPack(pack, born, known, wrapped, numbers, lengths, ends - lengths))
    if at != len(plain):
        raise ValueError("bytes are left behind its last pack")
    return held
