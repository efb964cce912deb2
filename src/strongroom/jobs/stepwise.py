"""Jobs without threads: a simulation claims, runs and renews in its own thread and order, by the same code as a worker."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from strongroom.jobs.claiming import Claims
from strongroom.jobs.execution import record, run
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import Handler, JobLost
from strongroom.jobs.running import OwnedJob
from strongroom.jobs.schedules import submit_due


class StepwiseWorker:
    """A worker whose every move is made by its caller.

    Give its LeasedJobs an AmbientClock, so that leases expire when the simulation says. Nothing renews a lease but `beat`, a
    guarded transaction and the claim. What is no Exception (a simulated death) goes through `run_claimed` and records nothing.
    """

    def __init__(
        self,
        jobs: LeasedJobs,
        handlers: Mapping[str, Handler],
        queues: Sequence[str] = ("default",),
        *,
        owner: str = "stepwise",
        ttl: float = 6.0,
    ) -> None:
        self._jobs, self._handlers, self._queues = jobs, handlers, queues
        self._claims = Claims(jobs, owner, ttl)

    def claim(self, but: Collection[str] = ()) -> OwnedJob | None:
        """Claims the next job that is due or whose lease has run out, if there is one; none of the ids in `but`."""
        claimed = self._claims.claim(self._queues, list(self._handlers), take_over=True, but=but)
        return None if claimed is None else OwnedJob(self._claims, claimed)

    def run_claimed(self, job: OwnedJob) -> bool:
        """Runs a claimed job to its next end and records it. False: it was lost to another worker."""
        try:
            ending = run(job, self._handlers[job.claim.kind], self._jobs.ambient)
            record(self._claims, job, ending)
        except JobLost:
            return False
        return True

    def step(self) -> str | None:
        """Claims and runs one job; returns its id, None if nothing is due."""
        job = self.claim()
        if job is None:
            return None
        self.run_claimed(job)
        return job.id

    def beat(self, job: OwnedJob) -> None:
        """One heartbeat for a job that is under way: renews, writes progress, brings back a cancel, a deadline or the loss."""
        asked, told = self._jobs.ambient.monotonic(), job.untold_progress()
        news, lost = self._claims.renew({job.held: told})
        if job.held in lost:
            job.lose()
        elif job.held in news:
            job.renewed(asked, news[job.held], told)

    def tick(self) -> None:
        """Submits what schedules make due."""
        submit_due(self._jobs)
