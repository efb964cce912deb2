"""Instances: databases that are backed up. Registering probes the engine first; unregistering keeps manual backups alone."""

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
from strongroom.backups.registered import find_instance
from strongroom.catalog import tables as t
from strongroom.engines.base import EngineError, Tabled, Target
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


def register(ctx: Context, project: str, new: NewInstance, note: Note) -> str:
    """Probes the engine and registers it; returns the id. Raises errors.InstanceUnusable, errors.InstanceNameTaken,
    errors.QuotaReached."""
    engine = ctx.engines.get(new.engine)
    if engine is None:
        raise errors.InstanceUnusable(f"no engine {new.engine!r}: use one of {', '.join(sorted(ctx.engines))}")
    try:
        probe = engine.probe(Target(new.address, new.password, new.options))
    except EngineError as error:
        raise errors.InstanceUnusable(str(error)) from error
    key = ctx.ambient.hex_id() + "in" + engine.id_suffix
    now = ctx.ambient.now()
    plain = credentials.packed(new.password, new.options)
    secret = None if plain is None else ctx.sealer.seal(plain, "instance", key)
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
