"""After a delete: what the deleted backup shared is read back within a budget, told, and never in the delete's way."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from pyroaring import BitMap

from strongroom.backups import aftercheck, creation, deletion
from strongroom.backups.context import Options
from strongroom.backups.locating import read_manifest
from strongroom.catalog import lifespans
from strongroom.catalog import tables as t
from strongroom.catalog.space import to_sizes
from strongroom.identity import tables as identity
from strongroom.jobs.port import Draining
from strongroom.repository import rewriting as copying
from strongroom.repository.keys import LineageKeys, RootKey, open_lineage_keys
from strongroom.repository.pack import HEADER_BYTES, HeldPack, object_header, seal_index
from strongroom.storage.base import ObjectMissing, StoreDenied, StoreError, StoreUnavailable
from strongroom.storage.faults import Effect, Fail
from strongroom.storage.memory import MemoryStore
from support.catalog_rows import CHUNK, OTHER, OURS, Rows, empty_catalog, rolled_back
from support.damage import Keeper, flip, flip_chunk, remove
from support.harsh import HarshVault
from support.vault import edited, generations, noise

SMALL = Options(chunk_average=4096, pack_target=32768, reclaim_budget=0)
REWRITES = Options(chunk_average=4096, pack_target=32768)
SHARED = noise(200_000, 1)
SOUND = {"damaged_objects": 0, "damaged": [], "ended_early": None}


class Harsh(HarshVault, Keeper):
    """A vault in a harsh world whose objects can be looked into and damaged."""

    def remove(self, key: str) -> dict[str, Any]:
        """Deletes a backup to its end; what was verified after it."""
        self.delete(key)
        self.run()
        assert self.state(key) == "DELETED"
        return self.verified(key)

    def verified(self, key: str) -> dict[str, Any]:
        found = self.receipt(key)["verified"]
        assert found is not None
        return dict(found)


VERIFYING: list[str] = []
"""Backups whose delete is reading back now."""


@pytest.fixture(autouse=True)
def _noting_when(monkeypatch: pytest.MonkeyPatch) -> None:
    verify = aftercheck.verify

    def noted(ctx: Any, job: Any, backup: str, rewritten: Sequence[str]) -> None:
        VERIFYING.append(backup)
        try:
            verify(ctx, job, backup, rewritten)
        finally:
            VERIFYING.pop()

    monkeypatch.setattr(aftercheck, "verify", noted)


@pytest.fixture
def vault(tmp_path: Path) -> Harsh:
    return Harsh(tmp_path, SMALL)


def pair(vault: Harsh) -> tuple[str, str]:
    """Two backups that share most of what they hold."""
    return vault.backup({"a": SHARED, "b": noise(9_000, 2)}), vault.backup({"a": SHARED, "b": noise(9_000, 3)})


def scattered(vault: Harsh, count: int = 4) -> list[str]:
    """Backups of which each replaces a few chunks: deleting one leaves holes that are worth rewriting."""
    data, keys = noise(300_000, 4), []
    for number in range(count):
        keys.append(vault.backup({"a": data}))
        data = edited(data, 100 + number, edits=12)
    return keys


def named(vault: Harsh, key: str) -> dict[int, BitMap]:
    """Chunks that a backup's manifest names."""
    with vault.catalog.read() as conn:
        part = conn.execute(sa.select(t.part).where(t.part.c.backup == key)).one()
    found: dict[int, BitMap] = {}
    for packs, numbers, _ in read_manifest(vault.ctx, vault.ctx.keys(part.lineage), part.lineage, part.seq).named():
        for pack, number in zip(packs.tolist(), numbers.tolist(), strict=True):
            found.setdefault(pack, BitMap()).add(number)
    return found


def sealed_bytes(vault: Harsh, chunks: dict[int, BitMap]) -> int:
    """What chunks take in the store, by the objects' own indexes."""
    total = 0
    for name in vault.objects("pack", "rewrite"):
        for pack, held in vault.index(name).packs.items():
            wanted = chunks.get(pack, BitMap())
            total += sum(length for _, _, length in vault.index(name).locate(pack, wanted & held.number_set))
    return total


class Reads:
    """A plan that counts reading back, and does something at one of its reads."""

    def __init__(self, vault: Harsh, at: int = 0, act: Callable[[], Any] = lambda: None) -> None:
        self.vault, self.at, self.act = vault, at, act
        self.count = self.bytes = 0
        self.names: list[str] = []

    def __call__(self, effect: Effect) -> Fail | None:
        if effect.kind != "get" or effect.phase != "before" or not VERIFYING:
            return None
        self.count += 1
        self.names.append(effect.names[0])
        if self.count == self.at:
            found = self.act()
            return found if isinstance(found, Fail) else None
        return None


# ---- what is read --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", range(5))
@pytest.mark.parametrize("seed", [1, 2])
def test_all_that_a_neighbour_needs_of_the_deleted_backup_is_read_and_nothing_else(
    tmp_path: Path, seed: int, victim: int
) -> None:
    """Any of five that share, after an earlier delete: the bytes are those of the chunks that its manifest and another one
    name, each once."""
    vault = Harsh(tmp_path, SMALL)
    keys = [vault.backup(data) for data in generations(6, seed)]
    vault.remove(keys.pop(3))
    mine = named(vault, keys[victim])
    others: dict[int, BitMap] = {}
    for key in keys:
        if key != keys[victim]:
            for pack, numbers in named(vault, key).items():
                others[pack] = others.get(pack, BitMap()) | numbers
    shared = {pack: numbers & others[pack] for pack, numbers in mine.items() if pack in others}
    expected = sealed_bytes(vault, shared)
    assert expected > 0
    found = vault.remove(keys[victim])
    assert found == {"bytes": expected, "of_bytes": expected, "objects": found["objects"], **SOUND}
    assert 0 < found["objects"] <= len(shared)
    vault.check()


