"""What a snapshot of the catalog holds: all that no manifest holds, and nothing that decides what lives.

Which backups there are, what they need and what was freed, a rebuild takes from manifests, graves and closing marks alone. So a
snapshot, however old, can neither bring back a backup nor lose one: of backups and packs it holds only what is said *about* them,
which is put onto rows that the rebuild has made, and is passed over where there is none.

Rows are written column by column as the tables say, so that a new column is in. Every table of the catalog is in KEPT or, with
its reason, in LEFT_OUT; a test compares them with the metadata.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups import holds
from strongroom.catalog import tables as t
from strongroom.catalog.many import batches
from strongroom.identity import tables as identity
from strongroom.repository.errors import UnknownFormat
from strongroom.repository.lines import Line, LineWriter

_BATCH = 500  # rows of one statement


@dataclass(frozen=True, slots=True)
class Kept:
    """A table of which a snapshot holds the rows `where` (None: all), without the columns `but`. `onto`: they are put onto rows
    that are there already, by their primary key."""

    table: sa.Table
    where: sa.ColumnElement[bool] | None = None
    but: frozenset[str] = frozenset()
    onto: bool = False

    @property
    def columns(self) -> list[sa.Column[Any]]:
        """Those that it holds."""
        return [column for column in self.table.c if column.name not in self.but]

    @property
    def told(self) -> list[sa.Column[Any]]:
        """Those that it holds beside the primary key."""
        return [column for column in self.columns if not column.primary_key]


_SEGMENTS = sa.select(sa.func.max(t.trail.c.last)).where(t.trail.c.account == identity.audit.c.account).scalar_subquery()

_OF_MANIFESTS = frozenset(
    {
        "project", "instance", "instance_name", "engine", "engine_version", "name", "description", "origin", "scope", "state",
        "version", "begin_at", "plain_bytes", "fail_reason",
    }
)  # fmt: skip
"""Columns of a backup that its manifest holds or that say what became of it; its holds are the rest, but for when it ended."""

KEPT = (
    Kept(identity.account),
    Kept(identity.project),
    Kept(identity.user),
    Kept(identity.policy),
    Kept(identity.group),
    Kept(identity.membership),
    Kept(identity.policy_grant),
    Kept(identity.access_key, identity.access_key.c.session.is_(None)),
    Kept(t.instance),
    Kept(t.quota),
    Kept(t.recycle_policy),
    Kept(t.deletion_policy),
    Kept(t.backup_policy),
    Kept(t.recording, None, frozenset({"lineage", "chain", "began", "stream", "position", "reached_at", "trouble"})),
    Kept(t.limits),
    Kept(t.webhook),
    Kept(t.notification_receiver),  # a webhook without is one that was removed
    Kept(t.backup_age),
    Kept(t.backup_overdue),
    Kept(t.schedule),
    Kept(t.trail),
    Kept(identity.audit_head),
    Kept(identity.audit, identity.audit.c.sequence > sa.func.coalesce(_SEGMENTS, 0)),
    Kept(t.backup, t.backup.c.state.in_(("COMPLETED", "FAILED", "PENDING")), _OF_MANIFESTS, onto=True),
    Kept(
        t.pack, t.pack.c.suspect.is_not(None), frozenset(t.pack.c.keys()) - {"lineage", "id", "suspect"}, onto=True
    ),
)  # fmt: skip
"""In the order in which rows can be put in: none before what it refers to."""

LEFT_OUT = {
    "installation": "is about one database: which owner of the store it is, and its last snapshot",
    "token": "ends with the catalog: whoever had one signs in again",
    "job": "is work of the catalog before; what had begun is decided by what it left in the store",
    "lineage": "comes from key objects, closing marks and manifests",
    "part": "comes from manifests and graves",
    "death": "comes from manifests: who needs a chunk last",
    "decision": "is a deletion under way, which its grave tells of",
    "pending_deletion": "is asked for and not decided: a rebuild has the backup again, and whoever wants it gone asks anew",
    "deletion": "is the receipt of a backup that is gone; the audit trail holds the deletion",
    "object": "comes from the store's listing",
    "holding": "comes from the indexes of objects",
    "segment": "comes from the headers of the pieces of log",
}
"""Tables of which a snapshot holds nothing, and why."""

_BY_NAME = {kept.table.name: kept for kept in KEPT}


def write_rows(conn: Connection, writer: LineWriter, kept: Iterable[Kept] = KEPT) -> None:
    """Adds what a snapshot holds, each table's rows by their primary key."""
    for one in kept:
        binary = [column.name for column in one.columns if isinstance(column.type, sa.LargeBinary)]
        query = sa.select(*one.columns).order_by(*one.table.primary_key.columns)
        if one.where is not None:
            query = query.where(one.where)
        for row in conn.execute(query, execution_options={"yield_per": _BATCH}):
            writer.add(one.table.name, _plain(row._asdict(), binary))


