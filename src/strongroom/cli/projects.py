"""`strongroom project`: the account's projects."""

from __future__ import annotations

import click

from strongroom.cli.context import client, say, say_line, shared
from strongroom.cli.display import table, word


@click.group("project")
@shared
def project() -> None:
    """Manage projects: instances, backups and grants belong to one."""


@project.command("add")
@click.argument("name")
@shared
def add(name: str) -> None:
    """Make the project NAME."""
    with client() as api:
        made = api.identity("POST", "projects", body={"name": name})
    say_line(made, f"Added the project {name} as {made.get('id')}.")


@project.command("list")
@shared
def list_() -> None:
    """List the projects that one may use."""
    with client() as api:
        found = api.identity("GET", "projects")
    rows = [(word(one.get("id")), word(one.get("name"))) for one in found.get("projects", [])]
    say(found, lambda console: table(console, ("ID", "NAME"), rows, "There is no project."))
