"""What this machine allows: the figures that bound all others.

    python -m benchmarks.limits --work FOLDER

One thread unless it says otherwise; bytes of 10^6. Hashing, sealing and compressing use the libraries that Strongroom uses.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.peers.data import MiB, Rows, noise, write
from benchmarks.peers.folders import fresh
from benchmarks.reporting import Results, table
from strongroom.repository.chunking import Cutter

_SIZE = 128 * MiB


def seconds(work: Callable[[], object], runs: int) -> float:
    """The median time of some runs."""
    taken: list[float] = []
    for _ in range(runs):
        os.sync()
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


class Limits:
    """Each method gives one figure."""

    def __init__(self, work: Path, runs: int) -> None:
        self._work, self._runs = work, runs
        self._data = noise(_SIZE // 2, 1) + Rows().make(_SIZE // 2, 2)
        self._view = memoryview(self._data)

    def write_durably(self) -> float:
        """Sequential write of 128 MiB and fsync, MB/s."""
        return self._rate(lambda: self._write(self._work / "large", self._data))

    def small_durable_writes(self) -> float:
        """Files of 512 bytes written and fsynced, a second."""
        path = self._work / "small"
        return 100 / seconds(lambda: [self._write(path, b"s" * 512) for _ in range(100)], self._runs)

    def unlink(self) -> float:
        """Files of 2 KiB removed, a second."""
        taken: list[float] = []
        for _ in range(self._runs):
            folder = fresh(self._work / "many")
            for number in range(10_000):
                write(folder / str(number), b"x" * 2048)
            taken.append(seconds(lambda folder=folder: shutil.rmtree(folder), 1))  # type: ignore[misc]
        return 10_000 / statistics.median(taken)

    def blake3(self) -> float:
        """BLAKE3 in pieces of 64 KiB, MB/s."""
        key = bytes(32)
        return self._rate(lambda: [blake3(piece, key=key).digest() for piece in self._pieces()])

    def aes_gcm(self) -> float:
        """AES-256-GCM in pieces of 64 KiB, MB/s."""
        cipher = AESGCM(bytes(32))
        return self._rate(lambda: [cipher.encrypt(bytes(12), piece, None) for piece in self._pieces()])

    def zstd(self) -> float:
        """zstd level 1 in pieces of 64 KiB, half noise and half rows, MB/s."""
        packer = zstandard.ZstdCompressor(level=1)
        return self._rate(lambda: [packer.compress(piece) for piece in self._pieces()])

    def cutting(self) -> float:
        """Content-defined cutting at an average of 64 KiB, MB/s."""

        def cut() -> None:
            cutter = Cutter(64 << 10)
            for at in range(0, _SIZE, MiB):
                cutter.feed(self._view[at : at + MiB])
            cutter.finish()

        return self._rate(cut)

    def _pieces(self) -> list[memoryview]:
        return [self._view[at : at + (64 << 10)] for at in range(0, _SIZE, 64 << 10)]

    def _rate(self, work: Callable[[], object]) -> float:
        return _SIZE / 1e6 / seconds(work, self._runs)

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        with path.open("wb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(argv)
    limits, results = Limits(fresh(options.work), options.runs), Results(options.out)
    for figure in (
        limits.write_durably, limits.small_durable_writes, limits.unlink, limits.blake3, limits.aes_gcm, limits.zstd,
        limits.cutting,
    ):  # fmt: skip
        results.add(benchmark="limits", figure=(figure.__doc__ or "").rstrip("."), value=round(figure()))
    shutil.rmtree(options.work)
    print(table(results.rows, ("figure", "value")))


if __name__ == "__main__":
    main()
