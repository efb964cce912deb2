"""The second factor: codes of six digits that change every 30 seconds (TOTP, RFC 6238, with HMAC-SHA-1).

A secret is sealed at rest, shown once when it is made, and asked for from the first code on that was shown (confirm). A code
of the step before or after the present one is taken too, since clocks differ; none is taken twice, nor an older one after it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.ambient import Ambient
from strongroom.identity import tables as t
from strongroom.identity.accounts import change_user
from strongroom.identity.errors import CodeRefused, NotKnown
from strongroom.identity.secrets import Sealer

STEP = 30
"""Seconds."""
DIGITS = 6
_AROUND = 1  # steps that a client's clock may be off
_SECRET_BYTES = 20  # as many as the hash gives
_CODE = re.compile(r"[0-9]{6}")


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A new secret: the only time that it is shown."""

    secret: str = field(repr=False)  # base32
    uri: str = field(repr=False)  # otpauth://, as authenticator apps read it


def code_at(secret: bytes, step: int) -> str:
    """The code of one step."""
    digest = hmac.new(secret, step.to_bytes(8, "big"), hashlib.sha1).digest()
    offset = digest[-1] & 15
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFFFFFF
    return f"{number % 10**DIGITS:0{DIGITS}}"


def step_of(secret: bytes, code: str, now: float) -> int | None:
    """The newest step near `now` whose code this is, None if it is none's. Takes as long for a wrong code as for a right one."""
    present, found = int(now // STEP), None
    given = code if _CODE.fullmatch(code) else "none"
    for step in range(present - _AROUND, present + _AROUND + 1):
        if hmac.compare_digest(code_at(secret, step), given):
            found = step
    return found


def enrol(conn: Connection, ambient: Ambient, sealer: Sealer, user: str) -> Enrolment:
    """Draws a secret for a user; it is not asked for before `confirm`. CodeRefused if the user has a confirmed one: remove that
    first."""
    row = conn.execute(
        sa.select(t.user.c.name, t.user.c.totp_confirmed, t.account.c.name.label("account"))
        .join(t.account, t.account.c.id == t.user.c.account)
        .where(t.user.c.id == user)
    ).one_or_none()
    if row is None:
        raise NotKnown("user", user)
    if row.totp_confirmed:
        raise CodeRefused("The user has a second factor already: remove it first.")
    secret = ambient.key()[:_SECRET_BYTES]
    change_user(conn, ambient, user, totp=sealer.seal(secret, "totp", user), totp_confirmed=False, totp_last=0)
    text = base64.b32encode(secret).decode()
    label = quote(f"Strongroom {row.account}:{row.name}")
    return Enrolment(text, f"otpauth://totp/{label}?secret={text}&issuer=Strongroom&digits={DIGITS}&period={STEP}&algorithm=SHA1")


def confirm(conn: Connection, ambient: Ambient, sealer: Sealer, user: str, code: str) -> None:
    """From here on every token by password needs a code. CodeRefused if this is none of the secret drawn last."""
    row = lock(conn, user)
    if row.totp is None or row.totp_confirmed:
        raise CodeRefused("There is no second factor to confirm: enrol one first.")
    step = step_of(sealer.open(row.totp, "totp", user), code, ambient.now())
    if step is None:
        raise CodeRefused("The code is wrong: look at both clocks, and enter the newest one.")
    change_user(conn, ambient, user, totp_confirmed=True, totp_last=step)


def remove(conn: Connection, ambient: Ambient, user: str) -> None:
    """The user enters by password alone again. Removing what is not there is no error."""
    change_user(conn, ambient, user, totp=None, totp_confirmed=False, totp_last=0)


def lock(conn: Connection, user: str) -> sa.Row[tuple[object, ...]]:
    """A user's row as it is now, locked until the transaction ends. Raises NotKnown."""
    step = sa.update(t.user).where(t.user.c.id == user).values(wrong=t.user.c.wrong).returning(*t.user.c)
    row = conn.execute(step).one_or_none()
    if row is None:
        raise NotKnown("user", user)
    return row
