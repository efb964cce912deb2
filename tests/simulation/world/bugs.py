"""Bugs to be planted: what others shipped, and what this design invites. Each is a patch of the shipped code, for a test only.

`orderly=False` takes away the check of what goes before what, so that such a bug must be found by what comes of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from pyroaring import BitMap

from simulation.world.processes import SimCatalog, _BoundedCatalog
from simulation.world.trouble import Trouble
from strongroom.backups import (
    creation,
    deletion,
    errors,
    incarnation,
    objects,
    pending,
    quarantining,
    reading,
    rebuilding,
    reconciling,
    removal,
    rewriting,
    staleness,
)
from strongroom.backups.locating import read_manifest
from strongroom.catalog import lifespans, space, sweeping
from strongroom.catalog import tables as t
from strongroom.jobs.claiming import Claims
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import Cancelled
from strongroom.jobs.running import OwnedJob
from strongroom.repository import names, writer
from strongroom.storage.base import ObjectExists, StoreError, StoreUnavailable

Plant = Callable[[pytest.MonkeyPatch], None]
_SIMS = SimCatalog.made
PLANTS: dict[str, tuple[Plant, int, dict[str, Any]]] = {}
"""Name → (how it is planted, within how many seeds it must be found, the flavour of the histories)."""


FOUND = {
    "files_are_adopted_from_the_newest_manifest_unproven": 72,
    "a_rewriter_switches_a_pack_that_died_meanwhile": 70,
    "a_rewriter_forgets_its_planned_object": 107,
    "a_manifests_page_goes_with_the_parent": 52,
    "a_restored_catalog_reuses_a_seq": 23,
}
"""Where the search for a bug takes long: the seed that showed it last. It is looked at first, and if other code has moved the
bug elsewhere the search begins at 0."""


def plant(seeds: int, **flavour: Any) -> Callable[[Plant], Plant]:
    """Registers a bug under its function's name. `flavour`: as for `simulate`, with "_" for "."."""

    def register(how: Plant) -> Plant:
        PLANTS[how.__name__] = how, seeds, {name.replace("swarm_", "swarm."): value for name, value in flavour.items()}
        return how

    return register


# ---- what others shipped -------------------------------------------------------------------------------------------------


@plant(30)
def a_sweep_trusts_an_empty_listing(patch: pytest.MonkeyPatch) -> None:
    """Medusa: packs whose part has no manifest in the listing are swept."""
    carry_out = removal.carry_out

    def sweeping_too(ctx: Any, job: Any, lineages: Sequence[str], key: str) -> None:
        carry_out(ctx, job, lineages, key)
        for lineage in lineages:
            seqs = {parsed.seq for stat in ctx.store.list(f"{lineage}/manifest/") if (parsed := names.parse(stat.name))}
            for stat in list(ctx.store.list(f"{lineage}/pack/")):
                parsed = names.parse(stat.name)
                if parsed is not None and parsed.seq not in seqs:
                    ctx.store.delete(stat.name)

    patch.setattr(removal, "carry_out", sweeping_too)


@plant(30)
def the_record_is_removed_though_objects_remain(patch: pytest.MonkeyPatch) -> None:
    """Trove: the deletion is done in a `finally`, whatever the store said."""
    remove = removal.remove_condemned

    def careless(ctx: Any, job: Any, key: str) -> None:
        with suppress(StoreError):
            remove(ctx, job, key)

    patch.setattr(removal, "remove_condemned", careless)
    decide = deletion.DeleteJob._finish

    def finish(self: Any, job: Any, backup: str) -> None:
        with self._ctx.catalog.write() as conn:
            here = sa.and_(t.object_.c.removal == removal.of_delete(backup), t.object_.c.state == "CONDEMNED")
            conn.execute(sa.update(t.object_).where(here).values(removal="nobody"))
        decide(self, job, backup)

    patch.setattr(deletion.DeleteJob, "_finish", finish)


