"""Following an instance's log of changes, and putting it into the store in pieces.

For each instance whose recording is on there is one job that never ends of itself. It stays connected to the source and puts what
was marked into the store when there is enough for a piece, every `interval` minutes, and when it ends.

A *chain* is a stretch of log without a hole. It begins after a backup, or anywhere while one is being taken, and goes on through
drains, crashes and fail-overs for as long as the source still has what followed the last piece. Where it has not, the chain ends
with what it holds, and another begins: after the newest backup if the source still has what followed that, else here and now,
with a backup taken for it.

Order of effects for a piece: its object PLANNED, put, then one transaction under the lineage's lock makes it STORED, says that
it is part of the chain, and moves the recording on.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row
from sqlalchemy.exc import DBAPIError

from strongroom.backups import creation, errors, removal, replaying, staleness
from strongroom.backups.context import Context, LineageClosed
from strongroom.backups.objects import plan, remove_lost, stored
from strongroom.backups.recording import EVERY, forget_chain, let_go, lineage_of, row_of
from strongroom.catalog import logs
from strongroom.catalog import tables as t
from strongroom.catalog.lifespans import NotOurs
from strongroom.catalog.space import condemn
from strongroom.engines.base import EngineDenied, EngineError, EngineUnsupported
from strongroom.engines.log import LogGap, Mark, Recorder
from strongroom.identity import audit
from strongroom.jobs.port import Cancelled, Draining, JobLost, Running, TryAgain
from strongroom.notifications import outbox
from strongroom.repository.codec import Encoder
from strongroom.repository.errors import RepositoryError
from strongroom.repository.keys import LineageKeys
from strongroom.repository.log import LogHeader, seal_log
from strongroom.storage.base import StoreError

log = logging.getLogger("strongroom.backups")

_HOPELESS = 300.0  # seconds until it is tried again where somebody has to act first
_RUN = 3600.0  # seconds that an engine is asked to record at a time
_LOOK = 1.0  # seconds between two looks at the policy
_PIECE = 16 << 20  # plain bytes
_THIN = 1.0  # seconds: of marks that are closer together only the last is kept
_ASK_AGAIN = 3600.0  # seconds between backups that a recording takes by itself, but for the second one
_BEGINS = "log-begins"  # their name


class _Off(Exception):
    """The policy was turned off or put again, or the instance was unregistered."""


class _Anew(Exception):
    """The chain cannot go on in its lineage: that was closed, or another recording has begun."""


class RecordJob:
    """The job `record`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        ctx = self._ctx
        scratch = ctx.scratch / f"{job.id}-{job.epoch}"
        scratch.mkdir(mode=0o700, parents=True)
        try:
            while True:
                _Recording(ctx, job, scratch).run()
        except _Off:
            return {}
        except (_Anew, LineageClosed, NotOurs):
            raise TryAgain("its chain has ended: another begins", 0.0) from None
        except (EngineError, StoreError, RepositoryError, staleness.CatalogOutdated, errors.Refused, OSError) as error:
            self._tell(job, str(error))
            hopeless = isinstance(error, EngineDenied | EngineUnsupported | staleness.CatalogOutdated)
            raise TryAgain(str(error), _HOPELESS if hopeless else EVERY) from error
        except (Draining, Cancelled, JobLost, DBAPIError):
            raise
        except Exception as error:  # a defect, which the log tells of: nothing is recorded, and that must be seen
            self._tell(job, f"{type(error).__name__}: {error}")
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _tell(self, job: Running, words: str) -> None:
        """Whoever looks at the instance is told why nothing is recorded."""
        with self._ctx.catalog.write(job.guard) as conn:
            here = t.recording.c.instance == str(job.args["instance"])
            conn.execute(sa.update(t.recording).where(here).values(trouble=words))

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """The schedule comes round again."""
        log.warning("job %s (record): %s: %s", job.id, outcome, reason)


