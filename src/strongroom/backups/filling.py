"""What every job goes by that changes what a registered instance holds: restores and imports.

Order of effects of a try: leftovers of an earlier one are ended → the target is looked at (version, rights, room, emptiness) →
the job's row says `begun` → the engine's own order. However a try fails, its leftovers are ended and the job's result says what
the target holds now (`target_state`).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Row

from strongroom.backups import errors, recording
from strongroom.backups.context import Context
from strongroom.catalog import tables as t
from strongroom.engines.base import Engine, EngineError, Ground, Summary, Surveyor, Target, target_state
from strongroom.jobs.port import Cancelled, Draining, JobFailed, Running, TryAgain
from strongroom.notifications import outbox
from strongroom.repository.errors import RepositoryError
from strongroom.storage.base import StoreError

log = logging.getLogger("strongroom.backups")

ATTEMPTS = 3
"""Times that a job is tried when the store fails in a way that passes, or its worker dies."""

UNCHANGED = "as it was: nothing was changed there"


class NotEmpty(EngineError):
    """The target holds data, and nobody has said that it may be replaced. Nothing was changed."""

    permanent = True

    def __init__(self, name: str, holds: str) -> None:
        super().__init__(
            f"instance {name} holds {holds}, which a restore would replace: empty it, or restore "
            "with overwrite (the command line's --overwrite)"
        )


@dataclass(frozen=True, slots=True)
class Filling:
    """One try of a job at its instance."""

    ctx: Context
    job: Running
    instance: Row[Any]
    scratch: str  # a folder of this try's own, removed at its end
    since: float

    @property
    def engine(self) -> Engine:
        return self.ctx.engines[self.instance.engine]

    @property
    def target(self) -> Target:
        return self.ctx.target(self.instance)

    def look(self, facts: Mapping[str, Any], size: int) -> Ground:
        """Looks at the target before the first change and lets it begin; after a crash in the middle, which left data there that
        is nobody's, it looks no more. Raises NotEmpty, EngineError where it could not succeed."""
        if self.job.args.get("begun"):
            return Ground(None)
        self.job.progress("looking at the target", 0)
        ground = self._survey(facts, size)
        if ground.holds is not None and not self.job.args["overwrite"]:
            raise NotEmpty(self.instance.name, ground.holds)
        with self.ctx.catalog.write(self.job.guard) as conn:
            args = json.dumps({**self.job.args, "begun": True})
            conn.execute(sa.update(t.job).where(t.job.c.id == self.job.id).values(args=args))
            recording.refill(conn, self.instance.id)
        return ground

    def told(self, ground: Ground, summary: Summary) -> dict[str, Any]:
        """What the job's result says of it, whatever was put in."""
        return {
            "entries": summary.entries, "bytes": summary.bytes, "seconds": round(self.ctx.ambient.monotonic() - self.since, 3),
            "warnings": [*ground.warnings, *summary.warnings],
        }  # fmt: skip

    def _survey(self, facts: Mapping[str, Any], size: int) -> Ground:
        engine = self.engine
        if isinstance(engine, Surveyor):
            return engine.survey(self.target, facts, size)
        probe = engine.probe(self.target)
        return Ground(f"some {probe.size} bytes" if probe.size else None, probe.warnings)


@contextmanager
def filling(ctx: Context, job: Running) -> Iterator[Filling]:
    """A try at the instance that the job names; what goes wrong in it comes out as the job's end. Raises what a job may."""
    instance = _instance(ctx, job)
    scratch = ctx.scratch / f"{job.id}-{job.epoch}"
    scratch.mkdir(mode=0o700, parents=True)
    one = Filling(ctx, job, instance, str(scratch), ctx.ambient.monotonic())
    try:
        if job.epoch > 1:
            one.engine.recover(one.target)
        yield one
    except Draining:
        _end_leftovers(one.engine, one.target)
        raise
    except Cancelled as error:
        _end_leftovers(one.engine, one.target)
        raise Cancelled(_told(error), _state(job, error)) from error
    except StoreError as error:
        _end_leftovers(one.engine, one.target)
        if not error.permanent and job.attempts < ATTEMPTS:
            raise TryAgain(str(error)) from error
        raise JobFailed(f"the store failed: {_told(error)}", _state(job, error)) from error
    except (EngineError, RepositoryError, errors.NoSuchFile, errors.NotRestorable, OSError) as error:
        _end_leftovers(one.engine, one.target)
        raise JobFailed(_told(error), _state(job, error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def give_up(ctx: Context, job: Running, outcome: str, reason: str) -> None:
    """Ends what the job left in its instance, after its last try; nothing in the catalog hangs on it. That it failed is told, but
    not that somebody ended it."""
    if job.attempts == 0 and job.epoch == 1:
        return  # cancelled before it ran
    if outcome == "FAILED":
        _tell(ctx, job, reason)
    instance = _instance(ctx, job)
    _end_leftovers(ctx.engines[instance.engine], ctx.target(instance))


def _tell(ctx: Context, job: Running, reason: str) -> None:
    """Writes nothing where nobody wants to know."""
    with ctx.catalog.read() as conn:
        instance = conn.execute(sa.select(t.instance).where(t.instance.c.id == job.args["instance"])).one()
        if not outbox.receivers(ctx, conn, instance.project, "restore_failed"):
            return
    with ctx.catalog.write(job.guard) as conn:
        backup = conn.execute(sa.select(t.backup).where(t.backup.c.id == job.args.get("backup"))).first()
        outbox.restore_failed(ctx, conn, backup, instance, job.id, reason)


def _instance(ctx: Context, job: Running) -> Row[Any]:
    with ctx.catalog.read() as conn:
        instance = conn.execute(sa.select(t.instance).where(t.instance.c.id == job.args["instance"])).one()
    if instance.state != "REGISTERED":
        raise JobFailed(f"instance {instance.name} is not registered any more")
    return instance


def _state(job: Running, error: BaseException) -> Mapping[str, Any]:
    """What programs are told of a try that did not succeed."""
    state = target_state(error)
    if state is None:
        state = UNCHANGED
        if job.args.get("begun"):
            state = "not changed by this try; an earlier one of this job, which was interrupted, may have changed it"
    return {"target_state": state}


def _end_leftovers(engine: Engine, target: Target) -> None:
    """That this fails must not hide why the try did."""
    try:
        engine.recover(target)
    except EngineError as error:
        log.warning("what a restore left in %s could not be ended: %s", target.address, error)


def _told(error: Exception) -> str:
    """The error with what the adapter noted on it: what state the target is in."""
    return " ".join([str(error), *getattr(error, "__notes__", ())])
