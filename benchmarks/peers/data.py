"""Test data from seeds: bytes that do not shrink, rows that do, and trees that change from backup to backup."""

from __future__ import annotations

import random
from pathlib import Path

MiB = 1 << 20
_CITIES = (b"Bremen", b"Chengdu", b"Dakar", b"Esbjerg", b"Fukuoka", b"Galway", b"Hanoi", b"Izmir")
_ID = b'{"_id":"'


def noise(size: int, seed: int) -> bytes:
    """Bytes that no compressor shrinks."""
    return random.Random(seed).randbytes(size)


def rows(size: int, seed: int) -> bytes:
    """JSON rows, as an export of a table looks; they shrink to about a quarter."""
    draw = random.Random(seed)
    lines: list[bytes] = []
    length = 0
    while length < size:
        bits = draw.getrandbits(40)
        line = b'{"_id":"%016x","account":"acct%07d","place":"%s","amount":%d.%02d,"on":"2026-%02d-%02dT%02d:%02d:00Z","open":%s,"marks":[%d,%d]}\n' % (  # noqa: E501
            draw.getrandbits(64), bits % 9_999_991, _CITIES[bits & 7], bits % 70_001, bits % 97, 1 + bits % 12, 1 + bits % 28,
            bits % 24, bits % 60, b"true" if bits & 8 else b"false", bits % 50, bits % 9,
        )  # fmt: skip
        lines.append(line)
        length += len(line)
    return b"".join(lines)[:size]


class Rows:
    """Large amounts of rows, fast: blocks from a small pool, each made different by fresh ids."""

    def __init__(self) -> None:
        self._pool = [rows(MiB, 7_000 + number) for number in range(6)]
        self._places = [_places(block) for block in self._pool]

    def make(self, size: int, seed: int) -> bytes:
        """`size` bytes, a whole number of MiB."""
        draw = random.Random(seed)
        return b"".join(self._block(draw) for _ in range(size // MiB))

    def _block(self, draw: random.Random) -> bytes:
        number = draw.randrange(len(self._pool))
        block = bytearray(self._pool[number])
        ids = draw.randbytes(8 * len(self._places[number])).hex().encode()
        for at, place in enumerate(self._places[number]):
            block[place : place + 16] = ids[16 * at : 16 * at + 16]
        return bytes(block)


def _places(block: bytes) -> list[int]:
    """Where the ids of a block's rows begin."""
    found: list[int] = []
    at = block.find(_ID)
    while 0 <= at <= len(block) - 24:
        found.append(at + len(_ID))
        at = block.find(_ID, at + 1)
    return found


def write(path: Path, content: bytes) -> None:
    """Writes a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


class LargeFiles:
    """A tree of large files, the first half noise, the second half rows."""

    def __init__(self, count: int = 64, size: int = 16 * MiB) -> None:
        self.count, self.size = count, size
        self._rows = Rows()

    @property
    def bytes(self) -> int:
        """Of the whole tree."""
        return self.count * self.size

    def make(self, root: Path) -> None:
        """The first state."""
        for number in range(self.count):
            self._write(root, number, number)

    def step(self, root: Path, day: int) -> None:
        """Three files replaced, two of them always the same (what they hold belongs to one backup alone), and 1 MiB in place."""
        half = self.count // 2
        wandering = 2 + day * 7 % (half - 2) if day % 2 else half + 2 + day * 5 % (half - 2)
        for number in (0, half, wandering):
            self._write(root, number, 10_000 * day + number)
        with (root / _large(1)).open("r+b") as file:
            file.seek(self.size // 3)
            file.write(noise(MiB, 777 + day))

    def touch_all(self, root: Path, size: int = 320 << 10) -> int:
        """Overwrites `size` bytes somewhere in every file; returns how many bytes changed."""
        for number in range(self.count):
            with (root / _large(number)).open("r+b") as file:
                file.seek((3 + number % 9) * self.size // 16)
                file.write(noise(size, 5_000 + number))
        return self.count * size

    def _write(self, root: Path, number: int, seed: int) -> None:
        content = noise(self.size, seed) if number < self.count // 2 else self._rows.make(self.size, seed)
        write(root / _large(number), content)


def _large(number: int) -> str:
    return f"file-{number:03d}.db"


class SmallFiles:
    """A tree of many small files of rows."""

    def __init__(self, count: int = 40_000, size: int = 2048) -> None:
        self.count, self.size = count, size
        self._pool = rows(4 * MiB, 5)

    def make(self, root: Path) -> None:
        """The first state."""
        draw = random.Random(9)
        for number in range(self.count):
            self._write(root, number, draw)

    def step(self, root: Path, day: int) -> None:
        """Every thousandth file replaced."""
        draw = random.Random(100 + day)
        for number in range(0, self.count, 1000):
            self._write(root, number, draw)

    def _write(self, root: Path, number: int, draw: random.Random) -> None:
        at = draw.randrange(len(self._pool) - self.size)
        content = b'{"key":"%s"}\n' % draw.randbytes(16).hex().encode() + self._pool[at : at + self.size]
        write(root / f"{number // 200:03d}" / f"{number:06d}.json", content[: self.size])
