"""A worker's threads in trouble: its loops outlive every error, and no end of a job is lost while its process lives."""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError, ProgrammingError

from strongroom.ambient import Machine
from strongroom.catalog.database import Catalog, CatalogBehind
from strongroom.catalog.tables import job as t
from strongroom.jobs import worker as module
from strongroom.jobs.claiming import Claim, Claims
from strongroom.jobs.execution import Ending
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import JobFailed, JobLost, Running, TryAgain
from strongroom.jobs.running import OwnedJob
from strongroom.jobs.worker import Worker
from support.job_house import JobHouse

Body = Callable[[Running], Mapping[str, Any] | None]


class Busy(Exception):
    """As SQLite says it."""

    sqlite_errorname = "SQLITE_BUSY"


Busy.__module__ = "sqlite3"


def away() -> OperationalError:
    """The database is away."""
    return OperationalError("", {}, Busy("database is locked"))


class Work:
    """A handler that does what the test gives it."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def run(self, job: Running) -> Mapping[str, Any] | None:
        return self._body(job)

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        raise AssertionError(f"{outcome}: {reason}")


class House(JobHouse):
    """Workers of one catalog in this process."""

    def __init__(self, catalog: Catalog, stack: ExitStack) -> None:
        self.catalog, self._stack = catalog, stack
        self.jobs = LeasedJobs(catalog, Machine())

    def worker(self, body: Body, **options: Any) -> Worker:
        """Not started yet; shut down at the test's end."""
        worker = Worker(self.jobs, {"work": Work(body)}, ["default"], **{"ttl": 1.5, "beat": 0.05, "poll": 0.05} | options)
        self._stack.callback(worker.shutdown, 0.5)
        return worker


