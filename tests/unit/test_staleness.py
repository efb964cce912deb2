"""A catalog that is older than its store frees nothing; one whose store was taken over removes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.backups import staleness
from strongroom.backups.context import Options
from strongroom.backups.incarnation import recognise, take_possession
from strongroom.backups.staleness import CatalogOutdated
from strongroom.catalog import tables as t
from strongroom.repository import names
from strongroom.repository.errors import WrongKey
from strongroom.repository.keys import RootKey, seal_owner
from strongroom.storage.base import StoreUnavailable
from strongroom.storage.faults import Effect, Fail
from support.harsh import HarshVault
from support.vault import ROOT, edited, generations, noise


@pytest.fixture
def vault(tmp_path: Path) -> HarshVault:
    return HarshVault(tmp_path / "vault")


def restored_from_a_dump(vault: HarshVault, folder: Path) -> tuple[HarshVault, list[str], list[str]]:
    """Two backups, a dump of the catalog, two more and a delete; then the dump is put back. Gives known and later backups."""
    source = generations(4)
    known = [vault.backup(next(source)) for _ in range(2)]
    dump = vault.save()
    later = [vault.backup(next(source)) for _ in range(2)]
    assert vault.save().objects.keys() > dump.objects.keys()
    old = HarshVault.revive(folder, dump)
    old.inner._objects.update(vault.inner._objects)  # type: ignore[attr-defined]
    return old, known, later


def test_a_restored_dump_frees_nothing(vault: HarshVault, tmp_path: Path) -> None:
    """The delete is accepted, its job fails with the reason, not one object goes, and the same call again makes a new job."""
    old, known, _ = restored_from_a_dump(vault, tmp_path / "old")
    there = dict(old.inner._objects)  # type: ignore[attr-defined]
    job = old.delete(known[0])
    old.run()
    assert old.job(job).state == "FAILED"
    assert "older than the store" in old.job(job).error
    assert "strongroom catalog rebuild" in old.job(job).error
    assert old.state(known[0]) == "DELETING"
    again = old.delete(known[0])
    assert again != job
    old.run()
    assert old.job(again).state == "FAILED"
    with old.catalog.read() as conn:
        stopped = conn.execute(sa.select(t.lineage.c.stopped)).scalar_one()
    assert "older than the store" in stopped
    assert old.inner._objects == there  # type: ignore[attr-defined]


def test_a_dump_of_before_a_rewrite_took_over_does_not_take_its_copy(tmp_path: Path) -> None:
    """The dump is from between the copy's put and its switch, the sources are gone: the deletion stops, nothing is removed."""
    vault = HarshVault(tmp_path / "vault", Options(chunk_average=4096, pack_target=32768, reclaim_budget=50.0))
    data, keys = noise(200_000, 1), []
    for number in range(4):
        keys.append(vault.backup({"a": data}))
        data = edited(data, number, edits=8)
    dumps = []

    def dump(effect: Effect) -> None:
        if effect.kind == "put_new" and effect.phase == "after" and "/rewrite/" in effect.names[0] and not dumps:
            dumps.append(vault.save())

    vault.plan = dump
    vault.delete(keys[0])
    vault.run()
    old = HarshVault.revive(tmp_path / "old", dumps[0])
    old.inner._objects.clear()  # type: ignore[attr-defined]
    old.inner._objects.update(vault.inner._objects)  # type: ignore[attr-defined]
    there = dict(old.inner._objects)  # type: ignore[attr-defined]
    old.run()
    assert old.inner._objects == there, "nothing is removed"  # type: ignore[attr-defined]
    with old.catalog.read() as conn:
        assert "older than the store" in conn.execute(sa.select(t.lineage.c.stopped)).scalar_one()
    assert old.state(keys[0]) == "DELETING"
    vault.check()


