"""Two decisions that meet: another one is taken between a use case's look and its locks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import creation, deletion, errors
from strongroom.catalog import sweeping
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog
from strongroom.storage.base import StoreDenied
from strongroom.storage.memory import MemoryStore
from support.vault import Vault, edited, generations, noise


@pytest.fixture
def vault(tmp_path: Path, catalog: Catalog) -> Vault:
    return Vault(tmp_path, catalog=catalog)


@pytest.fixture
def after_sweep(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Lets something happen once, between the next finished sweep and the transaction that it was finished for. Every sweep
    goes a row at a time, so that decisions are left unswept by the transactions that take them."""
    monkeypatch.setattr(sweeping, "BATCH", 1)
    finish = sweeping.finish
    due: list[Callable[[], Any]] = []

    def finish_and_more(*args: Any) -> None:
        finish(*args)
        if due:
            due.pop()()

    monkeypatch.setattr(sweeping, "finish", finish_and_more)
    return due.append


@pytest.fixture
def begun(vault: Vault, after_sweep: Any) -> Iterator[tuple[str, str]]:
    """A backup that is begun, and its job. Of the two before it the first is deleted between the next sweep and its decision; at
    the end that deletion has ended and everything else is whole."""
    source = generations(3)
    first, _ = vault.backup(next(source)), vault.backup(next(source))
    data = next(source)
    backup, job = vault.create(data)
    vault.wanted[backup] = data
    after_sweep(lambda: vault.delete(first))
    yield backup, job
    assert vault.state(first) == "DELETED"
    vault.check()


def test_a_commit_outlives_a_delete_that_is_decided_just_before_it(vault: Vault, begun: tuple[str, str]) -> None:
    """The delete's sweep is not done when the commit has its locks: the commit sweeps and goes on, the build does not fail."""
    backup, job = begun
    vault.run()
    assert (vault.state(backup), vault.job(job).error) == ("COMPLETED", None)


def test_a_failing_build_ends_beside_a_delete(vault: Vault, begun: tuple[str, str]) -> None:
    """A failed build leaves its chain although a delete was decided a moment before, at the first try."""
    backup, job = begun
    vault.engine.broken = "the engine went away: start it again"
    vault.run()
    vault.engine.broken = None
    assert vault.state(backup) == "FAILED"
    assert (vault.job(job).state, vault.job(job).attempts) == ("FAILED", 1)
    del vault.wanted[backup]


def test_a_stop_is_accepted_beside_a_delete(vault: Vault, begun: tuple[str, str]) -> None:
    """Stopping a build is not disturbed by a delete that was decided a moment before."""
    backup, _ = begun
    creation.stop(vault.ctx, vault.project, backup, lambda conn: None)
    vault.run()
    assert vault.state(backup) == "FAILED"
    del vault.wanted[backup]


@pytest.mark.parametrize("count", [2, 1])
def test_a_backup_begins_beside_a_delete_of_its_parent(count: int, vault: Vault, after_sweep: Any) -> None:
    """The head goes a moment before the beginning: the backup begins on the one before it, or where that was the only one and its
    lineage was closed, begins another lineage. It is whole."""
    source = generations(count + 1)
    *_, head = [vault.backup(next(source)) for _ in range(count)]
    after_sweep(lambda: vault.delete(head))
    vault.backup(next(source))
    vault.check()


def test_no_backup_begins_on_a_closed_lineage_beside_its_successor(vault: Vault, after_sweep: Any) -> None:
    """The lineage was closed and another backup began the next one meanwhile: the instance is busy, nothing begins on the old."""
    source = generations(3)
    only = vault.backup(next(source))

    def another() -> None:
        vault.delete(only)
        vault.run()
        vault.create()

    after_sweep(another)
    with pytest.raises(errors.InstanceBusy):
        vault.create()
    with vault.catalog.read() as conn:
        parts = conn.execute(
            sa.select(t.part.c.seq, t.lineage.c.state)
            .join(t.lineage, t.lineage.c.id == t.part.c.lineage)
            .where(t.part.c.state == "BUILDING")
        ).all()
    assert [tuple(part) for part in parts] == [(1, "OPEN")]
    vault.run()
    vault.check_accounts()


