"""Giving back what waits: the survivors of objects that are partly dead move into new, full ones, sorted by lifespan.

At most `reclaim_budget` bytes are written per byte that the deleted backup owned, objects with the largest dead share first, none
under `reclaim_floor`; a thorough deletion rewrites all that waits in its lineages. Rewriting needs room and is never needed to
finish a deletion: on a full store it is skipped.

It goes in rounds, so that no transaction touches more than about 10,000 rows. Order of effects of a round:

1. What lives in its sources is read and grouped: chunks that the head still needs apart from those whose end is known, these
   by their end, so that what dies together lies together.
2. Guarded, under the lineage's lock: the sources are chosen (an object is in at most one rewrite), the new objects are PLANNED
   with what they will hold.
3. The living chunks are copied, still sealed, and each new object is put.
4. Guarded, under the lock, earlier decisions swept: the new objects are STORED and take over, the sources are condemned, what
   died meanwhile counts as dead in the new ones. A new one that holds nothing living any more is condemned instead.
5. What was condemned is removed. A rewriter that has lost its job, or whose object was condemned before its put, removes what
   it put by itself.

A source that is damaged or missing is passed over, and what it holds damaged becomes suspect: a deletion has to end without it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
import sqlalchemy as sa
from pyroaring import BitMap
from sqlalchemy import Connection, Row

from strongroom.backups import removal, staleness
from strongroom.backups.context import Context, LineageClosed
from strongroom.backups.damage import note_damage
from strongroom.backups.grouping import Class, Group, group
from strongroom.backups.objects import plan, remove_lost, stored
from strongroom.catalog import lifespans, sweeping
from strongroom.catalog import tables as t
from strongroom.catalog.many import batches
from strongroom.catalog.space import bytes_among, give_up, is_partly_dead, living_in, to_sizes
from strongroom.jobs.port import JobLost, Running
from strongroom.repository._columns import U32
from strongroom.repository.errors import Damaged
from strongroom.repository.pack import ObjectIndex, read_index
from strongroom.repository.places import all_places
from strongroom.repository.rewriting import Survivors
from strongroom.storage.base import ObjectMissing, StoreFull

log = logging.getLogger("strongroom.backups")

MOST_SOURCES = 64
"""Objects whose survivors one round moves."""

MOST_ROWS = 3_000
"""Holdings that one round writes."""

_MOST_OBJECTS = 16  # that one round fills
_IN_MEMORY = 32 << 20  # of a round's survivors; the rest waits on disk, sealed


@dataclass(frozen=True, slots=True)
class _Source:
    id: str
    name: str
    bytes: int
    index: ObjectIndex
    living: dict[int, BitMap]

    def sizes_of(self, pack: int, numbers: BitMap) -> U32:
        """Sealed bytes of some of the pack's living chunks, ascending."""
        return all_places(self.index, {pack: numbers}).lengths


@dataclass(frozen=True, slots=True)
class _New:
    id: str
    name: str
    group: Group


@dataclass(frozen=True, slots=True)
class _Round:
    lineage: str
    sources: list[_Source]
    new: list[_New]


def abandon(ctx: Context, job: Running, key: str) -> None:
    """Gives up what an earlier run of this deletion was rewriting: its planned objects are condemned, its choices let go.

    Raises CatalogOutdated if what was planned has taken over in a newer catalog than this one."""
    mine = removal.of_rewrite(key.removeprefix("delete:"))
    with ctx.catalog.read() as conn:
        planned = _planned(conn, mine)
        chosen = conn.execute(sa.select(t.object_.c.lineage, t.object_.c.name).where(t.object_.c.rewriting == mine)).all()
    lineages = {row.lineage for row in (*planned, *chosen)}
    if not lineages:
        return
    for lineage in sorted(lineages):
        new, sources = ([row.name for row in rows if row.lineage == lineage] for rows in (planned, chosen))
        staleness.require_sources(ctx, lineage, new, sources, job.guard)
    _let_go(ctx, job, lineages, mine)


