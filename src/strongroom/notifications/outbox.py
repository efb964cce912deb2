"""Deciding who is told, in the transaction of what happened: neither exists without the other.

An event is a job for each receiver: what is to be told stands in the job's arguments, so it survives whatever happens to the
process. It is told at least once, and its `id` is the same at each try and for each receiver. A receiver that is away for long
has MOST events waiting at most; what comes beyond is counted as dropped.

Whoever tells is in the middle of a deciding transaction: this reads receivers, inserts jobs, and touches nothing else but the
counts of receivers that have too much waiting, in the order of their ids.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups.context import Context
from strongroom.catalog import tables as t

log = logging.getLogger("strongroom.notifications")

QUEUE = "notifications"
"""The queue of all that tells: a receiver that is slow takes no thread from backups and deletions."""

NOTIFY = "notify"
"""The kind of job that tells one receiver of one event."""

COMMAND = "command"
"""The receiver that is no webhook: the operator's command."""

EVENTS = (
    "backup_failed", "deletion_failed", "restore_failed", "test_restore_failed", "damage_found", "no_good_backup",
    "good_backup_again", "recording_interrupted",
)  # fmt: skip
"""What is told of. One more, `test`, is told only when asked for."""

_ALL = "all"
_ALL_OF_0_1 = "backup_failed,deletion_failed,restore_failed,damage_found,no_good_backup,good_backup_again"

MOST = 100
"""Events that wait for one receiver."""

_LONGEST = 2000  # characters of an event's words


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `words` are a sentence for people. Nothing in it is a secret."""

    event: str  # one of EVENTS, or "test"
    project: str
    words: str
    instance: Mapping[str, Any] | None = None  # id, name, engine
    backup: Mapping[str, Any] | None = None  # id, name, origin
    job: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None  # the same for an event that may be told of anew after a crash; None: each is its own


def tell(ctx: Context, conn: Connection, event: Event) -> None:
    """Queues the event for each receiver that wants it, with the caller's transaction."""
    wanted = receivers(ctx, conn, event.project, event.event)
    if not wanted:
        return
    told = body(ctx, event)
    for receiver in wanted:
        key = None if event.key is None else str(uuid.uuid5(uuid.UUID(told["id"]), receiver))
        if key is not None and conn.execute(sa.select(t.job.c.id).where(t.job.c.id == key)).first() is not None:
            continue
        if _waiting(conn, receiver) >= MOST:
            log.error("receiver %s is not told of %s: %d events wait for it already", receiver, event.event, MOST)
            count(conn, receiver, dropped=1)
            continue
        ctx.jobs.submit(conn, NOTIFY, {"receiver": receiver, "event": told}, id=key, queue=QUEUE, serial=serial(receiver))


def body(ctx: Context, event: Event) -> dict[str, Any]:
    """The event as receivers get it."""
    key = ctx.ambient.uuid() if event.key is None else str(uuid.uuid5(uuid.NAMESPACE_OID, f"{event.event}:{event.key}"))
    now = ctx.ambient.now()
    at = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "id": key, "event": event.event, "at": at, "time": now, "project": event.project, "instance": event.instance,
        "backup": event.backup, "job": event.job, "words": event.words[:_LONGEST], "detail": dict(event.detail),
    }  # fmt: skip


def receivers(ctx: Context, conn: Connection, project: str, event: str) -> Sequence[str]:
    """Ids of who wants to know of such an event of the project, in order."""
    rows = conn.execute(sa.select(t.webhook.c.id, t.webhook.c.events).where(t.webhook.c.project == project)).all()
    found = [row.id for row in rows if event in events_of(row.events)]
    return sorted([*found, COMMAND] if ctx.options.notify_command else found)


def events_of(text: str) -> Sequence[str]:
    """What a webhook's column says. Who wants all wants also what later versions tell of."""
    return EVENTS if text in (_ALL, _ALL_OF_0_1) else text.split(",")


def text_of(events: Sequence[str]) -> str:
    """The column's text for these events."""
    return _ALL if set(events) == set(EVENTS) else ",".join(events)


def serial(receiver: str) -> str:
    """One delivery to a receiver at a time."""
    return f"notify:{receiver}"


def count(conn: Connection, receiver: str, **more: int) -> None:
    """Counts in the receiver's row: delivered, failed, given_up, dropped. Nothing if it was removed."""
    c = t.notification_receiver.c
    values = {name: c[name] + number for name, number in more.items()}
    conn.execute(sa.update(t.notification_receiver).where(c.id == receiver).values(values))


def begin_receiver(conn: Connection, receiver: str) -> None:
    """A receiver that nothing is known of yet; nothing where it is known."""
    known = conn.execute(sa.select(t.notification_receiver.c.id).where(t.notification_receiver.c.id == receiver)).first()
    if known is None:
        conn.execute(
            t.notification_receiver.insert().values(
                id=receiver, delivered=0, failed=0, given_up=0, dropped=0, failures=0, resting_until=0.0
            )
        )


