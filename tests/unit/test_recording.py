"""Points in time: what is recorded restores to every moment, and lives exactly as long as a backup that can go on by it."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import errors, following, instances, recording, replaying, restoration, verification
from strongroom.backups.recording import Policy
from strongroom.backups.verification import VerifyJob
from strongroom.catalog import tables as t
from strongroom.engines.base import EngineDenied, EngineUnreachable
from strongroom.engines.log import LogGap
from strongroom.identity import tables as identity
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.notifications import outbox
from strongroom.storage.base import StoreUnavailable
from strongroom.storage.faults import Effect, Fail, Fault
from support.logged import LoggedVault, nothing
from support.vault import Vault

DAY = 86400.0


@pytest.fixture
def vault(tmp_path: Path) -> LoggedVault:
    """One whose policy is on, with some writes before anything else."""
    vault = LoggedVault(tmp_path)
    vault.writes(10)
    vault.turn_on()
    return vault


def test_every_moment_between_backups_can_be_restored(vault: LoggedVault) -> None:
    """Before, at and after backups that were taken meanwhile; those between two writes are as after the first."""
    vault.take()
    begin = vault.engine.clock
    for _ in range(3):
        vault.writes(7)
        vault.follow()
        vault.writes(2)
        vault.take()
    vault.writes(3)
    vault.follow()
    assert vault.periods() == [(begin, vault.engine.clock)]
    vault.check_moments()
    at = vault.engine.states[15][0]
    assert vault.restored_to(at + 0.5) == vault.engine.held_at(at)
    with pytest.raises(errors.NotRestorable, match=r"no backup before it.*see its restorable periods"):
        vault.restored_to(begin - 1)
    with pytest.raises(errors.NotRestorable, match="it is still to come"):
        vault.restored_to(vault.ctx.ambient.now() + 1)


def test_a_restore_waits_for_what_is_recorded_and_not_stored_yet(vault: LoggedVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it looks at its target; what is not recorded yet when it is decided counts too, as long as it was."""
    vault.take()
    vault.writes(3)
    vault.follow()
    vault.writes(5)
    at, sleep = vault.engine.clock, vault.clock.sleep
    wanted, waits = dict(vault.engine.databases["plain://source"]), list[str]()

    def wait(seconds: float) -> None:
        sleep(seconds)
        with vault.catalog.read() as conn:
            (row,) = conn.execute(sa.select(t.job).where(t.job.c.kind == "restore", t.job.c.state == "RUNNING")).all()
        waits.append(row.args)
        if len(waits) == 3:
            vault.follow_beside()

    monkeypatch.setattr(vault.clock, "sleep", wait)
    before = vault.periods()[-1][1]
    assert vault.restored_to(at) == wanted
    assert len(waits) == 3
    assert not any("begun" in args for args in waits)
    assert before < at <= vault.periods()[-1][1]


