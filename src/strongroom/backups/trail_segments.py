"""Segments of the audit trail in the store: rows that no snapshot of the catalog needs to repeat.

The trail only grows, so what is old is put once and never again: as soon as an account has SEGMENT rows that lie in no segment,
they go into an object under a key of its own. A row of `trail` holds that key, sealed; it is in every snapshot from then on, so
that a rotation of the root key seals the row anew and leaves the object. Snapshots hold the rows behind the last segment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups.context import Context
from strongroom.backups.kept import plain_row
from strongroom.backups.objects import plan, register_found, stored
from strongroom.catalog import tables as t
from strongroom.catalog.database import Guard
from strongroom.identity import tables as identity
from strongroom.identity.errors import SecretUnreadable
from strongroom.repository import names
from strongroom.repository.errors import Damaged, RepositoryError
from strongroom.repository.keys import open_trail, seal_trail
from strongroom.repository.lines import LineWriter, read_lines
from strongroom.storage.base import ObjectMissing

SEGMENT = 2_000
"""Rows of a segment."""

_PLACE = "trail"  # what a segment's key is sealed for, with its id


def grow(ctx: Context, guard: Guard | None, check: Callable[[], None]) -> None:
    """Puts the segments that are due: each is planned, put, and only then counts. Raises StoreError."""
    while (rows := _due(ctx)) is not None:
        check()
        writer = LineWriter()
        for row in rows:
            writer.add(identity.audit.name, plain_row(identity.audit, row._asdict()))
        secret = ctx.ambient.key()
        with ctx.catalog.write(guard) as conn:
            key, name = plan(conn, ctx, "", "trail")
        size = ctx.store.put_new(name, seal_trail(secret, key, writer.finish()))
        with ctx.catalog.write(guard) as conn:
            stored(conn, key, size)
            conn.execute(
                t.trail.insert().values(
                    id=key, account=rows[0].account, first=rows[0].sequence, last=rows[-1].sequence,
                    secret=ctx.sealer.seal(secret, _PLACE, key),
                )
            )  # fmt: skip


def _due(ctx: Context) -> list[sa.Row[Any]] | None:
    """The next rows of an account that has enough of them."""
    audit, head = identity.audit.c, identity.audit_head.c
    last = sa.select(t.trail.c.account, sa.func.max(t.trail.c.last).label("last")).group_by(t.trail.c.account).subquery()
    done = sa.func.coalesce(last.c.last, 0)
    with ctx.catalog.read() as conn:
        heads = sa.select(head.account, done.label("done")).join_from(
            identity.audit_head, last, last.c.account == head.account, isouter=True
        )
        for found in conn.execute(heads.where(head.sequence - done >= SEGMENT).order_by(head.account)).all():
            query = sa.select(identity.audit).where(audit.account == found.account, audit.sequence > found.done)
            rows = list(conn.execute(query.order_by(audit.sequence).limit(SEGMENT)).all())
            if len(rows) == SEGMENT:
                return rows
    return None


def put_back(ctx: Context, conn: Connection) -> dict[str, str]:
    """Reads the segments that the rows of `trail` name into the audit trail; id → why, of those that cannot be read. Their rows
    go, and the chain shows what is missing."""
    lost: dict[str, str] = {}
    for segment in conn.execute(sa.select(t.trail).order_by(t.trail.c.account, t.trail.c.first)).all():
        try:
            secret = ctx.sealer.open(segment.secret, _PLACE, segment.id)
            packed = open_trail(secret, segment.id, data := ctx.store.get(names.trail(segment.id)))
            rows = [row for _, row in read_lines(packed, names.trail(segment.id))]
            if [row["sequence"] for row in rows] != list(range(segment.first, segment.last + 1)):
                raise Damaged("it does not hold the rows that it should", object_name=names.trail(segment.id))
        except (RepositoryError, ObjectMissing, SecretUnreadable) as error:
            lost[segment.id] = str(error)
            conn.execute(sa.delete(t.trail).where(t.trail.c.id == segment.id))
            continue
        conn.execute(sa.insert(identity.audit), rows)
        register_found(conn, segment.id, "", "trail", names.trail(segment.id), len(data))
    return lost
