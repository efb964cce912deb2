"""Every refusal has the contract's form, and our own faults leak nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Query
from pydantic import BaseModel

from strongroom.api.authentication import Caller, authenticated_router, public_router
from strongroom.api.contract import BackupName, DatastoreType, Description, InstanceId, JobPage, NumberedPage, RowPage
from strongroom.api.services import Limits, Rate
from support.border import PASSWORD, House, build_house

router = public_router("tests")
private = authenticated_router("tests")


class Create(BaseModel):
    name: BackupName
    description: Description = ""
    count: int = 0


@router.post("/create")
def create(body: Create) -> dict[str, Any]:
    return body.model_dump()


@router.get("/rows")
def rows(page: Annotated[RowPage, Query()], datastore_type: DatastoreType | None = None) -> dict[str, int]:
    return {"first": page.first_row, "limit": page.limit}


@router.get("/numbered")
def numbered(page: Annotated[NumberedPage, Query()]) -> dict[str, int]:
    return {"first": page.first_row, "limit": page.limit}


@router.get("/jobs")
def jobs(page: Annotated[JobPage, Query()]) -> dict[str, int]:
    return {"first": page.first_row, "limit": page.limit}


@router.get("/instances/{instance_id}")
def instance(instance_id: InstanceId) -> str:
    return instance_id


@router.get("/echo/{word}")
def echo(word: str) -> str:
    return word


@router.get("/broken")
def broken() -> None:
    raise RuntimeError("the secret is swordfish")


@private.get("/mine")
def mine(caller: Caller) -> str:
    return caller.user_name


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build_house(tmp_path, [router, private])


def code(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/json"
    assert len(answer.headers["X-Request-Id"]) == 32
    body = answer.json()
    assert set(body) == {"error_code", "error_msg"}
    assert body["error_msg"]
    return answer.status_code, body["error_code"]


@pytest.mark.parametrize("path", ["/no/such", "/v5", "/rows/", "/rows//", "/%72ows/x"])
def test_an_unknown_path_is_404_and_never_a_redirect(house: House, path: str) -> None:
    """Below 400 everything is success to clients."""
    assert code(house.request("GET", path)) == (404, "APIGW.0101")


@pytest.mark.parametrize(("sent", "meant"), [("a%2Fb%20c", "a/b c"), ("a%252Fb", "a%2Fb"), ("%E6%97%A5+", "日+"), ("a%", "a%")])
def test_a_path_parameter_arrives_as_it_was_meant(house: House, sent: str, meant: str) -> None:
    """Decoded once, and its slashes are no steps of the path."""
    assert house.request("GET", f"/echo/{sent}").json() == meant


def test_a_wrong_method_is_405_and_says_which_there_are(house: House) -> None:
    """With the Allow header."""
    answer = house.request("PUT", "/rows")
    assert code(answer) == (405, "APIGW.0101")
    assert answer.headers["Allow"] == "GET"


def test_the_allow_header_has_what_all_routes_of_the_path_take(house: House) -> None:
    """Not only what the first of them takes."""
    assert house.request("PATCH", "/v3/auth/tokens").headers["Allow"] == "GET, POST, DELETE"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"no json",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"text"',
        b"1" * 5000,
        b"[" * 100_000,
        b'{"name": NaN}',
        b'{"name": "\\ud800xyz"}',
        b'{"name": "nightly", "description": "\xed\xa0\x80"}',
        '{"name": "nightly"}'.encode("utf-16"),
        '{"name": "nightly", "description": "\\u0000"}'.encode("utf-16"),
    ],
)
def test_a_body_that_is_not_the_json_that_the_call_takes_is_400(house: House, content: bytes) -> None:
    """Empty, cut, not UTF-8 (other codings hide half characters and NULs), not an object, too deep, with a half character."""
    answer = house.request("POST", "/create", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert code(answer)[1].startswith("DBS.2")


def test_a_body_without_the_json_content_type_is_400(house: House) -> None:
    """A form of a web page cannot make a call."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = house.request("POST", "/create", content=b'{"name": "nightly"}', headers={"Content-Type": kind})
        assert code(answer) == (400, "DBS.200001")
        assert "Content-Type" in answer.json()["error_msg"]  # what `curl -d` sends unless told otherwise


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"name": "abc"}, "DBS.280277"),
        ({"name": "1abc"}, "DBS.280277"),
        ({"name": "nightly\n"}, "DBS.280277"),
        ({"name": "n" * 65}, "DBS.280277"),
        ({"name": 5}, "DBS.280277"),
        ({}, "DBS.200001"),
        ({"name": "nightly", "description": "a<b"}, "DBS.280127"),
        ({"name": "nightly", "description": "x" * 257}, "DBS.280127"),
        ({"name": "nightly", "count": "many"}, "DBS.200001"),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_has_its_own_code(house: House, body: dict[str, Any], expected: str) -> None:
    """The contract's code for that field, else the general one."""
    assert code(house.request("POST", "/create", json=body)) == (400, expected)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/rows?limit=0", "DBS.280439"), ("/rows?limit=101", "DBS.280439"), ("/rows?limit=ten", "DBS.280439"),
        ("/rows?limit=", "DBS.280439"), ("/rows?offset=-1", "DBS.280440"), ("/rows?offset=1e3", "DBS.280440"),
        ("/rows?offset=99999999999999999999", "DBS.280440"), ("/rows?datastore_type=oracle", "DBS.280235"),
        ("/numbered?offset=0&limit=10", "DBS.280440"), ("/numbered", "DBS.200001"),
        ("/jobs?limit=30", "DBS.280439"), ("/instances/5b0ae36c", "DBS.280404"),
    ],
)  # fmt: skip
def test_a_parameter_that_does_not_fit_has_its_own_code(house: House, path: str, expected: str) -> None:
    """Paging and filters."""
    assert code(house.request("GET", path)) == (400, expected)


