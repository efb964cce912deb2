"""Runs migrations inside the transaction that `strongroom.catalog.migrating` has opened."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from strongroom.catalog.tables import metadata
from strongroom.identity import tables as _identity  # noqa: F401  its tables are in the same metadata


def run(conn: Connection) -> None:
    """The caller begins and commits: all migrations or none."""
    context.configure(connection=conn, target_metadata=metadata, transactional_ddl=True, render_as_batch=True)
    context.run_migrations()


run(context.config.attributes["connection"])
