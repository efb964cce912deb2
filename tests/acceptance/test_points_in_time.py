"""Points in time on a real server with a real Redis and a real MongoDB, by the public SDK, the command line and our own calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import huaweicloudsdkgaussdbfornosql.v3 as sdk
import pytest
import redis
import sqlalchemy as sa
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from strongroom.ambient import Machine
from strongroom.backups.recording import RECORD
from strongroom.catalog import tables as t
from support import sdk_calls
from support.mongodb_server import PASSWORDS, MongoServer, find_mongod, shared
from support.redis_server import RedisServer, binaries, redis_server
from support.server import ServerProcess

needs_mongodb = pytest.mark.skipif(find_mongod() is None, reason="no mongod here")
pytestmark = pytest.mark.skipif(not binaries(), reason="no redis-server here")

LATE = 5.0  # seconds by which a mark may come late on a loaded machine
AGAIN = 20.0  # seconds after a start by which recording goes on, whose job waits for a lease or a schedule


@dataclass
class Counter:
    """Counts up in a Redis, twice in each transaction, and knows when."""

    client: redis.Redis
    sent: list[float] = field(default_factory=list)  # when the transaction to n+1 was sent
    done: list[float] = field(default_factory=list)  # … and was acknowledged
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.wait(0.02):
            with self.client.pipeline(transaction=True) as both:
                both.incr("count").incr("again")
                self.sent.append(time.time())
                both.execute()
                self.done.append(time.time())

    def check(self, count: int, moment: float, reached: float) -> None:
        """What was counted at a moment that a restore has reached a mark for."""
        assert reached <= moment
        if count < len(self.done) and self.done[-1] > moment:  # a mark was there to be reached
            assert reached > moment - LATE
        assert count == 0 or self.sent[count - 1] <= reached, "nothing is of later"
        assert count >= sum(at <= reached - LATE for at in self.done), "nothing that was long there is missing"


@dataclass
class Site:
    server: ServerProcess
    source: RedisServer
    spare: RedisServer
    other: str = ""  # the spare's id

    def own(self, method: str, rest: str, body: Any = None) -> Any:
        """One of our own calls."""
        with self.server.http() as http:
            answer = http.request(method, f"/strongroom/v1/{self.server.owner.project}/{rest}", json=body)
        assert answer.status_code < 300, answer.text
        return answer.json() if answer.content else None

    def register(self, server: RedisServer) -> str:
        """A Redis under a new name; returns its id."""
        new = {"name": f"i{Machine().hex_id()}"[:20], "engine": "redis", "address": server.address}
        return str(self.own("POST", "instances", new)["id"])

    def ask(self, call: str, **values: Any) -> Any:
        """The SDK's call with a request of these attributes."""
        return getattr(self.server.sdk(), call)(sdk_calls.request_of(call, values))

    def show(self, instance: str) -> Any:
        return self.own("GET", f"instances/{instance}/recording")

    def turn(self, instance: str, *, on: bool) -> None:
        self.own("PUT", f"instances/{instance}/recording", {"enabled": on, "interval": 5, "keep_days": 1})

    def until(self, true: Callable[[], Any], what: str) -> Any:
        """What comes true within a minute."""
        end = time.monotonic() + 60
        while not (found := true()):
            assert time.monotonic() < end, f"{what}\n{self.server.log[-3000:]}"
            time.sleep(0.2)
        return found

    def backups(self, instance: str) -> list[Any]:
        """Those that are completed, the oldest first."""
        found = self.ask("list_backups", instance_id=instance).backups
        return [one for one in reversed(found) if one.status == "COMPLETED"]

    def recorded(self, server: RedisServer) -> str:
        """A new instance whose recording is on, and which has a backup to begin after."""
        instance = self.register(server)
        self.turn(instance, on=True)
        self.until(lambda: self.backups(instance), "no backup was taken")
        return instance

    def stored_up_to(self, instance: str, moment: float) -> None:
        """What is recorded up to a moment is put into the store within seconds, as recording is turned on again."""

        def stored() -> bool:
            periods = self.show(instance)["periods"]
            if periods and seconds(periods[-1]["end"]) >= moment:
                return True
            if time.time() > moment + 1:
                self.turn(instance, on=True)
            time.sleep(1.5)
            return False

        self.until(stored, f"the log up to {moment} is not in the store: {self.show(instance)}")

    def restored(self, instance: str, moment: float) -> tuple[int, float]:
        """What the counter is in the other server after a restore to that moment, and the moment that was reached."""
        body = {"moment": iso(moment), "source_instance_id": instance, "overwrite": True}
        job = self.own("POST", f"instances/{self.other}/moments", body)["job_id"]
        done = self.server.wait(job)
        assert done.status == "Completed", done.fail_reason
        return counted(self.spare), float(self.own("GET", f"jobs/{job}")["result"]["reached"])

    def following(self, instance: str) -> bool:
        """Whether a job follows the instance's log."""
        j = t.job.c
        here = (j.kind == RECORD, j.state.in_(("QUEUED", "RUNNING")), j.args.contains(instance))
        with self.server.catalog() as catalog, catalog.read() as conn:
            return conn.execute(sa.select(j.id).where(*here)).first() is not None

    def follows(self, instance: str) -> bool:
        """Whether what changes from now on becomes part of a log without a hole."""
        chain = sa.select(t.recording.c.chain).where(t.recording.c.instance == instance)
        with self.server.catalog() as catalog, catalog.read() as conn:
            return conn.execute(chain).scalar() is not None

    def log_objects(self) -> dict[str, int]:
        """Pieces of log in the store, with their sizes."""
        root = self.server.folder / "store" / "objects"
        return {path.name: path.stat().st_size for path in root.rglob("*/log/*") if path.is_file()}


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def counted(server: RedisServer) -> int:
    """The counter; both of its keys are what one transaction left."""
    with server.client() as client:
        count, again = client.mget("count", "again")
    assert count == again
    return int(count or 0)


