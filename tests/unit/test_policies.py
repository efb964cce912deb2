"""Automated backups by a clock that is ours: taken once in each window, made up for, expired by the one delete that there is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import automation, deletion, errors, holding, instances, pending, policies
from strongroom.backups.policies import OFF, Policy
from strongroom.backups.restoration import RestoreJob
from strongroom.backups.windows import LENGTH
from strongroom.catalog import tables as t
from strongroom.identity import tables as identity
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.schedules import put_schedule
from strongroom.jobs.stepwise import StepwiseWorker
from support.harsh import HarshVault
from support.vault import generations

DAILY = Policy(7, "02:00-03:00", "1,2,3,4,5,6,7")
DAY = 86400.0
ANN, BEN = pending.Person("a" * 32, "ann"), pending.Person("b" * 32, "ben")


class House(HarshVault):
    """A vault whose source changes with every backup, on Wednesday 2026-11-25 at noon."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.clock.began = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
        self.clock.passed = 0.0
        self.content = generations(1000)
        self.expire_every(DAY / 4)

    @property
    def leased(self) -> LeasedJobs:
        assert isinstance(self.ctx.jobs, LeasedJobs)
        return self.ctx.jobs

    def expire_every(self, seconds: float) -> None:
        """More seldom than in life."""
        with self.catalog.write() as conn:
            put_schedule(self.leased, conn, replace(automation.HOURLY, every=seconds))

    def policy(self, policy: Policy, **options: Any) -> None:
        policies.put(self.ctx, self.project, self.source, policy, lambda conn: None, **options)

    def until(self, at: str, *, worked: bool = True) -> None:
        """Time passes up to the next "mm-dd HH:MM", with the worker at work or not."""
        now = datetime.fromtimestamp(self.clock.now(), UTC)
        end = datetime.strptime(f"{now.year}-{at}", "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
        end = end if end > now else end.replace(year=now.year + 1)
        self.let_pass((end - now).total_seconds(), worked=worked)

    def let_pass(self, seconds: float, *, worked: bool = True) -> None:
        """Time goes from one moment at which something is due to the next."""
        end = self.clock.passed + seconds
        while worked and (due := self.due() - self.clock.began) <= end:
            self.clock.passed = max(due, self.clock.passed)
            self.work(self.worker)
        self.clock.passed = end

    def due(self) -> float:
        """When the next schedule or waiting job is."""
        with self.catalog.read() as conn:
            scheduled = conn.execute(sa.select(sa.func.min(t.schedule.c.next_due))).scalar_one()
            waiting = conn.execute(sa.select(sa.func.min(t.job.c.run_after)).where(t.job.c.state == "QUEUED")).scalar_one()
        return min(float(scheduled), float(waiting or scheduled))

    def work(self, worker: StepwiseWorker) -> None:
        worker.tick()
        while worker.step() is not None:
            pass

    def backups(self, origin: str = "Auto", state: str = "COMPLETED") -> list[Any]:
        with self.catalog.read() as conn:
            here = sa.and_(t.backup.c.origin == origin, t.backup.c.state == state)
            return list(conn.execute(sa.select(t.backup).where(here).order_by(t.backup.c.begin_at, t.backup.c.id)).all())

    def begun(self) -> list[str]:
        """When the automated backups that are there began."""
        return [datetime.fromtimestamp(row.begin_at, UTC).strftime("%m-%d %H:%M") for row in self.backups()]

    def change(self) -> None:
        self.engine.databases["plain://source"] = next(self.content)

    def results(self, kind: str) -> list[dict[str, Any]]:
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(t.job.c.result).where(t.job.c.kind == kind).order_by(t.job.c.created_at)).all()
        return [json.loads(row.result) for row in rows if row.result]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "vault")
    yield made
    made.catalog.close()


# ---- taking -------------------------------------------------------------------------------------------------------------


def test_one_backup_begins_inside_each_window(house: House) -> None:
    """Three days: three backups, each inside its hour, restorable, automated by their origin, and in the audit trail."""
    house.policy(DAILY)
    house.until("11-28 12:00")
    assert [text[:5] for text in house.begun()] == ["11-26", "11-27", "11-28"]
    for row in house.backups():
        begun = datetime.fromtimestamp(row.begin_at, UTC)
        assert begun.hour == 2
        assert row.name == begun.strftime("auto-%Y%m%d%H%M%S")
        assert row.description == "automated backup"
    with house.catalog.read() as conn:
        events = conn.execute(sa.select(identity.audit.c.detail).where(identity.audit.c.event == "NoSQLCreateBackup")).all()
    assert [json.loads(row.detail) for row in events] == [
        {"window": f"2026-11-{day} 02:00", "missed": 0} for day in (26, 27, 28)
    ]  # fmt: skip


