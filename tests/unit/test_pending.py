"""Deletions that wait: they are called back whole, need another user's word where that is the policy, and are decided as any."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import (
    creation,
    deletion,
    errors,
    exporting,
    holding,
    listing,
    pending,
    quotas,
    rebuilding,
    restoration,
    snapshots,
    verification,
)
from strongroom.backups.context import Options
from strongroom.backups.incarnation import recognise
from strongroom.catalog import tables as t
from strongroom.identity import tables as identity
from strongroom.jobs.port import Cancelled
from support.harsh import HarshVault, Reviving
from support.vault import edited, noise

HOUR = 3600.0
DAY = 24 * HOUR
ANN, BEN = pending.Person("a" * 32, "ann"), pending.Person("b" * 32, "ben")


def small(number: int) -> dict[str, bytes]:
    """Databases that follow one another: some of it changes, some is new each time, the second and third share something."""
    return {
        "edited": edited(noise(20_000, 1), number),
        "own": noise(6_000, 100 + number),
        "pair": noise(6_000, 50 + (number + 1) // 2),
        "still": noise(10_000, 2),
    }


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Reviving:
    """Of four backups."""
    return Reviving(
        tmp_path_factory.mktemp("world") / "vault", Options(chunk_average=4096, pack_target=32768), map(small, range(4))
    )


@pytest.fixture
def vault(worlds: Reviving) -> HarshVault:
    """Its backups are the keys of `wanted`, oldest first."""
    return worlds.again()


def no_note(*_: object) -> None:
    """No audit event."""


def set_policy(vault: HarshVault, hours: int = 0, *, second: bool = False) -> None:
    pending.put_policy(vault.ctx, vault.project, no_note, undelete_hours=hours, second_person=second)


def ask(vault: HarshVault, key: str, by: pending.Person | None = ANN, **options: Any) -> str:
    return deletion.delete(vault.ctx, vault.project, key, no_note, by=by, **options)


def undelete(vault: HarshVault, key: str, by: pending.Person = BEN) -> None:
    pending.undelete(vault.ctx, vault.project, key, by, no_note)


def approve(vault: HarshVault, key: str, by: pending.Person = BEN) -> None:
    pending.approve(vault.ctx, vault.project, key, by, no_note)


def listed(vault: HarshVault) -> set[str]:
    with vault.catalog.read() as conn:
        return {row.id for row in listing.list_backups(conn, vault.project, listing.BackupFilter(), 0, 100).rows}


def marks(vault: HarshVault) -> list[Any]:
    with vault.catalog.read() as conn:
        return list(listing.list_deletions(conn, vault.project, "PENDING", 0, 100).rows)


def part_state(vault: HarshVault, key: str) -> str:
    with vault.catalog.read() as conn:
        return str(conn.execute(sa.select(t.part.c.state).where(t.part.c.backup == key)).scalar_one())


def events(vault: HarshVault, event: str) -> list[Any]:
    with vault.catalog.read() as conn:
        return list(conn.execute(sa.select(identity.audit).where(identity.audit.c.event == event)).all())


def passes(vault: HarshVault, seconds: float) -> None:
    """Time, and then whatever is due; no more."""
    vault.clock.passed += seconds
    while vault.worker.step() is not None:
        pass


def there_again(vault: HarshVault, key: str, words: str, job: str, state: str = "FAILED") -> None:
    """The backup is what it was, and its job says why."""
    assert (vault.state(key), part_state(vault, key)) == ("COMPLETED", "COMPLETED")
    assert key in listed(vault)
    view = vault.job(job)
    assert view.state == state
    assert words in view.error
    assert marks(vault) == []
    vault.check()


# ---- the window -------------------------------------------------------------------------------------------------------------


def test_a_deletion_within_its_window_decides_nothing(vault: HarshVault) -> None:
    """Accepted and hidden; its parts stay in their chain, a new backup shares with it, its job is queued and does nothing."""
    keys = list(vault.wanted)
    set_policy(vault, 24)
    size = vault.size()
    job = ask(vault, keys[3])
    assert (vault.state(keys[3]), part_state(vault, keys[3])) == ("PENDING", "COMPLETED")
    assert listed(vault) == set(keys[:3])
    passes(vault, 23 * HOUR)
    assert (vault.job(job).state, vault.size()) == ("QUEUED", size)
    key, _ = vault.create(small(3))
    passes(vault, HOUR - 1)
    assert (vault.state(key), vault.state(keys[3])) == ("COMPLETED", "PENDING")
    assert vault.size() - size < 6_000, "the same data: all of it is shared with the pending one"
    vault.wanted[key] = vault.wanted.pop(keys[3])
    passes(vault, 1)
    assert (vault.state(keys[3]), vault.job(job).state) == ("DELETED", "DONE")
    vault.check()


def test_when_the_time_has_come_the_same_job_decides_and_carries_out(vault: HarshVault) -> None:
    """One job tells the whole story; promise and receipt are those of the decision, with what came meanwhile."""
    keys = list(vault.wanted)
    set_policy(vault, 1)
    first = vault.preview(keys[1]).total
    job = ask(vault, keys[1])
    assert ask(vault, keys[1], BEN) == job
    deletion.delete(vault.ctx, vault.project, keys[2], no_note, expiring=True)  # a neighbour goes meanwhile: its share grows
    vault.wanted.pop(keys[2])
    passes(vault, 60)
    assert vault.state(keys[2]) == "DELETED"
    then = vault.preview(keys[1]).total
    assert then.owned > first.owned
    before = vault.size()
    vault.wanted.pop(keys[1])
    passes(vault, HOUR)
    assert (vault.state(keys[1]), vault.job(job).state) == ("DELETED", "DONE")
    receipt = vault.receipt(keys[1])
    assert receipt["promised"]["freed"] == then.freed == receipt["freed"]
    assert before - vault.size() == receipt["freed"] + receipt["reclaimed"]["net"] - receipt["put_bytes"]
    (decided,) = events(vault, "StrongroomDecideDeletion")
    assert json.loads(decided.detail) | {"asked_at": 0} == {"asked_by": ANN.id, "asked_name": "ann", "asked_at": 0, "job": job}
    assert marks(vault) == []
    vault.check()


def test_undelete_brings_the_backup_back_whole(vault: HarshVault) -> None:
    """Listed, restorable, its job ended with words; and it can be deleted again at once, by a new job."""
    keys = list(vault.wanted)
    set_policy(vault, 1)
    job = ask(vault, keys[1])
    undelete(vault, keys[1])
    there_again(vault, keys[1], "undeleted by ben", job, "CANCELLED")
    again = ask(vault, keys[1])
    assert again != job
    vault.wanted.pop(keys[1])
    passes(vault, HOUR)
    assert (vault.state(keys[1]), vault.job(again).state, vault.job(job).state) == ("DELETED", "DONE", "CANCELLED")
    vault.check()


def test_a_failed_backup_comes_back_as_failed(vault: HarshVault) -> None:
    """What it was before, it is again."""
    vault.engine.broken = "the engine went away"
    failed, _ = vault.create(small(4))
    vault.run()
    set_policy(vault, 1)
    ask(vault, failed)
    assert vault.state(failed) == "PENDING"
    undelete(vault, failed)
    assert vault.state(failed) == "FAILED"


@pytest.mark.parametrize("call", [undelete, approve])
def test_what_is_decided_is_not_called_back(vault: HarshVault, call: Callable[[HarshVault, str], None]) -> None:
    """While it is carried out and afterwards; nor what was never asked for, or is not there."""
    keys = list(vault.wanted)
    job = vault.delete(keys[0])
    with pytest.raises(errors.DeletionDecided, match="cannot be called back"):
        call(vault, keys[0])
    assert vault.job(job).state == "QUEUED"
    vault.run()
    with pytest.raises(errors.DeletionDecided):
        call(vault, keys[0])
    with pytest.raises(errors.NoDeletionPending, match="no deletion"):
        call(vault, keys[1])
    with pytest.raises(errors.NoSuchBackup):
        call(vault, "f" * 36)
    vault.check()


def test_another_projects_pending_deletion_is_unknown(vault: HarshVault) -> None:
    """A caller does not learn that there is one."""
    key = next(iter(vault.wanted))
    set_policy(vault, 1)
    ask(vault, key)
    for call in (pending.undelete, pending.approve):
        with pytest.raises(errors.NoSuchBackup):
            call(vault.ctx, "f" * 32, key, BEN, no_note)
    assert vault.state(key) == "PENDING"


def test_refusals_are_answered_at_once(vault: HarshVault) -> None:
    """What may not go now is not accepted for later; of a batch then nothing is; a preview that moved is refused."""
    keys = list(vault.wanted)
    seen = vault.preview(keys[0]).version
    set_policy(vault, 1)
    holding.hold(vault.ctx, vault.project, keys[1], holding.Hold("evidence"), no_note)
    with pytest.raises(errors.BackupHeld):
        ask(vault, keys[1])
    with pytest.raises(errors.BackupHeld):
        deletion.delete_batch(vault.ctx, vault.project, keys[:2], no_note)
    assert marks(vault) == []
    ask(vault, keys[2], if_match=vault.preview(keys[2]).version)
    with pytest.raises(errors.PreviewMoved):
        ask(vault, keys[0], if_match=seen)
    assert [mark.backup for mark in marks(vault)] == [keys[2]]


def test_a_batch_waits_as_one_does(vault: HarshVault) -> None:
    """Each of it has its own job, and each is called back alone."""
    keys = list(vault.wanted)
    set_policy(vault, 1)
    alone = ask(vault, keys[0])
    noted: list[str] = []
    jobs = deletion.delete_batch(vault.ctx, vault.project, keys[:3], lambda conn, b, n: noted.append(b), by=ANN)
    assert (jobs[0], len(set(jobs)), noted) == (alone, 3, keys[1:3])
    undelete(vault, keys[1])
    for key in (keys[0], keys[2]):
        vault.wanted.pop(key)
    passes(vault, HOUR)
    assert [vault.state(key) for key in keys] == ["DELETED", "COMPLETED", "DELETED", "COMPLETED"]
    vault.check()


def test_a_hold_placed_meanwhile_keeps_the_backup(vault: HarshVault) -> None:
    """Asked again when the time has come: the job fails and names the hold, the audit trail has it."""
    key = list(vault.wanted)[1]
    set_policy(vault, 1)
    job = ask(vault, key)
    holding.hold(vault.ctx, vault.project, key, holding.Hold("evidence", "legal", "carl"), no_note)
    passes(vault, HOUR)
    there_again(vault, key, "legal hold by carl", job)
    (failed,) = events(vault, "NoSQLDeleteBackupFailed")
    assert (failed.resource_id, failed.outcome, failed.level, failed.project) == (key, "FAILED", "Major", vault.project)
    told = json.loads(failed.detail)
    assert ("evidence" in told["reason"], told["job"], told["asked_name"]) == (True, job, "ann")
    assert events(vault, "StrongroomDecideDeletion") == []


def test_a_hold_that_is_over_by_then_keeps_nothing(vault: HarshVault) -> None:
    """The refusal that counts is the one of that moment."""
    key = list(vault.wanted)[1]
    set_policy(vault, 1)
    ask(vault, key)
    holding.hold(vault.ctx, vault.project, key, holding.Hold("evidence"), no_note)
    holding.hold(vault.ctx, vault.project, key, None, no_note)
    vault.wanted.pop(key)
    passes(vault, HOUR)
    assert vault.state(key) == "DELETED"
    vault.check()


def test_a_pending_backup_is_not_used(vault: HarshVault) -> None:
    """Restores, test restores and exports are refused with who asked and what to do; a verification still reads it."""
    key = list(vault.wanted)[1]
    set_policy(vault, 1)
    ask(vault, key)
    words = f"backup {key} is to be deleted \\(asked for by ann at .* UTC, it is decided at .* UTC\\): undelete it first"
    with pytest.raises(errors.DeletionPending, match=words):
        restoration.restore(vault.ctx, vault.project, key, vault.target, no_note, overwrite=True)
    with vault.catalog.read() as conn, pytest.raises(errors.DeletionPending):
        listing.find_backup(conn, vault.project, key)
    with pytest.raises(errors.DeletionPending):
        exporting._rows(vault.ctx, vault.project, key)
    with vault.catalog.read() as conn:
        targets = verification._targets(conn, {"project": vault.project})
        used = {one.kind: one.used for one in quotas.show(conn, vault.project)}
    assert key in {target.backup for target in targets}
    assert used["backup"] == 4, "it can come back, so it counts"


def test_a_restore_that_runs_by_then_is_waited_for(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it came to run: the decision asks for restores as any does, and is tried again."""
    key = list(vault.wanted)[1]
    set_policy(vault, 1)
    job = ask(vault, key)
    with vault.catalog.write() as conn:
        restore = vault.jobs.submit(conn, "restore", {}, backup=key, queue="elsewhere")
    passes(vault, HOUR)
    assert (vault.state(key), vault.job(job).state) == ("PENDING", "QUEUED")
    assert f"being restored by job {restore}" in vault.job(job).error
    with vault.catalog.write() as conn:
        vault.jobs.revoke(conn, restore, "the test is over")
    vault.wanted.pop(key)
    passes(vault, HOUR)
    assert vault.state(key) == "DELETED"
    vault.check()


