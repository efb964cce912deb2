"""The jobs' rules one by one, without threads: a clock that stands still, two workers, and every way in which a job ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from strongroom.ambient import Machine
from strongroom.catalog.database import Catalog, CatalogBehind
from strongroom.catalog.tables import job as t
from strongroom.jobs.clock import AmbientClock
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import Cancelled, Draining, DuplicateJob, JobFailed, JobLost, JobView, Running, TryAgain
from strongroom.jobs.purging import purge
from strongroom.jobs.running import OwnedJob
from strongroom.jobs.schedules import Schedule, put_schedule, remove_schedule
from strongroom.jobs.stepwise import StepwiseWorker

TTL = 6.0


class Clock(Machine):
    """Time moves when the test says."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds


class Work:
    """A handler that does what the test gives it, and notes how it was called."""

    def __init__(self, body: Callable[[Running], Mapping[str, Any] | None] = lambda job: None) -> None:
        self.body = body
        self.ending: Callable[[Running], None] = lambda job: None
        self.runs: list[tuple[str, int]] = []
        self.given_up: list[tuple[str, str, str]] = []

    def run(self, job: Running) -> Mapping[str, Any] | None:
        self.runs.append((job.id, job.attempts))
        return self.body(job)

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        self.given_up.append((job.id, outcome, reason))
        self.ending(job)


class House:
    """One catalog, two workers of one kind of job."""

    def __init__(self, catalog: Catalog) -> None:
        self.clock = Clock()
        self.catalog = catalog
        self.jobs = LeasedJobs(catalog, self.clock, AmbientClock(self.clock))
        self.work = Work()
        self.one = self.worker("one")
        self.two = self.worker("two")

    def worker(self, owner: str) -> StepwiseWorker:
        return StepwiseWorker(self.jobs, {"work": self.work}, owner=owner, ttl=TTL)

    def submit(self, **options: Any) -> str:
        with self.catalog.write() as conn:
            return self.jobs.submit(conn, "work", {"a": 1}, **options)

    def cancel(self, job: str) -> None:
        with self.catalog.write() as conn:
            self.jobs.cancel(conn, job)

    def get(self, job: str) -> JobView:
        with self.catalog.read() as conn:
            found = self.jobs.get(conn, job)
        assert found is not None
        return found

    def claimed(self, worker: StepwiseWorker) -> OwnedJob:
        job = worker.claim()
        assert job is not None
        return job


@pytest.fixture
def house(catalog: Catalog) -> House:
    return House(catalog)


def raises(error: BaseException) -> Callable[[Running], None]:
    def body(job: Running) -> None:
        raise error

    return body


# Submitting


def test_a_job_goes_with_the_callers_transaction(house: House) -> None:
    """A rolled back caller leaves no job."""
    keys: list[str] = []

    def decide() -> None:
        with house.catalog.write() as conn:
            keys.append(house.jobs.submit(conn, "work", {}))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        decide()
    with house.catalog.read() as conn:
        assert house.jobs.get(conn, keys[0]) is None
    assert house.one.step() is None


def test_local_workers_hear_of_a_job_after_its_commit(house: House) -> None:
    """Woken earlier they would look before the job can be seen, and wait a whole poll."""
    seen: list[int] = []

    def wake() -> None:
        with house.catalog.read() as conn:
            seen.append(conn.execute(sa.select(sa.func.count()).select_from(t)).scalar_one())

    house.jobs.subscribe(wake)
    house.submit()
    house.jobs.unsubscribe(wake)
    house.submit()
    assert seen == [1]


def test_one_active_job_per_unique_key(house: House) -> None:
    """The second is told which the first is; after its end the key is free again."""
    first = house.submit(unique_key="delete:b")
    for _ in range(2):
        with pytest.raises(DuplicateJob) as refused:
            house.submit(unique_key="delete:b")
        assert refused.value.id == first
        house.claimed(house.one)  # running now
        house.clock.seconds += 2 * TTL
    assert house.two.step() == first
    assert house.get(first).state == "DONE"
    assert house.submit(unique_key="delete:b") != first


def test_an_id_is_used_once(house: House) -> None:
    """A caller's mistake must not pass for a submitted job."""
    house.submit(id="x")
    with pytest.raises(ValueError, match="x"):
        house.submit(id="x")


