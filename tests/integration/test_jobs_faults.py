"""Workers that die, stand still and lose their database, by real signals. Every job ends, and no two owners interleave."""

from __future__ import annotations

import itertools
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from strongroom.ambient import Machine
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.catalog.migrating import migrate
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import JobView
from support.job_worker import BEAT, POLL, TTL, written
from support.postgres import PostgresServer, postgres_server

SCRIPT = Path(__file__).parent.parent / "support" / "job_worker.py"


class Crew:
    """Worker processes on one catalog."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.catalog: Catalog = open_catalog(url)
        self.jobs = LeasedJobs(self.catalog, Machine())
        self.processes: list[subprocess.Popen[bytes]] = []
        written.create(self.catalog.engine)

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        """A worker that has begun to claim."""
        path = [str(SCRIPT.parent.parent.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [sys.executable, SCRIPT, self.url, *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        )  # fmt: skip
        self.processes.append(process)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 30)[0], "the worker did not start"
        assert process.stdout.readline() == b"ready\n"
        return process

    def end(self, process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGKILL) -> None:
        """Ends a worker of ours, paused or not."""
        if process.poll() is None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)
            process.wait(30)
        if process.stdout is not None:
            process.stdout.close()

    def close(self) -> None:
        """Ends what still runs."""
        for process in self.processes:
            self.end(process)
        self.catalog.close()

    def submit(self, serial: str, steps: int, pause: float, **options: Any) -> str:
        with self.catalog.write() as conn:
            return self.jobs.submit(conn, "write", {"serial": serial, "steps": steps, "pause": pause}, serial=serial, **options)

    def get(self, job: str) -> JobView:
        with self.catalog.read() as conn:
            found = self.jobs.get(conn, job)
        assert found is not None
        return found

    def rows(self, *where: sa.ColumnElement[bool]) -> list[sa.Row[Any]]:
        """What was written, in the order of the transactions."""
        with self.catalog.read() as conn:
            return list(conn.execute(sa.select(written).where(*where).order_by(written.c.number)).all())

    def wait_rows(self, job: str, count: int, epoch: int = 1) -> None:
        """Until this claim of the job has written that many rows."""
        until = time.monotonic() + 20
        while len(self.rows(written.c.job == job, written.c.epoch == epoch)) < count:
            assert time.monotonic() < until, f"{self.get(job)}"
            time.sleep(0.02)

    def wait_done(self, *jobs: str, seconds: float = 40.0) -> None:
        """Until all of them are DONE."""
        until = time.monotonic() + seconds
        for job in jobs:
            while (shown := self.get(job)).state != "DONE":
                assert shown.active, f"{shown}"
                assert time.monotonic() < until, f"still {shown}"
                time.sleep(0.05)

    def assert_no_overlap(self) -> None:
        """In each serial key's rows every claim writes in one piece: none writes again once another has begun."""
        last: dict[str, tuple[str, int]] = {}
        over: set[tuple[str, int]] = set()
        for row in self.rows():
            claim = (row.job, row.epoch)
            assert claim not in over, f"{row} was written after its successor had begun"
            if row.serial in last and last[row.serial] != claim:
                over.add(last[row.serial])
            last[row.serial] = claim

    def assert_whole(self, job: str, steps: int) -> None:
        """The claim that ended the job wrote all of its rows."""
        result = self.get(job).result
        assert result is not None
        assert len(self.rows(written.c.job == job, written.c.epoch == result["epoch"])) == steps


@pytest.fixture
def crew(postgres_url: str) -> Iterator[Crew]:
    """On PostgreSQL, where workers are many."""
    crew = Crew(postgres_url)
    yield crew
    crew.close()


def test_a_killed_workers_job_is_taken_over_when_its_lease_ends(crew: Crew) -> None:
    """kill -9 in the middle; the other worker goes on within the lease and two looks, not sooner than the lease allows."""
    first = crew.start()
    key = crew.submit("i", 12, 0.1)
    crew.wait_rows(key, 3)
    crew.start()
    died = time.time()
    crew.end(first)
    crew.wait_done(key)
    taken = crew.rows(written.c.epoch == 2)[0].at - died
    assert TTL - BEAT - 0.2 < taken < TTL + 2 * POLL + 3
    assert crew.get(key).attempts == 2
    crew.assert_whole(key, 12)
    crew.assert_no_overlap()


