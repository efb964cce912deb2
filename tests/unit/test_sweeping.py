"""From a decision to `gone`, on rows written by hand: what a sweep books and to whom, in which portions, and who waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from pyroaring import BitMap

from strongroom.catalog import lifespans, sweeping
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog
from strongroom.catalog.lifespans import Gap
from support.catalog_rows import CHUNK, OTHER, OURS, Rows, empty_catalog

INDEX = 7
"""Bytes of an object that are not chunks."""


class House:
    """A catalog whose transactions a test counts."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.guarded: list[str] = []

    @contextmanager
    def rows(self) -> Iterator[Rows]:
        """In a transaction of their own."""
        with self.catalog.write() as conn:
            yield Rows(conn)

    def one(self, table: sa.Table, *where: sa.ColumnElement[bool]) -> Any:
        with self.catalog.read() as conn:
            return conn.execute(sa.select(table).where(*where)).one()

    def decision(self, key: int) -> Any:
        return self.one(t.decision, t.decision.c.id == key)

    def gone(self, pack: int, lineage: str = OURS) -> set[int] | None:
        """The numbers of a pack that are freed; None: all are, and its row with them."""
        with self.catalog.read() as conn:
            row = conn.execute(sa.select(t.pack.c.gone).where(t.pack.c.lineage == lineage, t.pack.c.id == pack)).first()
        return None if row is None else set(lifespans.numbers_of(row.gone))

    def condemned(self) -> dict[str, str | None]:
        """Objects that are condemned, and the removal that they belong to."""
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(t.object_.c.id, t.object_.c.removal).where(t.object_.c.state == "CONDEMNED"))
            return {row.id: row.removal for row in rows}

    def snapshot(self, lineage: str) -> dict[str, list[Any]]:
        with self.rows() as rows:
            return rows.snapshot(lineage)

    def guard(self, name: str) -> Any:
        return lambda conn: self.guarded.append(name)


@pytest.fixture
def house() -> Iterator[House]:
    catalog = empty_catalog()
    yield House(catalog)
    catalog.close()


def scene(rows: Rows, lineage: str = OURS) -> None:
    """A chain 1 2 3: of pack 1 one chunk dies with part 2, pack 2 dies with it whole, pack 3 is the head's."""
    prefix = lineage[0]
    rows.parts(1, 2, 3, lineage=lineage)
    for key, born, chunks in ((1, 2, 4), (2, 2, 3), (3, 3, 2)):
        rows.pack(key, born, chunks, lineage=lineage)
        rows.object(f"{prefix}{key}", {key: None}, chunks * CHUNK + INDEX, lineage, live=chunks)
    rows.death(1, 2, 2, [0], lineage=lineage)
    rows.death(2, 2, 2, [0, 1, 2], lineage=lineage)
    rows.conn.execute(sa.update(t.part).where(t.part.c.lineage == lineage, t.part.c.seq == 2).values(state="RETIRED"))


def deleted(rows: Rows, lineage: str = OURS, **over: Any) -> int:
    """Part 2's delete is decided and not swept."""
    scene(rows, lineage)
    rows.deletion(f"{lineage}/2")
    return rows.decision(2, 1, 3, lineage, **over)


# One step


def test_a_sweep_frees_what_the_gap_killed(house: House) -> None:
    """Numbers into `gone`, packs that are all gone out with their rows, their objects condemned for the delete's removal, and
    what waits counted to the deletion. The other lineage waits for its own."""
    with house.rows() as rows:
        key, other = deleted(rows), deleted(rows, OTHER)
    before = house.snapshot(OTHER)
    sweeping.finish(house.catalog, OURS)
    assert (house.gone(1), house.gone(2), house.gone(3)) == ({0}, None, set())
    assert house.condemned() == {"a2": f"delete:{OURS}/2"}
    assert house.one(t.deletion, t.deletion.c.backup == f"{OURS}/2").waiting == CHUNK
    assert house.one(t.deletion, t.deletion.c.backup == f"{OTHER}/2").waiting == 0
    assert house.decision(key).swept
    assert not house.decision(other).swept
    assert house.snapshot(OTHER) == before
    with house.rows() as rows:
        assert rows.deaths() == set()
        assert sweeping.unswept(rows.conn, OTHER)
        assert not sweeping.unswept(rows.conn, OURS)


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_a_step_tells_what_it_did(house: House, limit: int) -> None:
    """Rows that it turned over; then nothing, which ends the decision; then that none is left."""
    with house.rows() as rows:
        key = deleted(rows)
    told: list[int | None] = []
    while not told or told[-1] is not None:
        with house.catalog.write() as conn:
            assert sweeping.unswept(conn, OURS) or told
            told.append(sweeping.step(conn, OURS, limit))
    assert told == ([1, 1, 0, None] if limit == 1 else [2, 0, None])
    assert house.decision(key).swept
    assert house.one(t.deletion).waiting == CHUNK


