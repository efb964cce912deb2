"""Snapshots of the catalog on both databases, and from one to the other: what the one holds, the other takes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.backups import snapshots, trail_segments
from strongroom.backups.rebuilding import rebuild
from strongroom.catalog.database import Catalog
from strongroom.identity import audit
from strongroom.identity import tables as identity
from strongroom.jobs.leases import LeasedJobs
from support.furnished import furnish, happen, rows
from support.harsh import fast_catalog
from support.vault import Vault


@pytest.mark.parametrize("from_it", [True, False])
def test_what_a_snapshot_holds_comes_back_on_another_database(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_it: bool
) -> None:
    """Row for row, segments of the audit trail included; the rebuilt catalog puts its own next."""
    monkeypatch.setattr(trail_segments, "SEGMENT", 10)
    (tmp_path / "vault").mkdir()
    embedded = fast_catalog(tmp_path / "embedded.db")
    old, new = (catalog, embedded) if from_it else (embedded, catalog)
    vault = Vault(tmp_path / "vault", catalog=old)
    furnish(vault)
    happen(vault, 25)
    assert snapshots.take(vault.ctx) == "catalog/1.1"
    assert snapshots.take(vault.ctx) is None
    assert not snapshots.due(vault.ctx)
    before = rows(vault)
    ctx = replace(vault.ctx, catalog=new, jobs=LeasedJobs(new, vault.ambient), checked={})
    result = rebuild(ctx, lambda _line: None)
    assert (result.backups, result.known, result.unknown) == (2, 2, [])
    vault.catalog, vault.ctx = new, ctx
    assert rows(vault) == before
    with new.read() as conn:
        account = str(conn.scalar(sa.select(identity.account.c.id)))
        assert audit.check_chain(conn, account) is None
        assert audit.head(conn, account).sequence == 28
    assert snapshots.take(ctx) == "catalog/2.1"
    embedded.close()
