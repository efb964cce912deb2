"""Verifying backups: damage is found, told and healed; what is sound is called sound; deletes win."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from pyroaring import BitMap

from strongroom.backups import errors, verification
from strongroom.backups.context import Options
from strongroom.backups.damage import needing
from strongroom.backups.locating import read_manifest
from strongroom.backups.verification import Choice
from strongroom.catalog import tables as t
from strongroom.catalog.lifespans import numbers_of
from strongroom.identity import accounts, audit
from strongroom.identity import tables as identity
from strongroom.repository.pack import HEADER_BYTES
from strongroom.repository.records import Records
from strongroom.repository.verification import Checked
from strongroom.storage.base import StoreDenied, StoreUnavailable
from strongroom.storage.faults import Effect, Fail, FaultyStore
from strongroom.storage.memory import MemoryStore
from support.damage import Keeper, flip, flip_chunk, remove, store_of
from support.vault import generations, noise

DATA = {"a": noise(150_000, 1), "b": noise(60_000, 2)}


@pytest.fixture(params=["memory", "directory"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Keeper:
    """A vault on each kind of store."""
    return Keeper(tmp_path, store_of(request.param, tmp_path))


def ids(found: list[dict[str, Any]]) -> set[str]:
    return {one["id"] for one in found}


def damaged_backups(found: dict[str, Any]) -> set[str]:
    return ids(found["damaged_backups"])


def fetched(vault: Keeper) -> set[str]:
    """Backups that a restore refuses."""
    broken = set()
    for key in vault.wanted:
        job = vault.restore(key)
        vault.run()
        if vault.job(job).state != "DONE":
            broken.add(key)
    return broken


# ---- what is sound ------------------------------------------------------------------------------------------------------


def test_sound_backups_are_called_sound_and_each_shared_chunk_is_read_once(vault: Keeper) -> None:
    """Five generations that share: outcome sound, nothing suspect, far fewer chunk bytes read than the five hold apart."""
    keys = [vault.backup(data) for data in generations(5)]
    found = vault.verify()
    assert (found["outcome"], found["backups"], found["superseded"]) == ("sound", 5, [])
    assert found["damaged"] == {"objects": 0, "chunks": 0, "backups": 0}
    alone = [vault.verify(key) for key in keys]
    assert all(one["outcome"] == "sound" and one["backups"] == 1 for one in alone)
    assert found["bytes"] < 0.6 * sum(one["bytes"] for one in alone)
    assert vault.suspects() == {}


def test_an_empty_database_and_an_empty_project_are_sound(tmp_path: Path) -> None:
    """Nothing to read is nothing damaged."""
    vault = Keeper(tmp_path)
    assert vault.verify()["outcome"] == "sound"
    key = vault.backup({})
    assert vault.verify(key)["outcome"] == "sound"
    key = vault.backup({"empty": b"", "more": b""})
    assert vault.verify(key)["backups"] == 1


def test_a_verification_changes_nothing_of_what_a_preview_says(vault: Keeper) -> None:
    """A delete accepted at a version from before a sound verification is not refused."""
    key = vault.backup(DATA)
    version = vault.preview(key).version
    vault.verify()
    vault.delete(key, if_match=version)


# ---- what is damaged ----------------------------------------------------------------------------------------------------


def test_one_flipped_bit_is_found_told_and_healed_by_the_next_backup(vault: Keeper) -> None:
    """The chunk and no other becomes suspect; the backup after stores it anew and restores; the damaged one does not restore."""
    first = vault.backup(DATA)
    name = vault.objects("pack")[0]
    pack = flip_chunk(vault, name, 2)
    found = vault.verify(first)
    assert found["outcome"] == "damaged"
    assert found["damaged_objects"] == [{"name": name, "what": "chunks", "chunks": 1, "backups": [first]}]
    assert vault.suspects() == {pack: {2}}
    before = vault.size()
    second = vault.backup(DATA)
    assert 0 < vault.size() - before < 40_000, "what is sound is shared still"
    assert vault.restored(second) == DATA
    assert fetched(vault) == {first}
    again = vault.verify()
    assert damaged_backups(again) == {first}
    del vault.wanted[first]
    vault.delete(first)
    vault.run()
    assert vault.verify()["outcome"] == "sound"
    vault.check()


@pytest.mark.parametrize("kind", ["removed", "index", "tail cut off"])
def test_an_object_that_is_gone_or_does_not_open_is_found_and_healed(vault: Keeper, kind: str) -> None:
    """All that it held and still lives becomes suspect; the next backup stores that anew and restores."""
    first = vault.backup(DATA)
    name = vault.objects("pack")[1]
    ((pack, held),) = vault.index(name).packs.items()
    numbers = set(held.numbers.tolist())
    if kind == "removed":
        remove(vault.store, name)
    elif kind == "index":
        flip(vault.store, name, -80)
    else:
        whole = vault.store.get(name)
        remove(vault.store, name)
        vault.store.put_new(name, whole[:-30])
    found = vault.verify(first)
    what = "missing" if kind == "removed" else "unreadable"
    assert found["damaged_objects"] == [{"name": name, "what": what, "chunks": len(numbers), "backups": [first]}]
    assert vault.suspects() == {pack: numbers}
    second = vault.backup(DATA)
    assert vault.restored(second) == DATA
    assert fetched(vault) == {first}


def test_a_manifest_that_is_damaged_is_told_with_all_that_its_backup_may_need(vault: Keeper) -> None:
    """The root is flipped and so is a chunk that only it names: both are found, of the right backup alone."""
    first = vault.backup(DATA)
    (root,) = vault.objects("manifest")
    second = vault.backup({"other": noise(90_000, 3)})
    own = vault.objects("pack", backup=first)[0]
    flip(vault.store, root, -20)
    flip_chunk(vault, own, 1)
    found = vault.verify(first)
    assert [(one["name"], one["what"], one["backups"]) for one in found["damaged_objects"]] == sorted(
        [(root, "manifest", [first]), (own, "chunks", [first])]
    )
    assert fetched(vault) == {first}
    assert vault.verify(second)["outcome"] == "sound"


def test_a_missing_manifest_is_told(vault: Keeper) -> None:
    """Its backup is damaged, nothing else is, and no chunk becomes suspect."""
    first = vault.backup(DATA)
    (root,) = vault.objects("manifest")
    second = vault.backup(DATA)
    remove(vault.store, root)
    found = vault.verify()
    assert found["damaged_objects"] == [{"name": root, "what": "manifest", "chunks": 0, "backups": [first]}]
    assert damaged_backups(found) == {first}
    assert vault.suspects() == {}
    assert fetched(vault) == {first}
    assert vault.restored(second) == DATA


def test_damaged_pages_of_a_manifest_are_found_and_healed(vault: Keeper) -> None:
    """Every chunk of the pack that holds the pages is flipped: the backup is damaged, and the next one is whole."""
    data = {f"entry-{number:05}": noise(20, number) for number in range(1_500)}
    first = vault.backup(data)
    for name in vault.objects("pack"):
        flip_chunk(vault, name)
    found = vault.verify(first)
    assert found["outcome"] == "damaged"
    assert sum(len(numbers) for numbers in vault.suspects().values()) == found["damaged"]["chunks"] > 10
    second = vault.backup(data)
    assert vault.restored(second) == data
    assert damaged_backups(vault.verify()) == {first}


@pytest.mark.parametrize("seed", range(8))
def test_damage_anywhere_that_matters_is_found_and_the_backups_told_are_those_that_do_not_restore(
    tmp_path: Path, seed: int
) -> None:
    """Random bits of random objects of chunks, or whole objects, in six generations with one deleted: a whole verification tells
    every backup that a restore refuses; the next backup is whole, whatever was hit."""
    rnd = random.Random(seed)
    vault = Keeper(tmp_path, MemoryStore())
    made = list(generations(6, seed + 1))
    keys = [vault.backup(data) for data in made]
    vault.delete(rnd.choice(keys[:-1]))
    vault.run()
    for name in rnd.sample(vault.objects("pack", "rewrite"), 3):
        if rnd.random() < 0.3:
            remove(vault.store, name)
            continue
        size = len(vault.store.get(name))
        flip(vault.store, name, *(rnd.randrange(HEADER_BYTES, size) for _ in range(rnd.randrange(1, 4))))
    found = vault.verify()
    assert fetched(vault) <= damaged_backups(found)
    exact = {key for key in vault.wanted if vault.verify(key)["outcome"] == "damaged"}
    assert exact == damaged_backups(found), "what one verification tells of all is what each tells of itself"
    newest = vault.backup(made[-1])
    assert vault.restored(newest) == made[-1]
    assert newest not in damaged_backups(vault.verify())


def test_damage_is_told_of_each_backup_that_needs_the_chunk_and_of_no_other(vault: Keeper) -> None:
    """A chunk lives from the second to the third of five generations; by its lifespan these two are told."""
    shared, base = noise(40_000, 9), noise(50_000, 8)
    made = [{"base": base}, {"base": base, "mid": shared}, {"base": base, "mid": shared}, {"base": base}, {"base": base}]
    keys = [vault.backup(data) for data in made]
    vault.delete(keys[4])
    vault.run()
    name = vault.objects("pack", backup=keys[1])[0]
    flip_chunk(vault, name, 1)
    assert damaged_backups(vault.verify()) == {keys[1], keys[2]}
    assert fetched(vault) == {keys[1], keys[2]}


def test_who_needs_a_chunk_is_what_the_manifests_name(tmp_path: Path) -> None:
    """For every chunk of a history with deletes: its backups by lifespans are those whose verification meets its damage."""
    vault = Keeper(tmp_path, MemoryStore())
    keys = [vault.backup(data) for data in generations(6)]
    for key in (keys[1], keys[4]):
        vault.delete(key)
        vault.run()
    lineage = vault.lineage()
    with vault.catalog.read() as conn:
        packs = {row.id: row.chunks for row in conn.execute(sa.select(t.pack))}
        for pack, chunks in packs.items():
            for number in range(0, chunks, 3):
                by_lifespan = {one.id for one in needing(conn, lineage, {pack: BitMap([number])})}
                assert by_lifespan == {key for key in vault.wanted if number in named(vault, key).get(pack, ())}


def named(vault: Keeper, key: str) -> dict[int, set[int]]:
    """Chunks that a backup's manifest names; read once."""
    known: dict[str, dict[int, set[int]]] = vault.__dict__.setdefault("_named", {})
    if key not in known:
        with vault.catalog.read() as conn:
            part = conn.execute(sa.select(t.part).where(t.part.c.backup == key)).one()
        found: dict[int, set[int]] = {}
        for packs, numbers, _ in read_manifest(vault.ctx, vault.ctx.keys(part.lineage), part.lineage, part.seq).named():
            for pack, number in zip(packs.tolist(), numbers.tolist(), strict=True):
                found.setdefault(pack, set()).add(number)
        known[key] = found
    return known[key]


