"""When automated backups are due: windows of one hour on days of the week, in UTC.

A window belongs to the day on which it begins, also where it ends on the next. UTC has no summer time; days are counted by the
calendar, so that leap years need nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

LENGTH = 3600.0
"""Seconds of a window."""


@dataclass(frozen=True, slots=True)
class Windows:
    """`begin` is the minute of the day; `days` are 1 Monday … 7 Sunday, one at least."""

    begin: int
    days: frozenset[int]

    @classmethod
    def parse(cls, start_time: str, period: str) -> Windows:
        """From "hh:mm-HH:MM" and "1,2,…,7", which the border has checked."""
        hours, minutes = start_time.partition("-")[0].split(":")
        return cls(int(hours) * 60 + int(minutes), frozenset(map(int, period.split(","))))

    def last(self, at: float) -> float:
        """When the newest window began that has begun by `at` (seconds since the epoch)."""
        moment = datetime.fromtimestamp(at, UTC)
        day = moment.date()
        while True:
            found = self._begin_on(day)
            if found.isoweekday() in self.days and found <= moment:
                return found.timestamp()
            day -= timedelta(days=1)

    def next(self, at: float) -> float:
        """When the first window begins after `at`."""
        moment = datetime.fromtimestamp(at, UTC)
        day = moment.date()
        while True:
            found = self._begin_on(day)
            if found.isoweekday() in self.days and found > moment:
                return found.timestamp()
            day += timedelta(days=1)

    def between(self, after: float, before: float) -> int:
        """How many windows began after the one and before the other."""
        days = max(int((before - after) // 86400) - 7, 0) // 7 * 7  # whole weeks are not walked through
        count, at = days // 7 * len(self.days), after + days * 86400
        while (at := self.next(at)) < before:
            count += 1
        return count

    def _begin_on(self, day: date) -> datetime:
        return datetime.combine(day, time(tzinfo=UTC)) + timedelta(minutes=self.begin)
