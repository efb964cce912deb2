"""What comes between a delete's snapshot and its locks, and between its job's steps: numbers stay exact or nothing is decided."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import creation, deletion, errors, holding, removal, rewriting
from strongroom.backups.context import Options
from strongroom.catalog import sweeping
from strongroom.catalog import tables as t
from strongroom.catalog.space import Partly
from strongroom.identity import tables as identity
from strongroom.jobs.port import Cancelled, JobLost
from strongroom.storage.base import StoreDenied, StoreUnavailable
from support.harsh import HarshVault, Reviving
from support.vault import edited, noise

OPTIONS = Options(chunk_average=4096, pack_target=32768)


def small(number: int) -> dict[str, bytes]:
    """Databases that follow one another: some of it changes, some is new each time, some never changes."""
    return {"edited": edited(noise(30_000, 1), number), "own": noise(9_000, 100 + number), "still": noise(20_000, 2)}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Reviving:
    """Of six backups."""
    return Reviving(tmp_path_factory.mktemp("world") / "vault", OPTIONS, map(small, range(6)))


@pytest.fixture
def vault(worlds: Reviving) -> HarshVault:
    """Its backups are the keys of `wanted`, oldest first."""
    return worlds.again()


class Between:
    """Acts after a snapshot was taken and before its decision, the first so many times."""

    def __init__(self, patch: pytest.MonkeyPatch, *acts: Callable[[], object]) -> None:
        self._left, self._compute = list(acts), deletion._compute
        self.computed = 0
        patch.setattr(deletion, "_compute", self)

    def __call__(self, conn: sa.Connection, project: str, ids: Sequence[str], **options: bool) -> deletion.Preview:
        seen = self._compute(conn, project, ids, **options)
        self.computed += 1
        if self._left:
            self._left.pop(0)()
        return seen


def exact(vault: HarshVault, key: str, before: int) -> None:
    """The deletion is done, and did what it promised."""
    vault.run()
    assert vault.state(key) == "DELETED"
    receipt = vault.receipt(key)
    assert (receipt["freed"], receipt["waiting"]) == (receipt["promised"]["freed"], receipt["promised"]["waiting"])
    assert before - vault.size() == receipt["freed"] + receipt["reclaimed"]["net"] - receipt["put_bytes"]
    vault.check()


def no_note(conn: sa.Connection, backup: str, name: str) -> None:
    """No audit event."""


def version_of(vault: HarshVault, key: str) -> int:
    """How often a backup's row was locked."""
    with vault.catalog.read() as conn:
        return int(conn.execute(sa.select(t.backup.c.version).where(t.backup.c.id == key)).scalar_one())


