"""A whole cluster: each shard as a dump of its own, taken at nearly the same time, from a replica where one keeps up.

Each dump shows its shard at one moment, after the capture began; the shards' moments differ by as long as their servers take
to fork. A cluster has no transactions over several shards, and no moment that all of them share, so nothing more exact is to
be had without stopping the writers. What is proved is that no slot moved and no other node took over meanwhile: the same
masters serve the same slots before and after, none on its way, and every key in a dump is of a slot of its shard.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from strongroom.ambient import Ambient
from strongroom.engines.base import CaptureBroken, CaptureControl, CaptureSink, Control, EngineError, Summary, Target
from strongroom.engines.redis import rdb
from strongroom.engines.redis.capture import Origin, facts_of, spool
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.sorting import sort_dump
from strongroom.engines.redis.topology import AT_ONCE, Node, Shard, require_unchanged, settled_shards, slot_of, target_of
from strongroom.engines.redis.wire import open_wire

PREFIX = "rdb/"
CATCH_UP_SECONDS = 5.0  # how long a replica may need to reach where its master was when the capture began
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Spooled:
    """One shard's dump as it came."""

    shard: Shard
    path: str
    source: Node
    origin: Origin


def entry_name(shard: Shard) -> str:
    """`rdb/` and the shard's first slot: the same as long as the slots are divided alike."""
    return f"{PREFIX}{shard.ranges[0][0]:05d}"


def capture_cluster(target: Target, sink: CaptureSink, control: CaptureControl, scratch: str, ambient: Ambient) -> Summary:
    """See Engine.capture. One entry for each shard, in order of their first slots."""
    shards = settled_shards(target, ambient)
    spooled = _Spooling(target, shards, control, scratch, ambient).run()
    changed = require_unchanged(shards, target, ambient)
    if changed:
        raise CaptureBroken(f"{changed}; nothing of this capture is kept, capture again")
    warnings: list[str] = []
    told: list[dict[str, Any]] = []
    size = 0
    for one in spooled:
        facts, written, checked = _kept(one, sink, control, scratch)
        told.append(facts)
        size += written
        if not checked:
            warnings.append(f"The server {one.source.shown} writes no checksums (rdbchecksum no): damage would go unseen.")
    return Summary(entries=len(told), bytes=size, facts=_summed(told), warnings=warnings)


def _kept(one: _Spooled, sink: CaptureSink, control: Control, scratch: str) -> tuple[dict[str, Any], int, bool]:
    """Checks, sorts and hands over one shard's dump."""
    try:
        dump = rdb.verify(one.path, Pace(control, "check", os.path.getsize(one.path)).advance)
        with sink.entry(entry_name(one.shard)) as writer:
            paces = (Pace(control, "sort", dump.size), Pace(control, "save", dump.size))
            contents = sort_dump(one.path, scratch, writer.write, paces, seen=_owned(one.shard))
            facts = facts_of(contents, one.origin) | {
                "slots": [list(range_) for range_ in one.shard.ranges],
                "node": one.shard.master.id,
                "read_from": one.source.shown,
                "replica": bool(one.source.master),
            }
            writer.finish(facts)
    finally:
        os.unlink(one.path)
    return facts, contents.size, dump.checked


def _owned(shard: Shard) -> Callable[[rdb.Buffer, rdb.Record], None]:
    slots = shard.slots

    def check(data: rdb.Buffer, record: rdb.Record) -> None:
        slot = slot_of(rdb.key_of(data, record))
        if slot not in slots:
            raise CaptureBroken(
                f"{shard.master.shown} holds a key of slot {slot}, which another node serves: slots were moved, capture again "
                "(or remove what a broken move left: redis-cli --cluster fix)"
            )

    return check


