"""Knowing one's own catalog again: whether this database is the one that ran here last, and whose the store is.

A database that was restored from a dump or promoted from a replica may lack decisions that the store already shows. Embedded,
a file beside the database holds the same word as a row in it, drawn anew at each start; on PostgreSQL the row holds the system id
and timeline, which change with a promotion. If they differ, builds of before are failed and never resumed, but for those whose
manifest is in the store: the catalog of before may have completed them, so their lineages are stopped instead. Every lineage is
compared with the store before anything is freed there in any case (staleness.py). Pending deletions are called off: the catalog
of before may have known that they were called back.

While a server runs, each new connection to PostgreSQL is asked the same: after a fail-over all of this is done anew.

A rebuild writes REBUILDING in the row's place until it has ended: a catalog that holds half of its store is not started.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from strongroom.backups import pending
from strongroom.backups.context import Context
from strongroom.backups.creation import fail
from strongroom.backups.objects import plan, stored
from strongroom.backups.staleness import CatalogOutdated, require_owner, require_unended
from strongroom.catalog import sweeping
from strongroom.catalog import tables as t
from strongroom.repository import names
from strongroom.repository.errors import Damaged
from strongroom.repository.keys import open_lineage_keys, open_owner, seal_owner
from strongroom.storage.base import ObjectExists, ObjectMissing, StoreError, StoreUnavailable

log = logging.getLogger("strongroom.backups")

REBUILDING = "rebuilding"


def take_possession(ctx: Context) -> None:
    """At the first start the store becomes this catalog's: `owner/1`. At every start it is proven to be so still.

    Raises CatalogOutdated if another catalog has it or a rebuild of this one has not ended, WrongKey if it was made with another
    root key. A store that does not answer stops no start but the first: every batch that removes asks it again.
    """
    if _incarnation(ctx) is None:
        _found(ctx)
    if _incarnation(ctx) == REBUILDING:
        raise CatalogOutdated("the rebuild of this catalog did not end: run `strongroom catalog rebuild` again")
    put_owner(ctx)
    try:
        require_owner(ctx)
        _require_root_key(ctx)
    except StoreUnavailable as error:
        log.warning("the store does not answer: %s", error)


def _incarnation(ctx: Context) -> str | None:
    """The row's word; None before the first start."""
    with ctx.catalog.read() as conn:
        word: str | None = conn.execute(sa.select(t.installation.c.incarnation)).scalar()
    return word


def _found(ctx: Context) -> None:
    """Registers this catalog as the store's owner, unless another process of it has done so meanwhile. Raises CatalogOutdated."""
    taken = ctx.store.stat(names.owner(1)) is not None
    insert = postgresql.insert if ctx.catalog.postgres else sqlite.insert
    row = {"id": 1, "owner": 1, "incarnation": "", "created_at": ctx.ambient.now()}
    with ctx.catalog.write() as conn:
        founded = insert(t.installation).values(row).on_conflict_do_nothing().returning(t.installation.c.id)
        if conn.execute(founded).first() is None:
            return
        if taken:
            raise CatalogOutdated(
                "the store belongs to another catalog: use that one, choose another store, or run `strongroom catalog rebuild`"
            )
        plan(conn, ctx, "", "owner", name=names.owner(1))


def _require_root_key(ctx: Context) -> None:
    """Raises WrongKey if the root key is not the one that this catalog and its store were made with."""
    with ctx.catalog.read() as conn:
        sealed = conn.execute(
            sa.select(t.lineage.c.id, t.lineage.c.sealed_keys).where(t.lineage.c.sealed_keys.is_not(None))
        ).first()
        k = conn.execute(sa.select(t.installation.c.owner)).scalar_one()
    if sealed is not None:
        open_lineage_keys(ctx.root_key, sealed.id, sealed.sealed_keys)
    try:  # the first thing that a rotation of the root key seals anew
        open_owner(ctx.root_key, k, ctx.store.get(names.owner(k)))
    except (Damaged, ObjectMissing) as error:
        log.warning("the owner's mark in the store cannot be read: %s", error)


def put_owner(ctx: Context) -> None:
    """Puts the owner object that the catalog has planned."""
    with ctx.catalog.read() as conn:
        k = conn.execute(sa.select(t.installation.c.owner)).scalar_one()
        planned = conn.execute(
            sa.select(t.object_.c.id).where(t.object_.c.name == names.owner(k), t.object_.c.state == "PLANNED")
        ).scalar()
    if planned is None:
        return
    before = open_owner(ctx.root_key, k - 1, ctx.store.get(names.owner(k - 1))) if k > 1 else None
    try:
        size = ctx.store.put_new(names.owner(k), seal_owner(ctx.root_key, k, before))
    except ObjectExists:  # put by a start that ended before it could say so
        size = len(ctx.store.get(names.owner(k)))
    with ctx.catalog.write() as conn:
        stored(conn, planned, size)


