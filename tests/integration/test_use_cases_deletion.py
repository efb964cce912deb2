"""Deleting backups on the catalogs and stores of larger houses: PostgreSQL with a directory, SQLite with S3."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom.catalog.database import open_catalog
from strongroom.storage.opening import open_store
from support.deletion_cases import DeletionCases, MakeVault
from support.seaweed import Seaweed, seaweed
from support.vault import Vault

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


class TestOnPostgresAndDirectory(DeletionCases):
    """The catalog on a server, objects as files that are synced."""

    @pytest.fixture
    def make_vault(self, tmp_path: Path, postgres_url: str) -> Iterator[MakeVault]:
        catalog, store = open_catalog(postgres_url), open_store(f"file://{tmp_path}/store", {})
        yield lambda options: Vault(tmp_path, store, catalog, options)
        store.close()
        catalog.close()


class TestOnSqliteAndS3(DeletionCases):
    """The embedded catalog, objects on a real S3 server."""

    @pytest.fixture
    def make_vault(self, tmp_path: Path, sqlite_url: str, server: Seaweed) -> Iterator[MakeVault]:
        catalog, store = open_catalog(sqlite_url), open_store(server.url(f"deletion/{next(_numbers)}"), server.environment)
        yield lambda options: Vault(tmp_path, store, catalog, options)
        store.close()
        catalog.close()