def test_damage_in_what_is_dead_and_waiting_is_nobody_s(tmp_path: Path) -> None:
    """A pack with a dead chunk and a living one, both flipped: the living one is told and suspect, the dead one is not."""
    vault = Keeper(tmp_path, MemoryStore(), options=Options(chunk_average=4096, pack_target=1 << 20, reclaim_budget=0.0))
    base = noise(90_000, 1)
    first = vault.backup({"a": base, "b": noise(90_000, 2)})
    vault.backup({"a": base})
    name = vault.objects("pack")[0]
    vault.delete(first)
    vault.run()
    with vault.catalog.read() as conn:
        row = conn.execute(sa.select(t.pack).order_by(t.pack.c.bytes.desc()).limit(1)).one()
    gone = numbers_of(row.gone)
    living = BitMap(range(row.chunks)) - gone
    flip_chunk(vault, name, gone[0], living[0])
    found = vault.verify()
    assert [(one["name"], one["chunks"]) for one in found["damaged_objects"]] == [(name, 1)]
    assert vault.suspects() == {row.id: {living[0]}}


def test_new_damage_is_in_the_audit_trail_once(vault: Keeper) -> None:
    """The event names the job and the object; finding the same again adds nothing."""
    key = vault.backup(DATA)
    name = vault.objects("pack")[0]
    flip_chunk(vault, name, 0)
    for _ in range(2):
        assert vault.verify(key)["outcome"] == "damaged"
    with vault.catalog.read() as conn:
        (row,) = conn.execute(sa.select(identity.audit).where(identity.audit.c.event == "StrongroomDamageFound")).all()
        assert audit.check_chain(conn, row.account) is None
    assert (row.resource_id, row.level) == (key, "Major")
    assert name in row.detail


