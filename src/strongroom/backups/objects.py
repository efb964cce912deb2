"""Objects through their states: known before written (PLANNED, committed), stored before shared (STORED after a durable put).

A late put by a paused writer can therefore only create an object that a row names as CONDEMNED or LATE.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups import staleness
from strongroom.backups.context import Context
from strongroom.catalog import tables as t
from strongroom.catalog.database import Guard
from strongroom.repository import names
from strongroom.repository.keys import GraveFacts, open_lineage_keys, seal_closed, seal_grave
from strongroom.storage.base import ObjectExists

Pieces = bytes | memoryview | Sequence[bytes | memoryview]


def plan(
    conn: Connection,
    ctx: Context,
    lineage: str,
    kind: str,
    *,
    seq: int = 0,
    attempt: int = 0,
    removal: str | None = None,
    name: str | None = None,
) -> tuple[str, str]:
    """Registers an object that will be put; returns (id, name). Nothing may be put before this is committed."""
    key = ctx.ambient.hex_id()
    full = name if name is not None else names.for_kind(kind, lineage, key, seq, attempt)
    conn.execute(
        t.object_.insert().values(
            id=key, lineage=lineage, kind=kind, name=full, state="PLANNED", bytes=0, live=0, dead_bytes=0,
            seq=seq, attempt=attempt, late=False, removal=removal, rewriting=None,
        )
    )  # fmt: skip
    return key, full


def register_found(
    conn: Connection, key: str, lineage: str, kind: str, name: str, size: int, seq: int = 0, attempt: int = 0, *,
    live: int = 0, dead: int = 0,
) -> None:  # fmt: skip
    """Registers an object that a rebuild finds in the store: `size`, `live` and `dead` in bytes."""
    conn.execute(
        t.object_.insert().values(
            id=key, lineage=lineage, kind=kind, name=name, state="STORED", bytes=size, live=live, dead_bytes=dead, seq=seq,
            attempt=attempt, late=False,
        )
    )  # fmt: skip


def stored(conn: Connection, key: str, size: int, live: int = 0) -> bool:
    """Marks a planned object as durable; False if it is not planned any more (condemned meanwhile)."""
    found = conn.execute(
        sa.update(t.object_)
        .where(t.object_.c.id == key, t.object_.c.state == "PLANNED")
        .values(state="STORED", bytes=size, live=live)
    )
    return found.rowcount == 1


def plan_grave(conn: Connection, ctx: Context, lineage: str, seq: int, attempt: int, removal: str) -> None:
    """Announces "this seq is gone": put by the removal before any manifest of the part is removed."""
    plan(conn, ctx, lineage, "grave", seq=seq, attempt=attempt, removal=removal, name=names.grave(lineage, seq))


def close_lineage(conn: Connection, ctx: Context, lineage: str, removal: str) -> None:
    """The chain is empty: the lineage ends in the transaction that emptied it. Graves, manifests, log and keys are condemned with
    it; the closing mark stays for ever."""
    conn.execute(sa.update(t.lineage).where(t.lineage.c.id == lineage).values(state="CLOSED"))
    plan(conn, ctx, lineage, "closed", removal=removal, name=names.closed(lineage))
    conn.execute(sa.delete(t.segment).where(t.segment.c.lineage == lineage))
    conn.execute(
        sa.update(t.object_)
        .where(
            t.object_.c.lineage == lineage,
            t.object_.c.kind.in_(("grave", "manifest", "log", "key")),
            t.object_.c.state.in_(("PLANNED", "STORED")),
        )
        .values(late=sa.or_(t.object_.c.late, t.object_.c.state == "PLANNED"), state="CONDEMNED", removal=removal)
    )


def put_marks(ctx: Context, lineage: str, guard: Guard) -> None:
    """Puts the planned graves of a lineage and its closing mark, each durable before this returns.

    Whichever removal planned them: what two deletes free together goes with one of them, what a deleted backup shared with
    a running build goes with the build's end, and the manifest must be buried by then; and the delete that closes a lineage takes
    the graves of the others along.

    "Already there" is success for these: their meaning is their name. A grave moves the lineage's version, since the delete that
    closes the lineage frees it; where that delete was decided while the grave was put, the grave is taken away again.

    Raises staleness.CatalogOutdated where a rebuilt catalog owns the store: that one shows the backup again, and a grave would
    hide it from the next rebuild.
    """
    with ctx.catalog.read() as conn:
        rows = conn.execute(
            sa.select(t.object_).where(
                t.object_.c.lineage == lineage,
                t.object_.c.state == "PLANNED",
                t.object_.c.kind.in_(("grave", "closed")),
            )
        ).all()
        line = conn.execute(sa.select(t.lineage).where(t.lineage.c.id == lineage)).one()
        backups = dict[int, str]()
        for row in rows:
            mine = sa.and_(t.part.c.lineage == lineage, t.part.c.seq == row.seq)
            backups[row.seq] = conn.execute(sa.select(t.part.c.backup).where(mine)).scalar() or ""
    for row in rows:
        staleness.require_owner(ctx)
        if row.kind == "closed":
            data = seal_closed(ctx.root_key, lineage)
        else:
            facts = GraveFacts(line.project, line.instance, lineage, row.seq, row.attempt, backups[row.seq])
            data = seal_grave(open_lineage_keys(ctx.root_key, lineage, line.sealed_keys), facts)
        try:
            size = ctx.store.put_new(row.name, data)
        except ObjectExists:
            found = ctx.store.stat(row.name)
            size = len(data) if found is None else found.size
        with ctx.catalog.decide(guard, lineages=[lineage]) as conn:
            ours = stored(conn, row.id, size)
            if ours:
                count_put(conn, row.removal, size)
        if not ours:
            remove_lost(ctx, row.id, row.name)


def remove_lost(ctx: Context, key: str, name: str) -> None:
    """For a writer whose put returned and whose row was condemned meanwhile: removes what it put, but only after reading that the
    row says so. Without a row, or with another catalog's mark in the store (after a rebuild), the object may be needed: it stays
    and is reported."""
    with ctx.catalog.read() as conn:
        state = conn.execute(sa.select(t.object_.c.state).where(t.object_.c.id == key)).scalar()
    if state not in ("CONDEMNED", "LATE"):
        return
    try:
        staleness.require_owner(ctx)
    except staleness.CatalogOutdated:
        return
    ctx.store.delete(name)
    with ctx.catalog.write() as conn:
        conn.execute(sa.update(t.object_).where(t.object_.c.id == key, t.object_.c.state == "CONDEMNED").values(late=False))
        conn.execute(sa.delete(t.object_).where(t.object_.c.id == key, t.object_.c.state == "LATE"))


def count_put(conn: Connection, removal: str, size: int) -> None:
    """Books bytes that a deletion put, in the transaction that makes their object STORED."""
    if removal.startswith("delete:"):
        conn.execute(
            sa.update(t.deletion)
            .where(t.deletion.c.backup == removal.removeprefix("delete:"))
            .values(put_bytes=t.deletion.c.put_bytes + size)
        )
