"""Verifying backups: reading what a restore would read, and making SUSPECT what is not as it was written.

    verify      a job for one backup, an instance or a project, whole or a sample
    VerifyJob   per part, the newest first: its manifest, then every chunk that it names and that this job has not read yet

A chunk counts as damaged when two readings say so, and its object as missing when it is not there twice and its row is STORED
still. What is damaged is marked in one guarded transaction under the lineage's lock, which looks again at
what still lives: so the next backup stores it anew. Nothing is removed.

A verify does not protect its backup: a delete wins, and the backup is reported as superseded, which is a result and no failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pyroaring import BitMap
from sqlalchemy import Connection, Row

from strongroom.backups import damage, errors, listing
from strongroom.backups.context import Context
from strongroom.backups.damage import Finding, Touched, going_by, needing, of_root
from strongroom.backups.locating import CatalogLocator, read_manifest
from strongroom.backups.registered import require_known
from strongroom.catalog import logs
from strongroom.catalog import tables as t
from strongroom.catalog.space import held_by, holders
from strongroom.jobs.port import JobFailed, Running, TryAgain
from strongroom.repository.errors import Damaged, MissingChunk, MissingObject, RepositoryError
from strongroom.repository.fetching import ChunkFetcher
from strongroom.repository.keys import LineageKeys, open_lineage_keys
from strongroom.repository.log import open_log
from strongroom.repository.places import add_chunks
from strongroom.repository.records import Records, by_pack, without
from strongroom.repository.verification import check_object
from strongroom.storage.base import ObjectMissing, StoreError

ATTEMPTS = 3
"""Times that a verification is tried when the store fails in a way that passes, or its worker dies."""

PRIORITY = 200
"""Of jobs that look after the store: what users wait for goes first."""

MOST = 500
"""Objects and backups that a job's result lists; all of them are counted."""

_STRETCH = 64  # neighbouring chunks that a sample takes or leaves together: about one read
_WINDOW = 8 << 20  # plain bytes read at once


def verify(
    ctx: Context,
    project: str,
    note: Callable[[Connection], None],
    *,
    backup: str | None = None,
    instance: str | None = None,
    sample: float | None = None,
) -> str:
    """Submits a verification of one backup, of an instance's or of all of the project's; returns its job's id.

    `sample`: percent of the chunks, None for all; manifests are always read whole. Raises errors.NoSuchBackup, BackupBuilding,
    NoSuchInstance.
    """
    with ctx.catalog.write() as conn:
        if backup is not None:
            row = listing.find_backup(conn, project, backup)
            if row.state == "BUILDING":
                raise errors.BackupBuilding(f"backup {backup} is being built: verify it when it is complete")
            instance = row.instance
        elif instance is not None:
            require_known(conn, project, instance)
        args = {"project": project, "backup": backup, "instance": None if backup else instance, "sample": sample}
        job = ctx.jobs.submit(
            conn, "verify", args, project=project, instance=instance, backup=backup, serial=f"verify:{project}",
            priority=PRIORITY, max_attempts=ATTEMPTS,
        )  # fmt: skip
        note(conn)
    return job


class VerifyJob:
    """The job `verify`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        try:
            return self._verify(job)
        except StoreError as error:
            if not error.permanent and job.attempts < ATTEMPTS:
                raise TryAgain(str(error)) from error
            raise JobFailed(f"the store failed: {error}") from error
        except RepositoryError as error:
            raise JobFailed(str(error)) from error

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Nothing hangs on it: what was found damaged so far is marked."""

    def _verify(self, job: Running) -> Mapping[str, Any]:
        ctx = self._ctx
        require_store(ctx)
        with ctx.catalog.read() as conn:
            parts = _targets(conn, job.args)
        tally = _Tally(sum(part.plain_bytes for part in parts))
        sample = job.args.get("sample")
        choice = None if sample is None or sample >= 100 else Choice(float(sample), int.from_bytes(ctx.ambient.key()[:8], "big"))
        lineages: dict[str, _Lineage] = {}
        for part in parts:
            if part.lineage not in lineages:
                lineages.clear()  # parts come lineage by lineage
                lineages[part.lineage] = _Lineage(ctx, job, part.lineage, choice, tally)
            lineages[part.lineage].verify(part)
        if job.args.get("backup") is not None and not parts:
            tally.superseded.append(str(job.args["backup"]))
        return tally.result(sample, single=job.args.get("backup") is not None)


def require_store(ctx: Context) -> None:
    """Raises JobFailed where the store lacks this catalog's own mark: then what is missing says nothing of the backups."""
    lost = damage.lost_mark(ctx)
    if lost is not None:
        raise JobFailed(f"{lost} Nothing was judged")


