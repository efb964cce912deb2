"""The workloads. Each takes every tool through the same steps and adds a result a step.

    W1      20 backups of 1 GiB of large files; delete one in the middle and give back all that it owned
    W2      13 backups of 40,000 files of 2 KiB; the same
    W3F     one backup's 16 MiB, deleted from repositories of 1,000, 10,000 and 100,000 small files
    W4      first backup of 1 GiB (half noise, half rows), a second one after 2 % changed in every file, and a restore
    CONC    a backup is deleted, and its space given back, while a running backup re-uses its data

What a backup alone owns is measured, not computed: the same series of backups is taken twice from the same empty repository,
with and without the victim, and the repositories' sizes are compared.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers import data, folders
from benchmarks.peers.data import LargeFiles, MiB, SmallFiles, noise
from benchmarks.peers.session import Session
from benchmarks.peers.tools import Tool
from benchmarks.reporting import Results


class Tree(Protocol):
    """A source of test data that changes from day to day."""

    def make(self, root: Path) -> None:
        """Its first state."""

    def step(self, root: Path, day: int) -> None:
        """The next day's state."""


@dataclass(frozen=True)
class Bench:
    """Where and how often to measure. `scale` shrinks counts of files for a quick look; figures are for 1."""

    work: Path
    results: Results
    tools: Mapping[str, type[Tool]]
    runs: int = 3
    scale: float = 1.0

    @property
    def tree(self) -> Path:
        """Where the data lies that is backed up."""
        return self.work / "tree"

    @property
    def restored(self) -> Path:
        """Where restores go."""
        return self.work / "restored"

    def count(self, full: int, least: int = 1) -> int:
        """A count of files at this scale."""
        return max(least, round(full * self.scale))


Opening = Callable[[str], Session]
"""A fresh session of one tool for the workload of this name."""


def probe(bench: Bench) -> dict[str, Any]:
    """The machine at this moment: load, and a quick look at processor and disk, in MB/s."""
    begun = time.monotonic()
    found = hashlib.sha256()
    for _ in range(256):
        found.update(bytes(MiB))
    hashing = 256 * MiB / 1e6 / (time.monotonic() - begun)
    path, block = bench.work / "probe", noise(4 * MiB, 0)
    begun = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for _ in range(16):
            file.write(block)
    folders.listing(bench.work / "nothing")  # syncs
    writing = 64 * MiB / 1e6 / (time.monotonic() - begun)
    path.unlink()
    load = float(Path("/proc/loadavg").read_text("ascii").split()[0])
    return {"load": load, "sha256_mbps": round(hashing), "disk_mbps": round(writing)}


def w1(bench: Bench, name: str, opening: Opening) -> None:
    """One of many, large files."""
    _one_of_many(bench, name, opening, "W1", LargeFiles(bench.count(64, 8)), backups=20)


def w2(bench: Bench, name: str, opening: Opening) -> None:
    """One of many, small files."""
    _one_of_many(bench, name, opening, "W2", SmallFiles(bench.count(40_000, 2_000)), backups=13)


def _one_of_many(bench: Bench, name: str, opening: Opening, workload: str, tree: Tree, backups: int) -> None:
    session, victim = opening(workload), backups // 2
    session.save()
    without = _series(bench, session, tree, backups, leave_out=victim)
    session.put_back()
    with_all = _series(bench, session, tree, backups, leave_out=None)
    owned = with_all.size - without.size
    bench.results.add(
        benchmark=workload, tool=name, what="built", size=with_all.size, owned=owned,
        beside=folders.on_disk(folders.listing(session.tool.state)),
        first_s=with_all.walls[0], later_s=statistics.median(with_all.walls[1:]),
    )  # fmt: skip
    session.save()
    for mode in session.tool.modes:
        for run in range(bench.runs):
            if run or mode != session.tool.modes[0]:
                session.put_back()
            machine = probe(bench)
            figures = session.delete_and_free(with_all.ids[victim], mode)
            if run == 0:
                figures["neighbours_whole"] = all(
                    session.restores(with_all.ids[day], bench.tree, wanted, bench.restored)[0]
                    for day, wanted in with_all.neighbours.items()
                )
                figures["check"] = session.run(session.tool.check()).brief
            share = round(figures["freed"] / owned, 4) if owned > 0 else None
            bench.results.add(
                benchmark=workload, tool=name, what="delete", mode=mode, run=run, owned=owned, freed_share=share,
                machine=machine, **figures,
            )  # fmt: skip
    session.drop()


@dataclass(frozen=True)
class _Series:
    """What a series of backups left."""

    ids: Sequence[str]
    walls: Sequence[float]
    neighbours: dict[int, str]  # day → digest of the tree, for the days beside the victim
    size: int


def _series(bench: Bench, session: Session, tree: Tree, backups: int, leave_out: int | None) -> _Series:
    folders.fresh(bench.tree)
    tree.make(bench.tree)
    victim, ids, walls = backups // 2, list[str](), list[float]()
    neighbours: dict[int, str] = {}
    for day in range(backups):
        if day:
            tree.step(bench.tree, day)
        if abs(day - victim) == 1:
            neighbours[day] = folders.digest(bench.tree)
        if day == leave_out:
            ids.append("")
            continue
        taken = session.backup(bench.tree, f"day-{day}")
        ids.append(taken.id)
        walls.append(taken.cost.wall)
    return _Series(ids, walls, neighbours, session.size())