@plant(30, most_trouble=600, most_steps=2000)  # who does not end is told sooner; whole histories take 1,000
def a_job_in_progress_after_a_crash_is_skipped(patch: pytest.MonkeyPatch) -> None:
    """Velero: a job found RUNNING is taken for somebody else's, for ever."""
    claim = Claims.claim

    def only_queued(self: Claims, queues: Any, kinds: Any, *, take_over: bool, but: Any = ()) -> Any:
        return claim(self, queues, kinds, take_over=False, but=but)

    patch.setattr(Claims, "claim", only_queued)


@plant(120)
def a_paused_worker_goes_on(patch: pytest.MonkeyPatch) -> None:
    """kopia: nothing proves that the job, or the part's attempt, is still one's own."""
    patch.setattr(OwnedJob, "guard", lambda self, conn: None)
    patch.setattr(OwnedJob, "check", lambda self: None)
    patch.setattr(lifespans, "require_attempt", lambda conn, lineage, seq, attempt: None)
    patch.setattr(creation._Build, "_check_proof", lambda self, conn, manifest, used, own: None)


@plant(40, swarm_rot=0.0)
def a_chunk_in_two_packs_is_freed_with_one(patch: pytest.MonkeyPatch) -> None:
    """rustic: what was dropped and stored anew later lies in two packs; freeing goes by the content and takes both."""
    places: dict[bytes, dict[tuple[int, int], int]] = defaultdict(dict)  # content → (pack, number) → sealed bytes
    contents: dict[tuple[int, int], bytes] = {}
    name_own, adopt, bury = writer._Sealing._name_own, writer._Sealing.adopt, space.bury

    def note(records: Any) -> None:
        columns = (records.packs.tolist(), records.numbers.tolist(), records.sealeds.tolist())
        for digest, pack, number, sealed in zip(records.hashes, *columns, strict=True):
            places[digest.tobytes()][pack, number] = sealed
            contents[pack, number] = digest.tobytes()

    def noting_own(self: Any, records: Any) -> None:
        note(records)
        name_own(self, records)

    def noting_adopted(self: Any, records: Any) -> None:
        note(records)
        adopt(self, records)

    def twins(conn: Any, lineage: str, dead: Sequence[lifespans.Dying]) -> Iterator[lifespans.Dying]:
        packs = {row.id: row for row in conn.execute(sa.select(t.pack).where(t.pack.c.lineage == lineage))}
        whole = {row.pack for row in dead if row.numbers is None}
        for row in dead:
            numbers = range(packs[row.pack].chunks) if row.numbers is None else row.numbers
            for one in ((row.pack, number) for number in numbers):
                for (pack, number), sealed in places[contents.get(one, b"")].items():
                    there = pack in packs and number not in lifespans.numbers_of(packs[pack].gone)
                    if (pack, number) != one and there and pack not in whole:
                        yield lifespans.Dying(pack, packs[pack].born, BitMap([number]), sealed)

    def by_content(conn: Any, lineage: str, dead: Iterable[lifespans.Dying], *rest: Any) -> Any:
        rows = list(dead)
        return bury(conn, lineage, [*rows, *twins(conn, lineage, rows)], *rest)

    patch.setattr(writer._Sealing, "_name_own", noting_own)
    patch.setattr(writer._Sealing, "adopt", noting_adopted)
    patch.setattr(space, "bury", by_content)


@plant(40)
def a_pack_in_two_objects_goes_with_one(patch: pytest.MonkeyPatch) -> None:
    """rustic, of objects: whoever gives up one of the objects that hold a pack takes the pack from the others too."""
    give_up = space.give_up

    def with_others(conn: Any, objects: Sequence[str], removal: str) -> None:
        packs = sa.select(t.holding.c.pack).where(t.holding.c.object.in_(objects))
        conn.execute(sa.delete(t.holding).where(t.holding.c.pack.in_(packs)))
        give_up(conn, objects, removal)

    for module in (space, rewriting):
        patch.setattr(module, "give_up", with_others)


# ---- what this design invites ----------------------------------------------------------------------------------------------


