"""HTTP by hand: bytes go out as they are, whatever comes back is taken until the other side has done."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

SECONDS = 20.0
"""The longest that an answer may take: after that the server hangs."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def error(self) -> str:
        """The code of an error in the contract's form. AssertionError for any other body."""
        body: Any = json.loads(self.content)
        assert body.keys() == {"error_code", "error_msg"}, self
        assert all(isinstance(value, str) and value for value in body.values()), self
        assert len(self.headers["x-request-id"]) == 32
        return str(body["error_code"])


def exchange(port: int, sent: bytes) -> Reply:
    """Sends all, reads to the end, and returns the first answer. AssertionError if it does not end, or nothing came."""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        with suppress(ConnectionError):  # it has answered already, and takes no more
            connection.sendall(sent)
        return parse(read_all(connection))


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the other side ends, or cuts off."""
    came = bytearray()
    while True:
        try:
            piece = connection.recv(65536)
        except TimeoutError:
            raise AssertionError(f"the server neither answers nor ends; so far {bytes(came)!r}") from None
        except ConnectionError:
            break
        if not piece:
            break
        came += piece
    return bytes(came)


def parse(came: bytes) -> Reply:
    """The first answer in some bytes."""
    head, _, content = came.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    assert lines[0].startswith("HTTP/1.1 "), came[:200]
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        content = _unchunked(content)
    return Reply(int(lines[0].split(" ")[1]), headers, content[: int(headers.get("content-length", len(content)))])


def _unchunked(content: bytes) -> bytes:
    whole = b""
    while content:
        size, _, content = content.partition(b"\r\n")
        length = int(size, 16)
        whole, content = whole + content[:length], content[length + 2 :]
    return whole


def request(method: str, target: str | bytes, *headers: str, body: bytes | None = None) -> bytes:
    """The bytes of a request that closes its connection; a body gets its length."""
    raw = target if isinstance(target, bytes) else target.encode("latin-1")
    lines = ["Host: strongroom.test", "Connection: close", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return method.encode() + b" " + raw + b" HTTP/1.1\r\n" + "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")