@contextmanager
def counting(server: RedisServer) -> Iterator[Counter]:
    """From nothing on, until it is left."""
    with server.client() as client:
        client.flushall()
        counter = Counter(client)
        thread = threading.Thread(target=counter.run)
        thread.start()
        try:
            yield counter
        finally:
            counter.stop.set()
            thread.join()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("points")
    quick = {"repl-ping-replica-period": "1"}
    with redis_server(folder, quick) as source, redis_server(folder, quick) as spare, ServerProcess(folder / "data") as server:
        found = Site(server, source, spare)
        found.other = found.register(spare)
        yield found
        assert server.stop() == 0


def test_a_redis_goes_back_to_a_moment_by_the_sdk_and_the_command_line(site: Site) -> None:
    """Turned on without a backup it takes one. What is still to come is refused; a moment of just now, which is not in the store
    yet, is restored elsewhere, then in place; what was recorded stays restorable after that, and recording begins anew by
    itself."""
    site.until(lambda: site.log_objects() == {}, "log of other tests is left")
    instance = site.register(site.source)
    with counting(site.source) as counter:
        body = sdk.SetRedisPitrPolicyRequestBody(enabled=True, interval=5, keep_days=1)
        site.ask("set_redis_pitr_policy", instance_id=instance, body=body)
        policy = site.ask("show_redis_pitr_policy", instance_id=instance)
        assert (policy.enabled, policy.interval, policy.keep_days) == (True, 5, 1)
        (first,) = site.until(lambda: site.backups(instance), "no backup was taken")
        assert (first.name, first.type) == ("log-begins", "Manual")
        site.until(lambda: site.follows(instance), "recording does not begin")
        moment = float(int(time.time()) + 2)
        time.sleep(moment + 1 - time.time())
        soon = sdk.RestoreRedisPitrRequestBody(restore_time=stamp(time.time() + 30))
        with pytest.raises(ClientRequestException) as error:
            site.ask("restore_redis_pitr", instance_id=instance, body=soon)
        assert (error.value.status_code, error.value.error_code) == (400, "DBS.301024")
        assert "it is still to come" in error.value.error_msg
        assert all(seconds(one["end"]) < moment for one in site.show(instance)["periods"])
    with site.spare.client() as client:
        client.flushall()
    words = ("recording", "restore", instance, "--at", iso(moment), "--into", site.other, "--wait")
    reached = site.server.cli(*words)["job"]["result"]["reached"]
    assert seconds(site.show(instance)["periods"][-1]["end"]) >= moment
    count = counted(site.spare)
    counter.check(count, moment, reached)
    day = {"start_time": stamp(time.time() - 3600), "end_time": stamp(time.time() + 3600)}
    (period,) = site.ask("list_restore_time", instance_id=instance, **day).restorable_time_periods
    assert period.start_time / 1000 < moment < period.end_time / 1000
    told = site.ask("list_redis_pitr_restore_time", instance_id=instance, **day)
    assert told.total_count == len(told.restore_time) >= 2
    assert all(period.start_time <= seconds(one) * 1000 <= period.end_time for one in told.restore_time)
    shown = site.server.cli("recording", "show", instance)
    assert shown["stored_bytes"] == sum(site.log_objects().values()) > 0
    assert float(site.ask("show_redis_pitr_info", instance_id=instance).storage) == round(shown["stored_bytes"] / (1 << 30), 3)

    back = sdk.RestoreRedisPitrRequestBody(restore_time=stamp(moment))
    done = site.server.wait(site.ask("restore_redis_pitr", instance_id=instance, body=back).job_id)
    assert (done.status, done.name) == ("Completed", "RestoreInstance"), done.fail_reason
    assert counted(site.source) == count
    site.until(lambda: len(site.backups(instance)) == 2, "recording does not begin anew")
    with site.source.client() as client:
        client.mset({"count": 1_000_000, "again": 1_000_000})
    site.until(lambda: site.follows(instance), "recording does not begin anew")
    later = time.time() + 3
    time.sleep(3)
    assert site.restored(instance, later)[0] == 1_000_000
    assert site.restored(instance, moment)[0] == count
    told = site.server.cli("recording", "off", instance, "--drop")
    assert (told["enabled"], told["stored_bytes"], told["periods"]) == (False, 0, [])
    site.until(lambda: site.log_objects() == {}, "what was dropped is gone")


