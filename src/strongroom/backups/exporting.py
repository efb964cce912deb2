"""The way out: a backup as its engine's own files in a folder of this machine.

    export      DIR.partial made → the engine's files → export.json says whole → renamed to DIR

DIR is there only when it is whole. Whatever ends an export before leaves DIR.partial, which says of itself that it is not whole;
the next export of the same backup to the same place removes it and begins anew, or, where only the last step was missing, does
that. Nothing else is ever removed.

An export reads and locks nothing, like a verification: it does not protect its backup. A delete wins, and the export fails.

    ExportError     what a caller may catch; the text says what to do next
    ├── NoRoom      the folder is not empty, or is not one of ours
    └── Incomplete  the export ended early; DIR.partial is left
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Row

from strongroom import __version__
from strongroom.backups import errors, pending
from strongroom.backups.context import Context
from strongroom.backups.reading import parts_to_read, reading
from strongroom.catalog import tables as t
from strongroom.engines.base import Control, EngineError, Summary
from strongroom.engines.exporting import new_folder, sync_folder, write_file
from strongroom.repository.errors import RepositoryError
from strongroom.storage.base import StoreError

SUMMARY = "export.json"
"""In every export: what it is, and whether it is whole."""


class ExportError(Exception):
    """The backup was not exported."""

    permanent = False


class NoRoom(ExportError):
    """The folder cannot take the export; nothing was written."""

    permanent = True


class Incomplete(ExportError):
    """The export ended early."""


def export(ctx: Context, project: str | None, backup: str, folder: Path, control: Control) -> Mapping[str, Any]:
    """Writes a completed backup's files to `folder`, which is new or empty; returns what `export.json` says.

    Files have mode 0600 and folders 0700. Raises errors.NoSuchBackup, errors.NotRestorable, ExportError; what `control.check`
    raises passes through.
    """
    row, parts = _rows(ctx, project, backup)
    folder = folder.absolute()
    partial = folder.with_name(folder.name + ".partial")
    try:
        _require_room(folder)
        told = _left_whole(partial, backup)
        if told is None:
            told = _describe(ctx, row)
            _begin(partial, told)
    except OSError as error:
        raise NoRoom(f"{error.filename or folder} cannot be used: {error.strerror or error}") from error
    if not told["whole"]:
        with _ending_early(ctx, backup, partial):
            told = {**told, **_write(ctx, row, parts, partial, control)}
    with _ending_early(ctx, backup, partial):
        partial.rename(folder)
        sync_folder(folder.parent)
    return told


def _rows(ctx: Context, project: str | None, backup: str) -> tuple[Row[Any], Sequence[Row[Any]]]:
    here = [t.backup.c.id == backup, t.backup.c.state.in_(t.PRESENT)]
    if project is not None:
        here.append(t.backup.c.project == project)
    with ctx.catalog.read() as conn:
        row = conn.execute(sa.select(t.backup).where(*here)).first()
        if row is None:
            raise errors.NoSuchBackup(f"there is no backup {backup}")
        pending.refuse_use(conn, row)
        if row.state != "COMPLETED":
            raise errors.NotRestorable(f"backup {backup} is {row.state}, not COMPLETED")
        if row.engine not in ctx.engines:
            raise errors.NotRestorable(f"backup {backup} is of {row.engine}, which this version does not know")
        return row, parts_to_read(conn, backup)


def _require_room(folder: Path) -> None:
    """The folder is new, or empty and can be replaced by a rename."""
    if not folder.exists() and not folder.is_symlink():
        if not folder.parent.is_dir():
            raise NoRoom(f"there is no folder {folder.parent}: make it, or choose another")
        return
    if folder.is_symlink() or not folder.is_dir():
        raise NoRoom(f"{folder} is no folder: choose another place")
    if folder.is_mount():
        raise NoRoom(f"{folder} is a mount point: give a new folder below it")
    if any(folder.iterdir()):
        raise NoRoom(f"{folder} is not empty: an export needs a new or an empty folder")


def _left_whole(partial: Path, backup: str) -> Mapping[str, Any] | None:
    """What an export left that lacks only its last step; a partial one of this backup is removed. NoRoom for anything else."""
    if not partial.exists() and not partial.is_symlink():
        return None
    told = _read_summary(partial)
    if told is None and not partial.is_symlink() and partial.is_dir() and not any(partial.iterdir()):
        partial.rmdir()  # an export that ended before it had said what it was
        return None
    if told is None or told.get("backup") != backup:
        what = "is no partial export" if told is None else f"is a partial export of another backup, {told.get('backup')}"
        raise NoRoom(f"{partial} {what}: remove it, or choose another place")
    if told.get("whole") is True:
        return told
    shutil.rmtree(partial)
    return None


def _read_summary(partial: Path) -> Mapping[str, Any] | None:
    try:
        told = json.loads((partial / SUMMARY).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) and not partial.is_symlink() else None


def _describe(ctx: Context, row: Row[Any]) -> dict[str, Any]:
    return {
        "whole": False, "backup": row.id, "name": row.name, "instance_name": row.instance_name, "engine": row.engine,
        "engine_version": row.engine_version, "begin_at": row.begin_at, "end_at": row.end_at, "exported_at": ctx.ambient.now(),
        "strongroom": __version__,
    }  # fmt: skip


def _begin(partial: Path, told: Mapping[str, Any]) -> None:
    new_folder(partial)
    write_file(partial / SUMMARY, [_text(told)])


def _write(ctx: Context, row: Row[Any], parts: Sequence[Row[Any]], partial: Path, control: Control) -> Mapping[str, Any]:
    """The engine's files, and then the summary that says whole."""
    with reading(ctx, parts) as (source, facts):
        made = ctx.engines[row.engine].export(source, facts, partial, control)
    told = {**_describe(ctx, row), **_made(made), "whole": True}
    draft = partial / f"{SUMMARY}.new"
    write_file(draft, [_text(told)])
    draft.replace(partial / SUMMARY)
    sync_folder(partial)
    return told


def _made(made: Summary) -> dict[str, Any]:
    return {"files": made.entries, "bytes": made.bytes, "facts": dict(made.facts), "warnings": list(made.warnings)}


def _text(told: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(told), indent=2, ensure_ascii=False).encode() + b"\n"


@contextmanager
def _ending_early(ctx: Context, backup: str, partial: Path) -> Iterator[None]:
    try:
        yield
    except (EngineError, RepositoryError, StoreError, OSError) as error:
        with ctx.catalog.read() as conn:
            state = conn.execute(sa.select(t.backup.c.state).where(t.backup.c.id == backup)).scalar()
        reason = "the backup was deleted meanwhile" if state in (None, "DELETING", "DELETED") else str(error)
        raise Incomplete(f"{reason}. What was written is in {partial} and is not whole: export again, or remove it") from error
