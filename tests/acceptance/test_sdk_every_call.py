"""The public SDK, unchanged, over every call that docs/reference/sdk-calls.md says works, and every one that is refused."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import huaweicloudsdkgaussdbfornosql.v3 as sdk
import pytest
import sqlalchemy as sa
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from strongroom.ambient import Machine
from strongroom.catalog import tables as t
from support import sdk_calls
from support.redis_server import RedisServer, binaries, redis_server
from support.server import ServerProcess
from support.windows import far_window

pytestmark = pytest.mark.skipif(not binaries(), reason="no redis-server here")


@dataclass
class Site:
    """A server with one Redis, `cache`, registered, and one backup of it."""

    server: ServerProcess
    client: Any
    redis: RedisServer
    instance: str
    backup: str

    def ask(self, call: str, /, **values: Any) -> Any:
        """Calls the SDK's method with a request of these attributes."""
        request = sdk_calls.request_of(call, {"instance_id": self.instance, **values})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of methods that the SDK will lose one day
            return getattr(self.client, call)(request)

    def done(self, job: str, name: str) -> None:
        found = self.server.wait(job)
        assert (found.status, found.name) == ("Completed", name), found.fail_reason

    def take(self, instance: str = "") -> str:
        """A new manual backup's id."""
        body = sdk.NoSqlCreateBackupRequestBody(name=f"b{Machine().hex_id()}"[:20], description="by the SDK")
        made = self.ask("create_back", instance_id=instance or self.instance, body=body)
        self.done(made.job_id, "BackupInstance")
        return str(made.backup_id)

    def register(self) -> str:
        """The same Redis once more, under a new name."""
        name = f"i{Machine().hex_id()}"[:20]
        return str(self.server.cli("instance", "add", name, "--engine", "redis", "--address", self.redis.address)["id"])

    def refused(self, call: str, /, **values: Any) -> tuple[int, str, str]:
        with pytest.raises(ClientRequestException) as error:
            self.ask(call, **values)
        return error.value.status_code, error.value.error_code, error.value.error_msg


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("every-call")
    with redis_server(folder) as redis, ServerProcess(folder / "data") as server:
        with redis.client() as filling:
            filling.mset({f"key:{number}": "v" * 100 for number in range(200)})
        instance = server.cli("instance", "add", "cache", "--engine", "redis", "--address", redis.address)["id"]
        with closing(server.sdk()) as client:
            here = Site(server, client, redis, instance, "")
            here.backup = here.take()
            yield here
        assert server.stop() == 0


def delete_backup(site: Site) -> None:
    backup = site.take()
    site.done(site.ask("delete_backup", backup_id=backup).job_id, "DeleteBackup")
    assert site.ask("list_backups", backup_id=backup).backups == []


def batch_delete_manual_backup(site: Site) -> None:
    backup = site.take()
    site.ask("batch_delete_manual_backup", body=sdk.BatchDeleteManualBackupRequestBody(backup_ids=[backup]))
    assert site.ask("list_backups", backup_id=backup).backups == []


def create_back(site: Site) -> None:
    backup = site.take()
    (listed,) = site.ask("list_backups", backup_id=backup).backups
    assert (listed.description, listed.status, listed.type) == ("by the SDK", "COMPLETED", "Manual")
    tables = [sdk.RestoreDatabaseTables(database_name="d")] if hasattr(sdk, "RestoreDatabaseTables") else [{"database_name": "d"}]
    body = sdk.NoSqlCreateBackupRequestBody(name="tables", description="", database_tables=tables)
    assert site.refused("create_back", body=body)[:2] == (400, "DBS.200001")


def stop_backup(site: Site) -> None:
    body = sdk.StopBackupRequestBody(action="stop")
    assert site.refused("stop_backup", backup_id=site.backup, body=body)[:2] == (400, "DBS.201202")


