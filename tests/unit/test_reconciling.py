"""Comparing store and catalog, and the quarantine: what is told, what is touched, and above all what is not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import quarantining, reconciling, removal
from strongroom.backups.quarantining import NotQuarantined
from strongroom.backups.reconciling import holds_the_rest
from strongroom.backups.staleness import CatalogOutdated
from strongroom.catalog import tables as t
from strongroom.identity import accounts
from strongroom.identity import tables as identity
from strongroom.repository import names
from strongroom.repository.keys import LineageKeys, seal_lineage_keys, seal_owner
from strongroom.storage.base import Store, StoreDenied, StoreUnavailable
from strongroom.storage.faults import Delay, Effect, Empty, Fail, Fault, FaultyStore, Stale
from strongroom.storage.memory import MemoryStore
from support.damage import Keeper, flip, plant, remove, store_of
from support.vault import generations, noise

DATA = {"a": noise(120_000, 1), "b": noise(40_000, 2)}


@pytest.fixture(params=["memory", "directory"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Keeper:
    """A vault on each kind of store."""
    return Keeper(tmp_path, store_of(request.param, tmp_path))


def told(found: Mapping[str, Any], *path: str) -> set[str]:
    """Names in one of the lists."""
    for step in path:
        found = found[step]
    return {one["name"] for one in found["objects"]}


def contents(store: Store) -> dict[str, bytes]:
    """All that the store holds."""
    return {stat.name: store.get(stat.name) for stat in store.list("")}


def rows(vault: Keeper) -> list[Any]:
    """The object rows."""
    with vault.catalog.read() as conn:
        return [tuple(row) for row in conn.execute(sa.select(t.object_).order_by(t.object_.c.id))]


# ---- comparing ----------------------------------------------------------------------------------------------------------


def test_a_store_as_the_catalog_knows_it_is_clean_and_nothing_is_changed(vault: Keeper) -> None:
    """After backups and a delete: every object counted, none told; store and rows are the same as before."""
    keys = [vault.backup(data) for data in generations(3)]
    vault.delete(keys[1])
    vault.run()
    before, known = contents(vault.store), rows(vault)
    found = vault.reconcile()
    assert found["outcome"] == "clean"
    assert (found["lineages"], found["objects"]) == (1, len(before))
    assert found["bytes"] == sum(map(len, before.values()))
    assert (contents(vault.store), rows(vault)) == (before, known)


def test_unknown_objects_are_told_and_never_removed(vault: Keeper) -> None:
    """In a lineage, of another lineage, of no form at all, and a foreign owner mark's like: each with a reason; all stay."""
    vault.backup(DATA)
    lineage = vault.lineage()
    planted = {
        plant(vault.store, names.pack(lineage, 1, 1, "f" * 32)),
        plant(vault.store, f"{lineage}/notes.txt"),
        plant(vault.store, names.pack("e" * 32, 1, 1, "f" * 32)),
        plant(vault.store, "somebody/else"),
    }
    for _ in range(2):
        found = vault.reconcile()
        assert found["outcome"] == "differences"
        assert told(found, "unknown") == planted
        assert all(one["why"] for one in found["unknown"]["objects"])
    assert planted <= set(contents(vault.store))
    for name in planted:
        remove(vault.store, name)
    vault.check()


def test_missing_objects_are_told_with_the_backups_that_need_them(vault: Keeper) -> None:
    """A pack that only the first needs, and one that all three share: each is told with its own backups."""
    still, made = noise(40_000, 5), []
    for number in range(3):
        made.append({"still": still, "own": noise(30_000, 10 + number)})
    keys = [vault.backup(data) for data in made]
    shared, *_ = [name for name in vault.objects("pack", backup=keys[0]) if needed_by(vault, name) == set(keys)]
    own, *_ = [name for name in vault.objects("pack", backup=keys[2]) if needed_by(vault, name) == {keys[2]}]
    for name in (shared, own):
        remove(vault.store, name)
    found = vault.reconcile()
    assert found["outcome"] == "damaged"
    by_name = {one["name"]: set(one["backups"]) for one in found["missing"]["objects"]}
    assert by_name == {shared: set(keys), own: {keys[2]}}
    assert {one["id"] for one in found["backups"]} == set(keys)