@plant(60)
def a_planned_pack_is_committed(patch: pytest.MonkeyPatch) -> None:
    """A put that timed out counts as done."""
    put = creation._CatalogSink.put

    def hopeful(self: Any, slot: Any, pieces: Any, sizes: Any) -> None:
        try:
            put(self, slot, pieces, sizes)
        except StoreUnavailable:
            size = sum(len(piece) for piece in pieces)

            def also(conn: sa.Connection) -> None:
                conn.execute(
                    sa.update(t.pack).where(t.pack.c.id == slot.pack).values(stored=True, chunks=len(sizes), bytes=sum(sizes))
                )
                conn.execute(sa.update(t.holding).where(t.holding.c.object == slot.object_id).values(bytes=sum(sizes)))

            creation.mark_stored(
                self._ctx, self._job, self._lineage, self._seq, self._attempt, slot.object_id, slot.name, size, len(sizes), also
            )

    patch.setattr(creation._CatalogSink, "put", hopeful)


@plant(100, swarm_rot=0.02, ending=0)
def nothing_proves_coverage_at_commit(patch: pytest.MonkeyPatch) -> None:
    """What the manifest names is compared with nothing."""

    def unproven(used: Mapping[int, Any], opened: Mapping[int, Any], own: object, suspect: object) -> dict[int, Any]:
        left = ((key, numbers - used[key] if key in used else numbers) for key, numbers in opened.items())
        return {key: numbers for key, numbers in left if numbers}

    patch.setattr(lifespans, "prove_coverage", unproven)
    patch.setattr(creation._Build, "_check_proof", lambda self, conn, manifest, used, own: None)


def _newest(patch: pytest.MonkeyPatch) -> None:
    def parent(self: Any) -> Any:
        with self._ctx.catalog.read() as conn:
            mine = sa.and_(t.part.c.lineage == self._lineage, t.part.c.state == "COMPLETED")
            seq = conn.execute(sa.select(sa.func.max(t.part.c.seq)).where(mine)).scalar()
        return None if seq is None else read_manifest(self._ctx, self._keys, self._lineage, seq)

    patch.setattr(creation._Build, "_parent", parent)


@plant(150)
def files_are_adopted_from_the_newest_manifest(patch: pytest.MonkeyPatch) -> None:
    """Not from the parent's: the proofs refuse such a build, which should never be built."""
    _newest(patch)


@plant(400, deletes_much=True, patient=False, ending=0)
def files_are_adopted_from_the_newest_manifest_unproven(patch: pytest.MonkeyPatch) -> None:
    """The same without the proofs: data is lost."""
    _newest(patch)
    nothing_proves_coverage_at_commit(patch)
    patch.setattr(creation._Build, "_weigh", _weigh_by_packs)


def _weigh_by_packs(self: Any, left: Mapping[int, Any], parent: object, used: object) -> list[tuple[int, Any, int]]:
    with self._ctx.catalog.read() as conn:
        return [(pack, numbers, lifespans.open_bytes_of(conn, self._lineage, pack)) for pack, numbers in left.items()]


@plant(150)
def a_build_begins_on_an_unswept_lineage(patch: pytest.MonkeyPatch) -> None:
    """Nobody finishes the earlier sweep first."""
    for module in (lifespans,):
        patch.setattr(module, "require_swept", lambda conn, lineage: None)
    patch.setattr(sweeping, "finish", lambda catalog, lineage, guard=None: None)


@plant(60)
def reopening_is_left_out(patch: pytest.MonkeyPatch) -> None:
    """A head was deleted: what it had dropped stays closed."""
    patch.setattr(lifespans, "reopen", lambda conn, lineage, limit: 0)
    patch.setattr(sweeping, "finish_and_reopen", lambda catalog, lineage, guard=None: sweeping.finish(catalog, lineage, guard))


@plant(60)
def a_manifests_page_goes_with_the_parent(patch: pytest.MonkeyPatch) -> None:
    """Pages that are shared are not named."""
    emit = writer._Sealing._emit

    def unnamed(self: Any, page: bytes) -> Any:
        adopt = self.adopt
        self.adopt = lambda records: None
        try:
            return emit(self, page)
        finally:
            self.adopt = adopt

    patch.setattr(writer._Sealing, "_emit", unnamed)


