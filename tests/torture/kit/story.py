"""What happens in a run, told as it happens: a line each into a file and onto the terminal, counts for the table at the end, and
what was found to be broken."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path

TOTALS = ("kills", "stops", "store failures", "cuts", "backups", "deletes", "restores", "restores proven")
"""The lines at the top of the table."""

_REMEMBERED = 80  # events that a failure prints


class Story:
    """Safe to use from every thread."""

    def __init__(self, folder: Path, *, loud: bool) -> None:
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self.totals: Counter[str] = Counter(dict.fromkeys(TOTALS, 0))
        self.broken: list[str] = []
        self._loud = loud
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._last: deque[str] = deque(maxlen=_REMEMBERED)
        self._longest: dict[str, float] = {}
        self._file = (folder / "story.txt").open("a", encoding="utf-8", buffering=1)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    def tell(self, who: str, what: str) -> None:
        """One event, for the file and for a failure's end."""
        with self._lock:
            line = f"{self.seconds:8.2f}  {who:<14} {what}"
            self._last.append(line)
            self._file.write(line + "\n")

    def say(self, what: str) -> None:
        """Progress: told, and shown to who watches."""
        self.tell("run", what)
        if self._loud:
            print(f"[{self.seconds:6.0f} s] {what}", file=sys.stderr, flush=True)

    def count(self, what: str, number: int = 1, *, total: str | None = None) -> None:
        """For the table; `total` is the line at its top that sums such things up."""
        with self._lock:
            self.counts[what] += number
            if total is not None:
                self.totals[total] += number

    def took(self, what: str, seconds: float) -> None:
        """The table shows the longest."""
        with self._lock:
            self._longest[what] = max(seconds, self._longest.get(what, 0.0))

    def breaks(self, law: str, what: str) -> None:
        """An invariant does not hold. The run goes on to its next rest, so that the story shows what follows."""
        with self._lock:
            self.broken.append(f"{law}: {what}")
        self.tell("BROKEN", f"{law}: {what}")
        if self._loud:
            print(f"[{self.seconds:6.0f} s] BROKEN: {law}: {what}", file=sys.stderr, flush=True)

    def last(self) -> str:
        """The last events."""
        with self._lock:
            return "\n".join(self._last)

    def table(self) -> str:
        """Totals and the longest times, then all counts by name."""
        with self._lock:
            rows = [(name, str(number)) for name, number in self.totals.items()]
            rows += [(f"longest {name}", f"{seconds:.1f} s") for name, seconds in sorted(self._longest.items())]
            rows.append(("", ""))
            rows += [(name, str(number)) for name, number in sorted(self.counts.items())]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}}  {number:>9}".rstrip() for name, number in rows)

    def close(self) -> None:
        """Ends the file."""
        self._file.close()
