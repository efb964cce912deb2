"""Taking an instance off the register: what stays, what goes, what is waited for, and the bin that tells of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import automation, creation, errors, holding, instances, listing, recycling
from strongroom.backups.registered import find_instance
from strongroom.catalog import tables as t
from support.vault import Vault

DATA = {"a": b"a" * 9000, "b": b"b" * 9000}
DAY = 86_400.0


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


def automated(vault: Vault, data: dict[str, bytes]) -> str:
    """A completed backup as a schedule takes it."""
    key = vault.backup(data)
    with vault.catalog.write() as conn:
        conn.execute(sa.update(t.backup).where(t.backup.c.id == key).values(origin="Auto"))
    return key


def unregister(vault: Vault, instance: str = "") -> str:
    return instances.unregister(vault.ctx, vault.project, instance or vault.source, lambda conn: None)


def events(vault: Vault) -> list[tuple[str, str]]:
    with vault.catalog.read() as conn:
        return [(row.event, row.resource_id) for row in conn.execute(sa.text("SELECT event, resource_id FROM audit"))]


def test_automated_backups_go_and_manual_ones_stay(vault: Vault) -> None:
    """The manual one in the middle of the history restores elsewhere; each deletion is in the audit trail; the books add up."""
    first = automated(vault, DATA)
    kept = vault.backup({**DATA, "a": b"A" * 9000})
    last = automated(vault, {**DATA, "b": b"B" * 9000})
    job = unregister(vault)
    vault.run()
    assert vault.job(job).state == "DONE"
    assert vault.job(job).result == {"deleted": 2, "kept": []}
    assert [vault.state(key) for key in (first, kept, last)] == ["DELETED", "COMPLETED", "DELETED"]
    assert {("NoSQLDeleteBackup", first), ("NoSQLDeleteBackup", last)} <= set(events(vault))
    for key in (first, last):
        vault.wanted.pop(key)
    vault.check()


def test_it_forgets_how_the_instance_is_entered_and_is_done_once(vault: Vault) -> None:
    """No secret is kept; the second call finds nothing; the name is free again."""
    unregister(vault)
    with vault.catalog.read() as conn:
        row = conn.execute(sa.select(t.instance).where(t.instance.c.id == vault.source)).one()
    assert (row.state, row.secret) == ("REMOVED", None)
    with pytest.raises(errors.NoSuchInstance):
        unregister(vault)
    new = instances.NewInstance("source", "plain", "plain://source")
    assert instances.register(vault.ctx, vault.project, new, lambda conn, key: None) != vault.source


def test_an_instance_in_use_is_refused_and_nothing_is_changed(vault: Vault) -> None:
    """While a backup is being taken; afterwards it goes."""
    vault.create(DATA)
    with pytest.raises(errors.InstanceBusy):
        unregister(vault)
    with vault.catalog.read() as conn:
        assert find_instance(conn, vault.project, vault.source)
    vault.run()
    unregister(vault)


def test_a_held_backup_stays_and_is_named(vault: Vault) -> None:
    """A hold is stronger than a policy."""
    held, gone = automated(vault, DATA), automated(vault, {**DATA, "c": b"c" * 9000})
    holding.hold(vault.ctx, vault.project, held, holding.Hold("evidence"), lambda conn: None)
    job = unregister(vault)
    vault.run()
    (kept,) = vault.job(job).result["kept"]
    assert kept["backup"] == held
    assert "evidence" in kept["why"]
    assert [vault.state(key) for key in (held, gone)] == ["COMPLETED", "DELETED"]


def test_a_backup_that_a_restore_reads_is_waited_for(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The restore into another instance ends as it should, then the backup goes."""
    monkeypatch.setattr(automation, "_RESTORING", 0.2)
    key = automated(vault, DATA)
    restore = vault.restore(key)
    job = unregister(vault)
    with vault.catalog.write() as conn:  # so that the job finds the restore not begun
        conn.execute(sa.update(t.job).where(t.job.c.id == restore).values(run_after=vault.ambient.now() + 1))
    vault.run()
    assert vault.job(restore).state == vault.job(job).state == "DONE"
    assert vault.job(job).attempts > 1
    assert vault.engine.databases["plain://target"] == DATA
    assert vault.state(key) == "DELETED"


def test_it_goes_on_after_an_end_in_the_middle(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decided stays decided, the rest is decided by the next run; a backup that somebody else deleted is no matter."""
    keys = [automated(vault, {**DATA, "n": str(number).encode() * 5000}) for number in range(3)]
    whole = automation.deletion.delete
    calls: list[str] = []

    def ends(ctx: Any, project: str, key: str, note: Any, **options: Any) -> str:
        calls.append(key)
        if len(calls) == 2:
            raise RuntimeError("the process ends here")
        return whole(ctx, project, key, note, **options)

    monkeypatch.setattr(automation.deletion, "delete", ends)
    job = unregister(vault)
    vault.run()
    assert vault.job(job).state == "DONE"
    assert calls == [keys[0], keys[1], keys[1], keys[2]]
    assert {vault.state(key) for key in keys} == {"DELETED"}


def test_no_backup_begins_on_an_instance_that_is_gone(vault: Vault) -> None:
    """Nor does it come back by itself."""
    unregister(vault)
    with pytest.raises(errors.NoSuchInstance):
        creation.create(vault.ctx, vault.project, vault.source, creation.Wanted("late"), lambda conn, key: None)


def recycled(vault: Vault, now: float, first: int = 0, limit: int = 100) -> tuple[int, list[str]]:
    with vault.catalog.read() as conn:
        total, rows = recycling.list_recycled(conn, vault.project, now, first, limit)
    return total, [row.id for row in rows]


def test_the_bin_tells_of_instances_for_as_long_as_the_policy_says(vault: Vault) -> None:
    """Seven days unless it says otherwise; a changed policy holds for what is in it; leaving it removes nothing."""
    key = vault.backup(DATA)
    unregister(vault)
    unregister(vault, vault.target)
    with vault.catalog.write() as conn:
        for number, instance in enumerate((vault.source, vault.target)):
            conn.execute(sa.update(t.instance).where(t.instance.c.id == instance).values(updated_at=1000.0 * DAY + number))
    now = 1000 * DAY + 10
    assert recycled(vault, now) == (2, [vault.target, vault.source]), "the last one first"
    assert recycled(vault, now, first=1, limit=1) == (2, [vault.source])
    assert recycled(vault, now, first=2) == (2, [])
    assert recycled(vault, now + 7 * DAY - 20)[0] == 2
    assert recycled(vault, now + 7 * DAY) == (0, [])
    with vault.catalog.write() as conn:
        recycling.put_days(conn, vault.project, 1)
        recycling.put_days(conn, vault.project, 2)
    assert recycled(vault, now + DAY)[0] == 2
    assert recycled(vault, now + 2 * DAY)[0] == 0
    with vault.catalog.read() as conn:
        assert recycling.days(conn, vault.project) == 2
        assert recycling.days(conn, "another") == recycling.DEFAULT_DAYS
        _, rows = recycling.list_recycled(conn, vault.project, now, 0, 10)
        assert {row.id: row.backup for row in rows} == {vault.source: key, vault.target: None}
        assert rows[0].retained_until == rows[0].removed_at + 2 * DAY
        found = listing.list_backups(conn, vault.project, listing.BackupFilter(), 0, 10)
    assert [row.id for row in found.rows] == [key]
