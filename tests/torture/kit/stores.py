"""Looking at store and catalog from outside, past the service: what is there, by name and size."""

from __future__ import annotations

import html
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import httpx
import psycopg

from support.seaweed import Seaweed

_ENTRY = re.compile(r"<Contents>.*?<Key>(.*?)</Key>.*?<Size>(\d+)</Size>.*?</Contents>", re.DOTALL)
_NEXT = re.compile(r"<NextContinuationToken>(.*?)</NextContinuationToken>")


class Store(Protocol):
    """Where the objects are."""

    def objects(self) -> dict[str, int]:
        """Every object, as name → bytes."""

    def unfinished(self) -> list[str]:
        """What puts have left that never ended."""


class FolderStore:
    """A directory store, walked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def objects(self) -> dict[str, int]:
        return _files(self._folder / "objects")

    def unfinished(self) -> list[str]:
        return sorted(_files(self._folder / ".strongroom-partial"))


def _files(root: Path) -> dict[str, int]:
    found = {}
    for path in root.rglob("*"):
        try:
            if path.is_file():
                found[str(path.relative_to(root))] = path.stat().st_size
        except FileNotFoundError:
            continue
    return found


class BucketStore:
    """A bucket below a prefix, listed by plain requests past every proxy; and its server's process."""

    def __init__(self, server: Seaweed, prefix: str, log: Path) -> None:
        self._server, self._prefix, self._log = server, prefix, log
        self._process = server.process

    def objects(self) -> dict[str, int]:
        found: dict[str, int] = {}
        query = {"list-type": "2", "prefix": f"{self._prefix}/"}
        while True:
            answer = self._server.ask("GET", f"/{self._server.bucket}", query)
            answer.raise_for_status()
            for name, size in _ENTRY.findall(answer.text):
                found[html.unescape(name).removeprefix(f"{self._prefix}/")] = int(size)
            more = _NEXT.search(answer.text)
            if more is None:
                return {name: size for name, size in found.items() if not name.endswith("/")}
            query["continuation-token"] = html.unescape(more[1])

    def unfinished(self) -> list[str]:
        answer = self._server.ask("GET", f"/{self._server.bucket}", {"uploads": ""})
        return re.findall(r"<UploadId>(.*?)</UploadId>", answer.text)

    @property
    def pid(self) -> int | None:
        """Of the server's process."""
        return self._process.pid if self._process.poll() is None else None

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """SIGTERM, and by force after a while."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def start(self) -> None:
        """Starts it again on its data; it answers some seconds later."""
        if self._process.poll() is None:
            return
        with self._log.open("ab") as log:
            arguments: Sequence[Any] = self._server.process.args  # type: ignore[assignment]
            self._process = subprocess.Popen(arguments, cwd=self._log.parent, stdout=log, stderr=log, start_new_session=True)

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Waits until it answers a listing."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.objects()
                return
            except httpx.HTTPError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)


class Books(Protocol):
    """The catalog, read by plain SQL."""

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""


_TABLES = ("installation", "lineage", "backup", "part", "pack", "decision", "deletion", "object", "holding", "job")


def write_down(books: Books, store: Store, file: Path) -> None:
    """All that catalog and store show now, for whoever looks into a failure when both are gone."""
    with file.open("w", encoding="utf-8") as out:
        for table in _TABLES:
            out.write(f"---- {table}\n")
            out.writelines(f"{row}\n" for row in books.rows(f"SELECT * FROM {table}"))  # noqa: S608 (names of our own)
        out.write("---- store\n")
        out.writelines(f"{name} {size}\n" for name, size in sorted(store.objects().items()))


class SqliteBooks:
    """A catalog in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._file, timeout=30)) as conn:
            return conn.execute(query).fetchall()


class PostgresBooks:
    """A catalog in PostgreSQL."""

    def __init__(self, folder: Path, role: str, database: str) -> None:
        self._where = {"host": str(folder), "user": role, "dbname": database}

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(**self._where, autocommit=True) as conn:  # type: ignore[arg-type]
            return conn.execute(query.encode()).fetchall()