def test_a_restored_dump_builds_nothing_and_leaves_the_rest(vault: HarshVault, tmp_path: Path) -> None:
    """A backup fails with the reason, and what it left is not even cleaned up: its jobs end, none goes round for ever."""
    old, _, later = restored_from_a_dump(vault, tmp_path / "old")
    there = dict(old.inner._objects)  # type: ignore[attr-defined]
    key, job = old.create({"a": noise(5000, 3)})
    old.run()
    assert old.state(key) == "FAILED"
    assert "older than the store" in old.job(job).error
    assert old.inner._objects == there  # type: ignore[attr-defined]
    for kept in later:
        assert vault.read_back(kept) == vault.wanted[kept]


def test_a_lineage_that_moves_while_it_is_compared_is_not_stopped(vault: HarshVault) -> None:
    """A backup is begun and completed, and another deleted, while the store is listed: no alarm."""
    source = generations(5)
    first, second, _ = (vault.backup(next(source)) for _ in range(3))
    vault.restart()
    moved = False
    other = vault.another_process()

    def move(effect: Effect) -> None:
        nonlocal moved
        if effect.kind == "list" and effect.phase == "before" and not moved:
            moved = True
            vault.create(next(source))
            vault.delete(second)
            while other.step() is not None:
                pass

    vault.plan = move
    vault.delete(first)
    vault.run()
    assert moved
    assert vault.state(first) == vault.state(second) == "DELETED"
    vault.check()


def test_an_empty_listing_raises_no_alarm_and_frees_nothing(vault: HarshVault) -> None:
    """What a listing lacks is asked for by name."""
    from strongroom.storage.faults import Empty

    first, *_ = (vault.backup(data) for data in generations(2))
    vault.restart()
    vault.plan = lambda effect: Empty() if effect.kind == "list" and effect.phase == "before" else None
    vault.delete(first)
    vault.run()
    assert vault.state(first) == "DELETED"
    vault.plan = lambda _effect: None
    vault.check()


@pytest.mark.parametrize("closed", [False, True], ids=["a grave", "a closing mark"])
def test_a_completed_part_without_its_manifest_stops_freeing_where_a_mark_says_why(vault: HarshVault, closed: bool) -> None:
    """The store knows that it was deleted: the lineage is stopped before anything is removed."""
    first, second = (vault.backup(data) for data in generations(2))
    _lose_manifest(vault, seq=2)
    with vault.catalog.read() as conn:
        lineage = conn.execute(sa.select(t.lineage.c.id)).scalar_one()
    vault.inner.put_new(names.closed(lineage) if closed else names.grave(lineage, 2), b"a mark")
    vault.restart()
    there = dict(vault.inner._objects)  # type: ignore[attr-defined]
    job = vault.delete(first)
    vault.run()
    assert ("open here and was ended there" if closed else "completed here and deleted there") in vault.job(job).error
    assert vault.inner._objects == there  # type: ignore[attr-defined]
    assert vault.state(second) == "COMPLETED"


def test_a_lineage_that_the_store_says_is_closed_takes_no_backup(vault: HarshVault) -> None:
    """A dump of before its last backup was deleted: whatever is built there no rebuild would find, so nothing is."""
    vault.backup(next(source := generations(2)))
    with vault.catalog.read() as conn:
        lineage = conn.execute(sa.select(t.lineage.c.id)).scalar_one()
    vault.inner.put_new(names.closed(lineage), b"a mark")
    vault.restart()
    key, job = vault.create(next(source))
    vault.run()
    assert vault.state(key) == "FAILED"
    assert "open here and was ended there" in vault.job(job).error


def test_a_manifest_that_the_store_has_lost_stops_nobody(vault: HarshVault, caplog: pytest.LogCaptureFixture) -> None:
    """One backup is lost with it, which is told; others are deleted, taken and restored as ever, and it can be deleted too."""
    source = generations(4)
    first, second, third = (vault.backup(next(source)) for _ in range(3))
    lost = _lose_manifest(vault, seq=2)
    vault.restart()
    vault.delete(first)
    vault.run()
    assert vault.state(first) == "DELETED"
    assert f"{lost} is not in the store" in caplog.text
    fourth = vault.backup(next(source))
    vault.delete(second)
    vault.run()
    assert [vault.state(key) for key in (second, third, fourth)] == ["DELETED", "COMPLETED", "COMPLETED"]
    vault.check()


