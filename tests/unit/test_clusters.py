"""Backups of clusters: real use cases, an engine whose nodes are dictionaries. Parts, the last one, failures, rebuilds."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import creation, deletion, errors, restoration
from strongroom.backups.context import Context
from strongroom.backups.creation import BackupJob, PartJob
from strongroom.backups.gathering import TidyJob
from strongroom.backups.reading import reading
from strongroom.backups.rebuilding import rebuild
from strongroom.catalog import tables as t
from strongroom.catalog.database import open_catalog
from strongroom.engines.base import (
    CaptureSink,
    Control,
    EngineUnreachable,
    EngineUnsupported,
    Node,
    RestoreSource,
    Summary,
    Target,
)
from strongroom.identity import accounts
from strongroom.jobs.worker import Worker
from support.vault import DictEngine, Vault, noise

NODES = ("one", "two", "three")


class DictCluster(DictEngine):
    """Each node holds the entries of its own; `during` is called in the capture of a node."""

    def __init__(self) -> None:
        super().__init__()
        self.here: list[str] = list(NODES)
        self.down: str | None = None
        self.left: dict[str, list[str]] = {}  # node → what captures left there
        self.captures = 0
        self.schema = 1
        self.lock = threading.Lock()

    def nodes(self, target: Target) -> Sequence[Node]:
        if self.down in self.here:
            raise EngineUnreachable(f"node {self.down} is down")
        return [Node(one, one) for one in sorted(self.here)]

    def capture(self, target: Target, sink: CaptureSink, control: Control, scratch: str) -> Summary:
        assert target.node
        with self.lock:
            self.captures += 1
            mark = f"{sink.history}-{self.captures}"
            self.left.setdefault(target.node, []).append(mark)
        data = {name: content for name, content in self.databases[target.address].items() if name.startswith(target.node)}
        for name, content in sorted(data.items()):
            if self.broken == target.node:
                raise EngineUnreachable("it broke")
            known = sink.parent_entry(name)
            if known is not None and known.facts["length"] == len(content) and name.endswith("still"):
                assert sink.parent_facts is not None
                assert sink.adopt_entry(name)
                continue
            with sink.entry(name) as entry:
                entry.write(content)
                entry.finish({"length": len(content)})
        if self.during is not None:
            self.during(target.node)
        return Summary(len(data), 0, {"count": len(data), "mark": mark, "schema": self.schema})

    def require_agreement(self, facts: Sequence[Mapping[str, Any]]) -> None:
        if len({one["schema"] for one in facts}) > 1:
            raise EngineUnsupported("the schema was changed")

    def tidy(self, target: Target, histories: Mapping[str, Mapping[str, Any] | None]) -> None:
        with self.lock:
            for history, keep in histories.items():
                mark, mine = None if keep is None else keep["mark"], self.left.get(target.node, [])
                self.left[target.node] = [one for one in mine if one == mark or not one.startswith(history)]

    def restore(self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str) -> Summary:
        found = {entry.name: b"".join(source.read(entry.name)) for entry in source.entries()}
        self.databases[target.address] = found
        return Summary(len(found), 0)


class Cluster(Vault):
    """A vault whose instances are clusters; jobs run in threads, one worker a node."""

    def __init__(self, folder: Path) -> None:
        self.threads: dict[str, Worker] = {}
        super().__init__(folder)

    def restart(self) -> None:
        if not isinstance(self.engine, DictCluster):
            self.engine = DictCluster()
        super().restart()
        handlers = {**self.worker._handlers, "backup": BackupJob(self.ctx), "part": PartJob(self.ctx), "tidy": TidyJob(self.ctx)}
        for queue in ("default", *(f"node:{name}" for name in NODES)):
            self.threads[queue] = Worker(self.jobs, handlers, [queue], poll=0.05, beat=0.2)

    def work(self, *but: str) -> None:
        for queue, worker in self.threads.items():
            if queue not in but:
                worker.start()

    def until(self, true: Any) -> Any:
        end = self.ambient.monotonic() + 30
        while self.ambient.monotonic() < end:
            if found := true():
                return found
            self.ambient.sleep(0.02)
        raise AssertionError("it does not come")

    def run(self) -> None:
        """Until no job is active."""
        active = sa.select(t.job.c.id).where(t.job.c.state.in_(("QUEUED", "RUNNING")))

        def none() -> bool:
            with self.catalog.read() as conn:
                return conn.execute(active).first() is None

        self.until(none)

    def parts(self, key: str) -> Sequence[Any]:
        with self.catalog.read() as conn:
            return conn.execute(sa.select(t.part).where(t.part.c.backup == key)).all()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for worker in made.threads.values():
        worker.shutdown(5.0)


def data(seed: int) -> dict[str, bytes]:
    """Of each node one entry that stays and one that is the seed's own."""
    found = {f"{node}/still": noise(40_000, number) for number, node in enumerate(NODES)}
    return found | {f"{node}/own": noise(20_000, seed * 10 + number) for number, node in enumerate(NODES)}


