"""`strongroom verify`, `reconcile` and `quarantine`: looking after the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from strongroom.cli.context import client, say, say_line, shared, wants_json
from strongroom.cli.display import NOTHING, facts, size, table, word
from strongroom.cli.errors import CommandError
from strongroom.cli.instances import resolve

if TYPE_CHECKING:
    from rich.console import Console

    from strongroom.cli.client import Answer, Client


class DamageFound(CommandError):
    """The check was done, and not all is as it was written."""


@click.command("verify")
@click.option("--backup", "backup_id", metavar="ID", help="This backup.")
@click.option("--instance", metavar="INSTANCE", help="All backups of a registered database, by name or id.")
@click.option("--all", "all_", is_flag=True, help="All backups of the project.")
@click.option(
    "--sample", type=click.FloatRange(0, 100, min_open=True), metavar="PERCENT", help="Read only so much of the data; else all."
)
@click.option(
    "--restore", is_flag=True, help="Restore it into a server that is started for it beside the worker and thrown away; compare."
)
@click.option("--wait", "wait_", is_flag=True, help="Follow the job to its end and show what it found.")
@shared
def verify(backup_id: str | None, instance: str | None, all_: bool, sample: float | None, restore: bool, wait_: bool) -> None:
    """Read what a restore would read. What is damaged is stored anew by the next backup.

    With --restore a backup, or the newest of an instance, is restored on trial. The exit status is 1 if --wait is given and
    damage or a difference was found.
    """
    if sum((backup_id is not None, instance is not None, all_)) != 1:
        raise click.UsageError("say what to verify: one of --backup, --instance and --all", click.get_current_context())
    if restore and (all_ or sample is not None):
        raise click.UsageError("--restore goes with --backup or --instance alone", click.get_current_context())
    with client() as api:
        body: dict[str, Any] = {}
        if backup_id is not None:
            body["backup_id"] = backup_id
        elif instance is not None:
            body["instance_id"] = resolve(api, instance)
        if sample is not None:
            body["sample"] = sample
        answer = api.own("POST", "test-restores" if restore else "verifications", body=body)
        result = _result(api, answer, "verifies", wait_, _show_restored if restore else _show_verified)
    if result is not None and result.get("outcome") == "damaged":
        count = (result.get("damaged") or {}).get("backups")
        raise DamageFound(f"damaged backups: {word(count)}. Take new ones, which store anew what is damaged")
    if result is not None and result.get("outcome") == "differs":
        raise DamageFound("what was restored is not what was captured")


@click.command("reconcile")
@click.option("--close-late", is_flag=True, help="Your word that no worker of a LATE object is left: its row goes too.")
@click.option("--wait", "wait_", is_flag=True, help="Follow the job to its end and show what it found.")
@shared
def reconcile(close_late: bool, wait_: bool) -> None:
    """Compare the store with the catalog. Nothing unknown is removed.

    The exit status is 1 if --wait is given and objects are missing or have another size.
    """
    with client() as api:
        answer = api.own("POST", "reconciliations", body={"close_late": close_late})
        result = _result(api, answer, "compares store and catalog", wait_, _show_compared)
    if result is not None and result.get("outcome") == "damaged":
        raise DamageFound("objects are missing or have another size: `strongroom verify` finds all that is damaged")


@click.command("quarantine")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@shared
def quarantine(names: tuple[str, ...]) -> None:
    """Move unknown objects aside, by the names that `reconcile` told. What the catalog knows is never moved."""
    with client() as api:
        answer = api.own("POST", "quarantine", body={"names": list(names)})
    moved = answer.get("quarantined") or []
    rows = [(word(one.get("name")), word(one.get("moved_to")), size(one.get("bytes"))) for one in moved]
    say(answer, lambda console: table(console, ("OBJECT", "IS NOW", ">SIZE"), rows, "Nothing was moved."))


def _result(api: Client, answer: Answer, doing: str, wait_: bool, show: Callable[[Console, Answer], None]) -> Answer | None:
    """Says that the job runs, or waits for it and shows what it found."""
    from strongroom.cli.client import text_of
    from strongroom.cli.waiting import must_have_completed, wait

    job_id = text_of(answer, "job_id")
    if not wait_:
        say_line(answer, f"Job {job_id} {doing}; `strongroom job show {job_id} --json` has its result once it is done.")
        return None
    job = wait(api, job_id)
    result: Answer = job.get("result") or {}
    if job.get("status") == "Completed" or wants_json():
        say({**answer, "job": job}, lambda console: show(console, result))
    must_have_completed(job)
    return result


def _show_verified(console: Console, result: Answer) -> None:
    sample, damaged = result.get("sample"), result.get("damaged") or {}
    pairs = {
        "outcome": word(result.get("outcome")),
        "backups read": word(result.get("backups")),
        "deleted meanwhile": word(len(result.get("superseded") or []) or None),
        "chunks read": f"{word(result.get('chunks'))} ({size(result.get('bytes'))})",
        "sample": NOTHING if sample is None else f"{sample:g} %",
        "damaged chunks": word(damaged.get("chunks") or None),
    }
    facts(console, pairs)
    _show_damage(
        console, result.get("damaged_objects") or [], result.get("damaged_backups") or [],
        ("OBJECT", "WHAT", ">CHUNKS", ">BACKUPS"),
        lambda one: (word(one.get("what")), word(one.get("chunks"))),
    )  # fmt: skip
    _show_rest(console, damaged.get("objects"), result.get("damaged_objects") or [])


def _show_restored(console: Console, result: Answer) -> None:
    expected, found = result.get("expected") or {}, result.get("found") or {}
    took, entries = result.get("seconds"), result.get("entries")
    facts(
        console,
        {
            "outcome": word(result.get("outcome")),
            "restored": NOTHING if entries is None else f"{entries} entries ({size(result.get('bytes'))})",
            "in": f"{took:.1f} s" if isinstance(took, int | float) else NOTHING,
            "digests compared": word(result.get("digests")),
            "warnings": word("; ".join(result.get("warnings") or []) or None),
        },
    )
    rows = [(name, word(expected.get(name)), word(found.get(name))) for name in sorted({*expected, *found})]
    if rows:
        table(console, ("", ">CAPTURED", ">RESTORED"), rows, "")
    for sentence in result.get("differences") or []:
        console.print(sentence, style="red")


def _show_compared(console: Console, result: Answer) -> None:
    late, condemned = result.get("late") or {}, result.get("condemned") or {}
    removed = late.get("removed") or {}
    pairs = {
        "outcome": word(result.get("outcome")),
        "objects seen": f"{word(result.get('objects'))} ({size(result.get('bytes'))}) in {word(result.get('lineages'))} lineages",
        "waiting for removal": _counted(condemned),
        "removals taken up again": word(condemned.get("resumed") or None),
        "late, removed again": _counted(removed),
        "late rows": word(late.get("rows") or None),
        "late rows closed": word(late.get("closed") or None),
        "in quarantine": _counted(result.get("quarantined") or {}),
    }
    facts(console, pairs)
    for reason in result.get("outdated") or []:
        console.print(str(reason), style="red")
    unknown = (result.get("unknown") or {}).get("objects") or []
    if unknown:
        rows = [(word(one.get("name")), size(one.get("bytes")), word(one.get("why"))) for one in unknown]
        table(console, ("UNKNOWN OBJECT", ">SIZE", "WHY"), rows, "")
        _show_rest(console, (result.get("unknown") or {}).get("count"), unknown)
    bad = [
        {"what": what, **one}
        for what, name in (("missing", "missing"), ("another size", "wrong_size"))
        for one in (result.get(name) or {}).get("objects") or []
    ]
    _show_damage(
        console, bad, result.get("backups") or [], ("OBJECT", "WHAT", ">SIZE", ">BACKUPS"),
        lambda one: (word(one.get("what")), size(one.get("bytes"))),
    )  # fmt: skip
    _show_rest(console, sum((result.get(name) or {}).get("count", 0) for name in ("missing", "wrong_size")), bad)


def _show_damage(console: Console, objects: list[Answer], backups: list[Answer], columns: tuple[str, ...], middle: Any) -> None:
    """Damaged objects, and below them the backups that they touch."""
    if not objects:
        return
    rows = [(word(one.get("name")), *middle(one), word(len(one.get("backups") or []))) for one in objects]
    table(console, columns, rows, "")
    touched = [(word(one.get("id")), word(one.get("name")), word(one.get("instance_name"))) for one in backups]
    table(console, ("DAMAGED BACKUP", "NAME", "INSTANCE"), touched, "No backup needs them.")


def _show_rest(console: Console, count: Any, listed: list[Answer]) -> None:
    """Says so where there is more than the job's result lists."""
    if isinstance(count, int) and count > len(listed):
        console.print(f"… and {count - len(listed)} more objects")


def _counted(found: Answer) -> str:
    return f"{found['count']} ({size(found.get('bytes'))})" if found.get("count") else NOTHING