@pytest.fixture
def house(catalog: Catalog) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(catalog, stack)


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_loops_outlive_every_error(house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A database that is away is a warning, a defect is logged with its traceback; then work is claimed as ever."""
    wrong = ProgrammingError("", {}, sqlite3.ProgrammingError("wrong"))
    claim, troubles = Claims.claim, [away(), wrong, CatalogBehind("upgraded"), KeyError("a defect")]

    def troubled(claims: Claims, *args: Any, **options: Any) -> Claim | None:
        if troubles:
            raise troubles.pop(0)
        return claim(claims, *args, **options)

    monkeypatch.setattr(Claims, "claim", troubled)
    house.worker(lambda job: {"x": 1}).start()
    assert house.wait(house.submit(), "DONE").result == {"x": 1}
    said = [record for record in caplog.records if "looking for work" in record.message]  # threads of tests before may end now
    told = [(record.levelname, record.message, record.exc_info is not None) for record in said]
    assert told == [
        ("WARNING", "looking for work: the database is away: database is locked", False),
        ("ERROR", "looking for work failed", True),
        ("WARNING", "looking for work: upgraded", False),
        ("ERROR", "looking for work failed", True),
    ]


def test_each_job_that_ends_is_one_line_of_the_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """With its kind, what became of it and why; a run that is to be repeated is none."""
    caplog.set_level(logging.INFO, "strongroom.jobs")

    def body(job: Running) -> Mapping[str, Any] | None:
        if job.id == failing:
            raise JobFailed("the store\nis full")
        if job.attempts == 1:
            raise TryAgain("later", 0.0)
        return None

    worker = house.worker(body)
    worker._handlers["work"].give_up = lambda *_: None  # type: ignore[method-assign]
    failing, passing = house.submit(), house.submit()
    worker.start()
    house.wait(failing, "FAILED")
    house.wait(passing, "DONE")
    wait_for(lambda: not worker._running)
    mine = [record.message for record in caplog.records if failing in record.message or passing in record.message]
    told = [re.sub(r"[0-9]+\.[0-9]{3} s", "… s", message) for message in mine if " after " in message]
    assert sorted(told) == sorted(
        [f"job {failing} (work) FAILED after … s: the store is full", f"job {passing} (work) DONE after … s"]
    )


def test_a_worker_that_lost_the_database_takes_nothing_over_at_first(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every lease looks expired then; their owners get the time to renew. Each look takes a tenth of a second here."""

    class Clock(Machine):
        seconds = 100.0

        def monotonic(self) -> float:
            return self.seconds

    clock, claim, asked = Clock(), Claims.claim, list[bool]()

    def noted(claims: Claims, *args: Any, **options: Any) -> Claim | None:
        asked.append(options["take_over"])
        clock.seconds += 0.1
        if len(asked) == 2:
            raise away()
        return claim(claims, *args, **options)

    monkeypatch.setattr(Claims, "claim", noted)
    house.jobs = LeasedJobs(house.catalog, clock)
    house.worker(lambda job: None, ttl=1.0, beat=0.05, poll=0.01).start()
    wait_for(lambda: len(asked) > 20)
    assert asked[:16] == [True] * 2 + [False] * 11 + [True] * 3


def test_an_end_is_recorded_when_the_database_is_back(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The work is not done twice for an outage at its end."""
    record, tries, runs = module.record, list[str](), list[int]()

    def troubled(claims: Claims, job: OwnedJob, ending: Ending) -> None:
        tries.append(ending.state)
        if len(tries) < 4:
            raise away()
        record(claims, job, ending)

    monkeypatch.setattr(module, "record", troubled)
    house.worker(lambda job: runs.append(job.epoch)).start()
    key = house.submit()
    house.wait(key, "DONE")
    assert (tries, runs) == (["DONE"] * 4, [1])
    assert f"job {key}: its end (DONE) waits for the database: database is locked" in caplog.text


def test_a_job_that_is_lost_while_its_end_waits_is_not_recorded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker owns it meanwhile: what this one found is dropped."""
    tries: list[str] = []

    def troubled(claims: Claims, job: OwnedJob, ending: Ending) -> None:
        tries.append(claims.owner)
        with house.catalog.write() as conn:
            conn.execute(sa.update(t).values(owner="another", epoch=t.c.epoch + 1, lease_until=t.c.lease_until + 100))
        raise away()

    monkeypatch.setattr(module, "record", troubled)
    worker = house.worker(lambda job: {"by": "the first"})
    worker.start()
    key = house.submit()
    wait_for(lambda: bool(tries))
    wait_for(lambda: not worker._running)
    assert len(tries) < 20
    assert (house.get(key).state, house.get(key).result) == ("RUNNING", None)


def test_a_process_that_stops_leaves_an_end_that_cannot_be_recorded(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not wait for the database for ever: the lease runs out, and the job is run again elsewhere."""
    trying = threading.Event()

    def troubled(claims: Claims, job: OwnedJob, ending: Ending) -> None:
        trying.set()
        assert worker._stopping.wait(10)
        raise away()

    monkeypatch.setattr(module, "record", troubled)
    monkeypatch.setattr(Claims, "queue_again", lambda *_args, **_options: True)
    worker = house.worker(lambda job: {"by": "the first"}, ttl=0.5)
    worker.start()
    key = house.submit()
    assert trying.wait(10)
    worker.shutdown(0.1)
    wait_for(lambda: not worker._running)
    assert f"job {key} (work): its end could not be recorded; its lease will run out" in caplog.text
    assert house.get(key).state == "RUNNING"
    monkeypatch.undo()
    house.worker(lambda job: {"by": "the second"}).start()
    assert house.wait(key, "DONE").result == {"by": "the second"}


def test_a_job_that_cannot_be_given_back_is_left_to_its_lease(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The database is away while the process stops: it says so and ends; another worker goes on when the lease has run out."""
    begun, go = threading.Event(), threading.Event()

    def stubborn(job: Running) -> Mapping[str, Any] | None:
        if job.attempts > 1:
            return {"by": "the second"}
        begun.set()
        go.wait(20)
        return None

    def fails(*_args: object, **_options: object) -> bool:
        raise away()

    worker = house.worker(stubborn, ttl=0.5)
    worker.start()
    key = house.submit()
    assert begun.wait(10)
    monkeypatch.setattr(Claims, "queue_again", fails)
    worker.shutdown(0.1)
    monkeypatch.undo()
    assert f"job {key} could not be given back, its lease will run out: database is locked" in caplog.text
    assert house.get(key).state == "RUNNING"
    house.worker(stubborn).start()
    assert house.wait(key, "DONE").result == {"by": "the second"}
    go.set()


def test_a_job_that_does_not_stop_in_time_is_given_back(house: House) -> None:
    """After the grace, uncounted and at once, with what it last told; its thread is fenced: what it returns is not recorded."""
    begun, go = threading.Event(), threading.Event()

    def stubborn(job: Running) -> Mapping[str, Any]:
        job.progress("copying", 3, 10)
        begun.set()
        go.wait(20)
        return {"by": "the first"}

    worker = house.worker(stubborn, ttl=60.0)
    worker.start()
    key = house.submit(max_attempts=1)
    assert begun.wait(10)
    worker.shutdown(0.1)
    shown = house.get(key)
    assert (shown.state, shown.attempts) == ("QUEUED", 0)
    assert shown.progress == {"phase": "copying", "done": 3, "total": 10}
    go.set()
    wait_for(lambda: not worker._running)
    assert house.get(key).state == "QUEUED"


def test_no_more_jobs_are_claimed_than_there_are_threads(house: House) -> None:
    """The second waits for the first, however often the worker looks."""
    go, running, most = threading.Event(), list[str](), list[int]()

    def body(job: Running) -> None:
        running.append(job.id)
        most.append(len(running))
        go.wait(20)
        running.remove(job.id)

    house.worker(body, threads=1).start()
    first, second = house.submit(), house.submit()
    wait_for(lambda: bool(running))
    time.sleep(0.3)
    go.set()
    for key in (first, second):
        house.wait(key, "DONE")
    assert most == [1, 1]


def test_a_hung_handler_is_reported_once_and_its_lease_let_go(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """No check() for longer than `hung`: this process does not claim the job again while the thread is there, others do. A
    handler that has moved again and hangs again is reported again."""
    go, moved = threading.Event(), threading.Event()

    def hang(job: Running) -> Mapping[str, Any]:
        moved.wait(20)
        job.check()
        go.wait(20)
        return {"by": "the first"}

    worker = house.worker(hang, hung=1.0, ttl=30.0)
    worker.start()
    key = house.submit()

    def reported() -> int:
        return sum("no check() for" in record.message for record in caplog.records)

    wait_for(lambda: reported() == 1)
    time.sleep(0.3)
    assert reported() == 1
    moved.set()
    wait_for(lambda: reported() == 2)
    assert caplog.records[-1].levelname == "ERROR"
    said = f"^job {key} \\(work\\) hangs: no check\\(\\) for \\d+ s; its lease is let go. Restart this process if it stays so$"
    assert re.match(said, caplog.records[-1].message)
    with house.catalog.write() as conn:
        conn.execute(sa.update(t).values(lease_until=0.0))
    time.sleep(0.3)
    assert house.get(key).attempts == 1, "not by the process in which it hangs"
    house.worker(lambda job: {"by": "the second"}).start()
    assert house.wait(key, "DONE").result == {"by": "the second"}
    go.set()
    wait_for(lambda: not worker._running)
    assert house.get(key).result == {"by": "the second"}


def test_a_heartbeat_passes_over_a_job_that_its_handler_has_ended(house: House) -> None:
    """Its end is in the catalog, its thread still works: it is not lost."""
    go, ended = threading.Event(), threading.Event()

    def body(job: Running) -> None:
        with house.catalog.write(job.guard) as conn:
            job.finish(conn, {"x": 1})
        ended.set()
        go.wait(20)
        job.check()

    worker = house.worker(body)
    worker.start()
    key = house.submit()
    assert ended.wait(10)
    time.sleep(0.3)
    go.set()
    wait_for(lambda: not worker._running)
    assert house.get(key).result == {"x": 1}


def test_an_end_that_cannot_be_recorded_is_reported_and_the_job_is_run_again(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect in recording must not end the worker, nor lose the job."""
    record, left = module.record, [1]

    def troubled(claims: Claims, job: OwnedJob, ending: Ending) -> None:
        if left:
            left.pop()
            raise ValueError("a defect")
        record(claims, job, ending)

    monkeypatch.setattr(module, "record", troubled)
    house.worker(lambda job: None, ttl=0.3).start()
    key = house.submit()
    assert house.wait(key, "DONE").attempts == 2
    said = f"job {key} (work): its end could not be recorded; its lease will run out"
    assert [record.message for record in caplog.records if record.exc_info] == [said]


def test_a_heartbeat_tells_a_handler_that_its_job_is_lost(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Another worker has taken it over: the next check ends the handler, and nothing is recorded."""
    begun, lost = threading.Event(), threading.Event()

    def body(job: Running) -> None:
        begun.set()
        try:
            while True:
                job.check()
                time.sleep(0.01)
        except JobLost:
            lost.set()
            raise

    worker = house.worker(body, ttl=60.0)
    worker.start()
    key = house.submit()
    assert begun.wait(10)
    with house.catalog.write() as conn:
        conn.execute(sa.update(t).values(owner="another", epoch=2))
    assert lost.wait(10)
    wait_for(lambda: not worker._running)
    assert f"job {key} (work): another worker owns it now" in caplog.text
    assert house.get(key).state == "RUNNING"


def test_a_job_that_is_claimed_while_the_process_stops_is_handed_on(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claimed in the moment in which the shutdown began: it ends at its first check, and it was no attempt."""
    claim, worker = Claims.claim, house.worker(lambda job: job.check(), ttl=60.0)
    stopper = threading.Thread(target=worker.shutdown, args=(5.0,))

    def stopping(claims: Claims, *args: Any, **options: Any) -> Claim | None:
        found = claim(claims, *args, **options)
        if found is not None:
            stopper.start()
            assert worker._draining.wait(10)
        return found

    monkeypatch.setattr(Claims, "claim", stopping)
    key = house.submit(max_attempts=1)
    worker.start()
    wait_for(lambda: not stopper.is_alive() and stopper.ident is not None)
    assert (house.get(key).state, house.get(key).attempts) == ("QUEUED", 0)


def test_a_worker_that_is_stopped_while_it_starts_stops(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before all of its threads run: the shutdown waits for them, and ends them."""
    worker, start, errors = house.worker(lambda job: None), threading.Thread.start, list[BaseException]()

    def stop() -> None:
        try:
            worker.shutdown(0.5)
        except BaseException as error:
            errors.append(error)

    stopper = threading.Thread(target=stop)

    def stopped_before(thread: threading.Thread) -> None:
        if thread.name == "jobs-beats":
            start(stopper)
            stopper.join(1)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", stopped_before)
    worker.start()
    stopper.join(20)
    assert not stopper.is_alive()
    assert errors == []
    assert not [thread for thread in worker._own_threads if thread.is_alive()]


def test_a_second_shutdown_does_nothing(house: House) -> None:
    """Nor does one of a worker that runs nothing."""
    worker = house.worker(lambda job: None)
    worker.start()
    worker.shutdown(1)
    worker.shutdown(1)
    key = house.submit()
    time.sleep(0.2)
    assert house.get(key).state == "QUEUED"


def test_old_internal_jobs_are_forgotten_soon_after_the_start(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """By the worker itself, and without an error."""
    key = house.submit()
    with house.catalog.write() as conn:
        conn.execute(sa.update(t).values(state="DONE", finished_at=1.0))

    def forgotten() -> bool:
        with house.catalog.read() as conn:
            return house.jobs.get(conn, key) is None

    with caplog.at_level(logging.WARNING):
        house.worker(lambda job: None).start()
        wait_for(forgotten)
    assert caplog.records == []


def test_a_worker_begins_only_what_it_may_beside_what_it_runs(house: House) -> None:
    """It is asked before each claim, with the kinds that run here; what it may not begin now waits, and nothing else does."""
    going, asked = threading.Event(), list[tuple[str, ...]]()

    def body(job: Running) -> None:
        while not going.wait(0.02):
            job.check()

    def claimable(kinds: Collection[str], running: Collection[str]) -> Collection[str]:
        asked.append(tuple(running))
        return kinds if len(running) < 2 else []

    jobs = [house.submit() for _ in range(3)]
    house.worker(body, claimable=claimable).start()
    wait_for(lambda: asked.count(("work", "work")) > 3)
    assert sorted(house.get(job).state for job in jobs) == ["QUEUED", "RUNNING", "RUNNING"]
    assert max(map(len, asked)) == 2
    going.set()
    for job in jobs:
        house.wait(job, "DONE")