def test_every_node_has_a_part_and_all_are_restored_as_one(cluster: Cluster) -> None:
    cluster.work()
    first, second, third = (cluster.backup(data(seed)) for seed in (1, 2, 3))
    assert [len(cluster.parts(key)) for key in (first, second, third)] == [3, 3, 3]
    stored = [sum(part.stored_bytes for part in cluster.parts(key)) for key in (first, second)]
    assert stored[1] < stored[0] / 2
    assert {len(left) for left in cluster.engine.left.values()} == {1}, "the head's"
    before = cluster.size()
    cluster.delete(second)
    cluster.run()
    receipt = cluster.receipt(second)
    assert receipt["freed"] == receipt["promised"]["freed"] > 3 * 20_000
    assert (
        before - cluster.size()
        == receipt["freed"] + receipt["reclaimed"]["net"] - receipt["put_bytes"] + receipt["reclaimed"]["written"]
    )
    cluster.check()


def test_what_an_ended_history_left_goes_with_the_next_backup(cluster: Cluster) -> None:
    cluster.work()
    cluster.delete(cluster.backup(data(1)))
    cluster.run()
    assert {len(left) for left in cluster.engine.left.values()} == {1}
    ended = {mark for left in cluster.engine.left.values() for mark in left}
    cluster.backup(data(2))
    assert {len(left) for left in cluster.engine.left.values()} == {1}
    assert not ended & {mark for left in cluster.engine.left.values() for mark in left}


def test_a_failing_part_fails_the_backup_and_it_owns_nothing(cluster: Cluster) -> None:
    cluster.work()
    kept = cluster.backup(data(1))
    size, left = cluster.size(), {node: list(marks) for node, marks in cluster.engine.left.items()}
    cluster.engine.broken = "two"
    cluster.engine.during = lambda node: None
    key, job = cluster.create(data(2))
    cluster.until(lambda: cluster.state(key) == "FAILED")
    cluster.run()
    assert cluster.job(job).state == "FAILED"
    assert "it broke" in cluster.job(job).error
    assert {part.state for part in cluster.parts(key)} == {"RETIRED"}
    assert cluster.size() < size + 3_000, "graves alone"
    assert cluster.engine.left == left, "each node keeps what the next capture adopts from, and no more"
    cluster.engine.broken = None
    again = cluster.backup(data(3))
    assert all(part.adopted_bytes > 0 for part in cluster.parts(again))
    assert cluster.state(kept) == "COMPLETED"
    cluster.check()


def test_parts_that_cannot_be_restored_together_fail_the_backup(cluster: Cluster) -> None:
    """The schema is changed when one part has been completed: the next one says so, and the backup owns nothing."""
    cluster.work("node:two", "node:three")
    key, job = cluster.create(data(1))
    cluster.until(lambda: [part.state for part in cluster.parts(key)].count("COMPLETED") == 1)
    cluster.engine.schema = 2
    for queue in ("node:two", "node:three"):
        cluster.threads[queue].start()
    cluster.until(lambda: cluster.state(key) == "FAILED")
    cluster.run()
    assert "the schema was changed" in cluster.job(job).error
    assert cluster.size() < 3_000, "graves alone"
    assert cluster.state(cluster.backup(data(2))) == "COMPLETED"
    cluster.check()