def _targets(conn: Connection, args: Mapping[str, Any]) -> Sequence[Any]:
    """The parts to read, lineage by lineage and the newest first. A damaged backup of a rebuild is FAILED and still has parts."""
    clauses = [
        t.backup.c.project == args["project"],
        t.backup.c.state.in_(("COMPLETED", "FAILED", "PENDING")),
        t.part.c.state == "COMPLETED",
    ]
    if args.get("backup") is not None:
        clauses.append(t.backup.c.id == args["backup"])
    if args.get("instance") is not None:
        clauses.append(t.backup.c.instance == args["instance"])
    return conn.execute(
        sa.select(t.part.c.lineage, t.part.c.seq, t.part.c.root, t.part.c.plain_bytes, t.backup.c.id.label("backup"))
        .join(t.backup, t.backup.c.id == t.part.c.backup)
        .where(*clauses)
        .order_by(t.part.c.lineage, t.part.c.seq.desc())
    ).all()


@dataclass(frozen=True, slots=True)
class Choice:
    """A sample: which stretches of neighbouring chunks are read. The same for all parts of one job."""

    percent: float
    seed: int

    def __call__(self, records: Records) -> NDArray[np.bool_]:
        """Whether each record is in the sample."""
        mixed = records.packs ^ np.uint64(self.seed)
        mixed = (mixed + (records.numbers // _STRETCH).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
        return (mixed >> np.uint64(11)).astype(np.float64) < self.percent / 100 * 2.0**53


@dataclass(slots=True)
class _Told:
    """A damaged object as the result tells of it."""

    what: str
    chunks: int = 0
    backups: set[str] = field(default_factory=set)


class _Tally:
    """What a verification has read and found so far."""

    def __init__(self, plain_bytes: int) -> None:
        self.plain_bytes, self.walked = plain_bytes, 0
        self.chunks = self.bytes = 0
        self.verified: list[str] = []
        self.superseded: list[str] = []
        self.objects: dict[str, _Told] = {}
        self.backups: dict[str, Touched] = {}

    def count(self, records: Records) -> None:
        """Chunks that were read and are sound."""
        self.chunks += len(records)
        self.bytes += int(records.sealeds.sum(dtype=np.uint64))

    def tell(self, name: str, what: str, chunks: int, backups: Sequence[Touched]) -> None:
        """A damaged object and the backups that need it."""
        told = self.objects.setdefault(name, _Told(what))
        told.chunks += chunks
        told.backups |= {row.id for row in backups}
        self.backups |= {row.id: row for row in backups}

    def result(self, sample: float | None, *, single: bool) -> dict[str, Any]:
        """For the job's row: bounded, whatever was found."""
        superseded = sorted(set(self.superseded))
        outcome = "superseded" if single and superseded else "damaged" if self.objects else "sound"
        listed = [
            {"name": name, "what": told.what, "chunks": told.chunks, "backups": sorted(told.backups)[:MOST]}
            for name, told in sorted(self.objects.items())[:MOST]
        ]
        touched = sorted(self.backups.values(), key=lambda one: one.id)[:MOST]
        return {
            "outcome": outcome, "sample": sample, "backups": len(set(self.verified)), "superseded": superseded[:MOST],
            "chunks": self.chunks, "bytes": self.bytes,
            "damaged": {
                "objects": len(self.objects), "chunks": sum(told.chunks for told in self.objects.values()),
                "backups": len(self.backups),
            },
            "damaged_objects": listed,
            "damaged_backups": [asdict(one) for one in touched],
        }  # fmt: skip


class _Lineage:
    """One lineage's share. Remembers what was read, so that what several parts share is read once."""

    def __init__(self, ctx: Context, job: Running, lineage: str, choice: Choice | None, tally: _Tally) -> None:
        self._ctx, self._job, self._lineage, self._choice, self._tally = ctx, job, lineage, choice, tally
        self._keys = self._open_keys()
        self._read: dict[int, BitMap] = {}  # chunks that were judged, sound or not
        self._objects: set[str] = set()  # objects that were judged whole
        self._doubts: set[tuple[str | None, int | None, int | None]] = set()  # what one reading found damaged
        self._found: dict[str, Finding] = {}  # not marked yet
        if self._keys is not None:
            self._fetcher = ChunkFetcher(ctx.store, self._keys, lineage, CatalogLocator(ctx, lineage))

    def _open_keys(self) -> LineageKeys | None:
        """None once the lineage is closed: its last backup was deleted meanwhile."""
        with self._ctx.catalog.read() as conn:
            sealed = conn.execute(sa.select(t.lineage.c.sealed_keys).where(t.lineage.c.id == self._lineage)).scalar_one()
        return None if sealed is None else open_lineage_keys(self._ctx.root_key, self._lineage, sealed)

    def verify(self, part: Row[Any]) -> None:
        """Reads one part and marks what is damaged in it."""
        if self._keys is not None:
            self._read_part(part, self._keys)
            self._read_log(part, self._keys)
        self._settle(part)

    # Reading

    def _read_part(self, part: Row[Any], keys: LineageKeys) -> None:
        begin = self._tally.walked
        for second in (False, True):
            self._tally.walked = begin
            try:
                self._walk(part, keys)
            except (Damaged, ObjectMissing) as error:
                if second:
                    self._manifest_damaged(part, error)
                continue
            break
        self._tally.walked = begin + part.plain_bytes

    def _read_log(self, part: Row[Any], keys: LineageKeys) -> None:
        """What restores to later moments replay after the part; each piece is whole or of no use."""
        with self._ctx.catalog.read() as conn:
            here = sa.and_(t.part.c.lineage == self._lineage, t.part.c.seq == part.seq)
            place = conn.execute(sa.select(t.part.c.log_chain, t.part.c.log_order).where(here)).one()
            pieces = logs.pieces(conn, self._lineage, place.log_chain) if place.log_chain else []
        for piece in pieces:
            if piece.upto <= place.log_order or piece.name in self._objects or not self._reads(piece.name):
                continue
            self._objects.add(piece.name)
            self._job.check()
            for second in (False, True):
                try:
                    open_log(keys, self._lineage, piece.name, self._ctx.store.get(piece.name))
                except (Damaged, ObjectMissing):
                    if second:
                        self._found.setdefault(piece.name, Finding("log"))
                else:
                    self._tally.bytes += piece.bytes
                    break

    def _reads(self, name: str) -> bool:
        """Whether a piece of log is in the sample."""
        return self._choice is None or (int(name[-8:], 16) ^ self._choice.seed) % 10_000 < self._choice.percent * 100

    def _walk(self, part: Row[Any], keys: LineageKeys) -> None:
        """Everything that the part names. Raises Damaged and ObjectMissing where its manifest cannot be read on."""
        manifest = read_manifest(self._ctx, keys, self._lineage, part.seq)
        first = True
        for is_page, records in manifest.everything():
            self._job.progress("verifying", self._tally.walked, self._tally.plain_bytes)
            if is_page:  # the walk itself reads and proves pages
                self._tally.count(records)
            elif len(records):
                self._tally.walked += int(records.plains.sum(dtype=np.uint64))
                self._chunks(self._chosen(records, first))
                first = False

    def _chosen(self, records: Records, first: bool) -> Records:
        """What of the records is to be read: a sample always has the first stretch of a part."""
        if self._choice is not None:
            mask = self._choice(records)
            if first:
                mask |= (records.packs == records.packs[0]) & (records.numbers // _STRETCH == records.numbers[0] // _STRETCH)
            records = records[mask]
        return without(records, self._read)

    def _chunks(self, records: Records) -> None:
        for window in _windows(records):
            self._job.check()
            while len(window):
                try:
                    self._fetcher.fetch(window)
                    break
                except Damaged as error:
                    self._note(self._examine(error))
                    window = without(window, self._read)
            self._tally.count(window)
            self._note({pack: BitMap(numbers) for pack, numbers, _ in by_pack(window.packs, window.numbers)})

    def _note(self, chunks: Mapping[int, BitMap]) -> None:
        add_chunks(self._read, chunks)

    def _manifest_damaged(self, part: Row[Any], error: Damaged | ObjectMissing) -> None:
        """What the part names cannot all be known: every object that it may need is read instead (of a sample, none)."""
        chunks = self._examine(error) if isinstance(error, Damaged) else {}
        self._note(chunks)
        if not chunks:
            with self._ctx.catalog.read() as conn:
                name = conn.execute(sa.select(t.object_.c.name).where(t.object_.c.id == part.root)).scalar()
            if name is not None:
                self._found.setdefault(name, Finding("manifest"))
        if self._choice is None:
            for row in self._objects_up_to(part.seq):
                self._job.check()
                self._judge(row.id, row.name)

    def _objects_up_to(self, seq: int) -> Sequence[Any]:
        with self._ctx.catalog.read() as conn:
            return conn.execute(
                sa.select(t.object_.c.id, t.object_.c.name)
                .join(t.holding, t.holding.c.object == t.object_.c.id)
                .join(t.pack, sa.and_(t.pack.c.lineage == t.holding.c.lineage, t.pack.c.id == t.holding.c.pack))
                .where(t.object_.c.lineage == self._lineage, t.object_.c.state == "STORED", t.pack.c.born <= seq)
                .distinct()
                .order_by(t.object_.c.name)
            ).all()

    # Judging

    def _examine(self, error: Damaged) -> dict[int, BitMap]:
        """The chunks that are damaged for sure. None: another reading found nothing, so the caller reads again, and what that
        finds once more is believed. Raises the error where it cannot be said what is damaged."""
        doubt = (error.object_name, error.pack, error.number)
        sure = doubt in self._doubts
        self._doubts.add(doubt)
        with self._ctx.catalog.read() as conn:
            row = conn.execute(
                sa.select(t.object_.c.id, t.object_.c.name).where(
                    t.object_.c.name == error.object_name, t.object_.c.kind.in_(("pack", "rewrite"))
                )
            ).first()
            if isinstance(error, MissingChunk) or row is None:
                found = self._homeless(conn, error)
                if sure and not found:
                    raise error
                return found
            all_of_it = held_by(conn, row.id)
        found = self._judge(row.id, row.name, again=True)
        if sure and error.pack is not None and error.number is not None:
            self._add(row.name, "chunks", {error.pack: BitMap([error.number])}, found)
        elif sure:
            self._add(row.name, "missing" if isinstance(error, MissingObject) else "unreadable", all_of_it, found)
        return found

    def _judge(self, key: str, name: str, *, again: bool = False) -> dict[int, BitMap]:
        """Reads all of an object, once unless `again`; gives and keeps what is damaged."""
        found: dict[int, BitMap] = {}
        if (name in self._objects and not again) or self._keys is None:
            return found
        self._objects.add(name)
        try:
            checked = check_object(self._ctx.store, self._keys, self._lineage, key, name)
        except (Damaged, ObjectMissing) as error:
            missing = isinstance(error, ObjectMissing)
            with self._ctx.catalog.read() as conn:
                self._add(name, "missing" if missing else "unreadable", held_by(conn, key), found)
            return found
        if checked.damaged:
            self._add(name, "chunks", checked.damaged, found)
        return found

    def _homeless(self, conn: Connection, error: Damaged) -> dict[int, BitMap]:
        """Chunks of a pack that no object of the catalog holds; at least the one that was met."""
        found: dict[int, BitMap] = {}
        if error.pack is None or error.number is None:
            return found
        here = sa.and_(t.pack.c.lineage == self._lineage, t.pack.c.id == error.pack)
        lost = BitMap(range(conn.execute(sa.select(t.pack.c.chunks).where(here)).scalar() or 0))
        for held in holders(conn, self._lineage, [error.pack]):
            lost = lost - held.numbers if held.numbers is not None else BitMap()
        name = error.object_name or f"{self._lineage}/pack {error.pack}"
        self._add(name, "chunks", {error.pack: lost | BitMap([error.number])}, found)
        return found

    def _add(self, name: str, what: str, chunks: Mapping[int, BitMap], found: dict[int, BitMap]) -> None:
        self._found.setdefault(name, Finding(what)).add(what, chunks)
        add_chunks(found, chunks)

    # Marking

    def _settle(self, part: Row[Any]) -> None:
        """Marks what was found and still lives, and says what became of the part."""
        found, self._found = self._found, {}
        here = sa.and_(t.part.c.lineage == self._lineage, t.part.c.seq == part.seq)
        if not found:
            with self._ctx.catalog.read() as conn:
                state = conn.execute(sa.select(t.part.c.state).where(here)).scalar_one()
        else:
            with self._ctx.catalog.decide(self._job.guard, lineages=[self._lineage]) as conn:
                state = conn.execute(sa.select(t.part.c.state).where(here)).scalar_one()
                fresh = sum([self._mark(conn, name, one) for name, one in found.items()])
                if fresh:
                    damage.tell(conn, self._ctx, part.backup, self._job.id, fresh, sorted(found))
        (self._tally.verified if state == "COMPLETED" else self._tally.superseded).append(part.backup)

    def _mark(self, conn: Connection, name: str, finding: Finding) -> int:
        """One damaged object, under the lineage's lock; returns how many chunks became suspect by this."""
        if finding.what in ("manifest", "log"):
            stored = sa.and_(t.object_.c.name == name, t.object_.c.state == "STORED")
            row = conn.execute(sa.select(t.object_.c.id).where(stored)).first()
            if row is not None:
                touched = of_root(conn, row.id) if finding.what == "manifest" else going_by(conn, row.id)
                self._tally.tell(name, finding.what, 0, touched)
            return 0
        living, fresh = damage.mark(conn, self._lineage, name, finding)
        backups = needing(conn, self._lineage, living)
        if backups:
            self._tally.tell(name, finding.what, sum(len(numbers) for numbers in living.values()), backups)
        return fresh


def _windows(records: Records) -> Iterator[Records]:
    """Consecutive records of up to _WINDOW plain bytes, or one that is larger."""
    ends = np.cumsum(records.plains, dtype=np.int64)
    start = 0
    while start < len(records):
        base = int(ends[start - 1]) if start else 0
        end = max(int(np.searchsorted(ends, base + _WINDOW, side="right")), start + 1)
        yield records[start:end]
        start = end
