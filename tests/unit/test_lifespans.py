"""The lifespan arithmetic, statement by statement, on rows written by hand; whole histories are in test_lifespans_oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from pyroaring import BitMap

from strongroom.catalog import lifespans, many
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.catalog.lifespans import Begun, Dying, Gap
from support.catalog_rows import CHUNK, OTHER, OURS, Rows, empty_catalog, rolled_back
from support.histories import World, run_history


@pytest.fixture(scope="module")
def lineages() -> Iterator[Catalog]:
    catalog = empty_catalog()
    yield catalog
    catalog.close()


@pytest.fixture
def rows(lineages: Catalog) -> Iterator[Rows]:
    with rolled_back(lineages) as rows:
        yield rows


def dead(found: list[Dying]) -> set[tuple[int, int, frozenset[int] | None, int]]:
    assert len({(row.pack, None if row.numbers is None else row.numbers.serialize()) for row in found}) == len(found)
    return {(row.pack, row.born, None if row.numbers is None else frozenset(row.numbers), row.bytes) for row in found}


# The chain


def test_the_chain_is_what_is_built_or_completed_oldest_first(rows: Rows) -> None:
    """Retired parts have left it, and another lineage's are not in it."""
    rows.part(7, "BUILDING")
    rows.parts(5, 2)
    rows.part(3, "RETIRED")
    rows.parts(1, 9, lineage=OTHER)
    assert lifespans.chain(rows.conn, OURS) == [(2, "COMPLETED"), (5, "COMPLETED"), (7, "BUILDING")]
    assert lifespans.head(rows.conn, OURS) == (7, "BUILDING")


def test_the_head_is_the_newest_part_that_has_not_left(rows: Rows) -> None:
    """None of a lineage whose parts have all left."""
    rows.parts(1, 2)
    rows.part(3, "RETIRED")
    rows.part(1, "RETIRED", lineage=OTHER)
    assert lifespans.head(rows.conn, OURS) == (2, "COMPLETED")
    assert lifespans.head(rows.conn, OTHER) is None
    assert lifespans.chain(rows.conn, OTHER) == []


def test_a_gap_lies_between_the_nearest_parts(rows: Rows) -> None:
    """Retired parts and those that are thought away are no neighbours; at the ends there is none."""
    rows.parts(2, 4, 6, 8)
    rows.part(5, "RETIRED")
    rows.parts(3, 7, lineage=OTHER)
    assert lifespans.neighbours(rows.conn, OURS, 4) == Gap(4, 2, 6)
    assert lifespans.neighbours(rows.conn, OURS, 6) == Gap(6, 4, 8)
    assert lifespans.neighbours(rows.conn, OURS, 2) == Gap(2, 0, 4)
    assert lifespans.neighbours(rows.conn, OURS, 8) == Gap(8, 6, None)
    assert lifespans.neighbours(rows.conn, OURS, 4, iter((2, 6))) == Gap(4, 0, 8)


# Sweeping comes first


def test_a_lineage_is_swept_when_none_of_its_own_decisions_waits(rows: Rows) -> None:
    """The refusal names the decision and the lineage."""
    rows.decision(1, swept=True)
    rows.decision(1, lineage=OTHER)
    lifespans.require_swept(rows.conn, OURS)
    waiting = rows.decision(2)
    with pytest.raises(lifespans.NotSwept, match=f"^decision {waiting} of lineage {OURS} is not swept$"):
        lifespans.require_swept(rows.conn, OURS)


@pytest.mark.parametrize("act", ["begin", "commit", "leave"])
def test_nothing_is_decided_on_an_unswept_lineage(rows: Rows, act: str) -> None:
    """Neither a beginning, nor an end, nor a delete; nothing has changed."""
    rows.part(1, "BUILDING" if act == "commit" else "COMPLETED")
    rows.decision(1)
    before = rows.snapshot(OURS)
    acts: dict[str, Callable[[], object]] = {
        "begin": lambda: lifespans.begin(rows.conn, OURS, f"{OURS}/1"),
        "commit": lambda: lifespans.commit(rows.conn, OURS, 1, 1),
        "leave": lambda: lifespans.leave(rows.conn, OURS, 1),
    }
    with pytest.raises(lifespans.NotSwept, match="is not swept"):
        acts[act]()
    assert rows.snapshot(OURS) == before


# Beginning


def over_the_head(rows: Rows) -> tuple[set[tuple[object, ...]], set[tuple[object, ...]]]:
    """A chain whose head is 3 after 4 and 5 were deleted: (rows that reach over it, rows that stay)."""
    for lineage in (OURS, OTHER):
        rows.parts(1, 3, lineage=lineage)
        rows.conn.execute(sa.update(t.lineage).where(t.lineage.c.id == lineage).values(counter=5))
        for seq in (2, 4, 5):
            rows.part(seq, "RETIRED", lineage=lineage)
        for key, born in ((10, 1), (11, 1), (20, 2), (30, 3), (40, 4)):
            rows.pack(key, born, 8, lineage=lineage)
        rows.death(10, 1, 4, [0], lineage=lineage)
    reach = {
        rows.death(10, 1, 3, [1]), rows.death(11, 1, 4, [0, 1]), rows.death(20, 2, 3, [2]), rows.death(20, 2, 4, [4]),
        rows.death(30, 3, 4, [5]),
    }  # fmt: skip
    stay = {rows.death(10, 1, 2, [2]), rows.death(20, 2, 2, [3]), rows.death(40, 4, 5, [0])}
    return reach | {(10, 1, 4, 5, 1, frozenset([0]), CHUNK)}, stay


