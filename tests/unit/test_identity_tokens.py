"""Tokens: 24 hours, and dead at once with what their user lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.identity import accounts, tokens
from strongroom.identity import tables as t
from strongroom.identity.errors import NotKnown, Unauthenticated
from support.border import House, build_house


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build_house(tmp_path)


def issue(house: House, user: str | None = None, expires_at: float | None = None) -> tokens.Issued:
    user = user or house.first.founded.user
    with house.services.catalog.write() as conn:
        epoch = conn.scalar(sa.select(t.user.c.epoch).where(t.user.c.id == user))
        return tokens.issue(conn, house.clock, user, epoch, house.project, "password", expires_at)


def validate(house: House, text: str) -> tokens.Valid:
    with house.services.catalog.read() as conn:
        return tokens.validate(conn, text, house.clock.now())


def test_a_token_lasts_24_hours(house: House) -> None:
    """To the second."""
    issued = issue(house)
    assert issued.expires_at - issued.issued_at == 24 * 3600
    house.clock.sleep(24 * 3600 - 1)
    assert validate(house, issued.text).project == house.project
    house.clock.sleep(1)
    with pytest.raises(Unauthenticated, match="expired"):
        validate(house, issued.text)


def test_a_token_made_from_a_token_ends_with_it(house: House) -> None:
    """Else a token could be prolonged for ever."""
    end = house.clock.now() + 60
    assert issue(house, expires_at=end).expires_at == end
    assert issue(house, expires_at=end + 10**9).expires_at == house.clock.now() + tokens.LIFETIME


def test_a_new_token_does_not_end_older_ones(house: House) -> None:
    """Terraform makes two at each start."""
    first, second = issue(house), issue(house)
    assert validate(house, first.text)
    assert validate(house, second.text)


def test_a_revoked_token_is_dead_and_revoking_again_is_no_error(house: House) -> None:
    """And the other tokens of the user live on."""
    first, second = issue(house), issue(house)
    for _ in range(2):
        with house.services.catalog.write() as conn:
            tokens.revoke(conn, first.text, house.clock.now())
    with pytest.raises(Unauthenticated, match="revoked"):
        validate(house, first.text)
    assert validate(house, second.text)
    with house.services.catalog.write() as conn, pytest.raises(NotKnown):
        tokens.revoke(conn, "never issued", house.clock.now())


@pytest.mark.parametrize("text", ["", "x", "x" * 10_000, "\udcff", "' OR 1=1 --"])
def test_what_was_never_issued_is_refused(house: House, text: str) -> None:
    """Whatever it looks like."""
    with pytest.raises(Unauthenticated):
        validate(house, text)


def test_only_a_digest_is_kept(house: House) -> None:
    """Who reads the database cannot use the tokens."""
    issued = issue(house)
    with house.services.catalog.read() as conn:
        row = conn.execute(sa.select(t.token)).one()
    assert issued.text not in str(row)


Change = Callable[[Connection, House, str], object]
CHANGES: dict[str, Change] = {
    "password": lambda conn, h, u: accounts.set_password(conn, h.clock, u, None),
    "disabled": lambda conn, h, u: accounts.set_enabled(conn, h.clock, u, False),
    "grant": lambda conn, h, u: accounts.grant(conn, h.clock, u, "operator"),
    "revoke": lambda conn, h, u: accounts.revoke(conn, h.clock, u, "reader"),
    "administrator": lambda conn, h, u: accounts.set_administrator(conn, h.clock, u, True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tokens_end_at_once_with_what_their_user_lost_or_got(house: House, change: str) -> None:
    """A changed password, permission or disabling; and other users' tokens live on."""
    user = house.new_user("ulla", "reader")
    mine, other = issue(house, user), issue(house)
    with house.services.catalog.write() as conn:
        CHANGES[change](conn, house, user)
    with pytest.raises(Unauthenticated, match="revoked"):
        validate(house, mine.text)
    assert validate(house, other.text)


def test_tokens_end_with_a_key_that_is_disabled_or_removed(house: House) -> None:
    """Each in turn."""
    user, clock = house.first.founded.user, house.clock
    for change in (
        lambda conn: accounts.set_access_key_enabled(conn, clock, user, house.first.key.id, False),
        lambda conn: accounts.delete_access_key(conn, clock, user, house.first.key.id),
    ):
        issued = issue(house)
        with house.services.catalog.write() as conn:
            change(conn)
        with pytest.raises(Unauthenticated):
            validate(house, issued.text)


def test_tokens_end_when_a_policy_that_their_user_has_is_changed_or_deleted(house: House) -> None:
    """Holders only."""
    account, user = house.first.founded.account, house.new_user("ulla", None)
    document = '{"Version":"1.1","Statement":[{"Effect":"Allow","Action":["nosql:*:*"]}]}'
    with house.services.catalog.write() as conn:
        policy = accounts.put_policy(conn, house.clock, account, "mine", document)
        accounts.grant(conn, house.clock, user, policy)
    for change in (
        lambda conn: accounts.put_policy(conn, house.clock, account, "mine", document),
        lambda conn: accounts.delete_policy(conn, house.clock, account, policy),
    ):
        mine, other = issue(house, user), issue(house)
        with house.services.catalog.write() as conn:
            change(conn)
        with pytest.raises(Unauthenticated):
            validate(house, mine.text)
        assert validate(house, other.text)


def test_a_proof_that_is_older_than_a_change_makes_no_token(house: House) -> None:
    """The password was checked, then changed, and only then would the token be issued."""
    user = house.first.founded.user
    with house.services.catalog.read() as conn:
        epoch = conn.scalar(sa.select(t.user.c.epoch).where(t.user.c.id == user))
    with house.services.catalog.write() as conn:
        accounts.set_password(conn, house.clock, user, "another hash")
    with house.services.catalog.write() as conn, pytest.raises(Unauthenticated):
        tokens.issue(conn, house.clock, user, epoch, None, "password")


def test_rows_of_expired_tokens_are_forgotten_in_batches_and_no_others(house: House) -> None:
    """A living token stays."""
    for _ in range(3):
        issue(house)
    house.clock.sleep(tokens.LIFETIME)
    alive = issue(house)
    counts = []
    for _ in range(3):
        with house.services.catalog.write() as conn:
            counts.append(tokens.forget_expired(conn, house.clock.now(), limit=2))
    assert counts == [2, 1, 0]
    assert validate(house, alive.text)
