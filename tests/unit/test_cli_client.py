"""The command line's client: its signatures, how it finds the server, how it reads answers."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from strongroom.cli import connection
from strongroom.cli.client import Client
from strongroom.cli.errors import NotConnected, OutOfStep, Refused, Unreachable
from strongroom.identity import signatures
from support.cli_server import ENVIRON, OWN, PROJECT, FakeServer, Still, refusal

HERE = connection.Connection("http://strongroom.test:8480", PROJECT, "AK", "SK")


def client(handle: object) -> Client:
    return Client(HERE, httpx.MockTransport(handle), Still().now)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("GET", "backups/a%2Fb%20c~", {}),
        ("GET", "instances", {"query": {"limit": 100, "name": "ä &=+~/", "offset": 0}}),
        ("POST", "backups/preview", {"body": {"backup_ids": ["ö"]}}),
        ("DELETE", "backups/x", {"headers": {"If-Match": '"7"'}}),
    ],
)
def test_the_server_accepts_what_the_client_signs(method: str, path: str, options: dict[str, object]) -> None:
    """The server's own verifier holds the signature for right, and for wrong once the path differs."""
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json={})

    client(answer).own(method, path, **options)
    (request,) = sent
    raw_path, _, raw_query = request.url.raw_path.partition(b"?")
    headers = [(name.lower(), value) for name, value in request.headers.raw]
    received = signatures.Received(request.method, raw_path, raw_query, headers, request.content)
    signature = signatures.parse(request.headers["Authorization"])
    assert signature.access == "AK"
    assert signatures.signed_at(received) == Still().now()
    assert signatures.matches(received, signature, b"SK")
    assert not signatures.matches(received, signature, b"another")
    elsewhere = signatures.Received(request.method, raw_path + b"x", raw_query, headers, request.content)
    assert not signatures.matches(elsewhere, signature, b"SK")


def test_the_secret_is_in_nothing_that_is_sent_or_shown() -> None:
    """Neither the request nor the connection's repr holds the secret key."""
    secret = connection.Connection("http://strongroom.test", PROJECT, "AK", "very-secret-key")
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json={})

    Client(secret, httpx.MockTransport(answer), Still().now).own("GET", "instances")
    assert "very-secret-key" not in f"{sent[0].headers.raw} {sent[0].url} {secret!r}"


def test_a_list_is_read_to_its_end() -> None:
    """Pages are asked for until one is not full."""

    def answer(request: httpx.Request) -> httpx.Response:
        first = int(request.url.params["offset"])
        return httpx.Response(200, json={"backups": [{"id": str(n)} for n in range(first, min(first + 100, 230))]})

    assert [one["id"] for one in client(answer).backups()] == [str(n) for n in range(230)]


def test_an_error_of_the_api_keeps_its_code_and_says_whether_it_passes() -> None:
    """Refused has the API's status, code, reason and pause; too many requests is worth another try, a refusal is not."""

    def held(_: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"error_code": "DBS.212003", "error_msg": "held: audit"})

    def busy(_: httpx.Request) -> httpx.Response:
        return httpx.Response(429, json={"error_code": "DBS.280443", "error_msg": "slow down"}, headers={"Retry-After": "7"})

    with pytest.raises(Refused, match="held: audit") as refused:
        client(held).own("GET", "x")
    assert (refused.value.status, refused.value.code, refused.value.permanent) == (400, "DBS.212003", True)
    with pytest.raises(Refused) as limited:
        client(busy).own("GET", "x")
    assert (limited.value.retry_after, limited.value.permanent) == (7.0, False)


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'"text"', b"\xff"])
def test_an_answer_of_something_else_is_said_to_be_that(content: bytes) -> None:
    """Whatever else listens there, its answer is never taken for the API's."""
    with pytest.raises(OutOfStep, match="is this its endpoint"):
        client(lambda _: httpx.Response(200, content=content)).own("GET", "x")
    with pytest.raises(OutOfStep):
        client(lambda _: httpx.Response(502, content=content)).own("GET", "x")


def test_no_answer_names_the_endpoint() -> None:
    """A refused connection says where nobody answered."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with pytest.raises(Unreachable, match=r"http://strongroom\.test:8480"):
        client(refuse).own("GET", "x")


def test_a_data_folder_goes_before_the_environment_and_options_before_both(tmp_path: Path) -> None:
    """--data gives all four; --endpoint and --project-id replace theirs."""
    told = {"endpoint": "http://folder:1/", "project_id": "p1", "access_key": "a1", "secret_key": "s1"}
    (tmp_path / "credentials.json").write_text(json.dumps(told))
    assert connection.find(str(tmp_path), None, None, ENVIRON) == connection.Connection("http://folder:1", "p1", "a1", "s1")
    found = connection.find(str(tmp_path), "https://other:2", "p2", ENVIRON)
    assert found == connection.Connection("https://other:2", "p2", "a1", "s1")
    assert connection.find(None, None, None, ENVIRON).access_key == "AK"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"endpoint": "http://x"}'])
def test_a_folder_without_good_credentials_is_refused_with_what_to_do(tmp_path: Path, content: str | None) -> None:
    """Missing, damaged or incomplete credentials are wrong use."""
    if content is not None:
        (tmp_path / "credentials.json").write_text(content)
    with pytest.raises(NotConnected, match=r"serve --data|put back|STRONGROOM_ACCESS_KEY"):
        connection.find(str(tmp_path), None, None, {})


def test_a_missing_variable_is_named() -> None:
    """Only what is missing is named."""
    partly = {name: value for name, value in ENVIRON.items() if name != "STRONGROOM_SECRET_KEY"}
    with pytest.raises(NotConnected) as error:
        connection.find(None, None, None, partly)
    assert "STRONGROOM_SECRET_KEY" in error.value.message
    assert "STRONGROOM_ACCESS_KEY" not in error.value.message


def test_options_stand_before_and_after_the_subcommand_and_the_last_one_counts() -> None:
    """--project-id and --json are taken at every level."""
    server = FakeServer({f"GET /strongroom/v1/{'b' * 32}/instances": {"instances": []}})
    for arguments in (
        ("--json", "--project-id", "b" * 32, "instance", "list"),
        ("instance", "--project-id", "b" * 32, "list", "--json"),
        ("--project-id", "a" * 32, "instance", "--json", "list", "--project-id", "b" * 32),
    ):
        result = server.run(*arguments)
        assert (result.exit_code, json.loads(result.stdout)) == (0, {"total_count": 0, "instances": []})


def test_exit_statuses_tell_a_refusal_from_wrong_use() -> None:
    """1 where the API refused or is away, 2 where the command is wrong; the text is on standard error."""
    away = httpx.ConnectError("connection refused")
    server = FakeServer({f"GET {OWN}/instances": refusal(403, "DBS.280032", "no permission: list"), f"GET {OWN}/jobs/j": away})
    refused = server.run("instance", "list")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "no permission: list" in refused.stderr
    assert server.run("job", "show", "j").exit_code == 1
    assert server.run("job", "show").exit_code == 2
    assert server.run("no-such-command").exit_code == 2
    lost = FakeServer({}, environ={}).run("job", "list")
    assert lost.exit_code == 2
    assert "STRONGROOM_ENDPOINT" in lost.stderr
