"""kill -9 of the server at many moments of backups, deletes and restores: after the restart every job ends, every surviving
backup restores byte for byte, and the store holds exactly what the catalog names. And what ends a server in order."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from huaweicloudsdkgaussdbfornosql.v3 import (
    CreateBackRequest,
    DeleteBackupRequest,
    GaussDBforNoSQLClient,
    ListBackupsRequest,
    ListJobsRequest,
    NoSqlCreateBackupRequestBody,
    RestoreExistingInstanceRequest,
    RestoreRequestBody,
)
from pymongo import MongoClient

from strongroom.catalog import tables as t
from support.mongodb_server import MongoServer, find_mongod, running
from support.own_backup import OWN_KINDS, is_own
from support.redis_server import RedisServer, binaries, redis_server
from support.server import ServerProcess
from support.slow_path import slow_path

needs_redis = pytest.mark.skipif(not binaries(), reason="no redis-server here")
needs_mongodb = pytest.mark.skipif(find_mongod() is None, reason="no mongod here")

Contents = dict[bytes, bytes]


# --- moments ---------------------------------------------------------------------------------------------------------


def files(server: ServerProcess) -> dict[str, int]:
    """The objects of the directory store, as name → size, without the service's own backup; one that goes while we look is left
    out."""
    root, found = server.folder / "store" / "objects", {}
    for folder, _, inside in os.walk(root):  # passes over folders that go
        for name in inside:
            path = Path(folder, name)
            with suppress(FileNotFoundError):
                found[str(path.relative_to(root))] = path.stat().st_size
    return {name: size for name, size in found.items() if not is_own(name)}


def wait_for(server: ServerProcess, true: Callable[[], object], seconds: float = 20) -> None:
    """Returns at the moment something comes true, or when no job runs any more: then the moment has passed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(10):
            if true():
                return
        if not active(server):
            return


def active(server: ServerProcess) -> list[str]:
    """Kinds of the jobs that have not ended."""
    with server.catalog() as catalog, catalog.read() as conn:
        query = sa.select(t.job.c.kind).where(t.job.c.state.in_(("QUEUED", "RUNNING")))
        return [row.kind for row in conn.execute(query)]


def more_of(server: ServerProcess, kind: str, count: int = 1) -> Callable[[], bool]:
    """Whether the store has `count` more objects of a kind than now."""
    before = sum(f"/{kind}" in name for name in files(server))
    return lambda: sum(f"/{kind}" in name for name in files(server)) >= before + count


def fewer_of(server: ServerProcess, kind: str) -> Callable[[], bool]:
    """Whether the store has lost an object of a kind."""
    before = {name for name in files(server) if f"/{kind}" in name}
    return lambda: bool(before - files(server).keys())


# --- laws ------------------------------------------------------------------------------------------------------------


