"""What a server says of itself, and whether the stored user may take a backup."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from strongroom.ambient import Ambient
from strongroom.engines.base import EngineDenied, EngineError, EngineUnsupported, Probe, Target
from strongroom.engines.redis.capture import announce
from strongroom.engines.redis.topology import AT_ONCE, in_cluster_mode, settled_shards, target_of
from strongroom.engines.redis.versions import product_of
from strongroom.engines.redis.wire import RightMissing, Wire, open_wire, packed

ANSWER_SECONDS = 4.0  # with the time to connect: a probe returns within ten seconds
PART_SECONDS = 2.0  # of a cluster, which is asked several times


def probe(target: Target, ambient: Ambient) -> Probe:
    """See Engine.probe. Starts no synchronisation and changes nothing. Of a cluster every master is probed."""
    with open_wire(target, ambient, patience=ANSWER_SECONDS) as wire:
        cluster = in_cluster_mode(wire)
        if not cluster:
            return _probed(wire, "Single")
    shards = settled_shards(target, ambient, PART_SECONDS)
    with ThreadPoolExecutor(AT_ONCE, "redis-probe") as pool:
        probes = list(pool.map(lambda shard: _probe_node(target_of(target, shard.master), ambient), shards))
    warnings = list(dict.fromkeys(text for probe in probes for text in probe.warnings))
    lone = sum(not shard.replicas for shard in shards)
    if lone:
        warnings.append(f"{lone} of {len(shards)} shards have no replica: backups are read from their masters.")
    return Probe(min(probe.version for probe in probes), "Cluster", sum(probe.size for probe in probes), warnings)


def _probe_node(target: Target, ambient: Ambient) -> Probe:
    with open_wire(target, ambient, patience=PART_SECONDS) as wire:
        return _probed(wire, "Cluster")


def _probed(wire: Wire, mode: str) -> Probe:
    warnings: list[str] = []
    try:
        info = wire.info()
    except RightMissing:
        info = {}
        warnings.append("The user may not run INFO: version, size and role are unknown. Grant +info.")
    announce(wire)
    _prove_psync(wire)
    return Probe(product_of(info).version, mode, _size(info), warnings + _warnings(info))


def _prove_psync(wire: Wire) -> None:
    """Proves the right to PSYNC without one: a server checks rights first, then refuses it while an answer is still to be
    sent, and the answer to the REPLCONF of the same packet is."""
    wire.send(packed("REPLCONF", "capa", "psync2") + packed("PSYNC", "?", "-1"))
    wire.reply("REPLCONF")
    try:
        wire.reply("PSYNC")
    except (EngineDenied, EngineUnsupported):
        raise
    except EngineError as error:
        if "pending output" not in str(error):
            raise


def _size(info: dict[str, str]) -> int:
    for name in ("used_memory_dataset", "used_memory"):
        if info.get(name, "").isdigit():
            return int(info[name])
    return 0


def _warnings(info: dict[str, str]) -> list[str]:
    found = []
    if info.get("role") == "slave":
        found.append("This is a replica: the backup is as old as what it has received from its master.")
    if info.get("maxmemory_policy", "noeviction") != "noeviction":
        found.append("Keys are evicted under maxmemory: how recently they were used is not saved.")
    return found
