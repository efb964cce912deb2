"""Being told, by a real server process: a real Redis whose backups fail, real receivers, a real command."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.ambient import Machine
from strongroom.backups.context import Context
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog
from strongroom.identity import tables as identity
from strongroom.identity.secrets import Sealer
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.notifications import ages, outbox, webhooks
from strongroom.repository.keys import RootKey
from strongroom.storage.memory import MemoryStore
from support.receiver import Receiver, receiver
from support.redis_server import RedisServer, binaries, free_port, redis_server
from support.server import Keys, ServerProcess
from support.vault import ROOT

needs_redis = pytest.mark.skipif(not binaries(), reason="no redis-server here")

PASSWORD = "a-password-of-redis"
_TELL = "import sys, json; open(sys.argv[1], 'a').write(json.dumps(json.load(sys.stdin)) + chr(10))"


@dataclass
class Site:
    """A Strongroom with a Redis that wants a password, a receiver, and a command that writes down what it is told."""

    server: ServerProcess
    redis: RedisServer
    hooks: Receiver
    file: Path

    def told(self) -> list[dict[str, Any]]:
        """What the command was told."""
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def own(self, method: str, path: str, keys: Keys | None = None, **options: Any) -> Any:
        with self.server.http(keys) as http:
            return http.request(method, f"/strongroom/v1/{self.server.owner.project}/{path}", **options)

    def fail_a_backup(self, name: str) -> str:
        """Redis lets us in no more; returns the backup."""
        with self.redis.client() as client:
            client.config_set("requirepass", "another-password")
        try:
            made = self.server.cli("backup", "create", "cache", name)
            assert self.server.wait(made["job_id"]).status == "Failed"
        finally:
            with self.redis.client(password="another-password") as client:
                client.config_set("requirepass", PASSWORD)
        return str(made["backup_id"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("notifications")
    command = f"{sys.executable} -c \"{_TELL}\" '{folder}/told'"
    forgetful = folder / "forgetful-redis"  # for test restores: it keeps little of what it is given
    forgetful.write_text(f'#!/bin/sh\nexec {binaries()[0]} "$@" --maxmemory 1500kb --maxmemory-policy allkeys-random\n')
    forgetful.chmod(0o700)
    environ = {
        "STRONGROOM_NOTIFY_NETWORKS": "127.0.0.1", "STRONGROOM_NOTIFY_COMMAND": command,
        "STRONGROOM_REDIS_SERVER": str(forgetful),
    }  # fmt: skip
    with (
        redis_server(folder, password=PASSWORD) as redis,
        receiver() as hooks,
        ServerProcess(folder / "data", environ) as server,
    ):
        with redis.client() as client:
            client.mset({f"key:{number}": "v" * 100 for number in range(100)})
        server.cli(
            "instance", "add", "cache", "--engine", "redis", "--address", redis.address, "--password-stdin", stdin=f"{PASSWORD}\n"
        )
        yield Site(server, redis, hooks, folder / "told")
        assert server.stop() == 0
        assert "Traceback" not in server.log


def until(what: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


@needs_redis
def test_a_failed_backup_reaches_webhook_and_command(site: Site) -> None:
    """Signed by the secret that was shown once; the same event to both; no credential in it, and no secret at rest in clear."""
    made = site.server.cli("notify", "add", "team", site.hooks.url("/ok?team"))
    secret = made["secret"]
    backup = site.fail_a_backup("at-night")
    (told,) = site.hooks.wait_for("backup_failed", path="/ok?team")
    assert told.is_signed(secret)
    assert not told.is_signed(secret[::-1])
    body = told.body
    assert (body["backup"]["id"], body["backup"]["name"], body["instance"]["name"]) == (backup, "at-night", "cache")
    assert body["project"] == site.server.owner.project
    assert body["instance"]["engine"] == "redis"
    assert body["words"].startswith("Backup at-night of redis instance cache failed: ")
    reason = site.own("GET", f"jobs/{body['job']}").json()["fail_reason"]
    assert body["detail"] == {"reason": reason}
    assert until(lambda: [one for one in site.told() if one["backup"] == body["backup"]]) == [body]
    until(lambda: site.server.cli("notify", "list")["webhooks"][0]["delivered"])
    for text in (told.content.decode(), site.file.read_text()):
        assert PASSWORD not in text
        assert site.server.owner.secret_key not in text
    data = b"".join(path.read_bytes() for path in site.server.folder.glob("catalog.db*"))
    assert secret.encode() not in data
    assert secret not in site.server.log
    listed = site.server.cli("notify", "list")["webhooks"]
    assert "secret" not in json.dumps(listed)
    assert [(one["name"], one["delivered"], one["last_error"]) for one in listed] == [("team", 1, None)]
    site.server.cli("notify", "remove", "team")


@needs_redis
def test_a_test_restore_that_differs_is_told(site: Site) -> None:
    """Into a server that has dropped most of it by the time that it is compared. The names of keys stay here."""
    secret = site.server.cli("notify", "add", "tests", site.hooks.url("/ok?tests"), "--event", "test_restore_failed")["secret"]
    with site.redis.client() as client:
        client.mset({f"large:{number}": "v" * 5_000 for number in range(1_000)})
    made = site.server.cli("backup", "create", "cache", "to-be-tested", "--wait")
    job = site.server.cli("verify", "--restore", "--backup", made["backup_id"], "--wait", status=1)["job"]
    assert job["result"]["outcome"] == "differs"
    (told,) = site.hooks.wait_for("test_restore_failed", path="/ok?tests")
    assert told.is_signed(secret)
    assert (told.body["backup"]["id"], told.body["job"]) == (made["backup_id"], job["id"])
    assert "what was restored differs" in told.body["words"]
    assert "large:" not in told.content.decode()
    site.server.cli("notify", "remove", "tests")
    with site.redis.client() as client:
        client.delete(*(f"large:{number}" for number in range(1_000)))


def test_a_secret_is_replaced_while_both_sign(site: Site) -> None:
    """By command, drawn or given; the trail says who did it, and neither it nor the log nor the database has a secret."""
    cli, place = site.server.cli, "/ok?rotated"
    old = cli("notify", "add", "rotated", site.hooks.url(place))["secret"]
    made = cli("notify", "rotate", "rotated", "--overlap", "1")
    cli("notify", "test", "rotated")
    (told,) = site.hooks.wait_for("test", path=place)
    assert told.is_signed(old)
    assert told.is_signed(made["secret"])
    assert len(told.signatures) == 2
    given = "a-secret-of-our-own-vault"
    assert cli("notify", "rotate", "rotated", "--secret-stdin", "--overlap", "0", stdin=f"{given}\n")["secret"] is None
    cli("notify", "test", "rotated")
    told = site.hooks.wait_for("test", 2, path=place)[-1]
    assert told.is_signed(given)
    assert len(told.signatures) == 1
    with site.server.catalog() as catalog, catalog.read() as conn:
        mine = sa.and_(identity.audit.c.resource_name == "rotated", identity.audit.c.event == "StrongroomRotateWebhookSecret")
        rows = conn.execute(sa.select(identity.audit).where(mine).order_by(identity.audit.c.sequence)).all()
    assert [json.loads(row.detail) for row in rows] == [
        {"given": False, "overlap_hours": 1.0}, {"given": True, "overlap_hours": 0.0},
    ]  # fmt: skip
    data = b"".join(path.read_bytes() for path in site.server.folder.glob("catalog.db*")) + site.server.log.encode()
    for secret in (old, made["secret"], given):
        assert secret.encode() not in data
    for wrong in (
        {"overlap_hours": -1}, {"overlap_hours": 169}, {"overlap_hours": "1"}, {"secret": "short"},
        {"secret": "with spaces in it, so long"},
        {"secret": '"quoted-and-long-enough-to-be"'}, {"secret": "x" * 129}, {"secret": 7},
    ):  # fmt: skip
        answer = site.own("POST", "notifications/webhooks/rotated/secret", json=wrong)
        assert answer.status_code == 400, wrong
        assert str(wrong.get("secret", "none")) not in answer.text
    assert site.own("POST", "notifications/webhooks/nothing/secret", json={}).status_code == 404
    cli("notify", "remove", "rotated")


@needs_redis
def test_what_is_registered_counts_and_is_in_the_audit_trail(site: Site) -> None:
    """Events that were not asked for are not told; who did what is in the trail, without path and query of the URL."""
    site.server.cli("notify", "add", "deletions", site.hooks.url("/ok?token=abc"), "--event", "deletion_failed")
    site.server.cli("notify", "add", "backups", site.hooks.url("/ok?all"), "--event", "backup_failed")
    site.fail_a_backup("not-told")
    site.hooks.wait_for("backup_failed", path="/ok?all")
    assert not site.hooks.events("backup_failed", "/ok?token=abc")
    site.server.cli("notify", "remove", "deletions")
    site.server.cli("notify", "remove", "backups")
    site.server.cli("notify", "remove", "backups", status=1)
    with site.server.catalog() as catalog, catalog.read() as conn:
        rows = conn.execute(sa.select(identity.audit).where(identity.audit.c.resource_name == "deletions")).all()
    assert [row.event for row in rows] == ["StrongroomAddWebhook", "StrongroomRemoveWebhook"]
    assert json.loads(rows[0].detail) == {"url": f"http://127.0.0.1:{site.hooks.port}", "events": ["deletion_failed"]}


def test_a_test_says_what_came_back(site: Site) -> None:
    """With exit status 1 where it failed; the command has its own, for the first account's administrator."""
    for name, path in (("good", "/ok?test"), ("bad", "/redirect"), ("twice", "/twice-tested")):
        site.server.cli("notify", "add", name, site.hooks.url(path))
    result = site.server.cli("notify", "test", "good")
    assert (result["outcome"], result["status"]) == ("delivered", 204)
    (told,) = site.hooks.events("test", "/ok?test")
    assert told.body["job"] == result["job_id"]
    assert told.headers["X-Strongroom-Delivery"] == result["job_id"]
    site.server.cli("notify", "test", "bad", status=1)
    site.server.cli("notify", "test", "nobody", status=1)
    assert not site.hooks.events("test", "/secret")
    site.server.cli("notify", "test", "twice", status=1)
    assert len(site.hooks.events("test", "/twice-tested")) == 1, "a test is one try"
    assert site.server.cli("notify", "test", "twice")["status"] == 200
    assert site.server.cli("notify", "test", "--command")["outcome"] == "delivered"
    assert site.told()[-1]["event"] == "test"
    assert site.own("GET", "notifications/command").json()["set"] is True
    for name in ("good", "bad", "twice"):
        site.server.cli("notify", "remove", name)


