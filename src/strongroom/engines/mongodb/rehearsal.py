"""Trying a restore out: a MongoDB that is thrown away, and whether it holds what the backup says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blake3 import blake3
from pymongo import MongoClient

from strongroom.ambient import Ambient
from strongroom.engines import sandboxing
from strongroom.engines.base import Comparison, Control, RestoreSource, Target
from strongroom.engines.exporting import new_folder
from strongroom.engines.mongodb.catalogue import Collection, belongs
from strongroom.engines.mongodb.connection import Client, connected, translated
from strongroom.engines.mongodb.contents import read_all
from strongroom.engines.mongodb.reading import raw_batches
from strongroom.engines.mongodb.touched import TouchedIds

_MOST_DIFFERENCES = 20
_USER = "rehearsal"
_BITS = (1 << 128) - 1


@contextmanager
def sandbox(folder: Path, control: Control, ambient: Ambient) -> Iterator[Target]:
    """See Rehearser: a stand-alone server with one user. Nothing expires in it."""
    found = sandboxing.program("mongod", "STRONGROOM_MONGOD")
    new_folder(folder / "data")
    password = ambient.hex_id()

    def command(port: int) -> list[str]:
        return [
            found, "--dbpath", str(folder / "data"), "--port", str(port), "--bind_ip", "127.0.0.1", "--nounixsocket", "--auth",
            "--wiredTigerCacheSizeGB", "0.25", "--setParameter", "ttlMonitorEnabled=false",
            "--setParameter", "diagnosticDataCollectionEnabled=false",
        ]  # fmt: skip

    def ready(port: int) -> bool:
        """Comes up, and lets in the first user, whom nobody needs to be to make."""
        with translated():
            address = f"mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=500"
            with MongoClient[Any](address) as client:
                client.admin.command("createUser", _USER, pwd=password, roles=["root"])
        return True

    with sandboxing.running(command, ready, folder, control, ambient) as port:
        yield Target(f"mongodb://{_USER}@127.0.0.1:{port}/?directConnection=true", password)


def compare(target: Target, source: RestoreSource, control: Control, scratch: str) -> Comparison:
    """See Rehearser: of every collection the documents, whatever their order, and the indexes."""
    path = os.path.join(scratch, "compared")
    touched = TouchedIds(path)
    try:
        contents = read_all(source, touched, control)
        with connected(target) as client:
            report = _Report()
            for item in sorted(contents.collections, key=lambda one: (one.database, one.name)):
                report.collection(item.database, item.name, _indexes(item), _index_names(client, item))
                if item.has_documents:
                    wanted = _digest(contents.documents(source, touched, item), control)
                    report.documents(item, wanted, _digest(_documents(client, item), control))
            report.strangers(client, {(one.database, one.name) for one in contents.collections})
            return report.ended()
    finally:
        touched.close()
        os.unlink(path)


class _Report:
    def __init__(self) -> None:
        self._expected = {"collections": 0, "documents": 0, "indexes": 0}
        self._found = dict(self._expected)
        self._digests = 0
        self._differences: list[str] = []

    def collection(self, database: str, name: str, wanted: set[str], found: set[str] | None) -> None:
        self._expected["collections"] += 1
        self._expected["indexes"] += len(wanted)
        if found is None:
            self._differ(f"{database}.{name} is missing")
            return
        self._found["collections"] += 1
        self._found["indexes"] += len(found)
        if wanted != found:
            self._differ(f"{database}.{name} has the indexes {sorted(found)} instead of {sorted(wanted)}")

    def documents(self, item: Collection, wanted: tuple[int, int], found: tuple[int, int]) -> None:
        self._expected["documents"] += wanted[0]
        self._found["documents"] += found[0]
        self._digests += 1
        if wanted[0] != found[0]:
            self._differ(f"{item.namespace} has {found[0]} documents instead of {wanted[0]}")
        elif wanted != found:
            self._differ(f"{item.namespace} has other documents than were captured")

    def strangers(self, client: Client, known: set[tuple[str, str]]) -> None:
        for database in client.list_database_names():
            for name in client[database].list_collection_names():
                if belongs(database, name) and (database, name) not in known:
                    self._found["collections"] += 1
                    self._differ(f"{database}.{name} is not in the backup")

    def ended(self) -> Comparison:
        return Comparison(self._expected, self._found, self._digests, self._differences)

    def _differ(self, sentence: str) -> None:
        if len(self._differences) < _MOST_DIFFERENCES:
            self._differences.append(sentence)


def _digest(batches: Iterable[list[bytes]], control: Control) -> tuple[int, int]:
    """How many documents, and a sum over their digests: the same in any order."""
    count = total = 0
    for documents in batches:
        control.check()
        count += len(documents)
        for document in documents:
            total += int.from_bytes(blake3(document).digest(16), "big")
    return count, total & _BITS


def _documents(client: Client, item: Collection) -> Iterator[list[bytes]]:
    with client.start_session() as session:
        yield from raw_batches(client, session, item.database, {"find": item.stored_as})


def _indexes(item: Collection) -> set[str]:
    return {str(index["name"]) for index in item.indexes}


def _index_names(client: Client, item: Collection) -> set[str] | None:
    """None if there is no such collection or view."""
    if item.name not in client[item.database].list_collection_names(filter={"name": item.name}):
        return None
    if not item.has_documents:
        return set()
    found = client[item.database].command({"listIndexes": item.name, "cursor": {"batchSize": 1000}})
    return {str(index["name"]) for index in found["cursor"]["firstBatch"]}
