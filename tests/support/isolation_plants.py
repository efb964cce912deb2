"""Weaknesses of isolation, to be planted by a test that must then find them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from weakref import WeakKeyDictionary

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups import deletion
from strongroom.catalog import database, lifespans
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, Guard, RowGone


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
