"""The catalog made again from the store alone: the same backups, the same numbers, nothing that was deleted."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from pyroaring import BitMap

from strongroom import server
from strongroom.backups import creation, deletion, errors, holding, instances, restoration
from strongroom.backups.context import Options
from strongroom.backups.holds import RECOVERED
from strongroom.backups.incarnation import take_possession
from strongroom.backups.staleness import CatalogOutdated
from strongroom.catalog import tables as t
from strongroom.catalog.space import held_by
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.repository import names
from strongroom.repository.errors import WrongKey
from strongroom.repository.keys import RootKey
from strongroom.settings import Settings
from strongroom.storage.base import StoreUnavailable
from strongroom.storage.faults import Delay, Effect, Fail
from support.harsh import Died, Fate, HarshVault
from support.rebuilt import RebuiltVault, again
from support.vault import DictEngine, edited, generations, noise

OPTIONS = Options(chunk_average=4096, pack_target=16384)


def completed(vault: HarshVault) -> set[str]:
    with vault.catalog.read() as conn:
        return {row.id for row in conn.execute(sa.select(t.backup.c.id).where(t.backup.c.state == "COMPLETED"))}


def promises(vault: HarshVault) -> dict[str, deletion.Promise]:
    """What deleting each backup alone would do, whether it is held or not."""
    found = {}
    for key in sorted(vault.wanted):
        preview = vault.preview(key)
        assert not preview.refusals, preview.refusals
        found[key] = preview.promises[key]
    return found


@pytest.fixture
def vault(tmp_path: Path) -> HarshVault:
    return HarshVault(tmp_path / "old", OPTIONS)


class History:
    """Random work on a vault: backups of changing data, deletes, builds that fail or are stopped, workers that are replaced."""

    def __init__(self, vault: HarshVault, seed: int) -> None:
        self.vault, self.random = vault, random.Random(seed)
        self.data = {"a": noise(40_000, seed), "b": noise(9_000, seed + 1)}

    def step(self) -> None:
        act = self.random.choices([self.backup, self.delete, self.fail, self.stop, self.retry], [8, 5, 1, 1, 1])[0]
        act()
        self.vault.engine.broken = self.vault.engine.during = None
        self.vault.plan = lambda _effect: None
        self.vault.run()

    def change(self) -> dict[str, bytes]:
        rnd = self.random
        self.data["a"] = edited(self.data["a"], rnd.getrandbits(30), rnd.randrange(1, 8))
        if rnd.random() < 0.3:
            self.data[rnd.choice("bcd")] = noise(rnd.randrange(1, 15_000), rnd.getrandbits(30))
        if rnd.random() < 0.1 and len(self.data) > 2:
            del self.data[rnd.choice([name for name in self.data if name != "a"])]
        return dict(self.data)

    def backup(self) -> None:
        self.vault.backup(self.change())

    def delete(self) -> None:
        if self.vault.wanted:
            self.vault.delete(self.random.choice(sorted(self.vault.wanted)))

    def fail(self) -> None:
        self.vault.engine.broken = "the engine went away"
        self.vault.create(self.change())
        self.vault.run()

    def stop(self) -> None:
        def stop() -> None:
            self.vault.engine.during = None
            creation.stop(self.vault.ctx, self.vault.project, key, lambda conn: None)

        self.vault.engine.during = stop
        key, _ = self.vault.create(self.change())
        self.vault.run()

    def retry(self) -> None:
        """The build's manifest is put, and the reply lost: a second attempt."""
        lost = False

        def lose(effect: Effect) -> Fail | None:
            nonlocal lost
            if not lost and effect.kind == "put_new" and "/manifest/" in effect.names[0] and effect.phase == "after":
                lost = True
                return Fail()
            return None

        self.vault.plan = lose
        self.vault.backup(self.change())


