"""After a delete: reading back what the deleted backup shared with its neighbours, within a budget of bytes.

What is read, the most worth first: objects that this delete's rewriting has written; packs that lost chunks to it; other packs
that it shared, at random. Of each pack those chunks are opened that the deleted backup needed and that live on.

A chunk is damaged, or missing, when two readings say so. The second begins by asking the catalog again where it is: what was
rewritten, removed or freed meanwhile is no damage. What is damaged becomes suspect, as everywhere.

It removes and puts nothing, and a delete neither fails nor waits for it: a store that fails or is slow ends it early, and the
receipt says so. What it found is in the deletion's row before the receipt.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa
from pyroaring import BitMap
from sqlalchemy import Connection, Row

from strongroom.backups import damage
from strongroom.backups.context import Context
from strongroom.backups.damage import Finding, needing
from strongroom.catalog import lifespans
from strongroom.catalog import tables as t
from strongroom.catalog.space import held_by, holders
from strongroom.jobs.port import Running
from strongroom.repository.errors import Damaged, RepositoryError
from strongroom.repository.keys import open_lineage_keys
from strongroom.repository.pack import ObjectIndex, read_index
from strongroom.repository.places import Places, add_chunks, places, take_chunks
from strongroom.repository.verification import check_chunks
from strongroom.storage.base import ObjectMissing, StoreError

log = logging.getLogger("strongroom.backups")

LOOK = 1_000
"""Packs of a lineage that are looked at to choose from; in a lineage of more, a sample of them."""

LEAST = 4 << 20
"""Bytes that are read back however little the deleted backup owned."""

LONGEST = 60.0
"""Seconds after which a delete's receipt is not kept waiting any longer."""

MOST = 20
"""Damaged objects that a receipt lists; all of them are counted."""

_INDEXES = 16  # opened indexes kept at a time


@dataclass(slots=True)
class Verified:
    """What was read back after a delete and found, as its row and its receipt have it."""

    bytes: int = 0  # sealed bytes of the chunks that were read
    objects: int = 0
    of_bytes: int | None = 0  # sealed bytes of all that the deleted backup shared; None where it would be costly to know
    damaged_objects: int = 0
    damaged: list[dict[str, Any]] = field(default_factory=list)  # the first of them: name, what, chunks, backups
    ended_early: str | None = None  # why


def verify(ctx: Context, job: Running, backup: str, rewritten: Sequence[str]) -> None:
    """Reads back after the delete of `backup`, which has swept, removed and rewritten; `rewritten`: names of its new objects.

    A deletion that goes on after a crash does not read the same again. Raises what the job's checks and guard raise.
    """
    if not ctx.options.verify_after_delete:
        return
    with ctx.catalog.read() as conn:
        row = conn.execute(sa.select(t.deletion.c.verified, t.deletion.c.owned).where(t.deletion.c.backup == backup)).one()
    if row.verified is not None and not rewritten:
        return
    report = Verified() if row.verified is None else Verified(**json.loads(row.verified))
    reading = _Reading(ctx, job, backup, report, budget(ctx.options.verify_after_delete, row.owned))
    try:
        reading.run(rewritten)
    except (StoreError, RepositoryError, _Enough) as error:
        reading.end_early(str(error))
    with ctx.catalog.write(job.guard) as conn:
        told = json.dumps(asdict(report))
        conn.execute(sa.update(t.deletion).where(t.deletion.c.backup == backup).values(verified=told))


def budget(most: int, owned: int) -> int:
    """Bytes to read back: no more than the deleted backup owned, so that a small delete stays a small job, and LEAST at least."""
    return min(most, max(owned, LEAST))


def of_receipt(verified: str | None) -> dict[str, Any] | None:
    """What a receipt tells of it; None where nothing was read back."""
    if verified is None:
        return None
    told: dict[str, Any] = json.loads(verified)
    return told


class _Enough(Exception):
    """Reading back ends here; the text says why."""


def _parts(conn: Connection, backup: str) -> Sequence[Any]:
    """The deleted backup's parts in lineages that live on: `before` is the older neighbour."""
    return conn.execute(
        sa.select(t.decision.c.lineage, t.decision.c.seq, t.decision.c.before, t.lineage.c.sealed_keys)
        .join(t.lineage, t.lineage.c.id == t.decision.c.lineage)
        .where(t.decision.c.backup == backup, t.decision.c.cause == "DELETE", t.lineage.c.state == "OPEN")
        .order_by(t.decision.c.id)
    ).all()


