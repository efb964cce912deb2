"""Proof that the meetings of test_isolation_pairs.py can fail: what a weaker isolation or a missing lock does is found there.

Each weakness is planted by a patch in the test alone, and looked for at every boundary of one pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from support.interleaving import Pair
from support.isolation_acts import BEGIN, DECIDE, DELETE_HEAD, DELETE_NEXT, FAIL, HOLD, RESTORE, Houses, houses
from support.isolation_plants import (
    decided_from_an_earlier_read,
    lock_and_neighbours_in_one_statement,
    no_lock_of_backups,
    repeatable_read,
)

__all__ = ["houses"]

pytestmark = pytest.mark.slow


Plant: TypeAlias = Callable[[pytest.MonkeyPatch], None]


def found(houses: Houses, kind: str, pair: Pair, plant: Plant, *signs: str) -> str:
    """The first violation with one of these signs that a plant leads to, compared with the honest orders; "" if there is none.
    Without the plant nothing is found."""
    stage = houses.on(kind)
    assert list(stage.violations(pair, 1)) == []
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        return next((told for told in stage.violations(pair) if any(sign in told for sign in signs)), "")


def test_lock_and_neighbours_in_one_statement_are_found(houses: Houses) -> None:
    """On PostgreSQL a backup begins on a parent that a delete has just taken out of the chain."""
    assert found(houses, "postgres", Pair(BEGIN, DELETE_HEAD, "quiet"), lock_and_neighbours_in_one_statement, "parent=4")


def test_repeatable_read_is_found(houses: Houses) -> None:
    """On PostgreSQL a lock that was waited for brings no newer snapshot: a build that fails beside the delete of its parent still
    sees that as its neighbour, and what it leaves is never freed. (Two decisions of people would fail instead, since both write
    the end of the audit trail.)"""
    told = found(houses, "postgres", Pair(FAIL, DELETE_HEAD, "building"), repeatable_read, "cause=FAIL")
    assert "before=4" in told


def test_a_restore_and_a_delete_without_the_backups_lock_are_found(houses: Houses) -> None:
    """On PostgreSQL both are accepted: the restore reads what is being removed."""
    both = "('accepted', 'accepted')", "has no manifest"
    assert found(houses, "postgres", Pair(RESTORE, DELETE_HEAD, "quiet"), no_lock_of_backups, *both)


def test_a_hold_and_a_decision_that_waited_without_the_backups_lock_are_found(houses: Houses) -> None:
    """On PostgreSQL the hold is accepted, and the backup goes."""
    assert found(houses, "postgres", Pair(DECIDE, HOLD, "pending"), no_lock_of_backups, "('decided', 'held')")


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_decision_from_an_earlier_read_is_found(kind: str, houses: Houses) -> None:
    """On both databases a delete promises what was so before its neighbour went, and frees something else."""
    assert found(houses, kind, Pair(DELETE_NEXT, DELETE_HEAD, "quiet"), decided_from_an_earlier_read, "promise = result")


def test_on_sqlite_the_begin_alone_suffices(houses: Houses) -> None:
    """BEGIN IMMEDIATE lets no other decision begin: without the backup's lock nothing is harmed there."""
    assert not found(houses, "sqlite", Pair(RESTORE, DELETE_HEAD, "quiet"), no_lock_of_backups, "")
