"""As many connections as there may be: one more is turned away, and those that are open are served."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.certificates import certificate
from support.raw_http import Reply, exchange, parse, read_all, request
from support.server import ServerProcess

MOST = 10
KEPT = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A Strongroom of ten connections."""
    with ServerProcess(tmp_path_factory.mktemp("connections") / "data", {"STRONGROOM_CONNECTIONS": str(MOST)}) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log


def port_of(server: ServerProcess) -> int:
    port = urlsplit(server.credentials["endpoint"]).port
    assert port is not None
    return port


def connect(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(server)), timeout=15)


def ask(connection: socket.socket) -> Reply:
    """A request on a connection that stays open."""
    connection.sendall(KEPT)
    came = b""
    while not came.endswith(b"}"):
        piece = connection.recv(65536)
        assert piece, f"it ended: {came!r}"
        came += piece
    return parse(came)


def filled(one_more: Callable[[], socket.socket], most: int) -> list[socket.socket]:
    """All connections that there may be, each of which the server has taken."""
    found: list[socket.socket] = []
    end = time.monotonic() + 15
    while len(found) < most:
        assert time.monotonic() < end
        one = one_more()
        if ask(one).status == 200:  # else one of before is not gone yet
            found.append(one)
    return found


def free_again(server: ServerProcess) -> None:
    """Waits until the server has seen that all are gone."""
    end = time.monotonic() + 15
    while exchange(port_of(server), request("GET", "/healthz")).status != 200:
        assert time.monotonic() < end
        time.sleep(0.05)


def files(server: ServerProcess) -> int:
    """Open ones of the process."""
    assert server.process is not None
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def test_one_too_many_is_turned_away_and_the_others_are_served(server: ServerProcess) -> None:
    """503 in the contract's form, whether it asks at once, later or never; then its connection ends. As soon as another is given
    up there is room."""
    free_again(server)
    with ExitStack() as stack:
        others = filled(lambda: stack.enter_context(connect(server)), MOST)
        for asked in (request("GET", "/healthz"), request("POST", "/v3/auth/tokens", body=b"{" * 200_000)):
            reply = exchange(port_of(server), asked)
            assert (reply.status, reply.error) == (503, "DBS.280005")
            assert (reply.headers["retry-after"], reply.headers["connection"]) == ("1", "close")
        with connect(server) as silent:
            assert parse(read_all(silent)).status == 503
        for one in others:
            assert ask(one).status == 200
        others[0].close()
        free_again(server)
        for one in others[1:]:
            assert ask(one).status == 200
    assert "10 connections are open: more are turned away" in server.log


def test_a_flood_takes_no_files_and_nobody_s_connection(server: ServerProcess) -> None:
    """Six hundred beyond, that say nothing: each is answered or cut off. For a moment the process has some of them open, and then
    no more than it lets linger, though no client has left."""
    free_again(server)
    with ExitStack() as stack:
        others = filled(lambda: stack.enter_context(connect(server)), MOST)
        before, began = files(server), time.monotonic()
        flood = [stack.enter_context(connect(server)) for _ in range(600)]
        assert ask(others[0]).status == 200
        assert files(server) <= before + 4 * 64 + 50 + 10
        while files(server) > before + 50 + 10:
            assert time.monotonic() - began < 10
            time.sleep(0.05)
        answered = 0
        for one in flood:
            came = read_all(one)
            assert not came or parse(came).status == 503
            answered += bool(came)
        assert 0 < answered < 600
        assert time.monotonic() - began < 15
        for one in others:
            assert ask(one).status == 200
    free_again(server)
    assert files(server) <= before


def test_over_tls_it_is_the_same(tmp_path: Path) -> None:
    """After the handshake."""
    cert, key = certificate(tmp_path)
    environ = {"STRONGROOM_CONNECTIONS": "8", "STRONGROOM_TLS_CERT": str(cert), "STRONGROOM_TLS_KEY": str(key)}
    with ServerProcess(tmp_path / "data", environ) as server, ExitStack() as stack:
        trust = ssl.create_default_context(cafile=str(cert))

        def secured() -> ssl.SSLSocket:
            return stack.enter_context(trust.wrap_socket(connect(server), server_hostname="127.0.0.1"))

        others = filled(secured, 8)
        extra = secured()
        assert parse(read_all(extra)).status == 503
        for one in others:
            assert ask(one).status == 200
        assert server.stop() == 0
