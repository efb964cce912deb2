"""Giving back what waits: objects that are partly dead are written anew without their dead chunks, within a budget.

At most `reclaim_budget` bytes are written per byte that the deleted backup owned, objects with the largest dead share first, none
under `reclaim_floor`. Rewriting needs room and is never needed to finish a deletion: on a full store it is skipped.

Order of effects for each object: (1) guarded: chosen (an object is in at most one rewrite), its living numbers noted, the new
object PLANNED; (2) its living chunks copied still sealed, put; (3) guarded, under the lineage's lock: if the pack lives and its
object is still the one that was read, the new object is STORED and takes over, the old one is condemned, dead bytes are counted
anew; else the new one is condemned. (4) What was condemned is removed. A rewriter that has lost its job, or whose object was
condemned before its put, removes what it put by itself.

An object that is damaged or missing is passed over, and what it holds damaged becomes suspect: a deletion has to end without it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pyroaring import BitMap
from sqlalchemy import Connection, Row

from strongroom.backups import removal
from strongroom.backups.context import Context
from strongroom.backups.damage import note_damage
from strongroom.backups.objects import plan, remove_lost, stored
from strongroom.catalog import sweeping
from strongroom.catalog import tables as t
from strongroom.catalog.lifespans import numbers_of
from strongroom.catalog.space import condemn
from strongroom.jobs.port import JobLost, Running
from strongroom.repository.errors import Damaged
from strongroom.repository.rewriting import rewrite
from strongroom.storage.base import ObjectMissing, StoreFull

log = logging.getLogger("strongroom.backups")


@dataclass(frozen=True, slots=True)
class _Chosen:
    lineage: str
    old: str
    old_name: str
    old_bytes: int
    new: str
    new_name: str
    living: dict[int, BitMap]


def abandon(ctx: Context, job: Running, key: str) -> None:
    """Gives up what an earlier run of this deletion was rewriting: its planned objects are condemned, its choices let go."""
    mine = removal.of_rewrite(key.removeprefix("delete:"))
    with ctx.catalog.read() as conn:
        planned = _planned(conn, mine)
        chosen = conn.execute(sa.select(t.object_.c.lineage).where(t.object_.c.rewriting == mine)).all()
    lineages = {row.lineage for row in (*planned, *chosen)}
    if not lineages:
        return
    with ctx.catalog.decide(job.guard, lineages=lineages) as conn:
        _give_up(conn, [row.id for row in _planned(conn, mine)], mine)
        conn.execute(sa.update(t.object_).where(t.object_.c.rewriting == mine).values(rewriting=None))


def _planned(conn: Connection, mine: str) -> Sequence[Row[str, str]]:
    query = sa.select(t.object_.c.id, t.object_.c.lineage)
    return conn.execute(query.where(t.object_.c.removal == mine, t.object_.c.state == "PLANNED")).all()


def _give_up(conn: Connection, objects: list[str], mine: str) -> None:
    """Condemns objects of a lineage that is locked. What they held goes in the same transaction: later their removal and a sweep
    of the lineage, which does not wait for it, would lock those rows in different orders."""
    conn.execute(sa.delete(t.holding).where(t.holding.c.object.in_(objects)))
    condemn(conn, objects, mine)


def reclaim(ctx: Context, job: Running, lineages: Sequence[str], backup: str) -> None:
    """Rewrites within the budget that the deleted backup's owned bytes give, and removes what that replaced."""
    with ctx.catalog.read() as conn:
        row = conn.execute(sa.select(t.deletion).where(t.deletion.c.backup == backup)).one()
    budget = int(row.owned * ctx.options.reclaim_budget) - row.rewrite_written
    try:
        for lineage in lineages:
            for candidate in _candidates(ctx, lineage):
                cost = candidate.bytes - candidate.dead_bytes
                if cost <= budget:
                    job.progress("rewriting", row.owned - max(budget, 0), row.owned)
                    budget -= _rewrite_one(ctx, job, candidate, removal.of_rewrite(backup))
    except StoreFull:
        abandon(ctx, job, removal.of_delete(backup))
    removal.remove_condemned(ctx, job, removal.of_rewrite(backup))


def _candidates(ctx: Context, lineage: str) -> list[Row[Any]]:
    """Objects worth rewriting, the deadest first. One statement over the lineage's object rows that hold dead bytes."""
    with ctx.catalog.read() as conn:
        state = conn.execute(sa.select(t.lineage.c.state).where(t.lineage.c.id == lineage)).scalar_one()
        if state == "CLOSED":
            return []
        share = sa.cast(t.object_.c.dead_bytes, sa.Double) / t.object_.c.bytes
        return list(
            conn.execute(
                sa.select(t.object_)
                .where(
                    t.object_.c.lineage == lineage,
                    t.object_.c.kind.in_(("pack", "rewrite")),
                    t.object_.c.state == "STORED",
                    t.object_.c.rewriting.is_(None),
                    t.object_.c.dead_bytes > sa.literal_column("0"),  # as the partial index says it
                    t.object_.c.live > 0,
                    share >= ctx.options.reclaim_floor,
                )
                .order_by(share.desc())
            ).all()
        )


