"""A process that dies, is deaf, or is replaced between any two effects: the work ends, nothing is lost and nothing is left.

Effects are calls of the store (before and after each) and transactions of the catalog (before each begins, before each commits).
Each action is run once undisturbed to count its effects, then once for each of them, on the same world.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.backups import creation, pending
from strongroom.backups.context import Options
from strongroom.catalog import tables as t
from strongroom.storage.base import StoreFull
from strongroom.storage.faults import Delay, Effect, Fail
from support.harsh import TTL, HarshVault, Saved
from support.vault import edited, noise

Act = Callable[[HarshVault], None]
HOUR = 3600.0

STILL, BASE = noise(12_000, 1), noise(40_000, 2)
EDITED = [edited(BASE, number, edits=5) for number in range(4)]
DATA = [{"edited": EDITED[number], "own": noise(8_000, 10 + number), "still": STILL} for number in range(4)]
"""Databases that follow one another: one entry is edited in places, one is new each time, one never changes."""


def delete_oldest(vault: HarshVault) -> None:
    """Some objects go whole, others are rewritten."""
    vault.delete(next(iter(vault.wanted)))
    vault.run()


def delete_when_its_window_ends(vault: HarshVault) -> None:
    """The only deletion waits for an hour, is called back and asked for again; then its job decides it and carries it out."""
    pending.put_policy(vault.ctx, vault.project, lambda *_: None, undelete_hours=1)
    ((key, data),) = vault.wanted.items()
    vault.delete(key)
    pending.undelete(vault.ctx, vault.project, key, pending.Person("ann", "ann"), lambda conn: None)
    vault.wanted[key] = data
    vault.delete(key)
    vault.clock.passed += HOUR
    vault.run()


def delete_newest(vault: HarshVault) -> None:
    """Packs go whole at the chain's end."""
    vault.delete(list(vault.wanted)[-1])
    vault.run()


def close_lineage(vault: HarshVault) -> None:
    """The only backup is deleted, and its lineage with it."""
    vault.delete(next(iter(vault.wanted)))
    vault.run()


def delete_without_room(vault: HarshVault) -> None:
    """The store takes nothing until something is removed: packs go before the grave."""

    def size() -> int:
        return sum(stat.size for stat in vault.inner.list(""))

    limit = size()

    def full(effect: Effect) -> Fail | None:
        if effect.phase == "before" and effect.kind == "put_new" and size() + 100 > limit:
            return Fail(StoreFull("no room left"))
        return None

    vault.nature = full
    vault.delete(list(vault.wanted)[1])
    vault.run()


def take_fourth(vault: HarshVault) -> None:
    """A backup that shares with its parent."""
    key, _ = vault.create(DATA[3])
    vault.wanted[key] = DATA[3]
    vault.run()


def restore_first(vault: HarshVault) -> None:
    """Reads everything of a backup."""
    key = next(iter(vault.wanted))
    vault.restore(key)
    vault.run()


def stop_fourth(vault: HarshVault) -> None:
    """A build is stopped half-way, by another caller."""

    def stop() -> None:
        vault.engine.during = None
        creation.stop(vault.ctx, vault.project, key, lambda conn: None)

    vault.engine.during = stop
    key, _ = vault.create(DATA[3])
    vault.run()


def fail_fourth(vault: HarshVault) -> None:
    """The engine breaks half-way through a build."""
    vault.engine.broken = "the engine went away"
    vault.create(DATA[3])
    vault.run()


def delete_parent_of_fourth(vault: HarshVault) -> None:
    """The parent is deleted while its child is being built: undecided bytes are settled."""
    parent = list(vault.wanted)[-1]

    def delete() -> None:
        vault.engine.during = None
        vault.delete(parent)

    vault.engine.during = delete
    key, _ = vault.create(DATA[3])
    vault.wanted[key] = DATA[3]
    vault.run()


ACTS = [
    delete_oldest, delete_newest, delete_without_room, close_lineage, take_fourth, restore_first, stop_fourth, fail_fourth,
    delete_parent_of_fourth,
]  # fmt: skip


@cache
def prepared(folder: Path, backups: int) -> Saved:
    """Backups of one database, made once for all deaths."""
    vault = HarshVault(folder / f"prepared-{backups}", Options(chunk_average=4096, pack_target=16384))
    for data in DATA[:backups]:
        vault.backup(data)
    saved = vault.save()
    vault.catalog.close()
    return saved


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory, act: Act) -> Saved:
    """The prepared world."""
    return prepared(tmp_path_factory.getbasetemp(), 1 if act in (close_lineage, delete_when_its_window_ends) else 3)


def effects_of(folder: Path, world: Saved, act: Act) -> list[Effect | str]:
    """What an undisturbed run does, in order."""
    vault = HarshVault.revive(folder, world)
    seen: list[Effect | str] = []
    with vault.watching(lambda effect: seen.append(effect)):
        act(vault)
    finish(vault, world)
    return seen


