"""Deletions that are asked for and not decided yet: for hours in which they can be called back, or for a second person's word.

A project's policy says what its deletions wait for; without one they are decided at once. Then an accepted deletion leaves a mark
and a job, in one transaction: the backup is PENDING and in no list, and its parts stay in their chains with all that they own,
also for new backups to share. The job that was answered decides when the time has come, by the same code as a deletion that waits
for nothing (deletion.py), which asks anew whether the backup may go; then it goes on and carries the deletion out.

    ask         the mark and the job
    undelete    the mark is taken away: the backup is what it was, the job has ended
    approve     another user's word: it is decided once the hours are over
    call_off    the mark is taken away by the service: it may not go, nobody approved it, or the database was restored

The mark says nothing of what lives. Where it is lost, after a rebuild, the backup is there as if nobody had asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row
from sqlalchemy.dialects import postgresql, sqlite

from strongroom.backups import errors
from strongroom.backups.context import Context
from strongroom.backups.moments import utc
from strongroom.catalog import tables as t
from strongroom.identity import audit
from strongroom.jobs.port import Cancelled, TryAgain
from strongroom.notifications import outbox

log = logging.getLogger("strongroom.backups")

LONGEST = 720
"""Hours that a policy may give, at most."""

APPROVAL = 7 * 86400.0
"""Seconds within which a deletion must be approved that needs it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a project's deletions wait for. `undelete_hours` 0 … LONGEST."""

    undelete_hours: int = 0
    second_person: bool = False

    @property
    def waits(self) -> bool:
        """Whether they wait for anything."""
        return self.undelete_hours > 0 or self.second_person


AT_ONCE = Policy()


@dataclass(frozen=True, slots=True)
class Person:
    """A user, whichever key or token is used."""

    id: str
    name: str


def policy_of(conn: Connection, project: str) -> Policy:
    """The project's policy."""
    row = conn.execute(sa.select(t.deletion_policy).where(t.deletion_policy.c.project == project)).first()
    return AT_ONCE if row is None else Policy(row.undelete_hours, row.second_person)


def put_policy(
    ctx: Context,
    project: str,
    note: Callable[[Connection, Policy, Policy], None],
    *,
    undelete_hours: int | None = None,
    second_person: bool | None = None,
) -> Policy:
    """Sets what is given, for deletions that are asked for from now on; returns the policy. `note` gets both."""
    here, none = t.deletion_policy.c.project == project, {"project": project, "undelete_hours": 0, "second_person": False}
    given = {"undelete_hours": undelete_hours, "second_person": second_person}
    insert = postgresql.insert if ctx.catalog.postgres else sqlite.insert
    with ctx.catalog.write() as conn:
        conn.execute(insert(t.deletion_policy).values(none).on_conflict_do_nothing())
        conn.execute(sa.select(t.deletion_policy).where(here).with_for_update())
        before = policy_of(conn, project)
        values = {name: value for name, value in given.items() if value is not None}
        conn.execute(sa.update(t.deletion_policy).where(here).values(project=project, **values))
        after = policy_of(conn, project)
        note(conn, before, after)
    return after


def ask(
    ctx: Context, conn: Connection, backup: Row[Any], policy: Policy, key: str, *, by: Person | None, thorough: bool, now: float
) -> str:
    """Marks the backup, in the transaction that accepts its deletion; returns the job's id. `key`: the job's unique one."""
    until = now + policy.undelete_hours * 3600.0
    lapses = now + APPROVAL if policy.second_person else None
    job = ctx.jobs.submit(
        conn, "delete", {"backup": backup.id}, project=backup.project, instance=backup.instance, backup=backup.id,
        unique_key=key, delay=(until if lapses is None else lapses) - now,
    )  # fmt: skip
    conn.execute(
        t.pending_deletion.insert().values(
            backup=backup.id, project=backup.project, job=job, before=backup.state, asked_by=None if by is None else by.id,
            asked_name=None if by is None else by.name, asked_at=now, until=until, lapses=lapses, thorough=thorough,
        )
    )  # fmt: skip
    conn.execute(sa.update(t.backup).where(t.backup.c.id == backup.id).values(state="PENDING"))
    return job


def mark_of(conn: Connection, backup: str) -> Row[Any] | None:
    """The mark of a backup whose deletion is pending."""
    return conn.execute(sa.select(t.pending_deletion).where(t.pending_deletion.c.backup == backup)).first()


def state_of(conn: Connection, backup: Row[Any]) -> str:
    """The backup's state, or what it was before its deletion was asked for."""
    mark = mark_of(conn, backup.id) if backup.state == "PENDING" else None
    return str(backup.state if mark is None else mark.before)


def make_thorough(conn: Connection, backup: str) -> bool:
    """The pending deletion will be a thorough one: it was asked for once more, and so. False if it was one, or none pends."""
    m = t.pending_deletion.c
    here = sa.update(t.pending_deletion).where(m.backup == backup, m.thorough.is_(False))
    return conn.execute(here.values(thorough=True)).rowcount > 0


def due(conn: Connection, backup: str, job: str, now: float) -> Row[Any]:
    """The mark whose time to be decided by this job has come. Raises TryAgain until then, Cancelled where there is none, and
    errors.NotApproved."""
    mark = mark_of(conn, backup)
    if mark is None or mark.job != job:
        raise Cancelled("the deletion is not asked for any more")
    if mark.lapses is not None and mark.approved_at is None:
        if now >= mark.lapses:
            raise errors.NotApproved(f"nobody approved the deletion of backup {backup} by {utc(mark.lapses)}")
        raise TryAgain(told(mark), mark.lapses - now)
    if now < mark.until:
        raise TryAgain(told(mark), mark.until - now)
    return mark


