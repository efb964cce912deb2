"""Accounts, projects and users never meet: whoever asks with another's id, in any place where an id can stand, learns and
changes nothing; and a user may do exactly what the policies say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from strongroom.ambient import Machine
from strongroom.backups import snapshots
from strongroom.catalog import tables as t
from strongroom.identity import accounts
from strongroom.identity import tables as identity
from support.redis_server import RedisServer, binaries, redis_server
from support.server import Keys, ServerProcess

pytestmark = pytest.mark.skipif(not binaries(), reason="no redis-server here")

SECRET_NAME = "their-secret-name"


@dataclass
class Tenant:
    """Somebody with an instance, two backups, a deletion and jobs."""

    keys: Keys
    http: httpx.Client
    instance: str
    backup: str
    second: str
    deleted: str
    jobs: dict[str, str]  # by kind

    def url(self, rest: str, version: str = "v3") -> str:
        return f"/{version}/{self.keys.project}/{rest}"

    def own(self, rest: str) -> str:
        return f"/strongroom/v1/{self.keys.project}/{rest}"


@dataclass
class Site:
    """One server, two accounts, and a second project in the first account."""

    server: ServerProcess
    redis: RedisServer
    ours: Tenant
    theirs: Tenant  # of another account
    neighbour: Tenant  # of another project of our account, by a user who may use that project alone


def settle(server: ServerProcess, keys: Keys, http: httpx.Client, redis: RedisServer, name: str) -> Tenant:
    """Registers, backs up three times and deletes one."""
    own, v3 = f"/strongroom/v1/{keys.project}", f"/v3/{keys.project}"
    new = {"name": name, "engine": "redis", "address": redis.address}
    answer = http.post(f"{own}/instances", json=new)
    assert answer.status_code == 201, answer.text
    instance, made, jobs = answer.json()["id"], [], {}
    for number in range(3):
        answer = http.post(f"{v3}/instances/{instance}/backups", json={"name": f"{name}-{number}"})
        made.append(answer.json()["backup_id"])
        jobs["backup"] = answer.json()["job_id"]
        assert wait(http, keys, jobs["backup"]) == "Completed"
    jobs["delete"] = http.delete(f"{v3}/backups/{made[2]}").json()["job_id"]
    assert wait(http, keys, jobs["delete"]) == "Completed"
    jobs["restore"] = http.post(f"{v3}/instances/{instance}/recovery", json={"backup_id": made[0]}).json()["job_id"]
    assert wait(http, keys, jobs["restore"]) == "Completed"
    return Tenant(keys, http, instance, made[0], made[1], made[2], jobs)


def wait(http: httpx.Client, keys: Keys, job: str) -> str:
    for _ in range(600):
        (found,) = http.get(f"/v3/{keys.project}/jobs", params={"id": job}).json()["jobs"]
        if found["status"] != "Running":
            return str(found["status"])
        Machine().sleep(0.05)
    raise AssertionError(f"job {job} still runs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tenancy")
    with redis_server(folder) as redis, ServerProcess(folder / "data") as server:
        with redis.client() as client:
            client.mset({f"key:{number}": "v" * 100 for number in range(200)})
        other = server.new_account("tenancy-other")
        with server.catalog() as catalog, catalog.write() as conn:
            project = accounts.create_project(conn, Machine(), server.owner.account, "neighbour")
        limited = server.new_user(server.owner, "neighbour", "administrator", project=project)
        near = Keys(
            limited.account, limited.domain, project, limited.user, limited.password, limited.access_key, limited.secret_key
        )  # fmt: skip
        with server.http() as mine, server.http(other) as far, server.http(near) as beside:
            yield Site(
                server, redis,
                settle(server, server.owner, mine, redis, "ours"),
                settle(server, other, far, redis, SECRET_NAME),
                settle(server, near, beside, redis, f"{SECRET_NAME}-2"),
            )  # fmt: skip
        assert server.stop() == 0


@pytest.fixture(params=["theirs", "neighbour"])
def stranger(site: Site, request: pytest.FixtureRequest) -> Tenant:
    """Whose ids we use."""
    found: Tenant = getattr(site, request.param)
    return found


def refused(answer: httpx.Response) -> tuple[int, str]:
    assert answer.status_code >= 400, answer.text
    assert set(answer.json()) == {"error_code", "error_msg"}
    assert SECRET_NAME not in answer.text
    return answer.status_code, answer.json()["error_code"]


def image(site: Site) -> dict[str, list[Any]]:
    """All that a request could change: everything but identity, what a job's heartbeat writes, and the catalog's snapshots, which
    are put by the clock."""
    tables = (t.instance, t.lineage, t.backup, t.part, t.pack, t.deletion, t.object_, t.job, t.recording)
    with site.server.catalog() as catalog, catalog.read() as conn:
        chosen = {t.object_: t.object_.c.lineage != "", t.job: t.job.c.kind != snapshots.KIND}
        rows = {table: conn.execute(sa.select(table).where(chosen.get(table, sa.true()))).all() for table in tables}
    return {table.name: sorted(map(repr, found)) for table, found in rows.items()}


@contextmanager
def unchanged(site: Site) -> Iterator[None]:
    before = image(site)
    yield
    assert image(site) == before


NO_BACKUP, NO_INSTANCE, NO_JOB = (400, "DBS.201214"), (404, "DBS.200002"), (404, "DBS.280016")


def test_no_call_takes_an_id_of_somebody_else(site: Site, stranger: Tenant) -> None:
    """Every call with a backup's, an instance's or a job's id in path or body answers as if there were no such thing; the
    words are those for an id that never was."""
    us = site.ours

    def calls(backup: str, second: str, deleted: str, instance: str, jobs: list[str]) -> Iterator[tuple[Any, ...]]:
        for key in (backup, second, deleted):
            yield NO_BACKUP, "DELETE", us.url(f"backups/{key}"), None
            yield NO_BACKUP, "DELETE", us.url("instances/backups"), {"backup_ids": [key]}
            yield NO_BACKUP, "DELETE", us.url("instances/backups"), {"backup_ids": [us.backup, key]}
            yield NO_BACKUP, "PUT", us.url(f"backups/{key}"), {"action": "stop"}
            yield NO_BACKUP, "GET", us.url(f"backups/{key}/restorable-instances"), None
            yield NO_BACKUP, "POST", us.url(f"instances/{us.instance}/recovery"), {"backup_id": key}
            yield NO_BACKUP, "GET", us.own(f"backups/{key}"), None
            yield NO_BACKUP, "POST", us.own("backups/preview"), {"backup_ids": [key]}
            yield NO_BACKUP, "POST", us.own("backups/preview"), {"backup_ids": [us.backup, key]}
            yield NO_BACKUP, "PUT", us.own(f"backups/{key}/hold"), {"reason": "ours now"}
            yield NO_BACKUP, "DELETE", us.own(f"backups/{key}/hold"), None
            yield NO_BACKUP, "POST", us.own(f"backups/{key}/undelete"), None
            yield NO_BACKUP, "POST", us.own(f"backups/{key}/approve"), None
            yield NO_BACKUP, "GET", us.own(f"deletions/{key}"), None
            yield NO_BACKUP, "POST", us.own("verifications"), {"backup_id": key}
            yield NO_BACKUP, "POST", us.url("instances"), {"name": "theft", "restore_info": {"backup_id": key}}
        yield NO_INSTANCE, "POST", us.url(f"instances/{instance}/backups"), {"name": "theft"}
        yield NO_INSTANCE, "POST", us.url(f"instances/{instance}/recovery"), {"backup_id": us.backup}
        yield NO_INSTANCE, "GET", us.own(f"instances/{instance}"), None
        yield NO_INSTANCE, "DELETE", us.own(f"instances/{instance}"), None
        yield NO_INSTANCE, "DELETE", us.url(f"instances/{instance}"), None
        yield NO_INSTANCE, "POST", us.own("verifications"), {"instance_id": instance}
        yield NO_INSTANCE, "GET", us.url(f"instances/{instance}/tags"), None
        tag = {"key": "stolen", "value": "yes"}
        for action in ("create", "delete"):
            yield NO_INSTANCE, "POST", us.url(f"instances/{instance}/tags/action"), {"action": action, "tags": [tag]}
        for rest in ("databases", "tables?database_name=d", "backups/restorable-time-periods", "backups/policy"):
            yield NO_INSTANCE, "GET", us.url(f"instances/{instance}/{rest}"), None
        yield NO_INSTANCE, "PUT", us.url(f"instances/{instance}/backups/policy"), {"backup_policy": {"keep_days": 0}}
        for rest in ("pitr", "pitr/policy"):
            yield NO_INSTANCE, "GET", us.url(f"redis/instances/{instance}/{rest}"), None
        span = "start_time=2026-11-01T00:00:00%2B0000&end_time=2026-11-02T00:00:00%2B0000"
        yield NO_INSTANCE, "GET", us.url(f"redis/instances/{instance}/pitr/restorable-time-periods?{span}"), None
        yield NO_INSTANCE, "PUT", us.url(f"redis/instances/{instance}/pitr/policy"), {"enabled": False}
        yield NO_INSTANCE, "PUT", us.url(f"redis/instances/{instance}/pitr"), {"restore_time": "2026-11-01T00:00:00+0000"}
        yield NO_INSTANCE, "GET", us.own(f"instances/{instance}/recording"), None
        yield NO_INSTANCE, "PUT", us.own(f"instances/{instance}/recording"), {"enabled": True}
        yield NO_INSTANCE, "DELETE", us.own(f"instances/{instance}/recording"), None
        moment = {"moment": "2026-11-01T00:00:00Z"}
        yield NO_INSTANCE, "POST", us.own(f"instances/{instance}/moments"), moment
        yield NO_INSTANCE, "POST", us.own(f"instances/{us.instance}/moments"), {**moment, "source_instance_id": instance}
        theft = {"name": "theft", "restore_info": {"source_instance_id": instance, "restore_time": 1}}
        yield NO_INSTANCE, "POST", us.url("instances"), theft
        yield NO_INSTANCE, "GET", us.own(f"instances/{instance}/test-restores"), None
        yield NO_INSTANCE, "PUT", us.own(f"instances/{instance}/test-restores"), {"every_days": 7}
        yield NO_INSTANCE, "PUT", us.own(f"instances/{instance}/access"), {"address": "redis://127.0.0.1:1"}
        yield NO_INSTANCE, "GET", us.own(f"instances/{instance}/limits"), None
        yield NO_INSTANCE, "PUT", us.own(f"instances/{instance}/limits"), {"bytes_per_second": None}
        yield NO_INSTANCE, "GET", us.own(f"instances/{instance}/notifications/hours"), None
        yield NO_INSTANCE, "PUT", us.own(f"instances/{instance}/notifications/hours"), {"hours": 1}
        yield NO_INSTANCE, "DELETE", us.own(f"instances/{instance}/notifications/hours"), None
        for job in jobs:
            yield NO_JOB, "GET", us.own(f"jobs/{job}"), None
            yield NO_JOB, "POST", us.own(f"jobs/{job}/cancel"), None
            yield NO_JOB, "DELETE", us.url(f"scheduled-jobs/{job}"), None

    never = (f"{'0' * 32}br14", f"{'1' * 32}br14", f"{'2' * 32}br14", f"{'0' * 32}in14")
    nobody = ["00000000-0000-0000-0000-000000000000"] * 3
    real = (stranger.backup, stranger.second, stranger.deleted, stranger.instance)
    with unchanged(site):
        for ours, theirs in zip(calls(*never, nobody), calls(*real, list(stranger.jobs.values())), strict=True):
            said = []
            for (expected, method, url, body), ids in ((ours, (*never, *nobody)), (theirs, (*real, *stranger.jobs.values()))):
                answer = us.http.request(method, url, json=body)
                assert refused(answer) == expected, (method, url, body)
                text = answer.json()["error_msg"]
                for id in ids:
                    text = text.replace(id, "…")
                said.append(text)
            assert said[0] == said[1]


def test_no_list_shows_anything_of_somebody_else(site: Site, stranger: Tenant) -> None:
    """Neither a bare list nor one that is filtered by their ids, names or jobs."""
    us = site.ours
    strange = {stranger.instance, stranger.backup, stranger.second, stranger.deleted, *stranger.jobs.values()}
    lists = [us.url("backups", "v4"), us.url("backups", "v3.1"), us.url("backups?offset=1&limit=100"), us.url("instances")]
    lists += [
        us.url("scheduled-jobs?limit=100"),
        us.url("jobs"),
        us.own("instances"),
        us.own("deletions"),
        us.url(f"backups/{us.backup}/restorable-instances"),
    ]
    for url in lists:
        answer = us.http.get(url)
        assert answer.status_code == 200
        assert us.instance in answer.text or us.deleted in answer.text, f"{url} shows our own"
        assert not [id for id in strange if id in answer.text], url
        assert SECRET_NAME not in answer.text
    for version in ("v4", "v3.1"):
        for query in ({"instance_id": stranger.instance}, {"backup_id": stranger.backup}):
            assert us.http.get(us.url("backups", version), params=query).json() == {"backups": [], "total_count": 0}
    older = {"offset": "1", "limit": "10", "backup_id": stranger.backup}
    assert us.http.get(us.url("backups"), params=older).json() == {"backups": [], "total_count": 0}
    assert us.http.get(us.url("scheduled-jobs"), params={"instance_id": stranger.instance}).json()["schedules"] == []
    with site.server.catalog() as catalog, catalog.write() as conn:
        here = t.instance.c.id == stranger.instance
        conn.execute(sa.update(t.instance).where(here).values(labels=json.dumps({SECRET_NAME: SECRET_NAME})))
    assert us.http.get(us.url("tags")).json() == {"tags": [], "total_count": 0}
    for match in ({"key": "instance_id", "value": stranger.instance}, {"key": "instance_name", "value": f"*{SECRET_NAME}"}):
        for wanted in ({"matches": [match]}, {"tags": [{"key": SECRET_NAME, "values": []}]}):
            found = us.http.post(us.url("instances/resource-instances/action"), json={"action": "filter", **wanted})
            assert found.json() == {"instances": [], "total_count": 0}
    assert us.http.get(us.own(f"instances?tag={SECRET_NAME}")).json() == {"instances": [], "total_count": 0}
    used = us.http.get(us.url("quotas")).json()["quotas"]["resources"]
    assert {one["type"]: one["used"] for one in used}["instance"] == 1, "only our own is counted"
    for query in ({"id": stranger.instance}, {"name": f"*{SECRET_NAME}"}):
        assert us.http.get(us.url("instances"), params=query).json() == {"instances": [], "total_count": 0}
    for job in stranger.jobs.values():
        assert us.http.get(us.url("jobs"), params={"id": job}).json() == {"jobs": [], "total_count": 0}


def test_the_way_into_somebody_elses_project_is_shut(site: Site) -> None:
    """With their project in the path, by key and by token: DBS.200010 for every call, whether the project exists or not."""
    us, token = site.ours, {"X-Auth-Token": site.server.token()}
    nowhere = Keys("", "", "0" * 32, "", "", "", "")
    absent = Tenant(nowhere, us.http, us.instance, us.backup, us.second, us.deleted, us.jobs)
    with unchanged(site), site.server.http(signed=False) as plain:
        for place in (site.theirs, absent):
            for method, url, body in (
                ("DELETE", place.url(f"backups/{place.backup}"), None),
                ("DELETE", place.url("instances/backups"), {"backup_ids": [place.backup]}),
                ("POST", place.url(f"instances/{place.instance}/backups"), {"name": "theft"}),
                ("POST", place.url(f"instances/{place.instance}/recovery"), {"backup_id": place.backup}),
                ("GET", place.url("backups", "v4"), None),
                ("GET", place.url("jobs"), None),
                ("GET", place.own("deletions"), None),
                ("PUT", place.own(f"backups/{place.backup}/hold"), {"reason": "x"}),
            ):
                assert refused(us.http.request(method, url, json=body)) == (400, "DBS.200010")
                assert refused(plain.request(method, url, json=body, headers=token)) == (400, "DBS.200010")


def test_a_user_of_one_project_has_no_part_in_the_other_of_the_account(site: Site) -> None:
    """The neighbour, administrator of one project, is shut out of ours; the account's own administrator is in both."""
    with unchanged(site):
        assert refused(site.neighbour.http.delete(site.ours.url(f"backups/{site.ours.backup}"))) == (400, "DBS.200010")
        assert refused(site.neighbour.http.get(site.ours.url("backups", "v4"))) == (400, "DBS.200010")
    answer = site.ours.http.get(site.neighbour.url("backups", "v4"))
    assert {one["id"] for one in answer.json()["backups"]} == {site.neighbour.backup, site.neighbour.second}