@pytest.mark.parametrize("seed", range(8))
def test_a_rebuilt_catalog_is_the_old_one(tmp_path: Path, seed: int) -> None:
    """After a random history: the same backups, held, byte for byte; equal previews; exact work from there on."""
    old = HarshVault(tmp_path / "old", OPTIONS)
    history = History(old, seed * 1000)
    for _ in range(14):
        history.step()
    old.check()
    new = again(old, tmp_path / "new")
    vault = new.vault
    assert completed(vault) == set(old.wanted)
    assert new.result.damaged == 0
    with vault.catalog.read() as conn:
        assert {row.held for row in conn.execute(sa.select(t.backup.c.held))} <= {RECOVERED}
        names_now = {row.id: row.name for row in conn.execute(sa.select(t.backup.c.id, t.backup.c.name))}
    assert set(names_now.values()) <= {"a-backup"}
    vault.check()
    vault.release()
    assert promises(vault) == promises(old)
    later = History(vault, seed * 1000 + 7)
    later.data = history.data
    if vault.wanted:  # else no instance came back
        for _ in range(8):
            later.step()
    vault.check()
    for key in list(vault.wanted):
        before = vault.size()
        vault.delete(key)
        vault.run()
        receipt = vault.receipt(key)
        assert before - vault.size() == receipt["freed"] + receipt["reclaimed"]["net"] - receipt["put_bytes"]
        vault.check()


def test_everything_comes_back_held(vault: HarshVault, tmp_path: Path) -> None:
    """A delete is refused with the reason until the backup is released."""
    first, _ = (vault.backup(data) for data in generations(2))
    new = again(vault, tmp_path / "new").vault
    with pytest.raises(errors.BackupHeld, match="recovered"):
        new.delete(first)
    new.wanted = dict(vault.wanted)
    new.release()
    new.delete(first)
    new.run()
    new.check()


def test_a_delete_half_way_done_is_not_undone(tmp_path: Path) -> None:
    """Death at every effect of a delete, then the catalog is lost: before the grave the backup is whole, after it it is gone."""
    prepared = HarshVault(tmp_path / "prepared", OPTIONS)
    keys = [prepared.backup(data) for data in generations(3)]
    saved = prepared.save()
    whole = HarshVault.revive(tmp_path / "whole", saved)
    with whole.dying(None) as fate:
        whole.delete(keys[1])
        whole.run()
    seen = set()
    for at in range(1, fate.count + 1, 5):
        old = HarshVault.revive(tmp_path / "old", saved)
        with old.dying(at):
            old.delete(keys[1])
            old.run()
        old.wanted = dict(saved.wanted)
        buried = any("/grave/" in stat.name for stat in old.inner.list(""))
        new = again(old, tmp_path / f"new-{at}")
        if buried:
            new.vault.wanted.pop(keys[1])
        assert completed(new.vault) == set(new.vault.wanted)
        assert new.result.damaged == 0
        new.vault.check()
        seen.add(buried)
        again(new.vault, tmp_path / f"twice-{at}").vault.check()
        new.vault.catalog.close()
        old.catalog.close()
    assert seen == {True, False}


def corrupt(vault: HarshVault, name: str, place: int = -1) -> None:
    """Flips a bit of a stored object; by default in its last byte, which is of the seal of a manifest and of a pack's footer."""
    content = bytearray(vault.inner.get(name))
    content[place] ^= 1
    vault.inner.delete(name)
    vault.inner.put_new(name, bytes(content))


def stored(vault: HarshVault, kind: str, seq: int | None = None) -> list[str]:
    """Names of objects of a kind in the store."""
    found = []
    for stat in vault.inner.list(""):
        parsed = names.parse(stat.name)
        if parsed is not None and parsed.kind == kind and seq in (None, parsed.seq):
            found.append(stat.name)
    return found


def late_manifest(vault: HarshVault, data: dict[str, bytes]) -> tuple[str, int]:
    """A backup whose first attempt's manifest is still under way when the second has committed; gives the put's number."""
    held: list[str] = []

    def hold(effect: Effect) -> Delay | None:
        if not held and effect.phase == "before" and effect.kind == "put_new" and "/manifest/" in effect.names[0]:
            held.extend(effect.names)
            return Delay()
        return None

    vault.plan = hold
    key = vault.backup(data)
    vault.plan = lambda _effect: None
    return key, vault.faulty.sent.index(held[0])