def undelete(ctx: Context, project: str, backup: str, by: Person, note: Callable[[Connection], None]) -> None:
    """Calls a pending deletion back: the backup is what it was.

    Raises errors.NoSuchBackup, NoDeletionPending, DeletionDecided.
    """
    with ctx.catalog.read() as conn:
        seen = _find(conn, project, backup)
    end = partial(ctx.jobs.revoke, id=seen.job, reason=f"undeleted by {by.name}")
    with ctx.catalog.decide(end, backups=[backup]) as conn:
        mark = _find(conn, project, backup, seen.job)
        forget(conn, backup, state=mark.before)
        note(conn)


def approve(ctx: Context, project: str, backup: str, by: Person, note: Callable[[Connection], None]) -> Row[Any]:
    """Another user's word; returns the mark. A word that is given already stands, whoever gave it.

    Raises errors.NoSuchBackup, NoDeletionPending, DeletionDecided, SamePerson, NotApproved.
    """
    now = ctx.ambient.now()
    with ctx.catalog.read() as conn:
        seen = _find(conn, project, backup)
    due_then = partial(ctx.jobs.reschedule, id=seen.job, delay=max(0.0, seen.until - now))
    with ctx.catalog.decide(due_then, backups=[backup]) as conn:
        mark = _find(conn, project, backup, seen.job)
        if mark.lapses is None:
            raise errors.NoDeletionPending(
                f"the deletion of backup {backup} needs nobody's approval: it waits until {utc(mark.until)}"
            )
        if mark.asked_by == by.id:
            raise errors.SamePerson(f"the deletion of backup {backup} was asked for by {by.name}: another user has to approve it")
        if mark.approved_at is not None:
            return mark
        if now >= mark.lapses:
            raise errors.NotApproved(
                f"the deletion of backup {backup} had to be approved by {utc(mark.lapses)}: ask for it again"
            )
        values = {"approved_by": by.id, "approved_name": by.name, "approved_at": now}
        conn.execute(sa.update(t.pending_deletion).where(t.pending_deletion.c.backup == backup).values(values))
        note(conn)
        return _find(conn, project, backup, seen.job)


def forget(conn: Connection, backup: str, *, state: str) -> None:
    """Takes the mark away; the backup is in `state` from now on. Under the backup's lock."""
    conn.execute(sa.delete(t.pending_deletion).where(t.pending_deletion.c.backup == backup))
    conn.execute(sa.update(t.backup).where(t.backup.c.id == backup).values(state=state))


def call_off(ctx: Context, conn: Connection, mark: Row[Any], reason: str) -> None:
    """The backup is what it was, and whoever is to know is told. Under the backup's lock."""
    forget(conn, mark.backup, state=mark.before)
    row = conn.execute(sa.select(t.backup).where(t.backup.c.id == mark.backup)).one()
    outbox.deletion_called_off(ctx, conn, row, mark.job, reason)
    detail = {"reason": reason, "job": mark.job, **record(mark)}
    audit.append(
        conn, ctx.ambient,
        audit.Entry(
            "NoSQLDeleteBackupFailed", "backup", mark.backup, row.name, outcome="FAILED", level="Major", project=mark.project,
            detail=detail,
        ),
    )  # fmt: skip


def call_off_all(ctx: Context, reason: str) -> None:
    """After a restored or promoted database, which may not know that a deletion was called back."""
    with ctx.catalog.read() as conn:
        marks = conn.execute(sa.select(t.pending_deletion).order_by(t.pending_deletion.c.backup)).all()
    for seen in marks:
        with ctx.catalog.decide(partial(ctx.jobs.revoke, id=seen.job, reason=reason), backups=[seen.backup]) as conn:
            mark = mark_of(conn, seen.backup)
            if mark is not None and mark.job == seen.job:
                call_off(ctx, conn, mark, reason)
                log.warning("the deletion of backup %s is called off: %s", seen.backup, reason)


def record(mark: Row[Any]) -> dict[str, Any]:
    """Who asked and who approved, for the audit trail."""
    told = {"asked_by": mark.asked_by, "asked_name": mark.asked_name, "asked_at": mark.asked_at}
    return told if mark.lapses is None else {**told, "approved_by": mark.approved_by, "approved_name": mark.approved_name}


def told(mark: Row[Any]) -> str:
    """What the deletion waits for, in words."""
    words = f"asked for by {mark.asked_name or 'the service'} at {utc(mark.asked_at)}"
    if mark.lapses is None:
        return f"{words}, it is decided at {utc(mark.until)}"
    if mark.approved_at is None:
        return f"{words}, another user has to approve it by {utc(mark.lapses)}"
    return f"{words} and approved by {mark.approved_name}, it is decided at {utc(max(mark.until, mark.approved_at))}"


def refuse_use(conn: Connection, backup: Row[Any]) -> None:
    """Raises errors.DeletionPending for a backup whose deletion is pending."""
    mark = mark_of(conn, backup.id) if backup.state == "PENDING" else None
    if mark is not None:
        raise errors.DeletionPending(f"backup {backup.id} is to be deleted ({told(mark)}): undelete it first")


def _find(conn: Connection, project: str, backup: str, job: str | None = None) -> Row[Any]:
    """The mark, which must be this job's still if one is given."""
    row = conn.execute(sa.select(t.backup).where(t.backup.c.id == backup, t.backup.c.project == project)).first()
    if row is None:
        raise errors.NoSuchBackup(f"there is no backup {backup} in this project")
    if row.state in ("DELETING", "DELETED"):
        raise errors.DeletionDecided(f"the deletion of backup {backup} is decided: it cannot be called back")
    mark = mark_of(conn, backup)
    if mark is None or job not in (None, mark.job):
        raise errors.NoDeletionPending(f"no deletion of backup {backup} is pending")
    return mark
