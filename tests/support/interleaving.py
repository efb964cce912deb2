"""Two transactions made to meet: one is held at a boundary between two of its statements while the other goes as far as it can.

    stage = Stage(folder, url)                          three processes on one catalog: `first`, `second` and one that watches
    stage.remember("quiet")                             the world as it is now: every trial begins there
    stage.violations(Pair(delete, begin, "quiet"))      none if all ended as one after the other would have

An act is a use case, up to the transactions that are to meet another one (its preamble) and from there (its scene). One actor is
held before its k-th statement or commit; the other begins its scene and goes on until it has ended or waits for a lock of the
first: PostgreSQL tells who blocks whom, on SQLite a BEGIN IMMEDIATE waits while the other is inside a writing transaction.
Then the first goes on, and both end.

What both answered and every row and object that is left must be what A;B or B;A leaves. If only what is left to be done differs
(a job that has not run), it is compared at rest. At rest, once for each different outcome: no job is stuck, no backup BUILDING,
every backup that is left reads back byte for byte, receipts equal promises, the store holds what the catalog names.

Ids, keys and time are drawn from counters, so that the same trial leaves the same rows.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import sqlalchemy as sa
from pyroaring import BitMap

from strongroom.backups import errors
from strongroom.backups.automation import ExpireJob
from strongroom.backups.context import Context, Options
from strongroom.backups.creation import BackupJob
from strongroom.backups.deletion import DeleteJob
from strongroom.backups.policies import EXPIRE
from strongroom.backups.removal import RemoveJob
from strongroom.backups.restoration import RestoreJob
from strongroom.catalog import tables as t
from strongroom.catalog.database import open_catalog
from strongroom.identity import audit
from strongroom.identity import tables as identity
from strongroom.identity.secrets import Sealer
from strongroom.jobs.clock import AmbientClock
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import Cancelled, Draining, Handler, JobFailed, JobLost, TryAgain
from strongroom.jobs.running import OwnedJob
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.repository.keys import RootKey
from strongroom.storage.base import StoreUnavailable
from strongroom.storage.faults import Effect, Fail, FaultyStore
from strongroom.storage.memory import MemoryStore
from support.harsh import Clock, HarshVault
from support.vault import ROOT, DictEngine, Vault

TABLES: tuple[sa.Table, ...] = (
    t.installation, t.instance, t.lineage, t.backup, t.pending_deletion, t.part, t.pack, t.death, t.decision, t.deletion,
    t.object_, t.holding, t.job,
    identity.audit_head, identity.audit,
)  # fmt: skip
"""What a trial may change, in the order in which rows may be written."""

NOTHING = "nothing to do"
"""The answer of an act that found its job ended, or held by somebody just then: a claim passes over rows that are locked."""


class SceneEnds(BaseException):
    """The actor's process is gone: its scene was played."""


ANSWERS = (errors.Refused, JobLost, Cancelled, TryAgain, JobFailed, Draining, StoreUnavailable, SceneEnds)
"""How an act may end other than well."""

_PATIENCE = 60.0  # seconds after which a trial is stuck


class Counted(Clock):
    """Ids and keys from a counter, marked with who drew them; time stands still unless somebody sleeps."""

    def __init__(self, letter: str, ahead: float) -> None:
        super().__init__()
        self._letter, self.began = letter, 1_800_000_000.0 + ahead
        self.rewind()

    def rewind(self, letter: str | None = None) -> None:
        """Begins anew, for another one if its letter is given."""
        self._letter = letter or self._letter
        self._numbers, self.passed = itertools.count(1), 0.0

    def hex_id(self) -> str:
        return f"{self._letter * 4}{2 * next(self._numbers):012x}{'0' * 16}"

    def uuid(self) -> str:
        return str(uuid.UUID(self.hex_id()))

    def key(self) -> bytes:
        return hashlib.sha256(self.hex_id().encode()).digest()


@dataclass(frozen=True, slots=True)
class Point:
    """One statement or commit of a scene, before which it can be held."""

    transaction: int
    place: int  # in the transaction: 0 is its first statement
    reading: bool  # the transaction is a snapshot to look at
    text: str

    def __str__(self) -> str:
        return f"transaction {self.transaction + 1}, before {self.text!r}"


