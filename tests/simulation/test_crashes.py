"""A process that dies between any two effects of a delete or a backup: the next one goes on, and nothing is lost or left.

Effects are calls of the store (before and after each) and transactions of the catalog (before each begins, before each commits).
The dying process is simulated: an exception that nothing handles ends it there, a new process starts on the same catalog and store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.jobs.embedded import forget_leases
from strongroom.storage.faults import Effect, Fail, FaultyStore
from strongroom.storage.memory import MemoryStore
from support.vault import Vault, generations


class Died(BaseException):
    """The process is gone."""


class Fate:
    """Counts effects and ends the process at one of them."""

    def __init__(self) -> None:
        self.count = 0
        self.at: int | None = None
        self.alive = True

    def __call__(self, effect: Effect | str) -> Fail | None:
        if not self.alive:
            raise Died
        self.count += 1
        if self.at is not None and self.count == self.at:
            self.alive = False
            raise Died
        return None


@contextmanager
def mortal(vault: Vault, fate: Fate, at: int | None) -> Iterator[None]:
    """Within the block the process dies at the effect `at` (counted from here)."""

    def begin(_conn: sa.Connection) -> None:
        fate("begin")

    def commit(_conn: sa.Connection) -> None:
        fate("commit")

    fate.count, fate.at, fate.alive = 0, at, True
    sa.event.listen(vault.catalog.engine, "begin", begin, insert=True)
    sa.event.listen(vault.catalog.engine, "commit", commit)
    vault.store._plan = fate  # type: ignore[attr-defined]
    try:
        yield
    except Died:
        pass
    finally:
        sa.event.remove(vault.catalog.engine, "begin", begin)
        sa.event.remove(vault.catalog.engine, "commit", commit)
        vault.store._plan = lambda _effect: None  # type: ignore[attr-defined]
    fate.alive = True


def new_process(vault: Vault) -> None:
    """What a server does at its start."""
    vault.restart()
    with vault.catalog.write() as conn:
        forget_leases(conn)


def prepared(folder: Path) -> tuple[Vault, list[str]]:
    vault = Vault(folder, store=FaultyStore(MemoryStore(), lambda _effect: None))
    return vault, [vault.backup(data) for data in generations(3)]


def effects_of(folder: Path, act: Callable[[Vault, list[str]], None]) -> int:
    """How many effects an undisturbed run has."""
    vault, keys = prepared(folder)
    fate = Fate()
    with mortal(vault, fate, None):
        act(vault, keys)
    vault.check()
    return fate.count


def delete_middle(vault: Vault, keys: list[str]) -> None:
    vault.delete(keys[1])
    vault.run()


def delete_all(vault: Vault, keys: list[str]) -> None:
    for key in keys:
        vault.delete(key)
    vault.run()


def take_fourth(vault: Vault, keys: list[str]) -> None:
    data = list(generations(4))[3]
    key, _ = vault.create(data)
    vault.wanted[key] = data
    vault.run()


@pytest.mark.parametrize("act", [delete_middle, delete_all, take_fourth])
def test_death_between_any_two_effects_loses_and_leaves_nothing(
    tmp_path: Path, act: Callable[[Vault, list[str]], None]
) -> None:
    """Every effect of the run is once the last of its process; then another process ends the work."""
    (tmp_path / "whole").mkdir()
    total = effects_of(tmp_path / "whole", act)
    assert total > 20
    for at in range(1, total + 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        vault, keys = prepared(folder)
        wanted = dict(vault.wanted)
        with mortal(vault, Fate(), at):
            act(vault, keys)
        new_process(vault)
        vault.run()
        for key in [*wanted, *vault.wanted]:
            state = vault.state(key) if known(vault, key) else "UNKNOWN"
            if state == "COMPLETED":
                vault.wanted.setdefault(key, wanted.get(key) or vault.wanted[key])
            else:
                vault.wanted.pop(key, None)
            assert state in ("COMPLETED", "DELETED", "UNKNOWN"), (at, state)
        vault.check()
        vault.catalog.close()


def known(vault: Vault, key: str) -> bool:
    from strongroom.catalog import tables as t

    with vault.catalog.read() as conn:
        return conn.execute(sa.select(t.backup.c.id).where(t.backup.c.id == key)).first() is not None
