"""An instance's policy for automated backups: kept days, window, days of the week. No row: automated backups are off.

Turning it on puts a schedule (jobs/schedules.py) that comes round once a day inside the window; the job `automate` looks whether
a window has begun that has no backup yet. Each instance has a place of its own inside the hour, so that not all begin at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups.context import Context
from strongroom.backups.pending import Person
from strongroom.backups.registered import find_instance, lock_instance
from strongroom.backups.windows import LENGTH, Windows
from strongroom.catalog import tables as t
from strongroom.jobs.schedules import Schedule, put_schedule, remove_schedule

AUTOMATE = "automate"
"""The kind of job that takes an automated backup."""

EXPIRE = "expire"
"""The kind of job that deletes automated backups."""

SKEW = 300.0
"""Seconds by which the clock of a worker may be behind the one that schedules go by."""

_DAY = 86400.0
_LAST_PLACE = 45 * 60  # seconds into the window: what begins then begins inside it


@dataclass(frozen=True, slots=True)
class Policy:
    """`keep_days` 1 … 35; 0 is off, and then the others are empty. `start_time` "hh:mm-HH:MM" (UTC), `period` "1,2,…,7"."""

    keep_days: int = 0
    start_time: str = ""
    period: str = ""

    @property
    def windows(self) -> Windows:
        """When backups are due."""
        return Windows.parse(self.start_time, self.period)


OFF = Policy()


def show(conn: Connection, project: str, instance: str) -> Policy:
    """The policy of a registered instance. Raises errors.NoSuchInstance."""
    find_instance(conn, project, instance)
    return of(conn, [instance]).get(instance, OFF)


def of(conn: Connection, instances: Iterable[str]) -> dict[str, Policy]:
    """The policies of those that have one."""
    rows = conn.execute(sa.select(t.backup_policy).where(t.backup_policy.c.instance.in_(list(instances))))
    return {row.instance: policy_of(row) for row in rows}


def policy_of(row: Row[tuple[object, ...]]) -> Policy:
    """A row as a policy."""
    return Policy(row.keep_days, row.start_time, row.period)


def is_on(conn: Connection, instance: str) -> bool:
    """Whether automated backups of the instance go by policy alone."""
    here = t.backup_policy.c.instance == instance
    return conn.execute(sa.select(t.backup_policy.c.instance).where(here)).first() is not None


def put(
    ctx: Context,
    project: str,
    instance: str,
    policy: Policy,
    note: Callable[[Connection], None],
    *,
    delete_automated: bool = False,
    by: Person | None = None,
) -> None:
    """Sets the policy, or turns it off. A window that is open now counts if the new policy has it and no backup was taken in it.

    Off, the automated backups stay and are deleted by hand like any other; `delete_automated` has them deleted now, as `by` asks.
    Raises errors.NoSuchInstance.
    """
    with ctx.catalog.write() as conn:
        lock_instance(conn, project, instance)
        here = t.backup_policy.c.instance == instance
        before = conn.execute(sa.select(t.backup_policy).where(here)).first()
        forget(conn, instance)
        if policy.keep_days:
            _turn_on(ctx, conn, instance, policy, -1.0 if before is None else before.last_window)
        elif delete_automated:
            delete_all(ctx, conn, project, instance, by)
        note(conn)


def _turn_on(ctx: Context, conn: Connection, instance: str, policy: Policy, done: float) -> None:
    now = ctx.ambient.now()
    over = policy.windows.last(now - LENGTH)
    conn.execute(
        t.backup_policy.insert().values(
            instance=instance, keep_days=policy.keep_days, start_time=policy.start_time, period=policy.period,
            last_window=max(over, done), updated_at=now,
        )
    )  # fmt: skip
    first = policy.windows.next(now - LENGTH) + place_in_window(instance)
    schedule = Schedule(_schedule(instance), AUTOMATE, _DAY, {"instance": instance})
    put_schedule(ctx.jobs, conn, schedule, first=max(first, now))


def forget(conn: Connection, instance: str) -> None:
    """The instance has no policy from here on."""
    conn.execute(sa.delete(t.backup_policy).where(t.backup_policy.c.instance == instance))
    remove_schedule(conn, _schedule(instance))


def delete_all(ctx: Context, conn: Connection, project: str, instance: str, by: Person | None) -> str:
    """Has every automated backup of the instance deleted, if there are any, by the job that is returned. `by`: who asks; what the
    project's deletions wait for these wait for too."""
    args = {"instance": instance} | ({} if by is None else {"by": [by.id, by.name]})
    return ctx.jobs.submit(conn, EXPIRE, args, project=project, instance=instance, serial=f"expire:{instance}")


def place_in_window(instance: str) -> float:
    """Seconds from a window's begin to this instance's own place in it. The ids are random, and so are the places."""
    return SKEW + int(instance[:8], 16) % (_LAST_PLACE - int(SKEW))


def _schedule(instance: str) -> str:
    return f"automated backup of {instance}"
