"""Something that is told: a real HTTP server on a free loopback port, as good or as bad as its paths say.

/ok         204
/twice…     500 the first time, then 200
/redirect   302 to /secret
/hang       takes the request and never answers
/drip       answers a byte of an endless header now and then
/large      answers 200 with a body that does not end
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from strongroom.notifications.posting import sign


@dataclass(frozen=True, slots=True)
class Told:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.content)
        return found

    def is_signed(self, secret: str) -> bool:
        """Whether who knows the secret has sent just this, within the last minute."""
        timestamp = int(self.headers["X-Strongroom-Timestamp"])
        fresh = abs(time.time() - timestamp) < 60
        return fresh and f"v1={sign(secret, timestamp, self.content)}" in self.signatures

    @property
    def signatures(self) -> list[str]:
        """All that it came with."""
        return self.headers["X-Strongroom-Signature"].split(",")


@dataclass
class Receiver:
    """A running one."""

    port: int
    scheme: str = "http"
    told: list[Told] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str = "/ok", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def events(self, name: str, path: str | None = None) -> list[Told]:
        """What it was told of this event."""
        return [one for one in list(self.told) if one.body["event"] == name and path in (None, one.path)]

    def wait_for(self, name: str, count: int = 1, path: str | None = None, seconds: float = 30) -> list[Told]:
        """The first `count` times that it was told of this event."""
        end = time.monotonic() + seconds
        while len(found := self.events(name, path)) < count:
            assert time.monotonic() < end, f"told of {[one.body['event'] for one in self.told]}, not {count} times of {name}"
            time.sleep(0.05)
        return found


@contextmanager
def receiver(port: int = 0, certificate: tuple[Path, Path] | None = None) -> Iterator[Receiver]:
    """Listens until the block ends; with a certificate and its key by TLS."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            before = sum(one.path == self.path for one in made.told)
            made.told.append(Told(self.path, dict(self.headers.items()), content))
            with suppress(OSError):
                self._answer(before)

        def _answer(self, before: int) -> None:
            if self.path == "/hang":
                made.ended.wait(60)
            elif self.path == "/drip":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while not made.ended.wait(0.1):
                    self.wfile.write(b"x")
            elif self.path == "/large":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                while not made.ended.is_set():
                    self.wfile.write(b"x" * 65536)
            elif self.path == "/redirect":
                self._status(302, Location=made.url("/secret"))
            else:
                first, later = (500, 200) if self.path.startswith("/twice") else (204, 204)
                self._status(later if before else first)

        def _status(self, status: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """The tests look at what it was told."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that leaves, or whose TLS fails, is what some tests are about."""

    server = Server(("127.0.0.1", port), Handler)
    made = Receiver(server.server_address[1], "http" if certificate is None else "https")
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.ended.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
