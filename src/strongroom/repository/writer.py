"""Writing a part: entries come in as streams, packs go out, and at the end there is a manifest's root.

    caller → blocks → cutting → batches → compressing (2) → in order → sealing → packs → putting (2)
                      cut, hash, look up                               number, seal, pages

Every arrow is bounded, so memory is too, and a slow store slows the engine down. The first error of any stage stops all of
them and is raised in the caller. Stream order is kept: packs hold chunks as they came. Pages go into packs of their own, so
that a manifest can be read without touching the data.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from pyroaring import BitMap

from strongroom.ambient import Ambient
from strongroom.engines.base import Entry
from strongroom.repository._columns import U8
from strongroom.repository.chunking import Cutter
from strongroom.repository.codec import Encoder
from strongroom.repository.dedup import DedupIndex, PlaceLog
from strongroom.repository.errors import Misuse
from strongroom.repository.keys import LineageKeys
from strongroom.repository.manifest import Content, Header, Manifest, ManifestEntry, Totals, seal_manifest
from strongroom.repository.pack import PackBuilder, Piece
from strongroom.repository.records import HASH, Named, Records, Tree, TreeBuilder, without

_BLOCK = 1 << 20  # bytes handed on at once
_BLOCKS_WAITING = 2
_BATCHES_WAITING = 3
_COMPRESSORS = 2
_PUTTERS = 2
_SPOOL_FROM = 32 << 20  # packs larger than this wait on disk, not in memory
_PAGE_LEAST, _PAGE_MOST = 4 << 10, 64 << 10  # bytes of a page of entries
_POLL = 0.05  # seconds between looks whether another stage has failed


@dataclass(frozen=True, slots=True)
class PackSlot:
    """A pack that is known before it is written: its row is committed."""

    pack: int
    object_id: str
    name: str = ""


class PackSink(Protocol):
    """Where packs go. Called from threads of the writer."""

    def open(self) -> PackSlot:
        """A fresh slot, registered durably before it is given. One slot is filled with data and one with pages at a time."""

    def put(self, slot: PackSlot, pieces: Sequence[Piece], sizes: Sequence[int]) -> None:
        """Stores the object; durable when it returns. `sizes` are sealed bytes by number. Two may run at once, in any order."""


class Checks(Protocol):
    """The running job, as far as a writer needs it."""

    def check(self) -> None:
        """Raises if the job was cancelled, lost or must drain."""


@dataclass(frozen=True)
class SealedPart:
    """A part whose packs are all durable. Nothing names them until a root is stored and committed."""

    used: dict[int, BitMap]  # every (pack, number) that the manifest names, pages included
    entries: int
    plain_bytes: int
    stored_bytes: int  # of the objects that were put
    adopted_bytes: int  # sealed bytes of the parent's chunks that are named, each once
    packs: Sequence[tuple[int, int]]  # (pack, chunks) written
    _make_root: Callable[[Header, Content], bytes] = field(repr=False)
    _tree: Tree = field(repr=False)
    _average: int
    _lineage: str
    _seq: int

    def root(
        self,
        *,
        project: str,
        instance: str,
        attempt: int,
        backup: str,
        parent: int,
        plan: Sequence[tuple[str, int, str]],
        facts: Mapping[str, Any],
        engine_facts: Mapping[str, Any],
    ) -> bytes:
        """The root object of the manifest; `facts` and `engine_facts` are small and CBOR-able."""
        header = Header(project, instance, self._lineage, self._seq, attempt, backup)
        totals = Totals(self.entries, self.plain_bytes, self.stored_bytes, self.adopted_bytes)
        return self._make_root(header, Content(parent, plan, facts, engine_facts, totals, self._average, self.packs, self._tree))


def unused(parent: Manifest, used: Mapping[int, BitMap]) -> dict[int, tuple[BitMap, int]]:
    """What the parent names and `used` does not, as pack → (numbers, their sealed bytes): what dies with the commit."""
    named, found = Named(), dict[int, tuple[BitMap, int]]()
    for _, records in parent.everything():
        for pack, numbers, size in named.add(records, but=used):
            have, so_far = found.get(pack, (BitMap(), 0))
            found[pack] = (have | numbers, so_far + size)
    return found


class _Stopped(Exception):
    """Another stage has failed, or the writer was aborted."""


class _Flow:
    """What the stages share: the first error, and waiting that ends when there is one."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._lock = threading.Lock()

    def fail(self, error: BaseException) -> None:
        with self._lock:
            if self.error is None and not isinstance(error, _Stopped):
                self.error = error
        self.stop.set()

    def put(self, line: queue.Queue[Any], item: Any) -> None:
        while not self.stop.is_set():
            try:
                line.put(item, timeout=_POLL)
            except queue.Full:
                continue
            return
        raise _Stopped

    def get(self, line: queue.Queue[Any]) -> Any:
        while not self.stop.is_set():
            try:
                return line.get(timeout=_POLL)
            except queue.Empty:
                continue
        raise _Stopped

    def acquire(self, permits: threading.Semaphore) -> None:
        while not self.stop.is_set():
            if permits.acquire(timeout=_POLL):
                return
        raise _Stopped

    def raise_error(self) -> None:
        if self.error is not None:
            raise self.error
        if self.stop.is_set():
            raise Misuse("the writer was aborted")


