"""What dying numbers do to objects, on rows written by hand: what goes whole, what waits, and that a forecast says the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import sqlalchemy as sa
from pyroaring import BitMap

from strongroom.catalog import many, space
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog
from strongroom.catalog.lifespans import Dying, Gap, numbers_of, take_rows, whole_packs
from strongroom.catalog.space import Forecast, Partly, Toll
from support.catalog_rows import CHUNK, OTHER, OURS, Rows, empty_catalog, rolled_back

INDEX = 7
"""Bytes of an object that are not chunks."""


@pytest.fixture(scope="module")
def lineages() -> Iterator[Catalog]:
    catalog = empty_catalog()
    yield catalog
    catalog.close()


@pytest.fixture
def rows(lineages: Catalog) -> Iterator[Rows]:
    with rolled_back(lineages) as rows:
        yield rows


def own(rows: Rows, key: int, born: int, chunks: int = 4, gone: Iterable[int] = (), lineage: str = OURS) -> str:
    """A pack in an object of its own; what is gone of it waits in the object."""
    gone = list(gone)
    rows.pack(key, born, chunks, gone, lineage)
    dead = len(gone)
    return rows.object(
        f"{lineage[0]}{key}", {key: None}, chunks * CHUNK + INDEX, lineage, live=chunks - dead, dead_bytes=dead * CHUNK
    )


def moved(rows: Rows, name: str, packs: dict[int, list[int]], lineage: str = OURS, dead: int = 0, state: str = "STORED") -> str:
    """An object with chunks of several packs, `dead` of them gone."""
    count = sum(len(numbers) for numbers in packs.values())
    planned = state == "PLANNED"
    return rows.object(
        name, dict(packs), 0 if planned else count * CHUNK + INDEX, lineage, kind="rewrite", state=state,
        live=0 if planned else count - dead, dead_bytes=dead * CHUNK,
    )  # fmt: skip


def objects(rows: Rows) -> dict[str, tuple[str, int, int]]:
    """name → (state, live, dead bytes)."""
    found = rows.conn.execute(sa.select(t.object_))
    return {row.id: (row.state, row.live, row.dead_bytes) for row in found}


def gone(rows: Rows, lineage: str = OURS) -> dict[int, tuple[set[int], int]]:
    """pack → (numbers gone, their bytes)."""
    found = rows.conn.execute(sa.select(t.pack).where(t.pack.c.lineage == lineage))
    return {row.id: (set(numbers_of(row.gone)), row.gone_bytes) for row in found}


def holders(rows: Rows, lineage: str = OURS) -> set[tuple[str, int]]:
    found = rows.conn.execute(sa.select(t.holding.c.object, t.holding.c.pack).where(t.holding.c.lineage == lineage))
    return {(row.object, row.pack) for row in found}


def some(pack: int, born: int, numbers: Iterable[int]) -> Dying:
    dead = BitMap(numbers)
    return Dying(pack, born, dead, len(dead) * CHUNK)


# Burying


def test_dead_chunks_wait_in_an_object_that_lives_on(rows: Rows) -> None:
    """Into `gone`, with what was gone before; the object counts them as dead. Nobody else's rows move."""
    for lineage in (OURS, OTHER):
        own(rows, 1, 1, 5, [0], lineage)
    before = rows.snapshot(OTHER)
    toll = space.bury(rows.conn, OURS, [some(1, 1, [1, 2]), some(1, 1, [4])], "delete:b")
    assert toll == Toll(owned=3 * CHUNK, freed=0, waiting=3 * CHUNK, objects=0)
    assert gone(rows) == {1: ({0, 1, 2, 4}, 4 * CHUNK)}
    assert objects(rows)["a1"] == ("STORED", 1, 4 * CHUNK)
    assert rows.snapshot(OTHER) == before


def test_burying_what_is_gone_already_changes_nothing(rows: Rows) -> None:
    """A step that is done again after a crash counts nothing twice."""
    own(rows, 1, 1, 5, [0, 1])
    own(rows, 2, 1, 3)
    before = rows.snapshot(OURS)
    assert space.bury(rows.conn, OURS, [some(1, 1, [0, 1])], "delete:b") == Toll(owned=2 * CHUNK, waiting=2 * CHUNK)
    assert rows.snapshot(OURS) == before