def test_a_paused_worker_is_replaced_and_fenced(crew: Crew) -> None:
    """SIGSTOP past the lease, then SIGCONT: it writes nothing more, and goes on to work on other jobs."""
    first = crew.start()
    key = crew.submit("i", 60, 0.1)
    crew.wait_rows(key, 3)
    first.send_signal(signal.SIGSTOP)
    second = crew.start()
    crew.wait_rows(key, 3, epoch=2)
    before = len(crew.rows(written.c.epoch == 1))
    first.send_signal(signal.SIGCONT)
    crew.wait_done(key)
    assert len(crew.rows(written.c.epoch == 1)) == before
    assert crew.get(key).attempts == 2
    crew.assert_whole(key, 60)
    crew.assert_no_overlap()
    crew.end(second)
    crew.wait_done(crew.submit("i", 2, 0.0))
    assert first.poll() is None


def test_a_drained_worker_hands_its_jobs_on_at_once(crew: Crew) -> None:
    """SIGTERM: the process ends by itself, the other goes on before a lease could have run out, and it is no attempt."""
    first = crew.start()
    key = crew.submit("i", 30, 0.1, max_attempts=1)
    crew.wait_rows(key, 3)
    crew.start()
    crew.end(first, signal.SIGTERM)
    ended = time.time()
    assert first.returncode == 0
    crew.wait_done(key)
    assert crew.rows(written.c.epoch == 2)[0].at - ended < TTL
    assert crew.get(key).attempts == 1


def test_an_embedded_server_goes_on_at_once_after_kill(sqlite_url: str) -> None:
    """kill -9, start: with the folder to itself it does not wait for the lease of the dead process."""
    crew = Crew(sqlite_url)
    try:
        first = crew.start()
        key = crew.submit("i", 10, 0.1)
        crew.wait_rows(key, 3)
        crew.end(first)
        crew.start("--forget-leases")
        ready = time.time()
        crew.wait_done(key)
        assert crew.rows(written.c.epoch == 2)[0].at - ready < TTL / 2
        crew.assert_whole(key, 10)
    finally:
        crew.close()


@pytest.fixture
def lost_postgres() -> Iterator[PostgresServer]:
    """A server of the test's own that it may take away."""
    with postgres_server() as server:
        yield server


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_jobs_outlive_the_database(lost_postgres: PostgresServer, how: str) -> None:
    """Away for longer than a lease: no healthy worker loses a job to the one that is back first, and all jobs end."""
    crew = Crew(lost_postgres.url(lost_postgres.create_database()))
    try:
        migrate(crew.catalog)
        for _ in range(2):
            crew.start()
        # Steps far apart: the database comes back before the second, so a run can survive.
        quiet = [crew.submit(f"quiet{number}", 2, 8.0, max_attempts=1) for number in range(2)]
        busy = [crew.submit(f"busy{number}", 30, 0.1, max_attempts=1) for number in range(2)]
        for key in (*quiet, *busy):
            crew.wait_rows(key, 1)
        getattr(lost_postgres, how)()
        time.sleep(TTL + 2 * BEAT + 1)
        lost_postgres.start()
        crew.wait_done(*quiet, *busy, seconds=60)
        assert [crew.get(key).result for key in quiet] == [{"epoch": 1}] * 2
        crew.assert_no_overlap()
        for key in busy:
            crew.assert_whole(key, 30)
    finally:
        crew.close()


def test_chaos(crew: Crew) -> None:
    """Three workers, killed and paused at random for fifteen seconds: every job ends, and no two owners of a key interleave."""
    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    print(f"seed {seed}")
    workers = [crew.start() for _ in range(3)]
    keys: list[str] = []
    begin = time.monotonic()
    for what in itertools.cycle(("kill", "pause", "kill", "resume")):
        if time.monotonic() > begin + 15:
            break
        for _ in range(4):
            keys.append(crew.submit(f"i{chance.randrange(4)}", chance.randint(1, 16), 0.05))
        time.sleep(chance.uniform(0.3, 1.0))
        victim = chance.randrange(3)
        if what == "kill":
            crew.end(workers[victim])
            workers[victim] = crew.start()
        else:
            workers[victim].send_signal(signal.SIGSTOP if what == "pause" else signal.SIGCONT)
    for worker in workers:
        worker.send_signal(signal.SIGCONT)
    crew.wait_done(*keys, seconds=60)
    crew.assert_no_overlap()
    assert len(keys) > 20
    assert any(crew.get(key).attempts > 1 for key in keys)


def test_a_database_that_is_away_refuses_the_submit(lost_postgres: PostgresServer) -> None:
    """The caller learns it: nothing is kept in memory to be submitted later."""
    catalog = open_catalog(lost_postgres.url())
    jobs = LeasedJobs(catalog, Machine())
    lost_postgres.stop()
    with pytest.raises(OperationalError), catalog.write() as conn:
        jobs.submit(conn, "write", {})
    lost_postgres.start()
    catalog.close()
