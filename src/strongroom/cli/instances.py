"""`strongroom instance`: the databases that are backed up."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from strongroom.cli.context import client, confirm, say, say_line, shared
from strongroom.cli.display import facts, moment, size, table, word
from strongroom.cli.errors import CommandError

if TYPE_CHECKING:
    from strongroom.cli.client import Answer, Client


@click.group("instance")
@shared
def instance() -> None:
    """Register databases and see them."""


@instance.command("add")
@click.argument("name")
@click.option(
    "--engine",
    required=True,
    type=click.Choice(["redis", "mongodb", "influxdb", "cassandra"]),
    help="What kind of database it is.",
)
@click.option(
    "--address",
    required=True,
    metavar="URL",
    help="redis://[USER@]HOST:PORT, mongodb://[USER@]HOST[:PORT][,…]/, influxdb://[USER@]HOST[:PORT]/[DB] or "
    "cassandra://[USER@]HOST[:PORT][,…], no password in it.",
)
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input (asked for on a terminal).")
@shared
def add(name: str, engine: str, address: str, password_stdin: bool) -> None:
    """Register the database NAME; the server tries to enter it first."""
    body = {"name": name, "engine": engine, "address": _without_password(address)}
    if password_stdin:
        body["password"] = _password()
    with client() as api:
        added = api.own("POST", "instances", body=body)
    say_line(added, f"Added {name} as {added.get('id')}.")


@instance.command("list")
@shared
def list_() -> None:
    """List the registered databases."""
    with client() as api:
        found = api.instances()
    rows = [
        (
            word(one.get("id")), word(one.get("name")), _engine(one), word(one.get("mode")), word(one.get("state")),
            word(one.get("backups")), size(one.get("stored_bytes")), _last(one),
        )
        for one in found
    ]  # fmt: skip
    columns = ("ID", "NAME", "ENGINE", "MODE", "STATE", ">BACKUPS", ">STORED", "LAST BACKUP")
    nothing = "No instance is registered; `strongroom instance add` registers one."
    say({"total_count": len(found), "instances": found}, lambda console: table(console, columns, rows, nothing))


@instance.command("show")
@click.argument("instance", metavar="INSTANCE")
@shared
def show(instance: str) -> None:
    """Show one database, by name or id."""
    with client() as api:
        one = api.own("GET", f"instances/{resolve(api, instance)}")
    pairs = {
        "id": word(one.get("id")),
        "name": word(one.get("name")),
        "engine": _engine(one),
        "address": word(one.get("address")),
        "mode": word(one.get("mode")),
        "state": word(one.get("state")),
        "labels": word(", ".join(f"{key}={value}" for key, value in (one.get("labels") or {}).items())),
        "registered": moment(one.get("created_at")),
        "backups": word(one.get("backups")),
        "stored": size(one.get("stored_bytes")),
        "last backup": _last(one),
    }
    say(one, lambda console: facts(console, pairs))


@instance.command("remove")
@click.argument("instance", metavar="INSTANCE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@shared
def remove(instance: str, yes: bool) -> None:
    """Unregister a database, by name or id. Its manual backups stay, its automated ones are deleted."""
    with client() as api:
        key = resolve(api, instance)
        confirm(f"Unregister {instance} ({key}) and delete its automated backups?", yes)
        answer = api.own("DELETE", f"instances/{key}")
    say_line({"id": key, **answer}, f"Unregistered {instance} ({key}).")


def resolve(api: Client, instance: str) -> str:
    """The id of the instance that has this id or name; an id goes first."""
    known = api.instances()
    for key in ("id", "name"):
        for one in known:
            if one.get(key) == instance:
                return str(one["id"])
    raise CommandError(f"no instance has the name or id {instance!r}: `strongroom instance list` shows them")


def _without_password(address: str) -> str:
    """Refuses an address with a password: other users of the machine can read a command's arguments."""
    try:
        has_password = urlsplit(address).password is not None
    except ValueError as error:
        raise click.BadParameter(f"is no URL: {error}", param_hint="--address") from error
    if has_password:
        raise click.BadParameter("holds a password: take it out and give it with --password-stdin", param_hint="--address")
    return address


def _password() -> str:
    if sys.stdin.isatty():
        typed: str = click.prompt("Password", hide_input=True, err=True)
        return typed
    text = sys.stdin.readline().removesuffix("\n").removesuffix("\r")
    if not text:
        raise click.UsageError("standard input holds no password", click.get_current_context())
    return text


def _engine(one: Answer) -> str:
    return " ".join(str(part) for part in (one.get("engine"), one.get("version")) if part) or "-"


def _last(one: Answer) -> str:
    last = one.get("last_backup")
    return f"{last.get('name')} {str(last.get('status')).lower()} {moment(last.get('end_time'))}" if last else "-"
