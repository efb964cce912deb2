"""Identity on PostgreSQL: what SQLite's single writer gives for free must hold with many at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.catalog.database import Catalog, open_catalog
from strongroom.catalog.tables import metadata
from strongroom.identity import accounts, signatures, tokens
from strongroom.identity import tables as t
from strongroom.identity.audit import Entry, append, check_chain
from strongroom.identity.callers import Asked, identify
from strongroom.identity.errors import LastAdministrator, Unauthenticated
from strongroom.identity.secrets import Sealer
from strongroom.identity.signatures import Received
from strongroom.identity.signing_in import Door, Wanted
from support.border import PASSWORD, ROOT_KEY, Clock, quick_passwords

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
pytestmark = pytest.mark.skipif(not PROGRAMS, reason="PostgreSQL's server is not installed")
DOCUMENT = '{"Version":"1.1","Statement":[{"Effect":"Allow","Action":["nosql:*:*"]}]}'
CLOCK, SEALER = Clock(), Sealer(ROOT_KEY)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A server of our own that listens on a socket in a folder only."""
    programs, who = PROGRAMS[-1].parent, {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="strongroom-identity-"))
    if who:
        shutil.chown(folder, "postgres", "postgres")
    make = [programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "strongroom", "-N", "-E", "UTF8", "--no-locale"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)
    options = ["-c", "listen_addresses=", "-c", "fsync=off", "-k", folder]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([programs / "postgres", "-D", folder / "data", *options], cwd=folder, **quiet, **who)
    try:
        url = f"postgresql://strongroom@/postgres?host={folder}"
        _wait_for(url)
        yield url
    finally:
        process.send_signal(signal.SIGINT)  # fast shutdown: whoever is connected is cut off
        process.wait(30)
        shutil.rmtree(folder)


def _wait_for(url: str) -> None:
    catalog = open_catalog(url)
    try:
        for _ in range(150):
            with suppress(sa.exc.OperationalError), catalog.read() as conn:
                conn.execute(sa.select(1))
                return
            time.sleep(0.1)
    finally:
        catalog.close()
    raise TimeoutError("PostgreSQL did not start")


@pytest.fixture
def catalog(database: str) -> Iterator[Catalog]:
    catalog = open_catalog(database)
    metadata.create_all(catalog.engine)
    yield catalog
    metadata.drop_all(catalog.engine)
    catalog.close()


def test_many_writers_make_one_chain(catalog: Catalog) -> None:
    """Eight at once on a trail that does not exist before: no gap, no fork, and a failed transaction leaves none."""

    def write(number: int) -> None:
        with suppress(ArithmeticError), catalog.write() as conn:
            append(conn, CLOCK, Entry("NoSQLDeleteBackup", "backup", f"b{number}", account="a", detail={"at": 0.1}))
            if number % 5 == 0:
                raise ArithmeticError

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(50)))
    with catalog.read() as conn:
        assert conn.scalars(sa.select(t.audit.c.sequence).order_by("sequence")).all() == list(range(1, 41))
        assert check_chain(conn, "a") is None


def test_the_first_start_founds_once(catalog: Catalog) -> None:
    """Four processes start at the same moment on an empty database."""
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: accounts.first_start(catalog, CLOCK, SEALER, password_hash=None), range(4)))
    assert sum(first is not None for first in made) == 1
    with catalog.read() as conn:
        assert conn.scalar(sa.select(sa.func.count()).select_from(t.user)) == 1


def test_wrong_signatures_are_counted_by_everyone_together(catalog: Catalog) -> None:
    """Five API processes, one wrong signature each: the key is locked."""
    first = accounts.first_start(catalog, CLOCK, SEALER, password_hash=None)
    assert first is not None
    authorization = f"SDK-HMAC-SHA256 Access={first.key.id}, SignedHeaders=x-sdk-date, Signature={'0' * 64}"
    headers = [(b"x-sdk-date", b"20261124T120000Z"), (b"authorization", authorization.encode())]
    request = Received("GET", b"/", b"", headers, b"")

    def ask(_: int) -> None:
        with pytest.raises(Unauthenticated):
            signatures.authenticate(catalog, SEALER, request, CLOCK.now())

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(ask, range(5)))
    with catalog.read() as conn:
        assert conn.execute(sa.select(t.access_key.c.wrong, t.access_key.c.locked_until)).one() == (
            0,
            CLOCK.now() + signatures.LOCKED_FOR,
        )


def test_tokens_grants_and_callers(catalog: Catalog) -> None:
    """The same statements as on SQLite: issue, identify, grant, end."""
    first = accounts.first_start(catalog, CLOCK, SEALER, password_hash=None)
    assert first is not None
    project = first.founded.project
    with catalog.write() as conn:
        user = accounts.create_user(conn, CLOCK, first.founded.account, "ulla", None)
        accounts.grant(conn, CLOCK, user, "reader", project)
        policy = accounts.put_policy(conn, CLOCK, first.founded.account, "mine", DOCUMENT)
        accounts.grant(conn, CLOCK, user, policy)
        epoch = conn.scalar(sa.select(t.user.c.epoch).where(t.user.c.id == user))
        text = tokens.issue(conn, CLOCK, user, epoch, project, "password").text
    request = Received("GET", b"/", b"", [(b"x-auth-token", text.encode())], b"")
    asked = Asked(project, "r", "192.0.2.7")
    caller = identify(catalog, CLOCK, SEALER, request, asked)
    assert (caller.user_name, caller.project_name, len(caller.policies)) == ("ulla", "default", 2)
    with catalog.write() as conn:
        accounts.delete_policy(conn, CLOCK, first.founded.account, policy)
    with pytest.raises(Unauthenticated):
        identify(catalog, CLOCK, SEALER, request, asked)
    with catalog.write() as conn:
        assert tokens.forget_expired(conn, CLOCK.now() + tokens.LIFETIME) == 1


def test_two_administrators_who_disable_each_other_at_once_leave_one(catalog: Catalog) -> None:
    """Each sees the other still enabled when it begins; one of them is refused."""
    first = accounts.first_start(catalog, CLOCK, SEALER, password_hash=None)
    assert first is not None
    with catalog.write() as conn:
        second = accounts.create_user(conn, CLOCK, first.founded.account, "second", None, administrator=True)

    def disable(user: str) -> bool:
        try:
            with catalog.write() as conn:
                accounts.set_enabled(conn, CLOCK, user, False)
        except LastAdministrator:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(disable, (first.founded.user, second))) == [False, True]
    with catalog.read() as conn:
        assert conn.scalar(sa.select(sa.func.count()).select_from(t.user).where(t.user.c.enabled)) == 1


def test_guesses_by_many_processes_at_once_are_five(catalog: Catalog) -> None:
    """Each wrong password is counted under the user's row lock, and then the right one rests."""
    passwords = quick_passwords()
    first = accounts.first_start(catalog, CLOCK, SEALER, password_hash=passwords.hash(PASSWORD))
    assert first is not None
    door = Door(catalog, CLOCK, SEALER, passwords)

    def enter(password: str) -> bool:
        try:
            door.by_password(Wanted(name="admin"), password, None, Asked(None, "", ""))
        except Unauthenticated:
            return False
        return True

    assert enter(PASSWORD)
    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(enter, ["guess"] * 12))
    assert not enter(PASSWORD)
    with catalog.read() as conn:
        assert conn.execute(sa.select(t.user.c.wrong, t.user.c.locked_until)).one() == (0, CLOCK.now() + signatures.LOCKED_FOR)
