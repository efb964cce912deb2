"""Opening the catalog, and the only ways into a transaction.

`read` is a snapshot for looking; `decide` opens every deciding transaction; `own` touches one part's own rows and no lineage's
version. Both writing forms first prove that the caller's job still owns the work, then lock rows in one fixed order, each by
its own `UPDATE … SET version = version + 1`, and only then may anything be read: on PostgreSQL at READ COMMITTED a
statement sees what was committed before it began, so a row read after its lock is current; on SQLite the transaction
holds the write lock from its first statement (BEGIN IMMEDIATE). `remake` is for migrations alone.

    CatalogError
    ├── RowGone          a row that was to be locked does not exist (permanent)
    └── CatalogBehind    a newer version made the schema (permanent: use that one)

On PostgreSQL a newer version may upgrade the schema under a process that runs. Every transaction therefore begins by holding the
schema's revision in place and looking whether it is the one that the process has opened: an upgrade waits for all that have
begun, and whoever begins after it is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.engine import URL, Engine, make_url

from strongroom.catalog import tables as t

Guard = Callable[[Connection], None]
"""Proves, as the first statement of a transaction, that the caller's job still owns its work; raises if not."""

REVISIONS = "alembic_version"  # the table that says which schema the database has
_REVISION = sa.select(sa.column("version_num", sa.String)).select_from(sa.table(REVISIONS))

_IDLE_IN_TRANSACTION = "60s"  # a worker paused inside a transaction must not stop deletes; far above any of ours
_BUSY_TIMEOUT_MS = 30_000
_AFTER = "strongroom_after_commit"


class CatalogError(Exception):
    """The catalog cannot do what was asked."""

    permanent = True


class RowGone(CatalogError):
    """A row that was to be locked does not exist."""

    def __init__(self, table: str, key: str) -> None:
        super().__init__(f"no {table} {key}")
        self.table, self.key = table, key


class CatalogBehind(CatalogError):
    """A newer version of Strongroom made the schema in the database."""


class Catalog:
    """The SQL database that decides: SQLite in one process, PostgreSQL for many."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.postgres = engine.dialect.name == "postgresql"
        self.moves = 0  # times that this process found itself on another server, or on one that was promoted
        self.revision: str | None = None  # of the schema that this process works on, once it has been migrated or looked at
        self.behind = threading.Event()  # a newer version has upgraded the schema under this process

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent snapshot, read only. Nothing is decided from what it shows without comparing versions again."""
        with self.engine.connect() as conn:
            options: dict[str, Any] = {"strongroom_read": True}
            if self.postgres:
                options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            conn = conn.execution_options(**options)
            with conn.begin():
                if self.postgres and self.revision is not None:  # apart: a look that has to wait would show what was before
                    conn.exec_driver_sql(f"LOCK TABLE {REVISIONS} IN ACCESS SHARE MODE")
                self._hold_revision(conn)
                yield conn

    @contextmanager
    def write(self, guard: Guard | None = None) -> Iterator[Connection]:
        """A plain writing transaction for rows that decide nothing about lifespans (identity, instances, jobs)."""
        with self.engine.connect() as conn:
            if self.postgres:
                conn = conn.execution_options(isolation_level="READ COMMITTED")
            conn.info[_AFTER] = told = list[Callable[[], None]]()
            with conn.begin():
                self._hold_revision(conn)
                if guard is not None:
                    guard(conn)
                yield conn
        for tell in told:
            tell()

    def _hold_revision(self, conn: Connection) -> None:
        """Keeps the schema as it is until the transaction ends, by looking at it. Raises CatalogBehind if it is not this
        process's any more."""
        if self.postgres and self.revision is not None and conn.execute(_REVISION).scalar() != self.revision:
            self.behind.set()
        self.require_own_schema()

    def require_own_schema(self) -> None:
        """Raises CatalogBehind once a newer version was found to have upgraded the schema under this process."""
        if self.behind.is_set():
            raise CatalogBehind(
                f"a newer version of Strongroom has upgraded the catalog's schema, which was at {self.revision}: "
                "this process does nothing more, start that version in its place"
            )

    @contextmanager
    def remake(self) -> Iterator[Connection]:
        """A writing transaction that may make tables anew. On SQLite a table that others refer to could not be dropped for that:
        references are looked at once, all of them, before the commit. Raises CatalogError if one does not hold."""
        if self.postgres:
            with self.write() as conn:
                yield conn
            return
        with self.engine.connect() as conn:
            raw: Any = conn.connection.dbapi_connection
            raw.execute("PRAGMA foreign_keys=OFF")
            try:
                with conn.begin():
                    yield conn
                    broken = conn.exec_driver_sql("PRAGMA foreign_key_check").first()
                    if broken is not None:
                        raise CatalogError(f"a row of {broken[0]} refers to a row of {broken[2]} that is not there")
            finally:
                raw.execute("PRAGMA foreign_keys=ON")

    @contextmanager
    def decide(
        self, guard: Guard | None = None, *, backups: Iterable[str] = (), lineages: Iterable[str] = ()
    ) -> Iterator[Connection]:
        """A deciding transaction: own job, then the backups by id, then the lineages by id, all locked. Raises RowGone."""
        with self.write(guard) as conn:
            for key in sorted(set(backups)):
                lock_backup(conn, key)
            for key in sorted(set(lineages)):
                lock_lineage(conn, key)
            yield conn

    @contextmanager
    def own(self, guard: Guard, lineage: str, seq: int) -> Iterator[Connection]:
        """A transaction that touches one part's own rows only: the lineage's version stays, so previews hold beside it."""
        with self.write(guard) as conn:
            lock_part(conn, lineage, seq)
            yield conn