def test_a_view_shows_what_was_submitted(house: House) -> None:
    """Everything that lists and details show."""
    key = house.submit(project="p", instance="i", backup="b")
    shown = house.get(key)
    assert (shown.kind, shown.args, shown.project, shown.instance, shown.backup) == ("work", {"a": 1}, "p", "i", "b")
    assert (shown.state, shown.attempts, shown.created_at, shown.started_at) == ("QUEUED", 0, house.clock.seconds, None)
    assert shown.active


# Order


def test_jobs_are_claimed_by_priority_then_age(house: House) -> None:
    """Lower numbers first, older first."""
    keys = []
    for priority in (100, 100, 5):
        keys.append(house.submit(priority=priority))
        house.clock.seconds += 1
    assert [house.one.step() for _ in range(4)] == [keys[2], keys[0], keys[1], None]


def test_a_job_waits_for_its_delay_queue_and_kind(house: House) -> None:
    """None of them is claimed by a worker that is not meant to."""
    late = house.submit(delay=10)
    house.submit(queue="node-b")
    with house.catalog.write() as conn:
        house.jobs.submit(conn, "of a newer version", {})
    assert house.one.step() is None
    house.clock.seconds += 10
    assert [house.one.step(), house.one.step()] == [late, None]


def test_one_running_job_per_serial_key(house: House) -> None:
    """The second waits until the first has ended; other keys do not."""
    first = house.submit(serial="i")
    house.clock.seconds += 1
    second, other = house.submit(serial="i"), house.submit(serial="j")
    job = house.claimed(house.one)
    assert job.id == first
    assert [house.two.step(), house.two.step()] == [other, None]
    assert house.one.run_claimed(job)
    assert house.two.step() == second


# Leases


def test_a_lease_that_runs_out_is_taken_over_and_fences_the_first(house: House) -> None:
    """The old owner fails at its next guarded transaction, which leaves nothing, and so does its end."""
    key = house.submit()
    old = house.claimed(house.one)
    assert house.two.claim() is None
    house.clock.seconds += TTL + 1
    new = house.claimed(house.two)
    assert (new.id, new.epoch, new.attempts) == (key, 2, 2)
    with pytest.raises(JobLost), house.catalog.write(old.guard) as conn:
        conn.execute(sa.update(t).values(error="written by the old owner"))
    with pytest.raises(JobLost):
        old.check()
    assert not house.one.run_claimed(old)
    assert house.two.run_claimed(new)
    assert (house.get(key).state, house.get(key).error) == ("DONE", None)


def test_a_worker_is_fenced_from_its_own_earlier_claim(house: House) -> None:
    """The same process may take its own lapsed job over: the claim's epoch decides, not the owner's name."""
    house.submit()
    old = house.claimed(house.one)
    house.clock.seconds += TTL + 1
    new = house.claimed(house.one)
    with pytest.raises(JobLost), house.catalog.write(old.guard):
        pass
    with house.catalog.write(new.guard):
        pass


@pytest.mark.parametrize("ends", ["finish", "fail"])
def test_an_old_owner_cannot_end_a_job(house: House, ends: str) -> None:
    """Its last transaction is refused as a whole."""
    house.submit()
    old = house.claimed(house.one)
    house.clock.seconds += TTL + 1
    house.claimed(house.two)
    with pytest.raises(JobLost), house.catalog.write() as conn:
        old.finish(conn, {}) if ends == "finish" else old.fail(conn, "x")


def test_check_notices_a_take_over_without_a_heartbeat(house: House) -> None:
    """A worker that was paused asks the database before it goes on; one that still owns the job goes on."""
    house.submit()
    job = house.claimed(house.one)
    house.clock.seconds += TTL + 1
    job.check()
    house.claimed(house.two)
    house.clock.seconds += TTL + 1
    with pytest.raises(JobLost):
        job.check()


@pytest.mark.parametrize("keep", ["beat", "guard"])
def test_heartbeats_and_guards_keep_a_lease(house: House, keep: str) -> None:
    """Nobody takes over what is renewed."""
    house.submit()
    job = house.claimed(house.one)
    for _ in range(4):
        house.clock.seconds += TTL - 1
        if keep == "beat":
            house.one.beat(job)
        else:
            with house.catalog.write(job.guard):
                pass
        assert house.two.claim() is None
    job.check()


def test_a_heartbeat_writes_progress_and_brings_the_cancel(house: House) -> None:
    """Both in its one statement."""
    key = house.submit()
    job = house.claimed(house.one)
    job.progress("copying", 3, 10)
    house.cancel(key)
    job.check()
    house.one.beat(job)
    assert house.get(key).progress == {"phase": "copying", "done": 3, "total": 10}
    with pytest.raises(Cancelled):
        job.check()