def test_nothing_shared_is_nothing_read(vault: Harsh) -> None:
    """The only backup of its lineage, and one whose neighbour has other data."""
    first = vault.backup({"a": noise(50_000, 1)})
    second = vault.backup({"b": noise(50_000, 2)})
    reads = vault.plan = Reads(vault)
    nothing = {"bytes": 0, "of_bytes": 0, "objects": 0, **SOUND}
    assert vault.remove(first) == nothing
    assert vault.remove(second) == nothing
    assert reads.count == 0


def test_a_budget_of_nothing_reads_nothing_and_says_nothing(tmp_path: Path) -> None:
    """It is switched off: no read, and the receipt has no word of it."""
    vault = Harsh(tmp_path, Options(chunk_average=4096, pack_target=32768, reclaim_budget=0, verify_after_delete=0))
    first, _ = pair(vault)
    flip_chunk(vault, vault.objects("pack")[0])
    reads = vault.plan = Reads(vault)
    vault.delete(first)
    vault.run()
    assert vault.receipt(first)["verified"] is None
    assert reads.count == 0
    assert vault.suspects() == {}


@pytest.mark.parametrize("budget", [1, 5_000, 40_000, 100_000])
def test_the_budget_is_kept_to_the_byte_and_used(tmp_path: Path, budget: int) -> None:
    """No more bytes of chunks are got from the store than it says, whatever lies between them; and as many as fit."""
    inner = Counting()
    vault = Harsh(tmp_path, Options(chunk_average=4096, pack_target=32768, reclaim_budget=0, verify_after_delete=budget), inner)
    keys = [vault.backup(data) for data in generations(4)]
    inner.chunk_bytes = 0
    found = vault.remove(keys[1])
    assert inner.chunk_bytes <= budget
    assert found["bytes"] <= inner.chunk_bytes
    assert found["bytes"] >= budget * 0.5 - 16_384, "what is left over is less than a chunk"
    assert found["of_bytes"] > budget
    assert found["ended_early"] is None


class Counting(MemoryStore):
    """Counts what is got other than from the end of objects, where their index is."""

    chunk_bytes = 0

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        data = super().get(name, start, length)
        if start >= 0:
            self.chunk_bytes += len(data)
        return data


def test_what_rewriting_wrote_comes_first(tmp_path: Path) -> None:
    """With a budget for little, only objects that this delete has just written are read."""
    vault = Harsh(tmp_path, Options(chunk_average=4096, pack_target=32768, verify_after_delete=20_000))
    keys = scattered(vault)
    for key in keys[:3]:
        before = set(vault.objects("rewrite"))
        reads = vault.plan = Reads(vault)
        found = vault.remove(key)
        assert vault.receipt(key)["reclaimed"]["written"] > 20_000
        assert set(reads.names) <= set(vault.objects("rewrite")) - before
        assert 0 < found["bytes"] <= 20_000
    vault.check()


def test_packs_that_lost_chunks_come_before_the_others(tmp_path: Path) -> None:
    """With a budget for a part, without rewriting: packs with a hole that this delete made are read, others after them."""
    vault = Harsh(tmp_path, Options(chunk_average=4096, pack_target=32768, reclaim_budget=0, verify_after_delete=10_000))
    whole, holed = noise(150_000, 1), noise(150_000, 2)
    vault.backup({"whole": whole})
    second = vault.backup({"whole": whole, "holed": holed})
    vault.backup({"whole": whole, "holed": holed[:60_000] + noise(5_000, 9) + holed[65_000:]})
    reads = vault.plan = Reads(vault)
    vault.remove(second)
    with vault.catalog.read() as conn:
        query = sa.select(t.object_.c.name, t.object_.c.dead_bytes).where(t.object_.c.name.in_(reads.names))
        assert all(row.dead_bytes > 0 for row in conn.execute(query))
    assert reads.count


def test_of_a_large_lineage_a_sample_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has more packs than are looked at, something of it is read, another time something else, and how much there is
    is not said."""
    monkeypatch.setattr(aftercheck, "LOOK", 2)
    vault = Harsh(tmp_path, SMALL)
    keys = [vault.backup({"a": SHARED, "b": noise(2_000, number)}) for number in range(8)]
    seen = []
    for key in keys[:6]:
        reads = vault.plan = Reads(vault)
        found = vault.remove(key)
        assert found["of_bytes"] is None
        assert found["bytes"] > 0
        seen.append(frozenset(reads.names))
    assert len(set(seen)) > 1


def test_lineages_of_one_backup_share_the_budget(tmp_path: Path) -> None:
    """A backup of two parts, as a cluster's: each lineage gets its half, and what the first leaves goes to the second."""
    vault = Harsh(tmp_path, Options(chunk_average=4096, pack_target=32768, reclaim_budget=0, verify_after_delete=0))
    first, _ = pair(vault)
    vault.engine.databases["plain://second"] = {}
    vault.source, source = vault._register("second"), vault.source
    vault.engine.databases["plain://source"], vault.engine.databases["plain://second"] = {}, {"a": SHARED}
    other = in_second(vault)
    in_second(vault)
    for key in (first, other):
        vault.delete(key)
    vault.run()
    with vault.catalog.write() as conn:
        conn.execute(sa.update(t.decision).where(t.decision.c.backup == other).values(backup=first))
    read: dict[str, int] = {}
    vault.options = Options(verify_after_delete=60_000)
    vault.restart()

    def count(effect: Effect) -> None:
        lineage = effect.names[0].split("/")[0]
        read[lineage] = read.get(lineage, 0) + (effect.phase == "before" and effect.kind == "get")

    vault.plan = count
    aftercheck.verify(vault.ctx, Idle(), first, [])
    found = vault.verified(first)
    assert len(read) == 2
    assert all(read.values())
    assert 40_000 < found["bytes"] <= 60_000
    assert found["of_bytes"] > 300_000
    assert source != vault.source


