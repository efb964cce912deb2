"""Redis Cluster: which node serves which slots, as `CLUSTER NODES` tells it, and whether that stands still.

Every node tells of all nodes, but of slots that are on their way from one to another only its own. So a topology is read from
one node, and then each master is asked itself.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from strongroom.ambient import Ambient
from strongroom.engines.base import EngineError, EngineUnreachable, EngineUnsupported, Target
from strongroom.engines.redis.wire import REPLY_SECONDS, Place, Wire, open_wire, place_of

SLOTS = 16384
AT_ONCE = 16  # nodes asked at the same time
_FAILING = frozenset({"fail", "fail?", "noaddr", "handshake"})


def slot_of(key: bytes) -> int:
    """The slot of a key: CRC16 (XMODEM) of it, or of what stands between its first braces if that is not empty."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


@dataclass(frozen=True, slots=True)
class Node:
    """One node as it is told of. `ranges` are the first and last slots that it serves; `epoch` rises when it takes slots."""

    id: str
    host: str
    port: int
    flags: frozenset[str]
    master: str  # the id of the node it follows, "" for a master
    epoch: int
    ranges: tuple[tuple[int, int], ...] = ()
    moving: tuple[str, ...] = ()  # slots on their way, as the node itself tells

    @property
    def failing(self) -> bool:
        """Whether the node that told of it cannot reach it."""
        return bool(self.flags & _FAILING)

    @property
    def shown(self) -> str:
        """For people."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Shard:
    """A master that serves slots, and the nodes that follow it."""

    master: Node
    replicas: tuple[Node, ...] = field(compare=False)

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The slots that it serves."""
        return self.master.ranges

    @property
    def slots(self) -> frozenset[int]:
        """The same, one by one."""
        return frozenset(slot for first, last in self.ranges for slot in range(first, last + 1))


def parse_nodes(text: str, asked: Place) -> list[Node]:
    """The answer to CLUSTER NODES of the node `asked`, which may not know its own address. Raises EngineUnsupported."""
    try:
        return [_node(line.split(" "), asked) for line in text.splitlines() if line]
    except (ValueError, IndexError):
        raise EngineUnsupported(f"{asked.shown} answers CLUSTER NODES in an unknown form") from None


def _node(words: Sequence[str], asked: Place) -> Node:
    key, address, flags, master, _ping, _pong, epoch, _link, *slots = words
    address = address.partition(",")[0].partition("@")[0]
    host, _, port = address.rpartition(":")
    ranges, moving = [], []
    for slot in slots:
        if slot.startswith("["):
            moving.append(slot)
        else:
            first, _, last = slot.partition("-")
            ranges.append((int(first), int(last or first)))
    return Node(
        id=key,
        host=host or asked.host,
        port=int(port) or asked.port,
        flags=frozenset(flags.split(",")),
        master="" if master == "-" else master,
        epoch=int(epoch),
        ranges=tuple(sorted(ranges)),
        moving=tuple(moving),
    )


def target_of(target: Target, node: Node) -> Target:
    """How to enter another node of the cluster: as the one that is registered."""
    place = place_of(target)
    user = "" if place.user is None else f"{quote(place.user, safe='')}@"
    host = f"[{node.host}]" if ":" in node.host else node.host
    return replace(target, address=f"{'rediss' if place.tls else 'redis'}://{user}{host}:{node.port}")


def asked(wire: Wire, target: Target) -> list[Node]:
    """All nodes as the one behind `wire` tells them."""
    answer = wire.command("CLUSTER", "NODES")
    if not isinstance(answer, bytes):
        raise EngineUnsupported(f"{place_of(target).shown} answers CLUSTER NODES in an unknown form")
    return parse_nodes(answer.decode("utf-8", "replace"), place_of(target))


def settled_shards(target: Target, ambient: Ambient, patience: float = REPLY_SECONDS) -> list[Shard]:
    """The shards in order of their slots, each asked of its own master, the same of all, every slot served once.

    Raises EngineUnreachable if the cluster is not in that state now, and whatever a node cannot be entered by.
    """
    with open_wire(target, ambient, patience=patience) as wire:
        nodes = asked(wire, target)
    shards = _shards(nodes)
    _require_covered(shards)
    with ThreadPoolExecutor(AT_ONCE, "redis-topology") as pool:
        views = list(pool.map(lambda shard: _view(target_of(target, shard.master), ambient, patience), shards))
    for shard, view in zip(shards, views, strict=True):
        if [one.master for one in _shards(view)] != [one.master for one in shards]:
            raise EngineUnreachable(
                f"the nodes of the cluster do not agree on who serves what: {shard.master.shown} tells otherwise"
            )
        moving = [slot for node in view for slot in node.moving]
        if moving:
            raise EngineUnreachable(
                f"slots are being moved at {shard.master.shown} ({', '.join(moving[:3])}): try again when that is done"
            )
    return shards


def _view(target: Target, ambient: Ambient, patience: float) -> list[Node]:
    with open_wire(target, ambient, patience=patience) as wire:
        return asked(wire, target)


def _shards(nodes: Sequence[Node]) -> list[Shard]:
    """Flags differ by who is asked ("myself"), and so does what a node tells of moving slots: neither counts here."""
    following: dict[str, list[Node]] = {}
    for node in nodes:
        if node.master and not node.failing:
            following.setdefault(node.master, []).append(node)
    masters = [node for node in nodes if "master" in node.flags and node.ranges]
    return [
        Shard(replace(node, flags=node.flags & _FAILING, moving=()), tuple(following.get(node.id, ())))
        for node in sorted(masters, key=lambda node: node.ranges)
    ]


def _require_covered(shards: Sequence[Shard]) -> None:
    served = [slot for shard in shards for slot in shard.slots]
    if len(served) != SLOTS or len(set(served)) != SLOTS:
        missing = SLOTS - len(set(served))
        raise EngineUnreachable(f"{missing} of the cluster's {SLOTS} slots are served by no node: see CLUSTER INFO there")
    for shard in shards:
        if shard.master.failing:
            raise EngineUnreachable(f"the master {shard.master.shown} is failing: try again when another has taken its place")


def describe(shards: Sequence[Shard]) -> Iterator[str]:
    """Who serves what, for people."""
    for shard in shards:
        slots = ", ".join(f"{first}-{last}" for first, last in shard.ranges)
        yield f"{shard.master.shown} ({slots})"


def require_unchanged(before: Sequence[Shard], target: Target, ambient: Ambient) -> str:
    """Why the cluster is not as it was: "" if it is. Masters, their epochs and their slots count."""
    try:
        now = settled_shards(target, ambient)
    except EngineError as error:
        return str(error)
    if [shard.master for shard in now] != [shard.master for shard in before]:
        return f"the cluster changed: its slots are now served by {'; '.join(describe(now))}"
    return ""


def in_cluster_mode(wire: Wire) -> bool:
    """What HELLO tells, the one command that needs no right. A server that does not know it is none that is saved anyway."""
    try:
        answer = wire.command("HELLO")
    except EngineUnsupported:
        return False
    if not isinstance(answer, list):
        return False
    told = dict(zip(answer[::2], answer[1::2], strict=False))
    return told.get(b"mode") == b"cluster"


def is_cluster(target: Target, ambient: Ambient) -> bool:
    """The same of a target that is not connected yet."""
    with open_wire(target, ambient) as wire:
        return in_cluster_mode(wire)