def needed_by(vault: Keeper, name: str) -> set[str]:
    """Backups that a restore refuses without the object."""
    data = vault.store.get(name)
    vault.store.delete(name)
    broken = {key for key in vault.wanted if not _restores(vault, key)}
    vault.store.put_new(name, data)
    return broken


def _restores(vault: Keeper, key: str) -> bool:
    job = vault.restore(key)
    vault.run()
    return bool(vault.job(job).state == "DONE")


def test_a_missing_manifest_touches_its_backup_alone(vault: Keeper) -> None:
    """And a key, of which there are two, touches none."""
    first, _second = vault.backup(DATA), vault.backup(DATA)
    (root,) = vault.objects("manifest", backup=first)
    key, _ = vault.objects("key")
    remove(vault.store, root)
    remove(vault.store, key)
    found = vault.reconcile()
    assert {one["name"]: one["backups"] for one in found["missing"]["objects"]} == {root: [first], key: []}


def test_objects_of_another_size_are_told(vault: Keeper) -> None:
    """Cut short and grown, with the size that is there."""
    first = vault.backup(DATA)
    short, long, *_ = vault.objects("pack")
    sizes = {}
    for name, cut, more in ((short, 10, b""), (long, 0, b"x")):
        whole = vault.store.get(name)
        remove(vault.store, name)
        sizes[name] = (len(whole), len(whole) - cut + len(more))
        plant(vault.store, name, whole[: len(whole) - cut] + more)
    found = vault.reconcile()
    assert found["outcome"] == "damaged"
    assert {one["name"]: (one["bytes"], one["found"]) for one in found["wrong_size"]["objects"]} == sizes
    assert [one["id"] for one in found["backups"]] == [first]


@pytest.mark.parametrize("fault", [Empty(), Stale(3), Stale(1000)], ids=["empty", "stale", "from before all"])
def test_a_listing_proves_nothing(tmp_path: Path, fault: Fault) -> None:
    """Empty, stale, or showing what was removed: nothing is called missing or unknown that a look-up by name does not confirm."""
    faults: list[Fault] = []
    store = FaultyStore(
        MemoryStore(), lambda effect: faults[0] if faults and effect.phase == "before" and effect.kind == "list" else None
    )
    vault = Keeper(tmp_path, store)
    keys = [vault.backup(data) for data in generations(3)]
    vault.delete(keys[0])
    vault.run()
    faults.append(fault)
    assert vault.reconcile()["outcome"] == "clean"


def test_a_store_that_lost_the_catalog_s_mark_is_judged_no_further(vault: Keeper) -> None:
    """As with a disk that is not mounted."""
    vault.backup(DATA)
    for stat in list(vault.store.list("")):
        vault.store.delete(stat.name)
    job = reconciling.reconcile(vault.ctx, vault.project, lambda conn: None, outside=True)
    vault.run()
    assert vault.job(job).state == "FAILED"


@pytest.mark.parametrize(("error", "state"), [(StoreUnavailable("away"), "QUEUED"), (StoreDenied("no rights"), "FAILED")])
def test_a_store_that_fails_is_tried_again_if_that_may_help(tmp_path: Path, error: Exception, state: str) -> None:
    """And the reason is told if not."""
    failing: list[bool] = []
    store = FaultyStore(
        MemoryStore(), lambda effect: Fail(error) if failing and effect.phase == "before" and effect.kind == "list" else None
    )
    vault = Keeper(tmp_path, store)
    vault.backup(DATA)
    job = reconciling.reconcile(vault.ctx, vault.project, lambda conn: None, outside=True)
    failing.append(True)
    vault.worker.step()
    assert vault.job(job).state == state


