"""Restoring into a cluster of any tokens and any number of nodes: the schema made anew, every node's SSTables streamed to the
nodes that own their rows now.

Order of effects:

1. nothing, until the backup has been read once and the cluster is found fit: version, all nodes up, room, replication, rights;
2. what users have made there is dropped (of a backup of tables: those tables alone), and the backup's schema is made, of a
   backup of tables what of it is not there;
3. table by table and node by node of the backup: its files are laid out on this host, and the node beside us streams them;
4. indexes (a table that has one already may refuse to be streamed to), and waiting until all nodes have built them;
5. roles and their rights.

Streaming, not putting files into place, because it needs no equal tokens, checks every row's place, and fills indexes and views.
It writes a row once for each copy that the backup holds: with three copies, three times until the next compaction.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from strongroom.ambient import Ambient
from strongroom.engines.base import (
    Control,
    EngineError,
    EngineUnreachable,
    EngineUnsupported,
    Ground,
    RestoreBroken,
    RestoreSource,
    Summary,
    Target,
    tell_target,
)
from strongroom.engines.cassandra import layout
from strongroom.engines.cassandra.connection import (
    Member,
    Session,
    State,
    connected,
    controlled,
    require_up,
    require_version,
    version_of,
)
from strongroom.engines.cassandra.jmx import Jmx, JmxFailed
from strongroom.engines.cassandra.layout import SSTableFile
from strongroom.engines.cassandra.options import SANDBOX
from strongroom.engines.cassandra.roles import make_from_script, read_access
from strongroom.engines.cassandra.schema import Schema, plain, quoted, read_schema

_DROP_SECONDS = 240.0
_SPARE = 64 << 20
_SPARE_OF_NODE = 256 << 20  # a sandbox's commit log, and what is its own
_INDEX_POLL = 0.2
_INDEX_IDLE = 30.0  # a node that works at nothing for so long, and has an index that is not built, has given it up


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup holds, whatever parts it has."""

    hosts: Sequence[str]  # ids of the nodes that it was taken of
    schema: Schema
    roles: str
    version: str
    files: Mapping[tuple[str, str], Mapping[str, Sequence[SSTableFile]]]  # (keyspace, table) → host id → files
    bytes: int


def restore(
    target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str, ambient: Ambient
) -> Summary:
    """See Engine.restore and the module's head."""
    contents = read_contents(source, facts)
    if target.options.get(SANDBOX):
        contents = replace(contents, schema=contents.schema.for_one_node())
    _read_once(source, contents, control)
    with connected(target) as any_node:
        first = any_node.members()[0].id
    with connected(replace(target, node=first)) as session, controlled(session, control.check) as (jmx, state):
        _require_fit(session, state, contents)
        _require_room(contents, scratch, beside=bool(target.options.get(SANDBOX)))
        warnings = _Restoring(target, session, jmx, source, contents, control, Path(scratch), ambient).run()
    entries = sum(len(files) for nodes in contents.files.values() for files in nodes.values())
    return Summary(entries, contents.bytes, {"tables": len(contents.schema.tables)}, warnings)


def survey(target: Target, facts: Mapping[str, Any]) -> Ground:
    """See Surveyor. By CQL alone, from any host; what needs the backup's schema or the node's host the restore looks at."""
    with connected(target) as session:
        members = session.members()
        _require_version(members, str(facts.get("version", "")))
        require_up(members)
        _require_superuser(session)
        there = {(one.keyspace, one.name) for one in read_schema(session).tables}
    chosen = facts.get("tables")
    if chosen is not None:
        there &= {(keyspace, name) for keyspace, name in chosen}
    keyspaces = {keyspace for keyspace, _ in there}
    return Ground(f"{len(there)} tables in {len(keyspaces)} keyspaces" if there else None)


def _require_version(members: Sequence[Member], wanted: str) -> None:
    version = require_version(members)
    if version_of(version) < version_of(wanted):
        raise EngineUnsupported(f"the backup is of Cassandra {wanted}, the cluster runs the older {version}")


