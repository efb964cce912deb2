"""Bytes: what dying chunks free at once (objects that go whole) and what waits (dead bytes inside objects that live on).

Lifespans speak of packs and numbers, the store of objects; `holding` joins the two. At first a pack lies in an object of its own;
after rewriting its chunks lie in several, beside chunks of other packs. One function finds what a set of dying numbers does to
objects; `Forecast` only adds that up (preview and promise), `bury` carries it out (the sweep).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pyroaring import BitMap
from sqlalchemy import Connection

from strongroom.catalog import tables as t
from strongroom.catalog.lifespans import Dying, Gap, dying, dying_by_pack, numbers_of
from strongroom.catalog.many import batches, execute_each


@dataclass(frozen=True, slots=True)
class Toll:
    """What something does to the store's bytes."""

    owned: int = 0  # what dies now: whole objects less what was dead in them before, and chunks inside objects that live on
    freed: int = 0  # bytes of objects that go whole
    waiting: int = 0  # sealed bytes that die inside objects that live on
    objects: int = 0  # objects that go whole

    def __add__(self, other: Toll) -> Toll:
        return Toll(
            self.owned + other.owned, self.freed + other.freed, self.waiting + other.waiting, self.objects + other.objects
        )


@dataclass(slots=True)
class _Pack:
    """A pack with dying numbers: `dead` are those that are not gone yet."""

    chunks: int
    gone: BitMap
    dead: BitMap
    bytes: int

    @property
    def whole(self) -> bool:
        return len(self.gone) + len(self.dead) == self.chunks


@dataclass(slots=True)
class _Object:
    """An object that holds dying chunks."""

    bytes: int
    dead_bytes: int
    stored: bool
    left: int  # chunks in it that live on
    marked: int = 0  # of dead_bytes: what an earlier batch of the same sweep left waiting here
    dead: int = 0  # chunks that die now
    newly_dead_bytes: int = 0


@dataclass(slots=True)
class _Effect:
    decision: int | None = None  # whose sweep this is a batch of
    packs: dict[int, _Pack] = field(default_factory=dict)
    objects: dict[str, _Object] = field(default_factory=dict)

    def toll(self) -> Toll:
        total = Toll()
        for found in self.objects.values():
            if not found.stored:
                continue
            if found.left == 0:
                owned = found.bytes - found.dead_bytes
                total += Toll(owned=owned, freed=found.bytes, waiting=-found.marked, objects=1)
            else:
                total += Toll(owned=found.newly_dead_bytes, waiting=found.newly_dead_bytes)
        return total


@dataclass(slots=True)
class _Earlier:
    """What earlier gaps of the same forecast have killed already."""

    gone: dict[int, BitMap] = field(default_factory=dict)
    objects: dict[str, _Object] = field(default_factory=dict)  # as the last of these gaps left them

    def add(self, effect: _Effect) -> None:
        for key, found in effect.packs.items():
            self.gone[key] = found.gone | found.dead
        for name, held in effect.objects.items():
            held.dead_bytes += held.newly_dead_bytes
            self.objects[name] = held


class Forecast:
    """Adds up what gaps of one lineage would do, one after the other, without doing it.

    A single gap is added up by the database as far as packs lie in objects of their own: only those that go whole, or that
    rewriting has moved, are looked at one by one. With a second gap both are played chunk by chunk, since the same pack may lose
    chunks to each.
    """

    def __init__(self, conn: Connection, lineage: str) -> None:
        self._conn, self._lineage, self._earlier = conn, lineage, _Earlier()
        self._first: Gap | None = None
        self._played = False

    def add(self, gap: Gap) -> Toll:
        """What this gap does, after those added before it."""
        if self._first is None:
            self._first = gap
            inside, rest = dying_by_pack(self._conn, self._lineage, gap)
            return _effect(self._conn, self._lineage, rest, self._earlier).toll() + Toll(owned=inside, waiting=inside)
        self._play_first()
        return self._play(gap)

    def partly_dead(self) -> Partly:
        """The lineage's objects that would be partly dead after all gaps added."""
        self._play_first()
        conn, lineage, partly = self._conn, self._lineage, Partly()
        for row in conn.execute(
            sa.select(t.object_.c.id, t.object_.c.bytes, t.object_.c.dead_bytes).where(*is_partly_dead(lineage))
        ):
            if row.id not in self._earlier.objects:
                partly += Partly(1, row.bytes - row.dead_bytes, row.dead_bytes)
        for found in self._earlier.objects.values():
            if found.stored and found.left and found.dead_bytes:
                partly += Partly(1, found.bytes - found.dead_bytes, found.dead_bytes)
        return partly

    def _play_first(self) -> None:
        if not self._played and self._first is not None:
            self._play(self._first)
        self._played = True

    def _play(self, gap: Gap) -> Toll:
        effect = _effect(self._conn, self._lineage, dying(self._conn, self._lineage, gap), self._earlier)
        toll = effect.toll()
        self._earlier.add(effect)
        return toll


