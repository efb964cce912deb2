"""Backups of one real Cassandra node, beside Cassandra's own way: `nodetool snapshot` and copying the files.

python -m benchmarks.cassandra_backups --work DIR [--mib 256]

One run measures both, one after the other, on the same node and data: a first backup, then one after a hundredth of the rows
were written anew, both to durable files. Bytes are what the copy or the store holds more than before. The jars are those that
scripts/test fetches.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from strongroom.storage.opening import open_store
from support.cassandra_house import CassandraHouse
from support.cassandra_node import LIB, CassandraNode
from support.cassandra_samples import insert

_ROW = 32 << 10  # bytes


def main() -> None:
    """Prints one JSON line with seconds, bytes and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--mib", type=int, default=256)
    given = parser.parse_args()
    if not LIB.is_dir():
        sys.exit(f"Cassandra's jars are not in {LIB}: scripts/test fetches them")
    folder = given.work / f"cassandra-{int(time.time())}"
    (folder / "house").mkdir(parents=True)
    node = CassandraNode(folder / "node").start()
    try:
        store = open_store(str(folder / "store"))
        with CassandraHouse(folder / "house", store=store) as house, node.session() as session:
            print(json.dumps(_measure(node, house, session, given.mib << 20, folder)))
    finally:
        node.stop()
        shutil.rmtree(folder)


def _measure(node: CassandraNode, house: CassandraHouse, session: Any, size: int, folder: Path) -> dict[str, Any]:
    session.execute("CREATE KEYSPACE bench WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}")
    session.execute("CREATE TABLE bench.rows (id int PRIMARY KEY, body blob)")
    count = size // _ROW
    _write(session, range(count), 1)
    instance = house.register(node)
    result: dict[str, Any] = {"plain_mib": round(size / 2**20)}
    for number, name in enumerate(("first", "second")):
        if number:
            _write(session, range(0, count, 100), 2)
        held = house.size()
        theirs = _timed(lambda number=number: _copy(node, folder / f"copy-{number}"))  # type: ignore[misc]
        ours = _timed(lambda: house.backup(instance))
        copied = sum(path.stat().st_size for path in (folder / f"copy-{number}").rglob("*") if path.is_file())
        stored = house.size() - held
        result[name] = {
            "nodetool_cp_seconds": round(theirs, 2), "strongroom_seconds": round(ours, 2), "time_ratio": round(ours / theirs, 2),
            "cp_bytes": copied, "strongroom_bytes": stored, "bytes_ratio": round(stored / copied, 4),
        }  # fmt: skip
    return result


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _write(session: Any, ids: range, seed: int) -> None:
    noise = random.Random(seed)
    for start in range(0, len(ids), 200):
        rows = [(one, noise.randbytes(_ROW)) for one in ids[start : start + 200]]
        insert(session, "INSERT INTO bench.rows (id, body) VALUES (?, ?)", rows)


def _copy(node: CassandraNode, place: Path) -> None:
    """What the manual says: a snapshot, its files copied away, the snapshot cleared."""
    node.nodetool("snapshot", "-t", "by-hand", "bench")
    for found in node.data.glob("bench/*/snapshots/by-hand"):
        shutil.copytree(found, place / found.parents[1].name)
    for path in place.rglob("*"):  # durable, as what it is compared with
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    node.nodetool("clearsnapshot", "-t", "by-hand", "--")


if __name__ == "__main__":
    main()