def test_a_policy_that_is_on_by_then_keeps_an_automated_backup(vault: HarshVault) -> None:
    """As for a deletion that waits for nothing; a failed one may go."""
    wanted = creation.Wanted("automated", origin="Auto")
    vault.engine.databases["plain://source"] = small(4)
    whole, _ = creation.create(vault.ctx, vault.project, vault.source, wanted, no_note)
    vault.run()
    vault.wanted[whole] = small(4)
    vault.engine.broken = "the engine went away"
    failed, _ = creation.create(vault.ctx, vault.project, vault.source, wanted, no_note)
    vault.run()
    set_policy(vault, 1)
    jobs = [ask(vault, key) for key in (whole, failed)]
    with vault.catalog.write() as conn:
        values = {"keep_days": 7, "start_time": "02:00-03:00", "period": "1", "last_window": 0.0, "updated_at": 0.0}
        conn.execute(t.backup_policy.insert().values(instance=vault.source, **values))
    passes(vault, HOUR)
    assert vault.state(failed) == "DELETED"
    there_again(vault, whole, "goes by its instance's policy", jobs[0])


def test_expiry_waits_for_nothing(vault: HarshVault) -> None:
    """It goes by its own policy; one that somebody has asked for already is left to that."""
    keys = list(vault.wanted)
    set_policy(vault, 24, second=True)
    deletion.delete(vault.ctx, vault.project, keys[0], no_note, expiring=True)
    vault.wanted.pop(keys[0])
    passes(vault, 1)
    assert vault.state(keys[0]) == "DELETED"
    job = ask(vault, keys[1])
    assert deletion.delete(vault.ctx, vault.project, keys[1], no_note, expiring=True) == job
    assert vault.state(keys[1]) == "PENDING"
    vault.clock.passed += 1
    undelete(vault, keys[1])
    vault.check()


