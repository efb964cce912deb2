"""What goes wrong, and when: a seeded choice, told as it is made. Faults of different things overlap, those of one do not."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder

from torture.kit.story import Story


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which one thing can fail, for a random time."""

    kind: str  # counted under this name
    subject: str
    weight: float
    seconds: tuple[float, float]
    begin: Callable[[random.Random], object]  # False: not possible just now
    end: Callable[[], object]
    total: str | None = None  # the line of the table that sums such faults up


class Director:
    """Begins and ends faults at random instants, from one thread, until it is told to heal everything."""

    def __init__(self, faults: Sequence[Fault], seed: str, pace: float, story: Story) -> None:
        """`pace`: seconds between two beginnings, on average."""
        self._faults, self._pace, self._story = faults, pace, story
        self._random = random.Random(seed)
        self._active: list[tuple[float, Fault]] = []
        self._ending = threading.Event()

    def run(self, seconds: float) -> None:
        """Lets things fail for so long; what has not ended then goes on until `heal`."""
        now = time.monotonic()
        until, due = now + seconds, now
        while (now := time.monotonic()) < until and not self._ending.is_set():
            self._end_those_due(now)
            if now >= due:
                self._begin_one(now)
                due = now + self._random.expovariate(1 / self._pace)
            self._ending.wait(min(0.05, max(0.0, due - now)))

    def heal(self) -> None:
        """Ends every fault."""
        for _, fault in self._active:
            self._end(fault)
        self._active.clear()

    def close(self) -> None:
        """Ends `run`."""
        self._ending.set()

    def _begin_one(self, now: float) -> None:
        taken = {fault.subject for _, fault in self._active}
        (fault,) = self._random.choices(self._faults, [fault.weight for fault in self._faults])
        lasts = self._random.uniform(*fault.seconds)
        if fault.subject in taken:
            return
        self._story.tell("fault", f"{fault.kind}: {fault.subject}, for {lasts:.2f} s")
        if fault.begin(self._random) is False:
            self._story.tell("fault", f"{fault.kind}: {fault.subject} is not possible just now")
            return
        self._story.count(fault.kind, total=fault.total)
        self._active.append((now + lasts, fault))

    def _end_those_due(self, now: float) -> None:
        for due, fault in [one for one in self._active if one[0] <= now]:
            self._active.remove((due, fault))
            self._end(fault)

    def _end(self, fault: Fault) -> None:
        fault.end()
        self._story.tell("fault", f"{fault.kind}: {fault.subject} is over")


def family(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in Folder("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += children.get(one, [])


def send(pid: int | None, number: signal.Signals) -> bool:
    """A signal to a process of ours and its descendants; False if it does not run."""
    if pid is None:
        return False
    for one in family(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, number)
    return True


def pausing(name: str, pid: Callable[[], int | None], weight: float, seconds: tuple[float, float], kind: str) -> Fault:
    """SIGSTOP, and SIGCONT later, to whichever process runs then."""
    return Fault(
        kind, name, weight, seconds, lambda _: send(pid(), signal.SIGSTOP), lambda: send(pid(), signal.SIGCONT), "stops"
    )  # fmt: skip