@pytest.mark.parametrize("listing", [None, Empty()], ids=["listed", "nothing listed"])
@pytest.mark.parametrize("moment", [2, 4, 5, 8, 12, 20])
def test_beside_a_delete_and_a_backup_nothing_is_mistaken(tmp_path: Path, moment: int, listing: Fault | None) -> None:
    """Between two effects of a reconciliation on the store a whole delete and a whole backup run: it is clean all the same."""
    steps = Steps()
    vault = Keeper(tmp_path, FaultyStore(MemoryStore(), steps))
    keys = [vault.backup(data) for data in generations(3)]
    job = reconciling.reconcile(vault.ctx, vault.project, lambda conn: None, outside=True)
    running = vault.worker.claim()
    assert running is not None

    def meanwhile() -> None:
        vault.delete(keys[1])
        vault.create({"new": noise(90_000, 77)})
        while (one := vault.worker.claim([running.id])) is not None:
            vault.worker.run_claimed(one)

    steps.listing = listing
    steps.at(moment, meanwhile)
    assert vault.worker.run_claimed(running)
    found = vault.job(job).result
    assert (found["unknown"]["count"], found["missing"]["count"], found["wrong_size"]["count"]) == (0, 0, 0), found
    vault.run()


@pytest.mark.parametrize("moment", range(1, 12))
def test_a_lineage_that_begins_meanwhile_is_not_unknown(tmp_path: Path, moment: int) -> None:
    """The only backup goes, which closes its lineage, and the next one begins another between two effects."""
    steps = Steps()
    vault = Keeper(tmp_path, FaultyStore(MemoryStore(), steps))
    key = vault.backup(DATA)
    job = reconciling.reconcile(vault.ctx, vault.project, lambda conn: None, outside=True)
    running = vault.worker.claim()
    assert running is not None

    def meanwhile() -> None:
        vault.delete(key)
        vault.create(DATA)
        while (one := vault.worker.claim([running.id])) is not None:
            vault.worker.run_claimed(one)

    steps.at(moment, meanwhile)
    assert vault.worker.run_claimed(running)
    assert vault.job(job).result["outcome"] == "clean"
    vault.run()


class Steps:
    """A plan that calls a function once, at its n-th effect from now."""

    listing: Fault | None = None  # what every listing answers

    def __init__(self) -> None:
        self._left = 0
        self._act: Callable[[], object] | None = None

    def at(self, count: int, act: Callable[[], object]) -> None:
        self._left, self._act = count, act

    def __call__(self, effect: Effect) -> Fault | None:
        if self._left:
            self._left -= 1
            if self._left == 0 and self._act is not None:
                self._act()
        return self.listing if effect.kind == "list" and effect.phase == "before" else None


def test_a_catalog_older_than_the_store_is_told(vault: Keeper) -> None:
    """A manifest above the counter: it is unknown here, and the reason says to rebuild."""
    vault.backup(DATA)
    newer = plant(vault.store, names.manifest(vault.lineage(), 99, 1, "f" * 32))
    found = vault.reconcile()
    (one,) = found["unknown"]["objects"]
    assert one["name"] == newer
    assert "rebuild" in one["why"]


# ---- late objects -------------------------------------------------------------------------------------------------------


def late_vault(tmp_path: Path) -> tuple[Keeper, FaultyStore, str, int]:
    """A backup whose put was left under way when its build was given up: its row is LATE, and the put may land at any time."""
    delayed: list[bool] = []
    store = FaultyStore(MemoryStore(), lambda effect: _delay(effect, delayed))
    vault = Keeper(tmp_path, store)
    vault.backup(DATA)
    delayed.append(True)
    broken, _ = vault.create({"c": noise(200_000, 3)})
    vault.run()
    assert vault.state(broken) == "FAILED"
    with vault.catalog.read() as conn:
        rows = conn.execute(sa.select(t.object_.c.name).where(t.object_.c.state == "LATE")).all()
    assert rows
    sent = [number for number, name in enumerate(store.sent) if name in {row.name for row in rows}]
    return vault, store, store.sent[sent[0]], sent[0]


def _delay(effect: Effect, delayed: list[bool]) -> Fault | None:
    wanted = effect.phase == "before" and effect.kind == "put_new" and "/pack/" in effect.names[0]
    return Delay(StoreDenied("no answer for ever")) if delayed and wanted else None


