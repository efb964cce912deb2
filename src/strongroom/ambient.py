"""Time, ids and randomness, passed in: production uses the machine's, the simulation its own seeded ones."""

from __future__ import annotations

import os
import secrets
import time
import uuid
from typing import Protocol


class Ambient(Protocol):
    """What code may not take from the machine by itself."""

    def now(self) -> float:
        """Seconds since the epoch, UTC. For policy and for people; nothing is safe because of it (law 2)."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""

    def sleep(self, seconds: float) -> None:
        """Waits."""

    def hex_id(self) -> str:
        """A fresh random id: 32 lower-case hex digits."""

    def uuid(self) -> str:
        """A fresh random UUID with dashes (the form of job ids)."""

    def key(self) -> bytes:
        """32 bytes from the machine's secure source."""


class Machine:
    """The real thing."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def hex_id(self) -> str:
        return secrets.token_hex(16)

    def uuid(self) -> str:
        return str(uuid.uuid4())

    def key(self) -> bytes:
        return os.urandom(32)
