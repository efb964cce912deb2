"""Identity on a real server: managed by commands alone, used by the public SDK."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkgaussdbfornosql.v3 import (
    DeleteBackupRequest,
    GaussDBforNoSQLClient,
    ListJobsRequest,
    ShowAllInstancesBackupsNewRequest,
)

from strongroom.identity.totp import code_at
from support.server import Keys, ServerProcess

BACKUP = "5b0ae36cb8a746b68685a8fb588d8a15br06"
PASSWORD = "Correct-horse-7"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all: each test makes users of its own."""
    with ServerProcess(tmp_path_factory.mktemp("identity") / "data") as running:
        yield running


def new_user(server: ServerProcess, name: str, *policies: str, password: bool = False) -> Keys:
    """By commands: a user with a key, and what they may."""
    words = ["user", "add", name, *(["--password-stdin"] if password else [])]
    server.cli(*words, stdin=f"{PASSWORD}\n" if password else None)
    for policy in policies:
        server.cli("user", "grant", name, policy)
    key, owner = server.cli("key", "add", name), server.owner
    return Keys(owner.account, owner.domain, owner.project, name, PASSWORD, key["access_key"], key["secret_key"])


def lists(client: GaussDBforNoSQLClient) -> Any:
    return client.show_all_instances_backups_new(ShowAllInstancesBackupsNewRequest()).backups


def refused(call: Any, *arguments: Any) -> tuple[int, str]:
    with pytest.raises(ClientRequestException) as error:
        call(*arguments)
    return error.value.status_code, error.value.error_code


def test_commands_alone_make_a_user_whom_the_sdk_knows_and_take_everything_back(server: ServerProcess) -> None:
    """A key signs at once, and signs nothing the moment it is disabled, enabled again, removed."""
    ulla = new_user(server, "ulla", "reader")
    sdk = server.sdk(ulla)
    assert lists(sdk) == []
    assert refused(sdk.delete_backup, DeleteBackupRequest(backup_id=BACKUP)) == (403, "DBS.280032")
    server.cli("key", "disable", ulla.access_key)
    assert refused(lists, sdk) == (401, "APIGW.0301")
    server.cli("key", "enable", ulla.access_key)
    assert lists(sdk) == []
    server.cli("group", "add", "deleters")
    server.cli("group", "grant", "deleters", "administrator", "--project", "default")
    server.cli("group", "join", "deleters", "ulla")
    assert refused(sdk.delete_backup, DeleteBackupRequest(backup_id=BACKUP)) == (400, "DBS.201214")
    server.cli("group", "leave", "deleters", "ulla")
    assert refused(sdk.delete_backup, DeleteBackupRequest(backup_id=BACKUP)) == (403, "DBS.280032")
    server.cli("user", "revoke", "ulla", "reader")
    assert refused(lists, sdk) == (400, "DBS.200010")
    server.cli("user", "remove", "ulla", "--yes")
    assert refused(lists, sdk) == (401, "APIGW.0301")
    assert "ulla" not in [one["name"] for one in server.cli("user", "list")["users"]]


def test_a_policy_by_command_decides_as_its_simulation_says(server: ServerProcess, tmp_path: Path) -> None:
    """Deleting only from another network: the simulation names the statement, the SDK meets it."""
    otto, file = new_user(server, "otto"), tmp_path / "policy.json"
    allow = {"Sid": "All", "Effect": "Allow", "Action": "*"}
    deny = {
        "Sid": "NotFromHere", "Effect": "Deny", "Action": "nosql:backup:delete",
        "Condition": {"IpAddress": {"g:SourceIp": "127.0.0.0/8"}},
    }  # fmt: skip
    file.write_text(json.dumps({"Version": "5.0", "Statement": [allow, deny]}))
    server.cli("policy", "put", "guarded", str(file))
    server.cli("user", "grant", "otto", "guarded")
    words = ("policy", "simulate", "otto", "nosql:backup:delete", "--project", "default", "--context")
    found = server.cli(*words, "g:SourceIp=127.0.0.1", status=1)
    assert (found["policy"], found["statement"], found["sid"]) == ("guarded", 2, "NotFromHere")
    assert server.cli(*words, "g:SourceIp=192.0.2.7")["statement"] == 1
    sdk = server.sdk(otto)
    assert refused(sdk.delete_backup, DeleteBackupRequest(backup_id=BACKUP)) == (403, "DBS.280032")
    assert lists(sdk) == []
    file.write_text(json.dumps({"Version": "5.0", "Statement": [allow, deny | {"Condition": {"Resembles": {}}}]}))
    server.cli("policy", "put", "guarded", str(file), status=1)
    assert json.loads(server.cli("policy", "show", "guarded")["document"])["Statement"] == [allow, deny]


