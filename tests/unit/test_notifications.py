"""Who is told what, and when, by a clock that is ours; the posts themselves are integration's (test_notifications_server.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import creation, errors, instances, policies, quotas, rehearsal
from strongroom.backups.context import Context, Options
from strongroom.catalog import tables as t
from strongroom.engines.base import Comparison, Control, RestoreSource, Target
from strongroom.jobs.port import Cancelled
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.notifications import ages, delivery, outbox, posting, webhooks
from strongroom.notifications.posting import NotDelivered
from strongroom.storage.base import StoreDenied
from strongroom.storage.faults import Effect, Fail
from support.damage import Keeper, flip
from support.harsh import TTL, HarshVault
from support.vault import DictEngine, Vault, generations, noise

URL = "https://hooks.example/strongroom"


@dataclass
class Post:
    """What was posted, and what is answered to it."""

    posted: list[tuple[posting.Place, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    problem: NotDelivered | None = None

    def __call__(self, place: posting.Place, body: bytes, headers: dict[str, str], _networks: object) -> int:
        self.posted.append((place, json.loads(body), headers))
        if self.problem is not None:
            raise self.problem
        return 204

    @property
    def events(self) -> list[str]:
        return [body["event"] for _, body, _ in self.posted]


class House(HarshVault):
    """A vault with a worker that tells."""

    def restart(self) -> None:
        super().restart()
        self.teller = teller(self.ctx)

    def run(self) -> None:
        """Runs all jobs but those that tell."""
        for _ in range(100):
            while self.worker.step() is not None:
                pass
            active = sa.and_(t.job.c.state.in_(("QUEUED", "RUNNING")), t.job.c.queue != outbox.QUEUE)
            with self.catalog.read() as conn:
                if conn.execute(sa.select(t.job.c.id).where(active)).first() is None:
                    return
            self.clock.sleep(TTL)
        raise AssertionError("a job is stuck")

    def hook(self, name: str = "hook", *events: str, url: str = URL, project: str | None = None) -> str:
        new = webhooks.NewWebhook(name, url, events or outbox.EVENTS)
        return webhooks.add(self.ctx, project or self.project, new, lambda conn, key: None)[0]

    def tell(self) -> None:
        """Tells what is due just now."""
        while self.teller.step() is not None:
            pass

    def untold(self) -> list[dict[str, Any]]:
        """What waits to be told."""
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(t.job.c.args).where(t.job.c.kind == outbox.NOTIFY, t.job.c.state == "QUEUED")).all()
        return [json.loads(row.args)["event"] for row in rows]

    def known(self, receiver: str) -> Any:
        with self.catalog.read() as conn:
            return conn.execute(sa.select(t.notification_receiver).where(t.notification_receiver.c.id == receiver)).one()

    def fail_a_backup(self, words: str = "the server went away") -> tuple[str, str]:
        self.engine.broken = words
        key, job = self.create({"a": noise(9_000, 1), "b": noise(9_000, 2)})
        while self.worker.step() is not None:
            pass
        self.engine.broken = None
        assert self.state(key) == "FAILED"
        return key, job


def teller(ctx: Context, owner: str = "teller") -> StepwiseWorker:
    handlers = {
        outbox.NOTIFY: delivery.NotifyJob(ctx), delivery.TEST: delivery.TestJob(ctx), ages.REGULARLY.kind: ages.AgesJob(ctx),
    }  # fmt: skip
    return StepwiseWorker(ctx.jobs, handlers, [outbox.QUEUE], owner=owner, ttl=TTL)  # type: ignore[arg-type]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "vault")
    yield made
    made.catalog.close()


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch) -> Post:
    made = Post()
    monkeypatch.setattr(posting, "post", made)
    return made


# ---- what is told -----------------------------------------------------------------------------------------------------------


def test_a_failed_backup_is_told_with_all_that_one_needs_to_know(house: House, post: Post) -> None:
    """Once to each receiver that wants it, signed with that receiver's secret, by one id."""
    receivers = {name: house.hook(name) for name in ("one", "two")}
    house.hook("other", "deletion_failed")
    house.hook("stranger", project="0" * 32)
    key, job = house.fail_a_backup()
    house.tell()
    assert len(post.posted) == 2
    for _place, body, _headers in post.posted:
        assert body == {
            "id": post.posted[0][1]["id"], "event": "backup_failed", "at": body["at"], "project": house.project,
            "instance": {"id": house.source, "name": "source", "engine": "plain"},
            "backup": {"id": key, "name": "a-backup", "origin": "Manual"}, "job": job,
            "words": "Backup a-backup of plain instance source failed: the server went away",
            "detail": {"reason": "the server went away"},
        }  # fmt: skip
    headers = {headers["X-Strongroom-Delivery"] for _, _, headers in post.posted}
    assert len(headers) == 2
    assert all(house.known(receiver).delivered == 1 for receiver in receivers.values())
    assert not house.untold()


