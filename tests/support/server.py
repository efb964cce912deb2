"""A real server process on a free loopback port, and the public SDK's client for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkgaussdbfornosql.v3 import GaussDBforNoSQLClient, ListJobsRequest


class ServerProcess:
    """`strongroom serve` on a data folder."""

    def __init__(self, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._environ = {**os.environ, **(environ or {})}
        self._log = folder.parent / f"{folder.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> ServerProcess:
        """Starts it and waits until it answers."""
        begin = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "strongroom", "serve", "--data", str(self.folder), "--port", "0"],
                env=self._environ, stdout=log, stderr=log,
            )  # fmt: skip
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the server ended:\n{self.log[begin:]}"
            if "listens on" in self.log[begin:] and self._ready():
                return self
            time.sleep(0.05)
        raise AssertionError(f"the server does not answer:\n{self.log[begin:]}")

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.credentials['endpoint']}/readyz", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    @property
    def credentials(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / "credentials.json").read_text("utf-8"))
        return found

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                return self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self.process.returncode

    def __enter__(self) -> ServerProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    # ---- clients ------------------------------------------------------------------------------------------------------

    def sdk(self) -> GaussDBforNoSQLClient:
        """The public SDK's client with this server's keys."""
        told = self.credentials
        keys = BasicCredentials(told["access_key"], told["secret_key"], told["project_id"])
        return GaussDBforNoSQLClient.new_builder().with_credentials(keys).with_endpoint(told["endpoint"]).build()

    def cli(self, *words: str, stdin: str | None = None, status: int = 0) -> Any:
        """Runs the command line with --json and returns what it says."""
        done = subprocess.run(
            [sys.executable, "-m", "strongroom", *words, "--data", str(self.folder), "--json"],
            input=stdin, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def wait(self, job_id: str, seconds: float = 60) -> Any:
        """The job as the SDK shows it once it has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            (job,) = self.sdk().list_jobs(ListJobsRequest(id=job_id)).jobs
            if job.status != "Running":
                return job
            time.sleep(0.1)
        raise AssertionError(f"job {job_id} still runs:\n{self.log[-3000:]}")

    def store_size(self) -> int:
        """Bytes of all objects of the directory store."""
        return sum(path.stat().st_size for path in (self.folder / "store" / "objects").rglob("*") if path.is_file())