def test_a_rewrite_waits_for_the_sweep_of_what_was_promised_meanwhile(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delete promises an object whole while that is rewritten: it frees that object, not a smaller copy of it."""
    kept, dropped = noise(60_000, 1), noise(30_000, 2)
    first = vault.backup({"a": kept[:30_000] + dropped + kept[30_000:]})
    second = vault.backup({"a": kept})
    vault.backup({"a": noise(1_000, 3)})
    put = vault.store.put_new

    def delete_meanwhile(name: str, pieces: Any) -> int:
        size = put(name, pieces)
        if "/rewrite/" in name and vault.state(second) == "COMPLETED":
            with monkeypatch.context() as patch:  # a decision too large for its own transaction
                patch.setattr(sweeping, "step", lambda *_args: None)
                vault.delete(second)
        return size

    monkeypatch.setattr(vault.store, "put_new", delete_meanwhile)
    vault.delete(first)
    vault.run()
    receipt = vault.receipt(second)
    assert (receipt["freed"], receipt["waiting"]) == (receipt["promised"]["freed"], receipt["promised"]["waiting"])
    assert receipt["freed"] > 60_000
    vault.check()


def test_a_delete_whose_lineage_keeps_moving_is_computed_inside(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times somebody is faster: the promise is then computed under the locks, and says at which version it holds."""
    source = generations(2)
    first, _ = vault.backup(next(source)), vault.backup(next(source))
    version = vault.preview(first).version
    lineage, before = version.split(".")
    compute, moves = deletion._compute, iter(range(3))

    def outrun(conn: sa.Connection, project: str, ids: Sequence[str], **options: bool) -> deletion.Preview:
        seen = compute(conn, project, ids, **options)
        if next(moves, None) is not None:
            with vault.catalog.decide(lineages=[lineage]):
                pass
        return seen

    monkeypatch.setattr(deletion, "_compute", outrun)
    vault.delete(first)
    with vault.catalog.read() as conn:
        at_version = conn.execute(sa.select(t.deletion.c.at_version).where(t.deletion.c.backup == first)).scalar_one()
    assert at_version == f"{lineage}.{int(before) + 3}"
    vault.run()
    receipt = vault.receipt(first)
    assert receipt["freed"] == receipt["promised"]["freed"]
    vault.check()


class Stingy(MemoryStore):
    """Refuses to remove packs while told so."""

    refusing = False

    def delete_many(self, names: Any) -> None:
        if self.refusing and any("/pack/" in name for name in names):
            raise StoreDenied("no right to delete")
        super().delete_many(names)


def test_what_is_condemned_holds_nothing(tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that a rewrite replaced has no holdings from that moment on, so that its removal and a sweep never touch the
    same rows in different orders."""
    vault = Vault(tmp_path, Stingy(), catalog)
    data = noise(200_000, 1)
    keys = [vault.backup({"a": data}), vault.backup({"a": edited(data, 2, 8)}), vault.backup({"a": edited(data, 3, 8)})]
    vault.delete(keys[0])
    put = vault.store.put_new

    def refuse_from_now_on(name: str, pieces: Any) -> int:
        if "/rewrite/" in name:
            monkeypatch.setattr(Stingy, "refusing", True)
        return put(name, pieces)

    monkeypatch.setattr(vault.store, "put_new", refuse_from_now_on)
    vault.run()
    monkeypatch.undo()
    assert vault.state(keys[0]) == "DELETING"
    with catalog.read() as conn:
        condemned = conn.execute(sa.select(t.object_.c.id).where(t.object_.c.state == "CONDEMNED")).all()
        held = conn.execute(
            sa.select(t.holding).join(t.object_, t.object_.c.id == t.holding.c.object).where(t.object_.c.state == "CONDEMNED")
        ).all()
    assert condemned
    assert held == []
    vault.delete(keys[0])
    vault.run()
    assert vault.state(keys[0]) == "DELETED"
    vault.check()