def test_a_policy_counts_for_what_is_asked_from_then_on(vault: HarshVault) -> None:
    """What is pending stays so; what goes at once beside it promises what it frees while the other stays."""
    keys = list(vault.wanted)
    set_policy(vault, 1)
    ask(vault, keys[1])
    set_policy(vault)
    alone = vault.preview(keys[2]).total
    together = vault.preview(keys[1], keys[2]).promises[keys[2]]
    assert together.owned > alone.owned, "neighbours share"
    deletion.delete_batch(vault.ctx, vault.project, keys[1:3], no_note)
    vault.wanted.pop(keys[2])
    passes(vault, 60)
    receipt = vault.receipt(keys[2])
    assert (receipt["promised"]["owned"], receipt["promised"]["freed"], receipt["freed"]) == (
        alone.owned,
        alone.freed,
        alone.freed,
    )
    assert vault.state(keys[1]) == "PENDING"
    undelete(vault, keys[1])
    vault.check()


def test_a_call_that_says_thorough_makes_it_so(vault: HarshVault) -> None:
    """As of a deletion that is resumed."""
    keys, noted = list(vault.wanted), list[str]()
    set_policy(vault, 1)
    for key, thorough in ((keys[1], False), (keys[1], True), (keys[2], True), (keys[2], True), (keys[2], False)):
        deletion.delete(
            vault.ctx, vault.project, key, lambda _conn, backup, _name: noted.append(backup), by=ANN, thorough=thorough
        )  # fmt: skip
    assert noted == [keys[1], keys[1], keys[2]]  # what changes something is in the audit trail, and nothing else
    for key in keys[1:3]:
        vault.wanted.pop(key)
    passes(vault, HOUR)
    assert [vault.receipt(key)["thorough"] is not None for key in keys[1:3]] == [True, True]
    assert vault.waiting() == 0
    vault.check()


