"""`strongroom group`: users who have policies together. For the account's administrator."""

from __future__ import annotations

import click

from strongroom.cli.context import client, say, say_line, shared
from strongroom.cli.display import facts, table, word
from strongroom.cli.identity import drop, give, granted, take


@click.group("group")
@shared
def group() -> None:
    """Manage groups of users. GROUP and USER are names or ids."""


@group.command("add")
@click.argument("name")
@shared
def add(name: str) -> None:
    """Make the group NAME."""
    with client() as api:
        made = api.identity("POST", "groups", body={"name": name})
    say_line(made, f"Added the group {name} as {made.get('id')}.")


@group.command("list")
@shared
def list_() -> None:
    """List the account's groups."""
    with client() as api:
        found = api.identity("GET", "groups")
    rows = [
        (word(one.get("name")), word(one.get("id")), word(", ".join(one.get("members", []))),
         word(", ".join(granted(grant) for grant in one.get("grants", []))))
        for one in found.get("groups", [])
    ]  # fmt: skip
    say(found, lambda console: table(console, ("NAME", "ID", "MEMBERS", "POLICIES"), rows, "There is no group."))


@group.command("show")
@click.argument("group", metavar="GROUP")
@shared
def show(group: str) -> None:
    """Show a group with members and policies."""
    with client() as api:
        one = api.identity("GET", "groups", group)
    pairs = {
        "id": word(one.get("id")),
        "name": word(one.get("name")),
        "members": word(", ".join(one.get("members", []))),
        "policies": word(", ".join(granted(grant) for grant in one.get("grants", []))),
    }
    say(one, lambda console: facts(console, pairs))


@group.command("remove")
@click.argument("group", metavar="GROUP")
@click.option("--yes", is_flag=True, help="Do not ask.")
@shared
def remove(group: str, yes: bool) -> None:
    """Remove a group: its members lose what it had."""
    drop("groups", group, f"Remove the group {group}?", yes)


@group.command("join")
@click.argument("group", metavar="GROUP")
@click.argument("user", metavar="USER")
@shared
def join(group: str, user: str) -> None:
    """Make USER a member of GROUP."""
    with client() as api:
        api.identity("PUT", "groups", group, "members", user)
    say_line({"group": group, "user": user}, f"{user} is in {group}.")


@group.command("leave")
@click.argument("group", metavar="GROUP")
@click.argument("user", metavar="USER")
@shared
def leave(group: str, user: str) -> None:
    """End USER's membership of GROUP."""
    with client() as api:
        api.identity("DELETE", "groups", group, "members", user)
    say_line({"group": group, "user": user}, f"{user} is not in {group} any more.")


@group.command("grant")
@click.argument("group", metavar="GROUP")
@click.argument("policy", metavar="POLICY")
@click.option("--project", metavar="PROJECT", help="In this project only; else in all of the account's.")
@shared
def grant(group: str, policy: str, project: str | None) -> None:
    """Give a group a policy."""
    give("groups", group, policy, project)


@group.command("revoke")
@click.argument("group", metavar="GROUP")
@click.argument("policy", metavar="POLICY")
@click.option("--project", metavar="PROJECT", help="What was granted in this project.")
@shared
def revoke(group: str, policy: str, project: str | None) -> None:
    """Take a policy from a group. All tokens of its members end."""
    take("groups", group, policy, project)
