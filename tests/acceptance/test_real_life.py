"""What happens to a server in real life: other databases and stores by two URLs, engines that are away, wrong or die, a disk that
is full, and secrets that must stay secret."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkgaussdbfornosql.v3 import (
    CreateBackRequest,
    DeleteBackupRequest,
    ListBackupsRequest,
    ListJobsRequest,
    NoSqlCreateBackupRequestBody,
    RestoreExistingInstanceRequest,
    RestoreRequestBody,
    StopBackupRequest,
    StopBackupRequestBody,
)

from strongroom.catalog import tables as t
from strongroom.storage.opening import open_store
from support.mongodb_server import PASSWORDS, MongoServer, find_mongod, running
from support.own_backup import OWN_KINDS, is_own
from support.postgres import postgres_server
from support.redis_server import RedisServer, binaries, free_port, redis_server
from support.seaweed import Seaweed, seaweed
from support.server import ServerProcess
from support.slow_path import slow_path

pytestmark = [
    pytest.mark.skipif(not binaries(), reason="no redis-server here"),
    pytest.mark.skipif(find_mongod() is None, reason="no mongod here"),
]

REDIS_PASSWORD = "redis-pass-word-4711"
WRONG_PASSWORD = "wrong-pass-word-0815"


# --- what one does with the SDK ----------------------------------------------------------------------------------------


def register(server: ServerProcess, name: str, engine: str, address: str, password: str | None = None) -> str:
    """Registers an instance over HTTP; its id."""
    answer = asked_to_register(server, name, engine, address, password)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def asked_to_register(server: ServerProcess, name: str, engine: str, address: str, password: str | None = None) -> Any:
    with server.http() as http:
        body = {"name": name, "engine": engine, "address": address, "password": password}
        return http.post(f"/strongroom/v1/{server.owner.project}/instances", json=body)


def begin(server: ServerProcess, instance: str, name: str = "real-life") -> tuple[str, str]:
    """Begins a backup: its id and its job's."""
    body = NoSqlCreateBackupRequestBody(name=name, description="")
    made = server.sdk().create_back(CreateBackRequest(instance_id=instance, body=body))
    return str(made.backup_id), str(made.job_id)


def back_up(server: ServerProcess, instance: str, seconds: float = 60) -> str:
    backup, job = begin(server, instance)
    ended = server.wait(job, seconds)
    assert ended.status == "Completed", ended.fail_reason
    return backup


def delete(server: ServerProcess, backup: str) -> dict[str, Any]:
    """Deletes a backup, waits and returns the deletion with its receipt."""
    ended = server.wait(str(server.sdk().delete_backup(DeleteBackupRequest(backup_id=backup)).job_id))
    assert ended.status == "Completed", ended.fail_reason
    told: dict[str, Any] = server.cli("deletion", "show", backup)
    return told


def restore(server: ServerProcess, backup: str, instance: str) -> None:
    body = RestoreRequestBody(backup_id=backup)
    request = RestoreExistingInstanceRequest(instance_id=instance, body=body)
    ended = server.wait(str(server.sdk().restore_existing_instance(request).job_id))
    assert ended.status == "Completed", ended.fail_reason


def listed(server: ServerProcess, instance: str) -> dict[str, str]:
    """Backups of an instance and their status."""
    return {one.id: one.status for one in server.sdk().list_backups(ListBackupsRequest(instance_id=instance)).backups}


def fill(client: redis.Redis, mib: int, seed: int) -> None:
    """Puts data that does not compress and is like no other seed's."""
    rnd = random.Random(seed)
    for number in range(mib):
        client.mset({f"{seed}:{number}:{part}": rnd.randbytes(16_384) for part in range(64)})


