"""A database of dictionaries with a log of changes, and the recording of it, without sockets."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from strongroom.backups import holding, recording, replaying, restoration
from strongroom.backups.context import Context
from strongroom.backups.following import RecordJob
from strongroom.backups.rebuilding import rebuild
from strongroom.backups.recording import Policy, TrimJob
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog
from strongroom.engines.base import CaptureSink, Control, RestoreBroken, RestoreSource, Summary, Target
from strongroom.engines.log import Log, LogGap, LogSink, Mark
from strongroom.identity import accounts
from strongroom.jobs.port import Cancelled, Handler
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.storage.memory import MemoryStore
from support.harsh import TTL, HarshVault
from support.vault import DictEngine, Vault, noise


class LoggedEngine(DictEngine):
    """One source, `plain://source`, whose writes are numbered. `clock` is its time; `oldest` the first write that it still
    has."""

    def __init__(self, clock: float) -> None:
        super().__init__()
        self.clock = clock
        self.stream = "history"
        self.log: list[tuple[float, bytes]] = []  # when, and the record; the first is number 1
        self.states: list[tuple[float, dict[str, bytes]]] = []  # what it held from when on
        self.oldest = 1
        self.every = 1  # writes between two marks
        self.midway: Any = None  # called before the record of a number: number → action
        self.recorded = 0

    def write(self, key: str, value: bytes, *, after: float = 1.0) -> None:
        """A write, `after` seconds later."""
        self.clock += after
        self.databases["plain://source"][key] = value
        record = len(key).to_bytes(2, "big") + len(value).to_bytes(4, "big") + key.encode() + value
        self.log.append((self.clock, record))
        self.states.append((self.clock, dict(self.databases["plain://source"])))

    def held_at(self, moment: float) -> dict[str, bytes]:
        """What the source held then."""
        return [state for at, state in self.states if at <= moment][-1]

    def capture(self, target: Target, sink: CaptureSink, control: Control, scratch: str) -> Summary:
        """Says where in the log it stands."""
        order, at = len(self.log), self.clock
        found = super().capture(target, sink, control, scratch)
        return Summary(found.entries, found.bytes, {**found.facts, "order": order, "at": at, "stream": self.stream})

    def mark_of(self, facts: Mapping[str, Any]) -> Mark | None:
        """See Recorder."""
        return Mark(str(facts["stream"]), int(facts["order"]), float(facts["at"])) if "order" in facts else None

    def record(self, target: Target, since: Mark | None, sink: LogSink, control: Control, until: float, scratch: str) -> None:
        """See Recorder; ends as if cancelled when all is told."""
        if since is None:
            since = Mark(self.stream, len(self.log), self.clock)
            sink.mark(since)
        if since.order + 1 < self.oldest or since.order > len(self.log):
            raise LogGap("what followed has gone")
        for number in range(since.order + 1, len(self.log) + 1):
            control.check()
            if self.midway is not None:
                self.midway(number)
            at, record = self.log[number - 1]
            sink.write(record)
            self.recorded += 1
            if number % self.every == 0:
                sink.mark(Mark(self.stream, number, at))
        if len(self.log) % self.every == 0:
            sink.mark(Mark(self.stream, len(self.log), self.clock))
        raise Cancelled("all is told")

    def restore_to(
        self, target: Target, source: RestoreSource, facts: Mapping[str, Any], log: Log, control: Control, scratch: str
    ) -> Summary:
        """See Recorder."""
        data = b"".join(log.read())
        summary = self.restore(target, source, facts, control, scratch)
        held, at, order = self.databases[target.address], 0, log.begin.order
        while at < len(data):
            name, size = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 6], "big")
            key, value = data[at + 6 : at + 6 + name].decode(), data[at + 6 + name : at + 6 + name + size]
            at, order = at + 6 + name + size, order + 1
            if order > log.since.order:
                held[key] = value
        if order != log.until.order:
            raise RestoreBroken(f"the log ends at {order}, not at {log.until.order}", "half")
        return summary


def nothing(*_: object) -> None:
    """A note that writes nothing."""


class LoggedVault(HarshVault):
    """A vault whose source has a log, and what may be asked of it."""

    engine: LoggedEngine

    def __init__(self, folder: Path, *, clock: float | None = None, catalog: Catalog | None = None) -> None:
        self._begin(folder, MemoryStore(), catalog)
        engine = LoggedEngine(time.time() - 1000.0 if clock is None else clock)
        Vault.__init__(self, folder, store=self.store, catalog=self.catalog, engine=engine)

    def turn_on(self, **policy: Any) -> None:
        """Recording is on from here."""
        recording.put(self.ctx, self.project, self.source, Policy(True, **policy), nothing)

    def turn_off(self) -> None:
        """Recording is off from here."""
        recording.put(self.ctx, self.project, self.source, Policy(False), nothing)

    def take(self) -> str:
        """A completed backup of what the source holds."""
        key, job = self.create()
        self.run()
        assert self.state(key) == "COMPLETED", self.job(job).error
        self.wanted[key] = dict(self.engine.databases["plain://source"])
        return key

    def submit(self) -> str:
        """The job `record`, queued."""
        with self.catalog.write() as conn:
            args = {"instance": self.source}
            return self.jobs.submit(conn, recording.RECORD, args, queue=recording.QUEUE, serial=f"record:{self.source}")

    queues = ("default", recording.QUEUE)

    def handlers(self, ctx: Context) -> dict[str, Handler]:
        """With the jobs that record and trim."""
        return {**super().handlers(ctx), recording.RECORD: RecordJob(ctx), recording.TRIM: TrimJob(ctx)}

    def follow(self) -> Any:
        """Records all that the source has; the job after its end."""
        job = self.submit()
        self.run()
        return self.job(job)

    def follow_beside(self) -> None:
        """Records what the source has now, while a backup is under way; runs no other job."""
        job = self.submit()
        worker = StepwiseWorker(self.jobs, {recording.RECORD: RecordJob(self.ctx)}, [recording.QUEUE], owner="beside", ttl=TTL)
        assert worker.step() == job

    def trim(self) -> None:
        """The hourly job."""
        with self.catalog.write() as conn:
            self.jobs.submit(conn, recording.TRIM, {}, serial="trim")
        self.run()

    def writes(self, count: int, size: int = 2000) -> None:
        """As many writes, of which none compresses."""
        for _ in range(count):
            number = len(self.engine.log)
            self.engine.write(f"key-{number % 5}", noise(size, number))

    def restored_to(self, moment: float) -> dict[str, bytes]:
        """What a restore of the source to that moment leaves in the target."""
        job = restoration.restore_to(self.ctx, self.project, self.source, moment, self.target, nothing, overwrite=True)
        self.run()
        view = self.job(job)
        assert view.state == "DONE", view.error
        return dict(self.engine.databases["plain://target"])

    def periods(self) -> list[tuple[float, float]]:
        """What can be restored."""
        with self.catalog.read() as conn:
            return replaying.periods(conn, self.source)

    def newest(self) -> Any:
        """The backup that was begun last."""
        with self.catalog.read() as conn:
            parts = t.backup.join(t.part, t.part.c.backup == t.backup.c.id)
            return conn.execute(sa.select(t.backup).select_from(parts).order_by(t.part.c.seq.desc()).limit(1)).one()

    def rebuilt(self, folder: Path) -> LoggedVault:
        """The same on a catalog that was rebuilt from what the store holds; its backups are released."""
        other = copy.copy(self)
        inner = MemoryStore()
        inner._objects.update(self.inner._objects)  # type: ignore[attr-defined]
        other._begin(folder, inner)
        other.folder = folder
        other.restart()
        result = rebuild(other.ctx, lambda _line: None, other._found)
        other.target = other._register("target")
        for name in result.unknown:
            inner.delete(name)
        with other.catalog.read() as conn:
            keys = list(conn.scalars(sa.select(t.backup.c.id)))
        for key in keys:
            holding.hold(other.ctx, other.project, key, None, lambda conn: None)
        return other

    def _found(self) -> None:
        accounts.first_start(self.catalog, self.ambient, self.ctx.sealer, password_hash=None)

    def log_bytes(self) -> int:
        """Stored bytes of the log."""
        with self.catalog.read() as conn:
            return replaying.size_of_log(conn, self.source)

    def check_moments(self) -> None:
        """Every moment of a marked write that can be restored is what it was, and the books hold."""
        for begin, end in self.periods():
            for number, (at, state) in enumerate(self.engine.states, 1):
                if begin <= at <= end and number % self.engine.every == 0:
                    assert self.restored_to(at) == state, f"moment {at}"
        self.check_accounts()
