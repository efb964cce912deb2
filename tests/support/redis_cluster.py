"""A real cluster for tests: several servers in cluster mode on loopback, slots divided among the masters, replicas if wanted."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from strongroom.engines.base import Target
from strongroom.engines.redis.topology import SLOTS, slot_of
from support.redis_server import RedisServer, redis_server

_BUS = 10_000  # the bus' port is the node's and this


def cluster_port() -> int:
    """A port that is free, and the one of its bus too."""
    while True:
        port = random.randrange(11_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", port + _BUS)):
            return port


class Cluster:
    """Masters, each with its replicas (`replicas[master's number]`)."""

    def __init__(self, masters: Sequence[RedisServer], replicas: Sequence[Sequence[RedisServer]]) -> None:
        self.masters = list(masters)
        self.replicas = [list(some) for some in replicas]

    @property
    def nodes(self) -> list[RedisServer]:
        """All of them."""
        return self.masters + [one for some in self.replicas for one in some]

    @property
    def target(self) -> Target:
        """Registered by the address of the first."""
        return Target(self.masters[0].address, self.masters[0].password)

    def serving(self, key: str) -> RedisServer:
        """The master whose slots, as divided at the start, the key is in."""
        return self.masters[slot_of(key.encode()) * len(self.masters) // SLOTS]

    def do(self, *words: Any) -> Any:
        """Runs a command whose first argument is a key where that is served."""
        with self.serving(str(words[1])).client() as client:
            return client.execute_command(*words)

    def set_many(self, pairs: dict[str, Any]) -> None:
        """SET of many keys."""
        for master in self.masters:
            with master.client() as client:
                pipe = client.pipeline(transaction=False)
                for key, value in pairs.items():
                    if self.serving(key) is master:
                        pipe.set(key, value)
                pipe.execute()

    def keys(self) -> set[bytes]:
        """Every key of every master."""
        found: set[bytes] = set()
        for master in self.masters:
            with master.client() as client:
                found.update(client.keys())
        return found

    def settle(self, seconds: float = 30) -> None:
        """Waits until every node says that all is well and all tell the same."""
        until(self._settled, seconds)

    def _settled(self) -> bool:
        views = set()
        for node in self.nodes:
            with node.client() as client:
                info = client.execute_command("CLUSTER", "INFO").decode().split()
                if "cluster_state:ok" not in info or f"cluster_known_nodes:{len(self.nodes)}" not in info:
                    return False
                told = client.execute_command("CLUSTER", "NODES").decode().splitlines()
                # Without what differs by who is asked and when: flags and times of the last answers.
                views.add(
                    tuple(
                        sorted(" ".join(word for n, word in enumerate(line.split()) if n in (0, 3, 6) or n > 7) for line in told)
                    )
                )
                if client.info("replication").get("master_link_status", "up") != "up":
                    return False
        return len(views) == 1


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Waits for something to come true."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(redis.RedisError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError("the cluster did not come to what was waited for")
        time.sleep(0.05)


@contextmanager
def redis_cluster(
    folder: Path, masters: int, replicas: int = 0, *, binary: str, password: str | None = None, **config: str
) -> Iterator[Cluster]:
    """A running cluster of `masters` with `replicas` each."""
    settings = {"cluster-enabled": "yes", "cluster-node-timeout": "3000", **config}
    if password is not None:
        settings["masterauth"] = password
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(redis_server(folder, settings | {"port": str(cluster_port())}, password=password, binary=binary))
            for _ in range(masters * (1 + replicas))
        ]
        cluster = Cluster(nodes[:masters], [nodes[masters + n * replicas : masters + (n + 1) * replicas] for n in range(masters)])
        _found(cluster)
        yield cluster


def _found(cluster: Cluster) -> None:
    count = len(cluster.masters)
    bounds = [-(-SLOTS * number // count) for number in range(count + 1)]  # serving() divides in the same way
    for number, master in enumerate(cluster.masters):
        with master.client() as client:
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            client.execute_command("CLUSTER", "ADDSLOTS", *range(bounds[number], bounds[number + 1]))
    for master in cluster.masters:
        with master.client() as client:
            for other in cluster.nodes:
                if other is not master:
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
    ids = [_id(master) for master in cluster.masters]
    for number, replicas in enumerate(cluster.replicas):
        for replica in replicas:
            until(lambda replica=replica, number=number: _follow(replica, ids[number]))  # type: ignore[misc]
    cluster.settle()


def _id(node: RedisServer) -> str:
    with node.client() as client:
        return str(client.execute_command("CLUSTER", "MYID").decode())


def _follow(replica: RedisServer, master: str) -> bool:
    with replica.client() as client:
        client.execute_command("CLUSTER", "REPLICATE", master)
    return True
