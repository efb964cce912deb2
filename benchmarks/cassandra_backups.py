"""Backups of one real Cassandra node, beside Cassandra's own way, `nodetool snapshot` and copying the files, and Medusa.

python -m benchmarks.cassandra_backups --work DIR [--mib 256] [--medusa PROGRAM]

One run measures all, one after the other, on the same node and data: a first backup, then one after a hundredth of the rows
were written anew, each to durable files. Bytes are what the copy or the store holds more than before. The jars are those that
scripts/test fetches. Medusa (cassandra-medusa, `medusa` on PATH or --medusa) backs up into a folder, differentially, as a command
each time; it is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from strongroom.storage.opening import open_store
from support.cassandra_house import CassandraHouse
from support.cassandra_node import LIB, MODULES, CassandraNode
from support.cassandra_samples import insert

_ROW = 32 << 10  # bytes


def main() -> None:
    """Prints one JSON line with seconds, bytes and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--medusa", default=shutil.which("medusa"), help="the program of cassandra-medusa")
    given = parser.parse_args()
    if not LIB.is_dir():
        sys.exit(f"Cassandra's jars are not in {LIB}: scripts/test fetches them")
    folder = given.work / f"cassandra-{int(time.time())}"
    (folder / "house").mkdir(parents=True)
    node = CassandraNode(folder / "node").start()
    try:
        store = open_store(str(folder / "store"))
        with CassandraHouse(folder / "house", store=store) as house, node.session() as session:
            medusa = None if given.medusa is None else Medusa(given.medusa, node, folder / "medusa")
            print(json.dumps(_measure(node, house, session, given.mib << 20, folder, medusa)))
    finally:
        node.stop()
        shutil.rmtree(folder)


class Medusa:
    """cassandra-medusa beside a node, with local storage."""

    def __init__(self, program: str, node: CassandraNode, folder: Path) -> None:
        self._program, self.store = program, folder / "store"
        (self.store / "bucket").mkdir(parents=True)
        nodetool = folder / "nodetool"
        words = ["java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *MODULES, f"-Dcassandra.storagedir={folder}"]
        words += [f"-Dcassandra.config=file://{node.folder}/cassandra.yaml", "-cp", f"{LIB}/*"]
        nodetool.write_text(f'#!/bin/sh\nexec {shlex.join(words)} org.apache.cassandra.tools.NodeTool "$@"\n')
        nodetool.chmod(0o700)
        settings = {
            "cassandra": {
                "config_file": f"{node.folder}/cassandra.yaml", "nodetool_executable": nodetool, "nodetool_host": "127.0.0.1",
                "nodetool_port": node.jmx_port, "nodetool_flags": "", "use_sudo": False, "resolve_ip_addresses": False,
            },
            "storage": {
                "storage_provider": "local", "base_path": self.store, "bucket_name": "bucket", "fqdn": node.address,
                "use_sudo_for_restore": False, "max_backup_age": 0, "max_backup_count": 0,
            },
            "logging": {"enabled": False},
        }  # fmt: skip
        self._config = folder / "medusa.ini"
        config = configparser.ConfigParser()
        config.read_dict({section: {name: str(value) for name, value in told.items()} for section, told in settings.items()})
        with self._config.open("w") as file:
            config.write(file)

    def backup(self, name: str) -> None:
        """One, differential, made durable."""
        words = [self._program, "--config-file", self._config, "backup", "--backup-name", name, "--mode", "differential"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0 or "ERROR" in done.stdout + done.stderr:  # a failed snapshot is a backup of nothing to it
            raise RuntimeError(f"medusa: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        _fsync(self.store)

    def size(self) -> int:
        """Bytes that it keeps."""
        return _bytes(self.store)


def _measure(
    node: CassandraNode, house: CassandraHouse, session: Any, size: int, folder: Path, medusa: Medusa | None
) -> dict[str, Any]:
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
        copied = _bytes(folder / f"copy-{number}")
        stored = house.size() - held
        result[name] = {
            "nodetool_cp_seconds": round(theirs, 2), "strongroom_seconds": round(ours, 2), "time_ratio": round(ours / theirs, 2),
            "cp_bytes": copied, "strongroom_bytes": stored, "bytes_ratio": round(stored / copied, 4),
        }  # fmt: skip
        if medusa is not None:
            before = medusa.size()
            beside = _timed(lambda name=name: medusa.backup(name))  # type: ignore[misc]
            kept = medusa.size() - before
            result[name] |= {
                "medusa_seconds": round(beside, 2), "time_by_medusas": round(ours / beside, 2), "medusa_bytes": kept,
                "bytes_by_medusas": round(stored / kept, 4),
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
    _fsync(place)
    node.nodetool("clearsnapshot", "-t", "by-hand", "--")


def _fsync(place: Path) -> None:
    """Makes all of a folder durable, as what it is compared with."""
    for path in place.rglob("*"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _bytes(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
