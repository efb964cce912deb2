"""The service's processes: killed, stopped and started again as an init system would."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from support.seaweed import free_ports
from torture.kit.story import Story

_AGAIN = 0.5  # seconds after which a process that ended by itself is started again
_RECORD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (\w+) (.*)$", re.MULTILINE)
_OUTAGE = re.compile(r"sqlalchemy\.exc\.(OperationalError|InterfaceError)")
_CUT_OFF = "timeout graceful shutdown exceeded"  # SIGTERM while requests wait for a database that does not answer


class Server:
    """`strongroom serve` on a data folder and one port, whichever process that is."""

    def __init__(self, name: str, folder: Path, environ: Mapping[str, str], story: Story) -> None:
        self.name, self.folder = name, folder
        self.port = free_ports(1)[0]
        self.log = story.folder / f"{name}.log"
        self._environ = {**os.environ, "PYTHONFAULTHANDLER": "1", **environ}
        self._story = story
        self._lock = threading.RLock()
        self._wanted = self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0
        self._served: float | None = None
        threading.Thread(target=self._watch, daemon=True, name=f"{name}-watch").start()

    @property
    def endpoint(self) -> str:
        """For clients."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of the process, if one runs."""
        with self._lock:
            return self._process.pid if self._process is not None and self._process.poll() is None else None

    def served_for(self) -> float:
        """Seconds since the process answered for the first time; 0 before, and where none runs."""
        with self._lock:
            if self.pid is None:
                return 0.0
            if self._served is None and b"listens on" in self.log.read_bytes()[self._log_from :]:
                self._served = time.monotonic()
            return 0.0 if self._served is None else time.monotonic() - self._served

    def start(self) -> None:
        """From now on a process is to run. Returns at once: it may take a second, and fail while its surroundings do."""
        with self._lock:
            self._wanted = True
            if self._process is None or self._process.poll() is not None:
                self._begin()

    def kill(self) -> None:
        """SIGKILL; none runs until `start`."""
        with self._lock:
            self._wanted = False
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """To the process, if one runs."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(number)

    def end(self, seconds: float = 40.0) -> int | None:
        """SIGTERM, and its exit status; None if none ran, or it had to be killed."""
        with self._lock:
            self._wanted = False
            if self._process is None or self._process.poll() is not None:
                return None
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(seconds)
            self.kill()
            return None

    def close(self) -> None:
        """For good."""
        self._closed = True
        self.kill()

    def troubles(self) -> list[str]:
        """What its log says of defects: errors, but for those whose cause is that the catalog's database was away or full, also
        while the server was ending."""
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        heads = [*_RECORD.finditer(text)]
        found = []
        for head, end in zip(heads, [*(one.start() for one in heads[1:]), len(text)], strict=True):
            body = text[head.end() : end].strip()
            odd = head[1] in ("ERROR", "CRITICAL") or "Traceback" in body
            excused = _OUTAGE.search(body) or _CUT_OFF in head[2] or _CUT_OFF in body
            if odd and ("ended in a defect" in head[2] or not excused):
                found.append(f"{head[1]} {head[2][:200]} … {body[-300:]}")
        return found

    def _begin(self) -> None:
        with self.log.open("ab") as log:
            self._log_from = log.tell()
            self._served = None
            self._process = subprocess.Popen(
                [sys.executable, "-m", "strongroom", "serve", "--data", str(self.folder), "--port", str(self.port)],
                env=self._environ, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._story.tell(self.name, f"process {self._process.pid} begins")
        self._story.count("processes of the service")

    def _watch(self) -> None:
        """Starts it again whenever it ended by itself; that it may only do while it starts, if its surroundings fail."""
        while not self._closed:
            time.sleep(0.1)
            self.served_for()
            with self._lock:
                if not self._wanted or self._process is None or self._process.poll() is None:
                    continue
                status = self._process.returncode
                said = self.log.read_bytes()[self._log_from :].decode("utf-8", "replace")
                self._story.tell(self.name, f"ended by itself, status {status}: {said.strip().splitlines()[-1:]}")
                self._story.count("starts that failed and were repeated")
                if "listens on" in said or status < 0:
                    self._story.breaks("a server serves until it is told to end", f"{self.name}: {status}, {said[-500:]}")
                self._process = None
            time.sleep(_AGAIN)
            with self._lock:
                if self._wanted and self._process is None:
                    self._begin()