def test_the_signature_is_over_the_time_and_the_body(house: House, post: Post) -> None:
    """By the secret that was shown when the webhook was made, and is nowhere in clear text."""
    new = webhooks.NewWebhook("hook", URL)
    key, secret = webhooks.add(house.ctx, house.project, new, lambda conn, key: None)
    assert len(secret) == 64
    house.fail_a_backup()
    house.tell()
    (_, body, headers) = post.posted[0]
    signed = posting.sign(secret, int(headers["X-Strongroom-Timestamp"]), json.dumps(body, sort_keys=True).encode())
    assert headers["X-Strongroom-Signature"] == f"v1={signed}"
    assert headers["X-Strongroom-Event"] == "backup_failed"
    with house.catalog.read() as conn:
        row = conn.execute(sa.select(t.webhook)).one()
    assert secret not in repr(row)
    assert house.ctx.sealer.open(row.secret, "webhook", key).decode() == secret


def signatures(house: House, post: Post, *secrets: str) -> bool:
    """Whether what is told now is signed by just these, in this order."""
    post.posted.clear()
    delivery.test(house.ctx, house.project, "hook", lambda conn, key: None)
    house.tell()
    ((_, body, headers),) = post.posted
    plain = json.dumps(body, sort_keys=True).encode()
    wanted = [f"v1={posting.sign(secret, int(headers['X-Strongroom-Timestamp']), plain)}" for secret in secrets]
    return headers["X-Strongroom-Signature"].split(",") == wanted


def test_a_secret_that_is_replaced_signs_beside_the_new_one_for_a_while(house: House, post: Post) -> None:
    """To the second. A rotation within that time ends it; one without any leaves one secret at once. None is in clear text."""

    def rotate(overlap: float, secret: str | None = None) -> str:
        new, until = webhooks.rotate(house.ctx, house.project, "hook", secret, overlap, lambda conn, key: None)
        assert until == house.clock.now() + overlap
        return new

    first = webhooks.add(house.ctx, house.project, webhooks.NewWebhook("hook", URL), lambda conn, key: None)[1]
    second = rotate(3600)
    assert second != first
    assert signatures(house, post, second, first)
    house.clock.passed += 3500
    assert signatures(house, post, second, first)
    house.clock.passed += 100
    assert signatures(house, post, second)
    third = rotate(3600)
    fourth = rotate(3600, "given-by-an-administrator")
    assert fourth == "given-by-an-administrator"
    assert signatures(house, post, fourth, third)
    fifth = rotate(0)
    assert signatures(house, post, fifth)
    sixth = rotate(3600)
    with house.catalog.read() as conn:
        (row,) = conn.execute(sa.select(t.webhook)).all()
    assert not any(secret in repr(row) for secret in (fifth, sixth))
    assert fifth not in repr(webhooks.secrets_of(house.ctx, row))
    with pytest.raises(errors.NoSuchWebhook):
        webhooks.rotate(house.ctx, house.project, "other", None, 0, lambda conn, key: None)


def test_the_signature_of_a_known_text() -> None:
    """As any receiver's own library computes it."""
    known = "9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae"  # by openssl dgst
    assert posting.sign("key", 1700000000, b"{}") == known


