"""Which moments of an instance can be restored, and what a restore to one reads: a backup, and the log from there on.

From a backup the log of its chain leads on for as long as each piece begins where the one before it ends. A restore to a moment
ends at the last mark that is not after it; recordings mark about once a second. Where a moment has been recorded and is not in
the store yet, its restore waits, and the recording puts what it has because somebody waits (`awaited`).
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups import errors
from strongroom.backups.context import Context
from strongroom.backups.moments import utc
from strongroom.catalog import logs
from strongroom.catalog import tables as t
from strongroom.engines.log import Mark
from strongroom.repository.keys import LineageKeys
from strongroom.repository.log import LogPiece, open_log


@dataclass(frozen=True, slots=True)
class Stretch:
    """What can be restored from one backup: every moment from `begin` to `end` (seconds since the epoch)."""

    backup: str
    lineage: str
    part: Row[Any]
    begin: float
    end: float
    pieces: Sequence[Row[Any]]  # in order; the first holds the backup's own place
    goes_on: bool  # what follows is being recorded

    def leads_to(self, moment: float, now: float) -> bool:
        """Whether it can be restored, at once or once the recording has stored what it has heard until `now`."""
        return self.begin <= moment <= (max(self.end, now) if self.goes_on else self.end)


def stretches(conn: Connection, instance: str) -> list[Stretch]:
    """Of each completed backup that stands in a log, the oldest first."""
    p, b = t.part.c, t.backup.c
    rows = conn.execute(
        sa.select(t.part, b.id.label("backup_id"))
        .join(t.backup, b.id == p.backup)
        .where(b.instance == instance, b.state == "COMPLETED", p.state == "COMPLETED", p.log_at.is_not(None))
        .order_by(p.log_at, p.lineage, p.seq)
    ).all()
    known: dict[tuple[str, int], Sequence[Row[Any]]] = {}
    recording = conn.execute(sa.select(t.recording).where(t.recording.c.instance == instance)).first()
    return [_stretch(conn, row, known, recording) for row in rows]


def _stretch(
    conn: Connection, part: Row[Any], known: dict[tuple[str, int], Sequence[Row[Any]]], recording: Row[Any] | None
) -> Stretch:
    end, position = part.log_at, part.log_order
    found: list[Row[Any]] = []
    goes_on = False
    if part.log_chain:
        key = (part.lineage, part.log_chain)
        if key not in known:
            known[key] = logs.pieces(conn, *key)
        chain = known[key]
        for piece in chain[bisect.bisect_right(chain, position, key=lambda row: int(row.upto)) :]:
            same_group = bool(found) and piece.upto == found[-1].upto
            if piece.since > position if not found else not same_group and piece.since != position:
                break
            found.append(piece)
            position, end = piece.upto, max(end, piece.end_at)
        if recording is not None and recording.chain == part.log_chain:
            if recording.position == position:
                end = max(end, recording.reached_at)
            # A chain that began beside the backup comes to where it stands with its next piece.
            here = recording.position == position or (not found and recording.position < position)
            goes_on = here and bool(recording.enabled) and recording.trouble is None
    return Stretch(part.backup_id, part.lineage, part, part.log_at, end, found, goes_on)


def periods(conn: Connection, instance: str) -> list[tuple[float, float]]:
    """Spans of which every moment can be restored, in order, none touching another. Seconds since the epoch."""
    joined: list[tuple[float, float]] = []
    for one in stretches(conn, instance):
        if one.end <= one.begin:
            continue
        if joined and one.begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], one.end))
        else:
            joined.append((one.begin, one.end))
    return joined


def marked(conn: Connection, instance: str, begin: float, end: float) -> list[int]:
    """Whole seconds between two, both included, that can be restored: the first after each backup, and the last before the end of
    each piece of its log; the newest first."""
    found: set[int] = set()
    for one in stretches(conn, instance):
        seconds = {math.ceil(one.begin), *(math.floor(piece.end_at) for piece in one.pieces)}
        found |= {second for second in seconds if one.begin <= second <= one.end}
    return sorted((second for second in found if begin <= second <= end), reverse=True)


def size_of_log(conn: Connection, instance: str) -> int:
    """Stored bytes of an instance's log."""
    size = sa.func.coalesce(sa.func.sum(t.object_.c.bytes), 0)
    query = sa.select(size).join(t.segment, t.segment.c.object == t.object_.c.id).join(
        t.lineage, t.lineage.c.id == t.segment.c.lineage
    )  # fmt: skip
    return int(conn.execute(query.where(t.lineage.c.instance == instance)).scalar_one())