def finish(vault: HarshVault, world: Saved) -> None:
    """Another process ends what was begun; then everything must be as if nothing had happened."""
    vault.engine.during = vault.engine.broken = None
    vault.restart()
    vault.clock.passed += HOUR
    vault.run()
    vault.plan = lambda _effect: None  # what looks now is no part of what is tried
    vault.expect_surviving(world.wanted)
    vault.check()
    with vault.catalog.read() as conn:
        failed = conn.execute(sa.select(t.job.c.kind, t.job.c.error).where(t.job.c.state == "FAILED")).all()
        deletions = conn.execute(sa.select(t.deletion)).all()
    assert not [row for row in failed if row.kind != "backup"], failed
    for row in deletions:
        assert row.state == "DONE"
        assert (row.freed, row.waiting, row.removed_objects) == (row.promised_freed, row.promised_waiting, row.promised_objects)
        assert row.rewrite_written <= row.owned


@pytest.mark.slow
@pytest.mark.parametrize("act", [*ACTS, delete_when_its_window_ends])
def test_death_between_any_two_effects_loses_and_leaves_nothing(tmp_path: Path, world: Saved, act: Act) -> None:
    """Every effect of the run is once the last of its process; then another process ends the work."""
    seen = effects_of(tmp_path / "whole", world, act)
    total = len(seen)
    assert total > 20
    if act is delete_oldest:
        assert any(isinstance(one, Effect) and "/rewrite/" in one.names[0] for one in seen), "it rewrites something"
    vault = None
    for at in range(1, total + 1):
        vault = HarshVault.revive(tmp_path / "dying", world, vault)
        with vault.dying(at):
            act(vault)
        finish(vault, world)


@pytest.mark.parametrize("act", ACTS)
def test_a_lost_reply_is_no_failure(tmp_path: Path, world: Saved, act: Act) -> None:
    """Every call of the store once takes effect and answers with a time-out: the jobs try again and end well."""
    calls = [effect for effect in effects_of(tmp_path / "whole", world, act) if isinstance(effect, Effect)]
    vault = None
    for number in {effect.number for effect in calls}:
        vault = HarshVault.revive(tmp_path / "deaf", world, vault)

        def lose(effect: Effect, number: int = number) -> Fail | None:
            return Fail() if effect.phase == "after" and effect.number == number else None

        vault.plan = lose
        act(vault)
        finish(vault, world)


@pytest.mark.parametrize("act", ACTS)
def test_a_late_put_harms_nobody(tmp_path: Path, world: Saved, act: Act) -> None:
    """Every put once does not land and lands after all is done: it is named by a row that says so, and by nothing else."""
    calls = [effect for effect in effects_of(tmp_path / "whole", world, act) if isinstance(effect, Effect)]
    vault = None
    for number in {effect.number for effect in calls if effect.kind == "put_new"}:
        vault = HarshVault.revive(tmp_path / "late", world, vault)
        held: list[str] = []

        def hold(effect: Effect, number: int = number, held: list[str] = held) -> Delay | None:
            if effect.phase == "before" and effect.number == number and effect.kind == "put_new":
                held.extend(effect.names)
                return Delay()
            return None

        vault.plan = hold
        act(vault)
        vault.engine.during = vault.engine.broken = None
        vault.run()
        landed = [name for at, name in enumerate(vault.faulty.sent) if name in held and vault.faulty.deliver_late(at)]
        with vault.catalog.read() as conn:
            rows = {row.name: row.state for row in conn.execute(sa.select(t.object_.c.name, t.object_.c.state))}
        assert all(rows[name] == "LATE" for name in landed), [(name, rows.get(name)) for name in landed]
        vault.expect_surviving(world.wanted)
        for key, data in vault.wanted.items():
            assert vault.read_back(key) == data
        for name in landed:
            vault.inner.delete(name)
        finish(vault, world)


@pytest.mark.parametrize("act", [delete_oldest, close_lineage, take_fourth, restore_first, fail_fourth])
def test_a_paused_worker_that_was_replaced_harms_nobody(tmp_path: Path, world: Saved, act: Act) -> None:
    """At every call of the store its worker is paused, another takes the job over and ends it, and the first goes on."""
    total = len([effect for effect in effects_of(tmp_path / "whole", world, act) if isinstance(effect, Effect)])
    vault = None
    for at in range(1, total + 1):
        vault = HarshVault.revive(tmp_path / "stale", world, vault)
        other = vault.another_process()
        seen = 0

        def pause(_effect: Effect, vault: HarshVault = vault, other: object = other, at: int = at) -> None:
            nonlocal seen
            seen += 1
            if seen == at:
                vault.clock.sleep(TTL + 1)
                while other.step() is not None:  # type: ignore[attr-defined]
                    pass

        vault.plan = pause
        act(vault)
        finish(vault, world)