def after_commit(conn: Connection, tell: Callable[[], None]) -> None:
    """Calls `tell` once this writing transaction has committed and its connection is given back; never if it does not commit."""
    told = conn.info[_AFTER]
    if tell not in told:
        told.append(tell)


def lock_backup(conn: Connection, key: str) -> None:
    """Locks a backup's row until the transaction ends. Order: job, backups by id, lineages by id, parts by id."""
    _lock(conn, t.backup, t.backup.c.id == key, key)


def lock_lineage(conn: Connection, key: str) -> None:
    """Locks a lineage and moves its version, which every preview of it carries."""
    _lock(conn, t.lineage, t.lineage.c.id == key, key)


def lock_part(conn: Connection, lineage: str, seq: int) -> None:
    """Locks one part's row."""
    _lock(conn, t.part, sa.and_(t.part.c.lineage == lineage, t.part.c.seq == seq), f"{lineage}/{seq}")


def _lock(conn: Connection, table: sa.Table, where: sa.ColumnElement[bool], key: str) -> None:
    if conn.execute(sa.update(table).where(where).values(version=table.c.version + 1)).rowcount != 1:
        raise RowGone(table.name, key)


def open_catalog(url: str | URL) -> Catalog:
    """Opens the database at an SQLAlchemy URL, `sqlite:///path` or `postgresql+psycopg://…`; creates no tables."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return Catalog(_sqlite(parsed))
    if parsed.get_backend_name() == "postgresql":
        return Catalog(_postgres(parsed.set(drivername="postgresql+psycopg")))
    raise CatalogError(f"no catalog on {parsed.get_backend_name()!r}: use sqlite:///… or postgresql://…")


def _postgres(url: URL) -> Engine:
    """Plans are made for the values at hand: a plan for any value takes every window of lifespans to be small, and reads a whole
    gap of a large lineage for each batch of its sweep."""
    settings = (
        f"-c idle_in_transaction_session_timeout={_IDLE_IN_TRANSACTION} -c synchronous_commit=on"
        " -c plan_cache_mode=force_custom_plan"
    )
    # A replica is not entered: a connection to it would outlive its promotion unnoticed (backups/incarnation.py).
    connect = {"options": settings, "connect_timeout": 10, "target_session_attrs": "read-write"}
    return sa.create_engine(url, pool_size=8, max_overflow=16, pool_pre_ping=True, connect_args=connect)


def _sqlite(url: URL) -> Engine:
    """WAL with synchronous=FULL: a decision is on disk when its commit returns. Writers of this process take turns in
    a lock of ours, since SQLite's own waiting sleeps and is unfair."""
    in_memory = url.database in (None, "", ":memory:")
    pool: dict[str, Any] = {"poolclass": sa.StaticPool} if in_memory else {"pool_size": 12, "max_overflow": 20}
    engine = sa.create_engine(url, connect_args={"check_same_thread": False}, **pool)
    turn = threading.Lock()

    @sa.event.listens_for(engine, "connect")
    def prepare(raw: Any, _record: Any) -> None:
        raw.isolation_level = None  # BEGIN is ours
        for pragma in (
            "journal_mode=WAL", "synchronous=FULL", f"busy_timeout={_BUSY_TIMEOUT_MS}", "foreign_keys=ON",
            "cache_size=-32000",
        ):  # fmt: skip
            raw.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        if conn.get_execution_options().get("strongroom_read"):
            conn.exec_driver_sql("BEGIN")
            return
        turn.acquire()
        conn.info["turn"] = True
        try:
            conn.exec_driver_sql("BEGIN IMMEDIATE")
        except BaseException:
            _give_turn(conn.info, turn)
            raise

    @sa.event.listens_for(engine, "checkin")
    def checkin(_raw: Any, record: Any) -> None:
        _give_turn(record.info, turn)

    @sa.event.listens_for(engine, "invalidate")
    def invalidate(_raw: Any, record: Any, _error: Any) -> None:
        _give_turn(record.info, turn)

    return engine


def _give_turn(info: dict[Any, Any], turn: threading.Lock) -> None:
    if info.pop("turn", False):
        turn.release()
