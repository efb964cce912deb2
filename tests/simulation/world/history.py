"""One history: a seed (or a tape) in, what happened out.

Two workers and two users go on at once, under deaths, pauses, take-overs, a failing store and a failing catalog disk; then all
trouble ends, the work is finished, and everything must be accounted for.
"""

from __future__ import annotations

import logging
import random
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError

from simulation.world import threads, users
from simulation.world.baton import Died, Scheduler, Violation
from simulation.world.processes import TTL, Process, Rows, SimCatalog
from simulation.world.surroundings import Contents, Databases, Seeded
from simulation.world.tape import Tape
from simulation.world.truth import Truth
from strongroom.backups import holding, instances, removal
from strongroom.backups.incarnation import recognise, take_possession
from strongroom.backups.rebuilding import rebuild
from strongroom.catalog import sweeping
from strongroom.identity import accounts
from strongroom.storage.base import StoreFull
from strongroom.storage.faults import Delay, Effect, Empty, Fail, Fault, Partly, Stale

CALLS = 12
"""Calls of users in a history."""
DUMPS = 0.004
"""How often somebody dumps the catalog."""
MOST_STEPS = 6_000
"""Steps after which a history is stuck."""

_BATCHES = sweeping.BATCH, removal.BATCH
CALLS_AFTER = 5
"""Calls of users after the catalog was replaced."""
VARIANTS = 6
"""Worlds that histories begin with: backups of two databases, made once."""

_SPEED = (0.0, 0.003, 0.01, 0.03)
_catalogs: list[SimCatalog] = []


def _shared_catalog(number: int) -> SimCatalog:
    while len(_catalogs) <= number:
        _catalogs.append(SimCatalog())
    return _catalogs[number]


@dataclass(slots=True)
class Swarm:
    """How often what goes wrong, drawn for each history."""

    death: float = 0.0
    pause: float = 0.0
    refusal: float = 0.0
    lost_reply: float = 0.0
    catalog: float = 0.0
    engine: float = 0.0
    late: float = 0.0
    jump: float = 0.0
    rot: float = 0.0

    @classmethod
    def drawn(cls, tape: Tape) -> Swarm:
        """Many histories without some of it, since trouble of one kind hides trouble of another."""
        return cls(*(_SPEED[tape.draw(4)] * weight for weight in (0.5, 0.7, 1.0, 1.0, 0.5, 1.0, 0.6, 0.1, 0.25)))


@dataclass(frozen=True)
class Prepared:
    """A world at rest that histories begin with."""

    rows: Rows
    objects: dict[str, bytes]
    captures: list[tuple[str, dict[str, bytes]]]
    content: dict[str, dict[str, bytes]]
    truth: Truth
    project: str
    instances: list[tuple[str, str]]
    target: str


@dataclass(slots=True)
class Outcome:
    """How a history ended."""

    seed: int
    steps: int
    failure: str | None
    tape: list[int]
    story: list[tuple[int, str, str]] = field(repr=False)
    names: dict[str, str] = field(repr=False)
    backups: int = 0
    deletes: int = 0
    read_backs: int = 0

    def told(self) -> Iterator[str]:
        """The history in words, a line a step."""
        for step, who, what in self.story:
            yield f"{step:5} {who:12} {what}"
        end = (
            "all is well"
            if self.failure is None
            else re.sub(r"[0-9a-f]{32}(br99)?", lambda m: self.names.get(m[0], m[0]), self.failure)
        )
        yield f"{self.steps:5} {'':12} {end}"
        done = f"{self.backups} backups, {self.deletes} deleted, {self.read_backs} read back"
        yield f"seed {self.seed}: {done}, {len(self.tape)} choices"

    def without_story(self) -> Outcome:
        """What is worth sending from process to process."""
        return replace(self, story=[], names={}, tape=[])


