"""Taking a backup.

    create      one transaction: the backup, its plan of parts (all or nothing), each part at the head of its lineage, the job
    BackupJob   takes the part over (attempt) → probe → capture into packs → coverage proof → rows ahead → manifest → commit
    PartJob     the same for one node's part of a cluster, in that node's queue: BackupJob submits them and waits (gathering.py)
    stop        anyone may end a build by a decision; no timer does

Order of effects of the commit: packs STORED, death rows written ahead, the manifest STORED, then one transaction flips part and
backup to COMPLETED. What the parent holds open is frozen while the part is being built, so adopting from it cannot race with its
deletion; the proof that everything named is open or our own is checked before anything counts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import sqlalchemy as sa
from pyroaring import BitMap
from sqlalchemy import Connection, Row
from sqlalchemy.exc import NoResultFound

from strongroom.backups import errors, gathering, quotas, removal, staleness
from strongroom.backups.context import Context
from strongroom.backups.locating import read_manifest
from strongroom.backups.objects import close_lineage, plan, plan_grave, remove_lost, stored
from strongroom.backups.pacing import Pacer
from strongroom.backups.reading import parts_to_read
from strongroom.backups.registered import find_instance, lock_instance
from strongroom.backups.scope import WHOLE, tables_of
from strongroom.catalog import lifespans, logs, sweeping
from strongroom.catalog import tables as t
from strongroom.catalog.database import lock_part
from strongroom.catalog.lifespans import Dying, NotOurs
from strongroom.catalog.many import batches
from strongroom.catalog.space import bury, condemn
from strongroom.engines.base import ClusterEngine, EngineError, Node, Probe, Summary
from strongroom.engines.log import Mark, Recorder
from strongroom.jobs.port import Cancelled, JobLost, Running, TryAgain
from strongroom.notifications import outbox
from strongroom.repository.chunking import choose_chunk_average, choose_pack_target
from strongroom.repository.errors import Damaged, RepositoryError
from strongroom.repository.keys import LineageKeys, open_lineage_keys, seal_lineage_keys
from strongroom.repository.manifest import Manifest
from strongroom.repository.writer import PackSlot, PartWriter, unused
from strongroom.storage.base import ObjectExists, ObjectMissing, StoreError

ATTEMPTS = 3
"""Times that a build is tried when the store fails in a way that passes, or its worker dies."""

TRIES = 5
"""Times that a beginning is tried where deletes keep coming between."""

Note = Callable[[Connection], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller asks for; validated at the border."""

    name: str
    description: str = ""
    origin: str = "Manual"
    scope: str = WHOLE  # scope.py


def create(ctx: Context, project: str, instance: str, wanted: Wanted, note: Callable[[Connection, str], None]) -> tuple[str, str]:
    """Decides a new backup and returns (backup id, job id). Raises errors.NoSuchInstance, InstanceBusy, InstanceUnusable,
    QuotaReached."""
    nodes: Sequence[Node] | None = None
    for _try in range(TRIES):
        with ctx.catalog.read() as conn:
            row = find_instance(conn, project, instance)
            known = _open_lineages(conn, instance, wanted.scope)
        if nodes is None:
            nodes = _nodes(ctx, row, wanted.scope)
        here = {node.id: known.get(node.id) for node in nodes}
        for line in here.values():
            if line is not None:
                sweeping.finish_and_reopen(ctx.catalog, line)
        try:
            return _create(ctx, row, nodes, here, wanted, note)
        except (lifespans.NotSwept, _LineageMoved):
            continue
        except lifespans.AlreadyBuilding:
            break
    raise errors.InstanceBusy(f"another backup of instance {row.name} is being taken: try again when it has ended")


def _admit(instance: Row[Any], conn: Connection) -> None:
    """The project's quotas let one more backup in, and the instance stays registered."""
    quotas.require(conn, instance.project, "backup", "stored_bytes")
    lock_instance(conn, instance.project, instance.id)


class _LineageMoved(Exception):
    """The instance's open lineages are not those that were looked at: one was closed, or another one has begun."""


