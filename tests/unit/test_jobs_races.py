"""The jobs' rare moments: another worker was faster, the reason for a refusal has passed, the database is away in the middle."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError

from strongroom.ambient import Machine
from strongroom.catalog.database import Catalog
from strongroom.catalog.tables import job as t
from strongroom.jobs.claiming import Claims
from strongroom.jobs.clock import AmbientClock
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.outages import is_outage
from strongroom.jobs.port import Cancelled, DuplicateJob, JobFailed, JobLost, Running, TryAgain
from strongroom.jobs.running import OwnedJob
from strongroom.jobs.stepwise import StepwiseWorker

TTL = 6.0


class Clock(Machine):
    """Time moves when the test says."""

    seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds


class Work:
    """A handler whose job ends badly, and whose give_up does what the test says."""

    def __init__(self) -> None:
        self.given_up = 0
        self.ending: Callable[[], None] = lambda: None

    def run(self, job: Running) -> None:
        raise JobFailed("no such host")

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        self.given_up += 1
        self.ending()


class House:
    """Jobs on a catalog, by a clock that stands still."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog, self.clock, self.work = catalog, Clock(), Work()
        self.jobs = LeasedJobs(catalog, self.clock, AmbientClock(self.clock))
        self.one, self.two = (StepwiseWorker(self.jobs, {"work": self.work}, owner=name, ttl=TTL) for name in ("one", "two"))

    def submit(self, serial: str | None = None, unique_key: str | None = None) -> str:
        with self.catalog.write() as conn:
            return self.jobs.submit(conn, "work", {}, serial=serial, unique_key=unique_key)

    def claimed(self, worker: StepwiseWorker) -> OwnedJob:
        job = worker.claim()
        assert job is not None
        return job

    def state(self, key: str) -> tuple[str, str | None, float]:
        with self.catalog.read() as conn:
            row = conn.execute(sa.select(t.c.state, t.c.owner, t.c.run_after).where(t.c.id == key)).one()
        return row.state, row.owner, row.run_after


@pytest.fixture
def house(catalog: Catalog) -> House:
    return House(catalog)


class Busy(Exception):
    """As SQLite says it."""

    sqlite_errorname = "SQLITE_BUSY_SNAPSHOT"


Busy.__module__ = "sqlite3"


def busy() -> OperationalError:
    """SQLite's error while another process writes."""
    return OperationalError("", {}, Busy())


# Claims


class Late(Claims):
    """A worker whose look for work saw the catalog as it was before another one's commit."""

    def _candidate(
        self, queues: Collection[str], kinds: Collection[str], take_over: bool, but: Collection[str]
    ) -> sa.Select[tuple[str]]:
        return sa.select(t.c.id).where(t.c.state == "QUEUED").limit(1)


def test_the_slower_of_two_workers_leaves_a_serial_key_alone(house: House) -> None:
    """Both saw a job of the key queued and none running: the database lets only one through, the other finds nothing to do."""
    first = house.submit(serial="i")
    house.clock.seconds += 1
    second = house.submit(serial="i")
    running = house.claimed(house.one)
    assert running.id == first
    assert Late(house.jobs, "late", TTL).claim(["default"], ["work"], take_over=True) is None
    assert house.state(second)[:2] == ("QUEUED", None)
    assert house.state(first)[:2] == ("RUNNING", "one")
    running.check()


def test_a_worker_passes_over_the_jobs_that_it_must_not_claim(house: House) -> None:
    """A process whose thread hangs in a job does not take the same job over."""
    first = house.submit()
    house.clock.seconds += 1
    second = house.submit()
    for but, wanted in (([first], second), ([first, second], None)):
        claim = house.two.claim(but)
        assert (None if claim is None else claim.id) == wanted


# Submitting


