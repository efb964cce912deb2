"""What the repository's tests share: fixed randomness, a sink that keeps packs, and ways to write and read a part."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from blake3 import blake3
from pyroaring import BitMap

from strongroom.ambient import Machine
from strongroom.repository import names
from strongroom.repository.fetching import Holder
from strongroom.repository.keys import LineageKeys
from strongroom.repository.manifest import Manifest
from strongroom.repository.pack import read_index
from strongroom.repository.reader import BackupReader
from strongroom.repository.rewriting import Copy, Survivors
from strongroom.repository.writer import PackSlot, PartWriter, SealedPart
from strongroom.storage.base import Store
from strongroom.storage.memory import MemoryStore

LINEAGE = "1" * 32
PLENTY = 1 << 40


class Seeded(Machine):
    """Ids and keys that are the same in every run, and never the same twice in one."""

    def __init__(self, seed: int = 0) -> None:
        self._stream = blake3(b"test ambient %d" % seed)
        self._at = 0
        self._lock = threading.Lock()
        self.keys: list[bytes] = []

    def _draw(self, size: int) -> bytes:
        with self._lock:
            self._at += size
            return self._stream.digest(size, seek=self._at - size)

    def hex_id(self) -> str:
        return self._draw(16).hex()

    def key(self) -> bytes:
        self.keys.append(self._draw(32))
        return self.keys[-1]


class Quiet:
    """A job that is never cancelled, until `error` is set."""

    def __init__(self) -> None:
        self.checks = 0
        self.error: BaseException | None = None

    def check(self) -> None:
        self.checks += 1
        if self.error is not None:
            raise self.error


class Sink:
    """Puts packs into a store and remembers where they are. `on_put` may raise, or wait."""

    def __init__(self, vault: Vault, seq: int, on_put: Callable[[PackSlot], None] | None = None) -> None:
        self._vault, self._seq, self._on_put = vault, seq, on_put
        self.opened: list[PackSlot] = []
        self.sizes: dict[int, list[int]] = {}

    def open(self) -> PackSlot:
        key = self._vault.ambient.hex_id()
        pack = int(self._vault.ambient.hex_id()[:16], 16) >> 1
        slot = PackSlot(pack, key, names.pack(LINEAGE, self._seq, 1, key))
        self.opened.append(slot)
        return slot

    def put(self, slot: PackSlot, pieces: Sequence[bytes | memoryview], sizes: Sequence[int]) -> None:
        if self._on_put is not None:
            self._on_put(slot)
        self._vault.store.put_new(slot.name, pieces)
        self.sizes[slot.pack] = list(sizes)
        self._vault.places.setdefault(slot.pack, []).append((slot.object_id, slot.name))


@dataclass
class Vault:
    """One lineage in one store, with a catalog that is a dict."""

    scratch: Path
    store: Store = field(default_factory=MemoryStore)
    ambient: Seeded = field(default_factory=Seeded)
    average: int = 4096
    pack_target: int = 1 << 20
    compression: int = 1
    places: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    asked: int = 0

    def __post_init__(self) -> None:
        self.keys = LineageKeys.create(self.ambient)
        self.control = Quiet()
        self._writers = 0

    def objects_of(self, pack: int) -> Sequence[Holder]:
        self.asked += 1
        return [Holder(key, name, None) for key, name in self.places.get(pack, ())]

    def writer(
        self, seq: int, parent: Manifest | None = None, sink: Sink | None = None, suspects: Mapping[int, BitMap] | None = None
    ) -> PartWriter:
        self._writers += 1
        folder = self.scratch / f"part-{self._writers}"
        folder.mkdir()
        return PartWriter(
            keys=self.keys, lineage=LINEAGE, seq=seq, ambient=self.ambient, chunk_average=self.average,
            pack_target=self.pack_target, sink=sink or Sink(self, seq), parent=parent, suspects=suspects or {}, scratch=folder,
            control=self.control, compression=self.compression,
        )  # fmt: skip

    def seal(self, writer: PartWriter, seq: int, parent: int = 0, facts: Mapping[str, Any] | None = None) -> Written:
        sealed = writer.seal()
        root = sealed.root(
            project="p", instance="i", attempt=1, backup=f"backup-{seq}", parent=parent, plan=[(LINEAGE, seq, "")],
            facts=dict(facts or {}), engine_facts={"version": "7"},
        )  # fmt: skip
        name = names.manifest(LINEAGE, seq, 1, self.ambient.hex_id())
        self.store.put_new(name, root)
        return Written(seq, name, sealed, self.manifest(name))

    def write(
        self,
        seq: int,
        entries: Mapping[str, bytes],
        parent: Written | None = None,
        *,
        step: int = 100_000,
        suspects: Mapping[int, BitMap] | None = None,
    ) -> Written:
        """A part of these entries, written in steps of so many bytes."""
        writer = self.writer(seq, None if parent is None else parent.manifest, suspects=suspects)
        try:
            for name, data in entries.items():
                with writer.entry(name) as entry:
                    for start in range(0, len(data), step):
                        entry.write(data[start : start + step])
                    entry.finish({"length": len(data)})
            return self.seal(writer, seq, 0 if parent is None else parent.seq)
        except BaseException:
            writer.abort()
            raise

    def manifest(self, name: str) -> Manifest:
        return Manifest.open(self.store, self.keys, LINEAGE, name, self)

    def reader(self, manifest: Manifest) -> BackupReader:
        return BackupReader(manifest, self.store, self.keys, self)

    def read(self, name: str) -> dict[str, bytes]:
        """All of a part, opened anew."""
        manifest = self.manifest(name)
        with self.reader(manifest) as reader:
            return {entry.name: b"".join(reader.read(entry.name)) for entry in reader.entries()}

    def change(self, name: str, data: bytes) -> None:
        """What no writer may do: replaces an object's bytes."""
        self.store.delete(name)
        self.store.put_new(name, data)


@dataclass(frozen=True)
class Written:
    """A part that was written."""

    seq: int
    root: str
    sealed: SealedPart
    manifest: Manifest


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not shrink, the same in every run."""
    return blake3(b"noise %d" % seed).digest(size)


def rows(count: int, seed: int = 0) -> bytes:
    """Records that shrink, all different."""
    return b"".join(b'{"id": %d, "name": "user %d", "seed": %d}\n' % (at, at * 7919 % 10007, seed) for at in range(count))


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    """The same bytes but for one bit."""
    out = bytearray(data)
    out[at] ^= 1 << bit
    return bytes(out)


def size_of(used: Mapping[int, BitMap]) -> int:
    """How many chunks are named."""
    return sum(len(numbers) for numbers in used.values())


def batches(data: Iterable[bytes]) -> bytes:
    """All pieces as one."""
    return b"".join(data)


def rewrite(vault: Vault, sources: Sequence[tuple[str, str, Mapping[int, BitMap]]], new: str) -> Copy:
    """Chunks of some objects, (id, name, pack → numbers), copied into a new one that is not put yet."""
    wanted: dict[int, BitMap] = {}
    with SpooledTemporaryFile(max_size=1 << 20) as spool:
        survivors = Survivors(vault.store, vault.keys, LINEAGE, spool)
        for key, name, living in sources:
            survivors.gather(read_index(vault.store, vault.keys, LINEAGE, key, name), living)
            for pack, numbers in living.items():
                wanted[pack] = wanted.get(pack, BitMap()) | numbers
        return survivors.make(new, wanted, ambient=vault.ambient)
