"""Putting one database of a backup into a server, and proving that it is there.

The server tells neither success nor failure of an upload, so every shard is read back right after it, while the next one is
sent, and each file compared by its digest. A server may compact files within a second of getting them; what it has compacted
before it was read back is sent again (points that come twice are one), so that every file has been seen in place in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace

from strongroom.ambient import Ambient
from strongroom.engines.base import Control, EngineError, EngineUnreachable, RestoreSource
from strongroom.engines.influxdb import tar as tars
from strongroom.engines.influxdb.catalog import Backup, File, pieces_of
from strongroom.engines.influxdb.metastore import Database, import_blob
from strongroom.engines.influxdb.port import BackupPort
from strongroom.engines.influxdb.witness import Witness

TRIES = 8  # of an upload, or of making a database
_PAUSE_SECONDS = 0.2


@dataclass(slots=True)
class Tally:
    """How much was sent so far, for the job's progress; `total` is all that will be."""

    total: int = 0
    sent: int = 0


@dataclass(slots=True)
class _Shard:
    """One on its way."""

    old: int  # its number in the backup
    new: int  # and in the server
    folder: str
    reading: Future[set[str]] | None = None


class Loader:
    """Puts databases into one server."""

    def __init__(
        self, port: BackupPort, backup: Backup, source: RestoreSource, control: Control, tally: Tally, ambient: Ambient
    ) -> None:
        self._port, self._backup, self._source, self._control = port, backup, source, control
        self._tally, self._ambient = tally, ambient

    def load(self, database: Database, name: str, phase: str) -> None:
        """Makes database `name` hold what `database` of the backup holds. Nothing expires until its policies are set."""
        wanted = {shard for _, _, shard in database.shards() if self._backup.shards.get(shard)}
        numbers = self._create(replace(_kept_for_ever(database), name=name), wanted)
        with Witness(self._port, self._control, self._ambient) as witness:
            before: _Shard | None = None
            for policy, _, shard in database.shards():
                if shard not in wanted:
                    continue
                now = _Shard(shard, numbers[shard], "/".join([name, policy.name, str(numbers[shard])]))
                self._send(now, self._backup.shards[shard], phase)
                now.reading = self._read_back(now, witness)
                if before is not None:
                    self._settle(before, witness, phase)
                before = now
            if before is not None:
                self._settle(before, witness, phase)

    def _create(self, database: Database, shards: set[int]) -> Mapping[int, int]:
        """The server may lose a part of the message (see `BackupPort.create`), and then does nothing: it is told again."""
        blob = import_blob(database, shards)
        for _ in range(TRIES):
            self._control.check()
            numbers: Mapping[int, int] = {}
            with suppress(EngineUnreachable):  # it closes on what it has not read, and its answer may be lost by that
                numbers = self._port.create(blob, database.name)
            if self._port.metastore()[1].database(database.name) is not None:
                if set(numbers) != shards:
                    raise EngineError(f"InfluxDB made the database {database.name!r} with other shards than it was told to")
                return numbers
            self._ambient.sleep(_PAUSE_SECONDS)
        raise EngineError(
            f"InfluxDB does not make the database {database.name!r} from a message of {len(blob)} bytes; its log tells why"
        )

    def _send(self, shard: _Shard, files: Sequence[File], phase: str) -> None:
        self._port.upload(shard.new, self._tar(shard.old, files, shard.folder, phase))
        self._tally.sent += sum(one.size for one in files)
        self._tally.total = max(self._tally.total, self._tally.sent)
        self._control.progress(phase, self._tally.sent, self._tally.total)

    def _read_back(self, shard: _Shard, witness: Witness) -> Future[set[str]]:
        return witness.begin(shard.new, {one.name: one for one in self._backup.shards[shard.old]}, shard.folder)

    def _settle(self, shard: _Shard, witness: Witness, phase: str) -> None:
        """Waits until every file of the shard has been seen in its place, and sends again what was not."""
        missing: Sequence[File] = self._backup.shards[shard.old]
        for _ in range(TRIES):
            reading = shard.reading or self._read_back(shard, witness)
            shard.reading = None
            there = witness.ended(reading)
            missing = [one for one in missing if one.name not in there]
            if not missing:
                return
            self._send(shard, missing, phase)
        raise EngineError(f"InfluxDB did not take the file {missing[0].name} into {shard.folder}; its log tells why")

    def _tar(self, shard: int, files: Sequence[File], folder: str, phase: str) -> Iterator[bytes]:
        done = self._tally.sent
        for file in files:
            yield tars.head(f"{folder}/{file.name}", file.size)
            for piece in pieces_of(self._source, shard, file):
                self._control.check()
                yield piece
                done += len(piece)
                self._control.progress(phase, done, max(done, self._tally.total))
            yield tars.padding(file.size)


def _kept_for_ever(database: Database) -> Database:
    """With policies that expire nothing: what is older than they allow must be there to be looked at. Without subscriptions,
    which would get points of a database that is not whole."""
    return replace(database, policies=tuple(replace(one, duration=0, subscriptions=()) for one in database.policies))
