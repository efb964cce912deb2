"""What the shipped code takes from outside: a clock that moves when told, seeded ids and keys, databases as dictionaries."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from strongroom.engines.base import (
    CaptureSink,
    Control,
    EngineUnreachable,
    EngineUnsupported,
    Probe,
    RestoreSource,
    Summary,
    Target,
)


class Seeded:
    """An `Ambient`: time passes by `passes` alone, ids and keys come from the seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"ambient {seed}")
        self._passed = 0.0
        self._skew = 0.0

    def now(self) -> float:
        return 1_700_000_000.0 + self._passed + self._skew

    def monotonic(self) -> float:
        return self._passed

    def sleep(self, seconds: float) -> None:
        self._passed += seconds

    def passes(self, seconds: float) -> None:
        """Time goes by."""
        self._passed += seconds

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock, forward or back."""
        self._skew += seconds

    def hex_id(self) -> str:
        return self._random.randbytes(16).hex()

    def uuid(self) -> str:
        text = self.hex_id()
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    def key(self) -> bytes:
        return self._random.randbytes(32)


class _Captures(Control, Protocol):
    args: Mapping[str, Any]


class Databases:
    """An `Engine`. Each capture is kept under its number, which the backup's facts carry: what it must restore to.

    `between` is called where other processes may come first; what it answers, if anything, is how the engine breaks. `broken` is
    told of a restore that reads something else than was captured, `restored` of one that is done.
    """

    name = "plain"
    id_suffix = "99"

    def __init__(self, between: Callable[[str], str | None], broken: Callable[[str], None], restored: Callable[[], None]) -> None:
        self.content: dict[str, dict[str, bytes]] = {}
        self.captures: list[tuple[str, dict[str, bytes]]] = []  # (backup, what the database held)
        self._between, self._broken, self._restored = between, broken, restored

    def probe(self, target: Target) -> Probe:
        if target.address not in self.content:
            raise EngineUnreachable(f"nothing listens on {target.address}: start it")
        return Probe("1.0", "Single", 1000)

    def capture(self, target: Target, sink: CaptureSink, control: Control, scratch: str) -> Summary:
        data = dict(self.content[target.address])
        number = len(self.captures)
        self.captures.append((str(control.args["backup"]), data))  # type: ignore[attr-defined]
        for name, content in sorted(data.items()):
            control.check()
            broken = self._between(f"reads {name} of {target.address}")
            if broken is not None:
                raise EngineUnreachable(broken)
            with sink.entry(name) as entry:
                for start in range(0, len(content), 1000):
                    entry.write(content[start : start + 1000])
                entry.finish({"length": len(content)})
        return Summary(len(data), sum(len(v) for v in data.values()), {"capture": number})

    def restore(self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str) -> Summary:
        found = {entry.name: b"".join(source.read(entry.name)) for entry in source.entries()}
        backup, wanted = self.captures[facts["capture"]]
        if found != wanted or control.args["backup"] != backup:  # type: ignore[attr-defined]
            self._broken(f"a restore of backup {backup} read something else than what was captured")
        control.check()
        broken = self._between(f"writes {target.address}")
        if broken is not None:
            raise EngineUnreachable(broken)
        self._restored()
        return Summary(len(found), sum(len(v) for v in found.values()))

    def export(self, source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
        """No history of the simulation exports."""
        raise EngineUnsupported("not here")

    def recover(self, target: Target) -> None:
        """Nothing can be left."""


class Contents:
    """Makes databases' contents that follow one another: edited in places, entries new, gone, unchanged."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"contents {seed}")
        self.past: list[dict[str, bytes]] = []

    def first(self) -> dict[str, bytes]:
        """Some entries."""
        return {f"e{number}": self._random.randbytes(self._random.choice((700, 1500, 3200))) for number in range(3)}

    def next(self, data: Mapping[str, bytes], kind: int) -> dict[str, bytes]:
        """What follows `data`: 0 the same, 1 edited in one place, 2 an entry new, 3 an entry gone, 4 all anew, 5 1 and 2, 6 what
        was captured some time ago."""
        self.past.append(dict(data))
        if kind == 6:
            return dict(self.past[self._random.randrange(len(self.past))])
        out = dict(data)
        if kind in (1, 5) and out:
            name = self._random.choice(sorted(out))
            text = bytearray(out[name])
            place = self._random.randrange(max(1, len(text) - 40))
            text[place : place + 40] = self._random.randbytes(40)
            out[name] = bytes(text)
        if kind in (2, 5):
            out[f"e{self._random.randrange(1000)}"] = self._random.randbytes(self._random.choice((700, 2100)))
        if kind == 3 and len(out) > 1:
            del out[self._random.choice(sorted(out))]
        return self.first() if kind == 4 else out
