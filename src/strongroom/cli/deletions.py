"""`strongroom deletion`: what deletes promised and what they gave."""

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
    """See deletions: their promises and receipts."""


@deletion.command("list")
@click.option("--state", type=click.Choice(["running", "failed", "done"]), help="Only these.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="So many, the newest.")
@shared
def list_(state: str | None, limit: int) -> None:
    """List deletions, newest first."""
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


def show_deletion(console: Console, one: Answer) -> None:
    """Prints a deletion: what it is, then promise and receipt beside one another."""
    pairs = {
        "backup": f"{word(one.get('backup_name'))} ({word(one.get('backup_id'))})",
        "instance": word(one.get("instance_name")),
        "state": word(one.get("state")),
        "reason": word(one.get("fail_reason")),
        "job": word(one.get("job_id")),
        "accepted": moment(one.get("accepted_at")),
        "finished": moment(one.get("finished_at")),
    }
    facts(console, pairs)
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