def read_contents(source: RestoreSource, facts: Mapping[str, Any]) -> Contents:
    """Raises EngineUnsupported where it is no whole backup of a cluster."""
    entries = list(source.entries())
    here = {entry.name.partition("/")[0] for entry in entries}
    missing = [host for host in facts.get("members", ()) if host not in here]
    if not here or missing:
        raise EngineUnsupported(f"the backup lacks the parts of {len(missing)} nodes: {', '.join(missing[:3])}")
    schemas = [Schema.from_facts(json.loads(_text(source, f"{host}/{layout.SCHEMA}"))) for host in sorted(here)]
    if any(schema.without_cdc() != schemas[0].without_cdc() for schema in schemas):
        raise EngineUnsupported("the schema changed between the nodes' snapshots: restore another backup")
    files: dict[tuple[str, str], dict[str, list[SSTableFile]]] = {}
    total = 0
    for file in layout.sstable_files(entries):
        files.setdefault((file.keyspace, file.table), {}).setdefault(file.host_id, []).append(file)
        total += file.entry.size
    schema, roles = max(schemas, key=schemas.count), _text(source, f"{min(here)}/{layout.ROLES}")
    return Contents(sorted(here), schema, roles, str(facts.get("version", "")), files, total)


def _text(source: RestoreSource, name: str) -> str:
    try:
        return b"".join(source.read(name)).decode()
    except KeyError:
        raise EngineUnsupported(f"the backup has no entry {name}: it is not one of Cassandra") from None


def _read_once(source: RestoreSource, contents: Contents, control: Control) -> None:
    """Damage must show before anything is dropped."""
    done = 0
    for file in all_files(contents):
        for piece in source.read(file.entry.name):
            done += len(piece)
            control.progress("check", done, contents.bytes)


def all_files(contents: Contents) -> Iterator[SSTableFile]:
    """Table by table, and node by node."""
    for nodes in contents.files.values():
        for files in nodes.values():
            yield from files


def _require_fit(session: Session, state: State, contents: Contents) -> None:
    """Everything about the cluster that can be known beforehand."""
    members = session.members()
    _require_version(members, contents.version)
    require_up(members)
    if state.unreachable or state.moving:
        told = ", ".join([*state.unreachable, *state.moving])
        raise EngineUnreachable(f"nodes are down, or join, leave or move: {told}. Every node must be up, or it would lack rows")
    _require_places(members, contents.schema)
    if not contents.schema.whole:
        _require_same_types(session, contents.schema)
    read_access(session)
    _require_superuser(session)
    require_one_user(state.data_folders)


def _require_room(contents: Contents, scratch: str, *, beside: bool) -> None:
    """For the largest table of a node, and for all of them where the node's own files lie beside (a sandbox)."""
    largest = max(
        (sum(file.entry.size for file in files) for nodes in contents.files.values() for files in nodes.values()), default=0
    )
    needed, what = largest + _SPARE, "laying out the largest table takes"
    if beside:
        needed, what = needed + contents.bytes + _SPARE_OF_NODE, "the tables and the largest of them once more take"
    free = shutil.disk_usage(scratch).free
    if free < needed:
        raise EngineUnsupported(f"{what} {needed >> 20} MiB in {scratch}, where {free >> 20} are free")


def require_one_user(data_folders: Sequence[str]) -> None:
    """The node must be able to read what is laid out for it: from a folder that it may not read it would load nothing, and not
    say so. Raises EngineUnsupported unless its files are ours, or root's."""
    for folder in data_folders:
        own = os.path.join(folder, "system")  # made by the node itself
        owner = os.stat(own if os.path.isdir(own) else folder).st_uid
        if owner not in (0, os.geteuid()):
            raise EngineUnsupported(
                f"the node's files in {folder} belong to user {owner}, this process runs as {os.geteuid()}: a restore lays files "
                "out that the node must read; run Strongroom as Cassandra's own user"
            )


def _require_places(members: Sequence[Member], schema: Schema) -> None:
    """A keyspace must find as many nodes in each data centre as it keeps copies."""
    nodes: dict[str, int] = {}
    for member in members:
        nodes[member.data_center] = nodes.get(member.data_center, 0) + 1
    for keyspace in schema.keyspaces:
        kind = keyspace.replication["class"].rpartition(".")[2]
        wanted = {
            name: _copies(count) for name, count in keyspace.replication.items() if name not in ("class", "replication_factor")
        }
        if kind == "SimpleStrategy":
            wanted, have = {"": _copies(keyspace.replication["replication_factor"])}, {"": len(members)}
        elif kind == "NetworkTopologyStrategy":
            have = nodes
        else:
            continue
        for center, count in wanted.items():
            if count > have.get(center, 0):
                where = f"data centre {center!r}" if center else "the cluster"
                raise EngineUnsupported(
                    f"keyspace {keyspace.name} keeps {count} copies in {where}, which has {have.get(center, 0)} nodes"
                )


