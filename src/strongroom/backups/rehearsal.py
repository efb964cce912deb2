"""Test restores: a backup is restored into a server that is started for it, compared, and thrown away.

    rehearse        a job for one backup, or for the newest of an instance
    put_regular     every so many days one for the newest of an instance, by itself: RegularJob
    RehearsalJob    the engine's own throw-away server → the restore, as into any target → counts and content compared → gone

It asks more than a verification, which only reads: that the engine takes what was captured, and holds what was there. It touches
no database of anybody's. Like a verification it does not protect its backup: a delete wins.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups import errors, listing
from strongroom.backups.context import Context
from strongroom.backups.reading import parts_to_read, reading
from strongroom.backups.registered import find_instance, lock_instance, require_known
from strongroom.catalog import tables as t
from strongroom.engines.base import EngineError, Rehearser
from strongroom.identity import audit
from strongroom.jobs.port import JobFailed, Running, TryAgain
from strongroom.jobs.schedules import Schedule, put_schedule, remove_schedule
from strongroom.notifications import outbox
from strongroom.repository.errors import RepositoryError
from strongroom.storage.base import StoreError

KIND = "rehearse"

REGULAR = "rehearse-newest"
"""The kind of job that comes round for an instance."""

_DAY = 86400.0

ATTEMPTS = 3
"""Times that it is tried when the store fails in a way that passes, or its worker dies."""


def rehearse(
    ctx: Context,
    project: str,
    note: Callable[[Connection], None],
    *,
    backup: str | None = None,
    instance: str | None = None,
) -> str:
    """Submits a test restore of one backup, or of an instance's newest completed one; returns its job's id.

    Raises errors.NoSuchBackup, NoSuchInstance, NotRestorable.
    """
    with ctx.catalog.write() as conn:
        row = listing.find_backup(conn, project, backup) if backup is not None else _newest(conn, project, str(instance))
        if row.state != "COMPLETED":
            raise errors.NotRestorable(f"backup {row.id} is {row.state}, not COMPLETED")
        _require_rehearser(ctx, row.engine)
        job = ctx.jobs.submit(
            conn, KIND, {"backup": row.id}, project=project, instance=row.instance, backup=row.id, serial=KIND,
            max_attempts=ATTEMPTS,
        )  # fmt: skip
        note(conn)
    return job


def regular(conn: Connection, project: str, instance: str) -> int | None:
    """Every how many days the newest backup of a registered instance is tried out by itself; None: it is not. Raises
    errors.NoSuchInstance."""
    find_instance(conn, project, instance)
    every = conn.execute(sa.select(t.schedule.c.every).where(t.schedule.c.name == _schedule(instance))).scalar()
    return None if every is None else round(every / _DAY)


def put_regular(ctx: Context, project: str, instance: str, days: int | None, note: Callable[[Connection], None]) -> None:
    """Sets it, from now on; None ends it. Raises errors.NoSuchInstance, NotRestorable."""
    with ctx.catalog.write() as conn:
        lock_instance(conn, project, instance)
        row = find_instance(conn, project, instance)
        forget(conn, instance)
        if days is not None:
            _require_rehearser(ctx, row.engine)
            every = Schedule(_schedule(instance), REGULAR, days * _DAY, {"instance": instance})
            put_schedule(ctx.jobs, conn, every, first=ctx.ambient.now())
        note(conn)


def forget(conn: Connection, instance: str) -> None:
    """Its backups are tried out by themselves no more."""
    remove_schedule(conn, _schedule(instance))


def _schedule(instance: str) -> str:
    return f"test restores of {instance}"


def _require_rehearser(ctx: Context, engine: str) -> None:
    if not isinstance(ctx.engines.get(engine), Rehearser):
        raise errors.NotRestorable(f"restores of {engine} cannot be tested: there is no throw-away server for it")


class RegularJob:
    """The job that a schedule submits: it submits a test restore of the newest backup, if there is one."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        ctx, instance = self._ctx, str(job.args["instance"])
        with ctx.catalog.read() as conn:
            row = conn.execute(sa.select(t.instance).where(t.instance.c.id == instance)).one()

        def note(conn: Connection) -> None:
            entry = audit.Entry(
                "StrongroomTestRestore", "instance", instance, row.name, project=row.project, detail={"by": "schedule"}
            )
            audit.append(conn, ctx.ambient, entry)

        try:
            return {"job": rehearse(ctx, row.project, note, instance=instance)}
        except errors.Refused as error:  # there is no backup yet, or nothing that could be restored into
            return {"job": None, "why": str(error)}

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """The schedule comes round again."""


