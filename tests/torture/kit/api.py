"""The service as its clients see it: signed HTTP requests, any of which may never be answered."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from strongroom.cli.client import Signer
from torture.kit.servers import Server
from torture.kit.story import Story

_SECONDS = 12.0  # longer than a server is stopped, mostly
_PAGE = 100


class NoAnswer(Exception):
    """Nobody knows whether the request was carried out."""


class Stuck(Exception):
    """The service does not come to an end although nothing is wrong any more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, the error's code if it is one, and the body."""

    status: int
    code: str
    body: dict[str, Any]

    @property
    def definite(self) -> bool:
        """Whether it says for certain what was decided: an error of the server may come after a decision."""
        return self.status < 500 and self.status != 429

    def __str__(self) -> str:
        return f"{self.status} {self.code} {self.body.get('error_msg', '')}".strip()


class Api:
    """The servers of one catalog; each request goes to any of them."""

    def __init__(self, servers: Sequence[Server], credentials: dict[str, str], story: Story) -> None:
        self._servers, self._story = servers, story
        self.project = credentials["project_id"]
        signer = Signer(credentials["access_key"], credentials["secret_key"], time.time)
        self._http = httpx.Client(auth=signer, trust_env=False, timeout=httpx.Timeout(_SECONDS, connect=2.0))
        self._lock = threading.Lock()
        self._answered = time.monotonic()

    def close(self) -> None:
        """Ends the client."""
        self._http.close()

    def own(self, path: str) -> str:
        """A path of Strongroom's own API."""
        return f"/strongroom/v1/{self.project}/{path}"

    def contract(self, path: str) -> str:
        """A path of the contract's API: "v3/backups/…"."""
        version, _, rest = path.partition("/")
        return f"/{version}/{self.project}/{rest}"

    def ask(
        self, rnd: random.Random, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None,
        query: dict[str, Any] | None = None,
    ) -> Answer:  # fmt: skip
        """One request to one server; to the next where nobody listens. Raises NoAnswer."""
        reason = "no server"
        for server in rnd.sample(list(self._servers), len(self._servers)):
            try:
                reply = self._http.request(method, server.endpoint + path, json=body, headers=headers, params=query)
            except httpx.ConnectError as error:
                reason = f"{server.name}: {error!r}"
                continue
            except httpx.HTTPError as error:
                raise NoAnswer(f"{server.name}: {error!r}") from error
            return self._read(reply)
        raise NoAnswer(reason)

    def insist(
        self, rnd: random.Random, method: str, path: str, body: Any = None, *, query: dict[str, Any] | None = None,
        seconds: float = 60.0,
    ) -> Answer:  # fmt: skip
        """Asks until there is a definite answer. Raises Stuck."""
        end = time.monotonic() + seconds
        last = "nothing"
        while time.monotonic() < end:
            with contextlib.suppress(NoAnswer):
                answer = self.ask(rnd, method, path, body, query=query)
                if answer.definite:
                    return answer
                last = str(answer)
            time.sleep(0.2)
        raise Stuck(f"{method} {path} has no definite answer within {seconds:.0f} s: {last}")

    def pages(self, rnd: random.Random, path: str, items: str, **query: Any) -> list[dict[str, Any]]:
        """All items of a list, insisting."""
        found: list[dict[str, Any]] = []
        while True:
            answer = self.insist(rnd, "GET", path, query={**query, "limit": _PAGE, "offset": len(found)})
            if answer.status != 200:
                raise Stuck(f"GET {path}: {answer}")
            page = answer.body[items]
            found += page
            if len(page) < _PAGE:
                return found

    def _read(self, reply: httpx.Response) -> Answer:
        with self._lock:
            now = time.monotonic()
            self._story.took("time without any answer of the API", now - self._answered)
            self._answered = now
        self._story.count("answers of the API")
        body = reply.json() if reply.content else {}
        return Answer(reply.status_code, str(body.get("error_code", "")) if reply.is_error else "", body)
