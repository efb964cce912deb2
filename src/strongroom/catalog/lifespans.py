"""The lifespan arithmetic: which chunks die when a part leaves its chain or a new head stops needing them.

A new part shares chunks only with its parent, the head of its chain, so the parts that need a chunk are neighbours and its
life is an interval: `born` (on its pack) to `last` (on its death row). A number in no live death row and not in `pack.gone`
is *open*.

* begin(n): parent = head; death rows that reach over the parent are removed first (`reopen`): later heads that had dropped
  those numbers were deleted, and the head needs them again. From here to the end of n the open set is frozen.
* commit(n): one death row per pack that lost chunks, with last = parent; written ahead, counting from the state's flip on.
* leave(n), by delete or failure, opens a gap between its neighbours p and q; dead are the death rows with
  p < born <= n <= last < q and, if there is no q, all packs with p < born <= n.
* A commit whose parent has left meanwhile opens the same kind of gap around the parent.

Every function here works on a lineage that the caller has locked (catalog/database.py), and `begin`, `leave` and `commit` on one
whose earlier gaps are swept (catalog/sweeping.py): beginning on an unswept lineage makes the open set wrong and loses data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pyroaring import BitMap
from sqlalchemy import Connection

from strongroom.catalog import tables as t
from strongroom.catalog.many import batches, execute_each

_closer = t.part.alias("closer")
_LIVE = sa.and_(
    _closer.c.lineage == t.death.c.lineage, _closer.c.seq == t.death.c.closer, _closer.c.committed == t.death.c.attempt
)
"""A death row counts once the attempt that wrote it has committed."""
_PACK_OF_ROW = sa.and_(t.pack.c.lineage == t.death.c.lineage, t.pack.c.id == t.death.c.pack)
_IN_CHAIN = t.part.c.state != sa.literal_column("'RETIRED'")
"""Written out, since a database takes a partial index only for a condition that it can read."""


class LifespanError(Exception):
    """The catalog's lifespans are not what they must be. Nothing was changed; the caller's transaction must end."""

    permanent = True


class NotCovered(LifespanError):
    """The manifest names chunks that the part may not share: they are not open, not stored or suspect."""


class NotSwept(LifespanError):
    """An earlier decision of the lineage is not carried out yet."""


class AlreadyBuilding(LifespanError):
    """Another part of the lineage is being built."""


class NotOurs(LifespanError):
    """The part is not being built by this attempt any more: it was stopped, failed or taken over."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A part that has entered the chain."""

    seq: int
    parent: int  # 0 for none


@dataclass(frozen=True, slots=True)
class Gap:
    """Where `seq` left: the chain's parts next to it. `before` 0 and `after` None mean that there is none."""

    seq: int
    before: int
    after: int | None


@dataclass(frozen=True, slots=True)
class Dying:
    """Numbers of one pack that die. `numbers` None: all that are not gone yet (the pack goes whole)."""

    pack: int
    born: int
    numbers: BitMap | None
    bytes: int  # sealed


def chain(conn: Connection, lineage: str) -> list[tuple[int, str]]:
    """The parts that own data, as (seq, state), oldest first."""
    rows = conn.execute(
        sa.select(t.part.c.seq, t.part.c.state).where(t.part.c.lineage == lineage, _IN_CHAIN).order_by(t.part.c.seq)
    )
    return [(row.seq, row.state) for row in rows]


def head(conn: Connection, lineage: str) -> tuple[int, str] | None:
    """The newest part of the chain, as (seq, state)."""
    row = conn.execute(
        sa.select(t.part.c.seq, t.part.c.state)
        .where(t.part.c.lineage == lineage, _IN_CHAIN)
        .order_by(t.part.c.seq.desc())
        .limit(1)
    ).first()
    return None if row is None else (row.seq, row.state)


def neighbours(conn: Connection, lineage: str, seq: int, without: Iterable[int] = ()) -> Gap:
    """The gap that opens if `seq` leaves; `without` are parts to be thought away (a set that is previewed)."""
    away = set(without)
    seqs = [s for s, _ in chain(conn, lineage) if s not in away]
    return Gap(
        seq=seq,
        before=max((s for s in seqs if s < seq), default=0),
        after=min((s for s in seqs if s > seq), default=None),
    )


def require_swept(conn: Connection, lineage: str) -> None:
    """Raises NotSwept while a decision of the lineage waits for its sweep."""
    waiting = conn.execute(
        sa.select(t.decision.c.id).where(t.decision.c.lineage == lineage, t.decision.c.swept.is_(False)).limit(1)
    ).first()
    if waiting is not None:
        raise NotSwept(f"decision {waiting.id} of lineage {lineage} is not swept")


