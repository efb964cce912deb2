"""Restoring into a new instance, by the public SDK into one that is registered, and by an address of our own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huaweicloudsdkgaussdbfornosql.v3 import (
    CreateInstanceFlavorOption,
    CreateInstanceRequest,
    CreateInstanceRequestBody,
    DatastoreOption,
    RestoreInfo,
)

from support.redis_server import RedisServer, binaries, redis_server
from support.server import ServerProcess

pytestmark = pytest.mark.skipif(not binaries(), reason="no redis-server here")


@dataclass
class Site:
    server: ServerProcess
    spare: RedisServer
    backup: str

    def post(self, **body: Any) -> Any:
        with self.server.http() as http:
            return http.post(f"/v3/{self.server.owner.project}/instances", json=body)

    def names(self) -> set[str]:
        return {one["name"] for one in self.server.cli("instance", "list")["instances"]}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A source with a backup, and an empty server."""
    with (
        redis_server(tmp_path) as source,
        redis_server(tmp_path, password="p-w") as spare,
        ServerProcess(tmp_path / "data") as server,
        source.client() as client,
    ):
        client.mset({f"key:{number}": number for number in range(100)})
        server.cli("instance", "add", "cache", "--engine", "redis", "--address", source.address)
        yield Site(server, spare, server.cli("backup", "create", "cache", "first", "--wait")["backup_id"])


def test_the_sdk_restores_into_an_empty_instance_that_is_registered(site: Site) -> None:
    """All the SDK's mandatory fields are sent; the answer has the instance and its job."""
    body = CreateInstanceRequestBody(
        name="fresh", datastore=DatastoreOption(type="redis", version="7.0", storage_engine="rocksDB"),
        region="r", availability_zone="z", vpc_id="v", subnet_id="s", security_group_id="g", password="Unused_1", mode="Single",
        flavor=[CreateInstanceFlavorOption(num="1", storage="ULTRAHIGH", size="10", spec_code="c")],
        restore_info=RestoreInfo(backup_id=site.backup),
    )  # fmt: skip
    site.server.cli(
        "instance", "add", "fresh", "--engine", "redis", "--address", site.spare.address, "--password-stdin", stdin="p-w\n"
    )
    made = site.server.sdk().create_instance(CreateInstanceRequest(body=body))
    assert (made.name, made.datastore.type) == ("fresh", "redis")
    done = site.server.wait(made.job_id)
    assert done.status == "Completed", done.fail_reason
    assert done.instance.id == made.id
    with site.spare.client() as client:
        assert client.dbsize() == 100
    again = site.server.sdk().create_instance(CreateInstanceRequest(body=body))
    kept = site.server.wait(again.job_id)
    assert kept.status == "Failed"
    assert "100 keys in 1 databases" in kept.fail_reason


def test_an_address_of_our_own_is_registered_and_filled(site: Site) -> None:
    """And what cannot be done leaves no instance: a name that is taken, no address, a wrong password, another engine."""
    restore = {"restore_info": {"backup_id": site.backup}}
    where = {"address": site.spare.address, "password": "p-w"}
    for body, code in (
        ({"name": "fresh", **where}, "DBS.200001"),
        ({"name": "fresh", "restore_info": {}, **where}, "DBS.200001"),
        ({"name": "fresh", "restore_info": {"source_instance_id": "0" * 32 + "in14"}, **where}, "DBS.200001"),
        ({"name": "fresh", "restore_info": {"backup_id": "0" * 32 + "br14"}, **where}, "DBS.201214"),
        ({"name": "fresh", **restore}, "DBS.200047"),
        ({"name": "fresh", **restore, **where, "password": "wrong"}, "DBS.200047"),
        ({"name": "fresh", **restore, **where, "datastore": {"type": "mongodb"}}, "DBS.280235"),
        ({"name": "cache", **restore, **where}, "DBS.200022"),
        ({"name": "x", **restore, **where}, "DBS.280234"),
    ):
        answer = site.post(**body)
        assert (answer.status_code, answer.json()["error_code"]) == (400, code), (body, answer.text)
    unknown = {"source_instance_id": "0" * 32 + "in14", "restore_time": 1}
    answer = site.post(name="fresh", restore_info=unknown, **where)
    assert (answer.status_code, answer.json()["error_code"]) == (404, "DBS.200002"), answer.text
    assert site.names() == {"cache"}
    answer = site.post(name="fresh", **restore, **where)
    assert answer.status_code == 202, answer.text
    assert site.server.wait(answer.json()["job_id"]).status == "Completed"
    with site.spare.client() as client:
        assert client.dbsize() == 100
    assert site.names() == {"cache", "fresh"}


def test_who_may_register_but_not_restore_gets_no_data_out(site: Site) -> None:
    """A new instance takes both permissions."""
    policy = {
        "Version": "5.0",
        "Statement": [{"Effect": "Allow", "Action": ["gaussdbfornosql:instance:create"], "Resource": ["*"]}],
    }
    user = site.server.new_user(site.server.owner, "creator", policy, project=site.server.owner.project)
    body = {"name": "fresh", "restore_info": {"backup_id": site.backup}, "address": site.spare.address, "password": "p-w"}
    with site.server.http(user) as http:
        answer = http.post(f"/v3/{site.server.owner.project}/instances", json=body)
    assert answer.status_code == 403
    assert "gaussdbfornosql:instance:restore" in answer.json()["error_msg"]
    assert site.names() == {"cache"}
