"""Work that comes round: a row says when it is due next, and is moved on in the same commit that submits the job.

So each tick is submitted exactly once, by whichever worker is first. Ticks that were missed while nobody worked are made up
for by one run; a tick that finds the job of an earlier one queued or running is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.catalog.tables import schedule as t
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import DuplicateJob

_BATCH = 100  # schedules that one transaction moves on


@dataclass(frozen=True, slots=True)
class Schedule:
    """An internal job that is submitted every `every` seconds."""

    name: str
    kind: str
    every: float
    args: Mapping[str, Any]
    queue: str = "default"
    serial: str | None = None


def put_schedule(jobs: LeasedJobs, conn: Connection, wanted: Schedule, first: float | None = None) -> None:
    """Adds or changes a schedule; it is due `every` seconds from now, or `first` (seconds since the epoch), or when it was due
    already if that is sooner."""
    due = jobs.clock.now() + wanted.every if first is None else sa.literal(first, sa.Double)
    values = {
        "kind": wanted.kind, "args": json.dumps(dict(wanted.args)), "queue": wanted.queue, "serial": wanted.serial,
        "every": wanted.every, "paused": False,
    }  # fmt: skip
    sooner = sa.case((t.c.next_due < due, t.c.next_due), else_=due)
    changed = conn.execute(sa.update(t).where(t.c.name == wanted.name).values(next_due=sooner, **values))
    if changed.rowcount == 0:
        conn.execute(sa.insert(t).values(name=wanted.name, next_due=due, **values))


def remove_schedule(conn: Connection, name: str) -> None:
    """Ends a schedule; a job that it has submitted goes on."""
    conn.execute(sa.delete(t).where(t.c.name == name))


def submit_due(jobs: LeasedJobs) -> None:
    """Submits what is due and moves it on. Looks before it takes SQLite's write lock. Raises DBAPIError."""
    with jobs.catalog.read() as conn:
        if conn.execute(sa.select(t.c.name).where(*_due(jobs)).limit(1)).first() is None:
            return
    with jobs.catalog.write() as conn:
        now = jobs.clock.now().label("now")
        rows = conn.execute(
            sa.select(t, now).where(*_due(jobs)).order_by(t.c.name).limit(_BATCH).with_for_update(skip_locked=True)
        ).all()
        for row in rows:
            with suppress(DuplicateJob):
                jobs.submit(
                    conn, row.kind, json.loads(row.args), queue=row.queue, serial=row.serial, unique_key=f"schedule:{row.name}"
                )
            ticks = math.floor((row.now - row.next_due) / row.every) + 1
            conn.execute(sa.update(t).where(t.c.name == row.name).values(next_due=row.next_due + ticks * row.every))


def _due(jobs: LeasedJobs) -> tuple[sa.ColumnElement[bool], ...]:
    return t.c.next_due <= jobs.clock.now(), t.c.paused.is_(False)
