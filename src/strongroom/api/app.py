"""Putting the border together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse

from strongroom import __version__
from strongroom.api import errors, identity, tokens, versions
from strongroom.api.contract import ErrorBody
from strongroom.api.documents import documents_router
from strongroom.api.limiter import Limiter
from strongroom.api.middleware import Border, Observe
from strongroom.api.services import Services, provide

Check = Callable[[], None]
"""Proves that something the service needs is there; raises if not. Blocking is fine."""

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
    provide(app, {Services: services, **(objects or {})})
    errors.install(app)
    app.add_middleware(Border, services=services, observe=observe)
    own = (_health(services, ready or {}), documents_router(_TITLE), *tokens.ROUTERS, identity.router)
    for router in (*own, *routers, versions.router):  # versions last: its /{version} matches any single word
        app.include_router(router)
    return app


def _health(services: Services, ready: Mapping[str, Check]) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    def catalog() -> None:
        with services.catalog.read() as conn:
            conn.execute(sa.select(1))

    checks = {"catalog": catalog, **ready}

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @router.get("/readyz")
    def readyz() -> JSONResponse:
        """What the service needs is there. Names what is not, never why: that is in the log."""
        failed = [name for name, check in checks.items() if not _holds(name, check)]
        if failed:
            return errors.answer(503, errors.SERVER_ERROR, f"Not ready: {', '.join(failed)}.")
        return JSONResponse({"status": "ready"})

    return router


def _holds(name: str, check: Check) -> bool:
    try:
        check()
    except Exception:  # the top of a probe: whatever fails is the answer
        errors.log.exception("not ready: %s", name)
        return False
    return True
