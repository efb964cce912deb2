"""A moment in words."""

from __future__ import annotations

from datetime import UTC, datetime


def utc(at: float) -> str:
    """Seconds since the epoch, for people."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
