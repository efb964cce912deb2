"""One history: a seed (or a tape) in, what happened out.

Two workers and two users go on at once, under deaths, pauses, take-overs, a failing store and a failing catalog disk; then all
trouble ends, the work is finished, and everything must be accounted for.
"""

from __future__ import annotations

import logging
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from simulation.world import threads, users
from simulation.world.baton import Died, Scheduler, Violation
from simulation.world.met import SITUATIONS
from simulation.world.processes import Process, Rows, SimCatalog
from simulation.world.surroundings import Contents, Databases, Seeded
from simulation.world.tape import Tape
from simulation.world.trouble import Swarm, Trouble
from simulation.world.truth import Truth
from strongroom.backups import holding, instances, reconciling, removal, snapshots, verification
from strongroom.backups.incarnation import recognise, take_possession
from strongroom.backups.rebuilding import rebuild
from strongroom.catalog import sweeping
from strongroom.identity import accounts
from strongroom.identity import tables as identity
from strongroom.storage.base import StoreError

CALLS = 12
"""Calls of users in a history."""
CALLS_AFTER = 5
"""Calls of users after the catalog was replaced."""
MOST_TROUBLE = 3_000
"""Steps after which trouble lets what is under way end: without an end to it any work can be cut off again and again."""
MOST_STEPS = 6_000
"""Steps after which a history is stuck."""
REBUILDS = 3
"""Tries of a rebuild after which nothing goes wrong with it any more."""
VARIANTS = 6
"""Worlds that histories begin with: backups of two databases, made once."""

_BATCHES = sweeping.BATCH, removal.BATCH


def _shared_catalog(number: int) -> SimCatalog:
    while len(SimCatalog.made) <= number:
        SimCatalog()
    return SimCatalog.made[number]


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
    met: Counter[str] = field(default_factory=Counter)

    def told(self) -> Iterator[str]:
        """The history in words, a line a step."""
        for step, who, what in self.story:
            yield f"{step:5} {who:12} {self._shortly(what)}"
        end = "all is well" if self.failure is None else self._shortly(self.failure)
        yield f"{self.steps:5} {'':12} {end}"
        done = f"{self.backups} backups, {self.deletes} deleted, {self.read_backs} read back"
        yield f"seed {self.seed}: {done}, {len(self.tape)} choices"

    def without_story(self) -> Outcome:
        """What is worth sending from process to process."""
        return replace(self, story=[], names={}, tape=[])

    def _shortly(self, text: str) -> str:
        return re.sub(r"[0-9a-f]{32}(br99)?", lambda found: self.names.get(found[0], found[0]), text)


