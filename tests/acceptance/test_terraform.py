"""The public Terraform provider itself, unchanged, against a real server: create, read, list, import, stop, policy, destroy.

Terraform is taken from PATH or TERRAFORM, the provider from TERRAFORM_PROVIDER_HUAWEICLOUD: its built program
(`go build` in a checkout of its repository, which holds all that it depends on; nobody distributes it where tests could fetch
it). What it puts on the wire is sent again without it by test_terraform_wire.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.redis_server import RedisServer, binaries, redis_server
from support.server import ServerProcess

TERRAFORM = os.environ.get("TERRAFORM") or shutil.which("terraform")
PROVIDER = os.environ.get("TERRAFORM_PROVIDER_HUAWEICLOUD")

pytestmark = [
    pytest.mark.skipif(not binaries(), reason="no redis-server here"),
    pytest.mark.skipif(not TERRAFORM, reason="needs terraform on PATH or in TERRAFORM"),
    pytest.mark.skipif(not PROVIDER, reason="needs the provider's program in TERRAFORM_PROVIDER_HUAWEICLOUD"),
    pytest.mark.timeout(600),
]

_HEAD = """
terraform {
  required_providers {
    huaweicloud = { source = "huaweicloud/huaweicloud" }
  }
}
provider "huaweicloud" {
  region    = "local"
  auth_url  = "ENDPOINT/v3"
  endpoints = { geminidb = "ENDPOINT/", iam = "ENDPOINT/" }
}
"""


@dataclass
class Site:
    """A server with a Redis, and a folder that Terraform works in."""

    server: ServerProcess
    redis: RedisServer
    instance: str
    folder: Path

    def write(self, text: str) -> None:
        """What is wanted from now on."""
        (self.folder / "main.tf").write_text(_HEAD.replace("ENDPOINT", self.server.credentials["endpoint"]) + text)

    def terraform(self, *words: str, fails: bool = False) -> str:
        """One run; its output. Credentials go by the environment alone."""
        told = self.server.credentials
        environment = {
            **os.environ, "TF_CLI_CONFIG_FILE": str(self.folder / "terraform.rc"), "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION":
            "1", "HW_ACCESS_KEY": told["access_key"], "HW_SECRET_KEY": told["secret_key"], "HW_PROJECT_ID": told["project_id"],
        }  # fmt: skip
        assert TERRAFORM is not None
        done = subprocess.run(
            [TERRAFORM, *words, "-no-color"], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip
        assert (done.returncode != 0) is fails, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def apply(self, text: str) -> Mapping[str, Any]:
        """Makes it so; the outputs."""
        self.write(text)
        self.terraform("apply", "-auto-approve", "-input=false")
        return {name: one["value"] for name, one in json.loads(self.terraform("output", "-json")).items()}

    def own(self, rest: str) -> Any:
        """One of our own look-ups."""
        with self.server.http() as http:
            answer = http.get(f"/strongroom/v1/{self.server.owner.project}/{rest}")
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("terraform")
    assert PROVIDER is not None
    plugins = folder / "plugins"
    plugins.mkdir()
    (plugins / "terraform-provider-huaweicloud").symlink_to(Path(PROVIDER).resolve())
    (folder / "terraform.rc").write_text(
        f'provider_installation {{\n  dev_overrides {{ "huaweicloud/huaweicloud" = "{plugins}" }}\n  direct {{}}\n}}\n'
    )
    with redis_server(folder) as redis, ServerProcess(folder / "data") as server:
        with redis.client() as client:
            client.mset({f"key:{number}": "v" * 100 for number in range(500)})
        key = server.cli("instance", "add", "cache", "--engine", "redis", "--address", redis.address)["id"]
        yield Site(server, redis, key, folder)
        assert server.stop() == 0


def _backups(site: Site, *names: str) -> str:
    return "".join(
        f'resource "huaweicloud_geminidb_backup" "{name}" {{\n  instance_id = "{site.instance}"\n  name = "{name}"\n'
        f'  description = "of {name}"\n}}\noutput "{name}" {{ value = huaweicloud_geminidb_backup.{name} }}\n'
        for name in names
    )


def test_backups_are_created_read_imported_and_destroyed(site: Site) -> None:
    """Two side by side on one instance; nothing is to be changed afterwards; a delete frees one and leaves the other."""
    made = site.apply(_backups(site, "first", "second"))
    for name in ("first", "second"):
        found = made[name]
        assert (found["status"], found["type"], found["description"]) == ("COMPLETED", "Manual", f"of {name}")
        assert found["size"] > 0
    assert "No changes" in site.terraform("plan", "-input=false")
    site.terraform("state", "rm", "huaweicloud_geminidb_backup.first")
    site.terraform("import", "-input=false", "huaweicloud_geminidb_backup.first", made["first"]["id"])
    assert "No changes" in site.terraform("plan", "-input=false")
    left = site.apply(_backups(site, "second"))
    assert left["second"]["id"] == made["second"]["id"]
    deletion = site.own(f"deletions/{made['first']['id']}")
    assert deletion["state"] in ("running", "done")
    listed = site.server.cli("backup", "list")
    assert made["first"]["id"] not in json.dumps(listed)
    site.terraform("destroy", "-auto-approve", "-input=false")
    assert site.server.cli("backup", "list")["backups"] == []


def test_a_backup_that_went_otherwise_is_made_again(site: Site) -> None:
    """What somebody deleted by the command line is noticed, planned anew, and destroyed without an error."""
    made = site.apply(_backups(site, "third"))
    site.server.cli("backup", "delete", made["third"]["id"], "--yes", "--wait")
    assert "1 to add" in site.terraform("plan", "-input=false")
    again = site.apply(_backups(site, "third"))
    assert again["third"]["id"] != made["third"]["id"]
    site.server.cli("backup", "delete", again["third"]["id"], "--yes", "--wait")
    site.terraform("destroy", "-auto-approve", "-input=false")


def test_what_can_be_looked_up(site: Site) -> None:
    """Every data source of the backup's family."""
    found = site.apply(
        _backups(site, "fourth")
        + f"""
data "huaweicloud_geminidb_backups" "all" {{
  instance_id = "{site.instance}"
  depends_on  = [huaweicloud_geminidb_backup.fourth]
}}
data "huaweicloud_geminidb_jobs" "all" {{ depends_on = [huaweicloud_geminidb_backup.fourth] }}
data "huaweicloud_geminidb_instances" "all" {{}}
data "huaweicloud_geminidb_restorable_time_window" "all" {{ instance_id = "{site.instance}" }}
data "huaweicloud_geminidb_table_restored_databases" "all" {{ instance_id = "{site.instance}" }}
data "huaweicloud_geminidb_quotas" "all" {{}}
data "huaweicloud_geminidb_database_versions" "all" {{ datastore_name = "redis" }}
data "huaweicloud_geminidb_scheduled_tasks" "all" {{}}
data "huaweicloud_geminidb_project_tags" "all" {{}}
data "huaweicloud_geminidb_recycling_instances" "all" {{}}
output "backups" {{ value = data.huaweicloud_geminidb_backups.all.backups }}
output "jobs" {{ value = data.huaweicloud_geminidb_jobs.all.jobs }}
output "instances" {{ value = data.huaweicloud_geminidb_instances.all.instances }}
output "windows" {{ value = data.huaweicloud_geminidb_restorable_time_window.all.restorable_time_periods }}
output "databases" {{ value = data.huaweicloud_geminidb_table_restored_databases.all.database_names }}
output "quotas" {{ value = data.huaweicloud_geminidb_quotas.all.quotas }}
output "versions" {{ value = data.huaweicloud_geminidb_database_versions.all.versions }}
"""
    )
    assert [one["id"] for one in found["backups"]] == [found["fourth"]["id"]]
    assert "BackupInstance" in {one["name"] for one in found["jobs"]}
    assert [one["id"] for one in found["instances"]] == [site.instance]
    assert found["windows"] == found["databases"] == []
    assert found["versions"]
    site.terraform("destroy", "-auto-approve", "-input=false")


