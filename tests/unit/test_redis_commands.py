"""Where a stream of commands may be cut, and the queue on disk that it is received into."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import pytest

from strongroom.engines.base import CaptureBroken, EngineError
from strongroom.engines.log import Mark
from strongroom.engines.redis import RedisEngine, spool
from strongroom.engines.redis.commands import Commands
from strongroom.engines.redis.spool import Spool
from strongroom.engines.redis.wire import packed

# Each with whether the stream may be cut after it.
STREAM = [
    (packed("SELECT", "3"), True),
    (packed("PING"), True),
    (b"\n", True),
    (b"\r\n", True),
    (packed("SET", b"\x00\r\n*3\r\n", b"$5\r\n\x00\xff"), True),
    (packed("multi"), False),
    (packed("SET", "k", "EXEC"), False),
    (packed("RPUSH", "EXEC", "not a command here"), False),
    (packed("SET", "empty", ""), False),
    (packed("SELECT", "11"), False),
    (b"PING\r\n", False),
    (packed("EXEC"), True),
    (packed("REPLCONF", "GETACK", "*"), True),
    (b"*0\r\n", True),
    (b"ping\n", True),
    (packed("MULTI"), False),
    (packed("DISCARD"), True),
    (packed("INCR", "counter"), True),
    (packed("SET", "long", "x" * 300), True),
]
WHOLE = b"".join(command for command, _ in STREAM)


def boundaries() -> list[int]:
    """For each length of the stream where it may be cut last."""
    ends = dict(zip(itertools.accumulate(len(command) for command, _ in STREAM), (may for _, may in STREAM), strict=True))
    found, last = [], 0
    for at in range(len(WHOLE) + 1):
        last = at if ends.get(at) else last
        found.append(last)
    return found


def fed(data: bytes, size: int) -> Commands:
    commands = Commands()
    for start in range(0, len(data), size):
        commands.feed(data[start : start + size])
    return commands


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_a_stream_is_followed_through_pieces_of_any_size(size: int) -> None:
    """After every piece the last place at which it may be cut is known."""
    commands, expected = Commands(), boundaries()
    for start in range(0, len(WHOLE), size):
        commands.feed(WHOLE[start : start + size])
        assert (commands.position, commands.boundary) == (min(start + size, len(WHOLE)), expected[commands.position])
    assert commands.databases == 12


def test_a_stream_is_followed_through_every_two_pieces() -> None:
    """A border at every byte, the rest in one piece."""
    expected = boundaries()
    for border in range(len(WHOLE) + 1):
        commands = Commands()
        commands.feed(WHOLE[:border])
        assert commands.boundary == expected[border], WHOLE[:border][-40:]
        commands.feed(WHOLE[border:])
        assert (commands.position, commands.boundary, commands.databases) == (len(WHOLE), len(WHOLE), 12)


@pytest.mark.parametrize(
    "damaged",
    [
        b"*x\r\n", b"*-1\r\n", b"*1\n", b"*1\r\n:4\r\nPING\r\n", b"*1\r\n$x\r\n", b"*1\r\n$3\r\nPING\r\n",
        b"*1\r\n$5\r\nPING\r\n\r\n", b"*1\r\n$4\r\nPINGxx", b"*2\r\n$6\r\nSELECT\r\n$1\r\nx\r\n", b"*2\r\n$1\r\nk\r\n*1\r\n",
        b"*1\r\n$" + b"9" * 5000 + b"\r\n", b"*" + b"9" * 30 + b"\r\n", b"x" * 70_000,
    ],
)  # fmt: skip
def test_what_is_no_command_is_refused(damaged: bytes) -> None:
    """In one piece and byte by byte."""
    for size in (1 << 20, 1):
        with pytest.raises(CaptureBroken, match="not a command"):
            fed(damaged + WHOLE, size)


def test_a_huge_value_and_a_huge_transaction_need_no_memory() -> None:
    """Neither is gathered: 16 MiB of a value, and of commands between MULTI and EXEC."""
    commands, piece = Commands(), bytes(1 << 20)
    many = packed("SET", "k", bytes(1000)) * 1000
    tracemalloc.start()
    commands.feed(packed("MULTI") + b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % (16 << 20))
    for _ in range(16):
        commands.feed(piece)
    commands.feed(b"\r\n")
    for _ in range(4):
        commands.feed(many)
    assert commands.boundary == 0
    commands.feed(packed("EXEC"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert commands.boundary == commands.position > 19 << 20
    assert peak < 1 << 20


def taken(queue: Spool, most: int = 1 << 20) -> list[tuple[bytes, float | None]]:
    found = []
    while (received := queue.take(most, 0)) is not None:
        found.append((received.data, received.at))
    return found


def test_what_is_put_is_taken_with_its_times(tmp_path: Path) -> None:
    """What came within moments is told with the last of its times; what comes after it was taken is not."""
    queue = Spool(str(tmp_path))
    queue.put(b"one ", 10.0)
    queue.put(b"two", 10.03)
    queue.put(b"three", 10.2)
    assert taken(queue) == [(b"one two", 10.03), (b"three", 10.2)]
    queue.put(b"four", 10.21)
    assert taken(queue, 3) == [(b"fou", 10.21), (b"r", 10.21)]
    assert queue.error is None
    for number in range(3):
        queue.put(b"of old" if number < 2 else b"and now", None if number < 2 else 10.22)
    assert taken(queue) == [(b"of oldof old", None), (b"and now", 10.22)]
    queue.put(b"five", 11.0)
    queue.end(EngineError("over"))
    assert queue.error is None, "something is left to be taken"
    assert taken(queue) == [(b"five", 11.0)]
    assert str(queue.error) == "over"
    queue.close()
    assert list(tmp_path.iterdir()) == []


def test_files_are_deleted_as_they_are_taken_and_the_disk_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces over the borders of files come out whole; more than may wait is refused, and what waits is still there."""
    monkeypatch.setattr(spool, "_FILE_BYTES", 100)
    queue = Spool(str(tmp_path), most=1000)
    written = bytearray()
    for number in range(14):
        piece = bytes([number]) * 70
        queue.put(piece, float(number))
        written += piece
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 980
    with pytest.raises(EngineError, match="wait to be stored"):
        queue.put(bytes(70), 14.0)
    first = queue.take(500, 0)
    assert first is not None
    read = bytearray(first.data)
    for _ in range(8):
        received = queue.take(500, 0)
        assert received is not None
        read += received.data
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 980 - len(read) + 100
    read += b"".join(data for data, _ in taken(queue))
    assert read == written
    queue.close()
    assert list(tmp_path.iterdir()) == []


def test_a_capture_tells_its_mark_if_its_log_can_be_recorded() -> None:
    """Not that of a cluster, and not one of before logs were recorded."""
    facts = {"replid": "a" * 40, "offset": 7, "stream_db": 0, "time": 1, "at": 2.5}
    engine = RedisEngine()
    assert engine.mark_of(facts) == Mark("a" * 40, 7, 2.5)
    assert engine.mark_of({**facts, "shards": []}) is None
    assert engine.mark_of({**facts, "stream_db": -1}) is None
    for name in ("replid", "offset", "stream_db", "at"):
        assert engine.mark_of({key: value for key, value in facts.items() if key != name}) is None
