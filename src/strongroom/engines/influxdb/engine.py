"""InfluxDB behind the engine port."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from strongroom.ambient import Ambient, Machine
from strongroom.engines.base import (
    CaptureControl,
    CaptureSink,
    Comparison,
    Control,
    Ground,
    Probe,
    RestoreSource,
    Summary,
    Target,
)
from strongroom.engines.influxdb import rehearsal
from strongroom.engines.influxdb.capture import capture
from strongroom.engines.influxdb.export import export
from strongroom.engines.influxdb.probe import probe
from strongroom.engines.influxdb.restore import recover, restore
from strongroom.engines.influxdb.survey import survey


class InfluxEngine:
    """A single InfluxDB 1.5 or later of 1.x, or one database of it, over its HTTP and its backup port. It keeps no state."""

    name = "influxdb"
    id_suffix = "12"
    versions = ("1.6",)

    def __init__(self, ambient: Ambient | None = None) -> None:
        self._ambient = ambient or Machine()

    def probe(self, target: Target) -> Probe:
        """See `Engine.probe`."""
        return probe(target)

    def capture(self, target: Target, sink: CaptureSink, control: CaptureControl, scratch: str) -> Summary:
        """Every shard exact at the moment it is read, one after the other; each TSM file is an entry. No scratch is needed."""
        del scratch
        return capture(target, sink, control, self._ambient)

    def survey(self, target: Target, facts: Mapping[str, Any], size: int) -> Ground:
        """See `Surveyor`. What other databases hold than those that would be replaced is no matter."""
        return survey(target, facts, size)

    def restore(self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str) -> Summary:
        """Replaces the databases that the target's address means, once the backup has been in the target under another name."""
        del scratch
        return restore(target, source, facts, control, self._ambient)

    def recover(self, target: Target) -> None:
        """Drops the databases that a dead restore has added and not finished, or has made to try its backup."""
        recover(target)

    def export(self, source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
        """Writes the files that `influxd restore -portable` loads."""
        return export(source, facts, folder, control)

    def sandbox(self, folder: Path, control: Control) -> AbstractContextManager[Target]:
        """See `Rehearser`."""
        return rehearsal.sandbox(folder, control, self._ambient)

    def compare(
        self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str
    ) -> Comparison:
        """See `Rehearser`. No scratch is needed."""
        del scratch
        return rehearsal.compare(target, source, facts, control, self._ambient)
