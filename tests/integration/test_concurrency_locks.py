"""Locks and isolation: what is read after a lock is current, only what is decided is locked, and nothing waits in a circle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from strongroom.backups import creation, deletion, errors
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, RowGone, open_catalog
from strongroom.engines.base import Probe, Target
from support.postgres import PostgresServer
from support.vault import Vault, generations

T = TypeVar("T")


@pytest.fixture
def pg(postgres_url: str) -> Iterator[Catalog]:
    opened = open_catalog(postgres_url)
    yield opened
    opened.close()


@pytest.fixture
def vault(tmp_path: Path, pg: Catalog) -> Vault:
    return Vault(tmp_path, catalog=pg)


@pytest.fixture
def beside() -> Iterator[Callable[[Callable[[], Any]], Future[Any]]]:
    """Runs something in another thread."""
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit


def wait_until_blocked(catalog: Catalog) -> None:
    """Returns once another session of this database waits for a lock."""
    query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with catalog.read() as conn:
            if conn.execute(query).scalar_one():
                return
        time.sleep(0.02)
    raise AssertionError("nobody waits")


def lineage_of(vault: Vault, backup: str) -> tuple[str, int]:
    with vault.catalog.read() as conn:
        row = conn.execute(sa.select(t.part.c.lineage, t.part.c.seq).where(t.part.c.backup == backup)).one()
    return row.lineage, row.seq


def test_rows_that_do_not_exist_are_not_locked(catalog: Catalog) -> None:
    """decide and own raise RowGone for a backup, a lineage or a part that is unknown, on both databases."""
    with pytest.raises(RowGone, match="nobody"), catalog.decide(backups=["nobody"]):
        pytest.fail("a transaction without its lock")
    with pytest.raises(RowGone, match="nowhere"), catalog.decide(lineages=["nowhere"]):
        pytest.fail("a transaction without its lock")
    with pytest.raises(RowGone, match="nowhere/1"), catalog.own(lambda conn: None, "nowhere", 1):
        pytest.fail("a transaction without its lock")


def test_sessions_are_set_up_for_deciding(pg: Catalog) -> None:
    """Deciding transactions read what is committed, looking ones a snapshot; commits are durable; idle transactions end."""

    def show(conn: sa.Connection, name: str) -> str:
        return str(conn.execute(sa.text(f"SHOW {name}")).scalar_one())

    with pg.decide() as conn:
        assert show(conn, "transaction_isolation") == "read committed"
        assert show(conn, "synchronous_commit") == "on"
        assert show(conn, "idle_in_transaction_session_timeout") == "1min"
    with pg.read() as conn:
        assert show(conn, "transaction_isolation") == "repeatable read"
        assert show(conn, "transaction_read_only") == "on"
    with pg.decide() as conn:
        assert show(conn, "transaction_isolation") == "read committed", (
            "the connection's next transaction is a deciding one again"
        )
        assert show(conn, "transaction_read_only") == "off"


def test_a_worker_paused_in_a_transaction_stops_nobody_for_long(vault: Vault, beside: Any) -> None:
    """Its session is ended by the server, its lock is free, and its own commit fails."""
    backup = vault.backup(next(generations(1)))
    lineage, _ = lineage_of(vault, backup)

    def pause() -> None:
        with vault.catalog.decide(lineages=[lineage]) as conn:
            conn.execute(sa.text("SET idle_in_transaction_session_timeout = '200ms'"))
            assert beside(lambda: vault.delete(backup)).result(20)

    with pytest.raises(DBAPIError, match="idle-in-transaction timeout"):
        pause()
    vault.run()
    vault.check()


def test_a_paused_decision_blocks_its_lineage_and_no_other(vault: Vault, beside: Any) -> None:
    """While a transaction that holds one lineage is paused, another instance's delete and backup go through, its own waits."""
    here = vault.backup(next(generations(1)))
    vault.engine.databases["plain://elsewhere"] = next(generations(1, 5))
    vault.source = vault._register("elsewhere")
    there = vault.backup(next(generations(1, 5)))
    with vault.catalog.decide(lineages=[lineage_of(vault, here)[0]]):
        blocked = beside(lambda: vault.delete(here))
        assert beside(lambda: vault.delete(there)).result(10)
        vault.worker.step()
        assert vault.state(there) == "DELETED"
        wait_until_blocked(vault.catalog)
        assert not blocked.done()
    assert blocked.result(10)
    vault.run()
    vault.check()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_preview_is_not_disturbed_and_its_version_is_refused_afterwards(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delete and a new backup that commit in the middle of a preview are not in it; a delete at its version is refused."""
    catalog = open_catalog(request.getfixturevalue(f"{kind}_url"))
    vault = Vault(tmp_path, catalog=catalog)
    source = generations(5)
    keys = [vault.backup(next(source)) for _ in range(4)]
    undisturbed = vault.preview(keys[1], keys[2])
    compute = deletion._promise

    def disturbed(conn: sa.Connection, forecast: Any, lineage: str, seq: int, away: set[int]) -> deletion.Promise:
        if away:
            monkeypatch.undo()
            vault.delete(keys[0])
            vault.run()
            vault.backup(next(source))
        return compute(conn, forecast, lineage, seq, away)

    monkeypatch.setattr(deletion, "_promise", disturbed)
    seen = vault.preview(keys[1], keys[2])
    assert vault.state(keys[0]) == "DELETED"
    assert (seen.version, seen.promises) == (undisturbed.version, undisturbed.promises)
    with pytest.raises(errors.PreviewMoved):
        vault.delete(keys[1], if_match=seen.version)
    vault.check()
    catalog.close()


def test_a_first_build_and_its_failure_do_not_wait_for_each_other(
    vault: Vault, beside: Any, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that chooses its sizes while somebody fails it from outside waits without holding what the failure needs."""
    before = (postgres.folder / "log").stat().st_size
    backup, job = vault.create({"a": b"1"})
    lineage, _ = lineage_of(vault, backup)
    probed, go_on = threading.Event(), threading.Event()
    probe = vault.engine.probe

    def slow_probe(target: Target) -> Probe:
        probed.set()
        assert go_on.wait(10)
        return probe(target)

    monkeypatch.setattr(vault.engine, "probe", slow_probe)
    running = beside(vault.run)
    assert probed.wait(10)
    with vault.catalog.decide(backups=[backup], lineages=[lineage]) as conn:
        go_on.set()
        wait_until_blocked(vault.catalog)
        assert creation.fail(vault.ctx, conn, backup, "the database was promoted") is not None
    running.result(30)
    assert vault.state(backup) == "FAILED"
    assert not vault.job(job).active
    assert b"deadlock detected" not in (postgres.folder / "log").read_bytes()[before:]
    vault.check()
