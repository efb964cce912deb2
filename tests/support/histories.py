"""Random histories of one lineage in a real catalog beside plain sets: each part keeps the set of chunks that it needs, nothing
else is known. Shared by the tests of every database."""

from __future__ import annotations

import random

import numpy as np
import sqlalchemy as sa
from pyroaring import BitMap

from strongroom.catalog import lifespans, space, sweeping
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog
from strongroom.identity import tables as _identity  # noqa: F401  (its tables are part of the catalog)

LINEAGE = "a" * 32
CHUNK = 10  # sealed bytes of every chunk here
INDEX = 7  # bytes of an object that are not chunks


class World:
    """A lineage in a real catalog beside the sets that say what must be true."""

    def __init__(self, catalog: Catalog, seed: int) -> None:
        self.catalog, self.random = catalog, random.Random(seed)
        self.need: dict[int, set[tuple[int, int]]] = {}
        self.building: int | None = None
        self.attempt = 0
        self.own: dict[int, int] = {}
        self.packs = 0
        self.moves = 0
        self.moved: dict[tuple[int, int], str] = {}
        with catalog.write() as conn:
            for table in reversed(t.metadata.sorted_tables):
                conn.execute(table.delete())
            conn.execute(
                t.lineage.insert().values(
                    id=LINEAGE, project="p", instance="i", scope="", node="", state="OPEN", counter=0, version=0,
                    chunk_average=4096, pack_target=1,
                )
            )  # fmt: skip

    def backup_row(self, conn: sa.Connection, key: str) -> None:
        conn.execute(
            t.backup.insert().values(
                id=key, project="p", instance="i", instance_name="i", engine="redis", engine_version="7", name="n",
                description="", origin="Manual", scope="", state="BUILDING", version=0, begin_at=0.0, plain_bytes=0,
            )
        )  # fmt: skip

    def begin(self) -> None:
        with self.catalog.decide(lineages=[LINEAGE]) as conn:
            key = f"b{self.random.getrandbits(60)}"
            self.backup_row(conn, key)
            begun = lifespans.begin(conn, LINEAGE, key)
            conn.execute(sa.update(t.part).where(t.part.c.seq == begun.seq).values(attempt=1))
        assert begun.parent == max(self.need, default=0)
        self.building, self.attempt, self.own, self.parent = begun.seq, 1, {}, begun.parent
        self.frozen = set(self.need.get(begun.parent, set()))

    def write_pack(self) -> None:
        self.packs += 1
        chunks = self.random.randrange(1, 6)
        with self.catalog.write() as conn:
            conn.execute(
                t.pack.insert().values(
                    lineage=LINEAGE, id=self.packs, born=self.building, attempt=self.attempt, stored=True, chunks=chunks,
                    bytes=chunks * CHUNK, gone_bytes=0, moved=False,
                )
            )  # fmt: skip
            add_object(conn, f"o{self.packs}", self.building or 0, "pack", {self.packs: None}, chunks, chunks * CHUNK + INDEX)
        self.own[self.packs] = chunks

    def place(self, chunk: tuple[int, int]) -> str:
        """The object that a chunk is in."""
        return self.moved.get(chunk, f"o{chunk[0]}")

    def move(self) -> None:
        """What rewriting does to the books: all that lives in some objects goes into new ones, in any grouping."""
        sweeping.finish(self.catalog, LINEAGE)
        living = set().union(*self.need.values()) | (self.frozen if self.building is not None else set())
        sources = sorted({self.place(chunk) for chunk in living})
        sources = self.random.sample(sources, min(len(sources), self.random.randrange(1, 5)))
        chunks = [chunk for chunk in sorted(living) if self.place(chunk) in sources]
        self.random.shuffle(chunks)
        count = self.random.randrange(1, 4)
        with self.catalog.decide(lineages=[LINEAGE]) as conn:
            conn.execute(sa.delete(t.holding).where(t.holding.c.object.in_(sources)))
            conn.execute(sa.delete(t.object_).where(t.object_.c.id.in_(sources)))
            for some in (chunks[start::count] for start in range(count)):
                self.moves += 1
                held: dict[int, BitMap | None] = {}
                for pack, number in some:
                    held[pack] = (held.get(pack) or BitMap()) | BitMap([number])
                    self.moved[pack, number] = f"m{self.moves}"
                if some:
                    add_object(conn, f"m{self.moves}", 0, "rewrite", held, len(some), len(some) * CHUNK + INDEX)
                conn.execute(sa.update(t.pack).where(t.pack.c.id.in_(held)).values(moved=True))

    def take_over(self) -> None:
        """A second worker takes the build over: rows ahead of the first count no more, its packs are thrown away."""
        with self.catalog.decide(lineages=[LINEAGE]) as conn:
            self.attempt += 1
            conn.execute(sa.update(t.part).where(t.part.c.seq == self.building).values(attempt=self.attempt))
            for key in self.own:
                space.bury(conn, LINEAGE, [lifespans.Dying(key, self.building or 0, None, self.own[key] * CHUNK)], "job:x")
            while lifespans.forget_ahead(conn, LINEAGE, self.building or 0, self.parent, 2):
                pass
        self.own = {}

    def unused_rows(self, keep: float, conn: sa.Connection) -> list[tuple[int, BitMap, int]]:
        opened = lifespans.open_numbers(conn, LINEAGE)
        assert {(p, n) for p, numbers in opened.items() for n in numbers} == self.frozen, "open set is what the parent needs"
        self.used = {x for x in sorted(self.frozen) if self.random.random() < keep}
        used: dict[int, BitMap] = {}
        for pack, number in self.used:
            used.setdefault(pack, BitMap()).add(number)
        used |= {key: BitMap(range(chunks)) for key, chunks in self.own.items()}
        unused = lifespans.prove_coverage(used, opened, self.own, {})
        return [(key, numbers, len(numbers) * CHUNK) for key, numbers in unused.items()]

    def write_ahead(self, keep: float) -> None:
        with self.catalog.write() as conn:
            rows = self.unused_rows(keep, conn)
            lifespans.write_ahead(conn, LINEAGE, self.building or 0, self.attempt, self.parent, rows)

    def commit(self, keep: float) -> None:
        self.write_ahead(keep)
        seq = self.building or 0
        sweeping.finish(self.catalog, LINEAGE)
        with self.catalog.decide(lineages=[LINEAGE]) as conn:
            gap = lifespans.commit(conn, LINEAGE, seq, self.attempt)
            if gap is not None:
                sweeping.record(conn, LINEAGE, "COMMIT", "b", gap, "job:c")
        sweeping.finish(self.catalog, LINEAGE)
        self.need[seq] = self.used | {(key, n) for key, chunks in self.own.items() for n in range(chunks)}
        self.building = None

    def fail(self) -> None:
        sweeping.finish(self.catalog, LINEAGE)
        with self.catalog.decide(lineages=[LINEAGE]) as conn:
            gap = lifespans.leave(conn, LINEAGE, self.building or 0)
            sweeping.record(conn, LINEAGE, "FAIL", "b", gap, "job:f")
        sweeping.finish(self.catalog, LINEAGE)
        self.building = None

    def delete(self, victims: list[int]) -> None:
        sweeping.finish(self.catalog, LINEAGE)
        before = self.living_bytes()
        with self.catalog.read() as conn:
            away: list[int] = []
            forecast, promised = space.Forecast(conn, LINEAGE), space.Toll()
            for victim in victims:
                gap = lifespans.neighbours(conn, LINEAGE, victim, away)
                promised += forecast.add(gap)
                away.append(victim)
        with self.catalog.decide(lineages=[LINEAGE]) as conn:
            lifespans.require_swept(conn, LINEAGE)
            for victim in victims:
                gap = lifespans.retire(conn, LINEAGE, victim)
                sweeping.record(conn, LINEAGE, "DELETE", "b", gap, "delete:b")
        sweeping.finish(self.catalog, LINEAGE)
        for victim in victims:
            del self.need[victim]
        after = self.living_bytes()
        assert before[0] - after[0] == promised.freed, "whole objects freed are those promised"
        assert after[1] - before[1] == promised.owned - promised.freed, "dead bytes grow by what waits"

    def living_bytes(self) -> tuple[int, int]:
        """(bytes of stored objects, dead bytes inside them)."""
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(t.object_.c.bytes, t.object_.c.dead_bytes).where(t.object_.c.state == "STORED")).all()
        return sum(r.bytes for r in rows), sum(r.dead_bytes for r in rows)

    def check(self) -> None:
        wanted = set().union(*self.need.values()) if self.need else set()
        if self.building is not None:
            wanted |= self.frozen | {(key, n) for key, chunks in self.own.items() for n in range(chunks)}
        with self.catalog.read() as conn:
            packs = conn.execute(sa.select(t.pack)).all()
            living = {(p.id, n) for p in packs for n in BitMap(range(p.chunks)) - lifespans.numbers_of(p.gone)}
            assert living == wanted, "what lives is what some part needs"
            objects = {row.id: row for row in conn.execute(sa.select(t.object_).where(t.object_.c.state == "STORED"))}
            assert set(objects) == {self.place(chunk) for chunk in wanted}, "an object is stored while something in it is needed"
            for key, row in objects.items():
                alive = sum(1 for chunk in wanted if self.place(chunk) == key)
                assert row.live == alive
                assert row.bytes - row.dead_bytes == alive * CHUNK + INDEX