@pytest.mark.parametrize("ended", [True, False])
def test_a_refusal_whose_reason_has_passed_is_none(house: House, monkeypatch: pytest.MonkeyPatch, ended: bool) -> None:
    """The job that held the unique key ends between the refused insert and the look for its id: it is inserted after all."""
    first = house.submit(unique_key="k")
    insert, tries = LeasedJobs._insert, list[bool]()

    def slow(jobs: LeasedJobs, conn: Connection, row: dict[str, object]) -> bool:
        tries.append(insert(jobs, conn, row))
        if not tries[-1] and ended:
            conn.execute(sa.update(t).where(t.c.id == first).values(state="DONE"))
        return tries[-1]

    monkeypatch.setattr(LeasedJobs, "_insert", slow)
    if ended:
        second = house.submit(unique_key="k")
        assert second != first
        assert house.state(second)[0] == "QUEUED"
        assert tries == [False, True]
    else:
        with pytest.raises(DuplicateJob, match=f"^already queued or running: job {first}$"):
            house.submit(unique_key="k")
        assert tries == [False]


# Giving up


@pytest.mark.parametrize(("after", "least", "most"), [(42.0, 42.0, 42.0), (0.0, 0.0, 0.0), (None, 0.9, 1.1)])
def test_a_job_that_cannot_be_given_up_yet_is_given_up_later(
    house: House, after: float | None, least: float, most: float
) -> None:
    """TryAgain in give_up: queued for its pause, or the port's own; the job has not ended before its subject is decided."""

    def away() -> None:
        raise TryAgain("the store is away", after)

    house.work.ending = away
    key = house.submit()
    house.one.step()
    state, owner, due = house.state(key)
    assert (state, owner) == ("QUEUED", None)
    assert least <= round(due - house.clock.seconds, 6) <= most  # the sum is rounded, and may fall short by a bit
    house.work.ending = lambda: None
    house.clock.seconds = due
    house.one.step()
    assert house.state(key)[0] == "FAILED"
    assert house.work.given_up == 2


# A worker that goes on


def test_a_worker_that_records_an_end_keeps_its_lease_until_it_is_lost(house: House) -> None:
    """`stay` is a sign of life; once the job is somebody else's it ends the recording."""
    house.submit()
    job = house.claimed(house.one)
    house.clock.seconds += 5
    assert job.silent_for() == 5
    job.stay()
    assert job.silent_for() == 0
    job.lose()
    with pytest.raises(JobLost, match=f"^job {job.id}: epoch 1 is over$"):
        job.stay()


def test_a_check_goes_on_while_the_database_cannot_be_asked(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who shares the database can have taken the job over either; it is asked again a second later, not at each check."""
    house.submit()
    job = house.claimed(house.one)
    asked: list[float] = []

    def away(claims: Claims, held: tuple[str, int]) -> bool:
        asked.append(house.clock.seconds)
        raise busy()

    monkeypatch.setattr(Claims, "holds", away)
    begin = house.clock.seconds
    for moment in (TTL, TTL + 0.5, TTL + 1.0, TTL + 1.5, TTL + 1.6):
        house.clock.seconds = begin + moment
        job.check()
    assert [round(moment - begin, 3) for moment in asked] == [TTL + 0.5, TTL + 1.6]
    monkeypatch.undo()
    house.claimed(house.two)
    house.clock.seconds += TTL
    with pytest.raises(JobLost):
        job.check()


def test_a_check_does_not_hide_a_defect(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that cannot work is no database that is away."""
    house.submit()
    job = house.claimed(house.one)

    def wrong(claims: Claims, held: tuple[str, int]) -> bool:
        raise ProgrammingError("", {}, sqlite3.ProgrammingError())

    monkeypatch.setattr(Claims, "holds", wrong)
    house.clock.seconds += TTL + 1
    with pytest.raises(ProgrammingError):
        job.check()


def test_a_heartbeat_for_a_job_that_its_handler_has_ended_tells_nothing(house: House) -> None:
    """Neither lost nor renewed: the handler may go on to its return."""
    house.submit()
    job = house.claimed(house.one)
    with house.catalog.write(job.guard) as conn:
        job.finish(conn, {})
    house.one.beat(job)
    job.check()


# Outages


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (busy(), True),
        (OperationalError("", {}, sqlite3.OperationalError("no such table: x")), False),
        (OperationalError("", {}, psycopg.OperationalError("server closed the connection")), True),
        (InterfaceError("", {}, psycopg.InterfaceError("connection already closed")), True),
        (ProgrammingError("", {}, psycopg.errors.UndefinedTable("no such table")), False),
        (ProgrammingError("", {}, psycopg.errors.UndefinedTable(""), connection_invalidated=True), True),
        (OperationalError("", {}, sqlite3.OperationalError(), connection_invalidated=True), True),
    ],
)
def test_what_may_pass_is_told_from_a_defect(error: DBAPIError, outage: bool) -> None:
    """SQLite by the error's name, PostgreSQL by its class, either by a connection that is gone."""
    assert is_outage(error) is outage