def versions_of(vault: HarshVault) -> dict[str, int]:
    with vault.catalog.read() as conn:
        return {row.id: row.version for row in conn.execute(sa.select(t.lineage.c.id, t.lineage.c.version))}


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_lineage_that_moves_is_looked_at_again_and_the_third_time_under_its_locks(
    vault: HarshVault, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """A backup is taken between the snapshot and the locks, once, twice or every time: the promise is what the delete does."""
    keys, more = list(vault.wanted), iter(range(6, 9))
    between = Between(monkeypatch, *([lambda: vault.backup(small(next(more)))] * times))
    noted: list[str] = []
    deletion.delete(vault.ctx, vault.project, keys[1], lambda conn, backup, name: noted.append(backup))
    monkeypatch.undo()
    vault.wanted.pop(keys[1])
    assert between.computed == {1: 2, 2: 3, 3: 4}[times]
    assert noted == [keys[1]]
    with vault.catalog.read() as conn:
        at = conn.execute(sa.select(t.deletion.c.at_version)).scalar_one()
    (lineage,) = versions_of(vault)
    assert at.startswith(f"{lineage}.")
    exact(vault, keys[1], vault.size())


def test_a_decision_that_waits_for_its_sweep_is_swept_before_the_next_is_taken(
    vault: HarshVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another delete, too large to be swept where it is decided, comes between: both promises are exact."""
    keys = list(vault.wanted)
    before = vault.size()

    def other() -> None:
        monkeypatch.setattr(sweeping, "AT_ONCE", 0)
        vault.delete(keys[2])
        monkeypatch.setattr(sweeping, "AT_ONCE", 300)

    between = Between(monkeypatch, other)
    vault.delete(keys[1])
    assert between.computed == 3, "two of this delete, one of the other"
    vault.run()
    receipts = [vault.receipt(key) for key in keys[1:3]]
    for receipt in receipts:
        assert receipt["freed"] == receipt["promised"]["freed"]
        assert receipt["waiting"] == receipt["promised"]["waiting"]
    change = sum(one["freed"] + one["reclaimed"]["net"] - one["put_bytes"] for one in receipts)
    assert before - vault.size() == change
    vault.check()


def test_a_lineage_that_is_never_swept_in_time_decides_nothing(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times another delete was faster: busy, and not a row of this one."""
    keys = list(vault.wanted)
    monkeypatch.setattr(sweeping, "AT_ONCE", 0)
    others = iter(keys[2:5])
    compute, busy = deletion._compute, [True]

    def interrupted(conn: sa.Connection, project: str, ids: Sequence[str], **options: bool) -> deletion.Preview:
        seen = compute(conn, project, ids, **options)
        if busy and list(ids) == [keys[1]]:
            vault.delete(next(others))
        return seen

    monkeypatch.setattr(deletion, "_compute", interrupted)
    with pytest.raises(errors.InstanceBusy, match="nothing was decided: try again"):
        deletion.delete(vault.ctx, vault.project, keys[1], no_note)
    assert vault.state(keys[1]) == "COMPLETED"
    with vault.catalog.read() as conn:
        assert conn.execute(sa.select(t.deletion).where(t.deletion.c.backup == keys[1])).first() is None
    busy.clear()
    vault.delete(keys[1])
    vault.run()
    vault.check()


def test_a_backup_that_is_released_meanwhile_is_looked_at_again(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held when the snapshot was taken, free under the locks: its numbers are computed before it goes."""
    keys = list(vault.wanted)
    before = vault.size()
    holding.hold(vault.ctx, vault.project, keys[1], holding.Hold("evidence"), lambda conn: None)
    between = Between(monkeypatch, lambda: holding.hold(vault.ctx, vault.project, keys[1], None, lambda conn: None))
    vault.delete(keys[1])
    assert between.computed == 2
    exact(vault, keys[1], before)


def test_a_backup_that_is_held_meanwhile_stays(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is decided under the lock."""
    key = list(vault.wanted)[2]
    Between(monkeypatch, lambda: holding.hold(vault.ctx, vault.project, key, holding.Hold("evidence"), lambda conn: None))
    with pytest.raises(errors.BackupHeld, match=f"^backup {key} is held \\(pinned since .* UTC: evidence\\): release it first$"):
        deletion.delete(vault.ctx, vault.project, key, no_note)
    assert vault.state(key) == "COMPLETED"
    vault.check()


def test_a_hold_that_ends_between_snapshot_and_locks_ends_for_the_delete_too(
    vault: HarshVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at by the clock of each moment: the numbers are computed once more, and the backup goes."""
    keys = list(vault.wanted)
    before = vault.size()
    until = vault.clock.now() + 60
    holding.hold(vault.ctx, vault.project, keys[1], holding.Hold("evidence", "legal", "ann", until), lambda conn: None)
    between = Between(monkeypatch, lambda: vault.clock.sleep(61))
    vault.delete(keys[1])
    assert between.computed == 2
    exact(vault, keys[1], before)


def test_a_hold_refuses_up_to_its_end_and_says_all_of_it(vault: HarshVault) -> None:
    """To the second; its end brings no row along that would have to be removed."""
    key = list(vault.wanted)[2]
    began, until = vault.clock.now(), vault.clock.now() + 3600
    holding.hold(vault.ctx, vault.project, key, holding.Hold("case 4711", "legal", "ann", until), lambda conn: None)
    begin, end = (datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") for at in (began, until))
    told = f"^backup {key} is held \\(legal hold by ann since {begin} until {end}: case 4711\\): release it first$"
    for passes in (0, 3599):
        vault.clock.sleep(passes)
        with pytest.raises(errors.BackupHeld, match=told):
            deletion.delete(vault.ctx, vault.project, key, no_note)
        assert list(deletion.preview(vault.ctx, vault.project, [key]).refusals) == [key]
    vault.clock.sleep(1)
    before = vault.size()
    vault.delete(key)
    exact(vault, key, before)


def test_a_hold_replaces_the_one_before_and_a_release_leaves_nothing(vault: HarshVault) -> None:
    """All of its columns, or none."""
    key = list(vault.wanted)[2]
    holding.hold(vault.ctx, vault.project, key, holding.Hold("one", "legal", "ann", vault.clock.now() + 5), lambda conn: None)
    holding.hold(vault.ctx, vault.project, key, holding.Hold("two"), lambda conn: None)
    assert hold_of(vault, key) == ("two", "pin", None, vault.clock.now(), None)
    holding.hold(vault.ctx, vault.project, key, None, lambda conn: None)
    assert hold_of(vault, key) == (None,) * 5


def hold_of(vault: HarshVault, key: str) -> tuple[object, ...]:
    b = t.backup.c
    with vault.catalog.read() as conn:
        query = sa.select(b.held, b.held_kind, b.held_by, b.held_at, b.held_until).where(b.id == key)
        return tuple(conn.execute(query).one())


def test_two_deletes_of_one_backup_at_once_are_one(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one answers the faster one's job, and writes no audit event."""
    keys = list(vault.wanted)
    jobs: list[str] = []
    Between(monkeypatch, lambda: jobs.append(vault.delete(keys[1])))
    noted: list[str] = []
    jobs.append(deletion.delete(vault.ctx, vault.project, keys[1], lambda conn, backup, name: noted.append(backup)))
    assert jobs[0] == jobs[1]
    assert noted == []
    vault.run()
    vault.check()


# Batches


def test_a_batch_takes_along_what_is_being_deleted_already(vault: HarshVault) -> None:
    """Its job is answered, in the order of the ids; only what is new is decided, noted and promised, at its own version."""
    keys = list(vault.wanted)
    running = vault.delete(keys[1])
    noted: list[tuple[str, str]] = []
    jobs = deletion.delete_batch(
        vault.ctx, vault.project, [keys[3], keys[1], keys[0]], lambda conn, backup, name: noted.append((backup, name))
    )
    for key in (keys[0], keys[3]):
        vault.wanted.pop(key)
    assert jobs[1] == running
    assert len(set(jobs)) == 3
    assert noted == [(keys[3], "a-backup"), (keys[0], "a-backup")]
    vault.run()
    for key in keys[:2] + keys[3:4]:
        receipt = vault.receipt(key)
        assert (receipt["freed"], receipt["waiting"]) == (receipt["promised"]["freed"], receipt["promised"]["waiting"])
    vault.check()


def test_a_batch_of_which_one_goes_meanwhile_keeps_its_numbers(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between snapshot and locks one of the set is deleted by another call: the rest is looked at again."""
    keys = list(vault.wanted)
    between = Between(monkeypatch, lambda: vault.delete(keys[1]))
    deletion.delete_batch(vault.ctx, vault.project, [keys[1], keys[2]], no_note)
    vault.wanted.pop(keys[2])
    assert between.computed == 3
    vault.run()
    for key in keys[1:3]:
        receipt = vault.receipt(key)
        assert (receipt["freed"], receipt["waiting"]) == (receipt["promised"]["freed"], receipt["promised"]["waiting"])
    vault.check()


@pytest.mark.parametrize("count", [0, 11])
def test_a_batch_has_one_to_ten_different_ids(vault: HarshVault, count: int) -> None:
    """Told how many there are; ten are not too many."""
    ids = [f"{number:032d}" for number in range(count)]
    with pytest.raises(errors.BadBatch, match=f"^backup_ids takes 1 to 10 different ids; there are {count}, {count} different$"):
        deletion.delete_batch(vault.ctx, vault.project, ids, no_note)
    with pytest.raises(errors.BadBatch, match="there are 2, 1 different"):
        deletion.delete_batch(vault.ctx, vault.project, ["x", "x"], no_note)
    for allowed in (1, 10):
        with pytest.raises(errors.NoSuchBackup, match=r"^there is no backup 0{32} in this project$"):
            deletion.delete_batch(vault.ctx, vault.project, [f"{number:032d}" for number in range(allowed)], no_note)


# If-Match


def test_a_preview_holds_for_its_version_and_for_no_other(vault: HarshVault) -> None:
    """The version names the lineage; a delete at it is accepted with the same numbers, once it has moved it is refused with what
    it is now. A delete that is under way is answered whatever the version."""
    keys = list(vault.wanted)
    seen = vault.preview(keys[1])
    (lineage,) = versions_of(vault)
    assert seen.version == f"{lineage}.{versions_of(vault)[lineage]}"
    with pytest.raises(errors.PreviewMoved, match=f"^the preview was made at old, now it is {seen.version}: preview again$"):
        deletion.delete(vault.ctx, vault.project, keys[1], no_note, "old")
    job = vault.delete(keys[1], if_match=seen.version)
    assert vault.delete(keys[1], if_match=seen.version) == job
    assert vault.receipt(keys[1])["promised"]["freed"] == seen.total.freed
    with vault.catalog.read() as conn:
        assert conn.execute(sa.select(t.deletion.c.at_version)).scalar_one() == seen.version
    exact(vault, keys[1], vault.size())


def test_a_set_of_nothing_has_a_version_too(vault: HarshVault) -> None:
    """A backup that owns no part in any chain."""
    vault.engine.broken = "the engine went away"
    failed, _ = vault.create(small(7))
    vault.run()
    vault.engine.broken = None
    seen = vault.preview(failed)
    assert (seen.version, seen.total) == ("none", deletion.Promise())
    vault.delete(failed, if_match="none")
    exact(vault, failed, vault.size())


# The preview of a set


def test_a_preview_tells_what_goes_and_what_may_not(vault: HarshVault) -> None:
    """Refusals with their reasons, promises of the rest as if those stayed; what is being deleted is in neither."""
    keys = list(vault.wanted)
    alone = vault.preview(keys[2]).total
    holding.hold(vault.ctx, vault.project, keys[1], holding.Hold("evidence"), lambda conn: None)
    seen = vault.preview(keys[1], keys[2])
    assert list(seen.refusals) == [keys[1]]
    assert isinstance(seen.refusals[keys[1]], errors.BackupHeld)
    assert seen.promises == {keys[2]: alone}
    vault.delete(keys[2])
    assert vault.preview(keys[1], keys[2]).promises == {}
    vault.run()
    vault.check()


def test_the_last_backup_takes_the_lineages_keys_and_graves_along(vault: HarshVault) -> None:
    """They are in its promise, and in no other's."""
    keys = list(vault.wanted)
    kinds = ("grave", "key")

    def marks() -> tuple[int, int]:
        with vault.catalog.read() as conn:
            rows = conn.execute(sa.select(t.object_.c.bytes).where(t.object_.c.kind.in_(kinds), t.object_.c.state == "STORED"))
            sizes = [row.bytes for row in rows]
        return len(sizes), sum(sizes)

    for key in keys[:-1]:
        vault.delete(key)
    vault.run()
    count, size = marks()
    assert count >= len(keys)
    seen = vault.preview(keys[-1]).total
    with vault.catalog.read() as conn:
        stored = conn.execute(
            sa.select(sa.func.count(), sa.func.sum(t.object_.c.bytes)).where(
                t.object_.c.state == "STORED", t.object_.c.kind.in_(("pack", "rewrite", "manifest"))
            )
        ).one()
    assert (seen.objects, seen.freed) == (stored[0] + count, stored[1] + size)
    before = vault.size()
    vault.delete(keys[-1])
    exact(vault, keys[-1], before)


# The job


def test_what_is_condemned_while_the_job_runs_is_removed_before_it_is_done(
    vault: HarshVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that came late condemns an object of this deletion after its last batch: the job is run again, at once."""
    keys = list(vault.wanted)
    reclaim, late = rewriting.reclaim, list[str]()

    def condemning(ctx: Any, job: Any, lineages: Sequence[str], backup: str) -> Any:
        done = reclaim(ctx, job, lineages, backup)
        if not late:
            late.append(f"{lineages[0]}/pack/9.1/late")
            vault.store.put_new(late[0], b"x" * 100)
            with vault.catalog.write() as conn:
                conn.execute(
                    t.object_.insert().values(
                        id="late", lineage=lineages[0], kind="pack", name=late[0], state="CONDEMNED", bytes=100, live=0,
                        dead_bytes=0, seq=9, attempt=1, late=False, removal=removal.of_delete(backup),
                    )
                )  # fmt: skip
        return done

    monkeypatch.setattr(rewriting, "reclaim", condemning)
    job = vault.delete(keys[1])
    assert vault.worker.step() == job
    shown = vault.job(job)
    assert (shown.state, shown.error) == ("QUEUED", "objects of this deletion were condemned while it ran")
    assert vault.state(keys[1]) == "DELETING"
    assert vault.worker.step() == job, "without a pause"
    assert vault.job(job).state == "DONE"
    assert vault.store.stat(late[0]) is None
    receipt = vault.receipt(keys[1])
    assert receipt["freed"] == receipt["promised"]["freed"] + 100
    vault.run()
    vault.check()


def test_a_delete_that_is_cancelled_stays_deleting_and_goes_on_when_asked_again(vault: HarshVault) -> None:
    """The subject is decided: given up, with its reason and an audit event, and resumed by the same call in a new job."""
    keys = list(vault.wanted)
    before = vault.size()
    job = vault.delete(keys[1])
    with vault.catalog.write() as conn:
        vault.jobs.cancel(conn, job)
    locked = version_of(vault, keys[1])
    vault.run()
    assert version_of(vault, keys[1]) == locked + 1, "decided under the backup's lock"
    assert (vault.job(job).state, vault.state(keys[1])) == ("CANCELLED", "DELETING")
    with vault.catalog.read() as conn:
        row = conn.execute(sa.select(t.deletion)).one()
        event = conn.execute(sa.select(identity.audit).where(identity.audit.c.event == "NoSQLDeleteBackupFailed")).one()
    assert (row.state, row.fail_reason, row.job) == ("FAILED", "cancelled by a user", job)
    assert (event.resource_type, event.resource_id, event.resource_name) == ("backup", keys[1], "a-backup")
    assert (event.outcome, event.level, event.project) == ("FAILED", "Major", vault.project)
    assert "cancelled by a user" in event.detail
    assert job in event.detail
    noted: list[str] = []
    again = deletion.delete(vault.ctx, vault.project, keys[1], lambda conn, backup, name: noted.append(backup))
    assert again != job
    assert noted == [keys[1]], "who made it go on is in the audit trail"
    with vault.catalog.read() as conn:
        row = conn.execute(sa.select(t.deletion)).one()
    assert (row.state, row.fail_reason, row.job) == ("RUNNING", None, again)
    assert of_job(vault, again) == of_job(vault, job), "found where the first one is"
    exact(vault, keys[1], before)


def of_job(vault: HarshVault, job: str) -> tuple[Any, ...]:
    with vault.catalog.read() as conn:
        row = conn.execute(sa.select(t.job).where(t.job.c.id == job)).one()
    return row.kind, row.args, row.project, row.instance, row.backup, row.unique_key, row.max_attempts


def test_a_deletions_job_is_found_by_project_instance_and_backup(vault: HarshVault) -> None:
    """One at a time of each backup, in its project's list, tried for as long as it takes."""
    keys = list(vault.wanted)
    job = vault.delete(keys[1])
    key = removal.of_delete(keys[1])
    assert of_job(vault, job) == (
        "delete", f'{{"backup": "{keys[1]}"}}', vault.project, vault.source, keys[1], key, None,
    )  # fmt: skip


def test_a_job_that_was_replaced_decides_neither_end(vault: HarshVault) -> None:
    """Its last transaction proves its lease first: the backup stays DELETING, its deletion RUNNING."""
    keys = list(vault.wanted)
    key = vault.delete(keys[1])
    handler = deletion.DeleteJob(vault.ctx)
    old = vault.worker.claim()
    assert old is not None
    assert old.id == key
    vault.clock.sleep(100)
    new = vault.another_process().claim()
    assert new is not None
    with pytest.raises(JobLost):
        handler.give_up(old, "FAILED", "x")
    with pytest.raises(JobLost):
        handler._finish(old, keys[1])
    with vault.catalog.read() as conn:
        assert conn.execute(sa.select(t.deletion.c.state)).scalar_one() == "RUNNING"
        assert conn.execute(sa.select(identity.audit)).all() == []
    assert vault.state(keys[1]) == "DELETING"


@pytest.mark.parametrize("thorough", [True, False])
def test_a_resumed_delete_is_thorough_if_any_call_says_so(
    vault: HarshVault, monkeypatch: pytest.MonkeyPatch, thorough: bool
) -> None:
    """The first call asked for the budget, the repeated one for all that waits; promises stay as they were accepted."""
    vault.ctx = replace(vault.ctx, options=replace(OPTIONS, reclaim_budget=0.0))
    keys = list(vault.wanted)

    def denied(*_args: object) -> None:
        raise StoreDenied("the store refuses: check its rights")

    with monkeypatch.context() as patch:
        patch.setattr(type(vault.store), "delete_many", denied)
        first = vault.delete(keys[1])
        vault.run()
    assert vault.job(first).state == "FAILED"
    promised = vault.receipt(keys[1])["promised"]
    with vault.catalog.read() as conn:
        assert conn.execute(sa.select(t.deletion.c.fail_reason)).scalar_one() == "the store refuses: check its rights"
    deletion.delete(vault.ctx, vault.project, keys[1], no_note, thorough=thorough)
    with vault.catalog.read() as conn:
        assert conn.execute(sa.select(t.deletion.c.thorough)).scalar_one() is thorough
    vault.run()
    assert vault.state(keys[1]) == "DELETED"
    receipt = vault.receipt(keys[1])
    assert receipt["promised"] == promised
    assert (receipt["thorough"] is not None) is thorough


def test_a_handler_that_is_asked_to_end_leaves_what_is_condemned(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled in the middle of its removal: nothing is recorded as gone that is not, and the next job goes on."""
    keys = list(vault.wanted)
    before, calls = vault.size(), list[str]()
    batch = removal._remove

    def interrupted(*args: Any) -> None:
        calls.append("batch")
        if len(calls) == 2:
            raise Cancelled("cancelled by a user")
        batch(*args)

    with monkeypatch.context() as patch:
        patch.setattr(removal, "BATCH", 1)
        patch.setattr(removal, "_remove", interrupted)
        job = vault.delete(keys[1])
        vault.run()
    assert (vault.job(job).state, vault.job(job).error) == ("FAILED", "cancelled by a user")
    assert vault.state(keys[1]) == "DELETING"
    with vault.catalog.read() as conn:
        assert conn.execute(sa.select(t.object_.c.id).where(t.object_.c.state == "CONDEMNED")).all()
    vault.delete(keys[1])
    exact(vault, keys[1], before)


def test_a_deletion_that_fails_leaves_others_running(vault: HarshVault) -> None:
    """One of two is cancelled: only its row says so."""
    keys = list(vault.wanted)
    failed, running = vault.delete(keys[1]), vault.delete(keys[3])
    with vault.catalog.write() as conn:
        vault.jobs.cancel(conn, failed)
    vault.worker.step()
    with vault.catalog.read() as conn:
        states = {row.backup: row.state for row in conn.execute(sa.select(t.deletion.c.backup, t.deletion.c.state))}
        detail = conn.execute(sa.select(identity.audit.c.detail)).scalar_one()
    assert states == {keys[1]: "FAILED", keys[3]: "RUNNING"}
    assert json.loads(detail) == {"reason": "cancelled by a user", "job": failed}
    assert vault.job(running).state == "QUEUED"


def test_an_error_that_passes_is_tried_again(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deletion goes on as it was; the end is decided under the backup's lock."""
    keys = list(vault.wanted)

    def away(*_args: object) -> None:
        raise StoreUnavailable("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(type(vault.store), "delete_many", away)
        job = vault.delete(keys[1])
        vault.worker.step()
    assert (vault.job(job).state, vault.job(job).error) == ("QUEUED", "the store is away")
    with vault.catalog.read() as conn:
        row = conn.execute(sa.select(t.deletion)).one()
    assert (row.state, row.fail_reason, row.finished_at) == ("RUNNING", None, None)
    locked = version_of(vault, keys[1])
    vault.run()
    assert (vault.state(keys[1]), version_of(vault, keys[1])) == ("DELETED", locked + 1)
    with vault.catalog.read() as conn:
        row = conn.execute(sa.select(t.deletion)).one()
    assert (row.state, row.finished_at) == ("DONE", vault.clock.now())
    assert vault.job(job).result == vault.receipt(keys[1])


def test_the_job_works_on_its_backups_lineages_alone(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it gives up, removes, rewrites and reads back is its own."""
    keys, seen = list(vault.wanted), list[tuple[Any, ...]]()
    second_instance(vault)
    job = vault.delete(keys[1])
    claimed = vault.worker.claim()
    assert claimed is not None
    (mine,) = {lineage for lineage, _ in deletion_parts(vault, keys[1])}
    monkeypatch.setattr(rewriting, "abandon", lambda *args: seen.append(args))
    monkeypatch.setattr(removal, "carry_out", lambda *args: seen.append(args))
    monkeypatch.setattr(rewriting, "reclaim", lambda *args: seen.append(args) or {"written": 1})
    monkeypatch.setattr(deletion.aftercheck, "verify", lambda *args: seen.append(args))
    handler = deletion.DeleteJob(vault.ctx)
    monkeypatch.setattr(handler, "_finish", lambda *args: seen.append(args))
    assert handler.run(claimed) is None
    key = removal.of_delete(keys[1])
    assert seen == [
        (vault.ctx, claimed, key), (vault.ctx, claimed, [mine], key), (vault.ctx, claimed, [mine], keys[1]),
        (vault.ctx, claimed, keys[1], {"written": 1}), (claimed, keys[1]),
    ]  # fmt: skip
    assert job == claimed.id


def deletion_parts(vault: HarshVault, key: str) -> list[tuple[str, int]]:
    with vault.catalog.read() as conn:
        rows = conn.execute(sa.select(t.part.c.lineage, t.part.c.seq).where(t.part.c.backup == key))
        return [(row.lineage, row.seq) for row in rows]


def second_instance(vault: HarshVault, count: int = 2) -> list[str]:
    """Backups of another instance: its lineage has the same seqs."""
    vault.engine.databases["plain://second"] = {}
    instance, keys = vault._register("second"), list[str]()
    for number in range(count):
        data = {"b": noise(9_000, 500 + number), "still": noise(9_000, 600)}
        vault.engine.databases["plain://second"] = data
        key, _ = creation.create(vault.ctx, vault.project, instance, creation.Wanted("b"), lambda conn, key: None)
        vault.run()
        vault.wanted[key] = data
        keys.append(key)
    return keys


def test_backups_of_two_instances_never_meet(vault: HarshVault) -> None:
    """The same seq in two lineages: neither its manifest nor its bytes are promised or removed with the other's; a batch over
    both is promised for each, at both versions."""
    keys = list(vault.wanted)
    alone = vault.preview(keys[1]).total
    others = second_instance(vault)
    assert [seq for _, seq in deletion_parts(vault, others[1])] == [2]
    assert vault.preview(keys[1]).total == alone
    both = vault.preview(keys[1], others[1])
    assert both.total == alone + vault.preview(others[1]).total
    assert both.version == ",".join(f"{key}.{version}" for key, version in sorted(versions_of(vault).items()))
    before = vault.size()
    vault.delete(keys[1])
    exact(vault, keys[1], before)
    before = vault.size()
    vault.delete(others[1])
    exact(vault, others[1], before)


def test_the_version_of_some_of_a_set_names_their_lineages() -> None:
    """In the order of the whole; none of none."""
    seen = deletion.Preview(
        "a.1,b.22,c.3", {}, {}, Partly(), {"x": [("c", 1)], "y": [("a", 4), ("c", 5)], "z": [("b", 2)], "none": []}
    )
    assert deletion._version_of(seen, ["y", "x"]) == "a.1,c.3"
    assert deletion._version_of(seen, ["z"]) == "b.22"
    assert deletion._version_of(seen, ["none"]) == "none"
    assert deletion._version_of(seen, []) == "none"


def test_what_neighbours_share_is_promised_to_the_second_of_them(vault: HarshVault) -> None:
    """A batch of both: each promise is what its delete does after the one before; it is no thorough one."""
    shared = {"shared": noise(16_000, 70)}
    keys = [vault.backup(small(7) | shared), vault.backup(small(7) | shared)]
    vault.backup(small(8))
    seen, before = vault.preview(*keys), vault.size()
    alone = [vault.preview(key).total for key in keys]
    assert seen.total.owned > alone[0].owned + alone[1].owned + 15_000
    for promise in (*alone, *seen.promises.values()):
        assert promise.owned == promise.freed + promise.waiting, "nothing was dead before"
    deletion.delete_batch(vault.ctx, vault.project, keys, no_note)
    for key in keys:
        vault.wanted.pop(key)
    vault.run()
    receipts = [vault.receipt(key) for key in keys]
    assert [receipt["promised"]["freed"] for receipt in receipts] == [one.freed for one in seen.promises.values()]
    assert [receipt["freed"] for receipt in receipts] == [one.freed for one in seen.promises.values()]
    assert [receipt["thorough"] for receipt in receipts] == [None, None]
    change = sum(one["freed"] + one["reclaimed"]["net"] - one["put_bytes"] for one in receipts)
    assert before - vault.size() == change
    vault.check()


def test_a_preview_tells_the_price_of_a_thorough_delete_if_asked(vault: HarshVault) -> None:
    """What would be partly dead afterwards; unpriced it is left out."""
    key = next(iter(vault.wanted))
    seen = vault.preview(key)
    assert seen.total.waiting > 0
    assert seen.thorough.dead >= seen.total.waiting
    assert deletion.preview(vault.ctx, vault.project, [key], priced=False).thorough == Partly()


def test_only_stored_manifests_are_promised(vault: HarshVault) -> None:
    """Not one of an earlier attempt that is condemned already; a part without any promises its chunks alone."""
    key = list(vault.wanted)[1]
    ((lineage, seq),) = deletion_parts(vault, key)
    before = vault.preview(key).total
    manifest = sa.and_(t.object_.c.lineage == lineage, t.object_.c.kind == "manifest", t.object_.c.seq == seq)
    with vault.catalog.write() as conn:
        conn.execute(
            t.object_.insert().values(
                id="early", lineage=lineage, kind="manifest", name="early", state="CONDEMNED", bytes=100, live=0, dead_bytes=0,
                seq=seq, attempt=0, late=False, removal=removal.of_lineage(lineage),
            )
        )  # fmt: skip
        size = conn.execute(sa.select(t.object_.c.bytes).where(manifest, t.object_.c.state == "STORED")).scalar_one()
    assert vault.preview(key).total == before
    with vault.catalog.write() as conn:
        conn.execute(sa.update(t.object_).where(manifest).values(state="LATE"))
    after = vault.preview(key).total
    assert (before.owned - after.owned, before.freed - after.freed, before.objects - after.objects) == (size, size, 1)


def test_bytes_that_a_build_may_still_adopt_are_undecided(vault: HarshVault) -> None:
    """In the preview and in the receipt."""
    head, promised = list(vault.wanted)[-1], list[deletion.Promise]()

    def delete_parent() -> None:
        vault.engine.during = None
        promised.append(vault.preview(head).total)
        vault.delete(head)

    vault.engine.during = delete_parent
    data = small(9)
    child, _ = vault.create(data)
    vault.run()
    vault.wanted[child] = data
    (promise,) = promised
    assert promise.undecided > 0
    receipt = vault.receipt(head)
    assert receipt["undecided"] == receipt["promised"]["undecided"] == promise.undecided
    assert 0 < receipt["settled_freed"] + receipt["settled_waiting"] <= promise.undecided + 10_000
    vault.check()


def test_a_receipt_tells_each_number_of_its_rows(vault: HarshVault) -> None:
    """Whatever they are; settled bytes of all of the backup's own deletes' decisions, and of no others."""
    key, other = list(vault.wanted)[:2]
    ((lineage, _),) = deletion_parts(vault, key)
    columns = (
        "owned", "promised_freed", "promised_waiting", "promised_undecided", "promised_objects", "promised_rewrite", "freed",
        "waiting", "removed_objects", "hidden", "put_bytes", "rewrite_read", "rewrite_written", "rewrite_dropped",
    )  # fmt: skip
    numbers = {name: 1000 + place for place, name in enumerate(columns)}
    with vault.catalog.write() as conn:
        for backup, more in ((key, 0), (other, 500)):
            conn.execute(
                t.deletion.insert().values(
                    backup=backup, project="p", job="j", state="DONE", at_version="", accepted_at=0.0, thorough=more > 0,
                    **{name: number + more for name, number in numbers.items()},
                )
            )  # fmt: skip
    nothing = vault.receipt(key)
    assert (nothing["settled_freed"], nothing["settled_waiting"], nothing["thorough"]) == (0, 0, None)
    with vault.catalog.write() as conn:
        for backup, cause, freed in ((key, "DELETE", 1), (key, "DELETE", 20), (key, "COMMIT", 300), (other, "DELETE", 4000)):
            conn.execute(
                t.decision.insert().values(
                    lineage=lineage, cause=cause, backup=backup, seq=1, before=0, after=None, removal="r", swept=True,
                    undecided=0, undecided_upto=1, settled=True, settled_freed=freed, settled_waiting=2 * freed,
                )
            )  # fmt: skip
        conn.execute(sa.update(t.deletion).where(t.deletion.c.backup == other).values(verified='{"checked": 3}'))
    assert vault.receipt(key) == {
        "promised": {"owned": 1000, "freed": 1001, "waiting": 1002, "undecided": 1003, "objects": 1004},
        "thorough": None, "freed": 1006, "waiting": 1007, "undecided": 1003, "settled_freed": 21, "settled_waiting": 42,
        "removed_objects": 1008, "hidden": 1009, "put_bytes": 1010,
        "reclaimed": {"read": 1011, "written": 1012, "dropped": 1013, "net": 1}, "verified": nothing["verified"],
    }  # fmt: skip
    assert vault.receipt(other)["thorough"] == {"rewrite": 1505}
    assert vault.receipt(other)["verified"] != nothing["verified"]


@pytest.mark.parametrize("thorough", [True, False])
def test_an_accepted_deletion_begins_with_its_promise_and_nothing_done(vault: HarshVault, thorough: bool) -> None:
    """The row as the deciding transaction leaves it; the backup is DELETING, its part is fenced and its manifest condemned."""
    key = next(iter(vault.wanted))
    seen, promise = vault.preview(key), vault.preview(key).total
    ((lineage, seq),) = deletion_parts(vault, key)
    vault.wanted.pop(key)
    job = deletion.delete(vault.ctx, vault.project, key, no_note, thorough=thorough)
    with vault.catalog.read() as conn:
        row = conn.execute(sa.select(t.deletion)).one()._asdict()
        part = conn.execute(sa.select(t.part).where(t.part.c.lineage == lineage, t.part.c.seq == seq)).one()
        marks = conn.execute(
            sa.select(t.object_.c.kind, t.object_.c.state, t.object_.c.removal, t.object_.c.attempt)
            .where(t.object_.c.seq == seq, t.object_.c.kind.in_(("manifest", "grave")))
            .order_by(t.object_.c.kind.desc())
        ).all()
    done = dict.fromkeys(
        ("freed", "removed_objects", "hidden", "put_bytes", "rewrite_read", "rewrite_written", "rewrite_dropped"), 0
    )  # fmt: skip
    assert row == done | {
        "backup": key, "project": vault.project, "job": job, "state": "RUNNING", "at_version": seen.version,
        "owned": promise.owned, "promised_freed": promise.freed, "promised_waiting": promise.waiting,
        "promised_undecided": promise.undecided, "promised_objects": promise.objects, "thorough": thorough,
        "promised_rewrite": seen.thorough.living if thorough else 0, "waiting": promise.waiting, "verified": None,
        "accepted_at": vault.clock.now(), "finished_at": None, "fail_reason": None,
    }  # fmt: skip
    assert (part.state, part.attempt) == ("RETIRED", 2)
    mine = removal.of_delete(key)
    assert [tuple(mark) for mark in marks] == [("manifest", "CONDEMNED", mine, 1), ("grave", "PLANNED", mine, 2)]
    assert vault.state(key) == "DELETING"


def test_promises_add_up_number_by_number() -> None:
    """Each with its own."""
    assert deletion.Promise(1, 2, 3, 4, 5) + deletion.Promise(10, 20, 30, 40, 50) == deletion.Promise(11, 22, 33, 44, 55)


def test_the_price_of_a_thorough_delete_is_computed_again_with_its_promise(
    vault: HarshVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lineage moved three times: promise and price are those under the locks. A plain delete has no price."""
    keys, more = list(vault.wanted), iter(range(6, 9))
    price = deletion.preview(vault.ctx, vault.project, [keys[1]]).thorough.living
    Between(monkeypatch, *([lambda: vault.backup(small(next(more)))] * 3))
    deletion.delete(vault.ctx, vault.project, keys[0], no_note, thorough=True)
    monkeypatch.undo()
    vault.wanted.pop(keys[0])
    thorough = vault.receipt(keys[0])["thorough"]
    assert thorough is not None
    assert thorough["rewrite"] > price >= 0
    vault.delete(keys[1])
    assert vault.receipt(keys[1])["thorough"] is None
    vault.run()
    vault.check()


def test_a_batch_sweeps_no_more_than_one_delete_may(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a transaction may sweep is shared by its decisions: the first uses it up, the others are left to their jobs."""
    keys, steps, step = list(vault.wanted), list[int](), sweeping.step

    def counted(conn: sa.Connection, lineage: str, limit: int) -> int | None:
        steps.append(limit)
        return step(conn, lineage, limit)

    monkeypatch.setattr(sweeping, "AT_ONCE", 1)
    monkeypatch.setattr(sweeping, "step", counted)
    noted: list[int] = []
    deletion.delete_batch(
        vault.ctx, vault.project, keys[1:4], lambda conn, key, name: noted.append(conn.execute(sa.select(7)).scalar_one())
    )
    assert steps == [1]
    assert noted == [7, 7, 7], "events are written by the deciding transaction"
    for key in keys[1:4]:
        vault.wanted.pop(key)
    vault.run()
    vault.check()


def test_a_refusal_says_which_backup_and_what_to_do(vault: HarshVault) -> None:
    """Being built, or read by a restore that is queued or running; another job, another backup's restore or an ended one
    refuses nothing."""
    building, _ = vault.create(small(7))
    with pytest.raises(errors.BackupBuilding, match=f"^backup {building} is being built: stop it first$"):
        deletion.delete(vault.ctx, vault.project, building, no_note)
    vault.run()
    keys = list(vault.wanted)
    job = vault.restore(keys[1])
    said = f"^backup {keys[1]} is being restored by job {job}: wait for its end$"
    for state in ("QUEUED", "RUNNING"):
        with vault.catalog.write() as conn:
            conn.execute(sa.update(t.job).where(t.job.c.id == job).values(state=state))
        with pytest.raises(errors.BackupRestoring, match=said):
            deletion.delete(vault.ctx, vault.project, keys[1], no_note)
        assert vault.preview(keys[2]).refusals == {}
    with vault.catalog.write() as conn:
        conn.execute(sa.update(t.job).where(t.job.c.id == job).values(kind="verify"))
    assert vault.preview(keys[1]).refusals == {}
    with vault.catalog.write() as conn:
        conn.execute(sa.update(t.job).where(t.job.c.id == job).values(kind="restore", state="DONE"))
    assert vault.preview(keys[1]).refusals == {}