def test_a_heartbeat_tells_a_loss(house: House) -> None:
    """The next check ends the handler."""
    house.submit()
    job = house.claimed(house.one)
    house.clock.seconds += TTL + 1
    house.claimed(house.two)
    house.one.beat(job)
    with pytest.raises(JobLost):
        job.check()


# Ends


def test_a_result_is_kept(house: House) -> None:
    """DONE, with what the handler returned, and the progress last told."""

    def body(job: Running) -> Mapping[str, Any]:
        job.progress("copying", 10, 10)
        return {"bytes": 7}

    house.work.body = body
    key = house.submit()
    house.one.step()
    done = house.get(key)
    assert (done.state, done.result, done.attempts, done.finished_at) == ("DONE", {"bytes": 7}, 1, house.clock.seconds)
    assert done.progress == {"phase": "copying", "done": 10, "total": 10}


@pytest.mark.parametrize(("ends", "state"), [("finish", "DONE"), ("fail", "FAILED")])
def test_a_handler_may_end_its_job_in_its_own_transaction(house: House, ends: str, state: str) -> None:
    """What it wrote there stands, and give_up is not called for it."""

    def body(job: Running) -> None:
        with house.catalog.write(job.guard) as conn:
            job.finish(conn, {"x": 1}) if ends == "finish" else job.fail(conn, "why")

    house.work.body = body
    key = house.submit()
    house.one.step()
    shown = house.get(key)
    assert (shown.state, shown.result, shown.error) == (state, *(({"x": 1}, None) if ends == "finish" else (None, "why")))
    assert house.work.given_up == []


def test_a_failed_job_is_given_up_before_it_ends(house: House) -> None:
    """The handler still owns the job then, and the reason becomes the job's."""
    house.work.body = raises(JobFailed("no such host"))
    during: list[str] = []
    house.work.ending = lambda job: during.append(house.get(job.id).state)
    key = house.submit()
    house.one.step()
    assert (house.get(key).state, house.get(key).error) == ("FAILED", "no such host")
    assert (house.work.given_up, during) == ([(key, "FAILED", "no such host")], ["RUNNING"])


def test_give_up_may_fail_the_job_in_its_own_transaction(house: House) -> None:
    """Subject and job in one commit."""

    def ending(job: Running) -> None:
        with house.catalog.write(job.guard) as conn:
            job.fail(conn, "said by give_up")

    house.work.body, house.work.ending = raises(JobFailed("x")), ending
    key = house.submit()
    house.one.step()
    assert (house.get(key).state, house.get(key).error) == ("FAILED", "said by give_up")


def test_what_passes_is_tried_again_for_ever_with_longer_pauses(house: House) -> None:
    """Without max_attempts; the pause doubles up to a minute and never ends the job."""
    house.work.body = raises(TryAgain("the store is away"))
    key = house.submit()
    pauses = []
    for _ in range(12):
        assert house.one.step() == key
        assert house.get(key).state == "QUEUED"
        with house.catalog.read() as conn:
            due = conn.execute(sa.select(t.c.run_after)).scalar_one()
        pauses.append(due - house.clock.seconds)
        assert house.one.step() is None
        house.clock.seconds = due
    assert 0.9 <= round(pauses[0], 6) <= 1.1
    assert 14 <= pauses[4] <= 18
    assert all(54 <= round(pause, 6) <= 66 for pause in pauses[-3:])
    house.work.body = lambda job: None
    house.one.step()
    assert house.get(key).state == "DONE"


def test_a_handler_chooses_its_pause(house: House) -> None:
    """To the second."""
    house.work.body = raises(TryAgain("busy", after=42))
    house.submit()
    house.one.step()
    house.clock.seconds += 41.9
    assert house.one.step() is None
    house.clock.seconds += 0.2
    assert house.one.step() is not None


@pytest.mark.parametrize("error", [TryAgain("away", after=0), ValueError("a defect")])
def test_attempts_end(house: House, error: Exception) -> None:
    """After max_attempts the job is given up with the last reason."""
    house.work.body = raises(error)
    key = house.submit(max_attempts=3)
    while house.one.step():
        house.clock.seconds += 100
    assert [attempt for _, attempt in house.work.runs] == [1, 2, 3]
    assert house.get(key).state == "FAILED"
    assert str(error) in str(house.get(key).error)
    assert len(house.work.given_up) == 1