def test_packs_of_one_id_in_two_lineages_are_two(rows: Rows) -> None:
    """Whichever of them is buried."""
    own(rows, 1, 1, 2, (), OURS)
    own(rows, 1, 1, 5, [4], OTHER)
    assert space.bury(rows.conn, OTHER, [some(1, 1, [0, 1])], "delete:b") == Toll(owned=2 * CHUNK, waiting=2 * CHUNK)
    assert (gone(rows), gone(rows, OTHER)) == ({1: (set(), 0)}, {1: ({0, 1, 4}, 3 * CHUNK)})
    assert space.bury(rows.conn, OURS, [some(1, 1, [0, 1])], "delete:b").objects == 1
    assert (gone(rows), gone(rows, OTHER)) == ({}, {1: ({0, 1, 4}, 3 * CHUNK)})


@pytest.mark.parametrize("whole", [True, False])
def test_a_pack_that_is_all_gone_goes_with_its_object(rows: Rows, whole: bool) -> None:
    """Whether it is told as whole or number by number: its rows are out, its object is condemned for this removal. What was dead
    in it before is freed too, but it is not owned."""
    for lineage in (OURS, OTHER):
        rows.parts(1, 2, lineage=lineage)
        own(rows, 1, 1, 3, [0], lineage)
        own(rows, 2, 1, 3, (), lineage)
        rows.death(1, 1, 1, [1], lineage=lineage)
        rows.death(2, 1, 1, [1], lineage=lineage)
    before = rows.snapshot(OTHER)
    dead = [Dying(1, 1, None, 2 * CHUNK)] if whole else [some(1, 1, [1]), some(1, 1, [2])]
    toll = space.bury(rows.conn, OURS, dead, "delete:b")
    assert toll == Toll(owned=2 * CHUNK + INDEX, freed=3 * CHUNK + INDEX, waiting=0, objects=1)
    assert set(gone(rows)) == {2}
    assert {row[0] for row in rows.deaths()} == {2}
    assert holders(rows) == {("a2", 2)}
    found = rows.conn.execute(sa.select(t.object_).where(t.object_.c.id == "a1")).one()
    assert (found.state, found.removal, found.late, found.live, found.dead_bytes) == ("CONDEMNED", "delete:b", False, 2, CHUNK)
    assert objects(rows)["a2"] == ("STORED", 3, 0)
    assert rows.snapshot(OTHER) == before


def test_an_object_with_chunks_of_several_packs_goes_when_nothing_in_it_lives(rows: Rows) -> None:
    """Chunk by chunk: one goes whole though a pack of it lives on elsewhere, another loses some, a third is not touched."""
    for key in (1, 2):
        rows.pack(key, 1, 6, moved=True)
    moved(rows, "first", {1: [0, 1], 2: [5]})
    moved(rows, "second", {1: [2, 3, 4], 2: [0, 1]}, dead=0)
    moved(rows, "third", {2: [2, 3, 4]})
    rows.conn.execute(sa.update(t.pack).where(t.pack.c.id == 1).values(chunks=5, bytes=50))
    toll = space.bury(rows.conn, OURS, [some(1, 1, [0, 1, 2]), some(2, 1, [5])], "delete:b")
    assert toll == Toll(owned=3 * CHUNK + INDEX + CHUNK, freed=3 * CHUNK + INDEX, waiting=CHUNK, objects=1)
    assert objects(rows) == {"first": ("CONDEMNED", 3, 0), "second": ("STORED", 4, CHUNK), "third": ("STORED", 3, 0)}
    assert holders(rows) == {("second", 1), ("second", 2), ("third", 2)}
    assert gone(rows) == {1: ({0, 1, 2}, 3 * CHUNK), 2: ({5}, CHUNK)}
    toll = space.bury(rows.conn, OURS, [Dying(1, 1, None, 2 * CHUNK), some(2, 1, [0])], "delete:c")
    assert toll == Toll(owned=3 * CHUNK, waiting=3 * CHUNK)
    assert set(gone(rows)) == {2}
    assert objects(rows)["second"] == ("STORED", 1, 4 * CHUNK)


