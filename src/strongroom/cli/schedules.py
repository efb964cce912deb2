"""`strongroom schedule`: automated backups of a database."""

from __future__ import annotations

from typing import Any

import click

from strongroom.cli.context import client, confirm, say, say_line, shared
from strongroom.cli.display import facts, word
from strongroom.cli.instances import resolve

_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_EVERY_DAY = "1,2,3,4,5,6,7"


@click.group("schedule")
@shared
def schedule() -> None:
    """Automated backups: when they are taken, and how long they are kept."""


@schedule.command("show")
@click.argument("instance", metavar="INSTANCE")
@shared
def show(instance: str) -> None:
    """Show when INSTANCE, by name or id, is backed up by itself."""
    with client() as api:
        key = resolve(api, instance)
        policy = api.contract("GET", f"v3/instances/{key}/backups/policy")["backup_policy"]
    pairs = {"automated backups": word("off")} if not policy["keep_days"] else _told(policy)
    say({"id": key, **policy}, lambda console: facts(console, pairs))


@schedule.command("set")
@click.argument("instance", metavar="INSTANCE")
@click.option("--keep-days", required=True, type=click.IntRange(1, 35), help="Days that an automated backup is kept.")
@click.option("--window", required=True, metavar="hh:mm-HH:MM", help="One hour in UTC in which it begins, at a quarter.")
@click.option("--days", default=_EVERY_DAY, show_default=True, metavar="1,2,…", help="Days of the week; 1 is Monday.")
@shared
def set_(instance: str, keep_days: int, window: str, days: str) -> None:
    """Have INSTANCE, by name or id, backed up by itself once in each window."""
    policy = {"keep_days": keep_days, "start_time": window, "period": days}
    with client() as api:
        key = resolve(api, instance)
        api.contract("PUT", f"v3/instances/{key}/backups/policy", body={"backup_policy": policy})
    say_line({"id": key, **policy}, f"{instance} is backed up between {window} UTC and kept for {keep_days} days.")


@schedule.command("test-restores")
@click.argument("instance", metavar="INSTANCE")
@click.option("--every", type=click.IntRange(1, 366), metavar="DAYS", help="Try the newest backup out every so many days.")
@click.option("--off", is_flag=True, help="Do it no more.")
@shared
def test_restores(instance: str, every: int | None, off: bool) -> None:
    """Show or set how often the newest backup of INSTANCE is restored into a throw-away server and compared, by itself."""
    if off and every is not None:
        raise click.UsageError("--every and --off do not go together", click.get_current_context())
    with client() as api:
        path = f"instances/{resolve(api, instance)}/test-restores"
        body = {"every_days": every} if off or every is not None else None
        found = api.own("GET" if body is None else "PUT", path, body=body)
    days = found.get("every_days")
    told = "off" if days is None else "every day" if days == 1 else f"every {days} days"
    say(found, lambda console: facts(console, {"test restores": told}))


@schedule.command("off")
@click.argument("instance", metavar="INSTANCE")
@click.option("--delete-automated", is_flag=True, help="Delete its automated backups too; else they stay until deleted by hand.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@shared
def off(instance: str, delete_automated: bool, yes: bool) -> None:
    """Take no more automated backups of INSTANCE, by name or id."""
    with client() as api:
        key = resolve(api, instance)
        if delete_automated:
            confirm(f"Delete every automated backup of {instance} ({key})?", yes)
        body: dict[str, Any] = {"backup_policy": {"keep_days": 0}, "delete_auto_backups": delete_automated}
        api.contract("PUT", f"v3/instances/{key}/backups/policy", body=body)
    kept = "its automated backups are being deleted" if delete_automated else "those that were taken stay"
    say_line({"id": key, "keep_days": 0}, f"{instance} is not backed up by itself any more; {kept}.")


def _told(policy: dict[str, Any]) -> dict[str, str]:
    days = [_NAMES[int(day) - 1] for day in policy["period"].split(",")]
    return {
        "window": f"{policy['start_time']} UTC",
        "days": "every day" if len(days) == 7 else ", ".join(days),
        "kept for": f"{policy['keep_days']} days",
    }
