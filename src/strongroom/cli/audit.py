"""`strongroom audit`: whether the audit trail is what was written."""

from __future__ import annotations

import click

from strongroom.cli.context import client, say, shared
from strongroom.cli.display import facts, word
from strongroom.cli.errors import CommandError


class TrailBroken(CommandError):
    """The check was done, and the trail is not what was written."""


@click.group("audit")
@shared
def audit() -> None:
    """Check the audit trail."""


@audit.command("verify")
@click.option(
    "--kept", metavar="HEAD", help="A head that an earlier check told, kept elsewhere: the trail must still lead to it."
)
@shared
def verify(kept: str | None) -> None:
    """Read the account's whole audit trail: was a record changed, removed or moved?

    The exit status is 1 if so. Who can write the database can also write the whole trail anew: keep the head that this tells
    somewhere else, and give it with --kept the next time.
    """
    with client() as api:
        found = api.own("GET", "audit/verification", query={"kept": kept})
    pairs = {"outcome": word(found.get("outcome")), "records": word(found.get("records")), "head": word(found.get("head"))}
    say(found, lambda console: facts(console, pairs))
    broken = found.get("broken")
    if broken:
        raise TrailBroken(f"the audit trail is broken at record {word(broken.get('record'))}: {word(broken.get('reason'))}")
