"""Telling the running job how far we are, often enough and not for every record."""

from __future__ import annotations

from strongroom.engines.base import Control

STEP = 1 << 20  # bytes between two looks at the job: well under a second even for the slowest of our loops


class Pace:
    """Counts one phase's bytes; looks at the job and tells it at every step. What `Control.check` raises passes through."""

    def __init__(self, control: Control, phase: str, total: int | None = None) -> None:
        self._control = control
        self._phase = phase
        self._total = total
        self._told = 0
        self.done = 0
        self.beat()

    def beat(self) -> None:
        """Looks at the job now: for loops that wait, or that work without bytes to count."""
        self._control.check()

    def advance_to(self, done: int) -> None:
        """Says that `done` bytes of this phase are through."""
        self.done = done
        if done - self._told >= STEP:
            self._tell()

    def advance(self, more: int) -> None:
        """Says that `more` bytes are through."""
        self.advance_to(self.done + more)

    def expect(self, total: int) -> None:
        """Sets the total once it is known."""
        self._total = total

    def finish(self) -> None:
        """Ends the phase."""
        self._tell()

    def _tell(self) -> None:
        self._told = self.done
        self._control.check()
        self._control.progress(self._phase, self.done, self._total)
