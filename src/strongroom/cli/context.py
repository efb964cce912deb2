"""What every command shares: its options, the client they lead to, and how it says what it found.

The options of `shared` stand before or after any subcommand; the one further right counts.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from strongroom.ambient import Ambient, Machine

if TYPE_CHECKING:
    import httpx
    from rich.console import Console

    from strongroom.cli.client import Client

F = TypeVar("F", bound=Callable[..., Any])

_KEY = "strongroom."


@dataclass(frozen=True, slots=True)
class Outside:
    """What the commands take from outside; tests give their own."""

    transport: httpx.BaseTransport | None = None
    ambient: Ambient = field(default_factory=Machine)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)


def _keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        ctx.meta[f"{_KEY}{parameter.name}"] = value


def shared(command: F) -> F:
    """Adds the options that every command has."""
    for option in (
        click.option("--json", is_flag=True, expose_value=False, callback=_keep, help="Answer in JSON."),
        click.option(
            "--project-id", metavar="ID", expose_value=False, callback=_keep, help="The project; else STRONGROOM_PROJECT_ID."
        ),
        click.option(
            "--endpoint", metavar="URL", expose_value=False, callback=_keep, help="The server; else STRONGROOM_ENDPOINT."
        ),
        click.option(
            "--data", metavar="DIR", expose_value=False, callback=_keep, help="The data folder of a server on this machine."
        ),
    ):
        command = option(command)
    return command


def outside() -> Outside:
    """The running command's outside."""
    found: Outside | None = click.get_current_context().find_object(Outside)
    return found or Outside()


def given(name: str) -> str | None:
    """A shared option's value: "data", "endpoint" or "project_id"."""
    value: str | None = click.get_current_context().meta.get(f"{_KEY}{name}")
    return value


def wants_json() -> bool:
    """Whether the answer is for a program."""
    return bool(click.get_current_context().meta.get(f"{_KEY}json"))


def data_folder() -> str:
    """The data folder, for commands that work on it; a usage error without one."""
    folder = given("data")
    if folder is None:
        raise click.UsageError("say which data folder: --data DIR", click.get_current_context())
    return folder


@contextmanager
def client() -> Iterator[Client]:
    """A client of the server that options and environment name."""
    from strongroom.cli.client import Client
    from strongroom.cli.connection import find

    out = outside()
    opened = Client(find(given("data"), given("endpoint"), given("project_id"), out.environ), out.transport, out.ambient.now)
    try:
        yield opened
    finally:
        opened.close()


def say(answer: Any, people: Callable[[Console], None]) -> None:
    """Writes the answer to standard output: as JSON where asked for, else as `people` shows it."""
    if wants_json():
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        people(console())


def say_line(answer: Any, line: str) -> None:
    """Like `say`, for what one line tells."""
    if wants_json():
        say(answer, lambda _: None)
    else:
        click.echo(line)


def console(*, err: bool = False) -> Console:
    """A console; where nobody looks at a terminal its lines are as long as they need to be."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 400, highlight=False, emoji=False, markup=False)


def interactive() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty() and not wants_json()


def confirm(question: str, yes: bool) -> None:
    """Goes on only after a yes; where nobody can be asked only with --yes (a usage error else)."""
    if yes:
        return
    if not interactive():
        raise click.UsageError("nobody can be asked here: give --yes to go on", click.get_current_context())
    if not click.confirm(question, err=True):
        raise click.Abort


def secret(what: str, *, new: bool = False) -> str:
    """A secret from the first line of standard input, or asked for on a terminal (twice, where it is a new one)."""
    if sys.stdin.isatty():
        typed: str = click.prompt(what, hide_input=True, err=True, confirmation_prompt=new)
        return typed
    text = sys.stdin.readline().removesuffix("\n").removesuffix("\r")
    if not text:
        raise click.UsageError(f"standard input holds no {what.lower()}", click.get_current_context())
    return text