@needs_redis
def test_a_receiver_that_fails_first_is_told_again(site: Site) -> None:
    """The same event by the same ids; metrics count the try and the delivery."""
    site.server.cli("notify", "add", "flaky", site.hooks.url("/twice-flaky"))
    site.fail_a_backup("told-again")
    tries = site.hooks.wait_for("backup_failed", 2, "/twice-flaky")
    assert len({one.body["id"] for one in tries}) == len({one.headers["X-Strongroom-Delivery"] for one in tries}) == 1

    def counted() -> bool:
        with site.server.http(signed=False) as anyone:
            lines = anyone.get("/metrics").text.splitlines()
        labels = f'project="{site.server.owner.project}",receiver="flaky"'
        found = {line.split('outcome="')[1].split('"')[0]: float(line.split()[-1]) for line in lines if labels in line}
        return found == {"delivered": 1.0, "failed": 1.0, "given_up": 0.0, "dropped": 0.0}

    until(counted)
    site.server.cli("notify", "remove", "flaky")


@needs_redis
def test_receivers_that_hang_hold_up_no_backup(site: Site) -> None:
    """More of them than there are threads that tell."""
    for number in range(6):
        site.server.cli("notify", "add", f"hang-{number}", site.hooks.url("/hang"))
    site.fail_a_backup("hangs")
    site.hooks.wait_for("backup_failed", 3, "/hang")
    begun = time.monotonic()
    made = site.server.cli("backup", "create", "cache", "beside-them", "--wait")
    site.server.cli("backup", "delete", made["backup_id"], "--yes", "--wait")
    assert time.monotonic() - begun < 8
    for number in range(6):
        site.server.cli("notify", "remove", f"hang-{number}")


