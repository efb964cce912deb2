"""Who may pass the border: tokens, signatures, both, neither; and in which order refusals come."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.signer import Signer
from pydantic import BaseModel, Field

from strongroom.api.authentication import Caller, authenticated_router, may
from strongroom.api.contract import BackupId
from strongroom.identity import accounts
from strongroom.identity.accounts import AccessKey
from strongroom.identity.principal import Principal
from support.border import House, build_house

BACKUP = "5b0ae36cb8a746b68685a8fb588d8a15br06"
DELETE = "gaussdbfornosql:instance:deleteBackup"
router = authenticated_router("tests")


class Batch(BaseModel):
    backup_ids: list[BackupId] = Field(min_length=1, max_length=10)


@router.delete("/v3/{project_id}/instances/backups")
def delete_batch(batch: Batch, caller: Annotated[Principal, may(DELETE)]) -> dict[str, Any]:
    return {"backup_ids": batch.backup_ids}


@router.delete("/v3/{project_id}/backups/{backup_id}", status_code=202)
def delete_one(backup_id: BackupId, caller: Annotated[Principal, may(DELETE)]) -> dict[str, Any]:
    return {"backup_id": backup_id, "user": caller.user_name, "via": caller.via, "project": caller.project}


@router.get("/v3/{project_id}/backups/{backup_id}/restorable-instances")
def nested(backup_id: BackupId, caller: Caller) -> dict[str, str]:
    return {"nested": backup_id}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build_house(tmp_path, [router])


def path(house: House, backup: str = BACKUP, project: str | None = None) -> str:
    return f"/v3/{project or house.project}/backups/{backup}"


def signed(house: House, key: AccessKey | None = None, method: str = "DELETE", url: str = "", body: str = "") -> dict[str, str]:
    """The headers that the SDK's signer makes."""
    key = key or house.first.key
    request = SdkRequest(
        method=method, schema="http", host="strongroom.test", resource_path=url or path(house), query_params=[],
        header_params={"Content-Type": "application/json", "X-Sdk-Date": "20261124T120000Z"}, body=body,
    )  # fmt: skip
    Signer(BasicCredentials(key.id, key.secret)).sign(request)
    return dict(request.header_params)


def code(answer: httpx.Response) -> tuple[int, str]:
    assert set(answer.json()) == {"error_code", "error_msg"}
    assert answer.headers["X-Request-Id"]
    return answer.status_code, answer.json()["error_code"]


def test_a_token_alone_a_signature_alone_and_both_are_taken(house: House) -> None:
    """And the handler is told which it was."""
    token = house.token()
    for headers, via in ((token, "token"), (signed(house), "signature"), (token | signed(house), "both")):
        answer = house.request("DELETE", path(house), headers=headers)
        assert answer.status_code == 202, answer.text
        assert answer.json() == {"backup_id": BACKUP, "user": "admin", "via": via, "project": house.project}


def test_nothing_is_refused_with_401(house: House) -> None:
    """In the contract's words."""
    answer = house.request("DELETE", path(house))
    assert code(answer) == (401, "APIGW.0301")
    assert answer.json()["error_msg"].startswith("Incorrect IAM authentication information: ")


@pytest.mark.parametrize("token", ["", "nonsense", "x" * 5000])
def test_a_bad_token_is_refused(house: House, token: str) -> None:
    """Whatever it looks like, and beside a good signature too."""
    assert code(house.request("DELETE", path(house), headers={"X-Auth-Token": token})) == (401, "APIGW.0301")
    both = signed(house) | {"X-Auth-Token": token}
    assert code(house.request("DELETE", path(house), headers=both)) == (401, "APIGW.0301")


def test_an_expired_token_is_refused(house: House) -> None:
    """After 24 hours."""
    token = house.token()
    house.clock.sleep(24 * 3600)
    assert code(house.request("DELETE", path(house), headers=token)) == (401, "APIGW.0301")


def test_a_wrong_signature_is_refused_beside_a_good_token_too(house: House) -> None:
    """What is presented must hold."""
    wrong = signed(house, AccessKey(house.first.key.id, "guessed"))
    assert code(house.request("DELETE", path(house), headers=wrong)) == (401, "APIGW.0301")
    assert code(house.request("DELETE", path(house), headers=wrong | house.token())) == (401, "APIGW.0301")


def test_a_token_and_a_signature_of_two_users_are_refused(house: House) -> None:
    """Nobody could say who asked."""
    house.new_user("ulla", "administrator")
    both = signed(house) | house.token("ulla")
    assert code(house.request("DELETE", path(house), headers=both)) == (401, "APIGW.0301")


def test_two_tokens_in_one_request_are_refused(house: House) -> None:
    """Nobody could say which counts."""
    token = house.token()["X-Auth-Token"]
    headers = [("X-Auth-Token", token), ("X-Auth-Token", token)]
    assert code(house.request("DELETE", path(house), headers=headers)) == (401, "APIGW.0301")


def test_an_unknown_algorithm_is_named(house: House) -> None:
    """Instead of a plain refusal."""
    answer = house.request("DELETE", path(house), headers={"Authorization": "V11-HMAC-SHA256 Credential=x"})
    assert code(answer) == (401, "APIGW.0301")
    assert "V11-HMAC-SHA256" in answer.json()["error_msg"]


