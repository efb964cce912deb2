"""Rotating the root key: whatever it seals is sealed anew under the next one, and no pack is rewritten.

The context's root key and sealer are the next ones; those of before are among their `accepted`. Nobody else may work with the
catalog. Order of effects, each durable before the one after it; the caller has put the next key into a durable place first:

1. **owner's mark**: the next `owner/<k+1>` is planned, then put under the next key, with the closing key of the one before inside
   it (closing marks stay for ever as they were put)
2. **each lineage's keys**: two new objects are planned, then put; one transaction takes the catalog's own copy over, condemns the
   objects of before and queues their removal, which the server carries out
3. **the catalog's secrets**, in batches
4. **a snapshot of the catalog**; those of before are condemned, and the server removes them
5. **proof**: everything opens under the next key alone
6. the caller puts the next key in the place of the one before

After a crash anywhere the same call goes on from there: what is sealed under the next key already is passed over. In between both
keys together open everything there is. So a server or a rebuild that has both works, and what it seals meanwhile is sealed anew
when the rotation goes on; with one of them alone neither begins, since the owner's mark goes first.

    RotationRefused     a job may be running elsewhere, or something does not open (permanent)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups import incarnation, removal, snapshots
from strongroom.backups.context import Context
from strongroom.backups.objects import plan, stored
from strongroom.catalog import tables as t
from strongroom.identity import tables as identity
from strongroom.identity.errors import SecretUnreadable
from strongroom.identity.secrets import Sealer
from strongroom.jobs.clock import DatabaseClock
from strongroom.repository import names
from strongroom.repository.keys import (
    LineageKeys,
    open_catalog,
    open_lineage_keys,
    open_owner,
    root_of_keys,
    root_of_owner,
    seal_lineage_keys,
)
from strongroom.storage.base import ObjectExists, ObjectMissing

COPIES = 2
_BATCH = 500

Report = Callable[[str], None]


class RotationRefused(Exception):
    """The root key cannot be rotated now."""

    permanent = True


@dataclass(frozen=True, slots=True)
class Rotated:
    """What is sealed under the next key now. Counts are of this call."""

    lineages: int
    secrets: int


def rotate(ctx: Context, report: Report = lambda _: None) -> Rotated:
    """Steps 1 to 5, resumable. Raises RotationRefused, CatalogOutdated, WrongKey, SecretUnreadable, StoreError."""
    incarnation.take_possession(ctx)
    _require_quiet(ctx)
    _take_mark(ctx)
    report("the owner's mark is sealed under the next root key")
    with ctx.catalog.read() as conn:
        lineages = conn.scalars(
            sa.select(t.lineage.c.id).where(t.lineage.c.sealed_keys.is_not(None)).order_by(t.lineage.c.id)
        ).all()
    moved = sum(_lineage(ctx, lineage) for lineage in lineages)
    report(f"the keys of {moved} lineages are sealed under it; their copies of before go when the server runs")
    secrets = sum(_secrets(ctx, table, column, kind) for table, column, kind in _SECRETS)
    report(f"{secrets} secrets of the catalog are sealed under it")
    _snapshot(ctx)
    report("the catalog's snapshot is sealed under it; those of before go when the server runs")
    prove(ctx)
    report("everything opens under the next root key alone")
    return Rotated(moved, secrets)


_SECRETS = (
    (t.instance, t.instance.c.secret, "instance"),
    (t.webhook, t.webhook.c.secret, "webhook"),
    (identity.access_key, identity.access_key.c.secret, "access-key"),
    (identity.user, identity.user.c.totp, "totp"),
    (t.trail, t.trail.c.secret, "trail"),
)
"""Columns that the sealer seals: table, column, and the kind that makes the place together with the row's id."""


def _require_quiet(ctx: Context) -> None:
    """On PostgreSQL other servers may use this catalog: a job that one of them runs shows it."""
    if not ctx.catalog.postgres:
        return
    live = sa.and_(t.job.c.state == "RUNNING", t.job.c.lease_until > DatabaseClock(postgres=True).now())
    with ctx.catalog.read() as conn:
        job = conn.scalar(sa.select(t.job.c.id).where(live).limit(1))
    if job is not None:
        raise RotationRefused(f"job {job} is running: stop every server of this catalog first")


def _take_mark(ctx: Context) -> None:
    k = _owner(ctx)
    if root_of_owner(ctx.store.get(names.owner(k))) == ctx.root_key.id:
        return
    with ctx.catalog.write() as conn:
        plan(conn, ctx, "", "owner", name=names.owner(k + 1))
        conn.execute(sa.update(t.installation).values(owner=k + 1))
    incarnation.put_owner(ctx)


def _owner(ctx: Context) -> int:
    with ctx.catalog.read() as conn:
        return int(conn.execute(sa.select(t.installation.c.owner)).scalar_one())