def test_a_put_that_lands_late_is_removed_again_and_again_until_an_operator_closes_it(tmp_path: Path) -> None:
    """Each time it lands the next reconciliation removes it by name; the row goes with close_late only; then it is unknown."""
    vault, store, name, number = late_vault(tmp_path)
    for _ in range(2):
        assert store.deliver_late(number)
        found = vault.reconcile()
        assert told(found, "late", "removed") == {name}
        assert found["late"]["closed"] == 0
        assert found["late"]["rows"] > 0
        assert store.stat(name) is None
        assert found["unknown"]["count"] == 0
    assert store.deliver_late(number)
    closed = vault.reconcile(close_late=True)
    assert closed["late"]["closed"] == closed["late"]["rows"] > 0
    assert store.stat(name) is None
    assert vault.reconcile()["late"]["rows"] == 0
    assert store.deliver_late(number)
    found = vault.reconcile(close_late=True)
    assert told(found, "unknown") == {name}
    assert store.stat(name) is not None
    remove(store, name)
    vault.check()


def test_an_operators_word_is_about_what_is_late_when_it_is_given(tmp_path: Path) -> None:
    """What becomes late before the job runs keeps its row: its writer may be alive."""
    delayed: list[bool] = []
    vault = Keeper(tmp_path, FaultyStore(MemoryStore(), lambda effect: _delay(effect, delayed)))
    vault.backup(DATA)
    delayed.append(True)
    broken, _ = vault.create({"c": noise(200_000, 3)})
    job = reconciling.reconcile(vault.ctx, vault.project, lambda conn: None, outside=True, close_late=True)
    found = vault.ended(job)
    assert vault.state(broken) == "FAILED"
    assert found["late"]["rows"] > found["late"]["closed"] == 0
    closed = vault.reconcile(close_late=True)
    assert closed["late"]["closed"] == closed["late"]["rows"] == found["late"]["rows"]


def test_late_objects_stay_where_the_catalog_is_older_than_the_store(tmp_path: Path) -> None:
    """It may not remove by what it believes: the reason is told, the object and the row stay."""
    vault, store, name, number = late_vault(tmp_path)
    store.deliver_late(number)
    plant(store, names.manifest(vault.lineage(), 99, 1, "f" * 32))
    vault.ctx.checked.clear()
    found = vault.reconcile(close_late=True)
    assert found["outdated"]
    assert (found["late"]["closed"], found["late"]["removed"]["count"]) == (0, 0)
    assert store.stat(name) is not None


def test_a_catalog_whose_store_was_taken_over_removes_nothing(tmp_path: Path) -> None:
    """A rebuilt catalog's mark is there: the job fails with that reason before any removal."""
    vault, store, name, number = late_vault(tmp_path)
    store.deliver_late(number)
    store.put_new(names.owner(2), seal_owner(vault.ctx.root_key, 2))
    job = reconciling.reconcile(vault.ctx, vault.project, lambda conn: None, outside=True)
    vault.run()
    assert vault.job(job).state == "FAILED"
    assert "another catalog" in vault.job(job).error
    assert store.stat(name) is not None


def test_a_removal_that_no_job_carries_out_is_taken_up_again(tmp_path: Path) -> None:
    """The job that was to remove a failed build's objects failed for good: the reconciliation submits it anew, and it ends."""
    denied: list[bool] = []
    vault = Keeper(tmp_path, FaultyStore(MemoryStore(), lambda effect: _deny(effect, denied)))
    vault.backup(DATA)
    denied.append(True)
    vault.create({"c": noise(200_000, 3)})
    vault.run()
    denied.clear()
    found = vault.reconcile()
    assert found["condemned"]["count"] > 0
    assert found["condemned"]["resumed"] == 1
    assert vault.reconcile()["condemned"] == {"count": 0, "bytes": 0, "resumed": 0}
    vault.check()


def _deny(effect: Effect, denied: list[bool]) -> Fault | None:
    wanted = effect.kind == "delete_many" or (effect.kind == "put_new" and "/pack/" in effect.names[0])
    return Fail(StoreDenied("no rights")) if denied and wanted and effect.phase == "before" else None


