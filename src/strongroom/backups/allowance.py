"""Paying for bytes with time."""

from __future__ import annotations

import threading


class Allowance:
    """Bytes that were taken and that time has not paid for yet. For several threads; times are monotonic seconds, rates bytes a
    second, None for no limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owed, self._at = 0.0, 0.0

    def take(self, size: int, rate: int | None, now: float) -> None:
        """Adds to what is owed."""
        with self._lock:
            self._settle(rate, now)
            self._owed += size

    def wait(self, rate: int | None, now: float) -> float:
        """Seconds until all is paid for at this rate; 0 if it is."""
        with self._lock:
            self._settle(rate, now)
            return 0.0 if rate is None else self._owed / rate

    def _settle(self, rate: int | None, now: float) -> None:
        self._owed = 0.0 if rate is None else max(0.0, self._owed - rate * (now - self._at))
        self._at = now
