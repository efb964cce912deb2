"""Restoring a backup into a registered instance of the same engine.

A restore protects its backup by being a queued or running job, submitted and read under the backup's lock: a delete that comes
later is refused, one that came first leaves nothing to restore. There is no counter that could leak.

A restore replaces what its target holds, so it must have been told to: by `overwrite`, or by naming the instance that the backup
is of, which is what a recovery means in the contract. Any other target must be empty.

Order of effects: none while the target is surveyed (version, rights, room, emptiness) → the job's row says `begun` → the engine's
own order. However a restore fails, the job's result says what the target holds now (`target_state`).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups import errors
from strongroom.backups.context import Context
from strongroom.backups.damage import damage_in, note_damage
from strongroom.backups.gathering import node_queue
from strongroom.backups.reading import parts_to_read, reading
from strongroom.backups.registered import find_instance, lock_instance
from strongroom.backups.versions import version_key
from strongroom.catalog import tables as t
from strongroom.engines.base import (
    ClusterEngine,
    Engine,
    EngineError,
    Ground,
    Summary,
    Surveyor,
    Target,
    target_state,
)
from strongroom.jobs.port import Cancelled, Draining, JobFailed, Running, TryAgain
from strongroom.repository import names
from strongroom.repository.errors import RepositoryError
from strongroom.storage.base import StoreError

log = logging.getLogger("strongroom.backups")

ATTEMPTS = 3
"""Times that a restore is tried when the store fails in a way that passes, or its worker dies."""


UNCHANGED = "as it was: nothing was changed there"


def restore(
    ctx: Context,
    project: str,
    backup: str,
    instance: str,
    note: Callable[[Connection], None],
    overwrite: bool | None = None,
) -> str:
    """Decides a restore and returns its job's id. Raises errors.NoSuchBackup, NoSuchInstance, NotRestorable.

    `overwrite`: whether data in the instance may be replaced; None: if it is the instance that the backup is of.
    """
    with ctx.catalog.read() as conn:
        if conn.execute(sa.select(t.backup.c.id).where(t.backup.c.id == backup, t.backup.c.project == project)).first() is None:
            raise errors.NoSuchBackup(f"there is no backup {backup} in this project")
        found = find_instance(conn, project, instance)
    queue = _queue(ctx, found)
    guard = partial(lock_instance, project=project, instance=instance)
    with ctx.catalog.decide(guard, backups=[backup]) as conn:
        target = find_instance(conn, project, instance)
        row = conn.execute(sa.select(t.backup).where(t.backup.c.id == backup)).one()
        if row.state in ("DELETING", "DELETED"):
            raise errors.NoSuchBackup(f"there is no backup {backup} in this project")
        refuse_misfit(row, target)
        may = row.instance == instance if overwrite is None else overwrite
        args = {"backup": backup, "instance": instance, "overwrite": may}
        job = ctx.jobs.submit(
            conn, "restore", args, project=project, instance=instance, backup=backup,
            queue=queue, serial=f"instance:{instance}", max_attempts=ATTEMPTS,
        )  # fmt: skip
        note(conn)
    return job


def _queue(ctx: Context, target: Row[Any]) -> str:
    """Where the restore must run: a cluster's, on the host of one of its nodes."""
    engine = ctx.engines.get(target.engine)
    if not isinstance(engine, ClusterEngine):
        return "default"
    try:
        return node_queue(engine.nodes(ctx.target(target))[0])
    except EngineError as error:
        raise errors.NotRestorable(str(error)) from error


def refuse_misfit(backup: Row[Any], target: Row[Any]) -> None:
    """Raises errors.NotRestorable unless the backup can go into the target: completed, same engine, version not lower."""
    if backup.state != "COMPLETED":
        raise errors.NotRestorable(f"backup {backup.id} is {backup.state}, not COMPLETED")
    if backup.engine != target.engine:
        raise errors.NotRestorable(f"the backup is of {backup.engine}, instance {target.name} is {target.engine}")
    if version_key(target.version) < version_key(backup.engine_version):
        raise errors.NotRestorable(
            f"the backup is of {backup.engine} {backup.engine_version}, instance {target.name} runs the older {target.version}"
        )


