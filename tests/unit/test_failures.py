"""What fails says why and what to do, owns nothing, harms no other backup, and what will pass is tried again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.backups import deletion
from strongroom.backups.context import Options
from strongroom.backups.rebuilding import rebuild
from strongroom.catalog import tables as t
from strongroom.identity import tables as identity
from strongroom.repository import names
from strongroom.storage.base import StoreDenied, StoreError, StoreFull, StoreUnavailable
from strongroom.storage.faults import Effect, Fail
from support.harsh import HarshVault
from support.vault import generations, noise

OPTIONS = Options(chunk_average=4096, pack_target=32768)


@pytest.fixture
def vault(tmp_path: Path) -> HarshVault:
    return HarshVault(tmp_path, OPTIONS)


def failing(
    error: StoreError, kinds: Sequence[str], times: int | None = None, holding: str = ""
) -> Callable[[Effect], Fail | None]:
    """A plan by which calls of these kinds, on names that hold a word, fail: always, or the first so many times."""
    left = [10**9 if times is None else times]

    def plan(effect: Effect) -> Fail | None:
        if effect.phase == "before" and effect.kind in kinds and holding in effect.names[0] and left[0]:
            left[0] -= 1
            return Fail(error)
        return None

    return plan


def working(_effect: Effect) -> None:
    """A store without faults."""


def largest_pack(vault: HarshVault) -> str:
    """The name of the largest object that holds data."""
    with vault.catalog.read() as conn:
        return str(
            conn.execute(
                sa.select(t.object_.c.name).where(t.object_.c.kind == "pack").order_by(t.object_.c.bytes.desc()).limit(1)
            ).scalar_one()
        )


def manifest_of(vault: HarshVault, key: str) -> str:
    with vault.catalog.read() as conn:
        root = sa.select(t.part.c.root).where(t.part.c.backup == key).scalar_subquery()
        return str(conn.execute(sa.select(t.object_.c.name).where(t.object_.c.id == root)).scalar_one())


def corrupt(vault: HarshVault, name: str, place: int) -> None:
    content = bytearray(vault.inner.get(name))
    content[place] ^= 1
    vault.inner.delete(name)
    vault.inner.put_new(name, bytes(content))


def owns_nothing(vault: HarshVault, key: str, before: dict[str, int]) -> None:
    """The failed backup has left no more than its grave, and the chain is what it was."""
    left = {stat.name for stat in vault.inner.list("")} - before.keys()
    assert {names.parse(name).kind for name in left} <= {"grave", "key", "closed"}, left  # type: ignore[union-attr]
    with vault.catalog.read() as conn:
        assert conn.execute(sa.select(t.part.c.state).where(t.part.c.backup == key)).scalar_one() == "RETIRED"
    assert vault.preview(key).total.owned == 0


def sizes(vault: HarshVault) -> dict[str, int]:
    return {stat.name: stat.size for stat in vault.inner.list("")}


# ---- restoring what is damaged ---------------------------------------------------------------------------------------


def test_a_restore_from_a_corrupt_pack_fails_and_says_what_to_do(vault: HarshVault) -> None:
    """A flipped bit: the job names the object and the way out, the target keeps what it had, the other backup restores."""
    first = vault.backup({"a": noise(40_000, 1)})
    second = vault.backup({"b": noise(5_000, 2)})
    vault.engine.databases["plain://target"] = {"mine": b"as it was"}
    broken = largest_pack(vault)
    corrupt(vault, broken, 2000)
    job = vault.restore(first)
    vault.run()
    view = vault.job(job)
    assert view.state == "FAILED"
    assert broken in view.error
    assert "take a new one" in view.error
    assert vault.engine.databases["plain://target"] == {"mine": b"as it was"}
    assert vault.read_back(second) == vault.wanted[second]


def test_the_backup_after_a_failed_restore_heals_what_was_damaged(vault: HarshVault) -> None:
    """What the restore found damaged is stored anew by the next backup of the same data, which restores."""
    data = {"a": noise(100_000, 1)}
    first = vault.backup(data)
    corrupt(vault, largest_pack(vault), 2000)
    vault.restore(first)
    vault.run()
    before = vault.size()
    second = vault.backup(data)
    assert 0 < vault.size() - before < 60_000, "only what was damaged is stored again"
    assert vault.restored(second) == data
    vault.check_accounts()


def test_a_restore_of_a_backup_whose_manifest_is_corrupt_fails_with_its_name(vault: HarshVault) -> None:
    """The manifest does not open: FAILED with the object's name; nothing was written to the target."""
    first, second = (vault.backup(data) for data in generations(2))
    vault.engine.databases["plain://target"] = {"mine": b"as it was"}
    name = manifest_of(vault, first)
    corrupt(vault, name, 300)
    job = vault.restore(first)
    vault.run()
    assert vault.job(job).state == "FAILED"
    assert name in vault.job(job).error
    assert vault.engine.databases["plain://target"] == {"mine": b"as it was"}
    assert vault.restored(second) == vault.wanted[second]


