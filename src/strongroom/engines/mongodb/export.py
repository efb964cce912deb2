"""The way out: a folder as `mongodump` makes it, which `mongorestore` loads.

`<database>/<collection>.bson` holds the documents at the backup's time, `<collection>.metadata.json` options and indexes in
Extended JSON 2.0; users and roles are in `admin/system.users.bson` and `system.roles.bson`. The layout is that of
mongodump 100 (mongo-tools, mongodump/prepare.go, mongorestore/filepath.go): a file is named after its collection,
percent-encoded, and one whose name would not fit is cut and carries a hash; its metadata tells the whole name.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bson.json_util import CANONICAL_JSON_OPTIONS, dumps

from strongroom.engines.base import CaptureBroken, Control, RestoreSource, Summary
from strongroom.engines.exporting import new_folder, write_file
from strongroom.engines.mongodb.catalogue import Collection
from strongroom.engines.mongodb.contents import Contents, read_all
from strongroom.engines.mongodb.documents import NotBson, encode
from strongroom.engines.mongodb.names import ROLES, USERS
from strongroom.engines.mongodb.touched import TouchedIds

FOLDER = "dump"
_LONGEST, _KEPT = 238, 208  # bytes of a file's name without its ending, and what is left of one that is longer
_SPILL = ".touched"
_AUTH_SCHEMA = {"_id": "authSchema", "currentVersion": 5}  # of every version that is backed up; mongorestore asks for it


def export(source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
    """See Engine.export: everything is below `dump`."""
    spill = folder / _SPILL
    touched = TouchedIds(str(spill))
    try:
        contents = read_all(source, touched, control)
        export = _Export(source, contents, touched, new_folder(folder / FOLDER), control)
        try:
            export.run()
        except NotBson as error:
            raise CaptureBroken(f"the backup reads differently the second time: {error}") from error
    finally:
        touched.close()
        spill.unlink(missing_ok=True)
    told = {"folder": FOLDER, "version": str(facts.get("version", "")), "collections": len(contents.collections)}
    return Summary(export.files, export.bytes, told)


def file_name(collection: str) -> str:
    """What a collection's files are called, without their endings."""
    name = quote(collection, safe="")
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha1(collection.encode(), usedforsecurity=False).digest()
    return f"{name[:_KEPT]}%24{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


class _Export:
    def __init__(self, source: RestoreSource, contents: Contents, touched: TouchedIds, folder: Path, control: Control) -> None:
        self._source, self._contents, self._touched = source, contents, touched
        self._folder, self._control = folder, control
        self._databases: dict[str, Path] = {}
        self.files = self.bytes = 0

    def run(self) -> None:
        for item in self._contents.collections:
            self._control.check()
            where = self._database(item.database)
            self._write(where / f"{file_name(item.name)}.metadata.json", iter([_metadata(item)]))
            if item.has_documents:
                self._write(where / f"{file_name(item.stored_as)}.bson", self._documents(item))
        admin = self._database("admin")
        self._write(admin / "system.users.bson", self._source.read(USERS))
        self._write(admin / "system.roles.bson", self._source.read(ROLES))
        self._write(admin / "system.version.bson", iter([encode(_AUTH_SCHEMA)]))

    def _database(self, name: str) -> Path:
        """A database's folder: its name has no character that a file's could not have."""
        if name not in self._databases:
            self._databases[name] = new_folder(self._folder / name)
        return self._databases[name]

    def _documents(self, item: Collection) -> Iterator[bytes]:
        for documents in self._contents.documents(self._source, self._touched, item):
            yield b"".join(documents)

    def _write(self, path: Path, pieces: Iterator[bytes]) -> None:
        self.bytes += write_file(path, self._paced(pieces))
        self.files += 1

    def _paced(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        done = self.bytes
        for piece in pieces:
            yield piece
            done += len(piece)
            self._control.progress("write", done, max(done, self._contents.size))


def _metadata(item: Collection) -> bytes:
    told = {"options": item.options, "indexes": list(item.indexes), "uuid": "", "collectionName": item.name, "type": item.kind}
    return dumps(told, json_options=CANONICAL_JSON_OPTIONS, ensure_ascii=False).encode()
