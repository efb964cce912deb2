"""/docs and /openapi.json: for anyone, whole, and true to what the server answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.server import ServerProcess

PUBLIC = {("/v3/auth/tokens", "post"), ("/v3.0/OS-CREDENTIAL/securitytokens", "post"), ("/", "get"), ("/{version}", "get")}
EXAMPLES = {
    "backup_id": f"{'0' * 32}br14",
    "instance_id": f"{'0' * 32}in14",
    "job_id": "00000000-0000-0000-0000-000000000000",
    "version": "v3",
    "datastore_name": "redis",
    "user": "nobody",
    "group": "nothing",
    "policy": "nothing",
    "key": "SRNOTHING",
    "kind": "users",
    "holder": "nobody",
    "webhook": "nothing",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("documents") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> dict[str, Any]:
    """/openapi.json, fetched without credentials."""
    with server.http(signed=False) as anyone:
        answer = anyone.get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def references(part: Any) -> Iterator[str]:
    """Every $ref below a part of the document."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_the_document_is_a_valid_openapi_document(document: dict[str, Any]) -> None:
    """Version 3.1 with title and version; ids of operations are unique, path parameters are declared, required and used, every
    reference leads somewhere, every operation says what it does and answers."""
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["title"]
    assert document["info"]["version"]
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    for path, method, operation in operations(document):
        declared = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path)), (path, method)
        assert all(one["required"] for one in operation.get("parameters", ()) if one["in"] == "path")
        assert operation["summary"]
        assert operation["responses"]
        assert all(re.fullmatch(r"[2-5](\d\d|XX)", status) for status in operation["responses"]), (path, method)
    for reference in references(document):
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step.replace("~1", "/").replace("~0", "~")]
        assert isinstance(place, dict)


def test_every_call_says_how_one_enters_and_how_it_refuses(document: dict[str, Any]) -> None:
    """A token or a signature, but for what is public; errors have the contract's two fields."""
    error = document["components"]["schemas"]["ErrorBody"]
    assert set(error["properties"]) == set(error["required"]) == {"error_code", "error_msg"}
    for path, method, operation in operations(document):
        if (path, method) not in PUBLIC:
            assert {name for one in operation["security"] for name in one} == {"Token", "Signature"}, (path, method)
            assert all(len(one) == 1 for one in operation["security"]), "either is enough"
        for status in ("4XX", "5XX"):
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorBody"}
        assert "422" not in operation["responses"]


def test_what_the_document_lists_is_served_and_needs_a_caller(server: ServerProcess, document: dict[str, Any]) -> None:
    """Each call exists, answers 401 to nobody, and never 500, whatever is missing in it."""
    with server.http() as http, server.http(signed=False) as anyone:
        for path, method, _ in operations(document):
            url = path.format(project_id=server.owner.project, **EXAMPLES)
            answer = http.request(method, url)
            assert answer.status_code < 500, (method, path, answer.text)
            assert error_code(answer) != "APIGW.0101", (method, path)
            if (path, method) not in PUBLIC:
                assert anyone.request(method, url).status_code == 401, (method, path)


def error_code(answer: httpx.Response) -> str | None:
    return answer.json()["error_code"] if answer.status_code >= 400 else None


def test_the_page_loads_everything_from_this_server(server: ServerProcess) -> None:
    """Without credentials; scripts and styles are local, and the page's policy forbids others."""
    with server.http(signed=False) as anyone:
        page = anyone.get("/docs")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(parts) >= 3
        for part in parts:
            assert part.startswith("/docs/")
            assert anyone.get(part).status_code == 200
        assert '"/openapi.json"' in anyone.get("/docs/start.js").text
