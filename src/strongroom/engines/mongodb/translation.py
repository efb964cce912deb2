"""From entries of an oplog to operations of the command `applyOps`, for a server that holds the backup of just before them.

An operation keeps what it does (`op`, `ns`, `o`, `o2`, `b`) and loses what belongs to the source alone: UUIDs of collections,
sessions, times. A transaction that fills several entries takes effect with its last one; one whose last entry is missing has
never been. Which collections there are is followed from entry to entry, so that an operation on something that neither the
backup nor the log has made is seen before anything is changed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument

from strongroom.engines.base import EngineUnsupported
from strongroom.engines.mongodb.catalogue import TEMPORARY_ROLES, TEMPORARY_USERS, belongs, to_make
from strongroom.engines.mongodb.connection import as_number
from strongroom.engines.mongodb.documents import NotBson, decode, elements, encode, frames
from strongroom.engines.mongodb.names import split_namespace
from strongroom.engines.mongodb.oplog import SHARDED
from strongroom.engines.mongodb.reading import pieces_of

VIEWS, FUNCTIONS, BUCKETS = "system.views", "system.js", "system.buckets."

# Where the entries of users and roles go: beside the accounts of the backup, not of the server that is restored into.
_ACCOUNTS = {"system.users": TEMPORARY_USERS, "system.roles": TEMPORARY_ROLES}

_KEPT = frozenset({b"op", b"ns", b"o", b"o2", b"b"})
_PASSED_OVER = frozenset({"startIndexBuild", "abortIndexBuild", "abortTransaction", "dbCheck"})
_SAID_BEFORE = "dropDatabase"  # each of its collections has a `drop` of its own before it
_INDEXES = frozenset({"createIndexes", "commitIndexBuild", "dropIndexes", "dropIndex", "deleteIndexes", "deleteIndex"})
_ON_A_COLLECTION = _INDEXES | {"create", "drop", "collMod", "convertToCapped", "emptycapped"}
_TEMPORARY = "tmp"  # how the server begins the names of collections that a command makes for itself


@dataclass(frozen=True, slots=True)
class Command:
    """What applyOps does not do: it refuses createIndexes, and takes dropIndexes without doing anything."""

    database: str
    body: Mapping[str, Any]


class Translator:
    """Follows one log from its beginning to its end.

    `names` are the namespaces that hold documents in the backup, and those of the server's own that a restore leaves in place
    (`system.views`, `system.js`). `scratch` is a folder for the parts of transactions that fill several entries.
    """

    def __init__(self, names: Iterable[str], scratch: str) -> None:
        self._names = set(names)
        self._open: dict[tuple[bytes, int], str] = {}
        self._scratch = scratch
        self._files = 0
        self.left_out: set[str] = set()  # namespaces that a command was still filling when the backup was taken

    def operations(self, entry: RawBSONDocument, since: int) -> Iterator[bytes | Command]:
        """What an entry does, as operations of applyOps. One at or before `since` is in the backup already: of it only the
        parts of a transaction that ends later are kept. Raises EngineUnsupported for what cannot be replayed, NotBson."""
        try:
            if entry["op"] == "c" and "applyOps" in entry["o"]:
                yield from self._transaction(entry, as_number(entry["ts"]) > since)
            elif as_number(entry["ts"]) > since:
                yield from self._operation(entry)
        except NotBson:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, struct.error, InvalidBSON) as error:
            raise NotBson(f"an entry of the oplog is not whole ({error})") from error

    def close(self) -> None:
        """Forgets the transactions that the log does not end."""
        for path in self._open.values():
            os.unlink(path)
        self._open.clear()

    def _transaction(self, entry: RawBSONDocument, wanted: bool) -> Iterator[bytes | Command]:
        command = entry["o"]
        if command.get("prepare"):
            raise EngineUnsupported(SHARDED)
        key = _session(entry)
        if command.get("partialTxn"):
            if key is None:
                raise NotBson("a part of a transaction does not say of which")
            if key not in self._open:
                self._files += 1
                self._open[key] = os.path.join(self._scratch, f"transaction-{self._files}")
            with open(self._open[key], "ab") as file:
                file.write(entry.raw)
            return
        path = self._open.pop(key, None) if key is not None else None
        if path is not None:
            if wanted:
                for parts in frames(pieces_of(path)):
                    for part in parts:
                        yield from self._inner(decode(part)["o"])
            os.unlink(path)
        if wanted:
            yield from self._inner(command)

    def _inner(self, command: Mapping[str, Any]) -> Iterator[bytes | Command]:
        for operation in command["applyOps"]:
            yield from self._operation(operation)

    def _operation(self, entry: RawBSONDocument) -> Iterator[bytes | Command]:
        kind = entry["op"]
        if kind == "n":
            return
        database, collection = split_namespace(str(entry["ns"]))
        if kind == "c":
            yield from self._command(database, entry)
        elif kind not in ("i", "u", "d"):
            raise EngineUnsupported(f"the oplog holds an operation of the unknown kind {kind!r}")
        elif database == "admin" and collection in _ACCOUNTS:
            yield _kept(entry, ns=f"admin.{_ACCOUNTS[collection]}")
        elif _replayed(database, collection):
            if collection == VIEWS:
                yield from self._views(database)
            if self._there(f"{database}.{collection}"):
                if kind == "u" and "o2" not in entry:
                    raise NotBson("an update does not say of which document")
                yield _kept(entry)

    def _views(self, database: str) -> Iterator[bytes]:
        """A source keeps the collection when its last view is gone; a restore makes it with the first."""
        namespace = f"{database}.{VIEWS}"
        if namespace not in self._names:
            self._names.add(namespace)
            yield encode({"op": "c", "ns": f"{database}.$cmd", "o": {"create": VIEWS}})

    def _command(self, database: str, entry: RawBSONDocument) -> Iterator[bytes | Command]:
        command = entry["o"]
        name = next(iter(command), "")
        if name == "applyOps":
            yield from self._inner(command)
        elif name == "commitTransaction":
            raise EngineUnsupported(SHARDED)
        elif name in _PASSED_OVER or name == _SAID_BEFORE:
            return
        elif name == "renameCollection":
            yield from self._rename(entry, str(command[name]), str(command["to"]))
        else:
            yield from self._on_collection(name, database, str(command[name]), entry)

    def _on_collection(self, name: str, database: str, collection: str, entry: RawBSONDocument) -> Iterator[bytes | Command]:
        if name not in _ON_A_COLLECTION:
            raise EngineUnsupported(f"the oplog holds the unknown command {name!r}")
        if not _replayed(database, collection):
            return
        namespace = f"{database}.{collection}"
        if name == "create":
            if namespace in self._names and collection in (VIEWS, FUNCTIONS):
                return  # what is left of them in the target is not dropped by a restore
            self._names.add(namespace)
            self.left_out.discard(namespace)
            yield _kept(entry)
        elif collection == VIEWS and namespace not in self._names:
            return
        elif self._there(namespace):
            if name == "drop":
                self._names.discard(namespace)
            if name in _INDEXES:
                yield Command(database, _on_indexes(name, collection, entry["o"]))
            else:
                yield _kept(entry)

    def _rename(self, entry: RawBSONDocument, old: str, new: str) -> Iterator[bytes | Command]:
        if not _replayed(*split_namespace(old)) and not _replayed(*split_namespace(new)):
            return
        if not self._there(old):
            raise EngineUnsupported(
                f"when the backup was taken a command was filling {new!r} by way of {old!r}, which is in no backup: "
                "restore to a time after the next backup, from that one"
            )
        self._names.discard(old)
        if entry["o"].get("dropTarget"):  # by its UUID, which is the source's alone: the server would put the target aside
            database, collection = split_namespace(new)
            yield encode({"op": "c", "ns": f"{database}.$cmd", "o": {"drop": collection}})
        self._names.add(new)
        yield _kept(entry, o={"renameCollection": old, "to": new, "stayTemp": bool(entry["o"].get("stayTemp"))})

    def _there(self, namespace: str) -> bool:
        """False for what a command made for itself before the backup: those collections no backup holds."""
        if namespace in self._names:
            return True
        if not split_namespace(namespace)[1].startswith(_TEMPORARY):
            raise EngineUnsupported(f"the oplog writes to {namespace!r}, which neither the backup has nor the oplog has made")
        self.left_out.add(namespace)
        return False


def _on_indexes(name: str, collection: str, command: Mapping[str, Any]) -> Mapping[str, Any]:
    if name in ("commitIndexBuild", "createIndexes"):
        indexes = command["indexes"] if name == "commitIndexBuild" else [command]
        return {"createIndexes": collection, "indexes": [to_make(index) for index in indexes]}
    return {"dropIndexes": collection, "index": command["index"]}


def _session(entry: RawBSONDocument) -> tuple[bytes, int] | None:
    if "lsid" not in entry or "txnNumber" not in entry:
        return None
    return bytes(entry["lsid"].raw), int(entry["txnNumber"])


def _replayed(database: str, collection: str) -> bool:
    """As a capture does: neither the server's own nor what a restore of ours puts into `admin`."""
    if database in ("local", "config"):
        return False
    return belongs(database, collection) or (database != "admin" and (collection == VIEWS or collection.startswith(BUCKETS)))


def _kept(entry: RawBSONDocument, **changed: Any) -> bytes:
    """The entry's fields that count, as the source wrote them but for those that are changed."""
    raw = bytes(entry.raw)
    if changed:
        fields = {name: changed.get(name, entry[name]) for name in ("op", "ns", "o", "o2", "b") if name in entry}
        return encode(fields)
    body = b"".join(bytes([kind]) + name + b"\0" + raw[start:stop] for kind, name, start, stop in elements(raw) if name in _KEPT)
    return (len(body) + 5).to_bytes(4, "little") + body + b"\0"
