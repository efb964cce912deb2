"""What a writer writes: write `n` is a function of the seed and of `n` alone. So whoever reads how many writes a database holds
knows all that it must hold, to the byte, whenever the cut was made and although the writer goes on."""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections.abc import Mapping

Cut = tuple[int, ...]
"""How many writes of each writer a state holds."""

Contents = Mapping[str, bytes]
"""All that a database holds, in one form for comparison."""

_HOT = 16  # one key in so many is written as often as all others together
_DELETED = 20  # of 256 writes so many remove their key


class Writing:
    """The endless sequence of one writer. Writes 1 … keys fill every key once; later ones change or remove one at random."""

    def __init__(self, seed: str, keys: int, size: int) -> None:
        self.keys, self._seed, self._size = keys, seed, size
        self._planned = array("l")  # of write n + 1: its key, or -1 - key where it is removed
        self._lock = threading.Lock()

    def at(self, number: int) -> tuple[int, bytes | None]:
        """Key and value of a write (from 1); None removes the key."""
        key = self._plan(number)
        return (key, self._value(number)) if key >= 0 else (-1 - key, None)

    def after(self, number: int) -> dict[int, bytes]:
        """Everything that is there after so many writes."""
        last: dict[int, int] = {}
        if number:
            self._plan(number)
        for n, key in enumerate(self._planned[:number], start=1):
            if key >= 0:
                last[key] = n
            else:
                last.pop(-1 - key, None)
        return {key: self._value(n) for key, n in last.items()}

    def _plan(self, number: int) -> int:
        with self._lock:
            while len(self._planned) < number:
                self._planned.append(self._choose(len(self._planned) + 1))
            return self._planned[number - 1]

    def _choose(self, number: int) -> int:
        if number <= self.keys:
            return number - 1
        drawn = hashlib.shake_128(f"{self._seed} key {number}".encode()).digest(6)
        among = self.keys // _HOT if drawn[0] & 1 else self.keys
        key = int.from_bytes(drawn[2:], "big") % among
        return -1 - key if drawn[1] < _DELETED else key

    def _value(self, number: int) -> bytes:
        return hashlib.shake_128(f"{self._seed} value {number}".encode()).digest(self._size)


def digest(contents: Contents) -> str:
    """One word for all of a database's contents."""
    total = hashlib.sha256()
    for key in sorted(contents):
        total.update(f"{len(key)}:{key}:{len(contents[key])}:".encode())
        total.update(contents[key])
    return total.hexdigest()


def difference(found: Contents, wanted: Contents) -> str | None:
    """How two contents differ, in words; None if they do not."""
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    changed = sorted(key for key in wanted.keys() & found.keys() if found[key] != wanted[key])
    if not (missing or extra or changed):
        return None
    examples = [*sorted(missing)[:2], *sorted(extra)[:2], *changed[:2]]
    return (
        f"{len(missing)} missing, {len(extra)} too many, {len(changed)} changed of {len(wanted)}, such as {', '.join(examples)}"
    )