@dataclass(frozen=True, slots=True)
class Partly:
    """Objects that are partly dead."""

    objects: int = 0
    living: int = 0  # bytes that rewriting all of them takes
    dead: int = 0  # bytes that it gives back

    def __add__(self, other: Partly) -> Partly:
        return Partly(self.objects + other.objects, self.living + other.living, self.dead + other.dead)


def is_partly_dead(lineage: str) -> list[sa.ColumnElement[bool]]:
    """Conditions for a lineage's stored objects that hold dead and living chunks."""
    return [
        t.object_.c.lineage == lineage,
        t.object_.c.kind.in_(("pack", "rewrite")),
        t.object_.c.state == "STORED",
        t.object_.c.dead_bytes > sa.literal_column("0"),  # as the partial index says it
        t.object_.c.live > 0,
    ]


def bury(conn: Connection, lineage: str, dead: Iterable[Dying], removal: str, decision: int | None = None) -> Toll:
    """Writes dying numbers into `gone`, removes packs that are all gone, and condemns the objects that hold nothing living
    (PLANNED ones too: their put may still come) with what is said of them. Returns what it did.

    `decision`: the sweep that this is a batch of. What one batch leaves waiting in an object that a later one frees whole is
    taken back from `waiting` there, so that the batches add up to what the whole gap does.
    """
    effect = _effect(conn, lineage, dead, _Earlier(), decision)
    whole = [key for key, found in effect.packs.items() if found.whole]
    parts = [
        {"k": key, "g": (found.gone | found.dead).serialize(), "b": found.bytes}
        for key, found in effect.packs.items()
        if not found.whole and found.dead
    ]
    execute_each(
        conn,
        lambda row: (
            sa.update(t.pack)
            .where(t.pack.c.lineage == lineage, t.pack.c.id == row.k)
            .values(gone=row.g, gone_bytes=t.pack.c.gone_bytes + row.b)
        ),
        parts, k=sa.BigInteger(), g=sa.LargeBinary(), b=sa.BigInteger(),
    )  # fmt: skip
    for some in batches(whole):
        conn.execute(sa.delete(t.death).where(t.death.c.lineage == lineage, t.death.c.pack.in_(some)))
        conn.execute(sa.delete(t.pack).where(t.pack.c.lineage == lineage, t.pack.c.id.in_(some)))
    give_up(conn, [name for name, found in effect.objects.items() if found.left == 0], removal)
    thinner = [
        {"k": name, "n": found.dead, "b": found.newly_dead_bytes, "m": found.marked + found.newly_dead_bytes}
        for name, found in effect.objects.items()
        if found.left and found.dead
    ]
    execute_each(
        conn,
        lambda row: (
            sa.update(t.object_)
            .where(t.object_.c.id == row.k)
            .values(
                live=t.object_.c.live - row.n, dead_bytes=t.object_.c.dead_bytes + row.b,
                marked_by=decision, marked_bytes=row.m,
            )
        ),
        thinner, k=sa.Text(), n=sa.BigInteger(), b=sa.BigInteger(), m=sa.BigInteger(),
    )  # fmt: skip
    return effect.toll()


