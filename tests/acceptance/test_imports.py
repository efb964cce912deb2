"""The public SDK's call that imports RDB files, against a real server process and a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkgaussdbfornosql.v3 import (
    GaussDBforNoSQLClient,
    RecoveryInfo,
    RestoreRedisDataRequest,
    RestoreRedisDataRequestBody,
)

from strongroom.ambient import Machine
from support.mongodb_server import running
from support.redis_dumps import dump, record, select
from support.redis_server import RedisServer, redis_server
from support.server import ServerProcess

GOOD = dump(select(0), record(b"imported"), version=9)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("imports") / "data") as process:
        yield process
        assert process.stop() == 0


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture(scope="module")
def instance(server: ServerProcess, redis: RedisServer) -> str:
    return str(server.cli("instance", "add", "cache", "--engine", "redis", "--address", redis.address)["id"])


@pytest.fixture
def bucket(server: ServerProcess, redis: RedisServer) -> Path:
    """A bucket of the owner's project with one good file; the Redis holds old data."""
    with redis.client() as client:
        client.flushall()
        client.set("old", "data")
    folder = server.folder / "imports" / server.owner.project / "dumps"
    (folder / "night").mkdir(parents=True, exist_ok=True)
    (folder / "night" / "good.rdb").write_bytes(GOOD)
    return folder


def ask(sdk: GaussDBforNoSQLClient, instance: str, bucket: str, *files: str) -> str:
    info = RecoveryInfo(bucket_name=bucket, files=list(files))
    body = RestoreRedisDataRequestBody(recovery_info=info)
    return str(sdk.restore_redis_data(RestoreRedisDataRequest(instance_id=instance, body=body)).job_id)


def keys(redis: RedisServer) -> list[bytes]:
    with redis.client() as client:
        return sorted(client.keys())


def test_a_file_is_imported_by_the_sdk_and_by_the_command_line(
    server: ServerProcess, redis: RedisServer, instance: str, bucket: Path
) -> None:
    """The instance holds what the files hold; the job has a name and a result, the audit trail an event."""
    with redis.client() as client:
        client.flushall()
    job = server.wait(ask(server.sdk(), instance, "dumps", "night/good.rdb"))
    assert (job.status, job.name, job.instance.id) == ("Completed", "ImportFiles", instance), job.fail_reason
    assert keys(redis) == [b"imported"]
    (bucket / "more.rdb").write_bytes(dump(select(0), record(b"another"), version=9))
    told = server.cli("backup", "import", "dumps", "night/good.rdb", "more.rdb", "--into", "cache", "--overwrite", "--wait")
    assert told["job"]["result"]["files"] == ["night/good.rdb", "more.rdb"]
    assert told["job"]["result"]["keys"] == {"0": 2}
    assert keys(redis) == [b"another", b"imported"]


def test_a_damaged_file_fails_the_job_by_name_and_changes_nothing(
    server: ServerProcess, redis: RedisServer, instance: str, bucket: Path
) -> None:
    """Checked before the point of no return."""
    (bucket / "bad.rdb").write_bytes(GOOD[:-4] + b"oops")
    answer = server.cli("backup", "import", "dumps", "bad.rdb", "--into", "cache", "--overwrite")
    job = server.wait(answer["job_id"])
    assert job.status == "Failed"
    assert "file bad.rdb: the dump's checksum does not match" in job.fail_reason
    assert "nothing was sent to the target" in job.fail_reason
    assert keys(redis) == [b"old"]


def test_data_is_replaced_only_when_that_is_said(server: ServerProcess, redis: RedisServer, instance: str, bucket: Path) -> None:
    """The SDK does not say it: its call is for an empty instance."""
    job = server.wait(ask(server.sdk(), instance, "dumps", "night/good.rdb"))
    assert job.status == "Failed"
    assert "holds 1 keys in 1 databases" in job.fail_reason
    assert keys(redis) == [b"old"]


def test_nothing_outside_the_projects_own_folder_is_ever_opened(
    server: ServerProcess, redis: RedisServer, instance: str, bucket: Path, tmp_path: Path
) -> None:
    """Neither by a name, nor by a link, nor in another project's bucket."""
    outside = tmp_path / "outside.rdb"
    outside.write_bytes(GOOD)
    (bucket / "link.rdb").unlink(missing_ok=True)
    (bucket / "link.rdb").symlink_to(outside)
    (bucket.parent / "linked").unlink(missing_ok=True)
    (bucket.parent / "linked").symlink_to(tmp_path)
    stranger = server.folder / "imports" / Machine().hex_id() / "theirs"
    stranger.mkdir(parents=True)
    (stranger / "good.rdb").write_bytes(GOOD)
    for name, files in (
        ("dumps", ["../../" + stranger.parent.name + "/theirs/good.rdb"]),
        ("dumps", [str(outside)]),
        ("dumps", ["/etc/passwd"]),
        ("dumps", ["night/../night/good.rdb"]),
        ("dumps", ["link.rdb"]),
        ("linked", ["outside.rdb"]),
        ("theirs", ["good.rdb"]),
        ("..", ["good.rdb"]),
        ("dumps", ["night"]),
        ("dumps", ["missing.rdb"]),
        ("dumps", ["night/good.rdb", "night/good.rdb"]),
        ("dumps", []),
    ):
        with pytest.raises(ClientRequestException) as error:
            ask(server.sdk(), instance, name, *files)
        assert (error.value.status_code, error.value.error_code) == (400, "DBS.200001"), (name, files)
    assert keys(redis) == [b"old"]


def test_who_may_not_restore_may_not_import_and_another_engine_takes_no_files(
    server: ServerProcess, redis: RedisServer, instance: str, bucket: Path
) -> None:
    """The permission of a restore; a MongoDB refuses; an unknown instance is not found."""
    allow = {"Effect": "Allow", "Action": ["gaussdbfornosql:instance:createBackup"]}
    clerk = server.new_user(server.owner, "clerk", {"Version": "5.0", "Statement": [allow]})
    with pytest.raises(ClientRequestException) as error:
        ask(server.sdk(clerk), instance, "dumps", "night/good.rdb")
    assert (error.value.status_code, error.value.error_code) == (403, "DBS.280032")
    with pytest.raises(ClientRequestException) as error:
        ask(server.sdk(), "0" * 32 + "in14", "dumps", "night/good.rdb")
    assert (error.value.status_code, error.value.error_code) == (404, "DBS.200002")
    with running() as mongo:
        target = mongo.target("admin")
        added = server.cli(
            "instance", "add", "documents", "--engine", "mongodb", "--address", target.address, "--password-stdin",
            stdin=f"{target.password}\n",
        )  # fmt: skip
        with pytest.raises(ClientRequestException) as error:
            ask(server.sdk(), added["id"], "dumps", "night/good.rdb")
        assert (error.value.status_code, error.value.error_code) == (400, "DBS.301024")
    assert keys(redis) == [b"old"]
