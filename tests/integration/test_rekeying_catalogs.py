"""Rotating the root key on both databases: the same statements, and on PostgreSQL nobody else may be working."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.backups.rekeying import RotationRefused, prove, rotate
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog
from strongroom.identity.secrets import Sealer
from strongroom.jobs.clock import DatabaseClock
from strongroom.repository.keys import RootKey, root_of_keys
from support.vault import ROOT, Vault, noise

NEW = bytes(range(1, 33))


def test_a_rotation_on_a_real_catalog(catalog: Catalog, tmp_path: Path) -> None:
    """Everything opens under the new key alone; the old key's copies are condemned, and their removal is queued."""
    (tmp_path / "vault").mkdir()
    vault = Vault(tmp_path / "vault", catalog=catalog)
    vault.backup({"a": noise(50_000, 1)})
    vault.ctx = replace(vault.ctx, root_key=RootKey(NEW, (RootKey(ROOT),)), sealer=Sealer(NEW, accepted=[ROOT]))
    assert rotate(vault.ctx).lineages == 1
    assert rotate(vault.ctx).lineages == 0
    prove(vault.ctx)
    with catalog.read() as conn:
        keys = conn.execute(sa.select(t.object_.c.name, t.object_.c.state).where(t.object_.c.kind == "key")).all()
        jobs = conn.scalars(sa.select(t.job.c.kind).where(t.job.c.state == "QUEUED")).all()
    sealed = {(row.state, root_of_keys(vault.store.get(row.name))) for row in keys}
    assert sealed == {("STORED", RootKey(NEW).id), ("CONDEMNED", RootKey(ROOT).id)}
    assert list(jobs) == ["remove"]


def test_a_rotation_beside_a_running_job_is_refused_on_postgresql(catalog: Catalog, tmp_path: Path) -> None:
    """A lease that holds shows another server; embedded there can be none, since the data folder is locked."""
    (tmp_path / "vault").mkdir()
    vault = Vault(tmp_path / "vault", catalog=catalog)
    vault.backup({"a": noise(50_000, 1)})
    with catalog.write() as conn:
        until = DatabaseClock(catalog.postgres).now() + 60
        job = sa.select(t.job.c.id).limit(1).scalar_subquery()
        conn.execute(sa.update(t.job).where(t.job.c.id == job).values(state="RUNNING", lease_until=until))
    vault.ctx = replace(vault.ctx, root_key=RootKey(NEW, (RootKey(ROOT),)), sealer=Sealer(NEW, accepted=[ROOT]))
    if catalog.postgres:
        with pytest.raises(RotationRefused, match="stop every server"):
            rotate(vault.ctx)
    else:
        assert rotate(vault.ctx).lineages == 1