def test_decisions_are_swept_in_the_order_in_which_they_were_taken(house: House) -> None:
    """Each with its own neighbours: what the first frees is booked to the first."""
    with house.rows() as rows:
        scene(rows)
        rows.death(3, 3, 3, [1], closer=4)
        rows.parts(4)
        rows.conn.execute(sa.update(t.part).where(t.part.c.seq == 3).values(state="RETIRED"))
        for seq in (2, 3):
            rows.deletion(f"{OURS}/{seq}")
        late = rows.decision(3, 1, 4, id=20)
        early = rows.decision(2, 1, 3, id=10)
    with house.catalog.write() as conn:
        assert sweeping.step(conn, OURS, 100) == 2
        assert sweeping.step(conn, OURS, 100) == 0
    assert (house.decision(early).swept, house.decision(late).swept) == (True, False)
    sweeping.finish(house.catalog, OURS)
    assert [house.one(t.deletion, t.deletion.c.backup == f"{OURS}/{seq}").waiting for seq in (2, 3)] == [CHUNK, CHUNK]
    assert house.gone(3) == {1}


def test_at_the_chains_end_packs_go_whole_a_few_at_a_time(house: House) -> None:
    """The head was deleted: its packs with their death rows, no more than the limit at once."""
    with house.rows() as rows:
        rows.parts(1)
        rows.part(2, "RETIRED")
        rows.part(3, "RETIRED")
        rows.deletion(f"{OURS}/2")
        for key in range(1, 5):
            rows.pack(key, 2 if key > 1 else 1)
            rows.object(f"o{key}", {key: None}, 4 * CHUNK + INDEX, live=4)
        rows.death(2, 2, 2, [0], closer=3)
        rows.decision(2, 1, None)
    told = []
    for _ in range(4):
        with house.catalog.write() as conn:
            told.append(sweeping.step(conn, OURS, 2))
    assert told == [2, 2, 0, None]
    assert [house.gone(key) for key in (1, 2, 3, 4)] == [set(), None, None, None]
    assert house.condemned() == {f"o{key}": f"delete:{OURS}/2" for key in (2, 3, 4)}
    assert house.one(t.deletion).waiting == 0


def test_a_failed_builds_rows_ahead_are_forgotten(house: House) -> None:
    """They never counted; they go in portions, and then the decision is swept."""
    with house.rows() as rows:
        rows.parts(1)
        rows.part(2, "RETIRED", committed=None, attempt=2)
        rows.pack(1, 1, 9)
        for number in range(3):
            rows.death(1, 1, 1, [number], closer=2, attempt=number)
        kept = rows.death(1, 1, 1, [7], closer=3)
        rows.parts(1, 2, lineage=OTHER)
        key = rows.decision(2, 1, None, cause="FAIL", removal="lineage:x")
    told = []
    for _ in range(4):
        with house.catalog.write() as conn:
            told.append(sweeping.step(conn, OURS, 2))
    assert told == [2, 1, 0, None]
    with house.rows() as rows:
        assert rows.deaths() == {kept}
    assert house.decision(key).swept


def test_a_committed_builds_rows_are_not_forgotten(house: House) -> None:
    """Only a failure leaves rows that never counted."""
    with house.rows() as rows:
        rows.parts(1, 2)
        rows.pack(1, 1, 9)
        kept = rows.death(1, 1, 1, [7], closer=2, attempt=3)
        rows.decision(2, 1, None, cause="COMMIT")
    sweeping.finish(house.catalog, OURS)
    with house.rows() as rows:
        assert rows.deaths() == {kept}


# What was undecided


