"""What the public Terraform provider sends, sent again: its start, its resources and data sources, and ten calls at once.

The provider itself is not run here: its module is not to be had from the Go module proxy, so neither it nor a build of it can
be part of the tests. Its requests were recorded once (support/terraform_wire.py); these tests send them in its order, and
check what it reads in the answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from strongroom.ambient import Machine
from support.redis_server import RedisServer, binaries, redis_server
from support.server import ServerProcess
from support.slow_path import SlowPath
from support.terraform_wire import BUSY, JSON, Answer, Provider
from support.windows import far_window

pytestmark = pytest.mark.skipif(not binaries(), reason="no redis-server here")

ACCEPTED = {"POST": {200, 201, 202}, "PUT": {200, 201, 202}, "DELETE": {200, 202, 204}}


@dataclass
class Site:
    """A server with one Redis registered, and a provider with the owner's keys."""

    server: ServerProcess
    redis: RedisServer
    provider: Provider
    instance: str

    def create(self, name: str, instance: str = "") -> Answer:
        """The backup resource's first call."""
        return self.provider.send("POST", f"/v3/{{p}}/instances/{instance or self.instance}/backups", {"name": name})

    def completed(self, answer: Answer) -> str:
        """Waits as the resource does, only sooner; returns the backup's id."""
        assert answer.status in ACCEPTED["POST"], answer
        for _ in range(600):
            found = self.provider.send("GET", "/v3/{p}/jobs", query={"id": answer.body["job_id"]})
            if found.body["jobs"][0]["status"] != "Running":
                assert found.body["jobs"][0]["status"] == "Completed", found
                return str(answer.body["backup_id"])
            time.sleep(0.05)
        raise AssertionError("the job does not end")

    def read(self, backup: str) -> list[dict[str, object]]:
        """The resource's look-up: whole instances, and if that is empty tables."""
        found: list[dict[str, object]] = []
        for kind in ("Instance", "DatabaseTable"):
            answer = self.provider.send("GET", "/v4/{p}/backups", query={"backup_id": backup, "type": kind})
            assert answer.status == 200
            found = found or answer.body["backups"]
        return found

    def delete(self, backup: str) -> Answer:
        return self.provider.send("DELETE", f"/v3/{{p}}/backups/{backup}")

    def ready(self, instance: str) -> bool:
        """What it waits for before and after changes."""
        (one,) = self.provider.send("GET", "/v3/{p}/instances", query={"id": instance}).body["instances"]
        return one["status"] == "normal" and one["actions"] == []


def name(prefix: str) -> str:
    return f"{prefix}-{Machine().hex_id()[:8]}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("terraform")
    with redis_server(folder) as redis, ServerProcess(folder / "data") as server:
        with redis.client() as client:
            client.mset({f"key:{number}": "v" * 100 for number in range(500)})
        key = server.cli("instance", "add", "cache", "--engine", "redis", "--address", redis.address)["id"]
        told = server.credentials
        provider = Provider(told["endpoint"], told["project_id"], told["access_key"], told["secret_key"])
        yield Site(server, redis, provider, key)
        assert server.stop() == 0


def test_it_starts_with_keys(site: Site) -> None:
    """It looks its account up, and its project where only the name is known."""
    assert len(site.provider.send("GET", "/v3/auth/domains").body["domains"]) == 1
    (project,) = site.provider.send("GET", "/v3/projects", query={"name": "default"}).body["projects"]
    assert project["id"] == site.provider.project


def test_it_starts_with_a_password(site: Site) -> None:
    """Two tokens, for the project and for the account; then account and user; and the token alone is enough for the rest."""
    told = site.server.credentials
    user = {"name": told["user"], "password": told["password"], "domain": {"name": told["domain"]}}
    identity = {"methods": ["password"], "password": {"user": user}}
    nobody = Provider(told["endpoint"], told["project_id"])
    tokens = []
    for scope in ({"project": {"name": "default"}}, {"domain": {"name": told["domain"]}}):
        answer = nobody.send("POST", "/v3/auth/tokens", {"auth": {"identity": identity, "scope": scope}})
        assert answer.status == 201
        tokens.append(answer.headers["x-subject-token"])
        if "project" in scope:
            assert answer.body["token"]["project"]["id"] == told["project_id"]
    wide = Provider(told["endpoint"], told["project_id"], token=tokens[1])
    assert wide.send("GET", "/v3/auth/domains").body["domains"]
    assert [one["name"] for one in wide.send("GET", "/v3/users", query={"name": told["user"]}).body["users"]] == [told["user"]]
    narrow = Provider(told["endpoint"], told["project_id"], token=tokens[0])
    assert narrow.send("GET", "/v4/{p}/backups").status == 200
    again = {"methods": ["token"], "token": {"id": tokens[0]}}
    scoped = {"auth": {"identity": again, "scope": {"project": {"id": told["project_id"]}}}}
    assert nobody.send("POST", "/v3/auth/tokens", scoped).status == 201


