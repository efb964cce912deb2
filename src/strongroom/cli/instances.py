"""`strongroom instance`: the databases that are backed up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from strongroom.cli.context import client, confirm, say, say_line, secret, shared
from strongroom.cli.display import facts, moment, size, table, word
from strongroom.cli.errors import CommandError

if TYPE_CHECKING:
    from strongroom.cli.client import Answer, Client


_password = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input (asked for on a terminal)."
)
_options = click.option(
    "--option",
    "options",
    multiple=True,
    metavar="OPTION=VALUE",
    help="An option of the engine's own, such as ca=@FILE; may be given again. @FILE is what a file holds, @- the next line of "
    "standard input (asked for on a terminal); passwords and keys are taken in these two ways alone.",
)


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
    "cassandra://[USER@]HOST[:PORT][,…], no password in it; rediss, influxdbs and cassandras speak TLS.",
)
@_password
@_options
@shared
def add(name: str, engine: str, address: str, password_stdin: bool, options: tuple[str, ...]) -> None:
    """Register the database NAME; the server tries to enter it first."""
    body = {"name": name, "engine": engine, **_access(address, password_stdin, options)}
    with client() as api:
        added = api.own("POST", "instances", body=body)
    say_line(added, f"Added {name} as {added.get('id')}.")


@instance.command("change")
@click.argument("instance", metavar="INSTANCE")
@click.option("--address", metavar="URL", help="Where it is from now on; give password and options anew with it.")
@_password
@_options
@shared
def change(instance: str, address: str | None, password_stdin: bool, options: tuple[str, ...]) -> None:
    """Change how a database is entered, as after a change of its password; the server tries to enter it so first. Its backups,
    schedule and all else stay. Options replace all that there were."""
    body = _access(address, password_stdin, options)
    if not body:
        raise click.UsageError("say what changes: --address, --password-stdin or --option", click.get_current_context())
    with client() as api:
        key = resolve(api, instance)
        changed = api.own("PUT", f"instances/{key}/access", body=body)
    say_line(changed, f"{instance} ({key}) is entered so from now on.")


def _access(address: str | None, password_stdin: bool, options: tuple[str, ...]) -> dict[str, Any]:
    body: dict[str, Any] = {} if address is None else {"address": _without_password(address)}
    if password_stdin:
        body["password"] = secret("Password")
    if options:
        body["options"] = dict(_option(one) for one in options)
    return body


@instance.command("list")
@click.option("--tag", "tags", multiple=True, metavar="KEY[=VALUE]", help="Only those with this tag; may be given again.")
@shared
def list_(tags: tuple[str, ...]) -> None:
    """List the registered databases."""
    with client() as api:
        found = api.instances(tags)
    rows = [
        (
            word(one.get("id")), word(one.get("name")), _engine(one), word(one.get("mode")), word(one.get("state")),
            word(one.get("backups")), size(one.get("stored_bytes")), _last(one),
        )
        for one in found
    ]  # fmt: skip
    columns = ("ID", "NAME", "ENGINE", "MODE", "STATE", ">BACKUPS", ">STORED", "LAST BACKUP")
    nothing = "No instance is registered; `strongroom instance add` registers one."
    if tags:
        nothing = "No instance has these tags."
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
        "tags": word(", ".join(f"{key}={value}" for key, value in (one.get("labels") or {}).items())),
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


@instance.command("tag")
@click.argument("instance", metavar="INSTANCE")
@click.argument("tags", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--remove", multiple=True, metavar="KEY", help="Take this tag off; may be given again.")
@shared
def tag(instance: str, tags: tuple[str, ...], remove: tuple[str, ...]) -> None:
    """Put tags on a database, or take some off."""
    if not tags and not remove:
        raise click.UsageError("say which tags: KEY=VALUE…, or --remove KEY", click.get_current_context())
    pairs = [word.partition("=") for word in tags]
    with client() as api:
        key = resolve(api, instance)
        for action, changes in (
            ("delete", [{"key": name} for name in remove]),
            ("create", [{"key": name, "value": value} for name, _, value in pairs]),
        ):
            if changes:
                api.contract("POST", f"v3/instances/{key}/tags/action", body={"action": action, "tags": changes})
        found = api.contract("GET", f"v3/instances/{key}/tags")["tags"]
    said = ", ".join(f"{one['key']}={one['value']}" for one in found) or "none"
    say_line({"id": key, "tags": found}, f"Tags of {instance} ({key}): {said}.")


@instance.command("recycled")
@shared
def recycled() -> None:
    """List databases that were unregistered lately, and the newest backup that is left of each."""
    with client() as api:
        found = api.recycled()
    rows = [
        (
            word(one.get("id")), word(one.get("name")), word((one.get("data_store") or {}).get("type")),
            moment(one.get("deleted_at")), moment(one.get("retained_until")), word(one.get("backup_id")),
        )
        for one in found
    ]  # fmt: skip
    columns = ("ID", "NAME", "ENGINE", "UNREGISTERED", "LISTED UNTIL", "NEWEST BACKUP")
    nothing = "No instance was unregistered lately."
    say({"total_count": len(found), "instances": found}, lambda console: table(console, columns, rows, nothing))


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


_SECRET = ("password", "key")  # how names of options end whose values nobody may read in a command's arguments


def _option(text: str) -> tuple[str, str]:
    """Name and value of OPTION=VALUE, OPTION=@FILE, OPTION=@-."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter("is not of the form OPTION=VALUE", param_hint="--option")
    if value == "@-":
        return name, secret(name)
    if value.startswith("@"):
        try:
            return name, Path(value[1:]).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise click.BadParameter(f"{name}: cannot read {value[1:]}: {error}", param_hint="--option") from error
    if name.lower().endswith(_SECRET):
        raise click.BadParameter(f"{name} is a secret: give it as {name}=@FILE, or {name}=@-", param_hint="--option")
    return name, value


def _engine(one: Answer) -> str:
    return " ".join(str(part) for part in (one.get("engine"), one.get("version")) if part) or "-"


def _last(one: Answer) -> str:
    last = one.get("last_backup")
    return f"{last.get('name')} {str(last.get('status')).lower()} {moment(last.get('end_time'))}" if last else "-"
