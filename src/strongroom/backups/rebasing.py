"""What a rebuild begins with: the newest snapshot of the catalog that opens, and what it says put back.

It decides nothing about lifespans (backups/kept.py). First come the rows that stand by themselves, and the audit trail; after the
lineages are rebuilt, what it says about backups and packs is put onto those that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups import kept, trail_segments
from strongroom.backups.context import Context
from strongroom.backups.moments import utc
from strongroom.backups.objects import register_found
from strongroom.backups.snapshots import ABOUT
from strongroom.catalog import tables as t
from strongroom.identity import audit
from strongroom.identity import tables as identity
from strongroom.repository import names
from strongroom.repository.errors import RepositoryError
from strongroom.repository.keys import open_catalog
from strongroom.repository.lines import Line, read_lines
from strongroom.storage.base import ObjectMissing, Stat

_MOST_AGES = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))


@dataclass(slots=True)
class Base:
    """A snapshot that opened; `objects`: it and those before it that open, with their sizes."""

    name: str
    at: float
    packed: bytes = field(repr=False)
    objects: list[tuple[names.ParsedName, str, int]] = field(default_factory=list)

    def lines(self) -> Iterator[Line]:
        """What it holds, without what is about itself. Raises Damaged."""
        return (line for line in read_lines(self.packed, self.name) if line[0] != ABOUT)


def choose(ctx: Context, snapshots: list[tuple[Stat, names.ParsedName]], report: Callable[[str], None]) -> Base | None:
    """The newest that opens, which is told with its age; None if there is none. Those that do not open are told. Raises
    StoreError."""
    base: Base | None = None
    for stat, parsed in _newest_first(snapshots):
        try:
            packed = open_catalog(ctx.root_key, parsed.attempt or 0, parsed.seq or 0, ctx.store.get(stat.name))
            table, about = next(read_lines(packed, stat.name), ("", {}))
            if base is None:
                base = Base(stat.name, float(about["at"]) if table == ABOUT else 0.0, packed)
        except (RepositoryError, ObjectMissing) as error:
            report(f"{stat.name}: {error}; it is left as it is" + ("" if base else ", and the one before is taken"))
            continue
        base.objects.append((parsed, stat.name, stat.size))
    if base is None:
        report("no snapshot of the catalog opens: users, policies, holds and the audit trail do not come back")
    else:
        report(f"{base.name} is the base: the catalog as it was at {utc(base.at)}, {_age(ctx.ambient.now() - base.at)} ago")
    return base


def require_ours(ctx: Context) -> None:
    """Raises UnknownFormat if the newest snapshot that opens was made by a newer version: for before the store is taken from the
    catalog that put it. Raises StoreError."""
    there = [(stat, parsed) for stat in ctx.store.list("catalog/") if (parsed := names.parse(stat.name)) is not None]
    for stat, parsed in _newest_first(there):
        try:
            packed = open_catalog(ctx.root_key, parsed.attempt or 0, parsed.seq or 0, ctx.store.get(stat.name))
            lines = list(read_lines(packed, stat.name))
        except (RepositoryError, ObjectMissing):
            continue
        kept.require_known(line for line in lines if line[0] != ABOUT)
        return


def _newest_first(snapshots: list[tuple[Stat, names.ParsedName]]) -> list[tuple[Stat, names.ParsedName]]:
    return sorted(snapshots, key=lambda one: (one[1].attempt or 0, one[1].seq or 0), reverse=True)


def _age(seconds: float) -> str:
    for one, name in _MOST_AGES:
        if seconds >= 2 * one:
            return f"{seconds / one:.0f} {name}"
    return f"{max(seconds, 0.0):.0f} seconds"


def put_back(ctx: Context, conn: Connection, base: Base, report: Callable[[str], None]) -> None:
    """All that stands by itself, into an empty catalog, and proves the audit trail. Raises RepositoryError."""
    counts = kept.put_back(conn, base.lines(), onto=False)
    for parsed, name, size in base.objects:
        register_found(conn, ctx.ambient.hex_id(), "", "catalog", name, size, parsed.seq or 0, parsed.attempt or 0)
    for key, why in trail_segments.put_back(ctx, conn).items():
        report(f"{names.trail(key)}: {why}; its rows of the audit trail do not come back")
    for account in conn.scalars(sa.select(identity.audit_head.c.account).order_by(identity.audit_head.c.account)).all():
        broken = audit.check_chain(conn, account)
        if broken is not None:
            report(f"the audit trail of account {account or '-'} does not hold from row {broken.sequence} on: {broken.reason}")
    told = ", ".join(f"{counts.get(table, 0)} {word}" for table, word in _TOLD)
    report(f"{told} came back with it")


_TOLD = (("user", "users"), ("policy", "policies"), ("instance", "instances"), ("backup_policy", "schedules"))


def put_onto(conn: Connection, base: Base) -> int:
    """What it says about backups and packs, onto those that are there now; returns how many backups it knew."""
    return kept.put_back(conn, base.lines(), onto=True).get(t.backup.name, 0)
