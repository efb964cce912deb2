"""A small file system that is full or read-only by turns: a tmpfs with a quota where one can be mounted, else other limits."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

MIB = 1 << 20


class Disk(Protocol):
    """A folder whose room can run out."""

    path: Path
    kind: str

    def fill(self, left: int) -> None:
        """From now on there is room for about `left` bytes."""

    def forbid(self) -> bool:
        """From now on nothing can be changed; False where that cannot be done just now."""

    def mend(self) -> None:
        """As at rest."""


class SmallDisk:
    """A tmpfs of so many bytes."""

    kind = "tmpfs with a quota"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, left: int) -> None:
        there = os.statvfs(self.path)
        with contextlib.suppress(OSError), self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, there.f_bavail * there.f_frsize - left))

    def forbid(self) -> bool:
        """Read-only, as a kernel makes it after an I/O error; refused while a file is being written."""
        return self._remount("ro")

    def mend(self) -> None:
        self._remount("rw")
        self._filler.unlink(missing_ok=True)

    def _remount(self, how: str) -> bool:
        return subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], capture_output=True, check=False).returncode == 0


class LimitedFolder:
    """Without the right to mount: the sizes of files that the server may write are limited, and its folders are closed to it."""

    kind = "limit on the size of files, closed folders"

    def __init__(self, path: Path, pid: Callable[[], int | None]) -> None:
        self.path = path
        self._pid = pid

    def fill(self, left: int) -> None:
        self._limit(left)

    def forbid(self) -> bool:
        """Root is not kept out by a folder's mode."""
        if os.getuid() == 0:
            return False
        for folder in self._folders():
            folder.chmod(0o500)
        return True

    def mend(self) -> None:
        self._limit(None)
        for folder in self._folders():
            with contextlib.suppress(FileNotFoundError):
                folder.chmod(0o700)

    def _folders(self) -> list[Path]:
        return [self.path, *(one for one in self.path.glob("*/") if one.is_dir()), *self.path.glob("*/*/")]

    def _limit(self, most: int | None) -> None:
        pid = self._pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if most is None else most, hard))


@contextlib.contextmanager
def small_disk(path: Path, size: int, pid: Callable[[], int | None]) -> Iterator[Disk]:
    """A disk of `size` bytes at a new folder; gone at the end with what it holds, if it could be mounted."""
    path.mkdir()
    if not mountable(path, size):
        yield LimitedFolder(path, pid)
        return
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def mountable(path: Path, size: int) -> bool:
    """Mounts a tmpfs there; False where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)]
    return os.getuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
