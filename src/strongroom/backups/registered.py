"""Finding and locking registered instances."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups import errors
from strongroom.catalog import tables as t


def lock_instance(conn: Connection, project: str, instance: str) -> None:
    """Locks a registered instance until the transaction ends, before backups and lineages: it cannot be unregistered meanwhile.

    Raises errors.NoSuchInstance.
    """
    here = sa.and_(t.instance.c.id == instance, t.instance.c.project == project, t.instance.c.state == "REGISTERED")
    if conn.execute(sa.update(t.instance).where(here).values(state="REGISTERED")).rowcount != 1:
        raise errors.NoSuchInstance(f"there is no instance {instance} in this project")


def require_known(conn: Connection, project: str, instance: str) -> None:
    """Raises errors.NoSuchInstance unless the project has or had such an instance."""
    known = sa.and_(t.instance.c.id == instance, t.instance.c.project == project)
    if conn.execute(sa.select(t.instance.c.id).where(known)).first() is None:
        raise errors.NoSuchInstance(f"there is no instance {instance} in this project")


def find_instance(conn: Connection, project: str, instance: str) -> Row[Any]:
    """The registered instance of this id. Raises errors.NoSuchInstance."""
    row = conn.execute(
        sa.select(t.instance).where(
            t.instance.c.id == instance, t.instance.c.project == project, t.instance.c.state == "REGISTERED"
        )
    ).first()
    if row is None:
        raise errors.NoSuchInstance(f"there is no instance {instance} in this project")
    return row
