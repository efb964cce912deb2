"""Whether the server is ready: what it needs is looked at, and no stranger's probes wear it out."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from strongroom import server
from strongroom.api.health import FRESH, Recent
from strongroom.settings import Settings
from strongroom.storage.base import StoreUnavailable
from support.border import Clock


def ready(app: FastAPI) -> httpx.Response:
    """The answer of a server's app."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://strongroom.test") as client:
            return await client.get("/readyz")

    return asyncio.run(ask())


def test_a_server_whose_store_is_away_or_another_one_is_not_ready(tmp_path: Path) -> None:
    """Its own mark is looked for in the store; when it is back, so is the server."""
    settings, clock = Settings.load(tmp_path / "data", {}), Clock()
    settings.data_dir.mkdir()
    with server.opened(settings, clock) as house:
        server._begin(house, "http://127.0.0.1:1")
        app, store = house.app(), settings.data_dir / "store" / "objects"
        (mark,) = (path for path in store.rglob("*") if path.is_file() and path.relative_to(store).parts[0] == "owner")
        assert ready(app).json() == {"status": "ready"}
        mark.rename(tmp_path / "aside")
        clock.sleep(FRESH)
        answer = ready(app)
        assert (answer.status_code, answer.json()["error_msg"]) == (503, "Not ready: store.")
        (tmp_path / "aside").rename(mark)
        clock.sleep(FRESH)
        assert ready(app).status_code == 200


def test_an_outcome_is_told_again_for_a_while() -> None:
    """A good one and a bad one; then it is looked again."""
    clock, seen = Clock(), list[bool]()

    def check() -> None:
        seen.append(len(seen) == 1)
        if seen[-1]:
            raise StoreUnavailable("away")

    recent = Recent(check, clock)
    recent()
    clock.sleep(FRESH - 1)
    recent()
    clock.sleep(1)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            recent()
    clock.sleep(FRESH)
    recent()
    assert seen == [False, True, False]


def test_a_check_that_hangs_holds_one_thread() -> None:
    """The others are told what was before, and after a while that it hangs."""
    clock, go, inside = Clock(), threading.Event(), threading.Event()
    hang = False

    def check() -> None:
        if hang:
            inside.set()
            assert go.wait(20)

    recent = Recent(check, clock)
    recent()
    clock.sleep(FRESH)
    hang = True
    thread = threading.Thread(target=recent)
    thread.start()
    assert inside.wait(20)
    recent()  # what was before
    clock.sleep(FRESH)
    with pytest.raises(TimeoutError):
        recent()
    go.set()
    thread.join(20)
    recent()
