"""A backup of several parts is completed by whichever commits last, also where the last two commit at once.

The product's engines have one part each so far. The plan is written here by hand, and the commit is made of the catalog's own
pieces as a build makes it: backup and lineage locked, the part flipped, the backup completed if no other part is being built.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.backups.context import Options
from strongroom.catalog import lifespans
from strongroom.catalog import tables as t
from support.interleaving import Act, Actor, Pair, Stage
from support.isolation_plants import no_lock_of_backups
from support.vault import noise


class TwoNodes(Stage):
    """A backup of two nodes, both of whose parts have everything stored."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder, url, Options(chunk_average=1024, pack_target=4096))
        self.whole, _ = self.create({"a": noise(1_000, 1)})
        with self.catalog.write() as conn:
            one = conn.execute(sa.select(t.lineage)).one()._asdict()
            part = conn.execute(sa.select(t.part)).one()._asdict()
            self.lineages = [one["id"], "f" * 32]
            conn.execute(t.lineage.insert().values(**one | {"id": self.lineages[1], "node": "another"}))
            conn.execute(t.part.insert().values(**part | {"lineage": self.lineages[1]}))
            conn.execute(sa.update(t.part).values(attempt=1))
            conn.execute(sa.delete(t.job))
        self.remember("both")

    def settle(self) -> None:
        """Nothing is left to do."""

    def check_laws(self) -> None:
        """A backup whose parts are all complete is complete."""
        with self.catalog.read() as conn:
            parts = {row.state for row in conn.execute(sa.select(t.part.c.state))}
        assert (parts, self.state(self.whole)) == ({"COMPLETED"}, "COMPLETED")


def _commit(number: int) -> Act:
    def play(actor: Actor) -> str:
        actor.here()
        stage = actor.stage
        assert isinstance(stage, TwoNodes)
        lineage = stage.lineages[number]
        with actor.catalog.decide(backups=[stage.whole], lineages=[lineage]) as conn:
            lifespans.commit(conn, lineage, 1, 1)
            others = sa.select(t.part.c.seq).where(t.part.c.backup == stage.whole, t.part.c.state == "BUILDING")
            if conn.execute(others).first() is None:
                conn.execute(sa.update(t.backup).where(t.backup.c.id == stage.whole).values(state="COMPLETED"))
        return "committed"

    return Act(f"commit-{number}", play)


MEETING = Pair(_commit(0), _commit(1), "both")


@pytest.fixture(params=["sqlite", "postgres"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TwoNodes]:
    url = request.getfixturevalue(f"{request.param}_url")
    made = TwoNodes(tmp_path / "vault", url)
    yield made
    made.close()


def test_the_last_two_parts_that_commit_at_once_complete_their_backup(stage: TwoNodes) -> None:
    """Held at each boundary of the one, the other waits for the backup or has ended: one of them finds itself the last."""
    assert list(stage.violations(MEETING)) == []


def test_without_the_backups_lock_the_backup_stays_building(stage: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: each part locks its own lineage alone. On PostgreSQL each sees the other still being built, and this is found; on
    SQLite nobody decides beside another in any case."""
    stage.serial(MEETING)
    no_lock_of_backups(monkeypatch)
    told = list(stage.violations(MEETING))
    if stage.catalog.postgres:
        assert any("'BUILDING'" in one for one in told), told
    else:
        assert told == []
