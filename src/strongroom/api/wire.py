"""The connection below the border: what is no HTTP is answered in the contract's form, and nobody holds a connection for ever.

    head        must be whole within HEAD_SECONDS of its connection, or of its first byte on one that is kept
    body        has its own time, in middleware.py
    answer      must be taken: a client that takes nothing for TAKE_SECONDS is cut off
    connection  beyond as many as there may be is answered 503 and ended; those that are open go on being served

uvicorn's own limit answers 503 to everybody once so many are open, the clients of old ones too, and ends no connection.

Times here are for liveness alone; nothing is decided by them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, ClassVar

import h11
from fastapi import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from strongroom.ambient import Machine
from strongroom.api import errors

log = logging.getLogger("strongroom.api")

HEAD_SECONDS = 20.0
TAKE_SECONDS = 30.0
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 4 << 20
_MOST_LINGERING = 50  # connections that are turned away with an answer at once; more are cut off
_WARN_EVERY = 60.0


class Wire(H11Protocol):
    """uvicorn's connection with an end to everything."""

    head_seconds = HEAD_SECONDS
    take_seconds = TAKE_SECONDS
    most: int | None = None  # connections at once
    turned_away: ClassVar[set[Any]] = set()  # and not gone yet
    warned_at: ClassVar[float] = -_WARN_EVERY

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting: asyncio.TimerHandle | None = None  # for a head, or the rest of a body that nobody wants any more
        self._taking: asyncio.TimerHandle | None = None
        self._refused = 0  # bytes that came after the refusal, plus one; 0: nothing is refused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.most is not None and len(self.connections) > self.most:
            self._turn_away(self.most)
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        self.turned_away.discard(self)
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
        """For what is no HTTP."""
        self._end_with(errors.answer(400, errors.PARAMETER_ERROR, f"Parameter error: {msg}"), b"Bad Request")

    def _turn_away(self, most: int) -> None:
        """For a connection too many. It counts no more; of very many at once most are cut off without a word."""
        self.connections.discard(self)
        if time.monotonic() - Wire.warned_at >= _WARN_EVERY:
            Wire.warned_at = time.monotonic()
            log.warning("%d connections are open: more are turned away (STRONGROOM_CONNECTIONS)", most)
        if len(self.turned_away) >= _MOST_LINGERING:
            self.transport.abort()
            return
        self.turned_away.add(self)
        told = errors.answer(503, errors.SERVER_ERROR, "Too many connections are open. Try again later.", {"Retry-After": "1"})
        self._end_with(told, b"Service Unavailable")

    def _end_with(self, answer: Response, reason: bytes) -> None:
        """Answers, and ends the connection. The rest of what the client sends is taken for a moment, so that it can read the
        answer."""
        self._stop_waiting()
        self._refused = 1
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            extra = [(b"x-request-id", Machine().hex_id().encode()), (b"cache-control", b"no-store"), (b"connection", b"close")]
            for event in (
                h11.Response(status_code=answer.status_code, headers=[*answer.raw_headers, *extra], reason=reason),
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


def limited(most: int) -> type[Wire]:
    """The connection of a server that has so many at once."""
    return type("LimitedWire", (Wire,), {"most": most, "turned_away": set()})
