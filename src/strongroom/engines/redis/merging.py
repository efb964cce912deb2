"""Several sorted dumps as one: the shards of a cluster, or files that belong together, for a server that takes one dump.

Keys must be in one of them only. Libraries of functions are in every shard; those of one name must be the same.
"""

from __future__ import annotations

import heapq
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import itemgetter

from strongroom.engines.base import EngineUnsupported
from strongroom.engines.redis import rdb
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.sorting import KEY, LIBRARY, Contents, Item, order_of_part, write_sorted
from strongroom.engines.redis.versions import FIRST_VALKEY_RDB, LAST_COMMON_RDB


@dataclass(frozen=True, slots=True)
class Sorted:
    """A sorted dump on disk, and what is in it."""

    path: str
    contents: Contents
    shown: str  # for people: the entry or file it comes from


def survey(path: str, shown: str, pace: Pace) -> Sorted:
    """What is in a sorted dump whose contents are not known here."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        contents = Contents(rdb.version_of(data[: rdb.HEADER_BYTES]), size=len(data))
        for part in rdb.walk(data, pace.beat):
            contents.count(part)
            pace.advance(part.end - part.start)
    return Sorted(path, contents, shown)


def common_version(dumps: Sequence[Sorted]) -> int:
    """The RDB version that all of them can be written in: the newest. Raises EngineUnsupported if there is none."""
    versions = {dump.contents.version for dump in dumps}
    newest = max(versions)
    if newest >= FIRST_VALKEY_RDB and any(LAST_COMMON_RDB < version < FIRST_VALKEY_RDB for version in versions):
        raise EngineUnsupported("dumps that only Redis reads and dumps that only Valkey reads cannot be put together")
    return newest


def merge(dumps: Sequence[Sorted], scratch: str, write: Callable[[bytes], None], pace: Pace) -> Contents:
    """Writes one sorted dump through `write`. Raises EngineUnsupported where two of them have the same key, or different
    libraries of one name; possibly after some bytes were written."""
    contents = Contents(common_version(dumps))
    for dump in dumps:
        for mine, theirs in ((contents.keys, dump.contents.keys), (contents.expiring, dump.contents.expiring)):
            for db, count in theirs.items():
                mine[db] = mine.get(db, 0) + count
    with ExitStack() as stack:
        streams = []
        for number, dump in enumerate(dumps):
            file = stack.enter_context(open(dump.path, "rb"))
            data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            streams.append(_items(data, number, pace))
        items = _once(heapq.merge(*streams, key=itemgetter(0)), dumps, contents)
        write_sorted(items, contents, scratch, write, pace)
    return contents


def _items(data: mmap.mmap, number: int, pace: Pace) -> Iterator[tuple[bytes, int, Item]]:
    for part in rdb.walk(data, pace.beat):
        order, prefix = order_of_part(data, part)
        yield order, number, (order, prefix, data, part.start, part.end)


def _once(items: Iterator[tuple[bytes, int, Item]], dumps: Sequence[Sorted], contents: Contents) -> Iterator[Item]:
    """Leaves out what is the same in several dumps, but for keys."""
    last, origin = b"", -1
    names: dict[bytes, int] = {}
    for order, number, item in items:
        if order == last:
            if order[:1] == KEY:
                one, two = dumps[origin].shown, dumps[number].shown
                raise EngineUnsupported(f"the key {order[5:45]!r} of database {item_db(order)} is in {one} and in {two}")
            continue
        last, origin = order, number
        if order[:1] == LIBRARY:
            _, _, data, start, _ = item
            name = library_name(rdb.text(data, start + 1, 1 << 10))
            if name in names:
                raise EngineUnsupported(
                    f"the function library {name.decode('utf-8', 'replace')!r} is not the same in "
                    f"{dumps[names[name]].shown} and in {dumps[number].shown}"
                )
            names[name] = number
            contents.functions += 1
        yield item


def item_db(order: bytes) -> int:
    """The database in the order of a key."""
    return int.from_bytes(order[1:5], "big")


def library_name(code: bytes) -> bytes:
    """The name in a library's first line, `#!lua name=…`; the whole line where it has none."""
    line = code.split(b"\n", 1)[0]
    for word in line.split():
        if word.startswith(b"name="):
            return word[5:]
    return line