# ---- samples ------------------------------------------------------------------------------------------------------------


def test_a_sample_reads_about_its_share_and_always_something(tmp_path: Path) -> None:
    """Percent of the chunks, in stretches; a whole verification reads all."""
    vault = Keeper(tmp_path, MemoryStore())
    key = vault.backup({"a": noise(3_000_000, 1)})
    whole = vault.verify(key)
    tenth = vault.verify(key, sample=10)
    least = vault.verify(key, sample=0.0001)
    assert whole["sample"] is None
    assert tenth["sample"] == 10
    assert 0 < least["bytes"] <= tenth["bytes"] < 0.6 * whole["bytes"]
    assert vault.verify(key, sample=100)["bytes"] == whole["bytes"]


@pytest.mark.parametrize("percent", [1, 20, 50, 99])
def test_a_choice_is_fair_and_takes_stretches_whole(percent: int) -> None:
    """Over many stretches the share is near the percentage; two seeds choose differently; the same one the same."""
    count = 64 * 4_000
    numbers = np.arange(count, dtype=np.uint32)
    records = Records(np.zeros((count, 16), np.uint8), np.full(count, 12345, np.uint64), numbers, numbers, numbers)
    first, same, other = Choice(percent, 7)(records), Choice(percent, 7)(records), Choice(percent, 8)(records)
    assert abs(first.mean() * 100 - percent) < 3
    assert (first == same).all()
    assert (first != other).any()
    assert set(first.reshape(-1, 64).sum(axis=1).tolist()) == {0, 64}


