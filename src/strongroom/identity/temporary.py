"""Temporary credentials: an access key that signs only beside its security token, ends at a time, and dies with its user's epoch.

It may do what its user may, but for managing identity: what is lent for an hour makes nothing that stays. The security token is
random and only its digest is kept.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.ambient import Ambient
from strongroom.identity import accounts
from strongroom.identity import tables as t
from strongroom.identity.secrets import Sealer
from strongroom.identity.signing_in import User
from strongroom.identity.tokens import digest, require_epoch

SHORTEST, LONGEST = 15 * 60, 24 * 3600
"""Seconds that they may last."""


@dataclass(frozen=True, slots=True)
class Temporary:
    """Shown once. `expires_at` in seconds since the epoch."""

    key: accounts.AccessKey
    token: str = field(repr=False)
    expires_at: float


def create(conn: Connection, ambient: Ambient, sealer: Sealer, user: User, seconds: int) -> Temporary:
    """For a user who proved who they are by a token, with which the credentials end at the latest. Raises Unauthenticated if the
    user was changed since."""
    require_epoch(conn, user.id, user.epoch)
    text = base64.urlsafe_b64encode(ambient.key() + ambient.key()).rstrip(b"=").decode()
    end = ambient.now() + seconds
    if user.ends_at is not None:
        end = min(end, user.ends_at)
    session = {"session": digest(text), "epoch": user.epoch, "expires_at": end, "mfa_at": user.mfa_at}
    return Temporary(accounts.create_access_key(conn, ambient, sealer, user.id, session), text, end)


def forget_expired(conn: Connection, now: float, limit: int = 1000) -> int:
    """Deletes rows of temporary keys that have ended, at most `limit` at a time; returns how many."""
    old = sa.select(t.access_key.c.id).where(t.access_key.c.expires_at <= now).limit(limit)
    return conn.execute(sa.delete(t.access_key).where(t.access_key.c.id.in_(old))).rowcount
