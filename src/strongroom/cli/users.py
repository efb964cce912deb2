"""`strongroom user`: who may enter, and what they may do. For the account's administrator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from strongroom.cli.context import client, confirm, interactive, say, say_line, secret, shared
from strongroom.cli.display import facts, moment, table, word
from strongroom.cli.identity import drop, give, granted, take

if TYPE_CHECKING:
    from strongroom.cli.client import Answer

_FROM = "The password is the first line of standard input, or asked for on a terminal."


@click.group("user")
@shared
def user() -> None:
    """Manage users. USER is a name or an id."""


@user.command("add")
@click.argument("name")
@click.option("--administrator", is_flag=True, help="May everything in the account.")
@click.option("--password-stdin", is_flag=True, help=f"Give a password; without one the user signs with keys only. {_FROM}")
@shared
def add(name: str, administrator: bool, password_stdin: bool) -> None:
    """Make the user NAME, who may nothing before a policy is granted."""
    body: dict[str, Any] = {"name": name, "administrator": administrator}
    if password_stdin:
        body["password"] = secret("Password", new=True)
    with client() as api:
        made = api.identity("POST", "users", body=body)
    say_line(made, f"Added {name} as {made.get('id')}.")


@user.command("list")
@shared
def list_() -> None:
    """List the account's users."""
    with client() as api:
        found = api.identity("GET", "users")
    rows = [(word(one.get("name")), word(one.get("id")), _state(one), _enters_by(one)) for one in found.get("users", [])]
    say(found, lambda console: table(console, ("NAME", "ID", "STATE", "ENTERS BY"), rows, "There is no user."))


@user.command("show")
@click.argument("user", metavar="USER")
@shared
def show(user: str) -> None:
    """Show a user with groups, policies and access keys."""
    with client() as api:
        one = api.identity("GET", "users", user)
    pairs = {
        "id": word(one.get("id")),
        "name": word(one.get("name")),
        "state": _state(one),
        "enters by": _enters_by(one),
        "made": moment(one.get("created_at")),
        "groups": word(", ".join(one.get("groups", []))),
        "policies": word(", ".join(granted(grant) for grant in one.get("grants", []))),
        "keys": word(", ".join(_key(key) for key in one.get("keys", []))),
    }
    say(one, lambda console: facts(console, pairs))


@user.command("password")
@click.argument("user", metavar="USER")
@shared
def password(user: str) -> None:
    """Give a user a password: the first line of standard input, or asked for on a terminal. All of the user's tokens end."""
    _change(user, {"password": secret("New password", new=True)}, f"Changed the password of {user}.")


@user.command("enable")
@click.argument("user", metavar="USER")
@shared
def enable(user: str) -> None:
    """Let a disabled user enter again."""
    _change(user, {"enabled": True}, f"Enabled {user}.")


@user.command("disable")
@click.argument("user", metavar="USER")
@shared
def disable(user: str) -> None:
    """Keep a user out: tokens end at once, keys sign nothing."""
    _change(user, {"enabled": False}, f"Disabled {user}.")


@user.command("promote")
@click.argument("user", metavar="USER")
@shared
def promote(user: str) -> None:
    """Make a user an administrator of the account, who may everything in it."""
    _change(user, {"administrator": True}, f"{user} is an administrator.")


@user.command("demote")
@click.argument("user", metavar="USER")
@shared
def demote(user: str) -> None:
    """Make an administrator an ordinary user."""
    _change(user, {"administrator": False}, f"{user} is no administrator any more.")


@user.command("remove")
@click.argument("user", metavar="USER")
@click.option("--yes", is_flag=True, help="Do not ask.")
@shared
def remove(user: str, yes: bool) -> None:
    """Remove a user with keys, tokens and grants. What they did stays in the audit trail."""
    drop("users", user, f"Remove the user {user} with all access keys?", yes)


@user.command("grant")
@click.argument("user", metavar="USER")
@click.argument("policy", metavar="POLICY")
@click.option("--project", metavar="PROJECT", help="In this project only; else in all of the account's.")
@shared
def grant(user: str, policy: str, project: str | None) -> None:
    """Give a user a policy."""
    give("users", user, policy, project)


@user.command("revoke")
@click.argument("user", metavar="USER")
@click.argument("policy", metavar="POLICY")
@click.option("--project", metavar="PROJECT", help="What was granted in this project.")
@shared
def revoke(user: str, policy: str, project: str | None) -> None:
    """Take a policy from a user. All of the user's tokens end."""
    take("users", user, policy, project)


@user.group("totp")
@shared
def totp() -> None:
    """A user's second factor: codes of an authenticator app beside the password."""


@totp.command("enrol")
@click.argument("user", metavar="USER")
@shared
def enrol(user: str) -> None:
    """Draw a secret for the user's app and show it, once. On a terminal a code is asked for and confirms it."""
    with client() as api:
        made = api.identity("POST", "users", user, "totp")
        pairs = {"secret": word(made.get("secret")), "for apps": word(made.get("uri"))}
        say(made, lambda console: facts(console, pairs))
        if interactive():
            api.identity("PUT", "users", user, "totp", body={"passcode": click.prompt("Code", err=True)})
            click.echo(f"From now on {user} needs a code beside the password.")
        elif made:
            click.echo(f"Confirm it with a code: strongroom user totp confirm {user}", err=True)


@totp.command("confirm")
@click.argument("user", metavar="USER")
@shared
def confirm_totp(user: str) -> None:
    """Show a code of the enrolled secret: the first line of standard input, or asked for. It is needed from then on."""
    code = secret("Code")
    with client() as api:
        api.identity("PUT", "users", user, "totp", body={"passcode": code})
    say_line({"user": user, "second_factor": True}, f"From now on {user} needs a code beside the password.")


@totp.command("remove")
@click.argument("user", metavar="USER")
@click.option("--yes", is_flag=True, help="Do not ask.")
@shared
def remove_totp(user: str, yes: bool) -> None:
    """Let a user enter by password alone again."""
    confirm(f"Remove the second factor of {user}?", yes)
    with client() as api:
        api.identity("DELETE", "users", user, "totp")
    say_line({"user": user, "second_factor": False}, f"{user} enters by password alone.")


def _change(user: str, body: dict[str, Any], line: str) -> None:
    with client() as api:
        changed = api.identity("PUT", "users", user, body=body)
    say_line(changed, line)


def _state(one: Answer) -> str:
    words = ["administrator"] if one.get("administrator") else []
    words.append("enabled" if one.get("enabled") else "disabled")
    if one.get("resting_until"):
        words.append(f"rests until {moment(one['resting_until'])}")
    return ", ".join(words)


def _enters_by(one: Answer) -> str:
    if not one.get("password"):
        return "keys"
    return "password and code, keys" if one.get("second_factor") else "password, keys"


def _key(key: Answer) -> str:
    words = [] if key.get("enabled") else ["disabled"]
    if key.get("locked_until"):
        words.append(f"locked until {moment(key['locked_until'])}")
    if key.get("expires_at"):
        words.append(f"temporary, until {moment(key['expires_at'])}")
    return f"{key.get('access_key')} ({', '.join(words)})" if words else str(key.get("access_key"))