def held_by(conn: Connection, key: str) -> dict[int, BitMap]:
    """What an object holds of packs that are not all gone, as pack → numbers."""
    return {row.pack: _numbers(row) for row in conn.execute(_holdings_of([key]))}


def living_in(conn: Connection, objects: Sequence[str]) -> dict[str, dict[int, BitMap]]:
    """What objects hold that is not gone, as object → pack → numbers."""
    found: dict[str, dict[int, BitMap]] = {key: {} for key in objects}
    for some in batches(objects):
        for row in conn.execute(_holdings_of(some)):
            if numbers := _numbers(row) - numbers_of(row.gone):
                found[row.object][row.pack] = numbers
    return found


class Held(NamedTuple):
    """What a stored object holds of one pack."""

    id: str
    name: str
    pack: int
    numbers: BitMap | None  # None: all of the pack


def holders(conn: Connection, lineage: str, packs: Iterable[int]) -> Iterator[Held]:
    """What stored objects hold of these packs, by object."""
    query = (
        sa.select(t.object_.c.id, t.object_.c.name, t.holding.c.pack, t.holding.c.numbers)
        .join(t.object_, t.object_.c.id == t.holding.c.object)
        .where(t.holding.c.lineage == lineage, t.object_.c.state == "STORED")
        .order_by(t.object_.c.id)
    )
    for some in batches(packs):
        for row in conn.execute(query.where(t.holding.c.pack.in_(some))):
            yield Held(row.id, row.name, row.pack, None if row.numbers is None else numbers_of(row.numbers))


def _holdings_of(objects: Sequence[str]) -> sa.Select[Any]:
    return (
        sa.select(t.holding.c.object, t.holding.c.pack, t.holding.c.numbers, t.pack.c.chunks, t.pack.c.gone)
        .join(t.pack, sa.and_(t.pack.c.lineage == t.holding.c.lineage, t.pack.c.id == t.holding.c.pack))
        .where(t.holding.c.object.in_(objects))
    )


def _numbers(row: Any) -> BitMap:
    return BitMap(range(row.chunks)) if row.numbers is None else numbers_of(row.numbers)


def give_up(conn: Connection, objects: Sequence[str], removal: str) -> None:
    """Condemns objects of a lineage that is locked. What they held goes in the same transaction: later their removal and a sweep
    of the lineage, which does not wait for it, would lock those rows in different orders."""
    for some in batches(objects):
        conn.execute(sa.delete(t.holding).where(t.holding.c.object.in_(some)))
    condemn(conn, objects, removal)


def condemn(conn: Connection, objects: Sequence[str], removal: str) -> None:
    """Hands objects to a removal. One that was PLANNED stays `late`: the put that its row announced may still arrive."""
    for some in batches(objects):
        conn.execute(
            sa.update(t.object_)
            .where(t.object_.c.id.in_(some), t.object_.c.state.in_(("PLANNED", "STORED")))
            .values(
                late=sa.or_(t.object_.c.late, t.object_.c.state == "PLANNED"), state="CONDEMNED", removal=removal, rewriting=None
            )
        )


def to_sizes(lengths: NDArray[Any]) -> bytes:
    """Sealed bytes of chunks as a holding keeps them."""
    small = not len(lengths) or int(lengths.max()) < 1 << 16
    return lengths.astype("<u2" if small else "<u4").tobytes()


def sizes_of(data: bytes, count: int) -> NDArray[Any]:
    """What `to_sizes` took."""
    return np.frombuffer(data, "<u2" if len(data) == 2 * count else "<u4")


def bytes_among(numbers: BitMap, sizes: bytes, wanted: BitMap) -> int:
    """Sealed bytes of those of `numbers`, of which each has its size, that are wanted."""
    chosen = numbers & wanted
    if not chosen:
        return 0
    each = sizes_of(sizes, len(numbers))
    if len(chosen) < len(numbers):
        each = each[np.searchsorted(np.array(numbers.to_array()), np.array(chosen.to_array()))]
    return int(each.sum(dtype=np.uint64))