def undecided(rows: Rows, backup: str, before: int, upto: int, lineage: str = OURS, **over: Any) -> int:
    """A delete whose bytes a build might still have adopted."""
    return rows.decision(
        upto, before, 9, lineage, swept=True, settled=False, undecided=100, undecided_upto=upto, backup=backup, **over
    )  # fmt: skip


def ended_build(house: House, cause: str) -> tuple[list[int], int]:
    """Part 9 has ended, and a gap (1, 9) kills packs born in 2, 3, 5 and 6; deletes of 2 to 3 and of 5 wait for that."""
    with house.rows() as rows:
        rows.parts(1)
        for seq in (2, 3, 5, 6):
            rows.part(seq, "RETIRED")
        rows.part(9, "RETIRED" if cause == "FAIL" else "COMPLETED", parent=6)
        for key, born, chunks in ((2, 2, 2), (3, 3, 3), (5, 5, 4), (6, 6, 5)):
            rows.pack(key, born, chunks)
            rows.object(f"o{key}", {key: None}, chunks * CHUNK + INDEX, live=chunks)
            rows.death(key, born, 6, range(chunks) if key != 5 else [0], closer=9)
        windows = [
            undecided(rows, "x", 1, 3), undecided(rows, "y", 3, 5), undecided(rows, "z", 6, 8, settled_freed=1),
            undecided(rows, "other", 0, 9, OTHER), rows.decision(4, 1, 9, swept=True),
        ]  # fmt: skip
        key = rows.decision(6, 1, 9, cause=cause, removal="lineage:x") if cause == "COMMIT" else None
        if key is None:
            rows.conn.execute(sa.update(t.part).where(t.part.c.seq == 9).values(state="COMPLETED"))
            key = rows.decision(6, 1, 9, cause=cause, removal="lineage:x")
            rows.part(10)
        windows.append(rows.decision(4, 1, 9, swept=True, settled=False))
    return windows, key


@pytest.mark.parametrize("cause", ["COMMIT", "FAIL"])
def test_bytes_that_were_undecided_are_booked_once_to_the_delete_that_left_them(house: House, cause: str) -> None:
    """By the window of births that each delete opened; what no window holds is booked to nobody. With the end of the sweep they
    are settled, those of this lineage that were decided before."""
    (first, second, third, other, settled, later), key = ended_build(house, cause)
    sweeping.finish(house.catalog, OURS)
    assert house.decision(key).swept
    booked = {one: (house.decision(one).settled_freed, house.decision(one).settled_waiting) for one in (first, second, third)}
    assert booked == {first: (5 * CHUNK + 2 * INDEX, 0), second: (0, CHUNK), third: (1, 0)}
    assert [house.decision(one).settled for one in (first, second, third, other, settled, later)] == [
        True, True, True, False, True, False,
    ]  # fmt: skip
    assert (house.decision(other).settled_freed, house.decision(later).settled_freed) == (0, 0)
    assert house.condemned() == dict.fromkeys(("o2", "o3", "o6"), "lineage:x")
    assert (house.gone(5), house.gone(6)) == ({0}, None)


