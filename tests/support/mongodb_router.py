"""What a mongos answers to `hello`, over the wire: no package brings the real one to where the tests run.

It answers that one command, as mongos does (`msg: isdbgrid`), and refuses any other, so that a test sees what was asked of it.
"""

from __future__ import annotations

import contextlib
import socketserver
import struct
import threading
from collections.abc import Iterator
from typing import Any

import bson

_MESSAGE, _QUERY = 2013, 2004
_HELLO = {
    "isWritablePrimary": True,
    "ismaster": True,
    "msg": "isdbgrid",
    "maxBsonObjectSize": 16 * 1024 * 1024,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "minWireVersion": 0,
    "maxWireVersion": 17,
    "ok": 1.0,
}


class _Router(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Link)
        self.asked: list[str] = []


class _Link(socketserver.StreamRequestHandler):
    server: _Router

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while len(header := self.rfile.read(16)) == 16:
                length, number, _, kind = struct.unpack("<iiii", header)
                self._answer(number, kind, self.rfile.read(length - 16))

    def _answer(self, number: int, kind: int, body: bytes) -> None:
        if kind == _QUERY:
            command = bson.decode(body[body.index(b"\0", 4) + 9 :])
        else:
            command = bson.decode(body[5 : 5 + struct.unpack_from("<i", body, 5)[0]])
        name = next(iter(command))
        self.server.asked.append(name)
        known = name.lower() in ("hello", "ismaster")
        reply: dict[str, Any] = _HELLO if known else {"ok": 0.0, "code": 59, "errmsg": f"no such command: {name!r}"}
        if kind == _QUERY:
            document = struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(reply)
        else:
            document = struct.pack("<i", 0) + b"\0" + bson.encode(reply)
        answer = 1 if kind == _QUERY else _MESSAGE
        self.wfile.write(struct.pack("<iiii", 16 + len(document), number, number, answer) + document)


@contextlib.contextmanager
def router() -> Iterator[tuple[str, list[str]]]:
    """Its URL, and the commands that it was asked so far."""
    with _Router() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"mongodb://127.0.0.1:{server.server_address[1]}/", server.asked
        finally:
            server.shutdown()
            thread.join()
