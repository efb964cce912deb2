"""Forgetting old internal jobs. A project's jobs are kept: a job stays findable by its id."""

from __future__ import annotations

import sqlalchemy as sa

from strongroom.catalog.tables import job as t
from strongroom.jobs.leases import LeasedJobs

_BATCH = 1000  # rows that one transaction removes


def purge(jobs: LeasedJobs, keep: float) -> int:
    """Removes up to a thousand internal jobs that ended more than `keep` seconds ago; returns how many. Raises DBAPIError."""
    old = sa.select(t.c.id).where(
        t.c.project.is_(None), t.c.state.in_(("DONE", "FAILED", "CANCELLED")), t.c.finished_at < jobs.clock.now() - keep
    )
    with jobs.catalog.write() as conn:
        return conn.execute(sa.delete(t).where(t.c.id.in_(old.limit(_BATCH)))).rowcount