def _newest(conn: Connection, project: str, instance: str) -> Row[Any]:
    require_known(conn, project, instance)
    done = sa.and_(t.backup.c.instance == instance, t.backup.c.project == project, t.backup.c.state == "COMPLETED")
    row = conn.execute(sa.select(t.backup).where(done).order_by(t.backup.c.begin_at.desc()).limit(1)).first()
    if row is None:
        raise errors.NotRestorable(f"instance {instance} has no completed backup")
    return row


class RehearsalJob:
    """The job `rehearse`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        """Its result's `outcome` is `sound` or `differs`; a backup that the engine does not take is a failure with its reason."""
        ctx = self._ctx
        with ctx.catalog.read() as conn:
            backup = conn.execute(sa.select(t.backup).where(t.backup.c.id == job.args["backup"])).one()
            parts = parts_to_read(conn, backup.id)
        if backup.state != "COMPLETED":
            return {"backup": backup.id, "outcome": "superseded"}
        scratch = ctx.scratch / f"{job.id}-{job.epoch}"
        scratch.mkdir(mode=0o700, parents=True)
        try:
            found = self._rehearse(job, backup, parts)
            if found["outcome"] == "differs":
                what = f"what was restored differs in {len(found['differences'])} ways from what was saved"
                self._tell(job, backup, f"{what}: the job's result tells them")
            return {"backup": backup.id, **found}
        except StoreError as error:
            if self._deleted(backup.id):
                return {"backup": backup.id, "outcome": "superseded"}
            if not error.permanent and job.attempts < ATTEMPTS:
                raise TryAgain(str(error)) from error
            raise JobFailed(f"the store failed: {error}") from error
        except (EngineError, RepositoryError, OSError) as error:
            if self._deleted(backup.id):
                return {"backup": backup.id, "outcome": "superseded"}
            raise JobFailed(str(error)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Nothing is left: the throw-away server ends with the run, and its folder is scratch. That it failed is told, but not
        that somebody ended it."""
        with self._ctx.catalog.read() as conn:
            backup = conn.execute(sa.select(t.backup).where(t.backup.c.id == job.args["backup"])).one()
        if outcome == "FAILED":
            self._tell(job, backup, reason)

    def _tell(self, job: Running, backup: Row[Any], reason: str) -> None:
        """Writes nothing where nobody wants to know; after a crash it is the same event."""
        with self._ctx.catalog.read() as conn:
            if not outbox.receivers(self._ctx, conn, backup.project, "test_restore_failed"):
                return
        with self._ctx.catalog.write(job.guard) as conn:
            outbox.test_restore_failed(self._ctx, conn, backup, job.id, reason)

    def _rehearse(self, job: Running, backup: Row[Any], parts: Sequence[Row[Any]]) -> Mapping[str, Any]:
        ctx = self._ctx
        engine = ctx.engines[backup.engine]
        if not isinstance(engine, Rehearser):
            raise JobFailed(f"restores of {backup.engine} cannot be tested here")
        scratch, since = ctx.scratch / f"{job.id}-{job.epoch}", ctx.ambient.monotonic()
        folders = {name: scratch / name for name in ("server", "restore", "compare")}
        for folder in folders.values():
            folder.mkdir(mode=0o700)
        job.progress("starting a server", 0)
        with (
            engine.sandbox(folders["server"], job) as target,
            reading(ctx, parts) as (source, facts),
        ):
            done = ctx.engines[backup.engine].restore(target, source, facts, job, str(folders["restore"]))
            job.progress("comparing", 0)
            found = engine.compare(target, source, facts, job, str(folders["compare"]))
        return {
            "outcome": "differs" if found.differences else "sound",
            "entries": done.entries, "bytes": done.bytes, "seconds": round(ctx.ambient.monotonic() - since, 3),
            "expected": dict(found.expected), "found": dict(found.found), "digests": found.digests,
            "differences": list(found.differences), "warnings": [*done.warnings, *found.warnings],
        }  # fmt: skip

    def _deleted(self, backup: str) -> bool:
        with self._ctx.catalog.read() as conn:
            return conn.execute(sa.select(t.backup.c.state).where(t.backup.c.id == backup)).scalar() != "COMPLETED"
