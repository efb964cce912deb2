"""Putting an operator's own files into a registered instance, where its engine takes such files.

A bucket is a folder that an operator has made on this machine: `<imports>/<project>/<bucket>`. Nothing outside the caller's
own project's folder is ever opened, whatever a name holds and wherever a link points.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from strongroom.backups import errors
from strongroom.backups.context import Context
from strongroom.backups.filling import ATTEMPTS, filling, give_up
from strongroom.backups.registered import find_instance, lock_instance
from strongroom.engines.base import Importer
from strongroom.jobs.port import JobFailed, Running


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
    """The job `import`: leftovers of an earlier try ended → the target looked at → files copied and proved → it is changed."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        names = [str(name) for name in job.args["files"]]
        with filling(self._ctx, job) as into:
            engine = into.engine
            if not isinstance(engine, Importer):
                raise JobFailed(f"{into.instance.engine} takes no files")
            files = located(self._ctx, str(into.instance.project), str(job.args["bucket"]), names)
            ground = into.look({}, sum(os.path.getsize(path) for path in files.values()))
            summary = engine.import_files(into.target, files, job, into.scratch)
        return {"files": names, "keys": summary.facts.get("keys"), **into.told(ground, summary)}

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Ends what the import left in the target."""
        give_up(self._ctx, job, outcome, reason)
