"""What a database itself knows of its schema, to be compared; and a version of Strongroom that is still to come."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from strongroom.catalog import migrating
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.catalog.tables import metadata
from strongroom.identity import tables as _identity  # noqa: F401  (its tables are part of the catalog)

_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9999", "{head}", None, None


def upgrade() -> None:
    with op.batch_alter_table("account", recreate="always" if op.get_bind().dialect.name == "sqlite" else "auto") as table:
        table.add_column(sa.Column("probe", sa.Text(), nullable=True))
    op.execute("{more}")
"""


def next_version(folder: Path, patch: pytest.MonkeyPatch, more: str = "SELECT 1") -> None:
    """From now on this process is of a version that has one more migration, "9999", which makes the table of accounts anew (on
    SQLite; PostgreSQL adds a column) and does something more. `folder`: for its files."""
    migrations = folder / "migrations"
    shutil.copytree(migrating._FOLDER, migrations)
    head = ScriptDirectory(str(migrations)).get_current_head()
    (migrations / "versions" / "9999_of_a_test.py").write_text(_MIGRATION.format(head=head, more=more))
    patch.setattr(migrating, "_FOLDER", migrations)


def shape(catalog: Catalog) -> dict[str, dict[str, Any]]:
    """All that the database itself knows of its tables, names of constraints and partial indexes included."""
    inspector = sa.inspect(catalog.engine)
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(set(inspector.get_table_names()) - {"alembic_version"}):
        found[name] = {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(name)],
            "key": inspector.get_pk_constraint(name),
            "foreign": sorted(inspector.get_foreign_keys(name), key=str),
            "unique": sorted(inspector.get_unique_constraints(name), key=str),
            "checks": sorted(inspector.get_check_constraints(name), key=str),
            "indexes": sorted(map(_plain, inspector.get_indexes(name)), key=lambda index: str(index["name"])),
        }
    return found


def shape_of_the_code(url: str) -> dict[str, dict[str, Any]]:
    """That of the tables as the code says them, made in an empty database."""
    created = open_catalog(url)
    try:
        metadata.create_all(created.engine)
        return shape(created)
    finally:
        created.close()


def _plain(value: Any) -> Any:
    """A partial index's condition comes as a clause of its own: its text."""
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, dict) else str(value)