def test_a_mark_that_no_job_puts_is_put_after_all(tmp_path: Path) -> None:
    """A build ended before it put anything, and the store refused its grave for good: the mark is all that its removal owes."""
    denied: list[bool] = []
    vault = Keeper(tmp_path, FaultyStore(MemoryStore(), lambda effect: _deny_graves(effect, denied)))
    vault.backup(DATA)
    denied.append(True)
    key, _ = vault.create()
    source = vault.engine.databases.pop("plain://source")
    vault.run()
    assert vault.state(key) == "FAILED"
    vault.engine.databases["plain://source"] = source
    denied.clear()
    found = vault.reconcile()
    assert found["condemned"] == {"count": 0, "bytes": 0, "resumed": 1}
    assert vault.reconcile()["condemned"]["resumed"] == 0
    assert vault.store.stat(names.grave(vault.lineage(), 2)) is not None
    vault.check()


def _deny_graves(effect: Effect, denied: list[bool]) -> Fault | None:
    wanted = effect.kind == "put_new" and "/grave/" in effect.names[0]
    return Fail(StoreDenied("read-only")) if denied and wanted and effect.phase == "before" else None


def test_what_a_delete_has_condemned_is_left_to_it(tmp_path: Path) -> None:
    """A reconciliation between decision and removal counts what waits, submits nothing and removes nothing."""
    vault = Keeper(tmp_path, MemoryStore())
    keys = [vault.backup(data) for data in generations(2)]
    job = reconciling.reconcile(vault.ctx, vault.project, lambda conn: None, outside=True)
    running = vault.worker.claim()
    assert running is not None
    vault.delete(keys[0])
    before = contents(vault.store)
    vault.worker.run_claimed(running)
    found = vault.job(job).result
    assert found["condemned"]["count"] > 0
    assert found["condemned"]["resumed"] == 0
    assert contents(vault.store) == before
    vault.run()
    vault.check()


# ---- quarantine ---------------------------------------------------------------------------------------------------------


def test_unknown_objects_are_moved_aside_whole_and_nothing_else_is(vault: Keeper) -> None:
    """Their bytes are below quarantine/ under the names that they had; the rest of the store is the same; then all is clean."""
    vault.backup(DATA)
    before = contents(vault.store)
    planted = [
        plant(vault.store, names.pack(vault.lineage(), 1, 1, "f" * 32), b"late"),
        plant(vault.store, "somebody/else", b"x"),
    ]
    moved = vault.quarantine(*planted, planted[0])
    assert [one.name for one in moved] == planted
    after = contents(vault.store)
    assert {one.moved_to: after[one.moved_to] for one in moved} == {moved[0].moved_to: b"late", moved[1].moved_to: b"x"}
    assert all(one.moved_to.startswith("quarantine/") and one.moved_to.endswith(one.name) for one in moved)
    assert {name: data for name, data in after.items() if not name.startswith("quarantine/")} == before
    found = vault.reconcile()
    assert found["outcome"] == "clean"
    assert found["quarantined"] == {"count": 2, "bytes": 5}


def test_nothing_that_the_catalog_names_is_ever_moved(vault: Keeper) -> None:
    """Every object of a living store, one by one, and one in a batch with an unknown one: refused, and the store is the same."""
    vault.backup(DATA)
    unknown = plant(vault.store, "somebody/else")
    before = contents(vault.store)
    for name in before.keys() - {unknown}:
        with pytest.raises(NotQuarantined):
            vault.quarantine(unknown, name)
    assert contents(vault.store) == before


def test_nothing_late_planned_or_condemned_is_moved(tmp_path: Path) -> None:
    """A row in any state is a row."""
    vault, store, name, number = late_vault(tmp_path)
    store.deliver_late(number)
    for state in ("LATE", "PLANNED", "CONDEMNED"):
        with vault.catalog.write() as conn:
            conn.execute(sa.update(t.object_).where(t.object_.c.name == name).values(state=state))
        with pytest.raises(NotQuarantined, match=state):
            vault.quarantine(name)


