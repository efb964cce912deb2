"""Reading the audit trail: by what is looked for, as lines of JSON, and proved from such lines.

A record is a row with `detail` as an object and, for people, the time in words. The digest covers the row without these.

The export of a time span is one run of the chain: each record covers the one before, so a choice of records would prove nothing.
It begins with the last record before the span and ends with the first one after it, where there are such. So a file whose first
or last record is of the span itself has lost some, or is of a trail that began or ended there.
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


@dataclass(frozen=True, slots=True)
class Span:
    """A time span: seconds since the epoch, `begin` inclusive, `end` exclusive. None: open on that side."""

    begin: float | None = None
    end: float | None = None


EVERYTHING = Span()


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


def run_of(conn: Connection, account: str, span: Span, newest: Head) -> tuple[int, Head]:
    """The run of records that an export of this span is: the sequence after which it begins, and its last record. It holds every
    record whose time is in the span, also where a clock was set and times are not in the order of records."""
    at = t.audit.c
    mine = sa.and_(at.account == account, at.sequence <= newest.sequence)
    first, last = 1, newest.sequence
    if span.begin is not None:
        found = conn.execute(sa.select(sa.func.min(at.sequence)).where(mine, at.at >= span.begin)).scalar()
        first = newest.sequence + 1 if found is None else int(found)
    if span.end is not None:
        last = int(conn.execute(sa.select(sa.func.max(at.sequence)).where(mine, at.at < span.end)).scalar() or 0)
    after = 0 if span.begin is None else max(min(first, last + 1) - 2, 0)
    upto = newest.sequence if span.end is None else min(max(last, first - 1) + 1, newest.sequence)
    if upto == newest.sequence:
        return after, newest
    digest = conn.execute(sa.select(at.digest).where(mine, at.sequence == upto)).scalar()
    return after, Head(upto, digest or "")


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


def check_lines(given: Iterable[bytes], kept: Head | None, span: Span = EVERYTHING) -> Checked:
    """Proves that no record of an export was changed, removed, moved or put in between, and that it holds all of the span. Uses
    bounded memory.

    An export may begin anywhere: that its first record is the right one shows by `kept`, the head that an earlier one ended with,
    which must come right before it or be among its records. Where it ends within the span, `kept` must be its last record: the
    trail's newest when it was made.
    """
    times = _Times()
    rows = times.noted(_rows(given))
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
    if broken is None:
        broken = _short_of(span, times, first["sequence"], last, kept)
    return Checked(first["sequence"], last, broken)


def _short_of(span: Span, times: _Times, first: int, last: Head, kept: Head | None) -> ChainBroken | None:
    """What is missing at the ends of a run that is sound in itself."""
    if span.begin is not None and first > 1 and times.first >= span.begin:
        return ChainBroken(first - 1, "it is missing: the file does not reach back to the begin of the time span")
    if span.end is not None and times.last < span.end and kept != last:
        why = "it is missing: the file does not reach to the end of the time span (if none was newer, give its head as kept)"
        return ChainBroken(last.sequence + 1, why)
    return None


class _Times:
    """When the first and the last of some rows happened."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def noted(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The same rows."""
        for number, row in enumerate(rows):
            self.last = row["at"]
            if number == 0:
                self.first = self.last
            yield row


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
            if (
                not isinstance(row["sequence"], int)
                or not isinstance(row["previous"], str)
                or not isinstance(row["at"], float | int)
            ):
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
