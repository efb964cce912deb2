"""Threads, queues and pools for the shipped code under the scheduler, in the places of those that it imports.

The pipeline of repository/writer.py runs unchanged: its stages are tasks, every hand-over is a turn of the baton. What only
computes (compressing) or only fetches ahead runs at once in the task that asks for it.
"""

from __future__ import annotations

import queue as real_queue
import threading as real_threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from simulation.world.baton import Scheduler, Task
from strongroom.repository import reader, writer

_scheduler: Scheduler | None = None
_rings = 0


def _now() -> Scheduler:
    assert _scheduler is not None, "no history runs"
    return _scheduler


def _wait(ready: Callable[[], bool], timed: bool) -> bool:
    """Waits until `ready`; a wait with a time-out also ends when any event is set. Returns whether it is ready."""
    if ready():
        return True
    heard = _rings
    _now().wait(lambda: ready() or (timed and _rings != heard))
    return ready()


class Event:
    """`threading.Event` without waiting."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        global _rings
        self._set = True
        _rings += 1

    def is_set(self) -> bool:
        return self._set


class Semaphore:
    """`threading.Semaphore`."""

    def __init__(self, value: int) -> None:
        self._value = value

    def acquire(self, timeout: float | None = None) -> bool:
        if not _wait(lambda: self._value > 0, timeout is not None):
            return False
        self._value -= 1
        return True

    def release(self) -> None:
        self._value += 1


class Thread:
    """`threading.Thread` as a task of the process that starts it."""

    def __init__(self, *, target: Callable[[], None], name: str, daemon: bool = True) -> None:
        self._target, self._name = target, name
        self._task: Task | None = None

    def start(self) -> None:
        current = _now().current
        assert current is not None
        self._task = _now().spawn(current.owner, f"{current.name}, {self._name}", self._target)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done

    def join(self, timeout: float | None = None) -> None:
        _wait(lambda: not self.is_alive(), timeout is not None)


class Queue:
    """`queue.Queue`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[Any] = deque()

    def put(self, item: Any, timeout: float | None = None) -> None:
        if not _wait(lambda: len(self._items) < self._size, timeout is not None):
            raise real_queue.Full
        self._items.append(item)

    def get(self, timeout: float | None = None) -> Any:
        if not _wait(lambda: bool(self._items), timeout is not None):
            raise real_queue.Empty
        return self._items.popleft()

    def __class_getitem__(cls, _item: object) -> type[Queue]:
        return cls


class Pool:
    """`ThreadPoolExecutor`: putting runs in tasks, all else at once."""

    def __init__(self, _workers: int, prefix: str) -> None:
        self._at_once = prefix != "putting"
        self._tasks: list[Thread] = []

    def submit(self, run: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(run(*args))
            except Exception as error:  # the top of a thread: the caller gets it
                future.set_exception(error)

        if self._at_once:
            work()
        else:
            thread = Thread(target=work, name="putting")
            thread.start()
            self._tasks.append(thread)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for thread in self._tasks:
            thread.join()


class _Threading:
    Event, Semaphore, Thread = Event, Semaphore, Thread
    Lock, local = real_threading.Lock, real_threading.local


class _Queues:
    Queue, Full, Empty = Queue, real_queue.Full, real_queue.Empty


_PLACES: tuple[tuple[ModuleType, str, object], ...] = (
    (writer, "threading", _Threading),
    (writer, "queue", _Queues),
    (writer, "ThreadPoolExecutor", Pool),
    (reader, "ThreadPoolExecutor", Pool),
)


@contextmanager
def under(scheduler: Scheduler) -> Iterator[None]:
    """Within the block the writer's and the reader's threads are tasks of this scheduler."""
    global _scheduler
    before = [(module, name, getattr(module, name)) for module, name, _ in _PLACES], _scheduler
    _scheduler = scheduler
    for module, name, ours in _PLACES:
        setattr(module, name, ours)
    try:
        yield
    finally:
        theirs, _scheduler = before
        for module, name, own in theirs:
            setattr(module, name, own)