# ---- the second person ------------------------------------------------------------------------------------------------------


def test_another_user_has_to_approve(vault: HarshVault) -> None:
    """Not the one who asked, whichever way; the word is given once, stands, and has it decided at once."""
    key = list(vault.wanted)[1]
    set_policy(vault, second=True)
    job = ask(vault, key)
    passes(vault, DAY)
    assert vault.state(key) == "PENDING"
    with pytest.raises(errors.SamePerson, match="asked for by ann: another user has to approve it"):
        approve(vault, key, ANN)
    noted: list[str] = []
    for person in (BEN, pending.Person("c" * 32, "carl")):
        mark = pending.approve(vault.ctx, vault.project, key, person, lambda conn: noted.append("noted"))
        assert (mark.approved_by, mark.approved_name) == (BEN.id, "ben")
    assert noted == ["noted"]
    vault.wanted.pop(key)
    passes(vault, 0)
    assert (vault.state(key), vault.job(job).state) == ("DELETED", "DONE")
    (decided,) = events(vault, "StrongroomDecideDeletion")
    told = json.loads(decided.detail)
    assert (told["asked_by"], told["approved_by"], told["approved_name"]) == (ANN.id, BEN.id, "ben")
    vault.check()


def test_what_nobody_approves_ends(vault: HarshVault) -> None:
    """After seven days the backup is there again, and the job says why; an approval then comes too late."""
    key = list(vault.wanted)[1]
    set_policy(vault, second=True)
    job = ask(vault, key)
    passes(vault, 7 * DAY - 1)
    assert vault.state(key) == "PENDING"
    vault.clock.passed += 1
    with pytest.raises(errors.NotApproved, match="ask for it again"):
        approve(vault, key)
    passes(vault, 0)
    there_again(vault, key, f"nobody approved the deletion of backup {key}", job)
    with pytest.raises(errors.NoDeletionPending):
        approve(vault, key)


