"""The public SDK, unchanged, against a real server process with a real Redis and a real MongoDB."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkgaussdbfornosql.v3 import (
    BatchDeleteManualBackupRequest,
    BatchDeleteManualBackupRequestBody,
    CreateBackRequest,
    DeleteBackupRequest,
    GaussDBforNoSQLClient,
    ListApiVersionRequest,
    ListBackupsRequest,
    ListInstancesRequest,
    ListJobsRequest,
    NoSqlCreateBackupRequestBody,
    RestoreExistingInstanceRequest,
    RestoreRequestBody,
    ShowAllInstancesBackupsNewRequest,
    ShowAllInstancesBackupsRequest,
    ShowRestorableListRequest,
    StopBackupRequest,
    StopBackupRequestBody,
)

from support.mongodb_server import MongoServer, running
from support.redis_server import RedisServer, redis_server
from support.server import ServerProcess


@dataclass
class Site:
    """A server with both engines registered."""

    server: ServerProcess
    sdk: GaussDBforNoSQLClient
    redis: RedisServer
    mongo: MongoServer
    redis_id: str
    mongo_id: str

    def backup(self, instance: str, name: str) -> str:
        body = NoSqlCreateBackupRequestBody(name=name, description="by the SDK")
        made = self.sdk.create_back(CreateBackRequest(instance_id=instance, body=body))
        job = self.server.wait(made.job_id)
        assert (job.status, job.name) == ("Completed", "BackupInstance"), job.fail_reason
        return str(made.backup_id)

    def listed(self, instance: str) -> list[str]:
        return [one.id for one in self.sdk.list_backups(ListBackupsRequest(instance_id=instance)).backups]

    def delete(self, backup: str) -> str:
        return str(self.sdk.delete_backup(DeleteBackupRequest(backup_id=backup)).job_id)

    def restore(self, backup: str, instance: str) -> None:
        body = RestoreRequestBody(backup_id=backup)
        job = self.sdk.restore_existing_instance(RestoreExistingInstanceRequest(instance_id=instance, body=body)).job_id
        done = self.server.wait(job)
        assert done.status == "Completed", done.fail_reason


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with (
        redis_server(folder) as redis,
        running() as mongo,
        ServerProcess(folder / "data") as server,
    ):
        redis_id = server.cli("instance", "add", "cache", "--engine", "redis", "--address", redis.address)["id"]
        target = mongo.target("admin")
        mongo_id = server.cli(
            "instance", "add", "documents", "--engine", "mongodb", "--address", target.address, "--password-stdin",
            stdin=f"{target.password}\n",
        )["id"]  # fmt: skip
        yield Site(server, server.sdk(), redis, mongo, redis_id, mongo_id)
        assert server.stop() == 0


def refused(error: pytest.ExceptionInfo[ClientRequestException]) -> tuple[int, str]:
    return error.value.status_code, error.value.error_code


def test_a_redis_is_backed_up_listed_restored_and_its_middle_backup_deleted_exactly(site: Site) -> None:
    """The spine: three backups, the middle one deleted, the store shrinks by the receipt, first and last are what they were."""
    with site.redis.client() as client:
        client.flushall()
        wanted: list[dict[bytes, bytes | None]] = []
        keys: list[str] = []
        for turn in range(3):
            for number in range(2000):
                if turn == 0 or number % 50 == turn:
                    client.set(f"key:{number}", f"{turn}:{number}:" + "x" * 200)
            keys.append(site.backup(site.redis_id, f"redis-{turn}"))
            wanted.append({key: client.get(key) for key in client.scan_iter()})
    assert site.listed(site.redis_id)[:3] == keys[::-1]
    preview = site.server.cli("backup", "preview", keys[1])
    before = site.server.store_size()
    job = site.delete(keys[1])
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", job)
    assert keys[1] not in site.listed(site.redis_id), "hidden from the moment it is accepted"
    done = site.server.wait(job)
    assert (done.status, done.name) == ("Completed", "DeleteBackup")
    told = site.server.cli("deletion", "show", keys[1])
    assert told["promised"]["freed"] == preview["freed"] == told["receipt"]["freed"]
    change = told["receipt"]["freed"] + told["receipt"]["reclaimed"]["net"] - told["receipt"]["put_bytes"]
    assert before - site.server.store_size() == change
    with site.redis.client() as client:
        for turn in (0, 2):
            client.flushall()
            site.restore(keys[turn], site.redis_id)
            assert {key: client.get(key) for key in client.scan_iter()} == wanted[turn]


def test_a_mongodb_is_backed_up_and_restored_by_the_sdk(site: Site) -> None:
    """Documents, an index and a second backup after changes; each restores to its own state."""
    with site.mongo.client() as client:
        people = client["shop"]["people"]
        people.drop()
        people.insert_many([{"_id": number, "name": f"person {number}", "text": "t" * 300} for number in range(3000)])
        people.create_index("name")
        first = site.backup(site.mongo_id, "mongo-first")
        people.update_many({"_id": {"$lt": 100}}, {"$set": {"name": "changed"}})
        second = site.backup(site.mongo_id, "mongo-second")
        people.drop()
        site.restore(second, site.mongo_id)
        assert people.count_documents({"name": "changed"}) == 100
        site.restore(first, site.mongo_id)
        assert people.count_documents({"name": "changed"}) == 0
        assert people.count_documents({}) == 3000
        assert "name_1" in people.index_information()


def test_every_list_shows_the_same_backups_in_its_own_form(site: Site) -> None:
    """v4, v3.1 and v3 (page numbers from 1); filters; jobs; restorable instances; instances; versions."""
    made = [site.backup(site.redis_id, f"lists-{number}") for number in range(2)]
    v4 = site.sdk.list_backups(ListBackupsRequest(instance_id=site.redis_id, limit=2))
    assert [one.id for one in v4.backups] == made[::-1]
    assert v4.backups[0].datastore.type == "redis"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+0000", v4.backups[0].begin_time)
    v31 = site.sdk.show_all_instances_backups_new(ShowAllInstancesBackupsNewRequest(backup_id=made[0]))
    assert [(one.id, one.name, one.status, one.type) for one in v31.backups] == [(made[0], "lists-0", "COMPLETED", "Manual")]
    v3 = site.sdk.show_all_instances_backups(ShowAllInstancesBackupsRequest(offset=2, limit=1, instance_id=site.redis_id))
    assert [one.id for one in v3.backups] == [made[0]]
    past = site.sdk.list_backups(ListBackupsRequest(offset=1000))
    assert past.backups == []
    assert site.sdk.list_backups(ListBackupsRequest(backup_id=made[0], type="DatabaseTable")).backups == []
    ids = [
        one.instance_id
        for one in site.sdk.show_restorable_list(ShowRestorableListRequest(backup_id=made[0])).restorable_instances
    ]
    assert site.redis_id in ids
    assert site.mongo_id not in ids
    shown = site.sdk.list_instances(ListInstancesRequest(name="*ach")).instances
    assert [(one.id, one.status, one.actions) for one in shown] == [(site.redis_id, "normal", [])]
    jobs = site.sdk.list_jobs(ListJobsRequest(name="BackupInstance", status="Completed", limit=10)).jobs
    assert {job.instance.name for job in jobs} <= {"cache", "documents"}
    assert site.sdk.list_api_version(ListApiVersionRequest()).versions


def test_refusals_have_the_contracts_codes(site: Site) -> None:
    """Unknown, deleted, malformed ids; bad names; a backup that is not being built."""
    backup = site.backup(site.redis_id, "refusals")
    for bad, code in ((f"{'0' * 32}br14", "DBS.201214"), ("nonsense", "DBS.201212")):
        with pytest.raises(ClientRequestException) as error:
            site.delete(bad)
        assert refused(error) == (400, code)
    site.server.wait(site.delete(backup))
    with pytest.raises(ClientRequestException) as error:
        site.delete(backup)
    assert refused(error) == (400, "DBS.201214")
    with pytest.raises(ClientRequestException) as error:
        site.backup(site.redis_id, "1x")
    assert refused(error) == (400, "DBS.280277")
    with pytest.raises(ClientRequestException) as error:
        site.sdk.stop_backup(StopBackupRequest(backup_id=backup, body=StopBackupRequestBody(action="stop")))
    assert refused(error) == (400, "DBS.201214")


def test_a_batch_is_deleted_together(site: Site) -> None:
    """Two ids in one call; both hidden at once, both done."""
    keys = [site.backup(site.redis_id, f"batch-{number}") for number in range(2)]
    body = BatchDeleteManualBackupRequestBody(backup_ids=keys)
    site.sdk.batch_delete_manual_backup(BatchDeleteManualBackupRequest(body=body))
    assert not set(keys) & set(site.listed(site.redis_id))
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if all(site.server.cli("deletion", "show", key)["state"] == "done" for key in keys):
            return
        time.sleep(0.2)
    raise AssertionError("the batch is not done")


def test_an_engine_that_is_down_fails_the_job_with_words(site: Site, tmp_path: Path) -> None:
    """The create is accepted, its job fails and says what to do; the backup is FAILED and deletable."""
    with redis_server(tmp_path) as other:
        key = site.server.cli("instance", "add", "going-down", "--engine", "redis", "--address", other.address)["id"]
        other.kill()
        body = NoSqlCreateBackupRequestBody(name="nobody-home", description="")
        made = site.sdk.create_back(CreateBackRequest(instance_id=key, body=body))
        job = site.server.wait(made.job_id)
        assert job.status == "Failed"
        assert str(other.port) in job.fail_reason
        assert site.server.wait(site.delete(made.backup_id)).status == "Completed"