def in_second(vault: Harsh) -> str:
    key, _ = creation.create(vault.ctx, vault.project, vault.source, creation.Wanted("b"), lambda conn, key: None)
    vault.run()
    assert vault.state(key) == "COMPLETED"
    return key


class Idle:
    """A job that is nobody's."""

    def __init__(self) -> None:
        self.id, self.epoch, self.attempts = "job", 1, 1
        self.args: Mapping[str, Any] = {}

    def guard(self, conn: sa.Connection) -> None:
        pass

    def check(self) -> None:
        pass

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        pass

    def finish(self, conn: sa.Connection, result: Any) -> None:
        raise NotImplementedError

    def fail(self, conn: sa.Connection, reason: str) -> None:
        raise NotImplementedError


# ---- what is damaged -----------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_shared_pack_is_found_by_the_delete_of_its_neighbour_and_healed_by_the_next_backup(
    vault: Harsh,
) -> None:
    """The receipt names object and backup, the chunk and no other is suspect, the audit trail has it; the backup after stores
    it anew and restores."""
    first, second = pair(vault)
    name = vault.objects("pack", backup=first)[0]
    pack = flip_chunk(vault, name, 2)
    found = vault.remove(first)
    assert found["damaged"] == [{"name": name, "what": "chunks", "chunks": 1, "backups": [second]}]
    assert (found["damaged_objects"], found["ended_early"]) == (1, None)
    assert found["bytes"] == found["of_bytes"]
    assert vault.suspects() == {pack: {2}}
    with vault.catalog.read() as conn:
        (row,) = conn.execute(sa.select(identity.audit).where(identity.audit.c.event == "StrongroomDamageFound")).all()
    assert (row.resource_id, row.level) == (second, "Major")
    assert json.loads(row.detail)["objects"] == [name]
    third = vault.backup(vault.wanted[second])
    assert vault.read_back(third) == vault.wanted[third]
    del vault.wanted[second]
    assert vault.remove(second)["damaged_objects"] == 0
    vault.check()


@pytest.mark.parametrize(("kind", "what"), [("removed", "missing"), ("index", "unreadable")])
def test_an_object_that_is_gone_or_does_not_open_is_found(vault: Harsh, kind: str, what: str) -> None:
    """All that it holds and still lives is suspect, and the next backup heals it; the delete completes."""
    first, second = pair(vault)
    name = vault.objects("pack", backup=first)[0]
    ((pack, held),) = vault.index(name).packs.items()
    if kind == "removed":
        remove(vault.inner, name)
    else:
        flip(vault.inner, name, -80)
    found = vault.remove(first)
    (told,) = found["damaged"]
    assert (told["name"], told["what"], told["backups"]) == (name, what, [second])
    with vault.catalog.read() as conn:
        row = conn.execute(sa.select(t.pack).where(t.pack.c.id == pack)).one()
    assert vault.suspects() == {pack: set(held.numbers.tolist()) - set(BitMap.deserialize(row.gone) if row.gone else ())}
    third = vault.backup(vault.wanted[second])
    assert vault.read_back(third) == vault.wanted[third]


def test_a_chunk_that_no_object_holds_by_the_catalog_is_found(vault: Harsh) -> None:
    """A holding that is gone behind everybody's back: the pack's chunks are suspect."""
    first, second = pair(vault)
    ((pack, _),) = vault.index(vault.objects("pack", backup=first)[0]).packs.items()
    with vault.catalog.write() as conn:
        conn.execute(sa.delete(t.holding).where(t.holding.c.pack == pack))
    vault.delete(first)
    vault.run()
    (told,) = vault.verified(first)["damaged"]
    assert (told["name"], told["what"], told["backups"]) == (f"{vault.lineage()}/pack {pack}", "chunks", [second])
    assert vault.suspects().keys() == {pack}