def lists(name: str) -> Callable[[Site], None]:
    def check(site: Site) -> None:
        first = 1 if name == "show_all_instances_backups" else 0
        known = {"instance_id": site.instance, "backup_id": site.backup, "datastore_type": "redis", "backup_type": "Manual"}
        found = site.ask(name, offset=first, limit=1, **known)
        assert ([one.id for one in found.backups], found.total_count) == ([site.backup], 1)
        assert site.ask(name, offset=first + 1, limit=1, **known).backups == []
        assert site.ask(name, offset=first, limit=1, **known | {"backup_type": "Auto"}).backups == []
        assert site.ask(name, offset=first, limit=1, **known | {"datastore_type": "mongodb"}).backups == []
        begun = time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(time.time() - 3600))
        later = time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(time.time() + 3600))
        within = site.ask(name, offset=first, limit=1, begin_time=begun, end_time=later, **known)
        assert within.total_count == 1
        only = site.refused(name, offset=first, limit=1, begin_time=begun)
        assert only[:2] == (400, "DBS.201215")

    return check


def show_restorable_list(site: Site) -> None:
    found = site.ask("show_restorable_list", backup_id=site.backup, offset=0, limit=100)
    assert site.instance in [one.instance_id for one in found.restorable_instances]
    assert site.ask("show_restorable_list", backup_id=site.backup, offset=found.total_count).restorable_instances == []


def restore_existing_instance(site: Site) -> None:
    body = sdk.RestoreRequestBody(backup_id=site.backup)
    site.done(site.ask("restore_existing_instance", body=body).job_id, "RestoreInstance")


def backup_policy(site: Site) -> None:
    """Set, shown by both calls and in the instances' list, and turned off again."""
    window = far_window()
    wanted = {"keep_days": 9, "start_time": window, "period": "1,2,3,4,5,6,7"}
    for policy, start in ((wanted, window), ({"keep_days": 0}, "")):
        body = sdk.SetBackupPolicyRequestBody(backup_policy=sdk.BackupPolicy(**policy))
        site.ask("set_backup_policy", body=body)
        for call in ("show_backup_policy", "show_backup_policies"):
            shown = site.ask(call).backup_policy
            assert (shown.keep_days, shown.start_time) == (policy["keep_days"], start)
        (one,) = site.ask("list_instances", id=site.instance).instances
        assert one.backup_strategy.keep_days == policy["keep_days"]


def empty(name: str, items: str, **values: Any) -> Callable[[Site], None]:
    """A list that is empty, of an instance that has to exist."""

    def check(site: Site) -> None:
        found = site.ask(name, offset=0, limit=10, **values)
        assert (getattr(found, items), found.total_count) == ([], 0)
        assert site.ask(name, offset=7, **values).total_count == 0
        assert site.refused(name, **values | {"instance_id": f"{'0' * 32}in14"})[:2] == (404, "DBS.200002")

    return check


def list_restore_tables(site: Site) -> None:
    empty("list_restore_tables", "table_names", database_name="d")(site)


def restore_redis_data(site: Site) -> None:
    """A bucket that is not there is refused with words (what is imported, and how it ends: test_imports.py)."""
    body = sdk.RestoreRedisDataRequestBody(recovery_info=sdk.RecoveryInfo(bucket_name="nowhere", files=["a.rdb"]))
    status, code, words = site.refused("restore_redis_data", body=body)
    assert (status, code.startswith("DBS.")) == (400, True)
    assert "nowhere" in words


def show_redis_pitr_info(site: Site) -> None:
    """Of one that was never recorded (what is recorded and restored: test_points_in_time.py)."""
    assert site.ask("show_redis_pitr_info").storage == "0"


def redis_pitr_policy(site: Site) -> None:
    """Set, shown, turned off; what does not fit changes nothing."""
    instance = site.register()
    put = partial(site.ask, "set_redis_pitr_policy", instance_id=instance)
    put(body=sdk.SetRedisPitrPolicyRequestBody(enabled=True, interval=30, keep_days=2))
    for wrong, code in (({"keep_days": 8}, "DBS.280214"), ({"interval": 4}, "DBS.280001"), ({"interval": 121}, "DBS.280001")):
        body = sdk.SetRedisPitrPolicyRequestBody(enabled=True, **wrong)
        assert site.refused("set_redis_pitr_policy", instance_id=instance, body=body)[:2] == (400, code)
    shown = site.ask("show_redis_pitr_policy", instance_id=instance)
    assert (shown.enabled, shown.interval, shown.keep_days) == (True, 30, 2)
    put(body=sdk.SetRedisPitrPolicyRequestBody(enabled=False))
    assert site.ask("show_redis_pitr_policy", instance_id=instance).enabled is False


