"""Test restores that come round by themselves, with an engine whose throw-away server is a dictionary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import errors, instances, rehearsal
from strongroom.backups.context import Context
from strongroom.catalog import tables as t
from strongroom.engines.base import Comparison, Control, RestoreSource, Target
from strongroom.identity import tables as identity
from strongroom.jobs.port import Handler
from strongroom.storage.memory import MemoryStore
from support.harsh import HarshVault
from support.vault import DictEngine, Vault, generations

DAY = 86400.0


class TriedEngine(DictEngine):
    """What was restored is compared with the backup."""

    @contextmanager
    def sandbox(self, folder: Path, control: Control) -> Iterator[Target]:
        """A database that is there for the block alone."""
        self.databases["plain://thrown-away"] = {}
        try:
            yield Target("plain://thrown-away")
        finally:
            del self.databases["plain://thrown-away"]

    def compare(
        self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str
    ) -> Comparison:
        """Byte for byte."""
        wanted = {entry.name: b"".join(source.read(entry.name)) for entry in source.entries()}
        differs = [] if wanted == self.databases[target.address] else ["it differs"]
        return Comparison({"entries": len(wanted)}, {"entries": len(self.databases[target.address])}, len(wanted), differs)


class House(HarshVault):
    """A vault whose worker tries backups out too."""

    def __init__(self, folder: Path) -> None:
        self._begin(folder, MemoryStore())
        Vault.__init__(self, folder, store=self.store, catalog=self.catalog, engine=TriedEngine())

    def handlers(self, ctx: Context) -> dict[str, Handler]:
        """With those that try backups out."""
        more = {rehearsal.KIND: rehearsal.RehearsalJob(ctx), rehearsal.REGULAR: rehearsal.RegularJob(ctx)}
        return {**super().handlers(ctx), **more}

    def every(self, days: int | None) -> None:
        """From now on."""
        rehearsal.put_regular(self.ctx, self.project, self.source, days, lambda conn: None)

    def told(self) -> int | None:
        """What holds."""
        with self.catalog.read() as conn:
            return rehearsal.regular(conn, self.project, self.source)

    def days_pass(self, days: float) -> None:
        """With all that comes due at their end."""
        self.clock.passed += days * DAY
        self.worker.tick()
        self.run()

    def tried(self) -> list[str]:
        """Backups that were tried out, the first first; all of them were sound."""
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(t.job).where(t.job.c.kind == rehearsal.KIND).order_by(t.job.c.created_at)).all()
        assert all('"outcome": "sound"' in row.result for row in rows)
        return [str(row.backup) for row in rows]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_the_newest_backup_is_tried_out_every_so_many_days(house: House) -> None:
    """At once, then each time the newest by then; changed and ended by the next word; each stands in the audit trail."""
    first, second = generations(2)
    assert house.told() is None
    old = house.backup(first)
    house.every(7)
    assert house.told() == 7
    house.days_pass(0)
    assert house.tried() == [old]
    new = house.backup(second)
    house.days_pass(6)
    assert house.tried() == [old]
    house.days_pass(1.01)
    assert house.tried() == [old, new]
    house.every(1)
    house.days_pass(0)
    house.days_pass(1.01)
    assert house.tried() == [old, new, new, new]
    house.every(None)
    house.days_pass(30)
    assert (house.told(), len(house.tried())) == (None, 4)
    with house.catalog.read() as conn:
        assert conn.execute(sa.select(identity.audit.c.event)).scalars().all().count("StrongroomTestRestore") == 4


def test_without_a_backup_it_waits_for_the_next_time(house: House) -> None:
    """Nothing fails, and the job says why."""
    house.every(7)
    house.days_pass(0)
    with house.catalog.read() as conn:
        (row,) = conn.execute(sa.select(t.job).where(t.job.c.kind == rehearsal.REGULAR)).all()
    assert row.state == "DONE"
    assert "has no completed backup" in row.result
    backup = house.backup(next(generations(1)))
    house.days_pass(7.01)
    assert house.tried() == [backup]


def test_an_unregistered_instance_s_backups_are_tried_out_no_more(house: House) -> None:
    """It goes with what else was kept of how to enter it."""
    house.backup(next(generations(1)))
    house.every(7)
    instances.unregister(house.ctx, house.project, house.source, lambda conn, *_: None)
    house.days_pass(30)
    assert house.tried() == []
    with pytest.raises(errors.NoSuchInstance):
        house.told()


def test_an_engine_without_a_throw_away_server_is_refused(tmp_path: Path) -> None:
    """With words, and nothing is scheduled."""
    plain = HarshVault(tmp_path)
    with pytest.raises(errors.NotRestorable, match="no throw-away server"):
        rehearsal.put_regular(plain.ctx, plain.project, plain.source, 7, lambda conn: None)
    with plain.catalog.read() as conn:
        assert rehearsal.regular(conn, plain.project, plain.source) is None
