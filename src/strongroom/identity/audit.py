"""The audit trail: what was done or refused, by whom. Rows are only ever added.

Each account's rows form a hash chain, so that a row changed or removed later shows. A row is added in the transaction that
does the deed: neither exists without the other. The chain's head row gives the order, and its lock is held until the
transaction ends: **append is the last thing a deciding transaction does**, after jobs, backups, lineages and parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from strongroom.ambient import Ambient
from strongroom.identity import tables as t
from strongroom.identity.principal import Principal

Outcome = Literal["OK", "FAILED", "REFUSED"]
Level = Literal["Normal", "Major"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One event. `account` None: the project's account is looked up, as for what a job does by itself."""

    event: str  # NoSQLDeleteBackup, NoSQLDeleteBackupFailed …
    resource_type: str  # backup …
    resource_id: str
    resource_name: str = ""
    outcome: Outcome = "OK"
    level: Level = "Normal"
    account: str | None = None
    project: str | None = None
    user: str | None = None
    user_name: str | None = None
    request_id: str = ""
    source: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)  # JSON; never a secret

    @classmethod
    def by(
        cls,
        principal: Principal,
        event: str,
        resource_type: str,
        resource_id: str,
        resource_name: str = "",
        *,
        outcome: Outcome = "OK",
        level: Level = "Normal",
        detail: Mapping[str, Any] | None = None,
    ) -> Self:
        """An event that a caller's request caused."""
        return cls(
            event, resource_type, resource_id, resource_name, outcome, level,
            account=principal.account, project=principal.project, user=principal.user, user_name=principal.user_name,
            request_id=principal.request_id, source=principal.source, detail=detail or {},
        )  # fmt: skip


def append(conn: Connection, ambient: Ambient, entry: Entry) -> str:
    """Adds the event to its account's chain, in the caller's transaction; returns its id."""
    account = entry.account if entry.account is not None else _account_of(conn, entry.project)
    sequence, previous = _take_head(conn, account)
    row = {
        "account": account,
        "sequence": sequence,
        "id": ambient.uuid(),
        "at": ambient.now(),
        "project": entry.project,
        "user": entry.user,
        "user_name": entry.user_name,
        "event": entry.event,
        "level": entry.level,
        "outcome": entry.outcome,
        "resource_type": entry.resource_type,
        "resource_id": entry.resource_id,
        "resource_name": entry.resource_name,
        "request_id": entry.request_id,
        "source": entry.source,
        "detail": json.dumps(entry.detail, sort_keys=True),
        "previous": previous,
    }
    digest = _digest(row)
    conn.execute(sa.insert(t.audit).values(**row, digest=digest))
    conn.execute(sa.update(t.audit_head).where(t.audit_head.c.account == account).values(digest=digest))
    return str(row["id"])


@dataclass(frozen=True, slots=True)
class ChainBroken:
    """The first place where an account's trail is not what was written."""

    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class Head:
    """An account's newest row: what to keep elsewhere, since it stands for the whole trail up to it."""

    sequence: int  # 0: nothing has happened yet
    digest: str

    def __str__(self) -> str:
        return f"{self.sequence}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """What str() gave. Raises ValueError."""
        sequence, _, digest = text.partition(":")
        return cls(int(sequence), digest)


def check_chain(conn: Connection, account: str, kept: Head | None = None) -> ChainBroken | None:
    """Reads an account's whole trail and proves that no row was changed, removed, moved or put in between. None: it holds.

    Who can write the database can also write a new chain. That shows only by a head that was `kept` elsewhere: its row must
    still be there.
    """
    newest = head(conn, account)
    rows = sa.select(t.audit).where(t.audit.c.account == account).order_by(t.audit.c.sequence)
    found = (row._asdict() for row in conn.execute(rows.execution_options(yield_per=1000)))
    last, broken = follow(found, Head(0, ""), kept)
    if broken is None and (last != newest or (kept is not None and kept.sequence > last.sequence)):
        return ChainBroken(last.sequence + 1, "the newest rows are missing")
    return broken


def follow(rows: Iterable[Mapping[str, Any]], last: Head, kept: Head | None) -> tuple[Head, ChainBroken | None]:
    """Goes through rows, each with its digest, that must come right after `last`; the last sound one, and what is wrong then."""
    for row in rows:
        if row["sequence"] != last.sequence + 1:
            return last, ChainBroken(last.sequence + 1, "a row is missing")
        if row["previous"] != last.digest or row["digest"] != _digest(_fields(row)):
            return last, ChainBroken(last.sequence + 1, "a row was changed")
        last = Head(row["sequence"], row["digest"])
        if kept is not None and kept.sequence == last.sequence and kept.digest != last.digest:
            return last, ChainBroken(last.sequence, "it is not the row whose digest was kept: the trail was written anew")
    return last, None


def head(conn: Connection, account: str) -> Head:
    """The newest row of an account's trail."""
    row = conn.execute(sa.select(t.audit_head).where(t.audit_head.c.account == account)).one_or_none()
    return Head(0, "") if row is None else Head(row.sequence, row.digest)


def _take_head(conn: Connection, account: str) -> tuple[int, str]:
    """Locks the chain and counts it up; returns the new row's number and the digest before it."""
    step = (
        sa.update(t.audit_head)
        .where(t.audit_head.c.account == account)
        .values(sequence=t.audit_head.c.sequence + 1)
        .returning(t.audit_head.c.sequence, t.audit_head.c.digest)
    )
    found = conn.execute(step).one_or_none()
    if found is None:
        first = {"account": account, "sequence": 0, "digest": ""}
        dialect = postgresql if conn.dialect.name == "postgresql" else sqlite
        conn.execute(dialect.insert(t.audit_head).values(**first).on_conflict_do_nothing())
        found = conn.execute(step).one()
    return found.sequence, found.digest


def _account_of(conn: Connection, project: str | None) -> str:
    return conn.scalar(sa.select(t.project.c.account).where(t.project.c.id == project)) or ""


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "digest"}


def _digest(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
