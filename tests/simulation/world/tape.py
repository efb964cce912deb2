"""The choices of a history, one number after the other: drawn from a seed, or given, so that the same tape is the same history.

0 is always the harmless choice (the same actor goes on, nothing fails), which is what lets a shrinker simplify a tape by writing
zeros into it and cutting pieces out of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence


class Tape:
    """Numbers from a seed, or from `given` and then zeros; `drawn` are all that were taken so far."""

    def __init__(self, seed: int, given: Sequence[int] | None = None) -> None:
        self._random = random.Random(seed)
        self._given = given
        self.drawn: list[int] = []
        self.calm = False

    def draw(self, count: int) -> int:
        """One of 0 … count-1."""
        return self._next(lambda: self._random.randrange(count), count)

    def rarely(self, odds: float) -> bool:
        """True with this probability."""
        return self._next(lambda: int(self._random.random() < odds), 2) == 1

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, by weight."""
        indexes = range(len(weights))
        return self._next(lambda: self._random.choices(indexes, weights)[0], len(weights))

    def _next(self, fresh: Callable[[], int], count: int) -> int:
        if self.calm:
            return 0
        place = len(self.drawn)
        if self._given is None:
            value = fresh()
        elif place < len(self._given):
            value = min(self._given[place], count - 1)
        else:
            value = 0
        self.drawn.append(value)
        return value
