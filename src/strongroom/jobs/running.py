"""A job in its handler's hands: the fence, the questions that it must ask, and what it tells."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from strongroom.jobs.claiming import Claim, Claims, Held, Renewal
from strongroom.jobs.outages import is_outage
from strongroom.jobs.port import Cancelled, Draining, JobLost

OVERDUE = "it took longer than it was given"
ASKED = "cancelled by a user"


class OwnedJob:
    """One claim of a job: `Running` for its handler, and the flags that the heartbeat sets.

    `guard` is the fence. `check` works on flags, but once no heartbeat has renewed the lease for its whole length (this process
    was paused, or the database is away) it asks the database before it lets the work go on, at most once per `recheck` seconds:
    a worker that was paused and replaced stops at its next check, not only at its next transaction. While the database cannot be
    asked the work goes on: then nobody who shares the database can have taken the job over either.
    """

    def __init__(self, claims: Claims, claim: Claim, recheck: float = 1.0) -> None:
        self.claim = claim
        self.id, self.args, self.epoch, self.attempts = claim.id, claim.args, claim.epoch, claim.attempts
        self.held: Held = (claim.id, claim.epoch)
        self._claims, self._recheck = claims, recheck
        self._ambient = claims.jobs.ambient
        self._lock = threading.Lock()
        self._lost = self._draining = self._giving_up = False
        self._cancelled = ASKED if claim.cancel_asked else OVERDUE if claim.overdue else None
        self._progress: str | None = None
        self._told = False
        self._leased_until = self._alive_at = self._ambient.monotonic()
        self._leased_until += claims.ttl

    # What the handler calls

    def guard(self, conn: Connection) -> None:
        """See the port."""
        asked = self._sign_of_life()
        if self._lost or not self._claims.prove(conn, self.held):
            self._lose()
        self._leased_until = asked + self._claims.ttl

    def check(self) -> None:
        """See the port."""
        now = self._sign_of_life()
        if not self._lost and now > self._leased_until:
            self._ask(now)
        if self._lost:
            raise JobLost(f"job {self.id}: epoch {self.epoch} is over")
        if self._giving_up:
            return
        if self._cancelled is not None:
            raise Cancelled(self._cancelled)
        if self._draining:
            raise Draining(f"job {self.id}: the process is stopping")

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        """See the port."""
        text = json.dumps({"phase": phase, "done": done, "total": total})
        with self._lock:
            self._progress, self._told = text, False
        self.check()

    def finish(self, conn: Connection, result: Mapping[str, Any]) -> None:
        """See the port. Raises JobLost."""
        if not self._claims.end(conn, self.held, "DONE", result=result, progress=self._progress):
            self._lose()

    def fail(self, conn: Connection, reason: str) -> None:
        """See the port. Raises JobLost."""
        if not self._claims.end(conn, self.held, "FAILED", error=reason, progress=self._progress):
            self._lose()

    # What its worker calls

    @property
    def cancelled(self) -> str | None:
        """Why the job is to end, if it is."""
        return self._cancelled

    @property
    def last_progress(self) -> str | None:
        """All that was told, as JSON."""
        return self._progress

    def untold_progress(self) -> str | None:
        """What the next heartbeat has to write."""
        with self._lock:
            return None if self._told else self._progress

    def silent_for(self) -> float:
        """Seconds since the handler last called any of the above."""
        return self._ambient.monotonic() - self._alive_at

    def renewed(self, asked: float, news: Renewal, written: str | None) -> None:
        """A heartbeat sent at `asked` (monotonic) has renewed the lease and written this progress."""
        self._leased_until = asked + self._claims.ttl
        with self._lock:
            self._told = self._told or self._progress == written
        if news.cancel_asked or news.overdue:
            self._cancelled = self._cancelled or (ASKED if news.cancel_asked else OVERDUE)

    def stay(self) -> None:
        """The worker itself still works on the job: on recording its end. Raises JobLost."""
        self._sign_of_life()
        if self._lost:
            self._lose()

    def lose(self) -> None:
        """Somebody else owns the job."""
        self._lost = True

    def drain(self) -> None:
        """The process is stopping."""
        self._draining = True

    def begin_giving_up(self) -> None:
        """From here on the job ends; being asked to end it or to drain interrupts no more."""
        self._giving_up = True

    def _sign_of_life(self) -> float:
        self._alive_at = self._ambient.monotonic()
        return self._alive_at

    def _ask(self, now: float) -> None:
        try:
            self._lost = not self._claims.holds(self.held)
        except DBAPIError as error:
            if not is_outage(error):
                raise
        self._leased_until = now + self._recheck

    def _lose(self) -> None:
        self._lost = True
        raise JobLost(f"job {self.id}: epoch {self.epoch} is over")
