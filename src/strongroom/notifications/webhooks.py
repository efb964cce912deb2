"""Webhooks: receivers that an administrator of the project registers. Each has a secret of its own, shown once, that signs what
it is told.

A secret is replaced in place. The one before goes on signing beside it for as long as was said, so that a receiver may be given
the new one at any time until then without refusing anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError

from strongroom.backups import errors
from strongroom.backups.context import Context
from strongroom.catalog import tables as t
from strongroom.notifications import outbox, posting

MOST = 20
"""Webhooks of a project."""

OVERLAP = 24 * 3600.0
LONGEST_OVERLAP = 7 * 24 * 3600.0
"""Seconds that a secret that was replaced signs beside the new one, unless said otherwise, and at most."""

_PLACE = "webhook"  # what a secret is sealed for, with the webhook's id

Note = Callable[[Connection, str], None]


@dataclass(frozen=True, slots=True)
class NewWebhook:
    """What an administrator registers; its name and events are validated at the border."""

    name: str
    url: str
    events: Sequence[str] = outbox.EVENTS


@dataclass(frozen=True, slots=True)
class Secrets:
    """What signs: the present secret, and until a time (seconds since the epoch) the one before."""

    present: str = field(repr=False)
    before: str | None = field(default=None, repr=False)
    until: float = 0.0

    def valid(self, now: float) -> list[str]:
        """Those that sign now, the present one first."""
        return [self.present] if self.before is None or now >= self.until else [self.present, self.before]


def add(ctx: Context, project: str, new: NewWebhook, note: Note) -> tuple[str, str]:
    """Registers it and returns (id, secret). Nothing is sent. Raises errors.BadWebhook."""
    try:
        posting.parse(new.url, ctx.options.notify_networks)
    except posting.UrlRefused as error:
        raise errors.BadWebhook(str(error)) from error
    key, secret = ctx.ambient.hex_id(), ctx.ambient.key().hex()
    try:
        with ctx.catalog.write() as conn:
            here = t.webhook.c.project == project
            if conn.execute(sa.select(sa.func.count()).select_from(t.webhook).where(here)).scalar_one() >= MOST:
                raise errors.BadWebhook(f"a project has {MOST} webhooks at most: remove one first")
            conn.execute(
                t.webhook.insert().values(
                    id=key, project=project, name=new.name, url=new.url,
                    events=outbox.text_of(new.events),
                    secret=_sealed(ctx, key, Secrets(secret)), created_at=ctx.ambient.now(),
                )
            )  # fmt: skip
            outbox.begin_receiver(conn, key)
            note(conn, key)
    except IntegrityError as error:
        raise errors.BadWebhook(f"there is a webhook named {new.name} already: remove it first") from error
    return key, secret


def rotate(ctx: Context, project: str, name: str, secret: str | None, overlap: float, note: Note) -> tuple[str, float]:
    """Gives it another secret, drawn unless one is given; returns it, and until when the one before signs beside it. Of three the
    oldest signs no more. Raises errors.NoSuchWebhook, SecretUnreadable."""
    new = ctx.ambient.key().hex() if secret is None else secret
    with ctx.catalog.write() as conn:
        row = conn.execute(sa.select(t.webhook).where(t.webhook.c.id == find(conn, project, name).id).with_for_update()).one()
        until = ctx.ambient.now() + overlap
        secrets = Secrets(new, secrets_of(ctx, row).present, until) if overlap > 0 else Secrets(new)
        conn.execute(sa.update(t.webhook).where(t.webhook.c.id == row.id).values(secret=_sealed(ctx, row.id, secrets)))
        note(conn, row.id)
    return new, until


def secrets_of(ctx: Context, webhook: Row[Any]) -> Secrets:
    """Of a webhook's row. Raises SecretUnreadable."""
    text = ctx.sealer.open(webhook.secret, _PLACE, webhook.id).decode()
    if not text.startswith("{"):
        return Secrets(text)
    held = json.loads(text)
    return Secrets(held["present"], held["before"], held["until"])


def _sealed(ctx: Context, key: str, secrets: Secrets) -> bytes:
    """The secret alone, as a text, unless there is another beside it."""
    text = secrets.present if secrets.before is None else json.dumps(asdict(secrets))
    return ctx.sealer.seal(text.encode(), _PLACE, key)


def remove(ctx: Context, project: str, name: str, note: Note) -> None:
    """Takes it off; what waits for it is not told any more. Raises errors.NoSuchWebhook."""
    with ctx.catalog.write() as conn:
        row = find(conn, project, name)
        conn.execute(sa.delete(t.webhook).where(t.webhook.c.id == row.id))
        conn.execute(sa.delete(t.notification_receiver).where(t.notification_receiver.c.id == row.id))
        note(conn, row.id)


def find(conn: Connection, project: str, name: str) -> Row[Any]:
    """The project's webhook of this name. Raises errors.NoSuchWebhook."""
    row = conn.execute(sa.select(t.webhook).where(t.webhook.c.project == project, t.webhook.c.name == name)).first()
    if row is None:
        raise errors.NoSuchWebhook(f"there is no webhook {name} in this project")
    return row


def of_project(conn: Connection, project: str) -> Sequence[Row[Any]]:
    """All of them by name, with what is known of each as a receiver."""
    known = t.notification_receiver
    return conn.execute(
        sa.select(*(t.webhook.c[name] for name in ("id", "name", "url", "events", "created_at")), *_known(known))
        .join(known, known.c.id == t.webhook.c.id)
        .where(t.webhook.c.project == project)
        .order_by(t.webhook.c.name)
    ).all()


def of_command(conn: Connection) -> Row[Any] | None:
    """What is known of the operator's command; None before it was first told."""
    known = t.notification_receiver
    return conn.execute(sa.select(*_known(known)).where(known.c.id == outbox.COMMAND)).first()


def _known(known: sa.Table) -> list[sa.Column[Any]]:
    return [column for column in known.c if column.name != "id"]
