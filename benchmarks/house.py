"""Strongroom opened in one process on an embedded catalog and a directory store, as the server opens it, without the API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from benchmarks.tree_engine import Readable, TreeEngine, address_of
from strongroom.ambient import Machine
from strongroom.backups import creation, deletion, restoration
from strongroom.backups.automation import ExpireJob
from strongroom.backups.context import Context, Options
from strongroom.backups.creation import BackupJob, Wanted
from strongroom.backups.deletion import DeleteJob
from strongroom.backups.incarnation import take_possession
from strongroom.backups.instances import NewInstance, register, unregister
from strongroom.backups.policies import EXPIRE
from strongroom.backups.removal import RemoveJob
from strongroom.backups.restoration import RestoreJob
from strongroom.catalog import tables as t
from strongroom.catalog.database import open_catalog
from strongroom.catalog.migrating import migrate
from strongroom.engines.base import Engine
from strongroom.identity import accounts, audit
from strongroom.identity.secrets import Sealer
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import Handler, JobView
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.jobs.worker import Worker
from strongroom.repository.keys import RootKey
from strongroom.storage.base import Store
from strongroom.storage.opening import open_store

CHUNK_AVERAGE = 64 << 10
"""Bytes: between what records and files get by default, and near what the other tools use for trees of files."""

_POLL = 0.001  # seconds between looks whether a job has ended


class JobUnsuccessful(Exception):
    """A job did not end as DONE."""


@dataclass
class House:
    """Everything opened. Ids of backups are what its methods give and take."""

    context: Context
    engine: TreeEngine
    project: str
    _run_jobs: Callable[[], object]

    def backup(self, tree: Path, tag: str, stream: Readable | None = None) -> tuple[str, JobView]:
        """Backs the tree up, or the stream in its place, to the job's end."""
        instance = self._instance(tree)
        if stream is not None:
            self.engine.streams[address_of(tree)] = stream
        return self.back_up(instance, tag)

    def back_up(self, instance: str, tag: str) -> tuple[str, JobView]:
        """Backs a registered instance up, to the job's end."""
        backup, job = creation.create(self.context, self.project, instance, Wanted(tag), self._noted("NoSQLCreateBackup"))
        return backup, self._ended(job)

    def delete(self, backup: str) -> str:
        """Decides a delete: what a caller of the API waits for. Returns the job's id."""

        def note(conn: Connection, key: str, name: str) -> None:
            self._audit(conn, "NoSQLDeleteBackup", key, name)

        return deletion.delete(self.context, self.project, backup, note)

    def finish_deletes(self) -> None:
        """Waits until everything that was decided is removed."""
        removing = sa.and_(t.job.c.kind.in_(("delete", "remove")), t.job.c.state.in_(("QUEUED", "RUNNING")))
        while True:
            with self.context.catalog.read() as conn:
                left = conn.execute(sa.select(t.job.c.id).where(removing)).scalars().all()
            if not left:
                return
            for job in left:
                self._ended(job)

    def restore(self, backup: str, to: Path) -> JobView:
        """Restores into a folder, which is registered as an instance for as long as that takes."""
        fresh = self._register(to)
        try:
            return self.restore_into(backup, fresh)
        finally:
            unregister(self.context, self.project, fresh, lambda _conn: None)

    def restore_into(self, backup: str, instance: str) -> JobView:
        """Restores into a registered instance, over what it holds, to the job's end."""
        return self._ended(restoration.restore(self.context, self.project, backup, instance, lambda _conn: None, overwrite=True))

    def check(self) -> list[str]:
        """What is wrong: objects that the catalog has stored and the store lacks, and the other way round."""
        with self.context.catalog.read() as conn:
            rows = conn.execute(sa.select(t.object_.c.name, t.object_.c.bytes).where(t.object_.c.state == "STORED")).all()
            names = set(conn.execute(sa.select(t.object_.c.name)).scalars())
        there = {found.name: found.size for found in self.context.store.list("")}
        wrong = [f"{row.name}: {there.get(row.name)} bytes, not {row.bytes}" for row in rows if there.get(row.name) != row.bytes]
        return wrong + [f"{name}: nobody knows it" for name in there.keys() - names]

    # Inside

    def _instance(self, tree: Path) -> str:
        with self.context.catalog.read() as conn:
            known = conn.execute(sa.select(t.instance.c.id).where(t.instance.c.address == address_of(tree))).scalar()
        return known or self._register(tree)

    def _register(self, folder: Path) -> str:
        return self.register(self.engine.name, address_of(folder))

    def register(self, engine: str, address: str) -> str:
        """Registers an instance of an engine that the house was opened with; its id."""
        new = NewInstance(self.context.ambient.hex_id(), engine, address)
        return register(self.context, self.project, new, lambda _conn, _key: None)

    def _noted(self, event: str) -> Callable[[Connection, str], None]:
        return lambda conn, key: self._audit(conn, event, key, "")

    def _audit(self, conn: Connection, event: str, backup: str, name: str) -> None:
        audit.append(conn, self.context.ambient, audit.Entry(event, "backup", backup, name, project=self.project))

    def _ended(self, job: str) -> JobView:
        """The job, once it has ended. Raises JobUnsuccessful."""
        while True:
            self._run_jobs()
            with self.context.catalog.read() as conn:
                view = self.context.jobs.get(conn, job)
            if view is not None and not view.active:
                break
            time.sleep(_POLL)
        if view.state != "DONE":
            raise JobUnsuccessful(f"job {job} ({view.kind}): {view.state}: {view.error}")
        return view