def _nodes(ctx: Context, instance: Row[Any], scope: str) -> Sequence[Node]:
    """The nodes that a backup needs a part of; one without id or address where there is one server."""
    engine = ctx.engines.get(instance.engine)
    if engine is None:  # rebuilt from manifests that cannot be read
        raise errors.InstanceUnusable(f"of instance {instance.name} nothing but its backups is known: register it anew")
    if not isinstance(engine, ClusterEngine):
        if scope != WHOLE:
            raise errors.BadScope(f"tables of {engine.name} cannot be backed up by themselves: take the whole instance")
        return [Node("", "")]
    try:
        return engine.nodes(ctx.target(instance))
    except EngineError as error:
        raise errors.InstanceUnusable(str(error)) from error


def _create(
    ctx: Context,
    instance: Row[Any],
    nodes: Sequence[Node],
    known: Mapping[str, str | None],
    wanted: Wanted,
    note: Callable[[Connection, str], None],
) -> tuple[str, str]:
    engine = ctx.engines[instance.engine]
    lineages = {node: line or ctx.ambient.hex_id() for node, line in known.items()}
    backup = ctx.ambient.hex_id() + "br" + engine.id_suffix
    with ctx.catalog.decide(partial(_admit, instance), lineages=[line for line in known.values() if line is not None]) as conn:
        found = _open_lineages(conn, instance.id, wanted.scope)
        if {node: found.get(node) for node in known} != known:
            raise _LineageMoved
        for node, line in known.items():
            if line is None:
                _begin_lineage(conn, ctx, instance, lineages[node], wanted.scope, node)
        now = ctx.ambient.now()
        conn.execute(
            t.backup.insert().values(
                id=backup, project=instance.project, instance=instance.id, instance_name=instance.name, engine=instance.engine,
                engine_version=instance.version, name=wanted.name, description=wanted.description, origin=wanted.origin,
                scope=wanted.scope, state="BUILDING", version=0, begin_at=now, plain_bytes=0,
            )
        )  # fmt: skip
        for lineage in sorted(lineages.values()):
            lifespans.begin(conn, lineage, backup)
        queues = {lineages[node.id]: gathering.node_queue(node) for node in nodes if node.id}
        args = {"backup": backup, "parts": queues} if queues else {"backup": backup}
        job = ctx.jobs.submit(
            conn, "backup", args, project=instance.project, instance=instance.id, backup=backup,
            serial=f"instance:{instance.id}", max_attempts=ATTEMPTS,
        )  # fmt: skip
        note(conn, backup)
    return backup, job


def _open_lineages(conn: Connection, instance: str, scope: str) -> dict[str, str]:
    """Node → lineage."""
    line = t.lineage.c
    rows = conn.execute(sa.select(line.node, line.id).where(line.instance == instance, line.scope == scope, line.state == "OPEN"))
    return {row.node: row.id for row in rows}


def _begin_lineage(conn: Connection, ctx: Context, instance: Row[Any], lineage: str, scope: str, node: str) -> None:
    """A new lineage: its keys are drawn now, their two objects are put by the first build before anything else."""
    keys = LineageKeys.create(ctx.ambient)
    conn.execute(
        t.lineage.insert().values(
            id=lineage, project=instance.project, instance=instance.id, scope=scope, node=node, state="OPEN", counter=0,
            version=0, chunk_average=0, pack_target=0, sealed_keys=seal_lineage_keys(ctx.root_key, lineage, keys),
        )
    )  # fmt: skip
    for _copy in range(2):
        plan(conn, ctx, lineage, "key")


def stop(ctx: Context, project: str, backup: str, note: Note) -> str:
    """Ends a build; returns the id of the job that removes what it wrote. Raises NoSuchBackup, BackupNotBuilding."""
    with ctx.catalog.read() as conn:
        row = conn.execute(sa.select(t.backup).where(t.backup.c.id == backup, t.backup.c.project == project)).first()
        if row is None or row.state in ("DELETING", "DELETED"):
            raise errors.NoSuchBackup(f"there is no backup {backup} in this project")
        lineages = _lineages(conn, backup)
    cancel = partial(_cancel_build, ctx, backup)
    with sweeping.decide_swept(ctx.catalog, first=cancel, backups=[backup], lineages=lineages) as conn:
        job = fail(ctx, conn, backup, "stopped by a user", stopped=True, shown=True)
        if job is None:
            raise errors.BackupNotBuilding(f"backup {backup} is not being built")
        note(conn)
    return job


