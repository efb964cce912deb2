"""Restoring into a new instance. Strongroom provisions no servers: the empty one is there, and somebody says where.

Either it was registered before, and the request names it, or the request gives its address and it is registered now. In both
cases it has to be empty when the restore comes to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups import errors, instances, replaying, restoration
from strongroom.backups.context import Context
from strongroom.backups.listing import find_backup
from strongroom.backups.registered import require_known
from strongroom.catalog import tables as t


@dataclass(frozen=True, slots=True)
class Newcomer:
    """The instance to be: its name, and its address unless it is registered under that name."""

    name: str
    address: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What it is to hold: a backup, or what `source`, another instance, held at `moment` (seconds since the epoch)."""

    backup: str | None = None
    source: str | None = None
    moment: float = 0.0

    def engine(self, ctx: Context, project: str) -> str:
        """Of which database it is. Raises errors.NoSuchBackup, NoSuchInstance, NotRestorable."""
        with ctx.catalog.read() as conn:
            backup = self.backup
            if backup is None:
                require_known(conn, project, str(self.source))
                backup = replaying.stretch_to(conn, str(self.source), self.moment, ctx.ambient.now()).backup
            row = find_backup(conn, project, backup)
        if row.state != "COMPLETED":
            raise errors.NotRestorable(f"backup {backup} is {row.state}, not COMPLETED")
        return str(row.engine)


@dataclass(frozen=True, slots=True)
class Notes:
    """What is written into the audit trail, each in the transaction that decides it."""

    registered: instances.Note
    restoring: instances.Note
    removed: instances.Note


def restore_anew(ctx: Context, project: str, wanted: Wanted, new: Newcomer, notes: Notes) -> tuple[str, str]:
    """Returns (instance id, job id). Raises errors.NoSuchBackup, NoSuchInstance, NotRestorable, InstanceUnusable,
    InstanceNameTaken.

    A new address whose restore is refused is not left registered.
    """
    engine = wanted.engine(ctx, project)
    if new.address is None:
        instance = _registered(ctx, project, new.name)
        return instance, _restore(ctx, project, wanted, instance, notes)
    instance = instances.register(
        ctx, project, instances.NewInstance(new.name, engine, new.address, new.password), notes.registered
    )  # fmt: skip
    try:
        return instance, _restore(ctx, project, wanted, instance, notes)
    except errors.Refused:
        instances.unregister(ctx, project, instance, partial(_noted, notes.removed, instance))
        raise


def _restore(ctx: Context, project: str, wanted: Wanted, instance: str, notes: Notes) -> str:
    if wanted.backup is not None:
        noted = partial(_noted, notes.restoring, instance)
        return restoration.restore(ctx, project, wanted.backup, instance, noted, overwrite=False)
    source = str(wanted.source)

    def note(conn: Connection, _backup: str) -> None:
        notes.restoring(conn, instance)

    return restoration.restore_to(ctx, project, source, wanted.moment, instance, note, overwrite=False)


def _noted(note: instances.Note, instance: str, conn: Connection) -> None:
    note(conn, instance)


def _registered(ctx: Context, project: str, name: str) -> str:
    here = sa.and_(t.instance.c.project == project, t.instance.c.name == name, t.instance.c.state == "REGISTERED")
    with ctx.catalog.read() as conn:
        found = conn.execute(sa.select(t.instance.c.id).where(here)).scalar()
    if found is None:
        raise errors.InstanceUnusable(
            f"no instance {name} is registered, and Strongroom makes no servers: register an empty one under this name, or give "
            "its address"
        )
    return str(found)
