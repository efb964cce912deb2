"""A queue of bytes on disk between a server that must not wait and a store that may be slow.

One thread puts, another takes. The bytes lie in files of some MiB, each deleted once all of it was taken and the next begun.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass

from strongroom.engines.base import EngineError
from strongroom.engines.redis.wire import scratch_errors

MOST_BYTES = 4 << 30  # that may wait to be taken
_FILE_BYTES = 16 << 20
_TOGETHER_SECONDS = 0.05  # what comes within that time is told as received at its last moment


@dataclass(slots=True)
class _Span:
    """Bytes that are told as received together."""

    end: int  # the position after them
    begun: float | None
    at: float | None


def _together(begun: float | None, at: float | None) -> bool:
    if begun is None or at is None:
        return begun is at
    return 0 <= at - begun < _TOGETHER_SECONDS


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes, and when they had been received."""

    data: bytes
    at: float | None  # seconds since the epoch; None: they are of an unknown time before


class Spool:
    """Both threads may call `end`, `waiting` and `error`; `close` is for when the one that puts has ended."""

    def __init__(self, folder: str, most: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most = most
        self._files: deque[tuple[int, int, str]] = deque()  # descriptor, position of the first byte, path
        self._spans: deque[_Span] = deque()
        self._put = self._taken = 0
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None

    # The thread that receives

    def put(self, data: bytes, at: float | None) -> None:
        """Takes bytes that were received at that time. Raises EngineError where the folder fails or too much waits."""
        if self.waiting + len(data) > self._most:
            raise EngineError(
                f"{self.waiting >> 20} MiB of the log wait to be stored, the most that may: the store is slower than the source"
            )
        with scratch_errors(self._folder):
            self._write(data)
        with self._changed:
            self._put += len(data)
            last = self._spans[-1] if self._spans else None
            if last is not None and _together(last.begun, at):
                last.end, last.at = self._put, at
            else:
                self._spans.append(_Span(self._put, at, at))
            self._changed.notify()

    def end(self, error: BaseException) -> None:
        """Says that nothing more comes, and why."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        position = self._put
        while left:
            if not self._files or position - self._files[-1][1] >= _FILE_BYTES:
                path = os.path.join(self._folder, f"spool-{position}")
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with self._changed:
                    self._files.append((handle, position, path))
            handle, begin, _ = self._files[-1]
            written = os.pwrite(handle, left[: begin + _FILE_BYTES - position], position - begin)
            left = left[written:]
            position += written

    # The thread that hands on

    @property
    def waiting(self) -> int:
        """Bytes that were put and not taken."""
        return self._put - self._taken

    @property
    def error(self) -> BaseException | None:
        """Why nothing more comes, once all of it was taken; None before."""
        with self._changed:
            return self._error if self._ended and not self.waiting else None

    def take(self, most: int, seconds: float) -> Received | None:
        """The next bytes of one time, at most so many; None if nothing has come within `seconds`."""
        with self._changed:
            if not self._spans:
                if not self._ended:
                    self._changed.wait(seconds)
                if not self._spans:
                    return None
            while len(self._files) > 1 and self._files[1][1] <= self._taken:
                self._drop()
            span = self._spans[0]
            handle, begin, _ = self._files[0]
            size = min(most, span.end - self._taken, begin + _FILE_BYTES - self._taken)
            if self._taken + size == span.end:
                self._spans.popleft()
            at = span.at
        with scratch_errors(self._folder):
            data = os.pread(handle, size, self._taken - begin)
        if len(data) != size:
            raise EngineError(f"a file in {self._folder} became shorter: see who else uses it")
        with self._changed:
            self._taken += size
        return Received(data, at)

    def close(self) -> None:
        """Removes the files."""
        while self._files:
            self._drop()

    def _drop(self) -> None:
        handle, _, path = self._files.popleft()
        os.close(handle)
        os.unlink(path)
