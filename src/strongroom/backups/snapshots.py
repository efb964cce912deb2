"""The service's own backup: snapshots of the catalog, sealed, in the store beside the backups.

`catalog/<k>.<n>` is the n-th snapshot of the k-th owner. The highest (k, n) that opens is what a rebuild takes as its base
(backups/rebasing.py). It holds what backups/kept.py lists.

When: a watch in every process looks at two small rows every few seconds (how many audit events there are, and how many there were
when the catalog was last compared) and submits the job once they differ, at most one a minute. Every ten minutes the catalog is
compared as a whole, for what changes without an event. Only a snapshot that holds something new is put.

Order of effects: the store is proven to be still ours, and to hold no snapshot that this catalog does not know → segments of the
audit trail → all is read, in one transaction → the number is taken and the object PLANNED, committed → put → looked up → STORED,
and those before the newest KEEP condemned, in one transaction → these removed.

An older catalog never outranks a newer one: after a rebuild its k is lower; a restored dump of the same owner finds snapshots of
higher numbers, or the name taken, and puts nothing any more. What is read is read before the number is taken: a dump that holds
the number knows all that the snapshot of this number may hold. A planned object that is there after a crash counts only if it
holds what was planned.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row
from sqlalchemy.exc import DBAPIError

from strongroom.backups import removal, staleness, trail_segments
from strongroom.backups.context import Context
from strongroom.backups.kept import write_rows
from strongroom.backups.objects import plan, stored
from strongroom.catalog import tables as t
from strongroom.catalog.database import CatalogBehind, Guard
from strongroom.identity import tables as identity
from strongroom.jobs.port import DuplicateJob, Running
from strongroom.repository import names
from strongroom.repository.errors import RepositoryError
from strongroom.repository.keys import open_catalog, root_of_catalog, seal_catalog
from strongroom.repository.lines import LineWriter, digest_of, read_lines
from strongroom.storage.base import ObjectExists, ObjectMissing, StoreError, StoreUnavailable

log = logging.getLogger("strongroom.backups")

KIND = "catalog-snapshot"
"""The kind of job that puts one, and its serial and unique key."""

KEEP = 3
"""Snapshots that stay, the newest."""

APART = 60.0
"""Seconds between two snapshots, at least."""

COMPARED = 600.0
"""Seconds after which the catalog is compared whatever was told."""

REMOVAL = "catalog"
"""What removes older snapshots: as in object.removal."""

ABOUT = "snapshot"
"""The first line of each: when it was taken. It does not count for whether something has changed."""

_PRIORITY = 50
_BEGINNING = 4096  # bytes in which a document's header is
_LOOK = 5.0  # seconds between two looks of the watch


@dataclass(frozen=True, slots=True)
class _Content:
    """What a snapshot will hold, compressed."""

    owner: int
    number: int  # of the newest before
    events: int
    packed: bytes
    digest: str


def take(ctx: Context, guard: Guard | None = None, check: Callable[[], None] = lambda: None) -> str | None:
    """Puts a snapshot if the catalog holds something that the newest one does not; returns its name, None if there was nothing to
    do. `guard` and `check`: the caller's job's. Raises CatalogOutdated, StoreError."""
    staleness.require_owner(ctx)
    _require_newest(ctx)
    adopted = _settle(ctx, guard)
    trail_segments.grow(ctx, guard, check)
    content, newest, digest = _read(ctx)
    there = newest is not None and newest.seq == content.number and _is_current(ctx, newest)
    if there and digest == content.digest:
        with ctx.catalog.write(guard) as conn:
            _compared(conn, ctx, content)
        return adopted
    return _put(ctx, guard, content)


class SnapshotJob:
    """The job KIND."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        try:
            name = take(self._ctx, job.guard, job.check)
            removal.remove_condemned(self._ctx, job, REMOVAL, (("catalog", "trail"),))
        except (StoreError, RepositoryError, staleness.CatalogOutdated) as error:
            if error.permanent:
                log.warning("the catalog's snapshot was not put: %s", error)
            raise removal.ending(error) from error
        return {"snapshot": name}

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Nothing hangs on it: the next one holds what this one would have."""


def keep_newest(conn: Connection, keep: int = KEEP) -> None:
    """Condemns all stored snapshots but the newest ones; the job removes them."""
    o = t.object_.c
    mine = sa.select(o.id).where(o.kind == "catalog", o.state == "STORED").order_by(o.attempt.desc(), o.seq.desc())
    older = conn.scalars(mine.offset(keep)).all()
    conn.execute(sa.update(t.object_).where(o.id.in_(older)).values(state="CONDEMNED", removal=REMOVAL))


def newest(conn: Connection) -> Row[Any] | None:
    """The row of the newest snapshot that is stored."""
    o = t.object_.c
    mine = sa.select(t.object_).where(o.kind == "catalog", o.state == "STORED")
    return conn.execute(mine.order_by(o.attempt.desc(), o.seq.desc()).limit(1)).first()


def _require_newest(ctx: Context) -> None:
    """Raises CatalogOutdated if the store holds a snapshot that this catalog has not planned. Listed first: a number is committed
    before its put."""
    found = [parsed for stat in ctx.store.list("catalog/") if (parsed := names.parse(stat.name)) is not None]
    with ctx.catalog.read() as conn:
        mine = conn.execute(sa.select(t.installation.c.owner, t.installation.c.snapshot)).one()
    for parsed in found:
        assert parsed.attempt is not None
        assert parsed.seq is not None
        if (parsed.attempt, parsed.seq) > (mine.owner, mine.snapshot):
            raise staleness.CatalogOutdated(_told(names.catalog(parsed.attempt, parsed.seq)))


def _told(name: str) -> str:
    return (
        f"the store holds a snapshot of a newer catalog, {name}: this one is older (was its database restored?), puts no more: "
        "stop the server and run `strongroom catalog rebuild`, which takes that one as its base"
    )


def _settle(ctx: Context, guard: Guard | None) -> str | None:
    """What a run before has planned and not noted: a snapshot that is there as it was planned counts, the rest is given up."""
    with ctx.catalog.read() as conn:
        open_ = conn.execute(
            sa.select(t.object_).where(t.object_.c.kind.in_(("catalog", "trail")), t.object_.c.state == "PLANNED")
        ).all()
        digest = conn.execute(sa.select(t.installation.c.snapshot_digest)).scalar_one()
    adopted = None
    for row in open_:
        size = _found(ctx, row, digest) if row.kind == "catalog" else None
        with ctx.catalog.write(guard) as conn:
            if size is not None:
                stored(conn, row.id, size)
                keep_newest(conn)
                adopted = row.name
            else:
                here = sa.and_(t.object_.c.id == row.id, t.object_.c.state == "PLANNED")
                conn.execute(sa.update(t.object_).where(here).values(state="CONDEMNED", late=True, removal=REMOVAL))
    return adopted


def _found(ctx: Context, row: Row[Any], digest: str) -> int | None:
    """Bytes of a planned snapshot that is in the store as it was planned, None if none is. Raises CatalogOutdated if it is
    another catalog's."""
    try:
        data = ctx.store.get(row.name)
    except ObjectMissing:
        return None
    try:
        lines = read_lines(open_catalog(ctx.root_key, row.attempt, row.seq, data), row.name)
        ours = digest_of(line for line in lines if line[0] != ABOUT) == digest
    except RepositoryError:
        ours = False
    if not ours:
        raise staleness.CatalogOutdated(_told(row.name))
    return len(data)


