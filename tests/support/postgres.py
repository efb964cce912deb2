"""A real PostgreSQL for tests: on a Unix socket in a folder of its own, as a user that is not root, stopped by its own pid."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.processes import end

ROLE = "strongroom"
_START = 60.0  # seconds that a start or stop may take on a loaded machine


@cache
def programs() -> Path | None:
    """The folder of initdb and postgres, newest version first; None where PostgreSQL's server is not installed."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    for folder in [*versions, *([Path(on_path).resolve().parent] if on_path else [])]:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


def _user() -> str | None:
    """Whom the server runs as: PostgreSQL refuses root."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


class PostgresServer:
    """One server. Its data outlives `stop` and `kill`, so that a test can take the database away and give it back."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.folder = folder
        self._binaries = binaries
        self._user: dict[str, Any] = {}
        if user := _user():
            entry = pwd.getpwnam(user)
            os.chown(folder, entry.pw_uid, entry.pw_gid)
            self._user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    def initialise(self) -> None:
        """Makes the cluster's files."""
        command: list[str | Path] = [
            self._binaries / "initdb", "-D", self.folder / "data", "-A", "trust", "-U", ROLE, "-N", "-E", "UTF8", "--no-locale",
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **self._user)

    def url(self, database: str = "postgres") -> str:
        """For open_catalog."""
        return f"postgresql://{ROLE}@/{database}?host={self.folder}"

    @property
    def pid(self) -> int:
        """Of the running postmaster."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        options = {"listen_addresses": "", "fsync": "off", "max_connections": "200", "shared_buffers": "64MB"}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.folder / "data", "-k", self.folder, *settings],
                cwd=self.folder, stdout=log, stderr=log, **self._user,
            )  # fmt: skip
        until = time.monotonic() + _START
        while True:
            try:
                self._connect("postgres").close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-2000:]}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """Ends every session and the server, as an operator's restart does."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Ends the server as a crash does; the next start recovers."""
        self._end(signal.SIGQUIT)

    def _end(self, how: signal.Signals) -> None:
        end(self._process, how, _START)
        self._process = None

    def create_database(self, template: str | None = None) -> str:
        """A new database, empty or a copy of a template that nobody is connected to; returns its name."""
        name = f"test_{next(self._numbers)}"
        with self._connect("postgres") as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {template or 'template0'}".encode())
        return name

    def drop_database(self, name: str) -> None:
        """Removes a database and ends whoever is still connected to it."""
        with self._connect("postgres") as conn:
            conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())

    def _connect(self, database: str) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(host=str(self.folder), user=ROLE, dbname=database, autocommit=True)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server of our own, gone with its data at the end. Skips the test where PostgreSQL is not installed."""
    binaries = programs()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed")
    folder = Path(tempfile.mkdtemp(prefix="strongroom-pg-"))
    try:
        server = PostgresServer(binaries, folder)
        server.initialise()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
