"""A vault on a catalog that was rebuilt from another vault's store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.backups import holding
from strongroom.backups.rebuilding import Rebuilt, rebuild
from strongroom.catalog import tables as t
from strongroom.identity import accounts
from strongroom.storage.memory import MemoryStore
from support.accounts import HOLDINGS, check_books
from support.harsh import HarshVault
from support.vault import DictEngine, chunk_objects


@dataclass
class Again:
    """A vault on a rebuilt catalog, and what the rebuild said."""

    vault: RebuiltVault
    result: Rebuilt
    report: list[str]


class RebuiltVault(HarshVault):
    """The same store and databases under a catalog that knows nothing."""

    def __init__(self, folder: Path, old: HarshVault) -> None:
        inner = MemoryStore()
        inner._objects.update(old.inner._objects)  # type: ignore[attr-defined]
        self._begin(folder, inner)
        self.folder, self.options, self.engine = folder, old.options, DictEngine()
        self.engine.databases = dict(old.engine.databases)
        self.wanted = dict(old.wanted)
        self.project, self.source, self.target = old.project, old.source, old.target
        self.unclaimed: set[str] = set()
        self.restart()

    def rebuild(self, report: list[str] | None = None) -> Rebuilt:
        result = rebuild(self.ctx, (report if report is not None else []).append, self._found)
        self.unclaimed = set(result.unknown)
        return result

    def _found(self) -> None:
        accounts.first_start(self.ctx.catalog, self.ambient, self.ctx.sealer, password_hash=None)

    def release(self) -> None:
        """What a person does after looking."""
        for key in self.wanted:
            holding.hold(self.ctx, self.project, key, None, lambda conn: None)

    def check_accounts(self) -> None:
        """As ever, but for what the rebuild reported and left."""
        there = {stat.name: stat.size for stat in self.inner.list("") if stat.name not in self.unclaimed}
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(t.object_)).all()
            held = conn.execute(sa.text(HOLDINGS)).all()
        assert {row.name: row.bytes for row in rows if row.state == "STORED"} == there
        assert {row.state for row in rows} <= {"STORED", "LATE"}
        check_books(chunk_objects(rows), held, pytest.fail)


def again(old: HarshVault, folder: Path) -> Again:
    """A rebuild of what the old vault's store holds now."""
    vault, report = RebuiltVault(folder, old), list[str]()
    return Again(vault, vault.rebuild(report), report)
