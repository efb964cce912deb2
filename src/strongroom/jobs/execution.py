"""One run of a job, from its claim to the end that is to be recorded; the same for threads and for the simulation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import DBAPIError

from strongroom import logs
from strongroom.ambient import Ambient
from strongroom.catalog.database import CatalogBehind
from strongroom.jobs.claiming import Claims
from strongroom.jobs.outages import is_outage
from strongroom.jobs.port import Cancelled, Draining, Handler, JobFailed, JobLost, TryAgain
from strongroom.jobs.running import ASKED, OwnedJob

log = logging.getLogger("strongroom.jobs")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the second run; doubled from run to run up to the longest."""

_LATE_DEATHS = "its worker was lost at every attempt"


@dataclass(frozen=True, slots=True)
class Ending:
    """What is to be recorded of a run: an end, or QUEUED with a pause; a run that is not `counted` was no attempt."""

    state: str
    result: Mapping[str, Any] | None = None
    error: str | None = None
    pause: float = 0.0
    counted: bool = True


def run(job: OwnedJob, handler: Handler, ambient: Ambient) -> Ending:
    """Runs the handler, and its give_up where the job ends badly. Raises JobLost, and nothing else that is an Exception."""
    with logs.about(job=job.id):
        ending = _ending_before(job) or _work(job, handler, ambient)
        if ending.state in ("FAILED", "CANCELLED"):
            job.begin_giving_up()
            return _give_up(job, handler, ending, ambient)
        return ending


def record(claims: Claims, job: OwnedJob, ending: Ending) -> None:
    """Writes a run's end, unless the handler has written it itself. Raises JobLost, DBAPIError."""
    with claims.jobs.catalog.write() as conn:
        if ending.state == "QUEUED":
            done = claims.queue_again(
                conn, job.held, ending.pause, counted=ending.counted, error=ending.error, progress=job.last_progress
            )
        else:
            done = claims.end(conn, job.held, ending.state, result=ending.result, error=ending.error, progress=job.last_progress)
        if not done and not claims.ended_here(conn, job.held):
            raise JobLost(f"job {job.id}: epoch {job.epoch} is over")


def _ending_before(job: OwnedJob) -> Ending | None:
    """Why a claimed job is not run at all, if it is not."""
    claim = job.claim
    if claim.cancelled:
        return Ending("CANCELLED", error=ASKED)
    if job.cancelled is not None:
        return Ending("CANCELLED", error=job.cancelled)
    if claim.max_attempts is not None and claim.attempts > claim.max_attempts:
        return Ending("FAILED", error=claim.error or _LATE_DEATHS)
    return None


def _work(job: OwnedJob, handler: Handler, ambient: Ambient) -> Ending:
    try:
        return Ending("DONE", result=handler.run(job))
    except JobFailed as error:
        return Ending("FAILED", result=error.result, error=str(error))
    except Cancelled as error:
        return Ending("CANCELLED", result=error.result, error=str(error) or ASKED)
    except Draining:
        return Ending("QUEUED", counted=False)
    except TryAgain as error:
        log.warning("job %s (%s) is to be tried again: %s", job.id, job.claim.kind, error)
        return _again(job, str(error), error.after, ambient)
    except CatalogBehind as error:
        raise JobLost(f"job {job.id}: {error}") from error
    except DBAPIError as error:
        if is_outage(error):
            log.warning("job %s (%s): the database was away, to be run again", job.id, job.claim.kind)
            return Ending("QUEUED", error="the database was away", pause=FIRST_PAUSE, counted=False)
        return _defect(job, error, ambient)
    except Exception as error:
        return _defect(job, error, ambient)


def _defect(job: OwnedJob, error: Exception, ambient: Ambient) -> Ending:
    log.error("job %s (%s) ended in a defect", job.id, job.claim.kind, exc_info=error)
    return _again(job, f"{type(error).__name__}: {error}", None, ambient)


def _again(job: OwnedJob, reason: str, after: float | None, ambient: Ambient) -> Ending:
    most = job.claim.max_attempts
    if most is not None and job.attempts >= most:
        return Ending("FAILED", error=reason)
    return Ending("QUEUED", error=reason, pause=_pause(job.attempts, ambient) if after is None else after)


def _give_up(job: OwnedJob, handler: Handler, ending: Ending, ambient: Ambient) -> Ending:
    """Lets the handler decide; if it cannot now, the job is queued again, and comes here again."""
    reason = ending.error or ""
    try:
        handler.give_up(job, ending.state, reason)
    except TryAgain as error:
        log.warning("job %s (%s) cannot be given up yet: %s", job.id, job.claim.kind, error)
        pause = _pause(job.epoch, ambient) if error.after is None else error.after
    except Exception as error:
        log.error("job %s (%s) could not be given up", job.id, job.claim.kind, exc_info=error)
        pause = _pause(job.epoch, ambient)
    else:
        return ending
    return Ending("QUEUED", error=reason, pause=pause)


def _pause(runs: int, ambient: Ambient) -> float:
    """Exponential in the number of runs, capped, and spread by a fifth so that jobs that failed together come back apart."""
    spread = 0.9 + 0.2 * ambient.key()[0] / 255
    longest: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(runs - 1, 16))
    return longest * spread