def _lose_manifest(vault: HarshVault, seq: int) -> str:
    with vault.catalog.read() as conn:
        here = sa.and_(t.object_.c.kind == "manifest", t.object_.c.seq == seq)
        name = str(conn.execute(sa.select(t.object_.c.name).where(here)).scalar_one())
    vault.inner.delete(name)
    return name


def test_workers_of_a_catalog_whose_store_was_taken_over_stop(vault: HarshVault) -> None:
    """owner/2 appears: no batch is removed any more, no backup is begun, and a start is refused."""
    first, *_ = (vault.backup(data) for data in generations(2))
    vault.inner.put_new(names.owner(2), seal_owner(RootKey(ROOT), 2))
    job = vault.delete(first)
    there = set(vault.inner._objects)  # type: ignore[attr-defined]
    vault.run()
    assert "another catalog" in vault.job(job).error
    assert there <= set(vault.inner._objects)  # type: ignore[attr-defined]
    key, build = vault.create(next(generations(1)))
    vault.run()
    assert vault.state(key) == "FAILED"
    assert "another catalog" in vault.job(build).error
    vault.restart()
    with pytest.raises(CatalogOutdated, match="another catalog"):
        take_possession(vault.ctx)


def test_a_new_catalog_does_not_take_a_store_that_is_anothers(vault: HarshVault, tmp_path: Path) -> None:
    """A second, empty catalog on the same store is refused with words."""
    with pytest.raises(CatalogOutdated, match="rebuild"):
        HarshVault(tmp_path / "second", inner=vault.inner)


def test_a_wrong_root_key_is_refused_at_the_start(vault: HarshVault) -> None:
    """With another root key nothing begins; the text says which is which. Before the first backup and after it."""
    from dataclasses import replace

    wrong = RootKey(bytes(32))
    for _ in range(2):
        with pytest.raises(WrongKey, match="root key"):
            take_possession(replace(vault.ctx, root_key=wrong))
        vault.backup({"a": noise(3000, 1)})
    take_possession(vault.ctx)


def test_a_store_that_is_away_does_not_stop_a_start(vault: HarshVault) -> None:
    """The start asks the store and goes on without an answer: each batch that removes asks again."""
    vault.backup({"a": noise(3000, 1)})
    vault.plan = lambda effect: Fail(StoreUnavailable("away")) if effect.phase == "before" else None
    take_possession(vault.ctx)


def test_a_database_that_did_not_run_here_last_fails_its_builds(vault: HarshVault, tmp_path: Path) -> None:
    """The incarnation file and the row differ: the build that was under way is failed with the reason, and cannot go on."""
    file = tmp_path / "incarnation"
    assert recognise(vault.ctx, file)
    assert recognise(vault.ctx, file), "the next start knows it again"
    vault.backup({"a": noise(20_000, 1)})
    building, _ = vault.create({"a": noise(20_000, 2)})
    file.write_text("f" * 32 + "\n")
    vault.restart()
    assert not recognise(vault.ctx, file)
    assert vault.state(building) == "FAILED"
    with vault.catalog.read() as conn:
        reason = conn.execute(sa.select(t.backup.c.fail_reason).where(t.backup.c.id == building)).scalar_one()
    assert "restored or promoted" in reason
    vault.run()
    assert vault.state(building) == "FAILED"
    assert recognise(vault.ctx, file)
    vault.check()


def test_a_lineage_is_compared_once_a_process(vault: HarshVault) -> None:
    """Listings are counted: the first delete of a process lists, the second does not."""
    keys = [vault.backup(data) for data in generations(3)]
    vault.restart()
    listed: list[Effect] = []
    vault.plan = lambda effect: listed.append(effect) if effect.kind == "list" else None
    for number, key in enumerate(keys[:2]):
        vault.delete(key)
        vault.run()
        assert len(listed) == 4, number
    staleness.require_current(vault.ctx, next(iter(vault.ctx.checked)))
    assert len(listed) == 4
