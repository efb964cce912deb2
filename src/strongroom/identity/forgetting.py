"""Forgetting tokens and temporary keys that have ended by themselves, every hour.

Nothing depends on it: their end is looked at whenever they are used. It keeps the tables from growing for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection

from strongroom.ambient import Ambient
from strongroom.catalog.database import Catalog
from strongroom.identity import temporary, tokens
from strongroom.jobs.port import Running
from strongroom.jobs.schedules import Schedule

HOURLY = Schedule("expired tokens", "forget-tokens", 3600.0, {})

KEEP = 24 * 3600.0
"""Seconds that the row of an expired token or key stays: so long its user is told that it has expired."""

_BATCH = 1_000  # rows that one transaction removes


class ForgetTokensJob:
    """The job `forget-tokens`."""

    def __init__(self, catalog: Catalog, ambient: Ambient) -> None:
        self._catalog, self._ambient = catalog, ambient

    def run(self, job: Running) -> Mapping[str, Any]:
        return {"tokens": self._forget(job, tokens.forget_expired), "keys": self._forget(job, temporary.forget_expired)}

    def _forget(self, job: Running, batch: Callable[[Connection, float, int], int]) -> int:
        forgotten, more = 0, True
        while more:
            job.check()
            with self._catalog.write(job.guard) as conn:
                count = batch(conn, self._ambient.now() - KEEP, _BATCH)
            forgotten += count
            more = count == _BATCH
        return forgotten

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Nothing hangs on it: the next hour's forgets the rest."""