def test_of_several_manifests_of_a_part_the_highest_attempt_counts(vault: HarshVault, tmp_path: Path) -> None:
    """The first attempt's manifest lands after the second has committed: reported, and not the backup."""
    data = list(generations(2))
    vault.backup(data[0])
    key, late = late_manifest(vault, data[1])
    assert vault.faulty.deliver_late(late)
    new = again(vault, tmp_path / "new")
    assert completed(new.vault) == set(vault.wanted)
    new.vault.check()
    with new.vault.catalog.read() as conn:
        assert conn.execute(sa.select(t.part.c.attempt).where(t.part.c.backup == key)).scalar_one() == 2
    assert vault.faulty.sent[late] in new.result.unknown


@pytest.mark.parametrize("alone", [False, True])
def test_a_late_manifest_does_not_bring_a_deleted_backup_back(vault: HarshVault, tmp_path: Path, alone: bool) -> None:
    """It lands after the delete has ended: its grave, or its lineage's closing mark, says that it is gone. Twice."""
    data = list(generations(2))
    if not alone:
        vault.backup(data[0])
    key, late = late_manifest(vault, data[1])
    vault.delete(key)
    vault.run()
    assert vault.faulty.deliver_late(late)
    for turn in ("first", "second"):
        new = again(vault, tmp_path / turn)
        assert completed(new.vault) == set(vault.wanted)
        assert (new.result.closed, new.result.damaged) == (int(alone), 0)
        new.vault.check()
        vault = new.vault


def test_a_backup_whose_manifest_cannot_be_read_keeps_all_that_it_may_need(vault: HarshVault, tmp_path: Path) -> None:
    """The middle one of five: shown as damaged, the others restore, and deleting its parent frees nothing but a manifest."""
    data = list(generations(5))
    keys = [vault.backup(one) for one in data]
    corrupt(vault, stored(vault, "manifest", 3)[0])
    new = again(vault, tmp_path / "new")
    assert new.result.damaged == 1
    assert any("damaged" in line for line in new.report)
    copy = new.vault
    with copy.catalog.read() as conn:
        row = conn.execute(sa.select(t.backup).where(t.backup.c.id == keys[2])).one()
    assert row.state == "FAILED"
    assert row.fail_reason.startswith("damaged: its manifest cannot be read")
    assert row.held == RECOVERED
    del copy.wanted[keys[2]]
    assert completed(copy) == set(copy.wanted)
    copy.check()
    copy.release()
    with pytest.raises(errors.NotRestorable, match="FAILED"):
        restoration.restore(copy.ctx, copy.project, keys[2], copy.source, lambda conn: None)
    copy.delete(keys[0])
    copy.run()
    copy.check()
    before = set(stored(copy, "pack") + stored(copy, "rewrite"))
    copy.delete(keys[1])
    copy.run()
    copy.check()
    assert copy.receipt(keys[1])["waiting"] == 0
    assert copy.receipt(keys[1])["removed_objects"] == 1
    holding.hold(copy.ctx, copy.project, keys[2], None, lambda conn: None)
    copy.delete(keys[2])
    copy.run()
    assert not before <= set(stored(copy, "pack") + stored(copy, "rewrite"))
    copy.check()
    for key in keys[3:]:
        copy.delete(key)
        copy.run()
    copy.check()
    left = {name.split("/")[-1] for name in (stat.name for stat in copy.inner.list("")) if not name.startswith("owner/")}
    assert left == {"closed"}


def test_what_was_dead_before_a_damaged_backup_stays_dead(tmp_path: Path) -> None:
    """Its parent is there and names what it could share: nothing else comes alive, so the lineage goes on when it is deleted."""
    vault = HarshVault(tmp_path / "old", replace(OPTIONS, reclaim_budget=0))
    data = list(generations(4))
    keys = [vault.backup(one) for one in data[:3]]
    vault.delete(keys.pop(0))
    vault.run()
    dead = vault.waiting()
    assert dead > 0
    corrupt(vault, stored(vault, "manifest", 3)[0])
    copy = again(vault, tmp_path / "new").vault
    assert copy.waiting() == dead
    holding.hold(copy.ctx, copy.project, keys[1], None, lambda conn: None)
    copy.delete(keys[1])
    copy.run()
    copy.check()
    copy.backup(data[3])
    copy.check()


