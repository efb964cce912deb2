"""A newer version that upgrades the catalog on PostgreSQL under processes of this one: it waits for what they have begun, and
they begin nothing more. On SQLite one process locks the data folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from strongroom.catalog.database import Catalog, CatalogBehind, open_catalog
from strongroom.catalog.migrating import migrate, require_current
from support.schemas import next_version
from support.server import ServerProcess

_PROBE = sa.text("SELECT count(*) FROM information_schema.columns WHERE table_name = 'account' AND column_name = 'probe'")


@pytest.fixture
def older(postgres_url: str) -> Iterator[Catalog]:
    """The catalog as a running process of this version has it."""
    with closing(open_catalog(postgres_url)) as catalog:
        migrate(catalog)
        yield catalog


def upgrade(url: str) -> None:
    """What a newer version does at its start, where `next_version` was called."""
    with closing(open_catalog(url)) as newer:
        migrate(newer)
        with newer.write() as conn:  # it works on what it has made
            assert conn.execute(_PROBE).scalar() == 1


def waiting(catalog: Catalog, mode: str) -> bool:
    """Whether somebody waits for the table of revisions in this mode."""
    query = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = :mode AND relation = 'alembic_version'::regclass")
    with catalog.engine.connect() as conn:
        return bool(conn.execute(query, {"mode": mode}).scalar())


def wait_for(catalog: Catalog, mode: str) -> None:
    until = time.monotonic() + 30
    while not waiting(catalog, mode):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_process_of_before_begins_nothing_on_a_newer_schema(
    older: Catalog, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to look nor to decide, whatever the schema has become; it knows so from then on."""
    with older.read() as conn:
        assert conn.execute(_PROBE).scalar() == 0
    assert not older.behind.is_set()
    next_version(tmp_path, monkeypatch)
    upgrade(postgres_url)
    for begin in (older.read, older.write, older.decide):
        with pytest.raises(CatalogBehind, match="a newer version of Strongroom has upgraded"), begin():
            raise AssertionError("it has begun")
    assert older.behind.is_set()


def test_an_export_of_before_reads_nothing_on_a_newer_schema(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who only reads, beside a server, as well."""
    with closing(open_catalog(postgres_url)) as reader:
        require_current(reader)
        next_version(tmp_path, monkeypatch)
        upgrade(postgres_url)
        with pytest.raises(CatalogBehind), reader.read():
            raise AssertionError("it has begun")


@pytest.mark.parametrize("kind", ["read", "write"])
def test_an_upgrade_waits_for_what_has_begun_and_is_seen_by_what_waits_for_it(
    older: Catalog, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One transaction is open when the newer version starts; another comes while it waits, and must not see the state of before
    it waited."""
    for _ in range(10):  # the driver prepares on the server what comes again
        with older.write(), getattr(older, kind)():
            pass
    next_version(tmp_path, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        with older.write() as conn:
            newer = pool.submit(upgrade, postgres_url)
            wait_for(older, "AccessExclusiveLock")

            def late() -> None:
                with getattr(older, kind)():
                    raise AssertionError("it has begun")

            later = pool.submit(late)
            wait_for(older, "AccessShareLock")
            assert conn.execute(_PROBE).scalar() == 0
            assert not newer.done()
            assert not later.done()
        newer.result(30)
        with pytest.raises(CatalogBehind):
            later.result(30)


def test_starts_of_one_version_wait_for_nobody(older: Catalog, postgres_url: str) -> None:
    """A schema that is there already is not locked."""
    with older.write():
        done = threading.Thread(target=lambda: _start(postgres_url))
        done.start()
        done.join(30)
        assert not done.is_alive()


def _start(url: str) -> None:
    with closing(open_catalog(url)) as catalog:
        migrate(catalog)


def test_a_server_of_before_ends_and_says_why(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a status that is not 0, for the service manager to start what is installed now; no error is said to be a defect."""
    with ServerProcess(tmp_path / "data", {"STRONGROOM_CATALOG_URL": postgres_url}) as server, server.http() as client:
        assert server.process is not None
        next_version(tmp_path, monkeypatch)
        upgrade(postgres_url)
        try:
            answer = client.get("/v3/projects")
            assert (answer.status_code, answer.json()["error_code"]) == (503, "DBS.280005")
        except httpx.TransportError:
            pass  # it has ended already
        assert server.process.wait(30) == 1
    assert server.log.rstrip().splitlines()[-1].endswith("start that version in its place")
    assert "Traceback" not in server.log
