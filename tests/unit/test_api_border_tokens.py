"""Identity's own calls: what Keystone's clients send, and what they need back."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from strongroom.api import tokens
from strongroom.identity import accounts
from strongroom.identity import tables as t
from strongroom.identity.audit import check_chain
from support.border import PASSWORD, House, build_house


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build_house(tmp_path)


def password(user: dict[str, Any], scope: Any = None) -> dict[str, Any]:
    auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": {"user": user}}}
    if scope is not None:
        auth["scope"] = scope
    return {"auth": auth}


def by_token(text: str, scope: Any) -> dict[str, Any]:
    return {"auth": {"identity": {"methods": ["token"], "token": {"id": text}}, "scope": scope}}


ADMIN = {"name": "admin", "password": PASSWORD, "domain": {"name": "strongroom"}}


def ask(house: House, body: Any, query: str = "") -> httpx.Response:
    return house.request("POST", f"/v3/auth/tokens{query}", json=body)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error_code"]


def test_a_token_for_a_project_by_name_or_id(house: House) -> None:
    """The body holds token.project.id, which Terraform needs, and who it is for."""
    for scope in ({"project": {"name": "default"}}, {"project": {"id": house.project}}):
        answer = ask(house, password(ADMIN, scope))
        assert answer.status_code == 201
        token = answer.json()["token"]
        assert token["project"]["id"] == house.project
        assert token["project"]["name"] == "default"
        assert token["user"]["name"] == "admin"
        assert token["user"]["domain"]["name"] == "strongroom"
        assert token["methods"] == ["password"]
        assert token["roles"]
        times = [datetime.fromisoformat(token[name]) for name in ("issued_at", "expires_at")]
        assert (times[1] - times[0]).total_seconds() == 24 * 3600
        assert house.request("GET", "/v3/projects", headers={"X-Auth-Token": answer.headers["X-Subject-Token"]}).is_success


def test_the_catalog_says_where_the_services_are_unless_it_is_not_wanted(house: House) -> None:
    """?nocatalog with any value drops it."""
    scope = {"project": {"id": house.project}}
    catalog = ask(house, password(ADMIN, scope)).json()["token"]["catalog"]
    urls = {entry["type"]: entry["endpoints"][0]["url"] for entry in catalog}
    assert urls == {"iam": "http://strongroom.test/v3", "nosql": f"http://strongroom.test/v3/{house.project}"}
    for query in ("?nocatalog=true", "?nocatalog="):
        assert "catalog" not in ask(house, password(ADMIN, scope), query).json()["token"]


@pytest.mark.parametrize("scope", [None, {}, {"domain": {"name": "strongroom"}}])
def test_a_token_for_the_account(house: House, scope: Any) -> None:
    """By domain, or without a scope."""
    token = ask(house, password(ADMIN, scope)).json()["token"]
    assert token["domain"]["name"] == "strongroom"
    assert "project" not in token


def test_a_user_by_id_needs_no_domain(house: House) -> None:
    """Ids are unique."""
    assert ask(house, password({"id": house.first.founded.user, "password": PASSWORD})).status_code == 201


@pytest.mark.parametrize(
    "user",
    [
        {**ADMIN, "password": "guess"},
        {**ADMIN, "name": "nobody"},
        {**ADMIN, "domain": {"name": "other"}},
        {**ADMIN, "domain": {"id": "other"}},
        {**ADMIN, "password": ""},
        {"id": "nobody", "password": PASSWORD},
    ],
    ids=str,
)
def test_a_wrong_name_or_password_is_refused_without_saying_which(house: House, user: dict[str, Any]) -> None:
    """One message for all."""
    answer = ask(house, password(user))
    assert code(answer) == (401, "APIGW.0301")
    assert answer.json()["error_msg"].endswith("is wrong, or the user rests after five wrong ones in a row")


def test_a_name_that_two_accounts_have_needs_its_domain(house: House) -> None:
    """Nobody is picked by chance."""
    with house.services.catalog.write() as conn:
        accounts.found(conn, house.clock, "other", "theirs", "admin", house.services.passwords.hash(PASSWORD))
    assert ask(house, password({"name": "admin", "password": PASSWORD})).status_code == 401
    assert ask(house, password(ADMIN)).status_code == 201


def test_a_disabled_user_gets_no_token(house: House) -> None:
    """With the right password."""
    user = house.new_user("ulla", "reader")
    with house.services.catalog.write() as conn:
        accounts.set_enabled(conn, house.clock, user, False)
    assert house.login("ulla").status_code == 401


@pytest.mark.parametrize("scope", [{"project": {"name": "theirs"}}, {"project": {"id": "0" * 32}}, {"domain": {"name": "other"}}])
def test_a_scope_that_is_not_the_users_is_refused(house: House, scope: Any) -> None:
    """Another account's, or none's."""
    with house.services.catalog.write() as conn:
        accounts.found(conn, house.clock, "other", "theirs", "boss", None)
    assert code(ask(house, password(ADMIN, scope))) == (401, "APIGW.0301")


def test_a_user_without_a_policy_in_a_project_gets_no_token_for_it(house: House) -> None:
    """But one for the account."""
    house.new_user("ulla", None)
    assert house.login("ulla").status_code == 401
    assert house.login("ulla", scope={}).status_code == 201


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"auth": {"identity": {"methods": []}}},
        {"auth": {"identity": {"methods": ["totp"]}}},
        {"auth": {"identity": {"methods": ["password"]}}},
        {"auth": {"identity": {"methods": ["token"]}}},
        {"auth": {"identity": {"methods": ["password", "token"]}}},
        password({"password": PASSWORD}),
        password({"name": "admin"}),
        password(ADMIN, {"project": {}}),
    ],
    ids=str,
)
def test_a_request_that_is_not_understood_is_400(house: House, body: Any) -> None:
    """And says nothing of a password."""
    answer = ask(house, body)
    assert code(answer) == (400, "DBS.200001")
    assert PASSWORD not in answer.text


@pytest.mark.parametrize("half", [b"\xed\xa0\x80", b"\\ud800"], ids=["raw", "escaped"])
def test_half_a_character_is_nobodys_password(house: House, half: bytes) -> None:
    """And no fault of ours, for a caller whom nobody knows."""
    content = json.dumps(password({"name": "admin", "domain": {"name": "strongroom"}, "password": "@"})).encode()
    headers = {"Content-Type": "application/json"}
    answer = house.request("POST", "/v3/auth/tokens", content=content.replace(b"@", half), headers=headers)
    assert code(answer) == (400, "DBS.200001")


def test_a_token_from_a_token_ends_with_it(house: House) -> None:
    """Terraform's `token` argument; its scope may be another."""
    first = house.login(scope={})
    house.clock.sleep(3600)
    answer = ask(house, by_token(first.headers["X-Subject-Token"], {"project": {"id": house.project}}))
    assert answer.status_code == 201
    assert answer.json()["token"]["expires_at"] == first.json()["token"]["expires_at"]
    assert answer.json()["token"]["methods"] == ["token"]
    assert answer.json()["token"]["project"]["id"] == house.project


