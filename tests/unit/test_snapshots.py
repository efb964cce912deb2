"""Snapshots of the catalog: what they hold comes back whole, a newer one is never outranked, and no death loses anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from strongroom.backups import errors, kept, reconciling, snapshots, trail_segments
from strongroom.backups.context import Options
from strongroom.backups.holds import RECOVERED
from strongroom.backups.quarantining import NotQuarantined
from strongroom.backups.reconciling import ReconcileJob
from strongroom.backups.snapshots import KEEP, Watch, due, take
from strongroom.backups.staleness import CatalogOutdated
from strongroom.catalog import tables as t
from strongroom.catalog.lifespans import numbers_of
from strongroom.identity import accounts, audit, tokens
from strongroom.identity import tables as identity
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.repository import names
from strongroom.repository.errors import Damaged, UnknownFormat
from strongroom.repository.keys import RootKey, open_catalog, seal_catalog
from strongroom.repository.lines import LineWriter, digest_of, read_lines
from strongroom.storage.faults import Delay, Effect, Fail, Stale
from support.damage import Keeper
from support.furnished import DATA, furnish, happen, said
from support.harsh import TTL, HarshVault, Saved
from support.rebuilt import RebuiltVault, again
from support.vault import noise

OPTIONS = Options(chunk_average=4096, pack_target=16384)


def told(vault: HarshVault) -> list[str]:
    """Names of the snapshots in the store, oldest first."""
    listed = [parsed for stat in vault.inner.list("catalog/") if (parsed := names.parse(stat.name)) is not None]
    return [names.catalog(k, n) for k, n in sorted((one.attempt or 0, one.seq or 0) for one in listed)]


def spoil(vault: HarshVault, name: str, content: bytes | None = None) -> None:
    """Puts other bytes in an object's place."""
    data = content or vault.inner.get(name)[:-1] + b"\0"
    vault.inner.delete(name)
    vault.inner.put_new(name, data)