def stretch_to(conn: Connection, instance: str, moment: float, now: float) -> Stretch:
    """The newest backup from which the moment can be reached, or will be once the recording has stored what it has heard until
    `now`. Raises errors.NotRestorable."""
    known = stretches(conn, instance)
    found = [one for one in known if one.leads_to(moment, now)]
    if not found:
        raise errors.NotRestorable(_why_not(conn, instance, moment, now, known))
    return found[-1]


def _why_not(conn: Connection, instance: str, moment: float, now: float, known: Sequence[Stretch]) -> str:
    """Why it cannot be restored to a moment."""
    refused = "the instance cannot be restored to that moment"
    if moment > now:
        return f"{refused}: it is still to come"
    newest = max((one.end for one in known), default=None)
    row = conn.execute(sa.select(t.recording).where(t.recording.c.instance == instance)).first()
    if newest is not None and moment > newest and row is not None and row.enabled:
        if row.trouble is not None:
            return f"{refused}: its log is recorded up to {utc(newest)} and does not go on: {row.trouble}"
        if row.chain is None:
            return f"{refused}: its recording is only beginning; try again in some seconds"
    return f"{refused}: no backup before it has a log up to it; see its restorable periods"


def stretch_from(conn: Connection, instance: str, backup: str, moment: float, now: float) -> Stretch | None:
    """That of one backup; None while the recording has not stored its log up to the moment. Raises errors.NotRestorable if the
    moment cannot be reached from it any more."""
    for one in stretches(conn, instance):
        if one.backup == backup and one.leads_to(moment, now):
            return one if moment <= one.end else None
    raise errors.NotRestorable(f"the log after backup {backup} does not lead to that moment any more")


def awaited(conn: Connection, instance: str) -> float | None:
    """The newest moment that a restore of what the instance held waits for, or is at work on; None if there is none."""
    lineages = sa.select(t.lineage.c.id).where(t.lineage.c.instance == instance)
    backups = sa.select(t.part.c.backup).where(t.part.c.lineage.in_(lineages))
    here = (t.job.c.kind == "restore", t.job.c.state.in_(("QUEUED", "RUNNING")), t.job.c.backup.in_(backups))
    wanted = (json.loads(args).get("moment") for args in conn.scalars(sa.select(t.job.c.args).where(*here)))
    return max((float(moment) for moment in wanted if moment is not None), default=None)


class ReplayedLog:
    """The log from a backup's place to a moment, read from the store. See engines.log.Log."""

    def __init__(self, ctx: Context, keys: LineageKeys, stretch: Stretch, moment: float) -> None:
        self._ctx, self._keys, self._lineage = ctx, keys, stretch.lineage
        part = stretch.part
        self.since = self.begin = self.until = Mark(part.log_stream, part.log_order, part.log_at)
        self._pieces: list[Row[Any]] = []
        self._size = 0  # bytes of the last group that are read
        self._cut(stretch.pieces, moment)

    def _cut(self, pieces: Sequence[Row[Any]], moment: float) -> None:
        """Finds the last mark that is not after the moment, nor before the backup's own; if that is the only one, nothing is
        read."""
        groups = list(_grouped(pieces))
        self._find_end(groups, moment)
        if self._pieces:
            self.begin = Mark(*self._open(groups[0][0]).header.begin)

    def _find_end(self, groups: Sequence[list[Row[Any]]], moment: float) -> None:
        for number, group in enumerate(groups):
            if group[-1].end_at <= moment:
                continue
            earlier = [piece for some in groups[:number] for piece in some]
            marks = [one for one in self._open(group[-1]).marks if one[0][2] <= moment and one[0][1] > self.since.order]
            if marks:
                mark, self._size = marks[-1]
                self.until, self._pieces = Mark(*mark), [*earlier, *group]
            elif earlier:
                self._end_with(earlier)
            return
        if groups:
            self._end_with([piece for group in groups for piece in group])

    def _end_with(self, pieces: list[Row[Any]]) -> None:
        """All of these are replayed."""
        last = self._open(pieces[-1])
        mark, self._size = last.marks[-1]
        self.until, self._pieces = Mark(*mark), pieces

    def read(self) -> Iterator[bytes]:
        """See Log."""
        for number, piece in enumerate(self._pieces, 1):
            log = self._open(piece).log
            yield log[: self._size] if number == len(self._pieces) else log

    def _open(self, piece: Row[Any]) -> LogPiece:
        return open_log(self._keys, self._lineage, piece.name, self._ctx.store.get(piece.name))


def _grouped(pieces: Sequence[Row[Any]]) -> Iterator[list[Row[Any]]]:
    """What lies between the same two marks, together."""
    group: list[Row[Any]] = []
    for piece in pieces:
        if group and piece.upto != group[-1].upto:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group
