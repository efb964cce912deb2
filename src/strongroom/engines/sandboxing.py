"""Throw-away servers: a program that runs for as long as a block does, and never longer than this process.

Between us and the program stands a guardian, this module run by the same Python: it starts the program, and kills it when the
pipe from us ends, which the operating system sees to however our process ends.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from strongroom.ambient import Ambient
from strongroom.engines.base import Control, EngineError, EngineUnreachable, EngineUnsupported

START_SECONDS = 60.0
_TRIES = 3  # the port may be taken between our asking for it and the server's
_LOG = "log"
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")


def program(name: str, variable: str) -> str:
    """Where a server's program is: named by an environment variable, or on PATH. Raises EngineUnsupported."""
    found = os.environ.get(variable) or shutil.which(name)
    if found is None:
        raise EngineUnsupported(f"{name} is not installed where the worker runs: install it, or name it in {variable}")
    return found


@contextmanager
def running(
    command: Callable[[int], Sequence[str]], ready: Callable[[int], bool], folder: Path, control: Control, ambient: Ambient
) -> Iterator[int]:
    """Starts `command(port)` in the folder and yields the port once `ready(port)`; EngineError else, with the end of its log."""
    for left in reversed(range(_TRIES)):
        port = free_port()
        guardian = _started(command(port), folder)
        try:
            if not _came_up(guardian, ready, port, control, ambient):
                if left and guardian.poll() is not None:
                    continue
                said = (folder / _LOG).read_text("utf-8", "replace")[-1000:]
                raise EngineUnreachable(f"the throw-away server did not come up: {said}")
            yield port
            return
        finally:
            _end(guardian)


def _started(command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    guard = [sys.executable, "-m", "strongroom.engines.sandboxing", *command]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}  # secrets among them
    with open(os.open(folder / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
        return subprocess.Popen(
            guard, cwd=folder, env=ours, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )


def _came_up(
    guardian: subprocess.Popen[bytes], ready: Callable[[int], bool], port: int, control: Control, ambient: Ambient
) -> bool:
    deadline = ambient.monotonic() + START_SECONDS
    while ambient.monotonic() < deadline and guardian.poll() is None:
        control.check()
        try:
            if ready(port):
                return True
        except EngineError:
            pass
        ambient.sleep(0.1)
    return False


def _end(guardian: subprocess.Popen[bytes]) -> None:
    assert guardian.stdin is not None
    guardian.stdin.close()
    guardian.wait()


def free_port() -> int:
    """One on the loopback that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _guard(command: Sequence[str]) -> int:
    """The guardian's process: the program's status, or 0 once it was killed because the pipe has ended."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}  # a program may take settings from any other
    child = subprocess.Popen(command, env={**kept, "HOME": os.getcwd()}, stdin=subprocess.DEVNULL)

    def watch() -> None:
        sys.stdin.buffer.read()
        child.kill()

    threading.Thread(target=watch, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(_guard(sys.argv[1:]))
