"""`strongroom recording`: points in time between backups."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from strongroom.cli.context import client, say, shared
from strongroom.cli.display import facts, size
from strongroom.cli.instances import resolve

if TYPE_CHECKING:
    from strongroom.cli.client import Answer


@click.group("recording")
@shared
def recording() -> None:
    """Record what changes between backups, and restore to any moment of it."""


@recording.command("show")
@click.argument("instance", metavar="INSTANCE")
@shared
def show(instance: str) -> None:
    """Show whether a database's changes are recorded, and which moments can be restored."""
    with client() as api:
        _say(api.own("GET", f"instances/{resolve(api, instance)}/recording"))


@recording.command("on")
@click.argument("instance", metavar="INSTANCE")
@click.option("--interval", type=click.IntRange(5, 120), help="Minutes that are not in the store yet, at most (20).")
@click.option("--keep-days", type=click.IntRange(1, 7), help="For how many days moments can be restored (7).")
@shared
def on(instance: str, interval: int | None, keep_days: int | None) -> None:
    """Record from now on; a backup is taken to begin after, if there is none. What is not given stays as it is."""
    with client() as api:
        path = f"instances/{resolve(api, instance)}/recording"
        now = api.own("GET", path)
        body = {"enabled": True, "interval": interval or now.get("interval"), "keep_days": keep_days or now.get("keep_days")}
        _say(api.own("PUT", path, body=body))


@recording.command("off")
@click.argument("instance", metavar="INSTANCE")
@click.option("--drop", is_flag=True, help="Throw away what is recorded, too: no moment can be restored then.")
@shared
def off(instance: str, drop: bool) -> None:
    """Record no more. What is recorded stays for its days, unless it is dropped."""
    with client() as api:
        path = f"instances/{resolve(api, instance)}/recording"
        now = api.own("GET", path)
        body = {"enabled": False, "interval": now.get("interval"), "keep_days": now.get("keep_days")}
        answer = api.own("PUT", path, body=body)
        if drop:
            api.own("DELETE", path)
            answer = api.own("GET", path)
        _say(answer)


@recording.command("restore")
@click.argument("instance", metavar="INSTANCE")
@click.option("--at", "moment", required=True, metavar="TIME", help="2026-11-24T15:04:05, UTC unless it names a zone.")
@click.option("--into", metavar="INSTANCE", help="Another registered database to fill, which must be empty. Default: the same.")
@click.option("--overwrite", is_flag=True, help="What the other database holds may be replaced.")
@click.option("--wait", "wait_", is_flag=True, help="Follow the job to its end.")
@shared
def restore(instance: str, moment: str, into: str | None, overwrite: bool, wait_: bool) -> None:
    """Make a database hold what INSTANCE held at a moment. Into INSTANCE itself: what it holds now is replaced."""
    from strongroom.cli.waiting import tell_or_follow

    at = _moment(moment)
    with client() as api:
        source = resolve(api, instance)
        target = source if into is None else resolve(api, into)
        body: dict[str, object] = {"moment": at, "source_instance_id": source}
        if target != source:
            body["overwrite"] = overwrite
        answer = api.own("POST", f"instances/{target}/moments", body=body)
        tell_or_follow(api, answer, f"restores {instance} as of {at} into {into or instance}", follow=wait_)


def _moment(text: str) -> str:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no time: give one such as 2026-11-24T15:04:05", param_hint="--at") from None
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def _say(answer: Answer) -> None:
    pairs = {"recording": "on" if answer.get("enabled") else "off"}
    if answer.get("enabled"):
        pairs["in the store every"] = f"{answer.get('interval')} minutes"
    pairs |= {"kept for": f"{answer.get('keep_days')} days", "stored": size(answer.get("stored_bytes"))}
    if answer.get("trouble"):
        pairs["trouble"] = str(answer["trouble"])
    periods = answer.get("periods") or []
    pairs["restorable"] = "no moment yet" if not periods else "; ".join(f"{one['begin']} to {one['end']}" for one in periods)
    say(answer, lambda console: facts(console, pairs))