def test_damage_in_a_manifest_is_found_by_every_sample(tmp_path: Path) -> None:
    """Manifests are read whole."""
    vault = Keeper(tmp_path, MemoryStore())
    key = vault.backup(DATA)
    (root,) = vault.objects("manifest")
    flip(vault.store, root, -20)
    assert vault.verify(key, sample=0.1)["outcome"] == "damaged"


# ---- beside other work --------------------------------------------------------------------------------------------------


class Interrupted(FaultyStore):
    """A store that calls `act` once, before its n-th read of an object whose name has `part` in it."""

    def __init__(self, part: str, count: int) -> None:
        self.act: Callable[[], None] | None = None
        self.part, self.left = part, count
        super().__init__(MemoryStore(), self._step)

    def _step(self, effect: Effect) -> None:
        if self.act is None or effect.phase == "after" or effect.kind != "get" or self.part not in effect.names[0]:
            return
        self.left -= 1
        if self.left == 0:
            act, self.act = self.act, None
            act()


@pytest.mark.parametrize(("part", "count"), [("/manifest/", 1), ("/pack/", 1), ("/pack/", 2), ("/pack/", 7)])
@pytest.mark.parametrize("last", [False, True], ids=["others stay", "the last one"])
def test_a_delete_wins_over_a_verification_which_ends_as_superseded(tmp_path: Path, part: str, count: int, last: bool) -> None:
    """The delete runs to its end in the middle of the reading: the verification completes, tells no damage and marks none."""
    store = Interrupted(part, count)
    vault = Keeper(tmp_path, store)
    made = [{"own": noise(150_000, 5)}] if last else [{"own": noise(150_000, 5)}, {"other": noise(50_000, 6)}]
    key, *_ = [vault.backup(data) for data in made]
    job = vault.ask_verify(key)
    verifier = vault.worker.claim()
    assert verifier is not None

    def delete() -> None:
        vault.delete(key)
        while (one := vault.worker.claim([verifier.id])) is not None:
            vault.worker.run_claimed(one)

    store.act = delete
    assert vault.worker.run_claimed(verifier)
    assert vault.state(key) == "DELETED", "the verification did not hold the delete up"
    view = vault.job(job)
    assert view.state == "DONE"
    assert view.result["outcome"] == "superseded"
    assert (view.result["superseded"], view.result["damaged_objects"]) == ([key], [])
    assert vault.suspects() == {}
    vault.run()
    vault.check()