class World:
    """Everything that one history consists of."""

    def __init__(self, seed: int, given: Sequence[int] | None = None, flavour: Mapping[str, Any] | None = None) -> None:
        self._flavour = flavour or {}
        self.seed, self.tape = seed, Tape(seed, given)
        self.ambient, self.contents = Seeded(seed), Contents(seed)
        self.story: list[tuple[int, str, str]] = []
        self.met: Counter[str] = Counter()
        self.scheduler = Scheduler(self.tape, self._stepped, self._idle)
        self.engine = Databases(self._engine, self.broken, lambda: self.meet("a restore is done"))
        self.sim = _shared_catalog(0)
        self.sims = [self.sim]  # catalogs that processes work on
        self.landed_late: set[str] = set()
        self.truth = Truth(self.engine, self.broken, self.meet, self.acting, self.landed_late)
        self.scratch = Path(tempfile.mkdtemp(prefix="simulation-", dir=_memory_folder()))
        self.answered: set[str] = set()  # objects whose put is known to be over: one that comes once more has no row to be in
        self.names: dict[str, str] = {}
        self.instances: list[tuple[str, str]] = []
        self.processes: list[Process] = []
        self.calls_left = CALLS
        self.often = ""  # a call that users make as often as all others together
        self.most_trouble, self.most_steps = MOST_TROUBLE, MOST_STEPS
        self.waits = False  # whether deletions wait, to be called back or approved
        self.snapshots = False  # whether one of the catalog is asked for after each call
        self.dumped: Rows | None = None
        self._count = 0
        self._rebuilds = 0
        self._spent = False  # trouble has lasted long enough

    # ---- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """The whole history."""
        failure: str | None = None
        try:
            self._begin()
            with threads.under(self.scheduler):
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
            self._end()
        states = list(self.truth.states.values())
        return Outcome(
            self.seed, self.scheduler.step, failure, self.tape.drawn, self.story, self.names, len(states),
            states.count("DELETED"), self.truth.read_backs, self.met,
        )  # fmt: skip

    def _begin(self) -> None:
        swarm = Swarm.drawn(self.tape)
        self.ending = self.tape.weighted((4, 1, 2, 2, 2))
        self.cut = 40 + 25 * self.tape.draw(20)  # steps after which a history breaks off that goes on with another catalog
        self.scheduler.stay = (0.62, 0.9, 0.3)[self.tape.draw(3)]
        self.patient, self.deletes_much = self.tape.draw(3) < 2, self.tape.draw(3) == 2
        self.orderly, self.late_of = True, ""
        batches = (3000, 1, 2, 6)[self.tape.draw(4)], (500, 1, 3)[self.tape.draw(3)]
        begun = _prepared(self.tape.draw(VARIANTS))
        sweeping.BATCH, removal.BATCH = batches
        for name, value in self._flavour.items():
            setattr(swarm if name.startswith("swarm.") else self, name.removeprefix("swarm."), value)
        self.sim.load(begun.rows)
        self.trouble = Trouble(self, swarm, None if swarm.room is None else swarm.room + sum(map(len, begun.objects.values())))
        self.truth.orderly = self.orderly
        self.truth.checker = self._process("checker")
        self.truth.continue_from(begun.truth, begun.objects)
        self.engine.captures.extend(begun.captures)
        self.engine.content.update(begun.content)
        self.contents.past.extend(data for _, data in begun.captures)
        self.project, self.instances, self.target = begun.project, begun.instances, begun.target
        self.sim.catalog.turns = self.trouble

    def _end(self) -> None:
        for sim in self.sims:
            sim.rest()
        sweeping.BATCH, removal.BATCH = _BATCHES
        shutil.rmtree(self.scratch, ignore_errors=True)

    def prepare(self) -> Prepared:
        """Some backups of two databases, and one in the middle deleted: without any trouble."""
        self.tape.calm = True
        self.trouble = Trouble(self, Swarm(), None)
        with threads.under(self.scheduler):
            self._found()
            worker, user = self._process("worker"), self._process("users")
            self.scheduler.spawn(worker, worker.name, lambda: self._work(worker))
            self.scheduler.spawn(user, user.name, lambda: self._prepare(user))
            self.scheduler.run()
            with self._watching():
                self.truth.at_rest()
            assert self.scheduler.failure is None, self.scheduler.failure
            self.scheduler.watching = True
            self.scheduler.unwind()
        self._end()
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
        self.sim.catalog.turns = self.trouble

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

    # ---- the course of a history -------------------------------------------------------------------------------------

    def _live(self) -> None:
        if self.waits:
            users.set_policy(self, self.truth.checker, self.tape.draw(3))
        self._start_everybody()
        if self.ending < 2:
            self._come_to_rest()
        if self.ending == 0:
            if self.tape.draw(3) == 2:
                self._prove_rebuildable()
            return
        self.scheduler.run(self.scheduler.step + self.cut)
        if self.ending == 3:
            self._restore_older()
        self._rebuild(beside=self.ending == 4)
        self._come_to_rest()
        if self.ending == 4:
            told = self.sims[0].raw.execute("SELECT 1 FROM job WHERE error LIKE '%another catalog%' LIMIT 1").fetchone()
            if told is not None:
                self.meet("a worker of the catalog before learns that it was replaced")
            self._prove_rebuildable()

    def _start_everybody(self) -> None:
        for _ in range(2):
            self._start_worker()
            self._start_users()

    def _come_to_rest(self) -> None:
        """Everybody acts; then nothing fails any more, all work is ended, and all must be accounted for."""
        self.scheduler.run()
        self.tell(None, "from here on nothing fails")
        self.tape.calm = True
        for process in self.processes:
            process.paused_until = 0
        self.scheduler.run()
        with self._watching():
            self._ask_again()
        self.scheduler.run()
        with self._watching():
            self.truth.at_rest()
            self._check_reports()
        self._raise_failure()
        self.tape.calm = False

    def _ask_again(self) -> None:
        """What failed for good, since the store refused it, is asked for again; then the store is looked through."""
        process = self._process("users")
        failed = self.sim.raw.execute("SELECT backup FROM deletion WHERE state = 'FAILED'").fetchall()
        for (key,) in failed:
            users.delete(self, process, key)
        if self.snapshots:
            snapshots.submit(process.ctx)
        left = self.sim.raw.execute("SELECT 1 FROM object WHERE state IN ('CONDEMNED', 'PLANNED') LIMIT 1").fetchone()
        self._looked_through = left is not None or self.ending == 4
        if self._looked_through:
            reconciling.reconcile(process.ctx, self.project, lambda conn: None, outside=True)
            verification.verify(process.ctx, self.project, lambda conn: None)

    def _check_reports(self) -> None:
        """A verification and a reconciliation at rest tell what is wrong, all of it and nothing else."""
        if not self._looked_through:
            return
        reports = dict(self.sim.raw.execute("SELECT kind, result FROM job WHERE kind IN ('verify', 'reconcile') ORDER BY rowid"))
        self.truth.check_reports(reports)

    def _raise_failure(self) -> None:
        if self.scheduler.failure is not None:
            raise self.scheduler.failure

    # ---- other catalogs ----------------------------------------------------------------------------------------------

    def _rebuild(self, *, beside: bool) -> None:
        """An operator makes the catalog anew from the store, in the place of the old one or in another database.

        In its place a worker that was paused may have been forgotten and goes on with what is there when it wakes up; beside it
        all workers of before go on with theirs, and some users.
        """
        spared = self.tape.draw(2) == 1
        for process in self.processes:
            process.belongs = process.kind == "checker"
            process.beside = beside
            if beside:
                process.alive = process.alive and (process.kind == "worker" or spared)
            else:
                asleep = process.paused_until > self.scheduler.step and process.kind == "worker"
                process.alive = process.alive and (process.kind == "checker" or (spared and asleep))
        self._harm_a_manifest()
        self.truth.between = True
        if beside:
            self.sim = _shared_catalog(1)
            self.sim.catalog.turns = self.trouble
            self.sims.append(self.sim)
        self.calls_left = 0
        self._start_operator()

    def _start_operator(self) -> None:
        process = self._process("operator")
        process.spared = self._rebuilds >= REBUILDS
        self._rebuilds += 1
        self.scheduler.spawn(process, process.name, lambda: self._operate(process))

    def _operate(self, process: Process) -> None:
        """A rebuild; one that fails is begun anew, in an empty catalog."""
        with self._watching():
            self.sim.load({})
        self.tell(process, "rebuilds the catalog from the store")
        try:
            rebuild(process.ctx, lambda text: self.tell(process, f"rebuild: {text}"), self._found_again)
        except (StoreError, OperationalError) as error:
            self.tell(process, f"the rebuild fails: {error}")
            self._begin_again()
            return
        self.meet("the catalog is rebuilt")
        with self._watching():
            self._take_over(process)
        self.calls_left = CALLS_AFTER
        self._start_everybody()

    def _found_again(self) -> None:
        """An account where no snapshot of the catalog has brought one back."""
        with self._watching(), self.sim.catalog.write() as conn:
            if conn.execute(sa.select(identity.account.c.id)).first() is None:
                accounts.found(conn, self.ambient, "account", "another", "admin", None)
            else:
                self.meet("a snapshot of the catalog is the base of a rebuild")

    def _begin_again(self) -> None:
        self.meet("a rebuild dies or fails and begins anew")
        self._start_operator()

    def _take_over(self, process: Process) -> None:
        """The rebuilt catalog is the one that counts."""
        if self.truth.checker.sim is not self.sim:
            self.truth.checker = self._process("checker")
        deciding = "SELECT id FROM backup WHERE state IN ('DELETING', 'DELETED')"
        self.truth.rebuilt_catalog(key for sim in self.sims if sim is not self.sim for (key,) in sim.raw.execute(deciding))
        self._register_again()
        for key, state in self.truth.states.items():
            if state == "COMPLETED" and self.tape.draw(2):
                holding.hold(process.ctx, self.project, key, None, lambda conn: None)
        booked = {name for (name,) in self.sim.raw.execute("SELECT name FROM object")}
        self.landed_late.update(set(self.truth.store.names()) - booked)

    def _restore_older(self) -> None:
        """The catalog is restored from an older dump and is used for a while."""
        if self.dumped is None:
            return
        for process in self.processes:
            process.belongs = process.alive = process.kind == "checker"
        with self._watching():
            self.sim.load(self.dumped)
            self.truth.older_catalog()
            word = self.scratch / "incarnation"
            word.write_text("of-another-time\n", "ascii")
            self.tell(None, "the catalog is restored from an older dump")
            recognise(self._process("operator").ctx, word)
            self.truth.look()
        self.calls_left = CALLS_AFTER
        self._start_everybody()
        self.scheduler.run()
        if self.sim.raw.execute("SELECT 1 FROM lineage WHERE stopped IS NOT NULL").fetchone():
            self.meet("an older catalog is noticed")

    def _prove_rebuildable(self) -> None:
        """The store alone suffices: a catalog made from it now knows every backup that must restore and none that was deleted."""
        with self._watching():
            self.meet("a second rebuild from the same store")
            self.sim = _shared_catalog(2)
            self.sims.append(self.sim)
            self.sim.load({})
            self.truth.checker = self._process("checker")
            self.tell(None, "a catalog is made from the store once more")
            rebuild(self.truth.checker.ctx, lambda text: self.tell(None, f"rebuild: {text}"), self._found_again)
            self.truth.rebuilt_catalog()
        self._raise_failure()

    def _harm_a_manifest(self) -> None:
        roots = sorted((need.root, key) for key, need in self.truth.needs.items() if key not in self.truth.spoilt)
        if roots and self.tape.draw(3) == 2:
            root, key = roots[self.tape.draw(len(roots))]
            self.tell(None, f"the manifest of {self.short(key)} rots")
            self.meet("a rebuild meets a manifest that has rotted")
            self.truth.spoilt.add(key)
            self.truth.store.damage(root, len(self.truth.store.objects[root]) - 20)

    def _register_again(self) -> None:
        known = {row[0] for row in self.sim.raw.execute("SELECT id FROM instance")}
        self.instances = [
            (key if key in known else self._register(address.removeprefix("plain://")), address)
            for key, address in self.instances
        ]
        if self.target not in known:
            self.target = self._register("target")

    @contextmanager
    def _watching(self) -> Iterator[None]:
        before, self.scheduler.watching = self.scheduler.watching, True
        try:
            yield
        finally:
            self.scheduler.watching = before

    # ---- processes ---------------------------------------------------------------------------------------------------

    def _process(self, kind: str) -> Process:
        self._count += 1
        process = Process(
            f"{kind} {self._count}", self.sim, self.truth.store, lambda owner, effect: self.trouble.plan(owner, effect),
            self.engine, self.ambient, self.scratch,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def _start_worker(self) -> None:
        process = self._process("worker")
        self.scheduler.spawn(process, process.name, lambda: self._work(process))

    def _start_users(self) -> None:
        process = self._process("users")
        self.scheduler.spawn(process, process.name, lambda: self._use(process))

    def replace(self, process: Process) -> None:
        """Another process takes the place of one that died, if its catalog is still the one that counts."""
        if process.kind == "operator":
            self._begin_again()
        elif process.belongs:
            (self._start_worker if process.kind == "worker" else self._start_users)()

    def _work(self, process: Process) -> None:
        while True:
            self.scheduler.wait(lambda: process.sim.due(self.ambient.now()))
            try:
                job = process.worker.claim()
            except OperationalError:
                continue
            if job is None:
                continue
            self.tell(process, f"runs {job.claim.kind} {self.short(job.id)} for the {job.epoch}. time")
            if self.truth.rebuilt and not process.belongs and not process.beside:
                self.meet("a paused worker goes on with the rebuilt catalog")
            if job.epoch > 1:
                self.meet("a take-over by another worker")
            try:
                lost = not process.worker.run_claimed(job)
            except OperationalError:
                lost = True
            if lost:
                self.meet("a worker learns that it lost its job")
            self.tell(process, f"has lost {self.short(job.id)}" if lost else f"has ended its run of {self.short(job.id)}")

    def _use(self, process: Process) -> None:
        while self.calls_left > 0:
            self.calls_left -= 1
            self._think(process)
            try:
                users.one_call(self, process)
                if self.snapshots:
                    snapshots.submit(process.ctx)
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

    # ---- what happens ------------------------------------------------------------------------------------------------

    def rot(self) -> None:
        """A chunk rots; a verification has found it and says so in the catalog, or nobody knows."""
        with self._watching():
            self.truth.look()
            sound = [key for key in self.truth.needs if key not in self.truth.spoilt]
            if not sound or self.truth.older or self.truth.between:
                return
            known = self.tape.draw(2) == 0
            pack, number = self.truth.rot(sound[-1 - self.tape.draw(len(sound))], self.tape.draw(1000), known=known)
            self.meet("a chunk rots and is known" if known else "a chunk rots and nobody knows")
            self.tell(None, f"chunk {number} of pack {pack} rots and {'is found out' if known else 'nobody knows'}")

    def take_dump(self) -> None:
        """Somebody dumps the catalog."""
        if not self.truth.older:
            self.tell(None, "a dump of the catalog is taken")
            self.dumped = self.sim.dump()

    def lands_late(self, process: Process, name: str) -> None:
        """A put has landed long after it was sent, maybe once more: a row says so, or nobody awaits it any longer."""
        self.tell(None, f"a put of {process.name} lands late: {self.pretty(name)}")
        self.meet("a put lands late")
        if name in self.truth.went:
            self.meet("a put lands after its object was removed")
        over = name in self.answered or not process.belongs or self.truth.older
        if over or self.truth.row_of(name) is None:
            self.landed_late.add(name)
        owners = process.kind == "operator" and name.startswith("owner/")  # what a rebuild that failed took over with
        if not over and not owners and self.truth.row_of(name) is None:
            self.broken(f"{name} lands late and no row says that it may")

    def _engine(self, what: str) -> str | None:
        return self.trouble.engine(what)

    def acting(self) -> Process | None:
        """The process whose task runs."""
        current = self.scheduler.current
        return current.owner if current is not None and isinstance(current.owner, Process) else None

    def _stepped(self) -> None:
        self.ambient.passes(0.05)
        with self._watching():
            self.truth.look()
        if self.scheduler.step > self.most_trouble and not self._spent:
            self.tell(None, "trouble has lasted long enough: what is still under way may end")
            self._spent = self.tape.calm = True
        if self.scheduler.step > self.most_steps:
            raise Violation("a job is stuck")

    def _idle(self) -> bool:
        """Nobody can go on: time passes to where a job is due. False if there is none."""
        now = self.ambient.now()
        worked_on = {process.sim for process in self.processes if process.alive and process.kind == "worker"}
        times = [soonest for sim in worked_on if (soonest := sim.soonest(now)) is not None]
        if not times:
            return False
        self.scheduler.step += 1
        if self.scheduler.step > self.most_steps:
            raise Violation("a job is stuck")
        self.ambient.passes(min(times) - now + 0.01)
        return True

    # ---- telling -----------------------------------------------------------------------------------------------------

    def meet(self, situation: str) -> None:
        """Something happened that a history should meet now and then."""
        assert situation in SITUATIONS, situation
        self.met[situation] += 1

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


def prepare() -> None:
    """Makes the worlds that histories begin with: by the code as it is now."""
    for variant in range(VARIANTS):
        _prepared(variant)


@cache
def _prepared(variant: int) -> Prepared:
    return World(-1 - variant).prepare()


def _memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


class _Defects(logging.Handler):
    """What the jobs log as a defect is one: the run that it ended would be tried again and hide it."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        process = self._world.acting()
        replaced = process is not None and not process.belongs  # nothing is as it was under a catalog that was emptied
        if not replaced and not isinstance(error, (OperationalError, StoreError, Died)):
            self._world.broken(f"{record.getMessage()}: {type(error).__name__}: {error}")


def simulate(seed: int, given: Sequence[int] | None = None, flavour: Mapping[str, Any] | None = None) -> Outcome:
    """Runs one history. The same seed, or the same seed and tape, is the same history to the step.

    `flavour` gives values to what is drawn at the beginning otherwise: attributes of World, and of Swarm as "swarm.…".
    """
    world = World(seed, given, flavour)
    log, defects = logging.getLogger("strongroom"), _Defects(world)
    before = log.level, log.propagate
    log.setLevel(logging.ERROR)
    log.propagate = False
    log.addHandler(defects)
    try:
        return world.run()
    finally:
        log.removeHandler(defects)
        log.setLevel(before[0])
        log.propagate = before[1]


__all__ = ["Outcome", "Rows", "World", "prepare", "simulate"]