def idle(server: ServerProcess, seconds: float = 60) -> None:
    """Waits until no job runs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not active(server):
            assert not server.sdk().list_jobs(ListJobsRequest(status="Running")).jobs
            return
        time.sleep(0.1)
    raise AssertionError(f"a job is stuck: {active(server)}\n{server.log[-3000:]}")


def store_is_catalog(server: ServerProcess) -> None:
    """Objects in the store = objects in the catalog, byte for byte of size; nothing planned, condemned or undecided is left."""
    with server.catalog() as catalog, catalog.read() as conn:
        rows = conn.execute(sa.select(t.object_).where(t.object_.c.kind.not_in(OWN_KINDS))).all()
        unswept = conn.execute(sa.select(t.decision.c.id).where(t.decision.c.swept.is_(False))).all()
        states = {row.state for row in conn.execute(sa.select(t.backup.c.state))}
    assert {row.name: row.bytes for row in rows if row.state == "STORED"} == files(server)
    assert {row.state for row in rows} <= {"STORED", "LATE"}
    assert not unswept
    assert states <= {"COMPLETED", "FAILED", "DELETED"}
    partial = server.folder / "store" / ".strongroom-partial"
    assert [path for path in partial.rglob("*") if path.is_file()] == []
    assert list((server.folder / "scratch").iterdir()) == []


def receipts_add_up(server: ServerProcess) -> None:
    """Every finished deletion freed what it had promised, whatever befell it."""
    for told in server.cli("deletion", "list")["deletions"]:
        assert told["state"] == "done"
        promised, receipt = told["promised"], told["receipt"]
        assert receipt["freed"] == promised["freed"]
        assert receipt["waiting"] == promised["waiting"]


# --- a database of each kind -------------------------------------------------------------------------------------------


class RedisSide:
    """Changes a Redis a little each round and reads all of it."""

    def __init__(self, engine: RedisServer, client: redis.Redis, rnd: random.Random) -> None:
        self.engine, self.client, self._rnd = engine, client, rnd
        self.client.mset({f"key:{number}": rnd.randbytes(100) for number in range(3000)})

    def register(self, server: ServerProcess) -> str:
        return str(server.cli("instance", "add", "cache", "--engine", "redis", "--address", self.engine.address)["id"])

    def change(self) -> None:
        for _ in range(60):
            self.client.set(f"key:{self._rnd.randrange(3000)}", self._rnd.randbytes(100))

    def contents(self) -> Contents:
        keys: Any = sorted(self.client.keys())
        values: Any = self.client.mget(keys)
        return dict(zip(keys, values, strict=True))

    def empty(self) -> None:
        self.client.flushall()


class MongoSide:
    """The same for a MongoDB."""

    def __init__(self, engine: MongoServer, client: MongoClient[Any], rnd: random.Random) -> None:
        self.engine, self._rnd = engine, rnd
        self._collection = client["shop"]["items"]
        self._collection.insert_many([{"_id": number, "text": rnd.randbytes(100)} for number in range(2000)])
        self._collection.create_index("text")

    def register(self, server: ServerProcess) -> str:
        target = self.engine.target("admin")
        words = ("instance", "add", "documents", "--engine", "mongodb", "--address", target.address, "--password-stdin")
        return str(server.cli(*words, stdin=f"{target.password}\n")["id"])

    def change(self) -> None:
        for _ in range(30):
            number = self._rnd.randrange(2000)
            self._collection.update_one({"_id": number}, {"$set": {"text": self._rnd.randbytes(100)}})

    def contents(self) -> Contents:
        assert "text_1" in self._collection.index_information()
        return {str(one["_id"]).encode(): bytes(one["text"]) for one in self._collection.find()}

    def empty(self) -> None:
        self._collection.drop()


@dataclass
class Rounds:
    """One server, one database, and what every backup that was accepted must restore to."""

    server: ServerProcess
    side: Any
    rnd: random.Random
    instance: str = ""
    wanted: dict[str, Contents] = field(default_factory=dict)
    interrupted: Counter[str] = field(default_factory=Counter)
    turn: int = 0

    def __post_init__(self) -> None:
        self.instance = self.side.register(self.server)

    @property
    def sdk(self) -> GaussDBforNoSQLClient:
        return self.server.sdk()

    def back_up(self) -> str:
        self.turn += 1
        self.side.change()
        body = NoSqlCreateBackupRequestBody(name=f"round-{self.turn}", description="")
        made = self.sdk.create_back(CreateBackRequest(instance_id=self.instance, body=body))
        self.wanted[made.backup_id] = self.side.contents()
        return str(made.job_id)

    def delete(self, victim: str | None = None) -> str:
        victim = victim or self.rnd.choice(sorted(self.wanted))
        del self.wanted[victim]
        return str(self.sdk.delete_backup(DeleteBackupRequest(backup_id=victim)).job_id)

    def restore(self, backup: str) -> str:
        request = RestoreExistingInstanceRequest(instance_id=self.instance, body=RestoreRequestBody(backup_id=backup))
        return str(self.sdk.restore_existing_instance(request).job_id)

    def killed(self, job: str) -> None:
        """The server is killed now and started again; the job that was interrupted, if it was, ends as Completed."""
        self.server.kill()
        self.interrupted.update(active(self.server))
        self.server.start()
        idle(self.server)
        ended = self.server.wait(job)
        assert ended.status == "Completed", ended.fail_reason
        store_is_catalog(self.server)

    def prove_all(self) -> None:
        """Every accepted backup is listed and restores to what the database held; then everything is deleted and gone."""
        listed = {one.id: one.status for one in self.sdk.list_backups(ListBackupsRequest()).backups}
        assert listed == dict.fromkeys(self.wanted, "COMPLETED")
        for backup, data in self.wanted.items():
            self.side.empty()
            ended = self.server.wait(self.restore(backup))
            assert ended.status == "Completed", ended.fail_reason
            assert self.side.contents() == data
        for backup in list(self.wanted):
            self.server.wait(self.delete(backup))
        idle(self.server)
        store_is_catalog(self.server)
        receipts_add_up(self.server)
        assert {Path(name).name for name in files(self.server)} - {"closed", "1"} == set(), "only marks are left"


PAUSES = (0, 0.01, 0.02, 0.05, 0.1, 0.2)


@needs_redis
def test_a_server_that_is_killed_at_random_moments_loses_and_leaves_nothing(tmp_path: Path) -> None:
    """Redis; each round a backup or a delete is begun and the server is killed a random moment later."""
    rnd = random.Random(20261124)
    with redis_server(tmp_path) as engine, engine.client() as client, ServerProcess(tmp_path / "data") as server:
        rounds = Rounds(server, RedisSide(engine, client, rnd), rnd)
        for turn in range(10):
            job = rounds.back_up() if turn % 2 == 0 or not rounds.wanted else rounds.delete()
            time.sleep(rnd.choice(PAUSES))
            rounds.killed(job)
        assert rounds.interrupted["backup"] >= 2
        assert rounds.interrupted["delete"] >= 2
        rounds.prove_all()


@needs_redis
def test_a_server_that_is_killed_between_two_effects_loses_and_leaves_nothing(tmp_path: Path) -> None:
    """Redis; killed right after a key, a pack, a manifest, a grave appeared, or a manifest or a pack vanished."""
    rnd = random.Random(1124)
    with redis_server(tmp_path) as engine, engine.client() as client, ServerProcess(tmp_path / "data") as server:
        rounds = Rounds(server, RedisSide(engine, client, rnd), rnd)
        for kind, count in (("key", 1), ("key", 2), ("pack", 1), ("manifest", 1), ("pack", 1), ("pack", 1)):
            seen = more_of(server, kind, count)
            job = rounds.back_up()
            wait_for(server, seen)
            rounds.killed(job)
            if kind == "key" and count == 1:
                rounds.server.wait(rounds.delete())  # the lineage ends with its only backup: the next begins one
        for happens, kind in ((more_of, "grave"), (fewer_of, "manifest"), (fewer_of, "pack"), (more_of, "rewrite")):
            seen = happens(server, kind)
            job = rounds.delete(list(rounds.wanted)[1])
            wait_for(server, seen)
            rounds.killed(job)
        assert rounds.interrupted["backup"] >= 3
        assert rounds.interrupted["delete"] >= 1
        rounds.prove_all()


@needs_redis
def test_a_server_that_is_killed_in_a_restore_goes_on_with_it(tmp_path: Path) -> None:
    """Redis; the same restore is killed at several moments, and ends with the backup's data and the target a master as before."""
    rnd = random.Random(24)
    with redis_server(tmp_path) as engine, engine.client() as client, ServerProcess(tmp_path / "data") as server:
        side = RedisSide(engine, client, rnd)
        side.client.mset({f"large:{number}": rnd.randbytes(10_000) for number in range(2000)})
        rounds = Rounds(server, side, rnd)
        server.wait(rounds.back_up())
        (backup,) = rounds.wanted
        scratch = server.folder / "scratch"
        for moment in (
            lambda: True,
            lambda: any(scratch.rglob("restore.rdb")),
            lambda: client.config_get("masteruser") != {"masteruser": ""},
            lambda: client.info("replication")["role"] == "slave",
            lambda: client.dbsize() > 1,
        ):
            side.empty()
            client.set("of-before", "old")
            job = rounds.restore(backup)
            wait_for(server, moment)
            rounds.killed(job)
            assert side.contents() == rounds.wanted[backup]
            assert client.info("replication")["role"] == "master"
            assert client.config_get("masteruser") == {"masteruser": ""}
        assert rounds.interrupted["restore"] >= 3
        rounds.prove_all()


