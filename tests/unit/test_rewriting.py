"""Rewriting: within its budget, beside other deletions, and never in the way of one that only has to end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pyroaring import BitMap

from strongroom.backups import rewriting
from strongroom.backups.context import Options
from strongroom.backups.grouping import Group
from strongroom.catalog import sweeping
from strongroom.catalog import tables as t
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.storage.base import StoreDenied, StoreFull
from strongroom.storage.faults import Effect, Fail
from support.harsh import TTL, HarshVault
from support.vault import edited, noise

OPTIONS = Options(chunk_average=4096, pack_target=32768)


def scattered(vault: HarshVault, count: int = 5, seed: int = 1) -> list[str]:
    """Backups that each replace a few chunks all over one entry: deleting one leaves holes in packs."""
    data, keys = noise(300_000, seed), []
    for number in range(count):
        keys.append(vault.backup({"a": data, "n": noise(500, number)}))
        data = edited(data, seed * 100 + number, edits=12)
    return keys


@pytest.fixture
def vault(tmp_path: Path) -> HarshVault:
    return HarshVault(tmp_path, OPTIONS)


def objects(vault: HarshVault, **where: object) -> list[sa.Row[tuple[object, ...]]]:
    with vault.catalog.read() as conn:
        query = sa.select(t.object_)
        for name, value in where.items():
            query = query.where(t.object_.c[name] == value)
        return list(conn.execute(query).all())


class FirstCopy:
    """A plan that acts once, at the first put of a rewritten object."""

    def __init__(self, act: Callable[[], object], phase: str = "before") -> None:
        self.act, self.phase, self.done = act, phase, False

    def __call__(self, effect: Effect) -> None:
        if not self.done and effect.kind == "put_new" and "/rewrite/" in effect.names[0] and effect.phase == self.phase:
            self.done = True
            self.act()


def exact(vault: HarshVault, keys: list[str], before: int) -> None:
    """The store's change over these deletions is what their receipts say."""
    receipts = [vault.receipt(key) for key in keys]
    change = sum(one["freed"] + one["reclaimed"]["net"] - one["put_bytes"] for one in receipts)
    assert before - vault.size() == change, receipts
    for one in receipts:
        assert one["freed"] == one["promised"]["freed"]
        assert one["waiting"] == one["promised"]["waiting"]
        assert one["reclaimed"]["written"] <= one["promised"]["owned"]


def test_no_delete_writes_more_than_the_backup_owned(vault: HarshVault) -> None:
    """One after the other: written <= owned for each, something is rewritten, nothing waits under the books."""
    keys = scattered(vault, 8)
    written = 0
    for key in keys[:7]:
        before = vault.size()
        vault.delete(key)
        vault.run()
        exact(vault, [key], before)
        written += vault.receipt(key)["reclaimed"]["written"]
        vault.check()
    assert written > 0


def test_an_object_under_the_floor_is_left_alone(tmp_path: Path) -> None:
    """With a floor of 60 % nothing that is a third dead is read or written."""
    vault = HarshVault(tmp_path, Options(chunk_average=4096, pack_target=32768, reclaim_floor=0.6))
    keys = scattered(vault)
    vault.delete(keys[0])
    vault.run()
    assert vault.receipt(keys[0])["reclaimed"]["read"] < 10_000, "a pack of manifest pages may be mostly dead"
    assert vault.receipt(keys[0])["waiting"] > 0
    vault.check()


def test_a_pack_that_dies_while_it_is_rewritten_takes_the_copy_with_it(vault: HarshVault) -> None:
    """While the copy is under way every other backup is deleted: the copy is removed too, and both receipts are exact."""
    keys = scattered(vault)
    other = vault.another_process()

    def delete_the_rest() -> None:
        for key in keys[1:]:
            vault.delete(key)
        while other.step() is not None:
            pass

    before = vault.size()
    vault.delete(keys[0])
    vault.plan = copying = FirstCopy(delete_the_rest)
    vault.run()
    assert copying.done
    assert vault.wanted == {}
    exact(vault, keys, before)
    vault.check()
    kinds = {stat.name.split("/")[-1] for stat in vault.store.list("") if not stat.name.startswith("owner/")}
    assert kinds == {"closed"}


