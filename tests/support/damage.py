"""A vault that can also look after its store, and ways to damage that store.

vault = Keeper(tmp_path)
flip(vault.store, name, 100); remove(vault.store, name); plant(vault.store, "foreign/object", b"…")
vault.verify(backup)["outcome"]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from strongroom.backups import quarantining, reconciling, verification
from strongroom.backups.creation import BackupJob
from strongroom.backups.deletion import DeleteJob
from strongroom.backups.reconciling import ReconcileJob
from strongroom.backups.removal import RemoveJob
from strongroom.backups.restoration import RestoreJob
from strongroom.backups.verification import VerifyJob
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog
from strongroom.catalog.lifespans import numbers_of
from strongroom.jobs.port import Handler
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.repository import names
from strongroom.repository.pack import ObjectIndex, read_index
from strongroom.storage.base import Store
from strongroom.storage.directory import DirectoryStore
from strongroom.storage.memory import MemoryStore
from support.vault import Vault


def store_of(kind: str, folder: Path) -> Store:
    """An empty store, "memory" or "directory"."""
    if kind == "memory":
        return MemoryStore()
    (folder / "store").mkdir()
    return DirectoryStore(folder / "store")


class Keeper(Vault):
    """A vault with the jobs `verify` and `reconcile`. Its catalog does not wait for the disk: no machine fails here."""

    def _new_catalog(self) -> Catalog:
        catalog = super()._new_catalog()

        @sa.event.listens_for(catalog.engine, "connect")
        def hurry(raw: Any, _record: Any) -> None:
            raw.execute("PRAGMA synchronous=OFF")

        catalog.engine.dispose()
        return catalog

    def restart(self) -> None:
        super().restart()
        ctx = self.ctx
        handlers: dict[str, Handler] = {
            "backup": BackupJob(ctx), "restore": RestoreJob(ctx), "delete": DeleteJob(ctx), "remove": RemoveJob(ctx),
            "verify": VerifyJob(ctx), "reconcile": ReconcileJob(ctx),
        }  # fmt: skip
        self.worker = StepwiseWorker(self.jobs, handlers, ["default"])

    def ended(self, job: str) -> Any:
        """The result of a job that completed."""
        self.run()
        view = self.job(job)
        assert view.state == "DONE", view.error
        return view.result

    def verify(self, backup: str | None = None, *, sample: float | None = None, instance: str | None = None) -> Any:
        """What a verification finds."""
        return self.ended(self.ask_verify(backup, sample=sample, instance=instance))

    def ask_verify(self, backup: str | None = None, *, sample: float | None = None, instance: str | None = None) -> str:
        """Submits a verification; returns its job."""
        return verification.verify(self.ctx, self.project, lambda conn: None, backup=backup, instance=instance, sample=sample)

    def reconcile(self, *, outside: bool = True, close_late: bool = False) -> Any:
        """What a reconciliation finds."""
        return self.ended(
            reconciling.reconcile(self.ctx, self.project, lambda conn: None, outside=outside, close_late=close_late)
        )

    def quarantine(self, *wanted: str, outside: bool = True) -> Sequence[quarantining.Moved]:
        """Moves unknown objects aside."""
        return quarantining.quarantine(self.ctx, self.project, wanted, lambda conn, moves: None, outside=outside)

    # ---- what is where ------------------------------------------------------------------------------------------------

    def lineage(self) -> str:
        """The source's lineage."""
        with self.catalog.read() as conn:
            return str(conn.execute(sa.select(t.lineage.c.id).where(t.lineage.c.instance == self.source)).scalar_one())

    def objects(self, *kinds: str, backup: str | None = None) -> list[str]:
        """Names of stored objects of these kinds, the largest first; those of one backup's part if told."""
        query = sa.select(t.object_.c.name).where(t.object_.c.kind.in_(kinds), t.object_.c.state == "STORED")
        if backup is not None:
            query = query.join(t.part, sa.and_(t.part.c.lineage == t.object_.c.lineage, t.part.c.seq == t.object_.c.seq))
            query = query.where(t.part.c.backup == backup)
        with self.catalog.read() as conn:
            return [row.name for row in conn.execute(query.order_by(t.object_.c.bytes.desc(), t.object_.c.name))]

    def index(self, name: str) -> ObjectIndex:
        """The opened index of an object of chunks."""
        said = names.parse(name)
        assert said is not None
        assert said.lineage is not None
        assert said.id is not None
        return read_index(self.store, self.ctx.keys(said.lineage), said.lineage, said.id, name)

    def suspects(self) -> dict[int, set[int]]:
        """Suspect chunks, by pack."""
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(t.pack.c.id, t.pack.c.suspect).where(t.pack.c.suspect.is_not(None)))
            return {row.id: set(numbers_of(row.suspect)) for row in rows}


def flip(store: Store, name: str, *places: int) -> None:
    """Changes one bit of an object at each of these places where nobody sees it."""
    data = bytearray(store.get(name))
    for place in places:
        data[place] ^= 1
    store.delete(name)
    store.put_new(name, bytes(data))


def flip_chunk(vault: Keeper, name: str, *numbers: int) -> int:
    """Changes one bit in each of these chunks of a pack's object, in all if none are told; returns the pack."""
    ((pack, held),) = vault.index(name).packs.items()
    wanted = numbers or held.numbers.tolist()
    at = [held.numbers.tolist().index(number) for number in wanted]
    flip(vault.store, name, *(int(held.offsets[one]) + int(held.lengths[one]) // 2 for one in at))
    return pack


def remove(store: Store, name: str) -> None:
    """An object is gone behind everybody's back."""
    assert store.stat(name) is not None
    store.delete(name)


def plant(store: Store, name: str, data: bytes = b"what is this?") -> str:
    """Somebody else's object."""
    store.put_new(name, data)
    return name
