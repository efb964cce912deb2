"""Proof that the meetings of test_isolation_pairs.py can fail: what a weaker isolation or a missing lock does is found there.

Each weakness is planted by a patch in the test alone, and looked for at every boundary of one pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups import deletion
from strongroom.catalog import database, lifespans
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, Guard, RowGone
from support.interleaving import Act, Pair
from support.isolation_acts import BEGIN, DELETE_HEAD, DELETE_NEXT, FAIL, RESTORE, Houses, houses

__all__ = ["houses"]

pytestmark = pytest.mark.slow


def found(houses: Houses, kind: str, first: Act, second: Act, plant: Any, world: str = "quiet") -> list[str]:
    """What is found of a plant, compared with the honest orders; without it nothing is."""
    stage, pair = houses.on(kind), Pair(first, second, world)
    assert stage.violations(pair, 1) == []
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        return stage.violations(pair)


def lock_and_neighbours_in_one_statement(patch: pytest.MonkeyPatch) -> None:
    """The lineage's lock and its chain come from one statement: the chain is as it was before the lock was waited for."""
    chains: WeakKeyDictionary[Connection, Sequence[tuple[int, str]]] = WeakKeyDictionary()
    honest_chain = lifespans.chain
    locked = (
        sa.update(t.lineage)
        .where(t.lineage.c.id == sa.bindparam("key"))
        .values(version=t.lineage.c.version + 1)
        .returning(t.lineage.c.id)
        .cte("locked")
    )
    in_chain = sa.select(t.part.c.seq, t.part.c.state).where(t.part.c.state != "RETIRED").order_by(t.part.c.seq)
    both = in_chain.join_from(t.part, locked, locked.c.id == t.part.c.lineage)

    def lock(conn: Connection, key: str) -> None:
        chains[conn] = [(row.seq, row.state) for row in conn.execute(both, {"key": key})]

    def chain(conn: Connection, lineage: str) -> list[tuple[int, str]]:
        return list(chains[conn]) if conn in chains else honest_chain(conn, lineage)

    def head(conn: Connection, lineage: str) -> tuple[int, str] | None:
        return next(reversed(chain(conn, lineage)), None)

    patch.setattr(database, "lock_lineage", lock)
    patch.setattr(lifespans, "chain", chain)
    patch.setattr(lifespans, "head", head)


def repeatable_read(patch: pytest.MonkeyPatch) -> None:
    """Deciding transactions run at REPEATABLE READ and lock by SELECT … FOR UPDATE."""

    @contextmanager
    def write(self: Catalog, guard: Guard | None = None) -> Iterator[Connection]:
        with self.engine.connect() as fresh:
            conn = fresh.execution_options(isolation_level="REPEATABLE READ")
            with conn.begin():
                if guard is not None:
                    guard(conn)
                yield conn

    def lock(conn: Connection, table: sa.Table, where: sa.ColumnElement[bool], key: str) -> None:
        if conn.execute(sa.select(table).where(where).with_for_update()).first() is None:
            raise RowGone(table.name, key)

    patch.setattr(Catalog, "write", write)
    patch.setattr(database, "_lock", lock)


def no_lock_of_backups(patch: pytest.MonkeyPatch) -> None:
    """Deciding transactions lock lineages, not backups."""
    honest = Catalog.decide

    def decide(
        self: Catalog, guard: Guard | None = None, *, backups: Iterable[str] = (), lineages: Iterable[str] = ()
    ) -> AbstractContextManager[Connection]:
        del backups
        return honest(self, guard, lineages=lineages)

    patch.setattr(Catalog, "decide", decide)


def decided_from_an_earlier_read(patch: pytest.MonkeyPatch) -> None:
    """A delete keeps to what its snapshot showed, and does not compare the lineages' versions under their locks."""
    patch.setattr(deletion, "_version", lambda *_args, **_more: "the same")
    patch.setattr(deletion, "_version_of", lambda *_args: "the same")


def test_lock_and_neighbours_in_one_statement_are_found(houses: Houses) -> None:
    """On PostgreSQL a backup begins on a parent that a delete has just taken out of the chain."""
    told = found(houses, "postgres", BEGIN, DELETE_HEAD, lock_and_neighbours_in_one_statement)
    assert any("parent=4" in one for one in told), told


def test_repeatable_read_is_found(houses: Houses) -> None:
    """On PostgreSQL a lock that was waited for brings no newer snapshot: a build that fails beside the delete of its parent still
    sees that as its neighbour, and what it leaves is never freed. (Two decisions of people would fail instead, since both write
    the end of the audit trail.)"""
    told = found(houses, "postgres", FAIL, DELETE_HEAD, repeatable_read, "building")
    assert any("cause=FAIL" in one and "before=4" in one for one in told), told


def test_a_restore_and_a_delete_without_the_backups_lock_are_found(houses: Houses) -> None:
    """On PostgreSQL both are accepted: the restore reads what is being removed."""
    told = found(houses, "postgres", RESTORE, DELETE_HEAD, no_lock_of_backups)
    assert any("('accepted', 'accepted')" in one or "has no manifest" in one for one in told), told


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_decision_from_an_earlier_read_is_found(kind: str, houses: Houses) -> None:
    """On both databases a delete promises what was so before its neighbour went, and frees something else."""
    told = found(houses, kind, DELETE_NEXT, DELETE_HEAD, decided_from_an_earlier_read)
    assert told


def test_on_sqlite_the_begin_alone_suffices(houses: Houses) -> None:
    """BEGIN IMMEDIATE lets no other decision begin: without the backup's lock nothing is harmed there."""
    assert found(houses, "sqlite", RESTORE, DELETE_HEAD, no_lock_of_backups) == []