def _cancel_build(ctx: Context, backup: str, conn: Connection) -> None:
    """Jobs are locked before backups and lineages."""
    building = sa.and_(t.job.c.backup == backup, t.job.c.kind.in_(("backup", "part")), t.job.c.state.in_(("QUEUED", "RUNNING")))
    for row in conn.execute(sa.select(t.job.c.id).where(building).order_by(t.job.c.id)).all():
        ctx.jobs.cancel(conn, row.id)


def fail(
    ctx: Context, conn: Connection, backup: str, reason: str, *, stopped: bool = False, shown: bool = False, asked: bool = False
) -> str | None:
    """The decision that a build has failed, for backups and lineages that are locked: its parts leave their chains, it owns
    nothing from here on. Returns the removal's job (in the project's list if `shown`), None if it is not being built.

    Receivers are told, unless it was `stopped` by somebody. `asked`: the store has no mark or manifest of its seqs; what a
    catalog of before may still put there is buried ahead."""
    row = conn.execute(sa.select(t.backup).where(t.backup.c.id == backup)).one()
    if row.state != "BUILDING":
        return None
    job: str | None = None
    room = sweeping.BATCH
    parts = conn.execute(
        sa.select(t.part).where(t.part.c.backup == backup, t.part.c.state != "RETIRED").order_by(t.part.c.lineage, t.part.c.seq)
    ).all()
    for part in parts:
        key = removal.of_lineage(part.lineage)
        gap = lifespans.leave(conn, part.lineage, part.seq)
        condemn(conn, _own_objects(conn, part.lineage, part.seq, ("manifest",)), key)
        if gap.before == 0 and gap.after is None:
            close_lineage(conn, ctx, part.lineage, key)
        elif part.attempt > 0 or asked:  # else nothing was put, and a catalog of before may own the seq
            plan_grave(conn, ctx, part.lineage, part.seq, part.attempt + 1, key)
        logs.bury(conn, part.lineage, key)
        room = sweeping.record(conn, part.lineage, "FAIL", backup, gap, key, room=room)
        job = removal.submit(ctx, conn, part.lineage, of=row if shown else None)
    conn.execute(
        sa.update(t.backup).where(t.backup.c.id == backup).values(state="FAILED", fail_reason=reason, end_at=ctx.ambient.now())
    )
    if not stopped:
        outbox.backup_failed(ctx, conn, row, reason)
    return job


class _Building:
    """What the jobs of a build have in common: whatever ends one for good ends the backup."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def _build(self, job: Running, backup: str, lineage: str) -> None:
        try:
            _Build(self._ctx, job, backup, lineage).run()
        except NotOurs:
            raise Cancelled("the build was stopped") from None
        except StoreError as error:
            if not error.permanent and job.attempts < ATTEMPTS:
                raise TryAgain(str(error)) from error
            self._fail(job, backup, f"the store failed: {error}")
        except EngineError as error:
            self._fail(job, backup, str(error))
        except (RepositoryError, lifespans.LifespanError, staleness.CatalogOutdated, OSError) as error:
            self._fail(job, backup, str(error))

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """The build leaves its chain; a stopped one has left already."""
        self._fail(job, str(job.args["backup"]), reason, ending=outcome)

    def _fail(self, job: Running, backup: str, reason: str, ending: str = "FAILED") -> None:
        ctx = self._ctx
        with ctx.catalog.read() as conn:
            lineages = _lineages(conn, backup)
        with sweeping.decide_swept(ctx.catalog, job.guard, backups=[backup], lineages=lineages) as conn:
            fail(ctx, conn, backup, reason, stopped=ending == "CANCELLED")
            self._follow(conn, job, backup)
            if ending == "FAILED":
                job.fail(conn, reason)

    def _follow(self, conn: Connection, job: Running, backup: str) -> None:
        """What a failure is followed by, in the transaction that decides it."""


class BackupJob(_Building):
    """The job `backup`: builds the part of a single server; of a cluster, sees to the jobs that build its nodes' parts."""

    def run(self, job: Running) -> Mapping[str, Any] | None:
        backup = str(job.args["backup"])
        if "parts" in job.args:
            done = gathering.gather(self._ctx, job, backup, job.args["parts"])
            with self._ctx.catalog.write(job.guard) as conn:
                self._follow(conn, job, backup)
            return done
        with self._ctx.catalog.read() as conn:
            (lineage,) = _lineages(conn, backup)
        self._build(job, backup, lineage)
        return None

    def _follow(self, conn: Connection, job: Running, backup: str) -> None:
        """What captures left on the nodes goes."""
        if "parts" in job.args:
            gathering.tidy_nodes(self._ctx, conn, backup, job.args["parts"])


