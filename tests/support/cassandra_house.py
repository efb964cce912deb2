"""Strongroom's own use cases and workers on real Cassandra nodes: catalog and store in memory of the test, jobs in threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from strongroom.ambient import Machine
from strongroom.backups import creation, deletion, instances, restoration
from strongroom.backups.context import Context, Options
from strongroom.backups.creation import BackupJob, PartJob
from strongroom.backups.deletion import DeleteJob
from strongroom.backups.gathering import TidyJob, node_queue
from strongroom.backups.incarnation import take_possession
from strongroom.backups.reading import reading
from strongroom.backups.rehearsal import RehearsalJob
from strongroom.backups.removal import RemoveJob
from strongroom.backups.restoration import RestoreJob
from strongroom.backups.scope import scope_of
from strongroom.catalog import tables as t
from strongroom.catalog.database import open_catalog
from strongroom.engines.base import Node, Tables
from strongroom.engines.cassandra import CassandraEngine
from strongroom.identity import accounts
from strongroom.identity.secrets import Sealer
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.worker import Worker
from strongroom.repository.keys import RootKey
from strongroom.storage.base import Store
from strongroom.storage.memory import MemoryStore
from support.cassandra_node import CassandraNode

ROOT = bytes(range(32))


class CassandraHouse:
    """One project; a worker for what any host does, and one a host of nodes. A context manager."""

    def __init__(self, folder: Path, hosts: Sequence[str] = ("127.0.0.1",), store: Store | None = None) -> None:
        self.ambient, self.store = Machine(), store or MemoryStore()
        self.catalog = open_catalog(f"sqlite:///{folder / 'catalog.db'}")
        t.metadata.create_all(self.catalog.engine)
        self.jobs = LeasedJobs(self.catalog, self.ambient)
        scratch = folder / "scratch"
        scratch.mkdir()
        self.ctx = Context(
            self.catalog, self.store, self.jobs, {"cassandra": CassandraEngine()}, RootKey(ROOT), Sealer(ROOT),
            self.ambient, scratch, Options(),
        )  # fmt: skip
        take_possession(self.ctx)
        with self.catalog.write() as conn:
            self.project = accounts.found(conn, self.ambient, "account", "project", "admin", None).project
        ctx = self.ctx
        self.handlers: dict[str, Any] = {
            "backup": BackupJob(ctx), "part": PartJob(ctx), "tidy": TidyJob(ctx), "restore": RestoreJob(ctx),
            "delete": DeleteJob(ctx),
            "remove": RemoveJob(ctx), "rehearse": RehearsalJob(ctx),
        }  # fmt: skip
        self.workers = {"default": self._worker("default")}
        for host in hosts:
            self.workers[host] = self.worker_of(host)

    def worker_of(self, host: str) -> Worker:
        """A fresh worker for the nodes of a host."""
        return self._worker(node_queue(Node("", host)))

    def _worker(self, queue: str) -> Worker:
        return Worker(self.jobs, self.handlers, [queue], ttl=3.0, beat=0.5, poll=0.1, threads=4)

    def __enter__(self) -> CassandraHouse:
        for worker in self.workers.values():
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.shutdown(5.0)
        self.catalog.close()

    def register(
        self,
        node: CassandraNode,
        name: str = "cluster",
        *,
        user: str = "cassandra",
        password: str = "cassandra",
        options: Mapping[str, str] | None = None,
    ) -> str:
        url = node.url.replace("cassandra@", f"{user}@")
        new = instances.NewInstance(name, "cassandra", url, password if node.auth else None, options=options or {})
        return instances.register(self.ctx, self.project, new, lambda conn, key: None)

    def create(self, instance: str, *tables: Tables) -> tuple[str, str]:
        wanted = creation.Wanted("a-backup", scope=scope_of(tables) if tables else "")
        return creation.create(self.ctx, self.project, instance, wanted, lambda conn, key: None)

    def backup(self, instance: str, *tables: Tables) -> tuple[str, dict[str, Any]]:
        """A completed backup, of the whole or of tables, and what its job tells."""
        key, job = self.create(instance, *tables)
        return key, self.done(job)

    def restore(self, backup: str, instance: str) -> dict[str, Any]:
        return self.done(restoration.restore(self.ctx, self.project, backup, instance, lambda conn: None, overwrite=True))

    def delete(self, backup: str) -> dict[str, Any]:
        return self.done(deletion.delete(self.ctx, self.project, backup, lambda conn, key, name: None))

    def ended(self, job: str, seconds: float = 120) -> Any:
        """The job once it has ended."""
        return self.until(lambda: self._ended(job), f"job {job} ends", seconds)

    def _ended(self, job: str) -> Any:
        with self.catalog.read() as conn:
            view = self.jobs.get(conn, job)
        assert view is not None
        return None if view.active else view

    def done(self, job: str) -> dict[str, Any]:
        view = self.ended(job)
        assert view.state == "DONE", view.error
        return dict(view.result or {})

    def until(self, true: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := true():
                return found
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {what}")

    def at_rest(self) -> None:
        """Until no job is active, which is when a part's node has been tidied."""
        active = sa.select(t.job.c.id).where(t.job.c.state.in_(("QUEUED", "RUNNING")))

        def none() -> bool:
            with self.catalog.read() as conn:
                return conn.execute(active).first() is None

        self.until(none, "no job is active")

    def state(self, backup: str) -> str:
        with self.catalog.read() as conn:
            return str(conn.execute(sa.select(t.backup.c.state).where(t.backup.c.id == backup)).scalar_one())

    def parts(self, backup: str) -> list[Any]:
        with self.catalog.read() as conn:
            return list(conn.execute(sa.select(t.part).where(t.part.c.backup == backup).order_by(t.part.c.lineage)).all())

    def read(self, backup: str) -> dict[str, bytes]:
        """Every entry of a backup, byte for byte."""
        with reading(self.ctx, self.parts(backup)) as (source, _):
            return {entry.name: b"".join(source.read(entry.name)) for entry in source.entries()}

    def size(self) -> int:
        """Bytes in the store."""
        return sum(stat.size for stat in self.store.list(""))
