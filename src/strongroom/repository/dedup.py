"""Finding chunks by hash without holding all hashes in memory: sorted runs in mapped files.

A row is (hash as two u64, pack or ordinal u64, number u32, sealed length u32): 32 bytes. So 32 M chunks are 1 GiB of disk, of
which only what is looked at is in the page cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from strongroom.repository._columns import U8, U32, U64
from strongroom.repository.records import Records, without

_ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<u8"), ("number", "<u4"), ("sealed", "<u4")])
_LOAD = 1 << 18
"""Rows that are gathered in memory before they become a run: 8 MiB."""
_RECENT = 1 << 16
_SLICE = 1 << 18
_FAN_IN = 4

Rows = NDArray[Any]


class _Runs:
    """Sorted runs on disk; when _FAN_IN of about one size have gathered they become one."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._counter = itertools.count()
        self._levels: list[list[tuple[Path, U64, Rows]]] = []

    def add(self, rows: Rows, *, merge: bool = True) -> None:
        """Takes rows in any order; of equal hashes the first counts."""
        self._put(0, self._write([_sorted(rows)]), merge)

    def compact(self) -> None:
        """Makes one run of all."""
        runs = [run for level in self._levels for run in level]
        self._levels = []
        if runs:
            self._put(0, runs[0] if len(runs) == 1 else self._merge(runs), False)

    def find(self, high: U64, low: U64) -> tuple[NDArray[np.bool_], Rows]:
        """For each hash whether it is here, and its row."""
        found = np.zeros(len(high), np.bool_)
        out = np.zeros(len(high), _ROW)
        for level in self._levels:
            for _, keys, rows in level:
                at = np.minimum(np.searchsorted(keys, high), len(keys) - 1)
                here = np.flatnonzero((keys[at] == high) & ~found)
                if len(here):
                    hit = rows[at[here]]
                    right = hit["low"] == low[here]
                    out[here[right]] = hit[right]
                    found[here[right]] = True
        return found, out

    def _put(self, depth: int, run: tuple[Path, U64, Rows], merge: bool) -> None:
        while len(self._levels) <= depth:
            self._levels.append([])
        self._levels[depth].append(run)
        if merge and len(self._levels[depth]) >= _FAN_IN:
            runs, self._levels[depth] = self._levels[depth], []
            self._put(depth + 1, self._merge(runs), merge)

    def _merge(self, runs: Sequence[tuple[Path, U64, Rows]]) -> tuple[Path, U64, Rows]:
        def slices() -> Any:
            total = sum(len(keys) for _, keys, _ in runs)
            count = max(total // _SLICE, 1)
            cuts = [int(part * (1 << 64) // count) for part in range(1, count)]
            bounds = [[0, *np.searchsorted(keys, np.array(cuts, np.uint64)).tolist(), len(keys)] for _, keys, _ in runs]
            for part in range(count):
                yield _sorted(np.concatenate([rows[b[part] : b[part + 1]] for b, (_, _, rows) in zip(bounds, runs, strict=True)]))

        merged = self._write(slices())
        for path, _, _ in runs:
            path.unlink()
            path.with_suffix(".keys").unlink()
        return merged

    def _write(self, parts: Any) -> tuple[Path, U64, Rows]:
        path = self._folder / f"{self._name}-{next(self._counter)}.rows"
        with path.open("wb") as rows_file, path.with_suffix(".keys").open("wb") as keys_file:
            for rows in parts:
                rows_file.write(rows.tobytes())
                keys_file.write(rows["high"].tobytes())
        if not path.stat().st_size:
            return path, np.empty(0, np.uint64), np.empty(0, _ROW)
        keys = np.memmap(path.with_suffix(".keys"), np.uint64, "r")
        return path, keys, np.memmap(path, _ROW, "r")


def _sorted(rows: Rows) -> Rows:
    """By hash, the first of equal ones kept."""
    order = np.lexsort((rows["low"], rows["high"]))
    rows = rows[order]
    if len(rows) > 1:
        same = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
        if same.any():
            rows = rows[np.concatenate(([True], ~same))]
    return rows


def _split(hashes: U8) -> tuple[U64, U64]:
    halves = np.ascontiguousarray(hashes).view(">u8").astype(np.uint64)
    return halves[:, 0], halves[:, 1]


class DedupIndex:
    """What may be shared: the parent's chunks, by load(), and the part's own, by add(). Not for several threads at once."""

    def __init__(self, folder: Path, suspects: dict[int, BitMap] | None = None) -> None:
        self._suspects = dict(suspects or {})
        self._parent = _Runs(folder, "parent")
        self._own = _Runs(folder, "own")
        self._gathered: list[Rows] = []
        self._gathered_rows = 0
        self._recent: dict[bytes, int] = {}

    def load(self, records: Records) -> None:
        """Takes some of the parent's records; suspects are left out, so that what is damaged is stored anew."""
        records = without(records, self._suspects)
        if not len(records):
            return
        rows = np.zeros(len(records), _ROW)
        rows["high"], rows["low"] = _split(records.hashes)
        rows["place"], rows["number"], rows["sealed"] = records.packs, records.numbers, records.sealeds
        self._gathered.append(rows)
        self._gathered_rows += len(rows)
        if self._gathered_rows >= _LOAD:
            self._spill()

    def loaded(self) -> None:
        """Ends the loading; lookups may begin."""
        if self._gathered:
            self._spill()
        self._parent.compact()

    def find_parent(self, hashes: U8) -> tuple[NDArray[np.bool_], U64, U32, U32]:
        """For each hash: whether the parent has it, and its pack, number and sealed length there."""
        found, rows = self._parent.find(*_split(hashes))
        return found, rows["place"], rows["number"], rows["sealed"]

    def find_own(self, digests: Sequence[bytes], hashes: U8) -> list[int]:
        """For each hash the ordinal of the part's own chunk that has it, or -1."""
        ordinals = [self._recent.get(digest, -1) for digest in digests]
        if self._own_spilled:
            unknown = np.array([at for at, ordinal in enumerate(ordinals) if ordinal < 0], np.intp)
            if len(unknown):
                found, rows = self._own.find(*_split(hashes[unknown]))
                for at, ordinal in zip(unknown[found].tolist(), rows["place"][found].tolist(), strict=True):
                    ordinals[at] = ordinal
        return ordinals

    def add(self, digest: bytes, ordinal: int) -> int:
        """The part's own chunk of this hash is the ordinal-th; if an earlier call named one, that one is given and kept."""
        return self._recent.setdefault(digest, ordinal)

    def settle(self) -> None:
        """Moves the part's own hashes to disk once there are many."""
        if len(self._recent) < _RECENT:
            return
        rows = np.zeros(len(self._recent), _ROW)
        hashes = np.frombuffer(b"".join(self._recent), np.uint8).reshape(-1, 16)
        rows["high"], rows["low"] = _split(hashes)
        rows["place"] = list(self._recent.values())
        self._recent.clear()
        self._own.add(rows)

    @property
    def _own_spilled(self) -> bool:
        return bool(self._own._levels)

    def _spill(self) -> None:
        self._parent.add(np.concatenate(self._gathered), merge=False)
        self._gathered.clear()
        self._gathered_rows = 0


_PLACE = np.dtype([("pack", "<u8"), ("number", "<u4"), ("sealed", "<u4")])


class PlaceLog:
    """Where the part's own chunks went, by ordinal: the newest in memory, all others in a mapped file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._on_disk = 0
        self._tail: Rows = np.empty(1024, _PLACE)  # grows by doubling; the first _tail_rows of it are set
        self._tail_rows = 0
        self._mapped: Rows = np.empty(0, _PLACE)

    def append(self, packs: Sequence[int], numbers: Sequence[int], sealeds: Sequence[int]) -> None:
        """The places of the next ordinals."""
        end = self._tail_rows + len(packs)
        if end > len(self._tail):
            grown: Rows = np.empty(max(end, 2 * len(self._tail)), _PLACE)
            grown[: self._tail_rows] = self._tail[: self._tail_rows]
            self._tail = grown
        rows = self._tail[self._tail_rows : end]
        rows["pack"], rows["number"], rows["sealed"] = packs, numbers, sealeds
        self._tail_rows = end
        if end >= _RECENT:
            self._file.write(self._tail[:end].tobytes())
            self._file.flush()
            self._on_disk += end
            self._tail_rows = 0
            self._mapped = np.memmap(self._path, _PLACE, "r")

    def get(self, ordinals: NDArray[np.int64]) -> Rows:
        """The places of ordinals that were appended."""
        out = np.empty(len(ordinals), _PLACE)
        old = ordinals < self._on_disk
        if old.any():
            out[old] = self._mapped[ordinals[old]]
        if not old.all():
            out[~old] = self._tail[ordinals[~old] - self._on_disk]
        return out

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()