def test_bookings_of_one_window_add_up_over_the_batches(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swept pack by pack: the same books."""
    monkeypatch.setattr(sweeping, "BATCH", 1)
    (first, second, *_), _ = ended_build(house, "COMMIT")
    sweeping.finish(house.catalog, OURS)
    assert house.decision(first).settled_freed == 5 * CHUNK + 2 * INDEX
    assert house.decision(second).settled_waiting == CHUNK


def test_a_delete_settles_nothing(house: House) -> None:
    """Only the end of the build does."""
    with house.rows() as rows:
        window = undecided(rows, "x", 0, 1)
        deleted(rows)
    sweeping.finish(house.catalog, OURS)
    assert not house.decision(window).settled
    assert house.decision(window).settled_waiting == 0


@pytest.mark.parametrize(("after", "building", "wanted"), [(3, True, 2 * CHUNK), (3, False, 0), (None, False, 0)])
def test_bytes_are_undecided_while_the_part_after_the_gap_is_built(
    house: House, after: int | None, building: bool, wanted: int
) -> None:
    """What the deleted part alone held open. Another lineage's build, or one elsewhere in the chain, decides nothing here."""
    with house.rows() as rows:
        rows.parts(1, 2)
        rows.part(3, "BUILDING" if building else "COMPLETED")
        rows.part(4, "BUILDING" if not building else "COMPLETED")
        rows.part(3, "BUILDING" if not building else "COMPLETED", lineage=OTHER)
        rows.pack(1, 1)
        rows.pack(2, 2, 4, gone=[0])
        rows.death(2, 2, 1, [1], closer=2)
        assert sweeping.undecided_bytes(rows.conn, OURS, Gap(2, 1, after)) == wanted


# Deciding


@pytest.mark.parametrize(("cause", "wanted"), [("DELETE", 4 * CHUNK), ("FAIL", 0)])
def test_a_decision_is_written_as_it_was_taken(house: House, cause: str, wanted: int) -> None:
    """Whose gap, what removes its objects, and for a delete what is undecided; with no room it is left for the sweep."""
    with house.rows() as rows:
        rows.parts(1, 2)
        rows.part(3, "BUILDING")
        rows.pack(2, 2)
        left = sweeping.record(rows.conn, OURS, cause, "the backup", Gap(2, 1, 3), "the removal", room=0)
    assert left == 0
    found = house.one(t.decision)
    assert (found.lineage, found.cause, found.backup, found.removal) == (OURS, cause, "the backup", "the removal")
    assert (found.seq, found.before, found.after, found.swept) == (2, 1, 3, False)
    assert (found.undecided, found.undecided_upto, found.settled) == (wanted, 2, wanted == 0)
    assert (found.settled_freed, found.settled_waiting) == (0, 0)


@pytest.mark.parametrize(
    ("room", "left", "swept"), [(10, 6, True), (4, 0, True), (3, 0, False), (2, -1, False), (1, -1, False), (None, None, True)]
)
def test_a_small_gap_is_swept_by_the_transaction_that_decides_it(
    house: House, room: int | None, left: int | None, swept: bool
) -> None:
    """As far as its room goes: each step costs the rows that it turns over and one for itself; what is left is for the next."""
    with house.rows() as rows:
        scene(rows)
        rows.deletion(f"{OURS}/2")
        told = sweeping.record(rows.conn, OURS, "DELETE", f"{OURS}/2", Gap(2, 1, 3), "r", room=room)
    if left is None:
        left = min(sweeping.AT_ONCE, sweeping.BATCH) - 4
    assert (told, house.one(t.decision).swept) == (left, swept)


def test_a_transaction_sweeps_no_more_than_a_batch(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two bounds is the smaller one."""
    for at_once, batch, left in ((300, 2, -1), (2, 300, -1), (4, 300, 0)):
        monkeypatch.setattr(sweeping, "AT_ONCE", at_once)
        monkeypatch.setattr(sweeping, "BATCH", batch)
        with house.catalog.engine.connect() as conn, conn.begin() as transaction:
            rows = Rows(conn)
            scene(rows)
            rows.deletion(f"{OURS}/2")
            assert sweeping.record(conn, OURS, "DELETE", f"{OURS}/2", Gap(2, 1, 3), "r") == left
            transaction.rollback()


# Waiting for sweeps


def test_finishing_proves_its_job_in_each_transaction(house: House) -> None:
    """And begins none where nothing waits."""
    sweeping.finish(house.catalog, OURS, house.guard("idle"))
    assert house.guarded == []
    with house.rows() as rows:
        deleted(rows)
    sweeping.finish(house.catalog, OURS, house.guard("sweep"))
    assert house.guarded == ["sweep"] * 3, "rows, the end, and that none is left"


def versions(house: House) -> list[int]:
    with house.catalog.read() as conn:
        return list(conn.execute(sa.select(t.lineage.c.version).order_by(t.lineage.c.id)).scalars())


def test_a_sweep_moves_its_lineages_version(house: House) -> None:
    """What a preview said before it may not hold any more."""
    with house.rows() as rows:
        deleted(rows)
    sweeping.finish(house.catalog, OURS)
    assert versions(house) == [3, 0]


def test_a_decision_finds_earlier_ones_swept_though_others_decide_meanwhile(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the sweep and the lock another decision comes: it is swept too before anything is decided."""
    finish, rounds = sweeping.finish, list[str]()

    def interrupted(catalog: Catalog, lineage: str, guard: Any = None) -> None:
        finish(catalog, lineage, guard)
        rounds.append(lineage)
        if rounds == [OURS, OTHER]:
            with house.rows() as rows:
                deleted(rows, OTHER)

    monkeypatch.setattr(sweeping, "finish", interrupted)
    with house.rows() as rows:
        backup = rows.backup("b")
    decided = 0
    with sweeping.decide_swept(
        house.catalog, house.guard("sweep"), first=house.guard("first"), backups=iter([backup]), lineages=iter([OURS, OTHER])
    ) as conn:
        decided += 1
        assert not sweeping.unswept(conn, OURS)
        assert not sweeping.unswept(conn, OTHER)
        assert conn.execute(sa.select(t.backup.c.version).where(t.backup.c.id == backup)).scalar_one() == 1, "locked"
    assert (decided, rounds) == (1, [OURS, OTHER] * 2)
    assert house.guarded == ["first", "sweep", "sweep", "sweep", "first"]
    assert house.gone(1, OTHER) == {0}


def test_without_a_first_guard_the_decision_is_proved_like_its_sweeps(house: House) -> None:
    """One job does both."""
    with house.rows() as rows:
        deleted(rows)
    with sweeping.decide_swept(house.catalog, house.guard("job"), lineages=[OURS]):
        pass
    assert house.guarded == ["job"] * 4


def test_what_a_decision_raises_is_not_tried_again(house: House) -> None:
    """Its transaction is rolled back, and its caller hears of it."""
    with pytest.raises(ZeroDivisionError), sweeping.decide_swept(house.catalog, lineages=[OURS]):
        raise ZeroDivisionError
    assert versions(house) == [0, 0]


# Reopening before a beginning


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_what_a_beginning_would_reopen_is_reopened_in_batches(house: House, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """After earlier decisions are swept; where nothing reaches over the head no transaction is begun."""
    with house.rows() as rows:
        scene(rows)
        rows.conn.execute(sa.update(t.part).where(t.part.c.seq == 3).values(state="RETIRED"))
        rows.conn.execute(sa.update(t.part).where(t.part.c.seq == 2).values(state="COMPLETED"))
        rows.deletion(f"{OURS}/3")
        rows.pack(4, 1, 9)
        for last in (2, 3, 4):
            rows.death(4, 1, last, [last])
        rows.decision(3, 2, None)
    monkeypatch.setattr(sweeping, "BATCH", batch)
    sweeping.finish_and_reopen(house.catalog, OURS, house.guard("job"))
    with house.rows() as rows:
        assert rows.deaths() == set(), "rows of packs that the head needs are gone, and with them the lives that ended"
        assert lifespans.open_numbers(rows.conn, OURS) == {
            1: BitMap([0, 1, 2, 3]), 2: BitMap([0, 1, 2]), 4: BitMap(range(9)),
        }  # fmt: skip
    swept = 3
    assert len(house.guarded) - swept == {1: 5, 2: 3, 3: 2, 100: 1}[batch]
    assert versions(house) == [len(house.guarded), 0], "each under the lineage's lock"
    house.guarded.clear()
    sweeping.finish_and_reopen(house.catalog, OURS, house.guard("job"))
    assert house.guarded == []


def test_earlier_decisions_are_swept_though_nothing_is_to_be_reopened(house: House) -> None:
    """A beginning finds the lineage swept."""
    with house.rows() as rows:
        key = deleted(rows)
        other = deleted(rows, OTHER)
    sweeping.finish_and_reopen(house.catalog, OURS)
    assert (house.decision(key).swept, house.decision(other).swept) == (True, False)


def test_nothing_is_reopened_beside_a_build_or_in_an_empty_lineage(house: House) -> None:
    """The open set is frozen; and without a head there is nothing to reopen for."""
    sweeping.finish_and_reopen(house.catalog, OURS, house.guard("job"))
    with house.rows() as rows:
        rows.parts(1)
        rows.part(2, "BUILDING")
        rows.pack(1, 1)
        kept = rows.death(1, 1, 2, [0])
    sweeping.finish_and_reopen(house.catalog, OURS, house.guard("job"))
    assert house.guarded == []
    with house.rows() as rows:
        assert rows.deaths() == {kept}