@pytest.mark.parametrize("after", ["_candidates", "_choose"])
def test_a_lineage_that_is_closed_before_its_sources_are_read_ends_the_rewrite(
    vault: HarshVault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, after: str
) -> None:
    """Every other backup is deleted, and the keys with them, once the sources are found, or once they are taken: no defect, and
    nothing is left."""
    keys, other, step = scattered(vault), vault.another_process(), getattr(rewriting, after)
    closed = []

    def closing(*args: Any) -> Any:
        found = step(*args)
        if not closed:
            closed.append(True)
            _delete_all(vault, other, keys[1:])
        return found

    before = vault.size()
    vault.delete(keys[0])
    monkeypatch.setattr(rewriting, after, closing)
    vault.run()
    assert closed
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    exact(vault, keys, before)
    vault.check()
    kinds = {stat.name.split("/")[-1] for stat in vault.store.list("") if not stat.name.startswith("owner/")}
    assert kinds == {"closed"}


def _delete_all(vault: HarshVault, worker: StepwiseWorker, keys: list[str]) -> None:
    for key in keys:
        vault.delete(key)
    while worker.step() is not None:
        pass


def test_a_source_condemned_meanwhile_is_not_switched(vault: HarshVault) -> None:
    """Chunks die in the object while it is copied: they are dead in the copy too, and the dead bytes stay exact."""
    keys = scattered(vault)
    other = vault.another_process()

    def delete_neighbour() -> None:
        vault.delete(keys[1])
        while other.step() is not None:
            pass

    before = vault.size()
    vault.delete(keys[0])
    vault.plan = copying = FirstCopy(delete_neighbour, "after")
    vault.run()
    assert copying.done
    exact(vault, keys[:2], before)
    vault.check()


def test_an_object_is_in_one_rewrite_at_most(vault: HarshVault) -> None:
    """Two deletions of one lineage rewrite at once: each object is read by one of them."""
    keys = scattered(vault, 6)
    other = vault.another_process()
    sources: list[str] = []

    def rewrite_too() -> None:
        sources.extend(row.name for row in objects(vault) if row.rewriting is not None)
        while other.step() is not None:
            pass

    before = vault.size()
    for key in (keys[0], keys[1]):
        vault.delete(key)
    vault.plan = copying = FirstCopy(rewrite_too)
    vault.run()
    assert copying.done
    assert sources
    exact(vault, [keys[0], keys[1]], before)
    vault.check()


def test_a_job_that_is_replaced_in_a_rewrite_leaves_no_copy(vault: HarshVault) -> None:
    """Paused before its put, replaced, and going on afterwards: what it puts is removed again by itself."""
    keys = scattered(vault)
    other = vault.another_process()

    def replace() -> None:
        vault.clock.sleep(TTL + 1)
        while other.step() is not None:
            pass

    before = vault.size()
    vault.delete(keys[0])
    vault.plan = copying = FirstCopy(replace)
    vault.run()
    assert copying.done
    exact(vault, [keys[0]], before)
    vault.check()


def test_on_a_full_store_a_delete_works_and_rewrites_nothing(vault: HarshVault) -> None:
    """No room for a copy: everything else is done, the books are exact, the copy's row is gone."""
    keys = scattered(vault)
    before = vault.size()

    def full(effect: Effect) -> Fail | None:
        rewriting = effect.kind == "put_new" and "/rewrite/" in effect.names[0] and effect.phase == "before"
        return Fail(StoreFull("no space left on device")) if rewriting else None

    vault.plan = full
    vault.delete(keys[0])
    vault.run()
    assert vault.state(keys[0]) == "DELETED"
    receipt = vault.receipt(keys[0])
    assert receipt["reclaimed"] == {"read": 0, "written": 0, "dropped": 0, "net": 0}
    exact(vault, [keys[0]], before)
    vault.check()


def corrupt(vault: HarshVault, name: str, place: int) -> None:
    """Flips a bit of a stored object, as a bad disk does."""
    content = bytearray(vault.inner.get(name))
    content[place] ^= 1
    vault.inner.delete(name)
    vault.inner.put_new(name, bytes(content))


def test_damage_in_a_source_stops_no_delete(vault: HarshVault) -> None:
    """A bit is flipped in every pack: nothing is rewritten, the delete ends, and the damaged chunks are suspect."""
    keys = scattered(vault)
    for row in objects(vault, kind="pack", state="STORED"):
        if row.bytes > 10_000:
            corrupt(vault, row.name, 5000)
    before = vault.size()
    vault.delete(keys[0])
    vault.run()
    assert vault.state(keys[0]) == "DELETED"
    exact(vault, [keys[0]], before)
    vault.check_accounts()
    with vault.catalog.read() as conn:
        assert conn.execute(sa.select(t.pack.c.id).where(t.pack.c.suspect.is_not(None))).all()


def test_a_source_that_is_missing_stops_no_delete(vault: HarshVault) -> None:
    """An object that was lost cannot be rewritten: the delete ends all the same."""
    keys = scattered(vault)
    for row in objects(vault, kind="pack", state="STORED", seq=1):
        if row.bytes > 10_000:
            vault.inner.delete(row.name)
    vault.delete(keys[0])
    vault.run()
    assert vault.state(keys[0]) == "DELETED"
    assert vault.receipt(keys[0])["waiting"] > 0


