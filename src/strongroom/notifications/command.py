"""One run of the operator's own program: the event as JSON on its standard input, no shell, no environment of ours, an end in
time.

The program is a setting of the server and of nobody else, since it runs as the server's user. What it prints goes to the log, up
to OUTPUT bytes. That it is to be told again is its exit status: anything but 0.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress

from strongroom.ambient import Ambient
from strongroom.notifications.posting import NotDelivered

log = logging.getLogger("strongroom.notifications")

SECONDS = 30.0
"""That a run may take; then it is killed with all that it has started."""

OUTPUT = 4096
"""Bytes of what it prints that the log gets."""

_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")  # of the environment: none of it is ours
_POLL = 0.1  # seconds


def run(words: Sequence[str], body: bytes, ambient: Ambient, check: Callable[[], None], seconds: float = SECONDS) -> None:
    """Runs it to its end. `check` is asked meanwhile, and what it raises ends the run. Raises NotDelivered."""
    environ = {name: os.environ[name] for name in _KEPT if name in os.environ}
    with tempfile.TemporaryFile() as event:
        event.write(body)
        event.seek(0)
        try:
            process = subprocess.Popen(
                list(words), stdin=event, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ, cwd="/",
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise NotDelivered(f"the command cannot be run: {error.strerror}") from error
    assert process.stdout is not None
    with process.stdout as out:
        os.set_blocking(out.fileno(), False)
        try:
            printed, ended = _follow(process, out.fileno(), ambient, check, seconds)
        except BaseException:
            _kill(process)
            raise
    if printed:
        log.info("the notification command printed: %s", printed.decode("utf-8", "backslashreplace").strip())
    if not ended:
        _kill(process)
        raise NotDelivered(f"the command did not end within {seconds:.0f} s")
    if process.returncode != 0:
        raise NotDelivered(f"the command ended with status {process.returncode}", process.returncode)


def _follow(
    process: subprocess.Popen[bytes], out: int, ambient: Ambient, check: Callable[[], None], seconds: float
) -> tuple[bytes, bool]:
    """The first of what it prints, and whether it ended in time: with its own process, not with whoever holds its output."""
    printed, end = b"", ambient.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        while ambient.monotonic() < end:
            check()
            over = process.poll() is not None
            data: bytes | None = None
            if selector.get_map():
                if selector.select(0 if over else _POLL):
                    with suppress(BlockingIOError):
                        data = os.read(out, 65536)
                    if data == b"":
                        selector.unregister(out)
            elif not over:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL)
            printed = (printed + (data or b""))[:OUTPUT]
            if over and not data:
                return printed, True
    return printed, False


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