def test_window_and_approval_are_both_waited_for(vault: HarshVault) -> None:
    """It is decided when the later of the two has come."""
    early, late = list(vault.wanted)[1:3]
    set_policy(vault, 48, second=True)
    for key in (early, late):
        ask(vault, key)
    passes(vault, DAY)
    approve(vault, early)
    (words,) = [pending.told(mark) for mark in marks(vault) if mark.backup == early]
    assert "approved by ben, it is decided at" in words
    passes(vault, DAY - 1)
    assert vault.state(early) == "PENDING"
    vault.wanted.pop(early)
    passes(vault, 1)
    assert (vault.state(early), vault.state(late)) == ("DELETED", "PENDING")
    passes(vault, DAY)
    approve(vault, late)
    vault.wanted.pop(late)
    passes(vault, 0)
    assert vault.state(late) == "DELETED"
    vault.check()


def test_who_asked_may_call_back_and_what_needs_no_word_takes_none(vault: HarshVault) -> None:
    """Calling back is never a second person's matter."""
    keys = list(vault.wanted)
    set_policy(vault, second=True)
    ask(vault, keys[1])
    undelete(vault, keys[1], ANN)
    set_policy(vault, 1)
    ask(vault, keys[1])
    with pytest.raises(errors.NoDeletionPending, match="needs nobody's approval"):
        approve(vault, keys[1])
    set_policy(vault, second=True)
    ask(vault, keys[2], None)
    approve(vault, keys[2], ANN)
    assert "asked for by the service" in pending.told(marks(vault)[0]) + pending.told(marks(vault)[1])


