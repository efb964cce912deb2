"""Ending servers that tests have started."""

from __future__ import annotations

import signal
import subprocess


def end(process: subprocess.Popen[bytes] | None, how: signal.Signals, seconds: float) -> None:
    """Sends the signal and waits for the end; killed where it does not come in time. None, or one that has ended, is no error."""
    if process is None:
        return
    process.send_signal(how)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
