"""`strongroom deletion`: what deletes wait for, what they promised and what they gave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from strongroom.cli.context import client, say, shared
from strongroom.cli.display import NOTHING, facts, moment, size, table, word

if TYPE_CHECKING:
    from rich.console import Console

    from strongroom.cli.client import Answer


@click.group("deletion")
@shared
def deletion() -> None:
    """See deletions: what they wait for, their promises and receipts."""


@deletion.command("list")
@click.option("--state", type=click.Choice(["pending", "running", "failed", "done"]), help="Only these.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="So many, the newest.")
@shared
def list_(state: str | None, limit: int) -> None:
    """List deletions, newest first; before all others those that can still be called back."""
    with client() as api:
        found = api.deletions(state, limit)
    rows = [
        (
            word(one.get("backup_id")), word(one.get("backup_name")), word(one.get("instance_name")), word(one.get("state")),
            size((one.get("promised") or {}).get("freed")), size((one.get("receipt") or {}).get("freed")),
            size((one.get("receipt") or {}).get("waiting")), moment(one.get("accepted_at")), moment(one.get("finished_at")),
        )
        for one in found
    ]  # fmt: skip
    columns = ("BACKUP", "NAME", "INSTANCE", "STATE", ">PROMISED", ">FREED", ">WAITING", "ACCEPTED", "FINISHED")
    say({"deletions": found}, lambda console: table(console, columns, rows, "No deletions."))


@deletion.command("show")
@click.argument("backup_id", metavar="BACKUP_ID")
@shared
def show(backup_id: str) -> None:
    """Show the deletion of one backup."""
    with client() as api:
        one = api.deletion(backup_id)
    say(one, lambda console: show_deletion(console, one))


@deletion.group("policy")
@shared
def policy() -> None:
    """See and set what the project's deletions wait for before they are decided."""


@policy.command("show")
@shared
def show_policy() -> None:
    """Show for how long a deletion can be called back, and whether it needs a second person."""
    with client() as api:
        _say_policy(api.own("GET", "deletion-policy"))


@policy.command("set")
@click.option("--undelete-hours", type=click.IntRange(0, 720), metavar="N", help="0: a deletion is decided at once.")
@click.option("--second-person/--no-second-person", default=None, help="Whether another user has to approve each.")
@shared
def set_policy(undelete_hours: int | None, second_person: bool | None) -> None:
    """Set it, for deletions that are asked for from now on; what is not named stays."""
    given = {"undelete_hours": undelete_hours, "second_person": second_person}
    body = {name: value for name, value in given.items() if value is not None}
    if not body:
        raise click.UsageError("say which: --undelete-hours, --second-person", click.get_current_context())
    with client() as api:
        _say_policy(api.own("PUT", "deletion-policy", body=body))


def _say_policy(answer: Answer) -> None:
    hours = answer.get("undelete_hours")
    waits = f"can be called back for {hours} hours" if hours else "is decided at once"
    second = "needs another user's approval" if answer.get("second_person") else "needs nobody's approval"
    say(answer, lambda console: console.print(f"A deletion {second} and {waits}."))


def show_deletion(console: Console, one: Answer) -> None:
    """Prints a deletion: what it is, then promise and receipt beside one another, or what it waits for."""
    pairs = {
        "backup": f"{word(one.get('backup_name'))} ({word(one.get('backup_id'))})",
        "instance": word(one.get("instance_name")),
        "state": word(one.get("state")),
        "reason": word(one.get("fail_reason")),
        "job": word(one.get("job_id")),
        "accepted": moment(one.get("accepted_at")),
        "finished": moment(one.get("finished_at")),
        "waits": word((one.get("pending") or {}).get("words")),
    }
    facts(console, pairs)
    if one.get("pending"):
        return
    promised, receipt = one.get("promised") or {}, one.get("receipt") or {}
    rows = [(what, _both(promised.get(name)), _both(receipt.get(name))) for what, name in _AMOUNTS]
    if receipt.get("thorough"):
        written = (receipt.get("reclaimed") or {}).get("written")
        rows.append(("written to give back all that waits", _both(receipt["thorough"].get("rewrite")), _both(written)))
    rows.append(("objects", word(promised.get("objects")), word(receipt.get("removed_objects"))))
    table(console, ("", ">PROMISED", ">RECEIPT"), rows, "")
    aside = {name: value for name, value in _aside(receipt).items() if value != NOTHING}
    if aside:
        facts(console, aside)
    if receipt.get("verified"):
        _show_verified(console, receipt["verified"])


_AMOUNTS = (
    ("owned by this backup alone", "owned"),
    ("freed: in objects removed whole", "freed"),
    ("waiting: dead inside objects that live on", "waiting"),
    ("undecided: a running backup may still adopt it", "undecided"),
)


def _aside(receipt: Answer) -> dict[str, str]:
    """What came later, or is booked apart from the promise; only what there was."""
    again = receipt.get("reclaimed") or {}
    return {
        "freed once a running backup had ended": _unless_none(receipt.get("settled_freed")),
        "waiting once a running backup had ended": _unless_none(receipt.get("settled_waiting")),
        "hidden, not freed (the store keeps it)": _unless_none(receipt.get("hidden")),
        "put for the delete itself": _unless_none(receipt.get("put_bytes")),
        "given back by rewriting": _unless_none(again.get("net")),
        "  read for it": _unless_none(again.get("read")),
        "  written for it": _unless_none(again.get("written")),
        "  dropped by it": _unless_none(again.get("dropped")),
    }


def _show_verified(console: Console, verified: Answer) -> None:
    """What was read back of the data that the deleted backup shared with its neighbours."""
    of = verified.get("of_bytes")
    facts(
        console,
        {
            "read back after it": f"{_both(verified.get('bytes'))} in {word(verified.get('objects'))} objects",
            "  of what it shared": NOTHING if of is None else _both(of),
            "  ended early": word(verified.get("ended_early")),
            "  damaged objects": word(verified.get("damaged_objects") or None),
        },
    )
    damaged = verified.get("damaged") or []
    if damaged:
        rows = [(word(one.get("name")), word(one.get("what")), word(one.get("chunks")), _lines(one)) for one in damaged]
        table(console, ("DAMAGED OBJECT", "WHAT", ">CHUNKS", "BACKUPS THAT NEED IT"), rows, "")


def _lines(one: Answer) -> str:
    return "\n".join(one.get("backups") or []) or NOTHING


def _unless_none(count: Any) -> str:
    return _both(count) if count else NOTHING


def _both(count: Any) -> str:
    """Bytes for people and, from a KiB on, to the byte."""
    return f"{size(count)} ({count:,})" if isinstance(count, int) and count >= 1024 else size(count)
