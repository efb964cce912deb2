"""A hostile border: raw sockets against a real server process. Whatever comes in, there is an answer in the contract's form, at
once; no 500, no hang, nothing told that is not the caller's, and no memory kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from socket import create_connection
from typing import Any

import httpx
import pytest

from strongroom.catalog import tables as t
from strongroom.cli.client import Signer
from support.raw_http import SECONDS, Reply, exchange, request
from support.server import Keys, ServerProcess

JSON = "Content-Type: application/json"
INSTANCE, BACKUP, JOB = f"{'a' * 32}in14", f"{'b' * 32}br14", "00000000-0000-0000-0000-000000000000"


@dataclass
class Site:
    """A server with one instance registered, which is not there any more, and one FAILED backup of it."""

    server: ServerProcess
    port: int
    token: str
    project: str

    def ask(self, method: str, target: str, *headers: str, body: Any = None, raw: bytes | None = None) -> Reply:
        """With the owner's token; `{p}` is the project. A body that is no bytes is sent as JSON."""
        content = raw if raw is not None else None if body is None else json.dumps(body).encode()
        said = [f"X-Auth-Token: {self.token}", *headers]
        if content is not None and not any(header.startswith("Content-Type") for header in headers):
            said.append(JSON)
        sent = request(method, target.replace("{p}", self.project), *said, body=content)
        return exchange(self.port, sent)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    limits = {"STRONGROOM_RATE_PER_USER": "off", "STRONGROOM_RATE_PER_ADDRESS": "off"}
    with ServerProcess(tmp_path_factory.mktemp("sockets") / "data", limits) as server:
        project, now = server.owner.project, time.time()
        with server.catalog() as catalog, catalog.write() as conn:
            conn.execute(
                t.instance.insert().values(
                    id=INSTANCE, project=project, name="cache", engine="redis", address="redis://127.0.0.1:1", mode="Single",
                    version="7.0.15", state="REGISTERED", labels="{}", created_at=now, updated_at=now,
                )
            )  # fmt: skip
            conn.execute(
                t.backup.insert().values(
                    id=BACKUP, project=project, instance=INSTANCE, instance_name="cache", engine="redis", engine_version="7.0",
                    name="nightly", description="", origin="Manual", scope="", state="FAILED", version=0, begin_at=now,
                    end_at=now, plain_bytes=0,
                )
            )  # fmt: skip
        yield Site(server, int(server.credentials["endpoint"].rpartition(":")[2]), server.token(), project)
        assert "Traceback" not in server.log, server.log[-5000:]
        assert server.stop() == 0


def alive(site: Site) -> None:
    """The server still does what it did."""
    assert json.loads(site.ask("GET", f"/v4/{{p}}/backups?backup_id={BACKUP}").content)["total_count"] == 1


# --- what is no HTTP, or strange HTTP --------------------------------------------------------------------------------

