"""A worker of a catalog that a rebuild has replaced, beside the rebuilt one, puts no mark and removes nothing of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from strongroom.backups import creation
from strongroom.repository import names
from strongroom.repository.keys import RootKey, seal_owner
from strongroom.storage.faults import Effect
from support.harsh import HarshVault
from support.vault import ROOT, generations, noise


@pytest.fixture
def vault(tmp_path: Path) -> HarshVault:
    return HarshVault(tmp_path / "vault")


def replace(vault: HarshVault) -> None:
    """A rebuilt catalog takes the store."""
    vault.inner.put_new(names.owner(2), seal_owner(RootKey(ROOT), 2))


def test_a_replaced_worker_buries_nothing(vault: HarshVault) -> None:
    """The rebuilt catalog shows the backup again: a grave put now would hide it from the next rebuild."""
    source = generations(2)
    first, _ = vault.backup(next(source)), vault.backup(next(source))
    job = vault.delete(first)
    replace(vault)
    there = dict(vault.inner._objects)  # type: ignore[attr-defined]
    vault.run()
    assert vault.job(job).state == "FAILED"
    assert "another catalog" in vault.job(job).error
    assert vault.inner._objects == there  # type: ignore[attr-defined]


def test_a_replaced_writer_leaves_what_it_put(vault: HarshVault) -> None:
    """Its build is stopped while it puts the manifest, and the store has a new owner: the manifest may be that one's backup."""
    key, _ = vault.create({"a": noise(5000, 3)})

    def stop(effect: Effect) -> None:
        if effect.phase == "before" and effect.kind == "put_new" and "/manifest/" in effect.names[0]:
            vault.plan = lambda _effect: None
            creation.stop(vault.ctx, vault.project, key, lambda conn: None)
            replace(vault)

    vault.plan = stop
    vault.run()
    assert [name for name in vault.inner._objects if "/manifest/" in name]  # type: ignore[attr-defined]
