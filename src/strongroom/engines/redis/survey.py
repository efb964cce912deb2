"""What a restore would find in a target: its version, rights and room, and whether it holds anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom.ambient import Ambient
from strongroom.engines.base import EngineUnsupported, Ground, Target
from strongroom.engines.redis.marks import release
from strongroom.engines.redis.probe import ANSWER_SECONDS
from strongroom.engines.redis.restore import keys_in, require_target
from strongroom.engines.redis.wire import open_wire


def survey(target: Target, facts: Mapping[str, Any], ambient: Ambient) -> Ground:
    """See Surveyor. Room is memory: while it loads the target keeps its old data beside the new."""
    release(target, ambient)  # what an earlier restore left there
    with open_wire(target, ambient, patience=ANSWER_SECONDS) as wire:
        info = require_target(wire, int(facts.get("rdb_version", 0)))
    _require_room(info, int(facts.get("used_memory", 0)))
    return Ground(_holdings(info))


def _require_room(info: dict[str, str], needed: int) -> None:
    """`needed` is the memory that the source used when the backup was taken."""
    limit, machine, used = (_number(info, name) for name in ("maxmemory", "total_system_memory", "used_memory"))
    if limit and needed > limit:
        raise EngineUnsupported(
            f"the backup was {_mib(needed)} in memory, the target's maxmemory is {_mib(limit)}: raise it, else keys are evicted"
        )
    if machine and used + needed > machine:
        raise EngineUnsupported(
            f"the target holds {_mib(used)}, the backup was {_mib(needed)} in memory, and while it loads both must fit into the "
            f"machine's {_mib(machine)}: empty the target first, or restore into a larger one"
        )


def _holdings(info: dict[str, str]) -> str | None:
    keys, libraries = keys_in(info), _number(info, "number_of_libraries")
    found = []
    if keys:
        found.append(f"{sum(keys.values())} keys in {len(keys)} databases")
    if libraries:
        found.append(f"{libraries} function libraries")
    return " and ".join(found) or None


def _number(info: dict[str, str], name: str) -> int:
    text = info.get(name, "")
    return int(text) if text.isdigit() else 0


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