class PartJob(_Building):
    """The job `part`: builds one node's part of a cluster's backup, on that node's host."""

    def run(self, job: Running) -> Mapping[str, Any] | None:
        self._build(job, str(job.args["backup"]), str(job.args["lineage"]))
        return None


class _Build:
    """One attempt at one part."""

    def __init__(self, ctx: Context, job: Running, backup: str, lineage: str) -> None:
        self._ctx, self._job = ctx, job
        with ctx.catalog.read() as conn:
            self._backup = conn.execute(sa.select(t.backup).where(t.backup.c.id == backup)).one()
            parts = parts_to_read(conn, backup)
            (part,) = (row for row in parts if row.lineage == lineage)
            self._plan = [(row.lineage, row.seq, row.node) for row in parts]
            self._instance = conn.execute(sa.select(t.instance).where(t.instance.c.id == self._backup.instance)).one()
            sealed = conn.execute(sa.select(t.lineage.c.sealed_keys).where(t.lineage.c.id == part.lineage)).scalar_one()
        if part.state != "BUILDING":
            raise NotOurs(f"part {part.seq} is {part.state}")
        self._lineage, self._seq, self._parent_seq = str(part.lineage), int(part.seq), int(part.parent)
        self._keys: LineageKeys = open_lineage_keys(ctx.root_key, self._lineage, sealed)
        self._attempt, self._begins = 0, part.attempt == 0
        self._engine = ctx.engines[self._instance.engine]
        self._target = replace(ctx.target(self._instance), node=part.node, tables=tables_of(self._backup.scope))
        self._scratch = ctx.scratch / f"{job.id}-{job.epoch}"
        self._pacer = Pacer(ctx, job, self._instance.id)
        self._warnings: list[str] = []
        self._since = ctx.ambient.monotonic()

    def run(self) -> None:
        """Raises what ends a build; see _Building."""
        staleness.require_owner(self._ctx)
        staleness.require_current(self._ctx, self._lineage)
        if self._begins:
            staleness.require_unended(self._ctx, self._lineage, self._seq, self._job.guard)
        self._take_over()
        self._put_keys()
        probe = self._engine.probe(self._target)
        average, pack_target = self._sizes(probe)
        self._scratch.mkdir(mode=0o700, parents=True)
        try:
            writer, parent = self._open_writer(average, pack_target)
            (self._scratch / "engine").mkdir()
            try:
                summary = self._engine.capture(self._target, writer, self._pacer, str(self._scratch / "engine"))
                self._seal(writer, parent, probe, summary)
            except BaseException:
                writer.abort()
                raise
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _open_writer(self, average: int, pack_target: int) -> tuple[PartWriter, Manifest | None]:
        """The writer, and the parent that it adopts from. A parent whose manifest is damaged is not adopted from: the backup is
        whole without it, only larger, and so are those after it."""
        try:
            parent = self._parent()
            return self._writer("index", parent, average, pack_target), parent
        except Damaged as error:
            self._warnings.append(f"nothing is shared with the backup before, whose manifest is damaged: {error}")
            return self._writer("fresh-index", None, average, pack_target), None

    def _writer(self, folder: str, parent: Manifest | None, average: int, pack_target: int) -> PartWriter:
        sink = _CatalogSink(self._ctx, self._job, self._lineage, self._seq, self._attempt)
        scratch = self._scratch / folder
        scratch.mkdir()
        with self._ctx.catalog.read() as conn:
            suspects = lifespans.suspects(conn, self._lineage)
        return PartWriter(
            keys=self._keys, lineage=self._lineage, seq=self._seq, ambient=self._ctx.ambient, chunk_average=average,
            pack_target=pack_target, sink=sink, parent=parent, suspects=suspects, scratch=scratch, control=self._job,
            compression=self._ctx.options.compression, passing=self._pacer.passed,
        )  # fmt: skip

    def _take_over(self) -> None:
        """Raises the attempt, which fences every earlier one, and throws away what those wrote."""
        ctx, key = self._ctx, removal.of_lineage(self._lineage)
        with ctx.catalog.own(self._job.guard, self._lineage, self._seq) as conn:
            row = conn.execute(
                sa.update(t.part)
                .where(t.part.c.lineage == self._lineage, t.part.c.seq == self._seq, t.part.c.state == "BUILDING")
                .values(attempt=t.part.c.attempt + 1)
                .returning(t.part.c.attempt)
            ).first()
            if row is None:
                raise NotOurs("the part left its chain")
            self._attempt = row.attempt
            if self._attempt > 1:
                condemn(conn, _own_objects(conn, self._lineage, self._seq, ("pack", "manifest"), "PLANNED"), key)
                condemn(conn, _own_objects(conn, self._lineage, self._seq, ("manifest",)), key)
                removal.submit(ctx, conn, self._lineage)
        while self._attempt > 1 and self._throw_away(key):
            pass

    def _throw_away(self, key: str) -> bool:
        """One batch of what earlier attempts wrote: packs (nobody shares them yet) and rows ahead."""
        with self._ctx.catalog.own(self._job.guard, self._lineage, self._seq) as conn:
            lifespans.require_attempt(conn, self._lineage, self._seq, self._attempt)
            packs = conn.execute(
                sa.select(t.pack)
                .where(t.pack.c.lineage == self._lineage, t.pack.c.born == self._seq, t.pack.c.attempt < self._attempt)
                .limit(sweeping.BATCH)
            ).all()
            bury(conn, self._lineage, [Dying(pack.id, self._seq, None, pack.bytes) for pack in packs], key)
            if packs:
                removal.submit(self._ctx, conn, self._lineage)
                return True
            return lifespans.forget_ahead(conn, self._lineage, self._seq, self._parent_seq, sweeping.BATCH) > 0

    def _put_keys(self) -> None:
        """The lineage's keys are in the store, twice, before anything that they seal."""
        with self._ctx.catalog.read() as conn:
            rows = conn.execute(
                sa.select(t.object_).where(
                    t.object_.c.lineage == self._lineage, t.object_.c.kind == "key", t.object_.c.state == "PLANNED"
                )
            ).all()
        for row in rows:
            data = seal_lineage_keys(self._ctx.root_key, self._lineage, self._keys)
            try:
                size = self._ctx.store.put_new(row.name, data)
            except ObjectExists:  # by an earlier attempt: its content counts, not its being there
                there = self._ctx.store.get(row.name)
                open_lineage_keys(self._ctx.root_key, self._lineage, there)
                size = len(there)
            with self._ctx.catalog.own(self._job.guard, self._lineage, self._seq) as conn:
                lifespans.require_attempt(conn, self._lineage, self._seq, self._attempt)
                stored(conn, row.id, size)

    def _sizes(self, probe: Probe) -> tuple[int, int]:
        """(chunk average, pack target): chosen at the lineage's first backup and kept."""
        options = self._ctx.options
        average = options.chunk_average or choose_chunk_average(probe.size, probe.records)
        target = options.pack_target or choose_pack_target(probe.size)
        with self._ctx.catalog.write(self._job.guard) as conn:
            here = t.lineage.c.id == self._lineage
            conn.execute(sa.update(t.backup).where(t.backup.c.id == self._backup.id).values(engine_version=probe.version))
            conn.execute(
                sa.update(t.lineage).where(here, t.lineage.c.chunk_average == 0).values(chunk_average=average, pack_target=target)
            )
            row = conn.execute(sa.select(t.lineage.c.chunk_average, t.lineage.c.pack_target).where(here)).one()
        return int(row.chunk_average), int(row.pack_target)

    def _parent(self) -> Manifest | None:
        """The parent's manifest, if its root is still there: once read, its pages stay readable, since the open set is frozen.

        A parent that was deleted since leaves nothing to read, and one that a rebuild found damaged names what is not there:
        then nothing is adopted, and what is open dies with the commit. Raises Damaged.
        """
        with self._ctx.catalog.read() as conn:
            state = conn.execute(
                sa.select(t.backup.c.state)
                .join(t.part, t.part.c.backup == t.backup.c.id)
                .where(t.part.c.lineage == self._lineage, t.part.c.seq == self._parent_seq)
            ).scalar()
        if state in (None, "FAILED"):
            return None
        with suppress(ObjectMissing):
            return read_manifest(self._ctx, self._keys, self._lineage, self._parent_seq)
        return None

    def _seal(self, writer: PartWriter, parent: Manifest | None, probe: Probe, summary: Summary) -> None:
        sealed = writer.seal()
        with self._ctx.catalog.read() as conn:
            opened = lifespans.open_numbers(conn, self._lineage)
            own = _own_packs(conn, self._lineage, self._seq, self._attempt)
            suspects = lifespans.suspects(conn, self._lineage)
        left = lifespans.prove_coverage(sealed.used, opened, own, suspects)
        dead = self._weigh(left, parent, sealed.used)
        for some in batches(dead, sweeping.BATCH):
            with self._ctx.catalog.own(self._job.guard, self._lineage, self._seq) as conn:
                lifespans.require_attempt(conn, self._lineage, self._seq, self._attempt)
                lifespans.write_ahead(conn, self._lineage, self._seq, self._attempt, self._parent_seq, some)
        root = sealed.root(
            project=self._backup.project, instance=self._backup.instance, attempt=self._attempt, backup=self._backup.id,
            parent=self._parent_seq, plan=self._plan, facts=self._facts(probe),
            engine_facts=summary.facts,
        )  # fmt: skip
        manifest = self._put_manifest(root)
        told = {
            "entries": sealed.entries, "plain_bytes": sealed.plain_bytes, "stored_bytes": sealed.stored_bytes,
            "adopted_bytes": sealed.adopted_bytes, "seconds": round(self._ctx.ambient.monotonic() - self._since, 3),
            "warnings": [*self._warnings, *probe.warnings, *summary.warnings],
        }  # fmt: skip
        while not self._commit(manifest, sealed, own, told, self._mark(summary), self._agreed(summary.facts)):
            self._job.check()

    def _agreed(self, facts: Mapping[str, Any]) -> frozenset[str] | None:
        """The lineages of the other parts that are completed, which this one can be restored together with; None where there is
        one part. Raises EngineError."""
        if not isinstance(self._engine, ClusterEngine):
            return None
        with self._ctx.catalog.read() as conn:
            done = self._completed(conn)
        others = [read_manifest(self._ctx, self._ctx.keys(one), one, seq).engine_facts for one, seq in done.items()]
        self._engine.require_agreement([facts, *others])
        return frozenset(done)

    def _completed(self, conn: Connection) -> dict[str, int]:
        p = t.part.c
        here = (p.backup == self._backup.id, p.lineage != self._lineage, p.state == "COMPLETED")
        return {row.lineage: row.seq for row in conn.execute(sa.select(p.lineage, p.seq).where(*here).order_by(p.lineage))}

    def _mark(self, summary: Summary) -> Mark | None:
        """Where in its source's log the part stands; of a whole instance on one server alone."""
        if self._target.node or self._target.tables or not isinstance(self._engine, Recorder):
            return None
        return self._engine.mark_of(summary.facts)

    def _weigh(
        self, left: Mapping[int, BitMap], parent: Manifest | None, used: Mapping[int, BitMap]
    ) -> list[tuple[int, BitMap, int]]:
        """The sealed bytes of the open numbers that the part does not name, by the parent's manifest or, without it, by packs."""
        if parent is not None:
            sizes = unused(parent, used)
            if {pack: numbers for pack, (numbers, _) in sizes.items()} != dict(left):
                raise lifespans.NotCovered("the parent's manifest and the catalog differ about what is open")
            return [(pack, numbers, size) for pack, (numbers, size) in sizes.items()]
        with self._ctx.catalog.read() as conn:
            try:
                return [(pack, numbers, lifespans.open_bytes_of(conn, self._lineage, pack)) for pack, numbers in left.items()]
            except NoResultFound:  # while it is being built what was open when it began stays
                raise NotOurs(f"part {self._seq} of lineage {self._lineage} has left its chain") from None

    def _facts(self, probe: Probe) -> dict[str, Any]:
        """What a rebuild needs to know of the backup."""
        row = self._backup
        return {
            "name": row.name, "description": row.description, "origin": row.origin, "scope": row.scope,
            "begin_at": row.begin_at, "engine": row.engine, "engine_version": probe.version,
            "instance_name": row.instance_name, "address": self._instance.address, "mode": probe.mode,
        }  # fmt: skip

    def _put_manifest(self, root: bytes) -> str:
        with self._ctx.catalog.own(self._job.guard, self._lineage, self._seq) as conn:
            lifespans.require_attempt(conn, self._lineage, self._seq, self._attempt)
            key, name = plan(conn, self._ctx, self._lineage, "manifest", seq=self._seq, attempt=self._attempt)
        size = self._ctx.store.put_new(name, root)
        mark_stored(self._ctx, self._job, self._lineage, self._seq, self._attempt, key, name, size, live=0)
        return key

    def _commit(
        self,
        manifest: str,
        sealed: Any,
        own: Mapping[int, int],
        told: Mapping[str, Any],
        mark: Mark | None,
        agreed: frozenset[str] | None,
    ) -> bool:
        """False, and nothing was done, if a part that it was not compared with has been completed meanwhile."""
        ctx = self._ctx
        guard, backup = self._job.guard, self._backup.id
        with sweeping.decide_swept(ctx.catalog, guard, backups=[backup], lineages=[self._lineage]) as conn:
            if agreed is not None and not self._completed(conn).keys() <= agreed:
                return False
            lock_part(conn, self._lineage, self._seq)
            self._check_proof(conn, manifest, sealed.used, own)
            self._drop_unfilled(conn)
            gap = lifespans.commit(conn, self._lineage, self._seq, self._attempt)
            conn.execute(
                sa.update(t.part)
                .where(t.part.c.lineage == self._lineage, t.part.c.seq == self._seq)
                .values(
                    root=manifest,
                    entries=sealed.entries,
                    plain_bytes=sealed.plain_bytes,
                    stored_bytes=sealed.stored_bytes,
                    adopted_bytes=sealed.adopted_bytes,
                )
            )
            key = removal.of_lineage(self._lineage)
            if gap is not None:
                sweeping.record(conn, self._lineage, "COMMIT", self._backup.id, gap, key)
            if mark is not None:
                logs.stand(conn, self._lineage, self._seq, mark.stream, mark.order, mark.at)
            if logs.bury(conn, self._lineage, key) or gap is not None:
                removal.submit(ctx, conn, self._lineage)
            self._complete(conn)
            self._job.finish(conn, told)
            return True

    def _drop_unfilled(self, conn: Connection) -> None:
        """Packs that were announced and not needed: their rows go, their objects were never put."""
        packs = conn.execute(
            sa.select(t.pack.c.id).where(
                t.pack.c.lineage == self._lineage, t.pack.c.born == self._seq, t.pack.c.stored.is_(False)
            )
        ).all()
        if packs:
            key = removal.of_lineage(self._lineage)
            bury(conn, self._lineage, [Dying(pack.id, self._seq, None, 0) for pack in packs], key)
            removal.submit(self._ctx, conn, self._lineage)

    def _check_proof(self, conn: Connection, manifest: str, used: Mapping[int, BitMap], own: Mapping[int, int]) -> None:
        """What the proof rests on still holds under the locks: attempt, STORED, SUSPECT. The open set is frozen."""
        lifespans.require_attempt(conn, self._lineage, self._seq, self._attempt)
        state = conn.execute(sa.select(t.object_.c.state).where(t.object_.c.id == manifest)).scalar()
        if state != "STORED" or _own_packs(conn, self._lineage, self._seq, self._attempt) != dict(own):
            raise NotOurs("what this attempt stored was condemned")
        for pack, numbers in lifespans.suspects(conn, self._lineage).items():
            if pack in used and used[pack] & numbers:
                raise lifespans.NotCovered(f"chunks of pack {pack} were found damaged meanwhile: take the backup again")

    def _complete(self, conn: Connection) -> None:
        """The last part to be committed completes the backup; its row is locked, so there is one that is last."""
        ctx = self._ctx
        mine = t.part.c.backup == self._backup.id
        if conn.execute(sa.select(t.part.c.seq).where(mine, t.part.c.state != "COMPLETED")).first() is None:
            plain = conn.execute(sa.select(sa.func.sum(t.part.c.plain_bytes)).where(mine)).scalar_one()
            conn.execute(
                sa.update(t.backup)
                .where(t.backup.c.id == self._backup.id)
                .values(state="COMPLETED", end_at=ctx.ambient.now(), plain_bytes=int(plain))
            )


