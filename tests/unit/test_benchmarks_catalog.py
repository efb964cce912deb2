"""The synthetic catalogs of benchmarks/ are such as the product would have written: its own arithmetic finds them consistent."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from benchmarks.catalog_scale import COLUMNS, build, check_promise, measure, run
from benchmarks.databases import SqliteFiles
from benchmarks.reporting import Results
from benchmarks.synthetic import History, Pattern, Shape, backup_id

from strongroom.backups import deletion
from strongroom.catalog import lifespans
from strongroom.catalog import tables as t
from strongroom.catalog.database import open_catalog

PATTERNS: tuple[Pattern, ...] = ("contiguous", "scattered")


def small(pattern: Pattern) -> Shape:
    """A catalog of a few hundred rows."""
    return Shape(pattern, 6, packs=40, chunk=64 << 10, pack=1 << 20, share=0.1)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_open_is_what_the_newest_part_needs(pattern: Pattern, tmp_path: Path) -> None:
    """After all days every living chunk is open and nothing else is: death rows name each replaced chunk exactly once."""
    shape = small(pattern)
    built = build(SqliteFiles(tmp_path), shape)
    catalog = open_catalog(built.url)
    with catalog.read() as conn:
        opened = lifespans.open_numbers(conn, built.lineage)
        dead = conn.execute(sa.select(sa.func.sum(t.death.c.bytes))).scalar_one()
        written = conn.execute(sa.select(sa.func.sum(t.pack.c.bytes))).scalar_one()
    catalog.close()
    living = shape.packs * shape.chunks
    assert sum(len(numbers) for numbers in opened.values()) == living
    assert written - dead == living * shape.chunk


def test_the_same_seed_gives_the_same_catalog() -> None:
    """Two plays of one shape give equal rows, so that figures of two days can be compared."""
    first, second = (list(History(small("scattered"), "project").days()) for _ in range(2))
    assert [day.deaths for day in first] == [day.deaths for day in second]
    assert [day.packs for day in first] == [day.packs for day in second]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_victim_is_measured_on_a_copy_of_its_own(pattern: Pattern, tmp_path: Path) -> None:
    """Three results with every column, promises kept, and no database left behind."""
    results = Results(None)
    run(SqliteFiles(tmp_path), small(pattern), results, tmp_path)
    assert [row["victim"] for row in results.rows] == ["oldest", "middle", "newest"]
    assert all(set(COLUMNS) <= row.keys() for row in results.rows)
    assert not list(tmp_path.glob("*.db*"))
    assert not list(tmp_path.glob("*.copy*"))


def test_a_promise_that_was_not_kept_ends_the_benchmark(tmp_path: Path) -> None:
    """A benchmark that only timed would not notice a delete that does nothing: the comparison raises."""
    databases = SqliteFiles(tmp_path)
    built = build(databases, small("contiguous"))
    victim = backup_id(3)
    measure(built.url, built, victim, tmp_path)
    catalog = open_catalog(built.url)
    with catalog.read() as conn, pytest.raises(AssertionError, match="promised"):
        check_promise(conn, victim, deletion.Promise(freed=1))
    catalog.close()
