"""Manifests: the sealed list of what a part contains, complete in itself.

The root object is a sealed document. Its header in clear says whose it is; its content holds the plan, the backup's facts and
the top of the tree of entry pages. A page of entries holds entries, each with the top of its tree of chunk records. All pages
are chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cbor2
import numpy as np
from blake3 import blake3

from strongroom.repository import names
from strongroom.repository._columns import U32, U64
from strongroom.repository._document import open_document, read_header, seal_document
from strongroom.repository.codec import Decoder, Encoder, FrameError
from strongroom.repository.errors import Damaged
from strongroom.repository.fetching import ChunkFetcher, Locator
from strongroom.repository.keys import LineageKeys
from strongroom.repository.records import Records, Tree, walk
from strongroom.storage.base import Store

_MAGIC = b"SRMF"
_PAGES_AT_ONCE = 16
_UNREADABLE = (ValueError, TypeError, KeyError, FrameError, cbor2.CBORDecodeError)


@dataclass(frozen=True, slots=True)
class Header:
    """Whose manifest it is; in clear, and proven by opening."""

    project: str
    instance: str
    lineage: str
    seq: int
    attempt: int
    backup: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the part, in bytes but for `entries`."""

    entries: int
    plain_bytes: int
    stored_bytes: int  # of the objects that the part put, its root not counted
    adopted_bytes: int  # sealed, of the parent's chunks that it names


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One entry: its name, plain size, BLAKE3-256 of its plain bytes, the engine's facts, and where its records are."""

    name: str
    size: int
    digest: bytes
    facts: Mapping[str, Any]
    tree: Tree = field(repr=False)

    def to_cbor(self) -> bytes:
        """One item of a page of entries."""
        item = [self.name, self.size, self.digest, dict(self.facts), self.tree.depth, self.tree.top.to_bytes()]
        return cbor2.dumps(item, canonical=True)

    @classmethod
    def from_item(cls, item: Any) -> ManifestEntry:
        """What to_cbor wrote, decoded. Raises ValueError or TypeError if it is not that."""
        name, size, digest, facts, depth, top = item
        return cls(name, size, digest, facts, Tree(depth, Records.from_bytes(top)))


@dataclass(frozen=True, slots=True)
class Content:
    """What the root seals."""

    parent: int  # seq; 0 is none
    plan: Sequence[tuple[str, int, str]]  # (lineage, seq, node) of every part of the backup
    facts: Mapping[str, Any]
    engine_facts: Mapping[str, Any]
    totals: Totals
    chunk_average: int
    packs: Sequence[tuple[int, int]]  # (pack, chunks) that the part wrote
    entries: Tree  # its records at depth 0 name pages of entries


def seal_manifest(keys: LineageKeys, header: Header, content: Content, level: int) -> bytes:
    """The root object's bytes."""
    plain = cbor2.dumps(
        {
            "parent": content.parent, "plan": [list(part) for part in content.plan], "facts": dict(content.facts),
            "engine_facts": dict(content.engine_facts), "totals": asdict(content.totals),
            "chunk_average": content.chunk_average, "packs": [list(pack) for pack in content.packs],
            "depth": content.entries.depth, "entries": content.entries.top.to_bytes(),
        },
        canonical=True,
    )  # fmt: skip
    return seal_document(_MAGIC, keys.manifests, asdict(header), Encoder(level).encode(plain))


