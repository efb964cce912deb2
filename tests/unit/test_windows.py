"""Windows of automated backups, by the calendar, in UTC."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from strongroom.backups.windows import Windows


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    ("now", "last", "following"),
    [
        ("2026-11-27 01:30", "2026-11-26 02:15", "2026-11-27 02:15"),
        ("2026-11-27 02:15", "2026-11-27 02:15", "2026-11-28 02:15"),
        ("2026-11-27 23:59", "2026-11-27 02:15", "2026-11-28 02:15"),
        ("2028-02-29 00:00", "2028-02-28 02:15", "2028-02-29 02:15"),
        ("2027-03-28 01:30", "2027-03-27 02:15", "2027-03-28 02:15"),  # clocks of many countries are moved in this night
        ("2026-12-31 12:00", "2026-12-31 02:15", "2027-01-01 02:15"),
    ],
)
def test_every_day(now: str, last: str, following: str) -> None:
    """The newest that has begun, and the next; a window begins at its first second."""
    windows = Windows.parse("02:15-03:15", "1,2,3,4,5,6,7")
    assert windows.days == frozenset(range(1, 8))
    assert (text(windows.last(at(now))), text(windows.next(at(now)))) == (last, following)


def test_days_of_the_week_are_those_on_which_a_window_begins() -> None:
    """Of Monday and Friday, over midnight: Monday's ends on Tuesday."""
    windows = Windows.parse("23:30-00:30", "1,5")
    tuesday = at("2026-11-24 00:10")
    assert text(windows.last(tuesday)) == "2026-11-23 23:30"
    assert text(windows.next(tuesday)) == "2026-11-27 23:30"
    assert text(windows.next(at("2026-11-27 23:30"))) == "2026-11-30 23:30"


@pytest.mark.parametrize("period", ["1", "7", "1,3,5", "1,2,3,4,5,6,7"])
def test_over_years_each_day_is_counted_once(period: str) -> None:
    """Five years with a leap day: one window for each day of the period, never two, and `between` counts the same."""
    windows = Windows.parse("00:00-01:00", period)
    first, end = date(2026, 1, 1), date(2031, 1, 1)
    wanted = [
        day
        for day in (first + timedelta(days=n) for n in range((end - first).days))
        if str(day.isoweekday()) in period.split(",")
    ]
    found, now = [], at("2025-12-31 12:00")
    while (now := windows.next(now)) < at("2031-01-01 00:00"):
        found.append(datetime.fromtimestamp(now, UTC).date())
        assert windows.last(now) == now
        assert windows.last(now - 1) < now
    assert found == wanted
    assert windows.between(at("2025-12-31 12:00"), at("2031-01-01 00:00")) == len(wanted)
    assert windows.between(at("2026-03-04 00:00"), at("2026-03-04 00:00")) == 0