def restore_redis_pitr(site: Site) -> None:
    """A moment that nothing leads to is refused with words."""
    body = sdk.RestoreRedisPitrRequestBody(restore_time="2026-11-01T00:00:00+0000")
    status, code, words = site.refused("restore_redis_pitr", body=body)
    assert (status, code) == (400, "DBS.301024")
    assert "restorable periods" in words


def list_jobs(site: Site) -> None:
    found = site.ask("list_jobs", name="BackupInstance", status="Completed", limit=10)
    assert {(job.name, job.status, job.progress, job.fail_reason) for job in found.jobs} == {
        ("BackupInstance", "Completed", "", "")
    }
    assert site.ask("list_jobs", offset=1000).jobs == []
    at = [time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(time.time() - days * 86400)) for days in (40, 20, -1)]
    assert site.ask("list_jobs", start_time=at[1]).total_count >= 1, "a begin alone goes up to now"
    assert site.ask("list_jobs", end_time=at[2]).total_count >= 1, "an end alone begins 30 days before"
    assert site.ask("list_jobs", end_time=at[1]).total_count == 0
    for span in ({"start_time": at[0]}, {"start_time": at[0], "end_time": at[2]}, {"start_time": at[2], "end_time": at[1]}):
        assert site.refused("list_jobs", **span)[:2] == (400, "DBS.201215")
    assert site.refused("list_jobs", limit=30)[:2] == (400, "DBS.280439")


def list_nosql_task_list(site: Site) -> None:
    found = site.ask("list_nosql_task_list", job_status="Completed", limit="100")
    assert int(found.total_count) == len(found.schedules) >= 1
    assert site.ask("list_nosql_task_list", offset="1000").schedules == []
    assert site.ask("list_nosql_task_list", job_status="Canceled", job_name="DeleteBackup").schedules == []
    assert site.refused("list_nosql_task_list", job_status="Gone")[:2] == (400, "DBS.200001")


def cancel_instance_schedule_window(site: Site) -> None:
    """One that waits behind a running job of its instance is Pending."""
    (job,) = site.ask("list_jobs", name="BackupInstance", limit=10).jobs[-1:]
    status, code, words = site.refused("cancel_instance_schedule_window", job_id=job.id)
    assert (status, code) == (400, "DBS.212003")
    assert "Completed" in words
    waiting = Machine().uuid()
    with site.server.catalog() as catalog, catalog.write() as conn:  # as a job that no worker of this server takes
        row = dict(conn.execute(sa.select(t.job).where(t.job.c.id == job.id)).one()._mapping)
        new = {"id": waiting, "state": "QUEUED", "queue": "elsewhere", "finished_at": None, "unique_key": None, "owner": None}
        conn.execute(t.job.insert().values({**row, **new}))
    assert site.ask("list_nosql_task_list", job_status="Pending").total_count == "1"
    site.ask("cancel_instance_schedule_window", job_id=waiting)
    (found,) = site.ask("list_jobs", id=waiting).jobs
    assert (found.status, found.fail_reason) == ("Failed", "cancelled")


def list_instances(site: Site) -> None:
    newest = site.register()
    found = site.ask("list_instances", limit=1)
    assert [one.id for one in found.instances] == [newest], "newest first"
    (one,) = site.ask("list_instances", id=site.instance).instances
    assert (one.name, one.status, one.actions, one.datastore.type) == ("cache", "normal", [], "redis")
    for fits in (
        {"id": f"*{site.instance[4:20]}"},
        {"name": "*ach"},
        {"name": "cache", "mode": one.mode, "datastore_type": "redis"},
    ):
        assert [one.id for one in site.ask("list_instances", **fits).instances] == [site.instance], fits
    for other in ({"mode": "Cluster"}, {"vpc_id": "x"}, {"subnet_id": "x"}, {"datastore_type": "mongodb"}, {"offset": 1000}):
        assert site.ask("list_instances", **other).instances == [], other
    assert site.refused("list_instances", id="nonsense")[:2] == (400, "DBS.280404")