def test_each_instance_has_its_own_place_in_the_window() -> None:
    """Over the hour but its ends: no earlier than clocks may differ, no later than what still begins inside."""
    places = [policies.place_in_window(f"{n * 4_294_967:08x}" + "0" * 24) for n in range(1000)]
    assert min(places) >= policies.SKEW
    assert max(places) < LENGTH - 600
    quarters = [sum(low <= place < low + 600 for place in places) for low in range(300, 2700, 600)]
    assert min(quarters) > 150, quarters


def test_the_days_of_the_policy_count(house: House) -> None:
    """Mondays and Fridays of two weeks."""
    house.policy(Policy(35, "23:30-00:30", "1,5"))
    house.until("12-09 12:00")
    into = timedelta(seconds=policies.place_in_window(house.source))
    begun = [datetime.fromtimestamp(row.begin_at, UTC) - into for row in house.backups()]
    assert [moment.strftime("%a %H:%M") for moment in begun] == ["Fri 23:30", "Mon 23:30", "Fri 23:30", "Mon 23:30"]


def test_a_year_of_weeks(house: House) -> None:
    """Every Sunday from one November to the next, over new year and both changes of clocks: 52 backups, of which four stay."""
    house.expire_every(DAY)
    house.policy(Policy(30, "01:15-02:15", "7"))
    seen: set[str] = set()
    for _week in range(52):
        house.change()
        house.let_pass(7 * DAY)
        seen |= {row.id for row in house.backups()}
    assert len(seen) == 52
    assert len(house.backups()) == 4
    house.check_accounts()


def test_two_workers_take_one_backup(house: House) -> None:
    """Both tick in the same moment, and both run what they find; one window, one backup."""
    house.policy(DAILY)
    other = house.another_process()
    house.until("11-26 01:30", worked=False)
    for _ in range(20):
        house.clock.passed += 300
        house.worker.tick()
        other.tick()
        house.work(other)
        house.work(house.worker)
    assert [text[:5] for text in house.begun()] == ["11-26"]


def test_a_window_is_done_with_the_decision_of_its_backup(house: House) -> None:
    """The job runs a second time, as after a death before its end was recorded: no second backup."""
    house.policy(DAILY)
    house.until("11-26 02:00")
    house.let_pass(policies.place_in_window(house.source) + 1, worked=False)
    house.worker.tick()
    job = house.worker.claim()
    assert job is not None
    assert job.claim.kind == policies.AUTOMATE
    handler = automation.AutomateJob(house.ctx)
    first = handler.run(job)
    assert handler.run(job) == {"backup": None}
    house.worker.run_claimed(job)
    house.run()
    assert [row.id for row in house.backups()] == [first["backup"]]


def test_a_worker_that_was_paused_before_its_decision_takes_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has read that the window is open; another worker takes its backup; then it decides."""
    house.policy(DAILY)
    house.until("11-26 02:00")
    house.let_pass(policies.place_in_window(house.source) + 1, worked=False)
    house.worker.tick()
    job = house.worker.claim()
    assert job is not None
    create, handler = automation.creation.create, automation.AutomateJob(house.ctx)

    def late(*args: Any) -> Any:
        monkeypatch.setattr(automation.creation, "create", create)
        assert handler.run(job)["backup"] is not None
        house.run()
        return create(*args)

    monkeypatch.setattr(automation.creation, "create", late)
    assert handler.run(job) == {"backup": None}
    assert len(house.backups()) == 1


def test_windows_that_nobody_worked_in_are_made_up_for_by_one_backup(house: House) -> None:
    """Three nights without a server: at noon one backup is taken, and says so."""
    house.policy(DAILY)
    house.until("11-28 12:00", worked=False)
    house.until("11-28 13:00")
    (row,) = house.backups()
    assert datetime.fromtimestamp(row.begin_at, UTC).strftime("%m-%d %H") == "11-28 12"
    assert row.description == "automated backup, taken late: the window of 2026-11-28 02:00 UTC was missed"
    assert house.results(policies.AUTOMATE)[0]["missed"] == 3
    house.until("11-29 12:00")
    assert len(house.backups()) == 2


def test_another_backup_of_the_instance_is_waited_for(house: House) -> None:
    """A manual one runs when the window begins; the automated one comes after it, inside the window."""
    house.policy(DAILY)
    house.until("11-26 02:00")
    key, _ = house.create(next(house.content))
    build = house.worker.claim()
    assert build is not None
    other = house.another_process()
    for _ in range(50):
        house.clock.passed += 60
        house.worker.beat(build)
        other.tick()
        while other.step() is not None:
            pass
    assert house.backups() == []
    house.worker.run_claimed(build)
    house.let_pass(120)
    assert house.state(key) == "COMPLETED"
    assert house.begun()[0].startswith("11-26 02:")


def test_a_backup_that_fails_is_not_taken_again_in_its_window(house: House) -> None:
    """It is there as FAILED; the next window has its own."""
    house.policy(DAILY)
    source = house.engine.databases.pop("plain://source")
    house.until("11-26 12:00")
    assert len(house.backups(state="FAILED")) == 1
    house.engine.databases["plain://source"] = source
    house.until("11-27 12:00")
    assert [text[:5] for text in house.begun()] == ["11-27"]


# ---- setting ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "day"), [("11-26 01:59", "11-26"), ("11-26 02:30", "11-26"), ("11-26 03:00", "11-27")])
def test_a_window_that_is_open_counts(house: House, at: str, day: str) -> None:
    """Turned on before or within today's window, today's backup is taken inside it; after it, tomorrow's is the first."""
    house.until(at)
    house.policy(DAILY)
    house.until("11-27 12:00")
    assert house.begun()[0][:5] == day
    assert house.begun()[0][6:8] == "02"


