"""The dedup index: right whatever was spilled to disk, and in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from pyroaring import BitMap

from strongroom.repository import dedup
from strongroom.repository.dedup import DedupIndex, PlaceLog
from strongroom.repository.records import Records


def hashes(first: int, count: int) -> np.ndarray:
    """Hashes that look random."""
    return np.frombuffer(blake3(b"hashes").digest(16 * count, seek=16 * first), np.uint8).reshape(count, 16)


def records(first: int, count: int) -> Records:
    """Records whose columns follow from their number."""
    order = np.arange(first, first + count)
    return Records(
        hashes(first, count), (order // 1000 + 1).astype(np.uint64), (order % 1000).astype(np.uint32),
        np.full(count, 9, np.uint32), (order + 30).astype(np.uint32),
    )  # fmt: skip


def test_the_parents_chunks_are_found_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many runs and slices: every loaded hash gives its place, every other none; of equal hashes the first counts."""
    monkeypatch.setattr(dedup, "_LOAD", 1000)
    monkeypatch.setattr(dedup, "_SLICE", 700)
    index = DedupIndex(tmp_path)
    for at in range(0, 20_000, 500):
        index.load(records(at, 500))
    repeated = records(0, 500)
    index.load(Records(repeated.hashes, repeated.packs + np.uint64(99), repeated.numbers, repeated.plains, repeated.sealeds))
    index.loaded()
    found, packs, numbers, sealeds = index.find_parent(hashes(0, 25_000))
    assert found.tolist() == [True] * 20_000 + [False] * 5_000
    wanted = records(0, 20_000)
    assert (packs[:20_000] == wanted.packs).all()
    assert (numbers[:20_000] == wanted.numbers).all()
    assert (sealeds[:20_000] == wanted.sealeds).all()


def test_suspect_chunks_are_not_found(tmp_path: Path) -> None:
    """What was found damaged is stored anew by the next part."""
    index = DedupIndex(tmp_path, {2: BitMap([5])})
    index.load(records(0, 3000))
    index.loaded()
    found, *_ = index.find_parent(hashes(0, 3000))
    assert np.flatnonzero(~found).tolist() == [1005]


def test_own_chunks_are_found_in_memory_and_after_they_went_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across merges of many runs, with hashes that came twice."""
    monkeypatch.setattr(dedup, "_RECENT", 300)
    index = DedupIndex(tmp_path)
    index.loaded()
    ordinal = 0
    for at in range(0, 12_000, 100):
        column = hashes(at, 100)
        digests = [row.tobytes() for row in column]
        assert index.find_own(digests, column) == [-1] * 100
        for digest in digests:
            assert index.add(digest, ordinal) == ordinal
            assert index.add(digest, ordinal + 1) == ordinal
            ordinal += 1
        index.settle()
    column = hashes(0, 12_500)
    assert index.find_own([row.tobytes() for row in column], column) == [*range(12_000), *[-1] * 500]
    assert len(list(tmp_path.glob("own-*.rows"))) <= 12


def test_an_empty_index_finds_nothing(tmp_path: Path) -> None:
    """A lineage's first part has no parent."""
    index = DedupIndex(tmp_path)
    index.loaded()
    assert not index.find_parent(hashes(0, 10))[0].any()


def test_loading_a_large_parent_takes_bounded_memory(tmp_path: Path) -> None:
    """A million records, 36 MB of them, are loaded within 60 MB; twice as many take no more."""
    peaks = []
    for million, name in ((1, "one"), (2, "two")):
        folder = tmp_path / name
        folder.mkdir()
        tracemalloc.start()
        index = DedupIndex(folder)
        for at in range(0, million * 1_000_000, 50_000):
            index.load(records(at, 50_000))
        index.loaded()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert index.find_parent(hashes(999_990, 10))[0].all()
    assert peaks[0] < 60e6
    assert peaks[1] < peaks[0] * 1.2


def test_places_come_back_from_memory_and_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, also where some are on disk and some are not."""
    monkeypatch.setattr(dedup, "_RECENT", 100)
    log = PlaceLog(tmp_path / "places")
    for at in range(0, 350, 7):
        log.append([at] * 7, list(range(at, at + 7)), [at + 1] * 7)
    wanted = np.array([349, 0, 111, 99, 100, 340], np.int64)
    got = log.get(wanted)
    assert got["number"].tolist() == wanted.tolist()
    assert got["pack"].tolist() == [at // 7 * 7 for at in wanted.tolist()]
    log.close()