def test_lost_workers_count_as_attempts(house: House) -> None:
    """A job that kills its worker each time must come to an end."""
    key = house.submit(max_attempts=2)
    for _ in range(2):
        house.claimed(house.one)
        house.clock.seconds += TTL + 1
    assert house.two.step() == key
    assert (house.work.runs, house.get(key).state) == ([], "FAILED")
    assert house.work.given_up == [(key, "FAILED", "its worker was lost at every attempt")]


@pytest.mark.parametrize("outage", [True, False])
def test_draining_and_outages_are_no_attempts(house: House, outage: bool) -> None:
    """However often a server restarts or loses its database, the job has all its attempts left."""

    class Busy(Exception):
        sqlite_errorname = "SQLITE_BUSY"

    Busy.__module__ = "sqlite3"
    house.work.body = raises(OperationalError("", {}, Busy()) if outage else Draining())
    key = house.submit(max_attempts=1)
    for _ in range(5):
        house.one.step()
        house.clock.seconds += 2
    assert (house.get(key).state, house.get(key).attempts) == ("QUEUED", 0)
    house.work.body = lambda job: None
    house.one.step()
    assert (house.get(key).state, house.get(key).attempts) == ("DONE", 1)


def test_a_job_on_a_newer_schema_is_left_to_the_newer_version(house: House) -> None:
    """Nothing is recorded and nothing given up: its lease runs out, and whoever is there then takes it over."""
    house.work.body = raises(CatalogBehind("a newer version"))
    key = house.submit()
    house.one.step()
    assert (house.get(key).state, house.work.given_up) == ("RUNNING", [])
    house.clock.seconds += TTL + 1
    house.work.body = lambda job: None
    assert house.two.step() == key
    assert house.get(key).state == "DONE"


def test_sql_that_cannot_work_is_a_defect(house: House) -> None:
    """It is not taken for a database that is away, so attempts end."""

    def body(job: Running) -> None:
        with house.catalog.write(job.guard) as conn:
            conn.execute(sa.text("SELECT * FROM no_such_table"))

    house.work.body = body
    key = house.submit(max_attempts=1)
    house.one.step()
    assert house.get(key).state == "FAILED"


def test_what_is_no_exception_records_nothing(house: House) -> None:
    """A simulated death leaves the lease to run out."""

    class Died(BaseException):
        pass

    house.work.body = raises(Died())
    key = house.submit()
    with pytest.raises(Died):
        house.one.step()
    assert house.get(key).state == "RUNNING"
    assert house.work.given_up == []


def test_give_up_is_called_again_until_it_succeeds(house: House) -> None:
    """A job never ends before its subject is decided."""
    house.work.body = raises(JobFailed("no such host"))
    house.work.ending = raises(ValueError("not now"))
    key = house.submit(max_attempts=1)
    house.one.step()
    assert (house.get(key).state, house.get(key).error) == ("QUEUED", "no such host")
    house.work.ending = lambda job: None
    house.clock.seconds += 100
    house.one.step()
    assert (house.get(key).state, house.get(key).error) == ("FAILED", "no such host")
    assert house.work.given_up == [(key, "FAILED", "no such host")] * 2
    assert len(house.work.runs) == 1


# Cancelling


def test_a_queued_job_shows_as_cancelled_at_once_and_is_given_up_after(house: House) -> None:
    """It never runs; its times do not move; its unique key is free once its subject is decided."""
    key = house.submit(project="p", unique_key="k", delay=1000)
    house.clock.seconds += 5
    house.cancel(key)
    cancelled_at = house.clock.seconds
    assert (house.get(key).state, house.get(key).active, house.get(key).finished_at) == ("CANCELLED", False, cancelled_at)
    with pytest.raises(DuplicateJob):
        house.submit(unique_key="k")
    house.clock.seconds += 1
    assert house.one.step() == key
    shown = house.get(key)
    assert (shown.state, shown.finished_at, shown.started_at, shown.attempts) == ("CANCELLED", cancelled_at, None, 0)
    assert (house.work.runs, house.work.given_up) == ([], [(key, "CANCELLED", "cancelled by a user")])
    assert house.one.step() is None
    house.submit(unique_key="k")


def test_what_was_shown_as_cancelled_stays_cancelled(house: House) -> None:
    """Even if give_up ends it by fail; the sentence is kept."""

    def ending(job: Running) -> None:
        with house.catalog.write(job.guard) as conn:
            job.fail(conn, "said by give_up")

    house.work.ending = ending
    key = house.submit()
    house.cancel(key)
    house.one.step()
    assert (house.get(key).state, house.get(key).error) == ("CANCELLED", "said by give_up")
    assert house.one.step() is None


