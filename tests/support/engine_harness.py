"""What the behaviour suite needs of an engine: two servers of it that can be filled, changed, asked and killed.

A further engine joins by one class that does what EngineHarness says, and its place in HARNESSES.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import bson
import pytest
import redis
from pymongo import MongoClient

from strongroom.engines.base import Engine, Target
from strongroom.engines.cassandra import CassandraEngine
from strongroom.engines.cassandra.jmx import Jmx
from strongroom.engines.cassandra.schema import quoted as identifier
from strongroom.engines.influxdb import InfluxEngine
from strongroom.engines.mongodb import MongoEngine
from strongroom.engines.redis import RedisEngine
from support.cassandra_node import LIB, VERSION, CassandraNode, cassandra_is_here, require_cassandra
from support.cassandra_samples import drop_all, insert, picture
from support.influxdb_server import BINARY, InfluxServer, influx_server, quoted
from support.mongodb_samples import description, put, without_standing_users
from support.mongodb_server import ROLES, MongoServer, find_mongod, running
from support.redis_server import RedisServer, few_binaries, label_of, redis_server

Side = Literal["source", "other"]

RECORDS, RECORD_BYTES = 4000, 1000
TINY = 50_000
WEEK = 7 * 86_400 * 10**9


class EngineHarness(Protocol):
    """Two running servers; every method is about one side of them. `content` and what it returns are compared by ==."""

    engine: Engine
    programs: Mapping[str, str]  # environment that leads a test restore to the engine's program
    odd_names: Sequence[str]  # of whatever the engine lets users name: keys, collections, tables
    huge: int  # bytes of the largest value that it takes
    filling: str  # the phase of a restore in which the target takes data

    def target(self, side: Side) -> Target:
        """How the service enters: with all rights that it needs for captures and restores."""

    def stranger(self, side: Side, password: str) -> Target:
        """The same with this password, which is wrong."""

    def wipe(self, side: Side) -> None:
        """Empties it."""

    def fill(self, side: Side) -> None:
        """RECORDS records of about RECORD_BYTES random bytes each."""

    def change(self, side: Side) -> None:
        """Changes one in a hundred of what `fill` put, wherever they lie."""

    def put(self, side: Side, name: str, value: bytes) -> None:
        """One value under a name."""

    def get(self, side: Side, name: str) -> bytes | None:
        """It; None if there is none."""

    def put_tiny(self, side: Side, count: int) -> None:
        """Many values of a few bytes."""

    def content(self, side: Side) -> Any:
        """All that it holds, by the server's own digests where it has them."""

    def kill(self, side: Side) -> None:
        """As a crash does. Its data need not outlive it."""

    def start(self, side: Side) -> None:
        """After `kill`."""

    def writing(self, side: Side) -> Any:
        """A context manager: writers that keep an invariant, until it ends; their errors fail the test. `begin` comes before."""

    def require_invariant(self, side: Side) -> None:
        """What the writers keep holds of the data that is there."""


LONG = "l" * 255
NAMES = ("with space", "dots..in.it", "quo\"te's", "ünïcödé 数据 🗝", "per%2Fcent/back\\slash", "UPPER lower", "a?b#c&d=e:f*[x]")


class Writers:
    """Threads that do one thing again and again."""

    def __init__(self, *works: Callable[[random.Random, int], None]) -> None:
        self._stop, self.errors, self.rounds = threading.Event(), list[BaseException](), 0
        self._threads = [threading.Thread(target=self._run, args=(number, work)) for number, work in enumerate(works)]

    def _run(self, number: int, work: Callable[[random.Random, int], None]) -> None:
        dice, count = random.Random(number), 0
        try:
            while not self._stop.is_set():
                work(dice, count)
                count += 1
                self.rounds += 1
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        while self.rounds < 10 and not self.errors:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self.errors, self.errors