def test_a_policy_that_is_set_again_takes_no_second_backup(house: House) -> None:
    """The same window, and one that is moved to earlier in the day: today's was taken."""
    house.policy(DAILY)
    house.until("11-26 02:55")
    assert len(house.begun()) == 1
    house.policy(DAILY)
    house.policy(Policy(3, "01:00-02:00", DAILY.period))
    house.until("11-26 12:00")
    assert len(house.begun()) == 1
    house.until("11-27 12:00")
    assert [text[:8] for text in house.begun()] == [house.begun()[0][:8], "11-27 01"]


def test_off_takes_none_and_leaves_those_that_are_there(house: House) -> None:
    """While it is on they go by policy alone; off, by hand. A failed one is deleted by hand whenever."""
    house.policy(DAILY)
    house.until("11-27 12:00")
    first, second = house.backups()
    with pytest.raises(errors.BackupAutomated, match="turn that off first"):
        house.delete(first.id)
    assert isinstance(house.preview(first.id).refusals[first.id], errors.BackupAutomated)
    house.policy(OFF)
    with house.catalog.read() as conn:
        assert policies.show(conn, house.project, house.source) == OFF
    house.until("12-20 12:00")
    assert [row.id for row in house.backups()] == [first.id, second.id]
    house.delete(first.id)
    house.run()
    assert house.state(first.id) == "DELETED"


def test_off_may_take_the_automated_backups_along(house: House) -> None:
    """All of them, the newest too; manual ones stay."""
    house.policy(DAILY)
    house.until("11-27 12:00")
    manual = house.backup(next(house.content))
    house.policy(OFF, delete_automated=True)
    house.run()
    assert house.backups() == []
    assert house.state(manual) == "COMPLETED"
    house.check()


def test_unregistering_takes_the_automated_backups_along(house: House) -> None:
    """And the policy; a restore into another instance of the manual one works."""
    house.policy(DAILY)
    house.until("11-27 12:00")
    manual = house.backup(next(house.content))
    job = instances.unregister(house.ctx, house.project, house.source, lambda conn: None)
    house.run()
    assert house.job(job).result["deleted"] == 2
    house.until("12-01 12:00")
    assert house.backups() == []
    assert house.state(manual) == "COMPLETED"
    house.check()


@pytest.mark.parametrize("how", ["off", "unregistered"])
def test_automated_backups_that_somebody_deletes_wait_like_any_other(house: House, how: str) -> None:
    """Turning the policy off or unregistering the instance is no way around undelete hours and the second person. Expiry by age
    waits for nothing."""
    house.policy(Policy(2, DAILY.start_time, DAILY.period))
    pending.put_policy(house.ctx, house.project, lambda *_: None, undelete_hours=24, second_person=True)
    house.until("11-29 12:00")
    first, second = house.backups()
    assert house.backups(state="DELETED") != []
    if how == "off":
        house.policy(OFF, delete_automated=True, by=ANN)
    else:
        instances.unregister(house.ctx, house.project, house.source, lambda conn: None, by=ANN)
    house.let_pass(60)
    assert [row.id for row in house.backups(state="PENDING")] == [first.id, second.id]
    with pytest.raises(errors.SamePerson):
        pending.approve(house.ctx, house.project, first.id, ANN, lambda conn: None)
    pending.approve(house.ctx, house.project, first.id, BEN, lambda conn: None)
    pending.undelete(house.ctx, house.project, second.id, ANN, lambda conn: None)
    house.until("12-01 12:00")
    assert (house.state(first.id), house.state(second.id)) == ("DELETED", "COMPLETED")
    house.check()


