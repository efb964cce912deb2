"""Objects in memory: for the simulation, for unit tests and for a first look. Nothing outlives the process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from strongroom.storage._bytes import pieces_of, span
from strongroom.storage.base import ObjectExists, ObjectMissing, Stat, check_name, check_prefix


class MemoryStore:
    """A store that never fails and lists exactly, in the order of names. Wrap it in FaultyStore for anything worse."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put_new(self, name: str, data: bytes | memoryview | Sequence[bytes | memoryview]) -> int:
        check_name(name)
        content = data if isinstance(data, bytes) else b"".join(pieces_of(data))
        with self._lock:
            if name in self._objects:
                raise ObjectExists(f"{name} is there already")
            self._objects[name] = content
        return len(content)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        with self._lock:
            content = self._objects.get(name)
        if content is None:
            raise ObjectMissing(f"there is no {name}")
        first, end = span(len(content), start, length)
        return content[first:end]

    def delete(self, name: str) -> None:
        self.delete_many([name])

    def delete_many(self, names: Sequence[str]) -> None:
        for name in names:
            check_name(name)
        with self._lock:
            for name in names:
                self._objects.pop(name, None)

    def stat(self, name: str) -> Stat | None:
        check_name(name)
        with self._lock:
            content = self._objects.get(name)
        return None if content is None else Stat(name, len(content))

    def list(self, prefix: str) -> Iterator[Stat]:
        check_prefix(prefix)
        with self._lock:
            found = [Stat(name, len(content)) for name, content in self._objects.items() if name.startswith(prefix)]
        return iter(sorted(found, key=lambda stat: stat.name))

    def keeps_deleted_bytes(self) -> str | None:
        return None

    def close(self) -> None:
        """Keeps the objects: whoever holds the store may go on using it."""