@pytest.mark.parametrize("changed", [False, True])
def test_a_part_is_compared_with_those_that_are_completed_while_it_compares(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    """The last to commit has been compared with all others, however their ends meet."""
    agreed, looks = creation._Build._agreed, list[int]()

    def slowly(build: Any, facts: Mapping[str, Any]) -> Any:
        found = agreed(build, facts)
        if build._target.node == "one":
            looks.append(len(found or ()))
            cluster.engine.schema = 2 if changed else 1
            for queue in ("node:two", "node:three"):
                if len(looks) == 1:
                    cluster.threads[queue].start()
            cluster.until(lambda: [part.state for part in cluster.parts(key)].count("COMPLETED") == 2)
        return found

    monkeypatch.setattr(creation._Build, "_agreed", slowly)
    key, job = cluster.create(data(1))
    cluster.work("node:two", "node:three")
    cluster.until(lambda: cluster.state(key) in ("COMPLETED", "FAILED"))
    cluster.run()
    if changed:
        assert looks == [0]
        assert "the schema was changed" in cluster.job(job).error
    else:
        assert looks == [0, 2]
        assert cluster.job(job).state == "DONE"
    cluster.check()


def test_a_node_that_is_down_refuses_and_one_that_is_gone_keeps_its_old_backups_deletable(cluster: Cluster) -> None:
    cluster.work()
    old = cluster.backup(data(1))
    cluster.engine.down = "three"
    with pytest.raises(errors.InstanceUnusable, match="node three is down"):
        cluster.create()
    cluster.engine.here.remove("three")  # taken out of the cluster for good
    new = cluster.backup({name: content for name, content in data(2).items() if not name.startswith("three")})
    assert len(cluster.parts(new)) == 2
    cluster.delete(old)
    cluster.run()
    assert cluster.state(old) == "DELETED"
    with cluster.catalog.read() as conn:
        rows = conn.execute(sa.select(t.lineage.c.node, t.lineage.c.state)).all()
    assert {row.node: row.state for row in rows} == {"one": "OPEN", "two": "OPEN", "three": "CLOSED"}
    cluster.check()


def test_a_part_that_nobody_works_on_can_be_stopped(cluster: Cluster) -> None:
    cluster.work("node:three")
    key, job = cluster.create(data(1))
    cluster.until(lambda: sum(part.state == "COMPLETED" for part in cluster.parts(key)) == 2)
    with pytest.raises(errors.InstanceBusy):
        cluster.create()
    creation.stop(cluster.ctx, cluster.project, key, lambda conn: None)
    assert cluster.state(key) == "FAILED"
    cluster.until(lambda: not cluster.job(job).active)
    cluster.threads["node:three"].start()
    cluster.run()
    cluster.backup(data(2))
    cluster.check()


def test_a_restore_waits_for_a_backup_and_runs_on_a_node(cluster: Cluster) -> None:
    cluster.work()
    key = cluster.backup(data(1))
    job = restoration.restore(cluster.ctx, cluster.project, key, cluster.target, lambda conn: None)
    with cluster.catalog.read() as conn:
        queue = conn.execute(sa.select(t.job.c.queue).where(t.job.c.id == job)).scalar()
    assert queue == "node:one"
    with pytest.raises(errors.BackupRestoring):
        deletion.delete(cluster.ctx, cluster.project, key, lambda conn, b, n: None)
    cluster.run()


def test_a_rebuild_joins_the_parts_and_misses_a_lost_one(cluster: Cluster, tmp_path: Path) -> None:
    cluster.work()
    whole, torn = cluster.backup(data(1)), cluster.backup(data(2))
    with cluster.catalog.read() as conn:
        root = cluster.parts(torn)[0].root
        name = conn.execute(sa.select(t.object_.c.name).where(t.object_.c.id == root)).scalar_one()
    for worker in cluster.threads.values():
        worker.shutdown(5.0)
    cluster.store.delete(name)
    catalog = open_catalog(f"sqlite:///{tmp_path / 'anew.db'}")
    t.metadata.create_all(catalog.engine)
    ctx = cluster.ctx
    anew = Context(catalog, ctx.store, ctx.jobs, ctx.engines, ctx.root_key, ctx.sealer, ctx.ambient, ctx.scratch, ctx.options)
    with catalog.write() as conn:
        accounts.found(conn, ctx.ambient, "account", "project", "admin", None)
    told: list[str] = []
    result = rebuild(anew, told.append)
    assert (result.backups, result.damaged) == (2, 1)
    with catalog.read() as conn:
        states = {row.id: row for row in conn.execute(sa.select(t.backup))}
        nodes = set(conn.execute(sa.select(t.lineage.c.node)).scalars())
        parts = conn.execute(sa.select(t.part).where(t.part.c.backup == whole)).all()
    assert nodes == set(NODES)
    assert len(parts) == 3
    assert states[whole].state == "COMPLETED"
    assert states[whole].plain_bytes == 3 * 60_000
    assert states[torn].state == "FAILED"
    assert "1 of its 3 nodes' parts" in states[torn].fail_reason
    with reading(anew, parts) as (source, _):
        found = {entry.name: b"".join(source.read(entry.name)) for entry in source.entries()}
    assert found == cluster.wanted[whole]
    catalog.close()