class _Recording:
    """One stretch of following a log, from where a chain stands or begins."""

    def __init__(self, ctx: Context, job: Running, scratch: Path) -> None:
        self._ctx, self._job, self._scratch = ctx, job, scratch
        self._key = str(job.args["instance"])
        with ctx.catalog.read() as conn:
            here = sa.and_(t.instance.c.id == self._key, t.instance.c.state == "REGISTERED")
            instance = conn.execute(sa.select(t.instance).where(here)).first()
            row = row_of(conn, self._key)
            if instance is None or row is None or not row.enabled:
                raise _Off
            self._instance, self._row = instance, row
            self._lineage = lineage_of(conn, self._key)
        engine = ctx.engines[instance.engine]
        assert isinstance(engine, Recorder)
        self._engine: Recorder = engine

    def run(self) -> None:
        """Raises what a recording ends with; returns to be begun again."""
        staleness.require_owner(self._ctx)
        self._clean_up()
        gap: LogGap | None = None
        for since, fresh in self._beginnings():
            try:
                self._record(since, fresh)
                return
            except LogGap as error:
                gap = error
                log.warning("the log of instance %s cannot be recorded from %s on: %s", self._instance.name, since, error)
                if not fresh:
                    self._break(str(error))
        raise gap if gap is not None else errors.InstanceBusy("it waits for a backup to begin after")

    def _beginnings(self) -> Iterator[tuple[Mark | None, bool]]:
        """Where recording may begin, the best first; whether a new chain begins there."""
        row, lineage = self._row, self._lineage
        if row.chain is not None and row.lineage == lineage:
            yield Mark(row.stream, row.position, row.reached_at), False
        with self._ctx.catalog.read() as conn:
            base = _newest(conn, lineage)
            ahead = base is not None and base.log_order is not None and not _goes_on(conn, base)
        if base is not None and ahead:
            yield Mark(base.log_stream, base.log_order, base.log_at), True
        if self._take_backup():
            yield None, True

    def _take_backup(self) -> bool:
        """Whether a backup is being taken that a chain can begin beside; takes one where there is none to wait for."""
        ctx, instance = self._ctx, self._instance
        with ctx.catalog.read() as conn:
            row = row_of(conn, self._key)
            if row is None or not row.enabled:
                raise _Off
            self._lineage = lineage_of(conn, self._key)
            if self._lineage is not None and _is_building(conn, self._lineage):
                return True
            now = ctx.ambient.now()
            if row.asked_at is not None and now - row.asked_at < _ASK_AGAIN and not self._may_once_more(conn, row, now):
                return False

        def note(conn: Connection, backup: str) -> None:
            conn.execute(sa.update(t.recording).where(t.recording.c.instance == self._key).values(asked_at=now))
            detail = {"by": "recording"}
            audit.append(
                conn, ctx.ambient,
                audit.Entry("NoSQLCreateBackup", "backup", backup, wanted.name, project=instance.project, detail=detail),
            )  # fmt: skip

        wanted = creation.Wanted(_BEGINS, "taken for points in time: the log of changes goes on from here")
        creation.create(ctx, instance.project, instance.id, wanted, note)
        with ctx.catalog.read() as conn:
            self._lineage = lineage_of(conn, self._key)
        return True

    def _may_once_more(self, conn: Connection, row: Row[Any], now: float) -> bool:
        """Whether one more may be taken at once: the first one has a source keep its log that did not before, and may end when
        the source has dropped what followed its beginning already. Beside another, recording begins with it."""
        b = t.backup.c
        here = (b.instance == self._key, b.name == _BEGINS, b.begin_at > now - _ASK_AGAIN)
        return row.chain is None and conn.execute(sa.select(sa.func.count()).where(*here)).scalar_one() < 2

    def _begin_again(self) -> None:
        """No backup is left that what is recorded could be replayed after: one is taken."""
        try:
            self._take_backup()
        except errors.Refused as error:
            log.warning("no backup could be taken of instance %s: %s", self._instance.name, error)

    def _record(self, since: Mark | None, fresh: bool) -> None:
        ctx = self._ctx
        if self._lineage is None:
            raise _Anew
        keys = ctx.keys(self._lineage)
        chain = None if fresh else self._row.chain
        sink = _Sink(ctx, self._job, self._row, self._lineage, keys, since, chain, self._begin_again)
        control = _Control(ctx, self._job, self._row, sink)
        folder = self._scratch / "engine"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        try:
            self._engine.record(ctx.target(self._instance), since, sink, control, ctx.ambient.now() + _RUN, str(folder))
        except (Draining, Cancelled, _Off, EngineError):
            with suppress(JobLost, _Anew, StoreError):
                sink.flush()
            raise
        sink.flush()

    def _clean_up(self) -> None:
        """What an earlier run put and did not say to be part of a chain goes."""
        if self._lineage is None:
            return
        states = ("PLANNED", "STORED")
        here = (t.object_.c.lineage == self._lineage, t.object_.c.state.in_(states), logs.unfinished())
        with self._ctx.catalog.read() as conn:
            left = list(conn.scalars(sa.select(t.object_.c.id).where(*here)))
        if left:
            _throw_away(self._ctx, self._job, self._lineage, left)

    def _break(self, why: str) -> None:
        """The chain ends with what it holds."""
        assert self._lineage is not None
        with self._ctx.catalog.decide(self._job.guard, lineages=[self._lineage]) as conn:
            _require_chain(conn, self._row, self._row.chain)
            forget_chain(conn, self._lineage)
            conn.execute(sa.update(t.recording).where(t.recording.c.instance == self._key).values(trouble=why))
            entry = audit.Entry(
                "NoSQLRecordingInterrupted", "instance", self._key, self._instance.name, outcome="FAILED", level="Major",
                project=self._instance.project, detail={"reason": why},
            )  # fmt: skip
            audit.append(conn, self._ctx.ambient, entry)
            outbox.recording_interrupted(self._ctx, conn, self._instance, self._job.id, why)
            let_go(self._ctx, conn, self._lineage)


