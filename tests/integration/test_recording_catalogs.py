"""Recordings on both databases: their statements, and what a delete frees of the log."""

from __future__ import annotations

from pathlib import Path

from strongroom.backups import recording
from strongroom.catalog.database import Catalog
from support.logged import LoggedVault, nothing


def test_moments_are_recorded_restored_freed_and_dropped(catalog: Catalog, tmp_path: Path) -> None:
    """Backups between, a hole, the oldest deleted as promised, old log trimmed, the rest dropped."""
    vault = LoggedVault(tmp_path, catalog=catalog)
    vault.writes(3)
    vault.turn_on(keep_days=1)
    keys = []
    for _ in range(3):
        keys.append(vault.take())
        vault.writes(4)
        vault.follow()
    vault.check_moments()
    promise = vault.preview(keys[0]).promises[keys[0]]
    before = vault.log_bytes()
    vault.delete(keys[0])
    vault.run()
    assert vault.receipt(keys[0])["freed"] == promise.freed > before - vault.log_bytes() > 0
    vault.check_moments()
    vault.writes(2)
    vault.engine.oldest = len(vault.engine.log)
    vault.writes(2)
    vault.follow()
    vault.writes(2)
    vault.follow()
    assert len(vault.periods()) == 2
    vault.check_moments()
    vault.clock.passed += 3 * 86400.0
    vault.trim()
    assert vault.periods() == []
    vault.engine.clock = vault.clock.now() - 10.0
    vault.take()
    vault.writes(2)
    vault.follow()
    assert vault.log_bytes() > 0
    vault.turn_off()
    recording.drop(vault.ctx, vault.project, vault.source, nothing)
    vault.run()
    assert vault.log_bytes() == 0
    vault.check_accounts()
