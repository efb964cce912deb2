"""A server for the command line's tests that opens no socket: canned answers, and a record of what was asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from click.testing import CliRunner, Result

from strongroom.cli.context import Outside
from strongroom.cli.main import strongroom

ENVIRON = {
    "STRONGROOM_ENDPOINT": "http://strongroom.test:8480",
    "STRONGROOM_PROJECT_ID": "0123456789abcdef0123456789abcdef",
    "STRONGROOM_ACCESS_KEY": "AK",
    "STRONGROOM_SECRET_KEY": "SK",
}
PROJECT = ENVIRON["STRONGROOM_PROJECT_ID"]
OWN = f"/strongroom/v1/{PROJECT}"

Answer = Any  # a JSON value for 200, (status, JSON value), an httpx.Response, an exception, or a function of the request


class Still:
    """An ambient whose clock moves only by sleeping."""

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.at = at
        self.slept: list[float] = []

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds

    def hex_id(self) -> str:
        return "0" * 32

    def uuid(self) -> str:
        return "00000000-0000-0000-0000-000000000000"

    def key(self) -> bytes:
        return bytes(32)


@dataclass
class FakeServer:
    """Answers by "METHOD path". A list of answers is given out one by one, the last one again and again."""

    answers: Mapping[str, Answer | list[Answer]]
    environ: Mapping[str, str] = field(default_factory=lambda: ENVIRON)
    ambient: Still = field(default_factory=Still)
    requests: list[httpx.Request] = field(default_factory=list)

    def asked(self) -> list[str]:
        """What was asked, as "METHOD path?query"."""
        return [f"{one.method} {one.url.raw_path.decode()}" for one in self.requests]

    def bodies(self) -> list[Any]:
        """The JSON bodies of the requests that had one."""
        return [json.loads(one.content) for one in self.requests if one.content]

    def run(self, *arguments: str, stdin: str | None = None) -> Result:
        """Runs `strongroom` with these arguments."""
        outside = Outside(httpx.MockTransport(self._handle), self.ambient, self.environ)
        return CliRunner().invoke(strongroom, arguments, obj=outside, input=stdin, prog_name="strongroom")

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        found = self.answers.get(f"{request.method} {request.url.path}")
        if found is None:
            return httpx.Response(404, json={"error_code": "APIGW.0101", "error_msg": f"no {request.method} {request.url.path}"})
        if isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]
        return _response(found, request)


def _response(answer: Answer, request: httpx.Request) -> httpx.Response:
    if isinstance(answer, Exception):
        raise answer
    if isinstance(answer, Callable):
        return _response(answer(request), request)
    if isinstance(answer, httpx.Response):
        return answer
    status, value = answer if isinstance(answer, tuple) else (200, answer)
    return httpx.Response(status, json=value)


def refusal(status: int, code: str, message: str) -> tuple[int, dict[str, str]]:
    """An error of the API."""
    return status, {"error_code": code, "error_msg": message}