def _summed(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts of the whole: the shards' own are with the entries, and here again as the map of slots."""
    keys: dict[str, int] = {}
    for one in told:
        for db, count in one["keys"].items():
            keys[db] = keys.get(db, 0) + count
    return {
        "mode": "Cluster",
        "version": max((one["version"] for one in told), key=_as_numbers),
        "product": told[0]["product"],
        "rdb_version": max(one["rdb_version"] for one in told),
        "keys": keys,
        "functions": max(one["functions"] for one in told),
        "time": max(one["time"] for one in told),
        "used_memory": sum(one["used_memory"] for one in told),
        "shards": [{name: one[name] for name in ("slots", "node", "read_from", "replica", "time", "offset")} for one in told],
    }


def _as_numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


class _Stopped(Exception):
    """Another thread failed, or the job ended."""


class _Meter:
    """The job as the threads see it: they are told to stop, and their bytes are added up."""

    def __init__(self, control: CaptureControl) -> None:
        self._control = control
        self._lock, self._paying = threading.Lock(), threading.Lock()
        self._done: dict[int, int] = {}
        self.stop = False

    def check(self) -> None:
        if self.stop:
            raise _Stopped

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        del phase, total
        with self._lock:
            self._done[threading.get_ident()] = done

    def took(self, size: int) -> None:
        """The limits of the source hold for all shards together: they are paid one after the other."""
        with self._paying:
            self.check()
            self._control.took(size)

    def done(self) -> int:
        """Bytes so far."""
        with self._lock:
            return sum(self._done.values())


class _Spooling:
    """Fetches all dumps at the same time, each in a thread; the job is looked at by the caller's own."""

    def __init__(self, target: Target, shards: Sequence[Shard], control: CaptureControl, scratch: str, ambient: Ambient) -> None:
        self._target = target
        self._shards = shards
        self._control = control
        self._scratch = scratch
        self._ambient = ambient
        self._meter = _Meter(control)

    def run(self) -> list[_Spooled]:
        """The dumps in order of the shards. Whatever ends one ends all."""
        with ThreadPoolExecutor(min(len(self._shards), AT_ONCE), "redis-shard") as pool:
            futures = [pool.submit(self._spool, shard) for shard in self._shards]
            try:
                self._follow(futures)
            finally:
                self._meter.stop = True
        return [future.result() for future in futures]

    def _follow(self, futures: Sequence[Future[_Spooled]]) -> None:
        left = set(futures)
        while left:
            ended, left = wait(left, _LOOK_SECONDS, FIRST_COMPLETED)
            for future in ended:
                future.result()
            self._control.check()
            self._control.progress("read", self._meter.done())

    def _spool(self, shard: Shard) -> _Spooled:
        source = self._source(shard)
        path = os.path.join(self._scratch, f"{shard.ranges[0][0]}.rdb")
        try:
            return self._spooled(shard, source, path)
        except EngineError:
            if source is shard.master:
                raise
        if os.path.exists(path):
            os.unlink(path)
        return self._spooled(shard, shard.master, path)

    def _spooled(self, shard: Shard, source: Node, path: str) -> _Spooled:
        origin = spool(target_of(self._target, source), self._meter, path, self._scratch, self._ambient)
        return _Spooled(shard, path, source, origin)

    def _source(self, shard: Shard) -> Node:
        """A replica that has what the master had just now, or else the master."""
        if not shard.replicas:
            return shard.master
        try:
            with open_wire(target_of(self._target, shard.master), self._ambient, self._meter.check) as wire:
                reached = int(wire.info().get("master_repl_offset", ""))
        except (EngineError, ValueError):
            return shard.master
        deadline = self._ambient.monotonic() + CATCH_UP_SECONDS
        while True:
            for replica in shard.replicas:
                if self._has(replica, shard.master, reached):
                    return replica
            self._meter.check()
            if self._ambient.monotonic() > deadline:
                return shard.master
            self._ambient.sleep(_LOOK_SECONDS)

    def _has(self, replica: Node, master: Node, offset: int) -> bool:
        """Whether it follows that master, its link is up, and it has all up to the offset."""
        try:
            with open_wire(target_of(self._target, replica), self._ambient, self._meter.check, patience=2.0) as wire:
                info = wire.info()
        except EngineError:
            return False
        follows = (info.get("master_host"), info.get("master_port")) == (master.host, str(master.port))
        seen = info.get("slave_repl_offset", "")
        return follows and info.get("master_link_status") == "up" and seen.isdigit() and int(seen) >= offset