class RedisHarness:
    """Two Redis servers of one version."""

    engine: Engine = RedisEngine()
    odd_names = (*NAMES, LONG, "", "\r\n$EOF:\0")
    huge = 64 << 20
    filling = "send"

    def __init__(self, stack: ExitStack, folder: Path, binary: str) -> None:
        self.programs = {"STRONGROOM_REDIS_SERVER": binary}
        self._servers: dict[str, RedisServer] = {}
        for side in ("source", "other"):
            self._servers[side] = stack.enter_context(redis_server(folder, password="of-a-test", binary=binary))

    @staticmethod
    def variants() -> list[Any]:
        return [pytest.param((RedisHarness, one), id=label_of(one)) for one in few_binaries()]

    def _client(self, side: Side, db: int = 0) -> redis.Redis:
        return self._servers[side].client(db=db)

    def target(self, side: Side) -> Target:
        return Target(self._servers[side].address, self._servers[side].password)

    def stranger(self, side: Side, password: str) -> Target:
        return Target(self._servers[side].address, password)

    def wipe(self, side: Side) -> None:
        with self._client(side) as client:
            client.flushall()

    def fill(self, side: Side) -> None:
        dice = random.Random(1)
        with self._client(side) as client:
            client.mset({f"key:{number:06}": dice.randbytes(RECORD_BYTES) for number in range(RECORDS)})
        with self._client(side, 3) as client:
            client.hset("hash", mapping={f"field {number}": number for number in range(2000)})

    def change(self, side: Side) -> None:
        dice = random.Random(2)
        with self._client(side) as client:
            client.mset({f"key:{number:06}": dice.randbytes(RECORD_BYTES) for number in range(0, RECORDS, 100)})

    def put(self, side: Side, name: str, value: bytes) -> None:
        with self._client(side) as client:
            client.set(name, value)

    def get(self, side: Side, name: str) -> bytes | None:
        with self._client(side) as client:
            found: Any = client.get(name)
            return found  # type: ignore[no-any-return]

    def put_tiny(self, side: Side, count: int) -> None:
        with self._client(side) as client:
            for first in range(0, count, 10_000):
                client.mset({str(number): number for number in range(first, min(first + 10_000, count))})

    def content(self, side: Side) -> Any:
        with self._client(side) as client:
            spaces = {name: one["keys"] for name, one in client.info("keyspace").items()}
            return client.execute_command("DEBUG", "DIGEST"), spaces

    def kill(self, side: Side) -> None:
        self._servers[side].kill()

    def start(self, side: Side) -> None:
        self._servers[side].start()

    @contextmanager
    def writing(self, side: Side) -> Iterator[None]:
        """Money moves from one account to another in transactions, each with an entry in a journal."""
        clients = [self._client(side) for _ in range(2)]
        clients[0].mset({f"account:{number}": 1000 for number in range(50)} | {"transfers": 0})

        def move(client: redis.Redis, dice: random.Random) -> None:
            amount = dice.randrange(1, 50)
            with client.pipeline(transaction=True) as pipe:
                pipe.decrby(f"account:{dice.randrange(50)}", amount)
                pipe.incrby(f"account:{dice.randrange(50)}", amount)
                pipe.incr("transfers")
                pipe.rpush("journal", amount)
                pipe.execute()

        works = [lambda dice, _count, client=client: move(client, dice) for client in clients]
        try:
            with Writers(*works):
                yield
        finally:
            for client in clients:
                client.close()

    def require_invariant(self, side: Side) -> None:
        with self._client(side) as client:
            accounts = client.mget([f"account:{number}" for number in range(50)])
            assert sum(int(one) for one in accounts) == 50_000
            assert int(client.get("transfers")) == client.llen("journal") > 0