def _rewrite_one(ctx: Context, job: Running, old: Row[Any], mine: str) -> int:
    """Rewrites one object; returns the bytes written, 0 if it was not to be had any more or cannot be read."""
    chosen = _choose(ctx, job, old, mine)
    if chosen is None:
        return 0
    keys = ctx.keys(chosen.lineage)
    sources = [(chosen.old, chosen.old_name, chosen.living)]
    try:
        copy = rewrite(ctx.store, keys, chosen.lineage, sources, chosen.new, ambient=ctx.ambient)
    except (Damaged, ObjectMissing) as error:
        log.warning("not rewritten: %s", error)
        _let_go(ctx, job, chosen, mine)
        note_damage(ctx, chosen.lineage, chosen.old_name)
        return 0
    job.check()
    size = ctx.store.put_new(chosen.new_name, copy.pieces)
    try:
        ours = _switch(ctx, job, chosen, size, {held.pack: held.sealed_bytes for held in copy.holdings}, mine)
    except JobLost:
        remove_lost(ctx, chosen.new, chosen.new_name)
        raise
    if not ours:
        remove_lost(ctx, chosen.new, chosen.new_name)
        with ctx.catalog.write(job.guard) as conn:
            _count(conn, mine, chosen.old_bytes, size, dropped=size)
    return size


def _let_go(ctx: Context, job: Running, chosen: _Chosen, mine: str) -> None:
    with ctx.catalog.decide(job.guard, lineages=[chosen.lineage]) as conn:
        _give_up(conn, [chosen.new], mine)
        conn.execute(
            sa.update(t.object_).where(t.object_.c.id == chosen.old, t.object_.c.rewriting == mine).values(rewriting=None)
        )


def _choose(ctx: Context, job: Running, old: Row[Any], mine: str) -> _Chosen | None:
    with ctx.catalog.write(job.guard) as conn:
        taken = conn.execute(
            sa.update(t.object_)
            .where(t.object_.c.id == old.id, t.object_.c.state == "STORED", t.object_.c.rewriting.is_(None))
            .values(rewriting=mine)
        )
        if taken.rowcount != 1:
            return None
        living = _living(conn, old.id)
        new, name = plan(conn, ctx, old.lineage, "rewrite", removal=mine)
        for pack, numbers in living.items():
            conn.execute(
                t.holding.insert().values(
                    object=new, lineage=old.lineage, pack=pack, numbers=numbers.serialize(), bytes=0, spare=True
                )
            )
    return _Chosen(old.lineage, old.id, old.name, old.bytes, new, name, living)


def _living(conn: Connection, key: str) -> dict[int, BitMap]:
    """What an object holds that is not gone."""
    rows = conn.execute(
        sa.select(t.holding.c.pack, t.holding.c.numbers, t.pack.c.chunks, t.pack.c.gone)
        .join(t.pack, sa.and_(t.pack.c.lineage == t.holding.c.lineage, t.pack.c.id == t.holding.c.pack))
        .where(t.holding.c.object == key)
    )
    found = {
        row.pack: (BitMap(range(row.chunks)) if row.numbers is None else numbers_of(row.numbers)) - numbers_of(row.gone)
        for row in rows
    }
    return {pack: numbers for pack, numbers in found.items() if numbers}


def _switch(ctx: Context, job: Running, chosen: _Chosen, size: int, sizes: dict[int, int], mine: str) -> bool:
    """Whether the new object was still planned: then it has taken over, or is condemned and will be removed as reclaimed.

    Decisions taken meanwhile are swept first: they promised the bytes of the old object.
    """
    with sweeping.decide_swept(ctx.catalog, job.guard, lineages=[chosen.lineage]) as conn:
        if not stored(conn, chosen.new, size):
            return False
        _count(conn, mine, chosen.old_bytes, size)
        if _still(conn, chosen.old, mine):
            _take_over(conn, chosen, sizes)
            _give_up(conn, [chosen.old], mine)
        else:
            _give_up(conn, [chosen.new], mine)
    return True


def _count(conn: Connection, mine: str, read: int, written: int, dropped: int = 0) -> None:
    conn.execute(
        sa.update(t.deletion)
        .where(t.deletion.c.backup == mine.removeprefix("rewrite:"))
        .values(
            rewrite_read=t.deletion.c.rewrite_read + read,
            rewrite_written=t.deletion.c.rewrite_written + written,
            rewrite_dropped=t.deletion.c.rewrite_dropped + dropped,
        )
    )


def _still(conn: Connection, old: str, mine: str) -> bool:
    """Whether the pack lives and its object is still the one that was read."""
    row = conn.execute(sa.select(t.object_.c.state, t.object_.c.rewriting).where(t.object_.c.id == old)).first()
    return row is not None and row.state == "STORED" and row.rewriting == mine


def _take_over(conn: Connection, chosen: _Chosen, sizes: dict[int, int]) -> None:
    """The new object holds the chunks from now on; what died while they were copied is dead in it too."""
    now = _living(conn, chosen.old)
    live = sum(len(numbers & chosen.living.get(pack, BitMap())) for pack, numbers in now.items())
    dead = sum(_dead_bytes(conn, chosen, pack, now.get(pack, BitMap()), sizes[pack]) for pack in sizes)
    conn.execute(sa.update(t.object_).where(t.object_.c.id == chosen.new).values(live=live, dead_bytes=dead, removal=None))
    for pack, sealed in sizes.items():
        conn.execute(
            sa.update(t.holding)
            .where(t.holding.c.object == chosen.new, t.holding.c.pack == pack)
            .values(bytes=sealed, spare=False)
        )


def _dead_bytes(conn: Connection, chosen: _Chosen, pack: int, now: BitMap, sealed: int) -> int:
    """Sealed bytes in the new object that died while it was written: the pack's living bytes tell."""
    if len(now) == len(chosen.living[pack]):
        return 0
    row = conn.execute(
        sa.select(t.pack.c.bytes, t.pack.c.gone_bytes).where(t.pack.c.lineage == chosen.lineage, t.pack.c.id == pack)
    ).first()
    return sealed if row is None else sealed - (row.bytes - row.gone_bytes)
