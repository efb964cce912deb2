"""Telling one receiver of one event.

A try that fails lets its receiver rest, the longer the more tries in a row have failed, whatever waits for it: one that is down
is asked once for each rest, not once for each event. What could not be told for KEEP seconds is given up. Success ends the rest.

NotifyJob's own failure is counted and logged, and told to nobody: a receiver that is down must not make more to tell.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom import __version__
from strongroom.backups import errors
from strongroom.backups.context import Context
from strongroom.catalog import tables as t
from strongroom.identity.errors import SecretUnreadable
from strongroom.jobs.port import JobFailed, Running, TryAgain
from strongroom.notifications import command, outbox, posting, webhooks
from strongroom.notifications.posting import NotDelivered

log = logging.getLogger("strongroom.notifications")

TEST = "notify-test"
"""The kind of job that sends a test event to one receiver."""

FIRST_REST, LONGEST_REST = 2.0, 900.0
"""Seconds that a receiver rests after a failed try; doubled from try to try up to the longest."""

KEEP = 24 * 3600.0
"""Seconds after which an event that could not be told is given up."""

_NO_COMMAND = "no command is set here by STRONGROOM_NOTIFY_COMMAND"


class NotifyJob:
    """The job `notify`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any] | None:
        ctx, receiver, event = self._ctx, str(job.args["receiver"]), job.args["event"]
        with ctx.catalog.read() as conn:
            known = conn.execute(sa.select(t.notification_receiver).where(t.notification_receiver.c.id == receiver)).first()
            removed = receiver != outbox.COMMAND and known is None
        if removed:
            return {"outcome": "removed"}
        now = ctx.ambient.now()
        if known is not None and now < known.resting_until:
            raise self._later(event, known.last_error or "", known.resting_until - now)
        try:
            told = send(ctx, job, receiver, event, job.id)
        except NotDelivered as error:
            raise self._later(event, str(error), self._rest(job, receiver, str(error))) from error
        with ctx.catalog.write(job.guard) as conn:
            _succeeded(ctx, conn, receiver)
            outbox.count(conn, receiver, delivered=1)
            job.finish(conn, told)
        return None

    def _later(self, event: Mapping[str, Any], why: str, pause: float) -> TryAgain | JobFailed:
        if self._ctx.ambient.now() - event["time"] > KEEP:
            return JobFailed(f"not told for {KEEP / 3600:.0f} hours: {why}")
        return TryAgain(why, pause)

    def _rest(self, job: Running, receiver: str, why: str) -> float:
        """Counts a failed try; returns for how long the receiver rests."""
        ctx, known = self._ctx, t.notification_receiver
        with ctx.catalog.write(job.guard) as conn:
            if receiver == outbox.COMMAND:
                outbox.begin_receiver(conn, receiver)
            outbox.count(conn, receiver, failed=1, failures=1)
            failures = conn.execute(sa.select(known.c.failures).where(known.c.id == receiver)).scalar() or 1
            rest: float = min(LONGEST_REST, FIRST_REST * 2.0 ** min(failures - 1, 16))
            now = ctx.ambient.now()
            values = {"resting_until": now + rest, "last_error": why, "last_at": now}
            conn.execute(sa.update(known).where(known.c.id == receiver).values(**values))
        return rest

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Counted, and in the log."""
        receiver, event = str(job.args["receiver"]), job.args["event"]
        log.error("receiver %s was not told of %s (%s): %s", receiver, event["event"], event["id"], reason)
        with self._ctx.catalog.write(job.guard) as conn:
            outbox.count(conn, receiver, given_up=1)
            if outcome == "FAILED":
                job.fail(conn, reason)


class TestJob:
    """The job `notify-test`: one try, whose result says what came back."""

    __test__ = False  # it is no test of ours

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any] | None:
        ctx, receiver = self._ctx, str(job.args["receiver"])
        event = outbox.Event("test", str(job.args["project"]), "This is a test: nothing has happened.", job=job.id)
        try:
            told = send(ctx, job, receiver, outbox.body(ctx, event), job.id)
        except NotDelivered as error:
            raise JobFailed(str(error), {"outcome": "failed", "status": error.status}) from error
        with ctx.catalog.write(job.guard) as conn:
            _succeeded(ctx, conn, receiver)
            job.finish(conn, told)
        return None

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Nothing hangs on it."""


def test(ctx: Context, project: str, webhook: str | None, note: webhooks.Note) -> str:
    """Submits a test of the project's webhook of this name, or with None of the operator's command; returns the job's id. Raises
    errors.NoSuchWebhook."""
    with ctx.catalog.write() as conn:
        if webhook is None and not ctx.options.notify_command:
            raise errors.NoSuchWebhook(_NO_COMMAND)
        receiver = outbox.COMMAND if webhook is None else str(webhooks.find(conn, project, webhook).id)
        job = ctx.jobs.submit(
            conn, TEST, {"receiver": receiver, "project": project}, project=project, queue=outbox.QUEUE,
            serial=outbox.serial(receiver), max_attempts=1,
        )  # fmt: skip
        note(conn, receiver)
    return job


def send(ctx: Context, job: Running, receiver: str, event: Mapping[str, Any], delivery: str) -> dict[str, Any]:
    """One try; what came back. Raises NotDelivered, and what the job's check raises."""
    body = json.dumps({name: value for name, value in event.items() if name != "time"}, sort_keys=True).encode()
    begun = ctx.ambient.monotonic()
    if receiver == outbox.COMMAND:
        if not ctx.options.notify_command:
            raise NotDelivered(_NO_COMMAND)
        command.run(ctx.options.notify_command, body, ctx.ambient, job.check)
        status = 0
    else:
        status = _post(ctx, receiver, str(event["event"]), body, delivery)
    return {"outcome": "delivered", "status": status, "seconds": round(ctx.ambient.monotonic() - begun, 3)}


def _post(ctx: Context, receiver: str, event: str, body: bytes, delivery: str) -> int:
    with ctx.catalog.read() as conn:
        row = conn.execute(sa.select(t.webhook).where(t.webhook.c.id == receiver)).first()
    if row is None:
        raise NotDelivered("the webhook was removed")
    try:
        secrets = webhooks.secrets_of(ctx, row).valid(ctx.ambient.now())
        place = posting.parse(row.url, ctx.options.notify_networks)
    except (SecretUnreadable, posting.UrlRefused) as error:
        raise NotDelivered(str(error)) from error
    timestamp = int(ctx.ambient.now())
    headers = {
        "User-Agent": f"strongroom/{__version__}", "X-Strongroom-Event": event, "X-Strongroom-Delivery": delivery,
        "X-Strongroom-Timestamp": str(timestamp),
        "X-Strongroom-Signature": ",".join(f"v1={posting.sign(secret, timestamp, body)}" for secret in secrets),
    }  # fmt: skip
    return posting.post(place, body, headers, ctx.options.notify_networks)


def _succeeded(ctx: Context, conn: Connection, receiver: str) -> None:
    """The rest is over."""
    if receiver == outbox.COMMAND:
        outbox.begin_receiver(conn, receiver)
    known = t.notification_receiver
    values: dict[str, Any] = {"failures": 0, "resting_until": 0.0, "last_error": None, "last_at": ctx.ambient.now()}
    conn.execute(sa.update(known).where(known.c.id == receiver).values(values))
