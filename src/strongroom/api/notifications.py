"""Our own calls about a word when it matters: webhooks, a test of them, and how old the newest good backup may be.

All of it is for the account's administrator alone, but for looking at the hours: who registers a webhook has the server connect
to an address of their choice. The operator's command belongs to no project: the first account's administrator may test it, and
nobody sets it here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path, Response
from pydantic import BaseModel, Field
from sqlalchemy import Connection, Row

from strongroom.api.administrators import require_administrator, require_holder
from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import InstanceId, JobAccepted
from strongroom.api.services import given
from strongroom.api.times import iso
from strongroom.backups.context import Context
from strongroom.identity import audit
from strongroom.identity.principal import Principal
from strongroom.notifications import ages, delivery, outbox, posting, webhooks
from strongroom.settings import MOST_HOURS

router = authenticated_router("Notifications")
Here = Annotated[Context, given(Context)]

_GET = "strongroom:notification:get"
_SET = "strongroom:notification:set"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=_NAME)]
Named = Annotated[str, Path(pattern=_NAME)]
EventName = Literal[
    "backup_failed", "deletion_failed", "restore_failed", "test_restore_failed", "damage_found", "no_good_backup",
    "good_backup_again",
    "recording_interrupted",
]  # fmt: skip


class WebhookRequest(BaseModel):
    """Where to tell, and of what; all events unless some are named."""

    name: Name
    url: Annotated[str, Field(min_length=8, max_length=2000)]
    events: Annotated[list[EventName], Field(min_length=1, max_length=len(outbox.EVENTS))] | None = None


class SecretRequest(BaseModel):
    """The new secret, if it is not to be drawn; for how many hours the one before signs beside it."""

    secret: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9!#-+./:;<=>?@^_~-]{24,128}$")] = None
    overlap_hours: Annotated[float, Field(ge=0, le=webhooks.LONGEST_OVERLAP / 3600, allow_inf_nan=False, strict=True)] = (
        webhooks.OVERLAP / 3600
    )


class TestRequest(BaseModel):
    """A webhook's name; null: the operator's command."""

    webhook: Name | None = None


class HoursRequest(BaseModel):
    """Hours after which it is told that there is no good backup; null: never."""

    hours: Annotated[float | None, Field(gt=0, le=MOST_HOURS, allow_inf_nan=False, strict=True)]


@router.get("/strongroom/v1/{project_id}/notifications/webhooks")
def list_webhooks(ctx: Here, caller: Annotated[Principal, may(_GET)]) -> dict[str, Any]:
    """The project's webhooks by name, with what became of what they were to be told. Their secrets are not shown."""
    require_administrator(caller, _GET)
    with ctx.catalog.read() as conn:
        rows = webhooks.of_project(conn, caller.required_project())
    return {"webhooks": [_webhook(row) for row in rows], "total_count": len(rows)}


@router.post("/strongroom/v1/{project_id}/notifications/webhooks", status_code=201)
def add_webhook(request: WebhookRequest, ctx: Here, caller: Annotated[Principal, may(_SET)]) -> dict[str, Any]:
    """Registers a webhook. The answer holds the secret that signs what it is told, once; nothing is sent to it yet."""
    require_administrator(caller, _SET)
    events = [event for event in outbox.EVENTS if request.events is None or event in request.events]
    new = webhooks.NewWebhook(request.name, request.url, events)

    def note(conn: Connection, key: str) -> None:
        where = posting.parse(new.url, ctx.options.notify_networks).origin
        detail = {"url": where, "events": list(new.events)}
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomAddWebhook", "webhook", key, new.name, detail=detail))

    key, secret = webhooks.add(ctx, caller.required_project(), new, note)
    return {"id": key, "name": new.name, "url": new.url, "events": list(new.events), "secret": secret}


@router.post("/strongroom/v1/{project_id}/notifications/webhooks/{webhook}/secret")
def rotate_webhook_secret(
    webhook: Named, request: SecretRequest, ctx: Here, caller: Annotated[Principal, may(_SET)]
) -> dict[str, Any]:
    """Replaces what signs deliveries. A drawn secret is in the answer, once; one that was given is not repeated."""
    require_administrator(caller, _SET)

    def note(conn: Connection, key: str) -> None:
        detail = {"given": request.secret is not None, "overlap_hours": request.overlap_hours}
        entry = audit.Entry.by(caller, "StrongroomRotateWebhookSecret", "webhook", key, webhook, level="Major", detail=detail)
        audit.append(conn, ctx.ambient, entry)

    seconds = request.overlap_hours * 3600
    secret, until = webhooks.rotate(ctx, caller.required_project(), webhook, request.secret, seconds, note)
    return {
        "name": webhook, "secret": secret if request.secret is None else None,
        "previous_until": iso(until) if seconds else None,
    }  # fmt: skip


@router.delete("/strongroom/v1/{project_id}/notifications/webhooks/{webhook}", status_code=204)
def remove_webhook(webhook: Named, ctx: Here, caller: Annotated[Principal, may(_SET)]) -> Response:
    """Takes a webhook off; what waits for it is not told any more."""
    require_administrator(caller, _SET)

    def note(conn: Connection, key: str) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomRemoveWebhook", "webhook", key, webhook))

    webhooks.remove(ctx, caller.required_project(), webhook, note)
    return Response(status_code=204)


