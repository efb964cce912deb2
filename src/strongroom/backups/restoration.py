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
from strongroom.backups.locating import CatalogLocator, read_manifest
from strongroom.backups.registered import find_instance, lock_instance
from strongroom.catalog import tables as t
from strongroom.engines.base import Engine, EngineError, Ground, Summary, Surveyor, Target, target_state
from strongroom.jobs.port import Cancelled, Draining, JobFailed, Running, TryAgain
from strongroom.repository.errors import RepositoryError
from strongroom.repository.reader import BackupReader
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
            serial=f"instance:{instance}", max_attempts=ATTEMPTS,
        )  # fmt: skip
        note(conn)
    return job


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


def version_key(version: str) -> tuple[int, ...]:
    """Major and minor number: what decides whether data of one version fits another."""
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    return tuple(numbers)


class RestoreJob:
    """The job `restore`: leftovers of an earlier try ended → the target probed → everything read once → the target changed."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        ctx = self._ctx
        backup, instance, part = self._rows(job)
        engine, target = ctx.engines[instance.engine], ctx.target(instance)
        scratch = ctx.scratch / f"{job.id}-{job.epoch}"
        scratch.mkdir(mode=0o700, parents=True)
        since = ctx.ambient.monotonic()
        try:
            if job.epoch > 1:
                engine.recover(target)
            summary, warnings = self._restore(job, instance, part, str(scratch))
        except Draining:
            _end_leftovers(engine, target)
            raise
        except Cancelled as error:
            _end_leftovers(engine, target)
            raise Cancelled(_told(error), self._state(job, error)) from error
        except StoreError as error:
            _end_leftovers(engine, target)
            if not error.permanent and job.attempts < ATTEMPTS:
                raise TryAgain(str(error)) from error
            raise JobFailed(f"the store failed: {_told(error)}", self._state(job, error)) from error
        except (EngineError, RepositoryError, OSError) as error:
            _end_leftovers(engine, target)
            self._note_damage(part.lineage, error)
            raise JobFailed(_told(error), self._state(job, error)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return {
            "backup": backup.id, "entries": summary.entries, "bytes": summary.bytes,
            "seconds": round(ctx.ambient.monotonic() - since, 3), "warnings": [*warnings, *summary.warnings],
        }  # fmt: skip

    def _restore(self, job: Running, instance: Row[Any], part: Row[Any], scratch: str) -> tuple[Summary, Sequence[str]]:
        """What the engine says of its restore, and what was warned of before. Raises NotEmpty."""
        ctx, engine, target = self._ctx, self._ctx.engines[instance.engine], self._ctx.target(instance)
        keys = ctx.keys(part.lineage)
        manifest = read_manifest(ctx, keys, part.lineage, part.seq)
        ground = Ground(None)
        if not job.args.get("begun"):
            job.progress("looking at the target", 0)
            ground = survey(engine, target, manifest.engine_facts, part.plain_bytes)
            if ground.holds is not None and not job.args.get("overwrite", True):
                raise NotEmpty(
                    f"instance {instance.name} holds {ground.holds}, which a restore would replace: empty it, or restore "
                    "with overwrite (the command line's --overwrite)"
                )
            _begin(ctx, job)
        with BackupReader(manifest, ctx.store, keys, CatalogLocator(ctx, part.lineage)) as reader:
            return engine.restore(target, reader, manifest.engine_facts, job, scratch), ground.warnings

    def _state(self, job: Running, error: BaseException) -> Mapping[str, Any]:
        """What programs are told of a restore that did not succeed."""
        told = target_state(error)
        if told is None:
            told = UNCHANGED
            if job.args.get("begun"):
                told = "not changed by this try; an earlier one of this job, which was interrupted, may have changed it"
        return {"target_state": told}

    def _note_damage(self, lineage: str, error: Exception) -> None:
        """What the restore found damaged is suspect from now on, so that the next backup stores it anew."""
        name = damage_in(error)
        if name is not None:
            with suppress(StoreError):
                note_damage(self._ctx, lineage, name)

    def _rows(self, job: Running) -> tuple[Row[Any], Row[Any], Row[Any]]:
        with self._ctx.catalog.read() as conn:
            backup = conn.execute(sa.select(t.backup).where(t.backup.c.id == job.args["backup"])).one()
            instance = conn.execute(sa.select(t.instance).where(t.instance.c.id == job.args["instance"])).one()
            part = conn.execute(sa.select(t.part).where(t.part.c.backup == backup.id)).one()
        if instance.state != "REGISTERED":
            raise JobFailed(f"instance {instance.name} is not registered any more")
        return backup, instance, part

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Ends what the restore left in the target; nothing in the catalog hangs on it."""
        del outcome, reason
        if job.attempts == 0 and job.epoch == 1:
            return  # cancelled before it ran
        _, instance, _ = self._rows(job)
        _end_leftovers(self._ctx.engines[instance.engine], self._ctx.target(instance))


class NotEmpty(EngineError):
    """The target holds data, and nobody has said that it may be replaced. Nothing was changed."""

    permanent = True


def survey(engine: Engine, target: Target, facts: Mapping[str, Any], size: int) -> Ground:
    """Looks at a target. Raises EngineError where a restore could not succeed."""
    if isinstance(engine, Surveyor):
        return engine.survey(target, facts, size)
    probe = engine.probe(target)
    return Ground(f"some {probe.size} bytes" if probe.size else None, probe.warnings)


def _begin(ctx: Context, job: Running) -> None:
    """Durable before the first change, so that the run after a crash does not take this one's data for somebody's."""
    with ctx.catalog.write(job.guard) as conn:
        args = json.dumps({**job.args, "begun": True})
        conn.execute(sa.update(t.job).where(t.job.c.id == job.id).values(args=args))


def _end_leftovers(engine: Engine, target: Target) -> None:
    """Ends what the restore left in the target. That this fails must not hide why the restore did."""
    try:
        engine.recover(target)
    except EngineError as error:
        log.warning("what a restore left in %s could not be ended: %s", target.address, error)


def _told(error: Exception) -> str:
    """The error with what the adapter noted on it: what state the target is in."""
    return " ".join([str(error), *getattr(error, "__notes__", ())])
