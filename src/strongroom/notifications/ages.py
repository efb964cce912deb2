"""No good backup for N hours: told once when it begins to be so, and once when there is a good one again.

A good backup is a COMPLETED one that was not deleted; its age counts from its end, and where there is none from the registration.
N is the instance's, else its project's, else the server's (`Options.notify_hours`); none is set unless somebody has.

What was told is a row of `backup_overdue`, put and removed in the transaction that tells: a restart tells nothing again, and of
several processes one does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row
from sqlalchemy.dialects import postgresql, sqlite

from strongroom.backups.context import Context
from strongroom.backups.registered import find_instance, lock_instance
from strongroom.catalog import tables as t
from strongroom.jobs.port import Running
from strongroom.jobs.schedules import Schedule
from strongroom.notifications import outbox

log = logging.getLogger("strongroom.notifications")

REGULARLY = Schedule("ages of backups", "backup-ages", 300.0, {}, queue=outbox.QUEUE, serial="backup-ages")

Note = Callable[[Connection], None]


@dataclass(frozen=True, slots=True)
class Hours:
    """None is never. `default`: it is not set for this subject, and what holds is a wider one's."""

    hours: float | None
    default: bool


def of_project(ctx: Context, conn: Connection, project: str) -> Hours:
    """What holds for the project's instances that have none of their own."""
    own = _own(conn, project)
    return Hours(ctx.options.notify_hours, True) if own is None else Hours(own.hours, False)


def of_instance(ctx: Context, conn: Connection, project: str, instance: str) -> Hours:
    """What holds for a registered instance. Raises errors.NoSuchInstance."""
    find_instance(conn, project, instance)
    own = _own(conn, instance)
    return Hours(of_project(ctx, conn, project).hours, True) if own is None else Hours(own.hours, False)


def put_for_project(ctx: Context, project: str, hours: Hours, note: Note) -> None:
    """Sets the project's, or with `default` takes it off."""
    with ctx.catalog.write() as conn:
        _put(conn, project, hours)
        note(conn)


def put_for_instance(ctx: Context, project: str, instance: str, hours: Hours, note: Note) -> None:
    """Sets an instance's, or with `default` takes it off. Raises errors.NoSuchInstance."""
    with ctx.catalog.write() as conn:
        lock_instance(conn, project, instance)
        _put(conn, instance, hours)
        note(conn)


def forget(conn: Connection, instance: str) -> None:
    """The instance is not looked at from here on."""
    conn.execute(sa.delete(t.backup_age).where(t.backup_age.c.subject == instance))
    conn.execute(sa.delete(t.backup_overdue).where(t.backup_overdue.c.instance == instance))


def _own(conn: Connection, subject: str) -> Row[Any] | None:
    return conn.execute(sa.select(t.backup_age).where(t.backup_age.c.subject == subject)).first()


def _put(conn: Connection, subject: str, hours: Hours) -> None:
    conn.execute(sa.delete(t.backup_age).where(t.backup_age.c.subject == subject))
    if not hours.default:
        conn.execute(t.backup_age.insert().values(subject=subject, hours=hours.hours))


@dataclass(frozen=True, slots=True)
class _Age:
    """How it is with one instance just now."""

    instance: Row[Any]
    hours: float | None  # that its newest good backup may be old
    newest: float | None  # when that ended
    told: Row[Any] | None  # of backup_overdue

    def overdue(self, now: float) -> bool:
        since = self.instance.created_at if self.newest is None else self.newest
        return self.hours is not None and now - since > self.hours * 3600

    def differs(self, now: float) -> bool:
        """Whether there is something to be told, or to be forgotten."""
        return self.overdue(now) is (self.told is None)


class AgesJob:
    """The job `backup-ages`, every five minutes."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        ctx, told = self._ctx, 0
        with ctx.catalog.read() as conn:
            now = ctx.ambient.now()
            differing = [age.instance.id for age in _ages(ctx, conn) if age.differs(now)]
        for instance in differing:
            job.check()
            with ctx.catalog.write(job.guard) as conn:
                told += sum(self._settle(conn, age) for age in _ages(ctx, conn, instance))
        return {"told": told}

    def _settle(self, conn: Connection, age: _Age) -> bool:
        """Makes what is told agree with how it is; whether something was told."""
        ctx, now, here = self._ctx, self._ctx.ambient.now(), age.instance.id
        if not age.differs(now):
            return False
        if age.overdue(now):
            dialect = postgresql if ctx.catalog.postgres else sqlite
            row = dialect.insert(t.backup_overdue).values(instance=here, told_at=now, newest=age.newest)
            put = row.on_conflict_do_nothing().returning(t.backup_overdue.c.instance)
            if conn.execute(put).first() is None:
                return False
            self._tell(conn, "no_good_backup", age, _words(age, now))
            return True
        gone = conn.execute(sa.delete(t.backup_overdue).where(t.backup_overdue.c.instance == here)).rowcount == 1
        assert age.told is not None
        if not gone or age.newest is None or (age.told.newest is not None and age.newest <= age.told.newest):
            return False  # what is asked for has changed, not the backups
        self._tell(conn, "good_backup_again", age, f"{_subject(age)} has a good backup again")
        return True

    def _tell(self, conn: Connection, event: str, age: _Age, words: str) -> None:
        log.warning("%s", words)
        row = age.instance
        told = {"id": row.id, "name": row.name, "engine": row.engine}
        detail = {"hours": age.hours, "newest_ended": age.newest}
        outbox.tell(self._ctx, conn, outbox.Event(event, row.project, words, told, detail=detail))

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Nothing hangs on it: the next one goes on."""


def _ages(ctx: Context, conn: Connection, instance: str | None = None) -> Iterator[_Age]:
    """Of every registered instance, or of one."""
    row = t.instance.c
    own = {one.subject: one.hours for one in conn.execute(sa.select(t.backup_age))}
    registered = sa.select(t.instance).where(row.state == "REGISTERED").order_by(row.id)
    good = sa.select(t.backup.c.instance, sa.func.max(t.backup.c.end_at).label("end_at")).where(t.backup.c.state == "COMPLETED")
    overdue = sa.select(t.backup_overdue)
    if instance is not None:
        registered = registered.where(row.id == instance)
        good = good.where(t.backup.c.instance == instance)
        overdue = overdue.where(t.backup_overdue.c.instance == instance)
    told = {one.instance: one for one in conn.execute(overdue)}
    if not own and not told and ctx.options.notify_hours is None:
        return
    newest: dict[str, float | None] = {one.instance: one.end_at for one in conn.execute(good.group_by(t.backup.c.instance))}
    for one in conn.execute(registered).all():
        hours = own.get(one.id, own.get(one.project, ctx.options.notify_hours))
        yield _Age(one, hours, newest.get(one.id), told.get(one.id))


def _subject(age: _Age) -> str:
    return f"Instance {age.instance.name} ({age.instance.engine})"


def _words(age: _Age, now: float) -> str:
    if age.newest is None:
        return f"{_subject(age)} has no good backup, {_hours(now - age.instance.created_at)} after it was registered"
    return f"{_subject(age)} has had no good backup for {_hours(now - age.newest)}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours"