@contextmanager
def opened(
    repo: Path | Store, data: Path, *, threads: int, options: Options | None = None, engines: Sequence[Engine] = ()
) -> Iterator[House]:
    """Opens a house, made if need be. `threads` 0: jobs run in the caller's thread while it waits for them. `engines` come
    beside that of folders."""
    data.mkdir(parents=True, exist_ok=True)
    ambient, engine = Machine(), TreeEngine()
    root = RootKey.load_or_create(data / "root.key", ambient)
    catalog = open_catalog(f"sqlite:///{data / 'catalog.db'}")
    store = open_store(str(repo)) if isinstance(repo, Path) else repo
    scratch = data / "scratch"
    scratch.mkdir(exist_ok=True)
    try:
        migrate(catalog)
        jobs = LeasedJobs(catalog, ambient)
        sealer, chosen = Sealer(root.secret), options or Options(chunk_average=CHUNK_AVERAGE)
        ctx = Context(catalog, store, jobs, {one.name: one for one in (engine, *engines)}, root, sealer, ambient, scratch, chosen)
        take_possession(ctx)
        with _running(jobs, handlers(ctx), threads) as run_jobs:
            yield House(ctx, engine, project_of(ctx), run_jobs)
    finally:
        store.close()
        catalog.close()


def handlers(ctx: Context) -> dict[str, Handler]:
    """Every kind of job."""
    return {
        "backup": BackupJob(ctx), "restore": RestoreJob(ctx), "delete": DeleteJob(ctx), "remove": RemoveJob(ctx),
        EXPIRE: ExpireJob(ctx),
    }  # fmt: skip


@contextmanager
def _running(jobs: LeasedJobs, kinds: dict[str, Handler], threads: int) -> Iterator[Callable[[], Any]]:
    if threads == 0:
        yield StepwiseWorker(jobs, kinds).step
        return
    worker = Worker(jobs, kinds, ["default"], threads=threads)
    worker.start()
    try:
        yield lambda: None
    finally:
        worker.shutdown(10.0)


def project_of(ctx: Context) -> str:
    """The one project of a catalog, founded if need be."""
    with ctx.catalog.write() as conn:
        known = conn.execute(sa.text("SELECT id FROM project")).scalar()
        return str(known or accounts.found(conn, ctx.ambient, "benchmark", "default", "admin", None).project)