# --- what a user's policies allow ------------------------------------------------------------------------------------


def allowed(site: Site, http: httpx.Client) -> set[str]:
    """Which calls are not refused with DBS.280032, tried with ids that never were, so that nothing happens."""
    us, backup, instance = site.ours, f"{'0' * 32}br14", f"{'0' * 32}in14"
    job = "00000000-0000-0000-0000-000000000000"
    found = set()
    for name, method, url, body in (
        ("delete", "DELETE", us.url(f"backups/{backup}"), None),
        ("batch delete", "DELETE", us.url("instances/backups"), {"backup_ids": [backup]}),
        ("create", "POST", us.url(f"instances/{instance}/backups"), {"name": "nothing"}),
        ("stop", "PUT", us.url(f"backups/{backup}"), {"action": "stop"}),
        ("list v4", "GET", us.url("backups", "v4"), None),
        ("list v3.1", "GET", us.url("backups", "v3.1"), None),
        ("list v3", "GET", us.url("backups?offset=1&limit=1"), None),
        ("restorable", "GET", us.url(f"backups/{backup}/restorable-instances"), None),
        ("recovery", "POST", us.url(f"instances/{instance}/recovery"), {"backup_id": backup}),
        ("jobs", "GET", us.url("jobs"), None),
        ("job", "GET", us.own(f"jobs/{job}"), None),
        ("cancel", "POST", us.own(f"jobs/{job}/cancel"), None),
        ("instances", "GET", us.url("instances"), None),
        ("own instances", "GET", us.own("instances"), None),
        ("instance", "GET", us.own(f"instances/{instance}"), None),
        ("register", "POST", us.own("instances"), {"name": "nothing", "engine": "redis", "address": "redis://127.0.0.1:1"}),
        ("unregister", "DELETE", us.own(f"instances/{instance}"), None),
        ("delete instance", "DELETE", us.url(f"instances/{instance}"), None),
        ("tags", "GET", us.url("tags"), None),
        ("tag", "POST", us.url(f"instances/{instance}/tags/action"), {"action": "create", "tags": [{"key": "k"}]}),
        ("find by tag", "POST", us.url("instances/resource-instances/action"), {"action": "filter"}),
        ("quotas", "GET", us.url("quotas"), None),
        ("set quotas", "PUT", us.own("quotas"), {}),
        ("recycled", "GET", us.url("recycle-instances"), None),
        ("recycle policy", "GET", us.url("instances/recycle-policy"), None),
        ("set recycle policy", "PUT", us.url("instances/recycle-policy"), {}),
        ("databases", "GET", us.url(f"instances/{instance}/databases"), None),
        ("moments", "GET", us.url(f"redis/instances/{instance}/pitr/policy"), None),
        ("set moments", "PUT", us.url(f"redis/instances/{instance}/pitr/policy"), {"enabled": False}),
        ("recording", "GET", us.own(f"instances/{instance}/recording"), None),
        ("drop log", "DELETE", us.own(f"instances/{instance}/recording"), None),
        ("moment", "POST", us.own(f"instances/{instance}/moments"), {"moment": "2026-11-01T00:00:00Z"}),
        ("versions", "GET", us.url("datastores/redis/versions"), None),
        ("tasks", "GET", us.url("scheduled-jobs"), None),
        ("cancel task", "DELETE", us.url(f"scheduled-jobs/{job}"), None),
        ("backup", "GET", us.own(f"backups/{backup}"), None),
        ("preview", "POST", us.own("backups/preview"), {"backup_ids": [backup]}),
        ("hold", "PUT", us.own(f"backups/{backup}/hold"), {"reason": "x"}),
        ("release", "DELETE", us.own(f"backups/{backup}/hold"), None),
        ("undelete", "POST", us.own(f"backups/{backup}/undelete"), None),
        ("approve", "POST", us.own(f"backups/{backup}/approve"), None),
        ("deletion policy", "GET", us.own("deletion-policy"), None),
        ("set deletion policy", "PUT", us.own("deletion-policy"), {}),
        ("deletions", "GET", us.own("deletions"), None),
        ("deletion", "GET", us.own(f"deletions/{backup}"), None),
    ):
        answer = http.request(method, url, json=body)
        if answer.status_code != 403:
            found.add(name)
            continue
        assert refused(answer) == (403, "DBS.280032")
        assert ":" in answer.json()["error_msg"]
    return found


