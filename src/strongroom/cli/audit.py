"""`strongroom audit`: what is in the audit trail, all of it as a file, and whether it is what was written."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from strongroom.cli.context import client, say, shared
from strongroom.cli.display import facts, table, word
from strongroom.cli.errors import CommandError

if TYPE_CHECKING:
    from strongroom.cli.client import Answer
    from strongroom.identity.audit import Head

_PAGE = 1000


class TrailBroken(CommandError):
    """The check was done, and the trail is not what was written."""


class NotWritten(CommandError):
    """The file of an export could not be written."""


@click.group("audit")
@shared
def audit() -> None:
    """Look into the audit trail, export it and check it."""


class _Time(click.ParamType[float]):
    """A time, in whole seconds since the epoch; UTC where no zone is said."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time such as 2026-11-24T12:00:00+0000", param, ctx)
        return found.replace(tzinfo=found.tzinfo or UTC, microsecond=0).timestamp()


def _text(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")


@audit.command("list")
@click.option("--project", metavar="PROJECT", help="Only what happened in it, by id or name.")
@click.option("--event", help="Only these, e.g. NoSQLDeleteBackup.")
@click.option("--outcome", type=click.Choice(["OK", "FAILED", "REFUSED"]), help="Only these.")
@click.option("--level", type=click.Choice(["Normal", "Major"]), help="Only these.")
@click.option("--user", help="Whose, by name or id.")
@click.option("--type", "resource_type", help="Only what happened to these, e.g. backup.")
@click.option("--resource", "resource_id", metavar="ID", help="On what, by id.")
@click.option("--request", "request_id", metavar="ID", help="Of one request.")
@click.option("--from", "start_time", metavar="TIME", help="Not before, e.g. 2026-11-24T12:00:00+0000.")
@click.option("--to", "end_time", metavar="TIME", help="Before.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="So many, the newest.")
@shared
def list_(limit: int, **filters: str | None) -> None:
    """List records, newest first: an administrator's are the account's, anybody else's those of the project."""
    from strongroom.cli.client import items_of

    found: list[Answer] = []
    before: Any = None
    with client() as api:
        while len(found) < limit:
            asked = {**filters, "limit": min(_PAGE, limit - len(found)), "before": before}
            answer = api.own("GET", "audit", query=asked)
            found += items_of(answer, "records")
            before = answer.get("next")
            if before is None:
                break
    rows = [
        (
            word(one.get("sequence")), word(one.get("time")), word(one.get("event")), word(one.get("outcome")),
            word(one.get("user_name") or one.get("user")), word(one.get("source")), word(one.get("resource_type")),
            word(one.get("resource_name") or one.get("resource_id")),
        )
        for one in found
    ]  # fmt: skip
    columns = (">RECORD", "TIME", "EVENT", "OUTCOME", "USER", "FROM", "KIND", "RESOURCE")
    say({"records": found}, lambda console: table(console, columns, rows, "No records."))


@audit.command("export")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--after", type=click.IntRange(0), default=0, metavar="RECORD", help="Only what comes after this record.")
@click.option("--from", "begin", type=_Time(), metavar="TIME", help="What happened from then on, e.g. 2026-11-01.")
@click.option("--to", "end", type=_Time(), metavar="TIME", help="What happened before.")
@shared
def export(file: Path, after: int, begin: float | None, end: float | None) -> None:
    """Write the account's audit trail into a new FILE, oldest first, a record a line of JSON.

    With --from or --to: what happened in between, without a gap, and the last record before it and the first one after it, which
    prove that the file holds all of it.

    Only you can read the file, and it is there once it is whole. It is checked; its head is told, to be kept elsewhere. The exit
    status is 1 if the trail in it is not what was written.
    """
    if after and (begin is not None or end is not None):
        raise click.UsageError("--after goes without --from and --to", click.get_current_context())
    draft = file.with_name(file.name + ".part")
    if file.exists():
        raise NotWritten(f"{file} is there already: name a new file")
    span = {"start_time": _text(begin), "end_time": _text(end)}
    asked = {"after": after, **{name: value for name, value in span.items() if value is not None}}
    try:
        with (
            open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out,
            client() as api,
            api.own_stream("audit/export", asked) as answer,
        ):
            for piece in answer.iter_bytes():
                out.write(piece)
            head = _head(answer.headers.get("X-Audit-Head"))
        told = _checked(draft, head, begin, end)
        if head is not None and not told["first"] and head.sequence > after:
            told |= {"outcome": "broken", "broken": {"record": after + 1, "reason": "the newest rows are missing"}}
        draft.rename(file)
    except OSError as error:
        raise NotWritten(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)
    _say(told)


@audit.command("verify")
@click.option(
    "--kept", metavar="HEAD", help="A head that an earlier check told, kept elsewhere: the trail must still lead to it."
)
@click.option("--file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Check an export instead; no server.")
@click.option("--from", "begin", type=_Time(), metavar="TIME", help="The file must hold all from then on.")
@click.option("--to", "end", type=_Time(), metavar="TIME", help="The file must hold all before.")
@shared
def verify(kept: str | None, file: Path | None, begin: float | None, end: float | None) -> None:
    """Read the account's whole audit trail, or an export: was a record changed, removed or moved?

    The exit status is 1 if so. Who can write the database can also write the whole trail anew: keep the head that this tells
    somewhere else, and give it with --kept the next time.
    """
    if file is None and (begin is not None or end is not None):
        raise click.UsageError("--from and --to go with --file", click.get_current_context())
    if file is not None:
        found = _checked(file, _head(kept), begin, end)
    else:
        with client() as api:
            found = api.own("GET", "audit/verification", query={"kept": kept})
    _say(found)


def _checked(file: Path, kept: Head | None, begin: float | None, end: float | None) -> Answer:
    """What the server tells of its trail, of a file."""
    from strongroom.identity.trail import Span, check_lines

    with file.open("rb") as lines:
        done = check_lines(lines, kept, Span(begin, end))
    broken = done.broken
    return {
        "outcome": "whole" if broken is None else "broken",
        "first": done.first,
        "records": done.last.sequence - done.first + 1 if done.first else 0,
        "head": str(done.last),
        "broken": None if broken is None else {"record": broken.sequence, "reason": broken.reason},
    }


def _head(text: str | None) -> Head | None:
    from strongroom.identity.audit import Head

    if text is None:
        return None
    if re.fullmatch("[0-9]{1,18}:[0-9a-f]{0,64}", text) is None:
        raise click.BadParameter("it is not a head as a check tells it", param_hint="--kept")
    return Head.parse(text)


def _say(found: Answer) -> None:
    """Shows it. Raises TrailBroken."""
    names: tuple[str, ...] = ("outcome", "first", "records", "head")
    pairs = {name: word(found.get(name)) for name in names if name in found}
    say(found, lambda console: facts(console, pairs))
    broken = found.get("broken")
    if broken:
        raise TrailBroken(f"the audit trail is broken at record {word(broken.get('record'))}: {word(broken.get('reason'))}")
