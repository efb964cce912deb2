"""Listening to PostgreSQL's notifications: what wakes the worker, and that an outage ends nothing. Its server is a fake here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from strongroom.jobs import listening


class Server:
    """Connections that are made one after the other: an error, or the numbers of notifications that each look brings."""

    def __init__(self, *connections: psycopg.Error | list[int | psycopg.Error]) -> None:
        self.left = list(connections)
        self.said: list[str] = []
        self.closed = 0
        self.options: dict[str, Any] = {}

    def connect(self, *args: Any, **options: Any) -> Connection:
        self.options = options
        found = self.left.pop(0)
        if isinstance(found, psycopg.Error):
            raise found
        return Connection(self, found)


class Connection:
    """One of them."""

    def __init__(self, server: Server, looks: list[int | psycopg.Error]) -> None:
        self._server, self._looks = server, looks

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.closed += 1

    def execute(self, statement: str) -> None:
        self._server.said.append(statement)

    def notifies(self, *, timeout: float, stop_after: int) -> Iterator[str]:
        assert timeout < 1, "a stopping process does not wait longer"
        assert stop_after == 1
        found = self._looks.pop(0)
        if isinstance(found, psycopg.Error):
            raise found
        yield from ["notice"] * found


class Stopping(threading.Event):
    """Set once the server has nothing left; waits for nothing, and notes for how long it should have."""

    def __init__(self, server: Server, last: list[int | psycopg.Error]) -> None:
        super().__init__()
        self._server, self._last = server, last
        self.waited: list[float | None] = []

    def is_set(self) -> bool:
        return not self._server.left and not self._last

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout)
        return False


ENGINE = sa.create_engine("postgresql+psycopg://someone:secret@host.example:5433/catalog")


def test_every_notification_and_every_new_connection_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was announced before the connection listened is looked for; a look that brings nothing wakes nobody."""
    looks: list[int | psycopg.Error] = [1, 0, 1]
    server, wakes = Server(looks), list[bool]()
    stopping = Stopping(server, looks)
    monkeypatch.setattr(listening.psycopg, "connect", server.connect)
    listening.listen(ENGINE, lambda: wakes.append(True), stopping)
    assert len(wakes) == 3
    assert (server.said, server.closed) == (["LISTEN strongroom_jobs"], 1)
    assert server.options["autocommit"] is True, "a transaction that is left open hears nothing"
    assert (server.options["host"], server.options["port"], server.options["user"]) == ("host.example", 5433, "someone")
    assert stopping.waited == []


def test_a_lost_connection_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, then lost while it listened: a pause each time, a new connection, and what was missed meanwhile is looked for."""
    looks: list[int | psycopg.Error] = [0]
    server = Server(psycopg.OperationalError("refused"), [psycopg.OperationalError("lost")], looks)
    stopping, wakes = Stopping(server, looks), list[bool]()
    monkeypatch.setattr(listening.psycopg, "connect", server.connect)
    listening.listen(ENGINE, lambda: wakes.append(True), stopping, retry=7.0)
    assert len(wakes) == 2
    assert stopping.waited == [7.0, 7.0]
    assert server.closed == 2


def test_a_process_that_stops_does_not_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to be heard."""
    server = Server()
    monkeypatch.setattr(listening.psycopg, "connect", server.connect)
    listening.listen(ENGINE, lambda: None, Stopping(server, []))
    assert server.said == []