LOGIN = "POST /v3/auth/tokens HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
STRANGE: dict[str, tuple[bytes, int, str]] = {
    "bytes that are no text": (b"\x00\x01\x02 \xff\r\n\r\n", 400, "DBS.200001"),
    "TLS to a plain port": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n", 400, "DBS.200001"),
    "NUL in the path": (b"GET /v4/\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "DBS.200001"),
    "raw high bytes in the path": (b"GET /v4/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400, "DBS.200001"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "DBS.200001"),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "DBS.200001"),
    "a header without a name": (b"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", 400, "DBS.200001"),
    "a space before the colon": (b"GET / HTTP/1.1\r\nHost: x\r\nX-A : y\r\n\r\n", 400, "DBS.200001"),
    "a header with NUL": (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: \x00\r\n\r\n", 400, "DBS.200001"),
    "a header of 200 KB": (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 200_000 + b"\r\n\r\n", 400, "DBS.200001"),
    "a line without an end": (b"GET /" + b"a" * 300_000, 400, "DBS.200001"),
    "a header of 40 KB": (request("GET", "/", "X-A: " + "a" * 40_000), 431, "APIGW.0201"),
    "500 headers": (request("GET", "/", *(f"X-{n}: a" for n in range(500))), 431, "APIGW.0201"),
    "a path of 20 KB": (request("GET", "/v3/" + "a" * 20_000), 414, "APIGW.0201"),
    "a query of 20 KB": (request("GET", "/v3?" + "a" * 20_000), 414, "APIGW.0201"),
    "two lengths": (f"{LOGIN}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}} ".encode(), 400, "DBS.200001"),
    "a negative length": (f"{LOGIN}Content-Length: -2\r\n\r\n{{}}".encode(), 400, "DBS.200001"),
    "a length that is no number": (f"{LOGIN}Content-Length: 0x2\r\n\r\n{{}}".encode(), 400, "DBS.200001"),
    "a length beyond all bounds": (f"{LOGIN}Content-Length: {'9' * 30}\r\n\r\n{{}}".encode(), 400, "DBS.200001"),
    "a length above the limit": (f"{LOGIN}Content-Length: 1048577\r\n\r\n".encode() + b" " * 100, 413, "APIGW.0201"),
    "length and chunks": (
        f"{LOGIN}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(), 400, "DBS.200001",
    ),
    "an unknown coding": (f"{LOGIN}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".encode(), 400, "DBS.200001"),
    "chunks that are none": (f"{LOGIN}Transfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n".encode(), 400, "DBS.200001"),
    "chunks above the limit": (
        f"{LOGIN}Transfer-Encoding: chunked\r\n\r\n".encode() + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 17, 413, "APIGW.0201",
    ),
    "the beginning of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404, "APIGW.0101"),
    "a proxy's target": (request("GET", "http://elsewhere/v4/x/backups"), 404, "APIGW.0101"),
    "CONNECT": (request("CONNECT", "elsewhere:443"), 404, "APIGW.0101"),
    "an unknown method": (request("BREW", "/v3/auth/tokens"), 405, "APIGW.0101"),
    "OPTIONS of everything": (request("OPTIONS", "*"), 404, "APIGW.0101"),
    "two tokens": (request("GET", "/v3/auth/domains", "X-Auth-Token: a", "X-Auth-Token: b"), 401, "APIGW.0301"),
    "two signatures": (request("GET", "/v3/auth/domains", "Authorization: a", "Authorization: b"), 401, "APIGW.0301"),
    "a token of bytes": (request("GET", "/v3/auth/domains", "X-Auth-Token: \xff\xfe"), 401, "APIGW.0301"),
    "a method to override": (request("GET", "/v3/auth/tokens", "X-HTTP-Method-Override: DELETE"), 401, "APIGW.0301"),
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGE)
def test_strange_http_is_answered_in_the_contracts_form(site: Site, case: str) -> None:
    """Whatever it is; then the connection is closed."""
    sent, status, code = STRANGE[case]
    reply = exchange(site.port, sent)
    assert (reply.status, reply.error) == (status, code)


def test_after_strange_http_the_server_is_what_it_was(site: Site) -> None:
    """All of it once more, beside each other."""
    with ExitStack() as stack:
        for sent, _, _ in STRANGE.values():
            connection = stack.enter_context(create_connection(("127.0.0.1", site.port), SECONDS))
            try:
                connection.sendall(sent)
            except ConnectionError:
                continue
        alive(site)


# --- paths, queries and bodies with a good token -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "strange",
    [
        "%00", f"{BACKUP}%00", f"{BACKUP}%0A", f"{BACKUP}%2F", f"..%2F{BACKUP}", f"%2e%2e%2f{BACKUP}", f"%252e%252e%252f{BACKUP}",
        BACKUP.upper(), f"{BACKUP}%20", f"%20{BACKUP}", "%ff%fe", "%", "%zz", "%E2%80%AE" + BACKUP, f"{BACKUP};v=1",
        f"{BACKUP},{BACKUP}",
        "*", "'%20OR%20'1'='1", "${jndi:x}", "a" * 5000, "%F0%9F%92%A3",
    ],
)  # fmt: skip
def test_what_is_no_id_is_refused_wherever_an_id_stands(site: Site, strange: str) -> None:
    """In every path and query that takes a backup's, an instance's or a job's id."""
    for method, target, code in (
        ("DELETE", f"/v3/{{p}}/backups/{strange}", "DBS.201212"),
        ("GET", f"/v3/{{p}}/backups/{strange}/restorable-instances", "DBS.201212"),
        ("DELETE", f"/v3/{{p}}/instances/{strange}", "DBS.280404"),
        ("GET", f"/v3/{{p}}/instances/{strange}/tags", "DBS.280404"),
        ("DELETE", f"/v3/{{p}}/scheduled-jobs/{strange}", "DBS.200001"),
        ("GET", f"/v4/{{p}}/backups?backup_id={strange}", "DBS.201212"),
        ("GET", f"/v4/{{p}}/backups?instance_id={strange}", "DBS.280404"),
        ("GET", f"/v3/{{p}}/jobs?id={strange}", "DBS.200001"),
    ):
        reply = site.ask(method, target)
        assert (reply.status, reply.error) == (400, code), (method, target)
    reply = site.ask("GET", f"/v4/{strange}/backups")
    assert (reply.status, reply.error) == (400, "DBS.200010"), "no project of the caller's"


def test_steps_in_a_path_lead_nowhere(site: Site) -> None:
    """Dots, doubled slashes and slashes at the end name nothing."""
    for target in (
        "/v4/../v4/{p}/backups", "/v4/%2e%2e/v4/{p}/backups", "//v4/{p}/backups", "/v4/{p}/backups/", "/v4//{p}/backups",
        "/v4/{p}/./backups", "/v4%2F{p}/backups", "/docs/..%2f..%2fetc%2fpasswd", "/docs/../../etc/passwd", "/.git/config",
    ):  # fmt: skip
        reply = site.ask("GET", target)
        assert (reply.status, reply.error) == (404, "APIGW.0101"), target


def test_a_get_with_a_body_is_the_get(site: Site) -> None:
    """Whatever the body says it is."""
    for raw in (b"xx}", b"{}", b"\xff" * 1000):
        assert site.ask("GET", f"/v4/{{p}}/backups?backup_id={BACKUP}", raw=raw).status == 200


def test_a_parameter_that_stands_twice_or_is_no_text_is_no_fault_of_ours(site: Site) -> None:
    """Answered, never 500."""
    for query in (
        "limit=1&limit=2",
        "limit=%ff",
        "offset=1e3",
        "offset=-1",
        "offset=9223372036854775808",
        "limit=1%00",
        "limit=",
    ):
        reply = site.ask("GET", f"/v4/{{p}}/backups?{query}")
        assert reply.status in (200, 400), query
    for query in (
        "begin_time=%00",
        "begin_time=2026-11-01T00:00:00+0000",
        "begin_time=0000-00-00T00:00:00Z&end_time=9",
        "=",
        "&&&",
        "%",
    ):
        assert site.ask("GET", f"/v4/{{p}}/backups?{query}").status in (200, 400), query
    far = "9999-12-31T23:59:59-2359"
    for name in ("begin_time", "end_time"):
        other = "end_time" if name == "begin_time" else "begin_time"
        for near in ("0001-01-01T00:00:00+2359", "2026-11-01T00:00:00Z"):
            assert site.ask("GET", f"/v4/{{p}}/backups?{name}={far}&{other}={near}").status in (200, 400)


TAKERS = (
    ("DELETE", "/v3/{p}/instances/backups"),
    ("POST", f"/v3/{{p}}/instances/{INSTANCE}/backups"),
    ("PUT", f"/v3/{{p}}/backups/{BACKUP}"),
    ("POST", f"/v3/{{p}}/instances/{INSTANCE}/recovery"),
    ("POST", f"/v3/{{p}}/instances/{INSTANCE}/tags/action"),
    ("POST", "/v3/{p}/instances/resource-instances/action"),
    ("PUT", "/v3/{p}/instances/recycle-policy"),
    ("PUT", f"/v3/{{p}}/instances/{INSTANCE}/backups/policy"),
    ("POST", "/v3/{p}/instances"),
    ("PUT", f"/strongroom/v1/{{p}}/instances/{INSTANCE}/limits"),
    ("PUT", f"/v3/{{p}}/redis/instances/{INSTANCE}/pitr/policy"),
    ("PUT", f"/v3/{{p}}/redis/instances/{INSTANCE}/pitr"),
    ("PUT", f"/strongroom/v1/{{p}}/instances/{INSTANCE}/recording"),
    ("POST", f"/strongroom/v1/{{p}}/instances/{INSTANCE}/moments"),
    ("POST", "/strongroom/v1/{p}/instances"),
    ("POST", "/strongroom/v1/{p}/backups/preview"),
    ("PUT", f"/strongroom/v1/{{p}}/backups/{BACKUP}/hold"),
    ("PUT", "/strongroom/v1/{p}/quotas"),
    ("POST", "/strongroom/v1/{p}/quarantine"),
    ("POST", "/v3/auth/tokens"),
)
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "two values": b"{}{}",
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "not UTF-8": b'{"reason": "\xff\xfe"}',
    "UTF-16": '{"name": "x"}'.encode("utf-16"),
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "whole deep lists": b"[" * 100_000 + b"]" * 100_000,
    "a long number": b'{"backup_ids": ' + b"9" * 100_000 + b"}",
    "an exponent": b'{"instance": 1e400, "sample": 1e400, "interval": 1e400}',
    "not a number": b'{"instance": NaN, "sample": Infinity, "retention_period_in_days": -Infinity}',
    "a million items": b'{"backup_ids": [' + b"1," * 300_000 + b'1], "tags": [], "names": []}',
    "many keys": b"{" + b",".join(b'"k%d":1' % n for n in range(60_000)) + b"}",
}


@pytest.mark.parametrize("bomb", BODIES)
def test_a_body_that_no_call_takes_is_refused_by_every_call(site: Site, bomb: str) -> None:
    """400 by each that takes a body, at once."""
    for method, target in TAKERS:
        began = time.monotonic()
        reply = site.ask(method, target, raw=BODIES[bomb])
        assert reply.status == 400, (method, target, reply)
        assert reply.error
        assert time.monotonic() - began < SECONDS


STRANGE_TEXTS = ["\ud800", "\x00", "a\x00b", "\udfff\ud800", "\u202e", "x" * 100_000, "💣" * 300, "\r\nSet-Cookie: a=b"]


@pytest.mark.parametrize("text", STRANGE_TEXTS, ids=range(len(STRANGE_TEXTS)))
def test_strange_text_in_any_field_is_refused_or_kept(site: Site, text: str) -> None:
    """Half characters, NUL, marks of direction, lengths: never 500, and never in a header of the answer."""
    bodies: list[tuple[str, str, Any]] = [
        ("POST", f"/v3/{{p}}/instances/{INSTANCE}/recovery", {"backup_id": BACKUP, "password": text}),
        ("POST", f"/v3/{{p}}/instances/{INSTANCE}/backups", {"name": "nightly", "description": text}),
        ("POST", f"/v3/{{p}}/instances/{INSTANCE}/backups", {"name": text}),
        ("POST", f"/v3/{{p}}/instances/{INSTANCE}/backups", {"name": "nightly", "database_tables": [{"database_name": text}]}),
        ("POST", f"/v3/{{p}}/instances/{INSTANCE}/tags/action", {"action": "create", "tags": [{"key": text, "value": text}]}),
        ("POST", f"/v3/{{p}}/instances/{INSTANCE}/tags/action", {"action": "delete", "tags": [{"key": "k", "value": text}]}),
        ("POST", "/v3/{p}/instances/resource-instances/action", {"action": "filter", "tags": [{"key": text, "values": [text]}]}),
        ("POST", "/v3/{p}/instances/resource-instances/action",
         {"action": "filter", "matches": [{"key": "instance_name", "value": f"*{text}"}]}),
        ("POST", "/strongroom/v1/{p}/instances", {"name": "other", "engine": "redis", "address": text}),
        ("POST", "/strongroom/v1/{p}/instances", {"name": text, "engine": text, "address": "redis://127.0.0.1:1"}),
        ("POST", "/strongroom/v1/{p}/instances",
         {"name": "other", "engine": "redis", "address": f"redis://{text}@127.0.0.1:1", "password": text}),
        ("POST", "/strongroom/v1/{p}/instances",
         {"name": "other", "engine": "redis", "address": "redis://127.0.0.1:1", "password": text}),
        ("POST", "/strongroom/v1/{p}/instances",
         {"name": "other", "engine": "redis", "address": "redis://127.0.0.1:1", "labels": {text: text}}),
        ("PUT", f"/strongroom/v1/{{p}}/backups/{BACKUP}/hold", {"reason": text}),
        ("POST", "/strongroom/v1/{p}/quarantine", {"names": [text]}),
        ("POST", "/v3/auth/tokens", {"auth": {"identity": {"methods": ["password"], "password": {"user": {
            "name": text, "password": text, "domain": {"name": text}}}}}}),
        ("POST", "/v3/auth/tokens", {"auth": {"identity": {"methods": ["token"], "token": {"id": text}}}}),
        ("POST", "/v3/auth/tokens", {"auth": {"identity": {"methods": [text]}}}),
    ]  # fmt: skip
    for method, target, body in bodies:
        reply = site.ask(method, target, body=body)
        assert reply.status < 500, (target, body, reply)
        if reply.status >= 400:
            assert reply.error
        assert "set-cookie" not in reply.headers
    for query in ("name", "datastore_type", "mode", "id"):
        reply = site.ask(
            "GET", f"/v3/{{p}}/instances?{query}={httpx.QueryParams({'q': text.encode('utf-8', 'replace').decode()})}"[:8000]
        )
        assert reply.status in (200, 400)
    site.ask("DELETE", f"/strongroom/v1/{{p}}/backups/{BACKUP}/hold")


def test_a_key_that_stands_twice_counts_once(site: Site) -> None:
    """The last one, as every JSON reader here and in clients has it; nothing happens twice."""
    raw = b'{"recycle_policy": {"retention_period_in_days": 9, "retention_period_in_days": 4}}'
    assert site.ask("PUT", "/v3/{p}/instances/recycle-policy", raw=raw).status == 202
    shown = json.loads(site.ask("GET", "/v3/{p}/instances/recycle-policy").content)
    assert shown == {"recycle_policy": {"retention_period_in_days": 4}}


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "\xff", ""]
)
def test_another_content_type_is_refused(site: Site, kind: str) -> None:
    """Only JSON is read."""
    reply = site.ask("PUT", "/v3/{p}/instances/recycle-policy", f"Content-Type: {kind}", body={"recycle_policy": {}})
    assert (reply.status, reply.error) == (400, "DBS.200001")