class Manifest:
    """Reads one part's manifest. Its root is in memory; pages are read as they are needed. Safe for several threads."""

    def __init__(self, header: Header, content: Content, fetcher: ChunkFetcher, name: str) -> None:
        self.header, self.name, self.fetcher = header, name, fetcher
        self.parent, self.plan = content.parent, content.plan
        self.facts, self.engine_facts, self.totals = content.facts, content.engine_facts, content.totals
        self.chunk_average, self.packs = content.chunk_average, content.packs
        self._entries = content.entries
        self._lock = threading.Lock()
        self._by_name: tuple[U64, U32] | None = None
        self._last: tuple[int, list[ManifestEntry]] | None = None

    @classmethod
    def open(cls, store: Store, keys: LineageKeys, lineage: str, name: str, locator: Locator) -> Manifest:
        """Reads and proves the root object. Raises Damaged, UnknownFormat, and the store's ObjectMissing."""
        header, content = _open_root(keys, lineage, name, store.get(name))
        return cls(header, content, ChunkFetcher(store, keys, lineage, locator), name)

    def entries(self) -> Iterator[ManifestEntry]:
        """All entries in order of capture."""
        for page in self._pages():
            yield from page

    def entry(self, name: str) -> ManifestEntry:
        """Raises KeyError if there is none of that name. The first call reads all pages of entries, later ones one page."""
        keys, pages = self._name_index()
        key = _name_key(name)
        at = int(np.searchsorted(keys, key))
        while at < len(keys) and keys[at] == key:
            for entry in self._page(int(pages[at])):
                if entry.name == name:
                    return entry
            at += 1
        raise KeyError(name)

    def records(self, entry: ManifestEntry) -> Iterator[Records]:
        """The records of an entry's chunks, in order."""
        for depth, records in walk(entry.tree, self._fetch):
            if depth == 0 and len(records):
                yield records

    def pages_of(self, entry: ManifestEntry) -> Iterator[tuple[bool, Records]]:
        """(whether they are pages, records) of everything that the entry's tree names."""
        for depth, records in walk(entry.tree, self._fetch):
            yield depth > 0, records

    def everything(self) -> Iterator[tuple[bool, Records]]:
        """(whether they are pages, records) over everything that the manifest names."""
        for depth, records in walk(self._entries, self._fetch):
            yield True, records
            if depth == 0:
                yield from self._below(records)

    def named(self) -> Iterator[tuple[U64, U32, U32]]:
        """(packs, numbers, sealed lengths) over everything that the manifest names, pages included; a chunk once or more."""
        for _, records in self.everything():
            yield records.packs, records.numbers, records.sealeds

    # Pages

    def _fetch(self, records: Records) -> list[bytes]:
        return self.fetcher.fetch(records)

    def _below(self, records: Records) -> Iterator[tuple[bool, Records]]:
        """What the entries in these pages name; the many small ones gathered."""
        gathered: list[Records] = []
        for entries in self._read_pages(records):
            for entry in entries:
                if entry.tree.depth:
                    yield from self.pages_of(entry)
                else:
                    gathered.append(entry.tree.top)
            if gathered:
                yield False, Records.joined(gathered)
                gathered.clear()

    def _pages(self) -> Iterator[list[ManifestEntry]]:
        for depth, records in walk(self._entries, self._fetch):
            if depth == 0:
                yield from self._read_pages(records)

    def _read_pages(self, records: Records) -> Iterator[list[ManifestEntry]]:
        for start in range(0, len(records), _PAGES_AT_ONCE):
            for page in self._fetch(records[start : start + _PAGES_AT_ONCE]):
                try:
                    entries = [ManifestEntry.from_item(item) for item in cbor2.loads(page)]
                except _UNREADABLE as error:
                    raise Damaged(f"{self.name}: a page of entries cannot be read", object_name=self.name) from error
                yield entries

    def _name_index(self) -> tuple[U64, U32]:
        """Names' keys in order, and the page of each: 12 bytes an entry."""
        with self._lock:
            if self._by_name is None:
                keys: list[int] = []
                pages: list[int] = []
                for number, entries in enumerate(self._pages()):
                    keys += [_name_key(entry.name) for entry in entries]
                    pages += [number] * len(entries)
                order = np.argsort(np.array(keys, np.uint64), kind="stable")
                self._by_name = np.array(keys, np.uint64)[order], np.array(pages, np.uint32)[order]
            return self._by_name

    def _page(self, number: int) -> list[ManifestEntry]:
        """The number-th page of entries; the last one asked for is remembered, since names are asked for in order."""
        with self._lock:
            if self._last is not None and self._last[0] == number:
                return self._last[1]
        left = number
        for depth, records in walk(self._entries, self._fetch):
            if depth == 0 and left < len(records):
                entries = next(self._read_pages(records[left : left + 1]))
                with self._lock:
                    self._last = (number, entries)
                return entries
            left -= len(records) if depth == 0 else 0
        raise KeyError(number)


def _name_key(name: str) -> int:
    return int.from_bytes(blake3(name.encode()).digest(8), "big")


def _open_root(keys: LineageKeys, lineage: str, name: str, data: bytes) -> tuple[Header, Content]:
    try:
        header = Header(**read_header(_MAGIC, data, name))
    except TypeError as error:
        raise Damaged(f"{name} is damaged: its header is not a manifest's", object_name=name) from error
    frame = open_document(_MAGIC, keys.manifests, data, name)
    said = names.parse(name)
    mine = ("manifest", header.lineage, header.seq, header.attempt)
    if said is None or (said.kind, said.lineage, said.seq, said.attempt) != mine:
        raise Damaged(f"{name} holds the manifest of part {header.seq} of {header.lineage}: it was swapped", object_name=name)
    if header.lineage != lineage:
        raise Damaged(f"{name} belongs to lineage {header.lineage}, not {lineage}", object_name=name)
    try:
        found = cbor2.loads(Decoder().decode(frame))
        content = Content(
            found["parent"], [(part[0], part[1], part[2]) for part in found["plan"]], found["facts"], found["engine_facts"],
            Totals(**found["totals"]), found["chunk_average"], [(pack[0], pack[1]) for pack in found["packs"]],
            Tree(found["depth"], Records.from_bytes(found["entries"])),
        )  # fmt: skip
    except _UNREADABLE as error:
        raise Damaged(f"{name} is damaged: its content cannot be read", object_name=name) from error
    return header, content


def peek_header(data: bytes) -> dict[str, Any]:
    """A root object's header in clear, unproven: what can still be said of a manifest that does not open. Raises Damaged."""
    return dict(read_header(_MAGIC, data, "a manifest"))
