"""One process alone with its folder, and what a worker believes after the database was away."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from strongroom.ambient import Machine
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.jobs.embedded import DataFolderInUse, forget_leases, lock_data_folder
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.outages import Contact, is_outage
from strongroom.jobs.port import Running
from strongroom.jobs.stepwise import StepwiseWorker

HOLD = """
import sys, pathlib
from strongroom.jobs.embedded import lock_data_folder
with lock_data_folder(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class Clock(Machine):
    """Time moves when the test says."""

    seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


def test_a_folder_belongs_to_one_process_until_that_ends(tmp_path: Path) -> None:
    """The second gets a sentence that names the first; kill -9 of the first frees the folder at once."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(DataFolderInUse, match=f"process {first.pid}"), lock_data_folder(tmp_path):
            pass
        first.kill()
        first.wait(10)
        with lock_data_folder(tmp_path):
            pass


def test_a_folder_is_free_after_its_user(tmp_path: Path) -> None:
    """In one process too, and twice at once is refused there as well."""
    for _ in range(2):
        with lock_data_folder(tmp_path), pytest.raises(DataFolderInUse), lock_data_folder(tmp_path):
            pass


def test_a_restart_does_not_wait_for_its_own_leases(catalog: Catalog, ambient: Machine) -> None:
    """What the dead process ran is claimed at once, as another attempt."""

    class Nothing:
        def run(self, job: Running) -> None:
            return None

        def give_up(self, job: Running, outcome: str, reason: str) -> None:
            return None

    jobs = LeasedJobs(catalog, ambient)
    before, after = (StepwiseWorker(jobs, {"work": Nothing()}, owner=owner) for owner in ("before", "after"))
    with catalog.write() as conn:
        key = jobs.submit(conn, "work", {})
    assert before.claim() is not None
    assert after.claim() is None
    with catalog.write() as conn:
        forget_leases(conn)
    claimed = after.claim()
    assert claimed is not None
    assert (claimed.id, claimed.attempts) == (key, 2)


def test_a_worker_that_was_cut_off_lets_others_renew_first() -> None:
    """After a failure, or a gap in its own time, it takes nothing over for `hold_off` seconds; at its start it may at once."""
    clock = Clock()
    contact = Contact(clock, longest_gap=4, hold_off=7)
    assert contact.may_take_over()
    contact.failed()
    for _ in range(6):
        clock.seconds += 1
        contact.made()
        assert not contact.may_take_over()
    clock.seconds += 1
    contact.made()
    assert contact.may_take_over()
    clock.seconds += 20  # this process stood still
    assert not contact.may_take_over()
    contact.made()
    assert not contact.may_take_over()
    for _ in range(7):
        clock.seconds += 1
        contact.made()
    assert contact.may_take_over()


def test_a_locked_database_is_away_and_wrong_sql_is_not(tmp_path: Path) -> None:
    """SQLite raises the same class for both."""
    catalog = open_catalog(f"sqlite:///{tmp_path}/x.db")
    with catalog.write() as conn, pytest.raises(OperationalError) as wrong:
        conn.execute(sa.text("SELECT * FROM nothing"))
    assert not is_outage(wrong.value)
    holder = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    other = sa.create_engine(f"sqlite:///{tmp_path}/x.db", connect_args={"timeout": 0})
    with other.connect() as conn, pytest.raises(OperationalError) as locked:
        conn.execute(sa.text("CREATE TABLE a (b)"))
    assert is_outage(locked.value)
    holder.close()
    other.dispose()
    catalog.close()
