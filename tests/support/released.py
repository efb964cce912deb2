"""What released versions of Strongroom have left behind: fixtures that `scripts/freeze` made with each, and that never change.

tests/fixtures/<version>/data.tar.gz     a data folder with its store, as the release's server left it
tests/fixtures/<version>/postgres.sql    the release's schema on PostgreSQL, as pg_dump tells it
tests/fixtures/<version>/release.json    what is in it, and the digests of the migrations that made its schema
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strongroom.catalog import migrating
from support.server import Keys

FIXTURES = Path(__file__).parents[1] / "fixtures"
MIGRATIONS = Path(migrating.__file__).parent / "migrations" / "versions"

REDIS_PORT, MONGO_PORT, HOOK_PORT = 21379, 21017, 21080
"""Where the fixture's databases and its webhook were: below the ports that systems give away, so nothing of a test is there."""

REDIS_PASSWORD = "redis-of-the-fixture"
MONGO_USER = "keeper"
HELD = "audit of May"


@dataclass(frozen=True, slots=True)
class Release:
    """One released version's fixture."""

    version: str
    facts: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return FIXTURES / self.version

    def unpack(self, target: Path) -> Path:
        """A copy of its data folder below `target`; returns its path."""
        with tarfile.open(self.folder / "data.tar.gz") as archive:
            archive.extractall(target, filter="data")
        return target / "data"

    def keys(self, user: str) -> Keys:
        """What somebody of it enters with."""
        return Keys(**self.facts["users"][user])

    def backup(self, name: str) -> str:
        """A backup's id."""
        return str(self.facts["backups"][name]["id"])

    def content(self, name: str) -> str:
        """The digest of what a backup holds."""
        return str(self.facts["backups"][name]["content"])


def releases() -> list[Release]:
    """All of them."""
    found = sorted(FIXTURES.glob("*/release.json"))
    return [Release(path.parent.name, json.loads(path.read_text("utf-8"))) for path in found]


def digests() -> dict[str, str]:
    """The migrations that this version has, and what each holds."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(MIGRATIONS.glob("*.py"))}


def move(folder: Path, table: str, name: str, place: str) -> None:
    """Tells an unpacked catalog, as the release's own hand would, that an instance or webhook is somewhere else now."""
    column = {"instance": "address", "webhook": "url"}[table]
    with sqlite3.connect(folder / "catalog.db") as conn:
        done = conn.execute(f"UPDATE {table} SET {column} = ? WHERE name = ?", (place, name))  # noqa: S608  our own words
        assert done.rowcount == 1
    conn.close()