def create_instance(site: Site) -> None:
    """Strongroom makes no servers: without a backup it says so, and with one it asks for an empty instance of that name."""

    def body(info: Any) -> Any:
        datastore = {"type": "redis", "version": "6.2", "storage_engine": "rocksDB"}
        cloud = dict.fromkeys(("region", "availability_zone", "vpc_id", "subnet_id", "security_group_id"), "any")
        return {
            "name": "anew", "datastore": datastore, "mode": "Cluster", "password": "Any-pass-1", "flavor": [],
            "restore_info": info, **cloud,
        }  # fmt: skip

    status, code, words = site.refused("create_instance", body=body(None))
    assert (status, code) == (400, "DBS.200001")
    assert "makes no servers" in words
    status, code, words = site.refused("create_instance", body=body({"backup_id": site.backup}))
    assert (status, code) == (400, "DBS.200047")
    assert "register an empty one" in words


def delete_instance(site: Site) -> None:
    """Manual backups stay, automated ones go, held ones and the database's data are left alone; the bin shows it."""
    instance = site.register()
    manual, automated, held = (site.take(instance) for _ in range(3))
    with site.server.catalog() as catalog, catalog.write() as conn:
        conn.execute(sa.update(t.backup).where(t.backup.c.id.in_([automated, held])).values(origin="Auto"))
    site.server.cli("backup", "hold", held, "--reason", "evidence")
    job = site.ask("delete_instance", instance_id=instance).job_id
    assert site.ask("list_instances", id=instance).instances == []
    site.done(job, "DeleteAutomatedBackups")
    assert {one.id for one in site.ask("list_backups", instance_id=instance).backups} == {manual, held}
    kept = site.server.cli("job", "show", job)["result"]["kept"]
    assert [one["backup"] for one in kept] == [held]
    assert "evidence" in kept[0]["why"]
    assert site.refused("delete_instance", instance_id=instance)[:2] == (404, "DBS.200002")
    (binned,) = [one for one in site.ask("list_recycle_instances").instances if one.id == instance]
    assert binned.backup_id == held
    with site.redis.client() as client:
        assert client.dbsize() == 200


def list_recycle_instances(site: Site) -> None:
    instance = site.register()
    name = site.ask("list_instances", id=instance).instances[0].name
    site.done(site.ask("delete_instance", instance_id=instance).job_id, "DeleteAutomatedBackups")
    found = site.ask("list_recycle_instances", offset=0, limit=1)
    (one,) = found.instances
    assert (one.id, one.name, one.data_store.type, one.backup_id) == (instance, name, "redis", "")
    assert one.deleted_at < one.retained_until
    assert site.ask("list_recycle_instances", offset=found.total_count).instances == []


def recycle_policy(site: Site) -> None:
    for days in (3, 7):
        body = sdk.RecyclePolicyRequestBody(recycle_policy=sdk.RecyclePolicy(retention_period_in_days=days))
        site.ask("set_recycle_policy", body=body)
        assert site.ask("show_recycle_policy").recycle_policy.retention_period_in_days == days
    body = sdk.RecyclePolicyRequestBody(recycle_policy=sdk.RecyclePolicy(retention_period_in_days=8))
    assert site.refused("set_recycle_policy", body=body)[:2] == (400, "DBS.280214")


