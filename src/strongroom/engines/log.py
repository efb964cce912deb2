"""The engine port for points in time: an engine's log of changes, recorded between backups and replayed after one.

A log is a row of bytes that only the engine's adapter understands. A *mark* is a place in it at which it may end: up to there it
leads from what a backup holds to what the source held at the mark's time. Marks of one stream are ordered by `order` alone, which
grows with what was written; whether two streams are one history, only the adapter knows (a Redis that was failed over goes on
under another name).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from strongroom.engines.base import Control, EngineError, RestoreSource, Summary, Target


class LogGap(EngineError):
    """The source no longer has what followed the mark, or another history: recording can only begin anew, with a new backup."""

    permanent = True


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a source's log."""

    stream: str  # the source's own name for its history
    order: int  # 0 … 2^63-1; what was written later has a greater one
    at: float  # seconds since the epoch: when the source held what the log up to here leads to


class LogSink(Protocol):
    """Where a recording goes. Calls block while what is full is put into the store: back-pressure."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes of the log; the buffer may be reused after the call."""

    def mark(self, mark: Mark) -> None:
        """All that was written so far is the log up to here. Only what is marked is ever kept; a recording that says so about
        once a second, and at its end, loses little. Marks that differ in their time alone tell that nothing was written."""


class Log(Protocol):
    """What a restore to a point in time replays after the backup. Every byte is verified before it is handed out."""

    begin: Mark  # where its bytes begin: at `since`, or before it
    since: Mark  # what the backup holds; what the log says of before is to be passed over
    until: Mark  # where it ends

    def read(self) -> Iterator[bytes]:
        """The bytes in pieces of up to some MiB, from `begin` to `until`. May be called more than once."""


@runtime_checkable
class Recorder(Protocol):
    """An engine whose changes can be recorded between backups."""

    def mark_of(self, facts: Mapping[str, Any]) -> Mark | None:
        """Where in the log a capture with these facts stands; None where its log cannot be recorded (a cluster)."""

    def record(self, target: Target, since: Mark | None, sink: LogSink, control: Control, until: float, scratch: str) -> None:
        """Writes the log from just after `since` on, and returns at `until` (seconds since the epoch) after a last mark. None:
        from where the source is now, which its first mark says, before it writes anything.

        What control.check() raises goes through at once: the caller keeps what was marked before. `scratch` is an empty private
        folder for spills: the source is never made to wait for the sink. Raises LogGap, EngineError.
        """

    def restore_to(
        self, target: Target, source: RestoreSource, facts: Mapping[str, Any], log: Log, control: Control, scratch: str
    ) -> Summary:
        """`Engine.restore`, and then the log: the target ends with what the source held at `log.until.at`, or as it would
        after a restore that failed at the same point. The log, too, is read once as a whole before the point of no return."""
