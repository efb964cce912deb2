"""How much waits: a year of daily backups with expiry, through the shipped code on a store in memory.

Records change in place; each day one backup is taken and what the retention no longer keeps is deleted. After every day the dead
bytes inside living objects are set against all that is stored.

The databases:
    uniform   1 % of the records a day, anywhere
    mixture   half of it at 0.05 %, a fifth at 1 %, three twentieths at 2 % in a few neighbourhoods, a twentieth at 20 %, and a
              tenth that is written round and round (a queue)

The retentions: `oldest` keeps the newest 30; `gfs` keeps 7 days, 4 weeks, 12 months.

Everything is scaled down together: chunks of 4 KiB, records of 256 bytes and packs of 512 KiB in 64 MiB stand for chunks of
16 KiB, records of 1 KiB and packs of 2 MiB in a quarter of a GiB. The data do not compress.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from benchmarks.house import House, opened
from benchmarks.reporting import MiB, Results, table
from strongroom.backups import deletion
from strongroom.backups.context import Options
from strongroom.catalog import tables as t
from strongroom.storage.memory import MemoryStore

RECORD = 256  # bytes
CHUNK = 4096
PACK = 512 << 10

Records = NDArray[np.uint8]
Change = Callable[[Records, np.random.Generator, int], NDArray[np.int64]]


def uniform(records: Records, rng: np.random.Generator, day: int) -> NDArray[np.int64]:
    """The records that change on a day."""
    del day
    return rng.choice(len(records), len(records) // 100, replace=False)


def mixture(records: Records, rng: np.random.Generator, day: int) -> NDArray[np.int64]:
    """The records that change on a day."""
    ends = (np.cumsum([0.5, 0.2, 0.15, 0.05]) * len(records)).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    some = [
        rng.integers(start, end, int((end - start) * rate))
        for start, end, rate in zip(starts[[0, 1, 3]], ends[[0, 1, 3]], (0.0005, 0.01, 0.2), strict=True)
    ]
    middle, spread = rng.integers(starts[2], ends[2], 8), 512
    near = np.repeat(middle, (ends[2] - starts[2]) // 50 // 8) + rng.normal(
        0, spread, (ends[2] - starts[2]) // 50 // 8 * 8
    ).astype(int)
    some.append(np.clip(near, starts[2], ends[2] - 1))
    ring = len(records) - ends[3]
    some.append(ends[3] + (np.arange(ring // 10) + day * (ring // 10)) % ring)
    return np.unique(np.concatenate(some))


DATABASES: dict[str, Change] = {"uniform": uniform, "mixture": mixture}


def oldest(days: Sequence[int], today: int) -> set[int]:
    """The days to keep."""
    del today
    return set(days[-30:])


def gfs(days: Sequence[int], today: int) -> set[int]:
    """The days to keep."""
    weeks = [day for day in days if day % 7 == 0][-4:]
    months = [day for day in days if day % 30 == 0][-12:]
    return {day for day in days if day > today - 7} | set(weeks) | set(months)


RETENTIONS: dict[str, Callable[[Sequence[int], int], set[int]]] = {"oldest": oldest, "gfs": gfs}


@dataclass
class Year:
    """What the deletes of a history added up to, in bytes."""

    deletes: int = 0
    owned: int = 0
    freed: int = 0
    net: int = 0
    written: int = 0
    at_once: list[float] | None = None  # of each delete, what came back of what it owned
    worst: float = 0.0  # rewritten per owned byte
    peak: float = 0.0  # waiting share

    def add(self, receipt: dict[str, Any]) -> None:
        owned, again = receipt["promised"]["owned"], receipt["reclaimed"]
        self.deletes += 1
        self.owned += owned
        self.freed += receipt["freed"]
        self.net += again["net"]
        self.written += again["written"]
        self.at_once = [*(self.at_once or []), (receipt["freed"] + again["net"]) / max(owned, 1)]
        self.worst = max(self.worst, again["written"] / max(owned, 1))


def waits(house: House) -> tuple[int, int]:
    """Dead bytes inside living objects, and all that is stored."""
    with house.context.catalog.read() as conn:
        query = sa.select(sa.func.sum(t.object_.c.dead_bytes), sa.func.sum(t.object_.c.bytes)).where(
            t.object_.c.state == "STORED"
        )
        dead, stored = conn.execute(query).one()
    return int(dead), int(stored)


def run(database: str, retention: str, budget: float, days: int, size: int, scratch: Path, results: Results) -> None:
    """One history. `size`: bytes of the database."""
    rng = np.random.default_rng(1)
    records = rng.integers(0, 256, (size // RECORD, RECORD), np.uint8)
    options = Options(chunk_average=CHUNK, pack_target=PACK, reclaim_budget=budget, verify_after_delete=0)
    tree = scratch / "tree"
    tree.mkdir()
    year, kept, share, stored = Year(), dict[int, str](), 0.0, 0
    with opened(MemoryStore(), scratch / "data", threads=0, options=options) as house:
        for day in range(days):
            if day:
                changed = DATABASES[database](records, rng, day)
                records[changed] = rng.integers(0, 256, (len(changed), RECORD), np.uint8)
            kept[day] = house.backup(tree, f"day-{day}", io.BytesIO(records.tobytes()))[0]
            for gone in sorted(kept.keys() - RETENTIONS[retention](sorted(kept), day)):
                backup = kept.pop(gone)
                house.delete(backup)
                house.finish_deletes()
                with house.context.catalog.read() as conn:
                    year.add(deletion.receipt(conn, backup))
            dead, stored = waits(house)
            share = dead / stored
            year.peak = max(year.peak, share)
        wrong = house.check()
        assert not wrong, wrong
    back = sorted(year.at_once or [0.0])
    results.add(
        bench="waiting", database=database, retention=retention, budget=budget, days=days, deletes=year.deletes,
        waiting_end_percent=100 * share, waiting_peak_percent=100 * year.peak,
        back_of_owned_percent=100 * (year.freed + year.net) / max(year.owned, 1),
        back_at_once_median_percent=100 * back[len(back) // 2], back_at_once_tenth_percent=100 * back[len(back) // 10],
        written_per_owned=year.written / max(year.owned, 1), written_per_owned_worst=year.worst, stored_mib=stored / MiB,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--mib", type=int, default=64, help="size of the database")
    parser.add_argument("--databases", default="uniform,mixture")
    parser.add_argument("--retentions", default="oldest,gfs")
    parser.add_argument("--budgets", default="0,1", help="bytes rewritten per byte owned")
    parser.add_argument("--out", type=Path, help="append results to this file, as JSON lines")
    options = parser.parse_args(argv)
    results = Results(options.out)
    for database in options.databases.split(","):
        for retention in options.retentions.split(","):
            for budget in options.budgets.split(","):
                with tempfile.TemporaryDirectory() as folder:
                    run(database, retention, float(budget), options.days, options.mib << 20, Path(folder), results)
    columns = (
        "database", "retention", "budget", "waiting_end_percent", "waiting_peak_percent", "back_of_owned_percent",
        "back_at_once_median_percent", "back_at_once_tenth_percent", "written_per_owned", "written_per_owned_worst", "stored_mib",
    )  # fmt: skip
    print(table(results.rows, columns))


if __name__ == "__main__":
    main()
