"""Holding a backup, and releasing it."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups.context import Context
from strongroom.backups.holds import FREE, Hold
from strongroom.backups.listing import find_backup
from strongroom.catalog import tables as t


def hold(ctx: Context, project: str, backup: str, wanted: Hold | None, note: Callable[[Connection], None]) -> None:
    """Holds the backup, in place of any hold before, or releases it (None). Raises errors.NoSuchBackup.

    One whose deletion is pending can be held too: then it will not be decided."""
    with ctx.catalog.read() as conn:
        find_backup(conn, project, backup, with_pending=True)
    with ctx.catalog.decide(backups=[backup]) as conn:
        find_backup(conn, project, backup, with_pending=True)
        values = FREE if wanted is None else wanted.columns(ctx.ambient.now())
        conn.execute(sa.update(t.backup).where(t.backup.c.id == backup).values(values))
        note(conn)


__all__ = ["Hold", "hold"]
