"""Automated backups through the public SDK and the command line, against a real server and a real Redis."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkgaussdbfornosql.v3 import (
    BackupPolicy,
    DeleteBackupRequest,
    GaussDBforNoSQLClient,
    ListBackupsRequest,
    ListInstancesRequest,
    SetBackupPolicyRequest,
    SetBackupPolicyRequestBody,
    ShowBackupPoliciesRequest,
    ShowBackupPolicyRequest,
)

from support.redis_server import RedisServer, redis_server
from support.server import ServerProcess
from support.windows import far_window, open_window

EVERY_DAY = "1,2,3,4,5,6,7"


@dataclass
class Site:
    """A server with one instance."""

    server: ServerProcess
    sdk: GaussDBforNoSQLClient
    redis: RedisServer
    instance: str

    def put(self, **policy: Any) -> None:
        body = SetBackupPolicyRequestBody(backup_policy=BackupPolicy(**policy))
        self.sdk.set_backup_policy(SetBackupPolicyRequest(instance_id=self.instance, body=body))

    def shown(self) -> tuple[int, str, str]:
        """The same in both calls."""
        with pytest.warns(DeprecationWarning, match="show_backup_policy"):
            old = self.sdk.show_backup_policy(ShowBackupPolicyRequest(instance_id=self.instance)).backup_policy
        new = self.sdk.show_backup_policies(ShowBackupPoliciesRequest(instance_id=self.instance)).backup_policy
        assert (old.keep_days, old.start_time, old.period) == (new.keep_days, new.start_time, new.period)
        return old.keep_days, old.start_time, old.period

    def strategy(self) -> tuple[str, int]:
        """What the instances' list says."""
        (one,) = self.sdk.list_instances(ListInstancesRequest(id=self.instance)).instances
        return one.backup_strategy.start_time, one.backup_strategy.keep_days

    def automated(self, instance: str) -> list[Any]:
        return list(self.sdk.list_backups(ListBackupsRequest(instance_id=instance, backup_type="Auto")).backups)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with redis_server(folder) as redis, ServerProcess(folder / "data") as server:
        key = server.cli("instance", "add", "cache", "--engine", "redis", "--address", redis.address)["id"]
        yield Site(server, server.sdk(), redis, key)
        assert server.stop() == 0


def test_a_policy_is_set_shown_and_turned_off(site: Site) -> None:
    """A change shows at once, in the instances' list too; off, nothing but zero days is told."""
    soon, later = far_window(), far_window(9)
    assert site.shown() == (0, "", "")
    site.put(keep_days=7, start_time=soon, period="1,5")
    assert site.shown() == (7, soon, "1,5")
    assert site.strategy() == (soon, 7)
    site.put(keep_days=1, start_time=later, period=EVERY_DAY)
    assert site.shown() == (1, later, EVERY_DAY)
    site.put(keep_days=0)
    assert site.shown() == (0, "", "")
    assert site.strategy() == ("", 0)


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ({"keep_days": 36, "start_time": "01:00-02:00", "period": EVERY_DAY}, "DBS.280214"),
        ({"keep_days": 7, "start_time": "01:00-03:00", "period": EVERY_DAY}, "DBS.280216"),
        ({"keep_days": 7, "start_time": "01:05-02:05", "period": EVERY_DAY}, "DBS.280216"),
        ({"keep_days": 7, "start_time": "01:00-02:00", "period": "1,8"}, "DBS.280215"),
        ({"keep_days": 6, "start_time": "01:00-02:00", "period": "1,2"}, "DBS.280215"),
        ({"keep_days": 7, "start_time": "01:00-02:00"}, "DBS.280125"),
    ],
)
def test_a_wrong_policy_changes_nothing(site: Site, policy: dict[str, Any], code: str) -> None:
    """Each with its own code."""
    window = far_window()
    site.put(keep_days=9, start_time=window, period="3,4")
    with pytest.raises(ClientRequestException) as error:
        site.put(**policy)
    assert (error.value.status_code, error.value.error_code) == (400, code)
    assert site.shown() == (9, window, "3,4")
    site.put(keep_days=0)


def test_an_automated_backup_is_taken_and_goes_by_policy_alone(site: Site) -> None:
    """One backup in a window that is open; refused to a delete by hand while the policy is on, deleted with it off."""
    with site.redis.client() as client:
        client.set("key", "value")
    window = open_window()
    told = site.server.cli("schedule", "set", "cache", "--keep-days", "2", "--window", window)
    assert told["start_time"] == window
    backup = wait_for_automated(site, site.instance)
    assert (backup.type, backup.status) == ("Auto", "COMPLETED")
    assert backup.name.startswith("auto-")
    with pytest.raises(ClientRequestException) as error:
        site.sdk.delete_backup(DeleteBackupRequest(backup_id=backup.id))
    assert (error.value.status_code, error.value.error_code) == (400, "DBS.212003")
    assert "policy" in error.value.error_msg
    assert site.server.cli("schedule", "show", "cache")["keep_days"] == 2
    site.server.cli("schedule", "off", "cache")
    assert [one.id for one in site.automated(site.instance)] == [backup.id]
    job = site.sdk.delete_backup(DeleteBackupRequest(backup_id=backup.id)).job_id
    assert site.server.wait(job).status == "Completed"


def test_unregistering_deletes_what_was_automated(site: Site) -> None:
    """By the job that it names."""
    leaving = site.server.cli("instance", "add", "leaving", "--engine", "redis", "--address", site.redis.address)["id"]
    site.server.cli("schedule", "set", "leaving", "--keep-days", "2", "--window", open_window())
    wait_for_automated(site, leaving)
    removed = site.server.cli("instance", "remove", "leaving", "--yes")
    done = site.server.wait(removed["job_id"])
    assert (done.status, done.name) == ("Completed", "DeleteAutomatedBackups")
    assert site.automated(leaving) == []


def wait_for_automated(site: Site, instance: str) -> Any:
    """The automated backup of the open window, when it has ended."""
    end = time.monotonic() + 120
    while not (found := site.automated(instance)) or found[0].status == "BUILDING":
        assert time.monotonic() < end, found
        time.sleep(0.2)
    (backup,) = found
    return backup
