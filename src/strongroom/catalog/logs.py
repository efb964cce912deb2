"""Lifespans of a source's log: which pieces of it still lead from a backup to a later moment.

Backups stand in the log: `part.log_order` says where, `part.log_chain` which stretch of log without a hole (a *chain*) goes on
from there. A piece is needed while a part of its chain that stands before the piece's end has not left: from there a restore
replays every piece up to its moment. So a piece belongs to all parts before its end together. Deleting the oldest backup frees
the log up to the next one, deleting one in between frees none of it, and deleting the last of a chain all.

Where a part that is being built will stand is not known: as long as it is, it needs what is recorded. At its end, however it
ends, what nobody needs is buried.

Every function here works on a lineage that the caller has locked, but for `weigh`, which forecasts on a snapshot too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.catalog import tables as t
from strongroom.catalog.many import batches
from strongroom.catalog.space import condemn

CUT_OFF = 0
"""The chain of a part that can go on by no log any more, though it once could."""


@dataclass(frozen=True, slots=True)
class Weight:
    """Some pieces of log, in bytes of their objects."""

    objects: int = 0
    bytes: int = 0

    def __sub__(self, other: Weight) -> Weight:
        return Weight(self.objects - other.objects, self.bytes - other.bytes)


def weigh(conn: Connection, lineage: str, without: Collection[int] = ()) -> Weight:
    """The pieces that nobody needs; `without`: parts that are thought away."""
    count, size = sa.func.count(), sa.func.coalesce(sa.func.sum(t.object_.c.bytes), 0)
    query = sa.select(count, size).select_from(t.segment.join(t.object_, t.object_.c.id == t.segment.c.object))
    row = conn.execute(query.where(_dead(conn, lineage, without))).one()
    return Weight(int(row[0]), int(row[1]))


def bury(conn: Connection, lineage: str, removal: str) -> bool:
    """Condemns the pieces that nobody needs; whether there were any."""
    dead = conn.scalars(sa.select(t.segment.c.object).where(_dead(conn, lineage))).all()
    for some in batches(dead):
        conn.execute(sa.delete(t.segment).where(t.segment.c.object.in_(some)))
    condemn(conn, dead, removal)
    return bool(dead)


def unfinished() -> sa.ColumnElement[bool]:
    """Condition for objects of pieces that wait for the mark that ends their group: they go with the lineage."""
    known = sa.exists().where(t.segment.c.object == t.object_.c.id)
    return sa.and_(t.object_.c.kind == "log", ~known)


def _dead(conn: Connection, lineage: str, without: Collection[int] = ()) -> sa.ColumnElement[bool]:
    """Which pieces nobody needs: those that end where the first part of their chain stands, or before it."""
    p, s, r = t.part.c, t.segment.c, t.recording.c
    chains = conn.scalars(sa.select(s.chain).where(s.lineage == lineage).distinct()).all()
    if not chains:
        return sa.false()
    floors: dict[int, int] = {}
    building = False
    in_chain = (p.lineage == lineage, p.state != sa.literal_column("'RETIRED'"))
    for row in conn.execute(sa.select(p.seq, p.state, p.log_chain, p.log_order).where(*in_chain)):
        if row.seq in without:
            continue
        building = building or row.state == "BUILDING"
        if row.log_chain:
            floors[row.log_chain] = min(row.log_order, floors.get(row.log_chain, row.log_order))
    current = conn.execute(sa.select(r.chain).where(r.lineage == lineage)).scalar() if building else None
    dead: list[sa.ColumnElement[bool]] = [sa.false()]
    for chain in chains:
        if chain == current:
            continue
        floor = floors.get(chain)
        dead.append(sa.and_(s.chain == chain, sa.true() if floor is None else s.upto <= floor))
    return sa.and_(s.lineage == lineage, sa.or_(*dead))


def stand(conn: Connection, lineage: str, seq: int, stream: str, order: int, at: float) -> None:
    """A part says where in its source's log it stands. It is of the chain that is being recorded if that began before it and goes
    by the same stream."""
    r = t.recording.c
    chain = conn.execute(sa.select(r.chain).where(r.lineage == lineage, r.stream == stream, r.began <= order)).scalar()
    conn.execute(
        sa.update(t.part)
        .where(t.part.c.lineage == lineage, t.part.c.seq == seq)
        .values(log_stream=stream, log_order=order, log_at=at, log_chain=chain)
    )


def take_in(conn: Connection, lineage: str, chain: int, stream: str, began: int, *, anew: bool = False) -> None:
    """Parts that stand in a stream that the chain has gone on to, and that had none yet, are of the chain from here on; `anew`,
    as the chain begins, those of other chains too."""
    p = t.part.c
    here = [p.lineage == lineage, p.state == "COMPLETED", p.log_stream == stream, p.log_order >= began]
    if not anew:
        here.append(p.log_chain.is_(None))
    conn.execute(sa.update(t.part).where(*here).values(log_chain=chain))


def has_base(conn: Connection, lineage: str, chain: int) -> bool:
    """Whether a part goes on by the chain, or one that is being built may."""
    p = t.part.c
    here = (p.lineage == lineage, p.state != sa.literal_column("'RETIRED'"))
    either = sa.or_(p.log_chain == chain, p.state == "BUILDING")
    return conn.execute(sa.select(p.seq).where(*here, either).limit(1)).first() is not None


def cut(conn: Connection, lineage: str, chain: int, before: int | None) -> None:
    """Parts of the chain that stand before this place can go on by it no more; None: none of it can."""
    p = t.part.c
    here = [p.lineage == lineage, p.log_chain == chain]
    if before is not None:
        here.append(p.log_order < before)
    conn.execute(sa.update(t.part).where(*here).values(log_chain=CUT_OFF))


def pieces(conn: Connection, lineage: str, chain: int) -> Sequence[Row[Any]]:
    """The chain's pieces in order, with their objects' names."""
    s = t.segment.c
    query = sa.select(t.segment, t.object_.c.name, t.object_.c.bytes).join(t.object_, t.object_.c.id == s.object)
    return conn.execute(query.where(s.lineage == lineage, s.chain == chain).order_by(s.upto, s.piece)).all()