def test_pages_are_counted_as_each_list_counts_them(house: House) -> None:
    """Rows from 0, page numbers from 1, and the defaults."""
    found = {path: house.request("GET", path).json() for path in ("/rows", "/rows?offset=7&limit=5&other=1", "/jobs")}
    assert list(found.values()) == [{"first": 0, "limit": 100}, {"first": 7, "limit": 5}, {"first": 0, "limit": 50}]
    assert house.request("GET", "/numbered?offset=3&limit=10").json() == {"first": 20, "limit": 10}


def test_our_own_fault_says_nothing_and_is_in_the_log_under_the_requests_id(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """500 DBS.280005."""
    answer = house.request("GET", "/broken")
    assert code(answer) == (500, "DBS.280005")
    assert "swordfish" not in answer.text
    record = next(record for record in caplog.records if record.exc_info)
    assert answer.headers["X-Request-Id"] in record.getMessage()


def test_the_log_has_a_line_per_request_and_no_credentials(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Neither password nor token, nor a query; but who asked for what, with which answer."""
    caplog.set_level(logging.INFO, "strongroom.api")
    token = house.token()
    house.request("GET", "/mine?password=swordfish", headers=token)
    text = caplog.text
    assert PASSWORD not in text
    assert token["X-Auth-Token"] not in text
    assert "swordfish" not in text
    assert "GET /mine 200" in text
    assert f"user={house.first.founded.user} from=192.0.2.7" in text


def test_the_log_cannot_be_forged_through_a_path(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """A newline in a path stays encoded."""
    caplog.set_level(logging.INFO, "strongroom.api")
    house.request("GET", "/x%0AGET%20/forged")
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    """Body (announced or not), path, headers."""
    house = build_house(tmp_path, [router], Limits(body_bytes=1000, path_bytes=500, header_bytes=2000, headers=20))

    async def chunks() -> Any:
        for _ in range(11):
            yield b"x" * 100

    json_type = {"Content-Type": "application/json"}
    fits = json.dumps({"name": "nightly"}).ljust(1000).encode()
    assert house.request("POST", "/create", content=fits, headers=json_type).status_code == 200
    assert code(house.request("POST", "/create", content=fits + b" ", headers=json_type)) == (413, "APIGW.0201")
    assert code(house.request("POST", "/create", content=chunks(), headers=json_type)) == (413, "APIGW.0201")
    assert code(house.request("GET", "/rows?x=" + "y" * 500)) == (414, "APIGW.0201")
    assert code(house.request("GET", "/rows", headers={"X-Large": "y" * 2000})) == (431, "APIGW.0201")
    assert code(house.request("GET", "/rows", headers={f"X-{n}": "y" for n in range(20)})) == (431, "APIGW.0201")


def test_who_asks_too_fast_is_told_when_to_come_back(tmp_path: Path) -> None:
    """429 with Retry-After, then it goes on; the reason is in error_msg, which is all that the SDK shows."""
    house = build_house(tmp_path, [router], Limits(per_address=Rate(0.5, 3)))
    assert [house.request("GET", "/rows").status_code for _ in range(4)] == [200, 200, 200, 429]
    answer = house.request("GET", "/rows")
    assert code(answer) == (429, "DBS.280443")
    assert answer.headers["Retry-After"] == "2"
    assert "address" in answer.json()["error_msg"]
    house.clock.sleep(2)
    assert [house.request("GET", "/rows").status_code for _ in range(2)] == [200, 429]
    house.clock.sleep(3600)
    assert [house.request("GET", "/rows").status_code for _ in range(4)] == [200, 200, 200, 429]


def test_users_have_their_own_limit(tmp_path: Path) -> None:
    """One user's haste is not another's."""
    house = build_house(tmp_path, [private], Limits(per_user=Rate(1, 2)))
    house.new_user("ulla", "reader")
    admin, ulla = house.token(), house.token("ulla")
    assert [house.request("GET", "/mine", headers=admin).status_code for _ in range(3)] == [200, 200, 429]
    assert house.request("GET", "/mine", headers=ulla).status_code == 200


def test_guessing_passwords_is_slowed_down(tmp_path: Path) -> None:
    """Per address, right ones too."""
    house = build_house(tmp_path, limits=Limits(logins_per_address=Rate(1, 3)))
    assert [house.login(password="guess").status_code for _ in range(3)] == [401, 401, 401]
    assert code(house.login()) == (429, "DBS.280443")
