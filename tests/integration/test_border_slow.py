"""Clients that are slow, or stop: each is let go after its time, and nobody else waits for them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvicorn
from fastapi import APIRouter
from fastapi.responses import Response

from strongroom.api.services import Limits
from strongroom.api.wire import Wire
from support.border import build_house
from support.raw_http import exchange, parse, read_all, request

LARGE = 24 << 20
router = APIRouter()


@router.get("/large")
def large() -> Response:
    """More than sockets hold."""
    return Response(bytes(LARGE))


class Hasty(Wire):
    """The same, with no time."""

    head_seconds = 1.0
    take_seconds = 1.0


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A border on a real socket that gives everybody a second."""
    house = build_house(tmp_path, [router], Limits(body_seconds=1.0))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(house.app, http=Hasty, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
            house.services.catalog.close()


def ended(connection: socket.socket) -> bytes:
    """What came before the server let go; it must within some seconds."""
    connection.settimeout(15)
    return read_all(connection)


def drip(connection: socket.socket, byte: bytes) -> None:
    """A byte now and then, until the server has let go; it must within some seconds."""
    began = time.monotonic()
    while time.monotonic() - began < 15:
        try:
            connection.sendall(byte)
        except ConnectionError:
            return
        time.sleep(0.05)
    raise AssertionError("the server goes on waiting")


def test_a_head_that_does_not_come_is_let_go(port: int) -> None:
    """Of a silent client, of one that stops in the middle, and of one that has had an answer before; a byte now and then is no
    reprieve. Meanwhile others are served."""
    with ExitStack() as stack:
        silent, stopped, dripping, second = (
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 15)) for _ in range(4)
        )
        stopped.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A")
        second.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        while not second.recv(65536).endswith(b"}"):
            pass
        second.sendall(b"GET /healthz HTT")
        assert exchange(port, request("GET", "/healthz")).status == 200
        drip(dripping, b"G")
        for connection in (silent, stopped, second):
            assert ended(connection) == b""


def test_a_body_that_does_not_come_is_refused(port: int) -> None:
    """408 in the contract's form; then the connection is closed, even if bytes go on coming."""
    with socket.create_connection(("127.0.0.1", port), 15) as slow:
        slow.sendall(b"POST /v3/auth/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        came = b""
        while not came.endswith(b"}"):
            came += slow.recv(65536)
        reply = parse(came)
        assert (reply.status, reply.error) == (408, "APIGW.0201")
        drip(slow, b" ")


def test_an_answer_that_is_not_taken_is_cut_off(port: int) -> None:
    """It would be kept in memory for as long as the client likes."""
    with socket.create_connection(("127.0.0.1", port), 15) as deaf:
        deaf.sendall(request("GET", "/large"))
        time.sleep(3)
        assert len(ended(deaf)) < LARGE


def test_many_slow_clients_keep_nobody_waiting(port: int) -> None:
    """A hundred that have begun a request, and one that asks."""
    with ExitStack() as stack:
        for _ in range(100):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", port), 15))
            slow.sendall(b"POST /v3/auth/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert exchange(port, request("GET", "/healthz")).status == 200