def _lineage(ctx: Context, lineage: str) -> bool:
    """Whether anything had to be done."""
    with ctx.catalog.read() as conn:
        row = conn.execute(sa.select(t.lineage.c.state, t.lineage.c.sealed_keys).where(t.lineage.c.id == lineage)).one()
        known = conn.execute(
            sa.select(t.object_.c.id, t.object_.c.name, t.object_.c.state)
            .where(t.object_.c.lineage == lineage, t.object_.c.kind == "key", t.object_.c.state.in_(("PLANNED", "STORED")))
            .order_by(t.object_.c.id)
        ).all()
    keys = open_lineage_keys(ctx.root_key, lineage, row.sealed_keys)
    roots = {one.id: _root(ctx, one.name) for one in known}
    old = [one.id for one in known if roots[one.id] not in (None, ctx.root_key.id)]
    fresh = [(one.id, one.name) for one in known if one.id not in old]
    if row.state == "OPEN":
        with ctx.catalog.write() as conn:
            fresh += [plan(conn, ctx, lineage, "key") for _ in range(COPIES - len(fresh))]
        for key, name in fresh:
            _put(ctx, lineage, keys, key, name)
    elif root_of_keys(row.sealed_keys) == ctx.root_key.id:
        return False  # it is being removed: the catalog's copy seals its graves, the store's are condemned
    if not old and root_of_keys(row.sealed_keys) == ctx.root_key.id:
        return False
    with ctx.catalog.decide(lineages=[lineage]) as conn:
        sealed = seal_lineage_keys(ctx.root_key, lineage, keys)
        conn.execute(sa.update(t.lineage).where(t.lineage.c.id == lineage).values(sealed_keys=sealed))
        if old:
            _condemn(conn, lineage, old)
            removal.submit(ctx, conn, lineage)
    return True


def _condemn(conn: Connection, lineage: str, objects: list[str]) -> None:
    step = sa.update(t.object_).where(t.object_.c.id.in_(objects))
    late = sa.or_(t.object_.c.late, t.object_.c.state == "PLANNED")
    conn.execute(step.values(late=late, state="CONDEMNED", removal=removal.of_lineage(lineage)))


def _root(ctx: Context, name: str) -> str | None:
    """Id of the root key that sealed these keys; None if they are not there (yet)."""
    try:
        return root_of_keys(ctx.store.get(name))
    except ObjectMissing:
        return None


def _put(ctx: Context, lineage: str, keys: LineageKeys, key: str, name: str) -> None:
    try:
        size = ctx.store.put_new(name, seal_lineage_keys(ctx.root_key, lineage, keys))
    except ObjectExists:  # by the run before: its content counts, not its being there
        there = ctx.store.get(name)
        if open_lineage_keys(ctx.root_key, lineage, there) != keys:
            raise RotationRefused(f"{name} holds other keys than the catalog: run `strongroom verify` first") from None
        size = len(there)
    with ctx.catalog.write() as conn:
        stored(conn, key, size)


def _secrets(ctx: Context, table: sa.Table, column: sa.Column[bytes], kind: str) -> int:
    """Seals a column's secrets anew, in the order of ids; those that the next key opens are passed over."""
    alone, done, after = _alone(ctx).sealer, 0, ""
    while True:
        with ctx.catalog.write() as conn:
            rows = conn.execute(
                sa.select(table.c.id, column.label("sealed"))
                .where(column.is_not(None), table.c.id > after)
                .order_by(table.c.id)
                .limit(_BATCH)
            ).all()
            for row in rows:
                if not _opens(alone, row.sealed, kind, row.id):
                    plain = ctx.sealer.open(row.sealed, kind, row.id)
                    conn.execute(
                        sa.update(table).where(table.c.id == row.id).values({column.name: ctx.sealer.seal(plain, kind, row.id)})
                    )
                    done += 1
        if len(rows) < _BATCH:
            return done
        after = rows[-1].id


def _snapshot(ctx: Context) -> None:
    """The newest holds the secrets as they are now, under the next key; no other is kept."""
    snapshots.take(ctx)
    with ctx.catalog.write() as conn:
        snapshots.keep_newest(conn, keep=1)


def prove(ctx: Context) -> None:
    """Raises RotationRefused or WrongKey, unless the next root key alone opens the owner's mark, the keys of lineages in catalog
    and store (but for condemned copies), the snapshot of the catalog, and all secrets of the catalog."""
    alone = _alone(ctx)
    k = _owner(ctx)
    open_owner(alone.root_key, k, ctx.store.get(names.owner(k)))
    with ctx.catalog.read() as conn:
        lineages = conn.execute(
            sa.select(t.lineage.c.id, t.lineage.c.sealed_keys).where(t.lineage.c.sealed_keys.is_not(None))
        ).all()
        copies = conn.execute(
            sa.select(t.object_.c.lineage, t.object_.c.name).where(t.object_.c.kind == "key", t.object_.c.state == "STORED")
        ).all()
        snapshot = snapshots.newest(conn)
        for table, column, kind in _SECRETS:
            for row in conn.execute(sa.select(table.c.id, column.label("sealed")).where(column.is_not(None))):
                if not _opens(alone.sealer, row.sealed, kind, row.id):
                    raise RotationRefused(f"the secret of {kind} {row.id} does not open under the next root key: rotate again")
    if snapshot is not None:
        open_catalog(alone.root_key, snapshot.attempt, snapshot.seq, ctx.store.get(snapshot.name))
    keys = {row.id: open_lineage_keys(alone.root_key, row.id, row.sealed_keys) for row in lineages}
    for copy in copies:
        if open_lineage_keys(alone.root_key, copy.lineage, ctx.store.get(copy.name)) != keys.get(copy.lineage):
            raise RotationRefused(f"{copy.name} holds other keys than the catalog: run `strongroom verify` first")


def _alone(ctx: Context) -> Context:
    """As a server will be that knows the next root key only."""
    return replace(ctx, root_key=replace(ctx.root_key, accepted=()), sealer=ctx.sealer.alone())


def _opens(sealer: Sealer, sealed: bytes, kind: str, key: str) -> bool:
    try:
        sealer.open(sealed, kind, key)
    except SecretUnreadable:
        return False
    return True
