"""What a folder holds, in bytes on disk and in content."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class File:
    """One file of a listing."""

    size: int
    on_disk: int  # bytes of the blocks that it takes
    changed: int  # nanoseconds
    inode: int


def files(root: Path) -> Iterator[Path]:
    """Every file below a folder."""
    for folder, _, names in os.walk(root):
        for name in names:
            yield Path(folder, name)


def listing(root: Path) -> dict[str, File]:
    """Every file below a folder, after everything was written out."""
    os.sync()
    found: dict[str, File] = {}
    for path in files(root):
        stat = path.lstat()
        found[str(path.relative_to(root))] = File(stat.st_size, stat.st_blocks * 512, stat.st_mtime_ns, stat.st_ino)
    return found


def on_disk(files: dict[str, File]) -> int:
    """Bytes that the files take."""
    return sum(file.on_disk for file in files.values())


def put_between(before: dict[str, File], after: dict[str, File]) -> int:
    """Bytes of files that are new or changed: what a step wrote there, as far as it is still there."""
    total = 0
    for name, file in after.items():
        old = before.get(name)
        if old is None or old.inode != file.inode:
            total += file.size
        elif old != file:
            total += file.size - old.size if file.size > old.size else file.size
    return total


def digest(root: Path) -> str:
    """One digest of names and contents."""
    found = hashlib.sha256()
    for path in sorted(files(root)):
        found.update(str(path.relative_to(root)).encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def fresh(path: Path) -> Path:
    """An empty folder in the place of whatever is there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
