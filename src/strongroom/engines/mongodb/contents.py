"""What a backup holds, put together from its entries: dump, patch and touched ids become the state at its time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from strongroom.engines.base import Control, EngineUnsupported, RestoreSource
from strongroom.engines.mongodb.catalogue import Collection, unpack
from strongroom.engines.mongodb.documents import NotBson, frames, id_of, key_of
from strongroom.engines.mongodb.names import CATALOG, DATA, PATCH, ROLES, TOUCHED, USERS, entry_name, parse_entry_name
from strongroom.engines.mongodb.touched import TouchedIds


@dataclass(slots=True)
class Contents:
    """What the backup holds, known after every byte of it was read once."""

    collections: list[Collection] = field(default_factory=list)
    dumped: set[str] = field(default_factory=set)  # namespaces with an entry `data/…`
    patched: dict[str, bool] = field(default_factory=dict)  # namespace: whether the patch is whole
    filtered: set[str] = field(default_factory=set)  # namespaces with an entry `touched/…`
    size: int = 0  # bytes of all entries

    def documents(self, source: RestoreSource, touched: TouchedIds, item: Collection) -> Iterator[list[bytes]]:
        """A collection's documents at the backup's time, in batches: of the dump those that the patch does not replace, then the
        patch; in the order in which a restore inserts them."""
        whole = self.patched.get(item.namespace)
        if not whole:
            yield from self._entry(source, touched, DATA, item)
        if whole is not None:
            yield from self._entry(source, touched, PATCH, item)

    def _entry(self, source: RestoreSource, touched: TouchedIds, kind: str, item: Collection) -> Iterator[list[bytes]]:
        filtering = kind == DATA and item.namespace in self.filtered
        for documents in frames(source.read(entry_name(kind, item.database, item.stored_as))):
            if filtering:
                keys = [key_of(id_of(document) or b"\0") for document in documents]
                stale = touched.changed_after(item.namespace, keys)
                documents = [document for key, document in zip(keys, documents, strict=True) if key not in stale]
            yield documents


def read_all(source: RestoreSource, touched: TouchedIds, control: Control) -> Contents:
    """Reads every entry once; what is replaced by a patch goes into `touched`. Raises EngineUnsupported if it is not whole."""
    found = Contents()
    entries = list(source.entries())
    total = sum(entry.size for entry in entries)
    for entry in entries:
        try:
            documents = 0
            for batch in frames(_checked(source.read(entry.name), control)):
                documents += len(batch)
                found.size += sum(map(len, batch))
                control.progress("check", found.size, total)
                _notice(found, touched, entry.name, batch)
            _register(found, entry.name, entry.facts)
        except (NotBson, ValueError) as error:
            raise EngineUnsupported(f"the entry {entry.name!r} of the backup cannot be read: {error}") from error
        if entry.facts.get("documents", documents) != documents:
            raise EngineUnsupported(f"the entry {entry.name!r} holds {documents} documents, not as many as were captured")
    _require_whole(found, {entry.name for entry in entries})
    return found


def _checked(pieces: Iterator[bytes], control: Control) -> Iterator[bytes]:
    for piece in pieces:
        control.check()
        yield piece


def _notice(found: Contents, touched: TouchedIds, name: str, batch: list[bytes]) -> None:
    if name == CATALOG:
        found.collections.extend(map(unpack, batch))
    elif name.startswith(f"{TOUCHED}/"):
        _, database, collection = parse_entry_name(name)
        values = [id_of(document) for document in batch]
        if None in values:
            raise NotBson("a document without _id")
        touched.add((f"{database}.{collection}", key_of(value), b"", 1) for value in values if value)


def _register(found: Contents, name: str, facts: Mapping[str, Any]) -> None:
    if name in (CATALOG, USERS, ROLES):
        return
    kind, database, collection = parse_entry_name(name)
    namespace = f"{database}.{collection}"
    if kind == DATA:
        found.dumped.add(namespace)
    elif kind == PATCH:
        found.patched[namespace] = bool(facts["whole"])
    elif kind == TOUCHED:
        found.filtered.add(namespace)
    else:
        raise ValueError("an entry of an unknown kind")


def _require_whole(found: Contents, names: set[str]) -> None:
    missing = {CATALOG, USERS, ROLES} - names
    for item in found.collections:
        if not item.has_documents or found.patched.get(item.namespace):
            continue
        if item.namespace not in found.dumped:
            missing.add(entry_name(DATA, item.database, item.stored_as))
        if (item.namespace in found.patched) != (item.namespace in found.filtered):
            missing.add(entry_name(TOUCHED, item.database, item.stored_as))
    if missing:
        raise EngineUnsupported(f"the backup lacks the entries {', '.join(sorted(missing)[:5])}")
