"""`strongroom instance limit` and `strongroom limits`: kind to the sources, also while a job runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from strongroom.cli.context import client, say, shared
from strongroom.cli.display import facts, size
from strongroom.cli.instances import resolve

if TYPE_CHECKING:
    from strongroom.cli.client import Answer

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _speed_of(ctx: click.Context, parameter: click.Parameter, text: str | None) -> int | str | None:
    """Bytes a second out of 8M, 500K, 1048576; "none" and "default" as they are."""
    if text in (None, "none", "default"):
        return text
    unit = text[-1].upper() if text[-1].upper() in ("K", "M", "G") else ""
    number = text[: len(text) - len(unit)]
    if not number.isascii() or not number.isdigit():
        raise click.BadParameter(f"{text!r} is no speed: give bytes a second, such as 8M or 500K, or none", ctx, parameter)
    return int(number) * _UNITS[unit]


@click.command("limit")
@click.argument("instance", metavar="INSTANCE")
@click.option(
    "--speed", callback=_speed_of, help="Bytes a second that a backup takes, such as 8M; none for no limit; or default."
)
@shared
def limit(instance: str, speed: int | str | None) -> None:
    """Show, or with --speed set, how fast backups take bytes from a database; a running one follows within a second or two."""
    with client() as api:
        path = f"instances/{resolve(api, instance)}/limits"
        if speed is None:
            found = api.own("GET", path)
        elif speed == "default":
            found = api.own("DELETE", path)
        else:
            found = api.own("PUT", path, body={"bytes_per_second": None if speed == "none" else speed})
    shown = _speed(found) + (" (default)" if found.get("default") else "")
    say(found, lambda console: facts(console, {"speed": shown}))


@click.command("limits")
@click.option(
    "--speed", callback=_speed_of, help="Bytes a second that the backups of one worker take together; none for no limit."
)
@click.option("--jobs", type=click.IntRange(0, 256), help="Backups and restores at once in one worker; 0 begins none.")
@click.option("--reset", is_flag=True, help="Lift both.")
@shared
def limits(speed: int | str | None, jobs: int | None, reset: bool) -> None:
    """Show or set what each worker process does at once; what is not given stays. What runs already follows, or goes on."""
    with client() as api:
        if reset:
            api.own("DELETE", "limits")
        found = api.own("GET", "limits")
        if speed is not None or jobs is not None:
            rate = found.get("bytes_per_second") if speed is None else None if speed in ("none", "default") else speed
            found = api.own("PUT", "limits", body={"bytes_per_second": rate, "jobs": found.get("jobs") if jobs is None else jobs})
    most = found.get("jobs")
    pairs = {"speed": _speed(found), "jobs at once": "as many as it has threads" if most is None else str(most)}
    say(found, lambda console: facts(console, pairs))


def _speed(found: Answer) -> str:
    rate = found.get("bytes_per_second")
    return "no limit" if rate is None else f"{size(rate)}/s"