def _require_on(conn: Connection, row: Row[Any]) -> Row[Any]:
    """The recording as it is now. Raises _Off once its policy was put again."""
    now = row_of(conn, row.instance)
    if now is None or not now.enabled or now.updated_at != row.updated_at:
        raise _Off
    return now


def _require_chain(conn: Connection, row: Row[Any], chain: int | None) -> Row[Any]:
    """The recording as it is now; whether its policy is on does not matter to what was recorded. Raises _Anew unless it is of
    this chain still."""
    now = row_of(conn, row.instance)
    if now is None or chain is None or now.chain != chain:
        raise _Anew
    return now


def _throw_away(ctx: Context, job: Running, lineage: str, keys: Sequence[str]) -> None:
    """Objects that were put, or may still come, and are no part of a chain go."""
    with ctx.catalog.decide(job.guard, lineages=[lineage]) as conn:
        condemn(conn, keys, removal.of_lineage(lineage))
        removal.submit(ctx, conn, lineage)


class _Control:
    """The running job for an engine; looks once a second whether the policy still holds, and whether a restore waits for what is
    not in the store yet."""

    def __init__(self, ctx: Context, job: Running, row: Row[Any], sink: _Sink) -> None:
        self._ctx, self._job, self._row, self._sink = ctx, job, row, sink
        self._looked = ctx.ambient.monotonic()

    def check(self) -> None:
        """See Control."""
        self._job.check()
        now = self._ctx.ambient.monotonic()
        if now - self._looked >= _LOOK:
            self._looked = now
            with self._ctx.catalog.read() as conn:
                row = _require_on(conn, self._row)
                awaited = replaying.awaited(conn, self._row.instance)
            if awaited is not None and row.reached_at is not None and awaited > row.reached_at:
                self._sink.flush()

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        """See Control."""
        self._job.progress(phase, done, total)
        self.check()


@dataclass(frozen=True, slots=True)
class _Put:
    """A piece in the store that is not part of the chain yet; `plain` bytes of log."""

    key: str
    plain: int


