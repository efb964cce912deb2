"""Limits that are set while a backup runs, on a real server with a real Redis and a real MongoDB; who may set which."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.mongodb_server import needs_mongod, running
from support.redis_server import binaries, redis_server
from support.server import ServerProcess

pytestmark = [needs_mongod, pytest.mark.skipif(not binaries(), reason="no redis-server here")]

DATA = 6 << 20
SLOW = 256 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A Strongroom with `cache` and `documents`, some MiB each."""
    folder = tmp_path_factory.mktemp("limits")
    with redis_server(folder) as redis, running() as mongo, ServerProcess(folder / "data") as server:
        with redis.client() as client:
            client.mset({f"key:{number}": os.urandom(8192) for number in range(DATA // 8192)})
        with mongo.client() as database:
            database["shop"]["c"].insert_many([{"_id": number, "x": os.urandom(8192)} for number in range(DATA // 8192)])
        server.cli("instance", "add", "cache", "--engine", "redis", "--address", redis.address)
        target = mongo.target("admin")
        server.cli(
            "instance", "add", "documents", "--engine", "mongodb", "--address", target.address, "--password-stdin",
            stdin=f"{target.password}\n",
        )  # fmt: skip
        yield server


def key_of(server: ServerProcess, name: str) -> str:
    with server.http() as http:
        found = http.get(f"/strongroom/v1/{server.owner.project}/instances").json()["instances"]
    return str(next(one["id"] for one in found if one["name"] == name))


def job(server: ServerProcess, key: str) -> Any:
    with server.http() as http:
        return http.get(f"/strongroom/v1/{server.owner.project}/jobs/{key}").json()


def wait_for(what: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("instance", ["cache", "documents"])
def test_a_running_backup_follows_its_limit(server: ServerProcess, instance: str) -> None:
    """At 256 KiB/s it would take 24 s: it is seen to take its time, and once the limit is lifted it ends at once."""
    with server.http() as http:
        limits = f"/strongroom/v1/{server.owner.project}/instances/{key_of(server, instance)}/limits"
        assert http.put(limits, json={"bytes_per_second": SLOW}).json() == {"bytes_per_second": SLOW, "default": False}
        begun = time.monotonic()
        made = server.cli("backup", "create", instance, "paced-one")
        wait_for(lambda: (job(server, made["job_id"])["progress"] or {}).get("done", 0) > 0)
        slow = job(server, made["job_id"])
        assert slow["status"] == "Running"
        assert slow["progress"]["done"] <= (time.monotonic() - begun + 1) * SLOW + (5 << 20)  # MongoDB's pieces have 4 MiB
        time.sleep(2)
        assert job(server, made["job_id"])["status"] == "Running"
        assert http.put(limits, json={"bytes_per_second": None}).json()["bytes_per_second"] is None
        lifted = time.monotonic()
        assert server.wait(made["job_id"]).status == "Completed"
        assert time.monotonic() - lifted < 12
        assert http.delete(limits).json() == {"bytes_per_second": 64 << 20, "default": True}


def test_a_worker_begins_as_many_backups_as_it_may(server: ServerProcess) -> None:
    """With 0 a backup waits, and a deletion goes on beside it; lifted, it runs."""
    old = server.cli("backup", "create", "cache", "an-older-one", "--wait")["backup_id"]
    assert server.cli("limits", "--jobs", "0", "--speed", "32M") == {"bytes_per_second": 32 << 20, "jobs": 0}
    made = server.cli("backup", "create", "cache", "waiting-one")
    server.cli("backup", "delete", old, "--yes", "--wait")
    assert job(server, made["job_id"])["started_at"] is None
    assert server.cli("limits", "--reset") == {"bytes_per_second": None, "jobs": None}
    assert server.wait(made["job_id"]).status == "Completed"


def test_limits_are_set_by_whom_they_concern(server: ServerProcess) -> None:
    """An instance's by its project's operators, not by readers; the workers' by the first account's administrator alone."""
    cache = key_of(server, "cache")
    reader = server.new_user(server.owner, "limits-reader", "reader", project=server.owner.project)
    operator = server.new_user(server.owner, "limits-operator", "operator", project=server.owner.project)
    other = server.new_account("limits-other")
    own = f"/strongroom/v1/{server.owner.project}"
    with server.http(reader) as reads, server.http(operator) as operates, server.http(other) as stranger:
        assert reads.get(f"{own}/instances/{cache}/limits").status_code == 200
        assert reads.put(f"{own}/instances/{cache}/limits", json={"bytes_per_second": None}).status_code == 403
        assert operates.put(f"{own}/instances/{cache}/limits", json={"bytes_per_second": 1 << 20}).status_code == 200
        assert operates.put(f"{own}/limits", json={"jobs": 1}).status_code == 403
        theirs = f"/strongroom/v1/{other.project}"
        assert stranger.put(f"{theirs}/limits", json={"jobs": 1}).status_code == 403
        refused = stranger.put(f"{theirs}/instances/{cache}/limits", json={"bytes_per_second": None})
        assert (refused.status_code, refused.json()["error_code"]) == (404, "DBS.200002")
        for wrong in (1, -1, "fast", 1 << 50):
            answer = operates.put(f"{own}/instances/{cache}/limits", json={"bytes_per_second": wrong})
            assert answer.status_code == 400, wrong
        assert operates.put(f"{own}/instances/{cache}/limits", json={}).status_code == 400
    assert server.cli("instance", "limit", "cache") == {"bytes_per_second": 1 << 20, "default": False}
    assert server.cli("instance", "limit", "cache", "--speed", "1k", status=1) is None
    assert server.cli("instance", "limit", "cache", "--speed", "default")["default"] is True