def recognise(ctx: Context, file: Path) -> bool:
    """Whether this database ran here last. If not, every build is failed. Draws the next word where the catalog is embedded."""
    with ctx.catalog.read() as conn:
        row = conn.execute(sa.select(t.installation.c.incarnation)).scalar_one()
        here = _server_identity(conn) if ctx.catalog.postgres else None
    words = _read(file) if here is None else [here]
    same = row == "" or row in words
    if not same:
        _fail_builds(ctx)
        pending.call_off_all(ctx, "the catalog's database was restored or promoted while it was pending")
    fresh = ctx.ambient.hex_id() if here is None else here
    if here is None:
        _write(file, [row, fresh])
    with ctx.catalog.write() as conn:
        conn.execute(sa.update(t.installation).values(incarnation=fresh))
    if here is None:
        _write(file, [fresh])
    return same


def _fail_builds(ctx: Context) -> None:
    building: dict[str, list[tuple[str, int]]] = {}
    lineages: dict[str, list[str]] = {}
    of_building = sa.select(t.part.c.backup).where(t.part.c.state == "BUILDING")
    with ctx.catalog.read() as conn:
        for row in conn.execute(sa.select(t.part).where(t.part.c.backup.in_(of_building)).order_by(t.part.c.backup)):
            lineages.setdefault(row.backup, []).append(row.lineage)
            if row.state == "BUILDING":
                building.setdefault(row.backup, []).append((row.lineage, row.seq))
    for backup, parts in building.items():
        try:
            for lineage, seq in parts:
                require_unended(ctx, lineage, seq)
        except CatalogOutdated:
            continue  # a lineage is stopped: a rebuild will tell whether the part was completed
        with sweeping.decide_swept(ctx.catalog, backups=[backup], lineages=lineages[backup]) as conn:
            reason = "the catalog's database was restored or promoted while the backup was being taken"
            fail(ctx, conn, backup, reason, asked=True)


def keep_watch(ctx: Context, file: Path) -> None:
    """After `recognise`, for as long as the process runs: notices on PostgreSQL that a new connection reaches another server than
    was recognised, or the same one promoted. From that connection's first statement on no lineage counts as compared; builds of
    before are failed as at a start, by a thread that tries for a minute where database or store do not answer."""
    if ctx.catalog.postgres:
        sa.event.listen(ctx.catalog.engine, "connect", _Watch(ctx, file).connected)


class _Watch:
    """Compares by what this process recognised last: another process may have renewed the row already."""

    def __init__(self, ctx: Context, file: Path) -> None:
        self._ctx, self._file = ctx, file
        self._lock = threading.Lock()
        with ctx.catalog.read() as conn:
            self._known = _server_identity(conn)

    def connected(self, raw: Any, _record: Any) -> None:
        """A new connection, not used yet."""
        with raw.cursor() as cursor:
            cursor.execute(_IDENTITY)
            (here,) = cursor.fetchone()
        raw.rollback()
        with self._lock:
            if here == self._known:
                return
            self._known = here
            self._ctx.catalog.moves += 1
        log.warning("the catalog is on another server, or was promoted: builds of before are failed, lineages are compared first")
        threading.Thread(target=self._recognise, name="recognising", daemon=True).start()

    def _recognise(self) -> None:
        for _try in range(_TRIES):
            try:
                recognise(self._ctx, self._file)
                return
            except (DBAPIError, StoreError) as error:
                log.warning("builds of before could not be failed yet: %s", error)
                self._ctx.ambient.sleep(1.0)
        log.error("builds of before were not failed: restart the server")


_TRIES = 60

_IDENTITY = "SELECT system_identifier || ':' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) FROM pg_control_system()"
"""System id and timeline of a PostgreSQL server that takes writes. The timeline is that of the log being written: the control
file's is the last checkpoint's, which a promotion may precede."""


def _server_identity(conn: Connection) -> str:
    return str(conn.execute(sa.text(_IDENTITY)).scalar_one())


def _read(file: Path) -> list[str]:
    try:
        return file.read_text("ascii").split()
    except FileNotFoundError:
        return []


def _write(file: Path, words: list[str]) -> None:
    draft = file.with_suffix(".new")
    with draft.open("w", encoding="ascii") as out:
        out.write("\n".join(words) + "\n")
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
