"""A dump in an order that depends on nothing but its data, so that the next backup finds the same bytes again.

A server writes its keys in the order of hash tables whose seed changes at every start; a sorted dump is still a valid
dump and loads to equal data. What is ordered: function libraries and cached scripts by their bytes, records by database
and key, members of sets and hashes in hash-table encoding. What is left out because it changes from second to second:
the time, memory and replication fields of the head (returned instead), and the eviction hints of keys; and how many keys each
slot of a cluster has, which would be wrong where a dump is put elsewhere.

Memory: some tens of MiB whatever the size. Sorting spills runs to the scratch folder, at most once the size of the data
at a time and twice while runs are merged; large values stay in the dump and are copied from there.
"""

from __future__ import annotations

import heapq
import itertools
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache

from strongroom.engines.redis import rdb
from strongroom.engines.redis.checksum import Crc64
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.wire import scratch_errors

RECORD_BUDGET = 40 << 20  # bytes of Python objects in a run of records
MEMBER_BUDGET = 12 << 20  # the same for the members of one value
FAN_IN = 32  # runs merged at once, each with a buffer
_RUN_BUFFER = 1 << 17
_INLINE = 1 << 16  # a longer body stays where it is
_ITEM_OVERHEAD = 280  # bytes that an item costs beside its key
_FRAME = struct.Struct("<HB?QQ")  # length of key and of prefix, body follows?, start and end of the body
_OUT = 1 << 18
_COPY = 1 << 20
_VARYING = (b"ctime", b"used-mem", b"repl-id", b"repl-offset", b"repl-stream-db", b"slot-info")


Seen = Callable[[rdb.Buffer, rdb.Record], None]
"""Called with each record of a dump, in the dump's order; may raise."""

Item = tuple[bytes, bytes, rdb.Buffer, int, int]
"""What is sorted: its order, bytes to put first, and [start, end) of a buffer, its body. A plain tuple: there are millions."""


@dataclass(slots=True)
class Contents:
    """What was found in a dump."""

    version: int
    keys: dict[int, int] = field(default_factory=dict)  # by database
    expiring: dict[int, int] = field(default_factory=dict)
    functions: int = 0
    head: dict[str, str] = field(default_factory=dict)  # the fields of the head, the varying ones too
    size: int = 0  # bytes written

    def count(self, part: rdb.Aux | rdb.Function | rdb.Record) -> None:
        """Takes note of a part of the dump."""
        if isinstance(part, rdb.Record):
            self.keys[part.db] = self.keys.get(part.db, 0) + 1
            if part.expiry:
                self.expiring[part.db] = self.expiring.get(part.db, 0) + 1
        elif isinstance(part, rdb.Function):
            self.functions += 1
        elif part.name not in (b"lua", b"slot-info"):
            self.head[part.name.decode("utf-8", "replace")] = part.value.decode("utf-8", "replace")


