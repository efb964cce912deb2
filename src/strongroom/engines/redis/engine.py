"""Redis behind the engine port."""

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
from strongroom.engines.log import Log, LogSink, Mark
from strongroom.engines.redis import marks, rehearsal
from strongroom.engines.redis.capture import capture
from strongroom.engines.redis.cluster_capture import capture_cluster
from strongroom.engines.redis.export import export
from strongroom.engines.redis.importing import import_files
from strongroom.engines.redis.probe import probe
from strongroom.engines.redis.recording import mark_of, record
from strongroom.engines.redis.replay import restore_to
from strongroom.engines.redis.restore import restore
from strongroom.engines.redis.survey import survey
from strongroom.engines.redis.topology import is_cluster


class RedisEngine:
    """A Redis or Valkey server or cluster, reached over the network alone. Safe for several threads: it keeps no state."""

    name = "redis"
    id_suffix = "14"
    versions = ("6.2", "7.0")

    def __init__(self, ambient: Ambient | None = None) -> None:
        self._ambient = ambient or Machine()

    def probe(self, target: Target) -> Probe:
        """Version, size and whether the user may take a backup. Changes nothing."""
        return probe(target, self._ambient)

    def capture(self, target: Target, sink: CaptureSink, control: CaptureControl, scratch: str) -> Summary:
        """One entry, `rdb`: a dump of all databases at one moment, in an order that depends on the data alone. Of a cluster one
        such entry for each shard, `rdb/<first slot>`, each at a moment of its own."""
        if is_cluster(target, self._ambient):
            return capture_cluster(target, sink, control, scratch, self._ambient)
        return capture(target, sink, control, scratch, self._ambient)

    def survey(self, target: Target, facts: Mapping[str, Any], size: int) -> Ground:
        """A master of a version that reads the dump, with the memory for it; keys and function libraries are data."""
        del size  # the dump is compressed: what it took in memory is among its facts
        return survey(target, facts, self._ambient)

    def restore(self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str) -> Summary:
        """Replaces everything the target holds. A single server that cannot be brought to the new data keeps its old; a cluster
        is emptied first."""
        return restore(target, source, facts, control, scratch, self._ambient)

    def import_files(self, target: Target, files: Mapping[str, str], control: Control, scratch: str) -> Summary:
        """RDB files instead of a backup; see Importer."""
        return import_files(target, files, control, scratch, self._ambient)

    def export(self, source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
        """One file, `dump.rdb`: what a server of the backup's version or a newer one starts from."""
        return export(source, facts, folder, control)

    def recover(self, target: Target) -> None:
        """Makes a target that a dead restore left as a replica a master again, with its own settings."""
        if not is_cluster(target, self._ambient):
            marks.release(target, self._ambient)

    def mark_of(self, facts: Mapping[str, Any]) -> Mark | None:
        """See Recorder: history, offset and time of a dump of a single server; None for a cluster."""
        return mark_of(facts)

    def record(self, target: Target, since: Mark | None, sink: LogSink, control: Control, until: float, scratch: str) -> None:
        """See Recorder: what the server sends its replicas, byte for byte."""
        record(target, since, sink, control, until, scratch, self._ambient)

    def restore_to(
        self, target: Target, source: RestoreSource, facts: Mapping[str, Any], log: Log, control: Control, scratch: str
    ) -> Summary:
        """See Recorder: as `restore` into a single server, which is then sent the log. If that breaks in between, the target
        holds the backup's data and a part of what followed."""
        return restore_to(target, source, facts, log, control, scratch, self._ambient)

    def sandbox(self, folder: Path, control: Control) -> AbstractContextManager[Target]:
        """See Rehearser: `redis-server` on PATH, or in STRONGROOM_REDIS_SERVER."""
        return rehearsal.sandbox(folder, control, self._ambient)

    def compare(
        self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str
    ) -> Comparison:
        """See Rehearser: keys by database, and the bytes of every record."""
        return rehearsal.compare(target, source, facts, control, scratch, self._ambient)
