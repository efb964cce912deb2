"""Putting one database of a backup into a server, and proving that it is there.

The server tells neither success nor failure of an upload, so every shard is read back right after it and each file compared by
its digest. A server may compact files within a second of getting them; what it has compacted before it was read back is sent
again (points that come twice are one), so that every file has been seen in place in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from blake3 import blake3

from strongroom.ambient import Ambient
from strongroom.engines.base import Control, EngineError, EngineUnreachable, RestoreSource
from strongroom.engines.influxdb import tar as tars
from strongroom.engines.influxdb.catalog import Backup, File, pieces_of
from strongroom.engines.influxdb.metastore import Database, import_blob
from strongroom.engines.influxdb.port import BackupPort
from strongroom.engines.influxdb.tar import CutShort

TRIES = 8  # of an upload, or of making a database
_PAUSE_SECONDS = 0.2


@dataclass(slots=True)
class Tally:
    """How much was sent so far, for the job's progress; `total` is all that will be."""

    total: int = 0
    sent: int = 0


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
        for policy, _, shard in database.shards():
            if shard in wanted:
                folder = "/".join([name, policy.name, str(numbers[shard])])
                self._fill(shard, numbers[shard], folder, phase)

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

    def _fill(self, old: int, new: int, folder: str, phase: str) -> None:
        missing: Sequence[File] = self._backup.shards[old]
        for _ in range(TRIES):
            self._port.upload(new, self._tar(old, missing, folder, phase))
            self._tally.sent += sum(one.size for one in missing)
            self._tally.total = max(self._tally.total, self._tally.sent)
            self._control.progress(phase, self._tally.sent, self._tally.total)
            there = self._read_back(new, {one.name: one for one in self._backup.shards[old]}, folder)
            missing = [one for one in missing if one.name not in there]
            if not missing:
                return
        raise EngineError(f"InfluxDB did not take the file {missing[0].name} into {folder}; its log tells why")

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

    def _read_back(self, shard: int, sent: Mapping[str, File], folder: str) -> set[str]:
        """The files that the server has in the shard now, each proven to be the one that was sent. EngineError if one is not."""
        for _ in range(TRIES):
            try:
                there = dict(self._digests(shard))
            except CutShort:
                self._control.check()
                self._ambient.sleep(_PAUSE_SECONDS)
                continue
            for name, (size, digest) in there.items():
                if name in sent and (sent[name].size, sent[name].digest) != (size, digest):
                    raise EngineError(f"InfluxDB holds another file than was sent as {folder}/{name}")
            return set(there)
        raise EngineError(f"InfluxDB does not give {folder} back after it was sent; its log tells why")

    def _digests(self, shard: int) -> Iterator[tuple[str, tuple[int, str]]]:
        with self._port.shard(shard) as tar:
            for member in tar.members():
                digest = blake3()
                for piece in tar.pieces():
                    digest.update(piece)
                yield member.file, (member.size, digest.hexdigest())


def _kept_for_ever(database: Database) -> Database:
    """With policies that expire nothing: what is older than they allow must be there to be looked at. Without subscriptions,
    which would get points of a database that is not whole."""
    return replace(database, policies=tuple(replace(one, duration=0, subscriptions=()) for one in database.policies))
