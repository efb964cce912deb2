"""The recycle bin: instances that were unregistered lately, and what they can be restored from.

Unregistering forgets how an instance is entered and keeps its manual backups. So the bin holds nothing by itself: it tells, for
as many days as the project's policy says, which instances there were and the newest backup that is left of each. When an
instance leaves the bin nothing is removed; its backups stay as long as anybody wants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.catalog import tables as t

DEFAULT_DAYS = 7
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Recycled:
    """An unregistered instance. Times in seconds since the epoch."""

    id: str
    name: str
    engine: str
    version: str
    mode: str
    created_at: float
    removed_at: float
    retained_until: float
    backup: str | None  # the newest completed one that is left


def days(conn: Connection, project: str) -> int:
    """How long instances stay in the project's bin."""
    found = conn.execute(sa.select(t.recycle_policy.c.days).where(t.recycle_policy.c.project == project)).scalar()
    return DEFAULT_DAYS if found is None else int(found)


def put_days(conn: Connection, project: str, wanted: int) -> None:
    """Sets how long; it holds for what is in the bin already, too."""
    here = t.recycle_policy.c.project == project
    if conn.execute(sa.update(t.recycle_policy).where(here).values(days=wanted)).rowcount == 0:
        conn.execute(t.recycle_policy.insert().values(project=project, days=wanted))


def list_recycled(conn: Connection, project: str, now: float, first: int, limit: int) -> tuple[int, Sequence[Recycled]]:
    """How many instances are in the bin, and a page of them, the last unregistered first."""
    kept = days(conn, project) * _DAY
    i = t.instance.c
    here = sa.and_(i.project == project, i.state == "REMOVED", i.updated_at > now - kept)
    total = conn.execute(sa.select(sa.func.count()).select_from(t.instance).where(here)).scalar_one()
    rows = conn.execute(sa.select(t.instance).where(here).order_by(i.updated_at.desc(), i.id).offset(first).limit(limit)).all()
    return total, [
        Recycled(
            row.id, row.name, row.engine, row.version, row.mode, row.created_at, row.updated_at, row.updated_at + kept,
            _newest(conn, row.id),
        )
        for row in rows
    ]  # fmt: skip


def _newest(conn: Connection, instance: str) -> str | None:
    b = t.backup.c
    query = sa.select(b.id).where(b.instance == instance, b.state == "COMPLETED").order_by(b.begin_at.desc(), b.id).limit(1)
    return conn.execute(query).scalar()
