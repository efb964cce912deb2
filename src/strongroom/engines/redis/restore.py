"""Replacing what a live server holds, by being its master for the time of one full synchronisation.

The target keeps its old data beside the new while it loads (`repl-diskless-load swapdb`), so a transfer that is cut leaves
the old data. What a server does not survive is a dump with a wrong checksum: it exits. So the whole dump is fetched and
checked before the target is told anything.

Between REPLICAOF and the end the target carries a mark in its setting `masteruser` (see marks.py), so that any process
can end what a dead one left, by `release`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

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
from strongroom.engines.redis.marks import begin, release
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.wire import REPLY_SECONDS, Wire, open_wire, packed, place_of, scratch_errors

CALL_BACK_SECONDS = 20.0  # a server connects to its new master within about a second
SEND_SECONDS = 60.0  # how long the target may take nothing
LOAD_SECONDS = 600.0  # silence while the target loads: it sends newlines unless it frees or swaps very much at once
OLD_DATA, NEW_DATA = "its old data, as a master", "the data of the backup, as a master"
_PIECE = 1 << 18
_FIRST_OFFSET = 1
_ASK = packed("REPLCONF", "GETACK", "*")  # answered once all before it is loaded
_NEWEST_RDB = ((7, 4, 12), (7, 2, 11), (7, 0, 10), (5, 0, 9))  # what a server of at least this version reads


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found on the target before anything was changed there."""

    version: str
    dumps: bool  # it keeps dumps of its own


def restore(
    target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str, ambient: Ambient
) -> Summary:
    """See Engine.restore. Order of effects on the target:

    1. nothing, until the dump has been fetched and checked and the target's version, rights and topology too;
    2. the mark, then `repl-diskless-load swapdb`, then REPLICAOF us: it is read-only from here, old data still there;
    3. the full synchronisation: the target swaps to the new data once it has loaded all of it;
    4. REPLICAOF NO ONE, its own setting back, the mark away; also after any failure of 2 and 3;
    5. BGSAVE, where the target keeps dumps; and waiting until it has written what it keeps.
    """
    path = os.path.join(scratch, "restore.rdb")
    try:
        dump = _fetched(source, path, control, scratch)
        checked = check_target(target, dump.version, control, ambient)
        keys = _replace(target, path, dump, control, ambient)
        warnings = _saved(target, checked.dumps, control, ambient)
    finally:
        if os.path.exists(path):
            os.unlink(path)
    result = {"version": checked.version, "keys": keys, "captured_version": str(facts.get("version", ""))}
    return Summary(entries=1, bytes=dump.size, facts=result, warnings=warnings)


def _fetched(source: RestoreSource, path: str, control: Control, scratch: str) -> rdb.Dump:
    """Brings the dump here and proves it whole."""
    entries = {entry.name: entry for entry in source.entries()}
    if ENTRY not in entries:
        raise EngineUnsupported("this backup holds no Redis dump; nothing was sent to the target")
    pace = Pace(control, "fetch", entries[ENTRY].size)
    with scratch_errors(scratch):
        file = open(path, "xb")  # noqa: SIM115 (closed below: only our own writes may be blamed on the folder)
    with file:
        for piece in source.read(ENTRY):
            with scratch_errors(scratch):
                file.write(piece)
                file.flush()
            pace.advance(len(piece))
    pace.finish()
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
        return Checked(info.get("redis_version", ""), dumps=bool(wire.setting("save")))


def require_target(wire: Wire, rdb_version: int) -> dict[str, str]:
    """A master that reads this version of RDB, and whose user may do what a restore does; returns its INFO. Changes nothing."""
    info = wire.info()
    version = info.get("redis_version", "")
    if rdb_version > newest_rdb(version):
        what = f"the backup's RDB version {rdb_version} is too new for the target, Redis {version}"
        raise EngineUnsupported(f"{what}: restore into a newer server")
    if info.get("cluster_enabled") == "1":
        raise EngineUnsupported(
            "the target runs in cluster mode, where a server cannot be given a master: restore into a single server"
        )
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


def newest_rdb(version: str) -> int:
    """The newest RDB version that a server of this version reads."""
    parts = version.split(".")
    try:
        have = (int(parts[0]), int(parts[1]))
    except (ValueError, IndexError):
        raise EngineUnsupported(f"the target tells no version that is understood: {version[:40]!r}") from None
    return next((newest for major, minor, newest in _NEWEST_RDB if have >= (major, minor)), 8)


