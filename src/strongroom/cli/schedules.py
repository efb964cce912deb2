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
