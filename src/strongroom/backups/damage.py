"""Damage found while something else was being done: what is not as it was written becomes SUSPECT.

Suspect chunks leave the set that may be shared, so that the next backup of the lineage stores them anew. Nothing is removed:
backups that name them keep them, since what cannot be read today may be readable from a mended disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from pyroaring import BitMap
from sqlalchemy import Connection

from strongroom.backups.context import Context
from strongroom.catalog import tables as t
from strongroom.catalog.lifespans import numbers_of, suspect
from strongroom.catalog.space import held_by
from strongroom.identity import audit
from strongroom.notifications import outbox
from strongroom.repository import names
from strongroom.repository.errors import Damaged
from strongroom.repository.places import add_chunks
from strongroom.repository.verification import check_object
from strongroom.storage.base import ObjectMissing


@dataclass(slots=True)
class Finding:
    """One damaged object. `what`: "missing", "unreadable", "chunks", "manifest"."""

    what: str
    chunks: dict[int, BitMap] = field(default_factory=dict)

    def add(self, what: str, chunks: Mapping[int, BitMap]) -> None:
        """More of the same object."""
        self.what = what
        add_chunks(self.chunks, chunks)


def note_damage(ctx: Context, lineage: str, name: str) -> None:
    """Looks at every chunk of the object of this name and marks those that are damaged; all of them if it is gone or cannot be
    opened at all. Does nothing for names of anything but chunks' objects. Raises StoreError."""
    with ctx.catalog.read() as conn:
        row = conn.execute(
            sa.select(t.object_).where(t.object_.c.name == name, t.object_.c.kind.in_(("pack", "rewrite")))
        ).first()
        held = {} if row is None else held_by(conn, row.id)
    if row is None:
        return
    try:
        finding = Finding("chunks", check_object(ctx.store, ctx.keys(lineage), lineage, row.id, name).damaged)
    except (Damaged, ObjectMissing) as error:
        finding = Finding("missing" if isinstance(error, ObjectMissing) else "unreadable", held)
    with ctx.catalog.decide(lineages=[lineage]) as conn:
        mark(conn, lineage, name, finding)


def mark(conn: Connection, lineage: str, name: str, finding: Finding) -> tuple[dict[int, BitMap], int]:
    """Makes SUSPECT what was found damaged in an object and still lives, the lineage being locked; returns that, and how many
    chunks were not suspect before. What was removed, replaced or freed since it was read is no damage."""
    if finding.what != "chunks":
        here = sa.and_(t.object_.c.name == name, t.object_.c.state == "STORED")
        if conn.execute(sa.select(t.object_.c.id).where(here)).first() is None:
            return {}, 0
    living: dict[int, BitMap] = {}
    fresh = 0
    for pack, numbers in finding.chunks.items():
        row = conn.execute(
            sa.select(t.pack.c.gone, t.pack.c.suspect).where(t.pack.c.lineage == lineage, t.pack.c.id == pack)
        ).first()
        if row is None or not (left := numbers - numbers_of(row.gone)):
            continue
        living[pack] = left
        fresh += len(left - numbers_of(row.suspect))
        suspect(conn, lineage, pack, left)
    return living, fresh


def tell(conn: Connection, ctx: Context, backup: str, job: str, chunks: int, objects: Sequence[str]) -> None:
    """New damage is told once, of a backup that needs it: how many chunks became suspect, and the objects that they are in. To
    the audit trail and to whoever wants a word of it."""
    row = conn.execute(sa.select(t.backup).where(t.backup.c.id == backup)).one()
    outbox.damage_found(ctx, conn, row, job, chunks, objects)
    entry = audit.Entry(
        "StrongroomDamageFound", "backup", row.id, row.name, outcome="FAILED", level="Major", project=row.project,
        detail={"job": job, "chunks": chunks, "objects": list(objects[:20])},
    )  # fmt: skip
    audit.append(conn, ctx.ambient, entry)