def test_a_dead_token_makes_no_token(house: House) -> None:
    """Expired."""
    text = house.token()["X-Auth-Token"]
    house.clock.sleep(24 * 3600)
    assert code(ask(house, by_token(text, {}))) == (401, "APIGW.0301")


def test_a_token_can_be_shown_and_revoked_by_its_user_and_by_the_administrator(house: House) -> None:
    """And by nobody else; what is not one's business is not found."""
    house.new_user("ulla", "reader")
    house.new_user("otto", "administrator")
    admin, ulla, otto = house.token(), house.token("ulla"), house.token("otto")

    def subject(of: dict[str, str]) -> dict[str, str]:
        return {"X-Subject-Token": of["X-Auth-Token"]}

    for caller in (ulla, admin):
        shown = house.request("GET", "/v3/auth/tokens", headers=caller | subject(ulla))
        assert shown.json()["token"]["user"]["name"] == "ulla"
        assert shown.json()["token"]["project"]["id"] == house.project
    for method in ("GET", "DELETE"):
        assert code(house.request(method, "/v3/auth/tokens", headers=otto | subject(ulla))) == (404, "IAM.0004")
        assert code(house.request(method, "/v3/auth/tokens", headers=admin | {"X-Subject-Token": "x"})) == (404, "IAM.0004")
        assert code(house.request(method, "/v3/auth/tokens", headers=admin)) == (400, "DBS.200001")
    for caller, of in ((ulla, ulla), (admin, otto)):
        answer = house.request("DELETE", "/v3/auth/tokens", headers=caller | subject(of))
        assert (answer.status_code, answer.content) == (204, b"")
        assert code(house.request("GET", "/v3/auth/projects", headers=of)) == (401, "APIGW.0301")