LOOKING = {
    "list v4", "list v3.1", "list v3", "restorable", "jobs", "job", "instances", "own instances", "instance", "backup",
    "preview", "deletions", "deletion", "tags", "find by tag", "quotas", "recycled", "recycle policy", "databases", "moments",
    "versions", "tasks", "deletion policy", "recording",
}  # fmt: skip


def statement(*actions: str, effect: str = "Allow", version: str = "1.1", **more: Any) -> dict[str, Any]:
    return {"Version": version, "Statement": [{"Effect": effect, "Action": list(actions), **more}]}


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        (["reader"], LOOKING),
        (["operator"], LOOKING | {"create", "stop", "recovery", "register", "moment"}),
        ([statement("nosql:backup:delete")], {"delete", "batch delete"}),
        ([statement("nosql:backup:delete", Resource=["*"])], {"delete", "batch delete"}),
        ([statement("gaussdbfornosql:instance:deleteBackup", version="5.0")], {"delete", "batch delete"}),
        ([statement("GaussDBforNoSQL:Instance:DeleteBackup", version="5.0")], {"delete", "batch delete"}),
        ([statement("gaussdbfornosql:*:delete*", version="5.0")], {"delete", "batch delete", "delete instance"}),
        ([statement("nosql:backup:delete", Resource=[f"nosql:*:*:backup:{'0' * 32}br14"])], set()),
        ([statement("nosql:backup:list")], {"list v4", "list v3.1", "backup", "databases", "moments"}),
        (["administrator", statement("nosql:backup:delete", effect="Deny")], None),
        (["administrator", statement("gaussdbfornosql:instance:deleteBackup", effect="Deny", version="5.0")], None),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, list) else "",
)
def test_a_user_may_do_what_the_policies_say_and_nothing_else(site: Site, policies: list[Any], expected: set[str] | None) -> None:
    """Built-in policies, the delete's name in both forms, a resource that does not fit, a Deny over everything."""
    name = f"user-{Machine().hex_id()}"
    user = site.server.new_user(site.server.owner, name, *policies)
    with unchanged(site), site.server.http(user) as http:
        may = allowed(site, http)
    if expected is None:
        assert "hold" in may
        assert not may & {"delete", "batch delete"}
    else:
        assert may == expected