def _waiting(conn: Connection, receiver: str) -> int:
    here = sa.and_(t.job.c.queue == QUEUE, t.job.c.serial == serial(receiver), t.job.c.state.in_(("QUEUED", "RUNNING")))
    return conn.execute(sa.select(sa.func.count()).select_from(t.job).where(here)).scalar_one()


# ---- what is told -----------------------------------------------------------------------------------------------------------


def backup_failed(ctx: Context, conn: Connection, backup: Row[Any], reason: str) -> None:
    """In the transaction that decides it; `backup` is its row."""
    job = conn.execute(sa.select(t.job.c.id).where(t.job.c.backup == backup.id, t.job.c.kind == "backup")).scalar()
    words = f"Backup {backup.name} of {backup.engine} instance {backup.instance_name} failed: {reason}"
    tell(ctx, conn, _of_backup("backup_failed", backup, words, job, _why(reason)))


def backup_not_begun(ctx: Context, conn: Connection, instance: Row[Any], job: str, reason: str) -> None:
    """An automated backup that was due and refused; `instance` is the instance's row."""
    words = f"The automated backup of {instance.engine} instance {instance.name} could not begin: {reason}"
    told = {"id": instance.id, "name": instance.name, "engine": instance.engine}
    tell(ctx, conn, Event("backup_failed", instance.project, words, told, None, job, _why(reason)))


def deletion_failed(ctx: Context, conn: Connection, backup: Row[Any], job: str, reason: str) -> None:
    """In the transaction that ends the deletion's job as failed."""
    words = (
        f"The deletion of backup {backup.name} of {backup.engine} instance {backup.instance_name} failed: {reason}. "
        "Delete it again once that is mended: it goes on from there"
    )
    tell(ctx, conn, _of_backup("deletion_failed", backup, words, job, _why(reason)))


def deletion_called_off(ctx: Context, conn: Connection, backup: Row[Any], job: str, reason: str) -> None:
    """In the transaction that ends a pending deletion other than by being called back."""
    words = (
        f"The deletion of backup {backup.name} of {backup.engine} instance {backup.instance_name} is called off: {reason}. "
        "The backup is there as before"
    )
    tell(ctx, conn, _of_backup("deletion_failed", backup, words, job, _why(reason)))


def restore_failed(ctx: Context, conn: Connection, backup: Row[Any] | None, target: Row[Any], job: str, reason: str) -> None:
    """Just before the job ends: it may be told of again after a crash, by the same id. `target` is the instance's row; files were
    to be imported into it if there is no `backup`."""
    what = "import of files" if backup is None else f"restore of backup {backup.name}"
    words = f"The {what} into {target.engine} instance {target.name} failed: {reason}"
    instance = {"id": target.id, "name": target.name, "engine": target.engine}
    about = None if backup is None else {"id": backup.id, "name": backup.name, "origin": backup.origin}
    tell(ctx, conn, Event("restore_failed", target.project, words, instance, about, job, _why(reason), key=job))


def test_restore_failed(ctx: Context, conn: Connection, backup: Row[Any], job: str, reason: str) -> None:
    """As restore_failed. What was restored into is thrown away: it is told about the backup and its instance."""
    words = f"The test restore of backup {backup.name} of {backup.engine} instance {backup.instance_name} failed: {reason}"
    tell(ctx, conn, replace(_of_backup("test_restore_failed", backup, words, job, _why(reason)), key=job))


def recording_interrupted(ctx: Context, conn: Connection, instance: Row[Any], job: str, reason: str) -> None:
    """In the transaction that ends a stretch of recorded log; `instance` is the instance's row."""
    words = f"There is a hole in what is recorded of {instance.engine} instance {instance.name}: {reason}"
    told = {"id": instance.id, "name": instance.name, "engine": instance.engine}
    tell(ctx, conn, Event("recording_interrupted", instance.project, words, told, None, job, _why(reason)))


def damage_found(ctx: Context, conn: Connection, backup: Row[Any], job: str, chunks: int, objects: Sequence[str]) -> None:
    """In the transaction that makes the chunks suspect; of a backup that needs them."""
    words = (
        f"Damage was found in {len(objects)} objects of the store that backup {backup.name} of {backup.engine} instance "
        f"{backup.instance_name} needs, maybe among others. The next backup stores anew what is damaged"
    )
    detail = {"chunks": chunks, "objects": list(objects[:20])}
    tell(ctx, conn, _of_backup("damage_found", backup, words, job, detail))


def _why(reason: str) -> dict[str, Any]:
    return {"reason": reason[:_LONGEST]}


def _of_backup(event: str, backup: Row[Any], words: str, job: str | None, detail: Mapping[str, Any]) -> Event:
    instance = {"id": backup.instance, "name": backup.instance_name, "engine": backup.engine}
    about = {"id": backup.id, "name": backup.name, "origin": backup.origin}
    return Event(event, backup.project, words, instance, about, job, detail)
