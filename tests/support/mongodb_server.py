"""A MongoDB for tests: a one-node replica set with key-file authentication on a free loopback port.

`shared(0)`, `shared(1)` are started once per test process and reused; `source, other = wiped(0), wiped(1)` in a test module are
fixtures that give them clean; `running()` is for tests that kill or restart theirs. Users: `admin` (root), `keeper` (only the
`backup` role), `filler` (only `restore`), `nobody` (no role at all).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure

from strongroom.engines.base import Target
from support.processes import end

PASSWORDS = {"admin": "pw admin:/@1", "keeper": "pw keeper%2", "filler": "pw filler 3", "nobody": "pw nobody 4"}
ROLES: dict[str, list[str]] = {"admin": ["root"], "keeper": ["backup"], "filler": ["restore"], "nobody": []}


def find_mongod() -> str | None:
    """The server's program: MONGOD, on PATH, or inside the wheel of the `engines` dependency group."""
    named = os.environ.get("MONGOD") or shutil.which("mongod")
    if named:
        return named
    spec = importlib.util.find_spec("fiftyone")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        program = Path(folder) / "db" / "bin" / "mongod"
        if program.exists():
            return str(program)
    return None


needs_mongod = pytest.mark.skipif(find_mongod() is None, reason="needs a mongod")
"""The mark of test modules that start servers."""


class MongoServer:
    """One mongod process and its folder."""

    def __init__(
        self, folder: str, *, replica_set: bool = True, oplog_mib: int | None = None, config_server: bool = False
    ) -> None:
        self.folder = folder
        self.config_server = config_server
        self.replica_set = replica_set
        self.oplog_mib = oplog_mib
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """The URL without a user."""
        return f"mongodb://127.0.0.1:{self.port}/"

    def target(self, user: str, password: str | None = None, **options: Any) -> Target:
        """How the engine is told to enter as one of the users."""
        return Target(f"mongodb://{user}@127.0.0.1:{self.port}/", password or PASSWORDS[user], options)

    def client(self, user: str = "admin", password: str | None = None, **options: Any) -> MongoClient[Any]:
        """A client of its own; the caller closes it."""
        options.setdefault("serverSelectionTimeoutMS", 5000)
        return MongoClient(self.address, username=user, password=password or PASSWORDS[user], authSource="admin", **options)

    def start(self) -> None:
        """Starts the process; the first time also makes the replica set and the users."""
        program = find_mongod()
        if program is None:
            raise RuntimeError("no mongod found")
        data = Path(self.folder) / "data"
        fresh = not data.exists()
        data.mkdir(exist_ok=True)
        command = [program, "--dbpath", str(data), "--port", str(self.port), "--bind_ip", "127.0.0.1"]
        command += ["--wiredTigerCacheSizeGB", "0.5", "--logpath", f"{self.folder}/log", "--logappend"]
        command += ["--nounixsocket", "--setParameter", "diagnosticDataCollectionEnabled=false"]
        command += ["--setParameter", "ttlMonitorEnabled=false"]
        if self.replica_set:
            command += ["--replSet", "rs0", "--keyFile", self._key_file()]
        else:
            command += ["--auth"]
        if self.config_server:
            command += ["--configsvr"]
        if self.oplog_mib:
            command += ["--oplogSize", str(self.oplog_mib)]
            if self.oplog_mib < 100:
                command += ["--syncdelay", "1"]  # seconds between checkpoints: the oplog is cut only up to the last one
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        if fresh:
            self._found()
        else:
            self._wait_for_primary()

    def stop(self) -> None:
        """Ends the process in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process as a crash does."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stops and starts again on the same data and port."""
        self.stop()
        self.start()

    def wipe(self) -> None:
        """Drops every database, and every user and role but those made at the start."""
        with self.client() as client:
            for name in client.list_database_names():
                if name == "admin":
                    for collection in client.admin.list_collection_names():
                        if not collection.startswith("system."):
                            client.admin.drop_collection(collection)
                elif name not in ("local", "config"):
                    client.drop_database(name)
            for user in client.admin.command("usersInfo", {"forAllDBs": True})["users"]:
                if not (user["db"] == "admin" and user["user"] in ROLES):
                    client[user["db"]].command("dropUser", user["user"])
            for role in list(client.admin["system.roles"].find()):
                client[role["db"]].command("dropRole", role["role"])

    def _found(self) -> None:
        """Right after the first start: only the localhost exception lets us in, until the first user exists."""
        with MongoClient[Any](self.address, directConnection=True, serverSelectionTimeoutMS=20000) as client:
            if self.replica_set:
                members = [{"_id": 0, "host": f"127.0.0.1:{self.port}"}]
                role = {"configsvr": True} if self.config_server else {}
                client.admin.command("replSetInitiate", {"_id": "rs0", "members": members, **role})
                _until(lambda: bool(client.admin.command("hello")["isWritablePrimary"]))
            client.admin.command("createUser", "admin", pwd=PASSWORDS["admin"], roles=ROLES["admin"])
        with self.client() as client:
            for user in ("keeper", "filler", "nobody"):
                client.admin.command("createUser", user, pwd=PASSWORDS[user], roles=ROLES[user])

    def _wait_for_primary(self) -> None:
        with MongoClient[Any](self.address, directConnection=True, serverSelectionTimeoutMS=20000) as client:
            _until(lambda: bool(client.admin.command("hello")["isWritablePrimary"]))

    def _key_file(self) -> str:
        path = Path(self.folder) / "key"
        if not path.exists():
            path.write_text("a key for tests only, the same everywhere".replace(" ", "").replace(",", ""))
            path.chmod(0o400)
        return str(path)

    def _end(self, number: signal.Signals) -> None:
        end(self.process, number, 30)
        self.process = None


@contextlib.contextmanager
def running(*, replica_set: bool = True, oplog_mib: int | None = None, config_server: bool = False) -> Iterator[MongoServer]:
    """A server of one's own, ended and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="mongodb-", ignore_cleanup_errors=True) as folder:
        server = MongoServer(folder, replica_set=replica_set, oplog_mib=oplog_mib, config_server=config_server)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@functools.cache
def shared(number: int = 0) -> MongoServer:
    """A server that lives as long as the test process; the same number is the same server."""
    del number
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(running())


def wiped(number: int) -> Any:
    """A fixture: the shared server of this number, clean before and after."""

    @pytest.fixture
    def server() -> Iterator[MongoServer]:
        found = shared(number)
        found.wipe()
        yield found
        found.wipe()

    return server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OperationFailure, ConnectionFailure):
            if condition():
                return
        time.sleep(0.05)
    raise TimeoutError("the server did not come up")
