"""Catalogs for tests, migrated once and copied per test: SQLite everywhere, PostgreSQL too in tests that start servers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom.ambient import Machine
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.catalog.migrating import migrate
from support.postgres import PostgresServer, postgres_server

SERVER_TESTS = ("integration", "acceptance")
"""Folders whose tests may start servers."""


def parametrise(metafunc: pytest.Metafunc) -> None:
    """Gives `catalog_url`, and so `catalog`, its databases by where the test is."""
    if "catalog_url" in metafunc.fixturenames:
        with_servers = any(part in SERVER_TESTS for part in metafunc.definition.path.parts)
        kinds = ["sqlite", "postgres"] if with_servers else ["sqlite"]
        metafunc.parametrize("catalog_url", kinds, indirect=True)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a migrated schema and nobody in it."""
    file = tmp_path_factory.mktemp("catalog") / "template.db"
    catalog = open_catalog(f"sqlite:///{file}")
    migrate(catalog)
    catalog.close()
    return file


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests that leave it running."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres: PostgresServer) -> str:
    """The name of a database with a migrated schema and nobody in it."""
    name: str = postgres.create_database()
    catalog = open_catalog(postgres.url(name))
    migrate(catalog)
    catalog.close()
    return name


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh, migrated SQLite file."""
    file = tmp_path / "catalog.db"
    shutil.copyfile(sqlite_template, file)
    return f"sqlite:///{file}"


@pytest.fixture
def postgres_url(postgres: PostgresServer, postgres_template: str) -> Iterator[str]:
    """A fresh, migrated PostgreSQL database."""
    name = postgres.create_database(postgres_template)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
def catalog_url(request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database: in turn of each kind that the test's folder allows."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    """A fresh, migrated catalog of each kind that the test's folder allows."""
    opened = open_catalog(catalog_url)
    yield opened
    opened.close()


@pytest.fixture
def ambient() -> Machine:
    """The machine's own time and randomness."""
    return Machine()
