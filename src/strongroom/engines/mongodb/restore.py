"""The restore into a live server, with no more than the built-in role `restore`.

Order of effects: (1) everything is checked, nothing is changed: server, versions, rights, and every byte of the backup is
read once; (2) a marker collection is made: the point of no return; (3) all collections of the target are dropped;
(4) all collections are made empty, with their options; (5) one after the other gets its documents and then its indexes;
(6) roles and users; (7) the marker is dropped, acknowledged by a majority. After (2) every failure says what the target holds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure

from strongroom.engines.base import (
    Control,
    EngineError,
    EngineUnsupported,
    RestoreBroken,
    RestoreSource,
    Summary,
    Target,
    tell_target,
)
from strongroom.engines.log import Log
from strongroom.engines.mongodb.accounts import restore_accounts
from strongroom.engines.mongodb.catalogue import (
    MARKER,
    TEMPORARY_ROLES,
    TEMPORARY_USERS,
    TIME_SERIES,
    VIEW,
    Collection,
    belongs,
    to_make,
)
from strongroom.engines.mongodb.connection import (
    RESTORE_RIGHTS,
    Client,
    connected,
    inspect,
    patiently,
    release_of,
    require_replayer,
    translated,
)
from strongroom.engines.mongodb.contents import Contents, read_all
from strongroom.engines.mongodb.documents import RAW, NotBson
from strongroom.engines.mongodb.replay import Replay, expiry_paused, resume_expiry
from strongroom.engines.mongodb.touched import TouchedIds

INSERT_BYTES = 4 * 1024 * 1024
INSERT_DOCUMENTS = 10_000

_MISSING, _EXISTS, _DUPLICATE = 26, 48, 11000
_MAJORITY = {"w": "majority", "wtimeout": 60_000}


@dataclass(slots=True)
class _State:
    """What the target holds, in words."""

    total: int
    phase: str = "being emptied: some of its collections are dropped, nothing of the backup is in it yet"
    complete: int = 0
    current: str = ""

    def words(self) -> str:
        if self.phase:
            return self.phase
        words = f"its former data is gone; of {self.total} collections and views of the backup {self.complete} are complete"
        if self.current:
            words += f", {self.current!r} is incomplete, the others are empty or missing"
        return words + "; users and roles are not restored yet"


def restore(
    target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str, log: Log | None = None
) -> Summary:
    """See `Engine.restore`; with a log `Recorder.restore_to`."""
    with connected(target) as client, connected(target, socket_seconds=None) as patient:
        require_target(client, facts)
        if log is not None:
            require_replayer(client)
        touched = TouchedIds(os.path.join(scratch, "touched"))
        try:
            plan = read_all(source, touched, control)
            replay = None
            if log is not None:
                replay = Replay(client, patient, log, control, scratch)
                replay.check(facts, plan.collections)
            control.check()
            return _Restore(client, patient, source, plan, touched, control, replay).run()
        finally:
            touched.close()


def recover(target: Target) -> None:
    """See `Engine.recover`: drops what a restore keeps in `admin` on its way, and lets documents expire again. The data stays."""
    with connected(target) as client:
        inspect(client)
        resume_expiry(client)
        for name in (TEMPORARY_USERS, TEMPORARY_ROLES, MARKER):
            _drop(client, "admin", name)


def require_target(client: Client, facts: Mapping[str, Any]) -> None:
    """A primary that can be written to, at least as new as the backup, with the rights for all that follows."""
    server = inspect(client, RESTORE_RIGHTS, "restore")
    require_version(server.version, server.feature_version, facts)


def require_version(version: str, feature_version: str, facts: Mapping[str, Any]) -> None:
    """Raises EngineUnsupported where the target is older than the backup, by its version or its compatibility setting."""
    taken, compatible = facts.get("version"), facts.get("feature_version")
    if not isinstance(taken, str) or not isinstance(compatible, str):
        raise EngineUnsupported("the backup does not say which version of MongoDB it is from")
    if release_of(version) < release_of(taken):
        raise EngineUnsupported(f"the backup is from MongoDB {taken}, the target is older: {version}")
    if release_of(feature_version) < release_of(compatible):
        raise EngineUnsupported(
            f"the target's featureCompatibilityVersion is {feature_version}, the backup's {compatible}: raise it first "
            f"(db.adminCommand({{setFeatureCompatibilityVersion: {compatible!r}}}))"
        )


class _Restore:
    def __init__(
        self,
        client: Client,
        patient: Client,
        source: RestoreSource,
        plan: Contents,
        touched: TouchedIds,
        control: Control,
        replay: Replay | None,
    ) -> None:
        self._client = client
        self._patient = patient
        self._source = source
        self._plan = plan
        self._touched = touched
        self._control = control
        self._replay = replay
        self._state = _State(len(plan.collections))
        self._warnings: list[str] = []
        self._written = 0

    def run(self) -> Summary:
        """From the point of no return to the end."""
        self._command("admin", {"create": MARKER}, harmless=_EXISTS)
        try:
            with translated():
                with expiry_paused(self._client) if self._replay else contextlib.nullcontext():
                    self._replace()
                self._command("admin", {"drop": MARKER, "writeConcern": _MAJORITY})
        except EngineError as error:
            raise RestoreBroken(str(error), self._state.words()) from error
        except NotBson as error:
            raise RestoreBroken(f"what is restored reads differently the second time: {error}", self._state.words()) from error
        except Exception as error:  # a source's or the job's own error keeps its type and learns what the target holds
            tell_target(error, self._state.words())
            raise
        return Summary(len(self._plan.collections), self._written, {}, self._warnings)

    def _replace(self) -> None:
        self._drop_all()
        self._state.phase = ""
        for item in sorted(self._plan.collections, key=_creation_order):
            self._control.check()
            self._state.current = f"{item.database}.{item.name}"
            self._create(item)
        for item in self._plan.collections:
            self._state.current = f"{item.database}.{item.name}"
            if item.has_documents:
                self._fill(item)
                self._build_indexes(item)
            self._state.complete += 1
        read, what = self._source.read, "the backup"
        if self._replay is not None:
            self._state.phase = "holding all data and indexes of the backup, and a part of what was written after it"
            self._replay.run(self._source)
            self._warnings += self._replay.warnings
            read, what = self._replay.accounts, "the time wanted"
        self._state.phase = f"holding all data and indexes of {what}; users and roles may be incomplete"
        self._warnings += restore_accounts(self._client, read, self._control)
        self._state.phase = f"holding everything of {what}; the end of the restore is not acknowledged by a majority yet"

    def _drop_all(self) -> None:
        for database in self._client.list_database_names():
            if database in ("local", "config"):
                continue
            for name in self._client[database].list_collection_names():
                self._control.check()
                if belongs(database, name) and name != "system.js":
                    _drop(self._client, database, name)

    def _create(self, item: Collection) -> None:
        harmless = _EXISTS if item.name == "system.js" else None
        self._command(item.database, {"create": item.name, **dict(item.options)}, harmless=harmless)

    def _fill(self, item: Collection) -> None:
        for documents in self._plan.documents(self._source, self._touched, item):
            for batch in batches(documents):
                self._insert(item, batch)

    def _insert(self, item: Collection, documents: list[bytes]) -> None:
        self._control.check()
        # One writer in order keeps the natural order; the last step waits for the majority. A command, not the driver's
        # own insert, since that refuses names that the server takes (two dots in a row).
        reply = self._client[item.database].command(
            {
                "insert": item.stored_as,
                "documents": [RawBSONDocument(document, RAW) for document in documents],
                "ordered": False,
                "bypassDocumentValidation": True,
                "writeConcern": {"w": 1},
            }
        )
        if "writeErrors" in reply or reply["n"] != len(documents):
            self._judge(item, len(documents) - int(reply["n"]), reply.get("writeErrors", []))
        self._written += sum(map(len, documents))
        self._control.progress("data", self._written, max(self._plan.size, self._written))

    def _judge(self, item: Collection, refused: int, errors: Sequence[Mapping[str, Any]]) -> None:
        """Refused documents break the restore, but for stored functions that are there already: no role may remove them."""
        codes = {int(error["code"]) for error in errors}
        if item.name == "system.js" and codes == {_DUPLICATE}:
            self._warnings.append(f"{refused} stored functions of {item.namespace} were there already and are left as they were")
            return
        raise EngineError(f"MongoDB refused {refused} documents of {item.namespace} (codes {sorted(codes)})")

    def _build_indexes(self, item: Collection) -> None:
        indexes = [to_make(index) for index in item.indexes if index["name"] != "_id_" and not index.get("clustered")]
        if indexes:
            patiently(self._patient, item.database, {"createIndexes": item.name, "indexes": indexes}, self._control)

    def _command(self, database: str, command: Mapping[str, Any], harmless: int | None = None) -> None:
        try:
            self._client[database].command(dict(command))
        except OperationFailure as error:
            if error.code != harmless:
                raise


def batches(documents: list[bytes]) -> Iterator[list[bytes]]:
    """Cuts documents into lists of at most INSERT_DOCUMENTS and INSERT_BYTES (or one document that is larger)."""
    batch: list[bytes] = []
    weight = 0
    for document in documents:
        if batch and (len(batch) >= INSERT_DOCUMENTS or weight + len(document) > INSERT_BYTES):
            yield batch
            batch, weight = [], 0
        batch.append(document)
        weight += len(document)
    if batch:
        yield batch


def _creation_order(item: Collection) -> tuple[int, str, str]:
    """Time series first, since the server keeps them as views of buckets; other views last."""
    rank = {TIME_SERIES: 0, VIEW: 2}.get(item.kind, 1)
    return rank, item.database, item.name


def _drop(client: Client, database: str, name: str) -> None:
    try:
        client[database].command("drop", name)
    except OperationFailure as error:
        if error.code != _MISSING:
            raise