def w3f(bench: Bench, name: str, opening: Opening) -> None:
    """Growth: the same delete in repositories of more and more objects."""
    session, written = opening("W3F"), 0
    folders.fresh(bench.tree)
    for level in (bench.count(1_000), bench.count(10_000), bench.count(100_000)):
        for number in range(written, level):
            data.write(bench.tree / f"{number // 200:04d}" / f"{number:06d}.bin", noise(2048, 30_000 + number))
        written = level
        session.backup(bench.tree, f"base-{level}")
        for run in range(bench.runs):
            data.write(bench.tree / "victim.bin", noise(16 * MiB, 9_900 + level + run))
            victim = session.backup(bench.tree, f"victim-{level}-{run}")
            (bench.tree / "victim.bin").unlink()
            session.backup(bench.tree, f"after-{level}-{run}")
            machine = probe(bench)
            figures = session.delete_and_free(victim.id, session.tool.exact)
            bench.results.add(
                benchmark="W3F", tool=name, what="delete", mode=session.tool.exact, small_files=level, run=run,
                machine=machine, **figures,
            )  # fmt: skip
    session.drop()


def w4(bench: Bench, name: str, opening: Opening) -> None:
    """Throughput, and what a small change everywhere costs."""
    tree = LargeFiles(bench.count(64, 8))
    for run in range(bench.runs):
        session = opening("W4")
        folders.fresh(bench.tree)
        tree.make(bench.tree)
        folders.digest(bench.tree)  # reads it all, so that every tool finds it in memory
        machine = probe(bench)
        first = session.backup(bench.tree, "first").cost
        begun = time.monotonic()
        size = session.size()
        syncing = time.monotonic() - begun
        changed = tree.touch_all(bench.tree)
        second = session.backup(bench.tree, "second")
        grown = session.size() - size
        right, restore = session.restores(second.id, bench.tree, folders.digest(bench.tree), bench.restored)
        million = tree.bytes / 1e6
        bench.results.add(
            benchmark="W4", tool=name, what="throughput", run=run, machine=machine, size=size,
            first_mbps=round(million / max(first.wall, 1e-3)), first_synced_mbps=round(million / (first.wall + syncing)),
            second_s=second.cost.wall, stored_per_changed=round(grown / changed, 2),
            restore_mbps=round(million / max(restore.wall, 1e-3)), restored_right=right,
            first=first.brief, second=second.cost.brief, restore=restore.brief,
        )  # fmt: skip
        session.drop()


def conc(bench: Bench, name: str, opening: Opening) -> None:
    """A running backup re-uses the data of the one that is deleted: in the middle of the history, and its newest."""
    if name == "cp":
        return
    for mode in bench.tools[name].modes:
        for victim in (1, 3):
            _delete_while_building(bench, name, opening("CONC"), mode, victim)


def _delete_while_building(bench: Bench, name: str, session: Session, mode: str, victim: int) -> None:
    folders.fresh(bench.tree)
    ids: list[str] = []
    for day in range(4):
        data.write(bench.tree / "base.db", noise(32 * MiB, 1))
        data.write(bench.tree / "own.db", noise(16 * MiB, 60 + day))
        ids.append(session.backup(bench.tree, f"day-{day}").id)
    pieces = [noise(16 * MiB, 60 + victim), noise(24 * MiB, 99), noise(8 * MiB, 98)]
    stream = session.tool.stream(bench.tree, "live", bench.work)
    stream.write(pieces[0])
    stream.write(pieces[1])
    time.sleep(3)  # it has taken all of that in
    before = session.size()
    costs = [session.run(session.tool.delete(ids[victim]), quiet=True)]
    costs += [session.run(words, quiet=True) for words in session.tool.free(mode)]
    freed = before - session.size()
    stream.write(pieces[2])
    ended = stream.finish()
    whole = ended.code == 0 and _restores_stream(bench, session, session.tool.id_of(ended, "live"), b"".join(pieces))
    bench.results.add(
        benchmark="CONC", tool=name, what="delete while building", mode=mode, victim="newest" if victim == 3 else "middle",
        codes=[cost.code for cost in costs], walls=[cost.wall for cost in costs], freed=freed, backup_code=ended.code,
        running_backup_whole=whole, check=session.run(session.tool.check(), quiet=True).code,
        said=[(cost.err or cost.out)[-160:] for cost in costs if cost.code],
    )  # fmt: skip
    session.drop()


def _restores_stream(bench: Bench, session: Session, backup: str, wanted: bytes) -> bool:
    """Whether the streamed backup comes back byte for byte."""
    folders.fresh(bench.restored)
    if not backup or session.run(session.tool.restore(backup, bench.restored), quiet=True).code:
        return False
    found = list(folders.files(bench.restored))
    return len(found) == 1 and found[0].read_bytes() == wanted


Workload = Callable[[Bench, str, Opening], None]
WORKLOADS: dict[str, Workload] = {"W1": w1, "W2": w2, "W3F": w3f, "W4": w4, "CONC": conc}