def test_a_backup_is_created_read_and_destroyed(site: Site) -> None:
    """All that it keeps of a backup is there; after the destroy the look-up is empty at once, and again it is already gone."""
    wanted = name("first")
    backup = site.completed(site.create(wanted))
    (found,) = site.read(backup)
    assert (found["instance_id"], found["name"], found["status"], found["type"]) == (site.instance, wanted, "COMPLETED", "Manual")
    assert isinstance(found["size"], int | float)
    assert found["datastore"] == {"type": "redis", "version": found["datastore"]["version"]}  # type: ignore[index]
    assert found["description"] == ""
    assert found["begin_time"] <= found["end_time"]  # type: ignore[operator]
    answer = site.delete(backup)
    assert answer.status in ACCEPTED["DELETE"]
    assert site.read(backup) == []
    gone = site.delete(backup)
    while gone.status == 202:  # its job still runs: the same answer as before
        assert gone.body == answer.body
        time.sleep(0.05)
        gone = site.delete(backup)
    assert (gone.status, gone.code) == (400, "DBS.201214")


def test_ten_at_once_on_one_instance(site: Site) -> None:
    """Three creates, two deletes and five look-ups in the same instant: deletes are accepted side by side, a create may be told
    to wait and is then tried again, and nobody meets anything else."""
    old = [site.completed(site.create(name("old"))) for _ in range(2)]
    gate = threading.Barrier(10)

    def at_once(call: Callable[[], Answer]) -> Answer:
        gate.wait(30)
        return call()

    creates = [lambda wanted=wanted: site.create(wanted) for wanted in (name("new"), name("new"), name("new"))]
    deletes = [lambda backup=backup: site.delete(backup) for backup in old]
    looks: list[Callable[[], Answer]] = [
        lambda: site.provider.send("GET", "/v4/{p}/backups", query={"instance_id": site.instance}),
        lambda: site.provider.send("GET", "/v3/{p}/jobs", query={"limit": "50", "offset": "0"}),
        lambda: site.provider.send("GET", "/v3/{p}/instances", query={"id": site.instance}),
        lambda: site.provider.send("GET", "/v3/{p}/instances/recycle-policy"),
        lambda: site.provider.send("GET", "/v3/{p}/quotas"),
    ]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(at_once, [*creates, *deletes, *looks]))
    assert [answer.status for answer in answers[3:5]] == [202, 202]
    assert [answer.status for answer in answers[5:]] == [200] * 5
    made = [answer for answer in answers[:3] if answer.status == 202]
    refused = [answer for answer in answers[:3] if answer.status != 202]
    assert len(made) >= 1
    assert {(answer.status, answer.code) for answer in refused} <= {(403, "DBS.200019")}
    assert "DBS.200019" in BUSY
    backups = [site.completed(answer) for answer in made]
    for _again in refused:
        answer = site.create(name("again"))
        assert answer.status == 202, answer
        backups.append(site.completed(answer))
    assert len(backups) == 3
    assert all(site.read(backup) for backup in backups)
    assert not any(site.read(backup) for backup in old)


def test_a_running_backup_is_stopped(site: Site) -> None:
    """The stopped one stays listed, and the instance is ready again."""
    slow = SlowPath(site.redis.port)
    try:
        key = site.server.cli("instance", "add", name("slow"), "--engine", "redis", "--address", slow.address)["id"]
        slow.stall(2048)
        made = site.create(name("stopped"), key)
        slow.wait_stalled()
        answer = site.provider.send("PUT", f"/v3/{{p}}/backups/{made.body['backup_id']}", {"action": "stop"})
        assert answer.status in ACCEPTED["PUT"]
        assert answer.body["job_id"]
        assert [one["status"] for one in site.read(made.body["backup_id"])] == ["FAILED"]
        assert site.ready(key)
    finally:
        slow.close()


def test_the_recycle_policy_is_put_and_read(site: Site) -> None:
    """A status other than 204, and the same shape back."""
    for days in (5, 7):
        wanted = {"recycle_policy": {"retention_period_in_days": days}}
        assert site.provider.send("PUT", "/v3/{p}/instances/recycle-policy", wanted).status in ACCEPTED["PUT"]
        answer = site.provider.send("GET", "/v3/{p}/instances/recycle-policy")
        assert (answer.status, answer.body) == (200, wanted)


def test_a_changed_policy_shows_at_once(site: Site) -> None:
    """It sends all seven days, and reads the instances' list."""
    window = far_window()
    for days in (9, 12):
        policy = {"keep_days": days, "period": "1,2,3,4,5,6,7", "start_time": window}
        answer = site.provider.send("PUT", f"/v3/{{p}}/instances/{site.instance}/backups/policy", {"backup_policy": policy})
        assert answer.status in {200, 201, 202, 204}
        (one,) = site.provider.send("GET", "/v3/{p}/instances", query={"id": site.instance}).body["instances"]
        assert one["backup_strategy"] == {"start_time": window, "keep_days": days}
    off = {"backup_policy": {"keep_days": 0, "period": "1,2,3,4,5,6,7", "start_time": "03:00-04:00"}}
    assert site.provider.send("PUT", f"/v3/{{p}}/instances/{site.instance}/backups/policy", off).status == 204


