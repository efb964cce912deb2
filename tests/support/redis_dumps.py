"""Handmade RDBs, and stand-ins for the job and the repository around the Redis engine."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strongroom.engines.base import Entry
from strongroom.engines.redis.checksum import Crc64
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.rdb import packed_length
from strongroom.engines.redis.sorting import RECORD_BUDGET, Contents, sort_dump


def string(data: bytes) -> bytes:
    """A plain string."""
    return packed_length(len(data)) + data


def strings(*items: bytes) -> bytes:
    """A count and that many strings: the value of a list or set."""
    return packed_length(len(items)) + b"".join(map(string, items))


def pairs(items: Mapping[bytes, bytes]) -> bytes:
    """A count and that many pairs: the value of a hash."""
    return packed_length(len(items)) + b"".join(string(field) + string(value) for field, value in items.items())


def record(key: bytes, kind: int = 0, value: bytes = b"\x01v", *, expires: int | None = None, hints: bytes = b"") -> bytes:
    """One key; `expires` in milliseconds since the epoch, `hints` raw eviction opcodes."""
    expiry = b"" if expires is None else b"\xfc" + struct.pack("<q", expires)
    return expiry + hints + bytes([kind]) + string(key) + value


def aux(name: bytes, value: bytes) -> bytes:
    """A field of the head."""
    return b"\xfa" + string(name) + string(value)


def library(code: bytes) -> bytes:
    """A function library."""
    return b"\xf5" + string(code)


def select(db: int, keys: int = 0, expiring: int = 0) -> bytes:
    """The beginning of a database."""
    return b"\xfe" + packed_length(db) + b"\xfb" + packed_length(keys) + packed_length(expiring)


def dump(*parts: bytes, version: int = 10, checksum: bool = True) -> bytes:
    """A whole dump around these parts; from version 80 on as Valkey writes it."""
    head = b"REDIS%04d" % version if version < 80 else b"VALKEY%03d" % version
    body = head + b"".join(parts) + b"\xff"
    crc = Crc64()
    crc.update(body)
    return body + (crc.footer() if checksum else bytes(8))


class Quiet:
    """A job that only listens; `act` is called at every look."""

    def __init__(self, act: Callable[[], None] | None = None) -> None:
        self._act = act
        self.checks = 0
        self.told: list[tuple[str, int, int | None]] = []

    def check(self) -> None:
        self.checks += 1
        if self._act is not None:
            self._act()

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        self.told.append((phase, done, total))

    def took(self, size: int) -> None:
        """No limits here."""


def sorted_dump(raw: bytes, scratch: Path, budget: int = RECORD_BUDGET) -> tuple[bytes, Contents]:
    """What sorting makes of a dump."""
    path = scratch / "raw.rdb"
    path.write_bytes(raw)
    out = bytearray()
    control = Quiet()
    contents = sort_dump(str(path), str(scratch), out.extend, (Pace(control, "sort"), Pace(control, "save")), budget)
    path.unlink()
    return bytes(out), contents


class _Kept:
    def __init__(self) -> None:
        self.data = bytearray()
        self.facts: Mapping[str, Any] | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        self.facts = facts or {}


class MemoryBackup:
    """A sink for a capture and the source of a restore; keeps only entries that were finished."""

    def __init__(self, entries: Mapping[str, bytes] | None = None) -> None:
        self.kept = {name: (data, dict[str, Any]()) for name, data in (entries or {}).items()}
        self.opened: list[str] = []

    @contextmanager
    def entry(self, name: str) -> Iterator[_Kept]:
        self.opened.append(name)
        writer = _Kept()
        yield writer
        assert writer.facts is not None, f"{name} was left unfinished"
        self.kept[name] = (bytes(writer.data), dict(writer.facts))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for name, (data, facts) in self.kept.items():
            if name.startswith(prefix):
                yield Entry(name, len(data), facts)

    def read(self, name: str) -> Iterator[bytes]:
        data = self.kept[name][0]
        for start in range(0, len(data), 1 << 20):
            yield data[start : start + (1 << 20)]

    @property
    def rdb(self) -> bytes:
        """The entry of a Redis backup."""
        return self.kept["rdb"][0]

    @property
    def names(self) -> Sequence[str]:
        """What was kept."""
        return list(self.kept)
