"""Making a failing history short: pieces of its tape are cut out or set to zero for as long as it still fails in the same way."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from simulation.world.history import Outcome, simulate


def kind_of(failure: str) -> str:
    """What stays the same of a failure when ids and counts differ."""
    return re.sub(r"[0-9a-f]{32}\S*|#?\d+", "…", failure)[:60]


def shrink(found: Outcome, seconds: float, run: Callable[[int, list[int]], Outcome] = simulate) -> Outcome:
    """The shortest history found within about so many seconds that fails in the same way, with the same seed for its data."""
    assert found.failure is not None
    wanted, best, end = kind_of(found.failure), found, time.monotonic() + seconds

    def better(tape: list[int]) -> bool:
        nonlocal best
        tried = run(best.seed, tape)
        if tried.failure is None or kind_of(tried.failure) != wanted:
            return False
        if _weight(tried.tape) >= _weight(best.tape):
            return False
        best = tried
        return True

    size = max(len(best.tape) // 2, 1)
    while size and time.monotonic() < end:
        at = 0
        while at < len(best.tape) and time.monotonic() < end:
            piece = best.tape[at : at + size]
            shorter = best.tape[:at] + best.tape[at + size :]
            calmer = best.tape[:at] + [0] * len(piece) + best.tape[at + size :]
            if not (better(shorter) or (any(piece) and better(calmer))):
                at += size
        size //= 2
    return best


def _weight(tape: list[int]) -> tuple[int, int]:
    last = max((at for at, value in enumerate(tape) if value), default=-1) + 1
    return last, sum(1 for value in tape if value)