def test_suspect_chunks_are_stored_anew_by_the_next_backup(vault: HarshVault) -> None:
    """Nothing has changed but that some chunks are suspect: the next backup names none of them and restores."""
    data = {"a": noise(200_000, 1)}
    vault.backup(data)
    with vault.catalog.write() as conn:
        pack = conn.execute(sa.select(t.pack).order_by(t.pack.c.bytes.desc())).first()
        assert pack is not None
        suspect = BitMap(range(0, pack.chunks, 2))
        conn.execute(sa.update(t.pack).where(t.pack.c.id == pack.id).values(suspect=suspect.serialize()))
    before = vault.size()
    second = vault.backup(data)
    assert vault.size() - before > 20_000, "they were stored anew"
    with vault.catalog.read() as conn:
        closed = conn.execute(sa.select(t.death.c.numbers).where(t.death.c.pack == pack.id)).scalar_one()
    assert BitMap.deserialize(closed) == suspect
    assert vault.read_back(second) == data
    vault.check()


def holders(vault: HarshVault) -> dict[str, set[int]]:
    """The packs that each rewritten object holds chunks of."""
    found: dict[str, set[int]] = {row.id: set() for row in objects(vault, kind="rewrite", state="STORED")}
    with vault.catalog.read() as conn:
        for row in conn.execute(sa.select(t.holding)):
            if row.object in found:
                found[row.object].add(row.pack)
    return found


def test_survivors_of_several_objects_share_full_new_ones(tmp_path: Path) -> None:
    """The oldest goes, and the budget is no limit: fewer objects come than went, full ones, each with chunks of several packs."""
    vault = HarshVault(tmp_path, replace(OPTIONS, reclaim_budget=20.0))
    keys = scattered(vault, 6)
    before = {row.id for row in objects(vault, kind="pack", state="STORED")}
    vault.delete(keys[0])
    vault.run()
    vault.check()
    gone = before - {row.id for row in objects(vault, kind="pack", state="STORED")}
    new = holders(vault)
    assert 0 < len(new) < len(gone)
    assert all(len(packs) > 1 for packs in new.values())
    sizes = sorted(row.bytes for row in objects(vault, kind="rewrite", state="STORED"))
    assert sizes[-1] <= 32768 + 3 * 4096 + 4096
    assert sum(size > 20_000 for size in sizes) >= len(sizes) - 2


def test_what_dies_together_goes_whole_though_its_packs_live_on(tmp_path: Path) -> None:
    """Chunks of many packs that end with one backup share objects: its delete frees them whole, and frees them at once."""
    vault = HarshVault(tmp_path, replace(OPTIONS, reclaim_budget=50.0, reclaim_floor=0.001))
    keys = scattered(vault, 6)
    vault.delete(keys[0])
    vault.run()
    moved = holders(vault)
    promise = vault.preview(keys[1]).total
    assert promise.freed > promise.waiting, "without regrouping nearly all of it would wait"
    vault.delete(keys[1])
    vault.run()
    left = holders(vault)
    with vault.catalog.read() as conn:
        packs = set(conn.execute(sa.select(t.pack.c.id)).scalars())
    assert any(key not in left and moved[key] & packs for key in moved), "an object went, a pack of it lives on"
    vault.check()


