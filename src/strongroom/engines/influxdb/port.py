"""The backup port, 8088: each request is a connection of its own.

A request is the byte 3 (which service is meant), the byte of its type, and mostly a line of JSON; the server answers and closes.
The port knows neither users nor TLS, and tells no errors: what goes wrong is in the server's log alone.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from strongroom.engines.base import EngineError, EngineUnreachable
from strongroom.engines.influxdb import metastore
from strongroom.engines.influxdb.metastore import Metastore
from strongroom.engines.influxdb.place import Place
from strongroom.engines.influxdb.protobuf import NotProtobuf
from strongroom.engines.influxdb.tar import END, ShardTar

_SERVICE = b"\x03"
_SHARD, _METASTORE, _DATABASES, _IMPORT, _UPLOAD = 0, 1, 3, 6, 7
_MAGIC = 0x59590101
_ZERO_TIME = "0001-01-01T00:00:00Z"
_MOST_ANSWER = 1 << 30
PAST_FIRST_READ = 600

CONNECT_SECONDS = 5.0
LOOK_SECONDS = 1.0  # between looks at the job while the server is silent
SILENCE_SECONDS = 300.0  # before a shard's first byte the server writes its cache to disk

Look = Callable[[], None]


class BackupPort:
    """One server's backup port. Keeps no connection."""

    def __init__(self, place: Place, look: Look = lambda: None, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._place, self._look, self._silence = place, look, silence_seconds

    def looking(self, look: Look) -> BackupPort:
        """The same port for another thread, with something else to look at while it waits."""
        return BackupPort(self._place, look, self._silence)

    def metastore(self) -> tuple[bytes, Metastore]:
        """The metastore as it is now, as the server's message and read."""
        with self._asked(_METASTORE) as stream:
            magic, size = struct.unpack(">QQ", stream.exactly(16))
            if magic != _MAGIC or size > _MOST_ANSWER:
                raise EngineError("what answers at the backup port is no InfluxDB 1.x")
            blob = stream.exactly(size)
        try:
            return blob, metastore.parse(blob)
        except NotProtobuf as error:
            raise EngineError(f"the metastore cannot be read: {error}") from error

    def shards(self) -> frozenset[int]:
        """Ids of the shards that the server has open. Others in the metastore were never written to, or failed to open."""
        with self._asked(_DATABASES) as stream:
            answer = stream.to_end()
        try:
            paths = json.loads(answer)["Paths"] or []
            return frozenset(int(path.rsplit("/", 1)[-1]) for path in paths)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise EngineUnreachable("the backup port's list of shards was cut short: is the server being stopped?") from None

    @contextmanager
    def shard(self, shard: int) -> Iterator[ShardTar]:
        """A shard's files. The server first writes to disk what it holds in memory of it."""
        with self._asked(_SHARD, ShardID=shard) as stream:
            yield ShardTar(stream)

    def create(self, blob: bytes, name: str) -> Mapping[int, int]:
        """Makes a new database as `blob` says; the new id of each shard. Empty where there is none or it is refused.

        The server reads the JSON in pieces of 512 bytes and more, takes what came with the last piece as the beginning of the
        blob, and reads the rest at once. If nothing came with it (the JSON ends with a piece, or arrives alone), or the rest had
        not arrived, it finds zeros where the blob should be, and refuses: try again. So all is one write, and the JSON is
        brought past the first piece by spaces before it.
        """
        order = request(_IMPORT, BackupDatabase=name, UploadSize=len(blob)).rjust(PAST_FIRST_READ)
        with self._connected() as stream:
            stream.send(_SERVICE + bytes([_IMPORT]) + order + blob)
            answer = stream.to_end()
        if len(answer) < 16 or struct.unpack_from(">Q", answer)[0] != _MAGIC or len(answer) % 16:
            raise EngineUnreachable("the server closed the backup port's connection before it said whether a database was made")
        return dict(struct.iter_unpack(">QQ", answer[16:]))

    def upload(self, shard: int, pieces: Iterable[bytes | memoryview]) -> None:
        """Puts files, as parts of a tar without its end, into a shard. Whether they are there must be looked at afterwards."""
        with self._connected() as stream:
            stream.send(_SERVICE + bytes([_UPLOAD]) + struct.pack(">Q", shard))
            for piece in pieces:
                stream.send(piece)
            stream.send(END)
            stream.to_end()  # it closes when the files are in place

    @contextmanager
    def _asked(self, kind: int, **fields: Any) -> Iterator[_Stream]:
        with self._connected() as stream:
            stream.send(_SERVICE + bytes([kind]) + request(kind, **fields))
            yield stream

    @contextmanager
    def _connected(self) -> Iterator[_Stream]:
        host, port = self._place.backup
        try:
            link = socket.create_connection((host, port), CONNECT_SECONDS)
        except OSError as error:
            raise EngineUnreachable(
                f"InfluxDB's backup port {host}:{port} does not answer ({error.strerror or error}): is bind-address set in its "
                "configuration, and the address's option backup right?"
            ) from error
        with link:
            link.settimeout(LOOK_SECONDS)
            try:
                yield _Stream(link, self._look, self._silence)
            except OSError as error:
                raise EngineUnreachable(
                    f"the connection to InfluxDB's backup port was lost: {error.strerror or error}"
                ) from error


class _Stream:
    """One connection. Every wait is cut into pieces in which the job is looked at."""

    def __init__(self, link: socket.socket, look: Look, silence: float) -> None:
        self._link, self._look, self._silence = link, look, silence

    def read_into(self, buffer: memoryview) -> int:
        """See `tar.Bytes`."""
        waited = 0.0
        while True:
            self._look()
            try:
                return self._link.recv_into(buffer)
            except TimeoutError:
                waited += LOOK_SECONDS
                if waited >= self._silence:
                    raise EngineUnreachable(f"InfluxDB's backup port said nothing for {self._silence:.0f} seconds") from None

    def exactly(self, size: int) -> bytes:
        buffer, done = bytearray(size), 0
        while done < size:
            got = self.read_into(memoryview(buffer)[done:])
            if got == 0:
                raise EngineUnreachable("InfluxDB closed the backup port's connection in the middle of an answer")
            done += got
        return bytes(buffer)

    def to_end(self) -> bytes:
        answer, piece = bytearray(), memoryview(bytearray(1 << 16))
        while got := self.read_into(piece):
            answer += piece[:got]
            if len(answer) > _MOST_ANSWER:
                raise EngineError("what answers at the backup port is no InfluxDB 1.x")
        return bytes(answer)

    def send(self, data: bytes | memoryview) -> None:
        view, waited = memoryview(data), 0.0
        while len(view):
            self._look()
            try:
                view = view[self._link.send(view) :]
                waited = 0.0
            except TimeoutError:
                waited += LOOK_SECONDS
                if waited >= self._silence:
                    raise EngineUnreachable(f"InfluxDB's backup port took nothing for {self._silence:.0f} seconds") from None


def request(kind: int, **fields: Any) -> bytes:
    """The line of JSON of a request."""
    parts = {
        "Type": kind, "BackupDatabase": "", "RestoreDatabase": "", "BackupRetentionPolicy": "", "RestoreRetentionPolicy": "",
        "ShardID": 0, "Since": _ZERO_TIME, "ExportStart": _ZERO_TIME, "ExportEnd": _ZERO_TIME, "UploadSize": 0, **fields,
    }  # fmt: skip
    return json.dumps(parts).encode() + b"\n"