def _replace(target: Target, path: str, dump: rdb.Dump, control: Control, ambient: Ambient) -> dict[str, int]:
    """Steps 2 to 4; returns the keys then there, by database.

    Whatever ends it, the target is a master again, or carries the mark that `recover` looks for.
    """
    replid = (ambient.hex_id() + ambient.hex_id())[:40]
    synchronising = False
    with _Door(target, ambient, control) as door:
        try:
            door.invite()
            with closing(door.admit()) as link:
                synchronising = True
                _synchronise(link, path, dump, replid, control)
                release(target, ambient, control.check, door.place)
        except EngineError as error:
            raise _failed(target, ambient, error, door.place, replid if synchronising else None) from error
        except BaseException as error:
            with suppress(EngineError):  # then `recover` is left with it; why the job ends counts more
                release(target, ambient, only=door.place)
                loaded = synchronising and _holds_ours(target, ambient, replid)
                tell_target(error, NEW_DATA if loaded else OLD_DATA)
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


def _failed(target: Target, ambient: Ambient, error: EngineError, place: tuple[str, int], replid: str | None) -> EngineError:
    """Ends the restore on the target after an error, and finds out what it holds now; no `replid`, nothing was sent."""
    try:
        release(target, ambient, only=place)
        loaded = replid is not None and _holds_ours(target, ambient, replid)
    except EngineError as worse:
        state = f"unknown, for it does not answer ({worse}); if it had to be started again it holds what it last saved"
        return RestoreBroken(str(error), state)
    if loaded:
        return RestoreBroken(str(error), NEW_DATA)
    if replid is not None:
        return RestoreBroken(str(error), OLD_DATA)
    return type(error)(f"{error}; the target still holds its old data")


def _holds_ours(target: Target, ambient: Ambient, replid: str) -> bool:
    """Whether the target has loaded all from us: one that stops being a replica keeps its master's id as its second."""
    with open_wire(target, ambient) as wire:
        return wire.info().get("master_replid2") == replid


class _Door:
    """Where the target reaches us: a listener that lets in the target alone, for one full synchronisation."""

    def __init__(self, target: Target, ambient: Ambient, control: Control) -> None:
        self._target = target
        self._ambient = ambient
        self._control = control
        with open_wire(target, ambient) as wire:
            self._host = wire.local_host
            self._peer = wire.peer_host
            self._listener = socket.create_server((self._host, 0), family=wire.family, backlog=8)
        self._listener.settimeout(0.5)
        self.place = (self._host, int(self._listener.getsockname()[1]))  # as the target's master
        self._strangers: set[str] = set()

    def __enter__(self) -> _Door:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def invite(self) -> None:
        """Marks the target and makes it our replica."""
        with open_wire(self._target, self._ambient, self._control.check) as wire:
            self._control.check()
            begin(wire, *self.place)

    def admit(self) -> Wire:
        """The target's connection, at the point where it waits for the dump. Nobody is let in afterwards."""
        deadline = self._ambient.monotonic() + CALL_BACK_SECONDS
        while self._ambient.monotonic() < deadline:
            self._control.check()
            try:
                sock, address = self._listener.accept()
            except TimeoutError:
                continue
            if address[0] != self._peer:
                self._strangers.add(address[0])
                sock.close()
                continue
            link = Wire(sock, place_of(self._target).shown, self._ambient, self._control.check)
            if self._handshake(link):
                self._listener.close()
                return link
        raise EngineUnreachable(self._nobody_came())

    def _handshake(self, link: Wire) -> bool:
        """Answers as a master does until the target asks for the data; False if it hung up before."""
        try:
            while True:
                words = link.request(REPLY_SECONDS)
                name = words[0].upper() if words else b""
                if name == b"PSYNC":
                    return True
                link.send(b"+PONG\r\n" if name == b"PING" else b"+OK\r\n")
        except EngineError:
            link.close()
            return False
        except BaseException:
            link.close()
            raise

    def _nobody_came(self) -> str:
        text = f"the target did not connect to {self._host} within {CALL_BACK_SECONDS:.0f} s: let its host open connections to us"
        if self._strangers:
            text += f" (connections from {', '.join(sorted(self._strangers))} were turned away, expected {self._peer})"
        return text


def _synchronise(link: Wire, path: str, dump: rdb.Dump, replid: str, control: Control) -> None:
    """Sends the dump and waits until the target says that it has loaded it."""
    pace = Pace(control, "send", dump.size)
    link.send(b"+FULLRESYNC %s %d\r\n$%d\r\n" % (replid.encode(), _FIRST_OFFSET, dump.size))
    with scratch_errors(os.path.dirname(path)), open(path, "rb") as file:
        while piece := file.read(_PIECE):
            link.send(piece, SEND_SECONDS)
            pace.advance(len(piece))
    pace.finish()
    if pace.done != dump.size:
        raise EngineError(f"the dump became shorter while it was sent: see who else uses {os.path.dirname(path)}")
    link.send(_ASK)
    while True:
        words = link.request(LOAD_SECONDS)
        if [word.upper() for word in words[:2]] == [b"REPLCONF", b"ACK"] and int(words[2]) >= _FIRST_OFFSET:
            break
    control.progress("load", dump.size, dump.size)


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
