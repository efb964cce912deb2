"""MongoDB replica sets behind the engine port."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from strongroom.ambient import Ambient, Machine
from strongroom.engines.base import CaptureSink, Comparison, Control, Ground, Probe, RestoreSource, Summary, Target
from strongroom.engines.log import Log, LogSink, Mark
from strongroom.engines.mongodb import capture, export, recording, rehearsal, restore, survey
from strongroom.engines.mongodb.catalogue import belongs
from strongroom.engines.mongodb.connection import Client, connected, require_source
from strongroom.engines.mongodb.reading import average_and_size

_PROBE_SECONDS = 8.0  # the longest that one answer may take
_SIZING_SECONDS = 4.0
_SHORT_OPLOG_HOURS = 1.0


class MongoEngine:
    """Captures and restores a replica set through its primary, with the built-in roles `backup` and `restore`."""

    name = "mongodb"
    id_suffix = "02"
    versions = ("6.0",)

    def __init__(self, ambient: Ambient | None = None) -> None:
        self._ambient = ambient or Machine()

    def probe(self, target: Target) -> Probe:
        """See `Engine.probe`. The size is that of the documents before the server's compression."""
        with connected(target, socket_seconds=_PROBE_SECONDS) as client:
            server = require_source(client)
            return Probe(server.version, "ReplicaSet", _size(client, self._ambient), _warnings(client))

    def capture(self, target: Target, sink: CaptureSink, control: Control, scratch: str) -> Summary:
        """See `Engine.capture`."""
        return capture.capture(target, sink, control, scratch)

    def survey(self, target: Target, facts: Mapping[str, Any], size: int) -> Ground:
        """See `Surveyor`. Collections and views are data, and users outside the databases whose users a restore keeps."""
        return survey.survey(target, facts, size)

    def restore(self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str) -> Summary:
        """See `Engine.restore`. Cancelled after the point of no return, the error carries a note on what the target holds."""
        return restore.restore(target, source, facts, control, scratch)

    def mark_of(self, facts: Mapping[str, Any]) -> Mark | None:
        """See `Recorder`."""
        return recording.mark_of(facts)

    def record(self, target: Target, since: Mark | None, sink: LogSink, control: Control, until: float, scratch: str) -> None:
        """See `Recorder`: the oplog's entries, as far as a majority has acknowledged them."""
        del scratch
        recording.record(target, since, sink, control, until, self._ambient)

    def restore_to(
        self, target: Target, source: RestoreSource, facts: Mapping[str, Any], log: Log, control: Control, scratch: str
    ) -> Summary:
        """See `Recorder`. It takes a role that may do everything: applyOps asks for that."""
        return restore.restore(target, source, facts, control, scratch, log)

    def export(self, source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
        """See `Engine.export`: a folder `dump` as mongodump makes it."""
        return export.export(source, facts, folder, control)

    def recover(self, target: Target) -> None:
        """See `Engine.recover`."""
        restore.recover(target)

    def sandbox(self, folder: Path, control: Control) -> AbstractContextManager[Target]:
        """See `Rehearser`: `mongod` on PATH, or in STRONGROOM_MONGOD."""
        return rehearsal.sandbox(folder, control, self._ambient)

    def compare(
        self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str
    ) -> Comparison:
        """See `Rehearser`: documents whatever their order, and indexes."""
        del facts
        return rehearsal.compare(target, source, control, scratch)


def _size(client: Client, ambient: Ambient) -> int:
    """Sum over the collections; where there are too many to ask in time, what they take on disk where that is more."""
    deadline = ambient.monotonic() + _SIZING_SECONDS
    databases = client.admin.command("listDatabases")["databases"]
    on_disk = sum(int(item["sizeOnDisk"]) for item in databases if item["name"] not in ("local", "config"))
    size = 0
    for item in databases:
        for entry in client[item["name"]].list_collections():
            if entry["type"] != "collection" or not _counts(item["name"], entry["name"]):
                continue
            if ambient.monotonic() > deadline:
                return max(size, on_disk)
            size += average_and_size(client, item["name"], entry["name"])[1]
    return size


def _counts(database: str, name: str) -> bool:
    """A time series' documents are in its buckets."""
    return belongs(database, name.removeprefix("system.buckets."))


def _warnings(client: Client) -> list[str]:
    """How far back the oplog reaches bounds how long a capture may take."""
    times = []
    for direction in (1, -1):
        entry = client.local["oplog.rs"].find_one({}, {"ts": 1}, sort=[("$natural", direction)])
        if entry is not None:
            times.append(entry["ts"].time)
    hours = (times[-1] - times[0]) / 3600 if times else 0.0
    stats = client.local.command("collStats", "oplog.rs")
    if hours < _SHORT_OPLOG_HOURS and stats["size"] > stats["maxSize"] / 2:
        return [f"the oplog reaches back only {hours:.1f} hours: a capture that takes longer will fail"]
    return []
