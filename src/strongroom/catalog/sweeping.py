"""From decision to `gone`: a gap is recorded in the deciding transaction and swept after it, in batches.

Decide, then sweep: no transaction touches more than about 10,000 rows. A lineage's decisions are swept in order of their ids,
and whoever previews, deletes, begins or commits there finishes the earlier sweeps first (`finish`). Small gaps are swept in
the transaction that decides them.

Order of effects of one sweep step, all in one transaction: death rows out, numbers into `gone`, whole packs out, objects
condemned, the deletion's waiting bytes counted; with the last step the decision is swept and undecided bytes are settled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.catalog import lifespans, space
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, Guard
from strongroom.catalog.lifespans import Dying, Gap
from strongroom.catalog.space import Toll

BATCH = 3_000
"""Death rows and packs that one transaction turns over: with the pack, holding and object that hang on each some 10,000 rows."""

AT_ONCE = 300
"""What a deciding transaction itself sweeps: its caller waits for it, and others for its locks. Larger gaps are the job's."""


def record(conn: Connection, lineage: str, cause: str, backup: str, gap: Gap, removal: str, *, room: int | None = None) -> int:
    """Writes the decision that this gap opened and sweeps it here and now if it is small.

    `room`: what this transaction may still sweep (AT_ONCE unless said); returns what is left of it for its next decision.
    """
    undecided = 0
    if gap.after is not None and cause == "DELETE":
        undecided = undecided_bytes(conn, lineage, gap)
    conn.execute(
        t.decision.insert().values(
            lineage=lineage, cause=cause, backup=backup, seq=gap.seq, before=gap.before, after=gap.after, removal=removal,
            swept=False, undecided=undecided, undecided_upto=gap.seq, settled=undecided == 0, settled_freed=0, settled_waiting=0,
        )
    )  # fmt: skip
    left = min(AT_ONCE, BATCH) if room is None else room
    while left > 0:
        touched = step(conn, lineage, left)
        if touched is None:
            break
        left -= touched + 1
    return left


def undecided_bytes(conn: Connection, lineage: str, gap: Gap) -> int:
    """Sealed bytes that the deleted part alone held open and the build after it may still adopt; 0 where none runs."""
    if gap.after is None or not _building(conn, lineage, gap.after):
        return 0
    return lifespans.open_bytes(conn, lineage, gap.before, gap.seq)


def step(conn: Connection, lineage: str, limit: int) -> int | None:
    """Sweeps death rows and packs of the oldest unswept decision, `limit` in all (more only where one pack alone has more), and
    returns how many; None: nothing was left to do."""
    decision = conn.execute(
        sa.select(t.decision)
        .where(t.decision.c.lineage == lineage, t.decision.c.swept.is_(False))
        .order_by(t.decision.c.id)
        .limit(1)
    ).first()
    if decision is None:
        return None
    gap = Gap(decision.seq, decision.before, decision.after)
    if gap.after is None:
        dead, weight = lifespans.some_whole_packs(conn, lineage, gap, limit)
    else:
        dead = lifespans.take_rows(conn, lineage, gap, limit)
        weight = len(dead)
    if dead:
        _bury(conn, decision, dead)
        return weight
    forgotten = _forget_ahead(conn, decision, limit) if decision.cause == "FAIL" else 0
    if not forgotten:
        _end(conn, decision)
    return forgotten


def finish(catalog: Catalog, lineage: str, guard: Guard | None = None) -> None:
    """Sweeps whatever earlier decisions of the lineage left, a batch a transaction."""
    with catalog.read() as conn:
        if not unswept(conn, lineage):
            return
    touched: int | None = 0
    while touched is not None:
        with catalog.decide(guard, lineages=[lineage]) as conn:
            touched = step(conn, lineage, BATCH)


