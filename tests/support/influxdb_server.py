"""Real InfluxDB 1.x servers for tests: the `influxd` of PATH (Debian's package `influxdb`)."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from strongroom.engines.base import Summary, Target
from strongroom.engines.influxdb import InfluxEngine
from support.processes import end
from support.redis_dumps import MemoryBackup, Quiet
from support.redis_server import free_port

BINARY = shutil.which("influxd")
needs_influxd = pytest.mark.skipif(BINARY is None and not os.environ.get("CI"), reason="no influxd on PATH (Debian: influxdb)")

ADMIN, ADMIN_PASSWORD = "root", "root's password"
ENGINE = InfluxEngine()


class InfluxServer:
    """One server process in a folder of its own. With `auth` an administrator is made at the first start."""

    def __init__(
        self,
        folder: Path,
        *,
        auth: bool = False,
        settings: Mapping[str, str] | None = None,
        certificate: tuple[str, str] | None = None,
    ) -> None:
        self.folder, self.auth, self._settings, self._certificate = folder, auth, dict(settings or {}), certificate
        self.port, self.backup_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        trust: Any = ssl.create_default_context(cafile=certificate[0]) if certificate else True
        scheme = "https" if certificate else "http"
        self._client = httpx.Client(base_url=f"{scheme}://127.0.0.1:{self.port}", trust_env=False, timeout=60, verify=trust)

    @property
    def address(self) -> str:
        """For a Target: the whole server, as its administrator where there are users."""
        return self.at()

    def at(self, database: str = "", user: str | None = None) -> str:
        """For a Target: one database, or another user than the administrator."""
        who = user if user is not None else ADMIN if self.auth else ""
        scheme = "influxdbs" if self._certificate else "influxdb"
        return f"{scheme}://{who}{'@' if who else ''}127.0.0.1:{self.port}/{database}?backup=127.0.0.1:{self.backup_port}"

    def target(self, database: str = "") -> Target:
        """The whole server or one database of it."""
        return Target(self.at(database), ADMIN_PASSWORD if self.auth else None)

    @property
    def log(self) -> str:
        """All that the server has written."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts the process and waits until it answers."""
        assert BINARY is not None, "no influxd on PATH: install Debian's package influxdb"
        config = self.folder / "influxdb.conf"
        config.write_text(self._config())
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([BINARY, "-config", str(config)], cwd=self.folder, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while not self._answers():
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError(f"influxd did not start: {self.log[-2000:]}")
            time.sleep(0.02)
        if self.auth:
            self._client.auth = (ADMIN, ADMIN_PASSWORD)
            made = f"CREATE USER {ADMIN} WITH PASSWORD '{escaped(ADMIN_PASSWORD)}' WITH ALL PRIVILEGES"
            self._client.post("/query", data={"q": made})

    def _answers(self) -> bool:
        try:
            return self._client.get("/ping").status_code == 204
        except httpx.HTTPError:
            return False

    def _config(self) -> str:
        return f"""
reporting-disabled = true
bind-address = "127.0.0.1:{self.backup_port}"
[meta]
  dir = "{self.folder}/meta"
[data]
  dir = "{self.folder}/data"
  wal-dir = "{self.folder}/wal"
  query-log-enabled = false
  {os.linesep.join(f"{name} = {value}" for name, value in self._settings.items())}
[http]
  bind-address = "127.0.0.1:{self.port}"
  auth-enabled = {str(self.auth).lower()}
  {self._tls()}
  log-enabled = false
[monitor]
  store-enabled = false
[continuous_queries]
  log-enabled = false
"""

    def _tls(self) -> str:
        if self._certificate is None:
            return ""
        certificate, key = self._certificate
        return f'https-enabled = true\n  https-certificate = "{certificate}"\n  https-private-key = "{key}"'

    def stop(self) -> None:
        """Ends the process in good order, if it still runs."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process as a crash does."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        end(self._process, how, 20)
        self._process = None

    def close(self) -> None:
        """The client's connections."""
        self._client.close()

    def query(self, statement: str, database: str = "") -> list[dict[str, Any]]:
        """The series that a statement gives."""
        answer = self._client.post("/query", data={"q": statement, "db": database, "epoch": "ns"})
        found = []
        for result in answer.json()["results"]:
            assert "error" not in result, f"{statement}: {result['error']}"
            found += result.get("series", [])
        return found

    def write(self, database: str, lines: Iterable[str], policy: str = "") -> None:
        """Points in line protocol."""
        answer = self._client.post("/write", params={"db": database, "rp": policy}, content="\n".join(lines).encode())
        assert answer.status_code == 204, answer.text

    def flush(self, database: str) -> None:
        """Has the server write what it holds in memory into files, by a backup that is thrown away."""
        ENGINE.capture(self.target(database), MemoryBackup(), Quiet(), "")

    def databases(self) -> list[str]:
        """All but the server's own."""
        return sorted(row[0] for one in self.query("SHOW DATABASES") for row in one.get("values", []) if row[0] != "_internal")

    def description(self) -> dict[str, Any]:
        """All that can be told of every database: policies, queries, subscriptions, and each point with its tags."""
        return {name: self.describe(name) for name in self.databases()}

    def describe(self, database: str) -> dict[str, Any]:
        """One database."""
        policies = sorted(rows(self.query(f"SHOW RETENTION POLICIES ON {quoted(database)}")))
        points = {}
        for policy, *_ in policies:
            found = self.query(f"SELECT * FROM {quoted(database)}.{quoted(policy)}./.*/ GROUP BY *")  # noqa: S608
            points[policy] = {
                (one["name"], *sorted(pair for pair in one.get("tags", {}).items() if pair[1])): (one["columns"], one["values"])
                for one in found
            }
        return {
            "policies": policies,
            "queries": self.queries(database),
            "subscriptions": self.subscriptions(database),
            "points": points,
        }

    def queries(self, database: str) -> list[list[Any]]:
        """Name and text of a database's continuous queries."""
        return [row for one in self.query("SHOW CONTINUOUS QUERIES") if one["name"] == database for row in one.get("values", [])]

    def subscriptions(self, database: str) -> list[list[Any]]:
        """Policy, name, mode and destinations of a database's subscriptions."""
        return [row for one in self.query("SHOW SUBSCRIPTIONS") if one["name"] == database for row in one.get("values", [])]

    def count(self, database: str, what: str) -> int:
        """A count of one field, e.g. `"v" from "cpu"`."""
        field, _, place = what.partition(" from ")
        found = rows(self.query(f"SELECT count({field}) FROM {place}", database))  # noqa: S608
        return int(found[0][1]) if found else 0


def rows(series: list[dict[str, Any]]) -> list[list[Any]]:
    """The rows of all series."""
    return [row for one in series for row in one.get("values", [])]


def quoted(name: str) -> str:
    """An identifier; the tests' own way to write it."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def escaped(text: str) -> str:
    """For a string in single quotes."""
    return text.replace("\\", "\\\\").replace("'", "\\'")


@contextmanager
def influx_server(
    folder: Path,
    *,
    auth: bool = False,
    settings: Mapping[str, str] | None = None,
    certificate: tuple[str, str] | None = None,
) -> Iterator[InfluxServer]:
    """A running server in a new folder below this one, ended with the block."""
    place = folder / f"influxdb-{free_port()}"
    place.mkdir(parents=True)
    server = InfluxServer(place, auth=auth, settings=settings, certificate=certificate)
    try:
        server.start()
        yield server
    finally:
        server.close()
        server.stop()


class InfluxBackup(MemoryBackup):
    """A backup in memory that also keeps the capture's summary."""

    summary = Summary(0, 0)


class At(Quiet):
    """A job in which something happens once, at this many bytes of a phase."""

    def __init__(self, phase: str, done: int, action: Callable[[], object]) -> None:
        super().__init__()
        self._phase, self._done, self._action = phase, done, action
        self.happened = False

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        super().progress(phase, done, total)
        assert total is None or done <= total
        if not self.happened and phase == self._phase and done >= self._done:
            self.happened = True
            self._action()


def captured(target: Target, control: Quiet | None = None) -> InfluxBackup:
    """Takes a backup."""
    backup = InfluxBackup()
    backup.summary = ENGINE.capture(target, backup, control or Quiet(), "")
    return backup


def restored(target: Target, backup: InfluxBackup, control: Quiet | None = None) -> Summary:
    """Restores one."""
    return ENGINE.restore(target, backup, backup.summary.facts, control or Quiet(), "")
