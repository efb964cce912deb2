"""`strongroom backup export`: a backup as its engine's own files, straight from the repository of a data folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from strongroom.cli.context import given, outside, say, shared
from strongroom.cli.display import facts, size, word
from strongroom.cli.server import sentences, settings_of

if TYPE_CHECKING:
    from strongroom.cli.waiting import Shown


@click.command("export")
@click.argument("backup_id", metavar="ID")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@shared
def export(backup_id: str, folder: Path) -> None:
    """Write a backup of --data DIR to a folder, as files that its engine loads without Strongroom.

    Works on the repository itself, beside a running server or without one. The folder is new or empty, and is there only once the
    export is whole; one that ended early is called DIR.partial, and the same command begins it anew.
    """
    settings = settings_of()
    from strongroom.backups.exporting import SUMMARY
    from strongroom.backups.exporting import export as write
    from strongroom.cli.waiting import display
    from strongroom.server import opened_for_reading

    with sentences(), display(outside().ambient) as shown, opened_for_reading(settings) as ctx:
        told = write(ctx, given("project_id"), backup_id, folder, _Watched(shown))
    pairs = {
        "exported": f"{word(told.get('name'))} ({backup_id}) of {word(told.get('instance_name'))}",
        "database": f"{word(told.get('engine'))} {word(told.get('engine_version'))}",
        "folder": str(folder.absolute()),
        "files": f"{word(told.get('files'))} ({size(told.get('bytes'))}), and {SUMMARY}",
        "warnings": word("; ".join(told.get("warnings") or []) or None),
    }
    say({"folder": str(folder.absolute()), **told}, lambda console: facts(console, pairs))


class _Watched:
    """The control of work that nobody but Ctrl-C ends."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown

    def check(self) -> None:
        """See Control."""

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        """See Control."""
        self._shown.look(phase, done, total)