def test_a_backup_deleted_before_its_verification_begins_is_superseded(vault: Keeper) -> None:
    """The queued job finds nothing to read, which is a result."""
    key, kept = vault.backup(DATA), vault.backup(DATA)
    job = vault.ask_verify(key)
    vault.delete(key)
    assert vault.ended(job)["outcome"] == "superseded"
    assert vault.verify(kept)["outcome"] == "sound"


@pytest.mark.parametrize("doomed", range(4))
def test_a_delete_beside_a_verification_of_all_leaves_the_others_verified(tmp_path: Path, doomed: int) -> None:
    """Whichever goes while packs are read and rewritten: the others are sound, and nothing is called damaged."""
    store = Interrupted("/pack/", 4)
    vault = Keeper(tmp_path, store)
    keys = [vault.backup(data) for data in generations(4)]
    job = vault.ask_verify()
    verifier = vault.worker.claim()
    assert verifier is not None

    def delete() -> None:
        vault.delete(keys[doomed])
        while (one := vault.worker.claim([verifier.id])) is not None:
            vault.worker.run_claimed(one)

    store.act = delete
    assert vault.worker.run_claimed(verifier)
    found = vault.job(job).result
    assert found["outcome"] == "sound"
    assert found["backups"] + len(found["superseded"]) == 4
    assert set(found["superseded"]) <= {keys[doomed]}
    assert vault.suspects() == {}
    vault.run()
    vault.check()


def test_a_reading_that_fails_once_and_is_right_the_second_time_damages_nothing(tmp_path: Path) -> None:
    """A bit that was lost on the way is no damage: only what two readings find is marked."""
    liar = Liar()
    vault = Keeper(tmp_path, liar)
    key = vault.backup(DATA)
    for count in itertools.count(1):
        liar.left = count
        assert vault.verify(key)["outcome"] == "sound", f"it lied at read {count}"
        if liar.left:
            break
    assert count > 6
    assert vault.suspects() == {}


@pytest.mark.parametrize(("kind", "what"), [("chunk", "chunks"), ("index", "unreadable"), ("gone", "missing")])
def test_what_is_read_wrong_again_and_again_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, what: str
) -> None:
    """Where reading the whole object finds nothing and reading for the backup finds it twice, as with a record that is not what
    the chunk is: it is damage, told and marked, and the job ends."""
    vault = Keeper(tmp_path, MemoryStore())
    key = vault.backup(DATA)
    name = vault.objects("pack")[0]
    if kind == "chunk":
        flip_chunk(vault, name, 3)
    elif kind == "index":
        flip(vault.store, name, -80)
    else:
        remove(vault.store, name)
    monkeypatch.setattr(verification, "check_object", lambda *_: Checked(0, 0))
    found = vault.verify(key)
    assert [(one["name"], one["what"]) for one in found["damaged_objects"]] == [(name, what)]
    assert (found["damaged"]["chunks"] == 1) == (kind == "chunk")
    assert vault.suspects()