def store_matches_catalog(server: ServerProcess, environment: dict[str, str] | None = None) -> int:
    """Every object of the catalog is in the store and no other; returns their bytes. Waits for removals to end first."""
    store = open_store(server.settings.store_url, environment)
    try:
        with server.catalog() as catalog:
            end = time.monotonic() + 30
            while time.monotonic() < end:
                with catalog.read() as conn:
                    if not conn.execute(sa.select(t.job.c.id).where(t.job.c.state.in_(("QUEUED", "RUNNING")))).first():
                        rows = conn.execute(sa.select(t.object_).where(t.object_.c.kind.not_in(OWN_KINDS))).all()
                        break
                time.sleep(0.1)
            else:
                raise AssertionError(f"a job is stuck:\n{server.log[-3000:]}")
            there = {one.name: one.size for one in store.list("") if not is_own(one.name)}
            assert {row.name: row.bytes for row in rows if row.state == "STORED"} == there
            assert {row.state for row in rows} <= {"STORED", "LATE"}
            return sum(there.values())
    finally:
        store.close()


# --- by two URLs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A real S3 server."""
    with seaweed(tmp_path_factory.mktemp("s3")) as server:
        yield server


def test_the_same_server_works_with_postgresql_and_s3_by_two_urls(s3: Seaweed, tmp_path: Path) -> None:
    """Back up, kill, delete, restore: the data folder holds neither catalog nor store, receipts and bytes agree, and the
    secrets of both URLs are in no log."""
    with (
        postgres_server() as postgres,
        redis_server(tmp_path) as engine,
        engine.client() as client,
    ):
        catalog = postgres.url(postgres.create_database()).replace("strongroom@", "strongroom:catalog-pass-word@")
        environment = {"STRONGROOM_CATALOG_URL": catalog, "STRONGROOM_STORE_URL": s3.url("backups/here"), **s3.environment}
        with ServerProcess(tmp_path / "data", environment) as server:
            instance = register(server, "cache", "redis", engine.address)
            fill(client, 1, 1)
            first = back_up(server, instance)
            fill(client, 1, 2)
            second = back_up(server, instance)
            digest = client.execute_command("DEBUG", "DIGEST")
            _, job = begin(server, instance, "killed")
            time.sleep(0.2)
            server.kill()
            server.start()
            assert server.wait(job).status == "Completed"
            before = store_matches_catalog(server, s3.environment)
            told = delete(server, first)
            receipt = told["receipt"]
            assert receipt["freed"] == told["promised"]["freed"]
            change = receipt["freed"] + receipt["hidden"] + receipt["reclaimed"]["net"] - receipt["put_bytes"]
            assert before - store_matches_catalog(server, s3.environment) == change
            client.flushall()
            restore(server, second, instance)
            assert client.execute_command("DEBUG", "DIGEST") == digest
            for backup in listed(server, instance):
                delete(server, backup)
            store_matches_catalog(server, s3.environment)
            assert {path.name for path in server.folder.iterdir()} <= {
                "lock", "root.key", "credentials.json", "incarnation", "scratch"
            }  # fmt: skip
            assert server.stop() == 0
            for secret in ("catalog-pass-word", s3.secret_key):
                assert secret not in server.log


def test_while_the_store_is_away_a_delete_waits_and_says_why(s3: Seaweed, tmp_path: Path) -> None:
    """The job runs on, its detail and the deletion's carry the reason; the contract's list carries none, since nothing failed;
    a backup fails after some tries. With the store back the delete ends by itself, and the next backup completes."""
    with (
        redis_server(tmp_path) as engine,
        engine.client() as client,
        slow_path(int(s3.endpoint.rpartition(":")[2])) as path,
    ):
        url = s3.url("away").replace(s3.endpoint, f"http://127.0.0.1:{path.port}")
        with ServerProcess(tmp_path / "data", {"STRONGROOM_STORE_URL": url, **s3.environment}) as server:
            instance = register(server, "cache", "redis", engine.address)
            fill(client, 1, 1)
            first, second = back_up(server, instance), back_up(server, instance)
            path.away()
            job = str(server.sdk().delete_backup(DeleteBackupRequest(backup_id=first)).job_id)
            failing, its_job = begin(server, instance, "no-store")
            ended = server.wait(its_job)
            assert ended.status == "Failed"
            assert "the store failed" in ended.fail_reason
            told, shown = server.cli("deletion", "show", first), server.cli("job", "show", job)
            assert (told["state"], shown["status"]) == ("running", "Running")
            assert str(path.port) in told["fail_reason"]
            assert told["fail_reason"] == shown["fail_reason"]
            (listed_job,) = server.sdk().list_jobs(ListJobsRequest(id=job)).jobs
            assert (listed_job.status, listed_job.fail_reason) == ("Running", "")
            path.away(False)
            assert server.wait(job, 90).status == "Completed"
            assert server.cli("deletion", "show", first)["fail_reason"] is None
            assert server.cli("job", "show", job)["fail_reason"] == ""
            back_up(server, instance)
            assert listed(server, instance).keys() > {second, failing}
            store_matches_catalog(server, s3.environment)