@dataclass(slots=True)
class _Begin:
    name: str


@dataclass(slots=True)
class _End:
    facts: Mapping[str, Any]
    size: int = 0
    digest: bytes = b""


@dataclass(slots=True)
class _Adopt:
    entry: ManifestEntry


class _Last:
    """No more entries."""


@dataclass(slots=True)
class _Batch:
    """Consecutive chunks of one entry."""

    hashes: U8
    plains: NDArray[np.uint32]
    shared: Records  # what the parent has, in order
    is_shared: NDArray[np.bool_]
    ordinals: NDArray[np.int64]  # of all others, in order
    fresh: int  # how many of those are new
    frames: Future[list[bytes]]


class PartWriter:
    """A capture's sink for one part of a lineage. One entry is open at a time; everything public is for one thread.

    `passing` is told the bytes that come in, and may take its time. The parent's manifest is read first (Damaged if that cannot
    be). After an error, or where a part is not wanted, call abort().
    """

    def __init__(
        self,
        *,
        keys: LineageKeys,
        lineage: str,
        seq: int,
        ambient: Ambient,
        chunk_average: int,
        pack_target: int,
        sink: PackSink,
        parent: Manifest | None,
        suspects: Mapping[int, BitMap],
        scratch: Path,
        control: Checks,
        compression: int = 1,
        passing: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self._passing = passing
        self._control, self._parent, self._suspects = control, parent, dict(suspects)
        self._keys, self._lineage, self._seq, self._level = keys, lineage, seq, compression
        self._average = chunk_average
        self._flow = _Flow()
        self._names: set[bytes] = set()
        self._broken: str | None = None
        self._open = False
        index, pages = _load_parent(parent, scratch, self._suspects, control)
        blocks: queue.Queue[Any] = queue.Queue(_BLOCKS_WAITING)
        batches: queue.Queue[Any] = queue.Queue(_BATCHES_WAITING)
        self._blocks = blocks
        self._compressors = ThreadPoolExecutor(_COMPRESSORS, "compressing")
        self._putter = _Putter(sink, self._flow)

        def builder(slot: PackSlot) -> PackBuilder:
            spool = scratch if pack_target > _SPOOL_FROM else None
            return PackBuilder(keys, lineage, slot.pack, slot.object_id, seq, ambient, level=compression, spool=spool)

        cutting = _Cutting(keys, chunk_average, compression, index, self._compressors, self._flow, blocks, batches)
        self._sealing = _Sealing(
            keys, compression, pages, PlaceLog(scratch / "places"), self._flow, batches,
            _Packer(sink, builder, pack_target, self._putter), _Packer(sink, builder, pack_target, self._putter),
        )  # fmt: skip
        self._threads = [
            threading.Thread(target=self._guarded(cutting.run), name="cutting", daemon=True),
            threading.Thread(target=self._guarded(self._sealing.run), name="sealing", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def entry(self, name: str) -> Iterator[_Entry]:
        """Opens the next entry; leaving the block without `finish` discards the capture as broken. Raises Misuse."""
        self._claim(name)
        self._open = True
        writer = _Entry(self, name)
        try:
            self._hand_on(_Begin(name))
            yield writer
        finally:
            self._open = False
            if not writer.finished:
                self._broken = self._broken or f"entry {name} was not finished"

    @property
    def history(self) -> str:
        """The lineage: see CaptureSink."""
        return self._lineage

    @property
    def parent_facts(self) -> Mapping[str, Any] | None:
        """The engine's facts in the parent's manifest."""
        return None if self._parent is None else self._parent.engine_facts

    def parent_entry(self, name: str) -> Entry | None:
        """The parent's entry of this name. Raises Damaged."""
        if self._parent is None:
            return None
        try:
            found = self._parent.entry(name)
        except KeyError:
            return None
        return Entry(found.name, found.size, found.facts)

    def adopt_entry(self, name: str) -> bool:
        """Takes an entry of the parent over unread; only for what is proven to be the same.

        False, with nothing changed, if the parent has no such entry or some of its chunks are suspect: then it must be read.
        """
        entry = self._adoptable(name)
        if entry is None:
            return False
        self._claim(name)
        self._hand_on(_Adopt(entry))
        return True

    def seal(self) -> SealedPart:
        """Ends the part: every pack is durable when it returns. Raises the first error of any stage, or Misuse."""
        if self._broken is not None or self._open:
            self.abort()
            raise Misuse(f"the capture is broken: {self._broken or 'an entry is still open'}")
        self._hand_on(_Last())
        for thread in self._threads:
            while thread.is_alive():
                self._control.check()
                thread.join(_POLL)
        self._putter.drain()
        self._flow.raise_error()
        self._compressors.shutdown()
        done = self._sealing
        keys, level = self._keys, self._level
        return SealedPart(
            done.named.numbers, done.entries, done.plain_bytes, self._putter.bytes, done.adopted_bytes,
            self._putter.packs, lambda header, content: seal_manifest(keys, header, content, level), done.tree, self._average,
            self._lineage, self._seq,
        )  # fmt: skip

    def abort(self) -> None:
        """Stops every stage and waits for puts that are under way. May be called at any time and again."""
        self._flow.stop.set()
        for thread in self._threads:
            thread.join()
        self._compressors.shutdown(cancel_futures=True)
        self._putter.drain()
        self._sealing.discard()

    # Inside

    def _claim(self, name: str) -> None:
        if self._open:
            raise Misuse(f"entry {name} cannot begin: another is open")
        key = blake3(name.encode()).digest(HASH)
        if key in self._names:
            raise Misuse(f"there is an entry {name} already")
        self._names.add(key)

    def _hand_on(self, item: Any) -> None:
        self._control.check()
        try:
            self._flow.put(self._blocks, item)
        except _Stopped:
            self._flow.raise_error()

    def _guarded(self, run: Callable[[], None]) -> Callable[[], None]:
        def stage() -> None:
            try:
                run()
            except BaseException as error:  # the top of a thread: whatever it is, the caller must learn it
                self._flow.fail(error)

        return stage

    def _adoptable(self, name: str) -> ManifestEntry | None:
        if self._parent is None:
            return None
        try:
            entry = self._parent.entry(name)
        except KeyError:
            return None
        adopted: list[Records] = []
        for _, records in self._parent.pages_of(entry):
            self._control.check()
            if len(without(records, self._suspects)) != len(records):
                return None
            adopted.append(records)
        for records in adopted:
            self._sealing.adopt(records)
        return entry


class _Entry:
    """Receives one entry."""

    def __init__(self, writer: PartWriter, name: str) -> None:
        self._writer, self._name = writer, name
        self._buffer = bytearray()
        self.finished = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes; blocks while the pipeline is full. Raises the first error of any stage."""
        if self.finished:
            raise Misuse(f"entry {self._name} is finished")
        view = memoryview(data).cast("B")
        self._writer._passing(len(view))
        while len(view):
            taken = view[: _BLOCK - len(self._buffer)]
            self._buffer += taken
            view = view[len(taken) :]
            if len(self._buffer) >= _BLOCK:
                block, self._buffer = self._buffer, bytearray()
                self._writer._hand_on(block)

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        """Ends the entry. One that is not finished is never kept."""
        if self.finished:
            raise Misuse(f"entry {self._name} is finished already")
        if self._buffer:
            self._writer._hand_on(self._buffer)
            self._buffer = bytearray()
        self._writer._hand_on(_End(dict(facts or {})))
        self.finished = True


def _load_parent(
    parent: Manifest | None, scratch: Path, suspects: dict[int, BitMap], control: Checks
) -> tuple[DedupIndex, dict[bytes, Records]]:
    """The parent's chunks by hash, on disk, and its pages by hash, in memory: there are hundreds of times fewer."""
    index = DedupIndex(scratch, suspects)
    pages: dict[bytes, Records] = {}
    if parent is not None:
        for are_pages, records in parent.everything():
            control.check()
            if are_pages:
                fit = without(records, suspects)
                pages.update((fit.hashes[at].tobytes(), fit[at : at + 1]) for at in range(len(fit)))
            else:
                index.load(records)
    index.loaded()
    return index, pages


class _Cutting:
    """Cuts, hashes, looks up, and hands what is new to the compressors."""

    def __init__(
        self,
        keys: LineageKeys,
        average: int,
        level: int,
        index: DedupIndex,
        compressors: ThreadPoolExecutor,
        flow: _Flow,
        blocks: queue.Queue[Any],
        batches: queue.Queue[Any],
    ) -> None:
        self._hasher = blake3(key=keys.dedup)
        self._cutter = Cutter(average)
        self._level, self._index, self._compressors, self._flow = level, index, compressors, flow
        self._blocks, self._batches = blocks, batches
        self._encoders = threading.local()
        self._size = 0
        self._digest = blake3()
        self._ordinals = 0

    def run(self) -> None:
        while True:
            item = self._flow.get(self._blocks)
            if isinstance(item, bytearray):
                self._digest.update(item)
                self._size += len(item)
                self._batch(self._cutter.feed(item))
            elif isinstance(item, _End):
                self._batch(self._cutter.finish())
                item.size, item.digest = self._size, self._digest.digest()
                self._size, self._digest = 0, blake3()
                self._flow.put(self._batches, item)
            else:
                self._flow.put(self._batches, item)
                if isinstance(item, _Last):
                    return

    def _batch(self, found: tuple[memoryview, list[int]] | None) -> None:
        if found is None:
            return
        buffer, lengths = found
        chunks: list[memoryview] = []
        start = 0
        for length in lengths:
            chunks.append(buffer[start : start + length])
            start += length
        digests = [self._hash(chunk) for chunk in chunks]
        hashes = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, HASH)
        is_shared, packs, numbers, sealeds = self._index.find_parent(hashes)
        plains = np.array(lengths, np.uint32)
        shared = Records(hashes, packs, numbers, plains, sealeds)[is_shared]
        others = np.flatnonzero(~is_shared).tolist()
        ordinals, fresh = self._own([digests[at] for at in others], hashes[~is_shared])
        frames = self._compressors.submit(self._compress, [chunks[others[at]] for at in fresh])
        places = np.array(ordinals, np.int64)
        self._flow.put(self._batches, _Batch(hashes, plains, shared, is_shared, places, len(fresh), frames))

    def _own(self, digests: list[bytes], hashes: U8) -> tuple[list[int], list[int]]:
        """Ordinals of the part's own chunks, and which of the given are new."""
        ordinals, fresh = self._index.find_own(digests, hashes), []
        for at, ordinal in enumerate(ordinals):
            if ordinal < 0:
                ordinals[at] = self._index.add(digests[at], self._ordinals)
                if ordinals[at] == self._ordinals:
                    self._ordinals += 1
                    fresh.append(at)
        self._index.settle()
        return ordinals, fresh

    def _hash(self, chunk: memoryview) -> bytes:
        hasher = self._hasher.copy()
        hasher.update(chunk)
        return hasher.digest(HASH)

    def _compress(self, chunks: list[memoryview]) -> list[bytes]:
        encoder = getattr(self._encoders, "encoder", None)
        if encoder is None:
            encoder = self._encoders.encoder = Encoder(self._level)
        return [encoder.encode(chunk) for chunk in chunks]


class _Putter:
    """Puts packs from threads of its own, a bounded number at once."""

    def __init__(self, sink: PackSink, flow: _Flow) -> None:
        self._sink, self._flow = sink, flow
        self._pool = ThreadPoolExecutor(_PUTTERS, "putting")
        self._free = threading.Semaphore(_PUTTERS)
        self.bytes = 0
        self.packs: list[tuple[int, int]] = []

    def put(self, slot: PackSlot, builder: PackBuilder) -> None:
        """Returns once the put has begun; waits while as many as may be are under way."""
        self._flow.acquire(self._free)
        pieces, sizes = builder.finish(), builder.sizes
        self.bytes += sum(len(piece) for piece in pieces)
        self.packs.append((slot.pack, len(sizes)))
        self._pool.submit(self._run, slot, pieces, sizes)

    def drain(self) -> None:
        """Waits until no put is under way."""
        self._pool.shutdown()

    def _run(self, slot: PackSlot, pieces: Sequence[Piece], sizes: Sequence[int]) -> None:
        try:
            self._sink.put(slot, pieces, sizes)
        except BaseException as error:  # the top of a thread: whatever it is, the caller must learn it
            self._flow.fail(error)
        finally:
            self._free.release()


class _Packer:
    """Fills one pack after the other."""

    def __init__(self, sink: PackSink, builder: Callable[[PackSlot], PackBuilder], target: int, putter: _Putter) -> None:
        self._sink, self._builder, self._target, self._putter = sink, builder, target, putter
        self._filling: tuple[PackSlot, PackBuilder] | None = None

    def add(self, frames: Sequence[bytes]) -> tuple[list[int], list[int], list[int]]:
        """Seals frames; gives their packs, numbers and sealed lengths."""
        packs, numbers, sealeds = [], [], []
        for frame in frames:
            if self._filling is None:
                slot = self._sink.open()
                self._filling = slot, self._builder(slot)
            builder = self._filling[1]
            number, sealed = builder.add(frame)
            packs.append(builder.pack)
            numbers.append(number)
            sealeds.append(sealed)
            if builder.sealed_bytes >= self._target:
                self.flush()
        return packs, numbers, sealeds

    def flush(self) -> None:
        """Puts what has been filled so far."""
        if self._filling is not None:
            (slot, builder), self._filling = self._filling, None
            self._putter.put(slot, builder)

    def discard(self) -> None:
        """Throws away what has been filled so far."""
        if self._filling is not None:
            self._filling[1].discard()
            self._filling = None


class _Sealing:
    """Gives chunks their place, in order, and builds the manifest's pages."""

    def __init__(
        self,
        keys: LineageKeys,
        level: int,
        pages: dict[bytes, Records],
        log: PlaceLog,
        flow: _Flow,
        batches: queue.Queue[Any],
        data: _Packer,
        page_packs: _Packer,
    ) -> None:
        self._dedup, self._encoder = keys.dedup, Encoder(level)
        self._parent_pages, self._own_pages = pages, dict[bytes, Records]()
        self._log, self._flow, self._batches = log, flow, batches
        self._data, self._page_packs = data, page_packs
        self._lock = threading.Lock()
        self._name = ""
        self._records = TreeBuilder(self._emit)
        self._pages = TreeBuilder(self._emit)
        self._items: list[bytes] = []
        self._items_bytes = 0
        self.tree = Tree(0, Records.none())
        self.named = Named()
        self.entries = self.plain_bytes = self.adopted_bytes = 0

    def run(self) -> None:
        while True:
            item = self._flow.get(self._batches)
            if isinstance(item, _Batch):
                self._seal(item)
            elif isinstance(item, _Begin):
                self._name = item.name
                self._records = TreeBuilder(self._emit)
            elif isinstance(item, _End):
                tree = self._records.finish()
                self._add_entry(ManifestEntry(self._name, item.size, item.digest, item.facts, tree))
            elif isinstance(item, _Adopt):
                self._add_entry(item.entry)
            else:
                self._finish()
                return

    def adopt(self, records: Records) -> None:
        """Names chunks of the parent. The only method for any thread."""
        with self._lock:
            self.adopted_bytes += sum(size for _, _, size in self.named.add(records))

    def discard(self) -> None:
        """Throws away what waits."""
        self._data.discard()
        self._page_packs.discard()
        self._log.close()

    def _seal(self, batch: _Batch) -> None:
        if batch.fresh:
            self._log.append(*self._data.add(self._frames(batch.frames)))
        places = self._log.get(batch.ordinals)
        own = ~batch.is_shared
        packs, numbers, sealeds = (
            np.empty(len(own), np.uint64),
            np.empty(len(own), np.uint32),
            np.empty(len(own), np.uint32),
        )
        packs[own], numbers[own], sealeds[own] = places["pack"], places["number"], places["sealed"]
        shared = batch.shared
        packs[~own], numbers[~own], sealeds[~own] = shared.packs, shared.numbers, shared.sealeds
        records = Records(batch.hashes, packs, numbers, batch.plains, sealeds)
        self.adopt(shared)
        self._name_own(records[own])
        self._records.add(records)

    def _frames(self, future: Future[list[bytes]]) -> list[bytes]:
        while not self._flow.stop.is_set():
            try:
                return future.result(timeout=_POLL)
            except TimeoutError:
                if future.done():
                    raise
        raise _Stopped

    def _name_own(self, records: Records) -> None:
        with self._lock:
            for _ in self.named.add(records):
                pass

    def _add_entry(self, entry: ManifestEntry) -> None:
        """Entries' pages end by the hash of a name, so that what has not changed has the same pages."""
        item = entry.to_cbor()
        self._items.append(item)
        self._items_bytes += len(item)
        self.entries += 1
        self.plain_bytes += entry.size
        ends = blake3(entry.name.encode()).digest(1)[0] % 16 == 0
        if (ends and self._items_bytes >= _PAGE_LEAST) or self._items_bytes >= _PAGE_MOST:
            self._end_page()

    def _end_page(self) -> None:
        if self._items:
            self._pages.add(self._emit(_cbor_array_head(len(self._items)) + b"".join(self._items)))
            self._items, self._items_bytes = [], 0

    def _emit(self, page: bytes) -> Records:
        """Stores a page, or shares the parent's equal one."""
        digest = blake3(page, key=self._dedup).digest(HASH)
        known = self._parent_pages.get(digest)
        if known is not None:
            self.adopt(known)
            return known
        known = self._own_pages.get(digest)
        if known is None:
            packs, numbers, sealeds = self._page_packs.add([self._encoder.encode(page)])
            known = self._own_pages[digest] = Records.one(digest, packs[0], numbers[0], len(page), sealeds[0])
            self._name_own(known)
        return known

    def _finish(self) -> None:
        self._end_page()
        self.tree = self._pages.finish()
        self._data.flush()
        self._page_packs.flush()
        self._log.close()


def _cbor_array_head(count: int) -> bytes:
    """The head of a CBOR array of so many items: what dumps gives for an empty one, with the count."""
    if count < 24:
        return bytes([0x80 | count])
    return b"\x99" + count.to_bytes(2, "big") if count < 1 << 16 else b"\x9a" + count.to_bytes(4, "big")
