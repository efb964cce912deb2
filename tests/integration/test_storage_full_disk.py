"""The directory store on a file system that is really full, and on one that is really read-only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom.storage.base import StoreDenied, StoreFull
from strongroom.storage.directory import DirectoryStore
from support.stores import MIB, content_of, names


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a file system can only be mounted as root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_refuses_puts_and_takes_deletes(small_disk: Path) -> None:
    """A refused put leaves nothing; a delete needs no room and makes the next put possible."""
    store = DirectoryStore(small_disk / "store")
    for number in range(3):
        store.put_new(f"l/pack/{number}", content_of(MIB))
    for _ in range(3):
        with pytest.raises(StoreFull, match="make room"):
            store.put_new("l/pack/too-much", content_of(2 * MIB))
    assert names(store) == {"l/pack/0", "l/pack/1", "l/pack/2"}
    (small_disk / "filler").write_bytes(bytes(_free_on(small_disk)))
    with pytest.raises(StoreFull):
        store.put_new("l/grave/1", b"x" * 5000)
    store.delete_many(["l/pack/0", "l/pack/1"])
    assert store.put_new("l/pack/fits-now", content_of(2 * MIB)) == 2 * MIB
    assert store.get("l/pack/fits-now") == content_of(2 * MIB)
    store.close()


def _free_on(disk: Path) -> int:
    """Bytes that still fit."""
    free = os.statvfs(disk)
    return free.f_bavail * free.f_bsize


def test_a_read_only_disk_denies_and_still_gives(small_disk: Path) -> None:
    """As a kernel makes it after an I/O error: what is there can be restored from."""
    store = DirectoryStore(small_disk / "store")
    store.put_new("l/a", b"x")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for change in (lambda: store.put_new("l/b", b"x"), lambda: store.delete("l/a")):
        with pytest.raises(StoreDenied, match="read-only"):
            change()
    assert store.get("l/a") == b"x"
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    store.close()