def reopen(conn: Connection, lineage: str, limit: int) -> int:
    """Removes up to `limit` death rows that reach over the head, and returns how many it removed.

    Safe at any time that nothing is being built: the head is inside those lifespans, so it needs the numbers.
    """
    top = head(conn, lineage)
    if top is None or top[1] == "BUILDING":
        return 0
    parent, removed = top[0], 0
    for born in _births(conn, lineage, 0, parent):
        keys = conn.execute(
            sa.select(t.death.c.pack, t.death.c.last, t.death.c.closer, t.death.c.attempt)
            .where(t.death.c.lineage == lineage, t.death.c.born == born, t.death.c.last >= parent)
            .limit(limit - removed)
        ).all()
        forget(conn, lineage, (tuple(key) for key in keys))
        removed += len(keys)
        if removed >= limit:
            break
    return removed


MOST_REOPENED = 5_000
"""Death rows that a beginning removes at most."""


def reaches_over(conn: Connection, lineage: str, parent: int) -> bool:
    """Whether `reopen` has something to do: one index look-up for each birth."""
    over = sa.select(t.death.c.pack).where(t.death.c.lineage == lineage, t.death.c.last >= parent).limit(1)
    births = _births(conn, lineage, 0, parent)
    return any(conn.execute(over.where(t.death.c.born == born)).first() is not None for born in births)


def begin(conn: Connection, lineage: str, backup: str) -> Begun:
    """Takes the next seq and enters the chain as BUILDING (attempt 0). Raises AlreadyBuilding, and NotSwept also where more is to
    be reopened than one transaction takes: the caller reopens in batches of its own first."""
    require_swept(conn, lineage)
    top = head(conn, lineage)
    if top is not None and top[1] == "BUILDING":
        raise AlreadyBuilding(f"part {top[0]} of lineage {lineage} is being built")
    parent = 0 if top is None else top[0]
    if reopen(conn, lineage, MOST_REOPENED) == MOST_REOPENED:
        raise NotSwept(f"lineage {lineage} has more to reopen")
    seq = conn.execute(
        sa.update(t.lineage)
        .where(t.lineage.c.id == lineage)
        .values(counter=t.lineage.c.counter + 1)
        .returning(t.lineage.c.counter)
    ).scalar_one()
    conn.execute(
        t.part.insert().values(
            lineage=lineage, seq=seq, backup=backup, parent=parent, attempt=0, state="BUILDING", version=0,
            entries=0, plain_bytes=0, stored_bytes=0, adopted_bytes=0,
        )
    )  # fmt: skip
    return Begun(seq, parent)


def require_attempt(conn: Connection, lineage: str, seq: int, attempt: int) -> None:
    """Raises NotOurs unless the part is being built by this attempt."""
    row = conn.execute(sa.select(t.part.c.attempt, t.part.c.state).where(t.part.c.lineage == lineage, t.part.c.seq == seq)).one()
    if row.state != "BUILDING" or row.attempt != attempt:
        raise NotOurs(f"part {seq} of lineage {lineage} is {row.state}, attempt {row.attempt}; this is attempt {attempt}")


def open_numbers(conn: Connection, lineage: str) -> dict[int, BitMap]:
    """The open set, pack by pack: what the head needs. Frozen while a part is being built (packs of that part excluded)."""
    building = sa.select(t.part.c.seq).where(t.part.c.lineage == lineage, t.part.c.state == "BUILDING")
    rows = conn.execute(
        sa.select(t.pack.c.id, t.pack.c.chunks, t.pack.c.gone).where(
            t.pack.c.lineage == lineage, t.pack.c.stored, t.pack.c.born.not_in(building)
        )
    )
    opened = {row.id: BitMap(range(row.chunks)) - numbers_of(row.gone) for row in rows}
    for row in conn.execute(sa.select(t.death.c.pack, t.death.c.numbers).where(t.death.c.lineage == lineage, _LIVE)):
        opened[row.pack] -= numbers_of(row.numbers)
    return {key: numbers for key, numbers in opened.items() if numbers}


