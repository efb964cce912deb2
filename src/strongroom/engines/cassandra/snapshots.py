"""Snapshots on a node: their names, what lies in them, and the proof that they are whole.

A snapshot is a folder of hard links below each table's folder. What it links never changes; a new state of a file is a new file,
even where it has the same name and the same size. So two files are the same if they are one inode, and only then.

Ours are named strongroom-<history>-<random>: those of one history are found again by name after a crash. All have a lifetime, so
that the node removes them by itself where nobody comes back.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strongroom.engines.base import CaptureBroken, EngineUnsupported
from strongroom.engines.cassandra.jmx import Jmx
from strongroom.engines.cassandra.schema import Table

LIFETIME = "30d"
"""After which a node removes a snapshot by itself: an anchor of a backup that no other followed."""

_MANIFEST = "manifest.json"
_NO_SSTABLE = frozenset({_MANIFEST, "schema.cql"})


def prefix_of(history: str) -> str:
    """How all tags of a history begin."""
    return f"strongroom-{history}-"


def clear_but(jmx: Jmx, history: str, keep: str | None) -> list[str]:
    """Removes the history's snapshots but one; returns the tags of those removed."""
    gone = [tag for tag in jmx.tags() if tag.startswith(prefix_of(history)) and tag != keep]
    for tag in gone:
        jmx.clear(tag)
    return gone


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file is, whatever it is called."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        """Of a stat."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    @classmethod
    def at(cls, path: Path) -> Identity | None:
        """Of a plain file; None where there is none."""
        try:
            found = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return cls.of(found) if stat.S_ISREG(found.st_mode) else None

    def to_facts(self) -> dict[str, int]:
        """For an entry."""
        return {"device": self.device, "inode": self.inode, "mtime_ns": self.mtime_ns}

    def is_told_by(self, facts: Mapping[str, Any], size: int) -> bool:
        """Whether an entry of this size was read from this very file."""
        return size == self.size and {name: facts.get(name) for name in ("device", "inode", "mtime_ns")} == self.to_facts()


@dataclass(frozen=True, slots=True)
class Linked:
    """One file of a snapshot."""

    table: Table
    folder: Path  # the table's, in one of the data folders
    name: str
    tag: str

    @property
    def path(self) -> Path:
        """Of the link."""
        return self.at(self.tag)

    def at(self, tag: str) -> Path:
        """The link of this name in another snapshot."""
        return self.folder / "snapshots" / tag / self.name


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All files of a snapshot, and the manifests that said so."""

    tag: str
    files: Sequence[Linked]
    manifests: Mapping[Path, Identity]

    def require_whole(self) -> None:
        """The end test: nobody has removed or remade it since it was listed. Raises CaptureBroken."""
        for path, was in self.manifests.items():
            if Identity.at(path) != was:
                raise CaptureBroken(f"the snapshot {self.tag} was removed while it was being read: {path.parent} has changed")


def require_folders(data_folders: Sequence[str]) -> None:
    """Raises EngineUnsupported where the files cannot be read by us, or not be found again as snapshots."""
    if not data_folders:
        raise EngineUnsupported("the node names no data folder")
    for folder in data_folders:
        if not os.path.isdir(folder):
            raise EngineUnsupported(f"the node's data folder {folder} is not on this host, or may not be seen by this process")
        if os.path.islink(folder):
            raise EngineUnsupported(f"the node's data folder {folder} is a symbolic link: the node would not list its snapshots")
        if not os.access(folder, os.R_OK | os.X_OK):
            raise EngineUnsupported(f"this process may not read {folder}: run it as Cassandra's own user")


def list_snapshot(data_folders: Sequence[str], tables: Sequence[Table], tag: str) -> Snapshot:
    """Every file of the tables in a snapshot, in a stable order. Raises CaptureBroken unless it is whole: a node whose disk was
    full leaves a folder with an empty manifest."""
    files: list[Linked] = []
    manifests: dict[Path, Identity] = {}
    for table in tables:
        found: dict[str, Linked] = {}
        folders = [Path(data, table.folder) for data in data_folders]
        there = [folder for folder in folders if (folder / "snapshots" / tag).is_dir()]
        listed: set[str] = set()
        known = 0
        for folder in there:
            for name in _names(folder / "snapshots" / tag):
                if name in found:
                    raise CaptureBroken(f"two data folders hold a file {name} of {table.keyspace}.{table.name}")
                found[name] = Linked(table, folder, name, tag)
            path = folder / "snapshots" / tag / _MANIFEST
            identity = Identity.at(path)
            if identity is not None:
                manifests[path], known = identity, known + 1
                listed |= _listed(path)
        if not known:
            raise CaptureBroken(f"the snapshot {tag} holds nothing of {table.keyspace}.{table.name}")
        missing = {name for name in listed if "/" not in name} - set(found)
        if missing:
            raise CaptureBroken(f"the snapshot of {table.keyspace}.{table.name} lacks {sorted(missing)[0]}")
        files += [found[name] for name in sorted(found)]
    return Snapshot(tag, files, manifests)


def _names(folder: Path) -> Iterator[str]:
    """Files of SSTables; those of secondary indexes lie in hidden folders beside them and are made anew by a restore."""
    for entry in os.scandir(folder):
        if entry.is_file(follow_symlinks=False) and entry.name not in _NO_SSTABLE:
            yield entry.name


def _listed(path: Path) -> set[str]:
    try:
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
        return {str(name) for name in told["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CaptureBroken(f"the manifest {path} of the snapshot cannot be read ({error}): was the node's disk full?") from error