def test_only_the_administrator_registers(site: Site) -> None:
    """Whatever a policy grants; another account's administrator has nothing to do with the command."""
    granted = site.server.new_user(
        site.server.owner, "granted", {"Version": "5.0", "Statement": [{"Effect": "Allow", "Action": ["*"]}]}
    )
    hook = {"name": "mine", "url": site.hooks.url()}
    for method, path, body in (
        ("GET", "notifications/webhooks", None), ("POST", "notifications/webhooks", hook),
        ("POST", "notifications/webhooks/mine/secret", {}),
        ("DELETE", "notifications/webhooks/mine", None), ("POST", "notifications/test", {"webhook": "mine"}),
        ("PUT", "notifications/hours", {"hours": 1}), ("DELETE", "notifications/hours", None),
        ("GET", "notifications/command", None), ("POST", "notifications/test", {}),
    ):  # fmt: skip
        answer = site.own(method, path, granted, **({} if body is None else {"json": body}))
        assert (answer.status_code, answer.json()["error_code"]) == (403, "DBS.280032"), (method, path)
    assert site.own("GET", "notifications/hours", granted).json()["hours"] is None
    other = site.server.new_account("notifications-other")
    with site.server.http(other) as http:
        theirs = f"/strongroom/v1/{other.project}/notifications"
        assert http.post(f"{theirs}/test", json={}).status_code == 403
        assert http.get(f"{theirs}/command").status_code == 403
        assert http.post(f"{theirs}/webhooks", json=hook).status_code == 201
        assert http.get(f"{theirs}/webhooks").json()["total_count"] == 1
        for wrong in (
            {"url": "http://10.0.0.1/"}, {"url": "https://a:b@hooks.example/"}, {"name": "two words"}, {"name": ""},
            {"events": []}, {"events": ["everything"]}, {"events": "backup_failed"}, {"name": "mine"},
        ):  # fmt: skip
            assert http.post(f"{theirs}/webhooks", json={**hook, "name": "b", **wrong}).status_code == 400, wrong
        assert http.delete(f"{theirs}/webhooks/mine").status_code == 204
    assert site.own("GET", "notifications/webhooks").json()["webhooks"] == []


