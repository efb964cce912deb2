"""What goes wrong, and when: drawn from the tape at each boundary of a history.

How often each kind happens is drawn for each history, often not at all, since trouble of one kind hides trouble of another.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import OperationalError

from simulation.world.baton import Died
from simulation.world.processes import TTL, Process
from simulation.world.tape import Tape
from strongroom.storage.base import StoreDenied, StoreFull
from strongroom.storage.faults import Delay, Effect, Empty, Fail, Fault, Partly, Stale

if TYPE_CHECKING:
    from simulation.world.history import World

DUMPS = 0.004
"""How often somebody dumps the catalog."""
PATIENCE = 30
"""Puts that a full store refuses before somebody makes room."""
_SPEED = (0.0, 0.003, 0.01, 0.03)
_WEIGHTS = {
    "death": 0.5, "pause": 0.7, "refusal": 1.0, "lost_reply": 1.0, "catalog": 0.5, "commit": 0.5, "engine": 1.0, "late": 0.6,
    "jump": 0.2, "rot": 0.25, "denied": 0.1,
}  # fmt: skip


@dataclass(slots=True)
class Swarm:
    """How often what goes wrong, per boundary at which it could; `room`: bytes above which the store takes nothing."""

    death: float = 0.0
    pause: float = 0.0
    refusal: float = 0.0
    lost_reply: float = 0.0
    catalog: float = 0.0
    commit: float = 0.0
    engine: float = 0.0
    late: float = 0.0
    jump: float = 0.0
    rot: float = 0.0
    denied: float = 0.0
    room: int | None = None

    @classmethod
    def drawn(cls, tape: Tape) -> Swarm:
        """Many histories without some of it."""
        swarm = cls()
        for name, weight in _WEIGHTS.items():
            setattr(swarm, name, _SPEED[tape.draw(4)] * weight)
        if tape.draw(8) == 7:
            swarm.room = tape.draw(20_000)  # above what there is at first
        return swarm


class Trouble:
    """Stands between the processes of a history and what they call: the store, the catalog, the engine."""

    def __init__(self, world: World, swarm: Swarm, room: int | None) -> None:
        self._world, self.swarm = world, swarm
        self._tape, self._scheduler = world.tape, world.scheduler
        self._room = room  # bytes that the store may hold
        self._refused = 0

    def _acting(self) -> Process | None:
        """The process whose task runs; None while checks run, or nobody does. Raises Died once the history is over."""
        scheduler = self._scheduler
        if scheduler.over:
            raise Died
        if scheduler.watching or scheduler.current is None:
            return None
        process = scheduler.current.owner
        assert isinstance(process, Process)
        return process

    def _calm(self, process: Process) -> bool:
        return self._tape.calm or process.spared

    # ---- boundaries --------------------------------------------------------------------------------------------------

    def between(self, process: Process) -> None:
        """Others may come first; then the process may die or sleep."""
        self._scheduler.boundary()
        if self._calm(process):
            return
        swarm = self.swarm
        if not self._tape.rarely(swarm.death + swarm.pause + swarm.late + swarm.jump + swarm.rot + DUMPS):
            return
        what = self._tape.weighted((1e-9, swarm.death, swarm.pause, swarm.late, swarm.jump, swarm.rot, DUMPS))
        if what == 1:
            self._die(process)
        elif what == 2:
            self._sleep(process)
        elif what == 3:
            self._deliver_late()
        elif what == 4:
            self._jump()
        elif what == 5:
            self._world.rot()
        elif what == 6:
            self._world.take_dump()

    def _jump(self) -> None:
        seconds = (-1000.0, 1000.0)[self._tape.draw(2)]
        self._world.meet("the clock jumps forward" if seconds > 0 else "the clock jumps back")
        self._world.tell(None, f"the clock jumps by {seconds:.0f} seconds")
        self._world.ambient.jump(seconds)

    def _die(self, process: Process) -> None:
        self._world.meet("a death")
        self._world.tell(process, "dies")
        process.alive = False
        self._world.replace(process)
        self._scheduler.wait(lambda: False)

    def _sleep(self, process: Process) -> None:
        steps = (20, 60, 150)[self._tape.draw(3)]
        self._world.meet("a pause")
        self._world.tell(process, f"is paused for {steps} steps; its leases run out")
        process.paused_until = self._scheduler.step + steps
        self._world.ambient.passes(TTL + 1)
        self._scheduler.wait(lambda: True)

    def _deliver_late(self) -> None:
        sent = [
            (process, number)
            for process in self._world.processes
            for number, name in enumerate(process.store.sent)
            if self._world.late_of in name
        ]
        if not sent:
            return
        process, number = sent[len(sent) - 1 - self._tape.draw(len(sent))]
        self._world.truth.sender = process
        try:
            landed = process.store.deliver_late(number)
        finally:
            self._world.truth.sender = None
        if landed:
            self._world.lands_late(process, process.store.sent[number])

    # ---- the store ---------------------------------------------------------------------------------------------------

    def plan(self, process: Process, effect: Effect) -> Fault | None:
        """What the store does to a call; see strongroom.storage.faults."""
        if self._acting() is None:
            return None
        if effect.phase == "after":
            return self._after(process, effect)
        self.between(process)
        self._world.tell(process, self._told(effect))
        if self._calm(process):
            return None
        if effect.kind == "put_new" and self._room is not None and self._world.truth.store.size() >= self._room:
            self._world.meet("a store that stays full")
            self._world.truth.store_was_full = True
            self._refused += 1
            if self._refused > PATIENCE:
                self._world.tell(None, "somebody makes room in the store")
                self._room = None
            self._world.tell(process, "put_new: the store is full")
            return Fail(StoreFull("the store has no room left"))
        if self._tape.rarely(self.swarm.denied):
            return self._fault(process, effect, [Fail(StoreDenied("access denied"))])
        if self._tape.rarely(self.swarm.refusal):
            return self._fault(process, effect, self._faults(process, effect))
        return None

    def _after(self, process: Process, effect: Effect) -> Fault | None:
        if not self._calm(process) and self._tape.rarely(self.swarm.lost_reply):
            self._world.meet("a reply lost")
            self._world.tell(process, f"{effect.kind}: the reply is lost")
            return Fail()
        if effect.kind == "put_new":
            self._world.answered.add(effect.names[0])
        return None

    def _faults(self, process: Process, effect: Effect) -> list[Fault]:
        faults: list[Fault] = [Fail()]
        if effect.kind == "put_new":
            faults += [Delay(), Fail(StoreFull("the store has no room left"))]
        elif effect.kind == "list" and not self._world.truth.older and process.kind != "operator":
            faults += [Empty(), Stale(1 + self._tape.draw(8))]  # an older catalog is known by listings, a rebuild rests on them
        elif effect.kind == "delete_many":
            faults += [Partly(self._tape.draw(len(effect.names) + 1))]
        return faults

    def _fault(self, process: Process, effect: Effect, faults: list[Fault]) -> Fault:
        fault = faults[self._tape.draw(len(faults))]
        error = getattr(fault, "error", None)
        met = {
            Fail: "a call refused", Delay: "a put that does not land", Empty: "an empty listing", Stale: "a stale listing",
            Partly: "half of a bulk removal",
        }[type(fault)]  # fmt: skip
        if isinstance(error, StoreFull):
            met = "a put refused for want of room"
            self._world.truth.store_was_full = True
        elif isinstance(error, StoreDenied):
            met = "access denied"
        self._world.meet(met)
        self._world.tell(process, f"{effect.kind} goes wrong: {met}")
        return fault

    def _told(self, effect: Effect) -> str:
        named = [self._world.pretty(name) for name in effect.names[:4]]
        return f"{effect.kind} {', '.join(named)}{' …' if len(effect.names) > 4 else ''}"

    # ---- the catalog -------------------------------------------------------------------------------------------------

    def begins(self, reads: bool) -> None:
        """Before a transaction."""
        process = self._acting()
        if process is None:
            return
        self.between(process)
        if not self._calm(process) and self._tape.rarely(self.swarm.catalog):
            self._world.meet("no room for a transaction to begin")
            self._world.tell(process, "the catalog's disk is full")
            raise _disk_full("BEGIN")
        if not reads:
            self._world.tell(process, "decides")

    def committing(self) -> None:
        """Before its commit: all that it did may be undone."""
        process = self._acting()
        if process is not None and not self._calm(process) and self._tape.rarely(self.swarm.commit):
            self._world.meet("no room for a transaction to commit")
            self._world.tell(process, "the catalog's disk is full at the commit")
            raise _disk_full("COMMIT")

    def committed(self) -> None:
        """After its commit: the answer may be lost."""
        process = self._acting()
        if process is not None and not self._calm(process) and self._tape.rarely(self.swarm.commit):
            self._world.meet("a commit's reply lost")
            self._world.tell(process, "the commit's answer is lost")
            raise OperationalError("COMMIT", None, ConnectionError("the connection was lost"), connection_invalidated=True)

    # ---- the engine --------------------------------------------------------------------------------------------------

    def engine(self, what: str) -> str | None:
        """Where an engine reads or writes; what it answers is how the engine breaks."""
        process = self._acting()
        if process is None:
            return None
        self.between(process)
        self._world.tell(process, what)
        if self._calm(process):
            return None
        if self._tape.rarely(self.swarm.rot):
            self._world.rot()
        if self._tape.rarely(self.swarm.engine):
            self._world.meet("the engine breaks")
            return "the engine went away"
        return None


def _disk_full(statement: str) -> OperationalError:
    error: Any = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorname = "SQLITE_FULL"
    return OperationalError(statement, None, error)
