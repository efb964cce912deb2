"""Deleting a backup over plain HTTP: every row of the contract's table, each with its status, its code and its effect."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from strongroom.catalog import tables as t
from strongroom.cli.client import Signer
from strongroom.identity import audit
from strongroom.identity import tables as identity
from support.redis_server import RedisServer, binaries, redis_server
from support.server import ServerProcess
from support.slow_path import SlowPath, slow_path

pytestmark = pytest.mark.skipif(not binaries(), reason="no redis-server here")

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass
class Site:
    """A server that runs one job at a time, with a fast instance and one whose data can be held back."""

    server: ServerProcess
    http: httpx.Client
    redis: RedisServer
    path: SlowPath
    cache: str
    slow: str
    made: int = 0

    @property
    def project(self) -> str:
        return self.server.owner.project

    def url(self, rest: str, version: str = "v3") -> str:
        return f"/{version}/{self.project}/{rest}"

    def own(self, rest: str) -> str:
        return f"/strongroom/v1/{self.project}/{rest}"

    def create(self, instance: str) -> tuple[str, str]:
        """Begins a backup; its id and its job's."""
        self.made += 1
        body = {"name": f"contract-{self.made}", "description": ""}
        answer = self.http.post(self.url(f"instances/{instance}/backups"), json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["backup_id"], answer.json()["job_id"]

    def backup(self) -> str:
        """A completed backup of the fast instance, with data of its own."""
        with self.redis.client() as client:
            client.set(f"mark:{self.made}", "x" * 5000)
        backup, job = self.create(self.cache)
        assert self.server.wait(job).status == "Completed"
        return backup

    def delete(self, backup: str, **options: Any) -> httpx.Response:
        return self.http.delete(self.url(f"backups/{backup}"), **options)

    def gone(self, backup: str) -> None:
        """Deletes it and waits."""
        answer = self.delete(backup)
        assert answer.status_code == 202, answer.text
        assert self.server.wait(answer.json()["job_id"]).status == "Completed"

    def state(self, backup: str) -> str:
        """As the catalog has it."""
        with self.server.catalog() as catalog, catalog.read() as conn:
            return str(conn.execute(sa.select(t.backup.c.state).where(t.backup.c.id == backup)).scalar_one())

    def events(self, backup: str) -> list[sa.Row[Any]]:
        """The audit trail's rows about a backup's deletion, oldest first."""
        a = identity.audit.c
        with self.server.catalog() as catalog, catalog.read() as conn:
            query = sa.select(identity.audit).where(a.resource_id == backup, a.event.like("NoSQLDelete%"))
            return list(conn.execute(query.order_by(a.sequence)).all())

    @contextmanager
    def busy(self) -> Iterator[tuple[str, str]]:
        """While it lasts the one worker is held by a backup of the slow instance (its id and job); other jobs stay queued."""
        self.path.stall()
        backup, job = self.create(self.slow)
        try:
            self.path.wait_stalled()
            yield backup, job
        finally:
            self.path.go()
            self.server.wait(job)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("contract")
    with (
        redis_server(folder) as fast,
        redis_server(folder) as held_back,
        slow_path(held_back.port) as path,
        ServerProcess(folder / "data", {"STRONGROOM_WORKERS": "1"}) as server,
        server.http() as http,
    ):
        with held_back.client() as client:
            client.set("large", "".join(str(number) for number in range(300_000)))
        with fast.client() as client:
            client.mset({f"key:{number}": f"{number}" * 50 for number in range(500)})
        cache = server.cli("instance", "add", "cache", "--engine", "redis", "--address", fast.address)["id"]
        slow = server.cli("instance", "add", "slow", "--engine", "redis", "--address", path.address)["id"]
        yield Site(server, http, fast, path, cache, slow)
        assert server.stop() == 0


def refused(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, once its whole form is the contract's."""
    assert answer.status_code >= 400, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-Id"])
    body = answer.json()
    assert set(body) == {"error_code", "error_msg"}
    assert body["error_msg"]
    return answer.status_code, body["error_code"]


# --- that waits --------------------------------------------------------------------------------------------------------


def test_a_delete_that_waits_is_called_back_or_approved_by_somebody_else(site: Site) -> None:
    """The project's policy by command; hidden at once and not decided, shown as waiting; a call and a command each call one back
    and approve one; what the clients are told is the contract's form."""
    server, one, other = site.server, site.backup(), site.backup()
    setter = ["strongroom:deletion:setPolicy"]
    may = {"Version": "5.0", "Statement": [{"Effect": "Allow", "Action": ["*"]}, {"Effect": "Deny", "Action": setter}]}
    second = server.new_user(server.owner, "second-person", may)
    told = server.cli("deletion", "policy", "set", "--undelete-hours", "1", "--second-person")
    try:
        assert told == site.http.get(site.own("deletion-policy")).json() == {"undelete_hours": 1, "second_person": True}
        with server.http(second) as http:
            assert refused(http.put(site.own("deletion-policy"), json={"second_person": False})) == (403, "DBS.280032")
            job = site.delete(one).json()["job_id"]
            assert site.delete(one).json() == {"job_id": job}
            assert [row["id"] for row in site.http.get(site.url("backups", "v4")).json()["backups"] if row["id"] == one] == []
            detail = site.http.get(site.own(f"backups/{one}")).json()
            assert (detail["state"], detail["pending"]["second_person"], detail["owned_bytes"] > 0) == ("PENDING", True, True)
            (shown,) = site.http.get(site.url("jobs"), params={"id": job}).json()["jobs"]
            assert (shown["name"], shown["status"], shown["progress"]) == ("DeleteBackup", "Running", "0%")
            tasks = site.http.get(site.url("scheduled-jobs")).json()["schedules"]
            assert [row["job_status"] for row in tasks if row["job_id"] == job] == ["Pending"]
            assert site.http.get(site.own(f"jobs/{job}")).json()["pending"] == detail["pending"]
            assert refused(site.http.delete(site.url(f"scheduled-jobs/{job}"))) == (403, "DBS.200019")
            (listed,) = server.cli("deletion", "list", "--state", "pending")["deletions"]
            assert (listed["backup_id"], listed["promised"], listed["pending"]) == (one, None, detail["pending"])
            seen = site.http.post(site.own("backups/preview"), json={"backup_ids": [one]}).json()
            assert [row["id"] for row in seen["backups"]] == [one]
            recovery = site.http.post(site.url(f"instances/{site.cache}/recovery"), json={"backup_id": one})
            assert refused(recovery) == (400, "DBS.212003")
            assert "undelete it first" in recovery.json()["error_msg"]

            assert http.post(site.own(f"backups/{one}/undelete")).json() == {}
            assert refused(http.post(site.own(f"backups/{one}/undelete"))) == (400, "DBS.212003")
            ended = server.wait(job)
            assert (ended.status, ended.fail_reason) == ("Failed", "undeleted by second-person")
            assert site.http.get(site.own(f"backups/{one}")).json()["pending"] is None

            assert site.http.put(site.own("deletion-policy"), json={"undelete_hours": 0}).json()["second_person"] is True
            assert http.request("DELETE", site.url("instances/backups"), json={"backup_ids": [one, other]}).status_code == 200
            assert refused(http.post(site.own(f"backups/{one}/approve"))) == (400, "DBS.212003"), "asked for by the same person"
            assert server.cli("backup", "approve", one)["pending"]["approved_by"] == server.owner.user
            deleting = site.http.get(site.own(f"deletions/{one}")).json()["job_id"]
            assert server.wait(deleting).status == "Completed"
            receipt = site.http.get(site.own(f"deletions/{one}")).json()
            assert receipt["receipt"]["freed"] == receipt["promised"]["freed"] > 0
            server.cli("backup", "undelete", other)
            assert refused(site.http.post(site.own(f"backups/{one}/undelete"))) == (400, "DBS.212003"), "too late"
    finally:
        site.http.put(site.own("deletion-policy"), json={"undelete_hours": 0, "second_person": False})
    events = ("SetDeletionPolicy", "UndeleteBackup", "ApproveDeletion", "DecideDeletion")
    with server.catalog() as catalog, catalog.read() as conn:
        ours = identity.audit.c.event.in_([f"Strongroom{event}" for event in events])
        rows = conn.execute(sa.select(identity.audit).where(ours).order_by(identity.audit.c.sequence)).all()
    owner = server.owner.user
    assert [(row.event.removeprefix("Strongroom"), row.outcome, row.user_name) for row in rows] == [
        ("SetDeletionPolicy", "OK", owner), ("SetDeletionPolicy", "REFUSED", "second-person"),
        ("UndeleteBackup", "OK", "second-person"), ("UndeleteBackup", "REFUSED", "second-person"),
        ("SetDeletionPolicy", "OK", owner), ("ApproveDeletion", "REFUSED", "second-person"),
        ("ApproveDeletion", "OK", owner), ("DecideDeletion", "OK", None), ("UndeleteBackup", "OK", owner),
        ("UndeleteBackup", "REFUSED", owner), ("SetDeletionPolicy", "OK", owner),
    ]  # fmt: skip
    assert [json.loads(row.detail)["second_person"] for row in site.events(one)] == [True, True]
    site.gone(other)


# --- accepted ----------------------------------------------------------------------------------------------------------


def test_an_accepted_delete_answers_one_job_and_hides_the_backup_before_the_job_runs(site: Site) -> None:
    """202 with a job id and nothing else; the same again is the same job; no list and no other call knows the backup."""
    kept, backup = site.backup(), site.backup()
    with site.busy():
        first, again = site.delete(backup), site.delete(backup)
        assert (first.status_code, again.status_code) == (202, 202)
        assert first.json() == again.json()
        assert set(first.json()) == {"job_id"}
        assert UUID.fullmatch(first.json()["job_id"])
        assert re.fullmatch(r"[0-9a-f]{32}", first.headers["X-Request-Id"])
        assert first.headers["X-Request-Id"] != again.headers["X-Request-Id"]
        for url in (site.url("backups", "v4"), site.url("backups", "v3.1"), site.url("backups?offset=1&limit=100")):
            ids = [one["id"] for one in site.http.get(url).json()["backups"]]
            assert kept in ids
            assert backup not in ids
        for scope in ("Instance", "DatabaseTable"):
            shown = site.http.get(site.url("backups", "v4"), params={"backup_id": backup, "type": scope}).json()
            assert shown == {"backups": [], "total_count": 0}
        assert refused(site.http.get(site.url(f"backups/{backup}/restorable-instances"))) == (400, "DBS.201214")
        assert refused(site.http.get(site.own(f"backups/{backup}"))) == (400, "DBS.201214")
        assert refused(site.http.put(site.url(f"backups/{backup}"), json={"action": "stop"})) == (400, "DBS.201214")
        assert refused(site.http.put(site.own(f"backups/{backup}/hold"), json={"reason": "late"})) == (
            400,
            "DBS.201214",
        )
        restore = site.http.post(site.url(f"instances/{site.cache}/recovery"), json={"backup_id": backup})
        assert refused(restore) == (400, "DBS.201214")
        shown = site.http.get(site.own(f"deletions/{backup}")).json()
        assert (shown["state"], shown["job_id"]) == ("running", first.json()["job_id"])
        (job,) = site.http.get(site.url("jobs"), params={"id": first.json()["job_id"]}).json()["jobs"]
        assert (job["name"], job["status"], job["fail_reason"]) == ("DeleteBackup", "Running", "")
    assert site.server.wait(first.json()["job_id"]).status == "Completed"
    assert refused(site.delete(backup)) == (400, "DBS.201214")
    assert site.state(backup) == "DELETED"


def test_a_delete_with_a_content_type_and_no_body_is_not_parsed(site: Site) -> None:
    """As Terraform sends it; and a body that is no JSON is not looked at either."""
    assert site.delete(site.backup(), headers={"Content-Type": "application/json"}).status_code == 202
    answer = site.http.request("DELETE", site.url(f"backups/{site.backup()}"), content=b"{no json")
    assert answer.status_code == 202


def test_a_token_alone_and_a_token_beside_a_signature_delete_as_well(site: Site) -> None:
    """The contract's X-Auth-Token."""
    headers = {"X-Auth-Token": site.server.token()}
    assert site.delete(site.backup(), headers=headers).status_code == 202
    with site.server.http(signed=False) as plain:
        assert plain.delete(site.url(f"backups/{site.backup()}"), headers=headers).status_code == 202


def test_a_delete_is_written_into_the_audit_trail_once(site: Site) -> None:
    """NoSQLDeleteBackup with who, from where and the request's id; not again for the same job; the refusal of what is
    gone is a record of its own; the chain holds."""
    backup = site.backup()
    with site.busy():
        first = site.delete(backup)
        site.delete(backup)
    site.server.wait(first.json()["job_id"])
    site.delete(backup)
    event, refusal = site.events(backup)
    assert (refusal.event, refusal.outcome) == ("NoSQLDeleteBackup", "REFUSED")
    assert "DBS.201214" in refusal.detail
    assert (event.event, event.resource_type, event.outcome, event.level) == (
        "NoSQLDeleteBackup",
        "backup",
        "OK",
        "Normal",
    )
    assert (event.request_id, event.user_name, event.source) == (first.headers["X-Request-Id"], "admin", "127.0.0.1")
    assert (event.project, event.resource_name[:9]) == (site.project, "contract-")
    with site.server.catalog() as catalog, catalog.read() as conn:
        assert audit.check_chain(conn, event.account) is None


def test_a_failed_deletion_goes_on_in_a_new_job(site: Site) -> None:
    """A store that denies ends the job as Failed with words; the backup stays hidden; the next DELETE finishes it."""
    kept, backup = site.backup(), site.backup()
    with site.server.catalog() as catalog, catalog.read() as conn:
        lineage = conn.execute(sa.select(t.part.c.lineage).where(t.part.c.backup == backup)).scalar_one()
    folder = site.server.folder / "store" / "objects" / lineage
    aside = folder.with_name("moved-by-somebody")
    folder.rename(aside)
    folder.symlink_to(aside)  # a link is never followed: the store denies
    try:
        first = site.delete(backup)
        assert first.status_code == 202
        job = site.server.wait(first.json()["job_id"])
        assert job.status == "Failed"
        assert "symbolic link" in job.fail_reason
        assert (site.state(backup), site.http.get(site.own(f"deletions/{backup}")).json()["state"]) == (
            "DELETING",
            "failed",
        )
        assert site.http.get(site.url("backups", "v4"), params={"backup_id": backup}).json()["backups"] == []
        failed = site.delete(backup)
        assert failed.status_code == 202
        assert failed.json() != first.json()
        assert site.server.wait(failed.json()["job_id"]).status == "Failed"
    finally:
        folder.unlink()
        aside.rename(folder)
    last = site.delete(backup)
    assert last.json()["job_id"] not in {first.json()["job_id"], failed.json()["job_id"]}
    assert site.server.wait(last.json()["job_id"]).status == "Completed"
    told = site.http.get(site.own(f"deletions/{backup}")).json()
    assert told["state"] == "done"
    assert told["fail_reason"] is None
    assert told["receipt"]["freed"] == told["promised"]["freed"] > 0
    events = [(one.event, one.level, one.outcome) for one in site.events(backup)]
    assert events.count(("NoSQLDeleteBackupFailed", "Major", "FAILED")) == 2
    assert events[0] == ("NoSQLDeleteBackup", "Normal", "OK")
    assert site.state(kept) == "COMPLETED"


def test_a_failed_backup_is_deletable_like_any_other(site: Site) -> None:
    """Stopped, it is FAILED and listed; deleted, it is gone."""
    with site.busy() as (backup, _):
        assert site.http.put(site.url(f"backups/{backup}"), json={"action": "stop"}).status_code == 202
    (shown,) = site.http.get(site.url("backups", "v4"), params={"backup_id": backup}).json()["backups"]
    assert shown["status"] == "FAILED"
    site.gone(backup)
    assert refused(site.delete(backup)) == (400, "DBS.201214")


# --- refused: nothing is decided ----------------------------------------------------------------------------------------


def test_a_delete_at_a_version_that_moved_decides_nothing(site: Site) -> None:
    """412 at the old version, in every form of the header; 202 at the new one with the preview's numbers."""
    backup = site.backup()
    old = site.http.post(site.own("backups/preview"), json={"backup_ids": [backup]})
    assert old.headers["ETag"] == f'"{old.json()["version"]}"'
    site.backup()
    for version in (old.headers["ETag"], old.json()["version"], "W/" + old.headers["ETag"], "something"):
        answer = site.delete(backup, headers={"If-Match": version})
        assert refused(answer) == (412, "DBS.212003")
    assert site.state(backup) == "COMPLETED"
    new = site.http.post(site.own("backups/preview"), json={"backup_ids": [backup]})
    answer = site.delete(backup, headers={"If-Match": new.headers["ETag"]})
    assert answer.status_code == 202
    promised = site.http.get(site.own(f"deletions/{backup}")).json()["promised"]
    assert promised == {name: new.json()[name] for name in promised}


def test_an_unknown_id_is_not_told_from_a_deleted_one(site: Site) -> None:
    """400 DBS.201214 with the same words but for the id."""
    deleted, unknown = site.backup(), f"{'0' * 32}br14"
    site.gone(deleted)
    said = []
    for backup in (deleted, unknown):
        answer = site.delete(backup)
        assert refused(answer) == (400, "DBS.201214")
        said.append(answer.json()["error_msg"].replace(backup, ""))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "malformed",
    [
        "x",
        "0" * 32,
        f"{'0' * 32}BR14",
        f"{'A' * 32}br14",
        f"{'0' * 32}br14%0A",
        "a%2Fb%20c",
        f"{'0' * 32}br14%00",
        "%2e%2e",
        "é",
    ],
)
def test_a_malformed_id_is_told(site: Site, malformed: str) -> None:
    """400 DBS.201212, whatever is encoded in it."""
    assert refused(site.delete(malformed)) == (400, "DBS.201212")


def test_a_backup_that_is_being_restored_stays(site: Site) -> None:
    """While a restore is queued or running: 400 DBS.201319; once it has ended the backup goes."""
    backup = site.backup()
    with site.busy():
        restore = site.http.post(site.url(f"instances/{site.cache}/recovery"), json={"backup_id": backup})
        assert restore.status_code == 202
        assert refused(site.delete(backup)) == (400, "DBS.201319")
        assert restore.json()["job_id"] in site.delete(backup).json()["error_msg"]
    assert site.server.wait(restore.json()["job_id"]).status == "Completed"
    site.gone(backup)


def test_a_held_backup_stays_and_the_refusal_names_the_hold(site: Site) -> None:
    """400 DBS.212003 with the hold's reason; released it goes."""
    backup = site.backup()
    hold = site.own(f"backups/{backup}/hold")
    assert site.http.put(hold, json={"reason": "case 4711 at court"}).status_code == 200
    answer = site.delete(backup)
    assert refused(answer) == (400, "DBS.212003")
    assert "case 4711 at court" in answer.json()["error_msg"]
    assert site.state(backup) == "COMPLETED"
    assert site.http.delete(hold).status_code == 200
    site.gone(backup)


def test_a_backup_that_is_being_built_stays(site: Site) -> None:
    """403 DBS.200019, for one that runs and one that waits; both complete untouched."""
    with site.busy() as (running, _):
        waiting, job = site.create(site.cache)
        for backup in (running, waiting):
            assert refused(site.delete(backup)) == (403, "DBS.200019")
            assert site.state(backup) == "BUILDING"
        second = site.http.post(site.url(f"instances/{site.cache}/backups"), json={"name": "second"})
        assert refused(second) == (403, "DBS.200019")
    assert site.server.wait(job).status == "Completed"
    assert site.state(running) == "COMPLETED"


def test_who_is_not_known_is_answered_401(site: Site) -> None:
    """No proof, a wrong token, a wrong signature, an unknown key, an old date, another algorithm: APIGW.0301 and its words."""
    backup, keys = site.backup(), site.server.owner
    url = site.url(f"backups/{backup}")
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    unsigned: list[dict[str, str]] = [
        {},
        {"X-Auth-Token": "wrong"},
        {"X-Auth-Token": ""},
        {"Authorization": "Basic YWRtaW46YWRtaW4="},
        {
            "Authorization": f"SDK-SM3 Access={keys.access_key}, SignedHeaders=x-sdk-date, Signature=00",
            "X-Sdk-Date": now,
        },
    ]
    signers: list[Callable[[], Signer]] = [
        lambda: Signer(keys.access_key, "wrong", time.time),
        lambda: Signer("SRUNKNOWN", keys.secret_key, time.time),
        lambda: Signer(keys.access_key, keys.secret_key, lambda: time.time() - 1000),
        lambda: Signer(keys.access_key, keys.secret_key, lambda: time.time() + 1000),
    ]
    with site.server.http(signed=False) as plain:
        answers = [plain.delete(url, headers=headers) for headers in unsigned]
        answers += [plain.delete(url, auth=signer()) for signer in signers]
    for answer in answers:
        assert refused(answer) == (401, "APIGW.0301")
        assert answer.json()["error_msg"].startswith("Incorrect IAM authentication information: ")
    assert site.state(backup) == "COMPLETED"


def test_a_proof_for_another_project_is_answered_dbs_200010(site: Site) -> None:
    """By key and by token, whether the path's project exists or not."""
    backup, other = site.backup(), site.server.new_account("contract-other")
    token = site.server.token()
    with site.server.http(other) as theirs, site.server.http(signed=False) as plain:
        assert refused(theirs.delete(site.url(f"backups/{backup}"))) == (400, "DBS.200010")
        for project in (other.project, "0" * 32):
            url = f"/v3/{project}/backups/{backup}"
            assert refused(site.http.delete(url)) == (400, "DBS.200010")
            assert refused(plain.delete(url, headers={"X-Auth-Token": token})) == (400, "DBS.200010")
        theirs_asks = theirs.delete(f"/v3/{other.project}/backups/{backup}")
        assert refused(theirs_asks) == (400, "DBS.201214")
    assert site.state(backup) == "COMPLETED"


def test_without_the_permission_the_refusal_names_the_action(site: Site) -> None:
    """403 DBS.280032 for one backup and for a batch, before anything is said about the backup."""
    backup = site.backup()
    reader = site.server.new_user(site.server.owner, "contract-reader", "reader")
    with site.server.http(reader) as theirs:
        for key in (backup, f"{'0' * 32}br14"):
            for answer in (
                theirs.delete(site.url(f"backups/{key}")),
                theirs.request("DELETE", site.url("instances/backups"), json={"backup_ids": [key]}),
            ):
                assert refused(answer) == (403, "DBS.280032")
                assert "gaussdbfornosql:instance:deleteBackup" in answer.json()["error_msg"]
    assert site.state(backup) == "COMPLETED"


def test_our_own_fault_is_answered_500_and_nothing_was_decided(site: Site) -> None:
    """The last statement of the deciding transaction fails: no job, no deletion, the backup as it was; then it works."""
    backup = site.backup()
    trigger = "CREATE TRIGGER broken BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'inner words'); END"
    with site.server.catalog() as catalog:
        with catalog.write() as conn:
            conn.exec_driver_sql(trigger)
        try:
            answer = site.delete(backup)
        finally:
            with catalog.write() as conn:
                conn.exec_driver_sql("DROP TRIGGER broken")
        assert refused(answer) == (500, "DBS.280005")
        assert "inner words" not in answer.text
        assert answer.headers["X-Request-Id"] in site.server.log
        with catalog.read() as conn:
            jobs = conn.execute(sa.select(t.job.c.id).where(t.job.c.backup == backup, t.job.c.kind == "delete")).all()
            deletions = conn.execute(sa.select(t.deletion.c.job).where(t.deletion.c.backup == backup)).all()
    assert (jobs, deletions, site.state(backup), site.events(backup)) == ([], [], "COMPLETED", [])
    site.gone(backup)


def test_who_asks_too_fast_is_told_when_to_come_back(tmp_path: Path) -> None:
    """429 DBS.280443 with Retry-After in seconds, by user and by address."""
    for name, most in (("USER", "0.2/3"), ("ADDRESS", "0.2/9")):
        with ServerProcess(tmp_path / name, {f"STRONGROOM_RATE_PER_{name}": most}) as server, server.http() as http:
            url = f"/v3/{server.owner.project}/backups/{'0' * 32}br14"
            answers = [http.delete(url) for _ in range(10)]
        assert refused(answers[0]) == (400, "DBS.201214")
        last = answers[-1]
        assert refused(last) == (429, "DBS.280443")
        assert 1 <= int(last.headers["Retry-After"]) <= 5
        assert "Try again in" in last.json()["error_msg"]


# --- the batch -----------------------------------------------------------------------------------------------------------


def batch(site: Site, ids: list[Any], **options: Any) -> httpx.Response:
    return site.http.request("DELETE", site.url("instances/backups"), **({"json": {"backup_ids": ids}} | options))


def test_a_batch_is_accepted_with_an_empty_answer_and_takes_what_is_being_deleted(site: Site) -> None:
    """200 without a body; all hidden at once; one that is being deleted already counts as accepted, with its job unchanged."""
    keys = [site.backup() for _ in range(3)]
    with site.busy():
        first = site.delete(keys[0]).json()["job_id"]
        answer = batch(site, keys)
        assert (answer.status_code, answer.content) == (200, b"")
        ids = {one["id"] for one in site.http.get(site.url("backups", "v4")).json()["backups"]}
        assert not ids & set(keys)
        jobs = [site.http.get(site.own(f"deletions/{key}")).json()["job_id"] for key in keys]
        assert jobs[0] == first
        assert len(set(jobs)) == 3
        assert (batch(site, keys).status_code, site.delete(keys[1]).json()["job_id"]) == (200, jobs[1])
    for job in jobs:
        assert site.server.wait(job).status == "Completed"
    assert [len(site.events(key)) for key in keys] == [1, 1, 1]


def test_a_batch_is_all_or_nothing(site: Site) -> None:
    """One that is unknown, held, malformed or being built keeps all others; the first refusal is answered."""
    good, held = site.backup(), site.backup()
    site.http.put(site.own(f"backups/{held}/hold"), json={"reason": "pinned by hand"})
    with site.busy() as (building, _):
        for bad, expected in (
            (f"{'0' * 32}br14", (400, "DBS.201214")),
            (held, (400, "DBS.212003")),
            ("nonsense", (400, "DBS.201212")),
            (building, (403, "DBS.200019")),
        ):
            assert refused(batch(site, [good, bad])) == expected
            assert refused(batch(site, [bad, good])) == expected
        assert refused(batch(site, [good, held, building])) == (400, "DBS.212003")
        assert refused(batch(site, [good, building, held])) == (403, "DBS.200019")
    assert (site.state(good), site.events(good)) == ("COMPLETED", [])
    site.http.delete(site.own(f"backups/{held}/hold"))


def test_a_batch_has_one_to_ten_different_ids(site: Site) -> None:
    """None, eleven, a duplicate, no list, no JSON, no body: 400 DBS.200001."""
    good = site.backup()
    unknown = [f"{number:032x}br14" for number in range(11)]
    for ids in ([], unknown, [good, good]):
        assert refused(batch(site, ids)) == (400, "DBS.200001")
    json_type = {"Content-Type": "application/json"}
    for content in (
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"backup_ids": "x"}',
        b'{"backup_ids": null}',
        b"\xff\xfe",
        b"[" * 100_000,
    ):
        answer = site.http.request("DELETE", site.url("instances/backups"), content=content, headers=json_type)
        assert refused(answer) == (400, "DBS.200001"), content[:20]
    assert refused(batch(site, unknown[:10])) == (400, "DBS.201214")
    assert site.state(good) == "COMPLETED"


