"""`strongroom policy`: what may be granted, and what it would allow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from strongroom.cli.context import client, say, say_line, shared
from strongroom.cli.display import facts, table, word
from strongroom.cli.identity import drop

if TYPE_CHECKING:
    from strongroom.cli.client import Answer

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("policy")
@shared
def policy() -> None:
    """Manage policies, documents of version 1.1 or 5.0. POLICY is a name or an id."""


@policy.command("put")
@click.argument("name")
@click.argument("file", metavar="FILE", type=_FILE)
@shared
def put(name: str, file: Path) -> None:
    """Store FILE as the policy NAME, replacing an older one. What cannot be understood is refused."""
    with client() as api:
        stored = api.identity("PUT", "policies", name, body={"document": _read(file)})
    say_line(stored, f"Stored the policy {name} as {stored.get('id')}.")


@policy.command("list")
@shared
def list_() -> None:
    """List the built-in policies and the account's own."""
    with client() as api:
        found = api.identity("GET", "policies")
    rows = [
        (word(one.get("name")), "built in" if one.get("built_in") else word(one.get("id"))) for one in found.get("policies", [])
    ]
    say(found, lambda console: table(console, ("NAME", "ID"), rows, "There is no policy."))


@policy.command("show")
@click.argument("policy", metavar="POLICY")
@shared
def show(policy: str) -> None:
    """Show a policy's document."""
    with client() as api:
        one = api.identity("GET", "policies", policy)
    say_line(one, str(one.get("document")))


@policy.command("remove")
@click.argument("policy", metavar="POLICY")
@click.option("--yes", is_flag=True, help="Do not ask.")
@shared
def remove(policy: str, yes: bool) -> None:
    """Remove a policy and take it from all who have it."""
    drop("policies", policy, f"Remove the policy {policy}?", yes)


@policy.command("simulate")
@click.argument("user", metavar="USER")
@click.argument("action", metavar="ACTION")
@click.option("--project", metavar="PROJECT", help="A call about this project; else one about the account.")
@click.option("--with", "files", metavar="FILE", type=_FILE, multiple=True, help="Try this document beside what the user has.")
@click.option("--context", "context", metavar="KEY=VALUE", multiple=True, help="What a condition would find: g:MFAPresent=true")
@shared
def simulate(user: str, action: str, project: str | None, files: tuple[Path, ...], context: tuple[str, ...]) -> None:
    """May USER do ACTION? Tells which statement decides. The exit status is 0 for yes and 1 for no. Nothing is done."""
    body = {
        "user": user,
        "action": action,
        "project": project,
        "documents": [_read(file) for file in files],
        "context": dict(_pair(text) for text in context),
    }
    with client() as api:
        found = api.identity("POST", "simulations", body=body)
    pairs = {
        "outcome": "allowed" if found.get("allowed") else "denied",
        "action": word(found.get("action")),
        "because": word(found.get("reason")),
        "by": _place(found),
    }
    say(found, lambda console: facts(console, pairs))
    if not found.get("allowed"):
        click.get_current_context().exit(1)


def _place(found: Answer) -> str:
    if not found.get("policy"):
        return "-"
    sid = f" ({found['sid']})" if found.get("sid") else ""
    group = f", of the group {found['group']}" if found.get("group") else ""
    return f"statement {found.get('statement')}{sid} of the policy {found['policy']}{group}"


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--context")
    return key, value


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{file} cannot be read: {error}", param_hint="FILE") from error