def prove_coverage(
    used: Mapping[int, BitMap], opened: Mapping[int, BitMap], own: Mapping[int, int], suspect: Mapping[int, BitMap]
) -> dict[int, BitMap]:
    """Proves that everything the manifest names may be named, and returns the open numbers that it does not name.

    `own`: the part's STORED packs of this attempt, as pack → chunks in it; each must be named in full (nobody else will).
    Raises NotCovered.
    """
    for key, numbers in used.items():
        if key in own:
            if numbers != BitMap(range(own[key])):
                raise NotCovered(f"pack {key} has {own[key]} chunks and {len(numbers)} of them are named")
        elif not numbers <= opened.get(key, BitMap()):
            raise NotCovered(f"{len(numbers - opened.get(key, BitMap()))} chunks of pack {key} are named and not open")
        elif numbers & suspect.get(key, BitMap()):
            raise NotCovered(f"pack {key} has suspect chunks that are named")
    missing = own.keys() - used.keys()
    if missing:
        raise NotCovered(f"own packs that nothing names: {sorted(missing)}")
    unused = ((key, numbers - used[key] if key in used else numbers) for key, numbers in opened.items())
    return {key: numbers for key, numbers in unused if numbers}


def suspects(conn: Connection, lineage: str) -> dict[int, BitMap]:
    """Numbers found damaged, which nobody may share any more."""
    rows = conn.execute(
        sa.select(t.pack.c.id, t.pack.c.suspect).where(t.pack.c.lineage == lineage, t.pack.c.suspect.is_not(None))
    )
    return {row.id: numbers_of(row.suspect) for row in rows}


def suspect(conn: Connection, lineage: str, pack: int, numbers: BitMap) -> None:
    """Marks numbers as found damaged. A pack that has gone meanwhile is passed over."""
    here = sa.and_(t.pack.c.lineage == lineage, t.pack.c.id == pack)
    row = conn.execute(sa.select(t.pack.c.suspect).where(here)).first()
    if row is not None:
        conn.execute(sa.update(t.pack).where(here).values(suspect=(numbers_of(row.suspect) | numbers).serialize()))


def write_ahead(
    conn: Connection, lineage: str, seq: int, attempt: int, parent: int, unused: Iterable[tuple[int, BitMap, int]]
) -> None:
    """Death rows of a commit that may come: (pack, numbers, sealed bytes). They count only once this attempt has committed."""
    rows = list(unused)
    packs = conn.execute(
        sa.select(t.pack.c.id, t.pack.c.born).where(t.pack.c.lineage == lineage, t.pack.c.id.in_([row[0] for row in rows]))
    )
    births = {row.id: row.born for row in packs}
    if rows:
        conn.execute(
            t.death.insert(),
            [
                {
                    "lineage": lineage, "pack": pack, "last": parent, "closer": seq, "attempt": attempt,
                    "born": births[pack], "numbers": numbers.serialize(), "bytes": size,
                }
                for pack, numbers, size in rows
            ],
        )  # fmt: skip


def forget_ahead(conn: Connection, lineage: str, seq: int, parent: int, limit: int) -> int:
    """Removes up to `limit` rows ahead that never counted (their attempt did not commit); returns how many."""
    removed = 0
    for born in _births(conn, lineage, 0, parent):
        keys = conn.execute(
            sa.select(t.death.c.pack, t.death.c.last, t.death.c.closer, t.death.c.attempt)
            .outerjoin(_closer, _LIVE)
            .where(
                t.death.c.lineage == lineage, t.death.c.born == born, t.death.c.last == parent,
                t.death.c.closer == seq, _closer.c.seq.is_(None),
            )
            .limit(limit - removed)
        ).all()  # fmt: skip
        forget(conn, lineage, (tuple(key) for key in keys))
        removed += len(keys)
        if removed >= limit:
            break
    return removed


def commit(conn: Connection, lineage: str, seq: int, attempt: int) -> Gap | None:
    """The flip: the part is COMPLETED and its rows ahead count. Returns the gap around its parent if that has left.

    Raises NotOurs, NotSwept.
    """
    require_swept(conn, lineage)
    require_attempt(conn, lineage, seq, attempt)
    parent = conn.execute(
        sa.update(t.part)
        .where(t.part.c.lineage == lineage, t.part.c.seq == seq)
        .values(state="COMPLETED", committed=attempt)
        .returning(t.part.c.parent)
    ).scalar_one()
    before = neighbours(conn, lineage, seq).before
    return Gap(parent, before, seq) if before < parent else None


def leave(conn: Connection, lineage: str, seq: int) -> Gap:
    """Takes the part out of the chain, by delete or failure; its attempt is raised, which fences its writer. Raises NotSwept."""
    require_swept(conn, lineage)
    return retire(conn, lineage, seq)


