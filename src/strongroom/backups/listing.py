"""Looking: lists and details of backups, instances, deletions and what they own. Nothing here changes anything.

A backup that is being deleted is in no list from the moment its deletion is accepted; it is found among the deletions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups import errors, pending
from strongroom.backups.deletion import receipt
from strongroom.backups.scope import WHOLE
from strongroom.backups.versions import version_key
from strongroom.catalog import tables as t

VISIBLE = t.VISIBLE


@dataclass(frozen=True, slots=True)
class BackupFilter:
    """What a list is narrowed to; None is anything. Times in seconds since the epoch, by the backup's begin."""

    instance: str | None = None
    engine: str | None = None
    backup: str | None = None
    origin: str | None = None
    begin: float | None = None
    end: float | None = None
    tables: bool = False  # backups of tables; else of whole instances


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a list, and how many there are in all."""

    total: int
    rows: Sequence[Row[Any]]


def list_backups(conn: Connection, project: str, wanted: BackupFilter, first: int, limit: int) -> Page:
    """Backups of whole instances, or of tables, newest first."""
    b = t.backup.c
    clauses = [b.project == project, b.state.in_(VISIBLE), b.scope != WHOLE if wanted.tables else b.scope == WHOLE]
    if wanted.instance is not None:
        clauses.append(b.instance == wanted.instance)
    if wanted.engine is not None:
        clauses.append(b.engine == wanted.engine)
    if wanted.backup is not None:
        clauses.append(b.id == wanted.backup)
    if wanted.origin is not None:
        clauses.append(b.origin == wanted.origin)
    if wanted.begin is not None and wanted.end is not None:
        clauses.append(b.begin_at.between(wanted.begin, wanted.end))
    return _page(conn, t.backup, clauses, (b.begin_at.desc(), b.id), first, limit)


def find_backup(conn: Connection, project: str, backup: str, *, with_pending: bool = False) -> Row[Any]:
    """A backup that is not being deleted. Raises errors.NoSuchBackup, and unless `with_pending` errors.DeletionPending."""
    row = present(conn, project, backup)
    if row is None:
        raise errors.NoSuchBackup(f"there is no backup {backup} in this project")
    if not with_pending:
        pending.refuse_use(conn, row)
    return row


def present(conn: Connection, project: str, backup: str) -> Row[Any] | None:
    """A backup whose deletion is not decided."""
    here = sa.and_(t.backup.c.id == backup, t.backup.c.project == project, t.backup.c.state.in_(t.PRESENT))
    return conn.execute(sa.select(t.backup).where(here)).first()


def parts_of(conn: Connection, backup: str) -> Sequence[Row[Any]]:
    """The parts of a backup, in order of lineage and seq."""
    return conn.execute(
        sa.select(t.part, t.lineage.c.node)
        .join(t.lineage, t.lineage.c.id == t.part.c.lineage)
        .where(t.part.c.backup == backup)
        .order_by(t.part.c.lineage, t.part.c.seq)
    ).all()


def list_instances(
    conn: Connection, project: str, first: int, limit: int, *, key: str | None = None, name: str | None = None,
    engine: str | None = None, mode: str | None = None, among: Sequence[str] | None = None,
    newest_first: bool = False,
) -> Page:  # fmt: skip
    """Registered instances, by name unless newest first. An id or a name that begins with `*` is looked for anywhere in it."""
    i = t.instance.c
    clauses = [i.project == project, i.state == "REGISTERED"]
    for column, wanted in ((i.id, key), (i.name, name)):
        if wanted is not None:
            anywhere = wanted.startswith("*")
            clauses.append(column.contains(wanted[1:], autoescape=True) if anywhere else column == wanted)
    if engine is not None:
        clauses.append(i.engine == engine)
    if mode is not None:
        clauses.append(i.mode == mode)
    if among is not None:
        clauses.append(i.id.in_(among))
    return _page(conn, t.instance, clauses, (i.created_at.desc(), i.id) if newest_first else (i.name, i.id), first, limit)


def stored_bytes(conn: Connection, instance: str) -> int:
    """Bytes of all objects that the instance's lineages have in the store."""
    lineages = sa.select(t.lineage.c.id).where(t.lineage.c.instance == instance)
    query = sa.select(sa.func.coalesce(sa.func.sum(t.object_.c.bytes), 0)).where(
        t.object_.c.lineage.in_(lineages), t.object_.c.state.in_(("STORED", "CONDEMNED"))
    )
    return int(conn.execute(query).scalar_one())


