"""Every two decisions that can meet, made to meet at the boundaries of their statements, end as one after the other would.

What meets is in support/isolation_acts.py, how it is made to meet and what is asked of the outcome in support/interleaving.py. A
run holds each act of each pair at a few of its boundaries, others from run to run; with STRONGROOM_EVERY_BOUNDARY set, at all.
"""

from __future__ import annotations

import os

import pytest

from support.interleaving import Pair
from support.isolation_acts import BEGIN, DELETE_HEAD, HOLD, Houses, houses, pairs

__all__ = ["houses"]

pytestmark = pytest.mark.slow

MOST = {"sqlite": 3, "postgres": 2}
"""Boundaries at which each of the two is held in one run."""


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("pair", pairs(), ids=str)
def test_two_decisions_that_meet_end_as_one_after_the_other(kind: str, pair: Pair, houses: Houses) -> None:
    """Wherever one of them is held while the other goes on: answers, rows and objects are those of one of the two orders, and at
    rest nothing is stuck, every surviving backup is whole and every receipt equals its promise."""
    most = None if os.environ.get("STRONGROOM_EVERY_BOUNDARY") else MOST[kind]
    found = list(houses.on(kind).violations(pair, most))
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_other_really_comes_between(kind: str, houses: Houses) -> None:
    """A backup that begins while a delete of its parent is inside its deciding transaction waits for it, and does not wait while
    that only looks; a hold of the same backup ends before a delete that is held just before its decision."""
    stage = houses.on(kind)
    pair = Pair(DELETE_HEAD, BEGIN, "quiet")
    stage.serial(pair)
    points = stage.points(pair)
    looking = next(number for number, point in enumerate(points) if point.reading and point.place == 1)
    deciding = len(points) - 1
    assert points[deciding].text == "COMMIT"
    before = stage.blocked
    stage.trial(pair, looking)
    assert stage.blocked == before
    stage.trial(pair, deciding)
    assert stage.blocked == before + 1
    held = Pair(DELETE_HEAD, HOLD, "quiet")
    stage.serial(held)
    decision = points[deciding].transaction
    outcome, _ = stage.trial(held, next(number for number, point in enumerate(points) if point.transaction == decision))
    assert getattr(outcome, "answers", outcome) == ("BackupHeld", "held")
