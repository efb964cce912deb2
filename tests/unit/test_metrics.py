"""GET /metrics: what it tells is what the catalog and the store hold; strangers are told nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from strongroom.api import metrics
from strongroom.api.app import build_app
from strongroom.api.services import Services
from strongroom.backups import pending, reconciling, recording
from strongroom.backups.context import Options
from strongroom.backups.reconciling import ReconcileJob
from strongroom.catalog import tables as t
from strongroom.notifications import outbox, webhooks
from strongroom.settings import Settings, SettingsError
from support.border import quick_passwords
from support.harsh import HarshVault
from support.vault import generations

TOKEN = "a-token-of-24-characters"
Readings = dict[tuple[str, frozenset[tuple[str, str]]], float]


class House(HarshVault):
    """A vault with a border around it."""

    def app(self, token: str | None = None) -> FastAPI:
        registry = CollectorRegistry()
        services = Services(self.catalog, self.clock, self.ctx.sealer, quick_passwords())
        return build_app(
            services, [metrics.router(self.catalog, self.clock, registry, token)], observe=metrics.Latencies(registry)
        )

    def readings(self, app: FastAPI | None = None) -> Readings:
        answer = ask(app or self.app(), "/metrics")
        assert answer.status_code == 200, answer.text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }


def ask(app: FastAPI, path: str, source: str = "127.0.0.1", headers: dict[str, str] | None = None) -> httpx.Response:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, client=(source, 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://strongroom.test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(get())


def one(name: str, /, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"strongroom_{name}", frozenset(labels.items())


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "vault", Options(chunk_average=4096, pack_target=32768, reclaim_budget=0))
    yield made
    made.catalog.close()


def test_what_is_told_is_what_there_is(house: House) -> None:
    """Backups, a deletion, bytes and their ages, beside the store's own walk."""
    first, _second, third = (house.backup(data) for data in generations(3))
    house.delete(first)
    house.run()
    house.clock.passed += 7200
    found = house.readings()
    stored = {stat.name: stat.size for stat in house.inner.list("")}
    told = sum(
        value for (name, labels), value in found.items() if name == "strongroom_object_bytes" and ("state", "STORED") in labels
    )
    assert told == sum(stored.values())
    objects = sum(
        value for (name, labels), value in found.items() if name == "strongroom_objects" and ("state", "STORED") in labels
    )
    assert objects == len(stored)
    assert found[one("backups", engine="plain", origin="Manual", state="COMPLETED")] == 2
    assert found[one("deletions", state="DONE")] == 1
    assert found[one("freed_bytes_total")] == house.receipt(first)["freed"] > 0
    assert found[one("waiting_bytes")] == house.waiting() > 0
    assert found[one("unswept_decisions")] == found[one("stopped_lineages")] == found[one("jobs_oldest_queued_seconds")] == 0
    age = found[one("newest_backup_age_seconds", project=house.project, instance=house.source, name="source", engine="plain")]
    with house.catalog.read() as conn:
        ended = conn.execute(sa.select(t.backup.c.end_at).where(t.backup.c.id == third)).scalar_one()
    assert age == pytest.approx(house.clock.now() - ended)
    never = found[one("newest_backup_age_seconds", project=house.project, instance=house.target, name="target", engine="plain")]
    assert never >= age


def test_what_became_of_what_was_to_be_told(house: House) -> None:
    """By receiver; what waits for a receiver is no job that waits for a worker."""
    hook, _secret = webhooks.add(house.ctx, house.project, webhooks.NewWebhook("hook", "https://hooks.example/"), lambda *_: None)
    house.engine.broken = "the server went away"
    house.create(next(generations(1)))
    while house.worker.step() is not None:
        pass
    house.clock.passed += 90
    with house.catalog.write() as conn:
        outbox.count(conn, hook, delivered=3, failed=2, dropped=1)
        outbox.begin_receiver(conn, outbox.COMMAND)
        outbox.count(conn, outbox.COMMAND, given_up=4)
        conn.execute(t.backup_overdue.insert().values(instance=house.source, told_at=0.0))
    found = house.readings()
    for project, receiver, expected in ((house.project, "hook", (3, 2, 0, 1)), ("", "command", (0, 0, 4, 0))):
        for outcome, number in zip(("delivered", "failed", "given_up", "dropped"), expected, strict=True):
            assert found[one("notifications_total", project=project, receiver=receiver, outcome=outcome)] == number
    assert found[one("overdue_instances")] == 1
    assert found[one("jobs", kind="notify", state="QUEUED")] == 1
    assert found[one("jobs_oldest_queued_seconds")] == 0