# ---- what comes between -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["undelete", "undelete and ask", "hold"])
def test_what_comes_between_snapshot_and_decision_counts(vault: HarshVault, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    """The deciding job has looked and not decided: a call back or a hold of that moment keeps the backup."""
    key = list(vault.wanted)[1]
    set_policy(vault, 1)
    job = ask(vault, key)
    compute = deletion._compute

    def between(*args: Any, **options: Any) -> deletion.Preview:
        monkeypatch.setattr(deletion, "_compute", compute)
        if act == "hold":
            holding.hold(vault.ctx, vault.project, key, holding.Hold("evidence"), no_note)
        else:
            undelete(vault, key)
        if act == "undelete and ask":
            ask(vault, key)
        return compute(*args, **options)

    monkeypatch.setattr(deletion, "_compute", between)
    passes(vault, HOUR)
    if act == "undelete and ask":
        assert (vault.state(key), vault.job(job).state) == ("PENDING", "CANCELLED")
        undelete(vault, key)
    there_again(vault, key, "evidence" if act == "hold" else "undeleted by ben", job, "FAILED" if act == "hold" else "CANCELLED")


@pytest.mark.parametrize("call", [undelete, approve])
def test_what_is_called_back_and_asked_for_anew_meanwhile_is_another_deletion(
    vault: HarshVault, monkeypatch: pytest.MonkeyPatch, call: Callable[[HarshVault, str], None]
) -> None:
    """A call that had looked at the first one does nothing to the second."""
    key = list(vault.wanted)[1]
    set_policy(vault, second=True)
    ask(vault, key)
    decide = type(vault.catalog).decide

    def between(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(type(vault.catalog), "decide", decide)
        undelete(vault, key)
        jobs.append(ask(vault, key))
        return decide(*args, **options)

    jobs: list[str] = []
    monkeypatch.setattr(type(vault.catalog), "decide", between)
    with pytest.raises(errors.NoDeletionPending):
        call(vault, key)
    (mark,) = marks(vault)
    assert (mark.job, mark.approved_at, vault.job(jobs[0]).state) == (jobs[0], None, "QUEUED")


def test_a_job_without_its_mark_deletes_nothing(vault: HarshVault) -> None:
    """The mark alone lets it decide: without it the backup is there, and the job ends so."""
    key = list(vault.wanted)[1]
    set_policy(vault, 1)
    job = ask(vault, key)
    with vault.catalog.write() as conn:
        pending.forget(conn, key, state="COMPLETED")
    passes(vault, HOUR)
    there_again(vault, key, "not asked for any more", job, "CANCELLED")


def test_a_job_that_is_cancelled_as_such_leaves_the_backup(vault: HarshVault) -> None:
    """By whatever way: nothing was decided."""
    key = list(vault.wanted)[1]
    set_policy(vault, 1)
    job = ask(vault, key)
    with vault.catalog.write() as conn:
        vault.jobs.cancel(conn, job)
    vault.run()
    there_again(vault, key, "cancelled by a user", job, "CANCELLED")


def test_a_job_that_comes_early_waits(vault: HarshVault) -> None:
    """The clock that jobs go by may be before the service's own: the mark's time counts."""
    keys = list(vault.wanted)
    set_policy(vault, 1)
    window = ask(vault, keys[1])
    set_policy(vault, second=True)
    word = ask(vault, keys[2])
    with vault.catalog.write() as conn:
        for job in (window, word):
            vault.jobs.reschedule(conn, job, 0.0)
    passes(vault, 0)
    assert [vault.state(key) for key in keys[1:3]] == ["PENDING", "PENDING"]
    assert "it is decided at" in vault.job(window).error
    assert "another user has to approve it by" in vault.job(word).error
    vault.wanted.pop(keys[1])
    passes(vault, HOUR)
    assert vault.state(keys[1]) == "DELETED"
    undelete(vault, keys[2])
    vault.check()


# ---- catalogs that come back ------------------------------------------------------------------------------------------------


def test_a_restored_database_calls_pending_deletions_off(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not know that one was called back: all of them have to be asked for anew."""
    keys = list(vault.wanted)
    set_policy(vault, 1)
    jobs = [ask(vault, key) for key in keys[1:3]]
    with vault.catalog.write() as conn:
        conn.execute(sa.update(t.installation).values(incarnation="of-another-time"))
    mark_of = pending.mark_of

    def called_back_just_now(conn: sa.Connection, key: str) -> Any:
        return None if key == keys[2] else mark_of(conn, key)

    with monkeypatch.context() as patch:
        patch.setattr(pending, "mark_of", called_back_just_now)
        assert not recognise(vault.ctx, vault.folder / "incarnation")
    assert [mark.backup for mark in marks(vault)] == [keys[2]]
    undelete(vault, keys[2])
    there_again(vault, keys[1], "restored or promoted while it was pending", jobs[0], "CANCELLED")
    (failed,) = events(vault, "NoSQLDeleteBackupFailed")
    assert failed.resource_id == keys[1]


def test_a_rebuilt_catalog_has_the_backup_again_and_the_policy(vault: HarshVault) -> None:
    """The mark is in no snapshot; what is said about the backup, a hold, is."""
    keys = list(vault.wanted)
    set_policy(vault, 24, second=True)
    for key in keys[1:3]:
        ask(vault, key)
    holding.hold(vault.ctx, vault.project, keys[1], holding.Hold("evidence"), no_note)
    snapshots.submit(vault.ctx)
    passes(vault, 0)
    with vault.catalog.write() as conn:
        for table in reversed(t.metadata.sorted_tables):
            conn.execute(sa.delete(table))
    rebuilding.rebuild(vault.ctx, no_note)
    assert {vault.state(key) for key in keys} == {"COMPLETED"}
    assert (listed(vault), marks(vault)) == (set(keys), [])
    with vault.catalog.read() as conn:
        assert pending.policy_of(conn, vault.project) == pending.Policy(24, True)
        assert listing.find_backup(conn, vault.project, keys[1]).held == "evidence"
    vault.check()


def test_ends_of_a_job_that_nothing_is_pending_for(vault: HarshVault) -> None:
    """Its handler says so by itself: a run that began before the backup was called back."""
    key = list(vault.wanted)[1]
    set_policy(vault, 1)
    ask(vault, key)
    vault.clock.passed += HOUR
    job = vault.worker.claim()
    assert job is not None
    handler = deletion.DeleteJob(vault.ctx)
    with vault.catalog.write() as conn:
        pending.forget(conn, key, state="COMPLETED")
    with pytest.raises(Cancelled):
        handler.run(job)
    handler.give_up(job, "CANCELLED", "it is not asked for any more")
    assert (vault.state(key), vault.job(job.id).state) == ("COMPLETED", "RUNNING")
    assert events(vault, "NoSQLDeleteBackupFailed") == []


def test_what_is_not_named_of_a_policy_stays(vault: HarshVault) -> None:
    """Without a row there is no window and no second person; the note is given what was and what is."""
    noted: list[tuple[pending.Policy, ...]] = []

    def put(**given: Any) -> pending.Policy:
        return pending.put_policy(vault.ctx, vault.project, lambda conn, *both: noted.append(both), **given)

    with vault.catalog.read() as conn:
        assert pending.policy_of(conn, vault.project) == pending.AT_ONCE
    assert put(undelete_hours=5) == pending.Policy(5)
    assert put(second_person=True) == pending.Policy(5, True)
    assert put(undelete_hours=0) == pending.Policy(0, True)
    assert put(second_person=False) == pending.AT_ONCE
    assert noted[1] == (pending.Policy(5), pending.Policy(5, True))
    assert [policy.waits for policy, _ in noted] == [False, True, True, True]


def test_deletions_are_listed_with_those_that_wait_first(vault: HarshVault) -> None:
    """In one list with its pages, or by state; each is found by its backup."""
    keys = list(vault.wanted)
    vault.delete(keys[0])
    vault.run()
    set_policy(vault, 1)
    for key in keys[1:3]:
        vault.clock.passed += 1
        ask(vault, key)

    def page(state: str | None, first: int, limit: int) -> tuple[int, list[str]]:
        with vault.catalog.read() as conn:
            found = listing.list_deletions(conn, vault.project, state, first, limit)
            return found.total, [listing.deletion_view(conn, row)["backup_id"] for row in found.rows]

    order = [keys[2], keys[1], keys[0]]
    assert page(None, 0, 10) == (3, order)
    assert [page(None, first, 2)[1] for first in range(4)] == [order[:2], order[1:], order[2:], []]
    assert (page("PENDING", 1, 10), page("DONE", 0, 10)) == ((2, [keys[1]]), (1, [keys[0]]))
    with vault.catalog.read() as conn:
        views = [listing.deletion_view(conn, listing.find_deletion(conn, vault.project, key)) for key in keys[:2]]
        assert [(view["state"], view["receipt"] is None) for view in views] == [("done", False), ("pending", True)]
        with pytest.raises(errors.NoSuchBackup):
            listing.find_deletion(conn, vault.project, keys[3])
