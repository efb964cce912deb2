"""`strongroom serve`, and what works on a data folder while no server runs."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from strongroom.cli.context import data_folder, outside, say_line, shared, wants_json
from strongroom.cli.errors import CommandError
from strongroom.settings import DEFAULT_HOST, DEFAULT_PORT, Settings, SettingsError


@click.command("serve")
@click.option("--host", help=f"The address to listen on; else STRONGROOM_HOST, else {DEFAULT_HOST}.")
@click.option("--port", type=click.IntRange(0, 65535), help=f"Else STRONGROOM_PORT, else {DEFAULT_PORT}; 0 takes a free one.")
@click.option("--tls-cert", metavar="FILE", help="Serve TLS: the certificate with its chain, PEM; else STRONGROOM_TLS_CERT.")
@click.option("--tls-key", metavar="FILE", help="Its private key, PEM, without a password; else STRONGROOM_TLS_KEY.")
@click.option("--clear-text", is_flag=True, help="Listen for other machines without TLS, as behind a proxy that does it.")
@shared
def serve(host: str | None, port: int | None, tls_cert: str | None, tls_key: str | None, clear_text: bool) -> None:
    """Run the server on the folder --data DIR. Other machines are answered over TLS only, unless told otherwise."""
    settings = settings_of(host=host, port=port, tls_cert=tls_cert, tls_key=tls_key, clear_text=clear_text)
    from strongroom.server import serve as run

    with sentences():
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
    settings = settings_of()
    from strongroom.server import rebuild_catalog

    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if not wants_json():
            click.echo(line)

    with sentences():
        rebuild_catalog(settings, report)
    say_line({"report": lines}, "The catalog is rebuilt.")


def rotate_root_key() -> None:
    """For `strongroom key rotate`."""
    settings = settings_of()
    from strongroom.server import rotate_root_key as run

    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if not wants_json():
            click.echo(line)

    with sentences():
        run(settings, report)
    say_line({"report": lines}, "The root key is rotated.")


def settings_of(**options: Any) -> Settings:
    """What the server of --data DIR runs with; `options` as Settings.load takes them."""
    with _usable():
        return Settings.load(data_folder(), outside().environ, **options)


@contextmanager
def _usable() -> Iterator[None]:
    """Turns a setting that cannot be used into wrong use."""
    try:
        yield
    except SettingsError as error:
        raise click.UsageError(str(error), click.get_current_context()) from error


@contextmanager
def sentences() -> Iterator[None]:
    """Ends the command with the sentence of an error that an operator can do something about; a defect keeps its traceback."""
    from sqlalchemy.exc import OperationalError

    from strongroom.backups.errors import Refused
    from strongroom.backups.exporting import ExportError
    from strongroom.backups.rekeying import RotationRefused
    from strongroom.backups.staleness import CatalogOutdated
    from strongroom.catalog.database import CatalogError
    from strongroom.identity.errors import SecretUnreadable
    from strongroom.jobs.embedded import DataFolderInUse
    from strongroom.repository.errors import RepositoryError
    from strongroom.server import RebuildRefused
    from strongroom.storage.base import StoreError

    try:
        with _usable():
            yield
    except OperationalError as error:
        raise CommandError(f"the catalog cannot be used: {error.orig}") from error
    except ssl.SSLError as error:
        raise CommandError(f"the certificate or its key cannot be used: {error.reason or error}") from error
    except OSError as error:
        raise CommandError(_told(error)) from error
    except (
        CatalogOutdated, CatalogError, DataFolderInUse, ExportError, Refused, RepositoryError, RebuildRefused, RotationRefused,
        SecretUnreadable, StoreError,
    ) as error:  # fmt: skip
        raise CommandError(str(error)) from error


def _told(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port is taken: is this server running already? --port chooses another"
    return f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