def test_a_backup_can_be_taken_after_a_damaged_one(vault: HarshVault, tmp_path: Path) -> None:
    """The newest manifest cannot be read: the next backup shares nothing with it, is whole, and the old ones stay."""
    data = list(generations(3))
    keys = [vault.backup(one) for one in data[:2]]
    corrupt(vault, stored(vault, "manifest", 2)[0])
    copy = again(vault, tmp_path / "new").vault
    del copy.wanted[keys[1]]
    third = copy.backup(data[2])
    copy.check()
    fourth = copy.backup(data[2])
    copy.check()
    assert {keys[0], third, fourth} == completed(copy)


def test_a_pack_whose_index_cannot_be_read_damages_only_what_names_it(vault: HarshVault, tmp_path: Path) -> None:
    """A pack of the second backup: the first restores, those that name it are damaged, the object is reported and left."""
    keys = [vault.backup(one) for one in generations(3)]
    broken = max(stored(vault, "pack", 2), key=lambda name: len(vault.inner.get(name)))
    corrupt(vault, broken)
    new = again(vault, tmp_path / "new")
    copy = new.vault
    assert broken in new.result.unknown
    assert new.result.damaged >= 1
    for key in set(copy.wanted) - completed(copy):
        del copy.wanted[key]
    assert keys[0] in copy.wanted
    assert keys[1] not in copy.wanted
    copy.check()
    copy.wanted[copy.backup(next(generations(1)))] = next(generations(1))
    copy.release()
    for key in list(copy.wanted):
        copy.delete(key)
        copy.run()
        copy.check()
    assert copy.inner.stat(broken) is not None


def test_a_build_that_was_under_way_is_reported_and_left(tmp_path: Path) -> None:
    """The catalog is lost in the middle of a build: its packs belong to nothing; a build whose manifest was put comes back."""
    prepared = HarshVault(tmp_path / "prepared", OPTIONS)
    data = list(generations(3))
    for one in data[:2]:
        prepared.backup(one)
    saved = prepared.save()
    seen = set()
    with HarshVault.revive(tmp_path / "whole", saved).dying(None) as fate:
        pass
    for at in range(20, 80, 6):
        old = HarshVault.revive(tmp_path / "old", saved)
        with old.dying(at) as fate:
            key, _ = old.create(data[2])
            old.run()
        assert not fate.alive
        came = any(name for name in stored(old, "manifest", 3))
        new = again(old, tmp_path / f"new-{at}")
        if came:
            new.vault.wanted[key] = data[2]
        assert completed(new.vault) == set(new.vault.wanted)
        assert new.result.damaged == 0
        assert came or set(stored(old, "pack", 3)) <= set(new.result.unknown)
        new.vault.check()
        fresh = new.vault.backup(data[2])
        with new.vault.catalog.read() as conn:
            assert conn.execute(sa.select(t.part.c.seq).where(t.part.c.backup == fresh)).scalar_one() > 1000
        new.vault.check()
        seen.add(came)
        old.catalog.close()
        new.vault.catalog.close()
    assert False in seen


def test_rewriting_keeps_one_of_two_copies(tmp_path: Path) -> None:
    """Death between a rewrite's switch and the removal of its sources, then a rebuild: what a delete rewrites is there once."""
    old = HarshVault(tmp_path / "old", replace(OPTIONS, reclaim_budget=50.0, reclaim_floor=0.0))
    data, keys = noise(100_000, 1), []
    for number in range(4):
        keys.append(old.backup({"a": data}))
        data = edited(data, number, edits=6)

    def die(effect: Effect) -> None:
        if effect.kind == "delete_many" and effect.phase == "before" and stored(old, "rewrite"):
            raise Died

    old.delete(keys[0])
    old.plan = die
    with pytest.raises(Died):
        old.run()
    vault = again(old, tmp_path / "new").vault
    vault.release()

    def twice() -> int:
        """Chunks that two objects hold."""
        held: dict[int, list[BitMap]] = defaultdict(list)
        with vault.catalog.read() as conn:
            for row in conn.execute(sa.select(t.holding.c.object).distinct()).all():
                for pack, numbers in held_by(conn, row.object).items():
                    held[pack].append(numbers)
        return sum(sum(map(len, some)) - len(BitMap.union(*some)) for some in held.values())

    before = twice()
    assert before > 0
    vault.delete(keys[1])
    vault.run()
    assert twice() < before
    vault.check()