def test_what_somebody_stopped_or_cancelled_is_told_to_nobody(house: House) -> None:
    """It is no failure."""
    house.hook()
    key, _job = house.create({"a": noise(9_000, 1)})
    creation.stop(house.ctx, house.project, key, lambda conn: None)
    house.run()
    _key, job = house.create({"a": noise(9_000, 2)})
    with house.catalog.write() as conn:
        house.jobs.cancel(conn, job)
    house.run()
    assert not house.untold()


def test_nothing_is_queued_where_nobody_wants_to_know(house: House) -> None:
    """No row is left behind by a failure."""
    house.fail_a_backup()
    assert not house.untold()


def test_a_process_that_dies_between_outcome_and_telling_tells_after_its_restart(house: House, post: Post) -> None:
    """At each of the last effects of the failing backup: once it is FAILED it is told, and it is told once."""
    house.hook()
    house.engine.broken = "the server went away"
    ends = [failing_until(house, None), *(failing_until(house, at) for at in range(1, 4))]
    most = ends[0]
    house.tell()
    before = len(post.posted)
    assert before == len(ends)
    for at in range(most - 15, most + 1):
        failing_until(house, at)
        house.tell()
    assert len({body["id"] for _, body, _ in post.posted}) == before + 16 == len(post.posted)


def failing_until(house: House, at: int | None) -> int:
    """A backup that fails, in a process that dies at an effect and is started again; how many effects there were."""
    key, _job = house.create({"a": noise(9_000, 1)})
    with house.dying(at) as fate:
        while house.worker.step() is not None:
            pass
    assert fate.alive is (at is None)
    house.restart()
    house.run()
    assert house.state(key) == "FAILED"
    assert len([event for event in house.untold() if event["backup"]["id"] == key]) == 1, f"death at effect {at}"
    return fate.count


def test_a_denied_deletion_is_told_in_the_words_of_its_job(house: House, post: Post) -> None:
    """And once more if it fails again."""
    house.hook("hook", "deletion_failed")
    keys = [house.backup(data) for data in generations(2)]

    def plan(effect: Effect) -> Fail | None:
        denied = effect.phase == "before" and effect.kind == "delete_many"
        return Fail(StoreDenied("the store refuses: give the key the right to delete")) if denied else None

    house.plan = plan
    jobs = []
    for _ in range(2):
        jobs.append(house.delete(keys[0]))
        house.run()
    house.tell()
    assert sorted(body["job"] for _, body, _ in post.posted) == sorted(jobs)
    assert {body["event"] for _, body, _ in post.posted} == {"deletion_failed"}
    assert "give the key the right to delete" in post.posted[0][1]["words"]
    assert post.posted[0][1]["backup"]["id"] == keys[0]


def test_a_failed_restore_is_told_and_a_cancelled_one_is_not(house: House, post: Post) -> None:
    """With its backup and its target."""
    house.hook()
    key = house.backup({"a": noise(9_000, 1)})
    house.engine.broken = "the target went away"
    job = house.restore(key)
    house.run()
    house.engine.broken = None
    assert house.job(job).state == "FAILED"
    assert house.job(job).result == {"target_state": "as it was"}, "what programs are told of it is not lost"
    house.engine.restoring = somebody_cancels
    other = house.restore(key)
    house.run()
    assert house.job(other).state == "CANCELLED"
    house.tell()
    (_, body, _) = post.posted[0]
    assert post.events == ["restore_failed"]
    assert (body["backup"]["id"], body["instance"]["name"], body["job"]) == (key, "target", job)


def somebody_cancels() -> None:
    """As the restore's next check says it."""
    raise Cancelled("somebody asked")


def test_a_restore_that_dies_while_it_is_given_up_is_told_once(house: House, post: Post) -> None:
    """Telling comes just before the job's end: done again it is the same event."""
    house.hook()
    key = house.backup({"a": noise(9_000, 1)})
    for at in range(1, 60):
        house.engine.broken = "the target went away"
        job = house.restore(key)
        with house.dying(at) as fate:
            while house.worker.step() is not None:
                pass
        house.restart()
        house.run()
        assert house.job(job).state == "FAILED"
        assert [event["job"] for event in house.untold()] == [job], f"death at effect {at}"
        house.tell()
        if fate.alive:
            break
    assert at > 3


