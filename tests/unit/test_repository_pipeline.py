"""The writer's threads: errors of any stage reach the caller, nothing hangs, nothing piles up."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from strongroom.repository.errors import Misuse
from strongroom.repository.writer import PackSlot, PartWriter
from strongroom.storage.base import StoreFull
from support.repository import Sink, Vault, noise


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    """An empty lineage in memory with small packs."""
    return Vault(tmp_path, pack_target=100_000)


def threads() -> list[str]:
    """The writer's threads that run now."""
    ours = ("cutting", "sealing", "compressing", "putting")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(ours)]


def stream(writer: PartWriter, pieces: int = 200) -> None:
    """Writes an entry of so many pieces of 200 kB."""
    with writer.entry("a") as entry:
        for at in range(pieces):
            entry.write(noise(200_000, at))
        entry.finish()


def stream_and_seal(writer: PartWriter) -> None:
    """Writes and ends a part."""
    stream(writer)
    writer.seal()


class Lost(BaseException):
    """As a job that was lost: not an Exception."""


@pytest.mark.parametrize("error", [StoreFull("no room"), ValueError("a defect"), Lost("not ours")])
def test_an_error_of_a_put_is_raised_in_the_caller(vault: Vault, error: BaseException) -> None:
    """The very error, whatever its kind, while the stream goes on; then everything stops."""

    def fail(slot: PackSlot) -> None:
        raise error

    writer = vault.writer(1, sink=Sink(vault, 1, fail))
    with pytest.raises(type(error)) as caught:
        stream(writer)
    assert caught.value is error
    writer.abort()
    assert threads() == []


def test_an_error_of_the_last_put_is_raised_by_seal(vault: Vault) -> None:
    """A part is not sealed unless every pack is durable, also the last."""

    def fail(slot: PackSlot) -> None:
        time.sleep(0.1)
        raise StoreFull("no room")

    writer = vault.writer(1, sink=Sink(vault, 1, fail))
    with writer.entry("a") as entry:
        entry.write(b"small")
        entry.finish()
    with pytest.raises(StoreFull):
        writer.seal()
    writer.abort()
    assert threads() == []


def test_an_error_of_open_is_raised_in_the_caller(vault: Vault) -> None:
    """A pack whose row cannot be committed is not filled."""
    sink = Sink(vault, 1)

    def refuse() -> PackSlot:
        raise StoreFull("no catalog")

    sink.open = refuse  # type: ignore[method-assign]
    writer = vault.writer(1, sink=sink)
    with pytest.raises(StoreFull):
        stream(writer)
    writer.abort()
    assert list(vault.store.list("")) == []


def failing(error: BaseException) -> Callable[..., object]:
    """What raises in place of a stage's work."""

    def broken(*args: object) -> object:
        raise error

    return broken


