"""The migrated schema is the one that the code is written against, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from strongroom.catalog.database import Catalog, CatalogBehind, open_catalog
from strongroom.catalog.migrating import migrate
from strongroom.catalog.tables import metadata
from strongroom.identity import tables as _identity  # noqa: F401
from support.postgres import PostgresServer
from support.schemas import shape, shape_of_the_code


def test_migrations_make_the_tables_that_the_code_names(catalog: Catalog) -> None:
    """Alembic finds no difference, so no query meets a column or index that the migrations forgot."""
    with catalog.read() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_migrated_and_created_schemas_are_the_same_on_sqlite(tmp_path: Path, sqlite_url: str) -> None:
    """Checks, partial indexes and names too, which Alembic does not compare."""
    _compare(sqlite_url, f"sqlite:///{tmp_path}/created.db")


def test_migrated_and_created_schemas_are_the_same_on_postgres(postgres: PostgresServer, postgres_url: str) -> None:
    """As on SQLite."""
    name = postgres.create_database()
    try:
        _compare(postgres_url, postgres.url(name))
    finally:
        postgres.drop_database(name)


def _compare(migrated_url: str, created_url: str) -> None:
    wanted = shape_of_the_code(created_url)
    assert wanted
    migrated = open_catalog(migrated_url)
    try:
        assert shape(migrated) == wanted
    finally:
        migrated.close()


def test_migrating_twice_changes_nothing(catalog: Catalog, capfd: pytest.CaptureFixture[str]) -> None:
    """Every start migrates; a current schema stays as it is, and nothing is printed."""
    before = shape(catalog)
    migrate(catalog)
    assert shape(catalog) == before
    assert capfd.readouterr().out == ""


def test_another_versions_schema_is_refused(catalog: Catalog) -> None:
    """A revision that this version does not know was made by a newer one: neither used nor touched."""
    with catalog.write() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = 'of-the-future'"))
    with pytest.raises(CatalogBehind, match="is at of-the-future, made by a newer version"):
        migrate(catalog)
    with catalog.read() as conn:
        assert conn.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == "of-the-future"
