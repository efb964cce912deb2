"""Forgetting tokens that have ended by themselves, every hour.

Nothing depends on it: a token's end is looked at whenever it is used. It keeps the table from growing for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom.ambient import Ambient
from strongroom.catalog.database import Catalog
from strongroom.identity import tokens
from strongroom.jobs.port import Running
from strongroom.jobs.schedules import Schedule

HOURLY = Schedule("expired tokens", "forget-tokens", 3600.0, {})

KEEP = 24 * 3600.0
"""Seconds that the row of an expired token stays: so long its user is told that it has expired, and not that it is not known."""

_BATCH = 1_000  # rows that one transaction removes


class ForgetTokensJob:
    """The job `forget-tokens`."""

    def __init__(self, catalog: Catalog, ambient: Ambient) -> None:
        self._catalog, self._ambient = catalog, ambient

    def run(self, job: Running) -> Mapping[str, Any]:
        forgotten, more = 0, True
        while more:
            job.check()
            with self._catalog.write(job.guard) as conn:
                count = tokens.forget_expired(conn, self._ambient.now() - KEEP, _BATCH)
            forgotten += count
            more = count == _BATCH
        return {"tokens": forgotten}

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Nothing hangs on it: the next hour's forgets the rest."""