def plain_row(table: sa.Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a line holds it."""
    return _plain(row, [column.name for column in table.c if isinstance(column.type, sa.LargeBinary)])


def _plain(row: Mapping[str, Any], binary: Iterable[str]) -> dict[str, Any]:
    values = dict(row)
    for name in binary:
        if values[name] is not None:
            values[name] = base64.b64encode(values[name]).decode()
    return values


def put_back(conn: Connection, lines: Iterable[Line], *, onto: bool) -> dict[str, int]:
    """Puts rows back, those of tables that are put in or (`onto`) of those that are put onto rows of others; how many by table.
    Raises UnknownFormat for a table or column that this version does not have."""
    counts: dict[str, int] = {}
    for name, of_table in groupby(lines, key=lambda line: line[0]):
        kept = _known(name)
        if kept.onto != onto:
            continue
        for some in batches((_typed(kept, row) for _, row in of_table), _BATCH):
            counts[name] = counts.get(name, 0) + (_put_onto if onto else _put_in)(conn, kept, some)
    return counts


def require_known(lines: Iterable[Line]) -> None:
    """Raises UnknownFormat as `put_back` does, and puts nothing back."""
    for name, row in lines:
        _typed(_known(name), row)


def _known(table: str) -> Kept:
    kept = _BY_NAME.get(table)
    if kept is None:
        raise UnknownFormat(f"the snapshot has a table {table!r}, made by a newer version: use that one")
    return kept


def _typed(kept: Kept, row: Mapping[str, Any]) -> dict[str, Any]:
    known = {column.name: column for column in kept.columns}
    if not row.keys() <= known.keys():
        strange = sorted(row.keys() - known.keys())
        raise UnknownFormat(f"the snapshot's {kept.table.name} has {', '.join(strange)}, made by a newer version: use that one")
    values = {
        name: base64.b64decode(value) if isinstance(known[name].type, sa.LargeBinary) and value is not None else value
        for name, value in row.items()
    }
    if kept.table is t.backup and "held_kind" not in values:  # of 0.1.0
        values |= holds.of_reason(row["held"])
    return values


def _put_in(conn: Connection, kept: Kept, rows: list[dict[str, Any]]) -> int:
    conn.execute(sa.insert(kept.table), rows)
    return len(rows)


def _put_onto(conn: Connection, kept: Kept, rows: list[dict[str, Any]]) -> int:
    keys = list(kept.table.primary_key.columns)
    return sum(
        conn.execute(
            sa.update(kept.table)
            .where(*(key == row[key.name] for key in keys), _may(kept, row))
            .values({column: row[column.name] for column in kept.told if column.name in row})
        ).rowcount
        for row in rows
    )


def _may(kept: Kept, row: Mapping[str, Any]) -> sa.ColumnElement[bool]:
    """A damaged backup stays held as the rebuild holds it, unless the snapshot knows of another hold."""
    free = kept.table is t.backup and all(row.get(name) is None for name in holds.FREE)
    return t.backup.c.state == "COMPLETED" if free else sa.true()
