"""Replacing what a live server holds, by being its master for the time of one full synchronisation.

The target keeps its old data beside the new while it loads (`repl-diskless-load swapdb`), so a transfer that is cut leaves
the old data. What a server does not survive is a dump with a wrong checksum: it exits. So the whole dump is fetched and
checked before the target is told anything.

Between REPLICAOF and the end the target carries a mark in its setting `masteruser` (see marks.py), so that any process
can end what a dead one left, by `release`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from strongroom.ambient import Ambient
from strongroom.engines.base import (
    CaptureBroken,
    Control,
    EngineError,
    EngineUnreachable,
    EngineUnsupported,
    RestoreBroken,
    RestoreSource,
    Summary,
    Target,
    tell_target,
)
from strongroom.engines.redis import rdb
from strongroom.engines.redis.capture import ENTRY
from strongroom.engines.redis.cluster_capture import PREFIX
from strongroom.engines.redis.filling import check_cluster, fill_cluster, needs_of
from strongroom.engines.redis.marks import release
from strongroom.engines.redis.mastering import Door, synchronise
from strongroom.engines.redis.merging import Sorted, merge, survey
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.topology import is_cluster, target_of
from strongroom.engines.redis.versions import product_of, require_readable
from strongroom.engines.redis.wire import Wire, open_wire, scratch_errors

OLD_DATA, NEW_DATA = "its old data, as a master", "the data of the backup, as a master"
PART_OF_SEQUEL = "the data of the backup and a part of what followed it, as a master"
ALL_OF_SEQUEL = "the data of the backup and what followed it, as a master"


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found on the target before anything was changed there."""

    version: str
    dumps: bool  # it keeps dumps of its own


class Sequel(Protocol):
    """What follows a dump on a single server: changes that were made after it."""

    def check(self, target: Target, control: Control) -> int:
        """Before anything is changed: raises EngineError if the target cannot take it. The number is for `send`."""

    def send(self, link: Wire, target: Target, offset: int, refused: int, control: Control) -> None:
        """Once the target has loaded the dump and acknowledged `offset`: sends the changes, and waits until they are made."""


def restore(
    target: Target,
    source: RestoreSource,
    facts: Mapping[str, Any],
    control: Control,
    scratch: str,
    ambient: Ambient,
    sequel: Sequel | None = None,
) -> Summary:
    """See Engine.restore. Whatever the backup is of, it goes into a single server or a cluster: see `put`."""
    dumps: list[Dumped] = []
    try:
        for name in names_of(source, facts):
            dumps.append(_fetched(source, name, len(dumps), control, scratch))
        summary = put(target, dumps, control, scratch, ambient, sequel)
    finally:
        for dump in dumps:
            os.unlink(dump.path)
    told = {"captured_version": str(facts.get("version", ""))}
    return Summary(len(dumps), summary.bytes, {**summary.facts, **told}, summary.warnings)


@dataclass(frozen=True, slots=True)
class Dumped:
    """A whole, sorted dump in a file of our own."""

    path: str
    dump: rdb.Dump
    shown: str  # for people: where it comes from


def put(
    target: Target, dumps: Sequence[Dumped], control: Control, scratch: str, ambient: Ambient, sequel: Sequel | None = None
) -> Summary:
    """Makes the target hold what the dumps hold together, and what follows. Order of effects on a single server:

    1. nothing, until the dumps have been checked, put together, and the target's version, rights and topology checked too;
    2. the mark, then `repl-diskless-load swapdb`, then REPLICAOF us: it is read-only from here, old data still there;
    3. the full synchronisation: the target swaps to the new data once it has loaded all of it; then the changes that follow;
    4. REPLICAOF NO ONE, its own setting back, the mark away; also after any failure of 2 and 3;
    5. BGSAVE, where the target keeps dumps; and waiting until it has written what it keeps.

    On a cluster see filling.fill_cluster, then 5 on every master.
    """
    if is_cluster(target, ambient):
        return _put_into_cluster(target, dumps, control, ambient)
    if len(dumps) == 1:
        return _put_into_server(target, dumps[0].path, dumps[0].dump, control, ambient, sequel)
    path = os.path.join(scratch, "restore.rdb")
    try:
        return _put_into_server(target, path, _merged(dumps, path, control, scratch), control, ambient, sequel)
    finally:
        if os.path.exists(path):
            os.unlink(path)


def _put_into_server(
    target: Target, path: str, dump: rdb.Dump, control: Control, ambient: Ambient, sequel: Sequel | None
) -> Summary:
    checked = check_target(target, dump.version, control, ambient)
    keys = _replace(target, path, dump, control, ambient, sequel)
    warnings = _saved(target, checked.dumps, control, ambient)
    return Summary(1, dump.size, {"version": checked.version, "keys": keys}, warnings)


