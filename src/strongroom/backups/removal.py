"""Carrying out a decision: the only code that removes objects. It removes what a committed decision condemned, nothing else.

Order of effects: sweep → graves and closing marks put → manifests removed → packs and log → a closed lineage's graves → its keys.
On a store without room for the marks, which are some hundred bytes, the packs go first: they are dead by the decision, whatever
the marks say. (Should the catalog be lost just then, a rebuild shows the backup as damaged, for a person to delete again.)

Each batch: remove, look that each is gone, then one guarded transaction takes the rows away and counts the bytes. A crash
between any two leaves rows that the next run goes on from; a missing object counts as removed. A deletion's counts come
from rows, never from the store's replies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups import staleness
from strongroom.backups.context import Context
from strongroom.backups.objects import put_marks
from strongroom.catalog import sweeping
from strongroom.catalog import tables as t
from strongroom.jobs.port import JobFailed, Running, TryAgain
from strongroom.repository.errors import RepositoryError
from strongroom.storage.base import StoreError, StoreFull, StoreUnavailable

BATCH = 500
"""Objects that one batch removes."""

_CHUNKS = ("pack", "rewrite", "log")
_ORDER = (("manifest",), _CHUNKS, ("grave",), ("key",))
"""A grave stays until what it buries is gone; a closed lineage's keys go when nothing is left that they open."""


def of_delete(backup: str) -> str:
    """The removal that belongs to a backup's deletion, whichever job carries it out."""
    return f"delete:{backup}"


def of_rewrite(backup: str) -> str:
    """The objects that the rewriting of a backup's deletion replaced or gave up: booked as reclaimed."""
    return f"rewrite:{backup}"


def of_lineage(lineage: str) -> str:
    """The removal of what builds, take-overs and rewrites of a lineage leave: nobody's receipt."""
    return f"lineage:{lineage}"


def submit(ctx: Context, conn: Connection, lineage: str, of: Row[Any] | None = None) -> str:
    """Queues the removal of what this transaction condemns under `of_lineage`; whatever condemns calls this with it.

    `of`, a backup's row, puts the job into its project's list: it is what a stop answers with.
    """
    seen = {} if of is None else {"project": of.project, "instance": of.instance, "backup": of.id}
    return ctx.jobs.submit(conn, "remove", {"lineage": lineage}, serial=f"remove:{lineage}", **seen)


def carry_out(ctx: Context, job: Running, lineages: Sequence[str], removal: str) -> None:
    """Does all of a removal, as described at the head of this module; resumable and idempotent."""
    for lineage in lineages:
        staleness.require_current(ctx, lineage)
        sweeping.finish(ctx.catalog, lineage, job.guard)
    try:
        for lineage in lineages:
            put_marks(ctx, lineage, job.guard)
    except StoreFull:
        remove_condemned(ctx, job, removal, (_CHUNKS,))
        for lineage in lineages:
            put_marks(ctx, lineage, job.guard)
    remove_condemned(ctx, job, removal)


def remove_condemned(ctx: Context, job: Running, removal: str, order: Sequence[Sequence[str]] = _ORDER) -> None:
    """Removes the condemned objects of a removal, in batches, kinds one after the other.

    What condemned them, or took out the backup that they belonged to, planned the grave or the closing mark in the same
    transaction or one before, maybe while this ran: these are put before each batch. So they are before what rewriting replaced:
    of what lives there is another copy, but not of what another deletion has let die. Not where `order` says that room has to be
    made first, nor where there is none and rewriting's leftovers would make it.
    """
    marked, rewriting = order is _ORDER, removal.startswith("rewrite:")
    done = 0
    for kinds in order:
        while batch := _condemned(ctx, removal, kinds):
            job.progress("removing objects", done)
            for lineage in sorted({row.lineage for row in batch} if marked else ()):
                with suppress(StoreFull) if rewriting else nullcontext():
                    put_marks(ctx, lineage, job.guard)
            _remove(ctx, job, batch, removal)
            done += len(batch)


