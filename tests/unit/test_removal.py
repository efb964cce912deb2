"""The only code that removes objects: in its order, in batches, counted by rows, and nothing that no decision condemned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups import removal
from strongroom.backups.context import Options
from strongroom.catalog import tables as t
from strongroom.jobs.port import JobFailed, TryAgain
from strongroom.repository import names
from strongroom.storage.base import StoreDenied, StoreFull, StoreUnavailable
from strongroom.storage.faults import Effect, Fail
from support.harsh import HarshVault, Reviving
from support.vault import noise

OPTIONS = Options(chunk_average=4096, pack_target=32768)


class Job:
    """A job in its handler's hands, which notes what is told and proved."""

    id, epoch, attempts = "job", 1, 1
    args: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.guarded = 0

    def guard(self, conn: Connection) -> None:
        self.guarded += 1

    def check(self) -> None: ...

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        self.told.append((phase, done))

    def finish(self, conn: Connection, result: Mapping[str, Any]) -> None: ...

    def fail(self, conn: Connection, reason: str) -> None: ...


class House:
    """A world with a deletion that has condemned objects of ours."""

    def __init__(self, vault: HarshVault) -> None:
        self.vault, self.job = vault, Job()
        with vault.catalog.read() as conn:
            self.lineage = str(conn.execute(sa.select(t.lineage.c.id)).scalar_one())
        self.backup = next(iter(vault.wanted))
        self.key = removal.of_delete(self.backup)
        self.removed: list[list[str]] = []
        vault.plan = self.watch
        with vault.catalog.write() as conn:
            numbers = (
                "owned", "promised_freed", "promised_waiting", "promised_undecided", "promised_objects", "freed", "waiting",
                "removed_objects", "hidden", "put_bytes", "rewrite_read", "rewrite_written", "rewrite_dropped",
                "promised_rewrite",
            )  # fmt: skip
            conn.execute(
                t.deletion.insert().values(
                    backup=self.backup, project="p", job="job", state="RUNNING", at_version="", accepted_at=0.0, thorough=False,
                    **dict.fromkeys(numbers, 0),
                )
            )  # fmt: skip

    def watch(self, effect: Effect) -> None:
        if effect.kind == "delete_many" and effect.phase == "after":
            self.removed.append([name.rpartition("/")[2] for name in effect.names])

    def condemned(self, key: str, kind: str = "pack", size: int = 10, there: bool = True, **over: Any) -> str:
        """A condemned object of so many bytes; returns its name."""
        key = (key * 32)[:32]
        name = {
            "pack": names.pack(self.lineage, 90, 1, key), "rewrite": names.rewrite(self.lineage, key),
            "manifest": names.manifest(self.lineage, 90, 1, key), "key": f"{self.lineage}/key/1/{key}",
        }.get(kind, names.pack(self.lineage, 91, 1, key))  # fmt: skip
        values = {
            "id": key, "lineage": self.lineage, "kind": kind, "name": name, "state": "CONDEMNED", "bytes": size, "live": 3,
            "dead_bytes": 2, "seq": 90, "attempt": 1, "late": False, "removal": self.key,
        }  # fmt: skip
        with self.vault.catalog.write() as conn:
            conn.execute(t.object_.insert().values(values | over))
        if there:
            self.vault.inner.put_new(name, bytes(size))
        return name

    def remove(self, key: str | None = None) -> None:
        removal.remove_condemned(self.vault.ctx, self.job, key or self.key)

    def deletion(self) -> Any:
        with self.vault.catalog.read() as conn:
            return conn.execute(sa.select(t.deletion)).one()

    def rows(self) -> dict[str, Any]:
        with self.vault.catalog.read() as conn:
            return {row.name: row for row in conn.execute(sa.select(t.object_))}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Reviving:
    """Of two backups."""
    backups = ({"a": noise(9_000, number)} for number in range(2))
    return Reviving(tmp_path_factory.mktemp("world") / "vault", OPTIONS, backups)


@pytest.fixture
def house(worlds: Reviving) -> House:
    return House(worlds.again())


def test_what_is_condemned_for_a_removal_goes_and_is_counted(house: House) -> None:
    """Bytes and objects, by their rows: one that was missing counts too, one without bytes (its put never came) does not. What
    another removal owns, or nobody has condemned, stays."""
    gone = [house.condemned("a"), house.condemned("b", size=7, there=False), house.condemned("c", size=0, there=False)]
    stay = [
        house.condemned("d", removal="delete:another"), house.condemned("e", state="STORED"),
        house.condemned("f", removal="delete:another", late=True),
    ]  # fmt: skip
    before = house.rows()
    house.remove()
    after = house.rows()
    assert before.keys() - after.keys() == set(gone)
    assert {name: after[name] for name in stay} == {name: before[name] for name in stay}
    assert all(house.vault.inner.stat(name) is None for name in gone)
    assert all(house.vault.inner.stat(name) is not None for name in stay)
    deletion = house.deletion()
    assert (deletion.freed, deletion.removed_objects, deletion.hidden) == (17, 2, 0)
    assert (deletion.rewrite_dropped, deletion.waiting) == (0, 0)
    house.remove()
    assert house.deletion().freed == 17, "a second run finds nothing"