def _put_into_cluster(target: Target, dumps: Sequence[Dumped], control: Control, ambient: Ambient) -> Summary:
    surveyed = _surveyed(dumps, control)
    needs = needs_of(surveyed, control)
    ready = check_cluster(target, needs, control.check, ambient)
    keys = fill_cluster(target, surveyed, needs, ready, control, ambient)
    warnings: list[str] = []
    for shard in ready.shards:
        node = target_of(target, shard.master)
        warnings += (f"{shard.master.shown}: {text}" for text in _saved(node, ready.dumps[shard.master.id], control, ambient))
    facts = {"version": ready.version, "keys": keys, "shards": len(ready.shards)}
    return Summary(1, sum(dump.dump.size for dump in dumps), facts, warnings)


def _surveyed(dumps: Sequence[Dumped], control: Control) -> list[Sorted]:
    pace = Pace(control, "survey", sum(dump.dump.size for dump in dumps))
    return [survey(dump.path, dump.shown, pace) for dump in dumps]


def _merged(dumps: Sequence[Dumped], path: str, control: Control, scratch: str) -> rdb.Dump:
    surveyed = _surveyed(dumps, control)
    with scratch_errors(scratch), open(path, "xb") as file:
        contents = merge(surveyed, scratch, _writes(file), Pace(control, "merge", sum(dump.dump.size for dump in dumps)))
    return rdb.Dump(contents.version, contents.size, checked=True)


def _writes(file: BinaryIO) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        file.write(data)

    return write


def one_dump(source: RestoreSource, facts: Mapping[str, Any], to: str, control: Control, scratch: str) -> None:
    """Writes the backup as one sorted dump, also one of a cluster; `scratch` is for what is put together."""
    dumps: list[Dumped] = []
    try:
        for name in names_of(source, facts):
            dumps.append(_fetched(source, name, len(dumps), control, scratch))
        if len(dumps) == 1:
            os.rename(dumps.pop().path, to)
        else:
            _merged(dumps, to, control, scratch)
    finally:
        for dump in dumps:
            os.unlink(dump.path)


def names_of(source: RestoreSource, facts: Mapping[str, Any]) -> list[str]:
    """The entries of the backup: one of a single server, or one of each shard, none missing. Raises EngineUnsupported."""
    found = [entry.name for entry in source.entries() if entry.name == ENTRY or entry.name.startswith(PREFIX)]
    if facts.get("mode") == "Cluster":
        expected = [f"{PREFIX}{shard['slots'][0][0]:05d}" for shard in facts["shards"]]
        if sorted(found) != sorted(expected):
            raise EngineUnsupported("this backup of a cluster does not hold all of its shards; nothing was sent to the target")
    if not found:
        raise EngineUnsupported("this backup holds no Redis dump; nothing was sent to the target")
    return found


def _fetched(source: RestoreSource, name: str, number: int, control: Control, scratch: str) -> Dumped:
    """Brings a dump here and proves it whole."""
    path = os.path.join(scratch, "restore.rdb" if name == ENTRY else f"restore-{number}.rdb")
    size = next(entry.size for entry in source.entries(name) if entry.name == name)
    pace = Pace(control, "fetch", size)
    with scratch_errors(scratch):
        file = open(path, "xb")  # noqa: SIM115 (closed below: only our own writes may be blamed on the folder)
    try:
        with file:
            for piece in source.read(name):
                with scratch_errors(scratch):
                    file.write(piece)
                    file.flush()
                pace.advance(len(piece))
        pace.finish()
        return Dumped(path, _proved_whole(path, control), name)
    except BaseException:
        os.unlink(path)
        raise


def _proved_whole(path: str, control: Control) -> rdb.Dump:
    try:
        dump = rdb.verify(path, Pace(control, "check", os.path.getsize(path)).advance)
    except CaptureBroken as error:
        raise CaptureBroken(f"{error}; nothing was sent to the target") from error
    if not dump.checked:
        raise CaptureBroken("the dump in this backup carries no checksum; nothing was sent to the target")
    return dump


def check_target(target: Target, rdb_version: int, control: Control, ambient: Ambient) -> Checked:
    """Everything about the target that can be known beforehand; also ends what an earlier restore left there."""
    release(target, ambient, control.check)
    with open_wire(target, ambient, control.check) as wire:
        info = require_target(wire, rdb_version)
        return Checked(product_of(info).version, dumps=bool(wire.setting("save")))


def require_target(wire: Wire, rdb_version: int) -> dict[str, str]:
    """A master that reads this version of RDB, and whose user may do what a restore does; returns its INFO. Changes nothing."""
    info = wire.info()
    require_readable(product_of(info), rdb_version)
    if info.get("role") != "master":
        where = f"{info.get('master_host')}:{info.get('master_port')}"
        raise EngineUnsupported(f"the target is a replica of {where}: restore into its master, or detach it first")
    if wire.setting("tls-replication") == "yes":
        raise EngineUnsupported("the target wants TLS from its master (tls-replication yes), which a restore does not speak")
    _prove_rights(wire)
    return info