class Sorter:
    """Sorts any number of items in bounded memory: runs in memory, then in files of `scratch`, then merged."""

    def __init__(self, data: rdb.Buffer, scratch: str, budget: int, beat: Callable[[], None]) -> None:
        self._data = data
        self._scratch = scratch
        self._budget = budget
        self._beat = beat
        self._held: list[tuple[bytes, bytes, int, int]] = []
        self._cost = 0
        self._levels: list[list[str]] = []

    def add(self, order: bytes, prefix: bytes, start: int, end: int) -> None:
        """Takes one item: `prefix`, then the buffer's [start, end). Its order must be unique."""
        self._held.append((order, prefix, start, end))
        self._cost += len(order) + _ITEM_OVERHEAD
        if self._cost >= self._budget:
            self._spill()

    def sorted(self) -> Iterator[Item]:
        """All items in order, once."""
        self._held.sort()
        streams = [self._from_memory()] + [self._from_file(path) for level in self._levels for path in level]
        yield from streams[0] if len(streams) == 1 else heapq.merge(*streams)

    def close(self) -> None:
        """Removes the files."""
        for level in self._levels:
            for path in level:
                os.unlink(path)
        self._levels = []

    def _from_memory(self) -> Iterator[Item]:
        for order, prefix, start, end in self._held:
            yield order, prefix, self._data, start, end

    def _spill(self) -> None:
        self._held.sort()
        self._keep(0, self._from_memory())
        self._held = []
        self._cost = 0

    def _keep(self, level: int, items: Iterator[Item]) -> None:
        """Writes a run; a full level becomes one run of the next."""
        while len(self._levels) <= level:
            self._levels.append([])
        runs = self._levels[level]
        runs.append(self._written(items))
        if len(runs) == FAN_IN:
            self._keep(level + 1, heapq.merge(*[self._from_file(path) for path in runs]))
            for path in runs:
                os.unlink(path)
            runs.clear()

    def _written(self, items: Iterator[Item]) -> str:
        with scratch_errors(self._scratch):
            handle, path = tempfile.mkstemp(suffix=".run", dir=self._scratch)
            with open(handle, "wb", buffering=_RUN_BUFFER) as file:
                while some := list(itertools.islice(items, 1024)):
                    file.write(b"".join(map(_framed, some)))
                    self._beat()
        return path

    def _from_file(self, path: str) -> Iterator[Item]:
        with open(path, "rb", buffering=_RUN_BUFFER) as file:
            while frame := file.read(_FRAME.size):
                order_size, prefix_size, inline, start, end = _FRAME.unpack(frame)
                order = file.read(order_size)
                prefix = file.read(prefix_size)
                if inline:
                    yield order, prefix, file.read(end - start), 0, end - start
                else:
                    yield order, prefix, self._data, start, end


def _framed(item: Item) -> bytes:
    """An item as it lies in a run."""
    order, prefix, data, start, end = item
    inline = end - start <= _INLINE
    return b"".join((_FRAME.pack(len(order), len(prefix), inline, start, end), order, prefix, data[start:end] if inline else b""))


class _Out:
    """Gathers small pieces, hands out large ones, and keeps the checksum."""

    def __init__(self, write: Callable[[bytes], None], pace: Pace) -> None:
        self._write = write
        self._pace = pace
        self._checksum = Crc64()
        self._gathered = bytearray()
        self.size = 0

    def put(self, data: bytes) -> None:
        """Appends."""
        self._gathered += data
        if len(self._gathered) >= _OUT:
            self.flush()

    def copy(self, data: rdb.Buffer, start: int, end: int) -> None:
        """Appends the buffer's [start, end)."""
        if end - start <= _COPY:  # nearly always
            self.put(data[start:end])
            return
        for at in range(start, end, _COPY):
            self.put(data[at : min(at + _COPY, end)])

    def flush(self) -> None:
        """Hands out what is gathered."""
        self._checksum.update(self._gathered)
        self._pass_on(bytes(self._gathered))
        self._gathered.clear()

    def finish(self) -> None:
        """Writes the end of the dump."""
        self.put(bytes([rdb.END]))
        self.flush()
        self._pass_on(self._checksum.footer())

    def _pass_on(self, data: bytes) -> None:
        self._write(data)
        self.size += len(data)
        self._pace.advance(len(data))


def sort_dump(
    path: str,
    scratch: str,
    write: Callable[[bytes], None],
    paces: tuple[Pace, Pace],
    budget: int = RECORD_BUDGET,
    seen: Seen | None = None,
) -> Contents:
    """Writes the verified dump at `path` in order through `write` and tells what it holds.

    `paces` are told the bytes read and the bytes written; `seen` is told each record. Raises what rdb.walk
    raises, possibly after some bytes were written: the caller keeps nothing then.
    """
    reading, writing = paces
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        sorter = Sorter(data, scratch, budget, reading.beat)
        with closing(sorter):
            contents = _gather(data, sorter, reading, seen)
            write_sorted(sorter.sorted(), contents, scratch, write, writing)
    return contents