class _Reading:
    """One reading back: its budget, its clock and what it has to report."""

    def __init__(self, ctx: Context, job: Running, backup: str, report: Verified, budget: int) -> None:
        self.ctx, self.job, self.backup, self.report, self._budget = ctx, job, backup, report, budget
        self.random = random.Random(ctx.ambient.key())
        self._left = max(budget - report.bytes, 0)
        self._told: dict[str, dict[str, Any]] = {}
        self._end = ctx.ambient.monotonic() + LONGEST

    def run(self, rewritten: Sequence[str]) -> None:
        """Reads of each lineage that the backup was in its share of the budget."""
        with self.ctx.catalog.read() as conn:
            lineages = [_Lineage(self, conn, part) for part in _parts(conn, self.backup)]
        extents = [one.extent for one in lineages]
        self.report.of_bytes = None if None in extents else sum(extent or 0 for extent in extents)
        for number, one in enumerate(lineages):
            share = self._left // (len(lineages) - number)
            self._left -= share - one.read(rewritten, share)

    def pause(self) -> None:
        """Between two reads: may it go on?"""
        self.job.progress("verifying", self.report.bytes, self._goal)
        if self.ctx.ambient.monotonic() > self._end:
            raise _Enough(f"the store is slow: {LONGEST:.0f} seconds are over")

    def tell(self, one: dict[str, Any]) -> None:
        """A damaged object, or more of one."""
        log.warning("found damaged after the deletion of backup %s: %s", self.backup, one)
        if one["name"] not in self._told:
            self._told[one["name"]] = one
            self.report.damaged_objects += 1
            if len(self.report.damaged) < MOST:
                self.report.damaged.append(one)
        else:
            known = self._told[one["name"]]
            known["chunks"] += one["chunks"]
            known["backups"] = sorted({*known["backups"], *one["backups"]})

    def end_early(self, why: str) -> None:
        """Says how far it came."""
        self.report.ended_early = f"verified {self.report.bytes / 2**20:.1f} of {self._goal / 2**20:.1f} MiB: {why}"
        log.warning("after the deletion of backup %s: %s", self.backup, self.report.ended_early)

    @property
    def _goal(self) -> int:
        budget, of = self._budget, self.report.of_bytes
        return budget if of is None else min(max(of, self.report.bytes), budget)