@plant(60, ending=3)
def a_catalog_that_is_older_than_the_store_goes_unnoticed(patch: pytest.MonkeyPatch) -> None:
    """Nothing compares the store with the catalog."""
    patch.setattr(staleness, "require_current", lambda ctx, lineage: None)
    patch.setattr(staleness, "require_unended", lambda ctx, lineage, seq, guard=None: None)


@plant(20, ending=0, swarm_death=0.01)
def the_catalogs_last_transaction_is_lost(patch: pytest.MonkeyPatch) -> None:
    """A commit is not on the disk when it returns: where a process dies the machine does, and all of them begin anew from a
    catalog that is one transaction older than the store."""
    write, die = _BoundedCatalog.write, Trouble._die
    before: dict[Any, bytes] = {}

    @contextmanager
    def remembering(self: Any, guard: Any = None) -> Iterator[Any]:
        found = next(sim for sim in _SIMS if sim.catalog is self)
        state = found.raw.serialize()
        with write(self, guard) as conn:
            yield conn
        before[found] = state

    def lose(self: Any, process: Any) -> None:
        world = self._world
        if process.sim in before:
            process.sim.raw.deserialize(before[process.sim])
            process.sim.catalog.commits += 1
            for other in list(world.processes):
                if other is not process and other.alive and other.kind != "checker":
                    other.alive = False
                    world.replace(other)
        die(self, process)

    patch.setattr(_BoundedCatalog, "write", remembering)
    patch.setattr(Trouble, "_die", lose)