@pytest.mark.parametrize(("kind", "phase"), [("put_new", "after"), ("delete_many", "before")])
def test_the_same_chunks_in_two_objects_are_kept_in_both(tmp_path: Path, kind: str, phase: str) -> None:
    """Death between a rewrite's put and its switch, and between its switch and the removal of the old object."""
    old = HarshVault(tmp_path / "old", OPTIONS)
    data, keys = noise(60_000, 1), []
    for number in range(3):
        keys.append(old.backup({"a": data}))
        data = edited(data, number, edits=5)
    rewritten = False

    def die(effect: Effect) -> None:
        nonlocal rewritten
        rewritten = rewritten or (effect.kind == "put_new" and effect.phase == "after" and "/rewrite/" in effect.names[0])
        if rewritten and effect.kind == kind and effect.phase == phase:
            raise Died

    old.delete(keys[0])
    old.plan = die
    with pytest.raises(Died):
        old.run()
    new = again(old, tmp_path / "new")
    copy = new.vault
    assert completed(copy) == set(keys[1:])
    with copy.catalog.read() as conn:
        both = sa.select(t.holding.c.pack).group_by(t.holding.c.pack).having(sa.func.count() > 1)
        assert conn.execute(both).all()
    copy.check()
    copy.release()
    copy.backup({"a": data})
    for key in list(copy.wanted):
        before, promise = copy.size(), copy.preview(key).total
        copy.delete(key)
        copy.run()
        receipt = copy.receipt(key)
        assert receipt["freed"] == promise.freed
        assert before - copy.size() == receipt["freed"] + receipt["reclaimed"]["net"] - receipt["put_bytes"]
        copy.check()
    assert not stored(copy, "pack")
    assert not stored(copy, "rewrite")


def test_a_wrong_root_key_is_refused_before_anything_is_done(vault: HarshVault, tmp_path: Path) -> None:
    """By the owner's mark, and by a lineage's keys where there is no mark; the store is as it was."""
    vault.backup(next(generations(1)))
    copy = RebuiltVault(tmp_path / "new", vault)
    copy.ctx = replace(copy.ctx, root_key=RootKey(bytes(32)))
    for _ in range(2):
        there = dict(copy.inner._objects)  # type: ignore[attr-defined]
        with pytest.raises(WrongKey, match="root key"):
            copy.rebuild()
        assert copy.inner._objects == there  # type: ignore[attr-defined]
        copy.inner.delete(names.owner(1))
    copy.ctx = replace(copy.ctx, root_key=vault.ctx.root_key)
    copy.rebuild()
    copy.check()


def test_the_old_catalogs_workers_stop(vault: HarshVault, tmp_path: Path) -> None:
    """A delete that the old catalog had accepted removes nothing once a rebuild has begun; the backup is whole in the new one."""
    first, _ = (vault.backup(data) for data in generations(2))
    wanted = dict(vault.wanted)
    job = vault.delete(first)
    new = RebuiltVault(tmp_path / "new", vault)
    vault.inner = new.inner
    vault.store = new.store
    vault.restart()
    new.wanted = wanted
    new.rebuild()
    vault.run()
    assert "another catalog" in vault.job(job).error
    assert completed(new) == set(wanted)
    for key, data in wanted.items():
        assert new.read_back(key) == data


def test_a_rebuild_that_dies_is_begun_anew_and_never_served(vault: HarshVault, tmp_path: Path) -> None:
    """Death at effects all over it: the unfinished catalog is refused at a start, a second rebuild in a new one is complete."""
    for data in generations(2):
        vault.backup(data)
    whole = RebuiltVault(tmp_path / "whole", vault)
    fate = Fate(None)
    with whole.watching(fate):
        whole.rebuild()
    for at in range(2, fate.count + 1, 4):
        half = RebuiltVault(tmp_path / f"half-{at}", vault)
        with half.dying(at) as death:
            half.rebuild()
        assert not death.alive
        with half.catalog.read() as conn:
            began = conn.execute(sa.select(t.installation.c.id)).first() is not None
        if began:
            with pytest.raises(CatalogOutdated, match="did not end"):
                take_possession(half.ctx)
        second = again(half, tmp_path / f"second-{at}")
        assert completed(second.vault) == set(vault.wanted)
        second.vault.check()
        take_possession(second.vault.ctx)
        for one in (half, second.vault):
            one.catalog.close()


