"""The databases under load: a real Redis and a real MongoDB, each with writers that never stop for long, and able to say what
they hold in a form that can be compared.

A writer's write counts only from the state before it, so that one which arrives late or twice changes nothing. Each write raises
its writer's counter in two places and a total of all writers, in one transaction with what it writes: every consistent cut
shows the counters equal, their sum as the total, and the data that belongs to them.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path as Folder
from typing import Any, Protocol

import redis
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from strongroom.engines.base import Target
from support.mongodb_server import MongoServer
from support.redis_server import RedisServer, binaries
from torture.kit.writings import Contents, Cut, Writing

WRITERS = 2
_PATIENCE = 30.0  # seconds that a client waits for an answer: longer than any engine is stopped


class Broken(Exception):
    """A database holds what no consistent cut can show."""


class Database(Protocol):
    """An engine of one kind with writers' data in it."""

    kind: str
    writings: list[Writing]

    def start(self) -> None:
        """Starts the process; its data is as it was."""

    def kill(self) -> None:
        """SIGKILL."""

    def stop(self) -> None:
        """Ends the process at the end of the run."""

    @property
    def pid(self) -> int | None:
        """Of the running process."""

    @property
    def port(self) -> int:
        """Where it listens."""

    def target(self, port: int) -> Target:
        """How the service enters it, by way of this port."""

    def fill(self) -> None:
        """The first write of every key, at once."""

    def write(self, writer: int, client: Any, number: int) -> bool:
        """One write, if the writer's counter stands just before it; whether it did."""

    def connect(self) -> Any:
        """A client; closed by its close()."""

    def count(self, writer: int, client: Any) -> int:
        """The writer's counter."""

    def contents(self) -> dict[str, bytes]:
        """All that it holds."""

    def empty(self) -> None:
        """Removes everything that a restore should bring back, and adds what it should remove."""

    def leftovers(self) -> str | None:
        """What a restore has left here that it should not have, in words."""

    def expected(self, cut: Cut) -> dict[str, bytes]:
        """All that a state of this cut holds."""


def cut_in(contents: Contents) -> Cut:
    """The cut that contents show. Raises Broken if their counters contradict each other."""
    try:
        counts = tuple(int(contents[f"count/{writer}"]) for writer in range(WRITERS))
        again = tuple(int(contents[f"again/{writer}"]) for writer in range(WRITERS))
        total = int(contents["total"])
    except KeyError as error:
        raise Broken(f"there is no {error}") from None
    if counts != again or sum(counts) != total:
        raise Broken(f"counters of several moments: {counts}, {again}, total {total}")
    return counts


# ---- Redis --------------------------------------------------------------------------------------------------------------

_WRITE = """
redis.call('SELECT', 0)
if redis.call('GET', 'count:' .. ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[3] == 'string' then redis.call('SET', KEYS[1], ARGV[4])
elseif ARGV[3] == 'hash' then for i = 4, #ARGV do redis.call('HSET', KEYS[1], 'f' .. (i - 4), ARGV[i]) end
elseif ARGV[3] == 'list' then for i = 4, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[i]) end
end
redis.call('INCR', 'count:' .. ARGV[1])
redis.call('SELECT', 1)
redis.call('INCR', 'again:' .. ARGV[1])
redis.call('INCR', 'total')
return 1
"""
_FIELDS = 4