def test_data_sources_read_to_the_end(site: Site) -> None:
    """Every list, by offset until a page is empty; with its filters where it has some; a time's plus comes as %2B or a space."""
    backup = site.completed(site.create(name("listed")))
    here = {"instance_id": site.instance}
    assert backup in [one["id"] for one in site.provider.read_on("/v4/{p}/backups", "backups", query=here)]
    hours = [time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(time.time() + shift)) for shift in (-3600, 3600)]
    for begin, end in (hours, [hour.replace("+", " ") for hour in hours]):
        narrowed = {**here, "backup_id": backup, "backup_type": "Manual", "type": "Instance", "datastore_type": "redis"}
        narrowed |= {"begin_time": begin, "end_time": end}
        (one,) = site.provider.read_on("/v4/{p}/backups", "backups", query=narrowed)
        assert one["instance_name"] == "cache"
    jobs = site.provider.read_on("/v3/{p}/jobs", "jobs", query={"limit": "50", "offset": "0"}, kind=JSON)
    assert {"id", "name", "status", "start_time", "end_time", "progress", "instance", "fail_reason"} <= jobs[0].keys()
    listed = {"id": site.instance, "limit": "100", "offset": "0"}
    assert len(site.provider.read_on("/v3/{p}/instances", "instances", query=listed, kind=JSON)) == 1
    tag = {"action": "create", "tags": [{"key": "stage", "value": "test"}]}
    assert site.provider.send("POST", f"/v3/{{p}}/instances/{site.instance}/tags/action", tag).status in ACCEPTED["POST"]
    assert {"type": "user", "key": "stage", "values": ["test"]} in site.provider.read_on("/v3/{p}/tags", "tags")
    assert site.provider.read_on(f"/v3/{{p}}/instances/{site.instance}/tags", "tags") == tag["tags"]
    assert site.provider.read_on("/v3/{p}/scheduled-jobs", "schedules", query=here)
    for path, items in (
        (f"/v3/{{p}}/instances/{site.instance}/backups/restorable-time-periods", "restorable_time_periods"),
        (f"/v3/{{p}}/instances/{site.instance}/databases", "database_names"),
    ):
        assert site.provider.read_on(path, items) == []
    tables = f"/v3/{{p}}/instances/{site.instance}/tables"
    assert site.provider.read_on(tables, "table_names", query={"database_name": "any"}) == []
    quotas = site.provider.send("GET", "/v3/{p}/quotas", query={"datastore_type": "redis"}).body["quotas"]["resources"]
    assert {one["type"]: sorted(one) for one in quotas}.keys() == {"instance", "backup", "stored_bytes"}
    assert "7.0" in site.provider.send("GET", "/v3/{p}/datastores/redis/versions").body["versions"]


def test_an_unregistered_instance_is_in_the_bin_and_gone_from_the_list(site: Site) -> None:
    """Destroying an instance waits until the list is empty."""
    key = site.server.cli("instance", "add", name("short"), "--engine", "redis", "--address", site.redis.address)["id"]
    assert site.provider.send("DELETE", f"/v3/{{p}}/instances/{key}").status in ACCEPTED["DELETE"]
    assert site.provider.send("GET", "/v3/{p}/instances", query={"id": key}).body["instances"] == []
    assert key in [one["id"] for one in site.provider.read_on("/v3/{p}/recycle-instances", "instances")]


def test_what_it_reads_of_an_instance_beyond_backups_is_not_there_with_words(site: Site) -> None:
    """404 is taken as "has none of that"."""
    for rest in (
        "disk-auto-expansion", "monitoring-by-seconds/switch", "passwordless-config", "node-auto-expansion-policy",
        "lb/access-control", "configurations",
    ):  # fmt: skip
        answer = site.provider.send("GET", f"/v3/{{p}}/instances/{site.instance}/{rest}")
        assert (answer.status, answer.code) == (404, "DBS.280016"), rest
        assert len(answer.body["error_msg"]) > 30


def test_a_percent_encoded_path_is_one_id(site: Site) -> None:
    """Encoded where it need not be it is the same id; an encoded slash stays inside it and is refused, whoever signs."""
    backup = site.completed(site.create(name("encoded")))
    for strange in (f"{backup}%2F..%2F{backup}", f"{backup}%20", f"..%2Finstances%2F{site.instance}"):
        answer = site.delete(strange)
        assert (answer.status, answer.code) == (400, "DBS.201212"), strange
    assert site.read(backup)
    assert site.delete(f"%{ord(backup[0]):02X}{backup[1:]}").status == 202
    assert site.read(backup) == []