def backup_summary(conn: Connection, instance: str) -> tuple[int, Row[Any] | None]:
    """How many visible backups an instance has, and the newest of them."""
    here = sa.and_(t.backup.c.instance == instance, t.backup.c.state.in_(VISIBLE))
    count = conn.execute(sa.select(sa.func.count()).select_from(t.backup).where(here)).scalar_one()
    newest = conn.execute(sa.select(t.backup).where(here).order_by(t.backup.c.begin_at.desc()).limit(1)).first()
    return int(count), newest


def restorable_instances(conn: Connection, project: str, backup: str) -> list[Row[Any]]:
    """Registered instances that the backup fits: same engine, version not lower."""
    row = find_backup(conn, project, backup)
    page = list_instances(conn, project, 0, 10_000, engine=row.engine)
    return [one for one in page.rows if version_key(one.version) >= version_key(row.engine_version)]


def list_deletions(conn: Connection, project: str, state: str | None, first: int, limit: int) -> Page:
    """Deletions, newest first, those that are pending before all others; `state` PENDING, RUNNING, FAILED or DONE."""
    d, p = t.deletion.c, t.pending_deletion.c
    none = Page(0, [])
    waiting, decided = none, none
    if state in (None, "PENDING"):
        waiting = _page(conn, t.pending_deletion, [p.project == project], (p.asked_at.desc(), p.backup), first, limit)
    if state != "PENDING":
        clauses = [d.project == project] + ([] if state is None else [d.state == state])
        rest = limit - len(waiting.rows)
        decided = _page(conn, t.deletion, clauses, (d.accepted_at.desc(), d.backup), max(0, first - waiting.total), rest)
    return Page(waiting.total + decided.total, [*waiting.rows, *decided.rows])


def deletion_view(conn: Connection, row: Row[Any]) -> dict[str, Any]:
    """One deletion with what it promised and, from its rows, what it has done so far. One that is pending has promised nothing;
    its mark is in `pending`."""
    backup = conn.execute(sa.select(t.backup.c.name, t.backup.c.instance_name).where(t.backup.c.id == row.backup)).one()
    named = {"backup_id": row.backup, "backup_name": backup.name, "instance_name": backup.instance_name, "job_id": row.job}
    if "asked_at" in row._mapping:
        return {
            **named, "state": "pending", "accepted_at": row.asked_at, "finished_at": None, "fail_reason": None,
            "promised": None, "receipt": None, "pending": row,
        }  # fmt: skip
    done = receipt(conn, row.backup)
    promised = done.pop("promised")
    return {
        **named, "state": row.state.lower(), "accepted_at": row.accepted_at, "finished_at": row.finished_at,
        "fail_reason": row.fail_reason, "promised": promised, "receipt": done, "pending": None,
    }  # fmt: skip


def find_deletion(conn: Connection, project: str, backup: str) -> Row[Any]:
    """The deletion of a backup, whatever its age, or the mark of one that is pending. Raises errors.NoSuchBackup."""
    d, p = t.deletion.c, t.pending_deletion.c
    row = conn.execute(sa.select(t.deletion).where(d.backup == backup, d.project == project)).first()
    row = row or conn.execute(sa.select(t.pending_deletion).where(p.backup == backup, p.project == project)).first()
    if row is None:
        raise errors.NoSuchBackup(f"no deletion of a backup {backup} is known in this project")
    return row


def _page(
    conn: Connection,
    table: sa.Table,
    clauses: Sequence[sa.ColumnElement[bool]],
    order: Sequence[sa.ColumnElement[Any]],
    first: int,
    limit: int,
) -> Page:
    total = conn.execute(sa.select(sa.func.count()).select_from(table).where(*clauses)).scalar_one()
    rows = conn.execute(sa.select(table).where(*clauses).order_by(*order).offset(first).limit(limit)).all()
    return Page(int(total), rows)


def instance_name(conn: Connection, instance: str | None) -> str:
    """The name an instance has or had; empty if there is none."""
    return conn.execute(sa.select(t.instance.c.name).where(t.instance.c.id == instance)).scalar() or ""


def instance_engine(conn: Connection, instance: str | None) -> str:
    """The engine an instance has or had; empty if there is none."""
    return conn.execute(sa.select(t.instance.c.engine).where(t.instance.c.id == instance)).scalar() or ""
