"""Restoring a backup into a registered instance of the same engine.

A restore protects its backup by being a queued or running job, submitted and read under the backup's lock: a delete that comes
later is refused, one that came first leaves nothing to restore. There is no counter that could leak.

A restore replaces what its target holds, so it must have been told to: by `overwrite`, or by naming the instance that the backup
is of, which is what a recovery means in the contract. Any other target must be empty.

What happens at the target, in which order and however it fails, is `filling`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups import errors, pending, replaying
from strongroom.backups.context import Context
from strongroom.backups.damage import damage_in, note_damage
from strongroom.backups.filling import ATTEMPTS, filling, give_up
from strongroom.backups.gathering import node_queue
from strongroom.backups.moments import utc
from strongroom.backups.reading import parts_to_read, reading
from strongroom.backups.registered import find_instance, lock_instance, require_known
from strongroom.backups.versions import version_key
from strongroom.catalog import tables as t
from strongroom.engines.base import ClusterEngine, EngineError
from strongroom.engines.log import Recorder
from strongroom.jobs.port import Running
from strongroom.repository import names
from strongroom.repository.errors import RepositoryError
from strongroom.storage.base import StoreError


def restore(
    ctx: Context,
    project: str,
    backup: str,
    instance: str,
    note: Callable[[Connection], None],
    overwrite: bool | None = None,
) -> str:
    """Decides a restore and returns its job's id. Raises errors.NoSuchBackup, NoSuchInstance, DeletionPending,
    NotRestorable.

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
        pending.refuse_use(conn, row)
        refuse_misfit(row, target)
        may = row.instance == instance if overwrite is None else overwrite
        args = {"backup": backup, "instance": instance, "overwrite": may}
        job = ctx.jobs.submit(
            conn, "restore", args, project=project, instance=instance, backup=backup,
            queue=queue, serial=f"instance:{instance}", max_attempts=ATTEMPTS,
        )  # fmt: skip
        note(conn)
    return job


def restore_to(
    ctx: Context,
    project: str,
    source: str,
    moment: float,
    instance: str,
    note: Callable[[Connection, str], None],
    overwrite: bool | None = None,
) -> str:
    """Decides a restore of what `source`, an instance that may be unregistered by now, held at a moment (seconds since the
    epoch); returns its job's id. `note` is given the backup that it begins with. Raises errors.NoSuchInstance, NotRestorable.

    `overwrite` as in `restore`. The log that it replays is not trimmed while the job lives; its backup keeps it from deletes. If
    the moment is recorded and not stored yet, the job waits for that before anything else."""
    for _try in range(_TRIES):
        with ctx.catalog.read() as conn:
            require_known(conn, project, source)
            found = replaying.stretch_to(conn, source, moment, ctx.ambient.now())
        guard = partial(lock_instance, project=project, instance=instance)
        with ctx.catalog.decide(guard, backups=[found.backup], lineages=[found.lineage]) as conn:
            target = find_instance(conn, project, instance)
            again = replaying.stretch_to(conn, source, moment, ctx.ambient.now())
            if again.backup != found.backup:
                continue
            row = conn.execute(sa.select(t.backup).where(t.backup.c.id == found.backup)).one()
            pending.refuse_use(conn, row)
            refuse_misfit(row, target)
            if not isinstance(ctx.engines.get(target.engine), Recorder):
                raise errors.NotRestorable(f"a {target.engine} cannot be restored to a moment")
            may = source == instance if overwrite is None else overwrite
            args = {"backup": row.id, "instance": instance, "overwrite": may, "source": source, "moment": moment}
            job = ctx.jobs.submit(
                conn, "restore", args, project=project, instance=instance, backup=row.id,
                serial=f"instance:{instance}", max_attempts=ATTEMPTS,
            )  # fmt: skip
            note(conn, row.id)
            return job
    raise errors.InstanceBusy("the instance's backups keep moving; nothing was decided: try again")


_PATIENCE = 120.0
"""Seconds that a restore waits for what is recorded to be stored."""

_LOOK = 0.5  # seconds between two looks for it

_TRIES = 5
"""Times that it is looked anew for a backup where deletes keep coming between."""


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
    """The job `restore`: leftovers of an earlier try ended → where a moment is wanted, its log waited for → the target looked
    at → everything read once → the target changed."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        ctx = self._ctx
        with filling(ctx, job) as into:
            log = self._log(job) if "moment" in job.args else None
            with ctx.catalog.read() as conn:
                parts = parts_to_read(conn, job.args["backup"])
            with self._damage_noted(), reading(ctx, parts) as (source, facts):
                ground = into.look(facts, sum(part.plain_bytes for part in parts))
                if log is None:
                    summary = into.engine.restore(into.target, source, facts, job, into.scratch)
                else:
                    assert isinstance(into.engine, Recorder)
                    summary = into.engine.restore_to(into.target, source, facts, log, job, into.scratch)
        reached = {} if log is None else {"moment": float(job.args["moment"]), "reached": log.until.at}
        return {"backup": job.args["backup"], **reached, **into.told(ground, summary)}

    def _log(self, job: Running) -> replaying.ReplayedLog:
        """What is to be replayed, once all of it is in the store: the recording sees that somebody waits."""
        moment, source, backup = float(job.args["moment"]), str(job.args["source"]), str(job.args["backup"])
        ctx, ambient = self._ctx, self._ctx.ambient
        until = ambient.monotonic() + _PATIENCE
        while True:
            job.check()
            with ctx.catalog.read() as conn:
                found = replaying.stretch_from(conn, source, backup, moment, ambient.now())
            if found is not None:
                return replaying.ReplayedLog(ctx, ctx.keys(found.lineage), found, moment)
            if ambient.monotonic() >= until:
                raise errors.NotRestorable(
                    f"what was recorded up to {utc(moment)} did not come into the store within {_PATIENCE:.0f} seconds. See "
                    "whether recording goes on, or choose an earlier moment"
                )
            job.progress("waiting for the log", 0)
            ambient.sleep(_LOOK)

    @contextmanager
    def _damage_noted(self) -> Iterator[None]:
        """What the restore finds damaged is suspect from now on, so that the next backup stores it anew."""
        try:
            yield
        except (EngineError, RepositoryError, OSError) as error:
            name = damage_in(error)
            parsed = None if name is None else names.parse(name)
            if name is not None and parsed is not None and parsed.lineage is not None:
                with suppress(StoreError):
                    note_damage(self._ctx, parsed.lineage, name)
            raise

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Ends what the restore left in the target."""
        give_up(self._ctx, job, outcome, reason)
