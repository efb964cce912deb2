"""A store that fails on command: what the simulation puts between the code under test and a MemoryStore.

Every call is one effect. The plan is asked before it and after it, and what it answers happens:

    before  None               the effect is performed
            Fail(error)        it is not performed, the error is raised
            Delay(error)       a put only: it is under way but has not landed, the error (a time-out) is raised
            Partly(n, error)   a bulk delete only: the first n names go, then the error is raised
            Empty()            a listing only: it answers nothing
            Stale(n)           a listing only: it answers as if the last n changes had not happened yet
    after   None               the caller gets its answer
            Fail(error)        the effect happened, its reply is lost

An error may be anything, and so may what the plan itself raises: so a simulated process dies between any two effects, or
with a put under way. The plan may also block or switch to another simulated process. Nothing here is random or takes
time: the same plan, the same run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from strongroom.storage._bytes import pieces_of
from strongroom.storage.base import ObjectExists, Stat, Store, StoreError, StoreUnavailable, check_name

Kind: TypeAlias = Literal["put_new", "get", "delete", "delete_many", "stat", "list"]


@dataclass(frozen=True, slots=True)
class Effect:
    """One call at the boundary of the store."""

    phase: Literal["before", "after"]
    kind: Kind
    names: tuple[str, ...]  # of a listing: its prefix
    number: int  # of the call: 0, 1, 2, … of this FaultyStore, the same before and after


def _timed_out() -> StoreError:
    return StoreUnavailable("the store did not answer in time")


@dataclass(frozen=True, slots=True)
class Fail:
    """Before: nothing happens, the error is raised. After: it happened, the error is raised in place of the reply."""

    error: BaseException = field(default_factory=_timed_out)


@dataclass(frozen=True, slots=True)
class Delay:
    """The put does not land now; `deliver_late` may let it land at any time."""

    error: BaseException = field(default_factory=_timed_out)


@dataclass(frozen=True, slots=True)
class Partly:
    """The first `count` names of a bulk delete go, then the error is raised."""

    count: int
    error: BaseException = field(default_factory=_timed_out)


@dataclass(frozen=True, slots=True)
class Empty:
    """The listing answers that there is nothing."""


@dataclass(frozen=True, slots=True)
class Stale:
    """The listing answers from before the last `changes` puts and removals that this FaultyStore carried."""

    changes: int


Fault: TypeAlias = Fail | Delay | Partly | Empty | Stale
Plan: TypeAlias = Callable[[Effect], Fault | None]


class FaultyStore:
    """`inner`, with the faults of `plan` (a function, or an object that can be called).

    Several of them may share one inner store, one for each simulated process.
    """

    def __init__(self, inner: Store, plan: Plan) -> None:
        self._inner = inner
        self._plan = plan
        self._lock = threading.Lock()
        self._calls = 0
        self._sent: list[tuple[str, bytes]] = []
        self._changes: list[tuple[str, Stat | None]] = []  # the name, and what was there before the change

    @property
    def sent(self) -> Sequence[str]:
        """The names of all puts that went out, in order, landed or not: what `deliver_late` can deliver again."""
        with self._lock:
            return [name for name, _ in self._sent]

    def deliver_late(self, number: int = -1) -> bool:
        """Lets the put `sent[number]` land (again), behind the plan's back; True if that made an object.

        A put that the network kept may land long after its writer gave up, and more than once.
        """
        with self._lock:
            name, content = self._sent[number]
        return self._land(name, content)

    def put_new(self, name: str, data: bytes | memoryview | Sequence[bytes | memoryview]) -> int:
        check_name(name)
        content = data if isinstance(data, bytes) else b"".join(pieces_of(data))
        effect, fault = self._before("put_new", (name,), Delay)
        with self._lock:
            self._sent.append((name, content))
        if isinstance(fault, Delay):
            raise fault.error
        created = self._land(name, content)
        self._after(effect)
        if not created:
            raise ObjectExists(f"{name} is there already")
        return len(content)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        effect, _ = self._before("get", (name,))
        content = self._inner.get(name, start, length)
        self._after(effect)
        return content

    def delete(self, name: str) -> None:
        effect, _ = self._before("delete", (name,))
        self._remove([name])
        self._after(effect)

    def delete_many(self, names: Sequence[str]) -> None:
        effect, fault = self._before("delete_many", tuple(names), Partly)
        if isinstance(fault, Partly):
            self._remove(names[: fault.count])
            raise fault.error
        self._remove(names)
        self._after(effect)

    def stat(self, name: str) -> Stat | None:
        effect, _ = self._before("stat", (name,))
        found = self._inner.stat(name)
        self._after(effect)
        return found

    def list(self, prefix: str) -> Iterator[Stat]:
        """As the port says, in the order of names; the whole listing is one effect."""
        effect, fault = self._before("list", (prefix,), Empty, Stale)
        found = {} if isinstance(fault, Empty) else {stat.name: stat for stat in self._inner.list(prefix)}
        if isinstance(fault, Stale):
            self._rewind(found, prefix, fault.changes)
        self._after(effect)
        return iter([found[name] for name in sorted(found)])

    def keeps_deleted_bytes(self) -> str | None:
        return self._inner.keeps_deleted_bytes()

    def close(self) -> None:
        self._inner.close()

    def _before(self, kind: Kind, names: tuple[str, ...], *fitting: type[Fault]) -> tuple[Effect, Fault | None]:
        with self._lock:
            effect = Effect("before", kind, names, self._calls)
            self._calls += 1
        fault = self._plan(effect)
        if isinstance(fault, Fail):
            raise fault.error
        if fault is not None and not isinstance(fault, fitting):
            raise TypeError(f"the plan answers {fault} to {effect}")
        return effect, fault

    def _after(self, effect: Effect) -> None:
        done = replace(effect, phase="after")
        fault = self._plan(done)
        if isinstance(fault, Fail):
            raise fault.error
        if fault is not None:
            raise TypeError(f"the plan answers {fault} to {done}")

    def _land(self, name: str, content: bytes) -> bool:
        with self._lock:
            try:
                self._inner.put_new(name, content)
            except ObjectExists:
                return False
            self._changes.append((name, None))
            return True

    def _remove(self, names: Sequence[str]) -> None:
        with self._lock:
            before = [(name, stat) for name in names if (stat := self._inner.stat(name)) is not None]
            self._inner.delete_many(names)
            self._changes.extend(before)

    def _rewind(self, found: dict[str, Stat], prefix: str, changes: int) -> None:
        with self._lock:
            undone = self._changes[max(len(self._changes) - changes, 0) :]
        for name, before in reversed(undone):
            if before is None:
                found.pop(name, None)
            elif name.startswith(prefix):
                found[name] = before
