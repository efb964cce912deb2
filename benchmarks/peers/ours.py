"""Strongroom as two more tools, driven through its shipped code (benchmarks/strongroom_tool.py).

strongroom          each command is a process of its own: with the floor of starting Python and opening the catalog
strongroom-open     one service process stays open, as in production, and is told what to do over a socket
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.commands import Argv, Commands, Cost
from benchmarks.peers.tools import Stream, Tool

_COMMAND = (sys.executable, "-m", "benchmarks.strongroom_tool")


class Strongroom(Tool):
    """A delete frees by itself: there is no second step to ask for."""

    name = "strongroom"
    modes = ("default",)

    def init(self) -> list[Argv]:
        return [self._words("init")]

    def backup(self, tree: Path, tag: str) -> Argv:
        return self._words("backup", str(tree), tag)

    def backup_stream(self, tree: Path, tag: str) -> Argv:
        return self._words("backup-stream", str(tree), tag)

    def id_of(self, cost: Cost, tag: str) -> str:
        del tag
        return str(json.loads(cost.out)["id"]) if cost.out.startswith("{") else ""

    def delete(self, backup: str) -> Argv:
        return self._words("delete", backup)

    def free(self, mode: str) -> list[Argv]:
        del mode
        return []

    def restore(self, backup: str, to: Path) -> Argv:
        return self._words("restore", backup, str(to))

    def check(self) -> Argv:
        return self._words("check")

    def _words(self, *words: str) -> Argv:
        return [*_COMMAND, str(self.root), *words]


class StrongroomOpen(Strongroom):
    """The same words, sent to a process that stays open."""

    name = "strongroom-open"

    def __init__(self, root: Path, commands: Commands) -> None:
        super().__init__(root, commands)
        self._process: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        self._process = subprocess.Popen([*_COMMAND, str(self.root), "serve"])
        deadline = time.monotonic() + 60
        while not self._socket.exists():
            assert self._process.poll() is None, "the service did not start"
            assert time.monotonic() < deadline, "the service does not come up"
            time.sleep(0.02)

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
            self._socket.unlink(missing_ok=True)

    def init(self) -> list[Argv]:
        return []

    def free(self, mode: str) -> list[Argv]:
        del mode
        return [self._words("wait")]

    def run(self, words: Argv) -> Cost:
        with self._ask(words) as sock:
            return _answer(sock)

    def stream(self, tree: Path, tag: str, work: Path) -> Stream:
        del work
        return _OpenStream(self._ask(self.backup_stream(tree, tag)))

    def _words(self, *words: str) -> Argv:
        return list(words)

    def _ask(self, words: Argv) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self._socket))
        sock.sendall(json.dumps(list(words)).encode() + b"\n")
        return sock

    @property
    def _socket(self) -> Path:
        return self.state / "s"


class _OpenStream(Stream):
    """A stream over the service's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def write(self, data: bytes) -> None:
        self._sock.sendall(data)

    def finish(self) -> Cost:
        self._sock.shutdown(socket.SHUT_WR)
        with self._sock:
            return _answer(self._sock)


def _answer(sock: socket.socket) -> Cost:
    with sock.makefile("rb") as file:
        told: dict[str, Any] = json.loads(file.readline())
    return Cost(**told)


OURS: dict[str, type[Tool]] = {tool.name: tool for tool in (Strongroom, StrongroomOpen)}