def _prove_rights(wire: Wire) -> None:
    """Runs what the restore will run, in forms that change nothing on a master."""
    mode = wire.setting("repl-diskless-load")
    user = wire.setting("masteruser")
    if mode is None or user is None:
        raise EngineUnsupported("the target is older than Redis 6.2, which is needed for a restore")
    wire.set("repl-diskless-load", mode)
    wire.command("REPLICAOF", "NO", "ONE")


def _replace(
    target: Target, path: str, dump: rdb.Dump, control: Control, ambient: Ambient, sequel: Sequel | None
) -> dict[str, int]:
    """Steps 2 to 4; returns the keys then there, by database.

    Whatever ends it, the target is a master again, or carries the mark that `recover` looks for.
    """
    replid = (ambient.hex_id() + ambient.hex_id())[:40]
    refused = sequel.check(target, control) if sequel else 0
    new_data = PART_OF_SEQUEL if sequel else NEW_DATA
    synchronising = False
    with Door(target, ambient, control) as door:
        try:
            door.invite()
            with closing(door.admit()) as link:
                synchronising = True
                offset = synchronise(link, path, dump, replid, control)
                if sequel:
                    sequel.send(link, target, offset, refused, control)
                    new_data = ALL_OF_SEQUEL
                release(target, ambient, control.check, door.place)
        except EngineError as error:
            raise _failed(target, ambient, error, door.place, replid if synchronising else None, new_data) from error
        except BaseException as error:
            with suppress(EngineError):  # then `recover` is left with it; why the job ends counts more
                release(target, ambient, only=door.place)
                loaded = synchronising and _holds_ours(target, ambient, replid)
                tell_target(error, new_data if loaded else OLD_DATA)
            raise
    return _proved(target, ambient, replid)


def _proved(target: Target, ambient: Ambient, replid: str) -> dict[str, int]:
    """How many keys the target now shows in each database, once it shows that it took the backup."""
    try:
        if not _holds_ours(target, ambient, replid):
            raise RestoreBroken("the target does not show that it took the backup", "unknown: look at its data and its log")
        return _keys(target, ambient)
    except EngineUnreachable as error:
        raise RestoreBroken(str(error), "it took the backup and was lost right afterwards: see what it holds") from error


def _failed(
    target: Target, ambient: Ambient, error: EngineError, place: tuple[str, int], replid: str | None, new_data: str
) -> EngineError:
    """Ends the restore on the target after an error, and finds out what it holds now; no `replid`, nothing was sent."""
    try:
        release(target, ambient, only=place)
        loaded = replid is not None and _holds_ours(target, ambient, replid)
    except EngineError as worse:
        state = f"unknown, for it does not answer ({worse}); if it had to be started again it holds what it last saved"
        return RestoreBroken(str(error), state)
    if loaded:
        return RestoreBroken(str(error), new_data)
    if replid is not None:
        return RestoreBroken(str(error), OLD_DATA)
    return type(error)(f"{error}; the target still holds its old data")


def _holds_ours(target: Target, ambient: Ambient, replid: str) -> bool:
    """Whether the target has loaded all from us: one that stops being a replica keeps its master's id as its second."""
    with open_wire(target, ambient) as wire:
        return wire.info().get("master_replid2") == replid


_BUSY = ("rdb_bgsave_in_progress", "aof_rewrite_in_progress", "aof_rewrite_scheduled", "loading")


def _saved(target: Target, dumps: bool, control: Control, ambient: Ambient) -> list[str]:
    """Waits until the target has its new data in its own files, as far as it keeps any; warnings if that failed.

    An append-only file is rewritten by the server itself after a full synchronisation; a dump is asked for, if it `dumps`.
    """
    failed = "The target could not write its new data to its own disk: see its log, and run BGSAVE or BGREWRITEAOF there."
    try:
        with open_wire(target, ambient, control.check) as wire:
            info = _idle(wire, control, ambient)
            if dumps:
                wire.command("BGSAVE", "SCHEDULE")
                info = _idle(wire, control, ambient)
    except EngineError as error:
        return [f"Whether the target has its new data on its own disk is not known ({error}): run BGSAVE there."]
    rewritten = info.get("aof_enabled") != "1" or info.get("aof_last_bgrewrite_status") == "ok"
    dumped = not dumps or info.get("rdb_last_bgsave_status") == "ok"
    return [] if rewritten and dumped else [failed]


def _idle(wire: Wire, control: Control, ambient: Ambient) -> dict[str, str]:
    """Waits while the target writes to its disk."""
    while True:
        control.check()
        info = wire.info()
        if all(info.get(name, "0") == "0" for name in _BUSY):
            return info
        ambient.sleep(0.2)


def _keys(target: Target, ambient: Ambient) -> dict[str, int]:
    """How many keys the target now shows in each database."""
    with open_wire(target, ambient) as wire:
        return keys_in(wire.info())


def keys_in(info: dict[str, str]) -> dict[str, int]:
    """Keys by database, as INFO tells."""
    spaces = {name[2:]: value for name, value in info.items() if name[:2] == "db" and name[2:].isdigit()}
    return {db: int(value.partition("keys=")[2].partition(",")[0] or 0) for db, value in spaces.items()}
