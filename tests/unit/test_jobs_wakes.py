"""Who is told of new work in the process that submitted it, and when."""

from __future__ import annotations

from contextlib import suppress

from strongroom.ambient import Machine
from strongroom.catalog.database import Catalog
from strongroom.jobs.leases import LeasedJobs


def test_each_of_two_jobs_on_one_catalog_tells_its_own_subscribers(catalog: Catalog, ambient: Machine) -> None:
    """What one submits wakes those who listen to it, whoever else uses the catalog."""
    heard: list[str] = []
    for name in ("first", "second"):
        jobs = LeasedJobs(catalog, ambient)
        jobs.subscribe(lambda name=name: heard.append(name))  # type: ignore[misc]
    with catalog.write() as conn:
        jobs.submit(conn, "work", {})
    assert heard == ["second"]


def test_jobs_leave_nothing_on_the_database_engine(catalog: Catalog, ambient: Machine) -> None:
    """However many are made on one engine, each of its transactions costs the same."""
    before = len(list(catalog.engine.pool.dispatch.checkin))
    for _ in range(3):
        LeasedJobs(catalog, ambient)
    assert len(list(catalog.engine.pool.dispatch.checkin)) == before


def test_a_transaction_that_is_rolled_back_wakes_nobody(catalog: Catalog, ambient: Machine) -> None:
    """Nor does the next one on the same connection, which submitted nothing."""
    jobs, heard = LeasedJobs(catalog, ambient), list[bool]()
    jobs.subscribe(lambda: heard.append(True))
    with suppress(ZeroDivisionError), catalog.write() as conn:
        jobs.submit(conn, "work", {})
        raise ZeroDivisionError
    with catalog.write():
        pass
    assert heard == []


def test_a_transaction_that_submits_twice_wakes_once(catalog: Catalog, ambient: Machine) -> None:
    """One look finds both; a cancel tells too, since it has to be given up."""
    jobs, heard = LeasedJobs(catalog, ambient), list[bool]()
    jobs.subscribe(lambda: heard.append(True))
    with catalog.write() as conn:
        key = jobs.submit(conn, "work", {})
        jobs.submit(conn, "work", {})
    assert len(heard) == 1
    with catalog.write() as conn:
        jobs.cancel(conn, key)
    assert len(heard) == 2
