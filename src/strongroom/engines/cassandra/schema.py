"""A cluster's schema as CQL: what DESCRIBE answers, which tables there are, and statements that make it anew.

Tables come back with new ids: a hint or a commit log of before then finds no table to put old rows into.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from strongroom.engines.base import EngineUnsupported, Tables
from strongroom.engines.cassandra.connection import Session

_OUR_ID = re.compile(r"\bID = [0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\s+AND\s+")
_REPLICATION = re.compile(r"\breplication = \{[^}]*\}")
_ONE_COPY = {"class": "SimpleStrategy", "replication_factor": "1"}
_CDC = re.compile(r"\bcdc = true\b")
_LATE = re.compile(r"CREATE\s+((CUSTOM\s+)?INDEX|MATERIALIZED\s+VIEW)\b", re.IGNORECASE)
_INDEX = re.compile(r"CREATE\s+(CUSTOM\s+)?INDEX\b", re.IGNORECASE)
_PIECES = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\$\$.*?\$\$|;|[^'\"$;]+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Table:
    """A table that has SSTables of its own."""

    keyspace: str
    name: str
    id: str  # 32 hex digits, as in its folder's name

    @property
    def folder(self) -> str:
        """Below a data folder."""
        return f"{self.keyspace}/{self.name}-{self.id}"


@dataclass(frozen=True, slots=True)
class Keyspace:
    """How often, and where, a keyspace's rows are kept."""

    name: str
    replication: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Schema:
    """All that users have made, in an order in which it can be made again."""

    keyspaces: Sequence[Keyspace]
    tables: Sequence[Table]  # without views, whose rows come from their tables
    elements: Sequence[tuple[str, str, str, str]]  # keyspace, kind ("table", "index" …), name, statements
    whole: bool = True  # of the whole cluster, else of chosen tables

    def to_facts(self) -> dict[str, Any]:
        """CBOR- and JSON-able."""
        return {
            "keyspaces": [[one.name, dict(one.replication)] for one in self.keyspaces],
            "tables": [[one.keyspace, one.name, one.id] for one in self.tables],
            "elements": [list(one) for one in self.elements],
            "whole": self.whole,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Schema:
        """What to_facts gave."""
        return cls(
            [Keyspace(name, replication) for name, replication in facts["keyspaces"]],
            [Table(*one) for one in facts["tables"]],
            [(one[0], one[1], one[2], one[3]) for one in facts["elements"]],
            facts["whole"],
        )

    def for_one_node(self) -> Schema:
        """The same with one copy of everything and without change data capture: into a table that has it rows are not streamed as
        files but written one by one."""
        told = "replication = {" + ", ".join(f"'{name}': '{value}'" for name, value in _ONE_COPY.items()) + "}"
        elements = [
            (keyspace, kind, name, _REPLICATION.sub(told, text, count=1) if kind == "keyspace" else text)
            for keyspace, kind, name, text in self.without_cdc().elements
        ]
        return replace(self, keyspaces=[Keyspace(one.name, _ONE_COPY) for one in self.keyspaces], elements=elements)

    def without_cdc(self) -> Schema:
        """The same with no table that captures its changes. After an ALTER of that alone the node that carried it out says until
        its next start what was true before (seen with 5.0), so that two nodes' schemas may differ in it."""
        elements = [
            (keyspace, kind, name, _outside_quotes(text, _no_cdc) if kind == "table" else text)
            for keyspace, kind, name, text in self.elements
        ]
        return replace(self, elements=elements)

    def digest(self) -> str:
        """The same for all nodes whose parts can be restored together."""
        return hashlib.sha256(json.dumps(self.without_cdc().to_facts(), sort_keys=True).encode()).hexdigest()

    def script(self) -> str:
        """For cqlsh: the whole schema, with the ids that the tables had."""
        return "\n\n".join(text.rstrip().rstrip(";") + ";" for *_, text in self.elements) + "\n"

    def statements(self, *, indexes: bool, but: Collection[tuple[str, str, str]] = (), views_late: bool = False) -> Iterator[str]:
        """One after the other, for tables with new ids: those that make indexes (`views_late`: and views), or all others. `but`:
        keyspace, kind and name of what is there already."""
        late = _LATE if views_late else _INDEX
        for *what, text in self.elements:
            if tuple(what) in but:
                continue
            for statement in split(text):
                if bool(late.match(statement)) == indexes:
                    yield _OUR_ID.sub("", statement)


def read_schema(session: Session, tables: Sequence[Tables] = ()) -> Schema:
    """What users have made; of chosen tables: those, their indexes and views, and what their keyspaces have besides tables.

    Raises EngineError; EngineUnsupported where a chosen table is not there.
    """
    elements = [
        (unquoted(row.keyspace_name), row.type, unquoted(row.name), row.create_statement)
        for row in session.rows("DESCRIBE SCHEMA WITH INTERNALS")
    ]
    mine = {keyspace for keyspace, *_ in elements}
    keyspaces = [
        Keyspace(row.keyspace_name, dict(row.replication))
        for row in session.rows("SELECT keyspace_name, replication FROM system_schema.keyspaces")
        if row.keyspace_name in mine
    ]
    bases = {  # of views and indexes
        (row.keyspace_name, row.view_name): row.base_table_name
        for row in session.rows("SELECT keyspace_name, view_name, base_table_name FROM system_schema.views")
    }
    found = [
        Table(row.keyspace_name, row.table_name, row.id.hex)
        for row in session.rows("SELECT keyspace_name, table_name, id FROM system_schema.tables")
        if row.keyspace_name in mine and (row.keyspace_name, row.table_name) not in bases
    ]
    for row in session.rows("SELECT keyspace_name, index_name, table_name FROM system_schema.indexes"):
        bases[row.keyspace_name, row.index_name] = row.table_name
    keyspaces.sort(key=lambda one: one.name)
    found.sort(key=lambda one: (one.keyspace, one.name))
    whole = Schema(keyspaces, found, elements)
    return _chosen(whole, bases, tables) if tables else whole


def _chosen(whole: Schema, bases: Mapping[tuple[str, str], str], tables: Sequence[Tables]) -> Schema:
    wanted = {one.database: one.names for one in tables}
    known = {(one.keyspace, one.name) for one in whole.tables}
    missing = [f"keyspace {name}" for name in wanted if name not in {one.name for one in whole.keyspaces}]
    missing += [
        f"table {database}.{name}" for database, names in wanted.items() for name in names or () if (database, name) not in known
    ]
    if missing:
        raise EngineUnsupported(f"there is no {missing[0]} (a view goes with its table)")

    def is_chosen(keyspace: str, table: str) -> bool:
        names = wanted.get(keyspace, ())
        return names is None or table in names

    def is_wanted(keyspace: str, kind: str, name: str) -> bool:
        if kind == "table":
            return is_chosen(keyspace, name)
        if kind in ("index", "materialized_view"):
            return is_chosen(keyspace, bases[keyspace, name])
        return keyspace in wanted

    return Schema(
        [one for one in whole.keyspaces if one.name in wanted],
        [one for one in whole.tables if is_chosen(one.keyspace, one.name)],
        [one for one in whole.elements if is_wanted(*one[:3])],
        whole=False,
    )


def plain(schema: Schema) -> list[tuple[str, str, str, str]]:
    """The elements, for comparing two schemas that differ in their tables' ids alone."""
    return sorted((keyspace, kind, name, _OUR_ID.sub("", text)) for keyspace, kind, name, text in schema.elements)


def split(text: str) -> Iterator[str]:
    """The statements of a CQL text, without their semicolons; what stands in quotes or between $$ is left alone."""
    pieces: list[str] = []
    for piece in _PIECES.findall(text):
        if piece == ";":
            if statement := "".join(pieces).strip():
                yield statement
            pieces = []
        else:
            pieces.append(piece)
    if statement := "".join(pieces).strip():
        yield statement


def _outside_quotes(text: str, change: Callable[[str], str]) -> str:
    return "".join(piece if piece[0] in "'\"$" else change(piece) for piece in _PIECES.findall(text))


def _no_cdc(text: str) -> str:
    return _CDC.sub("cdc = false", text)


def quoted(name: str) -> str:
    """A name as CQL takes it whatever its letters are."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def unquoted(shown: str) -> str:
    """A name as DESCRIBE shows it, in quotes where CQL wants them."""
    return shown[1:-1].replace('""', '"') if shown.startswith('"') else shown


def text_of(value: str) -> str:
    """A text as CQL takes it."""
    doubled = value.replace("'", "''")
    return f"'{doubled}'"
