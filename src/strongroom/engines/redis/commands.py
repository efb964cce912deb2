"""Where commands end in what a server sends its replicas: the only places at which a log of changes may be cut.

The stream is commands as clients send them: mostly `*<words>` and for each word `$<bytes>` and the bytes; a line of any other
form is a command by itself, and so is an empty one. What stands between MULTI and EXEC happens together, so it is not cut either.
"""

from __future__ import annotations

from strongroom.engines.base import CaptureBroken

_LINE_BYTES = 1 << 16  # the longest line that a server takes
_NUMBER_BYTES = 21
_SHORT_BYTES = 16  # longer words are of no interest here
_OF_INTEREST = frozenset({b"MULTI", b"EXEC", b"DISCARD", b"SELECT"})


class Commands:
    """Follows the stream through pieces of any borders. Memory does not grow with commands, values or transactions."""

    def __init__(self) -> None:
        self.position = 0  # bytes taken
        self.boundary = 0  # the last place at which the stream may be cut
        self.databases = 0  # one more than the highest database that was selected; 0: none was
        self._line = bytearray()  # of which the end has not come
        self._words = 0  # of the command, that have not come
        self._bulk = 0  # bytes of the word, and of its end, that have not come
        self._short: list[bytes] | None = None  # the command's words where they can be of interest
        self._word = bytearray()
        self._together = False  # between MULTI and EXEC

    def feed(self, data: bytes) -> None:
        """Takes the next bytes. Raises CaptureBroken where they are no commands."""
        at, size = 0, len(data)
        while at < size:
            if not self._bulk and not self._words and not self._line:
                whole = _pass_whole(data, at)
                if whole > at:
                    at = whole
                    if not self._together:
                        self.boundary = self.position + at
                    continue
            if self._bulk:
                at = self._take_word(data, at)
            else:
                end = data.find(b"\n", at)
                if end < 0:
                    self._line += data[at:]
                    if len(self._line) > _LINE_BYTES:
                        raise _broken(self.position + at)
                    break
                line = data[at:end]
                if self._line:
                    line = bytes(self._line) + line
                    self._line.clear()
                at = end + 1
                self._take_line(line, self.position + at)
            if not self._words and not self._bulk:
                if self._short is not None:
                    self._note(self._short, self.position + at)
                    self._short = None
                if not self._together:
                    self.boundary = self.position + at
        self.position += size

    def _take_line(self, line: bytes, at: int) -> None:
        if self._words:
            self._bulk = _number(line, b"$", at) + 2
            if self._short is not None and self._bulk > _SHORT_BYTES:
                self._short = None
        elif line.startswith(b"*"):
            self._words = _number(line, b"*", at)
            self._short = [] if 0 < self._words <= 2 else None
        else:
            if len(line) > _LINE_BYTES:
                raise _broken(at)
            self._short = line.split()

    def _take_word(self, data: bytes, at: int) -> int:
        end = min(at + self._bulk, len(data))
        self._bulk -= end - at
        # the two bytes of a word's end are looked at where they are, even if a border falls between them
        if self._bulk < 2 and data[end - 1] != (10 if not self._bulk else 13):
            raise _broken(self.position + end)
        if not self._bulk and end - at > 1 and data[end - 2] != 13:
            raise _broken(self.position + end)
        if self._short is not None:
            self._word += data[at:end]
        if not self._bulk:
            self._words -= 1
            if self._short is not None:
                self._short.append(bytes(self._word[:-2]))
            self._word.clear()
        return end

    def _note(self, words: list[bytes], at: int) -> None:
        name = words[0].upper() if words else b""
        if name == b"MULTI":
            self._together = True
        elif name in (b"EXEC", b"DISCARD"):
            self._together = False
        elif name == b"SELECT":
            if len(words) != 2 or not words[1].isdigit():
                raise _broken(at)
            self.databases = max(self.databases, int(words[1]) + 1)


def _pass_whole(data: bytes, at: int) -> int:
    """The end of the whole commands from `at` on, up to the first that is of interest or not plainly whole. Nearly all that comes
    is passed here, three times as fast as word by word."""
    size, find = len(data), data.find
    while at < size and data[at] == 42:  # *
        end = find(b"\r\n", at)
        number = data[at + 1 : end]
        if end < 0 or end - at > _NUMBER_BYTES or not number.isdigit():
            break
        words = int(number)
        next_at = end + 2
        for word in range(words):
            end = find(b"\r\n", next_at, next_at + _NUMBER_BYTES)
            number = data[next_at + 1 : end]
            if end < 0 or data[next_at] != 36 or not number.isdigit():  # $
                return at
            start = end + 2
            next_at = start + int(number) + 2
            if next_at > size or data[next_at - 2] != 13 or data[next_at - 1] != 10:
                return at
            if not word and words <= 2 and data[start : next_at - 2].upper() in _OF_INTEREST:
                return at
        at = next_at
    return at


def _number(line: bytes, kind: bytes, at: int) -> int:
    if line[:1] != kind or line[-1:] != b"\r" or len(line) > _NUMBER_BYTES or not line[1:-1].isdigit():
        raise _broken(at)
    return int(line[1:-1])


def _broken(at: int) -> CaptureBroken:
    return CaptureBroken(f"what follows byte {at} of the log is not a command")