@pytest.mark.parametrize(
    "policy",
    [statement("nosql:backup:delete"), statement("gaussdbfornosql:instance:deleteBackup", version="5.0")],
    ids=["role", "identity"],
)
def test_a_user_with_the_delete_permission_alone_deletes(site: Site, policy: dict[str, Any], request: Any) -> None:
    """By either name, by key and by token; and does not see what was deleted."""
    us = site.ours
    answer = us.http.post(us.url(f"instances/{us.instance}/backups"), json={"name": "to-be-deleted"})
    assert wait(us.http, us.keys, answer.json()["job_id"]) == "Completed"
    backup = answer.json()["backup_id"]
    user = site.server.new_user(site.server.owner, f"deleter-{request.node.callspec.id}", policy)
    with site.server.http(user) as http, site.server.http(user, signed=False) as plain:
        assert refused(http.get(us.url("backups", "v4"))) == (403, "DBS.280032")
        job = http.delete(us.url(f"backups/{backup}"))
        assert job.status_code == 202
        again = plain.delete(us.url(f"backups/{backup}"), headers={"X-Auth-Token": site.server.token(user)})
        assert again.status_code == 202 or refused(again) == NO_BACKUP
        assert refused(http.get(us.own(f"deletions/{backup}"))) == (403, "DBS.280032")
    assert wait(us.http, us.keys, job.json()["job_id"]) == "Completed"


