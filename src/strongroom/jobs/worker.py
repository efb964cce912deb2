"""Running jobs in threads: one that claims, one that keeps leases alive, one for schedules and old jobs, and one a running job.

The heartbeat renews the leases of all running jobs in one statement a second. When it cannot reach the database nothing is lost
yet: the handlers go on, their guarded transactions decide, and what a run ended with is recorded when the database is back.

A handler that has not called check() for `hung` seconds is reported as an error and its lease is let go: another process takes
the job over. This process does not claim it again while the thread is there, since two runs would share its memory.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from sqlalchemy.exc import DBAPIError

from strongroom import logs
from strongroom.catalog.database import CatalogBehind
from strongroom.jobs.claiming import Claims
from strongroom.jobs.execution import Ending, record, run
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.listening import listen
from strongroom.jobs.outages import Contact, is_outage
from strongroom.jobs.port import Handler, JobLost
from strongroom.jobs.purging import purge
from strongroom.jobs.running import OwnedJob
from strongroom.jobs.schedules import submit_due

log = logging.getLogger("strongroom.jobs")

_PURGE_EVERY = 600.0  # seconds

Claimable = Callable[[Collection[str], Collection[str]], Collection[str]]


class Worker:
    """Claims and runs jobs of some queues until it is shut down. One start and one shutdown each.

    `ttl`: seconds that a lease lives without a heartbeat, after which others take over; `beat`: between heartbeats; `poll`:
    between looks for work that nobody announced; `threads`: jobs at a time; `hung`: see the module; `keep`: seconds that ended
    internal jobs are kept. A job whose kind has no handler here is left to workers that have one. `claimable` says before
    each claim which of all kinds may be begun beside the kinds of the jobs that run here.
    """

    def __init__(
        self,
        jobs: LeasedJobs,
        handlers: Mapping[str, Handler],
        queues: Sequence[str],
        *,
        ttl: float = 6.0,
        beat: float = 1.0,
        poll: float = 1.0,
        threads: int = 8,
        hung: float = 300.0,
        keep: float = 7 * 86400.0,
        claimable: Claimable = lambda kinds, _running: kinds,
    ) -> None:
        self._jobs, self._handlers, self._queues = jobs, dict(handlers), list(queues)
        self._beat_every, self._poll, self._threads, self._hung, self._keep = beat, poll, threads, hung, keep
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{jobs.ambient.hex_id()[:12]}"
        self._claims = Claims(jobs, self.owner, ttl)
        self._claimable = claimable
        self._contact = Contact(jobs.ambient, longest_gap=ttl / 2 + poll, hold_off=ttl + beat)
        self._lock = threading.Lock()
        self._running: dict[str, OwnedJob] = {}
        self._reported: set[tuple[str, int]] = set()
        self._wake, self._draining, self._stopping = threading.Event(), threading.Event(), threading.Event()
        self._idle = threading.Condition(self._lock)
        self._own_threads: list[threading.Thread] = []
        self._starting = threading.RLock()  # a shutdown meanwhile waits for the threads that it is to end

    def start(self) -> None:
        """Begins to claim; returns at once."""
        self._jobs.subscribe(self._wake.set)
        loops: list[tuple[str, Callable[[], None]]] = [
            ("claims", self._claim_loop), ("beats", self._beat_loop), ("schedules", self._schedule_loop)
        ]  # fmt: skip
        if self._jobs.catalog.postgres:
            loops.append(("notices", lambda: listen(self._jobs.catalog.engine, self._wake.set, self._stopping)))
        with self._starting:
            for name, loop in loops:
                thread = threading.Thread(target=loop, name=f"jobs-{name}", daemon=True)
                thread.start()
                self._own_threads.append(thread)

    def shutdown(self, grace: float) -> None:
        """Claims no more, asks running jobs to stop, and after at most `grace` seconds gives back those that have not: others, or
        this process after its restart, go on at once. Not counted as attempts."""
        if self._stopping.is_set():
            return
        self._draining.set()
        self._wake.set()
        with self._idle:
            for job in self._running.values():
                job.drain()
            self._idle.wait_for(lambda: not self._running, timeout=grace)
        self._stopping.set()
        self._wake.set()
        with self._starting:
            for thread in self._own_threads:
                thread.join(timeout=5.0)
        self._jobs.unsubscribe(self._wake.set)
        self._give_back()

    # Claiming

    def _claim_loop(self) -> None:
        while not self._draining.is_set():
            if not self._quietly(self._claim_one, "looking for work"):
                self._wake.wait(self._poll * (0.9 + 0.2 * self._jobs.ambient.key()[0] / 255))
                self._wake.clear()

    def _claim_one(self) -> bool:
        with self._lock:
            mine = list(self._running)
            kinds = [job.claim.kind for job in self._running.values()]
        if len(mine) >= self._threads:
            return False
        allowed = self._claimable(list(self._handlers), kinds)
        claim = self._claims.claim(self._queues, allowed, take_over=self._contact.may_take_over(), but=mine)
        self._contact.made()
        if claim is None:
            return False
        job = OwnedJob(self._claims, claim, self._beat_every)
        with self._lock:
            self._running[job.id] = job
        if self._draining.is_set():
            job.drain()
        threading.Thread(target=self._run, args=(job,), name=f"job-{job.id}", daemon=True).start()
        return True

    # One job's thread

    def _run(self, job: OwnedJob) -> None:
        begun = self._jobs.ambient.monotonic()
        try:
            ending = run(job, self._handlers[job.claim.kind], self._jobs.ambient)
            self._record(job, ending)
            if ending.state != "QUEUED":
                _tell_end(job, ending, self._jobs.ambient.monotonic() - begun)
        except (JobLost, CatalogBehind):
            log.warning("job %s (%s): another worker owns it now", job.id, job.claim.kind)
        except Exception:
            log.exception("job %s (%s): its end could not be recorded; its lease will run out", job.id, job.claim.kind)
        finally:
            with self._idle:
                self._running.pop(job.id, None)
                self._reported.discard(job.held)
                self._idle.notify_all()
            self._wake.set()

    def _record(self, job: OwnedJob, ending: Ending) -> None:
        """Records a run's end, for as long as it takes the database to come back, or this process to stop."""
        while True:
            try:
                record(self._claims, job, ending)
                return
            except DBAPIError as error:
                if not is_outage(error) or self._stopping.is_set():
                    raise
                log.warning("job %s: its end (%s) waits for the database: %s", job.id, ending.state, error.orig)
            self._stopping.wait(self._beat_every)
            job.stay()

    # Keeping leases

    def _beat_loop(self) -> None:
        while not self._stopping.wait(self._beat_every):
            self._quietly(self._beat, "renewing leases")

    def _beat(self) -> bool:
        with self._lock:
            jobs = [job for job in self._running.values() if self._lives(job)]
        if not jobs:
            return False
        asked = self._jobs.ambient.monotonic()
        told = {job.held: job.untold_progress() for job in jobs}
        news, lost = self._claims.renew(told)
        self._contact.made()
        for job in jobs:
            if job.held in lost:
                job.lose()
            elif job.held in news:
                job.renewed(asked, news[job.held], told[job.held])
        return True

    def _lives(self, job: OwnedJob) -> bool:
        """Whether the job's handler still asks check(); reports once when it has stopped to."""
        silent = job.silent_for()
        if silent <= self._hung:
            self._reported.discard(job.held)
            return True
        if job.held not in self._reported:
            self._reported.add(job.held)
            log.error(
                "job %s (%s) hangs: no check() for %.0f s; its lease is let go. Restart this process if it stays so",
                job.id, job.claim.kind, silent,
            )  # fmt: skip
        return False

    # Schedules and old jobs

    def _schedule_loop(self) -> None:
        purged = self._jobs.ambient.monotonic() - _PURGE_EVERY
        while not self._draining.wait(self._beat_every / 2):
            self._quietly(lambda: submit_due(self._jobs), "looking at schedules")
            now = self._jobs.ambient.monotonic()
            if now - purged >= _PURGE_EVERY:
                purged = now
                self._quietly(lambda: purge(self._jobs, self._keep), "forgetting old jobs")

    # All of them

    def _quietly(self, work: Callable[[], object], what: str) -> bool:
        """Runs one round of a loop that must outlive every error; returns whether it did something."""
        try:
            return bool(work())
        except DBAPIError as error:
            if is_outage(error):
                self._contact.failed()
                log.warning("%s: the database is away: %s", what, error.orig)
            else:
                log.exception("%s failed", what)
        except CatalogBehind as error:
            log.warning("%s: %s", what, error)
        except Exception:
            log.exception("%s failed", what)
        return False

    def _give_back(self) -> None:
        """Queues what is still running here again. Its threads are fenced from here on."""
        with self._lock:
            left = list(self._running.values())
        for job in left:
            job.lose()
            try:
                with self._jobs.catalog.write() as conn:
                    self._claims.queue_again(conn, job.held, 0.0, counted=False, progress=job.last_progress)
            except (DBAPIError, CatalogBehind) as error:
                log.warning("job %s could not be given back, its lease will run out: %s", job.id, getattr(error, "orig", error))


def _tell_end(job: OwnedJob, ending: Ending, seconds: float) -> None:
    """One line a job, as there is one a request."""
    why = "" if ending.error is None else f": {' '.join(ending.error.split())}"
    with logs.about(job=job.id):
        log.info("job %s (%s) %s after %.3f s%s", job.id, job.claim.kind, ending.state, seconds, why)
