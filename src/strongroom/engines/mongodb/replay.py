"""The replay of a log on top of a restored backup: by applyOps, in order, before users and roles and the end of the restore.

Everything is read and translated once before the restore changes anything. Nothing expires in the target meanwhile: what the
source kept alive by changing it later is in the backup with its old date, and would be gone before its change comes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure, PyMongoError

from strongroom.engines.base import Control, EngineError, EngineUnsupported, RestoreSource
from strongroom.engines.log import Log
from strongroom.engines.mongodb.catalogue import MARKER, TEMPORARY_ROLES, TEMPORARY_USERS, TIME_SERIES, VIEW, Collection
from strongroom.engines.mongodb.connection import UNAUTHORIZED, Client, as_number, patiently
from strongroom.engines.mongodb.documents import RAW, NotBson, decode, frames
from strongroom.engines.mongodb.names import ROLES, USERS
from strongroom.engines.mongodb.reading import pieces_of, raw_batches
from strongroom.engines.mongodb.recording import mark_of, time_of
from strongroom.engines.mongodb.translation import FUNCTIONS, VIEWS, Command, Translator

BATCH_OPERATIONS = 500
BATCH_BYTES = 4 * 1024 * 1024

_EXPIRY = "ttlMonitorEnabled"
_TEMPORARY = {USERS: TEMPORARY_USERS, ROLES: TEMPORARY_ROLES}


class Replay:
    """One log, for one backup and one target."""

    def __init__(self, client: Client, patient: Client, log: Log, control: Control, scratch: str) -> None:
        self._client = client
        self._patient = patient
        self._log = log
        self._control = control
        self._scratch = scratch
        self._since = time_of(log.since.order)
        self._until = time_of(log.until.order)
        self._names: set[str] = set()
        self._checked = False
        self._size = 0  # bytes of the log
        self._done = 0
        self._batch: list[bytes] = []
        self._weight = 0
        self.operations = 0  # how many of them took effect
        self.warnings: list[str] = []

    def check(self, facts: Mapping[str, Any], collections: list[Collection]) -> None:
        """Reads all of the log once; changes nothing. Raises EngineUnsupported where it is not the one that follows the backup
        with these facts, is not whole or cannot be replayed."""
        log = self._log
        held = mark_of(facts)
        if held is None or (held.stream, held.order) != (log.since.stream, log.since.order):
            raise EngineUnsupported("the log does not follow the backup: it is said to begin at another time")
        if {log.begin.stream, log.until.stream} != {held.stream}:
            raise EngineUnsupported("the log is of another replica set than the backup")
        if not log.begin.order <= log.since.order <= log.until.order:
            raise EngineUnsupported("the log does not reach from the backup's time to the time wanted")
        self._names = self._existing(collections)
        left_out: set[str] = set()
        try:
            for _ in self._translated(left_out):
                pass
        except NotBson as error:
            raise EngineUnsupported(f"the log cannot be read: {error}") from error
        for namespace in sorted(left_out):
            self.warnings.append(f"{namespace} was being filled by a command when the backup was taken: left out")

    def run(self, source: RestoreSource) -> None:
        """Applies the log to the restored backup, and to its users and roles in a place apart."""
        self._done, self._checked = 0, True
        for name, temporary in _TEMPORARY.items():
            self._client.admin.drop_collection(temporary)
            self._client.admin.create_collection(temporary, check_exists=False)
            for documents in frames(source.read(name)):
                self._control.check()
                self._client.admin[temporary].insert_many(list(map(decode, documents)))
        for step in self._translated(set()):
            if isinstance(step, Command):
                self._flush()
                patiently(self._patient, step.database, step.body, self._control)
                continue
            if len(self._batch) >= BATCH_OPERATIONS or self._weight + len(step) > BATCH_BYTES:
                self._flush()
            self._batch.append(step)
            self._weight += len(step)
        self._flush()
        self._keep_accounts()

    def accounts(self, name: str) -> Iterator[bytes]:
        """The documents of the entries `users` and `roles` as the log leaves them; after `run`."""
        return pieces_of(self._path(name))

    def _existing(self, collections: list[Collection]) -> set[str]:
        """What a restore of the backup leaves in the target."""
        names = {item.namespace for item in collections if item.has_documents}
        names |= {f"{item.database}.{VIEWS}" for item in collections if item.kind in (VIEW, TIME_SERIES)}
        for database in self._client.list_database_names():
            found = self._client[database].list_collection_names(filter={"name": {"$in": [VIEWS, FUNCTIONS]}})
            names |= {f"{database}.{name}" for name in found}
        return names

    def _translated(self, left_out: set[str]) -> Iterator[bytes | Command]:
        """What the log does after the backup's time. Raises NotBson unless its entries are in order, from the backup's time to
        its end."""
        translator = Translator(self._names, self._scratch)
        last, held = -1, self._log.begin.order == self._log.since.order
        try:
            for documents in frames(self._log.read()):
                self._control.check()
                for entry in map(decode, documents):
                    last, time = _time(entry), last
                    if last <= time:
                        raise NotBson("its entries are not in the order of their times")
                    held = held or last == self._since
                    yield from translator.operations(entry, self._since)
                self._told(sum(map(len, documents)))
        finally:
            translator.close()
        if not held:
            raise NotBson("the entry of the backup's time is missing")
        if last != self._until and (last >= 0 or self._until != self._since):
            raise NotBson("it ends at another time than it should")
        left_out |= translator.left_out

    def _told(self, size: int) -> None:
        self._done += size
        if self._checked:
            self._control.progress("log", self._done, max(self._size, self._done))
        else:
            self._size = self._done
            self._control.progress("check log", self._done)

    def _flush(self) -> None:
        if not self._batch:
            return
        command = {
            "applyOps": [RawBSONDocument(operation, RAW) for operation in self._batch],
            "allowAtomic": False,
            "alwaysUpsert": False,  # a change of a document that is not there is an error
            "bypassDocumentValidation": True,
            "writeConcern": {"w": 1},
        }
        # The server's words on a failure hold whole documents, and the hashes of users' passwords: only the code is told.
        try:
            results = patiently(self._patient, "admin", command, self._control)["results"]
        except OperationFailure as error:
            details = error.details or {}
            raise self._refused(details.get("results", []), f"{details.get('codeName', 'error')}, code {error.code}") from None
        if not all(results):
            raise self._refused(results, "without a code")
        self.operations += len(self._batch)
        self._batch, self._weight = [], 0

    def _refused(self, results: list[Any], why: str) -> EngineError:
        position = next((index for index, result in enumerate(results) if not result), 0)
        operation = decode(self._batch[position])
        return EngineError(f"MongoDB refuses an operation of the log: {operation['op']!r} on {operation['ns']} ({why})")

    def _keep_accounts(self) -> None:
        """Out of the way of `restore_accounts`, which uses the same collections."""
        with self._client.start_session(causal_consistency=False) as session:
            for name, temporary in _TEMPORARY.items():
                with open(self._path(name), "wb") as file:
                    for batch in raw_batches(self._client, session, "admin", {"find": temporary}):
                        file.write(b"".join(batch))

    def _path(self, name: str) -> str:
        return os.path.join(self._scratch, f"replayed-{name}")


def _time(entry: RawBSONDocument) -> int:
    try:
        return as_number(entry["ts"])
    except (KeyError, AttributeError, InvalidBSON) as error:
        raise NotBson("an entry is not whole, or has no time") from error


@contextlib.contextmanager
def expiry_paused(client: Client) -> Iterator[None]:
    """No document of the target expires inside the block. The marker of the restore says so, for `resume_expiry`."""
    if not client.admin.command({"getParameter": 1, _EXPIRY: 1})[_EXPIRY]:
        yield
        return
    client.admin[MARKER].replace_one({"_id": _EXPIRY}, {"paused": True}, upsert=True)
    client.admin.command({"setParameter": 1, _EXPIRY: False})
    try:
        yield
    except BaseException:
        with contextlib.suppress(PyMongoError):
            resume_expiry(client)
        raise
    resume_expiry(client)


def resume_expiry(client: Client) -> None:
    """Idempotent: after a restore that paused it and died, too. A user who may not know has not paused it."""
    try:
        paused = client.admin[MARKER].find_one({"_id": _EXPIRY})
    except OperationFailure as error:
        if error.code == UNAUTHORIZED:
            return
        raise
    if paused is not None:
        client.admin.command({"setParameter": 1, _EXPIRY: True})