def test_a_catalog_or_a_store_that_cannot_be_reached_ends_the_start_with_words(tmp_path: Path) -> None:
    """One sentence, no secret, no traceback; the folder starts once the place is right."""
    port = free_port()
    bad = (
        {"STRONGROOM_CATALOG_URL": f"postgresql://me:secret-word-1@127.0.0.1:{port}/catalog"},
        {"STRONGROOM_CATALOG_URL": "mysql://me:secret-word-1@127.0.0.1/catalog"},
        {"STRONGROOM_STORE_URL": f"s3://bucket/here?endpoint=http://127.0.0.1:{port}"},
        {
            "STRONGROOM_STORE_URL": f"s3://bucket/here?endpoint=http://127.0.0.1:{port}",
            "STRONGROOM_S3_ACCESS_KEY": "access", "STRONGROOM_S3_SECRET_KEY": "secret-word-1",
        },
        {"STRONGROOM_STORE_URL": "ftp://me:secret-word-1@somewhere/"},
        {"STRONGROOM_ROOT_KEY": "secret-word-1"},
    )  # fmt: skip
    for environment in bad:
        with pytest.raises(AssertionError, match="the server ended") as ended, ServerProcess(tmp_path / "data", environment):
            pass
        said = str(ended.value)
        assert "secret-word-1" not in said
        assert "Traceback" not in said, said
    with ServerProcess(tmp_path / "data") as server:
        assert server.stop() == 0


# --- engines ---------------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """A server, a Redis with a password and a MongoDB, both registered."""

    server: ServerProcess
    redis: RedisServer
    mongo: MongoServer
    redis_id: str
    mongo_id: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("life")
    data = folder / "data"
    data.mkdir(mode=0o755)  # as somebody makes it who did not read the manual
    with redis_server(folder, password=REDIS_PASSWORD) as engine, running() as mongo, ServerProcess(data) as server:
        with engine.client() as client:
            client.mset({f"key:{number}": "v" * 100 for number in range(500)})
        target = mongo.target("admin")
        redis_id = register(server, "cache", "redis", engine.address, REDIS_PASSWORD)
        mongo_id = register(server, "documents", "mongodb", target.address, target.password)
        yield Site(server, engine, mongo, redis_id, mongo_id)
        assert server.stop() == 0
        assert "Traceback" not in server.log
        for secret in secrets_of(server):
            assert secret not in server.log


def secrets_of(server: ServerProcess) -> list[str]:
    """All that nobody may find."""
    told = server.credentials
    key = (server.folder / "root.key").read_text("ascii").strip()
    return [REDIS_PASSWORD, WRONG_PASSWORD, PASSWORDS["admin"], told["password"], told["secret_key"], key]


@pytest.mark.parametrize("case", ["redis wrong", "redis none", "mongodb wrong", "redis down", "mongodb down", "in the address"])
def test_an_instance_that_cannot_be_entered_is_not_registered(site: Site, case: str) -> None:
    """400 with a sentence that names the place, and no password in it; nothing is registered."""
    mongo = site.mongo.target("admin").address
    nobody = f"127.0.0.1:{free_port()}"
    engine, address, password, words = {
        "redis wrong": ("redis", site.redis.address, WRONG_PASSWORD, str(site.redis.port)),
        "redis none": ("redis", site.redis.address, None, "password"),
        "mongodb wrong": ("mongodb", mongo, WRONG_PASSWORD, "password"),
        "redis down": ("redis", f"redis://{nobody}", WRONG_PASSWORD, nobody),
        "mongodb down": ("mongodb", f"mongodb://admin@{nobody}/", WRONG_PASSWORD, nobody),
        "in the address": ("redis", f"redis://:{WRONG_PASSWORD}@127.0.0.1:{site.redis.port}", None, "password"),
    }[case]
    begun = time.monotonic()
    answer = asked_to_register(site.server, "unusable", engine, address, password)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DBS.200047")
    assert words in answer.json()["error_msg"]
    assert WRONG_PASSWORD not in answer.text
    assert time.monotonic() - begun < 12
    assert "unusable" not in {one["name"] for one in site.server.cli("instance", "list")["instances"]}