def test_a_restore_whose_object_is_missing_fails_and_says_what_to_do(vault: HarshVault) -> None:
    """An object is gone that nobody deleted: only after it was looked up twice, and with its name."""
    first = vault.backup({"a": noise(40_000, 1)})
    missing = largest_pack(vault)
    vault.inner.delete(missing)
    job = vault.restore(first)
    vault.run()
    assert vault.job(job).state == "FAILED"
    assert missing in vault.job(job).error
    assert "take a new one" in vault.job(job).error


def test_the_next_backup_heals_what_is_missing(vault: HarshVault) -> None:
    """After the restore has found an object gone, a backup of the same data stores its chunks anew."""
    data = {"a": noise(100_000, 1)}
    first = vault.backup(data)
    vault.inner.delete(largest_pack(vault))
    vault.restore(first)
    vault.run()
    second = vault.backup(data)
    assert vault.restored(second) == data


# ---- backups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("put_new",), ("get",), ("put_new", "get", "stat", "list", "delete_many")])
def test_a_backup_outlives_a_store_that_is_away_for_a_moment(vault: HarshVault, kinds: Sequence[str]) -> None:
    """A call fails once: the second attempt completes, and nothing is left of the first."""
    data = list(generations(2))
    vault.backup(data[0])
    vault.restart()
    vault.plan = failing(StoreUnavailable("refused"), kinds, times=1)
    vault.backup(data[1])
    vault.check()


@pytest.mark.parametrize("error", [StoreUnavailable("the store refuses connections"), StoreFull("the store has no room left")])
def test_a_backup_whose_store_stays_away_or_full_fails_and_owns_nothing(vault: HarshVault, error: StoreError) -> None:
    """Three attempts, then FAILED with the store's reason; the next backup works; the failed one can be deleted."""
    data = list(generations(3))
    vault.backup(data[0])
    before = sizes(vault)
    vault.plan = failing(error, ["put_new"], holding="/pack/")
    key, job = vault.create(data[1])
    for _ in range(12):
        vault.worker.step()
        vault.clock.sleep(10)
    assert vault.state(key) == "FAILED"
    assert vault.job(job).attempts == 3
    assert str(error) in vault.job(job).error
    vault.plan = working
    vault.run()
    owns_nothing(vault, key, before)
    vault.backup(data[2])
    vault.check()
    vault.delete(key)
    vault.run()
    vault.check()


def test_a_backup_that_the_store_refuses_fails_at_once(vault: HarshVault) -> None:
    """Access denied will not pass: one attempt, the reason in the backup, nothing owned."""
    before = sizes(vault)
    vault.plan = failing(StoreDenied("the store refuses the key: check its rights"), ["put_new"])
    key, job = vault.create({"a": noise(10_000, 1)})
    vault.worker.step()
    assert vault.state(key) == "FAILED"
    assert vault.job(job).attempts == 1
    assert "check its rights" in vault.job(job).error
    with vault.catalog.read() as conn:
        assert "check its rights" in conn.execute(sa.select(t.backup.c.fail_reason).where(t.backup.c.id == key)).scalar_one()
    vault.plan = working
    vault.run()
    owns_nothing(vault, key, before)