class Rehearsed(DictEngine):
    """An engine whose test restores end as `found` says, or as `comparing` does."""

    found: Sequence[str] = ()
    comparing: Callable[[], None] | None = None

    @contextmanager
    def sandbox(self, folder: Path, control: Control) -> Iterator[Target]:
        self.databases["plain://sandbox"] = {}
        yield Target("plain://sandbox", None)

    def compare(
        self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str
    ) -> Comparison:
        if self.comparing is not None:
            self.comparing()
        return Comparison({"keys": 1}, {"keys": 1}, 1, self.found)


def rehearsed(house: House) -> tuple[Rehearsed, Callable[[], str]]:
    """The house with such an engine, and a way to have the newest backup's restore tried out, which returns the job."""
    engine = Rehearsed()
    engine.databases = house.engine.databases
    house.engine = house.ctx.engines["plain"] = engine  # type: ignore[index]
    house.worker._handlers = {**house.worker._handlers, rehearsal.KIND: rehearsal.RehearsalJob(house.ctx)}  # type: ignore[attr-defined]

    def rehearse() -> str:
        return rehearsal.rehearse(house.ctx, house.project, lambda conn: None, instance=house.source)

    return engine, rehearse


def test_a_test_restore_that_differs_or_fails_is_told(house: House, post: Post) -> None:
    """How many differences there are, but not the data in them. A sound one and a cancelled one are not told."""
    house.hook()
    key = house.backup({"a": noise(9_000, 1)})
    engine, rehearse = rehearsed(house)
    rehearse()
    house.run()
    engine.comparing = somebody_cancels
    rehearse()
    house.run()
    engine.comparing, engine.found = None, ["key ann@example.org is not there", "key b is not there"]
    differs = rehearse()
    house.run()
    engine.broken = "the sandbox went away"
    fails = rehearse()
    house.run()
    house.tell()
    assert {(body["event"], body["backup"]["id"]) for _, body, _ in post.posted} == {("test_restore_failed", key)}
    words = {body["job"]: body["words"] for _, body, _ in post.posted}
    assert words.keys() == {differs, fails}
    assert "differs in 2 ways" in words[differs]
    assert "ann@example.org" not in json.dumps([body for _, body, _ in post.posted])
    assert "the sandbox went away" in words[fails]


def test_a_test_restore_that_differs_is_told_once_whenever_its_worker_dies(house: House, post: Post) -> None:
    """Done again it is the same event."""
    house.hook()
    house.backup({"a": noise(9_000, 1)})
    for at in range(1, 60):
        engine, rehearse = rehearsed(house)
        engine.found = ["key a is not there"]
        job = rehearse()
        with house.dying(at) as fate:
            while house.worker.step() is not None:
                pass
        house.restart()
        engine, _ = rehearsed(house)
        engine.found = ["key a is not there"]
        house.run()
        assert house.job(job).state == "DONE"
        assert [event["job"] for event in house.untold()] == [job], f"death at effect {at}"
        house.tell()
        if fate.alive:
            break
    assert at > 3


def test_who_wants_all_is_told_of_what_later_versions_add(house: House) -> None:
    """Who was registered for all, by this version or by 0.1.0, which wrote them down one by one; not who named some."""
    ours, some, old = house.hook("ours"), house.hook("some", "backup_failed"), house.hook("old")
    with house.catalog.write() as conn:
        written = "backup_failed,deletion_failed,restore_failed,damage_found,no_good_backup,good_backup_again"
        conn.execute(sa.update(t.webhook).where(t.webhook.c.id == old).values(events=written))
    with house.catalog.read() as conn:
        assert set(outbox.receivers(house.ctx, conn, house.project, "test_restore_failed")) == {ours, old}
        assert set(outbox.receivers(house.ctx, conn, house.project, "backup_failed")) == {ours, some, old}
        assert conn.scalar(sa.select(t.webhook.c.events).where(t.webhook.c.id == ours)) == "all"