class MongoHarness:
    """Two MongoDB replica sets of one node each."""

    engine: Engine = MongoEngine()
    odd_names = (*NAMES, "l" * 240)  # with its database a name has 255 bytes at most
    huge = 16 * 1024 * 1024 - len(bson.encode({"_id": "x" * 10, "value": b""}))
    filling = "data"

    def __init__(self, stack: ExitStack, folder: Path, binary: str) -> None:
        del folder
        self.programs = {"STRONGROOM_MONGOD": binary}
        self._servers: dict[str, MongoServer] = {side: stack.enter_context(running()) for side in ("source", "other")}

    @staticmethod
    def variants() -> list[Any]:
        found = find_mongod()
        return [pytest.param((MongoHarness, found), id="mongodb")] if found else []

    def _client(self, side: Side) -> MongoClient[Any]:
        return self._servers[side].client()

    def target(self, side: Side) -> Target:
        return self._servers[side].target("admin")

    def stranger(self, side: Side, password: str) -> Target:
        return self._servers[side].target("admin", password)

    def wipe(self, side: Side) -> None:
        self._servers[side].wipe()

    def fill(self, side: Side) -> None:
        dice = random.Random(1)
        with self._client(side) as client:
            client["shop"]["orders"].insert_many(
                [{"_id": number, "n": number % 7, "body": dice.randbytes(RECORD_BYTES)} for number in range(RECORDS)]
            )
            client["shop"]["orders"].create_index("n")
            client["other"]["things"].insert_many([{"_id": number} for number in range(2000)])

    def change(self, side: Side) -> None:
        dice = random.Random(2)
        with self._client(side) as client:
            for number in range(0, RECORDS, 100):
                client["shop"]["orders"].update_one({"_id": number}, {"$set": {"body": dice.randbytes(RECORD_BYTES)}})

    def put(self, side: Side, name: str, value: bytes) -> None:
        with self._client(side) as client:
            put(client["odd_Nämes-1"], name, {"_id": 1, "value": value})

    def get(self, side: Side, name: str) -> bytes | None:
        with self._client(side) as client:
            found = client["odd_Nämes-1"].command({"find": name, "limit": 1})["cursor"]["firstBatch"]
            return found[0]["value"] if found else None

    def put_tiny(self, side: Side, count: int) -> None:
        with self._client(side) as client:
            client["tiny"]["c"].insert_many([{"_id": number} for number in range(count)])

    def content(self, side: Side) -> Any:
        with self._client(side) as client:
            return without_standing_users(description(client), {f"admin.{user}" for user in ROLES})

    def kill(self, side: Side) -> None:
        self._servers[side].kill()

    def start(self, side: Side) -> None:
        self._servers[side].start()

    @contextmanager
    def writing(self, side: Side) -> Iterator[None]:
        """Money moves from one collection's documents to another's in transactions, each with an entry in a journal."""
        with self._client(side) as client:
            bank = client["bank"]
            for name in ("left", "right"):
                bank[name].insert_many([{"_id": number, "money": 1000} for number in range(50)])
            bank["counter"].insert_one({"_id": "transfers", "n": 0})
            bank.create_collection("journal")

            def move(dice: random.Random, _count: int) -> None:
                amount = dice.randrange(1, 50)

                def transfer(session: Any) -> None:
                    bank["left"].update_one({"_id": dice.randrange(50)}, {"$inc": {"money": -amount}}, session=session)
                    bank["right"].update_one({"_id": dice.randrange(50)}, {"$inc": {"money": amount}}, session=session)
                    bank["counter"].update_one({"_id": "transfers"}, {"$inc": {"n": 1}}, session=session)
                    bank["journal"].insert_one({"amount": amount}, session=session)

                with client.start_session() as session:
                    session.with_transaction(transfer)

            with Writers(move, move):
                yield

    def require_invariant(self, side: Side) -> None:
        with self._client(side) as client:
            bank = client["bank"]
            money = [one["money"] for name in ("left", "right") for one in bank[name].find()]
            assert (len(money), sum(money)) == (100, 100_000)
            assert bank["counter"].find_one()["n"] == bank["journal"].count_documents({}) > 0