class _CatalogSink:
    """Packs of one attempt: PLANNED before they are filled, STORED once their put is durable."""

    def __init__(self, ctx: Context, job: Running, lineage: str, seq: int, attempt: int) -> None:
        self._ctx, self._job, self._lineage, self._seq, self._attempt = ctx, job, lineage, seq, attempt

    def open(self) -> PackSlot:
        pack = int(self._ctx.ambient.hex_id()[:16], 16) >> 1
        with self._ctx.catalog.own(self._job.guard, self._lineage, self._seq) as conn:
            lifespans.require_attempt(conn, self._lineage, self._seq, self._attempt)
            key, name = plan(conn, self._ctx, self._lineage, "pack", seq=self._seq, attempt=self._attempt)
            conn.execute(
                t.pack.insert().values(
                    lineage=self._lineage,
                    id=pack,
                    born=self._seq,
                    attempt=self._attempt,
                    stored=False,
                    chunks=0,
                    bytes=0,
                    gone_bytes=0,
                    moved=False,
                )
            )
            conn.execute(t.holding.insert().values(object=key, lineage=self._lineage, pack=pack, numbers=None, bytes=0))
        return PackSlot(pack, key, name)

    def put(self, slot: PackSlot, pieces: Sequence[bytes | memoryview], sizes: Sequence[int]) -> None:
        size = self._ctx.store.put_new(slot.name, pieces)
        sealed = sum(sizes)

        def also(conn: Connection) -> None:
            conn.execute(
                sa.update(t.pack)
                .where(t.pack.c.lineage == self._lineage, t.pack.c.id == slot.pack)
                .values(stored=True, chunks=len(sizes), bytes=sealed)
            )
            conn.execute(sa.update(t.holding).where(t.holding.c.object == slot.object_id).values(bytes=sealed))

        mark_stored(
            self._ctx, self._job, self._lineage, self._seq, self._attempt, slot.object_id, slot.name, size, len(sizes), also
        )