class _TakesForDone:
    """A store whose puts have all been done already."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put_new(self, name: str, data: Any) -> int:
        return sum(len(piece) for piece in data)


@plant(100, swarm_death=0.02, swarm_refusal=0.03, ending=0)
def exists_is_success_on_a_resumed_attempt(patch: pytest.MonkeyPatch) -> None:
    """A resumed attempt fills the slots that the one before had planned, and takes what is there for its own."""
    opened, put = creation._CatalogSink.open, creation._CatalogSink.put
    own = creation._own_objects

    def keep_planned(conn: Any, lineage: str, seq: int, kinds: Sequence[str], state: str | None = None) -> list[str]:
        return [] if state == "PLANNED" else own(conn, lineage, seq, kinds, state)

    def again(self: Any) -> Any:
        with self._ctx.catalog.own(self._job.guard, self._lineage, self._seq) as conn:
            row = conn.execute(
                sa.select(t.pack.c.id, t.object_.c.id.label("object"), t.object_.c.name)
                .join(t.holding, sa.and_(t.holding.c.lineage == t.pack.c.lineage, t.holding.c.pack == t.pack.c.id))
                .join(t.object_, t.object_.c.id == t.holding.c.object)
                .where(
                    t.pack.c.lineage == self._lineage, t.pack.c.born == self._seq, t.pack.c.stored.is_(False),
                    t.pack.c.attempt < self._attempt, t.object_.c.state == "PLANNED",
                )
                .limit(1)
            ).first()  # fmt: skip
            if row is not None:
                conn.execute(sa.update(t.pack).where(t.pack.c.id == row.id).values(attempt=self._attempt))
                return writer.PackSlot(row.id, row.object, row.name)
        return opened(self)

    def done(self: Any, slot: Any, pieces: Any, sizes: Any) -> None:
        try:
            put(self, slot, pieces, sizes)
        except ObjectExists:
            real = self._ctx
            self._ctx = replace(real, store=_TakesForDone(real.store))
            try:
                put(self, slot, pieces, sizes)
            finally:
                self._ctx = real

    def throw_stored_away(self: Any, key: str) -> bool:
        with self._ctx.catalog.own(self._job.guard, self._lineage, self._seq) as conn:
            packs = conn.execute(
                sa.select(t.pack).where(
                    t.pack.c.lineage == self._lineage,
                    t.pack.c.born == self._seq,
                    t.pack.c.attempt < self._attempt,
                    t.pack.c.stored,
                )
            ).all()
            space.bury(conn, self._lineage, [lifespans.Dying(pack.id, self._seq, None, pack.bytes) for pack in packs], key)
            lifespans.forget_ahead(conn, self._lineage, self._seq, self._parent_seq, 10_000)
        return False

    patch.setattr(creation, "_own_objects", keep_planned)
    patch.setattr(creation._CatalogSink, "open", again)
    patch.setattr(creation._CatalogSink, "put", done)
    patch.setattr(creation._Build, "_throw_away", throw_stored_away)


@plant(30)
def the_manifest_goes_after_the_packs(patch: pytest.MonkeyPatch) -> None:
    """Packs first, then the grave and the manifest."""
    patch.setattr(removal, "_ORDER", (("pack", "rewrite"), ("manifest",), ("grave",), ("key",)))
    put_marks = objects.put_marks
    patch.setattr(removal, "put_marks", lambda ctx, lineage, guard: None)
    remove = removal.remove_condemned

    def marks_later(ctx: Any, job: Any, key: str, *order: Any) -> None:
        remove(ctx, job, key, *order)
        for lineage in _marked(ctx):
            put_marks(ctx, lineage, job.guard)

    patch.setattr(removal, "remove_condemned", marks_later)


@plant(30)
def there_are_no_graves(patch: pytest.MonkeyPatch) -> None:
    """Nothing in the store says that a part is gone."""
    for module in (creation, deletion):
        patch.setattr(module, "plan_grave", lambda conn, ctx, lineage, seq, attempt, key: None)


@plant(60, orderly=False, ending=1, late_of="/manifest/", swarm_late=0.05, deletes_much=True)
def a_late_manifest_without_a_grave_comes_back(patch: pytest.MonkeyPatch) -> None:
    """No graves; a manifest lands once more after its removal, and a rebuild takes it for a backup."""
    there_are_no_graves(patch)


@plant(60, ending=1)
def a_rebuild_ignores_an_unreadable_manifest(patch: pytest.MonkeyPatch) -> None:
    """A damaged manifest counts as no backup."""
    parts = rebuilding._Lineage._parts

    def readable(self: Any, keys: Any, buried: Any) -> Any:
        return [part for part in parts(self, keys, buried) if part.named is not None]

    patch.setattr(rebuilding._Lineage, "_parts", readable)


@plant(60)
def replies_are_counted_in_the_receipt(patch: pytest.MonkeyPatch) -> None:
    """The bytes are counted when the store has answered, not when the rows go."""
    remove, book = removal._remove, removal._book

    def counted(ctx: Any, job: Any, batch: list[Any], key: str, *rest: Any) -> None:
        for row in batch:
            if ctx.store.stat(row.name) is not None:
                with ctx.catalog.write(job.guard) as conn:
                    book(ctx, conn, key, 1, row.bytes)
        remove(ctx, job, batch, key, *rest)

    patch.setattr(removal, "_remove", counted)
    patch.setattr(removal, "_book", lambda ctx, conn, key, objects, size: None)


@plant(60)
def the_key_goes_before_the_lineage_is_closed(patch: pytest.MonkeyPatch) -> None:
    """Keys first, the closing mark last."""
    patch.setattr(removal, "_ORDER", (("key",), ("manifest",), ("pack", "rewrite"), ("grave",)))
    put_marks, remove = objects.put_marks, removal.remove_condemned

    def after_the_keys(ctx: Any, lineage: str, guard: Any) -> None:
        keys = sa.and_(t.object_.c.lineage == lineage, t.object_.c.kind == "key", t.object_.c.state == "CONDEMNED")
        with ctx.catalog.read() as conn:
            left = conn.execute(sa.select(t.object_.c.id).where(keys)).first()
        if left is None:
            put_marks(ctx, lineage, guard)

    def marks_later(ctx: Any, job: Any, key: str, *order: Any) -> None:
        remove(ctx, job, key, *order)
        for lineage in _marked(ctx):
            put_marks(ctx, lineage, job.guard)

    patch.setattr(removal, "put_marks", after_the_keys)
    patch.setattr(removal, "remove_condemned", marks_later)


def _marked(ctx: Any) -> list[str]:
    with ctx.catalog.read() as conn:
        marks = sa.and_(t.object_.c.kind.in_(("grave", "closed")), t.object_.c.state == "PLANNED")
        return [row.lineage for row in conn.execute(sa.select(t.object_.c.lineage).where(marks).distinct())]


@plant(150)
def a_suspect_chunk_is_shared(patch: pytest.MonkeyPatch) -> None:
    """What was found damaged is adopted like anything else."""
    patch.setattr(lifespans, "suspects", lambda conn, lineage: {})


@plant(250, deletes_much=True, patient=False, ending=0, swarm_pause=0.03)
def a_rewriter_switches_a_pack_that_died_meanwhile(patch: pytest.MonkeyPatch) -> None:
    """Nothing is looked at again after the copy."""

    def anyway(conn: sa.Connection, key: str, size: int, live: int = 0) -> bool:
        conn.execute(sa.update(t.object_).where(t.object_.c.id == key).values(state="STORED", bytes=size, live=live))
        return True

    def as_if_all_lived(conn: sa.Connection, lineage: str, new: Any) -> bool:
        live = sum(len(numbers) for numbers in new.group.numbers.values())
        conn.execute(sa.update(t.object_).where(t.object_.c.id == new.id).values(live=live, removal=None))
        return True

    patch.setattr(rewriting, "stored", anyway)
    patch.setattr(rewriting, "_take_over", as_if_all_lived)


@plant(300, swarm_death=0.02, deletes_much=True, ending=0)
def a_rewriter_forgets_its_planned_object(patch: pytest.MonkeyPatch) -> None:
    """A run that resumes lets its choices go and not its objects."""

    def let_go(ctx: Any, job: Any, key: str) -> None:
        mine = removal.of_rewrite(key.removeprefix("delete:"))
        with ctx.catalog.write(job.guard) as conn:
            conn.execute(sa.update(t.object_).where(t.object_.c.rewriting == mine).values(rewriting=None))

    patch.setattr(rewriting, "abandon", let_go)


@plant(150, swarm_pause=0.03, ending=2)
def a_lost_writer_removes_without_reading_its_row(patch: pytest.MonkeyPatch) -> None:
    """What it put goes, whatever the catalog says of it."""

    def remove(ctx: Any, key: str, name: str) -> None:
        ctx.store.delete(name)

    for module in (objects, creation, rewriting):
        patch.setattr(module, "remove_lost", remove)


@plant(60)
def a_deleted_parent_takes_its_packs_along_during_a_build(patch: pytest.MonkeyPatch) -> None:
    """Medusa: what a running backup has found and not yet committed is not looked at."""
    patch.setattr(lifespans, "_IN_CHAIN", t.part.c.state == sa.literal_column("'COMPLETED'"))


@plant(150, ending=3)
def a_restored_catalog_reuses_a_seq(patch: pytest.MonkeyPatch) -> None:
    """A build that the lost catalog completed is failed, or begun again under the same seq: found here, and mended since."""
    for module in (staleness, incarnation):
        patch.setattr(module, "require_unended", lambda ctx, lineage, seq, guard=None: None)


@plant(60, ending=4)
def a_worker_of_the_catalog_before_goes_on(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks whose the store is before a batch that removes: found here for marks, and mended since."""
    for module in (staleness, incarnation):
        patch.setattr(module, "require_owner", lambda ctx: None)