class RedisDatabase:
    """A Redis that keeps every write in its append-only file, so that a kill loses none."""

    kind = "redis"

    def __init__(self, folder: Folder, seed: str, keys: int, size: int) -> None:
        folder.mkdir()
        self.writings = [Writing(f"{seed} redis {writer}", keys, size) for writer in range(WRITERS)]
        config = {"appendonly": "yes", "appendfsync": "no", "auto-aof-rewrite-percentage": "0"}
        self._server = RedisServer(binaries()[0], folder, config, password="password-of-redis")
        self._pid: int | None = None

    def start(self) -> None:
        self._server.start()
        with self.connect() as client:
            self._pid = int(client.info("server")["process_id"])

    def kill(self) -> None:
        self._server.kill()

    def stop(self) -> None:
        self._server.kill()  # its data is thrown away

    @property
    def pid(self) -> int | None:
        return self._pid if self._server.alive() else None

    @property
    def port(self) -> int:
        return self._server.port

    def target(self, port: int) -> Target:
        return Target(f"redis://127.0.0.1:{port}", "password-of-redis")

    def connect(self) -> Any:
        return self._server.client(socket_timeout=_PATIENCE)

    def fill(self) -> None:
        with self.connect() as client:
            for writer, writing in enumerate(self.writings):
                client.execute_command("SELECT", 0)
                client.set(f"count:{writer}", 0)
                for number in range(1, writing.keys + 1):
                    self.write(writer, client, number)

    def write(self, writer: int, client: Any, number: int) -> bool:
        key, value = self.writings[writer].at(number)
        kind = "removed" if value is None else _kind_of(key)
        return bool(client.eval(_WRITE, 1, f"{writer}:{key}", writer, number - 1, kind, *_pieces(kind, value or b"")) == 1)

    def count(self, writer: int, client: Any) -> int:
        return int(client.get(f"count:{writer}") or 0)

    def contents(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        with self.connect() as client:
            client.ping()  # which a server that is loading refuses, while INFO shows what it has loaded so far
            process = client.info("server")["run_id"]
            for name in client.info("keyspace"):
                number = int(name.removeprefix("db"))
                with self._server.client(db=number, socket_timeout=_PATIENCE) as each:
                    found |= {_name(number, key): value for key, value in _values(each)}
            if client.info("server")["run_id"] != process:
                raise redis.ConnectionError("it was started again while it was read: a scan then misses keys")
        return found

    def empty(self) -> None:
        with self.connect() as client:
            client.flushall()
            client.mset({f"of-before:{number}": b"x" * 100 for number in range(50)})

    def leftovers(self) -> str | None:
        with self.connect() as client:
            role, user = client.info("replication")["role"], client.config_get("masteruser")["masteruser"]
        return None if role == "master" and not user else f"it is a {role} and masteruser is {user!r}"

    def expected(self, cut: Cut) -> dict[str, bytes]:
        wanted = {"total": str(sum(cut)).encode()}
        for writer, count in enumerate(cut):
            wanted[f"count/{writer}"] = wanted[f"again/{writer}"] = str(count).encode()
            for key, value in self.writings[writer].after(count).items():
                wanted[f"0/{writer}:{key}"] = b"\n".join([_kind_of(key).encode(), *_pieces(_kind_of(key), value)])
        return wanted


def _kind_of(key: int) -> str:
    return {1: "hash", 2: "list"}.get(key % 8, "string")


def _pieces(kind: str, value: bytes) -> list[bytes]:
    if kind not in ("hash", "list"):
        return [value]
    step = -(-len(value) // _FIELDS)
    return [value[at : at + step] for at in range(0, len(value), step)]


def _name(number: int, key: bytes) -> str:
    text = key.decode()
    if text == "total" or text.startswith(("count:", "again:")):
        return text.replace(":", "/")
    return f"{number}/{text}"


def _values(client: Any) -> Iterator[tuple[bytes, bytes]]:
    keys = list(client.scan_iter(count=1000))
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.type(key)
    kinds = [kind.decode() for kind in pipe.execute()]
    readers: dict[str, Callable[[bytes], Any]] = {
        "string": pipe.get, "hash": pipe.hgetall, "list": lambda key: pipe.lrange(key, 0, -1)
    }  # fmt: skip
    for key, kind in zip(keys, kinds, strict=True):
        readers[kind](key)
    for key, kind, value in zip(keys, kinds, pipe.execute(), strict=True):
        if kind == "string" and b":" in key and not key.startswith((b"count:", b"again:")):
            yield key, b"string\n" + value
        elif kind == "string":
            yield key, value
        else:
            pieces = [value[name] for name in sorted(value)] if kind == "hash" else value
            yield key, b"\n".join([kind.encode(), *pieces])


# ---- MongoDB --------------------------------------------------------------------------------------------------------------


class MongoDatabase:
    """A MongoDB of one node, written to in transactions over two databases, each journalled before it is answered."""

    kind = "mongodb"

    def __init__(self, folder: Folder, seed: str, keys: int, size: int) -> None:
        folder.mkdir()
        self.writings = [Writing(f"{seed} mongodb {writer}", keys, size) for writer in range(WRITERS)]
        self._server = MongoServer(str(folder), oplog_mib=990)

    def start(self) -> None:
        self._server.start()

    def kill(self) -> None:
        self._server.kill()

    def stop(self) -> None:
        self._server.kill()  # its data is thrown away

    @property
    def pid(self) -> int | None:
        return None if self._server.process is None else self._server.process.pid

    @property
    def port(self) -> int:
        return self._server.port

    def target(self, port: int) -> Target:
        told = self._server.target("admin")
        return Target(f"mongodb://admin@127.0.0.1:{port}/?directConnection=true", told.password)

    def connect(self) -> Any:
        return self._server.client(socketTimeoutMS=int(_PATIENCE * 1000), retryWrites=False)

    def fill(self) -> None:
        with self.connect() as client:
            for writer, writing in enumerate(self.writings):
                items = client["shop"][f"items{writer}"]
                items.create_index("written")
                items.insert_many([_document(writing, number) for number in range(1, writing.keys + 1)])
                client["shop"]["counts"].insert_one({"_id": writer, "n": writing.keys})
                client["books"]["counts"].insert_one({"_id": writer, "n": writing.keys})
            client["books"]["counts"].insert_one({"_id": "total", "n": sum(writing.keys for writing in self.writings)})

    def write(self, writer: int, client: MongoClient[Any], number: int) -> bool:
        writing = self.writings[writer]
        key, value = writing.at(number)

        def change(session: Any) -> bool:
            counts, items = client["shop"]["counts"], client["shop"][f"items{writer}"]
            before = counts.update_one({"_id": writer, "n": number - 1}, {"$inc": {"n": 1}}, session=session)
            if before.modified_count != 1:
                return False
            if value is None:
                items.delete_one({"_id": key}, session=session)
            else:
                items.replace_one({"_id": key}, _document(writing, number), upsert=True, session=session)
            for name in (writer, "total"):
                client["books"]["counts"].update_one({"_id": name}, {"$inc": {"n": 1}}, session=session)
            return True

        with client.start_session() as session:
            return bool(session.with_transaction(change))

    def count(self, writer: int, client: MongoClient[Any]) -> int:
        return int((client["shop"]["counts"].find_one({"_id": writer}) or {"n": 0})["n"])

    def contents(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        with self.connect() as client:
            for name in client.list_database_names():
                if name in ("admin", "local", "config"):
                    continue
                for collection in client[name].list_collection_names():
                    found |= _documents(name, collection, client[name][collection])
        return found

    def empty(self) -> None:
        with self.connect() as client:
            for name in client.list_database_names():
                if name not in ("admin", "local", "config"):
                    client.drop_database(name)
            client["old"]["of-before"].insert_many([{"n": number} for number in range(50)])

    def leftovers(self) -> str | None:
        with self.connect() as client:
            left = [name for name in client["admin"].list_collection_names() if not name.startswith("system.")]
        return f"admin holds {left}" if left else None

    def expected(self, cut: Cut) -> dict[str, bytes]:
        wanted = {"total": str(sum(cut)).encode()}
        for writer, count in enumerate(cut):
            wanted[f"count/{writer}"] = wanted[f"again/{writer}"] = str(count).encode()
            wanted[f"shop/items{writer}/indexes"] = b"_id_ written_1"
            for key, value in self.writings[writer].after(count).items():
                wanted[f"shop/items{writer}/{key}"] = value
        wanted["shop/counts/indexes"] = wanted["books/counts/indexes"] = b"_id_"
        return wanted


def _document(writing: Writing, number: int) -> dict[str, Any]:
    key, value = writing.at(number)
    return {"_id": key, "written": number, "body": value}


def _documents(database: str, name: str, collection: Any) -> dict[str, bytes]:
    here = f"{database}/{name}"
    found = {f"{here}/indexes": " ".join(sorted(collection.index_information())).encode()}
    for one in collection.find():
        if name == "counts":
            word = "total" if one["_id"] == "total" else f"{'count' if database == 'shop' else 'again'}/{one['_id']}"
            found[word] = str(one["n"]).encode()
        else:
            found[f"{here}/{one['_id']}"] = bytes(one.get("body") or b"")
    return found


# ---- the load -------------------------------------------------------------------------------------------------------------


class Load:
    """Writers on one database, so many writes a second each, until it is closed. Counts what was written."""

    def __init__(self, database: Database, rate: float, wrote: Callable[[], None]) -> None:
        self.database = database
        self._pause, self._wrote = 1.0 / rate, wrote
        self._ending = threading.Event()
        self._turns = [threading.Lock() for _ in range(WRITERS)]
        self._counts = [0] * WRITERS
        self._threads = [
            threading.Thread(target=self._go_on, args=(writer,), daemon=True, name=f"{database.kind}-writer-{writer}")
            for writer in range(WRITERS)
        ]

    def start(self) -> None:
        """Begins to write."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the writers."""
        self._ending.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_PATIENCE + 5)

    @property
    def acknowledged(self) -> Cut:
        """What the database has acknowledged: it holds at least that."""
        return tuple(self._counts)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Nobody writes within the block."""
        with contextlib.ExitStack() as held:
            for turn in self._turns:
                held.enter_context(turn)
            yield

    def read(self) -> Cut:
        """The counters as they stand in the database. Raises the client's errors."""
        with self.database.connect() as client:
            return tuple(self.database.count(writer, client) for writer in range(WRITERS))

    def _go_on(self, writer: int) -> None:
        pauses = random.Random(writer)
        while not self._ending.is_set():
            with contextlib.suppress(redis.RedisError, PyMongoError, OSError), self.database.connect() as client:
                self._counts[writer] = max(self._counts[writer], self.database.count(writer, client))
                while not self._ending.wait(self._pause * 2 * pauses.random()):
                    with self._turns[writer]:
                        number = self._counts[writer] + 1
                        if not self.database.write(writer, client, number):
                            break  # one of before arrived late: look again
                        self._counts[writer] = number
                    self._wrote()
            self._ending.wait(0.2)


def stop_all(databases: list[Database]) -> None:
    """Ends every process, whatever the one before met."""
    for database in databases:
        with contextlib.suppress(Exception):
            database.stop()


def wait_for(database: Database, seconds: float = 30.0) -> None:
    """Waits until the database answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            with database.connect() as client:
                database.count(0, client)
            return
        except (redis.RedisError, PyMongoError, OSError):
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