def test_a_password_in_a_mongodb_address_is_refused_and_not_repeated(site: Site) -> None:
    """It would stand in lists and in manifests."""
    address = f"mongodb://admin:{WRONG_PASSWORD}@127.0.0.1:{site.mongo.port}/"
    answer = asked_to_register(site.server, "unusable", "mongodb", address)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DBS.200047")
    assert WRONG_PASSWORD not in answer.text


def test_a_stand_alone_mongodb_is_refused_with_what_to_do(site: Site) -> None:
    """It has no oplog: the sentence names rs.initiate()."""
    with running(replica_set=False) as alone:
        target = alone.target("admin")
        answer = asked_to_register(site.server, "alone", "mongodb", target.address, target.password)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DBS.200047")
    assert "rs.initiate()" in answer.json()["error_msg"]


def test_a_restore_into_another_kind_of_engine_is_refused(site: Site) -> None:
    """400 DBS.301024 with both kinds named; the backup is not blocked by it."""
    backup = back_up(site.server, site.redis_id)
    request = RestoreExistingInstanceRequest(instance_id=site.mongo_id, body=RestoreRequestBody(backup_id=backup))
    with pytest.raises(ClientRequestException) as refused:
        site.server.sdk().restore_existing_instance(request)
    assert (refused.value.status_code, refused.value.error_code) == (400, "DBS.301024")
    assert "redis" in refused.value.error_msg
    assert "mongodb" in refused.value.error_msg
    delete(site.server, backup)


def test_a_redis_that_dies_in_mid_backup_fails_the_job_with_the_reason(site: Site, tmp_path: Path) -> None:
    """The FAILED backup owns nothing and can be deleted; with the engine back the next one completes."""
    with redis_server(tmp_path) as engine, slow_path(engine.port) as path:
        with engine.client() as client:
            fill(client, 2, 7)
            client.save()
        instance = register(site.server, "dies", "redis", path.address)
        path.stall()
        backup, job = begin(site.server, instance)
        path.wait_stalled()
        engine.kill()
        path.go()
        ended = site.server.wait(job)
        assert ended.status == "Failed"
        assert str(path.port) in ended.fail_reason
        assert listed(site.server, instance) == {backup: "FAILED"}
        with site.server.http() as http:
            told = http.get(f"/strongroom/v1/{site.server.owner.project}/backups/{backup}").json()
        assert told["fail_reason"] == ended.fail_reason
        engine.start()
        back_up(site.server, instance)
        delete(site.server, backup)
        store_matches_catalog(site.server)


def test_a_mongodb_that_dies_in_mid_backup_fails_the_job_with_the_reason(site: Site) -> None:
    """Killed while it sends documents; the backup is FAILED and deletable."""
    with running() as engine, slow_path(engine.port) as path:
        with engine.client() as client:
            rnd = random.Random(5)
            client["shop"]["large"].insert_many([{"data": rnd.randbytes(10_000)} for _ in range(500)])
        address = f"mongodb://admin@127.0.0.1:{path.port}/?directConnection=true"
        instance = register(site.server, "dies-too", "mongodb", address, PASSWORDS["admin"])
        path.stall(1_000_000)
        backup, job = begin(site.server, instance)
        path.wait_stalled()
        engine.kill()
        path.go()
        ended = site.server.wait(job, 90)
        assert ended.status == "Failed"
        assert str(path.port) in ended.fail_reason
        assert listed(site.server, instance) == {backup: "FAILED"}
        delete(site.server, backup)
        store_matches_catalog(site.server)


