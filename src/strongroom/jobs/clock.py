"""Whose time leases, pauses and deadlines go by: one clock for all workers of a catalog."""

from __future__ import annotations

from typing import Protocol

import sqlalchemy as sa

from strongroom.ambient import Ambient


class LeaseClock(Protocol):
    """The time, as an SQL expression: seconds since the epoch."""

    def now(self) -> sa.ColumnElement[float]:
        """To be used within one statement; made anew for each."""


class DatabaseClock:
    """The database server's clock: hosts need not agree on the time."""

    def __init__(self, postgres: bool) -> None:
        text = "extract(epoch FROM clock_timestamp())" if postgres else "(julianday('now') - 2440587.5) * 86400.0"
        self._now: sa.ColumnElement[float] = sa.literal_column(f"CAST({text} AS double precision)", sa.Double)

    def now(self) -> sa.ColumnElement[float]:
        return self._now


class AmbientClock:
    """The injected clock: a simulation decides when leases expire."""

    def __init__(self, ambient: Ambient) -> None:
        self._ambient = ambient

    def now(self) -> sa.ColumnElement[float]:
        return sa.literal(self._ambient.now(), sa.Double)