def test_a_large_rewrite_goes_in_rounds(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """No round writes more holdings than it may; all the same everything that the budget allows is done."""
    keys = scattered(vault, 8)
    monkeypatch.setattr(rewriting, "MOST_ROWS", 4)
    rounds: list[tuple[int, int]] = []
    choose = rewriting._choose

    def counting(ctx: Any, job: Any, lineage: str, sources: Any, groups: list[Group], *rest: Any) -> Any:
        rounds.append((len(sources), sum(len(one.numbers) for one in groups)))
        return choose(ctx, job, lineage, sources, groups, *rest)

    monkeypatch.setattr(rewriting, "_choose", counting)
    before = vault.size()
    for key in keys[:4]:
        vault.delete(key)
        vault.run()
    exact(vault, keys[:4], before)
    assert len(rounds) > 4
    assert all(rows <= 4 or sources == 1 for sources, rows in rounds), "only a source that alone has more"
    vault.check()


def test_a_damaged_source_is_passed_over_and_the_others_are_rewritten(vault: HarshVault) -> None:
    """One of several sources has a flipped bit: its round is given up, the next goes without it."""
    keys = scattered(vault, 5)
    first = [row for row in objects(vault, kind="pack", state="STORED", seq=1) if row.bytes > 10_000]
    corrupt(vault, first[0].name, 5000)
    before = vault.size()
    vault.delete(keys[0])
    vault.run()
    assert vault.state(keys[0]) == "DELETED"
    exact(vault, [keys[0]], before)
    vault.check_accounts()
    assert vault.receipt(keys[0])["reclaimed"]["written"] > 0
    assert first[0].name in {row.name for row in objects(vault)}


def test_a_thorough_delete_leaves_nothing_waiting_at_the_price_of_its_preview(vault: HarshVault) -> None:
    """What earlier deletes left waiting too: the preview says what is written and given back, and so it comes."""
    keys = scattered(vault, 8)
    for key in keys[2:4]:
        vault.delete(key)
        vault.run()
    seen = vault.preview(keys[5])
    assert vault.waiting() > 0
    assert seen.thorough.dead == vault.waiting() + seen.total.waiting
    before, earlier = vault.size(), vault.receipt(keys[2])
    vault.delete(keys[5], seen.version, thorough=True)
    vault.run()
    receipt = vault.receipt(keys[5])
    assert vault.waiting() == 0
    assert receipt["thorough"] == {"rewrite": seen.thorough.living}
    assert 0 < receipt["reclaimed"]["written"] <= seen.thorough.living * 1.02 + 512 * seen.thorough.objects
    assert receipt["reclaimed"]["net"] >= seen.thorough.dead * 0.95
    assert before - vault.size() == receipt["freed"] + receipt["reclaimed"]["net"] - receipt["put_bytes"]
    assert vault.receipt(keys[2]) == earlier
    vault.check()


def test_the_price_of_a_set_is_that_of_the_whole(vault: HarshVault) -> None:
    """Previewed together: what would be partly dead after all of them; carried out, that is what waits."""
    vault.options = replace(vault.options, reclaim_budget=0)
    vault.restart()
    keys = scattered(vault, 6)
    seen = vault.preview(keys[1], keys[2], keys[4])
    for key in (keys[1], keys[2], keys[4]):
        vault.delete(key)
        vault.run()
    partly = [row for row in objects(vault, state="STORED") if row.dead_bytes]
    assert seen.thorough.objects == len(partly)
    assert seen.thorough.dead == vault.waiting()
    assert seen.thorough.living == sum(row.bytes - row.dead_bytes for row in partly)


def test_a_delete_that_failed_becomes_thorough_when_it_is_asked_again(vault: HarshVault) -> None:
    """The store refuses, the job fails; asked again thoroughly, it goes on and leaves nothing waiting."""
    keys = scattered(vault, 5)

    def denied(effect: Effect) -> Fail | None:
        return Fail(StoreDenied("access denied")) if effect.kind == "delete_many" and effect.phase == "before" else None

    vault.plan = denied
    vault.delete(keys[1])
    vault.run()
    assert vault.state(keys[1]) == "DELETING"
    vault.plan = lambda _effect: None
    vault.delete(keys[1], thorough=True)
    vault.run()
    assert vault.state(keys[1]) == "DELETED"
    assert vault.waiting() == 0
    vault.check()


def test_a_thorough_delete_on_a_full_store_ends_without_rewriting(vault: HarshVault) -> None:
    """Rewriting is never needed to finish: what waits goes on waiting, the receipt says what was written."""
    keys = scattered(vault)

    def full(effect: Effect) -> Fail | None:
        rewriting_ = effect.kind == "put_new" and "/rewrite/" in effect.names[0] and effect.phase == "before"
        return Fail(StoreFull("no space left on device")) if rewriting_ else None

    vault.plan = full
    vault.delete(keys[0], thorough=True)
    vault.run()
    assert vault.state(keys[0]) == "DELETED"
    assert vault.receipt(keys[0])["reclaimed"]["written"] == 0
    assert vault.waiting() > 0
    vault.check()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_moved_gap_that_is_swept_in_parts_leaves_what_was_promised(
    vault: HarshVault, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """An object holds chunks of many packs: one part of the sweep leaves some waiting, the next frees the object whole."""
    monkeypatch.setattr(sweeping, "BATCH", batch)
    vault.options = replace(vault.options, reclaim_budget=50.0, reclaim_floor=0.0)
    vault.restart()
    keys = scattered(vault, 6)
    for key in keys[:5]:
        before = vault.size()
        vault.delete(key)
        vault.run()
        receipt = vault.receipt(key)
        assert (receipt["freed"], receipt["waiting"]) == (receipt["promised"]["freed"], receipt["promised"]["waiting"])
        assert before - vault.size() == receipt["freed"] + receipt["reclaimed"]["net"] - receipt["put_bytes"]
        vault.check()