def test_a_store_that_fails_in_the_middle_ends_the_rebuild(vault: HarshVault, tmp_path: Path) -> None:
    """The error is the store's own, nothing is guessed: a backup that could not be read is not shown as damaged."""
    vault.backup(next(generations(1)))
    half = RebuiltVault(tmp_path / "half", vault)
    half.plan = lambda effect: (
        Fail(StoreUnavailable("away")) if effect.kind == "get" and "/manifest/" in effect.names[0] else None
    )
    with pytest.raises(StoreUnavailable):
        half.rebuild()
    again(half, tmp_path / "second").vault.check()


def test_two_lineages_of_one_instance_both_come_back(vault: HarshVault, tmp_path: Path) -> None:
    """The last backup was being deleted when the next began: one lineage goes on, the other keeps what it has."""
    data = list(generations(3))
    first = vault.backup(data[0])
    wanted = dict(vault.wanted)
    vault.clock.sleep(60)
    vault.delete(first)
    vault.plan = lambda effect: (
        Fail(StoreUnavailable("away")) if effect.kind == "put_new" and "closed" in str(effect.names) else None
    )
    second, _ = vault.create(data[1])
    for _ in range(40):
        vault.worker.step()
        vault.clock.sleep(1)
    assert vault.state(second) == "COMPLETED"
    wanted[second] = data[1]
    vault.wanted = wanted
    new = again(vault, tmp_path / "new").vault
    assert completed(new) == {first, second}
    new.check()
    third = new.backup(data[2])
    assert new.preview(third).total.owned < 150_000, "it shares with the second"
    with new.catalog.read() as conn:
        lineage = {row.backup: row.lineage for row in conn.execute(sa.select(t.part))}
    assert lineage[third] == lineage[second] != lineage[first]
    new.release()
    for key in (first, second, third):
        new.delete(key)
        new.run()
        new.check()


def test_instances_of_one_name_both_come_back(vault: HarshVault, tmp_path: Path) -> None:
    """An instance was removed, its backups were kept, and another took its name: both are there, told apart."""
    first = vault.backup(next(generations(1)))
    instances.unregister(vault.ctx, vault.project, vault.source, lambda conn: None)
    vault.source = vault._register("source")
    second = vault.backup(next(generations(1, seed=5)))
    new = again(vault, tmp_path / "new").vault
    assert completed(new) == {first, second}
    with new.catalog.read() as conn:
        found = [row.name for row in conn.execute(sa.select(t.instance.c.name))]
    assert len(set(found)) == 2
    assert all(name.startswith("source") for name in found)
    new.check()


def test_a_manifest_under_anothers_name_is_damaged_and_takes_nobodys_place(vault: HarshVault, tmp_path: Path) -> None:
    """The first manifest's bytes under the second's name: the first backup is itself, the other is damaged under a new id."""
    first, second = (vault.backup(data) for data in generations(2))
    one, two = stored(vault, "manifest", 1)[0], stored(vault, "manifest", 2)[0]
    vault.inner.delete(two)
    vault.inner.put_new(two, vault.inner.get(one))
    new = again(vault, tmp_path / "new")
    del new.vault.wanted[second]
    assert completed(new.vault) == {first}
    assert new.result.damaged == 1
    new.vault.check()


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_damaged_nothing_else_is_ever_lost(tmp_path: Path, seed: int) -> None:
    """After a random history some objects are damaged or lost. What the rebuild calls COMPLETED is whole, and stays whole
    through every later backup and delete, also of the damaged ones."""
    old = HarshVault(tmp_path / "old", OPTIONS)
    history = History(old, seed * 1000 + 3)
    while len(old.wanted) < 6:
        history.step()
    rnd = random.Random(seed)
    for name in rnd.sample(sorted(stored(old, "manifest") + stored(old, "pack") + stored(old, "rewrite")), 2):
        if rnd.random() < 0.6:
            corrupt(old, name)
        else:
            old.inner.delete(name)
    new = again(old, tmp_path / "new")
    copy = new.vault
    damaged = sorted(set(parts_of(copy)) - completed(copy))
    assert len(damaged) == new.result.damaged
    copy.wanted = {key: data for key, data in old.wanted.items() if key in completed(copy)}
    assert completed(copy) == set(copy.wanted)
    copy.check()
    copy.release()
    later = History(copy, seed * 1000 + 9)
    later.data = history.data
    for turn in range(10):
        if damaged and turn % 3 == 1:
            key = damaged.pop(rnd.randrange(len(damaged)))
            holding.hold(copy.ctx, copy.project, key, None, lambda conn: None)
            copy.delete(key)
            copy.run()
        else:
            later.step()
        copy.check()


