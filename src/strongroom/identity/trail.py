"""Reading the audit trail: by what is looked for, as lines of JSON, and proved from such lines.

A record is a row with `detail` as an object and, for people, the time in words. The digest covers the row without these.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.catalog.database import Catalog
from strongroom.identity import tables as t
from strongroom.identity.audit import ChainBroken, Head, follow

_PAGE = 1000
"""Rows that one transaction of an export reads."""

_COLUMNS = frozenset(column.name for column in t.audit.c)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which of an account's records. None: whatever it is."""

    account: str
    project: str | None = None
    event: str | None = None
    outcome: str | None = None
    level: str | None = None
    user: str | None = None  # an id or a name
    resource_type: str | None = None
    resource_id: str | None = None
    request_id: str | None = None
    begin: float | None = None  # seconds since the epoch, inclusive
    end: float | None = None  # exclusive


def records(conn: Connection, wanted: Wanted, before: int | None, limit: int) -> tuple[list[dict[str, Any]], int | None]:
    """The newest `limit` of these before a sequence, newest first, and what `before` is on the next page; None on the last.

    Pages stay what they are while records are added.
    """
    at = t.audit.c
    where = [at.account == wanted.account]
    equal = ("project", "event", "outcome", "level", "resource_type", "resource_id", "request_id")
    where += [at[name] == value for name in equal if (value := getattr(wanted, name)) is not None]
    if wanted.user is not None:
        where.append(sa.or_(at.user == wanted.user, at.user_name == wanted.user))
    if wanted.begin is not None:
        where.append(at.at >= wanted.begin)
    if wanted.end is not None:
        where.append(at.at < wanted.end)
    if before is not None:
        where.append(at.sequence < before)
    rows = conn.execute(sa.select(t.audit).where(*where).order_by(at.sequence.desc()).limit(limit + 1)).all()
    found = [_record(row._asdict()) for row in rows[:limit]]
    return found, found[-1]["sequence"] if len(rows) > limit else None


def lines(catalog: Catalog, account: str, after: int, upto: Head) -> Iterator[bytes]:
    """The account's records after a sequence up to a head, oldest first, a line of JSON each.

    One short transaction after the other reads them, so that a slow reader holds up nobody. Where records are missing it ends
    early: whoever gets the lines compares the last with the head.
    """
    at = t.audit.c
    while after < upto.sequence:
        page = sa.select(t.audit).where(at.account == account, at.sequence > after, at.sequence <= upto.sequence)
        with catalog.read() as conn:
            rows = conn.execute(page.order_by(at.sequence).limit(_PAGE)).all()
        if not rows:
            return
        yield b"".join(_line(_record(row._asdict())) for row in rows)
        after = rows[-1].sequence


@dataclass(frozen=True, slots=True)
class Checked:
    """What lines of an export hold: records `first` to `last.sequence` of one account, and the first that is wrong."""

    first: int  # 0: there is none
    last: Head
    broken: ChainBroken | None


def check_lines(given: Iterable[bytes], kept: Head | None) -> Checked:
    """Proves that no record of an export was changed, removed, moved or put in between. Bounded memory.

    An export may begin anywhere: that its first record is the right one shows by `kept`, the head that an earlier one ended with,
    which must come right before it or be among its records.
    """
    rows = _rows(given)
    try:
        first = next(rows, None)
        if first is None:
            return Checked(0, Head(0, ""), None)
        if kept is not None and kept.sequence + 1 < first["sequence"]:
            return Checked(
                first["sequence"], Head(0, ""), ChainBroken(kept.sequence + 1, "records are missing after the kept head")
            )
        before = Head(first["sequence"] - 1, first["previous"])
        if kept is not None and kept.sequence == before.sequence and kept.digest != before.digest:
            told = ChainBroken(first["sequence"], "it does not follow the head that was kept: the trail was written anew")
            return Checked(first["sequence"], before, told)
        if before.sequence == 0 and before.digest:
            return Checked(1, Head(0, ""), ChainBroken(1, "a row was changed"))
        last, broken = follow(_one_account([first], rows), before, kept)
    except _NoRecord as error:
        return Checked(0, Head(0, ""), ChainBroken(error.number, f"line {error.number} is no record"))
    if broken is None and kept is not None and kept.sequence > last.sequence:
        broken = ChainBroken(last.sequence + 1, "the newest rows are missing")
    return Checked(first["sequence"], last, broken)


class _NoRecord(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _rows(given: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Each line's row, as it was digested."""
    for number, line in enumerate(given, 1):
        try:
            record = json.loads(line)
            row = {name: record[name] for name in _COLUMNS}
            row["detail"] = json.dumps(row["detail"], sort_keys=True)
            if not isinstance(row["sequence"], int) or not isinstance(row["previous"], str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise _NoRecord(number) from None
        yield row


def _one_account(*parts: Iterable[dict[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The rows up to the first of another account, which a chain cannot hold."""
    account: Any = None
    for part in parts:
        for row in part:
            if account is None:
                account = row["account"]
            yield row if row["account"] == account else {**row, "digest": ""}


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    time = datetime.fromtimestamp(row["at"], UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")
    return {**row, "detail": json.loads(row["detail"]), "time": time}


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n"