def _effect(
    conn: Connection, lineage: str, dead: Iterable[Dying], earlier: _Earlier, decision: int | None = None
) -> _Effect:  # fmt: skip
    """What the dying numbers do to packs and objects, given what earlier gaps of the same forecast did."""
    numbers: dict[int, BitMap | None] = {}
    sizes: dict[int, int] = defaultdict(int)
    for row in dead:
        known = numbers.get(row.pack, BitMap())
        numbers[row.pack] = None if row.numbers is None or known is None else known | row.numbers
        sizes[row.pack] += row.bytes
    effect = _Effect(decision)
    for some in batches(numbers):
        _read_packs(conn, lineage, {key: numbers[key] for key in some}, sizes, earlier, effect)
        _read_objects(conn, lineage, some, earlier, effect)
    uncounted = [name for name, found in effect.objects.items() if found.left == _UNCOUNTED]
    for names in batches(uncounted):
        _count_living(conn, names, earlier, effect)
    return effect


def _read_packs(
    conn: Connection, lineage: str, wanted: dict[int, BitMap | None], sizes: dict[int, int], earlier: _Earlier, effect: _Effect
) -> None:
    rows = conn.execute(
        sa.select(t.pack.c.id, t.pack.c.chunks, t.pack.c.gone).where(t.pack.c.lineage == lineage, t.pack.c.id.in_(wanted))
    )
    for row in rows:
        gone = earlier.gone.get(row.id) or numbers_of(row.gone)
        numbers = wanted[row.id]
        dead = (BitMap(range(row.chunks)) if numbers is None else numbers) - gone
        effect.packs[row.id] = _Pack(row.chunks, gone, dead, sizes[row.id])


_UNCOUNTED = -1


def _read_objects(conn: Connection, lineage: str, some: list[int], earlier: _Earlier, effect: _Effect) -> None:
    rows = conn.execute(
        sa.select(
            t.holding.c.object, t.holding.c.pack, t.holding.c.numbers, t.holding.c.sizes,
            t.object_.c.bytes, t.object_.c.dead_bytes, t.object_.c.state, t.object_.c.live,
            t.object_.c.marked_by, t.object_.c.marked_bytes,
        )
        .join(t.object_, t.object_.c.id == t.holding.c.object)
        .where(t.holding.c.lineage == lineage, t.holding.c.pack.in_(some), t.object_.c.state.in_(("PLANNED", "STORED")))
    )  # fmt: skip
    for row in rows:
        before = earlier.objects.get(row.object)
        if before is not None and before.left == 0:
            continue
        found = effect.objects.get(row.object)
        if found is None:
            found = effect.objects[row.object] = _object(row, before, effect.decision)
        if row.state == "PLANNED":
            continue
        pack = effect.packs[row.pack]
        if row.numbers is None:
            dead, size = len(pack.dead), pack.bytes
        else:
            numbers = numbers_of(row.numbers)
            dead, size = len(numbers & pack.dead), bytes_among(numbers, row.sizes, pack.dead)
        found.dead += dead
        found.newly_dead_bytes += size
        found.left -= dead


def _object(row: Any, before: _Object | None, decision: int | None) -> _Object:
    """An object as it is, or as earlier gaps left it. One that is planned has no count of its own yet."""
    if row.state == "PLANNED":
        return _Object(0, 0, False, _UNCOUNTED)
    if before is not None:
        return _Object(before.bytes, before.dead_bytes, True, before.left)
    marked = row.marked_bytes if decision is not None and row.marked_by == decision else 0
    return _Object(row.bytes, row.dead_bytes, True, row.live, marked)


def _count_living(conn: Connection, names: list[str], earlier: _Earlier, effect: _Effect) -> None:
    """Counts what lives on of what planned objects will hold."""
    for name in names:
        effect.objects[name].left = 0
    for row in conn.execute(_holdings_of(names)):
        pack = effect.packs.get(row.pack)
        gone = pack.gone | pack.dead if pack is not None else earlier.gone.get(row.pack) or numbers_of(row.gone)
        effect.objects[row.object].left += len(_numbers(row) - gone)
