"""A catalog on PostgreSQL that fails over, is restored, or is lost: real servers, a real replica, a real promotion."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from strongroom.backups import holding
from strongroom.backups.context import Context
from strongroom.backups.holds import RECOVERED
from strongroom.backups.incarnation import keep_watch, recognise, take_possession
from strongroom.backups.rebuilding import rebuild
from strongroom.backups.staleness import CatalogOutdated, require_owner
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.catalog.migrating import migrate
from strongroom.identity import accounts
from strongroom.storage.base import Stat, StoreUnavailable
from strongroom.storage.memory import MemoryStore
from support.postgres import ROLE, PostgresServer, programs
from support.vault import Vault, generations

NO_FILE = Path("/nowhere/incarnation")
"""A catalog on PostgreSQL keeps its word in the database alone."""


class Replicated:
    """A server and its replica, reached at one address that moves to the replica when that is promoted."""

    def __init__(self, folder: Path) -> None:
        binaries = programs()
        if binaries is None:
            pytest.skip("PostgreSQL's server is not installed")
        self._binaries = binaries
        self._servers = [self._server(folder / name) for name in ("one", "two")]
        self.first, self.second = self._servers
        self.first.initialise()
        self.first.start()
        self._address = folder / "here"
        self._address.symlink_to(self.first.folder)
        self.name = self.first.create_database()

    def _server(self, folder: Path) -> PostgresServer:
        folder.mkdir()
        return PostgresServer(self._binaries, folder)

    @property
    def url(self) -> str:
        """Of the database on whichever server has the address."""
        return f"postgresql://{ROLE}@/{self.name}?host={self._address}"

    def copy(self) -> None:
        """The replica is made of what the first server has now, and learns nothing more."""
        command: list[str | Path] = [
            self._binaries / "pg_basebackup", "-D", self.second.folder / "data", "-R", "-c", "fast", "-X", "stream",
            "-h", self.first.folder, "-U", ROLE,
        ]  # fmt: skip
        subprocess.run(command, check=True, cwd=self.second.folder, **self.second._user)

    def fail_over(self) -> None:
        """The first server is gone; the replica is promoted and takes the address."""
        self.first.kill()
        self.second.start()
        self.move_address()
        with self._admin(self.second) as conn:
            assert conn.execute("SELECT pg_promote(true, 60)").fetchone() == (True,)

    def move_address(self) -> None:
        """Whoever connects from now on reaches the replica."""
        fresh = self._address.with_name("moving")
        fresh.symlink_to(self.second.folder)
        fresh.replace(self._address)

    def restart(self) -> None:
        """The same server once more."""
        self.first.stop()
        self.first.start()

    def _admin(self, server: PostgresServer) -> closing[psycopg.Connection[tuple[object, ...]]]:
        return closing(psycopg.connect(host=str(server.folder), user=ROLE, dbname="postgres", autocommit=True))

    def close(self) -> None:
        """Both servers end."""
        for server in self._servers:
            server.stop()


@pytest.fixture
def servers() -> Iterator[Replicated]:
    folder = Path(tempfile.mkdtemp(prefix="strongroom-ha-"))
    folder.chmod(0o755)
    made = Replicated(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)


@pytest.fixture
def catalog(servers: Replicated) -> Iterator[Catalog]:
    opened = open_catalog(servers.url)
    migrate(opened)
    yield opened
    opened.close()


@pytest.fixture
def vault(tmp_path: Path, catalog: Catalog) -> Vault:
    """A running server, as far as its catalog is concerned."""
    made = Vault(tmp_path, catalog=catalog)
    begin(made.ctx)
    return made


def begin(ctx: Context) -> bool:
    """What a starting server does; whether it knows its catalog again."""
    take_possession(ctx)
    known = recognise(ctx, NO_FILE)
    keep_watch(ctx, NO_FILE)
    return known


def reconnect(catalog: Catalog) -> None:
    """Until the database answers on a connection that works: those of before are found to be gone."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            with catalog.read() as conn:
                conn.execute(sa.text("SELECT 1"))
        except DBAPIError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the database does not come back")


