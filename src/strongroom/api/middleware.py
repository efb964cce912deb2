"""The outermost ring of the border, around everything else.

Gives each request its id; refuses what is too large or too fast; reads the body whole, so that a signature is verified over
the bytes as received; makes routing follow the raw path; answers 500 for what nobody caught; writes one line to the log, without
query, body or credentials.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import quote, unquote, unquote_to_bytes

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from strongroom import logs
from strongroom.api import errors
from strongroom.api.limiter import Limiter, site_of
from strongroom.api.services import Services
from strongroom.identity.principal import Principal
from strongroom.identity.signatures import Received

_log = logging.getLogger("strongroom.api")
_NOT_SERVED_YET = 0

Observe = Callable[[str, str, int, float], None]
"""Is told of each request: method, its route's path as written in the code, status (0: the client has left), seconds."""


class _Gone(Exception):
    """The client left before its request was whole."""


@dataclass(slots=True)
class Arrival:
    """A request as it came in; modules of the border find it in scope["state"]["arrival"]."""

    request_id: str
    source: str
    received: Received
    secure: bool = False  # over TLS to this process
    principal: Principal | None = None


class Border:
    """The ASGI middleware."""

    def __init__(self, app: ASGIApp, services: Services, observe: Observe | None = None) -> None:
        self._app = app
        self._services = services
        self._observe = observe
        self._addresses = Limiter(services.limits.per_address, services.ambient)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        arrival = Arrival(self._services.ambient.hex_id(), client[0] if client else "", _bare(scope), scope["scheme"] == "https")
        scope.setdefault("state", {})["arrival"] = arrival
        with logs.about(request=arrival.request_id):
            await self._answer(scope, receive, send, arrival)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, arrival: Arrival) -> None:
        begun = self._services.ambient.monotonic()
        answering = _Answering(send, arrival.request_id)
        try:
            await self._serve(scope, receive, answering, arrival)
        except _Gone:
            return
        except errors.ApiError as refused:
            refusal = errors.answer(refused.status, refused.code, refused.message, refused.headers)
            await refusal(scope, receive, answering)
        except Exception:  # the top of the request: whatever nobody caught is our fault
            _log.exception("request %s failed", arrival.request_id)
            if answering.status != _NOT_SERVED_YET:
                raise
            await errors.server_error()(scope, receive, answering)
        finally:
            self._report(scope, arrival, answering.status, self._services.ambient.monotonic() - begun)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, arrival: Arrival) -> None:
        if wait := self._addresses.take(site_of(arrival.source)):
            raise errors.TooManyRequests("address", wait)
        self._check_head(scope)
        body = await self._read(scope, receive)
        bare = arrival.received
        arrival.received = Received(bare.method, bare.raw_path, bare.raw_query, bare.headers, body)
        scope["path"] = _routed(bare.raw_path)
        await self._app(scope, _replay(body, receive), send)

    def _check_head(self, scope: Scope) -> None:
        limits, headers = self._services.limits, scope["headers"]
        if len(scope["raw_path"]) + len(scope["query_string"]) > limits.path_bytes:
            raise errors.ApiError(414, errors.TOO_LARGE, "The request's address is too long.")
        named = [name for name, _ in headers]
        if b"transfer-encoding" in named and b"content-length" in named:  # a proxy in front may read it otherwise than we do
            raise errors.ParameterError("Parameter error: the body's length is said in two ways.")
        size = sum(len(name) + len(value) + 4 for name, value in headers)
        if len(headers) > limits.headers or size > limits.header_bytes:
            raise errors.ApiError(431, errors.TOO_LARGE, "The request's headers are too large.")

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        limit = self._services.limits.body_bytes
        said = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        too_large = errors.ApiError(413, errors.TOO_LARGE, f"The request's body is larger than {limit} bytes.")
        if not said.isdigit() or int(said[:20]) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._services.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise errors.ApiError(408, errors.TOO_LARGE, "The request's body does not arrive.") from None

    def _report(self, scope: Scope, arrival: Arrival, status: int, seconds: float) -> None:
        if self._observe is not None:
            route = scope.get("route")  # what no route takes has none: its paths are without number
            self._observe(scope["method"] if route else "", getattr(route, "path", ""), status, seconds)
        path = arrival.received.raw_path.decode("ascii", "backslashreplace")
        user = arrival.principal.user if arrival.principal else "-"
        _log.info(
            "%s %s %s %.1f ms request=%s user=%s from=%s",
            scope["method"], path, status or "gone", seconds * 1000, arrival.request_id, user, arrival.source,
        )  # fmt: skip


class _Answering:
    """Sends, and sets what every answer carries."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = _NOT_SERVED_YET

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._request_id
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Cache-Control", "no-store")
        await self._send(message)


def arrival_of(scope: Scope) -> Arrival:
    """The request as it came in."""
    return cast(Arrival, scope["state"]["arrival"])


def decode_segment(segment: str) -> str:
    """A path parameter as the client meant it: `_routed` left slashes and percent signs encoded."""
    return unquote(segment)


def _bare(scope: Scope) -> Received:
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    scope["raw_path"] = raw
    return Received(scope["method"], raw, scope["query_string"], scope["headers"], b"")


def _routed(raw_path: bytes) -> str:
    """The path to route on: decoded segment by segment, so that an encoded slash stays inside its segment."""
    parts = (unquote_to_bytes(part).decode("utf-8", "replace") for part in raw_path.split(b"/"))
    return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever the server still says (that the client has left)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
