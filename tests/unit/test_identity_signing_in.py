"""Entering by password and by a second factor: codes, replay, rests; temporary credentials."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from strongroom.identity import accounts, temporary, totp
from strongroom.identity import tables as t
from strongroom.identity.callers import Asked
from strongroom.identity.errors import CodeRefused, NotKnown, Unauthenticated
from strongroom.identity.signing_in import RESTS_FOR, Door, Wanted
from strongroom.identity.totp import code_at, step_of
from support.border import PASSWORD, House, build_house

RFC_SECRET = b"12345678901234567890"


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build_house(tmp_path)


def enrolled(house: House, user: str) -> bytes:
    """Gives a user a confirmed second factor; returns its secret. The code that confirmed it is a step old then."""
    services = house.services
    with services.catalog.write() as conn:
        secret = base64.b32decode(totp.enrol(conn, house.clock, services.sealer, user).secret)
    with services.catalog.write() as conn:
        totp.confirm(conn, house.clock, services.sealer, user, code_at(secret, int(house.clock.now() // 30)))
    house.clock.sleep(30)
    return secret


def ask(house: House, password: str = PASSWORD, code: str | None = None, user: str = "ulla") -> httpx.Response:
    proof = {"user": {"name": user, "password": password, "domain": {"name": "strongroom"}}}
    identity: dict[str, Any] = {"methods": ["password"], "password": proof}
    if code is not None:
        identity = {"methods": ["password", "totp"], "password": proof, "totp": {"user": {"name": user, "passcode": code}}}
    return house.request("POST", "/v3/auth/tokens", json={"auth": {"identity": identity}})


def now_code(house: House, secret: bytes, steps: int = 0) -> str:
    return code_at(secret, int(house.clock.now() // 30) + steps)


# --- codes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "code"),
    [(59, "287082"), (1111111109, "081804"), (1111111111, "050471"), (1234567890, "005924"), (2000000000, "279037"),
     (20000000000, "353130")],
)  # fmt: skip
def test_codes_are_those_of_rfc_6238(seconds: int, code: str) -> None:
    """Its appendix B, the last six digits."""
    assert code_at(RFC_SECRET, seconds // 30) == code
    assert step_of(RFC_SECRET, code, seconds) == seconds // 30


@pytest.mark.parametrize(("off", "taken"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
def test_a_clock_may_be_one_step_off(off: int, taken: bool) -> None:
    """On either side, and no more."""
    assert (step_of(RFC_SECRET, code_at(RFC_SECRET, 1000 + off), 30_000) is not None) is taken


@pytest.mark.parametrize("code", ["", "12345", "1234567", "12345a", "١٢٣٤٥٦", "none"])
def test_what_is_no_code_fits_no_step(code: str) -> None:
    """Whatever was typed."""
    assert step_of(RFC_SECRET, code, 59) is None


# --- the second factor in the token call -------------------------------------------------------------------------------


def test_a_user_with_a_second_factor_needs_its_code(house: House) -> None:
    """With it the answer names both methods; without it the refusal says what is missing."""
    secret = enrolled(house, house.new_user("ulla", "reader"))
    missing = ask(house)
    assert missing.status_code == 401
    assert "second factor" in missing.json()["error_msg"]
    answer = ask(house, code=now_code(house, secret))
    assert answer.status_code == 201
    assert answer.json()["token"]["methods"] == ["password", "totp"]


def test_a_token_from_a_token_remembers_the_second_factor(house: House) -> None:
    """With the time when the code was shown, and only where it was."""
    secret = enrolled(house, house.new_user("ulla", "reader"))
    shown_at = house.clock.now()
    first = ask(house, code=now_code(house, secret)).headers["X-Subject-Token"]
    house.clock.sleep(60)
    body = {"auth": {"identity": {"methods": ["token"], "token": {"id": first}}, "scope": {"project": {"name": "default"}}}}
    assert house.request("POST", "/v3/auth/tokens", json=body).status_code == 201
    house.token()
    with house.services.catalog.read() as conn:
        rows = conn.execute(sa.select(t.token.c.method, t.token.c.mfa_at).order_by(t.token.c.issued_at)).all()
    assert sorted(rows, key=str) == [("password", shown_at), ("password", None), ("token", shown_at)]


def test_a_code_is_taken_once_and_no_older_one_after_it(house: House) -> None:
    """Who looks over a shoulder can use nothing."""
    secret = enrolled(house, house.new_user("ulla", "reader"))
    older, code = now_code(house, secret, -1), now_code(house, secret)
    assert ask(house, code=code).status_code == 201
    for used in (code, older):
        refused = ask(house, code=used)
        assert refused.status_code == 401
        assert "used before" in refused.json()["error_msg"]
    house.clock.sleep(30)
    assert ask(house, code=now_code(house, secret)).status_code == 201


def test_a_code_is_taken_once_by_many_at_the_same_time(house: House) -> None:
    """Eight requests with one code, one token."""
    secret = enrolled(house, house.new_user("ulla", "reader"))
    services, code = house.services, now_code(house, secret)
    door = Door(services.catalog, house.clock, services.sealer, services.passwords)

    def enter(_: int) -> bool:
        try:
            door.by_password(Wanted(name="ulla"), PASSWORD, code, Asked(None, "", ""))
        except Unauthenticated:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(enter, range(4))) == 1


def test_the_code_that_confirmed_the_factor_is_used_up(house: House) -> None:
    """It was shown to somebody already."""
    user = house.new_user("ulla", "reader")
    services = house.services
    with services.catalog.write() as conn:
        secret = base64.b32decode(totp.enrol(conn, house.clock, services.sealer, user).secret)
    assert ask(house).status_code == 201  # not asked for before it is confirmed
    with services.catalog.write() as conn:
        totp.confirm(conn, house.clock, services.sealer, user, now_code(house, secret))
    assert ask(house, code=now_code(house, secret)).status_code == 401


def test_a_factor_is_not_replaced_or_confirmed_by_chance(house: House) -> None:
    """A confirmed one is removed first; a wrong code confirms nothing; nobody's has none."""
    services, user = house.services, house.new_user("ulla", "reader")
    with services.catalog.write() as conn, pytest.raises(CodeRefused, match="enrol"):
        totp.confirm(conn, house.clock, services.sealer, user, "123456")
    secret = enrolled(house, user)
    with services.catalog.write() as conn, pytest.raises(CodeRefused, match="remove"):
        totp.enrol(conn, house.clock, services.sealer, user)
    with services.catalog.write() as conn, pytest.raises(NotKnown):
        totp.enrol(conn, house.clock, services.sealer, "nobody")
    with services.catalog.write() as conn:
        totp.remove(conn, house.clock, user)
    assert ask(house).status_code == 201
    assert ask(house, code=now_code(house, secret)).status_code == 401


