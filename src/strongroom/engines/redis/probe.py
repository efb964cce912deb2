"""What a server says of itself, and whether the stored user may take a backup."""

from __future__ import annotations

from strongroom.ambient import Ambient
from strongroom.engines.base import EngineDenied, EngineError, EngineUnsupported, Probe, Target
from strongroom.engines.redis.capture import announce
from strongroom.engines.redis.versions import product_of
from strongroom.engines.redis.wire import RightMissing, Wire, open_wire, packed

ANSWER_SECONDS = 4.0  # with the time to connect: a probe returns within ten seconds


def probe(target: Target, ambient: Ambient) -> Probe:
    """See Engine.probe. Starts no synchronisation and changes nothing."""
    warnings: list[str] = []
    with open_wire(target, ambient, patience=ANSWER_SECONDS) as wire:
        try:
            info = wire.info()
        except RightMissing:
            info = {}
            warnings.append("The user may not run INFO: version, size and role are unknown. Grant +info.")
        announce(wire)
        _prove_psync(wire)
    return Probe(
        version=product_of(info).version,
        mode="Cluster" if info.get("cluster_enabled") == "1" else "Single",
        size=_size(info),
        warnings=warnings + _warnings(info),
    )


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
    if info.get("cluster_enabled") == "1":
        found.append("This is one node of a cluster: only its own slots are saved, and a restore into a cluster is refused.")
    if info.get("role") == "slave":
        found.append("This is a replica: the backup is as old as what it has received from its master.")
    if info.get("maxmemory_policy", "noeviction") != "noeviction":
        found.append("Keys are evicted under maxmemory: how recently they were used is not saved.")
    return found
