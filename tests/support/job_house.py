"""Jobs of one catalog, asked for and waited for."""

from __future__ import annotations

import time
from typing import Any

from strongroom.catalog.database import Catalog
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import JobView


class JobHouse:
    """Jobs of the kind `work`."""

    catalog: Catalog
    jobs: LeasedJobs

    def submit(self, **options: Any) -> str:
        with self.catalog.write() as conn:
            return self.jobs.submit(conn, "work", {}, **options)

    def get(self, job: str) -> JobView:
        with self.catalog.read() as conn:
            found = self.jobs.get(conn, job)
        assert found is not None
        return found

    def wait(self, job: str, *states: str, seconds: float = 20.0) -> JobView:
        """The job once it is in one of these states."""
        until = time.monotonic() + seconds
        while (shown := self.get(job)).state not in states:
            assert time.monotonic() < until, f"still {shown}"
            time.sleep(0.01)
        return shown