@pytest.mark.parametrize("left", [True, False])
def test_a_planned_object_goes_when_nothing_that_it_will_hold_lives(rows: Rows, left: bool) -> None:
    """Its put may still come: it stays late. It frees nothing, since nothing of it is stored; while something of it lives it
    stays planned, and nothing is counted in it."""
    for key in (1, 2, 3):
        rows.pack(key, 1, 4, [3] if key == 3 else (), moved=True)
    moved(rows, "old", {1: [0, 1, 2, 3], 2: [0, 1, 2, 3], 3: [0, 1, 2]})
    moved(rows, "new", {1: [0, 1], 2: [3], 3: [0] if left else [3]}, state="PLANNED")
    toll = space.bury(rows.conn, OURS, [some(1, 1, [0, 1, 2]), some(2, 1, [3])], "delete:b")
    assert toll == Toll(owned=4 * CHUNK, waiting=4 * CHUNK)
    assert objects(rows)["new"] == ("PLANNED" if left else "CONDEMNED", 0, 0)
    assert rows.conn.execute(sa.select(t.object_.c.late).where(t.object_.c.id == "new")).scalar_one() is not left
    assert {pack for name, pack in holders(rows) if name == "new"} == ({1, 2, 3} if left else set())


def test_condemned_objects_are_not_counted_again(rows: Rows) -> None:
    """Another delete has them already."""
    own(rows, 1, 1, 4)
    rows.conn.execute(sa.update(t.object_).values(state="CONDEMNED", removal="delete:a"))
    assert space.bury(rows.conn, OURS, [Dying(1, 1, None, 40)], "delete:b") == Toll()
    assert rows.conn.execute(sa.select(t.object_.c.removal)).scalar_one() == "delete:a"
    assert gone(rows) == {}


def test_condemning_lets_a_rewriter_go_and_keeps_a_put_that_may_come(rows: Rows) -> None:
    """STORED and PLANNED ones; what is condemned or late stays as it is."""
    for name, state, late in (
        ("s", "STORED", False), ("p", "PLANNED", False), ("l", "LATE", True), ("c", "CONDEMNED", False), ("sl", "STORED", True),
        ("other", "STORED", False),
    ):  # fmt: skip
        rows.object(name, {}, 10, state=state, late=late, rewriting="rewrite:x", removal="before")
    space.condemn(rows.conn, ["s", "p", "l", "c", "sl"], "delete:b")
    found = {row.id: (row.state, row.late, row.rewriting, row.removal) for row in rows.conn.execute(sa.select(t.object_))}
    assert found == {
        "s": ("CONDEMNED", False, None, "delete:b"), "p": ("CONDEMNED", True, None, "delete:b"),
        "sl": ("CONDEMNED", True, None, "delete:b"), "l": ("LATE", True, "rewrite:x", "before"),
        "c": ("CONDEMNED", False, "rewrite:x", "before"), "other": ("STORED", False, "rewrite:x", "before"),
    }  # fmt: skip


def test_what_is_given_up_holds_nothing_any_more(rows: Rows) -> None:
    """In the transaction that condemns it."""
    for key in (1, 2, 3):
        own(rows, key, 1)
    space.give_up(rows.conn, ["a1", "a3"], "rewrite:b")
    assert holders(rows) == {("a2", 2)}
    assert {name: state for name, (state, _, _) in objects(rows).items()} == {
        "a1": "CONDEMNED", "a2": "STORED", "a3": "CONDEMNED",
    }  # fmt: skip


