"""The one place where an error becomes an answer: the contract's status and code.

Every answer of status 400 and above has the body {"error_code", "error_msg"} and nothing else: clients read no more. A domain
raises its own errors; a row of ANSWERS says what they are outside. The nearest class of an error's ancestry counts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from strongroom.catalog.database import CatalogBehind
from strongroom.identity import errors as identity
from strongroom.identity.accounts import NameInvalid

log = logging.getLogger("strongroom.api")

PARAMETER_ERROR = "DBS.200001"
SERVER_ERROR = "DBS.280005"
UNKNOWN_API = "APIGW.0101"
TOO_LARGE = "APIGW.0201"
NOT_AUTHENTICATED = "APIGW.0301"
TOO_MANY = "DBS.280443"
NOT_FOUND = "IAM.0004"
NOT_ALLOWED_NOW = "DBS.200019"
_LONGEST_MESSAGE = 2000


class ApiError(Exception):
    """An answer decided at the border itself."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})


class ParameterError(ApiError):
    """The request's content is not what the call takes."""

    def __init__(self, message: str, code: str = PARAMETER_ERROR) -> None:
        super().__init__(400, code, message)


class TooManyRequests(ApiError):
    """The caller goes too fast; `after` is in whole seconds."""

    def __init__(self, who: str, after: int) -> None:
        message = f"Too many requests from this {who}. Try again in {after} s."
        super().__init__(429, TOO_MANY, message, {"Retry-After": str(after)})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a domain's error is outside. `message` is a form with {} for the error's own text."""

    status: int
    code: str
    message: str = "{}"


ANSWERS: dict[type[Exception], Answer] = {
    CatalogBehind: Answer(503, SERVER_ERROR, "The service is being upgraded. Try again later."),
    identity.Unauthenticated: Answer(401, NOT_AUTHENTICATED, "Incorrect IAM authentication information: {}"),
    identity.WrongProject: Answer(400, "DBS.200010"),
    identity.Forbidden: Answer(403, "DBS.280032"),
    identity.NotKnown: Answer(404, NOT_FOUND),
    identity.NameTaken: Answer(400, PARAMETER_ERROR),
    identity.LastAdministrator: Answer(403, NOT_ALLOWED_NOW),
    identity.PolicyInvalid: Answer(400, PARAMETER_ERROR),
    identity.CodeRefused: Answer(400, PARAMETER_ERROR),
    identity.WeakPassword: Answer(400, PARAMETER_ERROR),
    NameInvalid: Answer(400, PARAMETER_ERROR),
}
"""Errors of the domains. An error that is in no row, nor any of its ancestors, is our fault: 500."""


def row_of(error: Exception) -> Answer | None:
    """What an error of a domain is outside; None if it is our fault."""
    return next((ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS), None)


def install(app: FastAPI) -> None:
    """Makes the app answer every error in the contract's form."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for kind in ANSWERS:
        app.add_exception_handler(kind, _domain_error)


def answer(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error's response. Text that no client could decode is escaped."""
    safe = message[:_LONGEST_MESSAGE].encode("utf-8", "backslashreplace").decode()
    extra = dict(headers or {})
    if status == 401:
        extra.setdefault("WWW-Authenticate", "SDK-HMAC-SHA256")
    return JSONResponse({"error_code": code, "error_msg": safe}, status, extra)


def server_error() -> JSONResponse:
    """Our fault. Says nothing of it: the log does, under the same request id."""
    return answer(500, SERVER_ERROR, "Server error. Try again later.")


async def _api_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return answer(error.status, error.code, error.message, error.headers)


async def _domain_error(_request: Request, error: Exception) -> JSONResponse:
    row = row_of(error)
    assert row is not None
    return answer(row.status, row.code, row.message.replace("{}", str(error)))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = error.headers
    if error.status_code == 404:
        return answer(404, UNKNOWN_API, "The API does not exist.", headers)
    if error.status_code == 405:
        return answer(405, UNKNOWN_API, "The API does not take this method.", {"Allow": ", ".join(_methods(request))})
    if error.status_code == 400:
        return answer(400, PARAMETER_ERROR, "Parameter error: the body cannot be read.", headers)
    return answer(error.status_code, PARAMETER_ERROR, str(error.detail), headers)


def _methods(request: Request) -> list[str]:
    """What the path takes. Each route knows its own method alone."""
    scope = {"type": "http", "path": request.scope["path"], "root_path": "", "headers": []}
    fits = [(method, {**scope, "method": method}) for method in ("GET", "POST", "PUT", "DELETE")]
    return [method for method, asked in fits if any(route.matches(asked)[0] is Match.FULL for route in request.app.routes)]


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """The first thing wrong decides. A value of the contract's types carries its own code (contract.coded)."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"].startswith("DBS."):
        return answer(400, first["type"], first["msg"])
    if first["type"] == "json_invalid":
        return answer(400, PARAMETER_ERROR, "Parameter error: the body is not JSON.")
    if isinstance(error.body, bytes):
        return answer(400, PARAMETER_ERROR, "Parameter error: the body is not read: its Content-Type is not application/json.")
    place = ".".join(str(step) for step in first["loc"] if step not in ("body", "query", "path", "header")) or "body"
    return answer(400, PARAMETER_ERROR, f"Parameter error: {place}: {first['msg']}")
