"""Two real nodes: a part each, restores into clusters of other tokens and counts and into a node that is thrown away, a node that
is down or gone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cassandra import ConsistencyLevel

from integration.test_engine_behaviour import Job, Memory
from strongroom.backups import creation, errors, rehearsal, restoration
from strongroom.engines.base import Comparison, EngineDenied, Tables, Target
from strongroom.engines.cassandra import CassandraEngine
from strongroom.engines.cassandra.connection import connected
from strongroom.engines.cassandra.jmx import Jmx
from support.cassandra_house import CassandraHouse
from support.cassandra_node import LIB, CassandraNode, require_cassandra, wait_for_ring
from support.cassandra_samples import drop_all, fill, fill_small, insert, make_shop, make_small

pytestmark = pytest.mark.timeout(400)

HOSTS = ("127.0.0.1", "127.0.0.2")


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[CassandraNode]]:
    """Two nodes of one cluster; each owns half of the ring."""
    require_cassandra()
    folder = tmp_path_factory.mktemp("ring")
    first = CassandraNode(folder / "a", address=HOSTS[0], token="-4611686018427387904").start()
    nodes = [first]
    try:
        nodes.append(CassandraNode(folder / "b", address=HOSTS[1], seed=first, token="4611686018427387904").start())
        wait_for_ring(nodes)
        yield nodes
    finally:
        for node in nodes:
            node.kill()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CassandraNode]:
    """Another cluster, of one node with tokens of its own."""
    require_cassandra()
    node = CassandraNode(tmp_path_factory.mktemp("alone") / "n", address="127.0.0.3", outlives_kills=False).start()
    yield node
    node.kill()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[CassandraHouse]:
    with CassandraHouse(tmp_path, [*HOSTS, "127.0.0.3"]) as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_snapshots(request: pytest.FixtureRequest) -> None:
    """What tests before left on the nodes goes: their instances are others."""
    if "ring" in request.fixturenames:
        for node in request.getfixturevalue("ring"):
            if node.snapshots():
                with Jmx("127.0.0.1", node.jmx_port) as jmx:
                    for tag in node.snapshots():
                        jmx.clear(tag)


def rows(session: Any) -> list[Any]:
    """Every row with its write time, read from all copies."""
    prepared = session.prepare("SELECT id, name, body, writetime(name) FROM shop.plain")
    prepared.consistency_level = ConsistencyLevel.ALL
    return sorted(tuple(row) for row in session.execute(prepared))


def test_each_node_has_its_part_and_any_cluster_takes_all_of_them(
    ring: list[CassandraNode], alone: CassandraNode, house: CassandraHouse
) -> None:
    """One copy of each row, so that what a part lacks would be seen; then into the same cluster, and into one of one node."""
    with ring[0].session() as session, alone.session() as other:
        drop_all(session)
        drop_all(other)
        make_small(session)
        fill_small(session, 1)
        instance, elsewhere = house.register(ring[0]), house.register(alone, "alone")
        first, told = house.backup(instance)
        assert told["parts"] == 2
        held = [len([name for name in house.read(first) if name.startswith(node)]) for node in nodes_of(session)]
        assert min(held) > 8, "both nodes hold rows"
        seen = rows(session)
        fill_small(session, 2)
        insert(session, "DELETE FROM shop.plain WHERE id = ?", [(10_001,)])
        second, told = house.backup(instance)
        assert told["adopted_bytes"] > 0
        house.at_rest()
        assert [len(node.snapshots()) for node in ring] == [1, 1]
        latest = rows(session)
        house.restore(first, instance)
        assert rows(session) == seen
        house.restore(second, elsewhere)
        assert rows(other) == latest
        third, _ = house.backup(elsewhere)
        house.restore(third, instance)
        assert rows(session) == latest, "one node's backup in a cluster of two"
        with ring[1].session() as second_node:
            assert rows(second_node) == latest


def test_a_cluster_with_too_few_nodes_is_refused_untouched(
    ring: list[CassandraNode], alone: CassandraNode, house: CassandraHouse
) -> None:
    with ring[0].session() as session, alone.session() as other:
        drop_all(session)
        drop_all(other)
        make_small(session, copies=2)
        fill_small(session, 1, 100)
        seen = rows(session)
        instance, elsewhere = house.register(ring[0]), house.register(alone, "alone")
        key, _ = house.backup(instance)
        make_small(other)
        job = restoration.restore(house.ctx, house.project, key, elsewhere, lambda conn: None, overwrite=True)
        view = house.ended(job)
        assert view.state == "FAILED"
        assert "keeps 2 copies" in str(view.error)
        assert rows(other) == []
        fill_small(session, 2, 100)
        house.restore(key, instance)
        assert rows(session) == seen, "two copies of each row are one row"


def test_a_part_without_a_worker_waits_and_can_be_stopped(ring: list[CassandraNode], tmp_path: Path) -> None:
    with CassandraHouse(tmp_path, HOSTS[:1]) as house, ring[0].session() as session:
        drop_all(session)
        make_small(session)
        fill_small(session, 1, 100)
        instance = house.register(ring[0])
        empty = house.size()
        key, job = house.create(instance)
        house.until(lambda: any(part.state == "COMPLETED" for part in house.parts(key)), "the first part is there")
        assert house.state(key) == "BUILDING"
        creation.stop(house.ctx, house.project, key, lambda conn: None)
        assert house.state(key) == "FAILED"
        assert house.ended(job).state in ("FAILED", "CANCELLED")
        house.until(lambda: house.size() < empty + 2000, "a failed backup owns nothing")
        house.until(lambda: not ring[0].snapshots(), "the part that was ready leaves no anchor")
        again, _ = house.create(instance)
        creation.stop(house.ctx, house.project, again, lambda conn: None)


def test_a_node_that_dies(ring: list[CassandraNode], tmp_path: Path) -> None:
    """Backups are refused, those of before can be deleted; one that was being taken fails and owns nothing."""
    with CassandraHouse(tmp_path, HOSTS) as house, ring[0].session() as session:
        drop_all(session)
        make_small(session)
        fill_small(session, 1, 100)
        instance = house.register(ring[0])
        empty = house.size()
        key, _ = house.backup(instance)
        house.at_rest()
        before = house.size()
        house.workers["127.0.0.2"].shutdown(5.0)
        failing, _ = house.create(instance)
        ring[1].kill()
        try:
            house.workers["127.0.0.2"] = house.worker_of("127.0.0.2")
            house.workers["127.0.0.2"].start()
            house.until(lambda: house.state(failing) == "FAILED", "the part on the dead node fails the backup", 90)
            house.at_rest()
            assert house.size() < before + 3000, "it owns nothing but its graves"
            assert len(ring[0].snapshots()) == 1
            with pytest.raises(errors.InstanceUnusable, match="is down"):
                house.create(instance)
            with pytest.raises(errors.NotRestorable, match="is down"):
                restoration.restore(house.ctx, house.project, key, instance, lambda conn: None)
            house.delete(key)
            house.at_rest()
            assert house.size() < empty + 3000
        finally:
            ring[1].start()
            wait_for_ring(ring)


def test_what_two_nodes_hold_is_tried_out_in_one(
    ring: list[CassandraNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One table alone, and tables of every kind in two copies; a file that the node leaves out is told. Nothing is left."""
    monkeypatch.setenv("STRONGROOM_CASSANDRA", str(LIB))
    with ring[0].session() as session:
        drop_all(session)
        make_shop(session, 2)
        session.execute('ALTER TABLE "OddName"."T" WITH cdc = true')
        fill(session, 1, 200)
    whole, facts = captured(ring)
    some, of_some = captured(ring, Tables("shop", ("orders",)))
    with sandbox(tmp_path) as tried:
        found = tried(some, of_some)
        assert (list(found.differences), found.found) == ([], found.expected)
        assert found.digests == len(data_files(some)) > 1

        found = tried(whole, facts)
        assert (list(found.differences), found.found) == ([], found.expected)
        assert found.digests == found.expected["files"] == len(data_files(whole)) > 8
        assert found.expected["roles"] == 1

        (lost, *_) = data_files(whole, "/shop/plain-")
        rest = {name for name in whole.kept if name.startswith(lost.removesuffix("Data.db")) and name != lost}
        found = tried(without(whole, *rest), facts)  # such a file is left out by the node without a word
        assert list(found.differences) == ["shop.plain lacks 1 files of rows that were captured, and holds 0 others"]
    assert running_in(tmp_path) == []