@plant(30)
def a_hold_is_ignored(patch: pytest.MonkeyPatch) -> None:
    """A held backup may be deleted."""
    _pass_over(patch, errors.BackupHeld)


@plant(60)
def a_restore_protects_nothing(patch: pytest.MonkeyPatch) -> None:
    """A backup may be deleted while a restore reads it."""
    _pass_over(patch, errors.BackupRestoring)


def _pass_over(patch: pytest.MonkeyPatch, kind: type[errors.Refused]) -> None:
    """A delete that should be refused for this is not."""
    refusal = deletion._refusal

    def lenient(*args: Any) -> Any:
        found = refusal(*args)
        return None if isinstance(found, kind) else found

    patch.setattr(deletion, "_refusal", lenient)


@plant(30)
def a_restore_reads_another_backup(patch: pytest.MonkeyPatch) -> None:
    """The manifest of the part before, where there is one."""

    def other(ctx: Any, keys: Any, lineage: str, seq: int) -> Any:
        with ctx.catalog.read() as conn:
            before = lifespans.neighbours(conn, lineage, seq).before
        return read_manifest(ctx, keys, lineage, before or seq)

    patch.setattr(reading, "read_manifest", other)


@plant(60, deletes_much=True, patient=False, ending=0)
def a_promise_is_not_compared_with_what_is_locked(patch: pytest.MonkeyPatch) -> None:
    """What the snapshot showed is promised, wherever the lineage has moved since."""
    patch.setattr(deletion, "_version", lambda conn, lineages, ahead=0: "the same")
    patch.setattr(deletion, "_version_of", lambda seen, ids: "the same")


