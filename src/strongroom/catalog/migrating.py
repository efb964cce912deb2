"""Bringing the catalog's schema to what this version of Strongroom needs, and refusing to work on a newer one.

Migrations are part of the package (`migrations/versions`) and run in one transaction on both databases: a start that dies in
the middle leaves the schema as it was. Of several processes that start at once, one migrates and the others wait for it. It waits
itself for the transactions of processes that run, and these do nothing more on a schema that is not theirs (Catalog).

What a release has published stays as it is for ever, since catalogs were made by it: a change of the schema is a migration after
it. On SQLite some changes make a table anew, drop the old one and take its name (Catalog.remake).
"""

from __future__ import annotations

import io
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from strongroom.catalog.database import REVISIONS, Catalog, CatalogBehind

_FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x5354524F4E47  # an advisory lock's key: one process at a time migrates


def migrate(catalog: Catalog) -> None:
    """Upgrades the schema to this version's, from nothing if need be. Raises CatalogBehind if a newer version made it,
    CatalogError if a reference would not hold afterwards."""
    with catalog.remake() as conn:
        if catalog.postgres:
            conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        config = _config()
        found, head = _revisions(conn, config), _head(config)
        if catalog.postgres and found and found != {head}:
            conn.exec_driver_sql(f"LOCK TABLE {REVISIONS} IN ACCESS EXCLUSIVE MODE")
        config.attributes["connection"] = conn
        command.upgrade(config, "head")
    catalog.revision = head


def require_current(catalog: Catalog) -> None:
    """For who only reads: raises CatalogBehind unless the schema is this version's. Changes nothing."""
    with catalog.read() as conn:
        config = _config()
        found = _revisions(conn, config)
        head = _head(config)
        if found != {head}:
            raise CatalogBehind(f"the catalog's schema is at {_name(found)}: start this version's server on it once")
    catalog.revision = head


def _config() -> Config:
    config = Config(stdout=io.StringIO())
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config


def _head(config: Config) -> str:
    """The revision that this version works on."""
    head = ScriptDirectory.from_config(config).get_current_head()
    assert head is not None
    return head


def _revisions(conn: Connection, config: Config) -> set[str]:
    """What the database says it is at; raises CatalogBehind for what this version does not know."""
    found = set(MigrationContext.configure(conn).get_current_heads())
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if not found <= known:
        raise CatalogBehind(f"the catalog's schema is at {_name(found)}, made by a newer version of Strongroom: use that one")
    return found


def _name(revisions: set[str]) -> str:
    return ", ".join(sorted(revisions)) or "nothing yet"