@contextmanager
def decide_swept(
    catalog: Catalog,
    guard: Guard | None = None,
    *,
    first: Guard | None = None,
    backups: Iterable[str] = (),
    lineages: Iterable[str] = (),
) -> Iterator[Connection]:
    """A deciding transaction that finds every earlier decision of its lineages swept, however many others decide meanwhile.

    `guard` is for the sweeps and for the decision; `first`, instead of it, for the decision alone.
    """
    backups, lineages = list(backups), list(lineages)
    while True:
        for lineage in lineages:
            finish(catalog, lineage, guard)
        with suppress(_Unswept), catalog.decide(first or guard, backups=backups, lineages=lineages) as conn:
            if any(unswept(conn, lineage) for lineage in lineages):
                raise _Unswept
            yield conn
            return


class _Unswept(Exception):
    """Another decision came between."""


def finish_and_reopen(catalog: Catalog, lineage: str, guard: Guard | None = None) -> None:
    """`finish`, and what a beginning would otherwise have to reopen in one transaction (after heads were deleted)."""
    finish(catalog, lineage, guard)
    more = True
    while more:
        with catalog.read() as conn:
            top = lifespans.head(conn, lineage)
            more = top is not None and top[1] != "BUILDING" and lifespans.reaches_over(conn, lineage, top[0])
        if more:
            with decide_swept(catalog, guard, lineages=[lineage]) as conn:
                more = lifespans.reopen(conn, lineage, BATCH) == BATCH


def _bury(conn: Connection, decision: Row[tuple[object, ...]], dead: list[Dying]) -> None:
    """Buries the dead, booking them to the delete that made them: its own, or one whose undecided bytes they were."""
    if decision.cause == "DELETE":
        toll = space.bury(conn, decision.lineage, dead, decision.removal, decision.id)
        _count_waiting(conn, decision.backup, toll)
        return
    windows = conn.execute(
        sa.select(t.decision).where(
            t.decision.c.lineage == decision.lineage, t.decision.c.settled.is_(False), t.decision.c.id < decision.id
        )
    ).all()
    rest = dead
    for window in windows:
        booked = [row for row in rest if window.before < row.born <= window.undecided_upto]
        rest = [row for row in rest if not window.before < row.born <= window.undecided_upto]
        if booked:
            toll = space.bury(conn, decision.lineage, booked, decision.removal, decision.id)
            conn.execute(
                sa.update(t.decision)
                .where(t.decision.c.id == window.id)
                .values(
                    settled_freed=t.decision.c.settled_freed + toll.freed,
                    settled_waiting=t.decision.c.settled_waiting + toll.waiting,
                )
            )
    if rest:
        space.bury(conn, decision.lineage, rest, decision.removal, decision.id)


def _count_waiting(conn: Connection, backup: str, toll: Toll) -> None:
    if toll.waiting:
        conn.execute(
            sa.update(t.deletion).where(t.deletion.c.backup == backup).values(waiting=t.deletion.c.waiting + toll.waiting)
        )


def _forget_ahead(conn: Connection, decision: Row[tuple[object, ...]], limit: int) -> int:
    parent = conn.execute(
        sa.select(t.part.c.parent).where(t.part.c.lineage == decision.lineage, t.part.c.seq == decision.seq)
    ).scalar_one()
    return lifespans.forget_ahead(conn, decision.lineage, decision.seq, parent, limit)


def _end(conn: Connection, decision: Row[tuple[object, ...]]) -> None:
    """The decision is swept; if it ended a build, the bytes that were undecided while it ran are settled."""
    conn.execute(sa.update(t.decision).where(t.decision.c.id == decision.id).values(swept=True))
    if decision.cause != "DELETE":
        conn.execute(
            sa.update(t.decision)
            .where(t.decision.c.lineage == decision.lineage, t.decision.c.settled.is_(False), t.decision.c.id < decision.id)
            .values(settled=True)
        )


def unswept(conn: Connection, lineage: str) -> bool:
    """Whether a decision of the lineage waits for its sweep."""
    query = sa.select(t.decision.c.id).where(t.decision.c.lineage == lineage, t.decision.c.swept.is_(False)).limit(1)
    return conn.execute(query).first() is not None


def _building(conn: Connection, lineage: str, seq: int) -> bool:
    state = conn.execute(sa.select(t.part.c.state).where(t.part.c.lineage == lineage, t.part.c.seq == seq)).scalar_one()
    return bool(state == "BUILDING")
