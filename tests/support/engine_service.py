"""A whole service in this process over a real engine: catalog, store in memory, jobs by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strongroom.ambient import Machine
from strongroom.backups import creation, instances, rehearsal, restoration
from strongroom.backups.context import Context
from strongroom.backups.creation import BackupJob, PartJob
from strongroom.backups.gathering import TidyJob, node_queue
from strongroom.backups.incarnation import take_possession
from strongroom.backups.rehearsal import RehearsalJob
from strongroom.backups.removal import RemoveJob
from strongroom.backups.restoration import RestoreJob
from strongroom.catalog import tables as t
from strongroom.catalog.database import open_catalog
from strongroom.engines.base import ClusterEngine, Engine, Node, Target
from strongroom.identity import accounts
from strongroom.identity import tables as identity  # noqa: F401  (its tables are part of the catalog)
from strongroom.identity.secrets import Sealer
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import Handler, JobView
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.jobs.worker import Worker
from strongroom.repository.keys import RootKey
from strongroom.storage.memory import MemoryStore
from support.vault import ROOT


class EngineService:
    """One project; instances are registered by what the engine needs to enter them. A context manager."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        ambient = Machine()
        self.catalog = open_catalog(f"sqlite:///{folder / 'catalog.db'}")
        t.metadata.create_all(self.catalog.engine)
        (folder / "scratch").mkdir()
        jobs = LeasedJobs(self.catalog, ambient)
        self.ctx = Context(
            self.catalog, MemoryStore(), jobs, {engine.name: engine}, RootKey(ROOT), Sealer(ROOT), ambient, folder / "scratch"
        )
        take_possession(self.ctx)
        with self.catalog.write() as conn:
            self.project = accounts.found(conn, ambient, "account", "project", "admin", None).project
        handlers: dict[str, Handler] = {
            "rehearse": RehearsalJob(self.ctx),
            "backup": BackupJob(self.ctx),
            "part": PartJob(self.ctx),
            "tidy": TidyJob(self.ctx),
            "restore": RestoreJob(self.ctx),
            "remove": RemoveJob(self.ctx),
        }
        self._worker = StepwiseWorker(jobs, handlers, ["default"])
        self._engine = engine
        self._hosts: Worker | None = None  # beside us: a backup of a cluster waits for the parts of its nodes
        if isinstance(engine, ClusterEngine):
            queue = node_queue(Node("", "127.0.0.1"))
            self._hosts = Worker(jobs, handlers, [queue], ttl=3.0, beat=0.5, poll=0.05, threads=2)

    def __enter__(self) -> EngineService:
        if self._hosts:
            self._hosts.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._hosts:
            self._hosts.shutdown(5.0)
        self.catalog.close()

    def register(self, name: str, target: Target) -> str:
        """A new instance. Raises what registering raises."""
        new = instances.NewInstance(name, self._engine.name, target.address, target.password)
        return instances.register(self.ctx, self.project, new, lambda conn, key: None)

    def backup(self, instance: str) -> tuple[str, Mapping[str, Any]]:
        """A completed backup and its job's result."""
        wanted = creation.Wanted("a-backup")
        key, job = creation.create(self.ctx, self.project, instance, wanted, lambda conn, key: None)
        view = self._ended(job)
        assert view.state == "DONE", view.error
        assert view.result is not None
        return key, view.result

    def restore(self, backup: str, instance: str, *, overwrite: bool = False) -> JobView:
        """The job of a restore, after its end."""
        return self._ended(restoration.restore(self.ctx, self.project, backup, instance, lambda conn: None, overwrite))

    def rehearse(self, *, backup: str | None = None, instance: str | None = None) -> JobView:
        """The job of a test restore, after its end."""
        return self._ended(rehearsal.rehearse(self.ctx, self.project, lambda conn: None, backup=backup, instance=instance))

    def _ended(self, job: str) -> JobView:
        while True:
            while self._worker.step() is not None:
                pass
            with self.catalog.read() as conn:
                view = self.ctx.jobs.get(conn, job)
            assert view is not None
            if not view.active or self._hosts is None:
                return view
            self.ctx.ambient.sleep(0.05)
