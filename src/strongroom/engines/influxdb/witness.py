"""Reading back what was sent: the only proof that a server has taken it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Self

from blake3 import blake3

from strongroom.ambient import Ambient
from strongroom.engines.base import Control, EngineError
from strongroom.engines.influxdb.catalog import File
from strongroom.engines.influxdb.port import BackupPort
from strongroom.engines.influxdb.tar import CutShort

TRIES = 8  # of asking for a shard
_PAUSE_SECONDS = 0.2
_LOOK_SECONDS = 0.5


class Witness:
    """Reads shards back in a thread of its own, while the next one is sent. A context; leaving it ends the thread."""

    def __init__(self, port: BackupPort, control: Control, ambient: Ambient) -> None:
        self._control, self._ambient = control, ambient
        self._stop = threading.Event()
        self._port = port.looking(self._require_wanted)
        self._pool = ThreadPoolExecutor(1, "influxdb-witness")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def begin(self, shard: int, sent: Mapping[str, File], folder: str) -> Future[set[str]]:
        """Begins to read a shard back; `ended` gives the names of its files."""
        return self._pool.submit(self._read_back, shard, sent, folder)

    def ended(self, reading: Future[set[str]]) -> set[str]:
        """The files that the server has in the shard, each proven to be the one that was sent. EngineError if one is not."""
        while True:
            self._control.check()
            with suppress(TimeoutError):
                return reading.result(_LOOK_SECONDS)

    # In the thread

    def _require_wanted(self) -> None:
        if self._stop.is_set():
            raise EngineError("nobody waits for this shard any more")

    def _read_back(self, shard: int, sent: Mapping[str, File], folder: str) -> set[str]:
        there = files_of(self._port, shard, folder, self._ambient)
        for name, found in there.items():
            if name in sent and (sent[name].size, sent[name].digest) != (found.size, found.digest):
                raise EngineError(f"InfluxDB holds another file than was sent as {folder}/{name}")
        return set(there)


def files_of(port: BackupPort, shard: int, folder: str, ambient: Ambient) -> dict[str, File]:
    """What a server holds in a shard now, by name, everything read. `folder` is for the words of the EngineError."""
    for _ in range(TRIES):
        try:
            return {one.name: one for one in _files(port, shard)}
        except CutShort:
            ambient.sleep(_PAUSE_SECONDS)
    raise EngineError(f"InfluxDB does not give {folder} back after it was sent; its log tells why")


def _files(port: BackupPort, shard: int) -> Iterator[File]:
    with port.shard(shard) as tar:
        for member in tar.members():
            digest = blake3()
            for piece in tar.pieces():
                digest.update(piece)
            yield File(member.file, member.size, digest.hexdigest())
