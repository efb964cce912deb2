"""Instances: databases that are backed up. Registering probes the engine first, as does a change of how one is entered;
unregistering keeps manual backups alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from strongroom.backups import credentials, errors, policies, quotas, recording, rehearsal
from strongroom.backups.context import Context
from strongroom.backups.pending import Person
from strongroom.backups.registered import find_instance, lock_instance
from strongroom.catalog import tables as t
from strongroom.engines.base import Engine, EngineError, Probe, Tabled, Target
from strongroom.notifications import ages

Note = Callable[[Connection, str], None]


@dataclass(frozen=True, slots=True)
class NewInstance:
    """What a caller registers; validated at the border."""

    name: str
    engine: str
    address: str
    password: str | None = field(default=None, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)  # the engine's own, as TLS wants them; kept sealed


@dataclass(frozen=True, slots=True)
class Access:
    """How an instance is entered from now on. Without an address what is None stays as it is; with one, even the same, nothing is
    used of what was kept: no stored password is sent to where somebody points it."""

    address: str | None = None
    password: str | None = field(default=None, repr=False)
    options: Mapping[str, str] | None = field(default=None, repr=False)

    def applied_to(self, kept: Target) -> Target:
        """Where and how it is entered then."""
        if self.address is not None:
            return Target(self.address, self.password, self.options or {})
        password = kept.password if self.password is None else self.password
        return Target(kept.address, password, kept.options if self.options is None else self.options)


def register(ctx: Context, project: str, new: NewInstance, note: Note) -> str:
    """Probes the engine and registers it; returns the id. Raises errors.InstanceUnusable, errors.InstanceNameTaken,
    errors.QuotaReached."""
    engine = _engine(ctx, new.engine)
    target = Target(new.address, new.password, new.options)
    probe = _probed(engine, target)
    key = ctx.ambient.hex_id() + "in" + engine.id_suffix
    now, secret = ctx.ambient.now(), _sealed(ctx, key, target)
    try:
        with ctx.catalog.write() as conn:
            quotas.require(conn, project, "instance")
            conn.execute(
                t.instance.insert().values(
                    id=key, project=project, name=new.name, engine=new.engine, address=new.address, secret=secret,
                    mode=probe.mode, version=probe.version, state="REGISTERED",
                    labels=json.dumps(dict(new.labels), sort_keys=True),
                    created_at=now, updated_at=now,
                )
            )  # fmt: skip
            note(conn, key)
    except IntegrityError as error:
        raise errors.InstanceNameTaken(f"an instance named {new.name} is registered in this project already") from error
    return key


def change(ctx: Context, project: str, instance: str, access: Access, note: Callable[[Connection], None]) -> None:
    """Enters the instance as it is to be entered from now on, and keeps that; its backups, schedules and history stay. What runs
    goes on as it entered, but for a recording, which connects anew. Raises errors.NoSuchInstance, InstanceUnusable."""
    with ctx.catalog.read() as conn:
        row = find_instance(conn, project, instance)
    target = access.applied_to(ctx.target(row))
    probe = _probed(_engine(ctx, row.engine), target)
    if row.mode not in ("", probe.mode):  # of one that a rebuild brought back it may not be known
        raise errors.InstanceUnusable(
            f"{row.name} is registered as {row.mode}, and what answers is {probe.mode}: register that as another instance"
        )
    secret = _sealed(ctx, instance, target)
    with ctx.catalog.write() as conn:
        recording.connect_anew(ctx, conn, instance)
        lock_instance(conn, project, instance)
        conn.execute(
            sa.update(t.instance)
            .where(t.instance.c.id == instance)
            .values(address=target.address, secret=secret, mode=probe.mode, version=probe.version, updated_at=ctx.ambient.now())
        )
        note(conn)


def _engine(ctx: Context, name: str) -> Engine:
    engine = ctx.engines.get(name)
    if engine is None:
        raise errors.InstanceUnusable(f"no engine {name!r}: use one of {', '.join(sorted(ctx.engines))}")
    return engine


def _probed(engine: Engine, target: Target) -> Probe:
    try:
        return engine.probe(target)
    except EngineError as error:
        raise errors.InstanceUnusable(str(error)) from error


def _sealed(ctx: Context, instance: str, target: Target) -> bytes | None:
    plain = credentials.packed(target.password, target.options)
    return None if plain is None else ctx.sealer.seal(plain, "instance", instance)


def tables_of(ctx: Context, project: str, instance: str) -> Mapping[str, Sequence[str]]:
    """Databases, with their tables, that can be backed up one by one, as they are in the instance now; none where the engine is
    backed up whole. Raises errors.NoSuchInstance, InstanceUnusable."""
    with ctx.catalog.read() as conn:
        row = find_instance(conn, project, instance)
    engine: object = ctx.engines.get(row.engine)
    if not isinstance(engine, Tabled):
        return {}
    try:
        return engine.list_tables(ctx.target(row))
    except EngineError as error:
        raise errors.InstanceUnusable(str(error)) from error


def unregister(ctx: Context, project: str, instance: str, note: Callable[[Connection], None], *, by: Person | None = None) -> str:
    """Takes an instance off the register; its manual backups stay restorable elsewhere, its automated ones are deleted, as `by`
    asks: by the job that is returned. InstanceBusy while a job uses it."""
    with ctx.catalog.write() as conn:
        found = conn.execute(
            sa.update(t.instance)
            .where(t.instance.c.id == instance, t.instance.c.project == project, t.instance.c.state == "REGISTERED")
            .values(state="REMOVED", secret=None, updated_at=ctx.ambient.now())
        )
        if found.rowcount != 1:
            raise errors.NoSuchInstance(f"there is no instance {instance} in this project")
        busy = conn.execute(
            sa.select(t.job.c.id).where(
                t.job.c.instance == instance,
                t.job.c.kind.in_(("backup", "restore", "import")),
                t.job.c.state.in_(("QUEUED", "RUNNING")),
            )
        ).first()
        if busy is not None:
            raise errors.InstanceBusy(f"job {busy.id} uses the instance: wait for its end, or stop it")
        conn.execute(sa.delete(t.limits).where(t.limits.c.subject == instance))
        ages.forget(conn, instance)
        policies.forget(conn, instance)
        recording.stop(conn, instance)
        rehearsal.forget(conn, instance)
        job = policies.delete_all(ctx, conn, project, instance, by)
        note(conn)
    return job