def test_giving_up_a_cancelled_job_waits_for_its_serial_key(house: House) -> None:
    """What give_up does to the subject never runs beside other work on it; then it goes before all others."""
    house.submit(serial="i")
    running = house.claimed(house.one)
    house.clock.seconds += 1
    other, cancelled = house.submit(serial="i", priority=1), house.submit(serial="i")
    house.cancel(cancelled)
    assert house.two.step() is None
    assert house.get(cancelled).state == "CANCELLED"
    house.one.run_claimed(running)
    assert [house.two.step(), house.two.step()] == [cancelled, other]


def test_a_running_job_ends_itself_when_it_is_cancelled(house: House) -> None:
    """At its next check after a heartbeat; then it is given up."""

    def body(job: Running) -> None:
        house.cancel(job.id)
        assert house.get(job.id).state == "RUNNING"
        house.one.beat(job)  # type: ignore[arg-type]
        job.check()

    house.work.body = body
    house.work.ending = lambda job: job.check()  # raises nothing any more
    key = house.submit()
    house.one.step()
    assert house.get(key).state == "CANCELLED"
    assert house.work.given_up == [(key, "CANCELLED", "cancelled by a user")]


def test_a_revoked_job_has_ended_with_its_callers_transaction(house: House) -> None:
    """Queued or running: its reason stands, its key is free, nobody gives it up, who runs it is fenced; an ended one stays."""
    queued, running = house.submit(unique_key="k", delay=1000), house.submit(unique_key="l")
    job = house.claimed(house.one)
    done = house.submit()
    house.two.step()
    house.clock.seconds += 5
    with house.catalog.write() as conn:
        for key in (queued, running, done):
            house.jobs.revoke(conn, key, "called back")
    for key in (queued, running):
        shown = house.get(key)
        assert (shown.state, shown.error, shown.finished_at) == ("CANCELLED", "called back", house.clock.seconds)
    assert (house.get(done).state, house.get(done).error) == ("DONE", None)
    with pytest.raises(JobLost), house.catalog.write(job.guard):
        pass
    house.one.run_claimed(job)  # as far as it comes without its guard
    assert (house.get(running).state, house.get(running).error) == ("CANCELLED", "called back")
    house.clock.seconds += 2000
    assert (house.one.step(), house.work.given_up) == (None, [])
    house.submit(unique_key="k")
    house.submit(unique_key="l")


def test_a_queued_job_is_rescheduled_and_no_other(house: House) -> None:
    """Sooner or later; one that runs, or is cancelled and owes its follow-up, stays as it is."""
    later, running, cancelled = house.submit(delay=1000), house.submit(), house.submit(delay=1000)
    job = house.claimed(house.one)
    house.cancel(cancelled)
    with house.catalog.write() as conn:
        for key in (later, running, cancelled):
            house.jobs.reschedule(conn, key, 10.0)
    assert [house.two.step(), house.two.step()] == [cancelled, None]
    assert house.one.run_claimed(job)
    house.clock.seconds += 10
    assert house.two.step() == later


def test_a_job_that_ends_before_it_hears_of_the_cancel_is_done(house: House) -> None:
    """Its work stands, and so does its result."""
    key = house.submit()
    job = house.claimed(house.one)
    house.cancel(key)
    house.one.run_claimed(job)
    assert house.get(key).state == "DONE"
    house.cancel(key)
    assert house.get(key).state == "DONE"


def test_a_cancel_is_not_lost_by_a_restart(house: House) -> None:
    """Asked for in the moment of draining: the job does not run again."""

    def body(job: Running) -> None:
        house.cancel(job.id)
        raise Draining

    house.work.body = body
    key = house.submit()
    house.one.step()
    assert house.get(key).state == "CANCELLED"
    house.one.step()
    assert (len(house.work.runs), len(house.work.given_up)) == (1, 1)


def test_a_cancelled_job_whose_worker_dies_is_given_up_by_the_next(house: House) -> None:
    """It never runs again."""
    key = house.submit()
    house.claimed(house.one)
    house.cancel(key)
    house.clock.seconds += TTL + 1
    assert house.two.step() == key
    assert (house.work.runs, house.get(key).state) == ([], "CANCELLED")


