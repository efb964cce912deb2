"""One node's JMX, through a small Java helper that stays connected.

The helper (NodeControl.java) is compiled once a process by the `javac` beside `java` (JAVA_HOME, else PATH), into a folder that
only we can read. It holds no class of Cassandra, and nothing is changed on the node: as it is delivered, a node's JMX listens on
its own loopback address, which is why the worker runs on the node's host.
"""

from __future__ import annotations

import atexit
import functools
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from strongroom.engines.base import EngineError, EngineUnreachable, EngineUnsupported

_SOURCE = Path(__file__).with_name("NodeControl.java")
_POLL = 0.5  # seconds between looks whether the job is to end
_LIGHT = ["-Xmx48m", "-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true"]


class JmxFailed(EngineError):
    """The node carried a request out and failed; `kind` is the class of its error."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"Cassandra says: {text} ({kind.rpartition('.')[2]})")
        self.kind = kind


class Jmx:
    """An open connection. A context manager, for one thread at a time."""

    def __init__(self, host: str, port: int, check: Callable[[], None] = lambda: None) -> None:
        self._place, self._check = f"{host}:{port}", check
        self._unread = b""
        command = [program("java"), *_LIGHT, "-cp", _classes(), "NodeControl", host, str(port)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            self._answer()
        except JmxFailed as error:
            self.close()
            raise EngineUnreachable(f"JMX of the node does not answer at {self._place}: {error}") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Jmx:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the helper. What the node is carrying out goes on there."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def read(self, *names: str) -> list[str]:
        """Attributes of the node's storage service; lists come with `|` between their items."""
        return self._ask("read", *names)

    def snapshot(self, tag: str, lifetime: str, names: list[str]) -> None:
        """Flushes and links all files of these keyspaces, or keyspace.tables.

        After `lifetime` ("30d") the node removes the links by itself."""
        self._ask("snapshot", tag, lifetime, *names)

    def tags(self) -> list[str]:
        """Of all snapshots on the node."""
        return [tag for tag in self._ask("tags") if tag]

    def clear(self, tag: str) -> None:
        """Removes a snapshot, of all keyspaces; none of this tag is no error."""
        self._ask("clear", tag)

    def load(self, folder: str) -> None:
        """Streams the SSTables in …/keyspace/table to the nodes that own their rows; returns when all of them have them."""
        self._ask("load", folder)

    def still(self, keyspace: str) -> None:
        """The files of a keyspace's tables stay as they are: nothing is compacted by itself until the node is started again."""
        self._ask("still", keyspace)

    def verify(self, keyspace: str, table: str) -> bool:
        """Reads all rows of all files of a table with their checksums. JmxFailed, or False, where one is damaged."""
        return self._ask("verify", keyspace, table) == ["0"]

    def _ask(self, *fields: str) -> list[str]:
        if any(mark in field for field in fields for mark in "\t\r\n"):
            raise EngineUnsupported("a path or a name holds a tab or a line feed")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(("\t".join(fields) + "\n").encode())
            self._process.stdin.flush()
        except OSError as error:
            raise EngineUnreachable(f"the connection to JMX at {self._place} was lost") from error
        return self._answer()

    def _answer(self) -> list[str]:
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], _POLL)
            self._check()
            if ready:
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise EngineUnreachable(f"the connection to JMX at {self._place} was lost")
                self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        kind, *fields = line.decode("utf-8", "replace").split("\t")
        if kind != "ok":
            raise JmxFailed(*(fields[:2] if len(fields) >= 2 else ("Error", "no reason is given")))
        return fields


def program(name: str) -> str:
    home = os.environ.get("JAVA_HOME")
    found = shutil.which(name, path=f"{home}/bin") if home else None
    found = found or shutil.which(name)
    if found is None:
        raise EngineUnsupported(
            f"there is no {name} on this host: install a JDK (17 as Cassandra's own, or later), or set JAVA_HOME"
        )
    return found


@functools.cache
def _classes() -> str:
    """The folder of the compiled helper."""
    folder = tempfile.mkdtemp(prefix="strongroom-jmx-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    done = subprocess.run(
        [program("javac"), "-J-Xmx96m", "-nowarn", "-Xlint:-unchecked", "-d", folder, str(_SOURCE)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise EngineUnsupported(f"javac could not compile the JMX helper: {done.stderr[-300:]}")
    return folder
