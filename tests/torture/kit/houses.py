"""The two forms of the service, each with everything around it that can fail: one process with SQLite and a directory on small
disks, and two processes that share a PostgreSQL and an S3 server."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path as Folder
from urllib.parse import quote

import httpx

from support.postgres import ROLE, PostgresServer, postgres_server
from support.seaweed import seaweed
from torture.kit.api import Api
from torture.kit.databases import Database, Load, MongoDatabase, RedisDatabase, stop_all, wait_for
from torture.kit.disks import MIB, Disk, small_disk
from torture.kit.faults import Fault, pausing, send
from torture.kit.paths import Path
from torture.kit.servers import Server
from torture.kit.stores import Books, BucketStore, FolderStore, PostgresBooks, SqliteBooks, Store
from torture.kit.story import Story
from torture.kit.users import Side, User

FORMS = ("embedded", "shared")
_DATA, _STORE = 96 * MIB, 192 * MIB  # the small disks
_KEYS = {"redis": 1600, "mongodb": 700}  # of each writer
_SIZE = {"redis": 2400, "mongodb": 3000}  # bytes of a value
_USERS = {"redis": 2, "mongodb": 1}  # each with a history of backups of its own
_RATE = {"redis": 60.0, "mongodb": 25.0}  # writes of each writer a second
_LIFE = 6.0  # seconds that a process of the service serves before it may be killed, at most
_START = 60.0  # seconds until a server must answer for the first time


@dataclass
class House:
    """A service with its surroundings, running and filled."""

    form: str
    servers: list[Server]
    store: Store
    books: Books
    faults: list[Fault]
    mended: Callable[[], None]  # waits until the surroundings answer after the last fault
    api: Api
    users: list[User] = field(default_factory=list)


@contextlib.contextmanager
def house(form: str, folder: Folder, seed: str, story: Story) -> Iterator[House]:
    """Builds one of the FORMS below `folder`; ends every process of it at the end."""
    with ExitStack() as stack:
        databases = _databases(stack, folder, seed)
        built = (_embedded if form == "embedded" else _shared)(stack, folder, story)
        for kind, three in databases.items():
            load = Load(three.source, _RATE[kind], partial(story.count, f"writes to {kind}"))
            stack.callback(load.close)
            built.faults += _database_faults(three.source, f"{kind} source")
            for number, target in enumerate(three.targets):
                side = _registered(stack, built, Side(f"{kind}-{number}", load, target, three.proof), story)
                built.users.append(User(built.api, side, story, random.Random(f"{seed} {side.name} user")))
            load.start()
        yield built


@dataclass(frozen=True, slots=True)
class _Databases:
    """Of one kind: what is backed up, one for each user to restore into, and one that only proofs touch."""

    source: Database
    targets: list[Database]
    proof: Database


def _databases(stack: ExitStack, folder: Folder, seed: str) -> dict[str, _Databases]:
    """All of both kinds, started side by side, the sources filled."""
    made: dict[str, _Databases] = {}
    for kind, create in (("redis", RedisDatabase), ("mongodb", MongoDatabase)):
        roles = ["source", "proof", *(f"target-{number}" for number in range(_USERS[kind]))]
        source, proof, *targets = (create(folder / f"{kind}-{role}", seed, _KEYS[kind], _SIZE[kind]) for role in roles)
        made[kind] = _Databases(source, list(targets), proof)
    every = [one for three in made.values() for one in (three.source, three.proof, *three.targets)]
    stack.callback(stop_all, every)
    with ThreadPoolExecutor(len(every)) as pool:
        list(pool.map(lambda one: one.start(), every))
    for three in made.values():
        three.source.fill()
    return made


def _registered(stack: ExitStack, built: House, side: Side, story: Story) -> Side:
    """Registers one user's three databases, the first two by way of proxies, and adds what can fail of those."""
    rnd = random.Random(side.name)
    ids = []
    for role, database in (("source", side.load.database), ("target", side.target), ("proof", side.proof)):
        port = database.port
        if role != "proof":
            path = Path(database.port)
            stack.callback(path.close)
            port = path.port
            built.faults += _path_faults(path, f"path of {side.name} to its {role}", 1.0 if role == "source" else 0.5)
        if role == "target":
            built.faults += _database_faults(database, f"target of {side.name}")
        told = database.target(port)
        body = {"name": f"{side.name}-{role}", "engine": database.kind, "address": told.address, "password": told.password}
        answer = built.api.insist(rnd, "POST", built.api.own("instances"), body)
        if answer.status != 201:
            raise RuntimeError(f"the {role} of {side.name} could not be registered: {answer}")
        ids.append(answer.body["id"])
    side.instance, side.target_instance, side.proof_instance = ids
    return side


# ---- what can fail of what every form has -------------------------------------------------------------------------------------