@needs_redis
def test_no_good_backup_is_told_by_the_servers_own_schedule(site: Site) -> None:
    """And that there is one again; hours are shown and set by command and call."""
    site.server.cli(
        "notify", "add", "ages", site.hooks.url("/ok?ages"), "--event", "no_good_backup", "--event", "good_backup_again"
    )
    assert site.server.cli("notify", "hours", "default") == {"hours": None, "default": True}
    assert site.server.cli("notify", "hours") == {"hours": None, "default": True}
    assert site.server.cli("notify", "hours", "26") == {"hours": 26.0, "default": False}
    assert site.server.cli("notify", "hours", "--instance", "cache") == {"hours": 26.0, "default": True}
    assert site.server.cli("notify", "hours", "5", "--instance", "cache") == {"hours": 5.0, "default": False}
    site.server.cli("notify", "hours", "-1", status=2)
    site.server.cli("notify", "hours", "0", status=1)
    site.server.cli("backup", "create", "cache", "the-old-one", "--wait")
    with site.server.catalog() as catalog, catalog.write() as conn:
        conn.execute(sa.update(t.backup).values(end_at=time.time() - 6 * 3600))
    look(site.server)
    (told,) = site.hooks.wait_for("no_good_backup", path="/ok?ages")
    assert "has had no good backup for 6.0 hours" in told.body["words"]
    until(lambda: "no_good_backup" in [one["event"] for one in site.told()])
    look(site.server)
    site.server.cli("backup", "create", "cache", "the-new-one", "--wait")
    look(site.server)
    site.hooks.wait_for("good_backup_again", path="/ok?ages")
    until(lambda: "good_backup_again" in [one["event"] for one in site.told()])
    assert len(site.hooks.events("no_good_backup", "/ok?ages")) == 1
    assert [one["event"] for one in site.told()].count("no_good_backup") == 1, "the command too"
    assert site.server.cli("notify", "hours", "default", "--instance", "cache") == {"hours": 26.0, "default": True}
    assert site.server.cli("notify", "hours", "none") == {"hours": None, "default": False}
    site.server.cli("notify", "remove", "ages")


def look(server: ServerProcess) -> None:
    """The schedule comes round now, and has ended."""
    with server.catalog() as catalog:
        with catalog.read() as conn:
            before = conn.execute(done).scalar_one()
        with catalog.write() as conn:
            conn.execute(sa.update(t.schedule).where(t.schedule.c.name == ages.REGULARLY.name).values(next_due=1.0))

        def looked() -> bool:
            with catalog.read() as conn:
                return bool(conn.execute(done).scalar_one() > before)

        until(looked)


done = sa.select(sa.func.count()).select_from(t.job).where(t.job.c.kind == ages.REGULARLY.kind, t.job.c.state == "DONE")


