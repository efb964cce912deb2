"""The threads of a worker on both databases: claims at once, heartbeats, drains, hangs, schedules."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.ambient import Machine
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.catalog.tables import job as t
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import DuplicateJob, JobFailed, JobLost, Running, TryAgain
from strongroom.jobs.schedules import Schedule, put_schedule
from strongroom.jobs.worker import Worker
from support.job_house import JobHouse

Body = Callable[[Running], Mapping[str, Any] | None]


class Work:
    """A handler that does what the test gives it."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self.given_up: list[tuple[str, str]] = []

    def run(self, job: Running) -> Mapping[str, Any] | None:
        return self._body(job)

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        self.given_up.append((outcome, reason))


class House(JobHouse):
    """Workers of one catalog; each worker has its own connections, as a process of its own has."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self._url, self._stack = url, stack
        self.catalog, self.jobs = self._open()

    def _open(self) -> tuple[Catalog, LeasedJobs]:
        catalog = open_catalog(self._url)
        self._stack.callback(catalog.close)
        return catalog, LeasedJobs(catalog, Machine())

    def start(self, work: Work, *, apart: bool = False, **options: Any) -> Worker:
        """A running worker; `apart`: with a catalog of its own, so that only the database tells it of work."""
        _, jobs = self._open() if apart else (self.catalog, self.jobs)
        worker = Worker(jobs, {"work": work}, ["default"], **{"ttl": 2.0, "beat": 0.2, "poll": 0.3} | options)
        worker.start()
        self._stack.callback(worker.shutdown, 0.5)
        return worker


@pytest.fixture
def house(catalog_url: str) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(catalog_url, stack)


def until_told(job: Running) -> None:
    """Works until it is told to end."""
    while True:
        job.check()
        time.sleep(0.02)


def test_a_submitted_job_begins_at_once(house: House) -> None:
    """Its own process's worker is woken by the commit, long before the next poll."""
    house.start(Work(lambda job: {"x": 1}), poll=30.0)
    time.sleep(0.5)
    begin = time.monotonic()
    key = house.submit()
    assert house.wait(key, "DONE").result == {"x": 1}
    assert time.monotonic() - begin < 5


def test_another_process_hears_of_a_job_at_once(postgres_url: str) -> None:
    """By PostgreSQL's NOTIFY."""
    with ExitStack() as stack:
        house = House(postgres_url, stack)
        house.start(Work(lambda job: None), apart=True, poll=30.0)
        time.sleep(0.5)
        begin = time.monotonic()
        house.wait(house.submit(), "DONE")
        assert time.monotonic() - begin < 5


def test_jobs_run_beside_each_other_up_to_the_number_of_threads(house: House) -> None:
    """Two threads: two at a time, never three; a serial key: one at a time."""
    lock, now, most = threading.Lock(), [0], [0]

    def body(job: Running) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1

    house.start(Work(body), threads=2)
    for key in [house.submit() for _ in range(6)]:
        house.wait(key, "DONE")
    assert most == [2]
    most[0] = 0
    for key in [house.submit(serial="i") for _ in range(4)]:
        house.wait(key, "DONE")
    assert most == [1]


def test_heartbeats_keep_jobs_that_outlive_the_lease(house: House) -> None:
    """Another worker looks on and takes nothing over; progress and the lease move."""
    epochs: list[int] = []

    def body(job: Running) -> None:
        epochs.append(job.epoch)
        for step in range(40):
            job.progress("working", step, 40)
            time.sleep(0.1)

    work = Work(body)
    house.start(work)
    house.start(work, apart=True)
    key = house.submit()
    house.wait(key, "RUNNING")
    time.sleep(1.5)
    told = house.get(key).progress
    assert told is not None
    assert 0 < told["done"] < 40
    house.wait(key, "DONE")
    assert epochs == [1]


def test_a_running_job_is_cancelled_within_two_heartbeats(house: House) -> None:
    """It ends as CANCELLED after its handler has given it up."""
    work = Work(until_told)
    house.start(work)
    key = house.submit()
    house.wait(key, "RUNNING")
    with house.catalog.write() as conn:
        house.jobs.cancel(conn, key)
    house.wait(key, "CANCELLED", seconds=5)
    assert work.given_up == [("CANCELLED", "cancelled by a user")]


def test_a_queued_job_is_cancelled_without_a_run(house: House) -> None:
    """CANCELLED to readers at once; given up as soon as there is a worker."""
    key = house.submit()
    with house.catalog.write() as conn:
        house.jobs.cancel(conn, key)
    assert house.get(key).state == "CANCELLED"
    work = Work(until_told)
    house.start(work)
    until = time.monotonic() + 10
    while not work.given_up and time.monotonic() < until:
        time.sleep(0.05)
    assert work.given_up == [("CANCELLED", "cancelled by a user")]


def test_a_deadline_ends_a_running_job(house: House) -> None:
    """By the database's clock, told by the heartbeat."""
    house.start(Work(until_told))
    key = house.submit(timeout=1.0)
    assert house.wait(key, "CANCELLED", seconds=8).error == "it took longer than it was given"