def test_a_recording_stores_at_once_what_a_restore_waits_for(vault: LoggedVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before its interval is over, and no more than that: what comes afterwards waits for the interval again."""
    monkeypatch.setattr(following, "_LOOK", 0.0)
    vault.take()
    ends = list[float]()
    begin = len(vault.engine.log)
    vault.writes(12)
    moments = [at for at, _ in vault.engine.states[begin:]]

    def midway(number: int) -> None:
        if number == begin + 4:
            args = (vault.ctx, vault.project, vault.source, moments[3], vault.target)
            restoration.restore_to(*args, nothing, overwrite=True)
        ends.append(max((end for _, end in vault.periods()), default=0.0))

    vault.engine.midway = midway
    vault.follow()
    assert ends[3] < moments[3] <= ends[5]
    assert ends[5] == ends[-1] < moments[-1]
    assert vault.periods()[-1][1] == moments[-1]
    assert vault.engine.databases["plain://target"] == vault.engine.held_at(moments[3])


def test_a_moment_that_nobody_records_is_refused_or_fails_in_time(vault: LoggedVault) -> None:
    """A recording in trouble says so at once; one of which nothing is heard, after a while, and the target is as it was."""
    vault.take()
    vault.writes(3)
    vault.follow()
    vault.writes(1)
    before = dict(vault.engine.databases["plain://target"])
    job = restoration.restore_to(
        vault.ctx, vault.project, vault.source, vault.engine.clock, vault.target, nothing, overwrite=True
    )
    vault.run()
    assert vault.job(job).state == "FAILED"
    assert "did not come into the store within 120 seconds" in str(vault.job(job).error)
    assert vault.job(job).result == {"target_state": "as it was: nothing was changed there"}
    for trouble, chain, words in (
        ("the source refuses", 1, r"recorded up to .* and does not go on: the source refuses"),
        (None, None, "only beginning; try again in some seconds"),
    ):
        with vault.catalog.write() as conn:
            conn.execute(sa.update(t.recording).values(trouble=trouble, chain=chain))
        with pytest.raises(errors.NotRestorable, match=words):
            vault.restored_to(vault.engine.clock)
    vault.turn_off()
    with pytest.raises(errors.NotRestorable, match="no backup before it has a log up to it"):
        vault.restored_to(vault.engine.clock)
    assert vault.engine.databases["plain://target"] == before


def test_the_oldest_backup_frees_the_log_up_to_the_next_and_one_between_none(vault: LoggedVault) -> None:
    """Preview, promise and receipt agree with the bytes of the store."""
    keys = []
    sizes = []
    for _ in range(4):
        keys.append(vault.take())
        before = vault.log_bytes()
        vault.writes(5)
        vault.follow()
        sizes.append(vault.log_bytes() - before)
    assert all(size > 10_000 for size in sizes)
    for key, freed in ((keys[1], 0), (keys[0], sizes[0] + sizes[1]), (keys[2], sizes[2]), (keys[3], sizes[3])):
        before, log = vault.size(), vault.log_bytes()
        promise = vault.preview(key).promises[key]
        vault.delete(key)
        vault.run()
        receipt = vault.receipt(key)
        assert receipt["freed"] == promise.freed == receipt["promised"]["freed"]
        assert receipt["removed_objects"] == promise.objects
        assert log - vault.log_bytes() == freed
        assert before - vault.size() == receipt["freed"] - receipt["put_bytes"] + receipt["reclaimed"]["net"]
        vault.check_moments()
    assert vault.log_bytes() == 0


def test_a_set_is_promised_as_it_is_freed(vault: LoggedVault) -> None:
    """Two that free log only together."""
    keys = [vault.take()]
    for _ in range(2):
        vault.writes(5)
        vault.follow()
        keys.append(vault.take())
    seen = vault.preview(*keys[:2])
    together = seen.total
    for key in keys[:2]:
        vault.delete(key)
    vault.run()
    receipts = [vault.receipt(key) for key in keys[:2]]
    assert sum(one["freed"] for one in receipts) == together.freed
    assert together.freed > 20_000
    vault.check_moments()


def test_what_a_running_backup_may_go_on_by_outlives_the_others(vault: LoggedVault) -> None:
    """The last backup is deleted while another is taken: the log since that began stays, and it is restorable from there."""
    first = vault.take()
    vault.writes(3)
    vault.follow()
    held = vault.log_bytes()

    def during() -> None:
        vault.engine.during = None
        vault.writes(3)
        vault.follow_beside()
        vault.delete(first)

    vault.engine.during = during
    second, _ = vault.create()
    vault.run()
    assert vault.state(second) == "COMPLETED"
    vault.wanted.pop(first, None)
    assert 0 < vault.log_bytes() < held + 10_000
    vault.writes(2)
    vault.follow()
    with vault.catalog.read() as conn:
        (one,) = replaying.stretches(conn, vault.source)
    assert one.backup == second
    assert one.end == vault.engine.clock
    vault.check_moments()


def test_a_failed_build_frees_what_only_it_kept(vault: LoggedVault) -> None:
    """The log that waited for it goes with it."""
    first = vault.take()

    def during() -> None:
        vault.engine.during = None
        vault.writes(3)
        vault.follow_beside()
        vault.delete(first)
        vault.engine.broken = "the line was cut"

    vault.engine.during = during
    second, _ = vault.create()
    vault.run()
    assert vault.state(second) == "FAILED"
    assert vault.log_bytes() == 0
    vault.check_accounts()


def test_a_gap_ends_the_chain_and_another_begins(vault: LoggedVault) -> None:
    """What was recorded stays restorable; between lies what is not, and the instance says why."""
    vault.take()
    begin = vault.engine.clock
    vault.writes(4)
    vault.follow()
    end = vault.engine.clock
    vault.writes(4)
    vault.engine.oldest = len(vault.engine.log)
    lost = vault.engine.clock
    vault.writes(2)
    assert vault.follow().state == "CANCELLED"  # it went on beside a backup that it took itself
    backups = vault.newest()
    assert backups.name == "log-begins"
    vault.writes(4)
    vault.follow()
    first, second = vault.periods()
    assert first == (begin, end)
    assert second[0] > lost
    assert second[1] == vault.engine.clock
    vault.check_moments()


def test_without_a_backup_one_is_taken_and_the_log_begins_beside_it(vault: LoggedVault) -> None:
    """Turning it on is all that there is to do."""
    vault.follow()
    vault.writes(5)
    vault.follow()
    assert len(vault.periods()) == 1
    vault.check_moments()


def test_a_source_that_keeps_no_log_before_its_first_backup_is_recorded_beside_a_second(vault: LoggedVault) -> None:
    """As a Redis without replicas, whose backlog begins with the first backup and is small: when that ends, what followed its
    beginning has gone already. There are two at most in an hour."""
    record, state = vault.engine.record, {"kept": False, "dropped": False}
    vault.engine.during = lambda: state.update(kept=True)

    def forgetful(target: Any, since: Any, *rest: Any) -> None:
        if not state["kept"]:
            raise LogGap("no backlog yet")
        if not state["dropped"]:
            state["dropped"] = True
            vault.writes(5)
            vault.engine.oldest = len(vault.engine.log) + 1
        record(target, since, *rest)

    def taken() -> list[float]:
        with vault.catalog.read() as conn:
            return list(conn.scalars(sa.select(t.backup.c.begin_at).where(t.backup.c.name == "log-begins").order_by("begin_at")))

    vault.engine.record = forgetful  # type: ignore[method-assign]
    vault.follow()
    vault.writes(3)
    vault.follow()
    first, second = taken()
    assert second - first < 60
    assert vault.periods()[-1][1] == vault.engine.clock
    vault.check_moments()
    vault.writes(3)
    vault.engine.oldest = len(vault.engine.log) + 1
    with pytest.raises(AssertionError, match="it waits for a backup to begin after"):  # for an hour
        vault.follow()
    assert taken() == [first, second]


def test_turned_on_again_after_a_hole_it_takes_a_backup_at_once(vault: LoggedVault) -> None:
    """However shortly before it has taken some."""
    vault.follow()
    vault.writes(3)
    vault.follow()
    first = vault.newest()
    for _ in range(3):
        vault.turn_off()
        vault.writes(3)
        vault.engine.oldest = len(vault.engine.log) + 1
        vault.turn_on()
        vault.follow()
        assert vault.newest().id != first.id
        first = vault.newest()
        assert first.name == "log-begins"
        vault.writes(3)
        vault.follow()
    assert len(vault.periods()) == 4
    assert vault.clock.passed < 600
    vault.check_moments()


def test_moments_that_are_listed_can_be_restored(vault: LoggedVault) -> None:
    """Whole seconds, none before the backup and none after the log."""
    vault.engine.clock += 0.6
    vault.take()
    vault.engine.clock += 2.3
    vault.writes(4)
    vault.follow()
    ((begin, end),) = vault.periods()
    assert begin % 1 > 0
    with vault.catalog.read() as conn:
        listed = replaying.marked(conn, vault.source, begin - 1, end + 1)
    assert listed[-1] == math.ceil(begin)
    for moment in listed:
        vault.restored_to(float(moment))


def test_a_restore_into_a_source_lets_its_recording_begin_anew_at_once(vault: LoggedVault) -> None:
    """The backup that it begins after is taken though another was taken by itself a moment ago."""
    vault.follow()
    assert vault.newest().name == "log-begins"
    first = vault.newest().id
    vault.writes(3)
    vault.follow()
    restoration.restore(vault.ctx, vault.project, first, vault.source, nothing)
    vault.run()
    vault.engine.oldest = len(vault.engine.log) + 5  # the source has another history now
    vault.writes(10)
    vault.follow()
    assert vault.newest().id != first


def test_what_lies_between_two_marks_may_be_longer_than_an_object(vault: LoggedVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long transaction comes in several pieces; an end in its middle leaves nothing of it."""
    monkeypatch.setattr(following, "_PIECE", 10_000)
    vault.take()
    vault.engine.every = 20
    vault.writes(50)  # 60 writes: marks at 20, 40 and 60
    vault.follow()
    with vault.catalog.read() as conn:
        pieces = conn.execute(sa.select(t.segment.c.upto, t.segment.c.piece)).all()
    assert len(pieces) > 6
    assert {row.upto for row in pieces} == {20, 40, 60}
    vault.writes(40)

    def fail(number: int) -> None:
        if number == 95:
            vault.engine.midway = None
            raise EngineUnreachable("the line was cut")

    vault.engine.midway = fail
    vault.follow()
    assert vault.periods()[-1][1] == vault.engine.states[99][0]
    vault.check_moments()


def test_log_is_kept_for_as_many_days_as_the_policy_says(tmp_path: Path) -> None:
    """The newest backup before them stays what moments are reached from; older ones can go on no more, and what led from them
    alone goes."""
    vault = LoggedVault(tmp_path, clock=time.time() - 10 * DAY)
    vault.writes(3)
    vault.turn_on(keep_days=2)
    for _ in range(10):
        vault.take()
        for _ in range(4):
            vault.engine.clock += DAY / 4 - 1
            vault.writes(1)
        vault.follow()
    whole = vault.log_bytes()
    vault.trim()
    assert vault.log_bytes() < whole / 2
    ((begin, end),) = [period for period in vault.periods() if period[1] - period[0] > 1]
    assert end == vault.engine.clock
    assert time.time() - 3.1 * DAY < begin <= time.time() - 2 * DAY
    vault.check_moments()
    vault.turn_off()
    recording.drop(vault.ctx, vault.project, vault.source, nothing)
    vault.run()
    assert vault.log_bytes() == 0
    vault.check_moments()


def test_old_log_waits_for_a_restore_that_may_replay_it(tmp_path: Path) -> None:
    """Trimming leaves the lineage alone until it has ended."""
    vault = LoggedVault(tmp_path, clock=time.time() - 10 * DAY)
    vault.turn_on(keep_days=1)
    vault.writes(3)
    vault.take()
    vault.writes(5)
    vault.follow()
    at = vault.engine.clock
    job = restoration.restore_to(vault.ctx, vault.project, vault.source, at, vault.target, nothing, overwrite=True)
    with vault.catalog.write() as conn:
        vault.jobs.submit(conn, recording.TRIM, {}, serial="trim", priority=1)
    vault.worker.step()
    assert vault.log_bytes() > 0
    vault.run()
    assert vault.job(job).state == "DONE"
    vault.trim()
    assert vault.log_bytes() == 0
    vault.check_accounts()


def test_a_rebuild_brings_every_moment_back(vault: LoggedVault, tmp_path: Path) -> None:
    """From the store alone, after a delete and a gap; recording goes on where it was."""
    keys = [vault.take()]
    for _ in range(3):
        vault.writes(5)
        vault.follow()
        keys.append(vault.take())
    vault.delete(keys[0])
    vault.run()
    vault.writes(3)
    vault.engine.oldest = len(vault.engine.log)
    vault.writes(1)
    vault.follow()
    vault.writes(4)
    vault.follow()
    found = vault.periods()
    assert len(found) == 2
    (tmp_path / "again").mkdir()
    other = vault.rebuilt(tmp_path / "again")
    assert other.periods() == found
    assert other.log_bytes() == vault.log_bytes()
    other.check_moments()
    other.turn_on()
    other.writes(4)
    other.follow()
    other.check_moments()
    for key in [*keys[1:], other.newest().id]:
        promise = other.preview(key).promises[key]
        other.delete(key)
        other.run()
        assert other.receipt(key)["freed"] == promise.freed
    assert other.log_bytes() == 0


@pytest.mark.parametrize("phase", ["before", "after"])
def test_a_put_that_fails_or_whose_reply_is_lost_leaves_nothing_behind(tmp_path: Path, phase: str) -> None:
    """The piece is put again under another name, by the same run: the source may not have for long what it would ask for."""
    failing: list[str] = []

    def plan(effect: Effect) -> Fault | None:
        if failing and effect.kind == "put_new" and "/log/" in effect.names[0] and effect.phase == failing[0]:
            failing.pop()
            return Fail(StoreUnavailable("away"))
        return None

    vault = LoggedVault(tmp_path)
    vault.plan = plan
    vault.writes(3)
    vault.turn_on()
    vault.take()
    vault.writes(5)
    failing.append(phase)
    vault.follow()
    assert not failing
    vault.check_moments()
    assert [end for _, end in vault.periods()] == [vault.engine.clock]


def test_a_backup_that_does_not_tell_its_place_in_the_log_is_followed_by_one_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was taken before recordings existed."""
    vault = LoggedVault(tmp_path)
    vault.writes(3)
    with monkeypatch.context() as patch:
        patch.setattr(vault.engine, "mark_of", nothing)
        vault.take()
    vault.turn_on()
    vault.follow_beside()
    vault.run()
    assert vault.newest().name == "log-begins"
    vault.writes(3)
    vault.follow()
    assert [end for _, end in vault.periods()] == [vault.engine.clock]


def test_a_cluster_is_refused_when_it_is_turned_on(tmp_path: Path) -> None:
    """Not by a trouble that comes later, after a backup for nothing."""
    vault = LoggedVault(tmp_path)
    with vault.catalog.write() as conn:
        conn.execute(sa.update(t.instance).values(mode="Cluster"))
    with pytest.raises(errors.NotOffered, match="of a cluster are not recorded"):
        vault.turn_on()
    vault.turn_off()


def test_what_nobody_has_thought_of_is_told_too(vault: LoggedVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance whose recording fails in any way does not look like one that records."""

    def stumble(*_: object) -> None:
        raise ValueError("unforeseen")

    vault.take()
    monkeypatch.setattr(vault.engine, "record", stumble)
    vault.follow_beside()
    with vault.catalog.read() as conn:
        assert "ValueError" in str(recording.show(conn, vault.project, vault.source)[1])


def test_trouble_is_over_when_the_source_is_heard_again(vault: LoggedVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when the next piece goes into the store, up to two hours later."""

    def silent(*_: object) -> None:
        raise EngineUnreachable("nobody answers")

    def trouble() -> str | None:
        with vault.catalog.read() as conn:
            return recording.show(conn, vault.project, vault.source)[1]

    vault.take()
    vault.writes(1)
    vault.follow()
    vault.writes(3)
    with monkeypatch.context() as patch:
        patch.setattr(vault.engine, "record", silent)
        vault.follow_beside()
    seen = [trouble()]
    vault.engine.midway = lambda _: seen.append(trouble())
    vault.follow_beside()
    assert seen[:2] == ["nobody answers", "nobody answers"]
    assert seen[-1] is None


def test_turning_it_on_again_tries_at_once_what_was_refused(vault: LoggedVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is repeated after minutes, in which the source may drop what followed: whoever has mended it need not wait."""

    def refuse(*_: object) -> None:
        raise EngineDenied("the password is another one")

    vault.take()
    vault.writes(5)
    job = vault.submit()
    with monkeypatch.context() as patch:
        patch.setattr(vault.engine, "record", refuse)
        worker = StepwiseWorker(vault.jobs, vault.handlers(vault.ctx), [recording.QUEUE])
        assert worker.step() == job
    assert (vault.job(job).state, worker.step()) == ("QUEUED", None)
    vault.turn_on()
    assert worker.step() == job
    assert [end for _, end in vault.periods()] == [vault.engine.clock]


def test_a_hole_is_told_and_stands_in_the_audit_trail(vault: LoggedVault) -> None:
    """Once, with the words of the source."""
    with vault.catalog.write() as conn:
        conn.execute(
            t.webhook.insert().values(
                id="w" * 32, project=vault.project, name="team", url="https://hooks.example/", events="all", secret=b"",
                created_at=0.0,
            )
        )  # fmt: skip
        outbox.begin_receiver(conn, "w" * 32)
    vault.take()
    vault.writes(2)
    vault.follow()
    vault.writes(2)
    vault.engine.oldest = len(vault.engine.log)
    vault.follow_beside()
    with vault.catalog.read() as conn:
        told = conn.execute(sa.select(t.job.c.args).where(t.job.c.kind == outbox.NOTIFY)).scalars().all()
        noted = conn.execute(sa.select(identity.audit.c.event)).scalars().all()
    assert [json.loads(args)["event"]["event"] for args in told] == ["recording_interrupted"]
    assert "what followed has gone" in told[0]
    assert noted.count("NoSQLRecordingInterrupted") == 1


@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_a_verification_reads_the_log_and_names_the_backups_that_go_on_by_it(vault: LoggedVault, harm: str) -> None:
    """Both that stand before the damaged piece, and not the one after it; a sound log is read and counted."""
    keys = []
    for _ in range(3):
        keys.append(vault.take())
        vault.writes(5)
        vault.follow()

    def verified() -> Any:
        job = verification.verify(vault.ctx, vault.project, nothing)
        worker = StepwiseWorker(vault.jobs, {"verify": VerifyJob(vault.ctx)})
        worker.step()
        view = vault.job(job)
        assert view.state == "DONE", view.error
        return view.result

    before = verified()
    assert (before["outcome"], before["bytes"] > vault.log_bytes() > 0) == ("sound", True)
    with vault.catalog.read() as conn:
        second = conn.execute(sa.select(t.part.c.log_order).where(t.part.c.backup == keys[1])).scalar_one()
        piece = conn.execute(sa.select(t.segment.c.object).where(t.segment.c.since == second)).scalar_one()
        name = conn.execute(sa.select(t.object_.c.name).where(t.object_.c.id == piece)).scalar_one()
    data = vault.inner.get(name)
    vault.inner.delete(name)
    if harm == "flipped":
        vault.inner.put_new(name, data[:-1] + bytes([data[-1] ^ 1]))
    found = verified()
    assert found["outcome"] == "damaged"
    assert [(one["name"], one["what"]) for one in found["damaged_objects"]] == [(name, "log")]
    assert {one["id"] for one in found["damaged_backups"]} == set(keys[:2])


def test_samples_of_the_log_are_others_each_time(vault: LoggedVault) -> None:
    """So that verifications of a part of it come to all of it in the end."""
    vault.take()
    for _ in range(8):
        vault.writes(1)
        vault.follow()
    worker = StepwiseWorker(vault.jobs, {"verify": VerifyJob(vault.ctx)})
    read: set[str] = set()
    for _ in range(12):
        job = verification.verify(vault.ctx, vault.project, nothing, sample=30)
        with vault.watching(lambda effect: read.update(effect.names) if isinstance(effect, Effect) else None):
            worker.step()
        assert vault.job(job).state == "DONE"
    assert len({name for name in read if "/log/" in name}) > 4


def test_an_unregistered_instance_records_no_more_and_its_moments_stay(vault: LoggedVault) -> None:
    """They can be restored into another instance."""
    vault.take()
    vault.writes(5)
    vault.follow()
    at = vault.engine.clock
    instances.unregister(vault.ctx, vault.project, vault.source, nothing)
    vault.run()
    assert vault.follow().state == "DONE"
    assert vault.restored_to(at) == vault.engine.held_at(at)


def test_an_engine_without_a_log_is_refused(tmp_path: Path) -> None:
    """With words."""
    plain = Vault(tmp_path)
    with pytest.raises(errors.NotOffered, match="not recorded"):
        recording.put(plain.ctx, plain.project, plain.source, Policy(True), nothing)
