"""Capturing one node: a snapshot of all that users have made, its files where they lie, the schema and the roles.

Order of effects on the node: the history's old snapshots go (but for the parent's, the anchor) → the snapshot → its files are
read → it stays as the next capture's anchor. Any failure removes it again; a crash leaves it to the next capture, or to
`tidy`.

A file that the parent's snapshot links as the same inode, and that the parent's entry was read from, is taken over unread. The
two links are looked at while both are there, so no inode can have been given to another file in between.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from strongroom.ambient import Ambient
from strongroom.engines.base import CaptureBroken, CaptureSink, Control, EngineError, EngineUnsupported, Summary, Tables, Target
from strongroom.engines.cassandra import layout
from strongroom.engines.cassandra.connection import Member, Session, State, connected, controlled, require_version
from strongroom.engines.cassandra.jmx import Jmx
from strongroom.engines.cassandra.roles import Access, read_access
from strongroom.engines.cassandra.schema import Schema, read_schema
from strongroom.engines.cassandra.snapshots import (
    LIFETIME,
    Identity,
    Linked,
    Snapshot,
    clear_but,
    list_snapshot,
    prefix_of,
    require_folders,
)

_PIECE = 1 << 20
_SCHEMA_TRIES = 5
_LEAST_FREE = 64 << 20  # bytes: below it a flush may fail, and a snapshot would then lack rows without a word


def capture(target: Target, sink: CaptureSink, control: Control, ambient: Ambient) -> Summary:
    """See Engine.capture; of one node."""
    with connected(target) as session, controlled(session, control.check) as (jmx, state):
        members = session.members()
        require_version(members)
        (own,) = (member for member in members if member.id == target.node)
        require_folders(state.data_folders)
        _require_room(state.data_folders)
        before = sink.parent_facts or {}
        anchor = str(before["anchor"]) if before.get("anchor") and before.get("host_id") == own.id else None
        clear_but(jmx, sink.history, anchor)
        tag = prefix_of(sink.history) + ambient.hex_id()
        try:
            schema, snapshot = _taken(session, jmx, state, tag, target.tables)
            reading = _Reading(sink, control, snapshot, layout.folder_of(own.id), anchor)
            reading.read_all()
            access = read_access(session) if schema.whole else Access((), ())
            _describe(sink, own, schema, access, session)
            snapshot.require_whole()
        except BaseException:
            with suppress(EngineError, OSError):  # what is left is found by the next one; why it failed counts more
                _clear_own(target, tag)
            raise
    facts: dict[str, Any] = {
        "version": own.version, "host_id": own.id, "anchor": tag, "members": [member.id for member in members],
        "taken_over": reading.taken_over, "read": reading.read, "schema": schema.digest(),
    }  # fmt: skip
    if not schema.whole:
        facts["tables"] = [[table.keyspace, table.name] for table in schema.tables]
    return Summary(len(snapshot.files) + len(layout.DESCRIPTIONS), reading.taken_over + reading.read, facts, access.missed)


def require_agreement(facts: Sequence[Mapping[str, Any]]) -> None:
    """See ClusterEngine. Facts of before 0.2 do not tell the schema."""
    if len({tuple(sorted(one["members"])) for one in facts}) > 1:
        raise EngineUnsupported("nodes came or went while the backup was taken: take it again when the cluster is at rest")
    if len({one["schema"] for one in facts if "schema" in one}) > 1:
        raise EngineUnsupported(
            "the schema was changed between the snapshots of the nodes, which could not be restored together: take the backup "
            "again, and change no tables meanwhile"
        )


def tidy(target: Target, histories: Mapping[str, Mapping[str, Any] | None]) -> None:
    """See ClusterEngine.tidy."""
    with connected(target) as session, controlled(session, lambda: None) as (jmx, _):
        for history, keep in histories.items():
            clear_but(jmx, history, None if keep is None else str(keep.get("anchor")))


def _clear_own(target: Target, tag: str) -> None:
    """By connections of its own: those of the capture may be what failed."""
    with connected(target) as session, controlled(session, lambda: None) as (jmx, _):
        jmx.clear(tag)


def _require_room(data_folders: Sequence[str]) -> None:
    for folder in data_folders:
        free = shutil.disk_usage(folder).free
        if free < _LEAST_FREE:
            raise EngineUnsupported(f"only {free >> 20} MiB are free in {folder}: the node might not flush what it has in memory")


def _taken(session: Session, jmx: Jmx, state: State, tag: str, tables: Sequence[Tables]) -> tuple[Schema, Snapshot]:
    """A snapshot during which the schema stayed as it was."""
    schema = read_schema(session, tables)
    for _try in range(_SCHEMA_TRIES):
        if schema.whole:
            names = [keyspace.name for keyspace in schema.keyspaces]
        else:
            names = [f"{table.keyspace}.{table.name}" for table in schema.tables]
        if names:
            jmx.snapshot(tag, LIFETIME, names)
        now = read_schema(session, tables)
        if now == schema:
            return schema, list_snapshot(state.data_folders, schema.tables, tag)
        jmx.clear(tag)
        schema = now
    raise CaptureBroken("the schema changed again and again while the snapshot was being taken: try again later")


class _Reading:
    """Hands the snapshot's files to the sink: unread where they are the parent's."""

    def __init__(self, sink: CaptureSink, control: Control, snapshot: Snapshot, folder: str, anchor: str | None) -> None:
        self._sink, self._control, self._snapshot, self._folder, self._anchor = sink, control, snapshot, folder, anchor
        self.taken_over = self.read = 0  # bytes

    def read_all(self) -> None:
        total = sum(file.path.stat().st_size for file in self._files())
        for file in self._files():
            self._control.progress("read", self.taken_over + self.read, total)
            if not self._adopt(file):
                self._copy(file, total)

    def _files(self) -> Sequence[Linked]:
        return self._snapshot.files

    def _name(self, file: Linked) -> str:
        return f"{self._folder}/{layout.DATA}/{file.table.folder}/{file.name}"

    def _adopt(self, file: Linked) -> bool:
        if self._anchor is None:
            return False
        here, there = Identity.at(file.path), Identity.at(file.at(self._anchor))
        if here is None or here != there:
            return False
        known = self._sink.parent_entry(self._name(file))
        if known is None or not here.is_told_by(known.facts, known.size) or not self._sink.adopt_entry(self._name(file)):
            return False
        self.taken_over += here.size
        return True

    def _copy(self, file: Linked, total: int) -> None:
        with open(os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as source:
            identity = Identity.of(os.fstat(source.fileno()))
            size = 0
            with self._sink.entry(self._name(file)) as entry:
                while piece := source.read(_PIECE):
                    entry.write(piece)
                    size += len(piece)
                    self._control.progress("read", self.taken_over + self.read + size, total)
                if size != identity.size or Identity.of(os.fstat(source.fileno())) != identity:
                    raise CaptureBroken(f"{file.path} changed while it was being read")
                entry.finish(identity.to_facts())
            self.read += size


def _describe(sink: CaptureSink, own: Member, schema: Schema, access: Access, session: Session) -> None:
    """What the files are of: written last, for the whole to be complete without the facts of the manifest."""
    ids = {row.name: row.value for row in session.rows("SELECT name, value FROM system_views.settings")}
    node = {
        "host_id": own.id, "address": own.host, "version": own.version, "data_center": own.data_center, "rack": own.rack,
        "tokens": list(own.tokens), "uuid_sstable_identifiers": ids.get("uuid_sstable_identifiers_enabled"),
    }  # fmt: skip
    folder = layout.folder_of(own.id)
    described = [json.dumps(node, indent=1), json.dumps(schema.to_facts(), indent=1), access.script()]
    for name, text in zip(layout.DESCRIPTIONS, described, strict=True):
        with sink.entry(f"{folder}/{name}") as entry:
            entry.write(text.encode())
            entry.finish()
