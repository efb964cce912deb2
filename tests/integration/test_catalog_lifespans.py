"""The lifespan arithmetic on PostgreSQL against plain sets (support/histories.py); on SQLite it is a unit test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strongroom.catalog.database import Catalog, open_catalog
from support.histories import World, run_history


@pytest.fixture
def postgres_catalog(postgres_url: str) -> Iterator[Catalog]:
    opened = open_catalog(postgres_url)
    yield opened
    opened.close()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), batch=st.sampled_from((1, 2, 5000)))
def test_on_postgres_only_what_no_part_needs_dies_and_all_of_it(postgres_catalog: Catalog, seed: int, batch: int) -> None:
    """The same histories as on SQLite: builds, failures, take-overs and (sets of) deletes, swept whole or row by row."""
    run_history(World(postgres_catalog, seed), 30, batch)