def test_a_file_that_was_damaged_on_its_node_fails_a_test_restore(
    ring: list[CassandraNode], house: CassandraHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it was backed up, so that the backup is whole. The job says which table, and leaves neither folder nor process."""
    monkeypatch.setenv("STRONGROOM_CASSANDRA", str(LIB))
    with ring[0].session() as session:
        drop_all(session)
        make_small(session)
        fill_small(session, 1)
        with Jmx("127.0.0.1", ring[0].jmx_port) as jmx:
            jmx.snapshot("flushed", "1d", ["shop"])
        (path,) = ring[0].data.glob("shop/plain-*/*-Data.db")
        path.write_bytes(flipped(path.read_bytes()))
        key, _ = house.backup(house.register(ring[0]))
        view = house.ended(rehearsal.rehearse(house.ctx, house.project, lambda conn: None, backup=key))
        drop_all(session)
    assert view.state == "FAILED"
    assert "not all rows of shop.plain can be read" in str(view.error)
    assert list(house.ctx.scratch.iterdir()) == []
    assert running_in(house.ctx.scratch) == []


def captured(nodes: Sequence[CassandraNode], *tables: Tables) -> tuple[Memory, Mapping[str, Any]]:
    """What all nodes hold, in one backup."""
    engine, kept, facts = CassandraEngine(), Memory(), list[Mapping[str, Any]]()
    for member in engine.nodes(Target(nodes[0].url)):
        with tempfile.TemporaryDirectory() as scratch:
            facts.append(engine.capture(Target(nodes[0].url, node=member.id, tables=tables), kept, Job(), scratch).facts)
    return kept, facts[0]


@contextmanager
def sandbox(folder: Path) -> Iterator[Callable[..., Comparison]]:
    """A throw-away node. Called with a backup it restores that, and compares what it holds then with it."""
    engine = CassandraEngine()
    for name in ("server", "restore", "compare"):
        (folder / name).mkdir()
    with engine.sandbox(folder / "server", Job()) as target:

        def tried(kept: Memory, facts: Mapping[str, Any]) -> Comparison:
            engine.restore(target, kept, facts, Job(), str(folder / "restore"))
            assert list((folder / "restore").glob("*/*/*")) == []
            return engine.compare(target, kept, facts, Job(), str(folder / "compare"))

        assert running_in(folder)
        with connected(target) as session, pytest.raises(EngineDenied, match="asks for a password"):
            Jmx("127.0.0.1", session.jmx_port())
        yield tried


def data_files(kept: Memory, of: str = "/data/") -> list[str]:
    return [name for name in kept.kept if of in name and name.endswith("-Data.db")]


def without(kept: Memory, *names: str) -> Memory:
    other = Memory()
    other.kept = {name: value for name, value in kept.kept.items() if name not in names}
    return other


def flipped(data: bytes) -> bytes:
    """One bit in the middle of it."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def running_in(folder: Path) -> list[int]:
    """Processes whose command names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def nodes_of(session: Any) -> list[str]:
    """Host ids."""
    own = session.execute("SELECT host_id FROM system.local").one().host_id
    return [str(own), *(str(row.host_id) for row in session.execute("SELECT host_id FROM system.peers_v2"))]