def _let_go(ctx: Context, job: Running, lineages: Iterable[str], mine: str) -> None:
    with ctx.catalog.decide(job.guard, lineages=lineages) as conn:
        give_up(conn, [row.id for row in _planned(conn, mine)], mine)
        conn.execute(sa.update(t.object_).where(t.object_.c.rewriting == mine).values(rewriting=None))


def _planned(conn: Connection, mine: str) -> Sequence[Row[str, str, str]]:
    query = sa.select(t.object_.c.id, t.object_.c.lineage, t.object_.c.name)
    return conn.execute(query.where(t.object_.c.removal == mine, t.object_.c.state == "PLANNED")).all()


def reclaim(ctx: Context, job: Running, lineages: Sequence[str], backup: str) -> list[str]:
    """Rewrites within the budget that the deleted backup's owned bytes give, or thoroughly, and removes what that replaced.
    Returns the names of the objects that it put."""
    names: list[str] = []
    mine = removal.of_rewrite(backup)
    with ctx.catalog.read() as conn:
        row = conn.execute(sa.select(t.deletion).where(t.deletion.c.backup == backup)).one()
    total = row.promised_rewrite if row.thorough else int(row.owned * ctx.options.reclaim_budget)
    written = row.rewrite_written
    try:
        for lineage in lineages:
            passed: set[str] = set()
            while True:
                job.progress("rewriting", written, max(total, written))
                left = None if row.thorough else total - written
                try:
                    sources, groups = _next_round(ctx, lineage, left, passed)
                    if not sources:
                        break
                    put = _rewrite(ctx, job, lineage, sources, groups, mine, passed)
                except LineageClosed:  # meanwhile, by a delete of what was left: nothing in it lives any more
                    _let_go(ctx, job, [lineage], mine)
                    break
                written += sum(put.values())
                names += put
                removal.remove_condemned(ctx, job, mine)
    except StoreFull:
        abandon(ctx, job, removal.of_delete(backup))
    removal.remove_condemned(ctx, job, mine)
    return names


# ---- choosing what moves, and how it is grouped ---------------------------------------------------------------------------