def _read(ctx: Context) -> tuple[_Content, Row[Any] | None, str]:
    """All that a snapshot holds, as it is now; the newest one's row, and the digest of what that holds."""
    writer = LineWriter()
    with ctx.catalog.read() as conn:
        mine = conn.execute(sa.select(t.installation)).one()
        writer.add(ABOUT, {"at": ctx.ambient.now()}, counts=False)
        write_rows(conn, writer)
        found = _Content(mine.owner, mine.snapshot, _events(conn), writer.finish(), writer.digest)
        return found, newest(conn), mine.snapshot_digest


def _is_current(ctx: Context, row: Row[Any]) -> bool:
    """Whether the newest snapshot is there and opens with the root key of now."""
    try:
        return root_of_catalog(ctx.store.get(row.name, 0, _BEGINNING)) == ctx.root_key.id
    except (ObjectMissing, RepositoryError):
        return False


def _put(ctx: Context, guard: Guard | None, content: _Content) -> str:
    owner, number = content.owner, content.number + 1
    with ctx.catalog.write(guard) as conn:
        unmoved = sa.and_(t.installation.c.owner == owner, t.installation.c.snapshot == content.number)
        taken = sa.update(t.installation).where(unmoved).values(snapshot=number, snapshot_digest=content.digest)
        if conn.execute(taken).rowcount != 1:
            raise staleness.CatalogOutdated("another process has put a snapshot of this catalog meanwhile")
        key, name = plan(conn, ctx, "", "catalog", seq=number, attempt=owner, name=names.catalog(owner, number))
    try:
        size = ctx.store.put_new(name, seal_catalog(ctx.root_key, owner, number, content.packed))
    except ObjectExists as error:
        raise staleness.CatalogOutdated(_told(name)) from error
    there = ctx.store.stat(name)
    if there is None or there.size != size:
        raise StoreUnavailable(f"{name} is not in the store as it was put")
    with ctx.catalog.write(guard) as conn:
        stored(conn, key, size)
        keep_newest(conn)
        _compared(conn, ctx, content)
    return name