def test_a_full_scratch_disk_fails_the_backup_with_the_reason(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index that finds chunks cannot be written: FAILED, nothing owned, no file left, and the next backup works."""
    data = list(generations(3))
    vault.backup(data[0])
    before = sizes(vault)

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    vault.engine.during = full
    key, job = vault.create(data[1])
    vault.run()
    assert vault.state(key) == "FAILED"
    assert "No space left" in vault.job(job).error
    owns_nothing(vault, key, before)
    assert list((vault.folder / "scratch-stepwise").iterdir()) == []
    vault.engine.during = None
    monkeypatch.undo()
    vault.backup(data[2])
    vault.check()


# ---- deletes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["put_new", "delete_many", "stat", "list", "get"])
def test_a_delete_is_tried_until_the_store_is_back(vault: HarshVault, kind: str) -> None:
    """Thirty calls in a row fail, then the store is back: the same job ends, and its receipt is exact."""
    keys = [vault.backup(data) for data in generations(3)]
    before, promise = vault.size(), vault.preview(keys[1]).total
    vault.restart()
    vault.plan = failing(StoreUnavailable("refused"), [kind], times=30)
    job = vault.delete(keys[1])
    vault.run()
    assert vault.job(job).state == "DONE"
    receipt = vault.receipt(keys[1])
    assert (receipt["freed"], receipt["waiting"]) == (promise.freed, promise.waiting)
    assert before - vault.size() == receipt["freed"] + receipt["reclaimed"]["net"] - receipt["put_bytes"]
    vault.plan = working
    vault.check()


@pytest.mark.parametrize("holding", ["/grave/", "/manifest/", "/pack/"])
def test_a_delete_that_is_denied_fails_with_the_reason_and_goes_on_when_asked_again(vault: HarshVault, holding: str) -> None:
    """FAILED, still DELETING, an audit event; the same DELETE makes a new job that ends, and the receipt is exact."""
    keys = [vault.backup(data) for data in generations(3)]
    before, promise = vault.size(), vault.preview(keys[1]).total
    refusal = StoreDenied("the store refuses: give the key the right to delete")
    vault.plan = failing(refusal, ["put_new", "delete_many"], holding=holding)
    job = vault.delete(keys[1])
    vault.run()
    assert vault.job(job).state == "FAILED"
    assert vault.job(job).error == "the store refuses: give the key the right to delete"
    assert vault.state(keys[1]) == "DELETING"
    with vault.catalog.read() as conn:
        event = conn.execute(sa.select(identity.audit).where(identity.audit.c.event == "NoSQLDeleteBackupFailed")).one()
        assert conn.execute(sa.select(t.deletion.c.state, t.deletion.c.fail_reason)).one() == ("FAILED", vault.job(job).error)
    assert event.resource_id == keys[1]
    assert job in str(event.detail)
    vault.plan = working
    for key in (keys[0], keys[2]):
        assert vault.read_back(key) == vault.wanted[key]
    noted = list[str]()
    jobs = [
        deletion.delete(vault.ctx, vault.project, keys[1], lambda _conn, backup, _name: noted.append(backup)) for _ in range(2)
    ]
    assert jobs[0] == jobs[1] != job, "while it runs it is the same job"
    assert noted == [keys[1]], "who made it go on is in the audit trail"
    vault.run()
    assert vault.state(keys[1]) == "DELETED"
    receipt = vault.receipt(keys[1])
    assert (receipt["freed"], receipt["waiting"], receipt["removed_objects"]) == (promise.freed, promise.waiting, promise.objects)
    assert before - vault.size() == receipt["freed"] + receipt["reclaimed"]["net"] - receipt["put_bytes"]
    vault.check()


@pytest.mark.parametrize("alone", [False, True])
def test_a_delete_works_on_a_store_without_room_for_its_grave(vault: HarshVault, alone: bool) -> None:
    """Not a byte can be put until something is removed: packs go first, then there is room for the mark, then the manifest."""
    keys = [vault.backup(data) for data in generations(1 if alone else 3)]
    before = vault.size()
    limit = before
    order: list[str] = []

    def full(effect: Effect) -> Fail | None:
        if effect.phase == "before" and effect.kind == "put_new" and vault.size() + 100 > limit:
            return Fail(StoreFull("no room left"))
        if effect.phase == "after" and effect.kind in ("put_new", "delete_many"):
            order.extend(f"{effect.kind} {names.parse(name).kind}" for name in effect.names)  # type: ignore[union-attr]
        return None

    vault.plan = full
    vault.delete(keys[0 if alone else 1])
    vault.run()
    victim = keys[0 if alone else 1]
    assert vault.state(victim) == "DELETED"
    mark = "put_new closed" if alone else "put_new grave"
    assert order.index("delete_many pack") < order.index(mark) < order.index("delete_many manifest")
    receipt = vault.receipt(victim)
    assert before - vault.size() == receipt["freed"] + receipt["reclaimed"]["net"] - receipt["put_bytes"]
    vault.plan = working
    vault.check()


def test_a_catalog_lost_before_the_grave_had_room_shows_the_backup_as_damaged(vault: HarshVault, tmp_path: Path) -> None:
    """The price of that order: a rebuild brings the half-deleted backup back, held and damaged; the others are whole."""
    keys = [vault.backup(data) for data in generations(3)]
    vault.plan = failing(StoreFull("no room left"), ["put_new"])
    vault.delete(keys[1])
    for _ in range(3):
        vault.worker.step()
        vault.clock.sleep(1)
    assert vault.state(keys[1]) == "DELETING"
    copy = HarshVault.revive(tmp_path / "copy", vault.save())
    with copy.catalog.write() as conn:
        for table in reversed(t.metadata.sorted_tables):
            if table.name not in ("account", "project"):
                conn.execute(table.delete())
    result = rebuild(copy.ctx, lambda _line: None)
    assert result.damaged == 1
    assert copy.state(keys[1]) == "FAILED"
    for key in (keys[0], keys[2]):
        assert copy.state(key) == "COMPLETED"
        assert copy.read_back(key) == vault.wanted[key]


def test_objects_that_stay_after_their_removal_are_not_counted(vault: HarshVault) -> None:
    """The store says yes and keeps them: nothing is booked as freed, the job goes on until they are gone."""
    keys = [vault.backup(data) for data in generations(2)]
    lying = True
    kept: dict[str, bytes] = {}

    def lie(effect: Effect) -> None:
        if lying and effect.kind == "delete_many":
            if effect.phase == "before":
                kept.update({name: vault.inner.get(name) for name in effect.names if vault.inner.stat(name) is not None})
            else:
                for name, content in kept.items():
                    vault.inner.put_new(name, content)
                kept.clear()

    vault.plan = lie
    job = vault.delete(keys[0])
    for _ in range(5):
        vault.worker.step()
        vault.clock.sleep(5)
    assert vault.job(job).state == "QUEUED"
    assert "still there after their removal" in vault.job(job).error
    assert vault.receipt(keys[0])["freed"] == 0
    lying = False
    vault.run()
    assert vault.state(keys[0]) == "DELETED"
    vault.check()
