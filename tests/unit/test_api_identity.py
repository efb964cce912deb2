"""Managing identity over the API: only the administrator does, and what was taken away is gone at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import sqlalchemy as sa

from strongroom.api.authentication import authenticated_router, may
from strongroom.identity import accounts
from strongroom.identity import tables as t
from strongroom.identity.audit import check_chain
from strongroom.identity.principal import Principal
from support.border import PASSWORD, House, build_house

DELETE = "gaussdbfornosql:instance:deleteBackup"
BASE = "/strongroom/v1/identity"
router = authenticated_router("tests")


@router.delete("/v3/{project_id}/things")
def delete_things(caller: Annotated[Principal, may(DELETE)]) -> dict[str, bool]:
    return {"deleted": True}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build_house(tmp_path, [router])


class Administrator:
    """Asks as the account's administrator."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._token = house.token()

    def __call__(self, method: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
        answer = self._house.request(method, BASE + path, headers=self._token, json=body, **more)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None


@pytest.fixture
def administrator(house: House) -> Administrator:
    return Administrator(house)


def delete(house: House, token: dict[str, str]) -> httpx.Response:
    return house.request("DELETE", f"/v3/{house.project}/things", headers=token)


def document(*statements: dict[str, Any]) -> dict[str, str]:
    return {"document": json.dumps({"Version": "5.0", "Statement": list(statements)})}


def test_a_user_is_made_granted_and_removed(house: House, administrator: Administrator) -> None:
    """By name or id; a removed user is nobody, in every table."""
    made = administrator("POST", "/users", {"name": "ulla", "password": PASSWORD}, 201)
    assert house.login("ulla").status_code == 401
    administrator("PUT", "/users/ulla/grants", {"policy": "administrator", "project": "default"}, 204)
    token = house.token("ulla")
    assert delete(house, token).status_code == 200
    key = administrator("POST", f"/users/{made['id']}/keys", None, 201)
    administrator("POST", "/groups", {"name": "ops"}, 201)
    administrator("PUT", "/groups/ops/members/ulla", None, 204)
    shown = administrator("GET", f"/users/{made['id']}")
    assert shown["grants"] == [{"policy": "administrator", "project": "default"}]
    assert (shown["groups"], [one["access_key"] for one in shown["keys"]]) == (["ops"], [key["access_key"]])
    assert key["secret_key"] not in json.dumps(shown)
    administrator("DELETE", "/users/ulla", None, 204)
    assert delete(house, token).status_code == 401
    administrator("GET", "/users/ulla", None, 404)
    with house.services.catalog.read() as conn:
        for column in (t.token.c.user, t.access_key.c.user, t.membership.c.user, t.policy_grant.c.holder):
            assert made["id"] not in conn.scalars(sa.select(column)).all()


def test_a_group_gives_its_members_what_it_has(house: House, administrator: Administrator) -> None:
    """In its project; who leaves, or whose group goes or loses it, has it no more."""
    house.new_user("ulla", None)
    house.new_user("otto", None)
    administrator("POST", "/groups", {"name": "ops"}, 201)
    administrator("PUT", "/groups/ops/grants", {"policy": "administrator", "project": house.project}, 204)
    for name in ("ulla", "otto"):
        administrator("PUT", f"/groups/ops/members/{name}", None, 204)
        assert delete(house, house.token(name)).status_code == 200
    administrator("DELETE", "/groups/ops/members/ulla", None, 204)
    assert house.login("ulla").status_code == 401
    assert administrator("GET", "/groups/ops")["members"] == ["otto"]
    administrator("DELETE", "/groups/ops", None, 204)
    assert house.login("otto").status_code == 401
    assert administrator("GET", "/groups") == {"groups": []}


LOSSES: dict[str, Callable[[Administrator, str], Any]] = {
    "the user is disabled": lambda ask, _: ask("PUT", "/users/ulla", {"enabled": False}),
    "the user is removed": lambda ask, _: ask("DELETE", "/users/ulla", None, 204),
    "the password is changed": lambda ask, _: ask("PUT", "/users/ulla", {"password": "Another-word-8"}),
    "a policy is taken": lambda ask, _: ask("DELETE", "/users/ulla/grants", None, 204, params={"policy": "mine"}),
    "the policy is changed": lambda ask, _: ask("PUT", "/policies/mine", document({"Effect": "Deny", "Action": "*"})),
    "the policy is removed": lambda ask, _: ask("DELETE", "/policies/mine", None, 204),
    "the group loses a policy": lambda ask, _: ask("DELETE", "/groups/ops/grants", None, 204, params={"policy": "shared"}),
    "the group's policy is changed": lambda ask, _: ask("PUT", "/policies/shared", document({"Effect": "Deny", "Action": "*"})),
    "the group goes": lambda ask, _: ask("DELETE", "/groups/ops", None, 204),
    "the user leaves a group": lambda ask, _: ask("DELETE", "/groups/ops/members/ulla", None, 204),
    "a key is disabled": lambda ask, key: ask("PUT", f"/keys/{key}", {"enabled": False}),
    "a key is removed": lambda ask, key: ask("DELETE", f"/keys/{key}", None, 204),
    "a second factor is enrolled": lambda ask, _: ask("POST", "/users/ulla/totp", None, 201),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_tokens_and_temporary_keys_die_at_once_with_what_their_user_lost(
    house: House, administrator: Administrator, loss: str
) -> None:
    """The very next request is refused."""
    house.new_user("ulla", None)
    allow = document({"Effect": "Allow", "Action": "*"})
    for name in ("mine", "shared"):
        administrator("PUT", f"/policies/{name}", allow)
    administrator("POST", "/groups", {"name": "ops"}, 201)
    administrator("PUT", "/groups/ops/members/ulla", None, 204)
    administrator("PUT", "/groups/ops/grants", {"policy": "shared"}, 204)
    administrator("PUT", "/users/ulla/grants", {"policy": "mine"}, 204)
    key = administrator("POST", "/users/ulla/keys", None, 201)["access_key"]
    token = house.token("ulla")
    assert delete(house, token).status_code == 200
    LOSSES[loss](administrator, key)
    assert delete(house, token).status_code == 401


def test_an_account_keeps_an_enabled_administrator(house: House, administrator: Administrator) -> None:
    """The last one cannot be disabled, demoted or removed; with a second one there it can."""
    for method, body in (("PUT", {"enabled": False}), ("PUT", {"administrator": False}), ("DELETE", None)):
        refused = administrator(method, "/users/admin", body, 403)
        assert "administrator" in refused["error_msg"]
    administrator("POST", "/users", {"name": "second", "password": PASSWORD, "administrator": True}, 201)
    administrator("PUT", "/users/admin", {"administrator": False})
    assert house.request("GET", f"{BASE}/users", headers=house.token("second")).status_code == 200


CALLS = [
    ("GET", "/users", None), ("POST", "/users", {"name": "x1"}), ("GET", "/users/admin", None),
    ("PUT", "/users/admin", {"enabled": False}), ("DELETE", "/users/admin", None), ("POST", "/users/admin/keys", None),
    ("POST", "/users/admin/totp", None), ("PUT", "/users/admin/totp", {"passcode": "123456"}),
    ("DELETE", "/users/admin/totp", None),
    ("PUT", "/users/ulla/grants", {"policy": "administrator"}), ("DELETE", "/users/admin/grants?policy=reader", None),
    ("GET", "/groups", None), ("POST", "/groups", {"name": "x1"}), ("GET", "/groups/ops", None), ("DELETE", "/groups/ops", None),
    ("PUT", "/groups/ops/members/ulla", None), ("DELETE", "/groups/ops/members/ulla", None), ("GET", "/policies", None),
    ("GET", "/policies/reader", None), ("PUT", "/policies/x1", {"document": "{}"}), ("DELETE", "/policies/mine", None),
    ("PUT", "/keys/KEY", {"enabled": False}), ("DELETE", "/keys/KEY", None), ("GET", "/projects", None),
    ("POST", "/projects", {"name": "x1"}), ("POST", "/simulations", {"user": "admin", "action": DELETE}),
]  # fmt: skip


def test_nobody_but_the_administrator_manages_identity(house: House) -> None:
    """Not even with a policy that allows everything: who could grant could grant himself everything."""
    house.new_user("ulla", "administrator")
    headers = house.token("ulla")
    for method, path, body in CALLS:
        answer = house.request(method, BASE + path.replace("KEY", house.first.key.id), headers=headers, json=body)
        assert (answer.status_code, answer.json()["error_code"]) == (403, "DBS.280032"), path
        assert house.request(method, BASE + path, json=body).status_code == 401


def test_another_accounts_things_are_not_there(house: House) -> None:
    """Its administrator finds none of ours by name or id, and changes none."""
    services, ours = house.services, house.first.founded
    with services.catalog.write() as conn:
        accounts.put_policy(conn, house.clock, ours.account, "mine", document({"Effect": "Allow", "Action": "*"})["document"])
        accounts.create_group(conn, house.clock, ours.account, "ops")
        accounts.create_user(conn, house.clock, ours.account, "ulla", None)
        accounts.found(conn, house.clock, "other", "theirs", "boss", services.passwords.hash(PASSWORD))
        rows = {table.name: conn.execute(sa.select(table)).all() for table in (t.user, t.group, t.policy, t.access_key)}
    login = {"user": {"name": "boss", "password": PASSWORD, "domain": {"name": "other"}}}
    made = house.request("POST", "/v3/auth/tokens", json={"auth": {"identity": {"methods": ["password"], "password": login}}})
    headers = {"X-Auth-Token": made.headers["X-Subject-Token"]}
    for method, path, body in CALLS:
        if path in ("/users", "/groups", "/policies", "/projects", "/policies/reader", "/policies/x1"):
            continue  # what the account has itself, or makes
        answer = house.request(method, BASE + path.replace("KEY", house.first.key.id), headers=headers, json=body)
        assert answer.status_code == 404, (method, path)
    with services.catalog.read() as conn:
        for table in (t.user, t.group, t.policy, t.access_key):
            assert set(rows[table.name]) <= set(conn.execute(sa.select(table)).all())


def test_a_simulation_names_the_statement_and_whose_policy_it_is(house: House, administrator: Administrator) -> None:
    """Allowed by a group's policy; denied by a tried document; by nothing; and the administrator in any case."""
    house.new_user("ulla", None)
    condition = {"Bool": {"g:MFAPresent": "true"}}
    allow = {"Sid": "DeleteWithCode", "Effect": "Allow", "Action": "nosql:backup:delete", "Condition": condition}
    administrator("PUT", "/policies/careful", document({"Effect": "Allow", "Action": "nosql:backup:list"}, allow))
    administrator("POST", "/groups", {"name": "ops"}, 201)
    administrator("PUT", "/groups/ops/grants", {"policy": "careful", "project": "default"}, 204)
    administrator("PUT", "/groups/ops/members/ulla", None, 204)
    question: dict[str, Any] = {"user": "ulla", "action": "nosql:backup:delete", "project": "default"}
    assert not administrator("POST", "/simulations", question)["allowed"]
    found = administrator("POST", "/simulations", question | {"context": {"g:MFAPresent": "true"}})
    assert (found["allowed"], found["action"]) == (True, DELETE)
    assert (found["policy"], found["statement"], found["sid"], found["group"]) == ("careful", 2, "DeleteWithCode", "ops")
    denial = document({"Effect": "Deny", "Action": "*"})["document"]
    denied = administrator("POST", "/simulations", question | {"context": {"g:MFAPresent": "true"}, "documents": [denial]})
    assert (denied["allowed"], denied["policy"], denied["statement"]) == (False, "document 1", 1)
    elsewhere = administrator("POST", "/simulations", question | {"project": None})
    assert (elsewhere["allowed"], elsewhere["policy"]) == (False, None)
    assert administrator("POST", "/simulations", {"user": "admin", "action": DELETE, "documents": [denial]})["allowed"]


@pytest.mark.parametrize(
    ("change", "status"),
    [({"action": "nosql:no:such"}, 400), ({"action": "nosql:instance:list"}, 400), ({"project": "nowhere"}, 404),
     ({"user": "nobody"}, 404), ({"context": {"g:Nickname": "x"}}, 400), ({"documents": ["{}"]}, 400)],
)  # fmt: skip
def test_a_simulation_of_what_is_not_there_is_refused(
    house: House, administrator: Administrator, change: dict[str, Any], status: int
) -> None:
    """An alias of several actions is no single one."""
    administrator("POST", "/simulations", {"user": "admin", "action": DELETE} | change, status)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/users", {"name": "ulla", "password": "short"}),
        ("POST", "/users", {"name": "a b"}),
        ("POST", "/users", {"name": "admin"}),
        ("PUT", "/policies/mine", {"document": "{}"}),
        ("PUT", "/policies/reader", document({"Effect": "Allow", "Action": "*"})),
        ("PUT", "/users/admin/totp", {"passcode": "123456"}),
    ],
)
def test_what_does_not_fit_is_400_and_changes_nothing(
    house: House, administrator: Administrator, method: str, path: str, body: Any
) -> None:
    """Weak passwords, strange or taken names, documents that are not understood, codes without a factor."""
    with house.services.catalog.read() as conn:
        before = conn.execute(sa.select(t.user)).all(), conn.execute(sa.select(t.policy)).all()
    administrator(method, path, body, 400)
    with house.services.catalog.read() as conn:
        assert (conn.execute(sa.select(t.user)).all(), conn.execute(sa.select(t.policy)).all()) == before


def test_every_change_is_in_the_audit_trail_without_a_secret(house: House, administrator: Administrator) -> None:
    """With its event's name, and the chain holds."""
    administrator("POST", "/users", {"name": "ulla", "password": "Another-word-8"}, 201)
    secret = administrator("POST", "/users/ulla/keys", None, 201)["secret_key"]
    code = administrator("POST", "/users/ulla/totp", None, 201)["secret"]
    administrator("PUT", "/users/ulla", {"password": "Another-word-9", "enabled": True})
    administrator("PUT", "/users/ulla/grants", {"policy": "reader"}, 204)
    administrator("DELETE", "/users/ulla", None, 204)
    with house.services.catalog.read() as conn:
        rows = conn.execute(sa.select(t.audit).order_by(t.audit.c.sequence)).all()
        assert check_chain(conn, house.first.founded.account) is None
    assert [row.event for row in rows] == [
        "createToken", "createUser", "createCredential", "createMFADevice", "updateUser", "grantPolicy", "deleteUser",
    ]  # fmt: skip
    for word in ("Another-word-8", "Another-word-9", secret, code):
        assert word not in str(rows)