def test_the_secret_is_sealed_and_shown_in_no_answer(house: House) -> None:
    """Only an enrolment shows it."""
    user = house.new_user("ulla", "reader")
    secret = enrolled(house, user)
    with house.services.catalog.read() as conn:
        row = conn.execute(sa.select(t.user).where(t.user.c.id == user)).one()
    assert secret not in row.totp
    assert house.services.sealer.open(row.totp, "totp", user) == secret
    shown = house.request("GET", "/strongroom/v1/identity/users/ulla", headers=house.token())
    assert base64.b32encode(secret).decode() not in shown.text


@pytest.mark.parametrize(
    "identity",
    [
        {"methods": ["password", "totp"], "password": {"user": {"name": "ulla", "password": PASSWORD}}},
        {"methods": ["totp"], "totp": {"user": {"id": "x", "passcode": "123456"}}},
        {"methods": ["token", "totp"], "token": {"id": "x"}},
        {
            "methods": ["password", "totp"],
            "password": {"user": {"name": "ulla", "password": PASSWORD}},
            "totp": {"user": {"name": "otto", "passcode": "123456"}},
        },
    ],
    ids=str,
)
def test_a_second_factor_alone_or_of_another_user_is_400(house: House, identity: Any) -> None:
    """It goes beside a password, and is the same user's."""
    assert house.request("POST", "/v3/auth/tokens", json={"auth": {"identity": identity}}).status_code == 400


# --- rests -------------------------------------------------------------------------------------------------------------


def test_five_wrong_passwords_and_the_user_rests_for_five_minutes(house: House) -> None:
    """The right one is refused as well, with the same words, and the next process knows it: it is in the catalog."""
    house.new_user("ulla", "reader")
    wrong = [ask(house, password="guess").json() for _ in range(5)]
    assert ask(house).json() == wrong[0]
    house.clock.sleep(RESTS_FOR - 1)
    assert ask(house).status_code == 401
    house.clock.sleep(1)
    assert ask(house).status_code == 201


