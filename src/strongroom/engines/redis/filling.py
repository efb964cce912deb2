"""Restoring into a cluster, where no server can be given a master: key by key, each to the node that serves its slot.

A value goes as RESTORE takes it: as it stands in the dump, with the dump's version and a checksum. Expiries are absolute, so
they stay what they were. Any number of dumps goes into any number of shards.
"""

from __future__ import annotations

import heapq
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from strongroom.ambient import Ambient
from strongroom.engines.base import Control, EngineDenied, EngineError, EngineUnsupported, RestoreBroken, Target, tell_target
from strongroom.engines.redis import rdb
from strongroom.engines.redis.checksum import Crc64
from strongroom.engines.redis.merging import Sorted, common_version, item_db, library_name
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.sorting import order_of_part
from strongroom.engines.redis.topology import SLOTS, Shard, require_unchanged, settled_shards, slot_of, target_of
from strongroom.engines.redis.versions import product_of, require_readable
from strongroom.engines.redis.wire import REPLY_SECONDS, RightMissing, Wire, open_wire, packed

LARGEST = 512 * 1024 * 1024  # bytes of a value that a server takes in one command (proto-max-bulk-len, unless it is raised)
BATCH_BYTES = 1 << 20
BATCH_KEYS = 512
FLUSH_SECONDS = 600.0
RESTORE_SECONDS = 120.0  # one batch


@dataclass(frozen=True, slots=True)
class Ready:
    """A cluster that was found fit for the dumps."""

    shards: Sequence[Shard]
    version: str
    dumps: Mapping[str, bool]  # by the master's id: it keeps dumps of its own


@dataclass(slots=True)
class Needs:
    """What of the dumps decides whether a cluster can take them."""

    version: int
    keys: dict[int, int] = field(default_factory=dict)
    libraries: dict[bytes, bytes] = field(default_factory=dict)  # by name


def needs_of(dumps: Sequence[Sorted], control: Control) -> Needs:
    """Reads the dumps once. Raises EngineUnsupported for a value that no RESTORE takes, and where dumps contradict each other."""
    needs = Needs(common_version(dumps))
    pace = Pace(control, "check", sum(dump.contents.size for dump in dumps))
    with _Opened(dumps) as (data, parts):
        last = b""
        for order, number, part in parts:
            pace.advance(part.end - part.start)
            if isinstance(part, rdb.Function):
                _add_library(needs, rdb.text(data[number], part.start + 1, LARGEST), dumps[number].shown)
            elif isinstance(part, rdb.Record):
                if order == last:
                    raise EngineUnsupported(f"the key {order[5:45]!r} of database {item_db(order)} is in two of the dumps")
                last = order
                needs.keys[part.db] = needs.keys.get(part.db, 0) + 1
                if part.end - part.start > LARGEST:
                    raise EngineUnsupported(
                        f"the value of key {order[5:45]!r} is larger than a cluster's node takes in one command"
                    )
    pace.finish()
    return needs


def _add_library(needs: Needs, code: bytes, shown: str) -> None:
    name = library_name(code)
    if needs.libraries.setdefault(name, code) != code:
        raise EngineUnsupported(
            f"the function library {name.decode('utf-8', 'replace')!r} is not the same in {shown} as before it"
        )


