"""Putting the border together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import BoundedSemaphore
from typing import Any

from fastapi import APIRouter, FastAPI

from strongroom import __version__
from strongroom.api import errors, identity, tokens, versions
from strongroom.api.contract import ErrorBody
from strongroom.api.documents import documents_router
from strongroom.api.health import Check, health_router
from strongroom.api.limiter import Limiter
from strongroom.api.middleware import Border, Observe
from strongroom.api.services import Services, provide

_TITLE = "Strongroom"
_DESCRIPTION = "Backups of databases that are deleted exactly: GeminiDB's backup API and Strongroom's own calls."


def build_app(
    services: Services,
    routers: Sequence[APIRouter] = (),
    *,
    objects: Mapping[type, Any] | None = None,
    ready: Mapping[str, Check] | None = None,
    observe: Observe | None = None,
) -> FastAPI:
    """The whole border as an ASGI app.

    `routers` are the resources' (made by authentication.authenticated_router or public_router), `objects` what their handlers ask
    for with services.given, `ready` what /readyz tries beside the catalog; `observe` is told of each request. Register domain
    errors in errors.ANSWERS before.
    """
    app = FastAPI(
        title=_TITLE,
        description=_DESCRIPTION,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # below 400 everything is success to clients: never answer 3xx
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.state.services = services
    app.state.users = Limiter(services.limits.per_user, services.ambient)
    app.state.logins = Limiter(services.limits.logins_per_address, services.ambient)
    app.state.password_turns = BoundedSemaphore(tokens.PASSWORDS_AT_ONCE)
    provide(app, {Services: services, **(objects or {})})
    errors.install(app)
    app.add_middleware(Border, services=services, observe=observe)
    own = (health_router(services, ready or {}), documents_router(_TITLE), *tokens.ROUTERS, identity.router)
    for router in (*own, *routers, versions.router):  # versions last: its /{version} matches any single word
        app.include_router(router)
    return app