class World:
    """Everything that one history consists of."""

    def __init__(self, seed: int, given: Sequence[int] | None = None, flavour: Mapping[str, Any] | None = None) -> None:
        self._flavour = flavour or {}
        self.seed, self.tape = seed, Tape(seed, given)
        self.ambient, self.contents = Seeded(seed), Contents(seed)
        self.story: list[tuple[int, str, str]] = []
        self.engine = Databases(self._engine_between)
        self.sim = _shared_catalog(0)
        self.truth = Truth(self.engine, self.broken)
        self.scheduler = Scheduler(self.tape, self._stepped, self._idle)
        self.scratch = Path(tempfile.mkdtemp(prefix="simulation-", dir=_memory_folder()))
        self.landed_late: set[str] = set()
        self.truth.store.landed = self._landed
        self.names: dict[str, str] = {}
        self.instances: list[tuple[str, str]] = []
        self.processes: list[Process] = []
        self.calls_left = CALLS
        self._count = 0
        self._due_at: tuple[int, float, bool] = (-1, 0.0, False)

    # ---- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """The whole history."""
        failure: str | None = None
        try:
            with ExitStack() as stack:
                self._begin()
                stack.enter_context(threads.under(self.scheduler))
                try:
                    self._live()
                except Violation as error:
                    failure = str(error)
                except Exception as error:  # whatever escapes a use case or the world is a finding
                    failure = f"{type(error).__name__}: {error}"
                finally:
                    self.scheduler.watching = True
                    self.scheduler.unwind()
        finally:
            self.sim.catalog.before = lambda _reads: None
            sweeping.BATCH, removal.BATCH = _BATCHES
            shutil.rmtree(self.scratch, ignore_errors=True)
        states = list(self.truth.states.values())
        return Outcome(
            self.seed, self.scheduler.step, failure, self.tape.drawn, self.story, self.names, len(states),
            states.count("DELETED"), self.truth.read_backs,
        )  # fmt: skip

    def _begin(self) -> None:
        self.swarm = Swarm.drawn(self.tape)
        self.ending = self.tape.weighted((4, 1, 2, 2))
        self.scheduler.stay = (0.62, 0.9, 0.3)[self.tape.draw(3)]
        self.patient, self.deletes_much = self.tape.draw(3) < 2, self.tape.draw(3) == 2
        sweeping.BATCH = (3000, 1, 2, 6)[self.tape.draw(4)]
        removal.BATCH = (500, 1, 3)[self.tape.draw(3)]
        for name, value in self._flavour.items():
            setattr(self.swarm if name.startswith("swarm.") else self, name.removeprefix("swarm."), value)
        begun = _prepared(self.tape.draw(VARIANTS))
        self.sim.load(begun.rows)
        self.truth.checker = self._process("checker")
        self.truth.continue_from(begun.truth, begun.objects)
        self.dumped: Rows | None = None
        self.engine.captures.extend(begun.captures)
        self.engine.content.update(begun.content)
        self.project, self.instances, self.target = begun.project, begun.instances, begun.target
        self.sim.catalog.before = self._begins

    def prepare(self) -> Prepared:
        """Some backups of two databases, and one in the middle deleted: without any trouble."""
        self.tape.calm = True
        with threads.under(self.scheduler):
            self._found()
            worker, user = self._process("worker"), self._process("users")
            self.scheduler.spawn(worker, worker.name, lambda: self._work(worker))
            self.scheduler.spawn(user, user.name, lambda: self._prepare(user))
            self.scheduler.run()
            self.scheduler.watching = True
            self.truth.at_rest(set())
            assert self.scheduler.failure is None, self.scheduler.failure
            self.scheduler.unwind()
        self.sim.catalog.before = lambda _reads: None
        shutil.rmtree(self.scratch, ignore_errors=True)
        return Prepared(
            self.sim.dump(), dict(self.truth.store.objects), self.engine.captures, self.engine.content, self.truth,
            self.project, self.instances, self.target,
        )  # fmt: skip

    def _found(self) -> None:
        self.sim.load({})
        self.truth.checker = self._process("checker")
        ctx = self.truth.checker.ctx
        take_possession(ctx)
        recognise(ctx, self.scratch / "incarnation")
        with self.sim.catalog.write() as conn:
            self.project = accounts.found(conn, self.ambient, "account", "project", "admin", None).project
        for name in ("one", "two"):
            self.engine.content[f"plain://{name}"] = self.contents.first()
            self.instances.append((self._register(name), f"plain://{name}"))
        self.engine.content["plain://target"] = {}
        self.target = self._register("target")
        self.sim.catalog.before = self._begins

    def _prepare(self, process: Process) -> None:
        plan = random.Random(f"prepared {self.seed}")
        for which in (0, 1, 0, 0, 1, 0):
            users.create(self, process, which, plan.randrange(6))
            self.scheduler.wait(self._nothing_to_do)
        if self.seed % 2:
            users.delete(self, process, list(self.truth.states)[2])
            self.scheduler.wait(self._nothing_to_do)

    def _nothing_to_do(self) -> bool:
        return self.sim.raw.execute("SELECT 1 FROM job WHERE state IN ('QUEUED', 'RUNNING') LIMIT 1").fetchone() is None

    def _register(self, name: str) -> str:
        new = instances.NewInstance(name, "plain", f"plain://{name}")
        return instances.register(self.truth.checker.ctx, self.project, new, lambda conn, key: None)

    def _live(self) -> None:
        self._settle(early=self.ending in (2, 3))
        if self.ending:
            {1: self._rebuild, 2: self._rebuild, 3: self._restore_older}[self.ending]()

    def _settle(self, *, early: bool = False) -> None:
        """Everybody acts, then nothing fails any more and all work is ended; `early`: the history breaks off before that."""
        for _ in range(2):
            self._start_worker()
            self._start_users()
        self.scheduler.run()
        if early:
            return
        self._calm_down()
        self.scheduler.run()
        with self._watching():
            self.truth.at_rest(self.landed_late)
        if self.scheduler.failure is not None:
            raise self.scheduler.failure
        self.tape.calm = False

    def _rebuild(self) -> None:
        """An operator makes the catalog anew from the store, in the place of the old one; who was paused goes on later."""
        self._everybody_stops(spare_paused=self.tape.draw(2) == 1)
        self._harm_a_manifest()
        with self._watching():
            self.sim.load({})
            ctx = self._process("operator").ctx
            with self.sim.catalog.write() as conn:
                accounts.found(conn, self.ambient, "account", "another", "admin", None)
            rebuild(ctx, lambda text: self.tell(None, f"rebuild: {text}"))
            self.truth.rebuilt_catalog()
            self._register_again()
            for key, state in self.truth.states.items():
                if state == "COMPLETED" and self.tape.draw(2):
                    holding.hold(ctx, self.project, key, None, lambda conn: None)
            booked = {name for (name,) in self.sim.raw.execute("SELECT name FROM object")}
            self.landed_late.update(set(self.truth.store.names()) - booked)
        if self.scheduler.failure is not None:
            raise self.scheduler.failure
        self.calls_left = CALLS_AFTER
        self._settle()

    def _restore_older(self) -> None:
        """The catalog is restored from an older dump, is used for a while, and then made anew from the store."""
        if self.dumped is None:
            return
        self._everybody_stops(spare_paused=False)
        with self._watching():
            self.sim.load(self.dumped)
            self.truth.older_catalog()
            word = self.scratch / "incarnation"
            word.write_text("of-another-time\n", "ascii")
            self.tell(None, "the catalog is restored from an older dump")
            recognise(self._process("operator").ctx, word)
            self.truth.look()
        self.calls_left = CALLS_AFTER
        for _ in range(2):
            self._start_worker()
            self._start_users()
        self.scheduler.run()
        self._rebuild()

    def _everybody_stops(self, *, spare_paused: bool) -> None:
        """All processes are stopped; a paused one may be forgotten, and goes on with the new catalog."""
        for process in self.processes:
            process.belongs = False
            if process.alive and process.name != "checker":
                process.alive = spare_paused and process.paused_until > self.scheduler.step and process.name.startswith("worker")

    def _harm_a_manifest(self) -> None:
        roots = sorted((need.root, key) for key, need in self.truth.needs.items() if key not in self.truth.spoilt)
        if roots and self.tape.draw(3) == 2:
            root, key = roots[self.tape.draw(len(roots))]
            self.tell(None, f"the manifest of {self.short(key)} rots")
            self.truth.spoilt.add(key)
            self.truth.store.damage(root, len(self.truth.store.objects[root]) - 20)

    def _register_again(self) -> None:
        known = {row[0] for row in self.sim.raw.execute("SELECT id FROM instance")}
        self.instances = [
            (key if key in known else self._register(address.removeprefix("plain://")), address)
            for key, address in self.instances
        ]
        self.target = self._register("target")

    @contextmanager
    def _watching(self) -> Iterator[None]:
        self.scheduler.watching = True
        try:
            yield
        finally:
            self.scheduler.watching = False

    def _calm_down(self) -> None:
        """Nothing fails any more; who is not dead goes on."""
        self.tell(None, "from here on nothing fails")
        self.tape.calm = True
        for process in self.processes:
            process.paused_until = 0

    # ---- processes ---------------------------------------------------------------------------------------------------

    def _process(self, kind: str) -> Process:
        self._count += 1
        name = kind if kind == "checker" else f"{kind} {self._count}"
        process = Process(name, self.sim, self.truth.store, self._plan, self.engine, self.ambient, self.scratch)
        self.processes.append(process)
        return process

    def _start_worker(self) -> None:
        process = self._process("worker")
        self.scheduler.spawn(process, process.name, lambda: self._work(process))

    def _start_users(self) -> None:
        process = self._process("users")
        self.scheduler.spawn(process, process.name, lambda: self._use(process))

    def _work(self, process: Process) -> None:
        while True:
            self.scheduler.wait(self._due)
            try:
                job = process.worker.claim()
            except OperationalError:
                continue
            if job is None:
                continue
            self.tell(process, f"runs {job.claim.kind} {self.short(job.id)} for the {job.epoch}. time")
            try:
                lost = not process.worker.run_claimed(job)
            except OperationalError:
                lost = True
            self.tell(process, f"has lost {self.short(job.id)}" if lost else f"has ended its run of {self.short(job.id)}")
            if job.claim.kind in ("delete", "remove"):
                self._read_what_is_left()

    def _read_what_is_left(self) -> None:
        self.scheduler.watching = True
        self.truth.look()
        self.truth.read_touched()
        self.scheduler.watching = False

    def _use(self, process: Process) -> None:
        while self.calls_left > 0:
            self.calls_left -= 1
            self._think(process)
            try:
                users.one_call(self, process)
            except OperationalError as error:
                self.tell(process, f"gets an error: {error.orig}")

    def _think(self, process: Process) -> None:
        """A user waits a while between calls, or until nothing is being done."""
        patience = self.tape.draw(4) if self.patient else self.tape.draw(2)
        if patience == 3:
            self.scheduler.wait(self._nothing_to_do)
        elif patience:
            process.paused_until = self.scheduler.step + (15, 40)[patience - 1]
            self.scheduler.wait(lambda: True)

    # ---- boundaries --------------------------------------------------------------------------------------------------

    def _between(self, process: Process) -> None:
        """Others may come first; then the process may die or sleep."""
        scheduler = self.scheduler
        scheduler.boundary()
        if scheduler.watching or scheduler.current is None or self.tape.calm:
            return
        swarm = self.swarm
        if not self.tape.rarely(swarm.death + swarm.pause + swarm.late + swarm.jump + swarm.rot + DUMPS):
            return
        what = self.tape.weighted((1e-9, swarm.death, swarm.pause, swarm.late, swarm.jump, swarm.rot, DUMPS))
        if what == 1:
            self._die(process)
        elif what == 2:
            self._sleep(process)
        elif what == 3:
            self._deliver_late()
        elif what == 4:
            seconds = (-1000.0, 1000.0)[self.tape.draw(2)]
            self.tell(None, f"the clock jumps by {seconds:.0f} seconds")
            self.ambient.jump(seconds)
        elif what == 5:
            self._rot()
        elif what == 6 and not self.truth.older:
            self.tell(None, "a dump of the catalog is taken")
            self.dumped = self.sim.dump()

    def _rot(self) -> None:
        """A chunk rots, and a verification finds it and says so in the catalog."""
        sound = [key for key in self.truth.needs if key not in self.truth.spoilt]
        if not sound or self.truth.older:
            return
        with self._watching():
            self.truth.look()
            found = self.truth.rot(sound[-1 - self.tape.draw(len(sound))], self.tape.draw(1000))
            if found is not None:
                pack, number = found
                self.tell(None, f"chunk {number} of pack {pack} rots and is found out")

    def _die(self, process: Process) -> None:
        self.tell(process, "dies")
        process.alive = False
        if process.belongs:
            if process.name.startswith("worker"):
                self._start_worker()
            else:
                self._start_users()
        self.scheduler.wait(lambda: False)

    def _sleep(self, process: Process) -> None:
        steps = (20, 60, 150)[self.tape.draw(3)]
        self.tell(process, f"is paused for {steps} steps; its leases run out")
        process.paused_until = self.scheduler.step + steps
        self.ambient.passes(TTL + 1)
        self.scheduler.wait(lambda: True)

    def _deliver_late(self) -> None:
        sent = [(process, number) for process in self.processes for number in range(len(process.store.sent))]
        if not sent:
            return
        process, number = sent[len(sent) - 1 - self.tape.draw(len(sent))]
        if process.store.deliver_late(number):
            name = process.store.sent[number]
            self.tell(None, f"a put of {process.name} lands late: {self.pretty(name)}")
            self.landed_late.add(name)

    def _plan(self, process: Process, effect: Effect) -> Fault | None:
        """What the store does to a call; see strongroom.storage.faults."""
        scheduler = self.scheduler
        if scheduler.over:
            raise Died
        if scheduler.watching or scheduler.current is None:
            return None
        if effect.phase == "after":
            if not self.tape.calm and self.tape.rarely(self.swarm.lost_reply):
                self.tell(process, f"{effect.kind}: the reply is lost")
                return Fail()
            return None
        self._between(process)
        self.tell(process, self._told(effect))
        if self.tape.calm or not self.tape.rarely(self.swarm.refusal):
            return None
        return self._fault(process, effect)

    def _fault(self, process: Process, effect: Effect) -> Fault:
        faults: list[Fault] = [Fail()]
        if effect.kind == "put_new":
            faults += [Delay(), Fail(StoreFull("the store has no room left"))]
        elif effect.kind == "list" and not self.truth.older:  # what an older catalog is known by
            faults += [Empty(), Stale(1 + self.tape.draw(8))]
        elif effect.kind == "delete_many":
            faults += [Partly(self.tape.draw(len(effect.names) + 1))]
        fault = faults[self.tape.draw(len(faults))]
        self.tell(process, f"{effect.kind} goes wrong: {type(fault).__name__}")
        return fault

    def _begins(self, reads: bool) -> None:
        """Before a transaction begins."""
        scheduler = self.scheduler
        if scheduler.over and not scheduler.watching:
            raise Died
        if scheduler.watching or scheduler.current is None:
            if scheduler.over:
                raise Died
            return
        process = scheduler.current.owner
        assert isinstance(process, Process)
        self._between(process)
        if not self.tape.calm and self.tape.rarely(self.swarm.catalog):
            self.tell(process, "the catalog's disk is full")
            raise _disk_full()
        if not reads:
            self.tell(process, "decides")

    def _engine_between(self, what: str) -> str | None:
        scheduler = self.scheduler
        if scheduler.current is None:
            return None
        process = scheduler.current.owner
        assert isinstance(process, Process)
        self._between(process)
        self.tell(process, what)
        if not self.tape.calm and self.tape.rarely(self.swarm.rot):
            self._rot()
        if not self.tape.calm and self.tape.rarely(self.swarm.engine):
            return "the engine went away"
        return None

    def _stepped(self) -> None:
        self.ambient.passes(0.05)
        self.scheduler.watching = True
        self.truth.look()
        self.scheduler.watching = False
        if self.scheduler.step > MOST_STEPS:
            raise Violation("a job is stuck")

    def _due(self) -> bool:
        """Whether a job could be claimed; remembered until something is committed or time passes."""
        commits, now = self.sim.commits, self.ambient.now()
        if self._due_at[:2] != (commits, now):
            row = self.sim.raw.execute(
                "SELECT 1 FROM job j WHERE (state = 'RUNNING' AND lease_until < ?) OR (state = 'QUEUED' AND run_after <= ?"
                " AND NOT EXISTS (SELECT 1 FROM job o WHERE o.serial = j.serial AND o.state = 'RUNNING')) LIMIT 1",
                (now, now),
            ).fetchone()
            self._due_at = commits, now, row is not None
        return self._due_at[2]

    def _idle(self) -> bool:
        """Nobody can go on: time passes to where a job is due. False if there is none."""
        now = self.ambient.now()
        soonest, active = self.sim.raw.execute(
            "SELECT min(at) FILTER (WHERE at > ?), count(*) FROM (SELECT CASE state WHEN 'QUEUED' THEN run_after"
            " ELSE lease_until END AS at FROM job WHERE state IN ('QUEUED', 'RUNNING'))",
            (now,),
        ).fetchone()
        if not active:
            return False
        self.scheduler.step += 1
        if self.scheduler.step > MOST_STEPS:
            raise Violation("a job is stuck")
        self.ambient.passes((now + 1.0 if soonest is None else soonest) - now + 0.01)
        return True

    def _landed(self, name: str) -> None:
        """What a process of before still puts after the catalog was replaced belongs to nobody."""
        current = self.scheduler.current
        if current is not None and isinstance(current.owner, Process) and not current.owner.belongs:
            self.landed_late.add(name)

    # ---- telling -----------------------------------------------------------------------------------------------------

    def broken(self, text: str) -> None:
        """A promise was broken: the history ends at this step."""
        self.scheduler.fail(Violation(text))

    def tell(self, process: Process | None, text: str) -> None:
        """A line of the story."""
        self.story.append((self.scheduler.step, "" if process is None else process.name, text))

    def short(self, key: str) -> str:
        """A name that people can follow."""
        if key not in self.names:
            self.names[key] = f"#{len(self.names) + 1}"
        return self.names[key]

    def pretty(self, name: str) -> str:
        """An object's name with short ids."""
        return "/".join(self.short(part) if len(part) >= 32 else part for part in name.split("/"))

    def _told(self, effect: Effect) -> str:
        named = [self.pretty(name) for name in effect.names[:4]]
        return f"{effect.kind} {', '.join(named)}{' …' if len(effect.names) > 4 else ''}"


@cache
def _prepared(variant: int) -> Prepared:
    return World(-1 - variant).prepare()


def _disk_full() -> OperationalError:
    error: Any = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorname = "SQLITE_FULL"
    return OperationalError("BEGIN", None, error)


def _memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def simulate(seed: int, given: Sequence[int] | None = None, flavour: Mapping[str, Any] | None = None) -> Outcome:
    """Runs one history. The same seed, or the same seed and tape, is the same history to the step.

    `flavour` gives values to what is drawn at the beginning otherwise: attributes of World, and of Swarm as "swarm.…".
    """
    log = logging.getLogger("strongroom")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        return World(seed, given, flavour).run()
    finally:
        log.setLevel(before)


__all__ = ["Outcome", "Rows", "World", "simulate"]