def retire(conn: Connection, lineage: str, seq: int) -> Gap:
    """`leave` for the second and later parts of a set decided in one transaction, whose gaps are swept in the same order."""
    gap = neighbours(conn, lineage, seq)
    conn.execute(
        sa.update(t.part)
        .where(t.part.c.lineage == lineage, t.part.c.seq == seq)
        .values(state="RETIRED", attempt=t.part.c.attempt + 1)
    )
    return gap


def dying(conn: Connection, lineage: str, gap: Gap) -> Iterator[Dying]:
    """What the gap kills and no sweep has freed yet, row by row: a pack may come several times, with disjoint numbers.

    At the chain's end packs go whole: then only they are told (their death rows are part of them).
    """
    if gap.after is None:
        yield from whole_packs(conn, lineage, gap)
        return
    for born in _births(conn, lineage, gap.before, gap.seq):
        query = sa.select(t.death.c.pack, t.death.c.numbers, t.death.c.bytes)
        for row in conn.execute(query.where(*_window(lineage, gap, born))):
            yield Dying(row.pack, born, numbers_of(row.numbers), row.bytes)


def dying_by_pack(conn: Connection, lineage: str, gap: Gap) -> tuple[int, list[Dying]]:
    """`dying`, added up by the database as far as it goes: the bytes that die inside packs that live on, and the packs that go
    whole with them. Of packs that were moved into objects with others, the rows as they are.

    A pack goes whole when as many sealed bytes die as are not gone yet: no chunk is without bytes.
    """
    if gap.after is None:
        return 0, list(whole_packs(conn, lineage, gap))
    inside, rest = 0, list[Dying]()
    for born in _births(conn, lineage, gap.before, gap.seq):
        packs = (
            sa.select(
                t.death.c.pack,
                sa.func.sum(t.death.c.bytes).label("dead"),
                sa.func.max(t.pack.c.bytes - t.pack.c.gone_bytes).label("here"),
            )
            .join(t.pack, _PACK_OF_ROW)
            .where(*_window(lineage, gap, born), t.pack.c.moved.is_(False))
            .group_by(t.death.c.pack)
            .subquery()
        )
        lives_on = packs.c.dead < packs.c.here
        inside += int(conn.execute(sa.select(sa.func.coalesce(sa.func.sum(packs.c.dead), 0)).where(lives_on)).scalar_one())
        rest += [Dying(row.pack, born, None, int(row.dead)) for row in conn.execute(sa.select(packs).where(~lives_on))]
        moved = sa.select(t.death.c.pack, t.death.c.numbers, t.death.c.bytes).join(t.pack, _PACK_OF_ROW)
        rows = conn.execute(moved.where(*_window(lineage, gap, born), t.pack.c.moved))
        rest += [Dying(row.pack, born, numbers_of(row.numbers), row.bytes) for row in rows]
    return inside, rest


def whole_packs(conn: Connection, lineage: str, gap: Gap) -> Iterator[Dying]:
    """Packs that a gap at the chain's end kills; their bytes include those that death rows of the same gap account for."""
    for row in conn.execute(_whole(t.pack.c.bytes, t.pack.c.gone_bytes, lineage=lineage, gap=gap)):
        yield Dying(row.id, row.born, None, row.bytes - row.gone_bytes)


def some_whole_packs(conn: Connection, lineage: str, gap: Gap, limit: int) -> tuple[list[Dying], int]:
    """The first of `whole_packs`, and how many they are with their death rows: `limit` at most, but always one pack."""
    rows_of = (
        sa.select(sa.func.count())
        .where(t.death.c.lineage == t.pack.c.lineage, t.death.c.pack == t.pack.c.id)
        .correlate(t.pack)
        .scalar_subquery()
    )
    query = _whole(t.pack.c.bytes, t.pack.c.gone_bytes, rows_of.label("deaths"), lineage=lineage, gap=gap).limit(limit)
    found: list[Dying] = []
    weight = 0
    for row in conn.execute(query).all():
        if found and weight + 1 + row.deaths > limit:
            break
        found.append(Dying(row.id, row.born, None, row.bytes - row.gone_bytes))
        weight += 1 + row.deaths
    return found, weight


def _whole(*columns: sa.ColumnElement[Any], lineage: str, gap: Gap) -> sa.Select[Any]:
    window = (t.pack.c.lineage == lineage, t.pack.c.born > gap.before, t.pack.c.born <= gap.seq)
    return sa.select(t.pack.c.id, t.pack.c.born, *columns).where(*window).order_by(t.pack.c.born, t.pack.c.id)