def show_quotas(site: Site) -> None:
    def shown(**values: Any) -> dict[str, tuple[int, int]]:
        return {one.type: (one.quota, one.used) for one in site.ask("show_quotas", **values).quotas.resources}

    assert shown()["instance"][0] == -1
    assert shown(datastore_type="mongodb") == {"instance": (-1, 0), "backup": (-1, 0), "stored_bytes": (-1, 0)}
    instances, used = shown()["instance"][1], shown(datastore_type="redis")
    assert instances >= 1
    assert used["backup"][1] >= 1
    site.server.cli("quota", "set", "--instances", str(instances), "--backups", "0", "--stored", "1G")
    try:
        assert (shown()["instance"], shown()["backup"][0], shown()["stored_bytes"][0]) == ((instances, instances), 0, 1 << 30)
        body = sdk.NoSqlCreateBackupRequestBody(name="one-more", description="")
        status, code, words = site.refused("create_back", body=body)
        assert (status, code) == (400, "DBS.212003")
        assert "quota of backups" in words
        new = {"name": "one-more", "engine": "redis", "address": site.redis.address}
        with site.server.http() as http:
            more = http.post(f"/strongroom/v1/{site.server.owner.project}/instances", json=new)
        assert (more.status_code, more.json()["error_code"]) == (400, "DBS.212003")
        assert "quota of instances" in more.json()["error_msg"]
        site.server.cli("quota", "set", "--backups", "none", "--stored", "1")
        assert "quota of stored bytes" in site.refused("create_back", body=body)[2]
    finally:
        told = site.server.cli("quota", "set", "--instances", "none", "--backups", "none", "--stored", "none")
    assert {one["quota"] for one in told["quotas"]} == {None}
    site.take()


def list_eps_quotas(site: Site) -> None:
    found = site.ask("list_eps_quotas", offset=0, limit=1)
    assert (found.quotas, found.total_count) == ([], 0)


def list_datastores(site: Site) -> None:
    assert site.ask("list_datastores", datastore_name="redis").versions == ["6.2", "7.0"]
    assert site.ask("list_datastores", datastore_name="mongodb").versions
    assert site.refused("list_datastores", datastore_name="mysql")[:2] == (400, "DBS.280235")


def tags(site: Site) -> None:
    """Put, changed, removed, listed, and instances found by them, under both paths."""
    instance = site.register()

    def act(action: str, **pairs: str | None) -> None:
        options = [sdk.BatchTagActionTagOption(key=key, value=value) for key, value in pairs.items()]
        site.ask("batch_tag_action", instance_id=instance, body=sdk.BatchTagActionRequestBody(action=action, tags=options))

    def tagged() -> dict[str, str]:
        return {tag.key: tag.value for tag in site.ask("list_instance_tags", instance_id=instance).tags}

    act("create", team="blue", stage="test", owner="")
    act("create", stage="live")
    assert tagged() == {"team": "blue", "stage": "live", "owner": ""}
    act("delete", owner=None, stage="test", gone=None)
    assert tagged() == {"team": "blue", "stage": "live"}
    every = site.ask("list_project_tags")
    assert ("user", "stage", ["live"]) in [(tag.type, tag.key, tag.values) for tag in every.tags]
    assert site.ask("list_project_tags", offset=every.total_count).tags == []
    for name, body in (
        ("list_instances_by_tags", sdk.ListInstancesByTagsRequestBody),
        ("list_instances_by_resource_tags", sdk.ListInstancesByTagsRequestBody),
    ):

        def found(make: Any = body, call: str = name, **said: Any) -> list[str]:
            return [one.instance_id for one in site.ask(call, body=make(**{"action": "filter", **said})).instances]

        def option(key: str, *values: str) -> Any:
            return sdk.TagOption(key=key, values=list(values))

        assert found(tags=[option("team", "red", "blue"), option("stage")]) == [instance]
        assert found(tags=[option("team", "blue"), option("stage", "test")]) == []
        assert found(matches=[sdk.MatchOption(key="instance_id", value=instance)]) == [instance]
        assert found(matches=[sdk.MatchOption(key="instance_name", value="*ach")]) == [site.instance]
        assert found(tags=[option("team")], offset="1", limit="1") == []
        counted = site.ask(name, body=body(action="count", tags=[option("team")]))
        assert (counted.total_count, counted.instances) == (1, [])
    assert [one["id"] for one in site.server.cli("instance", "list", "--tag", "team=blue")["instances"]] == [instance]
    bad = sdk.BatchTagActionRequestBody(action="create", tags=[sdk.BatchTagActionTagOption(key="a b", value="")])
    assert site.refused("batch_tag_action", body=bad)[:2] == (400, "DBS.280441")
    many = sdk.BatchTagActionRequestBody(
        action="create", tags=[sdk.BatchTagActionTagOption(key=f"k{number}", value="") for number in range(19)]
    )
    assert site.refused("batch_tag_action", instance_id=instance, body=many)[:2] == (400, "DBS.212003")
    act("delete", team=None, stage=None)


