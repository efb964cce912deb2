"""The catalog's books of objects, counted anew chunk by chunk from what objects hold and what is gone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from pyroaring import BitMap

HOLDINGS = """
SELECT h.object, h.numbers, h.sizes, h.bytes, p.chunks, p.gone, p.gone_bytes
FROM holding h JOIN object o ON o.id = h.object LEFT JOIN pack p ON p.lineage = h.lineage AND p.id = h.pack
WHERE o.state = 'STORED'
"""


def counted(rows: Iterable[Any]) -> dict[str, tuple[int, int]]:
    """(living chunks, dead bytes) of each object, from the rows of HOLDINGS."""
    live: dict[str, int] = defaultdict(int)
    dead: dict[str, int] = defaultdict(int)
    for key, numbers, sizes, size, chunks, gone, gone_bytes in rows:
        away = BitMap() if gone is None else BitMap.deserialize(bytes(gone))
        if chunks is None:  # the pack is all gone
            live[key] += 0
            dead[key] += size
        elif numbers is None:
            live[key] += chunks - len(away)
            dead[key] += gone_bytes
        else:
            held = list(BitMap.deserialize(bytes(numbers)))
            each = np.frombuffer(bytes(sizes), "<u2" if len(sizes) == 2 * len(held) else "<u4").tolist()
            assert len(each) == len(held)
            assert sum(each) == size
            live[key] += sum(number not in away for number in held)
            dead[key] += sum(one for number, one in zip(held, each, strict=True) if number in away)
    return {key: (live[key], dead[key]) for key in live}


def check_books(objects: Iterable[tuple[str, str, int, int]], holdings: Iterable[Any], broken: Callable[[str], object]) -> None:
    """Every stored object of chunks, (id, name, live, dead bytes), says what its holdings add up to and holds something alive."""
    expected = counted(holdings)
    for key, name, live, dead in objects:
        if expected.get(key) != (live, dead):
            broken(f"{name} says {live} living chunks and {dead} dead bytes; what it holds adds up to {expected.get(key)}")
        elif live == 0:
            broken(f"{name} holds nothing living and is still stored")
