"""Reading a backup: entries as streams of verified bytes, fetched ahead in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from types import TracebackType

import numpy as np
from blake3 import blake3

from strongroom.engines.base import Entry
from strongroom.repository.errors import Damaged
from strongroom.repository.fetching import ChunkFetcher, Locator
from strongroom.repository.keys import LineageKeys
from strongroom.repository.manifest import Manifest, ManifestEntry
from strongroom.repository.records import Records
from strongroom.storage.base import Store

_WINDOW = 4 << 20  # plain bytes fetched at once, and the size of the pieces handed out
_AHEAD = 3  # windows being fetched or waiting
_FETCHERS = 2


class BackupReader:
    """A restore's source over one part. A context manager; several entries may be read at a time, from several threads."""

    def __init__(self, manifest: Manifest, store: Store, keys: LineageKeys, locator: Locator) -> None:
        self._manifest = manifest
        self._fetcher = ChunkFetcher(store, keys, manifest.header.lineage, locator)
        self._pool = ThreadPoolExecutor(_FETCHERS, "fetching")

    def __enter__(self) -> BackupReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends fetching ahead; waits for what is under way."""
        self._pool.shutdown(cancel_futures=True)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """The entries in order of capture, those whose name starts with `prefix`."""
        for entry in self._manifest.entries():
            if entry.name.startswith(prefix):
                yield Entry(entry.name, entry.size, entry.facts)

    def read(self, name: str) -> Iterator[bytes]:
        """The entry's bytes in pieces of some MiB, each chunk proven before it is handed out, the whole at the end.

        Raises KeyError at once if there is none of that name; Damaged, naming object and entry, where bytes are not what was
        written.
        """
        return self._read(self._manifest.entry(name))

    def _read(self, entry: ManifestEntry) -> Iterator[bytes]:
        digest, size = blake3(), 0
        try:
            for piece in self._ahead(entry):
                digest.update(piece)
                size += len(piece)
                yield piece
        except Damaged as error:
            raise type(error)(
                f"entry {entry.name}: {error}", object_name=error.object_name, pack=error.pack, number=error.number
            ) from error
        if size != entry.size or digest.digest() != entry.digest:
            raise Damaged(
                f"entry {entry.name}: its chunks are sound and are not the entry ({size} of {entry.size} bytes); the manifest "
                f"{self._manifest.name} cannot be trusted: restore another backup",
                object_name=self._manifest.name,
            )

    def _ahead(self, entry: ManifestEntry) -> Iterator[bytes]:
        windows = _windows(self._manifest.records(entry))
        waiting: deque[Future[bytes]] = deque(self._pool.submit(self._fetch, one) for one in islice(windows, _AHEAD))
        try:
            while waiting:
                piece = waiting.popleft().result()
                waiting.extend(self._pool.submit(self._fetch, one) for one in islice(windows, 1))
                yield piece
        finally:
            for future in waiting:
                future.cancel()

    def _fetch(self, records: Records) -> bytes:
        chunks = self._fetcher.fetch(records)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class Joined:
    """A restore's source over several parts whose entries' names differ."""

    def __init__(self, readers: Sequence[BackupReader]) -> None:
        self._readers = readers

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """The entries part by part."""
        for reader in self._readers:
            yield from reader.entries(prefix)

    def read(self, name: str) -> Iterator[bytes]:
        """See BackupReader."""
        for reader in self._readers[:-1]:
            with suppress(KeyError):
                return reader.read(name)
        return self._readers[-1].read(name)


def _windows(batches: Iterator[Records]) -> Iterator[Records]:
    """Consecutive records of up to _WINDOW plain bytes, or one that is larger."""
    rest = Records.none()
    for batch in batches:
        rest = Records.joined([rest, batch]) if len(rest) else batch
        ends = np.cumsum(rest.plains, dtype=np.int64)
        start = 0
        while len(ends) > start and ends[-1] - (ends[start - 1] if start else 0) > _WINDOW:
            base = int(ends[start - 1]) if start else 0
            end = max(int(np.searchsorted(ends, base + _WINDOW, side="right")), start + 1)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if len(rest):
        yield rest
