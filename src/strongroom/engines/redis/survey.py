"""What a restore would find in a target: its version, rights and room, and whether it holds anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from strongroom.ambient import Ambient
from strongroom.engines.base import EngineUnsupported, Ground, Target
from strongroom.engines.redis.filling import Needs, check_cluster
from strongroom.engines.redis.marks import release
from strongroom.engines.redis.probe import ANSWER_SECONDS
from strongroom.engines.redis.restore import keys_in, require_target
from strongroom.engines.redis.topology import is_cluster, target_of
from strongroom.engines.redis.wire import no_look, open_wire


def survey(target: Target, facts: Mapping[str, Any], ambient: Ambient) -> Ground:
    """See Surveyor. Room is memory: while it loads a single server keeps its old data beside the new, a cluster is emptied."""
    if is_cluster(target, ambient):
        return _survey_cluster(target, facts, ambient)
    release(target, ambient)  # what an earlier restore left there
    with open_wire(target, ambient, patience=ANSWER_SECONDS) as wire:
        info = require_target(wire, int(facts.get("rdb_version", 0)))
    needed = int(facts.get("used_memory", 0))
    _require_limit(_number(info, "maxmemory"), needed)
    machine, used = _number(info, "total_system_memory"), _number(info, "used_memory")
    if machine and used + needed > machine:
        raise EngineUnsupported(
            f"the target holds {_mib(used)}, the backup was {_mib(needed)} in memory, and while it loads both must fit into the "
            f"machine's {_mib(machine)}: empty the target first, or restore into a larger one"
        )
    return Ground(_holdings([info]))


def _survey_cluster(target: Target, facts: Mapping[str, Any], ambient: Ambient) -> Ground:
    keys = {int(db): int(count) for db, count in dict(facts.get("keys", {})).items()}
    needs = Needs(int(facts.get("rdb_version", 0)), keys, {b"any": b""} if facts.get("functions") else {})
    ready = check_cluster(target, needs, no_look, ambient, ANSWER_SECONDS)
    told = []
    for shard in ready.shards:
        with open_wire(target_of(target, shard.master), ambient, patience=ANSWER_SECONDS) as wire:
            told.append(wire.info())
    limits = [_number(info, "maxmemory") for info in told]
    _require_limit(sum(limits) if all(limits) else 0, int(facts.get("used_memory", 0)))
    return Ground(_holdings(told))


def _require_limit(limit: int, needed: int) -> None:
    """`needed` is the memory that the source used when the backup was taken; no `limit`, none is set."""
    if limit and needed > limit:
        raise EngineUnsupported(
            f"the backup was {_mib(needed)} in memory, the target's maxmemory is {_mib(limit)}: raise it, else keys are evicted"
        )


def _holdings(told: Sequence[dict[str, str]]) -> str | None:
    counts: dict[str, int] = {}
    for info in told:
        for db, count in keys_in(info).items():
            counts[db] = counts.get(db, 0) + count
    libraries = max(_number(info, "number_of_libraries") for info in told)  # every node of a cluster has the same
    found = []
    if counts:
        found.append(f"{sum(counts.values())} keys in {len(counts)} databases")
    if libraries:
        found.append(f"{libraries} function libraries")
    return " and ".join(found) or None


def _number(info: dict[str, str], name: str) -> int:
    text = info.get(name, "")
    return int(text) if text.isdigit() else 0


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