# --- the form of every refusal ---------------------------------------------------------------------------------------


def test_every_refusal_of_the_border_has_the_contracts_form(site: Site) -> None:
    """Unknown paths, wrong methods, bodies that are no JSON or too large, slashes too many; never a redirect."""
    project = site.project
    for method, path, expected in (
        ("GET", "/v3", None),
        ("GET", f"/v3/{project}/nothing", (404, "APIGW.0101")),
        ("DELETE", f"/v3/{project}/backups/", (404, "APIGW.0101")),
        ("DELETE", f"/v3//{project}/backups/{'0' * 32}br14", (404, "APIGW.0101")),
        ("DELETE", f"/v3/{project}/backups/{'0' * 32}br14/", (404, "APIGW.0101")),
        ("PATCH", f"/v3/{project}/backups/{'0' * 32}br14", (405, "APIGW.0101")),
        ("DELETE", "/v3/short/backups/x", (400, "DBS.200010")),
    ):
        answer = site.http.request(method, path)
        assert not 300 <= answer.status_code < 400
        if expected is not None:
            assert refused(answer) == expected, (method, path)
    stop = site.url(f"backups/{'0' * 32}br14")
    assert refused(site.http.put(stop, content=b"{", headers={"Content-Type": "application/json"})) == (
        400,
        "DBS.200001",
    )
    large = site.http.put(stop, content=json.dumps({"action": "x" * 2_000_000}))
    assert refused(large)[0] == 413