def test_a_running_backup_is_stopped_by_the_sdk(site: Site, tmp_path: Path) -> None:
    """202 with a job that is found by its id and completes; the backup is FAILED, its job too, nothing of it is left in the
    store but its mark, and the next backup begins at once."""
    with redis_server(tmp_path) as engine, slow_path(engine.port) as path:
        with engine.client() as client:
            fill(client, 2, 8)
        instance = register(site.server, "stopped", "redis", path.address)
        kept = back_up(site.server, instance)
        path.stall()
        backup, job = begin(site.server, instance)
        path.wait_stalled()
        request = StopBackupRequest(backup_id=backup, body=StopBackupRequestBody(action="stop"))
        removal = site.server.sdk().stop_backup(request).job_id
        assert site.server.wait(removal).status == "Completed"
        assert site.server.wait(job).status == "Failed"
        assert listed(site.server, instance) == {kept: "COMPLETED", backup: "FAILED"}
        with pytest.raises(ClientRequestException) as again:
            site.server.sdk().stop_backup(request)
        assert (again.value.status_code, again.value.error_code) == (400, "DBS.201202")
        path.go()
        back_up(site.server, instance)
        store_matches_catalog(site.server)


def test_nothing_secret_lies_where_others_can_read_it(site: Site) -> None:
    """Passwords and keys stand in clear in two files alone, which only their owner may read; the store is shut as well."""
    back_up(site.server, site.redis_id)
    back_up(site.server, site.mongo_id)
    own = {"root.key", "credentials.json"}
    for path in site.server.folder.rglob("*"):
        if path.is_dir():
            continue
        content = path.read_bytes()
        found = [secret for secret in secrets_of(site.server) if secret.encode() in content]
        assert not found or path.name in own, f"{path} holds a secret in clear"
        if path.name in own or "store" in path.parts:
            assert path.stat().st_mode & 0o077 == 0, f"{path} is open to others"
    key = bytes.fromhex((site.server.folder / "root.key").read_text("ascii"))
    assert not [path for path in site.server.folder.rglob("*") if path.is_file() and key in path.read_bytes()]
    for answer in (site.server.cli("instance", "list"), site.server.cli("job", "list"), site.server.cli("backup", "list")):
        for secret in secrets_of(site.server):
            assert secret not in str(answer)


# --- a full disk -----------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A file system of so many MiB."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={mib}m", "tmpfs"]
    if subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("a file system can only be mounted as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_store_fails_backups_with_words_and_takes_deletes_that_free(tmp_path: Path) -> None:
    """The backup that does not fit is FAILED and leaves nothing; the first is whole; a delete gives the room back."""
    with small_disk(tmp_path / "disk", 24) as disk, redis_server(tmp_path) as engine, engine.client() as client:
        environment = {"STRONGROOM_STORE_URL": str(disk / "store")}
        with ServerProcess(tmp_path / "data", environment) as server:
            instance = register(server, "cache", "redis", engine.address)
            fill(client, 8, 1)
            fits, digest = back_up(server, instance), client.execute_command("DEBUG", "DIGEST")
            used = store_matches_catalog(server)
            fill(client, 20, 2)
            backup, job = begin(server, instance)
            ended = server.wait(job, 90)
            assert ended.status == "Failed"
            assert "no room left" in ended.fail_reason
            assert listed(server, instance) == {fits: "COMPLETED", backup: "FAILED"}
            assert store_matches_catalog(server) - used < 4096, "a mark at most"
            client.flushall()
            restore(server, fits, instance)
            assert client.execute_command("DEBUG", "DIGEST") == digest
            (disk / "filler").write_bytes(bytes(free(disk) - 65536))
            delete(server, backup)
            told = delete(server, fits)
            assert told["receipt"]["freed"] == told["promised"]["freed"] > 8 * 2**20
            assert store_matches_catalog(server) < 4096
            (disk / "filler").unlink()
            client.flushall()
            fill(client, 8, 3)
            back_up(server, instance)
            assert server.stop() == 0


def free(disk: Path) -> int:
    """Bytes that still fit."""
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize
