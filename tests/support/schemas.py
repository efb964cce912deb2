"""What a database itself knows of its schema, to be compared."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from strongroom.catalog.database import Catalog, open_catalog
from strongroom.catalog.tables import metadata
from strongroom.identity import tables as _identity  # noqa: F401  (its tables are part of the catalog)


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