@pytest.mark.parametrize(
    "target", ["chunking.Cutter.feed", "codec.Encoder.encode", "dedup.DedupIndex.find_parent", "pack.PackBuilder.add"]
)
def test_an_error_of_any_stage_is_raised_in_the_caller(vault: Vault, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Cutting, compressing, looking up, sealing: none can fail silently."""
    error = MemoryError("stage")
    writer = vault.writer(1)
    monkeypatch.setattr(f"strongroom.repository.{target}", failing(error))
    with pytest.raises(MemoryError):
        stream_and_seal(writer)
    writer.abort()
    assert threads() == []


def test_the_job_is_asked_and_its_answer_stops_the_stream(vault: Vault) -> None:
    """A cancelled or lost job ends the capture at the next block, and while seal waits."""
    writer = vault.writer(1)
    with writer.entry("a") as entry:
        entry.write(noise(3_000_000))
        assert vault.control.checks >= 3
        vault.control.error = Lost("lost")
        with pytest.raises(Lost):
            entry.write(noise(3_000_000))
    writer.abort()

    vault.control.error = None
    asleep, wake = threading.Event(), threading.Event()

    def wait(slot: PackSlot) -> None:
        asleep.set()
        wake.wait(10)

    slow = vault.writer(2, sink=Sink(vault, 2, wait))
    with slow.entry("a") as entry:
        entry.write(noise(1_500_000))
        entry.finish()
    assert asleep.wait(10)
    vault.control.error = Lost("lost")
    with pytest.raises(Lost):
        slow.seal()
    wake.set()
    slow.abort()
    assert threads() == []


def test_a_slow_store_holds_the_stream_back(vault: Vault) -> None:
    """While puts stand still, the caller stands still too, after a bounded number of bytes."""
    wake = threading.Event()

    def wait(slot: PackSlot) -> None:
        wake.wait(30)

    writer = vault.writer(1, sink=Sink(vault, 1, wait))
    taken = []

    def feed() -> None:
        with writer.entry("a") as entry:
            for at in range(400):
                entry.write(noise(100_000, at))
                taken.append(at)
            entry.finish()

    feeder = threading.Thread(target=feed)
    feeder.start()
    time.sleep(1.5)
    before = len(taken)
    time.sleep(0.3)
    assert len(taken) == before < 250
    wake.set()
    feeder.join(30)
    part = vault.seal(writer, 1)
    assert part.sealed.plain_bytes == 40_000_000
    assert threads() == []


def test_abort_at_any_time_leaves_no_thread_and_may_be_called_again(vault: Vault) -> None:
    """Before, amid and after a stream; afterwards everything is refused."""
    for pieces in (0, 1, 20):
        writer = vault.writer(1)
        if pieces:
            with writer.entry("a") as entry:
                for at in range(pieces):
                    entry.write(noise(200_000, at))
        writer.abort()
        writer.abort()
        assert threads() == []
        with pytest.raises(Misuse, match=r"aborted|broken"):
            writer.seal()


def test_nothing_is_put_after_abort(vault: Vault) -> None:
    """What had not begun when it was aborted never begins."""
    writer = vault.writer(1)
    with writer.entry("a") as entry:
        entry.write(noise(3_000_000))
    writer.abort()
    before = len(list(vault.store.list("")))
    time.sleep(0.2)
    assert len(list(vault.store.list(""))) == before


def test_a_sealed_part_can_be_aborted_without_harm(vault: Vault) -> None:
    """The caller's clean-up may run after success: threads are gone, the packs stay."""
    writer = vault.writer(1)
    stream(writer, 3)
    part = vault.seal(writer, 1)
    writer.abort()
    assert threads() == []
    assert len(vault.read(part.root)["a"]) == 600_000


MEASURE = """
import sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.repository import Vault, noise
from strongroom.storage.directory import DirectoryStore

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) // 1024

peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anonymous())
folder = Path(sys.argv[2])
vault = Vault(folder, store=DirectoryStore(folder / "store"), average=int(sys.argv[3]), pack_target=int(sys.argv[4]))
watcher = threading.Thread(target=watch)
watcher.start()
writer = vault.writer(1)
with writer.entry("a") as entry:
    for at in range(250):
        entry.write(noise(1 << 20, at) if at % 2 else noise(1 << 19, at).hex().encode())
    entry.finish()
part = vault.seal(writer, 1)
writing, peak = peak, 0
manifest = vault.manifest(part.root)
with vault.reader(manifest) as reader:
    size = sum(len(piece) for piece in reader.read("a"))
done.set()
watcher.join()
assert size == part.sealed.plain_bytes > 250e6, size
print(writing, peak)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("average", "pack_target"), [(4 << 10, 16 << 20), (64 << 10, 64 << 20), (1 << 20, 16 << 20)])
def test_a_long_stream_is_written_and_read_in_bounded_memory(tmp_path: Path, average: int, pack_target: int) -> None:
    """A process of its own, a stream of more than 250 MB: never more than 150 MiB of anonymous memory, interpreter included."""
    command = [sys.executable, "-c", MEASURE, str(Path(__file__).parents[1]), str(tmp_path), str(average), str(pack_target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    writing, reading = map(int, done.stdout.split())
    assert writing <= 150
    assert reading <= 150
