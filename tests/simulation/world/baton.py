"""Who may run: tasks hand one baton on, so that exactly one of them runs, and the tape says who is next.

A task is a thread of one process. It gives the baton away at every boundary (`Scheduler.boundary`) and where it waits. A process
that dies is never resumed: nothing of it runs any more, no handler, no `finally`; what is left of its threads is unwound when the
history is over and can touch nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from simulation.world.tape import Tape


class Died(BaseException):
    """The process is gone: raised only when its remains are unwound."""


class Violation(Exception):
    """A promise was broken."""


class Owner(Protocol):
    """The process that a task belongs to."""

    name: str
    alive: bool
    paused_until: int


class Task:
    """One thread of a process."""

    def __init__(self, scheduler: Scheduler, owner: Owner, name: str, run: Callable[[], None]) -> None:
        self.owner, self.name, self.done = owner, name, False
        self.until: Callable[[], bool] | None = None
        self._scheduler, self._run = scheduler, run
        self._gate = threading.Lock()
        self._gate.acquire()
        self._thread: threading.Thread | None = None

    def ready(self) -> bool:
        """Whether it could go on now."""
        if self.done or not self.owner.alive:
            return False
        return self.until is None or self.until()

    def resume(self) -> None:
        """Gives it the baton; the caller must wait for its own next."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name=self.name, daemon=True)
            self._thread.start()
        self._gate.release()

    def wait_for_turn(self) -> None:
        """Blocks until the baton comes back. Raises Died when the history is over."""
        self._gate.acquire()
        if self._scheduler.over:
            raise Died

    def unwind(self) -> None:
        """Ends what is left of its thread, after the history."""
        if self._thread is not None and self._thread.is_alive():
            self._gate.release()
            self._thread.join(20)
            if self._thread.is_alive():
                raise RuntimeError(f"{self.name} does not end")

    def _main(self) -> None:
        try:
            self._gate.acquire()
            if not self._scheduler.over:
                self._run()
        except Died:
            pass
        except BaseException as error:  # the top of a thread: whatever it is, the history has failed
            self._scheduler.fail(error)
        self.done = True
        if not self._scheduler.over:
            self._scheduler.leave()


class Scheduler:
    """Hands the baton on by the tape. `step` counts boundaries; `on_step` is called at each, before anybody is chosen."""

    def __init__(self, tape: Tape, on_step: Callable[[], None], when_idle: Callable[[], bool]) -> None:
        self.tape, self.step, self.over = tape, 0, False
        self.stay = 0.62  # how often the task that runs goes on when others could
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.failure: BaseException | None = None
        self.watching = False  # checks run: what they do is no boundary
        self._on_step, self._when_idle = on_step, when_idle
        self._until: int | None = None
        self._main = threading.Lock()
        self._main.acquire()

    def spawn(self, owner: Owner, name: str, run: Callable[[], None]) -> Task:
        """A new task; it runs when it is chosen."""
        task = Task(self, owner, name, run)
        self.tasks.append(task)
        return task

    def run(self, until: int | None = None) -> None:
        """Runs tasks until nobody can go on and `when_idle` has nothing to wait for, or up to a step. Raises what failed."""
        self._until = until
        self._hand_on(None)
        self._main.acquire()
        self.current = None
        if self.failure is not None:
            raise self.failure

    def unwind(self) -> None:
        """Ends all threads of the history."""
        self.over = True
        for task in self.tasks:
            task.unwind()

    def fail(self, error: BaseException) -> None:
        """The history has failed; the first error counts."""
        if self.failure is None and not self.over:
            self.failure = error

    def boundary(self) -> None:
        """Between two effects of the current task: time passes, others may come first. Raises Died when the history is over."""
        if self.over:
            raise Died
        if self.watching or self.current is None:
            return
        me = self.current
        self.step += 1
        try:
            self._on_step()
        except Violation as error:
            self.fail(error)
        self._pass_on(me)

    def wait(self, until: Callable[[], bool]) -> None:
        """The current task cannot go on before `until`."""
        if self.over:
            raise Died
        me = self.current
        assert me is not None, "only a task can wait"
        me.until = until
        self._pass_on(me)
        me.until = None

    def leave(self) -> None:
        """The current task has ended."""
        self._hand_on(self.current)

    def _pass_on(self, me: Task) -> None:
        chosen = self._choose(me)
        if chosen is me:
            return
        self._give(chosen)
        me.wait_for_turn()

    def _hand_on(self, me: Task | None) -> None:
        self._give(self._choose(me))

    def _give(self, chosen: Task | None) -> None:
        self.current = chosen
        if chosen is None:
            self._main.release()
        else:
            chosen.resume()

    def _choose(self, me: Task | None) -> Task | None:
        """Who is next; None: the main thread, since nobody can go on or something failed."""
        while self.failure is None and (self._until is None or self.step < self._until):
            ready = [task for task in self.tasks if task.ready()]
            awake = [task for task in ready if task.owner.paused_until <= self.step]
            if not awake and ready:  # everybody sleeps: the first to wake up wakes up
                first = min(ready, key=lambda task: task.owner.paused_until)
                first.owner.paused_until = 0
                awake = [first]
            if not awake:
                try:
                    if not self._when_idle():
                        return None
                except Violation as error:
                    self.fail(error)
                continue
            if me in awake:
                if len(awake) == 1 or not self.tape.rarely(1 - self.stay):
                    return me
                awake.remove(me)
            return awake[self.tape.draw(len(awake))] if len(awake) > 1 else awake[0]
        return None
