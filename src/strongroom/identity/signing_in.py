"""Proving who one is by password, with the second factor where the user has one.

Five wrong passwords or codes in a row and the user rests for five minutes, also for the right ones: it is counted in the user's
row, so that neither a restart nor many processes give more tries. What is checked at the same time counts in the order in which
it ends, under the row's lock. One sentence answers a name that nobody has, a wrong password and a resting user. Access keys and
tokens of a resting user go on working: nobody can be locked out of the service by a stranger's guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.ambient import Ambient
from strongroom.catalog.database import Catalog
from strongroom.identity import audit, totp
from strongroom.identity import tables as t
from strongroom.identity.callers import Asked
from strongroom.identity.errors import Unauthenticated
from strongroom.identity.passwords import Passwords
from strongroom.identity.secrets import Sealer

WRONG_IN_A_ROW = 5
RESTS_FOR = 5 * 60.0
"""Seconds that a user rests after WRONG_IN_A_ROW wrong passwords or codes."""

_WRONG = "the user name or password is wrong, or the user rests after five wrong ones in a row"
_NO_CODE = "the user has a second factor: add the method totp with its code"
_WRONG_CODE = "the code of the second factor is wrong or was used before"
_NO_FACTOR = "the user has no second factor"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Who somebody says they are: an id, or a name that one account has."""

    id: str | None = None
    name: str | None = None
    domain_id: str | None = None
    domain_name: str | None = None


@dataclass(frozen=True, slots=True)
class User:
    """Who proved who they are."""

    id: str
    name: str
    account: str
    account_name: str
    administrator: bool
    epoch: int
    mfa_at: float | None = None  # when the second factor was shown
    ends_at: float | None = None  # of the token that proved it


def users() -> sa.Select[Any]:
    """What a User is made of."""
    u = t.user.c
    columns = sa.select(u.id, u.name, u.account, u.administrator, u.epoch, t.account.c.name.label("account_name"))
    return columns.join(t.account, t.account.c.id == u.account)


@dataclass(frozen=True, slots=True)
class Door:
    """What checking a password needs."""

    catalog: Catalog
    ambient: Ambient
    sealer: Sealer
    passwords: Passwords

    def by_password(self, wanted: Wanted, password: str, code: str | None, asked: Asked) -> User:
        """The user whose password this is, and whose code where they have a second factor. Raises Unauthenticated, and writes to
        the audit trail that somebody was refused."""
        with self.catalog.read() as conn:
            row = _find(conn, wanted)
        holds = self.passwords.holds(row.password if row else None, password)
        if row is None:
            raise Unauthenticated(_WRONG)
        with self.catalog.write() as conn:
            refusal = self._settle(conn, row.id, holds, code)
            if refusal is not None:
                methods = ["password"] if code is None else ["password", "totp"]
                audit.append(conn, self.ambient, token_event(_user(row), asked, None, methods, "REFUSED"))
        if refusal is not None:
            raise Unauthenticated(refusal)
        return _user(row, None if code is None else self.ambient.now())

    def _settle(self, conn: Connection, user: str, holds: bool, code: str | None) -> str | None:
        """Decides under the row's lock, and counts; returns the reason of a refusal."""
        row, now = totp.lock(conn, user), self.ambient.now()
        here = sa.update(t.user).where(t.user.c.id == user)
        if row.locked_until is not None and row.locked_until > now:
            return _WRONG  # whatever was given: while a user rests nothing is learnt
        if not holds or not row.enabled:
            conn.execute(here.values(**_counted(row.wrong, now)))
            return _WRONG
        if not row.totp_confirmed:
            if code is not None:
                return _NO_FACTOR
        elif code is None:
            return _NO_CODE
        else:
            step = totp.step_of(self.sealer.open(row.totp, "totp", user), code, now)
            if step is None or step <= row.totp_last:
                conn.execute(here.values(**_counted(row.wrong, now)))
                return _WRONG_CODE
            conn.execute(here.values(totp_last=step))
        if row.wrong or row.locked_until is not None:
            conn.execute(here.values(wrong=0, locked_until=None))
        return None


def token_event(
    user: User, asked: Asked, project: str | None, methods: Sequence[str], outcome: audit.Outcome = "OK"
) -> audit.Entry:
    """That a token was made for a user, or refused."""
    return audit.Entry(
        "createToken", "token", user.id, user.name, outcome, account=user.account, project=project, user=user.id,
        user_name=user.name, request_id=asked.request_id, source=asked.source, detail={"method": "+".join(methods)},
    )  # fmt: skip


def _counted(wrong: int, now: float) -> dict[str, object]:
    if wrong + 1 < WRONG_IN_A_ROW:
        return {"wrong": wrong + 1, "locked_until": None}
    return {"wrong": 0, "locked_until": now + RESTS_FOR}


def _find(conn: Connection, wanted: Wanted) -> sa.Row[Any] | None:
    """The user meant. A name alone may be in several accounts: then it is nobody's."""
    u, a = t.user.c, t.account.c
    where = [u.id == wanted.id] if wanted.id else [u.name == wanted.name]
    if wanted.domain_id:
        where.append(a.id == wanted.domain_id)
    if wanted.domain_name:
        where.append(a.name == wanted.domain_name)
    rows = conn.execute(users().add_columns(u.password).where(*where).limit(2)).all()
    return rows[0] if len(rows) == 1 else None


def _user(row: sa.Row[Any], mfa_at: float | None = None) -> User:
    return User(row.id, row.name, row.account, row.account_name, row.administrator, row.epoch, mfa_at)