def _compared(conn: Connection, ctx: Context, content: _Content) -> None:
    conn.execute(sa.update(t.installation).values(snapshot_events=content.events, snapshot_at=ctx.ambient.now()))


def _events(conn: Connection) -> int:
    """How many audit rows there have been: nearly everything that changes writes one."""
    return int(conn.execute(sa.select(sa.func.coalesce(sa.func.sum(identity.audit_head.c.sequence), 0))).scalar_one())


# ---- when ---------------------------------------------------------------------------------------------------------------


def due(ctx: Context) -> bool:
    """Whether the catalog should be compared with its newest snapshot now."""
    with ctx.catalog.read() as conn:
        mine = conn.execute(sa.select(t.installation)).one()
        told = _events(conn) != mine.snapshot_events
    if mine.snapshot_at is None:
        return True
    passed = ctx.ambient.now() - mine.snapshot_at
    return not 0 <= passed < (APART if told else COMPARED)


def submit(ctx: Context) -> str:
    """Queues the job, unless it is queued already; returns its id."""
    try:
        with ctx.catalog.write() as conn:
            return ctx.jobs.submit(conn, KIND, {}, serial=KIND, unique_key=KIND, priority=_PRIORITY)
    except DuplicateJob as error:
        return error.id


class Watch:
    """Submits the job when it is due, for as long as the process runs. One start and one stop each."""

    def __init__(self, ctx: Context) -> None:
        self._ctx, self._stopping = ctx, threading.Event()
        self._thread = threading.Thread(target=self._run, name="catalog-snapshots", daemon=True)
        self._asked = -APART

    def start(self) -> None:
        """Begins to look; returns at once."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """For an orderly end, while the workers still run: the catalog is compared once more, which is waited for, but for so
        many seconds at most. What takes longer is done after the next start."""
        self._stopping.set()
        self._thread.join()
        end = self._ctx.ambient.monotonic() + seconds
        try:
            job = submit(self._ctx)
            while self._is_active(job) and self._ctx.ambient.monotonic() < end:
                self._ctx.ambient.sleep(0.05)
        except DBAPIError as error:
            log.warning("the catalog's last snapshot was not put: the database is away: %s", error.orig)
        except CatalogBehind:
            log.info("the catalog's last snapshot is left to the newer version")

    def _is_active(self, job: str) -> bool:
        with self._ctx.catalog.read() as conn:
            found = self._ctx.jobs.get(conn, job)
        return found is not None and found.active

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except DBAPIError as error:
                log.warning("looking whether the catalog has changed: the database is away: %s", error.orig)
            except Exception:
                log.exception("looking whether the catalog has changed failed")
            self._stopping.wait(_LOOK)

    def _look(self) -> None:
        """A job that failed is not asked for again at once."""
        now = self._ctx.ambient.monotonic()
        if now - self._asked >= APART and due(self._ctx):
            self._asked = now
            submit(self._ctx)
