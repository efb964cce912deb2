"""Restoring a backup into a registered instance of the same engine.

A restore protects its backup by being a queued or running job, submitted and read under the backup's lock: a delete that comes
later is refused, one that came first leaves nothing to restore. There is no counter that could leak.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
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
from strongroom.engines.base import Engine, EngineError, Target
from strongroom.jobs.port import Cancelled, Draining, JobFailed, Running, TryAgain
from strongroom.repository.errors import RepositoryError
from strongroom.repository.reader import BackupReader
from strongroom.storage.base import StoreError

log = logging.getLogger("strongroom.backups")

ATTEMPTS = 3
"""Times that a restore is tried when the store fails in a way that passes, or its worker dies."""


def restore(ctx: Context, project: str, backup: str, instance: str, note: Callable[[Connection], None]) -> str:
    """Decides a restore and returns its job's id. Raises errors.NoSuchBackup, NoSuchInstance, NotRestorable."""
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
        job = ctx.jobs.submit(
            conn, "restore", {"backup": backup, "instance": instance}, project=project, instance=instance, backup=backup,
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
        try:
            if job.epoch > 1:
                engine.recover(target)
            keys = ctx.keys(part.lineage)
            manifest = read_manifest(ctx, keys, part.lineage, part.seq)
            with BackupReader(manifest, ctx.store, keys, CatalogLocator(ctx, part.lineage)) as reader:
                summary = engine.restore(target, reader, manifest.engine_facts, job, str(scratch))
        except (Cancelled, Draining):
            _end_leftovers(engine, target)
            raise
        except StoreError as error:
            _end_leftovers(engine, target)
            if not error.permanent and job.attempts < ATTEMPTS:
                raise TryAgain(str(error)) from error
            raise JobFailed(f"the store failed: {_told(error)}") from error
        except (EngineError, RepositoryError, OSError) as error:
            _end_leftovers(engine, target)
            self._note_damage(part.lineage, error)
            raise JobFailed(_told(error)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return {"backup": backup.id, "entries": summary.entries, "bytes": summary.bytes, "warnings": list(summary.warnings)}

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


def _end_leftovers(engine: Engine, target: Target) -> None:
    """Ends what the restore left in the target. That this fails must not hide why the restore did."""
    try:
        engine.recover(target)
    except EngineError as error:
        log.warning("what a restore left in %s could not be ended: %s", target.address, error)


def _told(error: Exception) -> str:
    """The error with what the adapter noted on it: what state the target is in."""
    return " ".join([str(error), *getattr(error, "__notes__", ())])
