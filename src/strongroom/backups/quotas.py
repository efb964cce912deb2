"""What a project may use at most: registered instances, backups, stored bytes.

A quota is counted in the transaction that would use it, under the lock of the project's rows, which is the first that
transaction takes. Without a quota nothing is locked and nothing counted.

    instance        registered ones
    backup          that lists show, of unregistered instances too
    stored_bytes    of objects in the store, removals that are under way included; looked at when a backup begins, so the last
                    one can go over it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups import errors
from strongroom.catalog import tables as t

Kind = Literal["instance", "backup", "stored_bytes"]
KINDS: Sequence[Kind] = ("instance", "backup", "stored_bytes")
_WORDS: Mapping[Kind, str] = {"instance": "instances", "backup": "backups", "stored_bytes": "stored bytes"}


@dataclass(frozen=True, slots=True)
class Quota:
    """How much of a kind is used, and may be; None is no limit."""

    kind: Kind
    used: int
    allowed: int | None


def show(conn: Connection, project: str, *, engine: str | None = None, mode: str | None = None) -> list[Quota]:
    """All kinds in order. What is allowed is the project's; what is used can be narrowed to an engine or mode."""
    allowed = _allowed(conn, project)
    return [Quota(kind, _used(conn, project, kind, engine, mode), allowed.get(kind)) for kind in KINDS]


def put(conn: Connection, project: str, wanted: Mapping[Kind, int | None]) -> None:
    """Sets what is named; None takes the limit away. What is used already stays, even if it is more."""
    for kind, allowed in sorted(wanted.items()):
        here = sa.and_(t.quota.c.project == project, t.quota.c.kind == kind)
        if allowed is None:
            conn.execute(sa.delete(t.quota).where(here))
        elif conn.execute(sa.update(t.quota).where(here).values(allowed=allowed)).rowcount == 0:
            conn.execute(t.quota.insert().values(project=project, kind=kind, allowed=allowed))


def require(conn: Connection, project: str, *kinds: Kind) -> None:
    """One more of each kind fits. Locks the project's quotas until the transaction ends. Raises errors.QuotaReached."""
    here = sa.and_(t.quota.c.project == project, t.quota.c.kind.in_(kinds))
    limited = conn.execute(sa.update(t.quota).where(here).values(allowed=t.quota.c.allowed)).rowcount
    if not limited:
        return
    allowed = _allowed(conn, project)
    for kind in kinds:
        if kind in allowed and (used := _used(conn, project, kind)) >= allowed[kind]:
            raise errors.QuotaReached(f"the project's quota of {_WORDS[kind]} is reached: {used} of {allowed[kind]} are used")


def _allowed(conn: Connection, project: str) -> dict[Kind, int]:
    rows = conn.execute(sa.select(t.quota.c.kind, t.quota.c.allowed).where(t.quota.c.project == project))
    return {cast(Kind, row.kind): int(row.allowed) for row in rows}


def _used(conn: Connection, project: str, kind: Kind, engine: str | None = None, mode: str | None = None) -> int:
    i, b, o = t.instance.c, t.backup.c, t.object_.c
    wanted = [i.project == project]
    if engine is not None:
        wanted.append(i.engine == engine)
    if mode is not None:
        wanted.append(i.mode == mode)
    query: sa.Select[Any]
    if kind == "instance":
        query = sa.select(sa.func.count()).select_from(t.instance).where(*wanted, i.state == "REGISTERED")
    elif kind == "backup":
        query = sa.select(sa.func.count()).select_from(t.backup).where(b.project == project, b.state.in_(t.PRESENT))
        if len(wanted) > 1:
            query = query.where(b.instance.in_(sa.select(i.id).where(*wanted)))
    else:
        lineages = sa.select(t.lineage.c.id).where(t.lineage.c.project == project)
        if len(wanted) > 1:
            lineages = lineages.where(t.lineage.c.instance.in_(sa.select(i.id).where(*wanted)))
        query = sa.select(sa.func.coalesce(sa.func.sum(o.bytes), 0)).where(
            o.lineage.in_(lineages), o.state.in_(("STORED", "CONDEMNED"))
        )
    return int(conn.execute(query).scalar_one())
