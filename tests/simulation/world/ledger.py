"""What each deletion really did to the store's bytes, to be compared with its receipt.

A deletion's objects are those that its removals name: what it removes, and what it puts (graves, closing marks, rewritten
objects). What it put and took away again counts on neither side; nor does what nobody knows to be there: a put whose answer was
lost before its row was condemned, or that lands when its row is LATE.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Bytes by removal, `delete:<backup>` and `rewrite:<backup>`."""

    gone: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    put: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _putter: dict[str, str] = field(default_factory=dict)  # object's name → the removal that put it

    def landed(self, name: str, size: int, state: str, removal: str | None) -> None:
        """An object has come into being while its row said this."""
        if state == "PLANNED" and removal is not None and not removal.startswith("lineage:"):
            self.put[removal] += size
            self._putter[name] = removal

    def went(self, name: str, size: int, state: str, removal: str | None, booked: int) -> None:
        """An object goes that was there, of so many bytes, while its row said this."""
        putter = self._putter.pop(name, None)
        if state == "LATE":
            return
        if putter is not None and (putter == removal or not booked):
            self.put[putter] -= size
        elif removal is not None and booked:
            self.gone[removal] += size

    def freed(self, backup: str) -> int:
        """Bytes of objects that the deletion itself removed."""
        return self.gone[f"delete:{backup}"]

    def change(self, backup: str) -> int:
        """By how much less the store holds after the deletion."""
        return sum(self.gone[key] - self.put[key] for key in _removals(backup))

    def put_by(self, backup: str) -> list[str]:
        """Objects that are there and that the deletion put."""
        return [name for name, putter in self._putter.items() if putter in _removals(backup)]


def _removals(backup: str) -> tuple[str, str]:
    return f"delete:{backup}", f"rewrite:{backup}"