class RestoreJob:
    """The job `restore`: leftovers of an earlier try ended → the target probed → everything read once → the target changed."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        ctx = self._ctx
        backup, instance, parts = self._rows(job)
        engine, target = ctx.engines[instance.engine], ctx.target(instance)
        scratch = ctx.scratch / f"{job.id}-{job.epoch}"
        scratch.mkdir(mode=0o700, parents=True)
        since = ctx.ambient.monotonic()
        try:
            if job.epoch > 1:
                engine.recover(target)
            summary, warnings = self._restore(job, instance, parts, str(scratch))
        except Draining:
            end_leftovers(engine, target)
            raise
        except Cancelled as error:
            end_leftovers(engine, target)
            raise Cancelled(told(error), failed_state(job, error)) from error
        except StoreError as error:
            end_leftovers(engine, target)
            if not error.permanent and job.attempts < ATTEMPTS:
                raise TryAgain(str(error)) from error
            raise JobFailed(f"the store failed: {told(error)}", failed_state(job, error)) from error
        except (EngineError, RepositoryError, OSError) as error:
            end_leftovers(engine, target)
            self._note_damage(error)
            raise JobFailed(told(error), failed_state(job, error)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return {
            "backup": backup.id, "entries": summary.entries, "bytes": summary.bytes,
            "seconds": round(ctx.ambient.monotonic() - since, 3), "warnings": [*warnings, *summary.warnings],
        }  # fmt: skip

    def _restore(
        self, job: Running, instance: Row[Any], parts: Sequence[Row[Any]], scratch: str
    ) -> tuple[Summary, Sequence[str]]:
        """What the engine says of its restore, and what was warned of before. Raises NotEmpty."""
        ctx, engine, target = self._ctx, self._ctx.engines[instance.engine], self._ctx.target(instance)
        with reading(ctx, parts) as (source, facts):
            ground = Ground(None)
            if not job.args.get("begun"):
                job.progress("looking at the target", 0)
                ground = survey(engine, target, facts, sum(part.plain_bytes for part in parts))
                if ground.holds is not None and not job.args.get("overwrite", True):
                    raise NotEmpty(instance.name, ground.holds)
                begin(ctx, job)
            return engine.restore(target, source, facts, job, scratch), ground.warnings

    def _note_damage(self, error: Exception) -> None:
        """What the restore found damaged is suspect from now on, so that the next backup stores it anew."""
        name = damage_in(error)
        parsed = None if name is None else names.parse(name)
        if name is not None and parsed is not None and parsed.lineage is not None:
            with suppress(StoreError):
                note_damage(self._ctx, parsed.lineage, name)

    def _rows(self, job: Running) -> tuple[Row[Any], Row[Any], Sequence[Row[Any]]]:
        with self._ctx.catalog.read() as conn:
            backup = conn.execute(sa.select(t.backup).where(t.backup.c.id == job.args["backup"])).one()
            instance = conn.execute(sa.select(t.instance).where(t.instance.c.id == job.args["instance"])).one()
            parts = parts_to_read(conn, backup.id)
        if instance.state != "REGISTERED":
            raise JobFailed(f"instance {instance.name} is not registered any more")
        return backup, instance, parts

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Ends what the restore left in the target; nothing in the catalog hangs on it."""
        del outcome, reason
        if job.attempts == 0 and job.epoch == 1:
            return  # cancelled before it ran
        _, instance, _ = self._rows(job)
        end_leftovers(self._ctx.engines[instance.engine], self._ctx.target(instance))


class NotEmpty(EngineError):
    """The target holds data, and nobody has said that it may be replaced. Nothing was changed."""

    permanent = True

    def __init__(self, name: str, holds: str) -> None:
        super().__init__(
            f"instance {name} holds {holds}, which a restore would replace: empty it, or restore "
            "with overwrite (the command line's --overwrite)"
        )


def survey(engine: Engine, target: Target, facts: Mapping[str, Any], size: int) -> Ground:
    """Looks at a target. Raises EngineError where a restore could not succeed."""
    if isinstance(engine, Surveyor):
        return engine.survey(target, facts, size)
    probe = engine.probe(target)
    return Ground(f"some {probe.size} bytes" if probe.size else None, probe.warnings)


def begin(ctx: Context, job: Running) -> None:
    """Durable before the first change, so that the run after a crash does not take this one's data for somebody's."""
    with ctx.catalog.write(job.guard) as conn:
        args = json.dumps({**job.args, "begun": True})
        conn.execute(sa.update(t.job).where(t.job.c.id == job.id).values(args=args))


def failed_state(job: Running, error: BaseException) -> Mapping[str, Any]:
    """What programs are told of a restore that did not succeed."""
    told = target_state(error)
    if told is None:
        told = UNCHANGED
        if job.args.get("begun"):
            told = "not changed by this try; an earlier one of this job, which was interrupted, may have changed it"
    return {"target_state": told}


def end_leftovers(engine: Engine, target: Target) -> None:
    """Ends what the restore left in the target. That this fails must not hide why the restore did."""
    try:
        engine.recover(target)
    except EngineError as error:
        log.warning("what a restore left in %s could not be ended: %s", target.address, error)


def told(error: Exception) -> str:
    """The error with what the adapter noted on it: what state the target is in."""
    return " ".join([str(error), *getattr(error, "__notes__", ())])