def _path_faults(path: Path, name: str, weight: float) -> list[Fault]:
    """Connections to a database break."""
    return [
        Fault("connections held", name, weight, (0.3, 4.0), lambda _: path.hold(), path.mend, "cuts"),
        Fault("connections cut", name, weight, (0.1, 0.2), lambda _: path.cut(), path.mend, "cuts"),
        Fault("connections refused", name, weight / 2, (0.5, 4.0), lambda _: path.away(), path.mend, "cuts"),
        Fault("connections slow", name, weight, (1.0, 5.0), lambda rnd: path.slow(rnd.uniform(0.002, 0.03)), path.mend, "cuts"),
        Fault(
            "connections cut after some bytes", name, weight, (1.0, 4.0),
            lambda rnd: path.cut_after(down=int(10 ** rnd.uniform(1, 6.7))), path.mend, "cuts",
        ),
        Fault(
            "connections cut after some bytes", name, weight / 2, (1.0, 3.0),
            lambda rnd: path.cut_after(up=int(10 ** rnd.uniform(1, 6.7))), path.mend, "cuts",
        ),
    ]  # fmt: skip


def _database_faults(database: Database, name: str) -> list[Fault]:
    def again() -> None:
        send(database.pid, signal.SIGCONT)
        if database.pid is None:
            database.start()
        wait_for(database)

    def kill(_: random.Random) -> None:
        database.kill()

    return [
        pausing(name, lambda: database.pid, 0.7, (0.3, 5.0), "engines stopped"),
        Fault("engines killed", name, 0.5 if database.kind == "redis" else 0.25, (0.1, 2.0), kill, again, "kills"),
    ]


def _server_faults(server: Server, weight: float, longest_stop: float) -> list[Fault]:
    def lived(rnd: random.Random) -> bool:
        """Most processes live for some seconds, on a slow machine too: else nothing would ever be under way."""
        return server.served_for() > rnd.uniform(0.0, _LIFE)

    def kill(rnd: random.Random) -> bool:
        if not lived(rnd):
            return False
        server.kill()
        return True

    def killed_while_starting(rnd: random.Random) -> None:
        server.kill()
        server.start()
        time.sleep(rnd.uniform(0.0, 1.8))
        server.kill()

    def term(rnd: random.Random) -> bool:
        if not lived(rnd):
            return False
        server.end()
        return True

    return [
        Fault("kills (SIGKILL)", server.name, 5 * weight, (0.0, 1.5), kill, server.start, "kills"),
        Fault("kills while it starts", server.name, weight, (0.0, 0.5), killed_while_starting, server.start, "kills"),
        pausing(server.name, lambda: server.pid, 4 * weight, (0.2, longest_stop), "stops (SIGSTOP, then SIGCONT)"),
        Fault("ends in order (SIGTERM)", server.name, weight, (0.0, 1.0), term, server.start),
    ]


def _wait_ready(servers: list[Server], api_ready: Callable[[Server], bool]) -> None:
    end = time.monotonic() + _START
    for server in servers:
        while not api_ready(server):
            if time.monotonic() > end:
                raise RuntimeError(f"{server.name} does not answer:\n{server.log.read_text('utf-8', 'replace')[-3000:]}")
            time.sleep(0.1)