# What is told of a run


class Raising(Work):
    """A handler whose run raises what the test says."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def run(self, job: Running) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "state", "reason", "said", "traced"),
    [
        (TryAgain("the store is away"), "QUEUED", "the store is away", "is to be tried again: the store is away", False),
        (busy(), "QUEUED", "the database was away", ": the database was away, to be run again", False),
        (ValueError("a defect"), "QUEUED", "ValueError: a defect", "ended in a defect", True),
        (Cancelled("by its owner"), "CANCELLED", "by its owner", None, False),
        (Cancelled(), "CANCELLED", "cancelled by a user", None, False),
    ],
)
def test_why_a_run_ended_is_kept_and_told(
    house: House, caplog: pytest.LogCaptureFixture, error: Exception, state: str, reason: str, said: str | None, traced: bool
) -> None:
    """In the job's row from its end on, also while it waits to be run again; and for the operator with the job's id and kind."""
    worker = StepwiseWorker(house.jobs, {"work": Raising(error)})
    key = house.submit()
    worker.step()
    with house.catalog.read() as conn:
        shown = house.jobs.get(conn, key)
    assert shown is not None
    assert (shown.state, shown.error) == (state, reason)
    told = [(record.message, record.exc_info is not None) for record in caplog.records]
    assert told == ([] if said is None else [(f"job {key} (work){said if said.startswith(':') else ' ' + said}", traced)])


@pytest.mark.parametrize(("error", "traced"), [(TryAgain("not now"), False), (ValueError("a defect"), True)])
def test_what_keeps_a_job_from_being_given_up_is_told(
    house: House, caplog: pytest.LogCaptureFixture, error: Exception, traced: bool
) -> None:
    """A passing trouble as a warning, a defect with its traceback."""

    def ending() -> None:
        raise error

    house.work.ending = ending
    key = house.submit()
    house.one.step()
    said = "could not be given up" if traced else "cannot be given up yet: not now"
    assert [(r.message, r.exc_info is not None) for r in caplog.records] == [(f"job {key} (work) {said}", traced)]


@pytest.mark.parametrize(("first", "runs", "pause"), [(0, 1, 0.9), (255, 1, 1.1), (255, 3, 4.4), (0, 40, 54.0)])
def test_pauses_double_and_are_spread(house: House, monkeypatch: pytest.MonkeyPatch, first: int, runs: int, pause: float) -> None:
    """By a tenth to either side, up to a minute."""
    monkeypatch.setattr(house.clock, "key", lambda: bytes([first]) + bytes(31), raising=False)
    worker = StepwiseWorker(house.jobs, {"work": Raising(TryAgain("away"))})
    key = house.submit()
    for _ in range(runs):
        assert worker.step() == key
        begin, due = house.clock.seconds, house.state(key)[2]
        house.clock.seconds = due
    assert due - begin == pytest.approx(pause, abs=1e-3)
