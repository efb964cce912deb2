"""Holding a backup: while it is held, nothing deletes it; the refusal names the reason. Rebuilt backups come back held."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups.context import Context
from strongroom.backups.listing import find_backup
from strongroom.catalog import tables as t


def hold(ctx: Context, project: str, backup: str, reason: str | None, note: Callable[[Connection], None]) -> None:
    """Holds the backup for a reason, or releases it (None). Raises errors.NoSuchBackup."""
    with ctx.catalog.read() as conn:
        find_backup(conn, project, backup)
    with ctx.catalog.decide(backups=[backup]) as conn:
        find_backup(conn, project, backup)
        conn.execute(sa.update(t.backup).where(t.backup.c.id == backup).values(held=reason))
        note(conn)
