"""Redis behind the engine port."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom.ambient import Ambient, Machine
from strongroom.engines.base import CaptureSink, Control, Probe, RestoreSource, Summary, Target
from strongroom.engines.redis import marks
from strongroom.engines.redis.capture import capture
from strongroom.engines.redis.probe import probe
from strongroom.engines.redis.restore import restore


class RedisEngine:
    """A single Redis server, 6.2 or newer, reached over the network alone. Safe for several threads: it keeps no state."""

    name = "redis"
    id_suffix = "14"
    versions = ("6.2", "7.0")

    def __init__(self, ambient: Ambient | None = None) -> None:
        self._ambient = ambient or Machine()

    def probe(self, target: Target) -> Probe:
        """Version, size and whether the user may take a backup. Changes nothing."""
        return probe(target, self._ambient)

    def capture(self, target: Target, sink: CaptureSink, control: Control, scratch: str) -> Summary:
        """One entry, `rdb`: a dump of all databases at one moment, in an order that depends on the data alone."""
        return capture(target, sink, control, scratch, self._ambient)

    def restore(self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str) -> Summary:
        """Replaces everything the target holds; a target that cannot be brought to the new data keeps its old."""
        return restore(target, source, facts, control, scratch, self._ambient)

    def recover(self, target: Target) -> None:
        """Makes a target that a dead restore left as a replica a master again, with its own settings."""
        marks.release(target, self._ambient)
