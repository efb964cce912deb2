"""The audit trail: every row in its account's chain, whatever runs at the same time."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.catalog.database import Catalog
from strongroom.identity import tables as t
from strongroom.identity.audit import ChainBroken, Entry, append, check_chain
from strongroom.identity.principal import Principal
from support.border import Clock, House, build_house, new_catalog

CLOCK = Clock()


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return new_catalog(tmp_path)


def entry(number: int, account: str = "a") -> Entry:
    return Entry("NoSQLDeleteBackup", "backup", f"b{number}", f"nightly-{number}", account=account, detail={"n": number})


def write(catalog: Catalog, number: int, account: str = "a") -> None:
    with catalog.write() as conn:
        append(conn, CLOCK, entry(number, account))


def broken_at(catalog: Catalog, account: str = "a") -> int | None:
    with catalog.read() as conn:
        broken = check_chain(conn, account)
    return broken.sequence if broken else None


def test_a_row_is_there_exactly_if_its_deed_is(catalog: Catalog) -> None:
    """A transaction that fails leaves no row and no hole."""
    write(catalog, 1)

    def fail() -> None:
        with catalog.write() as conn:
            append(conn, CLOCK, entry(2))
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    write(catalog, 3)
    with catalog.read() as conn:
        assert conn.execute(sa.select(t.audit.c.sequence, t.audit.c.resource_id)).all() == [(1, "b1"), (2, "b3")]
    assert broken_at(catalog) is None


def test_many_writers_make_one_chain_per_account(catalog: Catalog) -> None:
    """Eight threads, two accounts that do not exist in the trail before."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: write(catalog, n, "ab"[n % 2]), range(40)))
    with catalog.read() as conn:
        for account in "ab":
            found = conn.scalars(sa.select(t.audit.c.sequence).where(t.audit.c.account == account).order_by("sequence"))
            assert found.all() == list(range(1, 21))
    assert broken_at(catalog, "a") is broken_at(catalog, "b") is None


@pytest.mark.parametrize(
    "column", [c.name for c in t.audit.c if c.name not in ("account", "sequence", "digest", "level", "outcome", "at", "id")]
)
def test_a_changed_row_shows(catalog: Catalog, column: str) -> None:
    """Whichever of its columns was changed."""
    for number in range(3):
        write(catalog, number)
    with catalog.write() as conn:
        conn.execute(sa.update(t.audit).where(t.audit.c.sequence == 2).values({column: "other"}))
    assert broken_at(catalog) == 2


@pytest.mark.parametrize(
    ("removed", "broken"),
    [
        (1, ChainBroken(1, "a row is missing")),
        (2, ChainBroken(2, "a row is missing")),
        (3, ChainBroken(3, "the newest rows are missing")),
    ],
)
def test_a_removed_row_shows(catalog: Catalog, removed: int, broken: ChainBroken) -> None:
    """The first, one in the middle, the newest."""
    for number in range(3):
        write(catalog, number)
    with catalog.write() as conn:
        conn.execute(sa.delete(t.audit).where(t.audit.c.sequence == removed))
    with catalog.read() as conn:
        assert check_chain(conn, "a") == broken


def test_a_row_that_was_changed_together_with_its_digest_shows_in_the_next(catalog: Catalog) -> None:
    """Each digest covers the one before."""
    for number in range(3):
        write(catalog, number)
    with catalog.write() as conn:
        row = dict(conn.execute(sa.select(t.audit).where(t.audit.c.sequence == 1)).one()._mapping) | {"resource_id": "other"}
        del row["digest"]
        digest = hashlib.sha256(json.dumps(row, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        changed = sa.update(t.audit).where(t.audit.c.sequence == 1)
        conn.execute(changed.values(resource_id="other", digest=digest))
    assert broken_at(catalog) == 2


def test_an_account_without_events_has_a_whole_chain(catalog: Catalog) -> None:
    """Nothing is missing where nothing was."""
    assert broken_at(catalog, "nobody") is None


def test_what_a_job_does_by_itself_is_in_its_projects_account(tmp_path: Path) -> None:
    """A job has a project and no caller."""
    house: House = build_house(tmp_path)
    with house.services.catalog.write() as conn:
        append(conn, house.clock, Entry("NoSQLDeleteBackupFailed", "backup", "b", project=house.project, level="Major"))
        row = conn.execute(sa.select(t.audit.c.account, t.audit.c.level)).one()
    assert row == (house.first.founded.account, "Major")


def test_an_event_of_a_request_says_who_asked_from_where() -> None:
    """All that the principal knows."""
    who = Principal("acc", "acme", "u1", "ulla", False, "p1", "default", "token", "req", "192.0.2.7")
    made = Entry.by(who, "NoSQLDeleteBackup", "backup", "b", "nightly", detail={"freed": 1})
    assert (made.account, made.project, made.user, made.user_name) == ("acc", "p1", "u1", "ulla")
    assert (made.request_id, made.source, made.detail) == ("req", "192.0.2.7", {"freed": 1})