def _next_round(ctx: Context, lineage: str, left: int | None, passed: set[str]) -> tuple[list[_Source], list[Group]]:
    """The sources of the next round and what the new objects will hold; none if nothing is worth it or `left` bytes are too few
    (None: there is no budget)."""
    with ctx.catalog.read() as conn:
        row = conn.execute(sa.select(t.lineage).where(t.lineage.c.id == lineage)).one()
        if row.state == "CLOSED":
            return [], []
        candidates = _candidates(conn, lineage, left, 0.0 if left is None else ctx.options.reclaim_floor, passed)
    chosen: list[Row[Any]] = []
    room = _MOST_OBJECTS * row.pack_target
    for candidate in candidates:
        cost = candidate.bytes - candidate.dead_bytes
        if cost <= room or not chosen:
            chosen.append(candidate)
            room -= cost
    sources = _read_sources(ctx, lineage, chosen, passed)
    while sources:
        groups = group(_classes(ctx, lineage, sources), row.pack_target)
        if sum(len(one.numbers) for one in groups) > MOST_ROWS and len(sources) > 1:
            sources = sources[: len(sources) // 2]
        elif left is not None and sum(one.most_bytes for one in groups) > left:
            sources = sources[:-1]
        else:
            return sources, groups
    return [], []


def _candidates(conn: Connection, lineage: str, left: int | None, floor: float, passed: set[str]) -> list[Row[Any]]:
    """Objects worth rewriting, the deadest first, as many as fit into what is left of the budget."""
    share = sa.cast(t.object_.c.dead_bytes, sa.Double) / t.object_.c.bytes
    query = sa.select(t.object_).where(*is_partly_dead(lineage), t.object_.c.rewriting.is_(None), share >= floor)
    if left is not None:
        query = query.where(t.object_.c.bytes - t.object_.c.dead_bytes <= left)
    found: list[Row[Any]] = []
    for row in conn.execute(query.order_by(share.desc(), t.object_.c.id).limit(MOST_SOURCES + len(passed))):
        cost = row.bytes - row.dead_bytes
        if row.id not in passed and len(found) < MOST_SOURCES and (left is None or cost <= left):
            found.append(row)
            left = None if left is None else left - cost
    return found


def _read_sources(ctx: Context, lineage: str, rows: Sequence[Row[Any]], passed: set[str]) -> list[_Source]:
    """The chosen objects with their indexes; those that cannot be read are passed over."""
    keys = ctx.keys(lineage)
    with ctx.catalog.read() as conn:
        living = living_in(conn, [row.id for row in rows])
    found: list[_Source] = []
    for row in rows:
        try:
            index = read_index(ctx.store, keys, lineage, row.id, row.name)
            all_places(index, living[row.id])  # it does hold what it is said to hold
            found.append(_Source(row.id, row.name, row.bytes, index, living[row.id]))
        except (Damaged, ObjectMissing) as error:
            _pass_over(ctx, lineage, row.id, row.name, error, passed)
    return found


def _pass_over(ctx: Context, lineage: str, key: str, name: str, error: Exception, passed: set[str]) -> None:
    log.warning("not rewritten: %s", error)
    passed.add(key)
    note_damage(ctx, lineage, name)


def _classes(ctx: Context, lineage: str, sources: Sequence[_Source]) -> list[Class]:
    """The living chunks of the sources by pack and end, each once: after a rebuild two objects may hold the same chunk."""
    ends: dict[int, list[tuple[int, BitMap]]] = {pack: [] for source in sources for pack in source.living}
    with ctx.catalog.read() as conn:
        for pack, last, numbers in lifespans.ends_of(conn, lineage, sorted(ends)):
            ends[pack].append((last, numbers))
    classes: list[Class] = []
    taken: dict[int, BitMap] = defaultdict(BitMap)
    for source in sources:
        for pack, living in source.living.items():
            rest = living - taken[pack]
            taken[pack] |= living
            for last, numbers in ends[pack]:
                if mine := rest & numbers:
                    classes.append(Class(pack, last, mine, source.sizes_of(pack, mine)))
                    rest = rest - mine
            if rest:
                classes.append(Class(pack, None, rest, source.sizes_of(pack, rest)))
    return classes


# ---- a round --------------------------------------------------------------------------------------------------------------


def _rewrite(
    ctx: Context, job: Running, lineage: str, sources: list[_Source], groups: list[Group], mine: str, passed: set[str]
) -> dict[str, int]:
    """Carries one round out; returns the names and sizes of what it put: nothing if a source was not to be had any more or cannot
    be read."""
    chosen = _choose(ctx, job, lineage, sources, groups, mine, passed)
    if chosen is None:
        return {}
    put: dict[str, int] = {}
    try:
        with SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(ctx.scratch)) as spool:
            survivors = Survivors(ctx.store, ctx.keys(lineage), lineage, spool)
            for source in chosen.sources:
                job.check()
                try:
                    survivors.gather(source.index, source.living)
                except (Damaged, ObjectMissing) as error:
                    _let_go(ctx, job, [lineage], mine)
                    _pass_over(ctx, lineage, source.id, source.name, error, passed)
                    return {}
            for new in chosen.new:
                copy = survivors.make(new.id, new.group.numbers, ambient=ctx.ambient, level=ctx.options.compression)
                job.check()
                put[new.id] = ctx.store.put_new(new.name, copy.pieces)
        lost = _switch(ctx, job, chosen, put, mine)
    except JobLost:
        _remove_lost(ctx, [new for new in chosen.new if new.id in put])
        raise
    _remove_lost(ctx, lost)
    return {new.name: put[new.id] for new in chosen.new}


def _remove_lost(ctx: Context, lost: Sequence[_New]) -> None:
    for new in lost:
        remove_lost(ctx, new.id, new.name)


