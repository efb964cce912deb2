"""No hot query reads a whole table: every statement that the use cases send to SQLite is explained afterwards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import creation, deletion, holding, instances, listing
from strongroom.catalog import sweeping
from strongroom.catalog import tables as t
from strongroom.catalog.database import open_catalog
from support.vault import Vault, generations, noise

LARGE = {"death", "pack", "holding", "object", "part", "job", "backup", "decision", "deletion", "lineage", "instance", "audit"}
LARGE |= {"closer", "j", "other"}  # aliases
SCAN = re.compile(r"SCAN (?:TABLE )?(\w+)")


class Witness:
    """Every statement that the catalog sees, once, with the parameters of its first time."""

    def __init__(self, engine: sa.Engine) -> None:
        self.seen: dict[str, Any] = {}
        sa.event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, _conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        shape = re.sub(r"\(\?(, \?)*\)", "(?)", statement)
        if statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            self.seen.setdefault(shape, (statement, parameters[0] if many else parameters))


def everything(vault: Vault, source: Any) -> None:
    """Each use case and each list once, and what they do behind."""
    keys = [vault.backup(data) for data in source]
    vault.preview(keys[1])
    vault.delete(keys[1])
    vault.run()

    def delete_parent() -> None:
        vault.engine.during = None
        vault.delete(keys[3])

    vault.engine.during = delete_parent
    vault.create({"a": noise(50_000, 3)})
    vault.run()
    building, _ = vault.create({"a": noise(50_000, 4)})
    creation.stop(vault.ctx, vault.project, building, lambda conn: None)
    vault.run()
    holding.hold(vault.ctx, vault.project, keys[0], holding.Hold("evidence"), lambda conn: None)
    vault.restored(keys[0])
    with vault.catalog.read() as conn:
        for wanted in (listing.BackupFilter(), listing.BackupFilter(instance=vault.source)):
            listing.list_backups(conn, vault.project, wanted, 0, 100)
        listing.find_backup(conn, vault.project, keys[0])
        listing.parts_of(conn, keys[0])
        listing.list_instances(conn, vault.project, 0, 100)
        listing.stored_bytes(conn, vault.source)
        listing.backup_summary(conn, vault.source)
        listing.restorable_instances(conn, vault.project, keys[0])
        for row in listing.list_deletions(conn, vault.project, None, 0, 100).rows:
            listing.deletion_view(conn, row)
        listing.find_deletion(conn, vault.project, keys[1])
        deletion.receipt(conn, keys[1])
    instances.unregister(vault.ctx, vault.project, vault.target, lambda conn: None)


@pytest.mark.parametrize("analysed", [False, True])
def test_no_statement_of_the_use_cases_scans_a_large_table(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, analysed: bool
) -> None:
    """Neither without statistics nor with those of a filled catalog does SQLite read a table from end to end."""
    monkeypatch.setattr(sweeping, "BATCH", 50)
    catalog = open_catalog(sqlite_url)
    vault = Vault(tmp_path, catalog=catalog)
    witness = Witness(catalog.engine)
    everything(vault, generations(5))
    statements = dict(witness.seen)
    if analysed:
        fill(vault)
    scans = []
    with catalog.read() as conn:
        for statement, parameters in statements.values():
            for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all():
                found = SCAN.search(row.detail)
                if "AUTOMATIC" in row.detail or (found is not None and found[1] in LARGE):
                    scans.append(f"{row.detail}: {statement}")
    catalog.close()
    assert scans == [], "\n\n".join(scans)


def fill(vault: Vault) -> None:
    """Many rows in every large table, and SQLite's statistics of them."""
    engine = sa.create_engine(vault.catalog.engine.url)  # without foreign keys
    with engine.begin() as conn:
        for table in (t.backup, t.lineage, t.part, t.pack, t.death, t.object_, t.holding, t.job, t.decision):
            rows = conn.execute(sa.select(table).limit(20)).mappings().all()
            copies = [dict(row) | _renamed(table, dict(row), number) for number in range(150) for row in rows]
            if copies:
                conn.execute(table.insert().prefix_with("OR IGNORE"), copies)
        conn.exec_driver_sql("ANALYZE")
    engine.dispose()


def _renamed(table: sa.Table, row: dict[str, Any], number: int) -> dict[str, Any]:
    """A copy's own key: lineages of their own for what belongs to one."""
    fresh: dict[str, Any] = {
        name: f"{row[name]}-{number}" for name in ("lineage", "backup", "object", "name") if row.get(name) is not None
    }
    if table is t.decision:
        return fresh | {"id": None}
    if "id" in row and table is not t.pack:
        fresh["id"] = f"{row['id']}-{number}"
    if table is t.lineage:
        fresh["state"] = "CLOSED"
    if table is t.job:
        fresh |= {"unique_key": None, "serial": None, "state": "DONE"}
    return fresh
