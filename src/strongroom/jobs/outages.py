"""Telling a database that is away from a defect, and who may take work over after it was away."""

from __future__ import annotations

import threading

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from strongroom.ambient import Ambient

_PASSING_ON_SQLITE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR")


def is_outage(error: DBAPIError) -> bool:
    """Whether the statement may succeed later as it is: connection lost, server stopping, deadlock, disk full, database busy."""
    if error.connection_invalidated:
        return True
    if type(error.orig).__module__.startswith("sqlite3"):
        return str(getattr(error.orig, "sqlite_errorname", "")).startswith(_PASSING_ON_SQLITE)
    return isinstance(error, OperationalError | InterfaceError)


class Contact:
    """When this worker last reached the database.

    After a time without contact, whether the database or this process was away, every lease looks expired although its owner
    may be well: the worker that comes back first must not take over all the others' jobs. So it leaves running jobs alone for
    `hold_off` seconds, in which their owners renew. Liveness only: taking over too early repeats work and breaks nothing.
    """

    def __init__(self, ambient: Ambient, longest_gap: float, hold_off: float) -> None:
        self._ambient, self._longest_gap, self._hold_off = ambient, longest_gap, hold_off
        self._lock = threading.Lock()
        self._last = ambient.monotonic()
        self._held_until = self._last

    def made(self) -> None:
        """The database has answered."""
        with self._lock:
            now = self._ambient.monotonic()
            if now - self._last > self._longest_gap:
                self._held_until = now + self._hold_off
            self._last = now

    def failed(self) -> None:
        """The database has not answered."""
        with self._lock:
            self._held_until = self._ambient.monotonic() + self._hold_off

    def may_take_over(self) -> bool:
        """Whether a lease that looks expired may be believed to be."""
        with self._lock:
            now = self._ambient.monotonic()
            return now >= self._held_until and now - self._last <= self._longest_gap