def stamp(at: float) -> str:
    """A whole second as the contract writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(at))


def test_a_killed_server_and_a_rebuilt_catalog_go_on_recording_without_a_hole(site: Site) -> None:
    """One backup is enough for moments before and after both. What was written while no server ran is of when it was heard of."""
    with counting(site.source) as counter:
        instance = site.recorded(site.source)
        moments = [time.time() + 1]
        site.stored_up_to(instance, moments[0])
        site.server.kill()
        site.server.start()
        moments.append(time.time() + AGAIN)
        site.stored_up_to(instance, moments[1])
        site.server.stop()
        for file in site.server.folder.glob("catalog.db*"):
            file.unlink()
        assert site.server.cli("catalog", "rebuild")["report"]
        site.server.start()
        moments.append(time.time() + AGAIN)
        site.stored_up_to(instance, moments[2])
    shown = site.show(instance)
    (period,) = shown["periods"]
    assert seconds(period["begin"]) < moments[0]
    assert shown["trouble"] is None
    assert len(site.backups(instance)) == 1
    for moment in moments:
        count, reached = site.restored(instance, moment)
        counter.check(count, moment, reached)
    site.server.cli("recording", "off", instance, "--drop")


def test_deleting_backups_frees_their_log_as_promised(site: Site) -> None:
    """The oldest one's goes up to the next backup, from which on every moment stays; the last one takes all."""
    with counting(site.source) as counter:
        instance = site.recorded(site.source)
        (first,) = (one.id for one in site.backups(instance))
        site.stored_up_to(instance, time.time() + 1)
        second = site.server.cli("backup", "create", instance, "second", "--wait")["backup_id"]
        moment = time.time() + 1
        site.stored_up_to(instance, moment)
        site.turn(instance, on=False)
    site.until(lambda: not site.following(instance), "its recording ends when it is turned off")
    before, size = site.log_objects(), site.server.store_size()
    deletion = delete(site, first)
    promised, receipt = deletion["promised"], deletion["receipt"]
    gone = {key: bytes for key, bytes in before.items() if key not in site.log_objects()}
    assert gone
    assert promised["freed"] == receipt["freed"] >= sum(gone.values())
    assert site.server.store_size() == size - receipt["freed"] - receipt["reclaimed"]["net"] + receipt["put_bytes"]
    count, reached = site.restored(instance, moment)
    counter.check(count, moment, reached)
    mine = site.show(instance)["stored_bytes"]
    assert delete(site, second)["receipt"]["freed"] >= mine > 0
    assert (site.show(instance)["stored_bytes"], site.show(instance)["periods"]) == (0, [])
    with site.server.catalog() as catalog, catalog.read() as conn:
        known = set(conn.scalars(sa.select(t.object_.c.id).where(t.object_.c.kind == "log", t.object_.c.state == "STORED")))
    assert site.log_objects().keys() == known


