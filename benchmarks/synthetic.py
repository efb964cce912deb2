"""Catalogs as years of backups would leave them, written straight into the tables.

The model is one lineage of `backups` daily parts. The first holds `packs` full packs. Each later part replaces a `share` of
the living chunks by its own: always the same hot range (`contiguous`: whole packs die together, and each backup alone owns
its share) or chunks drawn evenly from all of the data (`scattered`: nearly every pack loses something every day, and a
backup alone owns next to nothing, save the oldest). Replaced chunks get their death row, new ones fill packs of the part's
own, exactly as commits write them; nothing is deleted yet.

The rows come as plain tuples, table by table and day by day, so that a database sees them in the order in which it would
have grown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

Pattern = Literal["contiguous", "scattered"]
Row = tuple[Any, ...]
Numbers = npt.NDArray[np.int64]

INDEX_BYTES = 24
"""What an object's index takes for each chunk, roughly; it only has to make an object larger than its chunks."""

_MANIFEST_BYTES = 64 << 10


@dataclass(frozen=True)
class Shape:
    """What a synthetic catalog looks like. Sizes in bytes."""

    pattern: Pattern
    backups: int
    packs: int = 65_536
    chunk: int = 64 << 10  # sealed, all alike
    pack: int = 16 << 20
    share: float = 0.01  # of the living chunks, replaced by each later backup
    seed: int = 1

    @property
    def chunks(self) -> int:
        """Chunks in a full pack."""
        return self.pack // self.chunk

    @property
    def name(self) -> str:
        return f"{self.pattern}-{self.backups}"


@dataclass
class Day:
    """The rows that one part adds, as the tables' columns take them."""

    part: Row
    backup: Row
    objects: list[Row]
    packs: list[Row]
    holdings: list[Row]
    deaths: list[Row]


COLUMNS = {
    "backup": (
        "id", "project", "instance", "instance_name", "engine", "engine_version", "name", "description", "origin", "scope",
        "state", "version", "begin_at", "end_at", "plain_bytes",
    ),
    "part": (
        "lineage", "seq", "backup", "parent", "attempt", "committed", "state", "version", "root", "entries", "plain_bytes",
        "stored_bytes", "adopted_bytes",
    ),
    "object": (
        "id", "lineage", "kind", "name", "state", "bytes", "live", "dead_bytes", "seq", "attempt", "late", "removal",
        "rewriting",
    ),
    "pack": ("lineage", "id", "born", "attempt", "stored", "chunks", "bytes", "gone", "gone_bytes", "suspect", "moved"),
    "holding": ("object", "lineage", "pack", "numbers", "bytes"),
    "death": ("lineage", "pack", "last", "closer", "attempt", "born", "numbers", "bytes"),
}  # fmt: skip
"""Columns of the tuples in a Day; `object` is the table's name."""


def backup_id(seq: int) -> str:
    """The backup whose part has this seq."""
    return f"{seq:032x}br02"


class History:
    """Plays the model and yields what each day writes."""

    def __init__(self, shape: Shape, project: str, lineage: str = "a" * 32, instance: str = "b" * 32 + "in02") -> None:
        self.shape, self.project, self.lineage, self.instance = shape, project, lineage, instance
        self._random = np.random.default_rng(shape.seed)
        self._pack_ids: list[int] = []
        self._born: list[int] = []
        living = shape.packs * shape.chunks
        self._pack_at: Numbers = np.zeros(living, dtype=np.int64)  # the living chunk at each place: its pack (by index) …
        self._number_at: Numbers = np.zeros(living, dtype=np.int64)  # … and its number there

    def days(self) -> Iterator[Day]:
        """One part after the other."""
        yield self._day(1, np.arange(len(self._pack_at), dtype=np.int64))
        for seq in range(2, self.shape.backups + 1):
            yield self._day(seq, self._replaced())

    def _replaced(self) -> Numbers:
        """Places whose chunk this part does not take over."""
        living = len(self._pack_at)
        count = int(living * self.shape.share)
        if self.shape.pattern == "scattered":
            return np.sort(self._random.choice(living, count, replace=False))
        return np.arange(count - count % self.shape.chunks, dtype=np.int64)

    def _day(self, seq: int, places: Numbers) -> Day:
        deaths = [] if seq == 1 else self._deaths(seq, places)
        objects, packs, holdings = self._packs(seq, places)
        root = f"{seq:032x}"
        name = f"{self.lineage}/manifest/{seq}.1/{root}"
        objects.append(self._object(root, "manifest", name, _MANIFEST_BYTES, 0, seq))
        plain = self.shape.packs * self.shape.pack
        part = (
            self.lineage, seq, backup_id(seq), seq - 1, 1, 1, "COMPLETED", 0, root, 1, plain, len(places) * self.shape.chunk,
            plain - len(places) * self.shape.chunk,
        )  # fmt: skip
        backup = (
            backup_id(seq), self.project, self.instance, "synthetic", "redis", "7.0", f"day-{seq}", "", "Auto", "",
            "COMPLETED", 0, 86_400.0 * seq, 86_400.0 * seq + 3_600, plain,
        )  # fmt: skip
        return Day(part, backup, objects, packs, holdings, deaths)

    def _deaths(self, seq: int, places: Numbers) -> list[Row]:
        """What the commit of `seq` closes, by pack in the order of the catalog's key."""
        packs, numbers = self._pack_at[places], self._number_at[places]
        order = np.argsort(packs, kind="stable")
        packs, numbers = packs[order], numbers[order]
        found, starts = np.unique(packs, return_index=True)
        ends = np.append(starts[1:], len(packs))
        rows = [
            self._death(seq, pack, BitMap(numbers[start:end].tolist()))
            for pack, start, end in zip(found.tolist(), starts.tolist(), ends.tolist(), strict=True)
        ]
        return sorted(rows, key=lambda row: int(row[1]))

    def _death(self, seq: int, pack: int, numbers: BitMap) -> Row:
        size = len(numbers) * self.shape.chunk
        return (self.lineage, self._pack_ids[pack], seq - 1, seq, 1, self._born[pack], numbers.serialize(), size)

    def _packs(self, seq: int, places: Numbers) -> tuple[list[Row], list[Row], list[Row]]:
        """Fills packs with the part's own chunks, in stream order, and notes where they live."""
        per = self.shape.chunks
        first = len(self._pack_ids)
        count = -(-len(places) // per)
        self._pack_at[places] = first + np.arange(len(places), dtype=np.int64) // per
        self._number_at[places] = np.arange(len(places), dtype=np.int64) % per
        objects: list[Row] = []
        packs: list[Row] = []
        holdings: list[Row] = []
        for pack in range(count):
            chunks = min(per, len(places) - pack * per)
            key, size = self._fresh(), chunks * self.shape.chunk
            self._pack_ids.append(key)
            self._born.append(seq)
            name = f"{self.lineage}/pack/{seq}.1/{key:032x}"
            objects.append(self._object(f"{key:032x}", "pack", name, size + INDEX_BYTES * chunks, chunks, seq))
            packs.append((self.lineage, key, seq, 1, True, chunks, size, None, 0, None, False))
            holdings.append((f"{key:032x}", self.lineage, key, None, size))
        return objects, packs, holdings

    def _fresh(self) -> int:
        """A pack's id: random, as the product draws them, so that its rows lie all over the tables' keys."""
        return int(self._random.integers(1 << 62))

    def _object(self, key: str, kind: str, name: str, size: int, live: int, seq: int) -> Row:
        return (key, self.lineage, kind, name, "STORED", size, live, 0, seq, 1, False, None, None)