def _require_same_types(session: Session, schema: Schema) -> None:
    """Types and functions that are there already are left as they are: they must be those that the tables were made with."""
    there = {element[:3]: element[3] for element in read_schema(session).elements}
    for keyspace, kind, name, text in schema.elements:
        if kind in ("type", "function", "aggregate") and there.get((keyspace, kind, name), text) != text:
            raise EngineUnsupported(f"{kind} {keyspace}.{name} is not what it was in the backup: drop it, or restore elsewhere")


def _copies(text: str) -> int:
    """Of "3", or of "3/1" (three, one of them transient)."""
    return int(text.partition("/")[0])


def _require_superuser(session: Session) -> None:
    """Roles with hashed passwords are a superuser's to make; where nobody has to enter, anybody is."""
    if session.user is None:
        return
    found = session.rows("SELECT is_superuser FROM system_auth.roles WHERE role = %s", [session.user])
    if found and not found[0].is_superuser:
        raise EngineUnsupported(f"a restore needs a superuser, since it makes keyspaces and roles: {session.user!r} is none")


class _Restoring:
    """Past the checks: from here on a failure is told with what the cluster holds."""

    def __init__(
        self,
        target: Target,
        session: Session,
        jmx: Jmx,
        source: RestoreSource,
        contents: Contents,
        control: Control,
        scratch: Path,
        ambient: Ambient,
    ) -> None:
        self._target, self._ambient = target, ambient
        self._is_sandbox = bool(target.options.get(SANDBOX))
        self._session, self._jmx, self._source, self._contents = session, jmx, source, contents
        self._control, self._scratch = control, scratch
        self._state = "as it was"
        self._there = set[tuple[str, str, str]]()
        self._grants = list[str]()

    def run(self) -> list[str]:
        """Returns warnings. Raises RestoreBroken once something has been changed."""
        with self._telling():
            self._drop()
            self._make()
            self._load()
            self._index()
            script = self._contents.roles + "".join(f"{grant};\n" for grant in self._grants)
            return list(make_from_script(self._session, script))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except EngineError as error:
            if self._state == "as it was":
                raise
            raise RestoreBroken(str(error), self._state) from error
        except BaseException as error:
            if self._state != "as it was":
                tell_target(error, self._state)
            raise

    def _drop(self) -> None:
        self._control.check()
        if not self._contents.schema.whole:
            self._drop_tables()
            return
        self._state = "some of its keyspaces are dropped, nothing is restored yet; run the restore again"
        for keyspace in sorted({keyspace for keyspace, *_ in read_schema(self._session).elements}):
            self._control.check()
            self._session.rows(f"DROP KEYSPACE IF EXISTS {quoted(keyspace)}", seconds=_DROP_SECONDS)

    def _drop_tables(self) -> None:
        """The chosen tables go, with their views; what else is there stays. What was granted on them there is granted again."""
        self._state = "some of the backup's tables are dropped, nothing is restored yet; run the restore again"
        wanted = {(table.keyspace, table.name) for table in self._contents.schema.tables}
        there = read_schema(self._session)
        tables = [f"{quoted(one.keyspace)}.{quoted(one.name)}" for one in there.tables if (one.keyspace, one.name) in wanted]
        self._grants = [
            grant for grant in read_access(self._session).grants if any(f" ON TABLE {one} TO " in grant for one in tables)
        ]
        for row in self._session.rows("SELECT keyspace_name, view_name, base_table_name FROM system_schema.views"):
            if (row.keyspace_name, row.base_table_name) in wanted:
                self._control.check()
                view = f"{quoted(row.keyspace_name)}.{quoted(row.view_name)}"
                self._session.rows(f"DROP MATERIALIZED VIEW {view}", seconds=_DROP_SECONDS)
        for table in tables:
            self._control.check()
            self._session.rows(f"DROP TABLE {table}", seconds=_DROP_SECONDS)
        self._there = {element[:3] for element in read_schema(self._session).elements}

    def _make(self) -> None:
        for statement in self._contents.schema.statements(indexes=False, but=self._there, views_late=self._is_sandbox):
            self._control.check()
            self._session.rows(statement, seconds=_DROP_SECONDS)
        for keyspace in self._contents.schema.keyspaces if self._is_sandbox else ():
            self._jmx.still(keyspace.name)

    def _index(self) -> None:
        self._state = "it holds the backup's tables, not all of their indexes"
        for statement in self._contents.schema.statements(indexes=True, views_late=self._is_sandbox):
            self._control.check()
            self._session.rows(statement, seconds=_DROP_SECONDS)
        wanted = plain(self._contents.schema)
        names = {one[:3] for one in wanted}
        made = plain(read_schema(self._session))
        if not self._contents.schema.whole:
            made = [one for one in made if one[:3] in names and one[1] != "keyspace"]
            wanted = [one for one in wanted if one[1] != "keyspace"]
        if made != wanted:
            (keyspace, kind, name, _) = sorted(set(wanted) ^ set(made))[0]
            raise EngineError(f"{kind} {keyspace}.{name} is not what it was in the backup")
        self._await_indexes()

    def _await_indexes(self) -> None:
        """Until every node says that its own share of every index is built. One that fails (of a damaged file, say) is told by
        nothing but the node's log and its idleness."""
        mine = {one.name for one in self._contents.schema.keyspaces}
        indexes = self._session.rows("SELECT keyspace_name, index_name FROM system_schema.indexes")
        wanted = {(row.keyspace_name, row.index_name) for row in indexes if row.keyspace_name in mine}
        for member in self._session.members() if wanted else ():
            with connected(replace(self._target, node=member.id)) as session:
                self._await_indexes_on(session, member, wanted)

    def _await_indexes_on(self, session: Session, member: Member, wanted: set[tuple[str, str]]) -> None:
        worked, before = self._ambient.monotonic(), -1
        while True:
            # The column is called table_name, and holds the keyspace's.
            rows = session.rows('SELECT table_name, index_name FROM system."IndexInfo"')
            missing = wanted - {(row.table_name, row.index_name) for row in rows}
            self._control.progress("index", len(wanted) - len(missing), len(wanted))
            if not missing:
                return
            now = self._ambient.monotonic()
            if len(missing) != before or session.rows("SELECT task_id FROM system_views.sstable_tasks"):
                worked, before = now, len(missing)
            if now - worked > _INDEX_IDLE:
                keyspace, name = min(missing)
                raise EngineError(
                    f"node {member.host} has not built {len(missing)} indexes, first {keyspace}.{name}, and does not build "
                    "them: its log says why (a file that was damaged before it was backed up is one reason)"
                )
            self._ambient.sleep(_INDEX_POLL)

    def _load(self) -> None:
        tables = self._contents.files
        done = 0
        for number, ((keyspace, table), nodes) in enumerate(sorted(tables.items())):
            self._state = (
                f"it has the backup's schema and {number} of {len(tables)} tables; {keyspace}.{table} may be incomplete; "
                "run the restore again"
            )
            for _, files in sorted(nodes.items()):
                folder = self._scratch / keyspace / table
                folder.mkdir(parents=True)
                try:
                    for file in files:
                        if file.is_of_index:
                            continue
                        done = self._lay_out(folder, file, done)
                    self._control.check()
                    self._jmx.load(str(folder))
                finally:
                    shutil.rmtree(folder)
        if self._is_sandbox:  # of damaged rows no index would ever be built
            self._require_readable()
        self._state = "it holds the backup's tables, of its roles perhaps not all"

    def _require_readable(self) -> None:
        for keyspace, table in sorted(self._contents.files):
            self._control.check()
            try:
                reason = None if self._jmx.verify(keyspace, table) else "the node did not check them all"
            except JmxFailed as error:
                # Errors of the node that name a file cannot be sent over JMX.
                reason = "a file is damaged" if error.kind.endswith("NotSerializableException") else str(error)
            if reason is not None:
                raise EngineError(f"not all rows of {keyspace}.{table} can be read: {reason}")

    def _lay_out(self, folder: Path, file: SSTableFile, done: int) -> int:
        with open(folder / file.name, "xb") as out:
            for piece in self._source.read(file.entry.name):
                out.write(piece)
                done += len(piece)
                self._control.progress("load", done, self._contents.bytes)
        return done
