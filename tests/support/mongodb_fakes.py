"""An in-memory sink and source, and a control that may cancel, for the MongoDB engine's tests."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from strongroom.engines.base import CaptureSink, Entry, Summary, Target
from strongroom.engines.mongodb import MongoEngine


class Cancelled(Exception):
    """The job was cancelled."""


@dataclass
class QuietControl:
    """Counts the checks; calls `on_check` at each."""

    on_check: Callable[[int], None] | None = None
    checks: int = 0
    phases: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        self.checks += 1
        if self.on_check is not None:
            self.on_check(self.checks)

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        assert total is None or done <= total
        self.phases[phase] = done

    def took(self, size: int) -> None:
        """No limits here."""


def once(action: Callable[[], object]) -> Callable[[], None]:
    """Calls the action the first time only."""
    done: list[int] = []

    def run() -> None:
        if not done:
            done.append(1)
            action()

    return run


class _Writer:
    def __init__(self, kept: Kept) -> None:
        self.data = bytearray()
        self.facts: Mapping[str, Any] | None = None
        self._kept = kept

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data
        if self._kept.on_write is not None:
            self._kept.on_write()

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        self.facts = dict(facts or {})


class Kept:
    """A backup in memory: sink while it is captured, source while it is restored."""

    def __init__(self, on_write: Callable[[], object] | None = None) -> None:
        self.blobs: dict[str, bytes] = {}
        self.facts: dict[str, Mapping[str, Any]] = {}
        self.summary = Summary(0, 0)
        self.on_write = on_write

    @contextlib.contextmanager
    def entry(self, name: str) -> Iterator[_Writer]:
        assert name not in self.blobs, "names of entries are unique"
        writer = _Writer(self)
        yield writer
        assert writer.facts is not None, f"{name} was not finished"
        self.blobs[name] = bytes(writer.data)
        self.facts[name] = writer.facts

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for name, blob in self.blobs.items():
            if name.startswith(prefix):
                yield Entry(name, len(blob), self.facts[name])

    def read(self, name: str) -> Iterator[bytes]:
        blob = self.blobs[name]
        return (blob[start : start + 1_000_003] for start in range(0, len(blob), 1_000_003))


def captured(target: Target, control: QuietControl | None = None, on_write: Callable[[], object] | None = None) -> Kept:
    """A capture of the target."""
    kept = Kept(on_write)
    kept.summary = captured_into(kept, target, control)
    return kept


def captured_into(sink: CaptureSink, target: Target, control: QuietControl | None = None) -> Summary:
    """A capture of the target into a sink of one's own."""
    with tempfile.TemporaryDirectory() as scratch:
        return MongoEngine().capture(target, sink, control or QuietControl(), scratch)


def restored(target: Target, kept: Kept, control: QuietControl | None = None) -> Summary:
    """The backup restored into the target."""
    with tempfile.TemporaryDirectory() as scratch:
        return MongoEngine().restore(target, kept, kept.summary.facts, control or QuietControl(), scratch)