def test_another_project_than_the_tokens_or_keys_is_refused(house: House) -> None:
    """One that does not exist, one of another account, and for a token also another of the same account."""
    catalog, clock = house.services.catalog, house.clock
    with catalog.write() as conn:
        second = accounts.create_project(conn, clock, house.first.founded.account, "second")
        foreign = accounts.found(conn, clock, "other", "theirs", "boss", None).project
    for project in ("0" * 32, foreign, "nonsense"):
        url = path(house, project=project)
        assert code(house.request("DELETE", url, headers=house.token())) == (400, "DBS.200010")
        assert code(house.request("DELETE", url, headers=signed(house, url=url))) == (400, "DBS.200010")
    url = path(house, project=second)
    assert code(house.request("DELETE", url, headers=house.token())) == (400, "DBS.200010")
    assert house.request("DELETE", url, headers=signed(house, url=url)).status_code == 202


def test_a_key_is_for_the_projects_in_which_its_owner_has_a_policy(house: House) -> None:
    """Another project of the same account is refused as any other."""
    with house.services.catalog.write() as conn:
        second = accounts.create_project(conn, house.clock, house.first.founded.account, "second")
    user = house.new_user("ulla", "administrator", second)
    with house.services.catalog.write() as conn:
        key = accounts.create_access_key(conn, house.clock, house.services.sealer, user)
    own, other = path(house, project=second), path(house)
    assert house.request("DELETE", own, headers=signed(house, key, url=own)).status_code == 202
    assert code(house.request("DELETE", other, headers=signed(house, key, url=other))) == (400, "DBS.200010")


def test_a_token_for_the_account_is_for_no_project(house: House) -> None:
    """Its scope is IAM's own calls."""
    token = house.token(scope={"domain": {"name": "strongroom"}})
    assert code(house.request("DELETE", path(house), headers=token)) == (400, "DBS.200010")
    assert house.request("GET", "/v3/auth/domains", headers=token).status_code == 200


def test_without_permission_the_action_is_named(house: House) -> None:
    """403, with a token and with a signature."""
    user = house.new_user("ulla", "reader")
    with house.services.catalog.write() as conn:
        key = accounts.create_access_key(conn, house.clock, house.services.sealer, user)
    for headers in (house.token("ulla"), signed(house, key)):
        answer = house.request("DELETE", path(house), headers=headers)
        assert code(answer) == (403, "DBS.280032")
        assert DELETE in answer.json()["error_msg"]


def test_a_permission_taken_away_ends_the_token_at_once(house: House) -> None:
    """The next request is refused."""
    user = house.new_user("ulla", "administrator")
    token = house.token("ulla")
    assert house.request("DELETE", path(house), headers=token).status_code == 202
    with house.services.catalog.write() as conn:
        accounts.revoke(conn, house.clock, user, "administrator")
    assert code(house.request("DELETE", path(house), headers=token)) == (401, "APIGW.0301")


def test_a_delete_with_a_json_content_type_and_no_body_is_not_parsed(house: House) -> None:
    """Terraform sends it so."""
    headers = house.token() | {"Content-Type": "application/json"}
    assert house.request("DELETE", path(house), headers=headers).status_code == 202


def test_a_signed_body_is_hashed_as_received(house: House) -> None:
    """With its last newline; and a body changed on the way is noticed."""
    url, body = f"/v3/{house.project}/instances/backups", f'{{"backup_ids": ["{BACKUP}"]}}\n'
    headers = signed(house, url=url, body=body)
    answer = house.request("DELETE", url, headers=headers, content=body)
    assert answer.json() == {"backup_ids": [BACKUP]}
    assert code(house.request("DELETE", url, headers=headers, content=body.strip())) == (401, "APIGW.0301")


@pytest.mark.parametrize(
    "tail", ["a%2Fb", f"{BACKUP}%2Frestorable-instances", f"{BACKUP}%2frestorable-instances", "a%252Fb", "%00"]
)
def test_an_encoded_slash_stays_inside_its_id_and_is_refused(house: House, tail: str) -> None:
    """Routing follows the raw path: the id is malformed, and no other call is reached."""
    url = path(house, tail)
    assert code(house.request("DELETE", url, headers=house.token())) == (400, "DBS.201212")
    assert code(house.request("DELETE", url, headers=signed(house, url=url))) == (400, "DBS.201212")
    assert code(house.request("GET", path(house, tail), headers=house.token()))[0] == 405


def test_an_id_may_be_encoded_where_it_need_not_be(house: House) -> None:
    """It means the same id."""
    answer = house.request("DELETE", path(house, "%35" + BACKUP[1:]), headers=house.token())
    assert answer.json()["backup_id"] == BACKUP


def test_nothing_is_parsed_for_a_caller_whom_nobody_knows(house: House) -> None:
    """401 comes before 400 for a body that is no JSON and for a malformed id."""
    url = f"/v3/{house.project}/instances/backups"
    json = {"Content-Type": "application/json"}
    assert code(house.request("DELETE", url, headers=json, content=b"{")) == (401, "APIGW.0301")
    assert code(house.request("DELETE", path(house, "nonsense"))) == (401, "APIGW.0301")
    assert code(house.request("DELETE", url, headers=json | house.token(), content=b"{")) == (400, "DBS.200001")


def test_a_caller_without_permission_learns_nothing_of_the_id(house: House) -> None:
    """403 comes before 400 for a malformed id."""
    house.new_user("ulla", "reader")
    assert code(house.request("DELETE", path(house, "nonsense"), headers=house.token("ulla"))) == (403, "DBS.280032")


def test_asking_for_a_permission_that_does_not_exist_is_noticed_at_import() -> None:
    """A misspelt action never reaches production."""
    with pytest.raises(LookupError):
        may("gaussdbfornosql:instance:deletBackup")