@dataclass(frozen=True, slots=True)
class Touched:
    """A backup that damage touches."""

    id: str
    name: str
    instance_name: str


def needing(conn: Connection, lineage: str, chunks: Mapping[int, BitMap]) -> list[Touched]:
    """Backups with a completed part that needs any of these chunks, by the chunks' lifespans; oldest first."""
    spans: list[tuple[int, int | None]] = []
    for key, numbers in chunks.items():
        spans += _spans(conn, lineage, key, numbers)
    rows = conn.execute(
        sa.select(t.part.c.seq, t.backup.c.id, t.backup.c.name, t.backup.c.instance_name)
        .join(t.backup, t.backup.c.id == t.part.c.backup)
        .where(t.part.c.lineage == lineage, t.part.c.state == "COMPLETED")
        .order_by(t.part.c.seq)
    ).all()
    return [
        Touched(row.id, row.name, row.instance_name)
        for row in rows
        if any(born <= row.seq and (last is None or row.seq <= last) for born, last in spans)
    ]


def _spans(conn: Connection, lineage: str, pack: int, numbers: BitMap) -> list[tuple[int, int | None]]:
    """Lifespans that touch some numbers of one pack: (born, last), last None where the head needs them."""
    row = conn.execute(sa.select(t.pack.c.born, t.pack.c.gone).where(t.pack.c.lineage == lineage, t.pack.c.id == pack)).first()
    if row is None:
        return []
    rest = numbers - numbers_of(row.gone)
    spans: list[tuple[int, int | None]] = []
    closer = t.part.alias()
    counts = sa.and_(closer.c.lineage == t.death.c.lineage, closer.c.seq == t.death.c.closer)
    deaths = conn.execute(
        sa.select(t.death.c.last, t.death.c.numbers)
        .join(closer, counts)
        .where(t.death.c.lineage == lineage, t.death.c.pack == pack, closer.c.committed == t.death.c.attempt)
    )
    for death in deaths:
        dead = numbers_of(death.numbers)
        if dead & rest:
            spans.append((row.born, death.last))
            rest -= dead
    return [*spans, (row.born, None)] if rest else spans


def of_root(conn: Connection, key: str) -> list[Touched]:
    """The backup whose manifest an object is."""
    rows = conn.execute(
        sa.select(t.backup.c.id, t.backup.c.name, t.backup.c.instance_name)
        .join(t.part, t.part.c.backup == t.backup.c.id)
        .where(t.part.c.root == key, t.part.c.state == "COMPLETED")
    )
    return [Touched(row.id, row.name, row.instance_name) for row in rows]


def going_by(conn: Connection, key: str) -> list[Touched]:
    """Backups from which a restore to a later moment replays this piece of log; oldest first."""
    s, p = t.segment.c, t.part.c
    rows = conn.execute(
        sa.select(t.backup.c.id, t.backup.c.name, t.backup.c.instance_name)
        .join(t.part, p.backup == t.backup.c.id)
        .join(t.segment, sa.and_(s.lineage == p.lineage, s.chain == p.log_chain, s.upto > p.log_order))
        .where(s.object == key, p.state == "COMPLETED")
        .order_by(p.seq)
    )
    return [Touched(row.id, row.name, row.instance_name) for row in rows]


def lost_mark(ctx: Context) -> str | None:
    """A sentence where the store lacks this catalog's own mark: then what is missing says nothing of the backups."""
    with ctx.catalog.read() as conn:
        mine = conn.execute(sa.select(t.installation.c.owner)).scalar_one()
    if ctx.store.stat(names.owner(mine)) is not None:
        return None
    return f"the store lacks this catalog's own mark, {names.owner(mine)}: is it the right store, and is its disk mounted?"


def damage_in(error: BaseException | None) -> str | None:
    """The name of the damaged object that an error, or what caused it, tells of."""
    while error is not None:
        if isinstance(error, Damaged) and error.object_name is not None:
            return error.object_name
        error = error.__cause__ or error.__context__
    return None