def test_an_automated_backup_that_is_refused_is_told(house: House, post: Post) -> None:
    """A quota leaves no room for it: there is no backup that could fail."""
    house.hook()
    with house.catalog.write() as conn:
        quotas.put(conn, house.project, {"backup": 0})
    policies.put(house.ctx, house.project, house.source, policies.Policy(7, "00:00-01:00", "1,2,3,4,5,6,7"), lambda conn: None)
    with house.catalog.write() as conn:
        conn.execute(sa.update(t.backup_policy).values(last_window=0.0))
        job = house.jobs.submit(conn, policies.AUTOMATE, {"instance": house.source})
    house.run()
    house.tell()
    assert house.job(job).state == "FAILED"
    (_, body, _) = post.posted[0]
    assert (post.events, body["backup"], body["job"]) == (["backup_failed"], None, job)
    assert body["instance"]["id"] == house.source
    assert "quota" in body["words"]


def test_new_damage_is_told_once(tmp_path: Path) -> None:
    """By the verification that finds it, not by the next one."""
    keeper = Keeper(tmp_path)
    key = keeper.backup({"a": noise(60_000, 1)})
    webhooks.add(keeper.ctx, keeper.project, webhooks.NewWebhook("hook", URL), lambda conn, key: None)
    (name, *_) = keeper.objects("pack")
    flip(keeper.store, name, 100)
    asked = keeper.ask_verify(key)
    run_default(keeper)
    assert keeper.job(asked).result["outcome"] == "damaged"
    run_default_of(keeper, keeper.ask_verify(key))
    with keeper.catalog.read() as conn:
        (row,) = conn.execute(sa.select(t.job.c.args).where(t.job.c.kind == outbox.NOTIFY)).all()
    event = json.loads(row.args)["event"]
    assert (event["event"], event["backup"]["id"], event["job"]) == ("damage_found", key, asked)
    assert event["detail"]["objects"] == [name]
    keeper.catalog.close()


def run_default(vault: Vault) -> None:
    while vault.worker.step() is not None:
        pass


def run_default_of(vault: Vault, job: str) -> None:
    run_default(vault)
    assert vault.job(job).state == "DONE"


# ---- receivers that are down ------------------------------------------------------------------------------------------------


