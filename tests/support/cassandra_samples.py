"""What a Cassandra test cluster holds: a schema with everything in it, rows that change, and a picture of all of it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from cassandra import ConsistencyLevel
from cassandra.concurrent import execute_concurrent_with_args

ROLE, ROLE_PASSWORD = 'Bob "o" x', "it's; secret"

_SCHEMA = '''
CREATE KEYSPACE shop WITH replication = {'class': 'SimpleStrategy', 'replication_factor': COPIES}
CREATE KEYSPACE "OddName" WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1} AND durable_writes = false
CREATE TABLE "OddName"."T" (id int PRIMARY KEY, v text)
CREATE TYPE shop."Where to" (street text, "no; 1" int)
CREATE TABLE shop.orders (id int PRIMARY KEY, name text, dropped text, place frozen<"Where to">, tags set<text>, note text)
ALTER TABLE shop.orders DROP dropped
CREATE INDEX orders_note ON shop.orders (note)
CREATE TABLE shop.plain (id int PRIMARY KEY, name text, body blob)
CREATE INDEX plain_name ON shop.plain (name) USING 'sai'
CREATE MATERIALIZED VIEW shop.v AS SELECT * FROM shop.orders WHERE name IS NOT NULL AND id IS NOT NULL PRIMARY KEY (name, id)
CREATE TABLE shop."Odd" ("Key; 'x' ""q""" text, "Straße" int, wide int STATIC, PRIMARY KEY ("Key; 'x' ""q""", "Straße"))
CREATE TABLE shop.hits (id int PRIMARY KEY, n counter)
CREATE TABLE shop.empty (id int PRIMARY KEY) WITH comment = 'holds; nothing'
CREATE FUNCTION shop.plus(a int, b text) RETURNS NULL ON NULL INPUT RETURNS int LANGUAGE java AS $$ return a + 1; $$
'''.strip().splitlines()


def make_shop(session: Any, copies: int = 1) -> None:
    """Keyspaces with one table of each kind."""
    for statement in _SCHEMA:
        session.execute(statement.replace("COPIES", str(copies)))


def make_small(session: Any, copies: int = 1) -> None:
    """One keyspace with one table."""
    session.execute(f"CREATE KEYSPACE shop WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': {copies}}}")
    session.execute("CREATE TABLE shop.plain (id int PRIMARY KEY, name text, body blob)")


def fill_small(session: Any, seed: int, count: int = 300) -> None:
    """Rows of its own for each seed; they hardly compress."""
    noise = random.Random(seed)
    rows = [(seed * 10_000 + n, f"name {n % 5}", noise.randbytes(200)) for n in range(count)]
    insert(session, "INSERT INTO shop.plain (id, name, body) VALUES (?, ?, ?)", rows)


def drop_all(session: Any) -> None:
    """All that users have made."""
    for row in session.execute("SELECT keyspace_name FROM system_schema.keyspaces").all():
        if not row.keyspace_name.startswith("system"):
            session.execute(f'DROP KEYSPACE "{row.keyspace_name}"')


def make_roles(session: Any) -> None:
    """A role with a password, and one that it is in."""
    quoted = ROLE.replace('"', '""')
    session.execute(f"CREATE ROLE \"{quoted}\" WITH PASSWORD = '{ROLE_PASSWORD.replace(chr(39), chr(39) * 2)}' AND LOGIN = true")
    session.execute("CREATE ROLE readers")
    session.execute(f'GRANT readers TO "{quoted}"')
    session.execute("GRANT SELECT ON KEYSPACE shop TO readers")
    session.execute("GRANT EXECUTE ON FUNCTION shop.plus(int, text) TO readers")


def insert(session: Any, statement: str, rows: Sequence[Sequence[Any]]) -> None:
    """Acknowledged by every copy."""
    prepared = session.prepare(statement)
    prepared.consistency_level = ConsistencyLevel.ALL
    execute_concurrent_with_args(session, prepared, rows, concurrency=50, raise_on_first_error=True)


def fill(session: Any, seed: int, count: int = 500) -> None:
    """Rows, a deleted row, and counters: other ones for each seed."""
    first = seed * 10_000
    insert(
        session,
        "INSERT INTO shop.orders (id, name, tags, note) VALUES (?, ?, ?, ?)",
        [(first + n, f"name {n % 7}", {f"tag {n % 3}", "x"}, f"note {seed}") for n in range(count)],
    )
    body = bytes(range(256)) * 4
    insert(
        session,
        "INSERT INTO shop.plain (id, name, body) VALUES (?, ?, ?)",
        [(first + n, f"name {n % 5}", body[n % 256 :]) for n in range(count)],
    )
    insert(
        session,
        'INSERT INTO shop."Odd" ("Key; \'x\' ""q""", "Straße", wide) VALUES (?, ?, ?)',
        [(f"k {n % 9} \u00fc\n'", first + n, n) for n in range(count // 10)],
    )
    insert(session, 'INSERT INTO "OddName"."T" (id, v) VALUES (?, ?)', [(n, f"{seed}") for n in range(20)])
    insert(session, "UPDATE shop.hits SET n = n + ? WHERE id = ?", [(seed, n) for n in range(5)])
    insert(session, "DELETE FROM shop.plain WHERE id = ?", [(first + 3,)])
    insert(session, "UPDATE shop.orders SET note = ? WHERE id = ?", [(f"changed by {seed}", 10_001)])


_ID = re.compile(r"ID = [0-9a-f-]{36}\s+AND ")


def picture(session: Any) -> dict[str, Any]:
    """All that a reader sees: the schema but for the tables' ids, every row with its write times, what the indexes find."""
    found: dict[str, Any] = {}
    for row in session.execute("DESCRIBE SCHEMA WITH INTERNALS"):
        found[f"{row.type} {row.keyspace_name}.{row.name}"] = _ID.sub("", row.create_statement)
    names = [key.partition(" ") for key in found]
    for kind, _, name in names:
        if kind in ("table", "materialized_view"):
            keyspace, _, table = name.partition(".")
            found[f"rows of {name}"] = sorted(repr(tuple(row)) for row in _rows(session, f"{keyspace}.{table}"))
    if "table shop.plain" in found:
        found["written"] = sorted(_rows(session, "shop.plain", "id, writetime(name)"))
    if "index shop.orders_note" in found:
        found["by note"] = sorted(row.id for row in session.execute("SELECT id FROM shop.orders WHERE note = 'note 1'"))
    if "index shop.plain_name" in found:
        found["by name"] = sorted(row.id for row in session.execute("SELECT id FROM shop.plain WHERE name = 'name 2'"))
    return found


def _rows(session: Any, table: str, columns: str = "*") -> list[Any]:
    prepared = session.prepare(f"SELECT {columns} FROM {table}")  # noqa: S608 (names of our own)
    prepared.consistency_level = ConsistencyLevel.ALL
    return [tuple(row) for row in session.execute(prepared)]