@plant(30)
def what_a_delete_puts_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Graves cost nothing, says the receipt."""
    patch.setattr(objects, "count_put", lambda conn, removal, size: None)


@plant(60, swarm_refusal=0.02, swarm_late=0.03, ending=0)
def a_put_that_may_still_come_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A planned object's row goes with its removal, whatever the network still holds."""
    forget = removal._forget

    def wholly(ctx: Any, conn: Any, batch: list[Any], key: str) -> None:
        forget(ctx, conn, batch, key)
        conn.execute(sa.delete(t.object_).where(t.object_.c.id.in_([row.id for row in batch]), t.object_.c.state == "LATE"))

    patch.setattr(removal, "_forget", wholly)


@plant(60, ending=4)  # workers of the catalog before put what the new one does not know
def a_reconciliation_removes_what_it_does_not_know(patch: pytest.MonkeyPatch) -> None:
    """What has no row is garbage."""
    judge = reconciling._Reconciliation._judge_unknown

    def remove(self: Any, name: str, why: str) -> None:
        judge(self, name, why)
        self._ctx.store.delete(name)

    patch.setattr(reconciling._Reconciliation, "_judge_unknown", remove)


@plant(60, often="quarantine")
def what_has_a_row_is_moved_aside(patch: pytest.MonkeyPatch) -> None:
    """An operator names an object, and that is enough."""
    patch.setattr(quarantining, "_require_no_row", lambda ctx, name: None)


# ---- deletions that wait ------------------------------------------------------------------------------------------------------


@plant(60, waits=True, calls_left=24)
def the_windows_end_asks_for_no_hold(patch: pytest.MonkeyPatch) -> None:
    """What was found out when the deletion was asked for counts when it is decided."""
    refusal = deletion._refusal
    patch.setattr(deletion, "_refusal", lambda conn, row, *rest: None if row.state == "PENDING" else refusal(conn, row, *rest))


@plant(60, waits=True, calls_left=24)
def a_deletion_that_was_called_back_is_decided(patch: pytest.MonkeyPatch) -> None:
    """The job goes on as it was submitted, and needs no mark."""
    patch.setattr(LeasedJobs, "revoke", lambda self, conn, id, reason: None)
    honest = pending.due

    def unasked(conn: Any, backup: str, job: str, now: float) -> Any:
        try:
            return honest(conn, backup, job, now)
        except Cancelled:
            return SimpleNamespace(thorough=False, asked_by=None, asked_name=None, asked_at=now, lapses=None)

    patch.setattr(pending, "due", unasked)


@plant(60, waits=True, calls_left=24)
def a_call_back_after_the_decision_brings_the_row_back(patch: pytest.MonkeyPatch) -> None:
    """As long as anything of the backup is there it can be called back."""
    find = pending._find

    def anything(conn: Any, project: str, backup: str, job: str | None = None) -> Any:
        try:
            return find(conn, project, backup, job)
        except errors.DeletionDecided:
            row = conn.execute(sa.select(t.deletion.c.job).where(t.deletion.c.backup == backup)).one()
            return SimpleNamespace(job=row.job, before="COMPLETED", lapses=None, until=0.0)

    patch.setattr(pending, "_find", anything)


@plant(60, waits=True, calls_left=24)
def who_asked_approves(patch: pytest.MonkeyPatch) -> None:
    """Any word will do."""
    find = pending._find

    def anybodys(*args: Any) -> Any:
        return SimpleNamespace(**{**find(*args)._mapping, "asked_by": "nobody"})

    patch.setattr(pending, "_find", anybodys)