@pytest.fixture
def vault(tmp_path: Path) -> HarshVault:
    return HarshVault(tmp_path / "old", OPTIONS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    vault = HarshVault(tmp_path_factory.mktemp("snapshots") / "vault", OPTIONS)
    furnish(vault)
    vault.snapshot()
    return vault.save()


# ---- what it holds --------------------------------------------------------------------------


def test_every_table_is_held_or_left_out_for_a_reason() -> None:
    """A new table is one or the other, and is put in behind what it refers to."""
    held = [one.table.name for one in kept.KEPT]
    assert sorted([*held, *kept.LEFT_OUT]) == sorted(t.metadata.tables)
    assert all(len(reason) > 20 for reason in kept.LEFT_OUT.values())
    for place, one in enumerate(kept.KEPT):
        for key in () if one.onto else one.table.foreign_keys:
            assert key.column.table.name in held[:place], f"{one.table.name} refers to {key.column.table.name}"


def test_all_that_a_snapshot_holds_comes_back(saved: Saved, tmp_path: Path) -> None:
    """Row for row: what a snapshot of the rebuilt catalog would hold is what the old one's did."""
    vault = HarshVault.revive(tmp_path / "old", saved)
    with vault.catalog.read() as conn:
        for one in kept.KEPT:
            if one.table is not t.trail:
                assert conn.execute(sa.select(sa.func.count()).select_from(one.table)).scalar_one(), one.table.name
    before = said(vault)
    new = again(vault, tmp_path / "new")
    assert said(new.vault) == before
    assert any("catalog/1.1 is the base: the catalog as it was at" in line for line in new.report)
    assert (new.result.known, new.result.backups) == (2, 2)
    with new.vault.catalog.read() as conn:
        row = conn.execute(sa.select(t.instance).where(t.instance.c.id == new.vault.source)).one()
        account = str(conn.scalar(sa.select(identity.account.c.id)))
        assert audit.check_chain(conn, account) is None
        assert audit.head(conn, account).sequence == 3
    assert new.vault.ctx.target(row).password == "secret-word"
    new.vault.check()


def test_the_rebuilt_catalog_goes_on_and_old_snapshots_go(saved: Saved, tmp_path: Path) -> None:
    """Its first snapshots rank above the old owner's, and those before the newest few go, the old owner's too."""
    new = again(HarshVault.revive(tmp_path / "old", saved), tmp_path / "new").vault
    for _ in range(KEEP):
        happen(new, 1)
        new.snapshot()
    assert told(new) == ["catalog/2.1", "catalog/2.2", "catalog/2.3"]
    new.check()
    assert again(new, tmp_path / "third").result.base.name == "catalog/2.3"  # type: ignore[union-attr]


def test_tokens_and_temporary_keys_are_not_held(vault: HarshVault) -> None:
    """Who had one signs in again; a new one is no change."""
    furnish(vault)
    before = said(vault)
    with vault.catalog.write() as conn:
        user, epoch = conn.execute(sa.select(identity.user.c.id, identity.user.c.epoch)).all()[0]
        tokens.issue(conn, vault.clock, user, epoch, vault.project, "password")
        session = {"session": "0" * 64, "epoch": 1, "expires_at": vault.clock.now() + 900}
        accounts.create_access_key(conn, vault.clock, vault.ctx.sealer, user, session)
    assert said(vault) == before


def test_without_a_snapshot_a_rebuild_is_as_ever(vault: HarshVault, tmp_path: Path) -> None:
    """It says so; an account is founded, and every backup is held."""
    vault.backup(DATA)
    new = again(vault, tmp_path / "new")
    assert new.result.base is None
    assert any("no snapshot of the catalog opens" in line for line in new.report)
    assert holds(new.vault) == {RECOVERED}
    new.vault.check()


def holds(vault: HarshVault) -> set[str | None]:
    with vault.catalog.read() as conn:
        return set(conn.scalars(sa.select(t.backup.c.held)).all())


# ---- it decides nothing about lifespans --------------------------------------------------------------------------


def test_what_was_deleted_stays_deleted_and_what_is_newer_comes_back_held(vault: HarshVault, tmp_path: Path) -> None:
    """A snapshot from before a deletion and before a backup: neither is as it says."""
    furnish(vault)
    gone = vault.backup(DATA | {"c": noise(5_000, 9)})
    vault.snapshot()
    vault.delete(gone)
    vault.run()
    newer = vault.backup(DATA | {"c": noise(5_000, 10)})
    new = again(vault, tmp_path / "new")
    with new.vault.catalog.read() as conn:
        found = {row.id: row.held for row in conn.execute(sa.select(t.backup.c.id, t.backup.c.held))}
    first, second = [key for key in vault.wanted if key != newer]
    assert found == {first: "the audit of May", second: None, newer: RECOVERED}
    new.vault.check()
    with pytest.raises(errors.BackupHeld, match="audit of May"):
        new.vault.delete(first)
    new.vault.wanted[first] = vault.wanted[first]
    new.vault.delete(second)
    new.vault.run()
    new.vault.check()


def test_a_damaged_backup_stays_held_though_the_snapshot_knows_it(vault: HarshVault, tmp_path: Path) -> None:
    """Nobody has looked at it since: no expiry takes it."""
    key, other = vault.backup(DATA), vault.backup({"z": noise(9_000, 5)})
    vault.snapshot()
    with vault.catalog.read() as conn:
        root = conn.scalar(
            sa.select(t.object_.c.name).join(t.part, t.part.c.root == t.object_.c.id).where(t.part.c.backup == key)
        )
    spoil(vault, str(root))
    new = again(vault, tmp_path / "new")
    with new.vault.catalog.read() as conn:
        found = {row.id: (row.state, row.held) for row in conn.execute(sa.select(t.backup))}
    assert found == {key: ("FAILED", RECOVERED), other: ("COMPLETED", None)}


def test_suspect_chunks_are_not_shared_after_a_rebuild(saved: Saved, tmp_path: Path) -> None:
    """The next backup stores them anew."""
    new = again(HarshVault.revive(tmp_path / "old", saved), tmp_path / "new").vault
    with new.catalog.read() as conn:
        (blob,) = conn.scalars(sa.select(t.pack.c.suspect).where(t.pack.c.suspect.is_not(None))).all()
    assert list(numbers_of(blob)) == [0]


# ---- when one is put --------------------------------------------------------------------------


def test_one_is_put_only_where_something_has_changed_and_the_newest_few_stay(vault: HarshVault) -> None:
    """Two looks, one object; after six changes the last three, and the catalog knows just these."""
    vault.snapshot()
    vault.snapshot()
    assert told(vault) == ["catalog/1.1"]
    for _ in range(5):
        happen(vault, 1)
        vault.snapshot()
    assert told(vault) == ["catalog/1.4", "catalog/1.5", "catalog/1.6"]
    vault.check()


def test_one_that_the_store_has_lost_is_put_again(vault: HarshVault) -> None:
    """Under the next number, though nothing has changed."""
    vault.snapshot()
    vault.inner.delete("catalog/1.1")
    vault.snapshot()
    assert told(vault) == ["catalog/1.2"]


def test_a_change_is_due_after_a_minute_and_any_other_after_ten(vault: HarshVault) -> None:
    """Never looked at: at once. An event: a minute after the last. No event: ten minutes. A clock that went back: at once."""
    assert due(vault.ctx)
    vault.snapshot()
    assert not due(vault.ctx)
    happen(vault, 1)
    assert not due(vault.ctx)
    vault.clock.sleep(60)
    assert due(vault.ctx)
    vault.snapshot()
    vault.clock.sleep(590)
    assert not due(vault.ctx)
    vault.clock.sleep(10)
    assert due(vault.ctx)
    vault.snapshot()
    vault.clock.passed -= 5
    assert due(vault.ctx)


def test_the_watch_asks_once_a_minute_whatever_becomes_of_the_job(vault: HarshVault) -> None:
    """One that failed is not asked for again at once, and a queued one is not doubled."""

    def jobs() -> int:
        with vault.catalog.read() as conn:
            query = sa.select(sa.func.count()).select_from(t.job).where(t.job.c.kind == snapshots.KIND)
            return int(conn.execute(query).scalar_one())

    watch = Watch(vault.ctx)
    watch._look()
    watch._look()
    assert jobs() == 1
    vault.clock.sleep(61)
    watch._look()  # the job is queued still
    assert jobs() == 1
    vault.run()
    happen(vault, 1)
    vault.clock.sleep(61)
    watch._look()
    assert jobs() == 2


def test_an_orderly_end_puts_what_has_changed(vault: HarshVault) -> None:
    """The watch's stop waits for the job that a worker runs meanwhile, and no longer than it was told where none does. What has
    changed without an event is in it."""
    vault.snapshot()
    with vault.catalog.write() as conn:
        conn.execute(sa.update(identity.user).values(wrong=3))
    watch = Watch(vault.ctx)
    watch._thread.start()
    step = vault.clock.sleep

    def sleep(seconds: float) -> None:
        vault.clock.sleep = step  # type: ignore[method-assign]
        vault.run()

    vault.clock.sleep = sleep  # type: ignore[method-assign]
    watch.stop(5.0)
    assert told(vault) == ["catalog/1.1", "catalog/1.2"]
    idle = Watch(vault.ctx)
    idle._thread.start()
    idle.stop(5.0)
    assert vault.clock.passed >= 5
    vault.run()
    assert told(vault) == ["catalog/1.1", "catalog/1.2"]


# ---- what does not open --------------------------------------------------------------------------


def two(vault: HarshVault) -> None:
    """Two snapshots: in the second there is a user more."""
    vault.snapshot()
    with vault.catalog.write() as conn:
        account = str(conn.scalar(sa.select(identity.account.c.id)))
        accounts.create_user(conn, vault.clock, account, "newest", None)
    vault.snapshot()
    assert told(vault) == ["catalog/1.1", "catalog/1.2"]


def users(vault: HarshVault) -> set[str]:
    with vault.catalog.read() as conn:
        return set(conn.scalars(sa.select(identity.user.c.name)).all())


def cut(data: bytes, _root: RootKey) -> bytes:
    return data[:40]


def flipped(data: bytes, _root: RootKey) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


def sealed_by_another(data: bytes, root: RootKey) -> bytes:
    return seal_catalog(RootKey(bytes(32)), 1, 2, open_catalog(root, 1, 2, data))


def of_another_name(data: bytes, root: RootKey) -> bytes:
    return seal_catalog(root, 1, 3, open_catalog(root, 1, 2, data))


def no_lines(_data: bytes, root: RootKey) -> bytes:
    return seal_catalog(root, 1, 2, b"no lines")


def of_a_newer_version(data: bytes, _root: RootKey) -> bytes:
    return data[:4] + b"\0\2" + data[6:]


@pytest.mark.parametrize("harm", [cut, flipped, sealed_by_another, of_another_name, no_lines, of_a_newer_version])
def test_one_that_does_not_open_is_told_and_the_one_before_is_taken(
    vault: HarshVault, tmp_path: Path, harm: Callable[[bytes, RootKey], bytes]
) -> None:
    """It stays in the store as it is, and no later snapshot has it removed."""
    two(vault)
    spoil(vault, "catalog/1.2", harm(vault.inner.get("catalog/1.2"), vault.ctx.root_key))
    new = again(vault, tmp_path / "new")
    assert users(new.vault) == {"admin"}
    assert any(line.startswith("catalog/1.2: ") and "the one before is taken" in line for line in new.report)
    assert new.result.unknown == ["catalog/1.2"]
    for _ in range(KEEP):
        happen(new.vault, 1)
        new.vault.snapshot()
    assert told(new.vault) == ["catalog/1.2", "catalog/2.1", "catalog/2.2", "catalog/2.3"]


def test_what_a_newer_version_has_written_ends_the_rebuild_with_words(vault: HarshVault, tmp_path: Path) -> None:
    """A table or a column that is unknown here is not dropped. The store stays the newer version's."""
    vault.snapshot()
    root = vault.ctx.root_key
    for table, row in (("dreams", {"id": 1}), ("account", {"id": "x", "colour": "red"})):
        writer = LineWriter()
        writer.add(snapshots.ABOUT, {"at": 1.0}, counts=False)
        writer.add(table, row)
        spoil(vault, "catalog/1.1", seal_catalog(root, 1, 1, writer.finish()))
        with pytest.raises(UnknownFormat, match="newer version"):
            again(vault, tmp_path / table)
        assert [stat.name for stat in vault.inner.list("owner/")] == ["owner/1"]


def test_lines_are_told_by_their_digest() -> None:
    """What is written is what is read, however much; the digest leaves out what does not count."""
    writer = LineWriter()
    writer.add("about", {"at": 1}, counts=False)
    for number in range(5_000):
        writer.add("table", {"number": number, "text": "x" * (number % 50)})
    digest, packed = writer.digest, writer.finish()
    lines = list(read_lines(packed, "it"))
    assert len(lines) == 5_001
    assert digest_of(iter(lines[1:])) == digest != digest_of(iter(lines[2:]))
    with pytest.raises(Damaged):
        list(read_lines(packed[:-9] + b"123456789", "it"))


# ---- an older catalog --------------------------------------------------------------------------


def dumped(vault: HarshVault, folder: Path) -> HarshVault:
    """A catalog that was restored from a dump, on the store as it is now."""
    dump = vault.save()
    happen(vault, 1)
    vault.snapshot()
    return HarshVault.revive(folder, replace(dump, objects=dict(vault.inner._objects)))  # type: ignore[attr-defined]


def test_a_restored_dump_puts_no_snapshot_and_removes_none(vault: HarshVault, tmp_path: Path) -> None:
    """The job says why; a rebuild takes the newer catalog's as its base."""
    vault.snapshot()
    old = dumped(vault, tmp_path / "dump")
    happen(old, 3)
    job = snapshots.submit(old.ctx)
    old.run()
    assert "snapshot of a newer catalog, catalog/1.2" in old.job(job).error
    assert told(old) == ["catalog/1.1", "catalog/1.2"]
    assert again(old, tmp_path / "new").result.base.name == "catalog/1.2"  # type: ignore[union-attr]


@pytest.mark.parametrize("tries", [1, 3])
def test_a_stale_listing_does_not_let_an_older_catalog_pass(vault: HarshVault, tmp_path: Path, tries: int) -> None:
    """The name is taken, and stays so, however often it tries."""
    vault.snapshot()
    old = dumped(vault, tmp_path / "dump")
    happen(old, 1)
    old.plan = lambda effect: Stale(1) if effect.kind == "list" and effect.phase == "before" else None
    old.faulty._changes.append(("catalog/1.2", None))
    for _ in range(tries):
        job = snapshots.submit(old.ctx)
        old.run()
        assert "snapshot of a newer catalog, catalog/1.2" in old.job(job).error
    assert told(old) == ["catalog/1.1", "catalog/1.2"]


def test_a_catalog_that_was_replaced_puts_none(vault: HarshVault, tmp_path: Path) -> None:
    """Its worker learns it, and the new owner's rank above whatever it put."""
    vault.snapshot()
    new = RebuiltVault(tmp_path / "new", vault)
    new.rebuild()
    vault.inner.put_new("owner/2", new.inner.get("owner/2"))
    happen(vault, 1)
    with pytest.raises(CatalogOutdated, match="another catalog"):
        take(vault.ctx)
    assert told(vault) == ["catalog/1.1"]


def test_what_a_paused_worker_puts_late_ranks_below_and_goes(vault: HarshVault, tmp_path: Path) -> None:
    """Its put is under way when another takes over and puts the next number. It lands later: known, removed by reconciling."""
    vault.snapshot()
    happen(vault, 1)
    vault.plan = lambda effect: Delay() if effect.kind == "put_new" and effect.phase == "before" else None
    snapshots.submit(vault.ctx)
    vault.worker.step()
    vault.plan = lambda _effect: None
    vault.run()
    assert told(vault) == ["catalog/1.1", "catalog/1.3"]
    assert vault.faulty.deliver_late(vault.faulty.sent.index("catalog/1.2"))
    happen(vault, 1)
    vault.snapshot()
    assert again(vault, tmp_path / "new").result.base.name == "catalog/1.4"  # type: ignore[union-attr]
    worker = StepwiseWorker(vault.ctx.jobs, {"reconcile": ReconcileJob(vault.ctx)}, ["default"], ttl=TTL)
    job = reconciling.reconcile(vault.ctx, vault.project, lambda conn: None, outside=True, close_late=True)
    vault.run_with(worker)
    found = vault.job(job).result
    assert (found["late"]["rows"], found["late"]["closed"]) == (1, 1)
    assert found["outcome"] == "clean"
    assert [one["name"] for one in found["late"]["removed"]["objects"]] == ["catalog/1.2"]
    assert told(vault) == ["catalog/1.1", "catalog/1.3", "catalog/1.4"]


def test_one_that_landed_while_its_answer_was_lost_counts(vault: HarshVault) -> None:
    """It holds what was planned: it is taken over, and no second one is put."""
    lost = [Fail()]
    vault.plan = lambda effect: lost.pop() if lost and effect.kind == "put_new" and effect.phase == "after" else None
    vault.snapshot()
    assert told(vault) == ["catalog/1.1"]
    vault.check()


# ---- death --------------------------------------------------------------------------


def test_a_death_between_any_two_effects_loses_nothing(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old ones and segments of the trail included: the store alone gives the catalog of before or of now, and the next run
    leaves what the catalog names and nothing else."""
    monkeypatch.setattr(trail_segments, "SEGMENT", 4)

    def begun(folder: Path) -> HarshVault:
        vault = HarshVault.revive(folder, saved)
        for _ in range(KEEP - 1):
            happen(vault, 1)
            vault.snapshot()
        happen(vault, 6)
        snapshots.submit(vault.ctx)
        return vault

    vault = begun(tmp_path / "counted")
    before = vault.save()
    with vault.dying(None) as fate:
        vault.run()
    assert len(told(vault)) == KEEP
    assert fate.count > 40
    for at in range(1, fate.count):
        vault = HarshVault.revive(tmp_path / "vault", before)
        with vault.dying(at) as fate_of_it:
            vault.run()
        if at % 4 == 0:
            new = again(vault, tmp_path / f"new-{at}")
            with new.vault.catalog.read() as conn:
                account = str(conn.scalar(sa.select(identity.account.c.id)))
                assert audit.check_chain(conn, account) is None
                assert audit.head(conn, account).sequence in (3 + KEEP - 1, 3 + KEEP - 1 + 6)
            assert holds(new.vault) == {None, "the audit of May"}
            new.vault.catalog.close()
        assert not fate_of_it.alive
        vault.restart()
        vault.snapshot()
        assert len(told(vault)) == KEEP
        vault.check_accounts()
        vault.catalog.close()


# ---- the audit trail --------------------------------------------------------------------------


def segments(vault: HarshVault) -> set[str]:
    return {stat.name for stat in vault.inner.list("trail/")}


def test_old_rows_of_the_trail_are_put_once(vault: HarshVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie in segments, snapshots hold the rest; all of it comes back, verifies, and goes on."""
    monkeypatch.setattr(trail_segments, "SEGMENT", 10)
    happen(vault, 25)
    vault.snapshot()
    first = segments(vault)
    happen(vault, 9)
    vault.snapshot()
    assert len(first) == 2
    assert len(segments(vault) - first) == 1
    vault.check()
    new = again(vault, tmp_path / "new").vault
    happen(new, 7)
    new.snapshot()
    assert len(segments(new)) == 4
    third = again(new, tmp_path / "third").vault
    with third.catalog.read() as conn:
        account = str(conn.scalar(sa.select(identity.account.c.id)))
        assert audit.check_chain(conn, account) is None
        assert audit.head(conn, account).sequence == 41
        assert conn.execute(sa.select(sa.func.count()).select_from(identity.audit)).scalar_one() == 41
    third.check()


def lost(_data: bytes) -> bytes | None:
    return None


def rotten(data: bytes) -> bytes | None:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("harm", [lost, rotten])
def test_a_segment_that_does_not_open_is_told_and_the_chain_shows_it(
    vault: HarshVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[bytes], bytes | None]
) -> None:
    """The rest comes back, and what is missing does not look as if it had never been."""
    monkeypatch.setattr(trail_segments, "SEGMENT", 10)
    happen(vault, 25)
    vault.snapshot()
    with vault.catalog.read() as conn:
        key = str(conn.scalar(sa.select(t.trail.c.id).where(t.trail.c.first == 11)))
    data = harm(vault.inner.get(names.trail(key)))
    vault.inner.delete(names.trail(key))
    if data is not None:
        vault.inner.put_new(names.trail(key), data)
    new = again(vault, tmp_path / "new")
    assert any(line.startswith(names.trail(key)) and "do not come back" in line for line in new.report)
    assert any("does not hold from row 11 on" in line for line in new.report)
    happen(new.vault, 9)
    new.vault.snapshot()
    with new.vault.catalog.read() as conn:
        account = str(conn.scalar(sa.select(identity.account.c.id)))
        broken = audit.check_chain(conn, account)
    assert broken is not None
    assert broken.sequence == 11


# ---- beside everything else --------------------------------------------------------------------------


def test_reconciling_knows_snapshots_and_nothing_moves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known ones are no news; one of another catalog is told, and stays."""
    monkeypatch.setattr(trail_segments, "SEGMENT", 1)
    vault = Keeper(tmp_path)
    vault.backup(DATA)
    with vault.catalog.write() as conn:
        audit.append(conn, vault.ambient, audit.Entry("event", "thing", "1", project=vault.project))
    assert take(vault.ctx) == "catalog/1.1"
    assert vault.reconcile()["outcome"] == "clean"
    (segment,) = [stat.name for stat in vault.store.list("trail/")]
    strange = names.catalog(1, 9)
    vault.store.put_new(strange, b"strange")
    found = vault.reconcile()
    assert [one["name"] for one in found["unknown"]["objects"]] == [strange]
    for name in ("catalog/1.1", segment, strange):
        with pytest.raises(NotQuarantined):
            vault.quarantine(name)
    vault.store.delete("catalog/1.1")
    found = vault.reconcile()
    assert [one["name"] for one in found["missing"]["objects"]] == ["catalog/1.1"]


def test_a_failing_store_is_tried_again(vault: HarshVault) -> None:
    """What passes is waited for."""
    fails = [Fail(), Fail(), Fail()]

    def plan(effect: Effect) -> Fail | None:
        return fails.pop() if fails and effect.kind == "list" and effect.phase == "before" else None

    vault.plan = plan
    vault.snapshot()
    assert told(vault) == ["catalog/1.1"]


def test_a_database_that_is_away_at_the_end_is_only_told(vault: HarshVault, caplog: pytest.LogCaptureFixture) -> None:
    """The stop goes on."""

    def away(_conn: sa.Connection) -> None:
        raise OperationalError("begin", None, Exception("away"))

    watch = Watch(vault.ctx)
    watch._thread.start()
    sa.event.listen(vault.catalog.engine, "begin", away)
    try:
        watch.stop(1.0)
    finally:
        sa.event.remove(vault.catalog.engine, "begin", away)
    assert "the database is away" in caplog.text