@needs_mongodb
def test_a_server_that_is_killed_beside_a_mongodb_loses_and_leaves_nothing(tmp_path: Path) -> None:
    """MongoDB; backups until two were interrupted, a delete and a restore.

    The pause follows the machine: shorter after a backup that had ended before the kill, longer after one that was cut off.
    """
    rnd, pause = random.Random(11), 0.2
    with running() as engine, engine.client() as client, ServerProcess(tmp_path / "data") as server:
        rounds = Rounds(server, MongoSide(engine, client, rnd), rnd)
        while (rounds.interrupted["backup"] < 2 or rounds.turn < 3) and rounds.turn < 12:
            before = rounds.interrupted["backup"]
            job = rounds.back_up()
            time.sleep(pause)
            rounds.killed(job)
            pause *= 1.6 if rounds.interrupted["backup"] > before else 0.4
        assert rounds.interrupted["backup"] >= 2
        job = rounds.delete()
        rounds.killed(job)
        job = rounds.restore(next(iter(rounds.wanted)))
        time.sleep(0.3)
        rounds.killed(job)
        rounds.prove_all()


# --- ending in order, and starting ----------------------------------------------------------------------------------


@needs_redis
def test_a_server_that_is_told_to_end_in_mid_backup_ends_and_goes_on_after_its_restart(tmp_path: Path) -> None:
    """SIGTERM: exit status 0 within seconds; the same backup is completed by the next process, as its first attempt."""
    with (
        redis_server(tmp_path) as engine, slow_path(engine.port) as path, ServerProcess(tmp_path / "data") as server,
    ):  # fmt: skip
        with engine.client() as client:
            client.mset({f"key:{number}": random.Random(number).randbytes(1000) for number in range(2000)})
        instance = server.cli("instance", "add", "cache", "--engine", "redis", "--address", path.address)["id"]
        path.stall()
        body = NoSqlCreateBackupRequestBody(name="interrupted", description="")
        made = server.sdk().create_back(CreateBackRequest(instance_id=instance, body=body))
        path.wait_stalled()
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 8
        assert active(server) == ["backup"]
        assert "Traceback" not in server.log
        path.go()
        server.start()
        ended = server.wait(made.job_id)
        assert ended.status == "Completed", ended.fail_reason
        with server.catalog() as catalog, catalog.read() as conn:
            assert conn.execute(sa.select(t.job.c.attempts).where(t.job.c.id == made.job_id)).scalar_one() == 1
        idle(server)
        store_is_catalog(server)