def test_wrong_codes_count_as_wrong_passwords_do(house: House) -> None:
    """A code has a million values: five tries in five minutes. A right entry in between starts anew."""
    secret = enrolled(house, house.new_user("ulla", "reader"))
    for _ in range(4):
        assert ask(house, code="000000" if now_code(house, secret) != "000000" else "111111").status_code == 401
    assert ask(house, code=now_code(house, secret)).status_code == 201
    house.clock.sleep(30)
    for _ in range(5):
        assert ask(house, code="000000" if now_code(house, secret) != "000000" else "111111").status_code == 401
    resting = ask(house, code=now_code(house, secret))
    assert resting.status_code == 401
    assert resting.json() == ask(house, password="guess", code="000000").json()


def test_a_password_that_the_administrator_sets_ends_the_rest(house: House) -> None:
    """Who asks for help gets it at once."""
    user = house.new_user("ulla", "reader")
    for _ in range(5):
        ask(house, password="guess")
    with house.services.catalog.write() as conn:
        accounts.set_password(conn, house.clock, user, house.services.passwords.hash("Another-word-8"))
    assert ask(house, password="Another-word-8").status_code == 201


def test_keys_and_tokens_of_a_resting_user_go_on_working(house: House) -> None:
    """A stranger's guesses lock nobody out of the service."""
    token = house.token()
    for _ in range(5):
        ask(house, password="guess", user="admin")
    assert ask(house, user="admin").status_code == 401
    assert house.request("GET", "/v3/projects", headers=token).status_code == 200


def test_guesses_at_the_same_time_are_no_more_tries(house: House) -> None:
    """Twelve wrong ones at once, and the right one rests."""
    house.new_user("ulla", "reader")
    services = house.services
    door = Door(services.catalog, house.clock, services.sealer, services.passwords)

    def guess(number: int) -> str:
        with pytest.raises(Unauthenticated) as refused:
            door.by_password(Wanted(name="ulla"), f"guess {number}", None, Asked(None, "", ""))
        return str(refused.value)

    with ThreadPoolExecutor(12) as pool:
        assert len(set(pool.map(guess, range(12)))) == 1
    assert ask(house).status_code == 401


# --- temporary credentials ---------------------------------------------------------------------------------------------


def lend(house: House, token: dict[str, str] | None, proof: dict[str, Any] | None = None, **more: Any) -> httpx.Response:
    identity = {"methods": ["token"], **({} if proof is None else {"token": proof}), **more}
    return house.request("POST", "/v3.0/OS-CREDENTIAL/securitytokens", headers=token, json={"auth": {"identity": identity}})


def test_temporary_credentials_last_fifteen_minutes_or_as_asked_but_not_longer_than_the_token(house: House) -> None:
    """By a token in the header or in the body."""
    house.new_user("ulla", "reader")
    token = house.token("ulla")
    made = lend(house, token)
    assert made.status_code == 201
    assert set(made.json()["credential"]) == {"access", "secret", "securitytoken", "expires_at"}
    assert made.json()["credential"]["expires_at"].startswith("2026-11-24T12:15:00")
    asked = lend(house, None, {"id": token["X-Auth-Token"], "duration_seconds": 3600})
    assert asked.json()["credential"]["expires_at"].startswith("2026-11-24T13:00:00")
    house.clock.sleep(23 * 3600 + 1800)
    late = lend(house, token, {"duration-seconds": 86400})
    assert late.json()["credential"]["expires_at"].startswith("2026-11-25T12:00:00")


@pytest.mark.parametrize(
    ("proof", "more", "status"),
    [({"duration_seconds": 899}, {}, 400), ({"duration_seconds": 86401}, {}, 400), (None, {"policy": {}}, 400),
     ({"id": "no-token"}, {}, 401), (None, {}, 401)],
)  # fmt: skip
def test_credentials_that_cannot_be_lent_are_refused(house: House, proof: Any, more: dict[str, Any], status: int) -> None:
    """Too short or long, restricted by a policy, without a token."""
    token = house.token() if status == 400 else None
    assert lend(house, token, proof, **more).status_code == status


def test_rows_of_temporary_keys_are_forgotten_after_their_end(house: House) -> None:
    """And no lasting key with them."""
    lend(house, house.token())
    with house.services.catalog.write() as conn:
        assert temporary.forget_expired(conn, house.clock.now()) == 0
        assert temporary.forget_expired(conn, house.clock.now() + 901) == 1
        assert conn.scalars(sa.select(t.access_key.c.id)).all() == [house.first.key.id]