def test_jobs_that_wait_and_that_failed(house: House) -> None:
    """By kind; how long the oldest waits."""
    house.create(next(generations(1)))
    house.clock.passed += 90
    found = house.readings()
    assert found[one("jobs", kind="backup", state="QUEUED")] == 1
    assert found[one("jobs_oldest_queued_seconds")] == pytest.approx(90)
    house.engine.databases.pop("plain://source")
    house.run()
    found = house.readings()
    assert one("jobs", kind="backup", state="QUEUED") not in found
    assert found[one("jobs_failed_total", kind="backup")] == 1


def test_a_deletion_that_can_be_called_back_waits_for_no_worker(house: House) -> None:
    """It is counted as pending, and its job is not taken for one that nobody comes to."""
    key = house.backup(next(generations(1)))
    pending.put_policy(house.ctx, house.project, lambda *_: None, undelete_hours=24)
    house.delete(key)
    house.clock.passed += 3600
    found = house.readings()
    assert found[one("deletions", state="PENDING")] == found[one("jobs", kind="delete", state="QUEUED")] == 1
    assert found[one("backups", engine="plain", origin="Manual", state="PENDING")] == 1
    assert found[one("jobs_oldest_queued_seconds")] == 0


def test_what_the_last_reconciliation_found(house: House) -> None:
    """Nothing before the first; then its count of what nobody accounts for, which another project's does not hide."""
    house.backup(next(generations(1)))
    ours, other = {"project": house.project}, {"project": "f" * 32}
    assert one("unaccounted_objects", **ours) not in house.readings()
    house.inner.put_new("nobody/knows", b"this")
    house.worker._handlers = {**house.worker._handlers, "reconcile": ReconcileJob(house.ctx)}  # type: ignore[attr-defined]
    reconciling.reconcile(house.ctx, house.project, lambda conn: None, outside=True, close_late=False)
    house.run()
    house.clock.passed += 60
    reconciling.reconcile(house.ctx, other["project"], lambda conn: None, outside=False, close_late=False)
    house.run()
    found = house.readings()
    assert (found[one("unaccounted_objects", **ours)], found[one("unaccounted_objects", **other)]) == (1, 0)
    assert found[one("reconciled_age_seconds", **ours)] == pytest.approx(60, abs=5)
    assert found[one("reconciled_age_seconds", **other)] == pytest.approx(0, abs=5)


def test_how_old_the_catalog_s_own_snapshot_is(house: House) -> None:
    """Before the first, since the catalog was made; afterwards, since the catalog was last compared with it."""
    with house.catalog.read() as conn:
        made = conn.execute(sa.select(t.installation.c.created_at)).scalar_one()
    house.clock.passed += 500
    assert house.readings()[one("own_snapshot_age_seconds")] == pytest.approx(house.clock.now() - made)
    house.snapshot()
    house.clock.passed += 90
    assert house.readings()[one("own_snapshot_age_seconds")] == pytest.approx(90, abs=5)
    house.snapshot()  # nothing has changed: compared again, and that is as good
    assert house.readings()[one("own_snapshot_age_seconds")] == pytest.approx(0, abs=5)


def _record(conn: sa.Connection, house: House) -> None:
    """The source's log is recorded from now on."""
    values = {"enabled": True, "interval": 20, "keep_days": 7, "updated_at": house.clock.now(), "chains": 0}
    conn.execute(t.recording.insert().values(instance=house.source, **values))


def test_how_far_recordings_are_behind(house: House) -> None:
    """Since it was turned on, then since the moment that it has reached; nothing of one that is off. Their jobs wait for
    nobody."""
    with house.catalog.write() as conn:
        _record(conn, house)
        house.ctx.jobs.submit(conn, recording.RECORD, {"instance": house.source}, queue=recording.QUEUE)
    house.clock.passed += 100
    behind = one("recording_behind_seconds", project=house.project, instance=house.source, name="source", engine="plain")
    assert house.readings()[behind] == pytest.approx(100, abs=5)
    assert house.readings()[one("jobs_oldest_queued_seconds")] == 0
    with house.catalog.write() as conn:
        conn.execute(sa.update(t.recording).values(reached_at=house.clock.now() - 7))
    house.clock.passed += 20
    assert house.readings()[behind] == pytest.approx(27, abs=5)
    with house.catalog.write() as conn:
        conn.execute(sa.update(t.recording).values(enabled=False))
    house.clock.passed += 20
    assert behind not in house.readings()


