"""Restores replace data only when they were told to, and whatever happens the job says what the target holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strongroom.backups import restoration
from strongroom.backups.filling import UNCHANGED
from strongroom.storage.base import StoreDenied
from strongroom.storage.faults import Effect, Fail, Fault
from support.harsh import Died, HarshVault
from support.vault import Vault, noise

DATA = {"one": noise(30_000, 1), "two": noise(3_000, 2)}
HELD = {"precious": b"of somebody"}


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


def restored(vault: Vault, backup: str, instance: str, overwrite: bool | None = None) -> Any:
    """The job of a restore, after its end."""
    job = restoration.restore(vault.ctx, vault.project, backup, instance, lambda conn: None, overwrite)
    vault.run()
    return vault.job(job)


def test_a_target_that_holds_data_is_kept_unless_its_restore_was_told(vault: Vault) -> None:
    """Another instance than the backup's: refused with what it holds and how to go on; with overwrite it is replaced."""
    backup = vault.backup(DATA)
    vault.engine.databases["plain://target"] = dict(HELD)
    for overwrite in (None, False):
        job = restored(vault, backup, vault.target, overwrite)
        assert job.state == "FAILED"
        assert job.error == (
            "instance target holds 1 entries, which a restore would replace: empty it, or restore with overwrite "
            "(the command line's --overwrite)"
        )
        assert job.result == {"target_state": UNCHANGED}
        assert vault.engine.databases["plain://target"] == HELD
    assert restored(vault, backup, vault.target, True).state == "DONE"
    assert vault.engine.databases["plain://target"] == DATA


def test_an_empty_target_needs_no_word(vault: Vault) -> None:
    """Also with overwrite refused."""
    backup = vault.backup(DATA)
    for overwrite in (None, False):
        vault.engine.databases["plain://target"] = {}
        assert restored(vault, backup, vault.target, overwrite).state == "DONE"
        assert vault.engine.databases["plain://target"] == DATA


def test_the_backups_own_instance_is_replaced_as_the_contract_says_unless_that_is_forbidden(vault: Vault) -> None:
    """The contract's call has no field for it; who sends ours as false keeps the data."""
    backup = vault.backup(DATA)
    vault.engine.databases["plain://source"] = dict(HELD)
    assert restored(vault, backup, vault.source, False).state == "FAILED"
    assert vault.engine.databases["plain://source"] == HELD
    assert restored(vault, backup, vault.source).state == "DONE"
    assert vault.engine.databases["plain://source"] == DATA


def test_a_restore_tells_entries_bytes_seconds_and_what_was_warned_of(vault: Vault) -> None:
    """The summary is the job's result."""
    backup = vault.backup(DATA)
    vault.engine.warnings = ["the disk is nearly full"]
    result = restored(vault, backup, vault.target).result
    assert 0 <= result.pop("seconds") < 20
    assert result == {"backup": backup, "entries": 2, "bytes": 33_000, "warnings": ["the disk is nearly full"]}


def test_a_restore_that_breaks_says_what_the_target_holds(vault: Vault) -> None:
    """By the engine's own word; and where the job is cancelled half-way, by what the engine noted on the way out."""
    backup = vault.backup(DATA)
    vault.engine.broken = "the line was cut"
    job = restored(vault, backup, vault.target)
    assert (job.state, job.result) == ("FAILED", {"target_state": "as it was"})
    vault.engine.broken = None

    def cancel() -> None:
        with vault.catalog.write() as conn:
            vault.jobs.cancel(conn, running[0])
        vault.worker.beat(owned[0])

    running = [restoration.restore(vault.ctx, vault.project, backup, vault.target, lambda conn: None)]
    claimed = vault.worker.claim()
    assert claimed is not None
    owned = [claimed]
    vault.engine.restoring = cancel
    vault.worker.run_claimed(claimed)
    job = vault.job(running[0])
    assert (job.state, job.result) == ("CANCELLED", {"target_state": "1 of 2 entries"})
    assert "The target: 1 of 2 entries" in job.error


def test_a_target_that_cannot_be_reached_was_not_changed(vault: Vault) -> None:
    """The survey fails: the job says so, and that nothing was changed."""
    backup = vault.backup(DATA)
    del vault.engine.databases["plain://target"]
    job = restored(vault, backup, vault.target)
    assert "nothing listens" in job.error
    assert job.result == {"target_state": UNCHANGED}


def test_what_an_interrupted_restore_has_written_does_not_stop_the_next_try(tmp_path: Path) -> None:
    """The process dies half-way in a target that was empty: the job goes on after the restart without being told to overwrite."""
    vault = HarshVault(tmp_path)
    backup = vault.backup(DATA)

    def die() -> None:
        raise Died

    vault.engine.restoring = die
    job = restoration.restore(vault.ctx, vault.project, backup, vault.target, lambda conn: None, False)
    with pytest.raises(Died):
        vault.run()
    assert len(vault.engine.databases["plain://target"]) == 1
    vault.engine.restoring = None
    vault.restart()
    vault.run()
    assert vault.job(job).state == "DONE"
    assert vault.engine.databases["plain://target"] == DATA


def test_a_later_try_does_not_say_that_nothing_was_changed(tmp_path: Path) -> None:
    """The first try dies half-way, the second meets a store that is gone: what the first did is not forgotten."""
    vault = HarshVault(tmp_path)
    backup = vault.backup(DATA)

    def die() -> None:
        raise Died

    def denied(effect: Effect) -> Fault | None:
        return Fail(StoreDenied("the store denies it")) if effect.kind == "get" else None

    vault.engine.restoring = die
    job = restoration.restore(vault.ctx, vault.project, backup, vault.target, lambda conn: None, False)
    with pytest.raises(Died):
        vault.run()
    vault.engine.restoring, vault.plan = None, denied
    vault.restart()
    vault.run()
    view = vault.job(job)
    assert view.state == "FAILED"
    assert "an earlier one of this job" in view.result["target_state"]