def delete(site: Site, backup: str) -> Any:
    """The deletion's promise and receipt when all of it is done."""
    (deletion,) = site.server.cli("backup", "delete", backup, "--yes", "--wait")["deletions"]
    return deletion


@pytest.fixture(scope="module")
def mongo() -> Iterator[tuple[MongoServer, MongoServer]]:
    """A source, and an empty server with a user who may replay."""
    source, spare = shared(0), shared(1)
    source.wipe()
    spare.wipe()
    everything = {"resource": {"anyResource": True}, "actions": ["anyAction"]}
    with spare.client() as client:
        client.admin.command("createRole", "strongroomReplay", privileges=[everything], roles=[])
        client.admin.command("createUser", "replayer", pwd="pw replayer 5", roles=["strongroomReplay"])
    yield source, spare
    with spare.client() as client:
        client.admin.command("dropUser", "replayer")
    source.wipe()
    spare.wipe()


@needs_mongodb
def test_a_mongodb_is_restored_to_a_time_into_a_new_instance(site: Site, mongo: tuple[MongoServer, MongoServer]) -> None:
    """Turned on and off by our own call; a time outside of what is recorded is refused in the contract's form."""
    source, spare = mongo
    add = ("instance", "add", "--engine", "mongodb", "--password-stdin", "--address")
    address = source.address.replace("//", "//keeper@")
    instance = site.server.cli(*add, address, "documents", stdin=f"{PASSWORDS['keeper']}\n")["id"]
    site.server.cli(*add, spare.address.replace("//", "//replayer@"), "anew", stdin="pw replayer 5\n")
    owner = site.server.owner.project
    with site.server.http() as http, source.client() as client:
        notes = client.app.notes
        notes.insert_one({"_id": 1})
        answer = http.put(f"/strongroom/v1/{owner}/instances/{instance}/recording", json={"enabled": True, "interval": 5})
        assert (answer.status_code, answer.json()["enabled"]) == (200, True), answer.text
        site.until(lambda: site.backups(instance), "no backup was taken")
        notes.insert_one({"_id": 2})
        time.sleep(2)
        moment = time.time()
        time.sleep(1.5)
        notes.delete_many({})
        notes.insert_one({"_id": 3})
        for at, code in ((moment, None), (moment + 3600, "DBS.301024"), (1.0, "DBS.301024")):
            info = {"source_instance_id": instance, "restore_time": int(at * 1000)}
            body = {"name": "anew", "datastore": {"type": "mongodb"}, "restore_info": info}
            answer = http.post(f"/v3/{owner}/instances", json=body)
            if code is not None:
                assert (answer.status_code, answer.json()["error_code"]) == (400, code)
                continue
            assert answer.status_code == 202, answer.text
            done = site.server.wait(answer.json()["job_id"])
            assert done.status == "Completed", done.fail_reason
    with spare.client() as client:
        assert sorted(one["_id"] for one in client.app.notes.find()) == [1, 2]
    told = site.server.cli("recording", "off", "documents", "--drop")
    assert (told["enabled"], told["stored_bytes"], told["periods"]) == (False, 0, [])