def _choose(
    ctx: Context, job: Running, lineage: str, sources: list[_Source], groups: list[Group], mine: str, passed: set[str]
) -> _Round | None:
    """Takes the sources and registers what will be put; None if one of them is not to be had any more."""
    ids = [source.id for source in sources]
    free = sa.and_(t.object_.c.id.in_(ids), t.object_.c.state == "STORED", t.object_.c.rewriting.is_(None))
    with ctx.catalog.decide(job.guard, lineages=[lineage]) as conn:
        here = {row.id for row in conn.execute(sa.select(t.object_.c.id).where(free))}
        if len(here) == len(ids):
            conn.execute(sa.update(t.object_).where(free).values(rewriting=mine))
            return _Round(lineage, sources, [_plan(conn, ctx, lineage, one, mine) for one in groups])
    passed.update(set(ids) - here)
    return None


def _plan(conn: Connection, ctx: Context, lineage: str, one: Group, mine: str) -> _New:
    new, name = plan(conn, ctx, lineage, "rewrite", removal=mine)
    conn.execute(
        t.holding.insert(),
        [
            {
                "object": new, "lineage": lineage, "pack": pack, "numbers": numbers.serialize(),
                "sizes": to_sizes(one.sizes[pack]), "bytes": int(one.sizes[pack].sum(dtype=np.uint64)),
            }
            for pack, numbers in one.numbers.items()
        ],
    )  # fmt: skip
    return _New(new, name, one)


def _still(chosen: _Round, mine: str) -> sa.ColumnElement[bool]:
    """The sources that live and are ours. One that is not has been condemned by a sweep: nothing in it lives."""
    ids = [source.id for source in chosen.sources]
    return sa.and_(t.object_.c.id.in_(ids), t.object_.c.state == "STORED", t.object_.c.rewriting == mine)


def _switch(ctx: Context, job: Running, chosen: _Round, put: dict[str, int], mine: str) -> list[_New]:
    """The new objects take over, those with nothing living are condemned; returns those that were condemned before they were put.

    Decisions taken meanwhile are swept first: they promised the bytes of the sources.
    """
    with sweeping.decide_swept(ctx.catalog, job.guard, lineages=[chosen.lineage]) as conn:
        lost = [new for new in chosen.new if not stored(conn, new.id, put[new.id])]
        emptied = [new.id for new in chosen.new if new not in lost and not _take_over(conn, chosen.lineage, new)]
        replaced = conn.execute(sa.select(t.object_.c.id).where(_still(chosen, mine))).scalars().all()
        give_up(conn, [*replaced, *emptied], mine)
        _count(conn, mine, chosen.sources, written=sum(put.values()), dropped=sum(put[new.id] for new in lost))
    return lost


def _take_over(conn: Connection, lineage: str, new: _New) -> bool:
    """The new object holds its chunks from now on; what died while they were copied is dead in it too. Whether any lives."""
    for some in batches(new.group.numbers):
        conn.execute(sa.update(t.pack).where(t.pack.c.lineage == lineage, t.pack.c.id.in_(some)).values(moved=True))
    lives = lifespans.living(conn, lineage, new.group.numbers)
    live = dead = 0
    for pack, numbers in new.group.numbers.items():
        died = numbers - lives.get(pack, BitMap())
        live += len(numbers) - len(died)
        dead += bytes_among(numbers, to_sizes(new.group.sizes[pack]), died)
    conn.execute(sa.update(t.object_).where(t.object_.c.id == new.id).values(live=live, dead_bytes=dead, removal=None))
    return live > 0


def _count(conn: Connection, mine: str, sources: Sequence[_Source], written: int, dropped: int) -> None:
    """`dropped`: of what was written, what its writer takes away again; what the removal takes is counted there."""
    conn.execute(
        sa.update(t.deletion)
        .where(t.deletion.c.backup == mine.removeprefix("rewrite:"))
        .values(
            rewrite_read=t.deletion.c.rewrite_read + sum(source.bytes for source in sources),
            rewrite_written=t.deletion.c.rewrite_written + written,
            rewrite_dropped=t.deletion.c.rewrite_dropped + dropped,
        )
    )