def take_rows(conn: Connection, lineage: str, gap: Gap, limit: int) -> list[Dying]:
    """Takes death rows that the gap kills out of the table: the sweep's step from lifespans to `gone`.

    All rows of a pack come together, so that what a batch does to a pack is what the whole gap does to it, and to an object of
    its own as well; what several batches do to an object that packs share adds up (space.bury). `limit` is passed only by the
    rows of one pack that alone has more.
    """
    taken: list[Dying] = []
    for born in _births(conn, lineage, gap.before, gap.seq):
        packs, whole = _some_packs(conn, lineage, gap, born, limit - len(taken), first=not taken)
        for some in batches(packs):
            rows = _rows_of_packs(conn, lineage, gap, born, some)
            forget(conn, lineage, ((row.pack, row.last, row.closer, row.attempt) for row in rows))
            taken.extend(Dying(row.pack, born, numbers_of(row.numbers), row.bytes) for row in rows)
        if not whole or len(taken) >= limit:
            break
    return taken


def _window(lineage: str, gap: Gap, born: int) -> list[sa.ColumnElement[bool]]:
    """Death rows of one birth that a gap inside the chain kills."""
    return [
        t.death.c.lineage == lineage, t.death.c.born == born, t.death.c.last >= gap.seq, t.death.c.last < gap.after, _LIVE,
    ]  # fmt: skip


def _some_packs(conn: Connection, lineage: str, gap: Gap, born: int, limit: int, *, first: bool) -> tuple[list[int], bool]:
    """The first packs of which the gap kills at most `limit` rows together (`first`: one at least), and whether they are all."""
    pack, rows = t.death.c.pack, sa.func.count().label("rows")
    query = sa.select(pack, rows).where(*_window(lineage, gap, born)).group_by(pack).order_by(pack).limit(limit + 1)
    packs: list[int] = []
    for row in conn.execute(query).all():
        limit -= row.rows
        if limit < 0 and (packs or not first):
            return packs, False
        packs.append(row.pack)
    return packs, True


def _rows_of_packs(conn: Connection, lineage: str, gap: Gap, born: int, packs: Sequence[int]) -> Sequence[Any]:
    """Every row that the gap kills of these packs."""
    keys = (t.death.c.pack, t.death.c.last, t.death.c.closer, t.death.c.attempt)
    query = sa.select(*keys, t.death.c.numbers, t.death.c.bytes)
    return conn.execute(query.where(*_window(lineage, gap, born), t.death.c.pack.in_(packs))).all()


def open_bytes(conn: Connection, lineage: str, before: int, upto: int) -> int:
    """Sealed bytes of the open numbers of packs born in (before, upto]: undecided while the part after them is being built."""
    window = (t.pack.c.lineage == lineage, t.pack.c.born > before, t.pack.c.born <= upto)
    held = conn.execute(
        sa.select(sa.func.coalesce(sa.func.sum(t.pack.c.bytes - t.pack.c.gone_bytes), 0)).where(*window)
    ).scalar_one()
    closed = conn.execute(
        sa.select(sa.func.coalesce(sa.func.sum(t.death.c.bytes), 0)).where(
            t.death.c.lineage == lineage, t.death.c.born > before, t.death.c.born <= upto, _LIVE
        )
    ).scalar_one()
    return int(held) - int(closed)


def open_bytes_of(conn: Connection, lineage: str, pack: int) -> int:
    """Sealed bytes of one pack's open numbers."""
    here = conn.execute(
        sa.select(t.pack.c.bytes - t.pack.c.gone_bytes).where(t.pack.c.lineage == lineage, t.pack.c.id == pack)
    ).scalar_one()
    closed = conn.execute(
        sa.select(sa.func.coalesce(sa.func.sum(t.death.c.bytes), 0)).where(
            t.death.c.lineage == lineage, t.death.c.pack == pack, _LIVE
        )
    ).scalar_one()
    return int(here) - int(closed)


def forget(conn: Connection, lineage: str, keys: Iterable[tuple[int, int, int, int]]) -> None:
    """Removes death rows by (pack, last, closer, attempt)."""
    rows = [{"p": p, "l": last, "c": c, "a": a} for p, last, c, a in keys]
    number = sa.BigInteger()
    execute_each(
        conn,
        lambda row: sa.delete(t.death).where(
            t.death.c.lineage == lineage, t.death.c.pack == row.p, t.death.c.last == row.l,
            t.death.c.closer == row.c, t.death.c.attempt == row.a,
        ),
        rows, p=number, l=number, c=number, a=number,
    )  # fmt: skip


