"""Versions, health and the documents: what anyone may see."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import APIRouter

from strongroom.api.app import build_app
from strongroom.api.authentication import authenticated_router
from strongroom.api.services import given
from support.border import House, build_house

router = authenticated_router("tests")


@router.get("/v3/{project_id}/things")
def things() -> list[str]:
    return []


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build_house(tmp_path, [router])


def test_the_versions_are_listed_and_shown(house: House) -> None:
    """With links to themselves; another version is an unknown path."""
    listed = house.request("GET", "/").json()["versions"]
    assert [version["id"] for version in listed] == ["v3", "v3.1", "v4"]
    for version in listed:
        assert house.request("GET", f"/{version['id']}").json() == {"version": version}
        assert version["links"] == [{"href": f"http://strongroom.test/{version['id']}", "rel": "self"}]
    assert house.request("GET", "/v9").status_code == 404


def test_health_and_readiness(house: House) -> None:
    """Ready means that the catalog and everything else named answers; the reason of a failure stays in the log."""
    assert house.request("GET", "/healthz").json() == {"status": "ok"}
    assert house.request("GET", "/readyz").json() == {"status": "ready"}

    def missing() -> None:
        raise OSError("/secret/path is not mounted")

    house.app = build_app(house.services, ready={"store": missing})
    answer = house.request("GET", "/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"error_code": "DBS.280005", "error_msg": "Not ready: store."}


def test_the_documents_need_no_other_host(house: House) -> None:
    """Everything that the page loads is served here, and its policy forbids the rest."""
    page = house.request("GET", "/docs")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert path.startswith("/docs/")
        assert house.request("GET", path).status_code == 200


def test_the_openapi_document_says_how_to_authenticate_and_how_errors_look(house: House) -> None:
    """A token or a signature where a caller is needed, nothing where not; the project is a parameter."""
    document = house.request("GET", "/openapi.json").json()
    call = document["paths"]["/v3/{project_id}/things"]["get"]
    assert call["security"] == [{"Token": []}, {"Signature": []}]
    assert [p["name"] for p in call["parameters"]] == ["project_id"]
    assert "security" not in document["paths"]["/v3/auth/tokens"]["post"]
    schemes = document["components"]["securitySchemes"]
    assert {name: scheme["name"] for name, scheme in schemes.items()} == {"Token": "X-Auth-Token", "Signature": "Authorization"}
    assert call["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")


def test_answers_are_not_kept_by_caches_nor_guessed_at(house: House) -> None:
    """Tokens travel in them."""
    answer = house.login()
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_what_a_handler_asks_for_is_what_the_app_was_given(house: House) -> None:
    """By its type."""
    asking = APIRouter()

    @asking.get("/asked")
    def asked(number: Annotated[int, given(int)]) -> int:
        return number

    house.app = build_app(house.services, [asking], objects={int: 7})
    assert house.request("GET", "/asked").json() == 7
