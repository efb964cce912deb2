"""Tokens: random words of which only a digest is kept; 24 hours; many at a time.

A token ends when it expires, is revoked, or its user's epoch moves (a changed password, permission, group or key, disabling). The
epoch is compared at every use, so that the end is at once and costs no sweep.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.ambient import Ambient
from strongroom.identity import tables as t
from strongroom.identity.errors import NotKnown, Unauthenticated

LIFETIME = 24 * 3600.0
"""Seconds."""
_LONGEST = 256  # characters; far above any of ours


@dataclass(frozen=True, slots=True)
class Issued:
    """A new token; the only place where its text exists. Times in seconds since the epoch."""

    text: str
    issued_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class Valid:
    """A token that holds now."""

    user: str
    epoch: int  # the user's
    project: str | None  # None: its scope is the account
    method: str
    issued_at: float
    expires_at: float
    mfa_at: float | None = None  # when a second factor was shown for it


def issue(
    conn: Connection,
    ambient: Ambient,
    user: str,
    epoch: int,
    project: str | None,
    method: Literal["password", "token"],
    expires_at: float | None = None,
    mfa_at: float | None = None,
) -> Issued:
    """Makes a token for a user who proved who they are at `epoch`; Unauthenticated if the epoch has moved since, as when the
    password was changed meanwhile. `expires_at` only shortens: a token made from a token ends with it."""
    require_epoch(conn, user, epoch)
    text = base64.urlsafe_b64encode(ambient.key()).rstrip(b"=").decode()
    now = ambient.now()
    end = now + LIFETIME if expires_at is None else min(expires_at, now + LIFETIME)
    conn.execute(
        sa.insert(t.token).values(
            digest=digest(text),
            user=user,
            project=project,
            method=method,
            epoch=epoch,
            issued_at=now,
            expires_at=end,
            mfa_at=mfa_at,
        )
    )
    return Issued(text, now, end)


def require_epoch(conn: Connection, user: str, epoch: int) -> None:
    """Raises Unauthenticated if the user was changed or disabled since they proved who they are."""
    current = sa.select(t.user.c.epoch).where(t.user.c.id == user, t.user.c.enabled, t.user.c.epoch == epoch)
    if conn.scalar(current) is None:
        raise Unauthenticated("the user was changed or disabled")


def validate(conn: Connection, text: str, now: float) -> Valid:
    """The token's meaning, or Unauthenticated with the reason."""
    row = conn.execute(
        sa.select(t.token, t.user.c.epoch.label("current"), t.user.c.enabled)
        .join(t.user, t.user.c.id == t.token.c.user)
        .where(t.token.c.digest == digest(text))
    ).one_or_none()
    if row is None or len(text) > _LONGEST:
        raise Unauthenticated("the token is not known")
    if row.revoked_at is not None or not row.enabled or row.epoch != row.current:
        raise Unauthenticated("the token is revoked")
    if row.expires_at <= now:
        raise Unauthenticated("the token has expired")
    return Valid(row.user, row.epoch, row.project, row.method, row.issued_at, row.expires_at, row.mfa_at)


def revoke(conn: Connection, text: str, now: float) -> None:
    """Ends a token at once. Ending it again is no error; NotKnown if there never was one."""
    where = t.token.c.digest == digest(text)
    if conn.execute(sa.update(t.token).where(where, t.token.c.revoked_at.is_(None)).values(revoked_at=now)).rowcount:
        return
    if conn.scalar(sa.select(sa.func.count()).select_from(t.token).where(where)) == 0:
        raise NotKnown("token", "of this text")


def forget_expired(conn: Connection, now: float, limit: int = 1000) -> int:
    """Deletes rows of tokens that ended by themselves, at most `limit` at a time; returns how many."""
    old = sa.select(t.token.c.digest).where(t.token.c.expires_at <= now).limit(limit)
    return conn.execute(sa.delete(t.token).where(t.token.c.digest.in_(old))).rowcount


def digest(text: str) -> str:
    """What is kept of a token. It is 256 random bits, so a plain hash cannot be guessed back."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