# --- signatures --------------------------------------------------------------------------------------------------------


def signed(site: Site, keys: Keys, *, at: float, secret: str = "") -> bytes:
    """The bytes of a signed look-up."""
    url = f"http://strongroom.test/v4/{site.project}/backups"
    asked = httpx.Request("GET", url)
    flow = Signer(keys.access_key, secret or keys.secret_key, lambda: at).auth_flow(asked)
    headers = [f"{name}: {value}" for name, value in next(flow).headers.items() if name in ("x-sdk-date", "authorization")]
    return request("GET", f"/v4/{site.project}/backups", *headers)


def test_a_repeated_signature_is_taken_and_one_of_another_time_is_not(site: Site) -> None:
    """Equal requests within a second are equal bytes, so repeats are taken; 15 minutes to either side is the end."""
    now = time.time()
    sent = signed(site, site.server.owner, at=now)
    assert [exchange(site.port, sent).status for _ in range(12)] == [200] * 12
    for shift in (-840, 840):
        assert exchange(site.port, signed(site, site.server.owner, at=now + shift)).status == 200
    for shift in (-960, 960, -400 * 86400):
        reply = exchange(site.port, signed(site, site.server.owner, at=now + shift))
        assert (reply.status, reply.error) == (401, "APIGW.0301")
    stale = sent.replace(datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT").encode(), b"20000101T")
    assert exchange(site.port, stale).status == 401


def test_wrong_signatures_lock_their_key_alone(site: Site) -> None:
    """Five in a row; then a right one is refused too, and another key is not touched."""
    user = site.server.new_user(site.server.owner, "guessed", "reader")
    assert exchange(site.port, signed(site, user, at=time.time())).status == 200
    for _ in range(5):
        reply = exchange(site.port, signed(site, user, at=time.time(), secret="guess"))
        assert (reply.status, reply.error) == (401, "APIGW.0301")
        assert user.secret_key.encode() not in reply.content
    assert exchange(site.port, signed(site, user, at=time.time())).status == 401
    assert exchange(site.port, signed(site, site.server.owner, at=time.time())).status == 200


def test_a_signature_of_strange_form_is_refused(site: Site) -> None:
    """Whatever it says."""
    date = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for said in (
        "", "SDK-HMAC-SHA256", "SDK-HMAC-SHA256 Access=,SignedHeaders=,Signature=",
        "SDK-HMAC-SM3 Access=a, SignedHeaders=a, Signature=0",
        f"SDK-HMAC-SHA256 Access={'A' * 9000}, SignedHeaders=x-sdk-date, Signature={'0' * 64}", "Bearer x", "Basic Og==",
        f"SDK-HMAC-SHA256 Access=A, SignedHeaders={'x;' * 4000}x-sdk-date, Signature={'0' * 64}",
        f"SDK-HMAC-SHA256 Access=A\xff, SignedHeaders=x-sdk-date, Signature={'0' * 64}",
        f"SDK-HMAC-SHA256 Access=A, SignedHeaders=x-sdk-date;absent, Signature={'0' * 64}",
    ):  # fmt: skip
        sent = request("GET", f"/v4/{site.project}/backups", f"Authorization: {said}", f"X-Sdk-Date: {date}")
        reply = exchange(site.port, sent)
        assert (reply.status, reply.error) == (401, "APIGW.0301"), said[:60]


# --- memory, and what is told ------------------------------------------------------------------------------------------


def test_memory_stays_flat_and_nothing_is_told(site: Site) -> None:
    """Rounds of bombs, half requests and refusals: after the first rounds nothing more is kept. No answer has a path, a trace or
    a secret in it."""
    secrets = [site.server.owner.secret_key, str(site.server.folder), "Traceback", "sqlalchemy", "site-packages"]

    def round_of_bombs() -> None:
        for name in ("deep lists", "a million items", "many keys", "a long number"):
            for method, target in TAKERS[:4]:
                reply = site.ask(method, target, raw=BODIES[name])
                assert not [word for word in secrets if word.encode() in reply.content]
        for case in ("a header of 200 KB", "chunks above the limit", "bytes that are no text"):
            exchange(site.port, STRANGE[case][0])
        for _ in range(20):  # they leave in the middle
            with create_connection(("127.0.0.1", site.port), SECONDS) as gone:
                gone.sendall(f"{LOGIN}Content-Length: 1000000\r\n\r\n".encode() + b" " * 100_000)

    for _ in range(2):
        round_of_bombs()
    before = site.server.rss_anon()
    for _ in range(3):
        round_of_bombs()
    assert site.server.rss_anon() - before < 24 << 20
    alive(site)
