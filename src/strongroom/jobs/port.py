"""The jobs port: durable work, submitted in the caller's transaction, owned by one worker at a time.

A job runs at least once, so handlers are idempotent; a worker that was paused and replaced is fenced by `Running.guard`, the
first statement of every transaction that a handler writes in.

How a handler ends:
    returns             DONE with its result (unless it finished itself in its own last transaction: Running.finish)
    JobFailed           FAILED for good, with a sentence for people
    TryAgain            queued again after a pause: an error that will pass
    Cancelled           someone asked; CANCELLED
    Draining            the process is stopping: queued again at once, not counted as an attempt
    JobLost             another worker owns it now: stop, write nothing (a BaseException, so that nothing swallows it)
    any other exception a defect: logged with its traceback, tried again with back-off while attempts are left
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection


class JobFailed(Exception):
    """The job cannot succeed; the text says why and what to do, and becomes fail_reason. `result` is what programs are told."""

    def __init__(self, reason: str, result: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.result = result


class TryAgain(Exception):
    """An error that will pass; `after` seconds is the pause, None for the port's own back-off."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Cancelled(Exception):
    """Somebody asked for the end of this job, or its deadline passed. `result` as that of JobFailed."""

    def __init__(self, reason: str = "", result: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.result = result


class Draining(Exception):
    """The process is stopping; the job goes on elsewhere or after the restart."""


class JobLost(BaseException):
    """Another worker owns the job."""


class DuplicateJob(Exception):
    """A job of the same unique key is queued or running; `id` is that job's."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"already queued or running: job {job_id}")
        self.id = job_id


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as lists show it. Times in seconds since the epoch."""

    id: str
    kind: str
    args: Mapping[str, Any]
    project: str | None
    instance: str | None
    backup: str | None
    state: str  # QUEUED, RUNNING, DONE, FAILED, CANCELLED
    attempts: int
    progress: Mapping[str, Any] | None  # {"phase": str, "done": int, "total": int | None}
    result: Mapping[str, Any] | None
    error: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None

    @property
    def active(self) -> bool:
        """Queued or running."""
        return self.state in ("QUEUED", "RUNNING")


class Jobs(Protocol):
    """The caller's side. Every method works inside the caller's transaction and takes effect with it."""

    def submit(
        self,
        conn: Connection,
        kind: str,
        args: Mapping[str, Any],
        *,
        id: str | None = None,
        project: str | None = None,
        instance: str | None = None,
        backup: str | None = None,
        queue: str = "default",
        serial: str | None = None,
        unique_key: str | None = None,
        priority: int = 100,
        delay: float = 0.0,
        max_attempts: int | None = None,
        timeout: float | None = None,
    ) -> str:
        """Queues a job and returns its id. `serial`: one of these keys runs at a time; `unique_key`: one of these is active at a
        time (DuplicateJob else); `project` None: internal, in no list. Lower `priority` first; `timeout` in seconds."""

    def cancel(self, conn: Connection, id: str) -> None:
        """A queued job shows as CANCELLED from this commit on, and a worker calls its handler's give_up as soon as no job of
        its serial key runs; a running one is asked to end and may still end otherwise. An ended one stays as it is. Locks the
        job's row, so it comes before backups and lineages are locked."""

    def revoke(self, conn: Connection, id: str, reason: str) -> None:
        """Ends a job as CANCELLED with this transaction: whoever runs it is fenced, no give_up is called, its unique key is free.
        For a caller who decides in the same transaction what becomes of the job's subject. An ended one stays as it is. Locks
        the job's row, as cancel does."""

    def reschedule(self, conn: Connection, id: str, delay: float) -> None:
        """A queued job is due in `delay` seconds from now on; any other stays as it is. Locks the job's row, as cancel does."""

    def get(self, conn: Connection, id: str) -> JobView | None:
        """One job, whatever its age."""


class Running(Protocol):
    """A job as its handler sees it. It is a `Control` for engines too."""

    id: str
    args: Mapping[str, Any]
    epoch: int  # raised by each claim: 1 at the first, and above 1 if anybody may have worked on this before
    attempts: int  # 1 at the first run; runs that ended by draining or a database outage do not count

    def guard(self, conn: Connection) -> None:
        """Locks the job's row and proves that it is still ours; raises JobLost. First statement of every transaction."""

    def check(self) -> None:
        """Raises JobLost, Cancelled or Draining where due. Cheap: once a second and per batch."""

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        """Kept in memory and written by the heartbeat; also a check()."""

    def finish(self, conn: Connection, result: Mapping[str, Any]) -> None:
        """Ends the job as DONE in the handler's own, guarded, last transaction."""

    def fail(self, conn: Connection, reason: str) -> None:
        """Ends the job as FAILED in the handler's own, guarded transaction."""


class Handler(Protocol):
    """One kind of job."""

    def run(self, job: Running) -> Mapping[str, Any] | None:
        """Does the work; see the module's head for how it may end."""

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Called with the job still owned, before it ends as `outcome` FAILED or CANCELLED other than by its own `fail`: the
        place to decide what becomes of the job's subject (in a guarded transaction, which may call job.fail). After a crash
        or an error in here the job is claimed again and `run` or this is called again, so it is idempotent too. `check`
        raises nothing but JobLost in here."""
