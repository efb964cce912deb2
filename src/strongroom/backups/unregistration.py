"""Taking an instance off the register: its manual backups stay, its automated ones go.

    unregister      one transaction: the instance is REMOVED, how it is entered is forgotten, the job is submitted
    UnregisterJob   decides the deletion of each automated backup, by the same code as any other deletion

An automated backup that is held stays, and the job's result names it. One that a restore reads is waited for. The deletions
are jobs of their own and go on when this one is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups import deletion, errors
from strongroom.backups.context import Context
from strongroom.backups.listing import VISIBLE
from strongroom.catalog import tables as t
from strongroom.identity import audit
from strongroom.jobs.port import Running, TryAgain


def unregister(ctx: Context, project: str, instance: str, note: Callable[[Connection, str], None]) -> str:
    """Unregisters an instance and returns the job's id. `note` gets the instance's name.

    Raises errors.NoSuchInstance, and errors.InstanceBusy while a backup or restore of it is queued or runs.
    """
    i = t.instance.c
    with ctx.catalog.write() as conn:
        here = sa.and_(i.id == instance, i.project == project, i.state == "REGISTERED")
        found = conn.execute(sa.update(t.instance).where(here).values(state="REMOVED", secret=None, updated_at=ctx.ambient.now()))
        if found.rowcount != 1:
            raise errors.NoSuchInstance(f"there is no instance {instance} in this project")
        busy = conn.execute(
            sa.select(t.job.c.id).where(
                t.job.c.instance == instance,
                t.job.c.kind.in_(("backup", "restore")),
                t.job.c.state.in_(("QUEUED", "RUNNING")),
            )
        ).first()
        if busy is not None:
            raise errors.InstanceBusy(f"job {busy.id} uses the instance: wait for its end, or stop it")
        job = ctx.jobs.submit(conn, "unregister", {"instance": instance}, project=project, instance=instance)
        note(conn, conn.execute(sa.select(i.name).where(i.id == instance)).scalar_one())
    return job


class UnregisterJob:
    """The job `unregister`. Run again it goes on: what is being deleted already is no longer among the backups."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any] | None:
        ctx = self._ctx
        kept: list[dict[str, str]] = []
        with ctx.catalog.read() as conn:
            rows = _automated(conn, str(job.args["instance"]))
        for done, row in enumerate(rows):
            job.progress("deleting automated backups", done, len(rows))
            try:
                deletion.delete(ctx, row.project, row.id, self._note(job, row))
            except errors.BackupHeld as error:
                kept.append({"backup_id": row.id, "reason": str(error)})
            except errors.NoSuchBackup:  # somebody else has deleted it
                continue
            except errors.Refused as error:  # a restore reads it, or its lineage keeps moving: both pass
                raise TryAgain(str(error)) from error
        return {"kept": kept}

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Nothing to undo: what is decided stays decided."""

    def _note(self, job: Running, backup: Row[Any]) -> deletion.Note:
        def note(conn: Connection, key: str, name: str) -> None:
            detail = {"instance": backup.instance, "job": job.id}
            entry = audit.Entry("NoSQLDeleteBackup", "backup", key, name, project=backup.project, detail=detail)
            audit.append(conn, self._ctx.ambient, entry)

        return note


def _automated(conn: Connection, instance: str) -> list[Row[Any]]:
    b = t.backup.c
    return list(
        conn.execute(
            sa.select(t.backup).where(b.instance == instance, b.origin == "Auto", b.state.in_(VISIBLE)).order_by(b.begin_at, b.id)
        )
    )