def test_lists_hold_what_terraform_looks_for(house: House) -> None:
    """Projects by name, the account, the user by name; items are a list even when nothing fits."""
    token = house.token()

    def items(path: str, kind: str) -> list[str]:
        return [item["name"] for item in house.request("GET", path, headers=token).json()[kind]]

    assert items("/v3/projects", "projects") == items("/v3/projects?name=default", "projects") == ["default"]
    assert items("/v3/auth/projects", "projects") == ["default"]
    assert items("/v3/projects?name=none", "projects") == []
    assert items("/v3/auth/domains", "domains") == ["strongroom"]
    assert items("/v3/users?name=admin", "users") == ["admin"]
    assert items("/v3/users?name=none", "users") == []


def test_only_the_administrator_sees_the_other_users(house: House) -> None:
    """Others see themselves."""
    house.new_user("ulla", "reader")

    def names(of: str) -> list[str]:
        return [user["name"] for user in house.request("GET", "/v3/users", headers=house.token(of)).json()["users"]]

    assert names("admin") == ["admin", "ulla"]
    assert names("ulla") == ["ulla"]


def test_making_and_revoking_tokens_is_in_the_audit_trail(house: House) -> None:
    """With who and from where, and without the token."""
    token = house.token()
    house.request("DELETE", "/v3/auth/tokens", headers=token | {"X-Subject-Token": token["X-Auth-Token"]})
    with house.services.catalog.read() as conn:
        rows = conn.execute(sa.select(t.audit).order_by(t.audit.c.sequence)).all()
        assert check_chain(conn, house.first.founded.account) is None
    assert [(row.event, row.user_name, row.source) for row in rows] == [
        ("createToken", "admin", "192.0.2.7"),
        ("deleteToken", "admin", "192.0.2.7"),
    ]
    assert token["X-Auth-Token"] not in str(rows)


def test_a_wrong_password_of_a_known_user_is_in_the_audit_trail(house: House) -> None:
    """As refused, and so is the right one for a scope that is not the user's; a name that nobody has belongs to no account and
    leaves no row."""
    house.login(password="guess")
    house.login("nobody")
    house.login(scope={"project": {"id": "f" * 32}})
    with house.services.catalog.read() as conn:
        rows = conn.execute(sa.select(t.audit.c.event, t.audit.c.outcome, t.audit.c.user_name)).all()
    assert rows == [("createToken", "REFUSED", "admin")] * 2


def test_passwords_that_are_checked_at_once_leave_threads_for_everybody_else(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many addresses send them: one more is told to come back, and nobody is when they are done."""
    go, entered = threading.Event(), threading.Semaphore(0)

    def slow(*_: object) -> bool:
        entered.release()
        return go.wait(20)

    monkeypatch.setattr(type(house.services.passwords), "holds", slow)
    with ThreadPoolExecutor(tokens.PASSWORDS_AT_ONCE) as pool:
        waiting = [pool.submit(house.login) for _ in range(tokens.PASSWORDS_AT_ONCE)]
        assert all(entered.acquire(timeout=20) for _ in waiting)
        refused = house.login()
        go.set()
        assert {one.result().status_code for one in waiting} == {201}
    assert (refused.status_code, refused.json()["error_code"], refused.headers["Retry-After"]) == (429, "DBS.280443", "1")
    assert house.login().status_code == 201