def test_automated_backups_stay_if_the_policy_is_on_again_before_they_go(house: House) -> None:
    """Who asked for their deletion is told nothing else than by a delete by hand."""
    house.policy(DAILY)
    house.until("11-27 12:00")
    before = [row.id for row in house.backups()]
    house.policy(OFF, delete_automated=True, by=ANN)
    house.policy(DAILY)
    house.run()
    assert [row.id for row in house.backups()] == before
    (result,) = (one for one in house.results(policies.EXPIRE) if one["kept"])
    assert {one["backup"] for one in result["kept"]} == set(before)
    house.check()


def test_a_policy_of_nobodys_instance_is_refused(house: House) -> None:
    """Unknown, and unregistered."""
    with pytest.raises(errors.NoSuchInstance):
        policies.put(house.ctx, house.project, "f" * 32 + "in14", DAILY, lambda conn: None)
    with house.catalog.read() as conn, pytest.raises(errors.NoSuchInstance):
        policies.show(conn, "f" * 32, house.source)


# ---- expiring -----------------------------------------------------------------------------------------------------------


def test_what_was_kept_for_its_days_goes(house: House) -> None:
    """After two weeks of a policy of seven days, seven or eight are there, and the store holds just them."""
    house.policy(DAILY)
    for _day in range(14):
        house.change()
        house.let_pass(DAY)
    days = [text[:5] for text in house.begun()]
    assert days == [f"12-{day:02}" for day in range(3, 10)] or days == [f"12-{day:02}" for day in range(2, 10)]
    house.check()


def test_the_newest_completed_one_stays_however_old_it_is(house: House) -> None:
    """The engine is gone for two months: nothing newer is completed, so the last one stays; failed ones go by age."""
    house.policy(DAILY)
    house.until("11-27 12:00")
    newest = house.backups()[-1]
    house.engine.databases.pop("plain://source")
    house.until("01-25 12:00")
    assert [row.id for row in house.backups()] == [newest.id]
    assert 7 <= len(house.backups(state="FAILED")) <= 8
    house.engine.databases["plain://source"] = next(house.content)
    house.until("01-26 12:00")
    assert newest.id not in [row.id for row in house.backups()]
    assert len(house.backups()) == 1


@pytest.mark.parametrize("how", ["held", "restored"])
def test_what_may_not_go_yet_is_told_and_tried_again(house: House, how: str) -> None:
    """A held one, and one that a restore reads: kept with the reason; gone with the next expiry after it is let go."""
    house.policy(Policy(1, DAILY.start_time, DAILY.period))
    house.until("11-26 12:00")
    (first,) = house.backups()
    release: Callable[[], object]
    if how == "held":
        holding.hold(house.ctx, house.project, first.id, holding.Hold("an audit"), lambda conn: None)
        release = lambda: holding.hold(house.ctx, house.project, first.id, None, lambda conn: None)  # noqa: E731
    else:
        house.restore(first.id)
        slow = StepwiseWorker(house.leased, {"restore": RestoreJob(house.ctx)}, owner="slow", ttl=10 * DAY)
        restore = slow.claim()
        assert restore is not None
        release = lambda: slow.run_claimed(restore)  # noqa: E731
    house.let_pass(1.5 * DAY)
    assert first.id in [row.id for row in house.backups()]
    kept = [one for result in house.results(policies.EXPIRE) for one in result["kept"]]
    assert {one["backup"] for one in kept} == {first.id}
    assert ("an audit" if how == "held" else "is being restored") in kept[0]["why"]
    release()
    house.let_pass(DAY / 4 + 60)
    assert house.state(first.id) == "DELETED"


def test_expiry_never_touches_what_it_should_not(house: House) -> None:
    """Manual backups, those of instances without a policy, and another instance's."""
    manual = house.backup(next(house.content))
    house.policy(Policy(1, DAILY.start_time, DAILY.period))
    house.until("12-10 12:00")
    assert house.state(manual) == "COMPLETED"
    assert len(house.backups()) <= 2


def test_a_delete_by_hand_meets_expiry(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody deletes the same backup just before expiry decides: one deletion, no error."""
    house.policy(Policy(1, DAILY.start_time, DAILY.period))
    house.until("11-26 12:00")
    (first,) = house.backups()
    delete = deletion.delete

    def both(*args: Any, **options: Any) -> str:
        monkeypatch.setattr(automation.deletion, "delete", delete)
        delete(*args, **options)
        house.run()
        return delete(*args, **options)

    monkeypatch.setattr(automation.deletion, "delete", both)
    house.until("11-27 12:00")
    assert house.state(first.id) == "DELETED"
    assert all(result["kept"] == [] for result in house.results(policies.EXPIRE))
