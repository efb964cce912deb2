"""Trying a restore out: a Redis that is thrown away, and whether it holds what the backup says."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

from strongroom.ambient import Ambient
from strongroom.engines import sandboxing
from strongroom.engines.base import Comparison, Control, NothingShared, RestoreSource, Target
from strongroom.engines.exporting import new_file, write_file
from strongroom.engines.redis import rdb
from strongroom.engines.redis.capture import capture
from strongroom.engines.redis.restore import one_dump
from strongroom.engines.redis.wire import open_wire

_MOST_DIFFERENCES = 20


@contextmanager
def sandbox(folder: Path, control: Control, ambient: Ambient) -> Iterator[Target]:
    """See Rehearser. Keys that have expired stay: what was captured is compared, not what would be left of it by now."""
    found = sandboxing.program("redis-server", "STRONGROOM_REDIS_SERVER")
    password = ambient.hex_id()
    config = folder / "redis.conf"
    lines = [
        "bind 127.0.0.1", f"requirepass {password}", f"dir {folder}", 'save ""', "appendonly no", "repl-diskless-sync-delay 0",
    ]  # fmt: skip
    write_file(config, ["\n".join(lines).encode() + b"\n"])

    def ready(port: int) -> bool:
        with open_wire(_target(port, password), ambient) as wire:
            return bool(wire.command("PING") == b"PONG")

    def command(port: int) -> list[str]:
        return [found, str(config), "--port", str(port), *_debugging(found)]

    with sandboxing.running(command, ready, folder, control, ambient) as port:
        with open_wire(_target(port, password), ambient, control.check) as wire:
            wire.command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
        yield _target(port, password)


def _target(port: int, password: str) -> Target:
    return Target(f"redis://127.0.0.1:{port}", password)


def _debugging(found: str) -> list[str]:
    """From 7.0 on a server has to be told to take DEBUG."""
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=([0-9]+)\.", told)
    return ["--enable-debug-command", "local"] if version and int(version[1]) >= 7 else []


def compare(
    target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str, ambient: Ambient
) -> Comparison:
    """See Rehearser: keys by database, and every record's bytes where both servers write the same version of RDB."""
    wanted, found = os.path.join(scratch, "wanted.rdb"), os.path.join(scratch, "found.rdb")
    one_dump(source, facts, wanted, control, scratch)
    now = capture(target, _ToFile(Path(found)), _Unpaced(control), _folder(scratch), ambient).facts
    counts = [{f"keys in database {db}": int(count) for db, count in one.get("keys", {}).items()} for one in (facts, now)]
    differences = [
        f"{name}: {counts[1].get(name, 0)} instead of {counts[0].get(name, 0)}"
        for name in sorted(counts[0].keys() | counts[1].keys())
        if counts[0].get(name) != counts[1].get(name)
    ]
    if facts.get("rdb_version") != now["rdb_version"]:
        told = f"the installed Redis {now['version']} writes another RDB than {facts.get('version')}: keys were only counted"
        return Comparison(counts[0], counts[1], 0, differences, [told])
    compared = 0
    with _opened(wanted) as one, _opened(found) as two:
        for left, right in zip_longest(_parts(one, control), _parts(two, control)):
            compared += 1
            if left != right and len(differences) < _MOST_DIFFERENCES:
                differences.append(f"record {compared} is not what was captured")
    return Comparison(counts[0], counts[1], compared, differences)


class _ToFile(NothingShared):
    """A sink whose one entry is a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def entry(self, name: str) -> Iterator[_Writer]:
        del name
        with new_file(self._path) as file:
            yield _Writer(file)


class _Writer:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._file.write(data)

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        del facts


class _Unpaced:
    """The control of a capture from a server of our own."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def check(self) -> None:
        self._control.check()

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        self._control.progress(f"compare: {phase}", done, total)

    def took(self, size: int) -> None:
        del size


def _folder(scratch: str) -> str:
    path = os.path.join(scratch, "again")
    os.mkdir(path, 0o700)
    return path


@contextmanager
def _opened(path: str) -> Iterator[mmap.mmap]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _parts(data: mmap.mmap, control: Control) -> Iterator[tuple[int, bytes, bytes]]:
    """Database, expiry and bytes of every record and library; what the head says of the server is left out."""
    for part in rdb.walk(data, control.check):
        if isinstance(part, rdb.Record):
            yield part.db, part.expiry, data[part.start : part.end]
        elif isinstance(part, rdb.Function):
            yield -1, b"", data[part.start : part.end]
