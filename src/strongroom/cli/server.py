"""`strongroom serve`, and what works on a data folder while no server runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from strongroom.cli.context import data_folder, outside, say_line, shared, wants_json
from strongroom.settings import DEFAULT_HOST, DEFAULT_PORT, Settings, SettingsError


@click.command("serve")
@click.option("--host", help=f"The address to listen on; else STRONGROOM_HOST, else {DEFAULT_HOST}.")
@click.option("--port", type=click.IntRange(0, 65535), help=f"Else STRONGROOM_PORT, else {DEFAULT_PORT}; 0 takes a free one.")
@shared
def serve(host: str | None, port: int | None) -> None:
    """Run the server on the folder --data DIR."""
    settings = _settings(host, port)
    from strongroom.server import serve as run

    with _usable():
        run(settings)


@click.group("catalog")
@shared
def catalog() -> None:
    """Look after the catalog, offline."""


@catalog.command("rebuild")
@shared
def rebuild() -> None:
    """Rebuild the catalog of --data DIR from its store alone. Stop the server first.

    Every backup comes back held, until someone has looked at it and releases it.
    """
    settings = _settings(None, None)
    from strongroom.server import rebuild_catalog

    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if not wants_json():
            click.echo(line)

    with _usable():
        rebuild_catalog(settings, report)
    say_line({"report": lines}, "The catalog is rebuilt.")


def _settings(host: str | None, port: int | None) -> Settings:
    with _usable():
        return Settings.load(data_folder(), outside().environ, host=host, port=port)


@contextmanager
def _usable() -> Iterator[None]:
    """Turns a setting that cannot be used into wrong use."""
    try:
        yield
    except SettingsError as error:
        raise click.UsageError(str(error), click.get_current_context()) from error