def test_a_server_ends_in_order_when_idle_and_by_either_signal(tmp_path: Path) -> None:
    """SIGTERM and SIGINT: status 0, nothing odd in the log."""
    with ServerProcess(tmp_path / "data") as server:
        assert server.stop() == 0
        server.start()
        assert server.process is not None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.log


def test_a_second_server_on_the_same_folder_is_refused_with_words(tmp_path: Path) -> None:
    """It ends with a sentence that names the folder and the process, and the first serves on."""
    with ServerProcess(tmp_path / "data") as server:
        assert server.process is not None
        second = subprocess.run(
            [sys.executable, "-m", "strongroom", "serve", "--data", str(server.folder), "--port", "0"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert second.returncode != 0
        assert "Traceback" not in second.stderr
        for word in (str(server.folder), f"process {server.process.pid}", "in use"):
            assert word in second.stderr
        rebuilt = subprocess.run(
            [sys.executable, "-m", "strongroom", "catalog", "rebuild", "--data", str(server.folder)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert rebuilt.returncode != 0
        assert "in use" in rebuilt.stderr
        assert server.cli("instance", "list")["instances"] == []


MOMENTS = ("catalog.db", "root.key", "incarnation", "credentials.json")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_first_start_that_is_killed_leaves_a_folder_that_starts(tmp_path: Path, moment: str) -> None:
    """Killed as soon as each thing that the first start makes is there; the next start makes what is missing, once."""
    folder = tmp_path / "data"
    first = subprocess.Popen(
        [sys.executable, "-m", "strongroom", "serve", "--data", str(folder), "--port", "0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    end = time.monotonic() + 30
    while not (folder / moment).exists() and first.poll() is None and time.monotonic() < end:
        time.sleep(0)
    first.kill()
    first.wait()
    with ServerProcess(folder) as server:
        key = (folder / "root.key").read_text("ascii")
        assert server.cli("instance", "list")["instances"] == []
        with server.http() as http:
            assert http.get(f"/v4/{server.owner.project}/backups").json() == {"backups": [], "total_count": 0}
        assert server.stop() == 0
        server.start()
        assert (folder / "root.key").read_text("ascii") == key


def test_a_folder_without_its_root_key_does_not_start_and_makes_no_new_one(tmp_path: Path) -> None:
    """The sentence says what to do; with the key put back it starts."""
    with ServerProcess(tmp_path / "data") as server:
        server.stop()
        shutil.move(server.folder / "root.key", tmp_path / "root.key")
        refused = subprocess.run(
            [sys.executable, "-m", "strongroom", "serve", "--data", str(server.folder), "--port", "0"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert refused.returncode != 0
        assert "root key" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert not (server.folder / "root.key").exists()
        shutil.move(tmp_path / "root.key", server.folder / "root.key")
        server.start()
