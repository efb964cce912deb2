"""One process with its own folder: proof that it is alone, so that a restart need not wait for its own old leases.

DataFolderInUse     another process works in the folder (permanent)
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.catalog.tables import job as t

LOCK_FILE = "lock"


class DataFolderInUse(Exception):
    """Another process works in the data folder."""

    permanent = True

    def __init__(self, path: Path, holder: str) -> None:
        who = f"process {holder}" if holder else "another process"
        super().__init__(f"the data folder {path} is in use by {who}: stop that server first, or choose another folder")
        self.path = path


@contextmanager
def lock_data_folder(path: Path) -> Iterator[None]:
    """Holds the folder's lock file, which the operating system frees with the process however that ends. Raises DataFolderInUse.

    The file itself stays: removing it would let two processes lock two files of one name.
    """
    file = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataFolderInUse(path, os.pread(file, 32, 0).decode("ascii", "replace").strip()) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)


def forget_leases(conn: Connection) -> None:
    """Ends all leases: only for a process that has proved to be alone with the catalog, and before its worker starts."""
    conn.execute(sa.update(t).where(t.c.state == "RUNNING").values(lease_until=0.0))