class _Sink:
    """Cuts the log into pieces at marks: when there is enough for one, or the interval is over."""

    def __init__(
        self,
        ctx: Context,
        job: Running,
        row: Row[Any],
        lineage: str,
        keys: LineageKeys,
        since: Mark | None,
        chain: int | None,
        baseless: Callable[[], None],
    ) -> None:
        self._ctx, self._job, self._row, self._lineage, self._keys = ctx, job, row, lineage, keys
        self._baseless = baseless  # called when no backup goes on by the chain
        self._encoder = Encoder(ctx.options.compression)
        self._chain = chain  # None: a new one begins with the first word from the source, which has what followed
        self._begin = since  # the mark that what is held begins at
        self._held = bytearray()
        self._marks: list[tuple[Mark, int]] = []  # with the held bytes up to each
        self._pieces: list[_Put] = []  # of a group that has no end yet
        self._group = ""
        self._since = ctx.ambient.monotonic()
        self._trouble = row.trouble is not None  # that this is over has to be told

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See LogSink."""
        if self._chain is None:
            self._begin_chain()
        self._held += data
        if len(self._held) >= _PIECE:
            if self._marks:
                self.flush()
            while len(self._held) >= _PIECE:
                self._put_inner()

    def mark(self, mark: Mark) -> None:
        """See LogSink."""
        if self._begin is None:
            self._begin = mark
        if self._chain is None:
            self._begin_chain()
        if self._trouble:
            self._tell_it_is_over()
        if self._marks and mark.at - self._marks[-1][0].at < _THIN:
            before = self._marks[-2] if len(self._marks) > 1 else None
            if before is None or mark.at - before[0].at < _THIN:
                self._marks.pop()
        self._marks.append((mark, len(self._held)))
        if self._pieces or self._ctx.ambient.monotonic() - self._since >= 60.0 * self._row.interval:
            self.flush()

    def _tell_it_is_over(self) -> None:
        with self._ctx.catalog.write(self._job.guard) as conn:
            conn.execute(sa.update(t.recording).where(t.recording.c.instance == self._row.instance).values(trouble=None))
        self._trouble = False

    def _begin_chain(self) -> None:
        at = self._begin
        assert at is not None, "the first mark says where the source is"
        with self._ctx.catalog.decide(self._job.guard, lineages=[self._lineage]) as conn:
            now = _require_on(conn, self._row)
            self._require_open(conn)
            of_parts = sa.select(sa.func.max(t.part.c.log_chain)).where(t.part.c.lineage == self._lineage)
            self._chain = max(int(now.chains), conn.execute(of_parts).scalar() or 0) + 1
            conn.execute(
                sa.update(t.recording)
                .where(t.recording.c.instance == self._row.instance)
                .values(
                    chains=self._chain, lineage=self._lineage, chain=self._chain, began=at.order, stream=at.stream,
                    position=at.order, reached_at=at.at, trouble=None,
                )
            )  # fmt: skip
            logs.take_in(conn, self._lineage, self._chain, at.stream, at.order, anew=True)
            let_go(self._ctx, conn, self._lineage)

    def flush(self) -> None:
        """Puts what is marked; what comes after the last mark stays."""
        self._since = self._ctx.ambient.monotonic()
        if not self._marks or self._begin is None:
            return
        last, size = self._marks[-1]
        if size or self._pieces:
            header = self._header(len(self._pieces), last)
            places = [((mark.stream, mark.order, mark.at), offset) for mark, offset in self._marks]
            piece = self._put(seal_log(self._keys, self._encoder, header, places, self._held[:size]), size)
            pieces = [*self._pieces, piece]
        else:
            pieces = []
        has_base = self._commit(pieces, last)
        self._begin = last
        del self._held[:size]
        self._marks, self._pieces, self._group = [], [], ""
        if not has_base:
            self._baseless()

    def _put_inner(self) -> None:
        """A full piece of a group whose end is not here yet."""
        header = self._header(len(self._pieces), None)
        self._pieces.append(self._put(seal_log(self._keys, self._encoder, header, (), self._held[:_PIECE]), _PIECE))
        del self._held[:_PIECE]

    def _header(self, piece: int, end: Mark | None) -> LogHeader:
        assert self._chain is not None
        assert self._begin is not None
        self._group = self._group or self._ctx.ambient.hex_id()
        begin = (self._begin.stream, self._begin.order, self._begin.at)
        until = None if end is None else (end.stream, end.order, end.at)
        return LogHeader(
            self._lineage, self._row.instance, self._chain, self._group, piece, end is not None, begin, until
        )  # fmt: skip

    def _put(self, data: bytes, plain: int) -> _Put:
        """Raises StoreError only where waiting does not help: the source may not have for long what is held here."""
        while True:
            try:
                return self._put_once(data, plain)
            except StoreError as error:
                if error.permanent:
                    raise
                log.warning("a piece of the log of instance %s waits for the store: %s", self._row.instance, error)
            self._job.check()
            self._ctx.ambient.sleep(_LOOK)

    def _put_once(self, data: bytes, plain: int) -> _Put:
        ctx = self._ctx
        staleness.require_owner(ctx)
        with ctx.catalog.decide(self._job.guard, lineages=[self._lineage]) as conn:
            _require_chain(conn, self._row, self._chain)
            self._require_open(conn)
            key, name = plan(conn, ctx, self._lineage, "log")
        try:
            size = ctx.store.put_new(name, data)
        except StoreError:
            _throw_away(ctx, self._job, self._lineage, [key])
            raise
        try:
            with ctx.catalog.decide(self._job.guard, lineages=[self._lineage]) as conn:
                if not stored(conn, key, size):
                    raise _Anew
        except (JobLost, _Anew):
            remove_lost(ctx, key, name)
            raise
        return _Put(key, plain)

    def _commit(self, pieces: Sequence[_Put], end: Mark) -> bool:
        """The pieces are part of the chain from here on; whether a backup goes on by it, or may."""
        ctx, begin = self._ctx, self._begin
        assert begin is not None
        with ctx.catalog.decide(self._job.guard, lineages=[self._lineage]) as conn:
            now = _require_chain(conn, self._row, self._chain)
            keys = [piece.key for piece in pieces]
            here = sa.and_(t.object_.c.id.in_(keys), t.object_.c.state == "STORED")
            if conn.execute(sa.select(sa.func.count()).select_from(t.object_).where(here)).scalar_one() != len(keys):
                raise _Anew
            for number, piece in enumerate(pieces):
                conn.execute(
                    t.segment.insert().values(
                        object=piece.key, lineage=self._lineage, chain=self._chain, since=begin.order, upto=end.order,
                        piece=number, begin_at=begin.at, end_at=end.at, plain_bytes=piece.plain,
                    )
                )  # fmt: skip
            conn.execute(
                sa.update(t.recording)
                .where(t.recording.c.instance == self._row.instance)
                .values(stream=end.stream, position=end.order, reached_at=end.at, trouble=None)
            )
            logs.take_in(conn, self._lineage, now.chain, end.stream, now.began)
            let_go(self._ctx, conn, self._lineage)
            return logs.has_base(conn, self._lineage, now.chain)

    def _require_open(self, conn: Connection) -> None:
        if conn.execute(sa.select(t.lineage.c.state).where(t.lineage.c.id == self._lineage)).scalar_one() != "OPEN":
            raise _Anew


def _newest(conn: Connection, lineage: str | None) -> Row[Any] | None:
    """The newest completed part."""
    here = (t.part.c.lineage == lineage, t.part.c.state == "COMPLETED")
    return conn.execute(sa.select(t.part).where(*here).order_by(t.part.c.seq.desc()).limit(1)).first()


def _goes_on(conn: Connection, part: Row[Any]) -> bool:
    """Whether there is log after the part: then a chain that begins at the part meets the hole that the one before has met."""
    s = t.segment.c
    here = (s.lineage == part.lineage, s.chain == part.log_chain, s.upto > part.log_order)
    return conn.execute(sa.select(s.object).where(*here).limit(1)).first() is not None


def _is_building(conn: Connection, lineage: str) -> bool:
    here = (t.part.c.lineage == lineage, t.part.c.state == "BUILDING")
    return conn.execute(sa.select(t.part.c.seq).where(*here)).first() is not None