@pytest.mark.parametrize(
    "name",
    [
        "", "../escape", "a//b", "nothing/there", "quarantine/x/y", "{lineage}/closed", "{lineage}/grave/7", "owner/9",
        "x/" + "y" * 200 + "/" + "/".join(["z" * 200] * 3) + "/" + "w" * 80,
    ],
)  # fmt: skip
def test_what_is_no_unknown_object_or_is_a_mark_is_refused(vault: Keeper, name: str) -> None:
    """Names of no object, marks that a rebuild reads, what is in quarantine, names that have no room for the move."""
    vault.backup(DATA)
    name = name.format(lineage=vault.lineage())
    if name.startswith(("owner", "quarantine", "x/")) or name.endswith(("closed", "7")):
        plant(vault.store, name)
        if name == "owner/9":
            assert "another catalog's mark" in vault.reconcile()["unknown"]["objects"][0]["why"]
    before = contents(vault.store)
    with pytest.raises(NotQuarantined):
        vault.quarantine(name)
    assert contents(vault.store) == before


@pytest.mark.parametrize("count", [0, 101])
def test_a_call_takes_one_to_a_hundred(vault: Keeper, count: int) -> None:
    """As the documents say."""
    with pytest.raises(NotQuarantined):
        vault.quarantine(*(plant(vault.store, f"somebody/{number}") for number in range(count)))


