"""Histories of recordings: whatever happens, what was restorable stays so unless a deletion, age or a hole in the log took it.

Each history draws its acts from a seed: writes, recording, backups, failed backups, deletes, trims, gaps, rebuilds, and deaths of
the process at any effect of any of them. After each act, at rest: the books hold, moments that are said to be restorable are what
the source held, promise and receipt of a delete agree, and the spans are those that the act may have left.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import following, recording, removal, replaying
from strongroom.catalog import logs
from strongroom.catalog import tables as t
from strongroom.catalog.space import condemn
from support.logged import LoggedVault

SEEDS = range(12)
ACTS = 14
PLANTED_SEEDS = range(20)

_ACTS = (
    "write", "write", "write", "follow", "follow", "backup", "backup", "fail", "delete", "delete", "age", "gap", "rebuild",
    "beside",
)  # fmt: skip

Spans = list[tuple[float, float]]


class Broken(AssertionError):
    """An invariant does not hold."""


class History:
    """One history."""

    def __init__(self, folder: Path, seed: int, only: Sequence[str] = ()) -> None:
        self.only = only  # the acts that are drawn; none: all of them
        self.random = random.Random(seed)
        folder.mkdir(exist_ok=True)
        self.folder, self.rebuilds = folder, 0
        self.vault = LoggedVault(folder / "0")
        self.vault.engine.every = self.random.choice((1, 1, 3))
        self.vault.writes(3, size=300)
        self.vault.turn_on(keep_days=7)

    def run(self) -> None:
        """All of it."""
        for _ in range(ACTS):
            getattr(self, self.random.choice(self.only or _ACTS))()
            self.vault.follow()
            self.check()

    # ---- acts --------------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Some changes."""
        self.vault.writes(self.random.randrange(1, 7), size=300)

    def follow(self) -> None:
        """They are recorded, maybe by a process that dies."""
        self.write()
        before = self.spans()
        self.dying(self.vault.follow)
        self.grows(before)

    def backup(self) -> None:
        """A backup, maybe by a process that dies."""
        before = self.spans()
        self.dying(self.take)
        self.grows(before)

    def fail(self) -> None:
        """A backup that fails."""
        before = self.spans()
        self.vault.engine.broken = "the line was cut"
        self.take()
        self.vault.engine.broken = None
        self.grows(before)

    def beside(self) -> None:
        """While a backup is taken: changes, recording, deletes, and maybe the backup fails."""
        fails = self.random.random() < 0.3

        def during() -> None:
            self.vault.engine.during = None
            self.write()
            self.vault.follow_beside()
            for victim in self.completed():
                if self.random.random() < 0.8:
                    self.vault.delete(victim)
            if fails:
                self.vault.engine.broken = "the line was cut"

        self.vault.engine.during = during
        self.take()
        self.vault.engine.during = self.vault.engine.broken = None

    def delete(self) -> None:
        """One goes; every moment that another one leads to stays."""
        victim = self.victim()
        if victim is None:
            return
        with self.vault.catalog.read() as conn:
            others = [one for one in replaying.stretches(conn, self.vault.source) if one.backup != victim]
        promise = self.vault.preview(victim).promises[victim]
        self.dying(lambda: self.remove(victim))
        if self.vault.state(victim) != "DELETED":
            return
        found = self.vault.receipt(victim)
        if (found["freed"], found["removed_objects"]) != (promise.freed, promise.objects):
            raise Broken(f"promised {promise}, done {found}")
        if self.spans() != _joined([(one.begin, one.end) for one in others]):
            raise Broken("a delete took moments that another backup leads to, or left some that none does")

    def age(self) -> None:
        """Days pass, and old log goes: never what the last days need."""
        self.vault.clock.passed += self.random.choice((0.5, 3.0, 8.0)) * 86400.0
        self.vault.engine.clock = self.vault.clock.now() - 100.0
        self.write()
        self.vault.follow()
        before, kept = self.spans(), self.vault.clock.now() - 7 * 86400.0
        self.vault.trim()
        young = [(max(begin, kept), end) for begin, end in before if end > kept]
        if [(max(begin, kept), end) for begin, end in self.spans() if end > kept] != young:
            raise Broken("trimming took moments that are to be kept")

    def gap(self) -> None:
        """The source forgets what was not recorded yet."""
        before = self.spans()
        self.write()
        self.vault.engine.oldest = len(self.vault.engine.log)
        self.write()
        self.vault.follow()
        self.grows(before)

    def rebuild(self) -> None:
        """The catalog is lost."""
        before = self.spans()
        if self.victim() is None:
            return  # nothing that would tell of the instance
        self.rebuilds += 1
        self.vault = self.vault.rebuilt(self.folder / str(self.rebuilds))
        if self.spans() != before:
            raise Broken(f"a rebuild made {self.spans()} of {before}")
        self.vault.turn_on(keep_days=7)

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def take(self) -> None:
        """A backup to its end, however it ends."""
        self.vault.create()
        self.vault.run()

    def remove(self, key: str) -> None:
        """A delete to its end."""
        self.vault.delete(key)
        self.vault.run()

    def completed(self) -> list[str]:
        """Ids of completed backups."""
        with self.vault.catalog.read() as conn:
            return list(conn.scalars(sa.select(t.backup.c.id).where(t.backup.c.state == "COMPLETED").order_by(t.backup.c.id)))

    def victim(self) -> str | None:
        """A completed backup."""
        keys = self.completed()
        return self.random.choice(keys) if keys else None

    def dying(self, act: Callable[[], Any]) -> None:
        """The act, in a third of all cases by a process that dies at one of its effects and is started again."""
        if self.random.random() < 0.67:
            act()
            return
        with self.vault.dying(self.random.randrange(1, 40)):
            act()
        self.vault.restart()
        self.vault.run()

    def spans(self) -> Spans:
        """What is said to be restorable."""
        return self.vault.periods()

    def grows(self, before: Spans) -> None:
        """Nothing that was restorable before is not now."""
        now = self.spans()
        for begin, end in before:
            if not any(one <= begin and end <= other for one, other in now):
                raise Broken(f"{begin} to {end} was restorable and is not: {now}")

    def leads_to(self, moment: float) -> bool:
        """Whether the newest backup leads to a moment, if there is a backup at all."""
        with self.vault.catalog.read() as conn:
            found = replaying.stretches(conn, self.vault.source)
        return not found or found[-1].end >= moment

    def check(self) -> None:
        """At rest."""
        self.vault.wanted = {}
        self.vault.check_accounts()
        with self.vault.catalog.read() as conn:
            lineages = list(conn.scalars(sa.select(t.lineage.c.id)))
            dead = [logs.weigh(conn, lineage).objects for lineage in lineages]
        if any(dead):
            raise Broken(f"{sum(dead)} pieces of log are needed by nobody")
        marked = [at for number, (at, _) in enumerate(self.vault.engine.states, 1) if number % self.vault.engine.every == 0]
        if marked and not self.leads_to(marked[-1]):
            self.vault.clock.passed += 10.0
            self.vault.follow()  # which takes a backup, unless that has just been tried
            if not self.leads_to(marked[-1]):
                raise Broken(f"what is recorded does not lead on from the newest backup to {marked[-1]}")
        reachable = [at for at in marked for begin, end in self.spans() if begin <= at <= end]
        for at in self.random.sample(reachable, min(2, len(reachable))):
            if self.vault.restored_to(at) != self.vault.engine.held_at(at):
                raise Broken(f"moment {at} is not what it was")