def _answers(server: Server) -> bool:
    try:
        return httpx.get(f"{server.endpoint}/readyz", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _api(stack: ExitStack, servers: list[Server], story: Story) -> Api:
    """Starts the servers and enters with the credentials that the first start left in one of the folders."""
    for server in servers:
        stack.callback(server.close)
        server.start()
    _wait_ready(servers, _answers)
    told = next(file for server in servers if (file := server.folder / "credentials.json").exists())
    api = Api(servers, json.loads(told.read_text("utf-8")), story)
    stack.callback(api.close)
    return api


# ---- one process, SQLite and a directory ------------------------------------------------------------------------------------


def _embedded(stack: ExitStack, folder: Folder, story: Story) -> House:
    data_disk, store_disk = folder / "data-disk", folder / "store-disk"
    environ = {"STRONGROOM_STORE_URL": str(store_disk / "store"), "STRONGROOM_RATE_PER_USER": "off"}
    server = Server("server", data_disk / "data", environ, story)
    data = stack.enter_context(small_disk(data_disk, _DATA, lambda: server.pid))
    store = stack.enter_context(small_disk(store_disk, _STORE, lambda: server.pid))
    story.say(f"disks: {data.kind}")
    api = _api(stack, [server], story)
    faults = [
        *_server_faults(server, 2.0, 6.0), _filling(store, "store's disk", 3.0), _filling(data, "catalog's disk", 1.0),
        Fault("disk read-only", "store's disk", 3.0, (0.3, 4.0), lambda _: store.forbid(), store.mend, "store failures"),
    ]  # fmt: skip
    books = SqliteBooks(data_disk / "data" / "catalog.db")
    return House(
        "embedded", [server], FolderStore(store_disk / "store"), books, faults, lambda: _wait_ready([server], _answers), api
    )  # fmt: skip


def _filling(disk: Disk, name: str, weight: float) -> Fault:
    """From ten bytes to ten megabytes are left."""
    return Fault(
        "disk full", name, weight, (0.5, 6.0), lambda rnd: disk.fill(int(10 ** rnd.uniform(1, 7))), disk.mend, "store failures"
    )  # fmt: skip


# ---- two processes, PostgreSQL and S3 ---------------------------------------------------------------------------------------


def _shared(stack: ExitStack, folder: Folder, story: Story) -> House:
    postgres = stack.enter_context(postgres_server())
    bucket_server = stack.enter_context(seaweed(folder))
    store = BucketStore(bucket_server, "vault", folder / "weed" / "again.log")
    stack.callback(store.kill)
    database = postgres.create_database()
    key = secrets.token_hex(32)
    servers, faults = [], []
    for name in ("server-1", "server-2"):
        path = Path(int(bucket_server.endpoint.rpartition(":")[2]))
        stack.callback(path.close)
        environ = {
            **bucket_server.environment,
            "STRONGROOM_CATALOG_URL": postgres.url(database),
            "STRONGROOM_STORE_URL": f"s3://{bucket_server.bucket}/vault?endpoint={quote(f'http://127.0.0.1:{path.port}')}",
            "STRONGROOM_ROOT_KEY": key,
            "STRONGROOM_RATE_PER_USER": "off",
        }
        server = Server(name, folder / name, environ, story)
        servers.append(server)
        faults += [*_server_faults(server, 1.0, 14.0), *_store_path_faults(path, f"path from {name} to the store", 1.0)]
        faults.append(_late_puts(server, path))
    api = _api(stack, servers, story)

    def mended() -> None:
        store.wait_ready()
        _wait_ready(servers, _answers)

    faults += [*_store_faults(store), *_postgres_faults(postgres)]
    return House("shared", servers, store, PostgresBooks(postgres.folder, ROLE, database), faults, mended, api)


def _store_path_faults(path: Path, name: str, weight: float) -> list[Fault]:
    """The store answers with errors or not at all, its answers are lost, or puts arrive when nobody waits for them any more."""
    return [
        Fault("store answers 503", name, weight, (0.3, 4.0), lambda _: path.answer(503), path.mend, "store failures"),
        Fault("store answers 500", name, weight, (0.3, 4.0), lambda _: path.answer(500), path.mend, "store failures"),
        Fault("store's answers lost", name, 2 * weight, (0.3, 3.0), lambda _: path.deaf(), path.mend, "store failures"),
        Fault("store held, then delivered", name, 2 * weight, (0.5, 8.0), lambda _: path.hold(), path.mend, "store failures"),
        Fault("store refuses connections", name, weight, (0.5, 4.0), lambda _: path.away(), path.mend, "store failures"),
        Fault("store's connections cut", name, weight, (0.1, 0.2), lambda _: path.cut(), path.mend, "store failures"),
        Fault(
            "store's connections cut after some bytes", name, 2 * weight, (0.5, 4.0),
            lambda rnd: path.cut_after(up=int(10 ** rnd.uniform(2, 6.7))), path.mend, "store failures",
        ),
        Fault(
            "store's connections cut after some bytes", name, weight, (0.5, 4.0),
            lambda rnd: path.cut_after(down=int(10 ** rnd.uniform(2, 6.7))), path.mend, "store failures",
        ),
    ]  # fmt: skip


def _late_puts(server: Server, path: Path) -> Fault:
    """Killed while a put is on its way: that arrives when another process has taken its job over."""

    def begin(_: random.Random) -> bool:
        if not server.served_for():
            return False
        if not path.hold_a_put(4.0):
            path.mend()
            return False
        time.sleep(0.3)  # the rest of it
        server.kill()
        return True

    def end() -> None:
        path.mend()
        server.start()

    return Fault("kills while puts are on their way", server.name, 2.5, (2.0, 16.0), begin, end, "kills")


def _store_faults(store: BucketStore) -> list[Fault]:
    def restart() -> None:
        store.start()
        store.wait_ready()

    return [
        pausing("store's server", lambda: store.pid, 1.0, (0.3, 6.0), "store's server stopped"),
        Fault("store's server restarted", "store's server", 0.5, (0.2, 1.5), lambda _: store.end(), restart, "store failures"),
    ]


def _postgres_faults(postgres: PostgresServer) -> list[Fault]:
    def pid() -> int | None:
        return postgres.pid

    return [
        pausing("catalog's server", pid, 1.0, (0.3, 9.0), "catalog's server stopped"),
        Fault("catalog's server killed", "catalog's server", 0.7, (0.1, 2.0), lambda _: postgres.kill(), postgres.start, "kills"),
        Fault("catalog's server restarted", "catalog's server", 0.3, (0.1, 2.0), lambda _: postgres.stop(), postgres.start),
    ]