def test_deleting_with_a_second_factor_only(server: ServerProcess, tmp_path: Path) -> None:
    """A key and a password alone may not, a token by password and code may, and temporary credentials made from it."""
    anna, file = new_user(server, "anna", "reader", password=True), tmp_path / "policy.json"
    statement = {"Effect": "Allow", "Action": "nosql:backup:delete", "Condition": {"Bool": {"g:MFAPresent": ["true"]}}}
    file.write_text(json.dumps({"Version": "5.0", "Statement": [statement]}))
    server.cli("policy", "put", "second-factor", str(file))
    server.cli("user", "grant", "anna", "second-factor")
    secret = base64.b32decode(server.cli("user", "totp", "enrol", "anna")["secret"])
    server.cli("user", "totp", "confirm", "anna", stdin=f"{code_at(secret, int(time.time() // 30))}\n")
    assert refused(server.sdk(anna).delete_backup, DeleteBackupRequest(backup_id=BACKUP)) == (403, "DBS.280032")
    proof = {"user": {"name": "anna", "password": PASSWORD, "domain": {"name": anna.domain}}}
    code = code_at(secret, int(time.time() // 30) + 1)  # the next one: the present one confirmed
    identity = {"methods": ["password", "totp"], "password": proof, "totp": {"user": {"name": "anna", "passcode": code}}}
    body = {"auth": {"identity": identity, "scope": {"project": {"name": "default"}}}}
    with server.http(signed=False) as client:
        without = {"identity": {"methods": ["password"], "password": proof}}
        assert client.post("/v3/auth/tokens", json={"auth": without}).status_code == 401
        made = client.post("/v3/auth/tokens", json=body)
        assert made.status_code == 201
        assert client.post("/v3/auth/tokens", json=body).status_code == 401
        token = {"X-Auth-Token": made.headers["X-Subject-Token"]}
        assert delete(client, anna, token) == (400, "DBS.201214")
        lent = client.post(
            "/v3.0/OS-CREDENTIAL/securitytokens", headers=token, json={"auth": {"identity": {"methods": ["token"]}}}
        ).json()["credential"]
    credentials = BasicCredentials(lent["access"], lent["secret"], anna.project).with_security_token(lent["securitytoken"])
    sdk = GaussDBforNoSQLClient.new_builder().with_credentials(credentials)
    lender = sdk.with_endpoint(server.credentials["endpoint"]).build()
    assert refused(lender.delete_backup, DeleteBackupRequest(backup_id=BACKUP)) == (400, "DBS.201214")
    assert lender.list_jobs(ListJobsRequest()).jobs == []
    without_token = server.sdk(Keys(anna.account, anna.domain, anna.project, "anna", "", lent["access"], lent["secret"]))
    assert refused(lists, without_token) == (401, "APIGW.0301")
    server.cli("user", "password", "anna", stdin="Another-word-8\n")
    assert refused(lists, lender) == (401, "APIGW.0301")


def delete(client: httpx.Client, keys: Keys, token: dict[str, str]) -> tuple[int, str]:
    answer = client.delete(f"/v3/{keys.project}/backups/{BACKUP}", headers=token)
    return answer.status_code, answer.json()["error_code"]


def test_a_temporary_key_of_the_administrator_manages_nothing(server: ServerProcess) -> None:
    """What is lent for an hour makes nothing that stays."""
    with server.http(signed=False) as client:
        lent = client.post(
            "/v3.0/OS-CREDENTIAL/securitytokens",
            headers={"X-Auth-Token": server.token()},
            json={"auth": {"identity": {"methods": ["token"], "token": {"duration_seconds": 3600}}}},
        ).json()["credential"]
    owner = server.owner
    keys = Keys(owner.account, owner.domain, owner.project, "admin", "", lent["access"], lent["secret"])
    with server.http(keys) as client:
        client.headers["X-Security-Token"] = lent["securitytoken"]
        assert client.get(f"/v3.1/{owner.project}/backups").status_code == 200
        assert client.post("/strongroom/v1/identity/users/admin/keys").status_code == 403
    assert server.cli("key", "list", "admin")["keys"][-1]["expires_at"]


def test_a_rest_outlives_a_restart(server: ServerProcess) -> None:
    """Five wrong passwords, kill -9: the right one is still refused, the key is not."""
    rest = new_user(server, "rest", "reader", password=True)

    def enter(password: str) -> int:
        proof = {"user": {"name": "rest", "password": password, "domain": {"name": rest.domain}}}
        with server.http(signed=False) as client:
            body = {"auth": {"identity": {"methods": ["password"], "password": proof}}}
            return client.post("/v3/auth/tokens", json=body).status_code

    assert enter(PASSWORD) == 201
    assert [enter("guess") for _ in range(5)] == [401] * 5
    server.kill()
    server.start()
    assert enter(PASSWORD) == 401
    assert lists(server.sdk(rest)) == []
    assert server.cli("user", "show", "rest")["resting_until"]