def test_a_receiver_that_is_down_is_asked_less_and_less_and_then_told_all(
    house: House, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each rest, however much waits for it; one that is up is told at once."""
    down, up = house.hook("down", "backup_failed", url="https://down.example/"), house.hook("up")
    answers = post.__call__

    def some(place: posting.Place, body: bytes, headers: dict[str, str], networks: object) -> int:
        post.problem = (
            NotDelivered("it answered 500", 500) if place.host == "down.example" and house.clock.passed < 4_000 else None
        )
        return answers(place, body, headers, networks)

    monkeypatch.setattr(posting, "post", some)
    for _ in range(5):
        house.fail_a_backup()
    house.tell()
    assert house.known(up).delivered == 5
    asked = []
    while house.untold():
        before = house.known(down).failed
        house.clock.passed += 20
        house.tell()
        asked += [house.clock.passed] * (house.known(down).failed - before)
    pauses = [later - sooner for sooner, later in pairwise(asked)]
    assert len(asked) <= 25, "5 events, and not 5 times as many tries"
    assert max(pauses) <= delivery.LONGEST_REST + 60
    assert pauses[-1] >= delivery.LONGEST_REST
    known = house.known(down)
    assert (known.delivered, known.failures, known.last_error, known.given_up) == (5, 0, None, 0)


def test_what_cannot_be_told_for_a_day_is_given_up(house: House, post: Post) -> None:
    """Counted, in the log, and told to nobody: no event comes of it."""
    receiver = house.hook()
    post.problem = NotDelivered("it answered 500", 500)
    house.fail_a_backup()
    while house.untold():
        house.tell()
        house.clock.passed += 600
    assert delivery.KEEP <= house.clock.passed <= delivery.KEEP + 3600
    known = house.known(receiver)
    assert (known.given_up, known.delivered) == (1, 0)
    assert known.failed < 120
    assert known.last_error == "it answered 500"
    assert set(post.events) == {"backup_failed"}
    with house.catalog.read() as conn:
        row = conn.execute(sa.select(t.job).where(t.job.c.kind == outbox.NOTIFY)).one()
    assert (row.state, row.error) == ("FAILED", "not told for 24 hours: it answered 500")


def test_a_receiver_that_is_down_has_so_much_waiting_and_no_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes beyond is counted; others are told all."""
    monkeypatch.setattr(outbox, "MOST", 3)
    receiver = house.hook()
    for _ in range(5):
        house.fail_a_backup()
    assert len(house.untold()) == 3
    assert house.known(receiver).dropped == 2


def test_what_waits_for_a_webhook_that_is_removed_is_not_told(house: House, post: Post) -> None:
    """Its jobs end, and nothing is left of it."""
    house.hook()
    house.fail_a_backup()
    webhooks.remove(house.ctx, house.project, "hook", lambda conn, key: None)
    house.tell()
    assert not house.untold()
    assert not post.posted
    with pytest.raises(errors.NoSuchWebhook):
        webhooks.remove(house.ctx, house.project, "hook", lambda conn, key: None)


def test_a_test_says_what_came_back_and_ends_the_rest(house: House, post: Post) -> None:
    """One try; a failed one makes no event, and one that goes well lets what waits go on."""
    receiver = house.hook()
    post.problem = NotDelivered("it answered 503", 503)
    house.fail_a_backup()
    house.tell()
    job = delivery.test(house.ctx, house.project, "hook", lambda conn, key: None)
    house.tell()
    view = house.job(job)
    assert (view.state, view.error, view.result) == ("FAILED", "it answered 503", {"outcome": "failed", "status": 503})
    assert view.attempts == 1
    assert len(house.untold()) == 1
    post.problem = None
    job = delivery.test(house.ctx, house.project, "hook", lambda conn, key: None)
    house.tell()
    assert house.job(job).result["status"] == 204
    assert post.posted[-1][1]["event"] == "test"
    assert house.known(receiver).failures == 0
    house.clock.passed += 3
    house.tell()
    assert house.known(receiver).delivered == 1
    with pytest.raises(errors.NoSuchWebhook):
        delivery.test(house.ctx, house.project, "nobody", lambda conn, key: None)
    with pytest.raises(errors.NoSuchWebhook, match="STRONGROOM_NOTIFY_COMMAND"):
        delivery.test(house.ctx, house.project, None, lambda conn, key: None)


# ---- no good backup for N hours ---------------------------------------------------------------------------------------------


class Aged(House):
    """A house whose target is not looked at."""

    def look(self, worker: StepwiseWorker | None = None) -> list[str]:
        """Looks at the ages; what is told by that."""
        before = {event["id"] for event in self.untold()}
        with self.catalog.write() as conn:
            self.jobs.submit(conn, ages.REGULARLY.kind, {}, queue=outbox.QUEUE, priority=1)
        (worker or self.teller).step()
        return [event["event"] for event in self.untold() if event["id"] not in before]

    def hours(self, hours: float | None, instance: str | None = None, *, default: bool = False) -> None:
        wanted = ages.Hours(hours, default)
        if instance is None:
            ages.put_for_project(self.ctx, self.project, wanted, lambda conn: None)
        else:
            ages.put_for_instance(self.ctx, self.project, instance, wanted, lambda conn: None)


@pytest.fixture
def aged(tmp_path: Path) -> Iterator[Aged]:
    made = Aged(tmp_path / "vault")
    made.hook()
    made.hours(None, made.target)
    yield made
    made.catalog.close()


def test_no_good_backup_is_told_once_and_so_is_its_end(aged: Aged) -> None:
    """Failed backups are no good ones; a restart tells nothing again."""
    aged.backup({"a": noise(9_000, 1)})
    assert not aged.look(), "nobody asked for it"
    aged.hours(24)
    aged.clock.passed += 23.9 * 3600
    assert not aged.look()
    aged.clock.passed += 0.2 * 3600
    assert aged.look() == ["no_good_backup"]
    (event,) = aged.untold()
    assert event["words"] == "Instance source (plain) has had no good backup for 24.1 hours"
    assert event["detail"]["hours"] == 24
    assert not aged.look()
    aged.restart()
    assert not aged.look()
    aged.fail_a_backup()
    assert not aged.look()
    aged.backup({"a": noise(9_000, 2)})
    assert aged.look() == ["good_backup_again"]
    assert not aged.look()
    aged.clock.passed += 25 * 3600
    assert aged.look() == ["no_good_backup"], "the next time it is told again"


def test_an_instance_without_any_backup_counts_from_its_registration(aged: Aged) -> None:
    """And its first good one ends it."""
    aged.hours(5)
    aged.clock.passed += 5.5 * 3600
    assert aged.look() == ["no_good_backup"]
    assert "5.5 hours after it was registered" in aged.untold()[0]["words"]
    aged.backup({"a": noise(9_000, 1)})
    assert aged.look() == ["good_backup_again"]


def test_a_newest_backup_that_is_deleted_is_no_good_one(aged: Aged) -> None:
    """What counts is what is left."""
    aged.backup({"a": noise(9_000, 1)})
    aged.clock.passed += 10 * 3600
    newest = aged.backup({"a": noise(9_000, 2)})
    aged.hours(5)
    assert not aged.look()
    aged.delete(newest)
    aged.run()
    assert aged.look() == ["no_good_backup"]


def test_the_instances_own_hours_go_before_the_projects_and_those_before_the_servers(aged: Aged) -> None:
    """What is taken off lets the wider one hold; none is never."""
    aged.ctx = replace(aged.ctx, options=replace(aged.ctx.options, notify_hours=1.0))
    aged.teller = teller(aged.ctx)

    def shown() -> tuple[ages.Hours, ages.Hours]:
        with aged.catalog.read() as conn:
            project = ages.of_project(aged.ctx, conn, aged.project)
            return project, ages.of_instance(aged.ctx, conn, aged.project, aged.source)

    assert shown() == (ages.Hours(1.0, True), ages.Hours(1.0, True))
    aged.hours(10)
    aged.hours(100, aged.source)
    assert shown() == (ages.Hours(10, False), ages.Hours(100, False))
    aged.clock.passed += 11 * 3600
    assert not aged.look()
    aged.hours(None, aged.source, default=True)
    assert shown() == (ages.Hours(10, False), ages.Hours(10, True))
    assert aged.look() == ["no_good_backup"]
    aged.hours(None)
    assert shown() == (ages.Hours(None, False), ages.Hours(None, True))
    assert not aged.look(), "nobody wants to know any more: nothing is over"
    aged.hours(None, default=True)
    assert aged.look() == ["no_good_backup"], "by the server's hour"
    with aged.catalog.read() as conn, pytest.raises(errors.NoSuchInstance):
        ages.of_instance(aged.ctx, conn, aged.project, "nobody")


def test_an_instance_that_is_unregistered_is_not_looked_at(aged: Aged) -> None:
    """And nothing is left of what was told of it."""
    aged.hours(1, aged.source)
    aged.clock.passed += 2 * 3600
    assert aged.look() == ["no_good_backup"]
    instances.unregister(aged.ctx, aged.project, aged.source, lambda conn: None)
    assert not aged.look()
    with aged.catalog.read() as conn:
        assert not conn.execute(sa.select(t.backup_overdue)).all()
        assert aged.source not in conn.execute(sa.select(t.backup_age.c.subject)).scalars().all()


def test_a_process_that_dies_while_it_looks_tells_once(aged: Aged) -> None:
    """At each of its effects; the row and the event are one transaction."""
    aged.hours(1)
    aged.clock.passed += 2 * 3600
    for at in range(1, 40):
        with aged.dying(at) as fate:
            aged.look()
        aged.restart()
        for _ in range(3):
            aged.look()
        assert [event["event"] for event in aged.untold()] == ["no_good_backup"], f"death at effect {at}"
        with aged.catalog.write() as conn:
            conn.execute(sa.delete(t.backup_overdue))
            conn.execute(sa.delete(t.job))
        if fate.alive:
            break
    assert at > 3


# ---- where webhooks may be --------------------------------------------------------------------------------------------------

REACHED = ("93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1", "::ffff:8.8.8.8")
NOT_REACHED = (
    "127.0.0.1", "127.8.9.10", "0.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "2001:db8::1",
    "::127.0.0.1",
)  # fmt: skip


@pytest.mark.parametrize("address", REACHED)
def test_public_addresses_are_reached(address: str) -> None:
    """Also by the IPv6 addresses that lead to them."""
    assert posting.reached(posting.ipaddress.ip_address(address), ())


@pytest.mark.parametrize("address", NOT_REACHED)
def test_this_machine_and_private_networks_are_not_reached(address: str) -> None:
    """Not by any of their spellings; the operator's word opens just the network that it names."""
    found = posting.ipaddress.ip_address(address)
    assert not posting.reached(found, ())
    assert not posting.reached(found, (ip_network("203.0.113.0/24"), ip_network("fd00::/8")))
    assert posting.reached(found, (ip_network("0.0.0.0/0"), ip_network("::/0")))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://hooks.example/", "file:///etc/passwd", "hooks.example", "https://", "http:///x", "https://user:word@hooks.example/",
        "https://hooks.example/#part", "https://hooks.example:99999/", "https://hooks.example/a b",
        "https://hooks.example/\r\nX: y",
        "https://höks.example/", "http://127.0.0.1/", "http://[::1]:8080/", "http://169.254.169.254/latest", "http://10.0.0.1/",
        "http://[::ffff:127.0.0.1]/", "http://[::1", "https://hooks.example/" + "x" * 2000,
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_a_webhooks_is_refused(house: House, url: str) -> None:
    """When it is registered, and nothing is kept of it."""
    with pytest.raises(errors.BadWebhook):
        house.hook(url=url)
    with house.catalog.read() as conn:
        assert not conn.execute(sa.select(t.webhook)).all()
        assert not conn.execute(sa.select(t.notification_receiver)).all()


def test_a_url_understood() -> None:
    """Path and query as they are; the origin is what the audit trail gets."""
    place = posting.parse("https://hooks.example:8443/a/b?token=c", ())
    assert place == posting.Place(True, "hooks.example", 8443, "/a/b?token=c")
    assert place.origin == "https://hooks.example:8443"
    assert posting.parse("http://[2606:4700::1111]", ()) == posting.Place(False, "2606:4700::1111", 80, "/")
    assert posting.parse("http://127.0.0.1", (ip_network("127.0.0.0/8"),)).host == "127.0.0.1"


def test_names_are_taken_once_and_a_project_has_so_many(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another project's names are its own."""
    monkeypatch.setattr(webhooks, "MOST", 2)
    house.hook("one")
    with pytest.raises(errors.BadWebhook, match="named one"):
        house.hook("one")
    house.hook("one", project="0" * 32)
    house.hook("two")
    with pytest.raises(errors.BadWebhook, match="2 webhooks at most"):
        house.hook("three")


def test_the_operators_command_is_a_receiver_of_every_project(tmp_path: Path) -> None:
    """Only where the setting names one."""
    house = House(tmp_path / "vault", Options(chunk_average=4096, pack_target=32768, notify_command=("/bin/true",)))
    house.fail_a_backup()
    (event,) = house.untold()
    with house.catalog.read() as conn:
        assert outbox.receivers(house.ctx, conn, "another", "backup_failed") == [outbox.COMMAND]
        assert json.loads(conn.execute(sa.select(t.job.c.args).where(t.job.c.kind == outbox.NOTIFY)).scalar_one()) == {
            "receiver": outbox.COMMAND, "event": event,
        }  # fmt: skip
    house.tell()
    assert house.known(outbox.COMMAND).delivered == 1
    house.catalog.close()


def test_a_process_without_the_command_lets_another_one_run_it(tmp_path: Path) -> None:
    """It waits, and is not lost."""
    house = House(tmp_path / "vault", Options(chunk_average=4096, pack_target=32768, notify_command=("/bin/true",)))
    house.fail_a_backup()
    without = teller(replace(house.ctx, options=replace(house.ctx.options, notify_command=())), "without")
    assert without.step() is not None
    assert "STRONGROOM_NOTIFY_COMMAND" in house.known(outbox.COMMAND).last_error
    house.clock.passed += 10
    house.tell()
    assert house.known(outbox.COMMAND).delivered == 1
    house.catalog.close()
