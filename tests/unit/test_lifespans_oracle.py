"""The lifespan arithmetic in SQL against plain sets (support/histories.py)."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from strongroom.catalog import lifespans
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, open_catalog
from support.histories import LINEAGE, World, run_history


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    opened = open_catalog("sqlite://")
    t.metadata.create_all(opened.engine)
    return opened


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), batch=st.sampled_from((1, 2, 5000)))
def test_only_what_no_part_needs_dies_and_all_of_it(catalog: Catalog, seed: int, batch: int) -> None:
    """Random histories of builds, failures, take-overs and (sets of) deletes, swept whole or row by row."""
    run_history(World(catalog, seed), 40, batch)


def test_beginning_on_an_unswept_lineage_is_refused(catalog: Catalog) -> None:
    """A begin that finds a decision unswept raises: else the open set is wrong."""
    world = World(catalog, 1)
    world.begin()
    world.write_pack()
    world.commit(1)
    with catalog.decide(lineages=[LINEAGE]) as conn:
        gap = lifespans.leave(conn, LINEAGE, 1)
        conn.execute(
            t.decision.insert().values(
                lineage=LINEAGE, cause="DELETE", backup="b", seq=1, before=gap.before, after=gap.after, removal="delete:b",
                swept=False, undecided=0, undecided_upto=0, settled=True, settled_freed=0, settled_waiting=0,
            )
        )  # fmt: skip
    with pytest.raises(lifespans.NotSwept), catalog.decide(lineages=[LINEAGE]) as conn:
        lifespans.begin(conn, LINEAGE, "b")


def test_a_manifest_that_names_what_it_may_not_share_is_refused() -> None:
    """Names outside the open set, own packs named in part or not at all, and suspect chunks are each refused."""
    opened, own = {1: BitMap([0, 1, 2])}, {9: 2}
    both = BitMap([0, 1])
    assert lifespans.prove_coverage({1: both, 9: both}, opened, own, {}) == {1: BitMap([2])}
    for used, suspect in (
        ({1: BitMap([3]), 9: both}, {}),
        ({2: BitMap([0]), 9: both}, {}),
        ({9: BitMap([0])}, {}),
        ({1: both}, {}),
        ({1: both, 9: both}, {1: BitMap([1])}),
    ):
        with pytest.raises(lifespans.NotCovered):
            lifespans.prove_coverage(used, opened, own, suspect)
