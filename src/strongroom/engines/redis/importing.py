"""An operator's own RDB files, put into a server or cluster: copied, proved, put in order, then restored as a backup is.

Several files are taken together, as those of a cluster's nodes belong together: a key may be in one of them only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from strongroom.ambient import Ambient
from strongroom.engines.base import CaptureBroken, Control, EngineUnsupported, Summary, Target
from strongroom.engines.redis import rdb
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.restore import Dumped, put
from strongroom.engines.redis.sorting import Contents, sort_dump
from strongroom.engines.redis.wire import scratch_errors

_PIECE = 1 << 20


def import_files(target: Target, files: Mapping[str, str], control: Control, scratch: str, ambient: Ambient) -> Summary:
    """See Importer.import_files. Order of effects: as restore.put, once all files are in order in the scratch folder."""
    dumps: list[Dumped] = []
    warnings: list[str] = []
    try:
        for name, path in files.items():
            dump, checked = _taken(name, path, len(dumps), control, scratch)
            dumps.append(dump)
            if not checked:
                warnings.append(f"The file {name} carries no checksum: damage to it would go unseen.")
        summary = put(target, dumps, control, scratch, ambient)
    finally:
        for dump in dumps:
            os.unlink(dump.path)
    return Summary(len(dumps), summary.bytes, summary.facts, [*warnings, *summary.warnings])


def _taken(name: str, path: str, number: int, control: Control, scratch: str) -> tuple[Dumped, bool]:
    """One file as a sorted dump of our own, and whether it carried a checksum."""
    original, ordered = (os.path.join(scratch, f"import-{number}.{kind}") for kind in ("original", "rdb"))
    try:
        _copy(path, original, control, scratch)
        _refuse_commands(original)
        dump = rdb.verify(original, Pace(control, "check", os.path.getsize(original)).advance)
        contents = _ordered(original, ordered, dump.size, control, scratch)
        if contents.head.get("aof-base") == "1":
            raise EngineUnsupported("it is the base of an append-only file, without the writes that followed")
    except (CaptureBroken, EngineUnsupported) as error:
        _remove(ordered)
        raise type(error)(f"file {name}: {error}; nothing was sent to the target") from error
    except BaseException:
        _remove(ordered)
        raise
    finally:
        _remove(original)
    return Dumped(ordered, rdb.Dump(contents.version, contents.size, checked=True), name), dump.checked


def _copy(path: str, to: str, control: Control, scratch: str) -> None:
    """Copies as much as there is; a file that grows meanwhile is cut, and then fails its end test."""
    try:
        source = open(path, "rb")  # noqa: SIM115 (closed below; only its own errors may be blamed on it)
    except OSError as error:
        raise EngineUnsupported(f"it cannot be read: {error.strerror}") from error
    with source, scratch_errors(scratch), open(to, "xb") as file:
        left = os.fstat(source.fileno()).st_size
        pace = Pace(control, "copy", left)
        while left and (piece := source.read(min(_PIECE, left))):
            file.write(piece)
            left -= len(piece)
            pace.advance(len(piece))


def _refuse_commands(path: str) -> None:
    with open(path, "rb") as file:
        if file.read(1) == b"*":
            raise EngineUnsupported("it is an append-only file: load it into a server, and take the dump that SAVE makes there")


def _ordered(path: str, to: str, size: int, control: Control, scratch: str) -> Contents:
    with open(to, "xb") as file:

        def write(data: bytes) -> None:
            with scratch_errors(scratch):
                file.write(data)

        return sort_dump(path, scratch, write, (Pace(control, "sort", size), Pace(control, "save", size)))


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.unlink(path)
