"""`strongroom key`: access keys that sign requests, for the account's administrator; and the root key, for the machine's."""

from __future__ import annotations

import click

from strongroom.cli.context import client, say, say_line, shared
from strongroom.cli.display import facts, moment, table, word
from strongroom.cli.identity import drop
from strongroom.cli.server import rotate_root_key


@click.group("key")
@shared
def key() -> None:
    """Manage access keys, and rotate the root key. USER is a name or an id, KEY an access key's id."""


@key.command("add")
@click.argument("user", metavar="USER")
@shared
def add(user: str) -> None:
    """Make an access key for USER. Its secret is shown now and never again."""
    with client() as api:
        made = api.identity("POST", "users", user, "keys")
    pairs = {"access key": word(made.get("access_key")), "secret key": word(made.get("secret_key"))}
    say(made, lambda console: facts(console, pairs))


@key.command("list")
@click.argument("user", metavar="USER")
@shared
def list_(user: str) -> None:
    """List the access keys of USER."""
    with client() as api:
        found = {"keys": api.identity("GET", "users", user).get("keys", [])}
    rows = [
        (word(one.get("access_key")), "enabled" if one.get("enabled") else "disabled", moment(one.get("created_at")),
         moment(one.get("locked_until")), moment(one.get("expires_at")))
        for one in found["keys"]
    ]  # fmt: skip
    columns = ("KEY", "STATE", "MADE", "LOCKED UNTIL", "EXPIRES")
    say(found, lambda console: table(console, columns, rows, f"{user} has no access key."))


@key.command("enable")
@click.argument("key", metavar="KEY")
@shared
def enable(key: str) -> None:
    """Let a disabled key sign again."""
    _change(key, enabled=True)


@key.command("disable")
@click.argument("key", metavar="KEY")
@shared
def disable(key: str) -> None:
    """Let a key sign nothing. All tokens of its user end."""
    _change(key, enabled=False)


@key.command("remove")
@click.argument("key", metavar="KEY")
@click.option("--yes", is_flag=True, help="Do not ask.")
@shared
def remove(key: str, yes: bool) -> None:
    """Remove an access key. All tokens of its user end."""
    drop("keys", key, f"Remove the access key {key}?", yes)


@key.command("rotate")
@shared
def rotate() -> None:
    """Rotate the ROOT key of --data DIR: all that it seals is sealed anew, no pack is rewritten. Stop the server first.

    After a crash, run it again: until it has ended the old key still opens what the new one does not. Where the root key is
    in a file, the next one is drawn; else give it by STRONGROOM_NEXT_ROOT_KEY, …_COMMAND or …_FILE.
    """
    rotate_root_key()


def _change(key: str, *, enabled: bool) -> None:
    with client() as api:
        changed = api.identity("PUT", "keys", key, body={"enabled": enabled})
    say_line(changed, f"{'Enabled' if enabled else 'Disabled'} {key}.")
