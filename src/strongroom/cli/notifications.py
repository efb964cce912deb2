"""`strongroom notify`: a word when it matters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from strongroom.cli.context import client, say, say_line, secret, shared
from strongroom.cli.display import facts, moment, table, word
from strongroom.cli.instances import resolve

if TYPE_CHECKING:
    from rich.console import Console

    from strongroom.cli.client import Answer

_EVENTS = (
    "backup_failed", "deletion_failed", "restore_failed", "test_restore_failed", "damage_found", "no_good_backup",
    "good_backup_again",
)  # fmt: skip

_FROM = "The first line of standard input, or asked for."


@click.group("notify")
@shared
def notify() -> None:
    """Be told of failed backups, deletions and restores, of damage, and when there is no good backup for too long."""


@notify.command("add")
@click.argument("name", metavar="NAME")
@click.argument("url", metavar="URL")
@click.option("--event", "events", multiple=True, type=click.Choice(_EVENTS), help="Tell of this; repeat it. Else of all.")
@shared
def add(name: str, url: str, events: tuple[str, ...]) -> None:
    """Have events posted to URL. Shows the secret that signs them, once. Needs the account's administrator."""
    body: dict[str, Any] = {"name": name, "url": url, **({"events": list(events)} if events else {})}
    with client() as api:
        made = api.own("POST", "notifications/webhooks", body=body)

    def people(console: Console) -> None:
        facts(console, {"webhook": word(made.get("name")), "secret": word(made.get("secret"))})
        console.print(f"It is not shown again. `strongroom notify test {name}` tries it out.")

    say(made, people)


@notify.command("list")
@shared
def list_() -> None:
    """Show the project's webhooks, and what became of what they were to be told."""
    with client() as api:
        answer = api.own("GET", "notifications/webhooks")
    rows = [
        (
            word(one.get("name")), word(one.get("url")), word(one.get("delivered")), word(one.get("failed")),
            word((one.get("given_up") or 0) + (one.get("dropped") or 0)), word(one.get("last_error")),
        )
        for one in answer.get("webhooks") or []
    ]  # fmt: skip
    columns = ("WEBHOOK", "URL", ">TOLD", ">FAILED TRIES", ">NEVER TOLD", "LAST ERROR")
    say(answer, lambda console: table(console, columns, rows, "No webhook is registered."))


@notify.command("rotate")
@click.argument("name", metavar="NAME")
@click.option("--secret-stdin", is_flag=True, help=f"Give the new secret; else one is drawn and shown, once. {_FROM}")
@click.option("--overlap", type=click.FloatRange(0, 168), metavar="HOURS", help="The old one signs too for so long; else for 24.")
@shared
def rotate(name: str, secret_stdin: bool, overlap: float | None) -> None:
    """Replace the secret that signs what this webhook is told. Until the overlap ends, each delivery is signed by both."""
    from strongroom.cli.client import segment

    body: dict[str, Any] = {} if overlap is None else {"overlap_hours": overlap}
    if secret_stdin:
        body["secret"] = secret("New secret", new=True)
    with client() as api:
        made = api.own("POST", f"notifications/webhooks/{segment(name)}/secret", body=body)

    def people(console: Console) -> None:
        shown = {"secret": word(made.get("secret"))} if made.get("secret") else {}
        facts(console, {"webhook": name, **shown, "the old one signs until": moment(made.get("previous_until"))})
        if shown:
            console.print("It is not shown again.")

    say(made, people)


@notify.command("remove")
@click.argument("name", metavar="NAME")
@shared
def remove(name: str) -> None:
    """Tell this webhook nothing more."""
    from strongroom.cli.client import segment

    with client() as api:
        answer = api.own("DELETE", f"notifications/webhooks/{segment(name)}")
    say_line(answer, f"{name} is told nothing more.")


@notify.command("test")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--command", "command", is_flag=True, help="The server's own command (STRONGROOM_NOTIFY_COMMAND).")
@shared
def test(name: str | None, command: bool) -> None:
    """Send a test event to the webhook NAME, or to the server's command, and say what came back. Exit status 1 if it failed."""
    if (name is None) is not command:
        raise click.UsageError("say what to test: a webhook's NAME, or --command", click.get_current_context())
    from strongroom.cli.client import text_of
    from strongroom.cli.waiting import must_have_completed, wait

    with client() as api:
        accepted = api.own("POST", "notifications/test", body={"webhook": name})
        job = wait(api, text_of(accepted, "job_id"))
    must_have_completed(job)
    result: Answer = job.get("result") or {}
    what = f"{name} answered {result.get('status')}" if name is not None else "The command ended with status 0"
    say_line({"job_id": job.get("id"), **result}, f"{what} after {result.get('seconds')} s.")


@notify.command("hours")
@click.argument("hours", metavar="[HOURS|none|default]", required=False)
@click.option("--instance", metavar="INSTANCE", help="Of this database, by name or id; else of the project.")
@shared
def hours(hours: str | None, instance: str | None) -> None:
    """Show, or set, after how many hours without a good backup it is told. none: never; default: as the next wider one says."""
    wanted = _hours_of(hours)
    with client() as api:
        place = "" if instance is None else f"instances/{resolve(api, instance)}/"
        path = f"{place}notifications/hours"
        if hours is None:
            found = api.own("GET", path)
        elif hours == "default":
            found = api.own("DELETE", path)
        else:
            found = api.own("PUT", path, body={"hours": wanted})
    told = found.get("hours")
    shown = ("never told" if told is None else f"{told:g} hours") + (" (default)" if found.get("default") else "")
    say(found, lambda console: facts(console, {"no good backup for": shown}))


def _hours_of(text: str | None) -> float | None:
    if text in (None, "none", "default"):
        return None
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) is None:
        raise click.UsageError(f"{text!r} is no number of hours, nor none or default", click.get_current_context())
    return float(text)