def test_an_object_too_large_to_be_copied_is_refused(vault: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A put takes the whole of it."""
    monkeypatch.setattr(quarantining, "LARGEST", 10)
    with pytest.raises(NotQuarantined, match="own tools"):
        vault.quarantine(plant(vault.store, "somebody/else", b"eleven byte"))


@pytest.mark.parametrize("sign", ["a later part", "a lineage whose keys open", "the grave of a completed part"])
def test_a_catalog_older_than_the_store_moves_nothing(vault: Keeper, sign: str) -> None:
    """What an older catalog does not know may be a backup."""
    key = vault.backup(DATA)
    lineage = vault.lineage()
    name = names.pack(lineage, 1, 1, "f" * 32)
    if sign == "a later part":
        name = names.pack(lineage, 99, 1, "f" * 32)
    elif sign == "a lineage whose keys open":
        name = lineage_of_nobody(vault)
    else:
        (root,) = vault.objects("manifest", backup=key)
        remove(vault.store, root)
        plant(vault.store, names.grave(lineage, 1))
        vault.ctx.checked.clear()
    if vault.store.stat(name) is None:
        plant(vault.store, name)
    before = contents(vault.store)
    with pytest.raises(CatalogOutdated, match="rebuild"):
        vault.quarantine(name)
    assert contents(vault.store) == before


def test_the_only_copy_of_what_backups_need_is_not_moved(vault: Keeper) -> None:
    """A newer catalog has moved chunks into an object that this one does not know, and removed the one that it does: no manifest
    and no grave tells of that. Once the known one is there too, the other is but a copy."""
    vault.backup(DATA)
    (unknown, *_), known = vault.objects("pack"), names.pack(vault.lineage(), 1, 1, "f" * 32)
    with vault.catalog.write() as conn:
        conn.execute(sa.update(t.object_).where(t.object_.c.name == unknown).values(name=known))
    before = contents(vault.store)
    with pytest.raises(CatalogOutdated, match="only copy"):
        vault.quarantine(unknown)
    assert contents(vault.store) == before
    vault.store.put_new(known, before[unknown])
    assert [one.name for one in vault.quarantine(unknown)] == [unknown]


def lineage_of_nobody(vault: Keeper) -> str:
    """A pack of a lineage that the catalog forgot, as an older one would not know it yet; its keys are in the store."""
    lineage = "e" * 32
    keys = LineageKeys.create(vault.ambient)
    plant(vault.store, names.key(lineage, "d" * 32), seal_lineage_keys(vault.ctx.root_key, lineage, keys))
    return plant(vault.store, names.pack(lineage, 1, 1, "f" * 32))


def test_what_a_closed_lineage_left_behind_is_moved(vault: Keeper) -> None:
    """Its last backup is gone; a put that landed after that is unknown once it is closed, and may go aside."""
    key = vault.backup(DATA)
    lineage = vault.lineage()
    vault.delete(key)
    vault.run()
    name = plant(vault.store, names.pack(lineage, 1, 1, "f" * 32))
    assert vault.reconcile()["unknown"]["objects"][0]["why"] == "left in a closed lineage"
    assert vault.quarantine(name)[0].bytes > 0
    assert vault.reconcile()["outcome"] == "clean"


def test_a_catalog_whose_store_was_taken_over_moves_nothing(vault: Keeper) -> None:
    """Before the first and before every further removal."""
    vault.backup(DATA)
    name = plant(vault.store, "somebody/else")
    vault.store.put_new(names.owner(2), seal_owner(vault.ctx.root_key, 2))
    with pytest.raises(CatalogOutdated):
        vault.quarantine(name)
    assert vault.store.stat(name) is not None


def test_a_quarantine_that_is_cut_off_anywhere_loses_nothing_and_is_written_down_first(tmp_path: Path) -> None:
    """At every boundary of its effects the object is in its place or whole in quarantine; the event is always first."""
    plan = Cut()
    store = FaultyStore(MemoryStore(), plan)
    vault = Keeper(tmp_path, store)
    vault.backup(DATA)
    name = names.pack(vault.lineage(), 1, 1, "f" * 32)
    tried: list[tuple[bool, bool]] = []
    for boundary in itertools.count(1):
        plant(store, name, b"the bytes")
        noted: list[Mapping[str, str]] = []
        plan.left = boundary
        with suppress(StoreUnavailable):
            quarantining.quarantine(vault.ctx, vault.project, [name], lambda conn, moves: noted.append(moves), outside=True)  # noqa: B023
        if plan.left:
            break
        copies = [stat.name for stat in store.list("quarantine/")]
        assert store.stat(name) is not None or [store.get(one) for one in copies] == [b"the bytes"]
        assert all(one in noted[0].values() for one in copies)
        tried.append((store.stat(name) is not None, bool(copies)))
        store.delete_many([name, *copies])
    assert set(tried) == {(True, False), (True, True), (False, True)}, "cut off before, between and after"
    plan.left = 0
    store.delete_many([stat.name for stat in store.list("quarantine/")])
    vault.check()


class Cut:
    """A plan that fails the n-th boundary from now: before the effect, or after it with its answer lost."""

    left = 0

    def __call__(self, effect: Effect) -> Fault | None:
        if self.left:
            self.left -= 1
            if self.left == 0:
                return Fail(StoreUnavailable("cut off"))
        return None


def test_a_take_over_while_an_object_is_copied_keeps_it_in_its_place(tmp_path: Path) -> None:
    """The rebuilt catalog may know what the old one does not."""
    steps = Steps()
    store = FaultyStore(MemoryStore(), steps)
    vault = Keeper(tmp_path, store)
    vault.backup(DATA)
    name = plant(store, "somebody/else")
    mark = seal_owner(vault.ctx.root_key, 2)

    def note(conn: sa.Connection, moves: Mapping[str, str]) -> None:
        steps.at(3, lambda: plant(store, names.owner(2), mark))

    with pytest.raises(CatalogOutdated, match="another catalog"):
        quarantining.quarantine(vault.ctx, vault.project, [name], note, outside=True)
    assert store.stat(name) is not None


def test_a_row_that_appears_while_an_object_is_copied_keeps_it_in_its_place(tmp_path: Path) -> None:
    """The last look before the removal counts."""
    steps = Steps()
    store = FaultyStore(MemoryStore(), steps)
    vault = Keeper(tmp_path, store)
    vault.backup(DATA)
    name = plant(store, "somebody/else")

    def appear() -> None:
        with vault.catalog.write() as conn:
            conn.execute(
                t.object_.insert().values(
                    id="0" * 32, lineage="", kind="pack", name=name, state="STORED", bytes=1, live=0, dead_bytes=0, seq=0,
                    attempt=0, late=False,
                )
            )  # fmt: skip

    def note(conn: sa.Connection, moves: Mapping[str, str]) -> None:
        steps.at(3, appear)  # the copy's reading, its answer, then its put

    with pytest.raises(NotQuarantined, match="in the catalog"):
        quarantining.quarantine(vault.ctx, vault.project, [name], note, outside=True)
    assert store.stat(name) is not None


# ---- whose objects ------------------------------------------------------------------------------------------------------


@pytest.fixture
def neighbours(vault: Keeper) -> tuple[Keeper, str]:
    """The vault's project with a backup, and another account's project with none."""
    vault.backup(DATA)
    with vault.catalog.write() as conn:
        made = accounts.found(conn, vault.ambient, "other", "project", "admin", None)
    return vault, made.project


def test_another_account_s_reconciliation_tells_nothing_of_ours(neighbours: tuple[Keeper, str]) -> None:
    """Neither our objects, nor our damage, nor what lies outside."""
    vault, theirs = neighbours
    plant(vault.store, names.pack(vault.lineage(), 1, 1, "f" * 32))
    plant(vault.store, "somebody/else")
    remove(vault.store, vault.objects("pack")[0])
    found = vault.ended(reconciling.reconcile(vault.ctx, theirs, lambda conn: None, outside=False))
    assert found["outcome"] == "clean"
    assert (found["lineages"], found["objects"], found["backups"]) == (0, 0, [])
    ours = vault.reconcile(outside=False)
    assert (ours["unknown"]["count"], ours["missing"]["count"]) == (1, 1)


def test_another_account_can_move_nothing_of_ours_and_cannot_tell_it_from_nothing(neighbours: tuple[Keeper, str]) -> None:
    """An unknown object, a known one, one outside, and one that is not there: the same sentence, whoever's administrator asks."""
    vault, theirs = neighbours
    lineage = vault.lineage()
    tried = [
        plant(vault.store, names.pack(lineage, 1, 1, "f" * 32)), vault.objects("pack")[0], names.pack(lineage, 1, 1, "0" * 32),
    ]  # fmt: skip
    before = contents(vault.store)
    for outside in (False, True):
        for name in [*tried, *([] if outside else [plant(vault.store, "somebody/else")])]:
            with pytest.raises(NotQuarantined) as refused:
                quarantining.quarantine(vault.ctx, theirs, [name], lambda conn, moves: None, outside=outside)
            assert str(refused.value) == f"there is no unknown object {name!r}"
    assert before.items() <= contents(vault.store).items()


def test_the_first_account_answers_for_what_lies_outside(neighbours: tuple[Keeper, str]) -> None:
    """And no other."""
    vault, _ = neighbours
    with vault.catalog.read() as conn:
        by_name = {row.name: row.id for row in conn.execute(sa.select(identity.account))}
        assert holds_the_rest(conn, by_name["account"])
        assert not holds_the_rest(conn, by_name["other"])
        assert not holds_the_rest(conn, "nobody")


def test_damage_that_reconciliation_told_is_healed_after_a_verification(vault: Keeper) -> None:
    """The way that the documents describe: reconcile, verify, back up, and the new backup is whole."""
    vault.backup(DATA)
    gone, cut, *_ = vault.objects("pack")
    remove(vault.store, gone)
    flip(vault.store, cut, -80)
    assert told(vault.reconcile(), "missing") == {gone}
    assert {one["name"] for one in vault.verify()["damaged_objects"]} == {gone, cut}
    newest = vault.backup(DATA)
    assert vault.restored(newest) == DATA
    assert vault.verify(newest)["outcome"] == "sound"


def test_the_removal_s_key_is_the_one_that_is_looked_for(vault: Keeper) -> None:
    """What `remove` submits carries the serial key by which a running one is found."""
    vault.backup(DATA)
    lineage = vault.lineage()
    with vault.catalog.write() as conn:
        job = removal.submit(vault.ctx, conn, lineage)
        assert conn.execute(sa.select(t.job.c.serial).where(t.job.c.id == job)).scalar() == f"remove:{lineage}"