def test_any_number_of_packs_and_objects_dies_at_once(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ids one statement takes."""
    monkeypatch.setattr(many, "_IN", 2)
    for key in range(1, 8):
        own(rows, key, 1, 2)
        rows.death(key, 1, 1, [0])
    moved(rows, "planned", {key: [0] for key in range(1, 6)}, state="PLANNED")
    dead = [Dying(key, 1, None, 2 * CHUNK) for key in range(1, 6)] + [some(6, 1, [1]), some(7, 1, [0])]
    toll = space.bury(rows.conn, OURS, dead, "delete:b")
    whole = 5 * (2 * CHUNK + INDEX)
    assert toll == Toll(owned=whole + 2 * CHUNK, freed=whole, waiting=2 * CHUNK, objects=5)
    assert {name for name, (state, _, _) in objects(rows).items() if state == "STORED"} == {"a6", "a7"}
    assert set(gone(rows)) == {6, 7}
    assert {row[0] for row in rows.deaths()} == {6, 7}


# Forecasts


def lived(rows: Rows, lineage: str = OURS) -> None:
    """Five parts; packs that die with one, or with several, alone in an object or beside others."""
    rows.parts(1, 2, 3, 4, 5, lineage=lineage)
    own(rows, 1, 1, 6, [5], lineage)
    own(rows, 2, 2, 3, (), lineage)
    own(rows, 3, 3, 2, (), lineage)
    own(rows, 5, 5, 3, (), lineage)
    own(rows, 9, 4, 9, [0], lineage)
    for key in (6, 7):
        rows.pack(key, 2, 4, lineage=lineage, moved=True)
    moved(rows, f"{lineage[0]}-early", {6: [0, 1], 7: [0]}, lineage)
    moved(rows, f"{lineage[0]}-late", {6: [2, 3], 7: [1, 2, 3]}, lineage)
    moved(rows, f"{lineage[0]}-new", {6: [2, 3], 7: [1]}, lineage, state="PLANNED")
    for pack, born, last, numbers in (
        (1, 1, 1, [0]), (1, 1, 2, [1]), (1, 1, 3, [2]), (2, 2, 2, [0, 1]), (2, 2, 3, [2]), (3, 3, 3, [0, 1]),
        (6, 2, 2, [0, 1]), (7, 2, 2, [0]), (6, 2, 3, [2]), (7, 2, 3, [1]),
    ):  # fmt: skip
        rows.death(pack, born, last, numbers, lineage=lineage)


GAPS = {
    2: [Gap(2, 1, 3)],
    3: [Gap(3, 2, 4)],
    32: [Gap(3, 2, 4), Gap(2, 1, 4)],
    23: [Gap(2, 1, 3), Gap(3, 1, 4)],
    123: [Gap(1, 0, 2), Gap(2, 0, 3), Gap(3, 0, 4)],
    54: [Gap(5, 4, None), Gap(4, 3, None)],
    12345: [Gap(1, 0, 2), Gap(2, 0, 3), Gap(3, 0, 4), Gap(4, 0, 5), Gap(5, 0, None)],
}


@pytest.mark.parametrize("gaps", GAPS.values(), ids=str)
def test_a_forecast_says_what_burying_does(rows: Rows, gaps: list[Gap]) -> None:
    """Gap after gap: the same tolls, and afterwards the same objects are partly dead; nothing is changed by saying it."""
    lived(rows)
    lived(rows, OTHER)
    before, other = rows.snapshot(OURS), rows.snapshot(OTHER)
    forecast = Forecast(rows.conn, OURS)
    said = [forecast.add(gap) for gap in gaps]
    partly = forecast.partly_dead()
    assert rows.snapshot(OURS) == before
    done = []
    for gap in gaps:
        dead = take_rows(rows.conn, OURS, gap, 1000) if gap.after is not None else list(whole_packs(rows.conn, OURS, gap))
        done.append(space.bury(rows.conn, OURS, dead, "delete:b"))
    assert said == done
    assert rows.snapshot(OTHER) == other
    left = list(rows.conn.execute(sa.select(t.object_).where(*space.is_partly_dead(OURS))))
    assert partly == Partly(len(left), sum(row.bytes - row.dead_bytes for row in left), sum(row.dead_bytes for row in left))


def test_a_single_gap_is_foretold_to_the_byte(rows: Rows) -> None:
    """Part 2 goes: pack 2 loses two chunks, those that were moved beside others go whole with their object; of pack 1, which part
    1 needs too, nothing dies."""
    lived(rows)
    assert Forecast(rows.conn, OURS).add(Gap(2, 1, 3)) == Toll(
        owned=2 * CHUNK + 3 * CHUNK + INDEX, freed=3 * CHUNK + INDEX, waiting=2 * CHUNK, objects=1
    )


def test_what_is_partly_dead_is_told_without_any_gap(rows: Rows) -> None:
    """Stored packs and rewritten objects of this lineage that hold dead and living chunks."""
    lived(rows)
    own(rows, 8, 1, 4, [0, 1], OTHER)
    rows.object("dead", {}, 50, dead_bytes=40, live=0)
    rows.object("manifest", {}, 50, dead_bytes=40, live=1, kind="manifest")
    rows.object("condemned", {}, 50, dead_bytes=40, live=1, state="CONDEMNED")
    rows.object("rewritten", {}, 60, dead_bytes=20, live=1, kind="rewrite")
    assert Forecast(rows.conn, OURS).partly_dead() == Partly(3, 5 * CHUNK + INDEX + 8 * CHUNK + INDEX + 40, 2 * CHUNK + 20)
    assert Partly(1, 2, 3) + Partly(10, 20, 30) == Partly(11, 22, 33)
    assert Toll(1, 2, 3, 4) + Toll(10, 20, 30, 40) == Toll(11, 22, 33, 44)


# What objects hold


def test_what_an_object_holds_is_told_by_pack(rows: Rows) -> None:
    """All of a pack or some numbers of it; of what lives, without what is gone."""
    own(rows, 1, 1, 4, [1, 3])
    rows.pack(2, 1, 4, [0], moved=True)
    rows.pack(3, 1, 2, [0], moved=True)
    moved(rows, "m", {2: [0, 2], 3: [0]})
    for key in (1, 2):
        own(rows, key, 1, 9, (), OTHER)
    assert space.held_by(rows.conn, "a1") == {1: BitMap([0, 1, 2, 3])}
    assert space.held_by(rows.conn, "m") == {2: BitMap([0, 2]), 3: BitMap([0])}
    assert space.held_by(rows.conn, "b1") == {1: BitMap(range(9))}
    assert space.held_by(rows.conn, "nothing") == {}
    assert space.living_in(rows.conn, ["a1", "m", "nothing"]) == {
        "a1": {1: BitMap([0, 2])}, "m": {2: BitMap([2])}, "nothing": {},
    }  # fmt: skip


def test_living_chunks_are_read_for_any_number_of_objects(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ids one statement takes."""
    monkeypatch.setattr(many, "_IN", 2)
    names = [own(rows, key, 1, 2) for key in range(1, 6)]
    assert space.living_in(rows.conn, names) == {f"a{key}": {key: BitMap([0, 1])} for key in range(1, 6)}


@pytest.mark.parametrize(("lengths", "width"), [([1, 65535], 2), ([1, 65536], 4), ([], 2), ([70000], 4), ([5], 2)])
def test_sizes_are_kept_in_as_few_bytes_as_they_need(lengths: list[int], width: int) -> None:
    """Two each, or four where one of them needs that; told apart by their number."""
    data = space.to_sizes(np.array(lengths, np.uint32))
    assert len(data) == width * len(lengths)
    assert space.sizes_of(data, len(lengths)).tolist() == lengths


@pytest.mark.parametrize(
    ("wanted", "total"),
    [([], 0), ([1, 2], 0), ([3], 100), ([9, 3], 70_100), ([3, 5, 9, 11], 71_100), ([5], 1000)],
)
def test_bytes_of_some_chunks_are_added_up(wanted: list[int], total: int) -> None:
    """Of those numbers that are held."""
    sizes = space.to_sizes(np.array([100, 1000, 70_000], np.uint32))
    assert space.bytes_among(BitMap([3, 5, 9]), sizes, BitMap(wanted)) == total


def test_batches_are_full_but_the_last() -> None:
    """In order, none empty."""
    assert list(many.batches(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(many.batches(range(6), 3)) == [[0, 1, 2], [3, 4, 5]]
    assert list(many.batches([], 3)) == []
