"""docs/reference/sdk-calls.md against the SDK's client and against what the server routes: no call is missing, none is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.routing import Match

from strongroom.api import refused, versions
from strongroom.server import FAMILIES
from support import sdk_calls
from support.border import House, build_house

ROUTERS = [family.router for family in FAMILIES if family is not refused]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build_house(tmp_path, [*ROUTERS, refused.router])


def served() -> set[tuple[str, str]]:
    """Method and path of everything that has a handler of its own."""
    found = {(method, route.path) for router in ROUTERS for route in router.routes for method in route.methods}
    return found | {("GET", "/"), ("GET", "/{version}")} | {(m, r.path) for r in versions.router.routes for m in r.methods}


def test_the_page_has_every_call_of_the_client() -> None:
    """And none more, each with the client's method and path."""
    told = sdk_calls.told()
    assert {name: (one.method, one.path) for name, one in told.items()} == {
        name: (one.method, one.path) for name, one in sdk_calls.calls().items()
    }


def test_what_the_page_says_is_what_the_server_has() -> None:
    """Works or partly: a handler; partly says what is missing; refused: a refusal, whose reason stands on the page."""
    page = re.sub(r"\s+", " ", sdk_calls.PAGE.read_text("utf-8")).lower()
    for name, one in sdk_calls.told().items():
        place = (one.method, one.path)
        assert (place in served()) is (one.outcome != "refused"), name
        assert (place in refused.REFUSED) is (one.outcome == "refused"), name
        assert one.outcome != "partly" or one.words, name
        assert one.outcome != "refused" or refused.REFUSED[place].lower() in page, name


def test_nothing_is_refused_that_is_served() -> None:
    """Nor is anything refused that the client does not call."""
    assert not refused.REFUSED.keys() & served()
    assert refused.REFUSED.keys() <= {(one.method, one.path) for one in sdk_calls.calls().values()}


def test_every_refused_call_has_words_and_a_code(house: House) -> None:
    """For a caller who is known; whatever stands in the path and whatever the body is. Nobody else learns even that."""
    token = house.token()
    for (method, form), reason in refused.REFUSED.items():
        path = form.replace("{project_id}", house.project)
        path = re.sub(r"\{\w+\}", "never-was", path)
        for more in ({}, {"content": b"not json", "headers": {**token, "Content-Type": "application/json"}}):
            answer = house.request(method, path, **{"headers": token, **more})
            expected = (404, "DBS.280016") if method == "GET" else (400, "DBS.212003")
            assert (answer.status_code, answer.json()["error_code"]) == expected, (method, path, answer.text)
            assert reason in answer.json()["error_msg"]
        assert house.request(method, path).status_code == 401
        other = house.request(method, form.replace("{project_id}", "0" * 32), headers=token)
        assert other.json()["error_code"] == "DBS.200010"


def test_no_refusal_hides_a_call_that_works() -> None:
    """The first route that fits a call that works is its own, not a refused path with a parameter."""
    routes = [route for router in (*ROUTERS, refused.router, versions.router) for route in router.routes]
    for one in sdk_calls.told().values():
        if one.outcome != "refused":
            scope = {
                "type": "http",
                "root_path": "",
                "method": one.method,
                "path": re.sub(r"\{\w+\}", "x", one.path),
                "headers": [],
            }
            assert next(route.path for route in routes if route.matches(scope)[0] is Match.FULL) == one.path


def test_the_document_tells_all_of_a_path_that_it_tells_of(house: House) -> None:
    """A refusal beside a call that works is told; refusals alone would be a hundred calls that nobody can use."""
    paths = house.request("GET", "/openapi.json").json()["paths"]
    shown = {(method.upper(), path) for path, item in paths.items() for method in item}
    assert {place for place in refused.REFUSED if place[1] in {path for _, path in served()}} == refused.REFUSED.keys() & shown
