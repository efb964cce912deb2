"""What a restore leaves in a server while it runs, so that another one can end what a dead one left.

A restore first makes a database `strongroom_restore_<id>`: the mark. Each database that it adds to the server is written there
before, as a retention policy `new:<hash of the name>`; databases made only to try the backup are `strongroom_restore_<id>_try`.
When all of these are whole, a policy `settled` says so: from then on databases are replaced. The mark is dropped last. Whoever
finds one drops the databases that it names, unless it is settled, and then the mark.
"""

from __future__ import annotations

from blake3 import blake3

from strongroom.engines.base import EngineError, EngineUnsupported
from strongroom.engines.influxdb.http import Http
from strongroom.engines.influxdb.influxql import name as quoted
from strongroom.engines.influxdb.place import RESERVED
from strongroom.engines.influxdb.port import BackupPort

_NEW = "new:"
_SETTLED = "settled"


class Mark:
    """One restore's own mark."""

    def __init__(self, http: Http, key: str) -> None:
        self._http = http
        self._name = RESERVED + key
        self.trial = f"{self._name}_try"

    def put(self, port: BackupPort) -> None:
        """Makes the mark, and proves by it that both ports belong to one server. Raises EngineUnsupported."""
        self._http.run(f"CREATE DATABASE {quoted(self._name)}")
        if port.metastore()[1].database(self._name) is None:
            self._http.drop(self._name)
            raise EngineUnsupported("the HTTP port and the backup port belong to different servers: correct the address")

    def note_new(self, database: str) -> None:
        """Before a database is added to the server."""
        self._note(_of(database))

    def settle(self) -> None:
        """All that was added is whole, and stays."""
        self._note(_SETTLED)

    def _note(self, policy: str) -> None:
        self._http.run(f"CREATE RETENTION POLICY {quoted(policy)} ON {quoted(self._name)} DURATION INF REPLICATION 1")

    def require(self) -> None:
        """Raises EngineError if somebody has ended this restore meanwhile."""
        if self._name not in self._http.databases():
            raise EngineError("another restore into this server has begun and ended this one")

    def drop(self) -> None:
        """The restore is complete: nothing is to be undone any more."""
        self._http.drop(self._name)

    def undo(self, http: Http) -> None:
        """Drops what this restore has added, and the mark, by another connection than the restore's own."""
        _end(http, self._name)


def sweep(http: Http) -> None:
    """Ends what dead restores left. Idempotent."""
    for name in http.databases():
        if name.startswith(RESERVED) and not name.endswith("_try"):
            _end(http, name)
    for name in http.databases():
        if name.startswith(RESERVED):
            http.drop(name)


def _of(database: str) -> str:
    """A policy's name for a database: names of both may have 255 bytes, so that one does not fit into the other."""
    return _NEW + blake3(database.encode()).hexdigest(32)


def _end(http: Http, mark: str) -> None:
    there = http.databases()
    if f"{mark}_try" in there:
        http.drop(f"{mark}_try")
    if mark in there:
        noted = set(http.policies(mark))
        for name in there:
            if _of(name) in noted and _SETTLED not in noted:
                http.drop(name)
        http.drop(mark)