def eventually(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def objects(vault: Vault) -> dict[str, bytes]:
    assert isinstance(vault.store, MemoryStore)
    return dict(vault.store._objects)


def test_a_fail_over_under_a_running_server_frees_nothing_of_what_it_lost(vault: Vault, servers: Replicated) -> None:
    """The replica does not know the newest backup, which shares with the one before. The lineage had been compared with the store
    before the fail-over; the next delete compares it again, fails with the reason and removes nothing."""
    source = generations(3)
    first = vault.backup(next(source))
    vault.delete(first)  # the lineage is compared before this frees anything
    vault.run()
    known = vault.backup(next(source))
    servers.copy()
    vault.backup(next(source))
    there = objects(vault)
    servers.fail_over()
    reconnect(vault.catalog)
    job = vault.delete(known)
    vault.run()
    assert vault.job(job).state == "FAILED"
    assert "older than the store" in vault.job(job).error
    assert objects(vault) == there


def test_a_fail_over_under_a_running_server_fails_the_build_of_before(
    vault: Vault, servers: Replicated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that was under way is failed with the reason by the server that notices, also where the store does not answer at
    first; the next one is taken whole."""
    source = generations(3)
    vault.backup(next(source))
    building, _ = vault.create(next(source))
    servers.copy()
    servers.fail_over()
    listing = vault.store.list

    def away(prefix: str) -> Iterator[Stat]:
        monkeypatch.setattr(vault.store, "list", listing)
        raise StoreUnavailable(f"no answer about {prefix}")

    monkeypatch.setattr(vault.store, "list", away)
    reconnect(vault.catalog)
    eventually(lambda: vault.state(building) == "FAILED")
    with vault.catalog.read() as conn:
        reason = conn.execute(sa.select(t.backup.c.fail_reason).where(t.backup.c.id == building)).scalar_one()
    assert "restored or promoted" in reason
    vault.run()
    vault.backup(next(source))
    vault.check()


def test_a_restart_of_the_same_server_is_no_fail_over(vault: Vault, servers: Replicated) -> None:
    """The build goes on, and what was compared with the store stays compared."""
    source = generations(2)
    vault.backup(next(source))
    building, _ = vault.create(next(source))
    compared = dict(vault.ctx.checked)
    assert compared
    servers.restart()
    reconnect(vault.catalog)
    assert vault.ctx.checked == compared
    vault.run()
    assert vault.state(building) == "COMPLETED"


def test_a_replica_that_is_not_promoted_yet_is_not_entered(vault: Vault, servers: Replicated) -> None:
    """A connection to it would outlive the promotion and never be compared: there is none before it takes writes."""
    servers.copy()
    servers.first.kill()
    servers.second.start()
    servers.move_address()
    with pytest.raises(DBAPIError), vault.catalog.read():
        pytest.fail("a replica was entered")


def test_a_start_after_a_promotion_does_not_know_the_catalog_again(vault: Vault, servers: Replicated, tmp_path: Path) -> None:
    """At once, however soon after the promotion; the start after that one does."""
    building, _ = vault.create(next(generations(1)))
    servers.copy()
    servers.fail_over()
    with closing(open_catalog(servers.url)) as fresh:
        vault.catalog, before = fresh, vault.catalog
        before.close()
        vault.restart()
        assert not begin(vault.ctx)
        assert vault.state(building) == "FAILED"
        assert begin(vault.ctx)


def test_a_catalog_on_postgres_is_rebuilt_from_the_store(vault: Vault, servers: Replicated, tmp_path: Path) -> None:
    """In an empty database: every backup is there, held, restores byte for byte and can be deleted; what the old catalog's server
    would remove is left."""
    source = generations(4)
    keys = [vault.backup(next(source)) for _ in range(3)]
    vault.delete(keys[1])
    vault.run()
    name = servers.first.create_database()
    with closing(open_catalog(servers.first.url(name))) as fresh:
        migrate(fresh)
        again = Vault.__new__(Vault)
        again.__dict__.update(vault.__dict__)
        again.folder = tmp_path / "again"
        again.folder.mkdir()
        again.catalog = fresh
        again.restart()
        with fresh.write() as conn:
            accounts.found(conn, again.ambient, "account", "first", "admin", None)
        result = rebuild(again.ctx, lambda _line: None)
        assert (result.backups, result.damaged, result.unknown) == (2, 0, [])
        assert begin(again.ctx)
        with pytest.raises(CatalogOutdated):
            require_owner(vault.ctx)
        with fresh.read() as conn:
            assert {row.held for row in conn.execute(sa.select(t.backup.c.held))} == {RECOVERED}
            instances = {row.name: row.id for row in conn.execute(sa.select(t.instance.c.name, t.instance.c.id))}
        again.target = again._register("target")
        assert instances == {"source": vault.source}
        for key in (keys[0], keys[2]):
            assert again.restored(key) == vault.wanted[key]
            holding.hold(again.ctx, again.project, key, None, lambda conn: None)
        promised = again.preview(keys[0]).total.freed
        again.delete(keys[0])
        again.run()
        assert again.receipt(keys[0])["freed"] == promised
        assert again.restored(keys[2]) == vault.wanted[keys[2]]