def test_a_recycling_policy_is_set(site: Site) -> None:
    """It takes and shows the days."""
    site.apply('resource "huaweicloud_geminidb_recycling_policy" "days" { retention_period_in_days = 5 }\n')
    with site.server.http() as http:
        told = http.get(f"/v3/{site.server.owner.project}/instances/recycle-policy").json()
    assert told["recycle_policy"]["retention_period_in_days"] == 5
    site.terraform("destroy", "-auto-approve", "-input=false")


def test_a_backup_policy_is_set(site: Site) -> None:
    """Of an instance that was imported; what a cloud would say of its hardware and network counts for nothing."""
    text = """
resource "huaweicloud_geminidb_instance" "cache" {
  name              = "cache"
  mode              = "Single"
  availability_zone = "here"
  vpc_id            = "none"
  subnet_id         = "none"
  security_group_id = "none"
  password          = "unused"
  datastore {
    type           = "redis"
    version        = "7.0"
    storage_engine = "rocksDB"
  }
  flavor {
    num       = "1"
    size      = "16"
    storage   = "ULTRAHIGH"
    spec_code = "none"
  }
  backup_strategy {
    start_time = "03:00-04:00"
    keep_days  = DAYS
  }
  lifecycle {
    ignore_changes = [mode, availability_zone, vpc_id, subnet_id, security_group_id, password, datastore, flavor]
  }
}
"""
    site.write(text.replace("DAYS", "9"))
    site.terraform("import", "-input=false", "huaweicloud_geminidb_instance.cache", site.instance)
    for days in (9, 0):
        site.apply(text.replace("DAYS", str(days)))
        with site.server.http() as http:
            told = http.get(f"/v3/{site.server.owner.project}/instances/{site.instance}/backups/policy").json()
        assert told["backup_policy"]["keep_days"] == days
    site.terraform("state", "rm", "huaweicloud_geminidb_instance.cache")
    site.write("")


def test_a_backup_that_is_being_taken_is_stopped(site: Site) -> None:
    """By the resource that is there for it."""
    with site.redis.client() as client:
        for number in range(40):
            client.set(f"large:{number}", os.urandom(1 << 20))
    site.server.cli("instance", "limit", site.instance, "--speed", "1M")
    made = site.server.cli("backup", "create", site.instance, "slow")
    backup = made["backup_id"]
    site.apply(f'resource "huaweicloud_geminidb_backup_stop" "it" {{ backup_id = "{backup}" }}\n')
    end = time.monotonic() + 60
    while (state := site.server.cli("backup", "show", backup)["status"]) != "FAILED":
        assert time.monotonic() < end, state
        time.sleep(0.5)
    site.server.cli("instance", "limit", site.instance, "--speed", "none")
    site.terraform("destroy", "-auto-approve", "-input=false")
    site.server.cli("backup", "delete", backup, "--yes", "--wait")
