"""Putting an operator's own files into a registered instance, where its engine takes such files.

A bucket is a folder that an operator has made on this machine: `<imports>/<project>/<bucket>`. Nothing outside the caller's
own project's folder is ever opened, whatever a name holds and wherever a link points.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups import errors
from strongroom.backups.context import Context
from strongroom.backups.registered import find_instance, lock_instance
from strongroom.backups.restoration import ATTEMPTS, NotEmpty, begin, end_leftovers, failed_state, survey, told
from strongroom.catalog import tables as t
from strongroom.engines.base import EngineError, Ground, Importer, Summary
from strongroom.jobs.port import Cancelled, Draining, JobFailed, Running


def import_files(
    ctx: Context,
    project: str,
    instance: str,
    bucket: str,
    files: Sequence[str],
    note: Callable[[Connection], None],
    overwrite: bool = False,
) -> str:
    """Decides an import and returns its job's id. Raises errors.NoSuchInstance, NotRestorable, NoSuchFile.

    `overwrite`: whether data in the instance may be replaced.
    """
    with ctx.catalog.read() as conn:
        row = find_instance(conn, project, instance)
    if not isinstance(ctx.engines.get(row.engine), Importer):
        raise errors.NotRestorable(f"instance {row.name} is {row.engine}, which takes no files: restore a backup instead")
    located(ctx, project, bucket, files)
    with ctx.catalog.decide(partial(lock_instance, project=project, instance=instance)) as conn:
        args = {"instance": instance, "bucket": bucket, "files": list(files), "overwrite": overwrite}
        job = ctx.jobs.submit(
            conn, "import", args, project=project, instance=instance, serial=f"instance:{instance}", max_attempts=ATTEMPTS
        )
        note(conn)
    return job


def located(ctx: Context, project: str, bucket: str, files: Sequence[str]) -> dict[str, str]:
    """The files of a bucket, as name → path. Raises errors.NoSuchFile, which names what is missing and where it belongs."""
    if ctx.imports is None:
        raise errors.NoSuchFile("this server imports no files: its folder of imports is not set")
    folder = ctx.imports / project / bucket
    if not _inside(folder, ctx.imports / project) or not folder.is_dir():
        raise errors.NoSuchFile(
            f"there is no bucket {bucket}: an operator makes the folder {project}/{bucket} in the folder of imports"
        )
    found = {}
    for name in files:
        path = folder / name
        if not _inside(path, folder) or not stat.S_ISREG(path.stat().st_mode):
            raise errors.NoSuchFile(f"there is no file {name} in bucket {bucket}")
        found[name] = str(path.resolve())
    return found


def _inside(path: Path, folder: Path) -> bool:
    """Whether the path exists and is, with every link followed, below the folder."""
    try:
        return path.resolve(strict=True).is_relative_to(folder.resolve(strict=True)) and path.resolve() != folder.resolve()
    except (OSError, ValueError, RuntimeError):
        return False


class ImportJob:
    """The job `import`: leftovers of an earlier try ended → the files copied and proved → the target changed."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        ctx = self._ctx
        instance = self._instance(job)
        engine, target = ctx.engines[instance.engine], ctx.target(instance)
        scratch = ctx.scratch / f"{job.id}-{job.epoch}"
        scratch.mkdir(mode=0o700, parents=True)
        since = ctx.ambient.monotonic()
        try:
            if job.epoch > 1:
                engine.recover(target)
            summary, warnings = self._import(job, instance, str(scratch))
        except Draining:
            end_leftovers(engine, target)
            raise
        except Cancelled as error:
            end_leftovers(engine, target)
            raise Cancelled(told(error), failed_state(job, error)) from error
        except (EngineError, errors.NoSuchFile, OSError) as error:
            end_leftovers(engine, target)
            raise JobFailed(told(error), failed_state(job, error)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return {
            "files": list(job.args["files"]), "entries": summary.entries, "bytes": summary.bytes,
            "keys": summary.facts.get("keys"), "seconds": round(ctx.ambient.monotonic() - since, 3),
            "warnings": [*warnings, *summary.warnings],
        }  # fmt: skip

    def _import(self, job: Running, instance: Row[Any], scratch: str) -> tuple[Summary, Sequence[str]]:
        """What the engine says of it, and what was warned of before. Raises NotEmpty, errors.NoSuchFile."""
        engine, target = self._ctx.engines[instance.engine], self._ctx.target(instance)
        if not isinstance(engine, Importer):
            raise JobFailed(f"{instance.engine} takes no files")
        names = [str(name) for name in job.args["files"]]
        files = located(self._ctx, str(instance.project), str(job.args["bucket"]), names)
        ground = Ground(None)
        if not job.args.get("begun"):
            job.progress("looking at the target", 0)
            ground = survey(engine, target, {}, sum(os.path.getsize(path) for path in files.values()))
            if ground.holds is not None and not job.args["overwrite"]:
                raise NotEmpty(instance.name, ground.holds)
            begin(self._ctx, job)
        return engine.import_files(target, files, job, scratch), ground.warnings

    def _instance(self, job: Running) -> Row[Any]:
        with self._ctx.catalog.read() as conn:
            instance = conn.execute(sa.select(t.instance).where(t.instance.c.id == job.args["instance"])).one()
        if instance.state != "REGISTERED":
            raise JobFailed(f"instance {instance.name} is not registered any more")
        return instance

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Ends what the import left in the target; nothing in the catalog hangs on it."""
        del outcome, reason
        if job.attempts == 0 and job.epoch == 1:
            return  # cancelled before it ran
        instance = self._instance(job)
        end_leftovers(self._ctx.engines[instance.engine], self._ctx.target(instance))