def test_what_reaches_over_the_head_is_reopened(rows: Rows) -> None:
    """Rows whose last part is the head or later: the head needs their numbers. Others stay, and the other lineage's all do."""
    reach, stay = over_the_head(rows)
    before = rows.snapshot(OTHER)
    assert rows.deaths() == reach | stay
    assert lifespans.reaches_over(rows.conn, OURS, 3)
    assert lifespans.reopen(rows.conn, OURS, 100) == len(reach)
    assert rows.deaths() == stay
    assert not lifespans.reaches_over(rows.conn, OURS, 3)
    assert rows.snapshot(OTHER) == before
    assert lifespans.reopen(rows.conn, OURS, 100) == 0


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
def test_reopening_goes_in_batches(rows: Rows, limit: int) -> None:
    """Never more than the limit at once, over births too, until nothing is left."""
    reach, stay = over_the_head(rows)
    left = len(reach)
    while left:
        removed = lifespans.reopen(rows.conn, OURS, limit)
        assert removed == min(limit, left)
        left -= removed
        assert len(rows.deaths()) == left + len(stay)
        assert lifespans.reaches_over(rows.conn, OURS, 3) == (left > 0)
    assert rows.deaths() == stay


def test_nothing_is_reopened_while_a_part_is_built_or_where_none_is(rows: Rows) -> None:
    """The open set is frozen; without a head there is nobody who needs anything."""
    rows.parts(1)
    rows.part(2, "RETIRED")
    rows.part(3, "BUILDING", parent=1)
    rows.pack(10, 1)
    rows.death(10, 1, 3, [1])
    assert lifespans.reopen(rows.conn, OURS, 100) == 0
    assert len(rows.deaths()) == 1
    assert lifespans.reopen(rows.conn, OTHER, 100) == 0


@pytest.mark.parametrize(("born", "last", "reaches"), [(3, 3, True), (1, 3, True), (1, 2, False), (4, 4, False), (2, 9, True)])
def test_a_row_reaches_over_a_part_that_lies_in_it(rows: Rows, born: int, last: int, reaches: bool) -> None:
    """born ≤ parent ≤ last, of this lineage."""
    rows.pack(1, born)
    rows.death(1, born, last, [0])
    rows.pack(1, 2, lineage=OTHER)
    rows.death(1, 2, 3, [0], lineage=OTHER)
    assert lifespans.reaches_over(rows.conn, OURS, 3) is reaches


def test_reaching_over_looks_at_every_birth(rows: Rows) -> None:
    """Each birth has rows that end before; only the last one's reaches."""
    for born in (1, 2, 3):
        rows.pack(born, born)
        rows.death(born, born, 3, [0])
    assert not lifespans.reaches_over(rows.conn, OURS, 4)
    rows.death(3, 3, 4, [1])
    assert lifespans.reaches_over(rows.conn, OURS, 4)


def test_a_beginning_takes_the_next_seq_after_the_head(rows: Rows) -> None:
    """Seqs are never reused: the counter decides, not the chain. The part is BUILDING, attempt 0, with its parent."""
    for lineage in (OURS, OTHER):
        rows.parts(4, lineage=lineage)
        rows.part(7, "RETIRED", lineage=lineage)
        rows.conn.execute(sa.update(t.lineage).where(t.lineage.c.id == lineage).values(counter=7))
    before = rows.snapshot(OTHER)
    key = rows.backup("new", "BUILDING")
    assert lifespans.begin(rows.conn, OURS, key) == Begun(8, 4)
    part = rows.conn.execute(sa.select(t.part).where(t.part.c.lineage == OURS, t.part.c.seq == 8)).one()
    assert (part.backup, part.parent, part.attempt, part.state, part.committed) == ("new", 4, 0, "BUILDING", None)
    assert (part.version, part.entries, part.plain_bytes, part.stored_bytes, part.adopted_bytes) == (0, 0, 0, 0, 0)
    assert rows.snapshot(OURS)["counter"] == [8]
    assert rows.snapshot(OTHER) == before


def test_the_first_part_has_no_parent(rows: Rows) -> None:
    """Parent 0."""
    assert lifespans.begin(rows.conn, OURS, rows.backup("new", "BUILDING")) == Begun(1, 0)


def test_a_second_beginning_is_refused(rows: Rows) -> None:
    """One part of a lineage is built at a time; the refusal names it."""
    rows.part(3, "BUILDING")
    with pytest.raises(lifespans.AlreadyBuilding, match=f"^part 3 of lineage {OURS} is being built$"):
        lifespans.begin(rows.conn, OURS, f"{OURS}/3")