def parts_of(vault: HarshVault) -> list[str]:
    """Backups with a part in a chain."""
    with vault.catalog.read() as conn:
        return [row.backup for row in conn.execute(sa.select(t.part.c.backup).where(t.part.c.state == "COMPLETED"))]


def test_one_copy_of_a_lineages_keys_is_enough(vault: HarshVault, tmp_path: Path) -> None:
    """Either copy may be damaged; without any the lineage is reported and left."""
    vault.backup(next(generations(1)))
    one, two = stored(vault, "key")
    kept = vault.inner.get(one)
    corrupt(vault, one)
    first = again(vault, tmp_path / "first")
    assert completed(first.vault) == set(vault.wanted)
    first.vault.check()
    corrupt(vault, two)
    none = again(vault, tmp_path / "none")
    assert none.result.backups == 0
    assert any("no copy of its keys opens" in line for line in none.report)
    assert set(stored(vault, "pack")) <= set(none.result.unknown)
    vault.inner.delete(one)
    vault.inner.put_new(one, kept)
    again(vault, tmp_path / "second").vault.check()


def test_the_server_rebuilds_its_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """End to end on SQLite and a directory: the old catalog is kept aside, credentials are new, the backups are there and held.

    An old catalog that is put back is refused at its start.
    """
    engine = DictEngine()
    engine.databases = {"plain://source": next(generations(1))}
    monkeypatch.setattr(server, "engines", lambda: {"plain": engine})
    settings = Settings.load(tmp_path / "data", {})
    settings.data_dir.mkdir()
    with server.opened(settings) as house:
        server._begin(house, "http://127.0.0.1:1")
        told = json.loads(settings.credentials_file.read_text("utf-8"))
        project = told["project_id"]
        new = instances.NewInstance("source", "plain", "plain://source")
        instance = instances.register(house.context, project, new, lambda conn, key: None)
        key, _ = creation.create(house.context, project, instance, creation.Wanted("nightly"), lambda conn, key: None)
        worker = StepwiseWorker(house.jobs, house.handlers(), ["default"])
        while worker.step() is not None:
            pass
    report: list[str] = []
    server.rebuild_catalog(settings, report.append)
    aside = [path for path in settings.data_dir.iterdir() if ".before-" in path.name]
    assert any("is kept as" in line for line in report)
    fresh = json.loads(settings.credentials_file.read_text("utf-8"))
    assert fresh["project_id"] == project
    assert fresh["secret_key"] != told["secret_key"]
    with server.opened(settings) as house:
        server._begin(house, "http://127.0.0.1:1")
        with house.context.catalog.read() as conn:
            row = conn.execute(sa.select(t.backup)).one()
        assert (row.id, row.project, row.name, row.state, row.held) == (key, project, "nightly", "COMPLETED", RECOVERED)
        job = restoration.restore(house.context, project, key, instance, lambda conn: None)
        engine.databases["plain://source"] = {}
        worker = StepwiseWorker(house.jobs, house.handlers(), ["default"])
        while worker.step() is not None:
            pass
        with house.context.catalog.read() as conn:
            assert conn.execute(sa.select(t.job.c.state).where(t.job.c.id == job)).scalar_one() == "DONE"
        assert engine.databases["plain://source"] == next(generations(1))
    (settings.data_dir / "catalog.db").unlink()
    old = next(path for path in aside if path.name.startswith("catalog.db.before-") and not path.name.endswith(("-wal", "-shm")))
    old.rename(settings.data_dir / "catalog.db")
    with server.opened(settings) as house, pytest.raises(CatalogOutdated, match="another catalog"):
        server._begin(house, "http://127.0.0.1:1")