def add_object(conn: sa.Connection, key: str, seq: int, kind: str, packs: dict[int, BitMap | None], live: int, size: int) -> None:
    conn.execute(
        t.object_.insert().values(
            id=key, lineage=LINEAGE, kind=kind, name=key, state="STORED", bytes=size, live=live, dead_bytes=0, seq=seq, attempt=1,
            late=False,
        )
    )  # fmt: skip
    for pack, numbers in packs.items():
        conn.execute(
            t.holding.insert().values(
                object=key, lineage=LINEAGE, pack=pack, numbers=None if numbers is None else numbers.serialize(),
                sizes=None if numbers is None else space.to_sizes(np.full(len(numbers), CHUNK)),
                bytes=size - INDEX if numbers is None else len(numbers) * CHUNK,
            )
        )  # fmt: skip


def run_history(world: World, steps: int, batch: int = sweeping.BATCH) -> None:
    """Random steps, checked after each; sweeps go `batch` rows at a time."""
    normal, sweeping.BATCH = sweeping.BATCH, batch
    try:
        history(world, steps)
    finally:
        sweeping.BATCH = normal


def history(world: World, steps: int) -> None:
    rnd = world.random
    for _ in range(steps):
        dice = rnd.random()
        if world.building is None and dice < 0.45:
            world.begin()
        elif world.building is not None and dice < 0.5:
            world.write_pack()
        elif world.building is not None and dice < 0.55:
            world.write_ahead(rnd.choice((0, 0.5)))
            world.take_over()
        elif world.building is not None and dice < 0.7:
            if rnd.random() < 0.3:
                world.fail()
            else:
                world.commit(rnd.choice((0, 0.3, 0.8, 0.95, 1)))
        elif world.need:
            count = min(len(world.need), rnd.choice((1, 1, 2, 3)))
            world.delete(rnd.sample(sorted(world.need), count))
        if rnd.random() < 0.3:
            world.move()
        world.check()