@router.get("/strongroom/v1/{project_id}/notifications/command")
def show_command(ctx: Here, caller: Annotated[Principal, may(_GET)]) -> dict[str, Any]:
    """Whether this server has a command, and what became of what it was to be told; for the first account's administrator."""
    require_holder(ctx, caller, _GET)
    with ctx.catalog.read() as conn:
        row = webhooks.of_command(conn)
    known = {} if row is None else _known(row)
    return {"set": bool(ctx.options.notify_command), **known}


@router.post("/strongroom/v1/{project_id}/notifications/test", status_code=202)
def send_test(request: TestRequest, ctx: Here, caller: Annotated[Principal, may(_SET)]) -> JobAccepted:
    """Has a worker send a test event; the job's result says what came back. Sent once."""
    require_administrator(caller, _SET)
    if request.webhook is None:
        require_holder(ctx, caller, _SET)

    def note(conn: Connection, receiver: str) -> None:
        kind = "command" if request.webhook is None else "webhook"
        entry = audit.Entry.by(caller, "StrongroomTestNotification", kind, receiver, request.webhook or "")
        audit.append(conn, ctx.ambient, entry)

    return JobAccepted(job_id=delivery.test(ctx, caller.required_project(), request.webhook, note))


@router.get("/strongroom/v1/{project_id}/notifications/hours")
def show_project_hours(ctx: Here, caller: Annotated[Principal, may(_GET)]) -> dict[str, Any]:
    """After how many hours without a good backup it is told. `default`: the project has none of its own."""
    with ctx.catalog.read() as conn:
        return _hours(ages.of_project(ctx, conn, caller.required_project()))


@router.put("/strongroom/v1/{project_id}/notifications/hours")
def set_project_hours(request: HoursRequest, ctx: Here, caller: Annotated[Principal, may(_SET)]) -> dict[str, Any]:
    """Sets it for the project's instances that have none of their own."""
    _set_project(ctx, caller, ages.Hours(request.hours, False))
    return show_project_hours(ctx, caller)


@router.delete("/strongroom/v1/{project_id}/notifications/hours")
def reset_project_hours(ctx: Here, caller: Annotated[Principal, may(_SET)]) -> dict[str, Any]:
    """Goes back to the server's."""
    _set_project(ctx, caller, ages.Hours(None, True))
    return show_project_hours(ctx, caller)


@router.get("/strongroom/v1/{project_id}/instances/{instance_id}/notifications/hours")
def show_instance_hours(instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may(_GET)]) -> dict[str, Any]:
    """The same for one instance."""
    with ctx.catalog.read() as conn:
        return _hours(ages.of_instance(ctx, conn, caller.required_project(), instance_id))


@router.put("/strongroom/v1/{project_id}/instances/{instance_id}/notifications/hours")
def set_instance_hours(
    instance_id: InstanceId, request: HoursRequest, ctx: Here, caller: Annotated[Principal, may(_SET)]
) -> dict[str, Any]:
    """Sets it for one instance."""
    _set_instance(ctx, caller, instance_id, ages.Hours(request.hours, False))
    return show_instance_hours(instance_id, ctx, caller)


@router.delete("/strongroom/v1/{project_id}/instances/{instance_id}/notifications/hours")
def reset_instance_hours(instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may(_SET)]) -> dict[str, Any]:
    """Goes back to the project's."""
    _set_instance(ctx, caller, instance_id, ages.Hours(None, True))
    return show_instance_hours(instance_id, ctx, caller)


def _set_project(ctx: Context, caller: Principal, hours: ages.Hours) -> None:
    require_administrator(caller, _SET)
    project = caller.required_project()

    def note(conn: Connection) -> None:
        entry = audit.Entry.by(caller, "StrongroomSetBackupAge", "project", project, detail=_hours(hours))
        audit.append(conn, ctx.ambient, entry)

    ages.put_for_project(ctx, project, hours, note)


def _set_instance(ctx: Context, caller: Principal, instance: str, hours: ages.Hours) -> None:
    require_administrator(caller, _SET)

    def note(conn: Connection) -> None:
        entry = audit.Entry.by(caller, "StrongroomSetBackupAge", "instance", instance, detail=_hours(hours))
        audit.append(conn, ctx.ambient, entry)

    ages.put_for_instance(ctx, caller.required_project(), instance, hours, note)


def _hours(hours: ages.Hours) -> dict[str, Any]:
    return {"hours": hours.hours, "default": hours.default}


def _webhook(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id, "name": row.name, "url": row.url, "events": list(outbox.events_of(row.events)),
        "created_at": iso(row.created_at),
        **_known(row),
    }  # fmt: skip


def _known(row: Row[Any]) -> dict[str, Any]:
    return {
        "delivered": row.delivered, "failed": row.failed, "given_up": row.given_up, "dropped": row.dropped,
        "last_at": iso(row.last_at), "last_error": row.last_error,
    }  # fmt: skip
