"""Which tables of an instance can be backed up one by one, as the API tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.api import restorable
from strongroom.backups import errors, instances
from strongroom.engines.base import EngineUnreachable, Target
from strongroom.identity.principal import Principal
from support.vault import DictEngine, Vault


class WithTables(DictEngine):
    """Databases with tables."""

    def list_tables(self, target: Target) -> Mapping[str, Sequence[str]]:
        if self.broken is not None:
            raise EngineUnreachable(self.broken)
        return {"empty": [], "shop": [f"t{number}" for number in range(5)]}


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


def test_an_engine_that_is_backed_up_whole_has_none(vault: Vault) -> None:
    """And the instance has to exist."""
    assert instances.tables_of(vault.ctx, vault.project, vault.source) == {}
    with pytest.raises(errors.NoSuchInstance):
        instances.tables_of(vault.ctx, "another", vault.source)


def test_databases_and_tables_are_told_page_by_page(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order; past the end, and of a database that is not there, nothing. An engine that is away says so."""
    engine = WithTables()
    ctx = replace(vault.ctx, engines={"plain": engine})
    monkeypatch.setattr(Principal, "required_project", lambda self: vault.project)
    caller = object.__new__(Principal)

    def tables(database: str, offset: int, limit: int) -> tuple[list[str], int]:
        page = restorable.TablesPage(database_name=database, offset=offset, limit=limit)
        found = restorable.list_restorable_tables(vault.source, page, ctx, caller)
        return found["table_names"], found["total_count"]

    found = restorable.list_restorable_databases(vault.source, restorable.RowPage(offset=1, limit=5), ctx, caller)
    assert found == {"database_names": ["shop"], "total_count": 2}
    assert tables("shop", 1, 2) == (["t1", "t2"], 5)
    assert tables("shop", 5, 2) == ([], 5)
    assert tables("empty", 0, 2) == tables("nowhere", 0, 2) == ([], 0)
    engine.broken = "nothing listens there"
    with pytest.raises(errors.InstanceUnusable, match="nothing listens"):
        tables("shop", 0, 1)
