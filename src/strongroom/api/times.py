"""Times of our own calls: ISO 8601, UTC."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from strongroom.api.contract import in_utc


def iso(seconds: float | None) -> str | None:
    """ "2026-11-24T15:04:05.123Z"; None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_not_before(seconds: float) -> str:
    """The same, rounded up to the millisecond: for the first moment of a period, which read back must lie in it."""
    return datetime.fromtimestamp(math.ceil(seconds * 1000) / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("a time is text in ISO 8601")
    found = datetime.fromisoformat(value)
    return in_utc(found if found.tzinfo is not None else found.replace(tzinfo=UTC))


Moment = Annotated[float, BeforeValidator(_read), WithJsonSchema({"type": "string", "example": "2026-11-24T15:04:05.123Z"})]
"""A time in a request of our own, ISO 8601 with or without a fraction; UTC where it names no zone. As seconds since the epoch."""
