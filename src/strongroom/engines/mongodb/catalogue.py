"""The catalogue: which collections and views there are, with options and indexes, and how it is kept in a backup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure

from strongroom.engines.base import Control
from strongroom.engines.mongodb.connection import Client
from strongroom.engines.mongodb.documents import NotBson, decode, encode
from strongroom.engines.mongodb.oplog import Reshapes
from strongroom.engines.mongodb.reading import raw_batches

COLLECTION, VIEW, TIME_SERIES = "collection", "view", "timeseries"

# What a restore puts into `admin` on its way; never part of a backup.
TEMPORARY_USERS, TEMPORARY_ROLES, MARKER = "tempusers", "temproles", "strongroom_restore"

_GONE = frozenset({26, 166})  # NamespaceNotFound, CommandNotSupportedOnView: dropped meanwhile, or a view by now


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection, view or time series. `uuid` says whether it is still the same one; it is not kept in a backup."""

    database: str
    name: str
    kind: str
    options: RawBSONDocument
    indexes: tuple[RawBSONDocument, ...] = ()
    uuid: bytes = b""

    @property
    def stored_as(self) -> str:
        """The collection that holds the documents: a time series keeps them in buckets."""
        return f"system.buckets.{self.name}" if self.kind == TIME_SERIES else self.name

    @property
    def namespace(self) -> str:
        """Database and the collection that holds the documents."""
        return f"{self.database}.{self.stored_as}"

    @property
    def has_documents(self) -> bool:
        """False for views."""
        return self.kind != VIEW

    @property
    def capped(self) -> bool:
        """Capped collections promise their order of insertion."""
        return bool(self.options.get("capped"))

    def pack(self) -> bytes:
        """As a document of the entry `catalog`."""
        return encode(
            {
                "db": self.database,
                "name": self.name,
                "type": self.kind,
                "options": self.options,
                "indexes": list(self.indexes),
            }
        )


def to_make(index: Mapping[str, Any]) -> dict[str, Any]:
    """What createIndexes takes for an index that a server told of. One that is told without a collation has the simple one, which
    has to be said: without it the new index would take that of its collection."""
    return {
        "collation": {"locale": "simple"},
        **{key: value for key, value in index.items() if key not in ("createIndexes", "ns")},
    }


def unpack(document: bytes) -> Collection:
    """Back from `Collection.pack`. Raises NotBson if it is not one."""
    fields = decode(document)
    try:
        return Collection(
            str(fields["db"]), str(fields["name"]), str(fields["type"]), fields["options"], tuple(fields["indexes"])
        )
    except KeyError as error:
        raise NotBson(f"a document of the catalog lacks {error}") from error


def packed(collections: Iterable[Collection]) -> Iterator[bytes]:
    """The documents of the entry `catalog`, in an order that does not depend on the server."""
    for collection in sorted(collections, key=lambda item: (item.database, item.name)):
        yield collection.pack()


def belongs(database: str, name: str) -> bool:
    """Whether a collection belongs into a backup: not the server's own, nor what a restore puts there on its way."""
    if database in ("local", "config"):
        return False
    if database == "admin":
        return not name.startswith("system.") and name not in (TEMPORARY_USERS, TEMPORARY_ROLES, MARKER)
    return not name.startswith("system.") or name == "system.js"


@dataclass(slots=True)
class _Listing:
    collections: dict[str, Collection]
    since: int  # every change later than this may be missing


class Catalogue:
    """The catalogue of a server, brought up to date by listing again only what the oplog says has changed."""

    def __init__(self, client: Client, session: ClientSession, reshapes: Reshapes) -> None:
        self._client = client
        self._session = session
        self._reshapes = reshapes
        self._listings: dict[str, _Listing] = {}
        self._previous = 0
        self.warnings: set[str] = set()

    def begin(self, time: int, control: Control) -> None:
        """Lists every database; `time` must lie before the call."""
        self._previous = time
        for database in self._client.list_database_names():
            self._list(database, time, control)

    def refresh(self, time: int, control: Control) -> bool:
        """Lists again what changed since it was listed; everything up to `time` must be noted in the reshapes. False means
        that nothing was listed again: then the catalogue is the one of `time`.

        A change is in the oplog a moment before a listing shows it, so each is listed twice, by two calls."""
        latest = self._reshapes.databases()
        known = {database: listing.since for database, listing in self._listings.items()}
        stale = [database for database, changed in latest.items() if changed > known.get(database, -1)]
        for database in sorted(stale):
            self._list(database, self._previous, control)
        self._previous = time
        return bool(stale)

    def collections(self) -> list[Collection]:
        """All of it, sorted by database and name."""
        everything = (item for listing in self._listings.values() for item in listing.collections.values())
        return sorted(everything, key=lambda item: (item.database, item.name))

    def _list(self, database: str, time: int, control: Control) -> None:
        if database in ("local", "config"):
            return
        known = self._listings.get(database)
        found = {}
        entries = list(self._entries(database))
        uuids = {str(entry["name"]): _uuid(entry) for entry in entries}
        for entry in entries:
            control.check()
            name = str(entry["name"])
            if not belongs(database, name):
                continue
            if entry["options"].get("temp"):
                self.warnings.add(f"{database}.{name} is a temporary collection of a running command: left out")
                continue
            kind = str(entry["type"])
            uuid = uuids.get(f"system.buckets.{name}", b"") if kind == TIME_SERIES else _uuid(entry)
            indexes = self._known_indexes(known, database, name, uuid)
            if indexes is None:
                indexes = self._indexes(database, name) if kind != VIEW else ()
            if indexes is not None:
                found[name] = Collection(database, name, kind, entry["options"], indexes, uuid)
        self._listings[database] = _Listing(found, time)

    def _entries(self, database: str) -> Iterator[RawBSONDocument]:
        for batch in raw_batches(self._client, self._session, database, {"listCollections": 1}):
            yield from map(decode, batch)

    def _known_indexes(self, known: _Listing | None, database: str, name: str, uuid: bytes) -> tuple[RawBSONDocument, ...] | None:
        if known is None or not uuid:
            return None
        item = known.collections.get(name)
        if item is None or item.uuid != uuid:
            return None
        changed = any(self._reshapes.relisted(f"{database}.{part}", known.since) for part in {name, item.stored_as})
        return None if changed else item.indexes

    def _indexes(self, database: str, name: str) -> tuple[RawBSONDocument, ...] | None:
        """None if the collection is gone. Indexes that are still being built are not part of a backup."""
        found = []
        command = {"listIndexes": name, "includeBuildUUIDs": True}
        try:
            for batch in raw_batches(self._client, self._session, database, command):
                for index in map(decode, batch):
                    if "buildUUID" in index:
                        self.warnings.add(f"an index of {database}.{name} was being built: left out")
                    else:
                        found.append(index)
        except OperationFailure as error:
            if error.code in _GONE:
                return None
            raise
        return tuple(sorted(found, key=lambda index: str(index["name"])))


def _uuid(entry: RawBSONDocument) -> bytes:
    info: Any = entry.get("info", {})
    return bytes(info["uuid"]) if "uuid" in info else b""