class InfluxHarness:
    """Two InfluxDB servers. Values are texts of measurements in one database, in shards of a week."""

    engine: Engine = InfluxEngine()
    odd_names = (*NAMES, LONG)
    huge = 11 << 20  # a request has 25 MB at most, and a text is twice as long as the bytes that it stands for
    filling = "data"

    def __init__(self, stack: ExitStack, folder: Path, binary: str) -> None:
        self.programs = {"STRONGROOM_INFLUXD": binary}
        self._servers: dict[str, InfluxServer] = {
            side: stack.enter_context(influx_server(folder, auth=True)) for side in ("source", "other")
        }

    @staticmethod
    def variants() -> list[Any]:
        return [pytest.param((InfluxHarness, BINARY), id="influxdb")] if BINARY else []

    def target(self, side: Side) -> Target:
        return self._servers[side].target()

    def stranger(self, side: Side, password: str) -> Target:
        return Target(self._servers[side].address, password)

    def wipe(self, side: Side) -> None:
        for name in self._servers[side].databases():
            self._servers[side].query(f'DROP DATABASE "{name}"')

    def fill(self, side: Side) -> None:
        self._write(side, "orders", range(RECORDS), 1)
        self._write_lines(side, [f"things,number={number % 50} v={number}i {number * 10**9}" for number in range(2000)])

    def change(self, side: Side) -> None:
        self._write(side, "orders", range(0, RECORDS, 100), 2)

    def _write(self, side: Side, name: str, numbers: range, seed: int) -> None:
        dice = random.Random(seed)
        step = 8 * WEEK // RECORDS
        self._write_lines(side, [f'{name} body="{dice.randbytes(RECORD_BYTES).hex()}" {number * step}' for number in numbers])

    def _write_lines(self, side: Side, lines: Sequence[str]) -> None:
        self._servers[side].query("CREATE DATABASE data")
        for first in range(0, len(lines), 5000):
            self._servers[side].write("data", lines[first : first + 5000])

    def put(self, side: Side, name: str, value: bytes) -> None:
        escaped = name.replace(",", "\\,").replace(" ", "\\ ")
        self._write_lines(side, [f'{escaped} value="{value.hex()}" 1'])

    def get(self, side: Side, name: str) -> bytes | None:
        found = self._servers[side].query(f"SELECT value FROM {quoted(name)}", "data")  # noqa: S608
        return bytes.fromhex(found[0]["values"][0][1]) if found else None

    def put_tiny(self, side: Side, count: int) -> None:
        self._write_lines(side, [f"tiny v={number}i {number}" for number in range(count)])

    def content(self, side: Side) -> Any:
        return self._servers[side].description()

    def kill(self, side: Side) -> None:
        self._servers[side].kill()

    def start(self, side: Side) -> None:
        self._servers[side].start()

    @contextmanager
    def writing(self, side: Side) -> Iterator[None]:
        """Two measurements of one shard, which is what is exact at one moment: a point in turns, each a request of its own."""

        def write(_dice: random.Random, count: int) -> None:
            for name in ("first", "second"):
                self._write_lines(side, [f"{name} v={count}i {count}"])

        with Writers(write):
            yield

    def require_invariant(self, side: Side) -> None:
        found = [self._servers[side].query(f"SELECT v FROM {name}", "data")[0]["values"] for name in ("first", "second")]  # noqa: S608
        assert all(values == [[number, number] for number in range(len(values))] for values in found)
        assert 0 <= len(found[0]) - len(found[1]) <= 1