def write_sorted(items: Iterator[Item], contents: Contents, scratch: str, write: Callable[[bytes], None], pace: Pace) -> None:
    """Writes items that come in order as a dump, of the version and with the counts that `contents` tells; sets its size."""
    out = _Out(write, pace)
    out.put(rdb.header_of(contents.version))
    _Writer(out, scratch, contents, pace).write(items)
    out.finish()
    contents.size = out.size


HEAD, LIBRARY, KEY = b"\0", b"\1", b"\2"


def order_of_part(data: rdb.Buffer, part: rdb.Aux | rdb.Function | rdb.Record) -> tuple[bytes, bytes]:
    """What a part is ordered by, and the bytes that go before it: its kind first, a key's database, then its text."""
    if isinstance(part, rdb.Record):
        return _key_of_database(part.db) + rdb.order_of(data, part.start + 1), part.expiry
    if isinstance(part, rdb.Function):
        return LIBRARY + rdb.order_of(data, part.start + 1), b""
    value = rdb.skip_string(data, part.start + 1)
    return HEAD + part.name + b"\0" + rdb.order_of(data, value), b""


@cache
def _key_of_database(db: int) -> bytes:
    return KEY + db.to_bytes(4, "big")


def _gather(data: mmap.mmap, sorter: Sorter, pace: Pace, seen: Seen | None) -> Contents:
    contents = Contents(rdb.version_of(data[: rdb.HEADER_BYTES]))
    for part in rdb.walk(data, pace.beat):
        contents.count(part)
        if seen is not None and isinstance(part, rdb.Record):
            seen(data, part)
        if not (isinstance(part, rdb.Aux) and part.name in _VARYING):
            sorter.add(*order_of_part(data, part), part.start, part.end)
        pace.advance_to(part.end)
    pace.finish()
    return contents


_MEMBERS = {rdb.SET_TABLE: (1, 0), rdb.HASH_TABLE: (2, 0), rdb.HASH_EXPIRING: (2, 8)}


class _Writer:
    """Turns sorted items into a dump."""

    def __init__(self, out: _Out, scratch: str, contents: Contents, pace: Pace) -> None:
        self._out = out
        self._scratch = scratch
        self._contents = contents
        self._pace = pace

    def write(self, items: Iterator[Item]) -> None:
        """Writes all items, and before each database's first record which database it is."""
        out, current = self._out, b""
        for item in items:
            order, prefix, data, start, end = item
            if order[:5] != current and order[:1] == KEY:
                current = order[:5]
                self._select(int.from_bytes(current[1:], "big"))
            out.put(prefix)
            kind = data[start]
            if kind in _MEMBERS and order[:1] == KEY:
                self._members(data, start, *_MEMBERS[kind])
            else:
                out.copy(data, start, end)

    def _select(self, db: int) -> None:
        sizes = (self._contents.keys[db], self._contents.expiring.get(db, 0))
        self._out.put(bytes([rdb.SELECT]) + rdb.packed_length(db))
        self._out.put(bytes([rdb.RESIZE]) + b"".join(map(rdb.packed_length, sizes)))

    def _members(self, data: rdb.Buffer, start: int, strings: int, more: int) -> None:
        """Writes a set or hash with its members in order: each one or two strings, and so many bytes more."""
        count, at = rdb.length(data, rdb.skip_string(data, start + 1))
        self._out.copy(data, start, at)
        sorter = Sorter(data, self._scratch, MEMBER_BUDGET, self._pace.beat)
        with closing(sorter):
            for number in range(count):
                start, end = at, rdb.skip_string(data, at)
                at = (end if strings == 1 else rdb.skip_string(data, end)) + more
                sorter.add(rdb.order_of(data, start), b"", start, at)
                if number % 20_000 == 19_999:
                    self._pace.beat()
            for _, _, held, start, end in sorter.sorted():
                self._out.copy(held, start, end)