@pytest.mark.parametrize("most", [6, 7])
def test_a_beginning_reopens_what_fits_into_its_transaction(rows: Rows, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Six rows reach over the head. If that is as many as a transaction takes there may be more: refused, its caller reopens
    first."""
    monkeypatch.setattr(lifespans, "MOST_REOPENED", most)
    _, stay = over_the_head(rows)
    key = rows.backup("new", "BUILDING")
    if most == 6:
        with pytest.raises(lifespans.NotSwept, match=f"^lineage {OURS} has more to reopen$"):
            lifespans.begin(rows.conn, OURS, key)
    else:
        assert lifespans.begin(rows.conn, OURS, key).parent == 3
        assert rows.deaths() == stay


# Being built


@pytest.mark.parametrize(("state", "attempt"), [("BUILDING", 2), ("COMPLETED", 1), ("RETIRED", 1)])
def test_another_attempt_or_an_ended_part_is_not_ours(rows: Rows, state: str, attempt: int) -> None:
    """Only the attempt that is building may write; who may not is told what is so."""
    for lineage, here in ((OURS, state), (OTHER, "BUILDING")):
        rows.part(1, here, lineage=lineage, attempt=attempt if lineage == OURS else 1)
        rows.part(2, "BUILDING", lineage=lineage)
    lifespans.require_attempt(rows.conn, OURS, 2, 1)
    said = f"^part 1 of lineage {OURS} is {state}, attempt {attempt}; this is attempt 1$"
    with pytest.raises(lifespans.NotOurs, match=said):
        lifespans.require_attempt(rows.conn, OURS, 1, 1)
    with pytest.raises(lifespans.NotOurs, match=said):
        lifespans.commit(rows.conn, OURS, 1, 1)


def test_open_is_what_is_neither_gone_nor_dead_by_a_commit_that_counts(rows: Rows) -> None:
    """Rows ahead do not close anything, packs that are not stored or are the build's own are not open, and neither are packs of
    which nothing is left."""
    rows.parts(1, 2)
    rows.part(3, "BUILDING", attempt=2)
    rows.pack(1, 1, 6, gone=[0])
    rows.pack(2, 1, 3, gone=[0])
    rows.pack(3, 2, 2)
    rows.pack(4, 2, 2, stored=False)
    rows.pack(5, 3, 2)
    rows.death(1, 1, 1, [1, 2])
    rows.death(1, 1, 2, [3], closer=3, attempt=2)  # ahead
    rows.death(2, 1, 1, [1, 2])
    rows.pack(1, 1, 9, lineage=OTHER)
    rows.parts(2, lineage=OTHER)
    rows.part(3, "COMPLETED", lineage=OTHER, committed=2)
    rows.death(1, 1, 2, [4], lineage=OTHER, closer=2)
    opened = lifespans.open_numbers(rows.conn, OURS)
    assert opened == {1: BitMap([3, 4, 5]), 3: BitMap([0, 1])}
    assert lifespans.open_numbers(rows.conn, OTHER) == {1: BitMap([0, 1, 2, 3, 5, 6, 7, 8])}


def test_another_lineages_build_hides_no_pack(rows: Rows) -> None:
    """Its seq may be the birth of a pack of ours."""
    rows.parts(1, 2)
    rows.part(2, "BUILDING", lineage=OTHER)
    rows.pack(1, 2, 2)
    assert lifespans.open_numbers(rows.conn, OURS) == {1: BitMap([0, 1])}


def test_rows_of_an_attempt_that_was_replaced_close_nothing(rows: Rows) -> None:
    """The part committed with attempt 2: what attempt 1 wrote ahead does not count, anywhere."""
    rows.parts(1)
    rows.part(2, committed=2, attempt=2)
    rows.pack(1, 1, 4)
    rows.death(1, 1, 1, [0], attempt=1)
    rows.death(1, 1, 1, [1], attempt=2)
    assert lifespans.open_numbers(rows.conn, OURS) == {1: BitMap([0, 2, 3])}
    assert lifespans.open_bytes(rows.conn, OURS, 0, 1) == 3 * CHUNK
    assert lifespans.open_bytes_of(rows.conn, OURS, 1) == 3 * CHUNK
    gap = Gap(1, 0, 2)
    assert dead(list(lifespans.dying(rows.conn, OURS, gap))) == {(1, 1, frozenset([1]), CHUNK)}
    assert lifespans.dying_by_pack(rows.conn, OURS, gap) == (CHUNK, [])
    assert dead(lifespans.take_rows(rows.conn, OURS, gap, 10)) == {(1, 1, frozenset([1]), CHUNK)}


# The proof before a commit


def test_what_a_manifest_does_not_name_is_told(rows: Rows) -> None:
    """Packs in part, in full, and not at all; own packs are never among it."""
    opened = {1: BitMap([0, 1, 2]), 2: BitMap([5]), 3: BitMap([7, 8])}
    used = {1: BitMap([1]), 2: BitMap([5]), 9: BitMap([0, 1])}
    assert lifespans.prove_coverage(used, opened, {9: 2}, {1: BitMap([2])}) == {1: BitMap([0, 2]), 3: BitMap([7, 8])}
    assert lifespans.prove_coverage({}, {}, {}, {}) == {}


@pytest.mark.parametrize(
    ("used", "own", "suspect", "said"),
    [
        ({9: [0]}, {9: 2}, {}, "pack 9 has 2 chunks and 1 of them are named"),
        ({9: [0, 1, 2]}, {9: 2}, {}, "pack 9 has 2 chunks and 3 of them are named"),
        ({1: [0, 3, 4]}, {}, {}, "2 chunks of pack 1 are named and not open"),
        ({4: [0]}, {}, {}, "1 chunks of pack 4 are named and not open"),
        ({1: [0, 1]}, {}, {1: [1]}, "pack 1 has suspect chunks that are named"),
        ({}, {9: 2, 8: 1}, {}, r"own packs that nothing names: \[8, 9\]"),
    ],
)
def test_a_manifest_that_names_what_it_may_not_is_told_what(
    used: dict[int, list[int]], own: dict[int, int], suspect: dict[int, list[int]], said: str
) -> None:
    """Own packs in part or not at all, what is not open, and what is suspect."""
    opened = {1: BitMap([0, 1, 2])}
    with pytest.raises(lifespans.NotCovered, match=f"^{said}$"):
        lifespans.prove_coverage(
            {key: BitMap(numbers) for key, numbers in used.items()}, opened, own,
            {key: BitMap(numbers) for key, numbers in suspect.items()},
        )  # fmt: skip


def test_suspect_numbers_add_up_and_belong_to_one_lineage(rows: Rows) -> None:
    """A pack that is gone meanwhile is passed over; packs without any are not told."""
    for lineage in (OURS, OTHER):
        rows.pack(1, 1, lineage=lineage)
        rows.pack(2, 1, lineage=lineage)
    lifespans.suspect(rows.conn, OTHER, 2, BitMap([3]))
    lifespans.suspect(rows.conn, OURS, 1, BitMap([0]))
    lifespans.suspect(rows.conn, OURS, 1, BitMap([2]))
    lifespans.suspect(rows.conn, OURS, 7, BitMap([2]))
    assert lifespans.suspects(rows.conn, OURS) == {1: BitMap([0, 2])}
    assert lifespans.suspects(rows.conn, OTHER) == {2: BitMap([3])}


def test_rows_ahead_carry_the_birth_of_their_pack(rows: Rows) -> None:
    """What the writer does not know: it comes from the lineage's own pack. Nothing to write writes nothing."""
    rows.part(5, "BUILDING", parent=3)
    rows.pack(1, 2)
    rows.pack(2, 3)
    rows.pack(1, 9, lineage=OTHER)
    lifespans.write_ahead(rows.conn, OURS, 5, 7, 3, iter([(1, BitMap([0, 1]), 20), (2, BitMap([3]), 10)]))
    assert rows.deaths() == {(1, 2, 3, 5, 7, frozenset([0, 1]), 20), (2, 3, 3, 5, 7, frozenset([3]), 10)}
    lifespans.write_ahead(rows.conn, OURS, 5, 8, 3, [])
    assert len(rows.deaths()) == 2
    assert rows.deaths(OTHER) == set()
    lifespans.write_ahead(rows.conn, OTHER, 11, 1, 10, [(1, BitMap([2]), 10)])
    assert rows.deaths(OTHER) == {(1, 9, 10, 11, 1, frozenset([2]), 10)}


def written_ahead(rows: Rows) -> tuple[set[tuple[object, ...]], set[tuple[object, ...]]]:
    """(rows that part 5 wrote ahead and that do not count, rows that are not that)."""
    for lineage in (OURS, OTHER):
        rows.parts(1, 2, 3, lineage=lineage)
        for key, born in ((1, 1), (2, 1), (3, 3)):
            rows.pack(key, born, 9, lineage=lineage)
        rows.death(1, 1, 3, [8], closer=5, attempt=1, lineage=lineage)
    rows.part(5, committed=2, parent=3, attempt=2)
    rows.part(6, "BUILDING", parent=5)
    ahead = {
        rows.death(2, 1, 3, [0], closer=5, attempt=1), rows.death(3, 3, 3, [1], closer=5, attempt=3),
        rows.death(3, 3, 3, [2], closer=5, attempt=1),
    }  # fmt: skip
    others = {
        rows.death(3, 3, 3, [3], closer=5, attempt=2),  # counts
        rows.death(1, 1, 2, [0], closer=3),  # another's
        rows.death(1, 1, 3, [3], closer=6, attempt=1),  # ahead of another part
        rows.death(1, 1, 2, [4], closer=5, attempt=1),  # not from this parent: nothing of this build
    }
    return ahead | {(1, 1, 3, 5, 1, frozenset([8]), CHUNK)}, others


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
def test_rows_ahead_that_never_counted_are_forgotten_in_batches(rows: Rows, limit: int) -> None:
    """The part's own of attempts that did not commit, and no others; the other lineage's stay."""
    ahead, others = written_ahead(rows)
    before, left = rows.snapshot(OTHER), len(ahead)
    while left:
        removed = lifespans.forget_ahead(rows.conn, OURS, 5, 3, limit)
        assert removed == min(limit, left)
        left -= removed
    assert lifespans.forget_ahead(rows.conn, OURS, 5, 3, limit) == 0
    assert rows.deaths() == others
    assert rows.snapshot(OTHER) == before


def test_rows_ahead_of_a_single_birth_are_forgotten(rows: Rows) -> None:
    """Each birth is looked at for its own rows."""
    rows.parts(1)
    rows.part(2, "RETIRED", committed=None, attempt=2)
    rows.pack(1, 1)
    rows.death(1, 1, 1, [0], closer=2, attempt=1)
    assert lifespans.forget_ahead(rows.conn, OURS, 2, 1, 10) == 1
    assert rows.deaths() == set()


# Ends


def test_a_commit_completes_the_part_and_makes_its_rows_count(rows: Rows) -> None:
    """With its parent still there no gap opens. The other lineage's part of the same seq is left alone."""
    for lineage in (OURS, OTHER):
        rows.parts(1, 2, lineage=lineage)
        rows.part(3, "BUILDING", attempt=4, lineage=lineage)
        rows.pack(1, 1, lineage=lineage)
        rows.death(1, 1, 2, [0, 1], closer=3, attempt=4, lineage=lineage)
    before = rows.snapshot(OTHER)
    assert lifespans.open_numbers(rows.conn, OURS) == {1: BitMap([0, 1, 2, 3])}
    assert lifespans.commit(rows.conn, OURS, 3, 4) is None
    assert lifespans.open_numbers(rows.conn, OURS) == {1: BitMap([2, 3])}
    part = rows.conn.execute(sa.select(t.part).where(t.part.c.lineage == OURS, t.part.c.seq == 3)).one()
    assert (part.state, part.committed, part.attempt) == ("COMPLETED", 4, 4)
    assert rows.states() == {1: ("COMPLETED", 1), 2: ("COMPLETED", 1), 3: ("COMPLETED", 4)}
    assert rows.snapshot(OTHER) == before


def test_a_commit_whose_parent_has_left_opens_the_gap_around_it(rows: Rows) -> None:
    """Between the part before the parent and the part itself."""
    rows.parts(1)
    rows.part(2, "RETIRED")
    rows.part(4, "BUILDING", parent=2)
    assert lifespans.commit(rows.conn, OURS, 4, 1) == Gap(2, 1, 4)


def test_a_first_commit_opens_no_gap(rows: Rows) -> None:
    """It has no parent that could have left."""
    rows.part(1, "BUILDING", parent=0)
    assert lifespans.commit(rows.conn, OURS, 1, 1) is None


@pytest.mark.parametrize("how", [lifespans.leave, lifespans.retire])
def test_a_part_that_leaves_is_fenced(rows: Rows, how: Callable[[sa.Connection, str, int], Gap]) -> None:
    """RETIRED, with its attempt raised: its writer fails at its next proof. The gap is told as it was before; others stay."""
    for lineage in (OURS, OTHER):
        rows.parts(1, 2, 3, lineage=lineage)
    before = rows.snapshot(OTHER)
    assert how(rows.conn, OURS, 2) == Gap(2, 1, 3)
    assert rows.states() == {1: ("COMPLETED", 1), 2: ("RETIRED", 2), 3: ("COMPLETED", 1)}
    assert rows.snapshot(OTHER) == before


# What dies


def lives(rows: Rows, lineage: str = OURS) -> None:
    """A chain 1 … 6 with packs of every birth and rows that end everywhere; part 5 wrote some rows with an attempt that lost."""
    shift = 0 if lineage == OURS else 3
    rows.parts(1, 2, 3, 4, 6, 7, 8, lineage=lineage)
    rows.part(5, committed=2, attempt=2, lineage=lineage)
    for born in range(1, 7):
        rows.pack(born, born, 20, gone=[19 - shift], lineage=lineage)
        for last in range(born, 7):
            number = (last - born) * 2 + shift
            rows.death(born, born, last, [number, number + 1], attempt=2 if last == 4 else 1, lineage=lineage)
        if born < 5:
            rows.death(born, born, 4, [15], attempt=1, lineage=lineage)  # ahead, and lost


def expected(before: int, seq: int, after: int) -> set[tuple[int, int, frozenset[int], int]]:
    """By the definition: born in (before, seq], last in [seq, after)."""
    return {
        (born, born, frozenset([(last - born) * 2, (last - born) * 2 + 1]), 2 * CHUNK)
        for born in range(before + 1, seq + 1)
        for last in range(max(seq, born), after)
    }


GAPS = [Gap(4, 3, 6), Gap(4, 2, 5), Gap(3, 0, 4), Gap(2, 1, 7), Gap(5, 4, 6), Gap(6, 1, 7), Gap(3, 1, 6), Gap(4, 1, 7)]


@pytest.mark.parametrize("gap", GAPS)
def test_a_gap_kills_the_lives_that_lie_in_it(rows: Rows, gap: Gap) -> None:
    """before < born ≤ seq ≤ last < after, of this lineage, by commits that count."""
    lives(rows)
    lives(rows, OTHER)
    assert gap.after is not None
    wanted = expected(gap.before, gap.seq, gap.after)
    assert dead(list(lifespans.dying(rows.conn, OURS, gap))) == wanted
    assert lifespans.dying_by_pack(rows.conn, OURS, gap) == (sum(row[3] for row in wanted), [])


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
def test_a_sweep_takes_those_rows_out_in_batches(rows: Rows, gap: Gap, limit: int) -> None:
    """All rows of a pack come together, births in order; a batch is larger than the limit only for one pack alone. Other rows,
    the other lineage's among them, stay."""
    lives(rows)
    lives(rows, OTHER)
    before, all_rows = rows.snapshot(OTHER), rows.deaths()
    assert gap.after is not None
    wanted = expected(gap.before, gap.seq, gap.after)
    taken: list[Dying] = []
    while batch := lifespans.take_rows(rows.conn, OURS, gap, limit):
        assert len(batch) <= limit or len({row.pack for row in batch}) == 1
        assert not {row.pack for row in taken} & {row.pack for row in batch}
        assert [row.pack for row in batch] == sorted(row.pack for row in batch)
        taken += batch
        room = limit - len(batch)
        following = {row for row in wanted if row not in dead(taken)}
        if following:
            first = min(row[0] for row in following)
            assert len([row for row in following if row[0] == first]) > room, "what still fitted was taken too"
    assert dead(taken) == wanted
    assert {(row[0], row[1], row[5], row[6]) for row in all_rows - rows.deaths()} == wanted
    assert rows.snapshot(OTHER) == before


def test_packs_of_one_birth_are_taken_in_order_and_whole(rows: Rows) -> None:
    """Three packs with 2, 3 and 1 rows: what a batch takes depends on the limit alone, never on parts of a pack."""
    rows.parts(1, 2, 3, 4, 5)
    for key, count in ((7, 2), (8, 3), (9, 1)):
        rows.pack(key, 1, 9)
        for last in range(1, count + 1):
            rows.death(key, 1, last, [last])
    gap = Gap(1, 0, 5)
    for limit, takes in ((1, [7]), (2, [7]), (4, [7]), (5, [7, 8]), (6, [7, 8, 9]), (7, [7, 8, 9])):
        assert lifespans._some_packs(rows.conn, OURS, gap, 1, limit, first=True) == (takes, takes == [7, 8, 9])
    assert lifespans._some_packs(rows.conn, OURS, gap, 1, 1, first=False) == ([], False)
    assert lifespans._some_packs(rows.conn, OURS, gap, 1, 2, first=False) == ([7], False)
    assert lifespans._some_packs(rows.conn, OURS, gap, 2, 2, first=True) == ([], True)


def test_a_later_birth_waits_until_the_ones_before_it_are_done(rows: Rows) -> None:
    """Its pack would fit, but one of an earlier birth did not."""
    rows.parts(1, 2, 3, 4, 5)
    for key, born, count in ((7, 1, 2), (8, 1, 3), (1, 2, 1)):
        rows.pack(key, born, 9)
        for last in range(2, count + 2):
            rows.death(key, born, last, [last])
    gap = Gap(2, 0, 5)
    batches = [[row.pack for row in lifespans.take_rows(rows.conn, OURS, gap, limit)] for limit in (4, 3, 3, 3)]
    assert batches == [[7, 7], [8, 8, 8], [1], []]


def test_many_packs_are_taken_whatever_a_statement_holds(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five packs, two ids in one statement: each row once."""
    monkeypatch.setattr(many, "_IN", 2)
    rows.parts(1, 2, 3)
    wanted = set()
    for key in range(1, 6):
        rows.pack(key, 1)
        rows.death(key, 1, 1, [key % 4])
        wanted.add((key, 1, frozenset([key % 4]), CHUNK))
    assert dead(lifespans.take_rows(rows.conn, OURS, Gap(1, 0, 2), 100)) == wanted
    assert rows.deaths() == set()


def test_a_pack_goes_whole_when_all_that_is_left_of_it_dies(rows: Rows) -> None:
    """As many bytes die as are not gone yet: told as whole, not among the bytes that die inside packs that live on."""
    for lineage in (OURS, OTHER):
        rows.parts(1, 2, 3, 4, lineage=lineage)
        rows.pack(1, 1, 4, gone=[0], lineage=lineage)
        rows.pack(2, 2, 4, lineage=lineage)
        rows.death(1, 1, 2, [1], lineage=lineage)
        rows.pack(3, 1, 9, lineage=lineage)
        rows.death(3, 1, 2, [7, 8], lineage=lineage)
    rows.death(1, 1, 3, [2, 3])
    rows.death(2, 2, 2, [0, 1])
    rows.death(2, 2, 1, [2], closer=9)
    inside, whole = lifespans.dying_by_pack(rows.conn, OURS, Gap(2, 0, 4))
    assert (inside, dead(whole)) == (4 * CHUNK, {(1, 1, None, 3 * CHUNK)})
    assert lifespans.dying_by_pack(rows.conn, OTHER, Gap(2, 0, 4)) == (3 * CHUNK, [])
    assert lifespans.dying_by_pack(rows.conn, OURS, Gap(9, 8, 10)) == (0, [])


def test_what_dies_in_packs_that_were_moved_is_told_row_by_row(rows: Rows) -> None:
    """Their chunks lie beside others in several objects: only the numbers tell what dies there, even if the pack goes whole."""
    for lineage, moved in ((OURS, True), (OTHER, False)):
        rows.parts(1, 2, 3, 4, lineage=lineage)
        rows.pack(1, 1, 4, lineage=lineage, moved=moved)
        rows.pack(2, 2, 4, lineage=lineage, moved=moved)
        rows.pack(3, 2, 4, lineage=lineage)
        rows.death(1, 1, 2, [0, 1], lineage=lineage)
        rows.death(1, 1, 3, [2], lineage=lineage)
        rows.death(1, 1, 1, [3], lineage=lineage)
        rows.death(2, 2, 2, [0, 1, 2, 3], lineage=lineage)
        rows.death(3, 2, 2, [2], lineage=lineage)
    gap = Gap(2, 0, 4)
    inside, rest = lifespans.dying_by_pack(rows.conn, OURS, gap)
    assert inside == CHUNK
    assert dead(rest) == {
        (1, 1, frozenset([0, 1]), 2 * CHUNK), (1, 1, frozenset([2]), CHUNK), (2, 2, frozenset([0, 1, 2, 3]), 4 * CHUNK)
    }  # fmt: skip
    inside, rest = lifespans.dying_by_pack(rows.conn, OTHER, gap)
    assert (inside, dead(rest)) == (4 * CHUNK, {(2, 2, None, 4 * CHUNK)})


def test_at_the_chains_end_packs_go_whole(rows: Rows) -> None:
    """Those born in the gap, less what is gone of them; their death rows are part of them and are not told again."""
    lives(rows)
    lives(rows, OTHER)
    gap = Gap(6, 4, None)
    wanted = {(born, born, None, 19 * CHUNK) for born in (5, 6)}
    assert dead(list(lifespans.whole_packs(rows.conn, OURS, gap))) == wanted
    assert dead(list(lifespans.dying(rows.conn, OURS, gap))) == wanted
    inside, whole = lifespans.dying_by_pack(rows.conn, OURS, gap)
    assert (inside, dead(whole)) == (0, wanted)
    assert dead(list(lifespans.whole_packs(rows.conn, OURS, Gap(5, 4, None)))) == {(5, 5, None, 19 * CHUNK)}


@pytest.mark.parametrize(
    ("limit", "packs", "weight"),
    [(1, [3], 3), (2, [3], 3), (3, [3], 3), (4, [3], 3), (5, [3, 5], 5), (7, [3, 5], 5), (8, [3, 5, 4], 8)],
)
def test_whole_packs_are_weighed_with_their_death_rows(rows: Rows, limit: int, packs: list[int], weight: int) -> None:
    """Packs by birth, then id: 3 with two rows, 5 with one, 4 (born later) with two. One at least, else the limit at most."""
    for lineage, more in ((OURS, 0), (OTHER, 3)):
        rows.pack(5, 1, gone=[1], lineage=lineage)
        rows.pack(3, 1, lineage=lineage)
        rows.pack(4, 2, lineage=lineage)
        for key, born, count in ((3, 1, 2), (5, 1, 1), (4, 2, 2)):
            for last in range(1, count + 1 + more):
                rows.death(key, born, last, [last % 4], lineage=lineage)
    found, heavy = lifespans.some_whole_packs(rows.conn, OURS, Gap(2, 0, None), limit)
    assert ([row.pack for row in found], heavy) == (packs, weight)
    assert [row.born for row in found] == [{3: 1, 5: 1, 4: 2}[key] for key in packs]
    assert [row.bytes for row in found] == [{3: 40, 5: 30, 4: 40}[key] for key in packs]
    assert all(row.numbers is None for row in found)


def test_no_more_whole_packs_are_read_than_the_limit(rows: Rows) -> None:
    """Packs without death rows weigh one each."""
    for key in range(1, 6):
        rows.pack(key, 1)
    found, weight = lifespans.some_whole_packs(rows.conn, OURS, Gap(1, 0, None), 3)
    assert ([row.pack for row in found], weight) == ([1, 2, 3], 3)
    assert lifespans.some_whole_packs(rows.conn, OURS, Gap(9, 1, None), 3) == ([], 0)


# Bytes that are open


def test_open_bytes_are_what_is_neither_gone_nor_closed(rows: Rows) -> None:
    """Of packs born in the window, of this lineage; rows ahead close nothing."""
    lives(rows)
    lives(rows, OTHER)
    rows.pack(50, 3, 1, lineage=OTHER)
    for before, upto in ((0, 6), (2, 4), (3, 4), (5, 6), (0, 1)):
        closed = sum(2 * len(range(born, 7)) for born in range(before + 1, upto + 1))
        assert lifespans.open_bytes(rows.conn, OURS, before, upto) == (19 * (upto - before) - closed) * CHUNK
    assert lifespans.open_bytes(rows.conn, OURS, 6, 9) == 0
    assert lifespans.open_bytes_of(rows.conn, OURS, 3) == (19 - 8) * CHUNK
    assert lifespans.open_bytes_of(rows.conn, OTHER, 50) == CHUNK


def test_births_are_told_once_each_in_order(rows: Rows) -> None:
    """Distinct births of death rows in the window, whatever lies between them."""
    for key, born in ((1, 2), (2, 2), (3, 5), (4, 9)):
        rows.pack(key, born)
        rows.death(key, born, 9, [0])
        rows.death(key, born, 10, [1])
    rows.pack(1, 4, lineage=OTHER)
    rows.death(1, 4, 9, [0], lineage=OTHER)
    assert list(lifespans._births(rows.conn, OURS, 0, 9)) == [2, 5, 9]
    assert list(lifespans._births(rows.conn, OURS, 2, 8)) == [5]
    assert list(lifespans._births(rows.conn, OURS, 9, 20)) == []


def test_rows_are_forgotten_by_all_that_names_them(rows: Rows) -> None:
    """Pack, last, closer and attempt, and the lineage."""
    for lineage in (OURS, OTHER):
        rows.pack(1, 1, lineage=lineage)
        rows.pack(2, 1, lineage=lineage)
        for key, last, closer, attempt in ((1, 1, 2, 1), (2, 1, 2, 1), (1, 2, 2, 1), (1, 1, 3, 1), (1, 1, 2, 2)):
            rows.death(key, 1, last, [0], closer=closer, attempt=attempt, lineage=lineage)
    lifespans.forget(rows.conn, OURS, [(1, 1, 2, 1)])
    assert {row[:1] + row[2:5] for row in rows.deaths()} == {(2, 1, 2, 1), (1, 2, 2, 1), (1, 1, 3, 1), (1, 1, 2, 2)}
    assert len(rows.deaths(OTHER)) == 5
    lifespans.forget(rows.conn, OURS, [])
    assert len(rows.deaths()) == 4


def test_ends_are_told_of_what_is_closed_by_commits_that_count(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the packs asked for, however many one statement holds; what is not told is open."""
    monkeypatch.setattr(many, "_IN", 2)
    for lineage in (OURS, OTHER):
        rows.parts(1, 2, 3, lineage=lineage)
        for key in range(1, 7):
            rows.pack(key, 1, lineage=lineage)
            rows.death(key, 1, 1, [key % 3], lineage=lineage)
    rows.death(1, 1, 2, [3])
    rows.death(2, 1, 2, [3], attempt=9)
    told = [(pack, last, set(numbers)) for pack, last, numbers in lifespans.ends_of(rows.conn, OURS, [1, 2, 3, 4, 5])]
    assert sorted(told, key=str) == [(1, 1, {1}), (1, 2, {3}), (2, 1, {2}), (3, 1, {0}), (4, 1, {1}), (5, 1, {2})]
    assert list(lifespans.ends_of(rows.conn, OURS, [])) == []


def test_what_a_part_shared_is_what_it_needed_and_what_lives_on(rows: Rows) -> None:
    """Part 3 has left and is swept: not what came after it, what died before it or what is gone; rows that do not count take
    nothing away."""
    for lineage, more in ((OURS, 0), (OTHER, 1)):
        rows.parts(1, 2, 4, lineage=lineage)
        rows.part(3, "RETIRED", lineage=lineage, attempt=2)
        rows.pack(1, 1, 8 + more, gone=[0], lineage=lineage)
        rows.pack(2, 3, 2 + more, lineage=lineage)
        rows.pack(3, 4, 2 + more, lineage=lineage)
        rows.pack(4, 2, 2 + more, gone=[1], lineage=lineage)
    rows.death(1, 1, 1, [1])
    rows.death(1, 1, 2, [2])
    rows.death(1, 1, 3, [3])
    rows.death(1, 1, 2, [4], closer=4, attempt=9)
    rows.death(4, 2, 2, [0])
    rows.death(1, 1, 1, [5], lineage=OTHER)
    assert lifespans.shared(rows.conn, OURS, 3, [1, 2, 3, 4, 99]) == {1: BitMap([3, 4, 5, 6, 7]), 2: BitMap([0, 1])}
    assert lifespans.shared(rows.conn, OURS, 3, [2, 3]) == {2: BitMap([0, 1])}
    assert lifespans.shared(rows.conn, OTHER, 3, [1]) == {1: BitMap([1, 2, 3, 4, 6, 7, 8])}
    assert lifespans.shared_bytes(rows.conn, OURS, 3) == 7 * CHUNK
    assert lifespans.shared_bytes(rows.conn, OTHER, 3) == (7 + 3 + 2) * CHUNK
    rows.pack(5, 3, 4, stored=False)
    assert lifespans.shared_bytes(rows.conn, OURS, 3) == 7 * CHUNK
    assert lifespans.shared_bytes(rows.conn, OURS, 0) == 0


@pytest.mark.parametrize(
    ("seq", "start", "limit", "found", "every"),
    [
        (9, 0, 100, [10, 20, 30, 40, 50], True),
        (9, 30, 100, [30, 40, 50, 10, 20], True),
        (9, 51, 100, [10, 20, 30, 40, 50], True),
        (9, 30, 4, [30, 40, 50, 10], False),
        (9, 40, 2, [40, 50], False),
        (9, 0, 5, [10, 20, 30, 40, 50], False),
        (9, 0, 6, [10, 20, 30, 40, 50], True),
        (3, 0, 100, [20, 40, 50], True),
        (3, 10, 4, [20, 40], False),
        (3, 30, 1, [20], False),
        (1, 10, 3, [50], True),
    ],
)
def test_a_sample_of_packs_goes_round_from_its_start(
    rows: Rows, seq: int, start: int, limit: int, found: list[int], every: bool
) -> None:
    """Stored packs of this lineage born up to a part, in order of their ids; if hardly any of them are old enough they are looked
    up by their births instead. Told whether they are all."""
    for key, born in ((10, 4), (30, 4), (50, 1), (20, 3), (40, 3)):
        rows.pack(key, born, gone=[key % 4])
        rows.pack(key + 1, born, lineage=OTHER)
    rows.pack(25, 1, stored=False)
    packs, all_of_them = lifespans.packs_up_to(rows.conn, OURS, seq, start, limit)
    if (seq, limit) == (3, 1):
        assert {row.id for row in packs} < {20, 40, 50}
    else:
        assert [row.id for row in packs] == found
    assert all_of_them is every
    assert all((row.born, row.gone_bytes) == ({10: 4, 30: 4, 50: 1, 20: 3, 40: 3}[row.id], CHUNK) for row in packs)


def test_hardly_any_old_packs_are_a_twentieth(rows: Rows) -> None:
    """Of forty packs that a sample looked at two are old enough: those are looked up by birth. Three are enough as they are."""
    for key in range(100, 150):
        rows.pack(key, 1 if key in (100, 101, 149) else 5)
    two = lifespans.packs_up_to(rows.conn, OURS, 1, 100, 40)
    assert ({row.id for row in two[0]}, two[1]) == ({100, 101, 149}, True)
    rows.conn.execute(sa.update(t.pack).where(t.pack.c.id == 102).values(born=1))
    three = lifespans.packs_up_to(rows.conn, OURS, 1, 100, 40)
    assert ({row.id for row in three[0]}, three[1]) == ({100, 101, 102}, False)


def test_a_missing_set_of_numbers_is_the_empty_one() -> None:
    """NULL in the catalog."""
    assert lifespans.numbers_of(None) == BitMap()
    assert lifespans.numbers_of(BitMap([3, 70000]).serialize()) == BitMap([3, 70000])


@pytest.mark.parametrize("batch", [1, 2, 5000])
def test_known_histories_kill_only_what_no_part_needs(batch: int) -> None:
    """As the random ones of test_lifespans_oracle, always the same: and all of it."""
    catalog = open_catalog("sqlite://")
    t.metadata.create_all(catalog.engine)
    for seed in range(4):
        world = World(catalog, seed + 100 * batch)
        run_history(world, 40, batch)
    catalog.close()