def test_chunks_that_no_object_holds_by_the_catalog_are_told(tmp_path: Path) -> None:
    """A pack without its holding: all its chunks are suspect, and the next backup stores them anew."""
    vault = Keeper(tmp_path, MemoryStore())
    first = vault.backup(DATA)
    name = vault.objects("pack")[0]
    (pack,) = vault.index(name).packs
    with vault.catalog.write() as conn:
        conn.execute(sa.delete(t.holding).where(t.holding.c.pack == pack))
    found = vault.verify(first)
    assert damaged_backups(found) == {first}
    assert vault.suspects().keys() == {pack}
    second = vault.backup(DATA)
    assert vault.restored(second) == DATA


class Liar(MemoryStore):
    """Flips a bit of the answer of the n-th read from now."""

    left = 0

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        data = super().get(name, start, length)
        if self.left:
            self.left -= 1
            if self.left == 0:
                middle = len(data) // 2
                return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return data


def test_a_store_that_lost_its_own_mark_is_judged_no_further(vault: Keeper) -> None:
    """As with a disk that is not mounted: the job fails with that reason, and nothing becomes suspect."""
    key = vault.backup(DATA)
    for stat in list(vault.store.list("")):
        vault.store.delete(stat.name)
    job = vault.ask_verify(key)
    vault.run()
    assert vault.job(job).state == "FAILED"
    assert "mark" in vault.job(job).error
    assert vault.suspects() == {}


@pytest.mark.parametrize(("error", "state"), [(StoreUnavailable("away"), "QUEUED"), (StoreDenied("no rights"), "FAILED")])
def test_a_store_that_fails_is_no_damage(tmp_path: Path, error: Exception, state: str) -> None:
    """What will pass is tried again, what will not fails the job; neither marks anything."""
    failing = [False]
    store = FaultyStore(
        MemoryStore(), lambda effect: Fail(error) if failing[0] and effect.phase == "before" and effect.kind == "get" else None
    )
    vault = Keeper(tmp_path, store)
    key = vault.backup(DATA)
    job = vault.ask_verify(key)
    failing[0] = True
    vault.worker.step()
    assert vault.job(job).state == state
    assert vault.suspects() == {}


def test_a_build_that_shares_a_chunk_found_damaged_meanwhile_does_not_commit(tmp_path: Path) -> None:
    """The chunk is marked while the next backup runs: that backup fails with the reason, and the one after is whole."""
    vault = Keeper(tmp_path, MemoryStore())
    vault.backup(DATA)
    name = vault.objects("pack")[0]
    number = 1

    def damage() -> None:
        vault.engine.during = None
        flip_chunk(vault, name, number)
        vault.ask_verify()
        one = vault.worker.claim()
        assert one is not None
        assert vault.worker.run_claimed(one)

    vault.engine.during = damage
    key, job = vault.create(DATA)
    vault.run()
    assert vault.state(key) == "FAILED"
    assert "damaged" in vault.job(job).error or "suspect" in vault.job(job).error
    third = vault.backup(DATA)
    assert vault.restored(third) == DATA


# ---- who may ask --------------------------------------------------------------------------------------------------------


def test_only_a_project_s_own_backups_and_instances_are_verified(vault: Keeper) -> None:
    """Another project's are unknown, and its everything is nothing of ours."""
    key = vault.backup(DATA)
    flip_chunk(vault, vault.objects("pack")[0], 0)
    with vault.catalog.write() as conn:
        theirs = accounts.found(conn, vault.ambient, "other", "project", "admin", None).project
    with pytest.raises(errors.NoSuchBackup):
        verification.verify(vault.ctx, theirs, lambda conn: None, backup=key)
    with pytest.raises(errors.NoSuchInstance):
        verification.verify(vault.ctx, theirs, lambda conn: None, instance=vault.source)
    found = vault.ended(verification.verify(vault.ctx, theirs, lambda conn: None))
    assert (found["outcome"], found["backups"]) == ("sound", 0)
    assert vault.verify(instance=vault.target)["backups"] == 0
    assert damaged_backups(vault.verify(instance=vault.source)) == {key}


def test_a_backup_that_is_being_built_is_refused(vault: Keeper) -> None:
    """There is nothing to verify yet."""
    key, _ = vault.create(DATA)
    with pytest.raises(errors.BackupBuilding):
        vault.ask_verify(key)
