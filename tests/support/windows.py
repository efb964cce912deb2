"""Windows of automated backups, by the time of day at which the tests run."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta


def open_window() -> str:
    """One that began at least 45 minutes ago and ends in some seconds at the earliest: its backup is due at once."""
    now = datetime.now(UTC)
    while (left := 900 - now.timestamp() % 900) < 30:
        time.sleep(left)
        now = datetime.now(UTC)
    begin = now - timedelta(seconds=now.timestamp() % 900, minutes=45)
    return f"{begin:%H:%M}-{begin + timedelta(hours=1):%H:%M}"


def far_window(hours: int = 6) -> str:
    """One that begins in so many hours: no backup is due in it while these tests run, whatever the time of day."""
    begin = (datetime.now(UTC) + timedelta(hours=hours)).replace(minute=0)
    return f"{begin:%H:%M}-{begin + timedelta(hours=1):%H:%M}"
