"""Files that leave the house: for their owner only, never in place of another, durable before they count."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file of mode 0600, durable once the block has ended. Raises OSError, FileExistsError included."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # whatever the umask takes away
        yield file
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def new_folder(path: Path) -> Path:
    """A new folder of mode 0700, durable; returns it. Its parent must be there. Raises OSError."""
    path.mkdir(mode=0o700)
    path.chmod(0o700)
    sync_folder(path.parent)
    return path


def write_file(path: Path, pieces: Iterable[bytes]) -> int:
    """A new file of these pieces; returns its bytes."""
    size = 0
    with new_file(path) as file:
        for piece in pieces:
            file.write(piece)
            size += len(piece)
    return size


def sync_folder(path: Path) -> None:
    """Makes names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