def mark_stored(
    ctx: Context,
    job: Running,
    lineage: str,
    seq: int,
    attempt: int,
    key: str,
    name: str,
    size: int,
    live: int,
    also: Callable[[Connection], None] = lambda _conn: None,
) -> None:
    """STORED, in a transaction that proves job and attempt. Who has lost them removes what they put, if its row says so."""
    try:
        with ctx.catalog.own(job.guard, lineage, seq) as conn:
            lifespans.require_attempt(conn, lineage, seq, attempt)
            if not stored(conn, key, size, live):
                raise NotOurs(f"object {name} was condemned")
            also(conn)
    except (JobLost, NotOurs):
        remove_lost(ctx, key, name)
        raise


def _lineages(conn: Connection, backup: str) -> list[str]:
    rows = conn.execute(sa.select(t.part.c.lineage).where(t.part.c.backup == backup).distinct().order_by(t.part.c.lineage))
    return [row.lineage for row in rows]


def _own_objects(conn: Connection, lineage: str, seq: int, kinds: Sequence[str], state: str | None = None) -> list[str]:
    query = sa.select(t.object_.c.id).where(t.object_.c.lineage == lineage, t.object_.c.seq == seq, t.object_.c.kind.in_(kinds))
    if state is not None:
        query = query.where(t.object_.c.state == state)
    return [row.id for row in conn.execute(query)]


def _own_packs(conn: Connection, lineage: str, seq: int, attempt: int) -> dict[int, int]:
    """STORED packs of an attempt, as pack → chunks in it."""
    rows = conn.execute(
        sa.select(t.pack.c.id, t.pack.c.chunks).where(
            t.pack.c.lineage == lineage, t.pack.c.born == seq, t.pack.c.attempt == attempt, t.pack.c.stored
        )
    )
    return {row.id: row.chunks for row in rows}