def test_many_damaged_objects_are_counted_and_some_are_listed(vault: Harsh, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row stays small whatever was found."""
    monkeypatch.setattr(aftercheck, "MOST", 2)
    first, _ = pair(vault)
    flipped = vault.objects("pack", backup=first)[:4]
    for name in flipped:
        flip(vault.inner, name, -80)
    found = vault.remove(first)
    assert found["damaged_objects"] == 4
    assert len(found["damaged"]) == 2


def test_a_pack_in_several_objects_is_read_where_the_catalog_says(vault: Harsh) -> None:
    """As after a rebuild that found the same chunks twice: one of the two is read."""
    first, _ = pair(vault)
    name = vault.objects("pack", backup=first)[0]
    ((pack, _),) = vault.index(name).packs.items()
    with vault.catalog.write() as conn:
        row = conn.execute(sa.select(t.object_).where(t.object_.c.name == name)).one()
        held = conn.execute(sa.select(t.holding).where(t.holding.c.object == row.id)).one()
        twin = row._asdict() | {"id": "f" * 32, "name": f"{row.lineage}/rewrite/{'f' * 32}", "kind": "rewrite"}
        conn.execute(t.object_.insert().values(**twin))
        conn.execute(t.holding.insert().values(**(held._asdict() | {"object": "f" * 32})))
    vault.inner.put_new(f"{row.lineage}/rewrite/{'f' * 32}", b"never looked at")
    assert vault.remove(first)["damaged"] == []
    assert vault.suspects() == {}
    assert pack


def merge(vault: Harsh, objects: Sequence[str], key: str = "e" * 32) -> str:
    """Puts one object that holds what these hold, as regrouping makes them, and its row; returns its name."""
    lineage = vault.lineage()
    held = [one for name in objects for one in vault.index(name).packs.values()]
    sealed = [
        vault.inner.get(name, offset, length)
        for name in objects
        for one in vault.index(name).packs.values()
        for offset, length in zip(one.offsets.tolist(), one.lengths.tolist(), strict=True)
    ]
    tail = seal_index(vault.ctx.keys(lineage), lineage, key, vault.ambient.key(), held)
    name = f"{lineage}/rewrite/{key}"
    size = vault.inner.put_new(name, [object_header(), *sealed, tail])
    with vault.catalog.write() as conn:
        rows = conn.execute(sa.select(t.object_).where(t.object_.c.name.in_(objects))).all()
        facts = {"live": sum(row.live for row in rows), "dead_bytes": sum(row.dead_bytes for row in rows), "bytes": size}
        new = rows[0]._asdict() | {"id": key, "name": name, "kind": "rewrite", **facts}
        conn.execute(t.object_.insert().values(**new))
    return name


def take_over(vault: Harsh, objects: Sequence[str], key: str = "e" * 32) -> None:
    """The new object is the one from now on, and these are gone."""
    with vault.catalog.write() as conn:
        olds = conn.execute(sa.select(t.object_.c.id).where(t.object_.c.name.in_(objects))).scalars().all()
        conn.execute(sa.update(t.holding).where(t.holding.c.object.in_(olds)).values(object=key))
        conn.execute(sa.delete(t.object_).where(t.object_.c.id.in_(olds)))
    for old in objects:
        vault.inner.delete(old)


def hold(vault: Harsh, pack: int, parts: Mapping[str, BitMap]) -> None:
    """The catalog says that these objects, by id, hold the pack's chunks."""
    with vault.catalog.write() as conn:
        row = conn.execute(sa.select(t.holding).where(t.holding.c.pack == pack)).one()._asdict()
        conn.execute(sa.update(t.pack).where(t.pack.c.id == pack).values(moved=True))
        conn.execute(sa.delete(t.holding).where(t.holding.c.pack == pack))
        for key, numbers in parts.items():
            lengths = vault.index(f"{vault.lineage()}/rewrite/{key}").packs[pack].lengths
            sizes = lengths[np.array(numbers.to_array(), np.uint32)]
            values = {"object": key, "numbers": numbers.serialize(), "sizes": to_sizes(sizes), "bytes": int(sizes.sum())}
            conn.execute(t.holding.insert().values(row | values))


def test_an_object_of_many_packs_is_read_at_once_and_told_once(vault: Harsh) -> None:
    """As regrouping makes them: its chunks of all packs come by few reads; damage in several of its packs is one object's."""
    first, second = pair(vault)
    packs = vault.objects("pack", backup=first)
    name = merge(vault, packs)
    take_over(vault, packs)
    index = vault.index(name)
    assert len(index.packs) > 4
    held = list(index.packs.values())
    flip(vault.inner, name, int(held[0].offsets[0]) + 20, int(held[3].offsets[-1]) + 20)
    reads = vault.plan = Reads(vault)
    found = vault.remove(first)
    assert found["bytes"] == found["of_bytes"]
    assert [(one["name"], one["what"], one["chunks"], one["backups"]) for one in found["damaged"]] == [
        (name, "chunks", 2, [second])
    ]
    assert reads.names.count(name) <= 6


def two_halves(vault: Harsh, first: str) -> tuple[int, list[str], list[BitMap]]:
    """All of a backup's packs in two objects, of one of the packs half of the chunks in each; both objects have all of that one:
    the pack, the objects, and what the catalog says that each holds of it."""
    apart, *rest = vault.objects("pack", backup=first)
    (held,) = vault.index(apart).packs.values()
    middle = len(held.numbers) // 2
    halves = [BitMap(range(middle)), BitMap(range(middle, len(held.numbers)))]
    merged = [merge(vault, [apart, *rest[::2]]), merge(vault, [apart, *rest[1::2]], "d" * 32)]
    take_over(vault, [apart, *rest[::2]])
    take_over(vault, rest[1::2], "d" * 32)
    hold(vault, held.pack, {"e" * 32: halves[0], "d" * 32: halves[1]})
    return held.pack, merged, halves


@pytest.mark.parametrize("budget", [64 << 20, 5_000])
def test_a_pack_whose_chunks_lie_in_two_objects_is_read_in_both(tmp_path: Path, budget: int) -> None:
    """As regrouping leaves them: each object is read for what the catalog says it holds, within the budget."""
    vault = Harsh(tmp_path, Options(chunk_average=4096, pack_target=32768, reclaim_budget=0, verify_after_delete=budget))
    first, _ = pair(vault)
    pack, merged, halves = two_halves(vault, first)
    for name, half in zip(merged, reversed(halves), strict=True):  # what the other one is to be read for
        held = vault.index(name).packs[pack]
        flip(vault.inner, name, *(int(held.offsets[number]) + 20 for number in half))
    found = vault.remove(first)
    assert found["damaged"] == []
    assert found["bytes"] == found["of_bytes"] if budget > 5_000 else found["bytes"] <= 5_000


def test_objects_that_are_met_several_times_are_told_once(vault: Harsh) -> None:
    """Two damaged objects that share a pack: whichever pack they are met by, the receipt names two and counts all chunks."""
    first, second = pair(vault)
    _, merged, _ = two_halves(vault, first)
    for name in merged:
        flip(vault.inner, name, *range(HEADER_BYTES + 20, len(vault.inner.get(name)) - 2_000, 500))
    found = vault.remove(first)
    assert found["damaged_objects"] == 2
    assert {one["name"] for one in found["damaged"]} == set(merged)
    assert all(one["backups"] == [second] for one in found["damaged"])
    told = sum(one["chunks"] for one in found["damaged"])
    assert told == sum(len(numbers) for numbers in vault.suspects().values())
    report = aftercheck.Verified()
    reading = aftercheck._Reading(vault.ctx, Idle(), first, report, 0)
    for chunks, backups in ((2, ["b"]), (3, ["a", "b"])):
        reading.tell({"name": "one", "what": "chunks", "chunks": chunks, "backups": backups})
    assert report.damaged == [{"name": "one", "what": "chunks", "chunks": 5, "backups": ["a", "b"]}]
    assert report.damaged_objects == 1


def test_damage_in_what_is_freed_before_it_is_marked_is_nobody_s(tmp_path: Path) -> None:
    """At any read of the delete that finds it, all the others are deleted: their packs are gone, and nothing is suspect."""
    world = Harsh(tmp_path / "world", SMALL)
    first, second = pair(world)
    flip_chunk(world, world.objects("pack", backup=first)[0], 2)
    saved = world.save()
    vault: Harsh | None = None
    told, at, ran = [], 1, True
    while ran:
        vault = revived(tmp_path / "again", saved, vault)
        reads = vault.plan = Reads(vault, at, others(vault, [second]))
        told.append(vault.remove(first)["damaged_objects"])
        ran = reads.count >= at
        assert vault.suspects() == {} or not ran
        at += 2
    assert told[0] == 0
    assert told[-1] == 1
    assert len(told) > 4


def test_indexes_are_kept_within_bounds(vault: Harsh, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many objects few are kept opened, and all is read all the same."""
    monkeypatch.setattr(aftercheck, "_INDEXES", 2)
    first, _ = pair(vault)
    found = vault.remove(first)
    assert found["bytes"] == found["of_bytes"] > 0


def test_a_store_without_this_catalog_s_own_mark_is_judged_no_further(vault: Harsh) -> None:
    """As with a disk that is not mounted: nothing is suspect, the receipt says why it ended."""
    first, _ = pair(vault)

    def unmount() -> None:
        for stat in list(vault.inner.list("")):
            vault.inner.delete(stat.name)

    vault.plan = Reads(vault, 1, unmount)
    found = vault.remove(first)
    assert "mark" in found["ended_early"]
    assert (found["damaged"], vault.suspects()) == ([], {})


# ---- never in the delete's way -------------------------------------------------------------------------------------------


FAILURES = (StoreUnavailable("store not reachable"), StoreDenied("no rights"), StoreError("odd"))


def test_a_store_that_fails_at_any_read_ends_it_early_and_the_delete_completes(tmp_path: Path) -> None:
    """Whichever read fails, in whichever way: DELETED at the first attempt, with a receipt that says how far it came and why;
    nothing is suspect."""
    world = Harsh(tmp_path / "world", SMALL)
    first, _ = pair(world)
    saved = world.save()
    vault: Harsh | None = None
    for at in range(1, 60):
        error = FAILURES[at % len(FAILURES)]
        vault = revived(tmp_path / "again", saved, vault)
        reads = vault.plan = Reads(vault, at, answer(Fail(error)))
        job = vault.delete(first)
        vault.worker.step()
        assert vault.job(job).state == "DONE"
        found = vault.verified(first)
        if reads.count < at:
            break
        assert found["ended_early"].endswith(f"MiB: {error}")
        assert found["ended_early"].startswith("verified 0.")
        assert found["bytes"] < found["of_bytes"]
        assert vault.suspects() == {}
        vault.plan = working
        vault.check()
    assert at > 5
    assert found["ended_early"] is None


def answer(fault: Fail) -> Callable[[], Fail]:
    """What a store does, always the same."""
    return lambda: fault


def working(_effect: Effect) -> None:
    """A store without faults."""


def test_a_slow_store_ends_it_early(vault: Harsh) -> None:
    """The receipt does not wait longer than a minute."""
    first, _ = pair(vault)
    vault.plan = Reads(vault, 3, lambda: vault.clock.sleep(aftercheck.LONGEST + 1))
    found = vault.remove(first)
    assert "slow" in found["ended_early"]
    assert 0 < found["bytes"] < found["of_bytes"]


def test_keys_that_do_not_open_end_it_early(vault: Harsh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is judged by a key that is not the lineage's."""
    first, _ = pair(vault)

    def broken(root: RootKey, lineage: str, sealed: bytes) -> LineageKeys:
        return open_lineage_keys(root, lineage, bytes([sealed[0]]) + sealed[1:-1] + bytes([sealed[-1] ^ 1]))

    monkeypatch.setattr("strongroom.backups.aftercheck.open_lineage_keys", broken)
    found = vault.remove(first)
    assert found["ended_early"].startswith("verified 0.0 of ")
    assert vault.suspects() == {}


def test_dying_at_any_effect_changes_nothing_of_the_delete(tmp_path: Path) -> None:
    """The process dies between any two effects of the deletion and another goes on: DELETED, exact, and verified once."""
    world = Harsh(tmp_path / "world", REWRITES)
    keys = scattered(world, 3)
    flip_chunk(world, world.objects("pack", backup=keys[0])[0], 1)
    saved = world.save()
    vault: Harsh | None = None
    at, whole = 1, None
    while whole is None:
        vault = revived(tmp_path / "again", saved, vault)
        vault.delete(keys[1])
        with vault.dying(at) as fate:
            vault.run()
        whole = fate.count if fate.alive else None
        vault.restart()
        vault.run()
        assert vault.state(keys[1]) == "DELETED"
        found = vault.verified(keys[1])
        assert found["ended_early"] is None
        assert found["bytes"] > 0
        assert all(one["what"] == "chunks" and one["chunks"] == 1 for one in found["damaged"])
        assert {number for numbers in vault.suspects().values() for number in numbers} == {1}
        vault.check_accounts()
        at += 5
    assert whole > 60


def revived(folder: Path, saved: Any, instead: Harsh | None) -> Harsh:
    vault = Harsh.revive(folder, saved, instead)
    assert isinstance(vault, Harsh)
    return vault


def test_a_delete_that_goes_on_does_not_read_the_same_again(vault: Harsh, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies after what was verified is in its row: the next run only ends."""
    first, _ = pair(vault)
    vault.delete(first)
    finish = deletion.DeleteJob._finish

    def die(*_: Any) -> None:
        raise Draining

    monkeypatch.setattr(deletion.DeleteJob, "_finish", die)
    vault.worker.step()
    before = vault.verified(first)
    monkeypatch.setattr(deletion.DeleteJob, "_finish", finish)
    reads = vault.plan = Reads(vault)
    vault.run()
    assert vault.state(first) == "DELETED"
    assert (reads.count, vault.verified(first)) == (0, before)


def test_what_a_resumed_delete_rewrites_is_read_with_what_is_left_of_the_budget(tmp_path: Path) -> None:
    """The second reading adds to the first."""
    vault = Harsh(tmp_path, REWRITES)
    keys = scattered(vault)
    first = vault.remove(keys[0])
    rewritten = vault.objects("rewrite")
    assert rewritten
    aftercheck.verify(vault.ctx, Idle(), keys[0], rewritten[:1])
    again = vault.verified(keys[0])
    assert again["bytes"] > first["bytes"]
    assert again["of_bytes"] == first["of_bytes"]
    vault.options = Options(verify_after_delete=1)
    vault.restart()
    aftercheck.verify(vault.ctx, Idle(), keys[0], rewritten[:1])
    assert vault.verified(keys[0])["bytes"] == again["bytes"]


def test_a_worker_that_lost_the_delete_stops_reading_and_writes_nothing(vault: Harsh) -> None:
    """Paused at a read and replaced: the other one completes the delete, and this one does not touch its receipt."""
    first, _ = pair(vault)
    other = vault.another_process()

    def replaced() -> None:
        vault.clock.sleep(100)
        assert other.step() is not None

    reads = vault.plan = Reads(vault, 2, replaced)
    vault.delete(first)
    mine = vault.worker.claim()
    assert mine is not None
    assert not vault.worker.run_claimed(mine)
    assert reads.count == 2
    assert vault.state(first) == "DELETED"
    assert vault.verified(first)["ended_early"] is None


def test_a_server_that_stops_leaves_the_delete_to_the_next_run(vault: Harsh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draining is asked for between two reads: the job is queued again and completes."""
    first, _ = pair(vault)
    vault.delete(first)
    mine = vault.worker.claim()
    assert mine is not None

    def drain() -> None:
        monkeypatch.setattr(mine, "check", stopping)

    def stopping() -> None:
        raise Draining

    reads = vault.plan = Reads(vault, 2, drain)
    assert vault.worker.run_claimed(mine)
    assert reads.count == 2
    assert vault.state(first) == "DELETING"
    vault.run()
    assert vault.state(first) == "DELETED"
    assert vault.verified(first)["ended_early"] is None


# ---- beside others -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", ["one", "all"])
def test_what_others_rewrite_or_remove_meanwhile_is_no_damage(tmp_path: Path, rest: str) -> None:
    """At any read another delete of the lineage runs to its end, of the next backup or of all: nothing is called damaged, and
    what was moved is read where it is now."""
    world = Harsh(tmp_path / "world", REWRITES)
    keys = scattered(world)
    saved = world.save()
    vault: Harsh | None = None
    at, ran = 1, True
    while ran:
        vault = revived(tmp_path / "again", saved, vault)
        act = others(vault, keys[1:2] if rest == "one" else keys[1:])
        reads = vault.plan = Reads(vault, at, act)
        found = vault.remove(keys[0])
        ran, vault.plan = reads.count >= at, working
        assert found == {**found, **SOUND}
        assert vault.suspects() == {}
        if rest == "one" and ran:
            assert found["bytes"] > 100_000
        vault.check()
        at += 2
    assert at > 8


def others(vault: Harsh, keys: list[str]) -> Callable[[], None]:
    worker = vault.another_process()

    def delete() -> None:
        for key in keys:
            vault.delete(key)
        while worker.step() is not None:
            pass

    return delete


def test_a_read_that_was_wrong_once_is_no_damage(tmp_path: Path) -> None:
    """A bit that was lost on the way, at any read: nothing is suspect, the receipt is clean."""
    for at in range(1, 80, 2):
        liar = Liar()
        vault = Harsh(tmp_path / f"{at}", SMALL, liar)
        first, _ = pair(vault)
        reads = vault.plan = Reads(vault, at, liar.lie)
        found = vault.remove(first)
        assert found == {**found, **SOUND}
        assert vault.suspects() == {}
        if reads.count < at:
            break
    assert at > 5


def test_an_object_that_was_missing_once_is_no_damage(vault: Harsh) -> None:
    """A store that did not find it, and finds it when asked again."""
    first, _ = pair(vault)
    reads = vault.plan = Reads(vault, 2, lambda: Fail(ObjectMissing("not now")))
    found = vault.remove(first)
    assert reads.count > 2
    assert found == {**found, **SOUND}


class Liar(MemoryStore):
    """Flips a bit of the next answer where it is told to."""

    lying = False

    def lie(self) -> None:
        self.lying = True

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        data = super().get(name, start, length)
        if self.lying:
            self.lying = False
            middle = len(data) - 80 if start < 0 else len(data) // 2
            return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return data


@pytest.mark.parametrize("seed", range(6))
def test_random_damage_is_found_where_it_is_shared_and_nowhere_else(tmp_path: Path, seed: int) -> None:
    """Random bits of random packs in five generations, one deleted: what becomes suspect is damaged, lives, and was needed by
    the deleted backup; all of that is found."""
    rnd = random.Random(seed)
    vault = Harsh(tmp_path, SMALL)
    keys = [vault.backup(data) for data in generations(5, seed + 1)]
    victim = rnd.choice(keys)
    mine = named(vault, victim)
    others = [named(vault, key) for key in keys if key != victim]
    broken: dict[int, set[int]] = {}
    for name in rnd.sample(vault.objects("pack"), 5):
        (held,) = vault.index(name).packs.values()
        numbers = rnd.sample(held.numbers.tolist(), min(2, len(held.numbers)))
        broken[flip_chunk(vault, name, *numbers)] = set(numbers)
    vault.remove(victim)
    expected = {
        pack: {n for n in numbers if n in mine.get(pack, ()) and any(n in one.get(pack, ()) for one in others)}
        for pack, numbers in broken.items()
    }
    assert vault.suspects() == {pack: numbers for pack, numbers in expected.items() if numbers}


# ---- bugs of rewriting, planted ------------------------------------------------------------------------------------------


class Planted(MemoryStore):
    """A store into which rewriting writes something else than it has read."""

    bug: Callable[[bytes], bytes] | None = None

    def put_new(self, name: str, data: bytes | memoryview | Sequence[bytes | memoryview]) -> int:
        if self.bug is None or "/rewrite/" not in name:
            return super().put_new(name, data)
        whole = bytes(data) if isinstance(data, (bytes, memoryview)) else b"".join(data)
        return super().put_new(name, self.bug(whole))


def wrong_byte(data: bytes) -> bytes:
    """One byte of a chunk is not what was read."""
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


def wrong_place(data: bytes) -> bytes:
    """What belongs behind lies in front."""
    start, middle, end = HEADER_BYTES, HEADER_BYTES + 300, HEADER_BYTES + 600
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def cut_off(data: bytes) -> bytes:
    """The end is missing."""
    return data[:-30]


@pytest.mark.parametrize("bug", [wrong_byte, wrong_place, cut_off])
def test_a_rewrite_that_writes_something_else_is_found_by_its_own_delete(tmp_path: Path, bug: Callable[[bytes], bytes]) -> None:
    """Every new object is named in the receipt, and the next backup is whole."""
    inner = Planted()
    vault = Harsh(tmp_path, REWRITES, inner)
    keys = scattered(vault)
    inner.bug = bug
    found = vault.remove(keys[0])
    inner.bug = None
    rewritten = vault.objects("rewrite")
    assert rewritten
    assert found["damaged_objects"] == len(rewritten)
    assert {one["name"] for one in found["damaged"]} == set(rewritten)
    data = vault.engine.databases["plain://source"]
    assert vault.read_back(vault.backup(data)) == data


def test_a_rewrite_that_drops_a_chunk_is_found_by_its_own_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new object's index lacks a living chunk that the catalog says it holds."""
    vault = Harsh(tmp_path, REWRITES)
    keys = scattered(vault)

    def without_the_last(keys: Any, lineage: str, key: str, index_key: bytes, held: list[HeldPack], level: int = 1) -> bytes:
        *rest, last = held
        fewer = replace(last, numbers=last.numbers[:-1], lengths=last.lengths[:-1])
        return seal_index(keys, lineage, key, index_key, [*rest, fewer], level)

    monkeypatch.setattr(copying, "seal_index", without_the_last)
    found = vault.remove(keys[0])
    monkeypatch.setattr(copying, "seal_index", seal_index)
    assert found["damaged_objects"] == len(vault.objects("rewrite")) > 0
    assert all((one["what"], one["chunks"]) == ("chunks", 1) for one in found["damaged"])


def test_a_chunk_that_rewriting_forgot_in_the_catalog_too_is_found_by_its_own_delete(tmp_path: Path) -> None:
    """A living chunk that no row holds any more is missed by its pack."""
    vault = Harsh(tmp_path, REWRITES)
    keys = scattered(vault)

    def forget() -> None:
        with vault.catalog.write() as conn:
            query = sa.select(t.holding).where(t.holding.c.numbers.is_not(None))
            for row in conn.execute(query).all():
                fewer = BitMap(sorted(BitMap.deserialize(row.numbers))[1:]).serialize()
                here = sa.and_(t.holding.c.object == row.object, t.holding.c.pack == row.pack)
                conn.execute(sa.update(t.holding).where(here).values(numbers=fewer))

    vault.plan = BeforeReading(vault, forget)
    found = vault.remove(keys[0])
    assert found["damaged_objects"] > 0
    assert all(" " in one["name"] for one in found["damaged"]), "it is nowhere"


class BeforeReading(Reads):
    """Does something once, when the last condemned object goes."""

    def __init__(self, vault: Harsh, act: Callable[[], Any]) -> None:
        super().__init__(vault)
        self.act_once = act
        self.done = False

    def __call__(self, effect: Effect) -> Fail | None:
        looked = effect.kind == "stat" and effect.phase == "after" and "/pack/" in effect.names[0]
        if not self.done and looked and self.rewritten():
            self.done = True
            self.act_once()
        return None

    def rewritten(self) -> bool:
        """Whether rewriting is over but for what it replaced."""
        return bool(self.vault.objects("rewrite"))


# ---- the arithmetic ------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows() -> Iterator[Rows]:
    catalog = empty_catalog()
    with rolled_back(catalog) as rows:
        rows.parts(1, 2, 4, 5)
        rows.part(3, "RETIRED")
        rows.parts(*range(1, 6), lineage=OTHER)
        for key, born in ((10, 1), (11, 1), (12, 2), (13, 3), (14, 3), (15, 4)):
            rows.pack(key, born, gone=[3] if key in (10, 12) else [])
            rows.pack(key, born, lineage=OTHER)
        rows.pack(16, 2, stored=False)
        rows.pack(17, 9, lineage=OTHER)
        rows.death(10, 1, 1, [0])  # before 3
        rows.death(11, 1, 2, [0, 1])
        rows.death(11, 1, 2, [2], closer=9, attempt=1)  # never counted
        rows.death(11, 1, 3, [3], closer=4)  # with the deleted one's end: its older neighbours need it
        rows.death(12, 2, 4, [1])  # after 3
        for pack, last in ((11, 1), (12, 2), (13, 3), (14, 3)):
            rows.death(pack, 1, last, [2, 3], lineage=OTHER)
        yield rows
    catalog.close()


def test_shared_is_what_lives_and_the_part_that_left_needed(rows: Rows) -> None:
    """Neither what died before it, nor what is gone, nor what was born after it; what has not been committed closes nothing."""
    found = lifespans.shared(rows.conn, OURS, 3, [10, 11, 12, 13, 15])
    assert {pack: set(numbers) for pack, numbers in found.items()} == {
        10: {1, 2}, 11: {2, 3}, 12: {0, 1, 2}, 13: {0, 1, 2, 3},
    }  # fmt: skip
    assert lifespans.shared(rows.conn, OURS, 1, [10, 12]) == {10: BitMap([0, 1, 2])}
    rows.pack(18, 1)
    rows.death(18, 1, 2, range(4))
    assert lifespans.shared(rows.conn, OURS, 3, [18]) == {}
    assert lifespans.shared(rows.conn, OURS, 3, []) == {}


def test_shared_bytes_are_those_of_all_that_is_shared(rows: Rows) -> None:
    """The same added up by the database, for every part."""
    for seq in range(1, 6):
        shared = lifespans.shared(rows.conn, OURS, seq, [10, 11, 12, 13, 14, 15])
        assert lifespans.shared_bytes(rows.conn, OURS, seq) == CHUNK * sum(len(numbers) for numbers in shared.values())


@pytest.mark.parametrize(
    ("start", "limit", "packs", "every"),
    [
        (0, 7, [10, 11, 12, 13, 14], True),
        (13, 7, [13, 14, 10, 11, 12], True),
        (13, 6, [13, 14, 10, 11, 12], False),  # as many as were looked at: there may be more
        (12, 2, [12, 13], False),
        (15, 3, [10, 11], False),
        (99, 2, [10, 11], False),
    ],
)
def test_packs_to_choose_from_are_those_from_a_place_on_and_round_again(
    rows: Rows, start: int, limit: int, packs: list[int], every: bool
) -> None:
    """In order of their ids, stored, of this lineage, born up to the part; and whether they are all."""
    found, all_of_it = lifespans.packs_up_to(rows.conn, OURS, 3, start, limit)
    assert ([row.id for row in found], all_of_it) == (packs, every)
    assert [row.born for row in found] == [{10: 1, 11: 1, 12: 2, 13: 3, 14: 3}[row.id] for row in found]
    assert [row.gone_bytes for row in found] == [CHUNK * (row.id in (10, 12)) for row in found]


@pytest.mark.parametrize(("limit", "every"), [(3, True), (2, False), (1, False)])
def test_where_most_packs_are_younger_the_older_are_found_by_birth(rows: Rows, limit: int, every: bool) -> None:
    """A window that shows none of them does not mean that there are none."""
    found, all_of_it = lifespans.packs_up_to(rows.conn, OURS, 1, 12, limit)
    assert ({row.id for row in found}, all_of_it) == ({10, 11} if limit > 1 else {found[0].id}, every)
    assert {row.id for row in found} <= {10, 11}


@pytest.mark.parametrize(
    ("most", "owned", "reads"),
    [
        (64 << 20, 10 << 30, 64 << 20),
        (64 << 20, 9 << 20, 9 << 20),
        (64 << 20, 5, 4 << 20),
        (1000, 9 << 20, 1000),
        (1000, 5, 1000),
    ],
)
def test_no_more_is_read_back_than_the_backup_owned(most: int, owned: int, reads: int) -> None:
    """Within the setting; 4 MiB at least where that allows it."""
    assert aftercheck.budget(most, owned) == reads
