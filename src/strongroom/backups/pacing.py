"""Kind to the source: how fast captures may take bytes from it, and how many jobs a worker runs at once.

Limits are rows of the catalog, so that whoever sets them need not know where a job runs. A capture looks at them once a second
and a worker before each job it claims: what is set takes effect in what runs already. Nothing is safe because of a limit, so
a catalog that is away for a while leaves the last ones known.

Bytes are paid for after they were taken: a piece goes through at once, and the next waits until time has paid for it. So there is
no burst after a pause, and a limit that is raised is felt at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from strongroom.backups.allowance import Allowance
from strongroom.backups.context import Context
from strongroom.backups.registered import lock_instance
from strongroom.catalog import tables as t
from strongroom.jobs.outages import is_outage
from strongroom.jobs.port import Running

WORKER = "worker"
"""The subject of limits that hold for each worker process."""

_LOOK_EVERY = 1.0  # seconds between two looks at the limits
_LONGEST_PAUSE = 0.25  # seconds between two looks at the job
_AT_SOURCES = ("backup", "restore", "import")  # kinds of jobs that enter a database


@dataclass(frozen=True, slots=True)
class Limits:
    """None is no limit. `default`: nobody has set them."""

    bytes_per_second: int | None
    jobs: int | None = None
    default: bool = False


def limits_of(ctx: Context, conn: Connection, subject: str) -> Limits:
    """The limits of an instance, or of WORKER."""
    row = conn.execute(sa.select(t.limits).where(t.limits.c.subject == subject)).first()
    if row is not None:
        return Limits(row.bytes_per_second, row.jobs)
    return Limits(None if subject == WORKER else ctx.options.source_rate, default=True)


def set_for_instance(
    ctx: Context, project: str, instance: str, limits: Limits | None, note: Callable[[Connection], None]
) -> None:
    """Sets an instance's limits, or the default with None. Raises errors.NoSuchInstance."""
    with ctx.catalog.write() as conn:
        lock_instance(conn, project, instance)
        _put(conn, instance, limits)
        note(conn)


def set_for_workers(ctx: Context, limits: Limits | None, note: Callable[[Connection], None]) -> None:
    """Sets the limits of each worker process, or none."""
    with ctx.catalog.write() as conn:
        _put(conn, WORKER, limits)
        note(conn)


def _put(conn: Connection, subject: str, limits: Limits | None) -> None:
    conn.execute(sa.delete(t.limits).where(t.limits.c.subject == subject))
    if limits is not None:
        values = {"bytes_per_second": limits.bytes_per_second, "jobs": limits.jobs}
        conn.execute(t.limits.insert().values(subject=subject, **values))


class Pacer:
    """The control of a capture: the running job, and the limits of its source and its worker."""

    def __init__(self, ctx: Context, job: Running, instance: str) -> None:
        self._ctx, self._job, self._instance = ctx, job, instance
        self._own, self._shared = Allowance(), ctx.allowance
        self._rates: tuple[int | None, int | None] = (ctx.options.source_rate, None)
        self._looked: float | None = None
        self._taken = self._passed = 0

    @property
    def args(self) -> Mapping[str, Any]:
        """The job's."""
        return self._job.args

    def check(self) -> None:
        """See Control."""
        self._job.check()

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        """See Control."""
        self._job.progress(phase, done, total)

    def took(self, size: int) -> None:
        """See CaptureControl."""
        self._taken += size
        self._pay(size)

    def passed(self, size: int) -> None:
        """Bytes that an adapter handed on: paid for now, unless `took` has told of them."""
        self._passed += size
        untold = self._passed - self._taken
        if untold > 0:
            self.took(untold)

    def _pay(self, size: int) -> None:
        now = self._ctx.ambient.monotonic
        both = (self._own, self._shared)
        for allowance, rate in zip(both, self._look(), strict=True):
            allowance.take(size, rate, now())
        while (pause := max(one.wait(rate, now()) for one, rate in zip(both, self._look(), strict=True))) > 0:
            self._job.check()
            self._ctx.ambient.sleep(min(pause, _LONGEST_PAUSE))

    def _look(self) -> tuple[int | None, int | None]:
        """The rates of source and worker, read anew once a second."""
        now = self._ctx.ambient.monotonic()
        if self._looked is None or now - self._looked >= _LOOK_EVERY:
            self._looked = now
            try:
                with self._ctx.catalog.read() as conn:
                    source, worker = (limits_of(self._ctx, conn, subject) for subject in (self._instance, WORKER))
                self._rates = (source.bytes_per_second, worker.bytes_per_second)
            except DBAPIError as error:
                if not is_outage(error):
                    raise
        return self._rates


def claimable(ctx: Context, kinds: Collection[str], running: Collection[str]) -> Collection[str]:
    """Which kinds of jobs a worker may begin beside those that it runs: no backup or restore beyond its limit."""
    with ctx.catalog.read() as conn:
        most = limits_of(ctx, conn, WORKER).jobs
    if most is None or sum(kind in _AT_SOURCES for kind in running) < most:
        return kinds
    return [kind for kind in kinds if kind not in _AT_SOURCES]