def _joined(spans: Spans) -> Spans:
    joined: Spans = []
    for begin, end in sorted(spans):
        if end <= begin:
            continue
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording without a backup to begin after takes one every few seconds, not every hour."""
    monkeypatch.setattr(following, "_ASK_AGAIN", 5.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_history_of_a_recording(seed: int, tmp_path: Path) -> None:
    """See the module."""
    History(tmp_path, seed).run()


def _nobody_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a running backup may go on by is taken from it."""
    real = logs._dead

    def dead(conn: sa.Connection, lineage: str, without: Any = ()) -> Any:
        rows = conn.execute(sa.select(t.part.c.seq).where(t.part.c.lineage == lineage, t.part.c.state == "BUILDING"))
        return real(conn, lineage, {*without, *(row.seq for row in rows)})

    monkeypatch.setattr(logs, "_dead", dead)


def _one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The piece that the oldest backup stands in goes as well."""
    real = logs._dead

    def dead(conn: sa.Connection, lineage: str, without: Any = ()) -> Any:
        first = sa.select(sa.func.min(t.segment.c.upto)).where(t.segment.c.lineage == lineage).scalar_subquery()
        more = sa.and_(t.segment.c.lineage == lineage, t.segment.c.upto == first, sa.literal(bool(without)))
        return sa.or_(real(conn, lineage, without), more)

    monkeypatch.setattr(logs, "_dead", dead)


def _trims_by_age_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old log goes though younger moments are reached by it."""

    def trim(self: recording.TrimJob, conn: sa.Connection, lineage: str) -> bool:
        old = sa.and_(t.segment.c.lineage == lineage, t.segment.c.end_at <= self._ctx.ambient.now() - 7 * 86400.0)
        keys = list(conn.scalars(sa.select(t.segment.c.object).where(old)))
        conn.execute(sa.delete(t.segment).where(t.segment.c.object.in_(keys)))
        condemn(conn, keys, removal.of_lineage(lineage))
        return bool(keys)

    monkeypatch.setattr(recording.TrimJob, "_trim", trim)


@pytest.mark.parametrize(
    ("plant", "acts"),
    [(_nobody_builds, ()), (_one_too_many, ()), (_trims_by_age_alone, ("backup", "follow", "age"))],
)
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], acts: Sequence[str], tmp_path: Path) -> None:
    """Some history, of these acts, breaks an invariant under it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        plant(monkeypatch)
        for seed in PLANTED_SEEDS:
            try:
                History(tmp_path / str(seed), seed, acts).run()
            except AssertionError:
                return
    pytest.fail(f"{plant.__name__} was not found in {len(PLANTED_SEEDS)} histories")
