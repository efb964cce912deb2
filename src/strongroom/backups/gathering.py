"""A backup of a cluster: one part a node, each built by a job in its node's queue, and this, which sees to them.

gather      submits the parts' jobs once it is the instance's turn, and waits: the last part to be committed completes the backup,
            the first to fail for good fails it, by its own decision. Nothing is decided here.
TidyJob     in a node's queue after every end of a backup: what captures left there goes, but for what the next one adopts from
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups.context import Context
from strongroom.backups.locating import read_manifest
from strongroom.catalog import tables as t
from strongroom.engines.base import ClusterEngine, EngineError
from strongroom.jobs.port import DuplicateJob, JobFailed, Running
from strongroom.repository.errors import RepositoryError
from strongroom.storage.base import ObjectMissing

ATTEMPTS = 3
"""Times that a part is tried when the store fails in a way that passes, or its worker dies."""

_POLL = 0.2  # seconds

log = logging.getLogger("strongroom.backups")


def gather(ctx: Context, job: Running, backup: str, queues: Mapping[str, str]) -> Mapping[str, Any]:
    """Returns the backup's sums once it is complete; `queues` is lineage → queue. Raises JobFailed, and what check() raises."""
    since = ctx.ambient.monotonic()
    with ctx.catalog.write(job.guard) as conn:
        row = conn.execute(sa.select(t.backup).where(t.backup.c.id == backup)).one()
        for part in conn.execute(sa.select(t.part).where(t.part.c.backup == backup, t.part.c.state == "BUILDING")).all():
            with suppress(DuplicateJob):  # by this job, before its worker died
                ctx.jobs.submit(
                    conn, "part", {"backup": backup, "lineage": part.lineage}, instance=row.instance, backup=backup,
                    queue=queues[part.lineage], serial=f"part:{part.lineage}", unique_key=f"part:{part.lineage}:{part.seq}",
                    max_attempts=ATTEMPTS,
                )  # fmt: skip
    while True:
        with ctx.catalog.read() as conn:
            row = conn.execute(sa.select(t.backup).where(t.backup.c.id == backup)).one()
            parts = conn.execute(sa.select(t.part).where(t.part.c.backup == backup)).all()
            ids = conn.execute(sa.select(t.job.c.id).where(t.job.c.backup == backup, t.job.c.kind == "part")).scalars().all()
            jobs = [one for one in (ctx.jobs.get(conn, key) for key in ids) if one is not None]
        if row.state == "FAILED":
            _cancel_waiting(ctx, job, backup)
            raise JobFailed(row.fail_reason or "it was stopped")
        if row.state != "BUILDING":
            return {
                "entries": sum(part.entries for part in parts), "plain_bytes": sum(part.plain_bytes for part in parts),
                "stored_bytes": sum(part.stored_bytes for part in parts),
                "adopted_bytes": sum(part.adopted_bytes for part in parts),
                "parts": len(parts), "seconds": round(ctx.ambient.monotonic() - since, 3),
                "warnings": [text for one in jobs for text in (one.result or {}).get("warnings", ())],
            }  # fmt: skip
        job.progress("parts", sum(part.state == "COMPLETED" for part in parts), len(parts))
        ctx.ambient.sleep(_POLL)


def _cancel_waiting(ctx: Context, job: Running, backup: str) -> None:
    """Parts of a failed backup whose worker has not begun yet need not wait for it."""
    waiting = sa.and_(t.job.c.backup == backup, t.job.c.kind == "part", t.job.c.state == "QUEUED")
    with ctx.catalog.write(job.guard) as conn:
        for row in conn.execute(sa.select(t.job.c.id).where(waiting).order_by(t.job.c.id)).all():
            ctx.jobs.cancel(conn, row.id)


def tidy_nodes(ctx: Context, conn: Connection, backup: str, queues: Mapping[str, str]) -> None:
    """Submits a TidyJob for each of a backup's nodes; `queues` is lineage → queue."""
    instance = conn.execute(sa.select(t.backup.c.instance).where(t.backup.c.id == backup)).scalar_one()
    for lineage, queue in sorted(queues.items()):
        with suppress(DuplicateJob):
            # Never beside a capture of the same history.
            ctx.jobs.submit(
                conn, "tidy", {"lineage": lineage}, instance=instance, queue=queue, serial=f"part:{lineage}",
                unique_key=f"tidy:{lineage}", max_attempts=ATTEMPTS,
            )  # fmt: skip


class TidyJob:
    """The job `tidy`. That it fails harms nobody: the next one does the same, and so does the next capture."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        ctx, lineage = self._ctx, str(job.args["lineage"])
        with ctx.catalog.read() as conn:
            row = conn.execute(
                sa.select(t.instance, t.lineage.c.node)
                .join(t.lineage, t.lineage.c.instance == t.instance.c.id)
                .where(t.lineage.c.id == lineage)
            ).one()
        engine = ctx.engines.get(row.engine)
        if not isinstance(engine, ClusterEngine) or row.state != "REGISTERED":
            return {}
        histories: dict[str, Mapping[str, Any] | None] = dict.fromkeys(_ended(ctx, lineage))
        histories[lineage] = _facts_of_head(ctx, lineage)
        job.check()
        try:
            engine.tidy(replace(ctx.target(row), node=row.node), histories)
        except (EngineError, OSError) as error:
            raise JobFailed(f"what captures left on node {row.node} was not removed: {error}") from error
        return {}

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Nothing hangs on it."""
        log.warning("job %s (tidy): %s: %s", job.id, outcome, reason)


def _ended(ctx: Context, lineage: str) -> Sequence[str]:
    """The lineages that the same source had before: their last backups were deleted when nobody was on the node."""
    this = t.lineage.alias("this")
    same = sa.and_(
        this.c.id == lineage,
        t.lineage.c.instance == this.c.instance,
        t.lineage.c.scope == this.c.scope,
        t.lineage.c.node == this.c.node,
    )
    with ctx.catalog.read() as conn:
        ids = conn.execute(sa.select(t.lineage.c.id).select_from(t.lineage.join(this, same)).where(t.lineage.c.state == "CLOSED"))
        return list(ids.scalars())


def _facts_of_head(ctx: Context, lineage: str) -> Mapping[str, Any] | None:
    """The engine's facts of the newest completed part of the lineage; None where none can be read. Raises StoreError."""
    with ctx.catalog.read() as conn:
        seq = _newest(conn, lineage)
    if seq is None:
        return None
    with suppress(RepositoryError, ObjectMissing):
        return read_manifest(ctx, ctx.keys(lineage), lineage, seq).engine_facts
    return None


def _newest(conn: Connection, lineage: str) -> int | None:
    row = conn.execute(
        sa.select(t.part.c.seq, t.lineage.c.state)
        .join(t.lineage, t.lineage.c.id == t.part.c.lineage)
        .where(t.part.c.lineage == lineage, t.part.c.state == "COMPLETED", t.lineage.c.state == "OPEN")
        .order_by(t.part.c.seq.desc())
        .limit(1)
    ).first()
    return None if row is None else int(row.seq)
