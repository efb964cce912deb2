"""/healthz and /readyz: whether the process lives, and whether what it needs is there.

They are for anyone, so that what the check of a store costs is bounded whoever asks: see Recent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import sqlalchemy as sa
from fastapi import APIRouter
from fastapi.responses import JSONResponse

from strongroom.ambient import Ambient
from strongroom.api import errors
from strongroom.api.services import Services

Check = Callable[[], None]
"""Proves that something the service needs is there; raises if not. Blocking is fine."""

FRESH = 10.0
"""Seconds for which an outcome is told again; and that a check may take before what it asks counts as away."""


def health_router(services: Services, ready: Mapping[str, Check]) -> APIRouter:
    """The two routes. `ready`: what is tried beside the catalog, each by its name."""
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


class Recent:
    """A check whose outcome is told again for FRESH seconds, and that one thread at a time makes: whoever asks meanwhile gets the
    outcome before, so that a store which hangs holds one request and not all of the server's threads."""

    def __init__(self, check: Check, ambient: Ambient) -> None:
        self._check, self._ambient = check, ambient
        self._lock = threading.Lock()
        self._made_at: float | None = None  # when the last outcome was
        self._begun_at = 0.0
        self._error: Exception | None = None

    def __call__(self) -> None:
        if not self._lock.acquire(blocking=False):
            if self._made_at is None or self._ambient.monotonic() - self._begun_at >= FRESH:
                raise TimeoutError("the check before has not ended")
        else:
            try:
                self._make()
            finally:
                self._lock.release()
        if self._error is not None:
            raise self._error

    def _make(self) -> None:
        self._begun_at = now = self._ambient.monotonic()
        if self._made_at is not None and now - self._made_at < FRESH:
            return
        try:
            self._check()
        except Exception as error:  # told by each call until the next outcome
            self._error = error
        else:
            self._error = None
        self._made_at = self._ambient.monotonic()


def _holds(name: str, check: Check) -> bool:
    try:
        check()
    except Exception:  # the top of a probe: whatever fails is the answer
        errors.log.exception("not ready: %s", name)
        return False
    return True
