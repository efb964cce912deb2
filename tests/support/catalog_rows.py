"""Rows of two lineages, written as a test wants them: what the arithmetic makes of them is then asked for directly.

The second lineage is a decoy. It has the same seqs and packs with other lives, so that a statement that forgets whose rows it
reads or changes says something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import sqlalchemy as sa
from pyroaring import BitMap
from sqlalchemy import Connection

from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.identity import tables as _identity  # noqa: F401  (its tables are part of the catalog)

OURS, OTHER = "a" * 32, "b" * 32
CHUNK = 10
"""Sealed bytes of every chunk here."""

Death = tuple[int, int, int, int, int, frozenset[int], int]
"""(pack, born, last, closer, attempt, numbers, bytes)."""


def empty_catalog() -> Catalog:
    """The two lineages, and nothing in them. Rows come in an order that nobody expects where a statement does not ask for one."""
    catalog = open_catalog("sqlite://")
    t.metadata.create_all(catalog.engine)
    with catalog.write() as conn:
        conn.execute(sa.text("PRAGMA reverse_unordered_selects = ON"))
        for lineage in (OURS, OTHER):
            conn.execute(
                t.lineage.insert().values(
                    id=lineage, project="p", instance=lineage, scope="", node="", state="OPEN", counter=0, version=0,
                    chunk_average=4096, pack_target=1,
                )
            )  # fmt: skip
    return catalog


class Rows:
    """Inserts rows, and reads them back as plain values."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn

    def backup(self, key: str, state: str = "COMPLETED", **over: Any) -> str:
        values = {
            "id": key, "project": "p", "instance": "i", "instance_name": "i", "engine": "redis", "engine_version": "7",
            "name": "n", "description": "", "origin": "Manual", "scope": "", "state": state, "version": 0, "begin_at": 0.0,
            "plain_bytes": 0,
        }  # fmt: skip
        self.conn.execute(t.backup.insert().values(values | over))
        return key

    def part(self, seq: int, state: str = "COMPLETED", lineage: str = OURS, **over: Any) -> int:
        """A part of attempt 1, committed if it is COMPLETED or (unless said otherwise) RETIRED."""
        key = self.backup(f"{lineage}/{seq}", "BUILDING" if state == "BUILDING" else "COMPLETED")
        values = {
            "lineage": lineage, "seq": seq, "backup": key, "parent": seq - 1, "attempt": 1, "state": state, "version": 0,
            "committed": None if state == "BUILDING" else 1, "entries": 0, "plain_bytes": 0, "stored_bytes": 0,
            "adopted_bytes": 0,
        }  # fmt: skip
        self.conn.execute(t.part.insert().values(values | over))
        return seq

    def parts(self, *seqs: int, lineage: str = OURS) -> None:
        """Completed parts."""
        for seq in seqs:
            self.part(seq, lineage=lineage)

    def pack(self, key: int, born: int, chunks: int = 4, gone: Iterable[int] = (), lineage: str = OURS, **over: Any) -> int:
        numbers = BitMap(gone)
        values = {
            "lineage": lineage, "id": key, "born": born, "attempt": 1, "stored": True, "chunks": chunks,
            "bytes": chunks * CHUNK, "gone": numbers.serialize() if numbers else None, "gone_bytes": len(numbers) * CHUNK,
            "moved": False,
        }  # fmt: skip
        self.conn.execute(t.pack.insert().values(values | over))
        return key

    def death(
        self, pack: int, born: int, last: int, numbers: Iterable[int], closer: int | None = None, attempt: int = 1,
        lineage: str = OURS,
    ) -> Death:  # fmt: skip
        """Closed by the part after `last`, unless said otherwise."""
        dead = frozenset(numbers)
        by = last + 1 if closer is None else closer
        self.conn.execute(
            t.death.insert().values(
                lineage=lineage, pack=pack, born=born, last=last, closer=by, attempt=attempt, numbers=BitMap(dead).serialize(),
                bytes=len(dead) * CHUNK,
            )
        )  # fmt: skip
        return pack, born, last, by, attempt, dead, len(dead) * CHUNK

    def object(self, key: str, packs: dict[int, Iterable[int] | None], size: int, lineage: str = OURS, **over: Any) -> str:
        """A stored object; numbers None: all of a pack that was never moved."""
        values = {
            "id": key, "lineage": lineage, "kind": "pack", "name": key, "state": "STORED", "bytes": size, "live": 0,
            "dead_bytes": 0, "seq": 0, "attempt": 1, "late": False,
        }  # fmt: skip
        self.conn.execute(t.object_.insert().values(values | over))
        for pack, numbers in packs.items():
            held = None if numbers is None else BitMap(numbers)
            sizes = None if held is None else np.full(len(held), CHUNK, "<u2").tobytes()
            self.conn.execute(
                t.holding.insert().values(
                    object=key, lineage=lineage, pack=pack, numbers=None if held is None else held.serialize(), sizes=sizes,
                    bytes=0 if held is None else len(held) * CHUNK,
                )
            )  # fmt: skip
        return key

    def decision(self, seq: int, before: int = 0, after: int | None = None, lineage: str = OURS, **over: Any) -> int:
        """A gap; unswept and settled unless said otherwise."""
        values = {
            "lineage": lineage, "cause": "DELETE", "backup": f"{lineage}/{seq}", "seq": seq, "before": before, "after": after,
            "removal": f"delete:{lineage}/{seq}", "swept": False, "undecided": 0, "undecided_upto": seq, "settled": True,
            "settled_freed": 0, "settled_waiting": 0,
        }  # fmt: skip
        key = self.conn.execute(t.decision.insert().values(values | over)).inserted_primary_key
        assert key is not None
        return int(key[0])

    def deletion(self, backup: str, **over: Any) -> None:
        numbers = (
            "owned", "promised_freed", "promised_waiting", "promised_undecided", "promised_objects", "freed", "waiting",
            "removed_objects", "hidden", "put_bytes", "rewrite_read", "rewrite_written", "rewrite_dropped", "promised_rewrite",
        )  # fmt: skip
        values: dict[str, Any] = dict.fromkeys(numbers, 0)
        values |= {"backup": backup, "project": "p", "job": "j", "state": "RUNNING", "at_version": "", "accepted_at": 0.0}
        values |= {"thorough": False}
        self.conn.execute(t.deletion.insert().values(values | over))

    def deaths(self, lineage: str = OURS) -> set[Death]:
        """All death rows of a lineage."""
        rows = self.conn.execute(sa.select(t.death).where(t.death.c.lineage == lineage))
        return {
            (row.pack, row.born, row.last, row.closer, row.attempt, frozenset(BitMap.deserialize(row.numbers)), row.bytes)
            for row in rows
        }

    def states(self, lineage: str = OURS) -> dict[int, tuple[str, int]]:
        """seq → (state, attempt)."""
        rows = self.conn.execute(sa.select(t.part.c.seq, t.part.c.state, t.part.c.attempt).where(t.part.c.lineage == lineage))
        return {row.seq: (row.state, row.attempt) for row in rows}

    def snapshot(self, lineage: str) -> dict[str, list[Any]]:
        """Everything of a lineage, to see that nothing of it has changed."""
        tables = (t.part, t.pack, t.death, t.decision, t.object_, t.holding)
        found = {
            table.name: sorted(repr(row) for row in self.conn.execute(sa.select(table).where(table.c.lineage == lineage)))
            for table in tables
        }
        counter = self.conn.execute(sa.select(t.lineage.c.counter).where(t.lineage.c.id == lineage)).scalar_one()
        return found | {"counter": [counter]}


@contextmanager
def rolled_back(catalog: Catalog) -> Iterator[Rows]:
    """Rows in a transaction that leaves nothing."""
    with catalog.engine.connect() as conn:
        transaction = conn.begin()
        try:
            yield Rows(conn)
        finally:
            transaction.rollback()