def versions(site: Site) -> None:
    listed = [one.id for one in site.ask("list_api_version").versions]
    assert listed == ["v3", "v3.1", "v4"]
    assert site.ask("show_api_version", version="v3").version.id == "v3"


MOMENTS = {"start_time": "2026-11-01T00:00:00+0000", "end_time": "2026-11-02T00:00:00+0000"}
CALLS: dict[str, Callable[[Site], None]] = {
    "delete_backup": delete_backup,
    "batch_delete_manual_backup": batch_delete_manual_backup,
    "create_back": create_back,
    "stop_backup": stop_backup,
    "list_backups": lists("list_backups"),
    "show_all_instances_backups_new": lists("show_all_instances_backups_new"),
    "show_all_instances_backups": lists("show_all_instances_backups"),
    "show_restorable_list": show_restorable_list,
    "restore_existing_instance": restore_existing_instance,
    "set_backup_policy": backup_policy,
    "show_backup_policy": backup_policy,
    "show_backup_policies": backup_policy,
    "list_restore_time": empty("list_restore_time", "restorable_time_periods"),
    "list_restore_databases": empty("list_restore_databases", "database_names"),
    "list_restore_tables": list_restore_tables,
    "restore_redis_data": restore_redis_data,
    "show_redis_pitr_info": show_redis_pitr_info,
    "set_redis_pitr_policy": redis_pitr_policy,
    "show_redis_pitr_policy": redis_pitr_policy,
    "restore_redis_pitr": restore_redis_pitr,
    "list_redis_pitr_restore_time": empty("list_redis_pitr_restore_time", "restore_time", **MOMENTS),
    "list_jobs": list_jobs,
    "list_nosql_task_list": list_nosql_task_list,
    "cancel_instance_schedule_window": cancel_instance_schedule_window,
    "list_instances": list_instances,
    "create_instance": create_instance,
    "delete_instance": delete_instance,
    "list_recycle_instances": list_recycle_instances,
    "show_recycle_policy": recycle_policy,
    "set_recycle_policy": recycle_policy,
    "show_quotas": show_quotas,
    "list_eps_quotas": list_eps_quotas,
    "list_datastores": list_datastores,
    "list_instance_tags": tags,
    "batch_tag_action": tags,
    "list_project_tags": tags,
    "list_instances_by_tags": tags,
    "list_instances_by_resource_tags": tags,
    "list_api_version": versions,
    "show_api_version": versions,
}


def test_every_call_that_works_is_here() -> None:
    """The page's, no more and no less."""
    assert CALLS.keys() == {name for name, one in sdk_calls.told().items() if one.outcome != "refused"}


@pytest.mark.parametrize(
    "check", dict.fromkeys(CALLS.values()), ids=lambda check: next(n for n, c in CALLS.items() if c is check)
)
def test_a_call_that_works(site: Site, check: Callable[[Site], None]) -> None:
    """As the page says."""
    check(site)


def test_every_refused_call_tells_the_sdk_why(site: Site) -> None:
    """With a code of the contract and words; nothing was there to be found."""
    ids = {"config_id": "0" * 36, "node_id": "0" * 32, "job_id": "0", "body": {}}
    for name, one in sdk_calls.told().items():
        if one.outcome == "refused":
            status, code, words = site.refused(name, **ids)
            assert (status, code) == ((404, "DBS.280016") if one.method == "GET" else (400, "DBS.212003")), name
            assert len(words) > 30, name