@pytest.mark.parametrize("running", [True, False])
def test_a_deadline_ends_a_job(house: House, running: bool) -> None:
    """Running or queued."""
    key = house.submit(timeout=5)
    if running:
        job = house.claimed(house.one)
        house.clock.seconds += 4
        house.one.beat(job)
        job.check()
        house.clock.seconds += 2
        house.one.beat(job)
        house.work.body = lambda job: job.check()
        house.one.run_claimed(job)
    else:
        house.clock.seconds += 6
        house.one.step()
    assert (house.get(key).state, house.get(key).error) == ("CANCELLED", "it took longer than it was given")


# Lists


def test_lists_show_a_project_and_states_as_readers_see_them(house: House) -> None:
    """Internal and other projects' jobs are in no list; a job cancelled while queued is found as CANCELLED."""
    house.submit()
    house.submit(project="other")
    keys = []
    for number in range(4):
        keys.append(house.submit(project="p", instance=f"i{number}"))
        house.clock.seconds += 10
    house.cancel(keys[3])

    def listed(**filters: Any) -> tuple[int, list[str]]:
        with house.catalog.read() as conn:
            total, views = house.jobs.list(conn, "p", **filters)
        return total, [view.id for view in views]

    assert listed() == (4, keys[::-1])
    assert listed(states=["CANCELLED"]) == (1, [keys[3]])
    assert listed(states=["QUEUED", "RUNNING"], limit=1, offset=1) == (3, [keys[1]])
    assert listed(kinds=["other"]) == (0, [])
    assert listed(id=keys[1]) == listed(instance="i1") == (1, [keys[1]])
    begin = house.get(keys[1]).created_at
    assert listed(created_from=begin, created_to=begin + 10) == (2, [keys[2], keys[1]])


# Schedules and old jobs


def test_a_schedule_submits_once_a_tick_and_once_for_missed_ones(house: House) -> None:
    """After downtime one run, and the next tick is where it always would have been."""
    begin = house.clock.seconds
    with house.catalog.write() as conn:
        put_schedule(house.jobs, conn, Schedule("expiry", "work", 60.0, {"x": 1}))
    house.one.tick()
    assert house.one.step() is None
    ran = []
    for at in (60, 61, 119, 121, 500, 539, 541):
        house.clock.seconds = begin + at
        house.one.tick()
        house.two.tick()
        if house.one.step():
            ran.append(at)
        assert house.two.step() is None
    assert ran == [60, 121, 500, 541]


def test_a_schedules_job_runs_once_at_a_time(house: House) -> None:
    """A tick is left out while the job of the one before has not ended."""
    with house.catalog.write() as conn:
        put_schedule(house.jobs, conn, Schedule("expiry", "work", 60.0, {}))
    house.clock.seconds += 60
    house.one.tick()
    job = house.claimed(house.one)
    for _ in range(3):
        house.clock.seconds += 60
        house.one.beat(job)
        house.one.tick()
        house.one.beat(job)
        assert house.two.claim() is None


def test_a_schedule_is_changed_and_ended(house: House) -> None:
    """A shorter period counts from now; what was due sooner stays due then."""
    with house.catalog.write() as conn:
        put_schedule(house.jobs, conn, Schedule("s", "work", 1000.0, {}))
        put_schedule(house.jobs, conn, Schedule("s", "work", 10.0, {}))
        put_schedule(house.jobs, conn, Schedule("s", "work", 500.0, {}))
    house.clock.seconds += 10
    house.one.tick()
    assert house.one.step() is not None
    with house.catalog.write() as conn:
        remove_schedule(conn, "s")
    house.clock.seconds += 1000
    house.one.tick()
    assert house.one.step() is None


def test_only_old_internal_jobs_are_forgotten(house: House) -> None:
    """A project's job stays findable by its id; what is queued stays whatever its age."""
    internal, ours, waiting = house.submit(), house.submit(project="p"), house.submit(queue="elsewhere")
    while house.one.step():
        pass
    house.clock.seconds += 100
    recent = house.submit()
    house.one.step()
    assert purge(house.jobs, keep=50) == 1
    with house.catalog.read() as conn:
        assert [house.jobs.get(conn, key) is None for key in (internal, ours, waiting, recent)] == [True, False, False, False]


def test_a_guard_is_the_first_statement(house: House) -> None:
    """As the catalog's deciding transactions use it: what follows sees what was committed before."""
    house.submit()
    job = house.claimed(house.one)
    seen: list[int] = []

    def guard(conn: Connection) -> None:
        job.guard(conn)
        seen.append(conn.execute(sa.select(t.c.epoch)).scalar_one())

    with house.catalog.decide(guard):
        pass
    assert seen == [1]
