"""The HTTP client: signs each request, and turns every answer into a value or an error with a sentence."""

from __future__ import annotations

import hashlib
import hmac
import ssl
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_to_bytes

import httpx

from strongroom import __version__
from strongroom.cli.connection import Connection
from strongroom.cli.errors import NotConnected, OutOfStep, Refused, Unreachable

_ALGORITHM = "SDK-HMAC-SHA256"
_SECONDS = 60.0  # a preview of many backups reads much
_CONNECT_SECONDS = 5.0
_PAGE = 100
_JOB_PAGE = 50

Answer = dict[str, Any]


class Signer(httpx.Auth):
    """Signs with an access key by SDK-HMAC-SHA256: the host, the date, the project and the body's type are covered."""

    requires_request_body = True

    def __init__(self, access_key: str, secret_key: str, now: Callable[[], float]) -> None:
        self._access, self._secret, self._now = access_key, secret_key.encode(), now

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["X-Sdk-Date"] = datetime.fromtimestamp(self._now(), UTC).strftime("%Y%m%dT%H%M%SZ")
        names = sorted(name for name in ("content-type", "host", "x-project-id", "x-sdk-date") if name in request.headers)
        canonical = "\n".join(
            (
                request.method,
                _canonical_path(request.url.raw_path.partition(b"?")[0]),
                _canonical_query(request.url.query),
                "".join(f"{name}:{request.headers[name].strip()}\n" for name in names),
                ";".join(names),
                hashlib.sha256(request.content).hexdigest(),
            )
        )
        to_sign = f"{_ALGORITHM}\n{request.headers['X-Sdk-Date']}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.new(self._secret, to_sign.encode(), hashlib.sha256).hexdigest()
        request.headers["Authorization"] = (
            f"{_ALGORITHM} Access={self._access}, SignedHeaders={';'.join(names)}, Signature={signature}"
        )
        yield request


def _canonical_path(raw: bytes) -> str:
    path = "/".join(quote(part, safe="~") for part in unquote_to_bytes(raw).split(b"/"))
    return path if path.endswith("/") else path + "/"


def _canonical_query(raw: bytes) -> str:
    pairs = sorted(parse_qsl(raw.decode("ascii"), keep_blank_values=True))
    return "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in pairs)


