"""Test restores of Cassandra: a cluster of two nodes into one node that is thrown away, and what must not pass for sound."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from integration.test_engine_behaviour import Job, Memory
from strongroom.engines.base import Comparison, EngineError, Target
from strongroom.engines.cassandra import CassandraEngine
from support.cassandra_node import LIB, CassandraNode, require_cassandra, wait_for_ring
from support.cassandra_samples import fill, make_shop

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Memory, Mapping[str, Any]]:
    """A backup of two nodes that keep two copies, with a table of each kind."""
    require_cassandra()
    folder = tmp_path_factory.mktemp("cassandra")
    first = CassandraNode(folder / "1", token="-4611686018427387904")
    second = CassandraNode(folder / "2", address="127.0.0.2", seed=first, token="4611686018427387904")
    nodes = [first, second]
    try:
        for node in nodes:
            node.start()
        wait_for_ring(nodes)
        with first.session() as session:
            make_shop(session, 2)
            fill(session, 1, 200)
        engine, kept, facts = CassandraEngine(), Memory(), dict[str, Any]()
        for member in engine.nodes(Target(first.url)):
            with tempfile.TemporaryDirectory() as scratch:
                of_node = engine.capture(Target(first.url, node=member.id), kept, Job(), scratch).facts
            facts = facts or dict(of_node)
    finally:
        for node in nodes:
            node.stop()
    return kept, facts


def rehearsed(folder: Path, kept: Memory, facts: Mapping[str, Any]) -> Comparison:
    engine = CassandraEngine()
    for name in ("server", "restore", "compare"):
        (folder / name).mkdir()
    with engine.sandbox(folder / "server", Job()) as target:
        engine.restore(target, kept, facts, Job(), str(folder / "restore"))
        return engine.compare(target, kept, facts, Job(), str(folder / "compare"))


def changed(kept: Memory, ending: str, change: Callable[[bytes], bytes]) -> Memory:
    """The backup with one file changed: the first of shop.plain that ends so."""
    other = Memory()
    other.kept = dict(kept.kept)
    name = next(one for one in kept.kept if "/shop/plain-" in one and one.endswith(ending))
    data, facts = kept.kept[name]
    other.kept[name] = (change(data), facts)
    return other


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRONGROOM_CASSANDRA", str(LIB))


def test_two_nodes_with_two_copies_are_tried_out_in_one(captured: tuple[Memory, Mapping[str, Any]], tmp_path: Path) -> None:
    """Views, indexes, counters, types and functions among them; every file of both nodes is there byte for byte."""
    kept, facts = captured
    found = rehearsed(tmp_path, kept, facts)
    assert list(found.differences) == []
    assert found.found == found.expected
    data = [name for name in kept.kept if "/data/" in name and name.endswith("-Data.db")]
    assert found.digests == found.expected["files"] == len(data) > 8


def test_a_damaged_file_is_told(captured: tuple[Memory, Mapping[str, Any]], tmp_path: Path) -> None:
    """A byte of the rows, changed before the backup was made: the node refuses the file, or reading its rows shows it."""
    kept, facts = captured

    def flip(data: bytes) -> bytes:
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]

    try:
        found = rehearsed(tmp_path, changed(kept, "-Data.db", flip), facts)
    except EngineError:
        return
    assert any("shop.plain" in one for one in found.differences)


def test_a_file_that_lacks_is_told(captured: tuple[Memory, Mapping[str, Any]], tmp_path: Path) -> None:
    """One SSTable is not streamed, for what lists its parts is gone: the files that were captured are not all there."""
    kept, facts = captured
    other = Memory()
    name = next(one for one in kept.kept if "/shop/plain-" in one and one.endswith("-Data.db"))
    stem = name.removesuffix("-Data.db")
    other.kept = {one: value for one, value in kept.kept.items() if one == name or not one.startswith(stem)}
    try:
        found = rehearsed(tmp_path, other, facts)
    except EngineError:
        return
    assert any("shop.plain" in one for one in found.differences)