def test_objects_that_were_never_put_count_nothing(house: House) -> None:
    """A batch of nothing but those; one of a single byte counts."""
    house.condemned("a", size=0, there=False)
    house.remove()
    assert (house.deletion().freed, house.deletion().removed_objects) == (0, 0)
    house.condemned("b", size=1)
    house.remove()
    assert (house.deletion().freed, house.deletion().removed_objects) == (1, 1)


def test_kinds_go_one_after_the_other_in_batches_by_name(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests, then what holds chunks, then keys; each batch is one removal, one proof and one count; progress goes on over
    them."""
    monkeypatch.setattr(removal, "BATCH", 2)
    marked: list[tuple[int, str]] = []
    monkeypatch.setattr(removal, "put_marks", lambda ctx, lineage, guard: marked.append((len(house.removed), lineage)))
    for key, kind in (("5", "rewrite"), ("a", "key"), ("3", "pack"), ("1", "pack"), ("b", "manifest"), ("2", "pack")):
        house.condemned(key, kind)
    house.remove()
    assert [[key[0] for key in batch] for batch in house.removed[:-1]] == [["b"], ["1", "2"], ["3", "5"]]
    assert len(house.removed) == 4
    assert house.job.told == [("removing objects", done) for done in (0, 1, 3, 5)]
    assert house.job.guarded == 4
    assert marked == [(batch, house.lineage) for batch in range(4)], "before each batch"


def test_a_late_put_is_kept_in_mind(house: House) -> None:
    """Its row stays, without bytes, to be removed again by name; what it held is forgotten like the others'."""
    late, gone = house.condemned("a", late=True), house.condemned("b")
    with house.vault.catalog.write() as conn:
        pack = conn.execute(sa.select(t.pack.c.id)).scalars().first()
        for name in (late, gone):
            key = house.rows()[name].id
            conn.execute(t.holding.insert().values(object=key, lineage=house.lineage, pack=pack, bytes=1))
        count = sa.select(sa.func.count()).select_from(t.holding)
        before = conn.execute(count).scalar_one()
    house.remove()
    row = house.rows()[late]
    assert (row.state, row.bytes, row.live, row.dead_bytes) == ("LATE", 0, 0, 0)
    assert gone not in house.rows()
    with house.vault.catalog.read() as conn:
        assert conn.execute(count).scalar_one() == before - 2
    assert (house.deletion().freed, house.deletion().removed_objects) == (20, 2)


def test_a_lineage_whose_keys_are_gone_forgets_them(house: House) -> None:
    """With the last of their objects; a pack's removal, or that of a copy among others, leaves them."""
    sealed = sa.select(t.lineage.c.sealed_keys)
    for letter, kind in (("a", "pack"), ("c", "key")):
        house.condemned(letter, kind)
        house.remove()
        with house.vault.catalog.read() as conn:
            assert conn.execute(sealed).scalar_one() is not None
    with house.vault.catalog.write() as conn:
        conn.execute(sa.delete(t.object_).where(t.object_.c.kind == "key"))
    house.condemned("b", "key")
    house.remove()
    with house.vault.catalog.read() as conn:
        assert conn.execute(sealed).scalar_one() is None


def test_a_store_that_keeps_deleted_bytes_hides_them(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a 404 they are not freed, and the receipt says so."""
    monkeypatch.setattr(type(house.vault.store), "keeps_deleted_bytes", lambda self: True)
    house.condemned("a")
    house.remove()
    assert (house.deletion().freed, house.deletion().hidden, house.deletion().removed_objects) == (0, 10, 1)


@pytest.mark.parametrize("owner", ["rewrite", "lineage"])
def test_what_rewriting_replaced_is_booked_apart(house: House, owner: str) -> None:
    """And what builds left is in nobody's receipt."""
    key = removal.of_rewrite(house.backup) if owner == "rewrite" else removal.of_lineage(house.lineage)
    assert key == f"{owner}:{house.backup if owner == 'rewrite' else house.lineage}"
    house.condemned("a", "rewrite", removal=key)
    house.remove(key)
    deletion = house.deletion()
    assert (deletion.rewrite_dropped, deletion.freed, deletion.removed_objects) == (10 if owner == "rewrite" else 0, 0, 0)


def test_objects_that_stay_are_told_and_not_counted(house: House) -> None:
    """The store says that it removed them, and still has them: tried again later."""
    names_of = sorted(house.condemned(key) for key in "ab")
    kept = dict(house.vault.inner._objects)  # type: ignore[attr-defined]

    def lying(effect: Effect) -> None:
        if effect.kind == "delete_many" and effect.phase == "after":
            house.vault.inner._objects.update(kept)  # type: ignore[attr-defined]

    house.vault.plan = lying
    said = f"^2 objects are still there after their removal, first {names_of[0]}: is the store read-only\\?$"
    with pytest.raises(StoreUnavailable, match=said):
        house.remove()
    assert house.deletion().freed == 0
    assert set(names_of) <= house.rows().keys()


def test_nothing_is_removed_for_a_catalog_that_another_has_replaced(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's owner is asked before each batch."""
    asked: list[int] = []
    monkeypatch.setattr(removal.staleness, "require_owner", lambda ctx: asked.append(len(house.removed)))
    monkeypatch.setattr(removal, "BATCH", 1)
    for key in "abc":
        house.condemned(key)
    house.remove()
    assert asked == [0, 1, 2]


def test_a_removal_begins_where_its_lineage_is_current_and_swept(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lineage is compared with the store, swept, and gets its marks; only then anything goes. Without room for the marks
    what holds chunks goes first."""
    done: list[str] = []
    full = [True]

    def marks(ctx: Any, lineage: str, guard: Any) -> None:
        assert (ctx, lineage, guard) == (house.vault.ctx, house.lineage, house.job.guard)
        done.append("marks")
        if full:
            full.pop()
            raise StoreFull("no room")

    monkeypatch.setattr(removal, "put_marks", marks)
    monkeypatch.setattr(removal.staleness, "require_current", lambda ctx, lineage: done.append(f"current {lineage}"))

    def finish(catalog: Any, lineage: str, guard: Any) -> None:
        assert (catalog, guard) == (house.vault.catalog, house.job.guard)
        done.append(f"swept {lineage}")

    monkeypatch.setattr(removal.sweeping, "finish", finish)
    monkeypatch.setattr(removal, "_remove", lambda ctx, job, batch, key: done.append(batch[0].kind) or forget(batch))

    def forget(batch: list[Any]) -> None:
        with house.vault.catalog.write() as conn:
            conn.execute(sa.delete(t.object_).where(t.object_.c.id.in_([row.id for row in batch])))

    for key, kind in (("a", "pack"), ("b", "manifest"), ("c", "rewrite")):
        house.condemned(key, kind)
    removal.carry_out(house.vault.ctx, house.job, [house.lineage], house.key)
    at = house.lineage
    assert done == [f"current {at}", f"swept {at}", "marks", "pack", "marks", "marks", "manifest"]


def test_errors_end_a_removal_as_they_pass_or_not() -> None:
    """With what they say."""
    ended = removal.ending(StoreDenied("no right"))
    assert isinstance(ended, JobFailed)
    assert str(ended) == "no right"
    again = removal.ending(StoreUnavailable("away"))
    assert isinstance(again, TryAgain)
    assert (str(again), again.after) == ("away", None)


@pytest.mark.parametrize("of", [True, False])
def test_a_removal_of_a_lineage_runs_one_at_a_time(house: House, of: bool) -> None:
    """By its serial key; it is in its project's list if it answers a stop."""
    with house.vault.catalog.write() as conn:
        backup = conn.execute(sa.select(t.backup).where(t.backup.c.id == house.backup)).one() if of else None
        job = removal.submit(house.vault.ctx, conn, house.lineage, backup)
        row = conn.execute(sa.select(t.job).where(t.job.c.id == job)).one()
    assert (row.kind, row.args, row.serial) == ("remove", f'{{"lineage": "{house.lineage}"}}', f"remove:{house.lineage}")
    wanted = (house.vault.project, house.vault.source, house.backup) if of else (None, None, None)
    assert (row.project, row.instance, row.backup) == wanted


def test_a_removal_of_a_lineage_takes_what_builds_left_and_no_more(house: House) -> None:
    """What is condemned under its own name."""
    gone, stay = house.condemned("a", removal=removal.of_lineage(house.lineage)), house.condemned("b")
    with house.vault.catalog.write() as conn:
        job = removal.submit(house.vault.ctx, conn, house.lineage)
    assert house.vault.worker.step() == job
    assert gone not in house.rows()
    assert stay in house.rows()


def test_a_job_that_finds_nothing_condemned_ends(house: House) -> None:
    """With an empty result."""
    with house.vault.catalog.write() as conn:
        job = removal.submit(house.vault.ctx, conn, house.lineage)
    assert house.vault.worker.step() == job
    assert (house.vault.job(job).state, house.vault.job(job).result) == ("DONE", {})
    assert house.removed == []
    house.vault.plan = lambda effect: Fail(StoreUnavailable("away")) if effect.kind == "list" else None
    house.vault.restart()
    with house.vault.catalog.write() as conn:
        job = removal.submit(house.vault.ctx, conn, house.lineage)
    house.vault.worker.step()
    assert (house.vault.job(job).state, house.vault.job(job).error) == ("QUEUED", "away"), "the store could not be compared"