class _Opened:
    """Several sorted dumps, and their parts in one order: (order, which dump, part)."""

    def __init__(self, dumps: Sequence[Sorted]) -> None:
        self._dumps = dumps
        self._stack = ExitStack()

    def __enter__(self) -> tuple[list[mmap.mmap], Iterator[tuple[bytes, int, rdb.Aux | rdb.Function | rdb.Record]]]:
        data = []
        for dump in self._dumps:
            file = self._stack.enter_context(open(dump.path, "rb"))
            data.append(self._stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        streams = [_parts(one, number) for number, one in enumerate(data)]
        return data, heapq.merge(*streams, key=lambda item: item[:2])

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _parts(data: mmap.mmap, number: int) -> Iterator[tuple[bytes, int, rdb.Aux | rdb.Function | rdb.Record]]:
    for part in rdb.walk(data, lambda: None):
        yield order_of_part(data, part)[0], number, part


def check_cluster(
    target: Target, needs: Needs, beat: Callable[[], None], ambient: Ambient, patience: float = REPLY_SECONDS
) -> Ready:
    """Everything about the cluster that can be known beforehand: topology, versions, rights, databases. Changes nothing."""
    beat()
    shards = settled_shards(target, ambient, patience)
    dumps, versions = {}, []
    for shard in shards:
        with open_wire(target_of(target, shard.master), ambient, beat, patience) as wire:
            info = wire.info()
            product = product_of(info)
            require_readable(product, needs.version)
            versions.append(product.version)
            _prove_rights(wire, bool(needs.libraries))
            _prove_databases(wire, needs, shard)
            try:
                dumps[shard.master.id] = bool(wire.setting("save"))
            except RightMissing:
                dumps[shard.master.id] = False
    return Ready(shards, min(versions), dumps)


_HARMLESS: tuple[tuple[tuple[str, ...], bool], ...] = (
    # Commands in forms that a server refuses after it has looked at the user's rights, and whether only functions need them.
    (("RESTORE", "strongroom", "0", "no payload", "REPLACE", "ABSTTL"), False),
    (("FLUSHALL", "strongroom"), False),
    (("DBSIZE",), False),
    (("FUNCTION", "LOAD", "REPLACE", "strongroom"), True),
    (("FUNCTION", "FLUSH", "strongroom"), True),
)


def _prove_rights(wire: Wire, functions: bool) -> None:
    for words, only_functions in _HARMLESS:
        if only_functions and not functions:
            continue
        try:
            wire.command(*words)
        except EngineDenied as error:
            raise EngineDenied(f"{error} (a restore into a cluster needs it on every node, on all keys)") from error
        except EngineUnsupported:
            raise
        except EngineError:
            pass


def _prove_databases(wire: Wire, needs: Needs, shard: Shard) -> None:
    highest = max(needs.keys, default=0)
    if not highest:
        return
    try:
        wire.command("SELECT", str(highest))
    except EngineError as error:
        raise EngineUnsupported(
            f"the backup has keys in database {highest}, and the cluster's node {shard.master.shown} has none of that number: "
            "restore into a single server"
        ) from error


def fill_cluster(
    target: Target, dumps: Sequence[Sorted], needs: Needs, ready: Ready, control: Control, ambient: Ambient
) -> dict[str, int]:
    """Empties the cluster and fills it; returns the keys then there, by database.

    Order of effects: functions and data of every master are flushed, libraries loaded on every master, then the keys. What
    ends it after the first flush is a RestoreBroken: the cluster then holds a part of the backup's data, and the restore can
    be run again.
    """
    state = _State()
    try:
        with ExitStack() as stack:
            nodes = []
            for shard in ready.shards:
                wire = open_wire(target_of(target, shard.master), ambient, control.check, RESTORE_SECONDS)
                nodes.append(_Filling(stack.enter_context(wire), shard, needs.version))
            control.check()
            state.text = "being emptied: some of its nodes are, nothing of the backup is in it yet"
            _empty(nodes, bool(needs.libraries))
            state.text = "empty"
            for code in needs.libraries.values():
                for node in nodes:
                    node.wire.command("FUNCTION", "LOAD", "REPLACE", code)
            _send(dumps, nodes, state, control)
            found = _counted(nodes, sorted(needs.keys))
        changed = require_unchanged(ready.shards, target, ambient)
        if changed:
            raise EngineError(changed)
    except EngineError as error:
        if not state.text:
            raise
        raise RestoreBroken(str(error), state.text) from error
    except Exception as error:  # the job's own error keeps its type and learns what the target holds
        if state.text:
            tell_target(error, state.text)
        raise
    return found


@dataclass(slots=True)
class _State:
    """What the target holds, in words."""

    text: str = ""  # nothing was changed yet


def _empty(nodes: Sequence[_Filling], functions: bool) -> None:
    """Removes all data, of all nodes at the same time, and all libraries, which only matters where a server knows them."""
    for node in nodes:
        node.wire.send_command("FLUSHALL")
    for node in nodes:
        node.wire.reply("FLUSHALL", FLUSH_SECONDS)
        try:
            node.wire.command("FUNCTION", "FLUSH")
        except (RightMissing, EngineUnsupported):
            if functions:
                raise


def _send(dumps: Sequence[Sorted], nodes: Sequence[_Filling], state: _State, control: Control) -> None:
    serving: list[_Filling] = [nodes[0]] * SLOTS
    for node in nodes:
        for slot in node.shard.slots:
            serving[slot] = node
    pace = Pace(control, "restore", sum(dump.contents.size for dump in dumps))
    keys = 0
    for dump in dumps:
        with open(dump.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for part in rdb.walk(data, pace.beat):
                if isinstance(part, rdb.Record):
                    key = rdb.key_of(data, part)
                    serving[slot_of(key)].add(data, part, key)
                    keys += 1
                    state.text = f"its former data is gone, {keys} keys of the backup were sent: a part of the backup's data"
                pace.advance(part.end - part.start)
    for node in nodes:
        node.flush()
    pace.finish()


def _counted(nodes: Sequence[_Filling], databases: Sequence[int]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in nodes:
        for db in databases:
            node.select(db)
            found = node.wire.command("DBSIZE")
            counts[str(db)] = counts.get(str(db), 0) + (found if isinstance(found, int) else 0)
    return counts


class _Filling:
    """One master that gets its keys in batches: while it works on one, the next is made."""

    def __init__(self, wire: Wire, shard: Shard, version: int) -> None:
        self.wire = wire
        self.shard = shard
        self._footer = version.to_bytes(2, "little")
        self._db = 0
        self._batch: list[bytes] = []
        self._bytes = 0
        self._names: list[str] = []
        self._awaited: list[str] = []

    def select(self, db: int) -> None:
        """Changes the database, if it is another one."""
        if db != self._db:
            self.wire.command("SELECT", str(db))
            self._db = db

    def add(self, data: rdb.Buffer, record: rdb.Record, key: bytes) -> None:
        """Puts a key into the batch; sends the batch once it is large enough."""
        if record.db != self._db:
            self._append(packed("SELECT", str(record.db)), "SELECT")
            self._db = record.db
        expiry = rdb.expiry_of(record)
        if expiry is not None and expiry <= 0:  # no time that RESTORE takes, and long past
            return
        kind = record.start
        body = data[kind : kind + 1] + data[rdb.skip_string(data, kind + 1) : record.end] + self._footer
        checksum = Crc64()
        checksum.update(body)
        payload = body + checksum.footer()
        self._append(packed("RESTORE", key, str(expiry or 0), payload, "REPLACE", "ABSTTL"), "RESTORE")
        if self._bytes >= BATCH_BYTES or len(self._batch) >= BATCH_KEYS:
            self._hand_over()

    def flush(self) -> None:
        """Sends what is left and waits for all answers."""
        self._hand_over()
        self._collect()

    def _append(self, command: bytes, name: str) -> None:
        self._batch.append(command)
        self._names.append(name)
        self._bytes += len(command)

    def _hand_over(self) -> None:
        self._collect()
        self.wire.send(b"".join(self._batch))
        self._awaited = self._names
        self._batch, self._names, self._bytes = [], [], 0

    def _collect(self) -> None:
        for name in self._awaited:
            self.wire.reply(name, RESTORE_SECONDS)
        self._awaited = []