def ends_of(
    conn: Connection, lineage: str, packs: Iterable[int], *, before: int | None = None
) -> Iterator[tuple[int, int, BitMap]]:
    """(pack, last, numbers) of what is closed in these packs, or closed before a part; what is not told is open."""
    query = sa.select(t.death.c.pack, t.death.c.last, t.death.c.numbers).where(t.death.c.lineage == lineage, _LIVE)
    if before is not None:
        query = query.where(t.death.c.last < before)
    for some in batches(packs):
        for row in conn.execute(query.where(t.death.c.pack.in_(some))):
            yield row.pack, row.last, numbers_of(row.numbers)


def living(conn: Connection, lineage: str, packs: Iterable[int], *, born_upto: int | None = None) -> dict[int, BitMap]:
    """The numbers of these packs that are not gone; `born_upto`: only of packs born up to this part."""
    query = sa.select(t.pack.c.id, t.pack.c.chunks, t.pack.c.gone).where(t.pack.c.lineage == lineage)
    if born_upto is not None:
        query = query.where(t.pack.c.born <= born_upto)
    found: dict[int, BitMap] = {}
    for some in batches(packs):
        for row in conn.execute(query.where(t.pack.c.id.in_(some))):
            found[row.id] = BitMap(range(row.chunks)) - numbers_of(row.gone)
    return found


def packs_up_to(conn: Connection, lineage: str, seq: int, start: int, limit: int) -> tuple[list[Any], bool]:
    """Stored packs born up to `seq` as (id, born, gone_bytes), and whether they are all that there are.

    Looks at no more than `limit` packs in order of their ids from `start` on and round again: ids are random, so from a random
    start they are a sample. Where few of these are old enough, as many are looked up by birth.
    """
    query = sa.select(t.pack.c.id, t.pack.c.born, t.pack.c.gone_bytes).where(t.pack.c.lineage == lineage, t.pack.c.stored)
    found = list(conn.execute(query.where(t.pack.c.id >= start).order_by(t.pack.c.id).limit(limit)))
    if len(found) < limit:
        found += conn.execute(query.where(t.pack.c.id < start).order_by(t.pack.c.id).limit(limit - len(found)))
    every = len(found) < limit
    old = [row for row in found if row.born <= seq]
    if not every and len(old) <= limit // 20:
        old = list(conn.execute(query.where(t.pack.c.born <= seq).limit(limit)))
        every = len(old) < limit
    return old, every


def shared(conn: Connection, lineage: str, seq: int, packs: Sequence[int]) -> dict[int, BitMap]:
    """The numbers of these packs that part `seq`, which has left and is swept, needed and that live on: neighbours need them."""
    found = living(conn, lineage, packs, born_upto=seq)
    for pack, _, numbers in ends_of(conn, lineage, found, before=seq):
        found[pack] -= numbers
    return {pack: numbers for pack, numbers in found.items() if numbers}


def shared_bytes(conn: Connection, lineage: str, seq: int) -> int:
    """Sealed bytes of `shared` over all packs. Reads every pack born up to `seq` and what died in it before."""
    here = conn.execute(
        sa.select(sa.func.coalesce(sa.func.sum(t.pack.c.bytes - t.pack.c.gone_bytes), 0)).where(
            t.pack.c.lineage == lineage, t.pack.c.stored, t.pack.c.born <= seq
        )
    ).scalar_one()
    before = conn.execute(
        sa.select(sa.func.coalesce(sa.func.sum(t.death.c.bytes), 0)).where(
            t.death.c.lineage == lineage, t.death.c.born <= seq, t.death.c.last < seq, _LIVE
        )
    ).scalar_one()
    return int(here) - int(before)


def numbers_of(data: bytes | None) -> BitMap:
    """A stored set of chunk numbers; NULL is the empty set."""
    return BitMap() if data is None else BitMap.deserialize(data)


def _births(conn: Connection, lineage: str, above: int, upto: int) -> Iterator[int]:
    """Distinct `born` of death rows in (above, upto], by one index look-up each."""
    born = above
    while True:
        found = conn.execute(
            sa.select(sa.func.min(t.death.c.born)).where(
                t.death.c.lineage == lineage, t.death.c.born > born, t.death.c.born <= upto
            )
        ).scalar()
        if found is None:
            return
        born = int(found)
        yield born