def test_failures_and_defects_end_or_repeat_jobs(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """FAILED with its sentence; an error that passes is tried again; a defect is logged with its traceback."""
    errors: list[Exception] = [TryAgain("away", after=0.1), KeyError("a defect"), JobFailed("no such host")]

    def body(job: Running) -> None:
        raise errors.pop(0)

    work = Work(body)
    house.start(work)
    failed = house.wait(house.submit(), "FAILED")
    assert (failed.error, failed.attempts) == ("no such host", 3)
    assert work.given_up == [("FAILED", "no such host")]
    assert "KeyError: 'a defect'" in caplog.text


def test_a_drained_job_goes_on_elsewhere_at_once_and_uncounted(house: House) -> None:
    """The handler hears of it and ends; another worker goes on long before the lease would have run out."""
    begun: list[float] = []

    def body(job: Running) -> None:
        begun.append(time.monotonic())
        if len(begun) == 1:
            until_told(job)

    first = house.start(Work(body), ttl=60.0)
    key = house.submit(max_attempts=1)
    house.wait(key, "RUNNING")
    house.start(Work(body), apart=True)
    first.shutdown(10)
    ended = time.monotonic()
    assert house.wait(key, "DONE").attempts == 1
    assert begun[1] - ended < 5


def test_a_drain_gives_back_what_does_not_stop(house: House) -> None:
    """After the grace; the handler that goes on is fenced, and what it returns is not recorded."""
    go, ends = threading.Event(), list[str]()

    def stubborn(job: Running) -> None:
        go.wait(20)
        try:
            with house.catalog.write(job.guard):
                ends.append("written")
        except JobLost:
            ends.append("fenced")
            raise

    worker = house.start(Work(stubborn), ttl=60.0)
    key = house.submit(max_attempts=1)
    house.wait(key, "RUNNING")
    worker.shutdown(0.3)
    assert (house.get(key).state, house.get(key).attempts) == ("QUEUED", 0)
    go.set()
    house.start(Work(lambda job: {"by": "the second"}))
    assert house.wait(key, "DONE").result == {"by": "the second"}
    assert ends == ["fenced"]


def test_a_hung_handler_is_reported_and_loses_its_lease(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Another worker takes the job over; the hanging process does not run it twice; once it moves it is fenced."""
    go, lost = threading.Event(), threading.Event()

    def hang(job: Running) -> None:
        go.wait(30)
        try:
            job.check()
        except JobLost:
            lost.set()
            raise

    with caplog.at_level(logging.ERROR, "strongroom.jobs"):
        house.start(Work(hang), hung=0.6)
        key = house.submit()
        house.wait(key, "RUNNING")
        time.sleep(3.5)
        assert house.get(key).attempts == 1
        house.start(Work(lambda job: {"by": "the second"}), apart=True)
        assert house.wait(key, "DONE").result == {"by": "the second"}
    assert [record.message for record in caplog.records if "no check() for" in record.message] == [
        f"job {key} (work) hangs: no check() for 1 s; its lease is let go. Restart this process if it stays so"
    ]
    go.set()
    assert lost.wait(10)


def test_a_long_transaction_costs_no_other_job_its_lease(postgres_url: str) -> None:
    """A guarded transaction that outlives the lease holds its row, and the heartbeat of the other jobs does not wait for it. (Its
    own job may be taken over in the moment after its commit, and then ends all the same.)"""
    runs: list[str] = []
    with ExitStack() as stack:
        house = House(postgres_url, stack)

        def body(job: Running) -> None:
            runs.append(job.id)
            if job.id == "long":
                with house.catalog.write(job.guard):
                    time.sleep(4)
            else:
                for _ in range(60):
                    job.check()
                    time.sleep(0.1)
            job.check()

        house.start(Work(body))
        for key in ("long", "other"):
            house.wait(house.submit(id=key), "RUNNING")
        house.start(Work(body), apart=True)
        for key in ("long", "other"):
            house.wait(key, "DONE")
        assert runs.count("other") == 1
        assert 1 <= runs.count("long") <= 2


def test_one_of_two_submitters_of_a_unique_key_is_told_of_the_other(catalog: Catalog) -> None:
    """While the first has not committed the second waits, and then gets the first's id."""
    jobs = LeasedJobs(catalog, Machine())
    begun, outcome = threading.Barrier(8), list[str]()
    lock = threading.Lock()

    def submit(_number: int) -> None:
        begun.wait(10)
        with catalog.write() as conn:
            try:
                found = jobs.submit(conn, "work", {}, unique_key="k")
                time.sleep(0.05)
            except DuplicateJob as duplicate:
                found = duplicate.id
        with lock:
            outcome.append(found)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(outcome) == 8
    assert len(set(outcome)) == 1
    with catalog.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t)).scalar_one() == 1


def test_two_workers_submit_each_tick_once(house: House) -> None:
    """Five schedules of a second for some five seconds: one job a tick and schedule, none missed."""
    work = Work(lambda job: None)
    with house.catalog.write() as conn:
        begin: float = conn.execute(sa.select(house.jobs.clock.now())).scalar_one()
        for number in range(5):
            put_schedule(house.jobs, conn, Schedule(f"s{number}", "work", 1.0, {"s": number}))
    workers = [house.start(work, apart=apart) for apart in (False, True)]
    time.sleep(5.6)
    for worker in workers:
        worker.shutdown(5)
    with house.catalog.read() as conn:
        rows = conn.execute(sa.select(t.c.args, t.c.created_at)).all()
    for number in range(5):
        ticks = sorted(int(row.created_at - begin) for row in rows if row.args == f'{{"s": {number}}}')
        assert ticks == list(range(1, len(ticks) + 1))
        assert len(ticks) >= 4


def test_a_worker_without_work_does_nothing_to_the_rows(house: House) -> None:
    """A kind that it has no handler for waits for a worker that has."""
    house.start(Work(lambda job: None))
    with house.catalog.write() as conn:
        key = house.jobs.submit(conn, "of a newer version", {})
    time.sleep(1)
    assert house.get(key).state == "QUEUED"
