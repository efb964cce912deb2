"""Who asks: how a resource's module says that its calls need a caller, and with which permission.

    router = authenticated_router("backups")

    @router.delete("/v3/{project_id}/backups/{backup_id}", status_code=202)
    def delete_backup(
        backup_id: BackupId, caller: Annotated[Principal, may("gaussdbfornosql:instance:deleteBackup")]
    ) -> JobAccepted: …

Order of refusals: 401 (no proof), 429, 400 DBS.200010 (the path's project is not the caller's), then a body that is not JSON,
403 (no permission), and whatever is wrong with the rest of the path, the query and the body. So nothing is parsed for a
caller whom nobody knows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from starlette.concurrency import run_in_threadpool

from strongroom.api import errors
from strongroom.api.contract import ProjectId
from strongroom.api.limiter import Limiter
from strongroom.api.middleware import arrival_of, decode_segment
from strongroom.api.refusal_records import note_refusal
from strongroom.api.services import Services
from strongroom.identity import principal as identity
from strongroom.identity.callers import Asked, identify
from strongroom.identity.errors import WrongProject
from strongroom.identity.policies import ACTIONS
from strongroom.identity.principal import Principal

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_token_scheme = APIKeyHeader(
    name="X-Auth-Token",
    scheme_name="Token",
    description="A token from POST /v3/auth/tokens (header X-Subject-Token of its answer), 24 hours.",
    auto_error=False,
)
_signature_scheme = APIKeyHeader(
    name="Authorization",
    scheme_name="Signature",
    description="SDK-HMAC-SHA256 Access=…, SignedHeaders=…, Signature=… with X-Sdk-Date, as the SDK sends it.",
    auto_error=False,
)


class _Asking(Request):
    """A request whose JSON is UTF-8 and holds text alone: half a character or a NUL can be kept by no database, and is nobody's
    name."""

    async def json(self) -> Any:
        text = (await self.body()).decode("utf-8-sig")  # of bytes json.loads guesses the coding, and takes half characters
        value = json.loads(text)
        if "\\u" in text:  # raw they are no JSON
            _require_text(value)
        return value


def _require_text(value: Any) -> None:
    """Raises ValueError for a text, at any depth, that is none."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            one.encode()
            if "\x00" in one:
                raise ValueError("a NUL in a text")
        elif isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one


class PublicRoute(APIRoute):
    """A route whose path parameters reach the handler decoded."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def decoded(request: Request) -> Response:
            _decode(request)
            return await handle(_Asking(request.scope, request.receive))

        return decoded


async def _project(project_id: ProjectId) -> str:
    """Puts the path's project among the parameters that the documents show."""
    return project_id


class AuthenticatedRoute(APIRoute):
    """A route that knows its caller before anything of the request is parsed."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if "{project_id}" in path:
            options["dependencies"] = [*(options.get("dependencies") or ()), Depends(_project)]
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def authenticated(request: Request) -> Response:
            _decode(request)
            services: Services = request.app.state.services
            arrival = arrival_of(request.scope)
            asked = Asked(request.path_params.get("project_id"), arrival.request_id, arrival.source, arrival.secure)
            stranger: WrongProject | None = None  # to the path's project
            try:
                arrival.principal = await run_in_threadpool(
                    identify, services.catalog, services.ambient, services.sealer, arrival.received, asked
                )
            except WrongProject as error:
                stranger, arrival.principal = error, error.caller
            users: Limiter = request.app.state.users
            if wait := users.take(arrival.principal.user):
                raise errors.TooManyRequests("user", wait)
            try:
                if stranger is not None:
                    raise stranger
                return await handle(_Asking(request.scope, request.receive))
            except Exception as error:
                if request.method != "GET":
                    name = self.endpoint.__name__
                    await run_in_threadpool(note_refusal, services, arrival.principal, name, request.path_params, error)
                raise

        return authenticated


def public_router(tag: str) -> APIRouter:
    """A router for calls that need no caller."""
    tags: list[str | Enum] = [tag]
    return APIRouter(tags=tags, route_class=PublicRoute)


def authenticated_router(tag: str) -> APIRouter:
    """A router whose every call needs a caller. A path parameter {project_id} is checked against the caller's projects."""
    tags: list[str | Enum] = [tag]
    schemes = [Depends(_token_scheme), Depends(_signature_scheme)]
    return APIRouter(tags=tags, route_class=AuthenticatedRoute, dependencies=schemes)


async def current(request: Request) -> Principal:
    """The caller of a call on an authenticated router."""
    principal = arrival_of(request.scope).principal
    assert principal is not None, "the call is not on an authenticated router"
    return principal


Caller = Annotated[Principal, Depends(current)]
"""A handler's parameter: the caller, whatever their permissions."""


def may(action: str) -> Any:
    """A dependency on a caller who has the permission (an identity name in policies.ACTIONS); 403 names it else."""
    if action not in ACTIONS:
        raise LookupError(f"no action {action}")

    async def permitted(caller: Caller) -> Principal:
        identity.authorize(caller, action)
        return caller

    return Depends(permitted)


def _decode(request: Request) -> None:
    request.scope["path_params"] = {name: decode_segment(value) for name, value in request.path_params.items()}
