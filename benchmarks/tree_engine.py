"""An engine for plain folders, so that Strongroom can be measured beside tools that back up files.

Each file below the folder is an entry under its relative name; everything is read anew by each backup. Instead of the folder
a single stream can be captured (`streams`), as a database's dump would come.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from strongroom.engines.base import CaptureSink, Control, EngineUnreachable, Probe, RestoreSource, Summary, Target

_PIECE = 1 << 20
_SCHEME = "tree://"


class Readable(Protocol):
    """What bytes can be read from."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


def address_of(folder: Path) -> str:
    """The address of an instance whose data is this folder."""
    return f"{_SCHEME}{folder}"


class TreeEngine:
    """Folders behind the engine port. Files must not change while they are captured."""

    name = "tree"
    id_suffix = "00"

    def __init__(self) -> None:
        self.streams: dict[str, Readable] = {}
        """By address: what the next capture takes instead of the folder."""

    def probe(self, target: Target) -> Probe:
        """The folder's size; one that is not there cannot be reached."""
        folder = _folder(target)
        if not folder.is_dir():
            raise EngineUnreachable(f"there is no folder {folder}")
        return Probe("1.0", "Single", sum(path.stat().st_size for path in _files(folder)))

    def capture(self, target: Target, sink: CaptureSink, control: Control, scratch: str) -> Summary:
        """All files in the order of their names, or the stream."""
        del scratch
        stream = self.streams.pop(target.address, None)
        if stream is not None:
            return Summary(1, _copy(stream, sink, "stream", control))
        folder, entries, size = _folder(target), 0, 0
        for path in _files(folder):
            with path.open("rb", buffering=0) as file:
                size += _copy(file, sink, str(path.relative_to(folder)), control)
            entries += 1
        return Summary(entries, size)

    def restore(self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str) -> Summary:
        """Writes every entry as a file below the folder."""
        del facts, scratch
        folder, entries, size = _folder(target), 0, 0
        for entry in source.entries():
            control.check()
            path = folder / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb", buffering=0) as file:
                for piece in source.read(entry.name):
                    file.write(piece)
            entries, size = entries + 1, size + entry.size
        return Summary(entries, size)

    def export(self, source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
        """As a restore into the folder."""
        return self.restore(Target(address_of(folder)), source, facts, control, "")

    def recover(self, target: Target) -> None:
        """Nothing is left that would have to be ended."""


def _folder(target: Target) -> Path:
    return Path(target.address.removeprefix(_SCHEME))


def _files(folder: Path) -> Iterator[Path]:
    for at, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(at, name)


def _copy(file: Readable, sink: CaptureSink, name: str, control: Control) -> int:
    """One entry from a file; returns its size."""
    size = 0
    with sink.entry(name) as entry:
        while piece := file.read(_PIECE):
            control.check()
            entry.write(piece)
            size += len(piece)
        entry.finish()
    return size