class Client:
    """The API of one project. Each method raises Refused, Unreachable or OutOfStep."""

    def __init__(
        self, connection: Connection, transport: httpx.BaseTransport | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._connection = connection
        self._http = httpx.Client(
            base_url=connection.endpoint,
            auth=Signer(connection.access_key, connection.secret_key, now),
            headers={"User-Agent": f"strongroom-cli/{__version__}", "X-Project-Id": connection.project_id},
            timeout=httpx.Timeout(_SECONDS, connect=_CONNECT_SECONDS),
            transport=transport,
            verify=_trust(connection),
            trust_env=False,  # a proxy of the environment must not see signed requests to a server of one's own
        )

    def close(self) -> None:
        self._http.close()

    def contract(self, method: str, path: str, **options: Any) -> Answer:
        """A call of GeminiDB's API; `path` begins with its version: "v3/backups/…"."""
        version, _, rest = path.partition("/")
        return self._ask(method, f"/{version}/{quote(self._connection.project_id, safe='')}/{rest}", **options)

    def own(self, method: str, path: str, **options: Any) -> Answer:
        """A call of Strongroom's own API below /strongroom/v1/{project_id}/."""
        return self._ask(method, f"/strongroom/v1/{quote(self._connection.project_id, safe='')}/{path}", **options)

    def identity(self, method: str, *path: str, **options: Any) -> Answer:
        """A call about the account's users, groups, keys and policies; `path` is the segments after …/identity/."""
        return self._ask(method, "/strongroom/v1/identity/" + "/".join(segment(one) for one in path), **options)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            response = self._http.request(method, path, params=given, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        return _read(response, self._connection.endpoint)

    @contextmanager
    def own_stream(self, path: str, query: Mapping[str, Any]) -> Iterator[httpx.Response]:
        """An answer of Strongroom's own API that is read piece by piece. Raises Unreachable where it ends too early."""
        whole = f"/strongroom/v1/{quote(self._connection.project_id, safe='')}/{path}"
        try:
            with self._http.stream("GET", whole, params=dict(query)) as response:
                if not response.is_success:
                    response.read()
                    _read(response, self._connection.endpoint)
                yield response
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> Unreachable:
        return Unreachable(
            f"no answer from {self._connection.endpoint}: {error or type(error).__name__}\n"
            "Is the server running (`strongroom serve`), and is this its endpoint?"
        )

    def pages(
        self, call: Callable[..., Answer], path: str, items: str, query: Mapping[str, Any], most: int | None
    ) -> list[Answer]:
        """The items of a list call from its first page on, `most` at most."""
        found: list[Answer] = []
        size = _JOB_PAGE if items == "jobs" else _PAGE
        while most is None or len(found) < most:
            page = items_of(call("GET", path, query={**query, "limit": size, "offset": len(found)}), items)
            found += page
            if len(page) < size:
                break
        return found[:most]

    def backups(self, **query: Any) -> list[Answer]:
        """All backups that match, newest first."""
        return self.pages(self.contract, "v4/backups", "backups", query, None)

    def instances(self, tags: Sequence[str] = ()) -> list[Answer]:
        """All registered instances that have these tags, each KEY or KEY=VALUE."""
        return self.pages(self.own, "instances", "instances", {"tag": list(tags)} if tags else {}, None)

    def recycled(self) -> list[Answer]:
        """Instances in the recycle bin."""
        return self.pages(self.contract, "v3/recycle-instances", "instances", {}, None)

    def deletions(self, state: str | None, most: int) -> list[Answer]:
        """The newest deletions."""
        return self.pages(self.own, "deletions", "deletions", {"state": state}, most)

    def jobs(self, status: str | None, most: int) -> list[Answer]:
        """The newest jobs."""
        return self.pages(self.contract, "v3/jobs", "jobs", {"status": status}, most)

    def job(self, job_id: str) -> Answer:
        """One job, whatever its age."""
        return self.own("GET", f"jobs/{segment(job_id)}")

    def backup(self, backup_id: str) -> Answer:
        """One backup in all detail."""
        return self.own("GET", f"backups/{segment(backup_id)}")

    def deletion(self, backup_id: str) -> Answer:
        """The deletion of one backup: its promise and, once done, its receipt."""
        return self.own("GET", f"deletions/{segment(backup_id)}")

    def preview(self, backup_ids: list[str]) -> Answer:
        """What deleting these backups, together, would free."""
        return self.own("POST", "backups/preview", body={"backup_ids": backup_ids})


def _trust(connection: Connection) -> ssl.SSLContext | bool:
    """Whose certificates count. Raises NotConnected if the file that names them cannot be used."""
    if connection.ca_file is None or not connection.endpoint.startswith("https://"):
        return True
    try:
        return ssl.create_default_context(cafile=connection.ca_file)
    except OSError as error:
        raise NotConnected(f"the certificates in {connection.ca_file} cannot be used: {error.strerror or error}") from error


def segment(value: str) -> str:
    """A value as one segment of a path."""
    return quote(value, safe="")


def items_of(answer: Answer, name: str) -> list[Answer]:
    """The list of that name in an answer."""
    found = answer.get(name)
    if not isinstance(found, list):
        raise OutOfStep(f"the server's answer has no list {name!r}: do its version and this client's ({__version__}) fit?")
    return found


def text_of(answer: Answer, name: str) -> str:
    """The text of that name in an answer."""
    found = answer.get(name)
    if not isinstance(found, str):
        raise OutOfStep(f"the server's answer has no {name!r}: do its version and this client's ({__version__}) fit?")
    return found


def _read(response: httpx.Response, endpoint: str) -> Answer:
    try:
        answer = response.json() if response.content else {}
    except ValueError:
        answer = None
    if response.is_success and isinstance(answer, dict):
        return answer
    if response.is_error and isinstance(answer, dict) and "error_code" in answer:
        raise Refused(
            response.status_code, str(answer["error_code"]), str(answer.get("error_msg", "")), _seconds(response.headers)
        )
    raise OutOfStep(f"{endpoint} answered {response.status_code} in no form of Strongroom's: is this its endpoint?")


def _seconds(headers: httpx.Headers) -> float | None:
    text = headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None
