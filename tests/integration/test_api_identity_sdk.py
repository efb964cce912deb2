"""The public SDK against the border on a real server: signatures, tokens, errors as it reads them."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import uvicorn
from fastapi import Query
from huaweicloudsdkcore.auth.credentials import BasicCredentials, GlobalCredentials
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkcore.http.http_config import HttpConfig
from huaweicloudsdkgaussdbfornosql.v3 import (
    BatchDeleteManualBackupRequest,
    BatchDeleteManualBackupRequestBody,
    DeleteBackupRequest,
    GaussDBforNoSQLClient,
    ListApiVersionRequest,
    ShowAllInstancesBackupsNewRequest,
    ShowApiVersionRequest,
)
from pydantic import BaseModel

from strongroom.ambient import Machine
from strongroom.api.app import build_app
from strongroom.api.authentication import Caller, authenticated_router, may
from strongroom.api.contract import BackupId, Between, JobAccepted, RowPage
from strongroom.api.services import Limits, Rate, Services
from strongroom.identity import accounts
from strongroom.identity.accounts import FirstStart
from strongroom.identity.principal import Principal
from strongroom.identity.secrets import Sealer
from support.border import PASSWORD, ROOT_KEY, new_catalog, quick_passwords

BACKUP = "5b0ae36cb8a746b68685a8fb588d8a15br06"
JOB = "f85104b5-4a9c-4e0f-9505-fc5409d8f7ae"
DELETE = "gaussdbfornosql:instance:deleteBackup"
router = authenticated_router("tests")
asked: list[Any] = []


class Batch(BaseModel):
    backup_ids: list[BackupId]


class Wanted(RowPage, Between):
    pass


@router.delete("/v3/{project_id}/instances/backups")
def delete_batch(batch: Batch, caller: Annotated[Principal, may(DELETE)]) -> None:
    asked.append(batch.backup_ids)


@router.delete("/v3/{project_id}/backups/{backup_id}", status_code=202)
def delete_one(backup_id: BackupId, caller: Annotated[Principal, may(DELETE)]) -> JobAccepted:
    asked.append((caller.user_name, caller.via))
    return JobAccepted(job_id=JOB)


@router.get("/v3.1/{project_id}/backups")
def list_backups(wanted: Annotated[Wanted, Query()], caller: Caller) -> dict[str, Any]:
    asked.append(wanted.checked())
    return {"total_count": 0, "backups": []}


class Server:
    """The border behind uvicorn on a free port of loopback."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.catalog, self.clock, self.sealer = new_catalog(folder), Machine(), Sealer(ROOT_KEY)
        passwords = quick_passwords()
        first = accounts.first_start(self.catalog, self.clock, self.sealer, password_hash=passwords.hash(PASSWORD))
        assert first is not None
        self.first: FirstStart = first
        app = build_app(Services(self.catalog, self.clock, self.sealer, passwords, limits or Limits()), [router])
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen()  # connections wait from here on
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(app, log_config=None, lifespan="off", server_header=False, timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._socket.close()
        self.catalog.close()

    def client(self, secret: str | None = None, project: str | None = None) -> GaussDBforNoSQLClient:
        key = self.first.key
        credentials = BasicCredentials(key.id, secret or key.secret, project or self.first.founded.project)
        builder = GaussDBforNoSQLClient.new_builder().with_credentials(credentials)
        config = HttpConfig.get_default_config()
        config.timeout = (5, 20)
        config.ignore_ssl_verification = True
        return builder.with_http_config(config).with_endpoint(f"http://127.0.0.1:{self.port}").build()

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, Any, Any]:
        """A request whose path goes out byte by byte."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def token(self) -> str:
        proof = {"user": {"name": "admin", "password": PASSWORD, "domain": {"name": "strongroom"}}}
        scope = {"project": {"name": "default"}}
        body = {"auth": {"identity": {"methods": ["password"], "password": proof}, "scope": scope}}
        json_type = {"Content-Type": "application/json"}
        status, headers, _ = self.ask("POST", "/v3/auth/tokens", json_type, json.dumps(body).encode())
        assert status == 201
        return str(headers["X-Subject-Token"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    asked.clear()
    made = Server(tmp_path)
    yield made
    made.stop()


def refusal(server: Server, **client: Any) -> tuple[int, str, str]:
    with pytest.raises(ClientRequestException) as caught:
        server.client(**client).delete_backup(DeleteBackupRequest(backup_id=BACKUP))
    return caught.value.status_code, caught.value.error_code, caught.value.error_msg


def test_the_sdk_lists_the_versions(server: Server) -> None:
    """All and one."""
    versions = server.client().list_api_version(ListApiVersionRequest()).versions
    assert [version.id for version in versions] == ["v3", "v3.1", "v4"]
    assert server.client().show_api_version(ShowApiVersionRequest(version="v3")).version.status == "CURRENT"


def test_the_sdk_deletes_with_its_signature(server: Server) -> None:
    """DELETE without a body, signed."""
    assert server.client().delete_backup(DeleteBackupRequest(backup_id=BACKUP)).job_id == JOB
    assert asked == [("admin", "signature")]


def test_the_sdk_deletes_with_a_token_besides(server: Server) -> None:
    """As preset header."""
    client = server.client()
    client.preset_headers = {"X-Auth-Token": server.token()}
    assert client.delete_backup(DeleteBackupRequest(backup_id=BACKUP)).job_id == JOB
    assert asked == [("admin", "both")]


def test_the_sdk_signs_bodies_and_queries(server: Server) -> None:
    """A DELETE with a body; a query with times, whose plus must survive."""
    body = BatchDeleteManualBackupRequestBody(backup_ids=[BACKUP])
    server.client().batch_delete_manual_backup(BatchDeleteManualBackupRequest(body=body))
    wanted = ShowAllInstancesBackupsNewRequest(
        begin_time="2019-05-27T03:38:51+0000", end_time="2019-05-28T03:38:51+0000", limit=10, offset=0
    )
    assert server.client().show_all_instances_backups_new(wanted).backups == []
    assert asked[0] == [BACKUP]
    assert (asked[1].begin_time, asked[1].end_time, asked[1].limit) == (1558928331.0, 1559014731.0, 10)


def test_the_sdk_reads_our_refusals(server: Server) -> None:
    """A wrong secret, another project, no permission: status, code and message."""
    status, code, message = refusal(server, secret="wrong")
    assert (status, code) == (401, "APIGW.0301")
    assert message.startswith("Incorrect IAM authentication information: ")
    assert refusal(server, project="0" * 32)[:2] == (400, "DBS.200010")
    with server.catalog.write() as conn:
        accounts.create_user(conn, server.clock, server.first.founded.account, "second", None, administrator=True)
        accounts.set_administrator(conn, server.clock, server.first.founded.user, False)
        accounts.grant(conn, server.clock, server.first.founded.user, "reader")
    status, code, message = refusal(server)
    assert (status, code) == (403, "DBS.280032")
    assert DELETE in message


def test_an_id_that_the_sdk_encodes_is_refused_and_never_another_call(server: Server) -> None:
    """The SDK sends a slash in an id as %2F."""
    with pytest.raises(ClientRequestException) as caught:
        server.client().delete_backup(DeleteBackupRequest(backup_id="a/b c"))
    assert (caught.value.status_code, caught.value.error_code) == (400, "DBS.201212")


def test_the_sdk_finds_its_project_and_account_by_itself(server: Server) -> None:
    """Without a project id it asks GET /v3/projects?name=, and GET /v3/auth/domains for the account."""
    key = server.first.key
    http = server.client().get_http_client()
    basic = BasicCredentials(key.id, key.secret).with_iam_endpoint(f"http://127.0.0.1:{server.port}")
    assert basic.process_auth_params(http, "default").project_id == server.first.founded.project
    account = GlobalCredentials(key.id, key.secret).with_iam_endpoint(f"http://127.0.0.1:{server.port}")
    assert account.process_auth_params(http, "default").domain_id == server.first.founded.account


def test_the_sdk_knows_that_it_was_too_fast(tmp_path: Path) -> None:
    """A 429 reaches its users as code "429" without our message: the SDK's HTTP client drops the body. Others read it."""
    server = Server(tmp_path, Limits(per_user=Rate(0.01, 1)))
    try:
        headers = {"X-Auth-Token": server.token()}
        server.client().delete_backup(DeleteBackupRequest(backup_id=BACKUP))
        with pytest.raises(ClientRequestException) as caught:
            server.client().delete_backup(DeleteBackupRequest(backup_id=BACKUP))
        status, answered, body = server.ask("GET", "/v3/auth/domains", headers)
    finally:
        server.stop()
    assert (caught.value.status_code, caught.value.error_code) == (429, "429")
    assert (status, body["error_code"], answered["Retry-After"]) == (429, "DBS.280443", "100")


def test_the_raw_path_decides_on_a_real_server(server: Server) -> None:
    """uvicorn decodes the path; routing does not follow it."""
    headers = {"X-Auth-Token": server.token(), "Content-Type": "application/json"}
    project = server.first.founded.project
    status, _, body = server.ask("DELETE", f"/v3/{project}/backups/{BACKUP}%2Fx", headers)
    assert (status, body["error_code"]) == (400, "DBS.201212")
    status, _, body = server.ask("DELETE", f"/v3/{project}/backups/%35{BACKUP[1:]}", headers)
    assert (status, body["job_id"]) == (202, JOB)


def test_a_body_above_the_limit_is_refused_on_a_real_server(server: Server) -> None:
    """Before it was read whole."""
    headers = {"X-Auth-Token": server.token(), "Content-Type": "application/json"}
    path = f"/v3/{server.first.founded.project}/instances/backups"
    status, answered, body = server.ask("DELETE", path, headers, b" " * (1024 * 1024 + 1))
    assert (status, body["error_code"]) == (413, "APIGW.0201")
    assert answered["X-Request-Id"]