@needs_redis
def test_a_server_that_is_killed_before_it_could_tell_tells_after_its_restart(tmp_path: Path) -> None:
    """The receiver is not there yet when the backup fails."""
    port = free_port()
    server = ServerProcess(tmp_path / "data", {"STRONGROOM_NOTIFY_NETWORKS": "127.0.0.0/8"})
    with redis_server(tmp_path) as redis, server:
        server.cli("instance", "add", "cache", "--engine", "redis", "--address", redis.address)
        server.cli("notify", "add", "later", f"http://127.0.0.1:{port}/ok")
        redis.stop()
        made = server.cli("backup", "create", "cache", "cannot-be")
        assert server.wait(made["job_id"]).status == "Failed"
        server.kill()
        with receiver(port) as hooks, server:
            (told,) = hooks.wait_for("backup_failed")
            assert told.body["backup"]["id"] == made["backup_id"]
            until(lambda: server.cli("notify", "list")["webhooks"][0]["delivered"] == 1)
            assert len(hooks.events("backup_failed")) == 1
            server.stop()


def test_of_many_processes_one_tells(catalog: Catalog, tmp_path: Path) -> None:
    """All look at the same moment, and each of twenty instances is told of once; and its end too."""
    now = Machine().now()
    house = context(catalog, tmp_path)
    with catalog.write() as conn:
        for number in range(20):
            conn.execute(
                t.instance.insert().values(
                    id=f"{number:032x}in14", project="p", name=f"cache-{number}", engine="redis", address="redis://127.0.0.1:1",
                    mode="Single", version="7", state="REGISTERED", labels="{}", created_at=now - 7200, updated_at=now,
                )
            )  # fmt: skip
    webhooks.add(house, "p", webhooks.NewWebhook("hook", "https://hooks.example/"), lambda conn, key: None)
    ages.put_for_project(house, "p", ages.Hours(1, False), lambda conn: None)
    all_look(catalog, tmp_path)
    assert told_of(catalog) == {"no_good_backup": 20}
    with catalog.write() as conn:
        for number in range(20):
            conn.execute(
                t.backup.insert().values(
                    id=f"{number:032x}br14", project="p", instance=f"{number:032x}in14", instance_name="x", engine="redis",
                    engine_version="7", name="good", description="", origin="Manual", scope="", state="COMPLETED", version=0,
                    begin_at=now, end_at=now, plain_bytes=0,
                )
            )  # fmt: skip
    all_look(catalog, tmp_path)
    assert told_of(catalog) == {"no_good_backup": 20, "good_backup_again": 20}


def context(catalog: Catalog, folder: Path) -> Context:
    ambient = Machine()
    return Context(catalog, MemoryStore(), LeasedJobs(catalog, ambient), {}, RootKey(ROOT), Sealer(ROOT), ambient, folder)


def all_look(catalog: Catalog, folder: Path) -> None:
    """Four processes, a job each."""
    houses = [context(catalog, folder) for _ in range(4)]
    workers = [
        StepwiseWorker(house.jobs, {ages.REGULARLY.kind: ages.AgesJob(house)}, [outbox.QUEUE], owner=f"process-{number}")  # type: ignore[arg-type]
        for number, house in enumerate(houses)
    ]
    with catalog.write() as conn:
        for _ in workers:
            houses[0].jobs.submit(conn, ages.REGULARLY.kind, {}, queue=outbox.QUEUE)
    claimed = [worker.claim() for worker in workers]
    begin, ended = threading.Barrier(len(workers)), []

    def look(number: int) -> None:
        job = claimed[number]
        assert job is not None
        begin.wait()
        ended.append(workers[number].run_claimed(job))

    threads = [threading.Thread(target=look, args=(number,)) for number in range(len(workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert ended == [True] * len(workers)


def told_of(catalog: Catalog) -> dict[str, int]:
    """How often what is to be told."""
    found: dict[str, int] = {}
    with catalog.read() as conn:
        rows = conn.execute(sa.select(t.job.c.args).where(t.job.c.kind == outbox.NOTIFY)).all()
        looks = conn.execute(sa.select(t.job.c.state, t.job.c.error).where(t.job.c.kind == ages.REGULARLY.kind)).all()
    assert {tuple(look) for look in looks} == {("DONE", None)}
    for row in rows:
        event = json.loads(row.args)["event"]["event"]
        found[event] = found.get(event, 0) + 1
    return found
