"""Apache Cassandra clusters behind the engine port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from strongroom.ambient import Ambient, Machine
from strongroom.engines.base import CaptureSink, Comparison, Control, Ground, Node, Probe, RestoreSource, Summary, Target
from strongroom.engines.cassandra import capture, export, rehearsal, restore
from strongroom.engines.cassandra.connection import connected, require_up, require_version
from strongroom.engines.cassandra.roles import read_access
from strongroom.engines.cassandra.schema import read_schema


class CassandraEngine:
    """Captures each node by a snapshot and its files; restores by streaming them to the nodes that own their rows."""

    name = "cassandra"
    id_suffix = "06"
    versions = ("5.0",)

    def __init__(self, ambient: Ambient | None = None) -> None:
        self._ambient = ambient or Machine()

    def probe(self, target: Target) -> Probe:
        """See `Engine.probe`. By CQL alone, from any host; the size is what one node's tables take on its disk."""
        with connected(target) as session:
            version = require_version(session.members())
            read_access(session)
            usage = session.rows("SELECT mebibytes FROM system_views.disk_usage")
            size = sum(int(row.mebibytes) for row in usage) << 20
            return Probe(version, "Cluster", size, records=False)

    def list_tables(self, target: Target) -> Mapping[str, Sequence[str]]:
        """See `Tabled`: keyspaces that users have made, and their tables without views."""
        with connected(target) as session:
            schema = read_schema(session)
        found: dict[str, list[str]] = {one.name: [] for one in schema.keyspaces}
        for table in schema.tables:
            found[table.keyspace].append(table.name)
        return found

    def nodes(self, target: Target) -> Sequence[Node]:
        """See `ClusterEngine.nodes`."""
        with connected(target) as session:
            members = session.members()
        require_version(members)
        require_up(members)
        return [Node(member.id, member.host) for member in members]

    def capture(self, target: Target, sink: CaptureSink, control: Control, scratch: str) -> Summary:
        """See `Engine.capture`; of the target's node. Nothing is spilled."""
        del scratch
        return capture.capture(target, sink, control, self._ambient)

    def require_agreement(self, facts: Sequence[Mapping[str, Any]]) -> None:
        """See `ClusterEngine.require_agreement`: of one schema and one set of nodes."""
        capture.require_agreement(facts)

    def tidy(self, target: Target, histories: Mapping[str, Mapping[str, Any] | None]) -> None:
        """See `ClusterEngine.tidy`."""
        capture.tidy(target, histories)

    def survey(self, target: Target, facts: Mapping[str, Any], size: int) -> Ground:
        """See `Surveyor`. Tables are data, for a backup of tables those alone."""
        del size  # where a cluster's rows will lie, and in how many copies, is its own affair
        return restore.survey(target, facts)

    def restore(self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str) -> Summary:
        """See `Engine.restore`."""
        return restore.restore(target, source, facts, control, scratch, self._ambient)

    def export(self, source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
        """Writes the backup as Cassandra's own files into a private folder, which its own tools load without us."""
        return export.export(source, facts, folder, control)

    def recover(self, target: Target) -> None:
        """See `Engine.recover`: a restore leaves nothing on the cluster but what it has restored."""

    def sandbox(self, folder: Path, control: Control) -> AbstractContextManager[Target]:
        """See `Rehearser`: a folder with Cassandra's jars in STRONGROOM_CASSANDRA, or `cassandra` on PATH."""
        return rehearsal.sandbox(folder, control, self._ambient)

    def compare(
        self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str
    ) -> Comparison:
        """See `Rehearser`: the schema, and every file of rows by its digest; every row of them is read."""
        del scratch
        return rehearsal.compare(target, source, facts, control)