class Actor:
    """One process and the thread in which it plays an act."""

    def __init__(self, stage: Stage, letter: str, ahead: float) -> None:
        self.stage, self.letter = stage, letter
        self.ambient = Counted(letter, ahead)
        self.catalog = open_catalog(stage.url)
        self.engine = DictEngine()
        self.store = FaultyStore(stage.inner, self._on_effect)
        self.jobs = LeasedJobs(self.catalog, self.ambient, AmbientClock(self.ambient))
        scratch = stage.folder / f"scratch-{letter}"
        scratch.mkdir(exist_ok=True)
        self.ctx = Context(
            self.catalog, self.store, self.jobs, {"plain": self.engine}, RootKey(ROOT), Sealer(ROOT), self.ambient, scratch,
            stage.options,
        )  # fmt: skip
        self.handlers: dict[str, Handler] = {
            "backup": BackupJob(self.ctx), "restore": RestoreJob(self.ctx), "delete": DeleteJob(self.ctx),
            "remove": RemoveJob(self.ctx),
            EXPIRE: ExpireJob(self.ctx),
        }  # fmt: skip
        engine = self.catalog.engine
        if not self.catalog.postgres:
            sa.event.listen(engine, "connect", lambda raw, _record: raw.execute("PRAGMA synchronous=OFF"))
        sa.event.listen(engine, "before_cursor_execute", self._before)
        sa.event.listen(engine, "after_cursor_execute", self._after)
        sa.event.listen(engine, "commit", self._commit)
        sa.event.listen(engine, "rollback", self._rollback)
        self.pids: set[int] = set()  # its sessions on PostgreSQL: a build has several threads
        self.rewind()

    def rewind(self) -> None:
        """Ready for another trial."""
        self.ambient.rewind()
        self.ctx.checked.clear()
        self.ctx.checked.update(self.stage.checked)
        self.ready, self.go, self.held, self.on = (threading.Event() for _ in range(4))
        self.points: list[Point] = []
        self.hold_at: int | None = None
        self.running: str | None = None  # the statement that the database works on
        self.blind = False  # claims nothing
        self.writing = False  # inside a writing transaction
        self.answer: str | None = None
        self.failure: BaseException | None = None
        self._scene_after: Callable[[Effect], bool] | None = None
        self._transactions_more = 0
        self._scene_until: Callable[[Effect], bool] | None = None
        self._scene_length: int | None = None
        self._playing = False
        self._place = self._transaction = self._committed = 0
        self.engine.__dict__.pop("probe", None)
        self._thread: threading.Thread | None = None

    # ---- for acts -------------------------------------------------------------------------------------------------------

    def here(self) -> None:
        """The preamble ends, the scene begins."""
        self._playing = True
        self.ready.set()
        self._wait(self.go)

    def scene(
        self,
        after: Callable[[Effect], bool] | None = None,
        *,
        transactions_more: int = 0,
        until: Callable[[Effect], bool] | None = None,
        length: int | None = None,
    ) -> None:
        """The scene begins after this effect on the store and `transactions_more` further commits. It ends with the store failing
        before an effect that `until` names, or with the process dying after `length` commits of something written."""
        self._scene_after, self._transactions_more, self._scene_until = after, transactions_more, until
        self._scene_length = length

    def claim(self, kind: str, backup: str | None = None) -> OwnedJob | None:
        """The job of this kind, of this backup, whoever held it: every lease is over by this actor's clock."""
        if self.blind:
            return None
        others: set[str] = set()
        if backup is not None:
            with self.catalog.read() as conn:
                query = sa.select(t.job.c.id).where(t.job.c.kind == kind, t.job.c.backup != backup)
                others = {row.id for row in conn.execute(query)}
        worker = StepwiseWorker(self.jobs, {kind: self.handlers[kind]}, owner=self.letter)
        return worker.claim(others)

    def note(self, conn: sa.Connection, *about: str) -> None:
        """The audit event, as the border writes it."""
        entry = audit.Entry("NoSQLAct", "backup", about[0] if about else "", project=self.stage.project)
        audit.append(conn, self.ambient, entry)

    # ---- the thread -----------------------------------------------------------------------------------------------------

    def begin(self, play: Callable[[Actor], str]) -> None:
        """Plays the preamble; returns when the scene is about to begin."""

        def perform() -> None:
            try:
                self.answer = play(self)
            except ANSWERS as ending:
                self.answer = type(ending).__name__
            except BaseException as error:
                self.failure = error
            finally:
                self._playing = False
                self.ready.set()

        self._thread = threading.Thread(target=perform, name=self.letter, daemon=True)
        self._thread.start()
        self._wait(self.ready)
        if self._done:
            raise AssertionError(f"an act ended before its scene: {self.answer}, {self.failure!r}")

    def play_on(self) -> None:
        """Begins the scene."""
        self.go.set()

    def join(self) -> None:
        """Waits for the end of the act."""
        assert self._thread is not None
        self.on.set()
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            raise AssertionError(f"{self.letter} hangs in {self.running!r}")

    def give_up(self) -> None:
        """Ends what hangs, so that another trial can begin."""
        self.go.set()
        self.on.set()
        if self.catalog.postgres:
            self.stage.terminate(self.pids)
        if self._thread is not None:
            self._thread.join(_PATIENCE)
        self.catalog.engine.dispose()

    @property
    def _done(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def held_or_done(self) -> bool:
        """Whether the scene was held; False: it ended before."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            if self.held.wait(0.0005):
                return True
            if self._done:
                return False
        raise AssertionError(f"{self.letter} hangs in {self.running!r}")

    def blocked_or_done(self, by: Actor) -> bool:
        """Whether this one waits for a lock of the other; False: it has ended."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            if self._done:
                return False
            if self._waits_for(by):
                return True
            time.sleep(0.0005)
        raise AssertionError(f"{self.letter} neither ends nor waits: {self.running!r}")

    def _waits_for(self, by: Actor) -> bool:
        if self.catalog.postgres:
            return self.stage.blocks(self.pids, by.pids)
        if not (by.writing and self.running == "BEGIN IMMEDIATE"):
            return False
        time.sleep(0.003)  # long enough to ask and be told to wait
        return self.running == "BEGIN IMMEDIATE"

    def _wait(self, event: threading.Event) -> None:
        if not event.wait(_PATIENCE):
            raise AssertionError(f"{self.letter} was left waiting")

    # ---- what the database and the store tell ---------------------------------------------------------------------------

    def _before(self, conn: sa.Connection, cursor: Any, statement: str, *_rest: Any) -> None:
        if self.catalog.postgres:
            self.pids.add(cursor.connection.info.backend_pid)
        reading = _reads(conn)
        if not self._playing and self._scene_after is _NOW and self._transactions_more == 0:
            self.here()
        self._step(reading, statement)
        self.running = statement
        if not reading and self.catalog.postgres:
            self.writing = True

    def _after(self, conn: sa.Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        self.running = None
        self.writing = self.writing or statement == "BEGIN IMMEDIATE"

    def _commit(self, conn: sa.Connection) -> None:
        self._step(_reads(conn), "COMMIT")
        self._end_transaction(committed=True, reading=_reads(conn))

    def _rollback(self, conn: sa.Connection) -> None:
        self._end_transaction(committed=False, reading=_reads(conn))

    def _end_transaction(self, *, committed: bool, reading: bool) -> None:
        self.writing, self.running = False, None
        if self._playing:
            self._transaction, self._place = self._transaction + 1, 0
            self._committed += committed and not reading
        elif committed and self._scene_after is _NOW and self._transactions_more:
            self._transactions_more -= 1

    def _step(self, reading: bool, text: str) -> None:
        if not self._playing:
            return
        self._end_scene()
        self.points.append(Point(self._transaction, self._place, reading, _short(text)))
        self._place += 1
        if self.hold_at == len(self.points) - 1:
            self.held.set()
            self._wait(self.on)

    def _end_scene(self) -> None:
        if self._place == 0 and self._scene_length is not None and self._committed >= self._scene_length:
            raise SceneEnds

    def _on_effect(self, effect: Effect) -> Fail | None:
        if self._playing:
            self._end_scene()
        if self._playing and self._scene_until is not None and effect.phase == "before" and self._scene_until(effect):
            return Fail(StoreUnavailable("the scene ends here"))
        if not self._playing and self._scene_after is not None and self._scene_after is not _NOW and self._scene_after(effect):
            self._scene_after = _NOW
        return None


def _NOW(_effect: Effect) -> bool:  # noqa: N802  a mark more than a function: the effect has happened
    return False


def _reads(conn: sa.Connection) -> bool:
    return bool(conn.get_execution_options().get("strongroom_read"))


def _short(statement: str) -> str:
    words = " ".join(statement.split())
    return words if len(words) <= 90 else words[:87] + "…"


@dataclass(frozen=True)
class Act:
    """Something a process does. `play` calls `actor.here()` where its scene begins, or says it by `actor.scene`."""

    name: str
    play: Callable[[Actor], str] = field(compare=False, repr=False)
    claims: str | None = None  # the job that its preamble claims: two acts with the same cannot meet
    passes: bool = False  # its scene claims a job, and so may find nothing to do
    atomic: bool = True  # its scene is one decision; else only the laws are asked of what it leaves
    of_build: bool = False  # changes or ends a part that is being built

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Pair:
    """Two acts that meet in a world."""

    first: Act
    second: Act
    world: str

    def __str__(self) -> str:
        return f"{self.first}-{self.second}-{self.world}"

    @property
    def serialisable(self) -> bool:
        """Whether the outcome must be that of one order; else only the laws are asked. An act that claims a build's job and then
        decides about the part is two decisions: another act on that build may come between."""
        both = (self.first, self.second)
        between = any(act.passes for act in both) and all(act.of_build for act in both)
        return all(act.atomic for act in both) and not between


@dataclass(frozen=True, slots=True)
class Outcome:
    """How both ended and what is left."""

    answers: tuple[str | None, str | None]  # of the pair's first and second
    rows: tuple[str, ...]
    objects: tuple[str, ...]

    def difference(self, other: Outcome) -> str:
        """In words, for a failing test."""
        lines = [f"answers {self.answers} instead of {other.answers}"] if self.answers != other.answers else []
        for name, mine, theirs in (("rows", self.rows, other.rows), ("objects", self.objects, other.objects)):
            lines += [f"{name}: + {row}" for row in sorted(set(mine) - set(theirs))]
            lines += [f"{name}: - {row}" for row in sorted(set(theirs) - set(mine))]
        return "\n      ".join(lines)


@dataclass(frozen=True)
class _World:
    objects: Mapping[str, bytes]
    databases: Mapping[str, dict[str, bytes]]
    wanted: Mapping[str, dict[str, bytes]]
    checked: Mapping[str, int]


class Stage(HarshVault):
    """A vault with two processes beside it, whose worlds can be remembered and put back."""

    _at_rest: ClassVar[dict[tuple[str, Outcome], Outcome]] = {}
    """Of every stage: the same rows and objects come to the same rest on every database."""

    def __init__(self, folder: Path, url: str, options: Options) -> None:
        self.url = url
        self.checked: Mapping[str, int] = {}
        self._worlds: dict[str, _World] = {}
        self._serial: dict[Pair, tuple[Outcome, ...]] = {}
        self._points: dict[tuple[Pair, bool], list[Point]] = {}
        self.trials = self.blocked = 0
        catalog = open_catalog(url)
        if not catalog.postgres:
            sa.event.listen(catalog.engine, "connect", lambda raw, _record: raw.execute("PRAGMA synchronous=OFF"))
        self._begin(folder, MemoryStore(), catalog)
        self.clock: Clock = Counted("e", 0.0)
        Vault.__init__(self, folder, store=self.store, catalog=catalog, options=options)
        self.first, self.second = Actor(self, "a", 3_600.0), Actor(self, "b", 7_200.0)

    def close(self) -> None:
        """Gives every connection back."""
        if "_watch" in self.__dict__:
            self._watch.close()
        for catalog in (self.catalog, self.first.catalog, self.second.catalog):
            catalog.close()

    # ---- worlds ---------------------------------------------------------------------------------------------------------

    def remember(self, world: str) -> None:
        """The world as it is now, under a name."""
        with self._raw() as run:
            for table in TABLES:
                run(f"CREATE TABLE {_saved(world, table)} AS SELECT * FROM {table.name}")  # noqa: S608  names of ours
        self._worlds[world] = _World(
            dict(self._objects), {key: dict(data) for key, data in self.engine.databases.items()}, dict(self.wanted),
            dict(self.ctx.checked),
        )  # fmt: skip

    def reset(self, world: str) -> None:
        """Puts a remembered world back."""
        self.checked = self._worlds[world].checked
        with self._raw() as run:
            lines = [f"DELETE FROM {table.name}" for table in reversed(TABLES)]  # noqa: S608
            lines += [f"INSERT INTO {table.name} SELECT * FROM {_saved(world, table)}" for table in TABLES]  # noqa: S608
            run(";\n".join(lines))
        saved = self._worlds[world]
        self._objects.clear()
        self._objects.update(saved.objects)
        databases = {key: dict(data) for key, data in saved.databases.items()}
        for engine in (self.engine, self.first.engine, self.second.engine):
            engine.databases = databases
        self.wanted = dict(saved.wanted)
        self.clock.passed = 36_000.0
        self.ctx.checked.clear()
        self.ctx.checked.update(saved.checked)
        for actor in (self.first, self.second):
            actor.rewind()

    @property
    def _objects(self) -> dict[str, bytes]:
        assert isinstance(self.inner, MemoryStore)
        return self.inner._objects

    @contextmanager
    def _raw(self) -> Iterator[Callable[[str], None]]:
        raw = self.catalog.engine.raw_connection()
        try:
            driver: Any = raw.driver_connection
            if self.catalog.postgres:
                yield lambda text: driver.execute(text)
            else:
                yield lambda text: driver.executescript(f"BEGIN IMMEDIATE; {text}; COMMIT;")
            raw.commit()
        finally:
            raw.close()

    def blocks(self, waiting: set[int], holding: set[int]) -> bool:
        """Whether one of these sessions of PostgreSQL waits for one of the others."""
        query = sa.text("SELECT bool_or(pg_blocking_pids(pid) && CAST(:h AS int[])) FROM unnest(CAST(:w AS int[])) AS pid")
        return bool(self._watch.execute(query, {"h": list(holding), "w": list(waiting)}).scalar())

    def terminate(self, sessions: set[int]) -> None:
        """Ends sessions of PostgreSQL."""
        for pid in sessions:
            self._watch.execute(sa.text("SELECT pg_terminate_backend(:p)"), {"p": pid})
        sessions.clear()

    @cached_property
    def _watch(self) -> sa.Connection:
        return self.catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    # ---- trials ---------------------------------------------------------------------------------------------------------

    def violations(self, pair: Pair, most: int | None = None) -> Iterator[str]:
        """What goes wrong when each of the two is held at its boundaries, the last first, at most `most` of them, spread evenly;
        in words, as it is found."""
        allowed = self.serial(pair)
        for backwards in (False, True)[: 1 if pair.first == pair.second else 2]:
            for at in reversed(self._boundaries(pair, backwards, most)):
                outcome, where = self.trial(pair, at, backwards=backwards)
                if isinstance(outcome, str):
                    yield f"{pair}, {where}: {outcome}"
                elif outcome not in allowed and (wrong := self._wrong_at_rest(pair, outcome, allowed)):
                    yield f"{pair}, {where}:\n      {wrong}"

    def serial(self, pair: Pair) -> tuple[Outcome, ...]:
        """What A;B and B;A leave (and A or B alone, where the other may find nothing to do). Each keeps the laws at rest."""
        if pair not in self._serial:
            alone = [(self.second, False)] * pair.second.passes + [(self.first, True)] * pair.first.passes
            outcomes = []
            for blind, backwards in [(None, False), (None, True), *alone]:
                outcome, _ = self.trial(pair, None, backwards=backwards, blind=blind)
                assert isinstance(outcome, Outcome), f"{pair} one after the other: {outcome}"
                if blind is None:
                    self._points[pair, backwards] = list((self.second if backwards else self.first).points)
                self._rest(pair.world, outcome)
                outcomes.append(outcome)
            self._serial[pair] = tuple(outcomes)
        return self._serial[pair]

    def points(self, pair: Pair) -> list[Point]:
        """The boundaries of the first, once `serial` has seen the pair."""
        return self._points[pair, False]

    def _boundaries(self, pair: Pair, backwards: bool, most: int | None) -> list[int]:
        """Where the first (`backwards`: the second) is to be held: before each statement and commit but the very first.

        Inside a snapshot every place after its first statement sees the same, so one of them stands for all; inside a writing
        transaction of SQLite, which keeps everybody else from writing from its BEGIN on, the first and the last do.
        """
        points = self._points[pair, backwards]
        chosen = []
        for number, point in enumerate(points):
            last = number + 1 == len(points) or points[number + 1].transaction != point.transaction
            like_one_before = point.place > 1 and (point.reading or (not self.catalog.postgres and not last))
            if number > 0 and not like_one_before:
                chosen.append(number)
        if most is None or len(chosen) <= most:
            return chosen
        first = random.random()  # others another time; the seed of the run gives the same again
        return [chosen[int((number + first) * len(chosen) / most)] for number in range(most)]

    def trial(
        self, pair: Pair, at: int | None, *, backwards: bool = False, blind: Actor | None = None
    ) -> tuple[Outcome | str, str]:
        """One meeting; `at` None: one after the other, the second before the first if `backwards`. Gives the outcome, or what is
        wrong with it at once, and where that was."""
        self.reset(pair.world)
        self.trials += 1
        if blind is not None:
            blind.blind = True
        try:
            return self._trial(pair, at, backwards)
        except BaseException:
            for actor in (self.first, self.second):
                actor.give_up()
            raise

    def _trial(self, pair: Pair, at: int | None, backwards: bool) -> tuple[Outcome | str, str]:
        self.first.begin(pair.first.play)
        self.second.begin(pair.second.play)
        earlier, later = (self.second, self.first) if backwards else (self.first, self.second)
        earlier.hold_at = at
        earlier.play_on()
        if at is not None and earlier.held_or_done():
            later.play_on()
            self.blocked += later.blocked_or_done(by=earlier)
        earlier.join()
        later.play_on()
        later.join()
        where = "one after the other"
        if at is not None and at < len(earlier.points):
            where = f"{pair.second if backwards else pair.first} held in {earlier.points[at]}"
        for actor in (earlier, later):
            if actor.failure is not None:
                return f"{actor.letter} broke: {type(actor.failure).__name__}: {actor.failure}", where
        return self._outcome((self.first.answer, self.second.answer)), where

    # ---- what is left ---------------------------------------------------------------------------------------------------

    def _outcome(self, answers: tuple[str | None, str | None]) -> Outcome:
        names = _Names()
        with self.catalog.read() as conn:
            found = [(table.name, [row._asdict() for row in conn.execute(sa.select(table))]) for table in TABLES]
        ranks = {row["id"]: rank for rank, row in enumerate(sorted(dict(found)["decision"], key=lambda row: row["id"]))}
        rows = [_told(table, row, ranks) for table, some in found for row in some if table not in _CHAINED]
        rows += [f"audit {row['event']} {row['resource_id']}" for row in dict(found)["audit"]]
        objects = [name if "/manifest/" in name else f"{name} {len(data)}" for name, data in self._objects.items()]
        rows.sort(key=names.without)
        objects.sort(key=names.without)
        return Outcome(answers, tuple(names.named(row) for row in rows), tuple(names.named(line) for line in objects))

    def _wrong_at_rest(self, pair: Pair, outcome: Outcome, allowed: Sequence[Outcome]) -> str | None:
        """An outcome that is not one of the serial ones: what is wrong with it once everything is done, if anything."""
        try:
            rest = self._rest(pair.world, outcome)
        except AssertionError as broken:
            return f"a law is broken: {broken}"
        serial = [self._at_rest[pair.world, one] for one in allowed]
        if rest in serial or not pair.serialisable:
            return None
        return "neither order leaves this:\n      " + "\n      or\n      ".join(rest.difference(one) for one in serial)

    def _rest(self, world: str, outcome: Outcome) -> Outcome:
        """Does all that is left to do in the world as it is, and checks the laws; once for each outcome."""
        if (world, outcome) not in self._at_rest:
            self.settle()
            self.check_laws()
            self._at_rest[world, outcome] = self._outcome(outcome.answers)
        return self._at_rest[world, outcome]

    def settle(self) -> None:
        """A third process does what is queued or was left running."""
        assert isinstance(self.clock, Counted)
        self.clock.rewind("c")
        self.clock.passed = 36_000.0
        self.run()

    def check_laws(self) -> None:
        """At rest: nothing is stuck, what survives is whole, what was promised was done. Raises AssertionError."""
        with self.catalog.read() as conn:
            backups = conn.execute(sa.select(t.backup)).all()
            deletions = conn.execute(sa.select(t.deletion)).all()
            failed = conn.execute(sa.select(t.job).where(t.job.c.state == "FAILED", t.job.c.kind != "backup")).all()
            assert audit.check_chain(conn, self._account) is None, "the audit chain holds"
        states = {row.id: row.state for row in backups}
        failed = [row for row in failed if row.kind != "delete" or states[row.backup] != "COMPLETED"]  # one that was called off
        assert set(states.values()) <= {"COMPLETED", "FAILED", "DELETED"}, f"a backup is stuck: {states}"
        assert not failed, f"jobs failed: {[(row.kind, row.error) for row in failed]}"
        source = self.engine.databases["plain://source"]
        self.wanted = {key: self.wanted.get(key, source) for key, state in states.items() if state == "COMPLETED"}
        for row in deletions:
            receipt = self.receipt(row.backup)
            promised = receipt["promised"]
            assert row.state == "DONE", f"deletion {row.state}: {row.fail_reason}"
            assert (receipt["freed"], receipt["waiting"]) == (promised["freed"], promised["waiting"]), "promise = result"
            assert receipt["removed_objects"] == promised["objects"], "promise = result"
        self.check()

    @cached_property
    def _account(self) -> str:
        with self.catalog.read() as conn:
            return str(conn.execute(sa.select(identity.project.c.account)).scalar_one())


_CHAINED = ("audit", "audit_head")
_PASSING: Mapping[str, frozenset[str]] = {
    "lineage": frozenset({"version", "sealed_keys"}),
    "backup": frozenset({"version"}),
    "part": frozenset({"version"}),
    "deletion": frozenset({"at_version", "accepted_at", "finished_at"}),
    "job": frozenset({"owner", "epoch", "lease_until", "run_after", "created_at", "started_at", "finished_at", "progress"}),
}
"""What an order of events may leave otherwise without meaning anything: how often a row was locked, and when. Nor does the size
of a manifest mean anything: how well the ids in it compress depends on how many were drawn before them."""


def _told(table: str, row: Mapping[str, Any], ranks: Mapping[int, int]) -> str:
    passing = _PASSING.get(table, frozenset())
    parts = []
    for name, value in row.items():
        if name in passing or name.endswith("_at") or (name == "bytes" and row.get("kind") == "manifest"):
            continue
        if table == "decision" and name == "id":
            value = ranks[value]
        elif name in ("numbers", "gone", "suspect") and value is not None:
            value = list(BitMap.deserialize(value))
        elif name in ("pack", "id") and isinstance(value, int) and value > 1 << 40:
            value = f"{2 * value:016x}" + "0" * 16
        parts.append(f"{name}={value}")
    return f"{table} " + " ".join(parts)


class _Names:
    """Gives ids that the actors drew names that do not depend on how many were drawn before."""

    _ID = re.compile(r"([abc])\1{3}[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def without(self, text: str) -> str:
        return self._ID.sub(r"\1", text)

    def named(self, text: str) -> str:
        return self._ID.sub(self._name, text)

    def _name(self, found: re.Match[str]) -> str:
        return self._known.setdefault(found[0].replace("-", ""), f"<{found[1]}{len(self._known)}>")


def _saved(world: str, table: sa.Table) -> str:
    return f"saved_{world}_{table.name}"


__all__ = ["Act", "Actor", "Outcome", "Pair", "Point", "Stage"]