class RemoveJob:
    """The job `remove`: what a failed build, a take-over or an ended build left behind."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        lineage = str(job.args["lineage"])
        try:
            carry_out(self._ctx, job, [lineage], of_lineage(lineage))
        except (StoreError, RepositoryError, staleness.CatalogOutdated) as error:
            raise ending(error) from error
        return {}

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Nothing to decide: what is condemned stays condemned, and reconcile or the next removal takes it."""


def ending(error: StoreError | RepositoryError | staleness.CatalogOutdated) -> JobFailed | TryAgain:
    """How a job ends after this error: what will pass is tried again for as long as it takes."""
    return JobFailed(str(error)) if error.permanent else TryAgain(str(error))


def require_gone(ctx: Context, wanted: Iterable[str]) -> None:
    """Looks that what was removed is gone. Raises StoreUnavailable if something is there still."""
    left = [name for name in wanted if ctx.store.stat(name) is not None]
    if left:
        raise StoreUnavailable(
            f"{len(left)} objects are still there after their removal, first {left[0]}: is the store read-only?"
        )


def _condemned(ctx: Context, removal: str, kinds: Sequence[str]) -> list[Row[Any]]:
    with ctx.catalog.read() as conn:
        query = sa.select(t.object_).where(
            t.object_.c.removal == removal, t.object_.c.state == "CONDEMNED", t.object_.c.kind.in_(kinds)
        )
        return list(conn.execute(query.order_by(t.object_.c.name).limit(BATCH)).all())


def _remove(ctx: Context, job: Running, batch: list[Row[Any]], removal: str) -> None:
    staleness.require_owner(ctx)
    wanted = [row.name for row in batch]
    ctx.store.delete_many(wanted)
    require_gone(ctx, wanted)
    with ctx.catalog.write(job.guard) as conn:
        _forget(ctx, conn, batch, removal)


def _forget(ctx: Context, conn: Connection, batch: list[Row[Any]], removal: str) -> None:
    ids = [row.id for row in batch]
    here = sa.and_(t.object_.c.id.in_(ids), t.object_.c.state == "CONDEMNED")
    gone = conn.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(t.object_.c.bytes), 0)).where(here, t.object_.c.bytes > 0)
    ).one()
    conn.execute(sa.delete(t.holding).where(t.holding.c.object.in_(ids)))
    conn.execute(sa.update(t.object_).where(here, t.object_.c.late).values(state="LATE", bytes=0, live=0, dead_bytes=0))
    conn.execute(sa.delete(t.object_).where(here, t.object_.c.late.is_(False)))
    lineages = {row.lineage for row in batch if row.kind == "key"}
    if lineages:
        keys = sa.and_(t.object_.c.kind == "key", t.object_.c.state != "LATE", t.object_.c.lineage == t.lineage.c.id)
        last = ~sa.exists().where(keys)  # a rotation of the root key removes those of before, and others are there
        conn.execute(sa.update(t.lineage).where(t.lineage.c.id.in_(lineages), last).values(sealed_keys=None))
    _book(ctx, conn, removal, objects=gone[0], size=gone[1])


def _book(ctx: Context, conn: Connection, removal: str, objects: int, size: int) -> None:
    """Counts objects that are gone, in the transaction that forgets them."""
    owner, _, backup = removal.partition(":")
    if owner == "delete":
        hidden = size if ctx.store.keeps_deleted_bytes() else 0
        values = {
            "freed": t.deletion.c.freed + size - hidden,
            "hidden": t.deletion.c.hidden + hidden,
            "removed_objects": t.deletion.c.removed_objects + objects,
        }
    elif owner == "rewrite":
        values = {"rewrite_dropped": t.deletion.c.rewrite_dropped + size}
    else:
        return
    conn.execute(sa.update(t.deletion).where(t.deletion.c.backup == backup).values(**values))
