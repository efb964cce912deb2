"""Bytes: what dying chunks free at once (objects that go whole) and what waits (dead bytes inside objects that live on).

Lifespans speak of packs and numbers, the store of objects; `holding` joins the two. One function finds what a set of dying
numbers does to the objects; `Forecast` only adds that up (preview and promise), `bury` carries it out (the sweep).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import sqlalchemy as sa
from pyroaring import BitMap
from sqlalchemy import Connection

from strongroom.catalog import tables as t
from strongroom.catalog.lifespans import Dying, Gap, LifespanError, dying, dying_by_pack, numbers_of

_IN = 800  # ids in one IN (…)
T = TypeVar("T")


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
    dead: int = 0  # chunks that die now
    newly_dead_bytes: int = 0
    packs_left: int = 0  # holdings of packs that live on


@dataclass(slots=True)
class _Effect:
    packs: dict[int, _Pack] = field(default_factory=dict)
    objects: dict[str, _Object] = field(default_factory=dict)

    def toll(self) -> Toll:
        total = Toll()
        for found in self.objects.values():
            if not found.stored:
                continue
            if found.packs_left == 0:
                owned = found.bytes - found.dead_bytes
                total += Toll(owned=owned, freed=found.bytes, objects=1)
            else:
                total += Toll(owned=found.newly_dead_bytes, waiting=found.newly_dead_bytes)
        return total


@dataclass(slots=True)
class _Earlier:
    """What earlier gaps of the same forecast have killed already."""

    gone: dict[int, BitMap] = field(default_factory=dict)
    gone_bytes: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    dead_bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    whole: set[str] = field(default_factory=set)  # objects

    def add(self, effect: _Effect) -> None:
        for key, found in effect.packs.items():
            self.gone[key] = found.gone | found.dead
            self.gone_bytes[key] += found.bytes
        for name, held in effect.objects.items():
            self.dead_bytes[name] += held.newly_dead_bytes
            if held.packs_left == 0:
                self.whole.add(name)


class Forecast:
    """Adds up what gaps of one lineage would do, one after the other, without doing it.

    A single gap is added up by the database: only packs that go whole are looked at one by one. With a second gap both are
    played chunk by chunk, since the same pack may lose chunks to each.
    """

    def __init__(self, conn: Connection, lineage: str) -> None:
        self._conn, self._lineage, self._earlier = conn, lineage, _Earlier()
        self._first: Gap | None = None
        self._played = False

    def add(self, gap: Gap) -> Toll:
        """What this gap does, after those added before it."""
        if self._first is None:
            self._first = gap
            inside, whole = dying_by_pack(self._conn, self._lineage, gap)
            return _effect(self._conn, self._lineage, whole, self._earlier).toll() + Toll(owned=inside, waiting=inside)
        if not self._played:
            self._played = True
            self._play(self._first)
        return self._play(gap)

    def _play(self, gap: Gap) -> Toll:
        effect = _effect(self._conn, self._lineage, dying(self._conn, self._lineage, gap), self._earlier)
        self._earlier.add(effect)
        return effect.toll()


def bury(conn: Connection, lineage: str, dead: Iterable[Dying], removal: str) -> Toll:
    """Writes dying numbers into `gone`, removes packs that are all gone with their rows, and condemns the objects that hold
    nothing else (PLANNED ones too: their put may still come). Returns what it did."""
    effect = _effect(conn, lineage, dead, _Earlier())
    whole = [key for key, found in effect.packs.items() if found.whole]
    parts = [
        {"k": key, "g": (found.gone | found.dead).serialize(), "b": found.bytes}
        for key, found in effect.packs.items()
        if not found.whole and found.dead
    ]
    if parts:
        conn.execute(
            sa.update(t.pack)
            .where(t.pack.c.lineage == lineage, t.pack.c.id == sa.bindparam("k"))
            .values(gone=sa.bindparam("g"), gone_bytes=t.pack.c.gone_bytes + sa.bindparam("b")),
            parts,
        )
    for some in batches(whole, _IN):
        conn.execute(sa.delete(t.holding).where(t.holding.c.lineage == lineage, t.holding.c.pack.in_(some)))
        conn.execute(sa.delete(t.death).where(t.death.c.lineage == lineage, t.death.c.pack.in_(some)))
        conn.execute(sa.delete(t.pack).where(t.pack.c.lineage == lineage, t.pack.c.id.in_(some)))
    condemn(conn, [name for name, found in effect.objects.items() if found.packs_left == 0], removal)
    thinner = [
        {"k": name, "n": found.dead, "b": found.newly_dead_bytes}
        for name, found in effect.objects.items()
        if found.packs_left and found.dead
    ]
    if thinner:
        conn.execute(
            sa.update(t.object_)
            .where(t.object_.c.id == sa.bindparam("k"))
            .values(live=t.object_.c.live - sa.bindparam("n"), dead_bytes=t.object_.c.dead_bytes + sa.bindparam("b")),
            thinner,
        )
    return effect.toll()


def held_by(conn: Connection, key: str) -> dict[int, BitMap]:
    """What an object holds, as pack → numbers."""
    rows = conn.execute(
        sa.select(t.holding.c.pack, t.holding.c.numbers, t.pack.c.chunks)
        .join(t.pack, sa.and_(t.pack.c.lineage == t.holding.c.lineage, t.pack.c.id == t.holding.c.pack))
        .where(t.holding.c.object == key)
    )
    return {row.pack: BitMap(range(row.chunks)) if row.numbers is None else numbers_of(row.numbers) for row in rows}


def condemn(conn: Connection, objects: Sequence[str], removal: str) -> None:
    """Hands objects to a removal. One that was PLANNED stays `late`: the put that its row announced may still arrive."""
    for some in batches(objects, _IN):
        conn.execute(
            sa.update(t.object_)
            .where(t.object_.c.id.in_(some), t.object_.c.state.in_(("PLANNED", "STORED")))
            .values(
                late=sa.or_(t.object_.c.late, t.object_.c.state == "PLANNED"), state="CONDEMNED", removal=removal, rewriting=None
            )
        )


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of at most `size`."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _effect(conn: Connection, lineage: str, dead: Iterable[Dying], earlier: _Earlier) -> _Effect:
    """What the dying numbers do to packs and objects, given what earlier gaps of the same forecast did."""
    numbers: dict[int, BitMap | None] = {}
    sizes: dict[int, int] = defaultdict(int)
    for row in dead:
        known = numbers.get(row.pack, BitMap())
        numbers[row.pack] = None if row.numbers is None or known is None else known | row.numbers
        sizes[row.pack] += row.bytes - (earlier.gone_bytes[row.pack] if row.numbers is None else 0)
    effect = _Effect()
    for some in batches(numbers, _IN):
        _read_packs(conn, lineage, {key: numbers[key] for key in some}, sizes, earlier, effect)
        _read_objects(conn, lineage, some, earlier, effect)
    _count_holdings_left(conn, lineage, earlier, effect)
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


def _read_objects(conn: Connection, lineage: str, some: list[int], earlier: _Earlier, effect: _Effect) -> None:
    rows = conn.execute(
        sa.select(
            t.holding.c.object, t.holding.c.pack, t.holding.c.numbers, t.holding.c.spare,
            t.object_.c.bytes, t.object_.c.dead_bytes, t.object_.c.state,
        )
        .join(t.object_, t.object_.c.id == t.holding.c.object)
        .where(t.holding.c.lineage == lineage, t.holding.c.pack.in_(some), t.object_.c.state.in_(("PLANNED", "STORED")))
    )  # fmt: skip
    current: set[int] = set()
    for row in rows:
        if row.object in earlier.whole:
            continue
        found = effect.objects.get(row.object)
        if found is None:
            found = _Object(row.bytes, row.dead_bytes + earlier.dead_bytes[row.object], row.state == "STORED")
            effect.objects[row.object] = found
        if row.spare:
            continue
        if row.pack in current:
            raise LifespanError(f"pack {row.pack} of lineage {lineage} has two current objects")
        current.add(row.pack)
        pack = effect.packs[row.pack]
        found.dead += len(pack.dead if row.numbers is None else pack.dead & numbers_of(row.numbers))
        found.newly_dead_bytes += pack.bytes


def _count_holdings_left(conn: Connection, lineage: str, earlier: _Earlier, effect: _Effect) -> None:
    """An object goes whole when every pack that it holds chunks of is all gone."""
    untouched: dict[int, list[str]] = defaultdict(list)
    for some in batches(effect.objects, _IN):
        rows = conn.execute(sa.select(t.holding.c.object, t.holding.c.pack).where(t.holding.c.object.in_(some)))
        for row in rows:
            pack = effect.packs.get(row.pack)
            if pack is None:
                untouched[row.pack].append(row.object)
            elif not pack.whole:
                effect.objects[row.object].packs_left += 1
    for packs in batches(untouched, _IN):
        rows = conn.execute(sa.select(t.pack.c.id, t.pack.c.chunks).where(t.pack.c.lineage == lineage, t.pack.c.id.in_(packs)))
        for row in rows:
            if len(earlier.gone.get(row.id, ())) < row.chunks:
                for name in untouched[row.id]:
                    effect.objects[name].packs_left += 1
