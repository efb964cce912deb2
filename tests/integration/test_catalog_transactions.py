"""No transaction turns over more than some 10,000 rows, however much a decision frees: counted at the database's own door."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pyroaring import BitMap

from strongroom.backups.context import Options
from strongroom.catalog import lifespans, sweeping
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog
from strongroom.storage.base import StoreUnavailable
from strongroom.storage.memory import MemoryStore
from support.vault import Vault, edited, noise

MOST = 11_000
LINEAGE = "c" * 32


class Meter:
    """Rows changed by each transaction."""

    def __init__(self, catalog: Catalog, most: int = MOST) -> None:
        self.most = most
        self.transactions: list[int] = [0]
        sa.event.listen(catalog.engine, "begin", lambda _conn: self.transactions.append(0))
        sa.event.listen(catalog.engine, "after_cursor_execute", self._count)

    def _count(self, _conn: Any, cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            self.transactions[-1] += max(0, cursor.rowcount)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """What happens in the block changes something, and nothing too large at once."""
        self.transactions = [0]
        yield
        assert sum(self.transactions) > 0
        assert max(self.transactions) <= self.most, f"a transaction of {max(self.transactions)} rows"


class Synthetic:
    """A lineage whose chain is written row by row, far larger than a test could back up."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        with catalog.write() as conn:
            conn.execute(
                t.lineage.insert().values(
                    id=LINEAGE, project="p", instance="i", scope="", node="", state="OPEN", counter=0, version=0,
                    chunk_average=4096, pack_target=1,
                )
            )  # fmt: skip

    def backup(self, key: str, state: str) -> None:
        with self.catalog.write() as conn:
            conn.execute(
                t.backup.insert().values(
                    id=key, project="p", instance="i", instance_name="i", engine="plain", engine_version="1", name=key,
                    description="", origin="Manual", scope="", state=state, version=0, begin_at=0.0, plain_bytes=0,
                )
            )  # fmt: skip

    def part(self, seq: int, state: str = "COMPLETED", attempt: int = 1) -> None:
        key = f"b{seq}"
        self.backup(key, state)
        with self.catalog.write() as conn:
            conn.execute(
                t.part.insert().values(
                    lineage=LINEAGE, seq=seq, backup=key, parent=seq - 1, attempt=attempt,
                    committed=None if state == "BUILDING" else attempt, state=state, version=0, entries=0, plain_bytes=0,
                    stored_bytes=0, adopted_bytes=0,
                )
            )  # fmt: skip
            conn.execute(sa.update(t.lineage).where(t.lineage.c.id == LINEAGE).values(counter=seq))

    def packs(self, first: int, count: int, born: int, chunks: int) -> None:
        keys = range(first, first + count)
        with self.catalog.write() as conn:
            conn.execute(
                t.pack.insert(),
                [
                    {"lineage": LINEAGE, "id": key, "born": born, "attempt": 1, "stored": True, "chunks": chunks,
                     "bytes": 10 * chunks, "gone_bytes": 0, "moved": False}
                    for key in keys
                ],
            )  # fmt: skip
            conn.execute(
                t.object_.insert(),
                [
                    {"id": f"o{key}", "lineage": LINEAGE, "kind": "pack", "name": f"o{key}", "state": "STORED",
                     "bytes": 10 * chunks + 5, "live": chunks, "dead_bytes": 0, "seq": born, "attempt": 1, "late": False}
                    for key in keys
                ],
            )  # fmt: skip
            conn.execute(
                t.holding.insert(),
                [
                    {"object": f"o{key}", "lineage": LINEAGE, "pack": key, "numbers": None, "bytes": 10 * chunks}
                    for key in keys
                ],
            )  # fmt: skip

    def deaths(self, packs: range, born: int, last: int, closer: int, numbers: list[int], attempt: int = 1) -> None:
        one = BitMap(numbers)
        with self.catalog.write() as conn:
            conn.execute(
                t.death.insert(),
                [
                    {"lineage": LINEAGE, "pack": key, "last": last, "closer": closer, "attempt": attempt, "born": born,
                     "numbers": one.serialize(), "bytes": 10 * len(one)}
                    for key in packs
                ],
            )  # fmt: skip

    def leave(self, seq: int, cause: str = "DELETE") -> None:
        """A decision and its sweep."""
        with self.catalog.decide(lineages=[LINEAGE]) as conn:
            gap = lifespans.leave(conn, LINEAGE, seq)
            sweeping.record(conn, LINEAGE, cause, f"b{seq}", gap, f"delete:b{seq}")
        sweeping.finish(self.catalog, LINEAGE)

    def count(self, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
        with self.catalog.read() as conn:
            return int(conn.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one())


@pytest.fixture
def world(catalog: Catalog) -> Synthetic:
    return Synthetic(catalog)


def test_a_gap_of_thirty_thousand_rows_is_swept_in_parts(catalog: Catalog, world: Synthetic) -> None:
    """The middle part goes: one row in each of 30,000 packs, each dead in an object that lives on."""
    for seq in (1, 2, 3):
        world.part(seq)
    world.packs(1, 30_000, born=2, chunks=4)
    world.deaths(range(1, 30_001), born=2, last=2, closer=3, numbers=[0])
    meter = Meter(catalog)
    with meter.watch():
        world.leave(2)
    assert world.count(t.death) == 0
    assert world.count(t.object_, t.object_.c.dead_bytes == 10, t.object_.c.live == 3) == 30_000


def test_packs_that_go_whole_are_swept_in_parts(catalog: Catalog, world: Synthetic) -> None:
    """The head goes with 8,000 packs of its own, and those of a later head that was deleted before hang rows on some of them."""
    world.part(1)
    world.part(2)
    world.packs(1, 8_000, born=2, chunks=64)
    world.part(3)
    with catalog.write() as conn:
        conn.execute(sa.update(t.part).where(t.part.c.seq == 3).values(state="RETIRED"))
    for number in range(40):  # many rows on few packs
        world.deaths(range(1, 401), born=2, last=2 + number, closer=3, numbers=[number])
    meter = Meter(catalog)
    with meter.watch():
        world.leave(2)
    assert (world.count(t.pack), world.count(t.holding), world.count(t.death)) == (0, 0, 0)
    assert world.count(t.object_, t.object_.c.state == "CONDEMNED") == 8_000


def test_packs_with_many_rows_each_are_swept_in_parts(catalog: Catalog, world: Synthetic) -> None:
    """500 packs with 60 dying rows each: all rows of a pack go together, and still not too many at once."""
    for seq in (1, 2, 100):
        world.part(seq)
    world.packs(1, 500, born=2, chunks=64)
    for number in range(60):
        world.deaths(range(1, 501), born=2, last=2 + number, closer=100, numbers=[number])
    meter = Meter(catalog)
    with meter.watch():
        world.leave(2)
    assert world.count(t.death) == 0
    assert world.count(t.pack, t.pack.c.gone_bytes == 600) == 500


def test_a_batch_of_deletes_sweeps_no_more_than_one(catalog: Catalog, world: Synthetic) -> None:
    """Ten decisions of 3,000 rows each in one transaction share one transaction's room."""
    for seq in range(1, 13):
        world.part(seq)
    for place, seq in enumerate(range(2, 12)):
        world.packs(1 + place * 3_000, 3_000, born=seq, chunks=2)
        world.deaths(range(1 + place * 3_000, 1 + (place + 1) * 3_000), born=seq, last=seq, closer=seq + 1, numbers=[0])
    meter = Meter(catalog)
    with meter.watch():
        with catalog.decide(lineages=[LINEAGE]) as conn:
            room = sweeping.BATCH
            for seq in range(2, 12):
                gap = lifespans.retire(conn, LINEAGE, seq)
                room = sweeping.record(conn, LINEAGE, "DELETE", f"b{seq}", gap, f"delete:b{seq}", room=room)
        sweeping.finish(catalog, LINEAGE)
    assert world.count(t.death) == 0


def test_a_beginning_after_deleted_heads_reopens_in_parts(catalog: Catalog, world: Synthetic) -> None:
    """Part 2 had dropped a chunk of each of 30,000 packs of part 1 and is gone: the next beginning opens them again."""
    world.part(1)
    world.packs(1, 30_000, born=1, chunks=2)
    world.part(2)
    world.deaths(range(1, 30_001), born=1, last=1, closer=2, numbers=[0])
    world.leave(2)
    assert world.count(t.death) == 30_000
    world.backup("b3", "BUILDING")
    meter = Meter(catalog)
    with pytest.raises(lifespans.NotSwept), catalog.decide(lineages=[LINEAGE]) as conn:
        lifespans.begin(conn, LINEAGE, "b3")
    with meter.watch():
        sweeping.finish_and_reopen(catalog, LINEAGE)
        with catalog.decide(lineages=[LINEAGE]) as conn:
            assert lifespans.begin(conn, LINEAGE, "b3").parent == 1
    assert world.count(t.death) == 0


def test_a_failure_forgets_its_rows_ahead_in_parts(catalog: Catalog, world: Synthetic) -> None:
    """A build that had written 30,000 rows ahead fails: they go in batches, and what they named stays open."""
    world.part(1)
    world.packs(1, 30_000, born=1, chunks=2)
    world.part(2, state="BUILDING")
    world.deaths(range(1, 30_001), born=1, last=1, closer=2, numbers=[0])
    meter = Meter(catalog)
    with meter.watch():
        world.leave(2, cause="FAIL")
    assert world.count(t.death) == 0
    assert world.count(t.pack, t.pack.c.gone_bytes == 0) == 30_000


def test_use_cases_keep_to_the_measure(tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a tenth of the measure, with hundreds of packs: backups, one of them taken over before its commit, and deletes."""
    monkeypatch.setattr(sweeping, "BATCH", 300)
    options = Options(chunk_average=1024, pack_target=4096, reclaim_budget=0)
    vault = Vault(tmp_path, FlakyStore(), catalog, options)
    meter = Meter(catalog, most=1_100)
    data = noise(2_500_000, 1)
    keys = []
    for number in range(3):
        with meter.watch():
            keys.append(vault.backup({"a": data}))
        data = edited(data, number, 700)
    for key in (keys[1], keys[0], keys[2]):
        with meter.watch():
            vault.delete(key)
            vault.run()
    vault.check()


class FlakyStore(MemoryStore):
    """Does not take the first manifest: its build has put all its packs, and another attempt begins anew."""

    refused = False

    def put_new(self, name: str, data: bytes | memoryview | Sequence[bytes | memoryview]) -> int:
        if "/manifest/" in name and not self.refused:
            self.refused = True
            raise StoreUnavailable("try again")
        return super().put_new(name, data)