class CassandraHarness:
    """Two clusters of one Cassandra node. A value is in a table of its name where Cassandra lets a table be called so, else in a
    column of its name, in the row of its name."""

    engine: Engine = CassandraEngine()
    odd_names = (*NAMES, LONG, "l" * 48, "MixedCase", "mixedcase", "select", "")
    huge = (4 << 20) - 4096  # a mutation has half a commit log segment at most, here of 8 MiB, with what is around the value
    filling = "load"

    def __init__(self, stack: ExitStack, folder: Path, binary: str) -> None:
        require_cassandra()
        self.programs = {"STRONGROOM_CASSANDRA": binary}
        self._nodes: dict[str, CassandraNode] = {}
        self._ids: dict[str, str] = {}
        for side in ("source", "other"):
            node = self._nodes[side] = CassandraNode(folder / side, auth=True)
            stack.callback(node.kill)
        with ThreadPoolExecutor() as pool:
            list(pool.map(CassandraNode.start, self._nodes.values()))
        for side, node in self._nodes.items():
            with Jmx("127.0.0.1", node.jmx_port) as jmx:
                (self._ids[side],) = jmx.read("LocalHostId")

    @staticmethod
    def variants() -> list[Any]:
        return [pytest.param((CassandraHarness, str(LIB.parent)), id=f"cassandra-{VERSION}")] if cassandra_is_here() else []

    def target(self, side: Side) -> Target:
        return self.stranger(side, "cassandra")

    def stranger(self, side: Side, password: str) -> Target:
        return Target(self._nodes[side].url, password, node=self._ids[side])

    def wipe(self, side: Side) -> None:
        with self._nodes[side].session() as session:
            drop_all(session)

    def _made(self, session: Any, table: str, columns: str) -> None:
        session.execute(
            "CREATE KEYSPACE IF NOT EXISTS shop WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}"
        )
        session.execute(f"CREATE TABLE IF NOT EXISTS shop.{table} ({columns})")

    def fill(self, side: Side) -> None:
        with self._nodes[side].session() as session:
            self._made(session, "orders", "id int PRIMARY KEY, n int, body blob")
            session.execute("CREATE INDEX IF NOT EXISTS orders_n ON shop.orders (n)")
            self._write(session, range(RECORDS), 1)
            self._made(session, "things", "id int PRIMARY KEY, tags set<text>")
            rows = [(number, {f"tag {number % 9}"}) for number in range(2000)]
            insert(session, "INSERT INTO shop.things (id, tags) VALUES (?, ?)", rows)

    def change(self, side: Side) -> None:
        with self._nodes[side].session() as session:
            self._write(session, range(0, RECORDS, 100), 2)

    def _write(self, session: Any, numbers: range, seed: int) -> None:
        dice = random.Random(seed)
        rows = [(number, number % 7, dice.randbytes(RECORD_BYTES)) for number in numbers]
        insert(session, "INSERT INTO shop.orders (id, n, body) VALUES (?, ?, ?)", rows)

    def put(self, side: Side, name: str, value: bytes) -> None:
        with self._nodes[side].session() as session:
            if re.fullmatch("[A-Za-z0-9_]{1,48}", name):
                self._made(session, f'"{name}"', "id text PRIMARY KEY, value blob")
                insert(session, f'INSERT INTO shop."{name}" (id, value) VALUES (?, ?)', [(name, value)])  # noqa: S608 (a name of our own)
                return
            column = identifier(name or "no name")  # a column has one, a key has a byte at least, a clustering key none
            self._made(session, "odd", "id text, more text, PRIMARY KEY (id, more)")
            session.execute(f"ALTER TABLE shop.odd ADD IF NOT EXISTS {column} blob")
            statement = f"INSERT INTO shop.odd (id, more, {column}) VALUES (?, ?, ?)"  # noqa: S608 (a name of our own)
            insert(session, statement, [(name or "none", name, value)])

    def get(self, side: Side, name: str) -> bytes | None:
        with self._nodes[side].session() as session:
            if re.fullmatch("[A-Za-z0-9_]{1,48}", name):
                found = session.execute(f'SELECT value FROM shop."{name}"').one()  # noqa: S608 (a name of our own)
            else:
                asked = session.prepare(f"SELECT {identifier(name or 'no name')} FROM shop.odd WHERE id = ? AND more = ?")  # noqa: S608
                found = session.execute(asked, (name or "none", name)).one()
            return found[0] if found else None

    def put_tiny(self, side: Side, count: int) -> None:
        """A hundred to a partition, each partition's in one mutation."""
        with self._nodes[side].session() as session:
            self._made(session, "tiny", "part int, id int, PRIMARY KEY (part, id)")
            row = "INSERT INTO shop.tiny (part, id) VALUES (?, ?);"
            parts = [[value for id_ in range(100) for value in (part, id_)] for part in range(count // 100)]
            insert(session, f"BEGIN UNLOGGED BATCH {row * 100} APPLY BATCH", parts)

    def content(self, side: Side) -> Any:
        with self._nodes[side].session() as session:
            return picture(session)

    def kill(self, side: Side) -> None:
        self._nodes[side].kill()

    def start(self, side: Side) -> None:
        self._nodes[side].start()

    @contextmanager
    def writing(self, side: Side) -> Iterator[None]:
        """What is exact at one moment is one table on one node: two writers, each with a table of its own.

        A round moves money between two accounts of a partition, in one mutation; the next begins when it is acknowledged."""
        with self._nodes[side].session() as session:
            for table in ("first", "second"):
                self._made(
                    session, f"bank_{table}", "part int, round int, account text, money int, PRIMARY KEY (part, round, account)"
                )

            def mover(table: str) -> Callable[[random.Random, int], None]:
                row = f"INSERT INTO shop.bank_{table} (part, round, account, money) VALUES (?, ?, ?, ?);"  # noqa: S608 (our own words)
                both = session.prepare(f"BEGIN UNLOGGED BATCH {row * 2} APPLY BATCH")

                def move(dice: random.Random, count: int) -> None:
                    amount, part = dice.randrange(1, 50), count % 10
                    session.execute(both, (part, count, "from", -amount, part, count, "to", amount))

                return move

            with Writers(mover("first"), mover("second")):
                yield

    def require_invariant(self, side: Side) -> None:
        with self._nodes[side].session() as session:
            for table in ("first", "second"):
                rows = list(session.execute(f"SELECT round, money FROM shop.bank_{table}"))  # noqa: S608 (our own words)
                assert sum(row.money for row in rows) == 0
                assert sorted(row.round for row in rows) == [one // 2 for one in range(len(rows))]
                assert rows or table == "second"


HARNESSES = [*RedisHarness.variants(), *MongoHarness.variants(), *InfluxHarness.variants(), *CassandraHarness.variants()]