def test_what_is_taken_from_a_user_is_gone_at_once(site: Site) -> None:
    """A revoked policy ends key and token for the project; a disabled user is nobody."""
    owner = site.server.owner
    user = site.server.new_user(owner, "short-lived", "administrator")
    token = {"X-Auth-Token": site.server.token(user)}
    url = site.ours.url("backups", "v4")
    with site.server.http(user) as http, site.server.http(signed=False) as plain, site.server.catalog() as catalog:
        assert (http.get(url).status_code, plain.get(url, headers=token).status_code) == (200, 200)
        with catalog.write() as conn:
            id = site_user(conn, "short-lived")
            accounts.revoke(conn, Machine(), id, "administrator")
        assert refused(http.get(url)) == (400, "DBS.200010")
        assert refused(plain.get(url, headers=token)) == (401, "APIGW.0301")
        with catalog.write() as conn:
            accounts.grant(conn, Machine(), id, "administrator")
        assert http.get(url).status_code == 200
        with catalog.write() as conn:
            accounts.set_enabled(conn, Machine(), id, False)
        assert refused(http.get(url)) == (401, "APIGW.0301")


def site_user(conn: sa.Connection, name: str) -> str:
    """The id of a user of that name."""
    return str(conn.execute(sa.select(identity.user.c.id).where(identity.user.c.name == name)).scalar_one())