def test_requests_are_counted_by_route_and_never_by_path(house: House) -> None:
    """Ids of paths are not labels, and what no route takes is one series, however many paths there are."""
    app = house.app()
    for number in range(5):
        ask(app, f"/nowhere/{number}")
    ask(app, "/healthz")
    found = house.readings(app)
    assert found[one("http_request_seconds_count", method="", route="", status="404")] == 5
    assert found[one("http_request_seconds_count", method="GET", route="/healthz", status="200")] == 1
    assert not [name for name, labels in found if any("nowhere" in value for _, value in labels)]


def test_a_reading_is_told_again_for_some_seconds(house: House) -> None:
    """A scrape costs one look at the catalog, however often it comes."""
    app, looks = house.app(), 0

    def look(*_: Any) -> None:
        nonlocal looks
        looks += 1

    sa.event.listen(house.catalog.engine, "before_cursor_execute", look)
    first = house.readings(app)
    once = looks
    house.readings(app)
    assert looks == once > 0
    house.clock.passed += metrics.FRESH
    house.backup(next(generations(1)))
    assert house.readings(app)[one("build_info", version=_version(first))] == 1
    assert looks > once


def _version(found: Readings) -> str:
    return next(dict(labels)["version"] for name, labels in found if name == "strongroom_build_info")


def test_strangers_are_told_nothing(house: House) -> None:
    """Without a token this machine alone; with one whoever has it, and nobody else."""
    assert ask(house.app(), "/metrics", "::1").status_code == 200
    refused = ask(house.app(), "/metrics", "192.0.2.7")
    assert (refused.status_code, refused.json()["error_code"]) == (403, "APIGW.0302")
    for passed_on in ({"X-Forwarded-For": "192.0.2.7"}, {"Forwarded": "for=192.0.2.7"}):
        assert ask(house.app(), "/metrics", "127.0.0.1", passed_on).status_code == 403, "a proxy on this machine"
    guarded = house.app(TOKEN)
    assert ask(guarded, "/metrics", "192.0.2.7", {"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    for wrong in (None, {"Authorization": "Bearer x"}, {"Authorization": TOKEN}):
        answer = ask(guarded, "/metrics", "127.0.0.1", wrong)
        assert (answer.status_code, answer.json()["error_code"]) == (401, "APIGW.0301")
        assert "strongroom_" not in answer.text


@pytest.mark.parametrize("bad", ["tiny", "has a space in it, so long", "übergroß-genug-ist-das"])
def test_a_token_that_a_header_cannot_carry_ends_the_start(bad: str) -> None:
    """And the error does not repeat it."""
    with pytest.raises(SettingsError, match="STRONGROOM_METRICS_TOKEN") as error:
        Settings.load("/tmp", {"STRONGROOM_METRICS_TOKEN": bad})
    assert bad not in str(error.value)
    assert TOKEN not in repr(Settings.load("/tmp", {"STRONGROOM_METRICS_TOKEN": TOKEN}))


def test_the_alerts_and_the_dashboard_name_what_is_told(house: House) -> None:
    """Every metric that the files in deploy/ ask for is one that is told once everything has happened."""
    first, _ = (house.backup(data) for data in generations(2))
    house.delete(first)
    house.worker._handlers = {**house.worker._handlers, "reconcile": ReconcileJob(house.ctx)}  # type: ignore[attr-defined]
    reconciling.reconcile(house.ctx, house.project, lambda conn: None, outside=False, close_late=False)
    house.engine.databases.pop("plain://source")
    house.create()
    house.run()
    webhooks.add(house.ctx, house.project, webhooks.NewWebhook("hook", "https://hooks.example/"), lambda *_: None)
    house.create()
    with house.catalog.write() as conn:
        _record(conn, house)
    app = house.app()
    ask(app, "/healthz")
    told = {name for name, _ in house.readings(app)}
    for file in ("prometheus-alerts.yml", "grafana-dashboard.json"):
        text = (Path(__file__).parents[2] / "deploy" / file).read_text("utf-8")
        asked = set(re.findall(r"strongroom_[a-z_]+", text))
        assert len(asked) > 5
        assert asked <= told, asked - told
