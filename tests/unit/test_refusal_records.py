"""What is refused to a known caller is in the audit trail, whatever the call."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.routing import APIRoute

from strongroom.api import identity as identity_border
from strongroom.api import refused, tokens
from strongroom.api.app import build_app
from strongroom.api.refusal_records import EVENTS, READS
from strongroom.backups.context import Context
from strongroom.identity import tables as t
from strongroom.identity.audit import check_chain
from strongroom.server import FAMILIES
from support.border import House, build_house

IDS = {"backup_id": "0" * 32 + "br02", "instance_id": "0" * 32 + "in12", "job_id": "0" * 8 + "-0000-4000-8000-" + "0" * 12}
ROUTERS = [*(family.router for family in FAMILIES if family is not refused), identity_border.router, *tokens.ROUTERS]
CHANGING = sorted(
    (method, route.path, route.endpoint.__name__)
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in route.methods
    if method != "GET"
)


@dataclass
class Guest:
    """An account with a user who may only read, and the header that says who asks."""

    house: House
    token: dict[str, str]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    house = build_house(tmp_path_factory.mktemp("house"))
    house.app = build_app(house.services, [family.router for family in FAMILIES], objects={Context: None})
    house.new_user("guest", "reader", house.project)
    return Guest(house, house.token("guest"))


def rows(house: House) -> list[Any]:
    with house.services.catalog.read() as conn:
        return list(conn.execute(sa.select(t.audit).where(t.audit.c.outcome == "REFUSED").order_by(t.audit.c.sequence)))


def test_every_call_that_changes_something_has_an_event() -> None:
    """Or is known to change nothing; and no event is of a call that there is not."""
    handlers = {handler for _, _, handler in CHANGING}
    assert handlers - EVENTS.keys() - READS - {"create_token"} == set()
    assert EVENTS.keys() - handlers == set()
    assert READS - handlers == set()


@pytest.mark.parametrize(("method", "path", "handler"), [one for one in CHANGING if one[2] in EVENTS])
def test_a_call_without_the_permission_leaves_a_record(guest: Guest, method: str, path: str, handler: str) -> None:
    """It names who, from where, what and why; a read without permission leaves none."""
    house, before = guest.house, len(rows(guest.house))
    given = {**IDS, "project_id": house.project}
    asked = re.sub(r"\{(\w+)\}", lambda found: given.get(found[1], "someone"), path)
    answer = house.request(method, asked, headers=guest.token, json={})
    assert answer.status_code == 403, answer.text
    event, kind, parameter = EVENTS[handler]
    (record,) = rows(house)[before:]
    assert (record.event, record.resource_type, record.user_name, record.source) == (event, kind, "guest", "192.0.2.7")
    assert record.resource_id == ({**given, "kind": "someone"}.get(parameter, "someone") if parameter else "")
    assert '"status": 403' in record.detail
    assert record.request_id == answer.headers["X-Request-Id"]
    with house.services.catalog.read() as conn:
        assert check_chain(conn, house.first.founded.account) is None


@pytest.mark.parametrize("scope", ["project", "account"])
def test_a_change_in_a_project_of_others_leaves_a_record_with_its_caller(guest: Guest, scope: str) -> None:
    """In the caller's own account, not in that of the others, who shall not be filled up by strangers."""
    house, before = guest.house, len(rows(guest.house))
    theirs, backup = "f" * 32, IDS["backup_id"]
    token = guest.token if scope == "project" else house.token("guest", scope={})
    answer = house.request("DELETE", f"/v3/{theirs}/backups/{backup}", headers=token)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DBS.200010")
    (record,) = rows(house)[before:]
    assert (record.event, record.user_name, record.resource_id, record.project) == ("NoSQLDeleteBackup", "guest", backup, None)
    assert record.account == house.first.founded.account
    assert f'"project": "{theirs}"' in record.detail
    assert house.request("GET", f"/v4/{theirs}/backups", headers=token).status_code == 400
    assert len(rows(house)) == before + 1  # a look leaves none