class _Lineage:
    """The share of one lineage: what may be read of it is chosen at once."""

    def __init__(self, reading: _Reading, conn: Connection, part: Row[Any]) -> None:
        self._reading, self._ctx, self._store = reading, reading.ctx, reading.ctx.store
        self._lineage, self._seq, self._left = part.lineage, part.seq, 0
        self._keys = open_lineage_keys(self._ctx.root_key, part.lineage, part.sealed_keys)
        self._packs, self.extent = self._choose(conn, part.before)
        self._asked: set[int] = set()  # packs
        self._read: dict[int, BitMap] = {}
        self._objects: set[str] = set()
        self._indexes: dict[str, ObjectIndex] = {}

    def _choose(self, conn: Connection, before: int) -> tuple[list[int], int | None]:
        """Packs that may be shared, those that lost chunks first, else at random; and the bytes that are, if cheaply known."""
        start = self._reading.random.getrandbits(63)
        rows, every = lifespans.packs_up_to(conn, self._lineage, self._seq, start, LOOK)
        self._reading.random.shuffle(rows)
        rows.sort(key=lambda row: not (row.born > before and row.gone_bytes))
        return [row.id for row in rows], lifespans.shared_bytes(conn, self._lineage, self._seq) if every else None

    def read(self, rewritten: Sequence[str], budget: int) -> int:
        """Reads until nothing is left to read or of the budget; returns what is left of it."""
        self._left = budget
        for name in rewritten:
            if self._left > 0 and name.startswith(f"{self._lineage}/"):
                self._check(self._of_object(name))
        for pack in self._packs:
            if self._left > 0 and pack not in self._asked:
                self._check(self._of_pack(pack))
        return self._left

    def _of_object(self, name: str) -> dict[int, BitMap]:
        """The living chunks that a new object holds, and those of its packs that no object holds."""
        with self._ctx.catalog.read() as conn:
            key = conn.execute(sa.select(t.object_.c.id).where(t.object_.c.name == name, t.object_.c.state == "STORED")).scalar()
            if key is None:
                return {}
            living = lifespans.living(conn, self._lineage, held_by(conn, key))
            found, wanted = _locate(conn, self._lineage, living)
        add_chunks(wanted, found.get((key, name), {}))
        return wanted

    def _of_pack(self, pack: int) -> dict[int, BitMap]:
        """The shared chunks of a pack, and of those that lie in the same objects."""
        beside, here = t.holding.alias(), t.holding.c
        with self._ctx.catalog.read() as conn:
            rows = conn.execute(
                sa.select(beside.c.pack)
                .join(t.holding, here.object == beside.c.object)
                .where(here.lineage == self._lineage, here.pack == pack)
                .distinct()
            )
            packs = {pack, *rows.scalars()} - self._asked
            self._asked |= packs
            return lifespans.shared(conn, self._lineage, self._seq, sorted(packs))

    # Reading

    def _check(self, wanted: Mapping[int, BitMap]) -> None:
        """Reads these chunks; what does not prove is read once more, and what does not prove then is damaged."""
        doubts: dict[int, BitMap] = {}
        for finding in self._pass(take_chunks(wanted, self._read), first=True).values():
            add_chunks(doubts, finding.chunks)
        if not doubts:
            return
        self._indexes.clear()
        with self._ctx.catalog.read() as conn:
            gone = take_chunks(doubts, lifespans.living(conn, self._lineage, doubts))
        found = self._pass(take_chunks(doubts, gone), first=False)
        if found:
            self._mark(found)

    def _pass(self, wanted: Mapping[int, BitMap], *, first: bool) -> dict[str, Finding]:
        """Reads the chunks where they are now, the first time within the budget; gives what does not prove, by object."""
        with self._ctx.catalog.read() as conn:
            objects, nowhere = _locate(conn, self._lineage, wanted)
        found: dict[str, Finding] = {}
        for pack, numbers in nowhere.items():
            found[f"{self._lineage}/pack {pack}"] = Finding("chunks", {pack: numbers})
        for (key, name), chunks in objects.items():
            if first and self._left <= 0:
                break
            finding = self._examine(key, name, chunks, first=first)
            if finding.chunks:
                found[name] = finding
        return found

    def _examine(self, key: str, name: str, chunks: dict[int, BitMap], *, first: bool) -> Finding:
        """Reads chunks of one object: those that it lacks or that do not open; all that were asked for if it does not open."""
        self._reading.pause()
        try:
            index = self._index(key, name)
            here = places(index, chunks)
            bad = take_chunks(chunks, here.chunks)
            for some in self._within(here) if first else here.reads():
                self._reading.pause()
                add_chunks(bad, check_chunks(self._store, index, some))
                if first:
                    self._count(name, some)
        except ObjectMissing:
            return Finding("missing", chunks)
        except Damaged:
            return Finding("unreadable", chunks)
        return Finding("chunks", bad)

    def _within(self, here: Places) -> Iterator[Places]:
        """Reads that fit into what is left of the budget; where not all do, from a chunk at random on and round again."""
        start = self._reading.random.randrange(len(here)) if here.sealed_bytes > self._left else 0
        order = np.argsort(here.offsets, kind="stable")
        for half in (here[order[start:]], here[order[:start]]):
            for some in half.reads():
                ends = some.offsets + some.lengths - some.offsets[:1]
                fitting = some[: int(np.searchsorted(ends, np.uint64(self._left), side="right"))]
                if len(fitting):
                    self._left -= int(ends[len(fitting) - 1])
                    yield fitting
                if len(fitting) < len(some):
                    self._left = 0
                    return

    def _index(self, key: str, name: str) -> ObjectIndex:
        found = self._indexes.get(key)
        if found is None:
            if len(self._indexes) >= _INDEXES:
                self._indexes.clear()
            found = self._indexes[key] = read_index(self._store, self._keys, self._lineage, key, name)
        return found

    def _count(self, name: str, some: Places) -> None:
        report = self._reading.report
        report.bytes += some.sealed_bytes
        report.objects += name not in self._objects
        self._objects.add(name)
        add_chunks(self._read, some.chunks)

    # Marking

    def _mark(self, found: Mapping[str, Finding]) -> None:
        """Makes suspect what lives still, and tells receipt, log and audit trail."""
        ctx = self._ctx
        if any(finding.what == "missing" for finding in found.values()):
            lost = damage.lost_mark(ctx)
            if lost is not None:
                raise _Enough(lost)
        told: list[dict[str, Any]] = []
        with ctx.catalog.decide(self._reading.job.guard, lineages=[self._lineage]) as conn:
            total = 0
            for name, finding in sorted(found.items()):
                if finding.what != "chunks":
                    finding.add(finding.what, _held_under(conn, name))
                add_chunks(self._read, finding.chunks)
                living, fresh = damage.mark(conn, self._lineage, name, finding)
                backups = [one.id for one in needing(conn, self._lineage, living)]
                if living:
                    count = sum(len(numbers) for numbers in living.values())
                    told.append({"name": name, "what": finding.what, "chunks": count, "backups": backups})
                total += fresh
            touched = [backup for one in told for backup in one["backups"]]
            if total and touched:
                damage.tell(conn, ctx, touched[-1], self._reading.job.id, total, [one["name"] for one in told])
        for one in told:
            self._reading.tell(one)


def _held_under(conn: Connection, name: str) -> dict[int, BitMap]:
    key = conn.execute(sa.select(t.object_.c.id).where(t.object_.c.name == name)).scalar()
    return {} if key is None else held_by(conn, key)


def _locate(
    conn: Connection, lineage: str, wanted: Mapping[int, BitMap]
) -> tuple[dict[tuple[str, str], dict[int, BitMap]], dict[int, BitMap]]:
    """Which stored objects hold the chunks, by (id, name), the current ones first; and the chunks that none holds."""
    found: dict[tuple[str, str], dict[int, BitMap]] = {}
    left = dict(wanted)
    for held in holders(conn, lineage, wanted):
        here = left[held.pack] if held.numbers is None else left[held.pack] & held.numbers
        if here:
            found.setdefault((held.id, held.name), {})[held.pack] = here
            left[held.pack] = left[held.pack] - here
    return found, {pack: numbers for pack, numbers in left.items() if numbers}


__all__ = ["Verified", "of_receipt", "verify"]
