"""Real databases for synthetic catalogs: loading them fast, and giving every measurement a fresh copy.

SqliteFiles         loaded with durability off, copied as files
PostgresServer      databases of one server: loaded with COPY, copied as templates
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

from benchmarks.synthetic import COLUMNS, Row


class Loader(Protocol):
    """A connection that takes rows in bulk; a context that ends with everything durable."""

    def add(self, table: str, rows: Iterable[Row]) -> None:
        """Appends rows whose columns are COLUMNS[table]."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Databases(Protocol):
    """Where catalogs are made, copied and measured."""

    name: str

    def create(self, name: str) -> str:
        """An empty database; returns its URL."""

    def loader(self, url: str) -> Loader:
        """Opens a database that has its schema already."""

    @contextmanager
    def copied(self, url: str) -> Iterator[str]:
        """The URL of a copy that may be changed; it goes afterwards. Nobody may be connected to the original."""

    def size(self, url: str) -> int:
        """Bytes that the database takes."""

    def drop(self, url: str) -> None:
        """Removes it."""


class SqliteFiles:
    """Files in a folder."""

    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, name: str) -> str:
        path = self._folder / f"{name}.db"
        self._remove(path)
        return f"sqlite:///{path}"

    def loader(self, url: str) -> Loader:
        return _SqliteLoader(_path(url))

    @contextmanager
    def copied(self, url: str) -> Iterator[str]:
        copy = _path(url).with_suffix(".copy")
        shutil.copyfile(_path(url), copy)
        try:
            yield f"sqlite:///{copy}"
        finally:
            self._remove(copy)

    def size(self, url: str) -> int:
        return _path(url).stat().st_size

    def drop(self, url: str) -> None:
        self._remove(_path(url))

    def _remove(self, path: Path) -> None:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _path(url: str) -> Path:
    return Path(make_url(url).database or "")


class _SqliteLoader:
    def __init__(self, path: Path) -> None:
        self._conn = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-1000000", "foreign_keys=OFF"):
            self._conn.execute(f"PRAGMA {pragma}")
        self._conn.execute("BEGIN")

    def add(self, table: str, rows: Iterable[Row]) -> None:
        columns = COLUMNS[table]
        names = ", ".join(f'"{column}"' for column in columns)
        marks = ", ".join("?" * len(columns))
        self._conn.executemany(f'INSERT INTO "{table}" ({names}) VALUES ({marks})', rows)  # noqa: S608  our own names

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._conn.execute("COMMIT")
        self._conn.execute("PRAGMA journal_mode=WAL")
        self._conn.close()


class PostgresServer:
    """Databases of a server that the URL's user may create and drop databases on."""

    name = "postgresql"

    def __init__(self, url: str) -> None:
        self._admin = make_url(url)

    def create(self, name: str) -> str:
        database = "strongroom_bench_" + name.replace("-", "_")
        self._run(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(database)))
        self._run(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        return self._admin.set(database=database).render_as_string(hide_password=False)

    def loader(self, url: str) -> Loader:
        return _PostgresLoader(_dsn(url))

    @contextmanager
    def copied(self, url: str) -> Iterator[str]:
        original = make_url(url).database or ""
        copy = sql.Identifier(original + "_copy")
        self._run(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(copy, sql.Identifier(original)))
        try:
            yield make_url(url).set(database=original + "_copy").render_as_string(hide_password=False)
        finally:
            self._run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(copy))

    def size(self, url: str) -> int:
        with psycopg.connect(_dsn(url)) as conn:
            row = conn.execute("SELECT pg_database_size(current_database())").fetchone()
        return int(row[0]) if row else 0

    def drop(self, url: str) -> None:
        self._run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(make_url(url).database or "")))

    def _run(self, statement: sql.Composed) -> None:
        with psycopg.connect(_dsn(self._admin.render_as_string(hide_password=False)), autocommit=True) as conn:
            conn.execute(statement)


def _dsn(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


class _PostgresLoader:
    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._conn = psycopg.connect(dsn)

    def add(self, table: str, rows: Iterable[Row]) -> None:
        columns = sql.SQL(", ").join(sql.Identifier(column) for column in COLUMNS[table])
        with self._conn.cursor().copy(sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), columns)) as copy:
            for row in rows:
                copy.write_row(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._conn.commit()
        self._conn.close()
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            conn.execute("VACUUM ANALYZE")
