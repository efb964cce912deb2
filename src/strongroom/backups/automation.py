"""Backups that nobody asks for: taken once for each window of a policy, and deleted when they have been kept for long enough.

automate    the window's backup, whichever worker is alive: the window is marked as done in the transaction that decides the
            backup. A window that was missed while nobody worked is made up for by one backup, which says so.
expire      every hour: what was kept for `keep_days` goes, by the same delete as everybody's; what may not go just now (held,
            being restored) is told and tried again. The newest that was completed stays, however old it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups import creation, deletion, errors, pending, policies
from strongroom.backups.context import Context
from strongroom.backups.windows import LENGTH
from strongroom.catalog import tables as t
from strongroom.identity import audit
from strongroom.jobs.port import JobFailed, Running, TryAgain
from strongroom.jobs.schedules import Schedule
from strongroom.notifications import outbox

log = logging.getLogger("strongroom.backups")

HOURLY = Schedule("expired backups", policies.EXPIRE, 3600.0, {}, serial="expire")

_DAY = 86400.0
_BUSY = 60.0  # seconds until it is tried again while another backup of the instance is taken
_RESTORING = 5.0  # seconds until it is tried again while a restore reads a backup
_MOST = 200  # backups that are looked up at once, and that a result tells of


class AutomateJob:
    """The job `automate`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        ctx, instance = self._ctx, str(job.args["instance"])
        with ctx.catalog.read() as conn:
            row = conn.execute(
                sa.select(t.backup_policy, t.instance.c.project, t.instance.c.name)
                .join(t.instance, t.instance.c.id == t.backup_policy.c.instance)
                .where(t.backup_policy.c.instance == instance, t.instance.c.state == "REGISTERED")
            ).first()
        if row is None:
            return {"backup": None}
        now = ctx.ambient.now()
        windows = policies.policy_of(row).windows
        window = windows.last(now + policies.SKEW)
        if window <= row.last_window:
            return {"backup": None}
        missed = windows.between(row.last_window, window)
        late = now >= window + LENGTH
        try:
            backup = self._take(row, window, missed + late, late)
        except errors.InstanceBusy as error:
            raise TryAgain(str(error), _BUSY) from error
        except (errors.NoSuchInstance, _Done):
            return {"backup": None}
        except errors.Refused as error:
            raise JobFailed(str(error)) from error
        if missed + late:
            log.warning("%d windows of instance %s were missed; backup %s makes up for them", missed + late, row.name, backup)
        return {"backup": backup, "window": window, "missed": missed + late}

    def _take(self, policy: Row[Any], window: float, missed: int, late: bool) -> str:
        ctx = self._ctx
        made_up = f", taken late: the window of {_text(window)} UTC was missed" if late else ""
        name = datetime.fromtimestamp(ctx.ambient.now(), UTC).strftime("auto-%Y%m%d%H%M%S")
        wanted = creation.Wanted(name, f"automated backup{made_up}", "Auto")

        def note(conn: Connection, backup: str) -> None:
            here = sa.and_(t.backup_policy.c.instance == policy.instance, t.backup_policy.c.last_window < window)
            if conn.execute(sa.update(t.backup_policy).where(here).values(last_window=window)).rowcount != 1:
                raise _Done
            detail = {"window": _text(window), "missed": missed}
            audit.append(
                conn, ctx.ambient, audit.Entry("NoSQLCreateBackup", "backup", backup, name, project=policy.project, detail=detail)
            )

        return creation.create(ctx, policy.project, policy.instance, wanted, note)[0]

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """The window is still open, or the next one makes up for it; but that a backup was due and refused is told."""
        if outcome != "FAILED":
            return
        with self._ctx.catalog.write(job.guard) as conn:
            row = conn.execute(sa.select(t.instance).where(t.instance.c.id == str(job.args["instance"]))).one()
            outbox.backup_not_begun(self._ctx, conn, row, job.id, reason)
            job.fail(conn, reason)


class _Done(Exception):
    """Another worker has taken the window's backup, or the policy is off."""


class ExpireJob:
    """The job `expire`. With an instance: all automated backups of it go, since its policy is off or it is unregistered; nobody
    comes by later, so one that a restore reads is waited for. Where a person has asked for it (`by`) it is a delete by hand,
    which waits for what the project's deletions wait for. Expiry by age waits for nothing."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        ctx, instance = self._ctx, job.args.get("instance")
        by = pending.Person(*job.args["by"]) if job.args.get("by") else None
        deleted: list[str] = []
        kept: dict[str, str] = {}
        passing = ""  # why something has to wait
        with ctx.catalog.read() as conn:
            query = sa.select(t.backup_policy.c.instance, t.backup_policy.c.keep_days).order_by(t.backup_policy.c.instance)
            kept_days = {row.instance: row.keep_days for row in conn.execute(query)} if instance is None else {instance: None}
        for each, days in kept_days.items():
            job.check()
            before = None if days is None else ctx.ambient.now() - days * _DAY
            while some := self._due(each, before, kept):
                for row in some:
                    job.progress("deleting backups", len(deleted))
                    try:
                        deletion.delete(ctx, row.project, row.id, self._noted(row.project, by), by=by, expiring=by is None)
                        deleted.append(row.id)
                    except errors.NoSuchBackup:  # somebody else's delete is done
                        continue
                    except errors.Refused as error:
                        kept[row.id] = str(error)
                        stays = isinstance(error, (errors.BackupHeld, errors.BackupAutomated))  # or the policy is on again
                        passing = passing if stays else str(error)
        if instance is not None and passing:
            raise TryAgain(passing, _RESTORING)
        told = [{"backup": key, "why": why} for key, why in list(kept.items())[:_MOST]]
        return {"deleted": len(deleted), "kept": told}

    def _due(self, instance: str, before: float | None, kept: Mapping[str, str]) -> Sequence[Row[Any, Any]]:
        """Automated backups that ended before, but for the newest completed one; all of them if `before` is None."""
        automated = (t.backup.c.instance == instance, t.backup.c.origin == "Auto")
        query = sa.select(t.backup.c.id, t.backup.c.project).where(
            *automated, t.backup.c.state.in_(("COMPLETED", "FAILED")), t.backup.c.id.not_in(list(kept))
        )
        with self._ctx.catalog.read() as conn:
            if before is not None:
                newest = conn.execute(
                    sa.select(t.backup.c.id)
                    .where(*automated, t.backup.c.state == "COMPLETED")
                    .order_by(t.backup.c.begin_at.desc(), t.backup.c.id.desc())
                    .limit(1)
                ).scalar()
                ended = sa.func.coalesce(t.backup.c.end_at, t.backup.c.begin_at)
                query = query.where(ended <= before, t.backup.c.id != (newest or ""))
            return conn.execute(query.order_by(t.backup.c.begin_at, t.backup.c.id).limit(_MOST)).all()

    def _noted(self, project: str, by: pending.Person | None) -> deletion.Note:
        def note(conn: Connection, backup: str, name: str) -> None:
            detail = {"by": "policy"} if by is None else {"asked_by": by.id, "asked_name": by.name}
            audit.append(
                conn, self._ctx.ambient, audit.Entry("NoSQLDeleteBackup", "backup", backup, name, project=project, detail=detail)
            )

        return note

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Nothing hangs on it: the next hour's goes on."""


def _text(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
