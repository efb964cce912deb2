"""The connection below the border: what is no HTTP is answered in the contract's form, and nobody holds a connection for ever.

    head        must be whole within HEAD_SECONDS of its connection, or of its first byte on one that is kept
    body        has its own time, in middleware.py
    answer      must be taken: a client that takes nothing for TAKE_SECONDS is cut off

Times here are for liveness alone; nothing is decided by them.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from strongroom.ambient import Machine
from strongroom.api import errors

HEAD_SECONDS = 20.0
TAKE_SECONDS = 30.0
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 4 << 20


class Wire(H11Protocol):
    """uvicorn's connection with an end to everything."""

    head_seconds = HEAD_SECONDS
    take_seconds = TAKE_SECONDS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting: asyncio.TimerHandle | None = None  # for a head, or the rest of a body that nobody wants any more
        self._taking: asyncio.TimerHandle | None = None
        self._refused = 0  # bytes that came after the refusal, plus one; 0: nothing is refused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._refused += len(data)
            if self._refused > _LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._waiting is None and not self.transport.is_closing():
            self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop_waiting()
        if self.conn.their_state is h11.SEND_BODY:
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._taking is None:
            self._taking = self.loop.call_later(self.take_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP. The rest of what the client sends is taken for a moment, so that it can read the answer."""
        self._stop_waiting()
        self._refused = 1
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = errors.answer(400, errors.PARAMETER_ERROR, f"Parameter error: {msg}")
            extra = [(b"x-request-id", Machine().hex_id().encode()), (b"cache-control", b"no-store"), (b"connection", b"close")]
            for event in (
                h11.Response(status_code=400, headers=[*answer.raw_headers, *extra], reason=b"Bad Request"),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(_LINGER_SECONDS, self.transport.abort)
        else:
            self.transport.close()

    def _wait(self) -> None:
        self._stop_waiting()
        self._waiting = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
