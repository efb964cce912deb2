"""GET /metrics, for Prometheus: what the catalog says, and how long this process takes to answer.

All but the latencies is read from the catalog, so that every process of an installation tells the same, and a restart forgets
nothing. A reading is kept for some seconds: a scrape costs one snapshot over the catalog's rows however often it comes.

Told to this machine, and to others only with the bearer token of STRONGROOM_METRICS_TOKEN: the names of instances are in it.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import threading
from collections.abc import Iterable, Iterator
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Header, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection

from strongroom import __version__
from strongroom.ambient import Ambient
from strongroom.api.authentication import public_router
from strongroom.api.errors import ApiError
from strongroom.api.middleware import arrival_of
from strongroom.backups import recording
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog
from strongroom.notifications.outbox import QUEUE

FRESH = 10.0
"""Seconds for which a reading of the catalog is told again."""


class Latencies:
    """How long requests took, by method, route and status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "strongroom_http_request_seconds", "How long requests took, by route.", ("method", "route", "status"),
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30), registry=registry,
        )  # fmt: skip

    def __call__(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request. `route` is the template of its path, never the path itself; status 0: the client had left."""
        self._seconds.labels(method, route, str(status or "gone")).observe(seconds)


class CatalogReadings(Collector):
    """What the catalog says, as families of metrics."""

    def __init__(self, catalog: Catalog, ambient: Ambient) -> None:
        self._catalog, self._ambient = catalog, ambient
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self._known: list[Metric] = []

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are told by `collect`, and the catalog is not read before it is asked for."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The newest reading. Raises DBAPIError."""
        with self._lock:
            now = self._ambient.monotonic()
            if self._read_at is None or now - self._read_at >= FRESH:
                with self._catalog.read() as conn:
                    self._known = list(_families(conn, self._ambient.now()))
                self._read_at = now
            return self._known


def router(catalog: Catalog, ambient: Ambient, registry: CollectorRegistry, token: str | None) -> APIRouter:
    """The route that answers with all of the registry."""
    registry.register(CatalogReadings(catalog, ambient))
    made = public_router("Metrics")

    @made.get("/metrics", include_in_schema=False)
    def metrics(request: Request, authorization: Annotated[str | None, Header()] = None) -> Response:
        passed_on = any(name in request.headers for name in ("forwarded", "x-forwarded-for"))  # by a proxy on this machine
        _require_reader("" if passed_on else arrival_of(request.scope).source, authorization, token)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return made


def _require_reader(source: str, authorization: str | None, token: str | None) -> None:
    if token is not None:
        if authorization is None or not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise ApiError(401, "APIGW.0301", "Metrics need the bearer token of STRONGROOM_METRICS_TOKEN.")
    elif not _is_local(source):
        raise ApiError(403, "APIGW.0302", "Metrics are told to this machine only, unless STRONGROOM_METRICS_TOKEN is set.")


def _is_local(source: str) -> bool:
    try:
        return ipaddress.ip_address(source).is_loopback
    except ValueError:
        return False


# ---- what is read -----------------------------------------------------------------------------------------------------------


def _families(conn: Connection, now: float) -> Iterator[Metric]:
    build = GaugeMetricFamily("strongroom_build_info", "The version that answers.", labels=["version"])
    build.add_metric([__version__], 1)
    yield build
    yield from _jobs(conn, now)
    yield from _objects(conn)
    yield from _backups(conn, now)
    yield from _recordings(conn, now)
    yield from _deletions(conn)
    yield from _reconciled(conn, now)
    yield from _own_snapshot(conn, now)
    yield from _notifications(conn)


def _jobs(conn: Connection, now: float) -> Iterator[Metric]:
    j = t.job.c
    active = sa.select(j.kind, j.state, sa.func.count()).where(j.state.in_(("QUEUED", "RUNNING"))).group_by(j.kind, j.state)
    yield _gauge(conn, "strongroom_jobs", "Jobs that are queued or running.", ("kind", "state"), active)
    failed = sa.select(j.kind, sa.func.count()).where(j.state == "FAILED", j.project.is_not(None)).group_by(j.kind)
    yield _counter(conn, "strongroom_jobs_failed", "Jobs of users and policies that have failed.", ("kind",), failed)
    pending = sa.select(t.pending_deletion.c.job)
    working = sa.and_(
        j.state == "QUEUED", j.queue.not_in((QUEUE, recording.QUEUE)), j.id.not_in(pending)
    )  # others wait for no worker
    oldest = conn.execute(sa.select(sa.func.min(j.created_at)).where(working)).scalar()
    yield _one("strongroom_jobs_oldest_queued_seconds", "How long the oldest queued job waits.", now - oldest if oldest else 0)


def _objects(conn: Connection) -> Iterator[Metric]:
    o = t.object_.c
    rows = conn.execute(
        sa.select(
            o.kind, o.state, sa.func.count().label("number"), sa.func.coalesce(sa.func.sum(o.bytes), 0).label("bytes"),
            sa.func.coalesce(sa.func.sum(o.dead_bytes), 0).label("dead"),
        ).group_by(o.kind, o.state)
    ).all()  # fmt: skip
    count = GaugeMetricFamily("strongroom_objects", "Objects of the store, by the catalog.", labels=["kind", "state"])
    size = GaugeMetricFamily("strongroom_object_bytes", "Bytes of these objects.", labels=["kind", "state"])
    for row in rows:
        count.add_metric([row.kind, row.state], row.number)
        size.add_metric([row.kind, row.state], float(row.bytes))
    yield count
    yield size
    dead = sum(float(row.dead) for row in rows if row.state == "STORED")
    yield _one("strongroom_waiting_bytes", "Dead bytes inside objects that live on.", dead)
    unswept = conn.execute(sa.select(sa.func.count()).select_from(t.decision).where(t.decision.c.swept.is_(False))).scalar_one()
    yield _one("strongroom_unswept_decisions", "Decisions whose sweep is due.", unswept)
    stopped = conn.execute(sa.select(sa.func.count()).select_from(t.lineage).where(t.lineage.c.stopped.is_not(None))).scalar_one()
    yield _one("strongroom_stopped_lineages", "Lineages in which nothing may be freed.", stopped)


def _backups(conn: Connection, now: float) -> Iterator[Metric]:
    b = t.backup.c
    states = sa.select(b.engine, b.origin, b.state, sa.func.count()).where(b.state != "DELETED")
    yield _gauge(
        conn, "strongroom_backups", "Backups that are not deleted.", ("engine", "origin", "state"),
        states.group_by(b.engine, b.origin, b.state),
    )  # fmt: skip
    newest = (
        sa.select(b.instance, sa.func.max(b.end_at).label("end_at")).where(b.state == "COMPLETED").group_by(b.instance).subquery()
    )
    rows = conn.execute(
        sa.select(t.instance, newest.c.end_at)
        .outerjoin(newest, newest.c.instance == t.instance.c.id)
        .where(t.instance.c.state == "REGISTERED")
        .order_by(t.instance.c.id)
    )
    age = GaugeMetricFamily(
        "strongroom_newest_backup_age_seconds", "Since the newest completed backup ended, or since the instance was registered.",
        labels=["project", "instance", "name", "engine"],
    )  # fmt: skip
    for row in rows:
        since = row.created_at if row.end_at is None else row.end_at
        age.add_metric([row.project, row.id, row.name, row.engine], max(now - since, 0.0))
    yield age


def _recordings(conn: Connection, now: float) -> Iterator[Metric]:
    r, i = t.recording.c, t.instance.c
    rows = conn.execute(
        sa.select(i.project, i.id, i.name, i.engine, r.reached_at, r.updated_at)
        .join(t.instance, i.id == r.instance)
        .where(r.enabled, i.state == "REGISTERED")
        .order_by(i.id)
    )
    behind = GaugeMetricFamily(
        "strongroom_recording_behind_seconds",
        "Since the newest moment of a recorded instance that is in the store, or since recording was turned on.",
        labels=["project", "instance", "name", "engine"],
    )
    for row in rows:
        since = row.updated_at if row.reached_at is None else row.reached_at
        behind.add_metric([row.project, row.id, row.name, row.engine], max(now - since, 0.0))
    yield behind


def _deletions(conn: Connection) -> Iterator[Metric]:
    d = t.deletion.c
    states = sa.select(d.state, sa.func.count()).group_by(d.state)
    waiting = sa.select(sa.literal("PENDING"), sa.func.count()).select_from(t.pending_deletion).having(sa.func.count() > 0)
    yield _gauge(conn, "strongroom_deletions", "Deletions that were accepted.", ("state",), sa.union_all(states, waiting))
    sums = conn.execute(
        sa.select(*(sa.func.coalesce(sa.func.sum(column), 0) for column in (d.freed, d.rewrite_dropped, d.rewrite_written)))
    ).one()
    for name, text, value in zip(
        ("freed", "reclaimed_dropped", "reclaimed_written"),
        ("Bytes of objects that deletions removed.", "Bytes of objects that rewriting replaced.", "Bytes that rewriting put."),
        sums, strict=True,
    ):  # fmt: skip
        counter = CounterMetricFamily(f"strongroom_{name}_bytes", text)
        counter.add_metric([], float(value))
        yield counter


def _reconciled(conn: Connection, now: float) -> Iterator[Metric]:
    """What the newest comparison of store and catalog found, of each project: one says nothing of what another one found. Nothing
    where none was made."""
    j = t.job.c
    done = sa.and_(j.kind == "reconcile", j.state == "DONE")
    newest = sa.select(j.project, sa.func.max(j.finished_at).label("at")).where(done).group_by(j.project).subquery()
    here = sa.and_(j.project == newest.c.project, j.finished_at == newest.c.at)
    rows = conn.execute(sa.select(j.project, j.result, j.finished_at).join(newest, here).where(done).order_by(j.project)).all()
    text = "Unknown, missing and wrong objects that the last reconciliation found."
    odd = GaugeMetricFamily("strongroom_unaccounted_objects", text, labels=["project"])
    age = GaugeMetricFamily("strongroom_reconciled_age_seconds", "Since that reconciliation ended.", labels=["project"])
    for row in rows:
        found = json.loads(row.result)
        odd.add_metric([row.project], sum(int(found[what]["count"]) for what in ("unknown", "missing", "wrong_size")))
        age.add_metric([row.project], max(now - row.finished_at, 0.0))
    yield from (odd, age) if rows else ()


def _own_snapshot(conn: Connection, now: float) -> Iterator[Metric]:
    """Nothing before the first start has ended."""
    row = conn.execute(sa.select(t.installation.c.snapshot_at, t.installation.c.created_at)).first()
    if row is None:
        return
    since = row.created_at if row.snapshot_at is None else row.snapshot_at
    text = "Since the catalog was last found to be in its newest snapshot in the store, or since it was made."
    yield _one("strongroom_own_snapshot_age_seconds", text, max(now - since, 0.0))


def _notifications(conn: Connection) -> Iterator[Metric]:
    known = t.notification_receiver.c
    rows = conn.execute(
        sa.select(t.notification_receiver, t.webhook.c.project, t.webhook.c.name)
        .outerjoin(t.webhook, t.webhook.c.id == known.id)
        .order_by(known.id)
    ).all()
    told = CounterMetricFamily(
        "strongroom_notifications", "Events by what became of them; `failed` counts tries, most of which are followed by others.",
        labels=["project", "receiver", "outcome"],
    )  # fmt: skip
    for row in rows:
        for outcome in ("delivered", "failed", "given_up", "dropped"):
            told.add_metric([row.project or "", row.name or row.id, outcome], float(getattr(row, outcome)))
    yield told
    overdue = conn.execute(sa.select(sa.func.count()).select_from(t.backup_overdue)).scalar_one()
    yield _one("strongroom_overdue_instances", "Instances of which it was told that they have no good backup.", overdue)


def _one(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], float(value))
    return family


_Rows = sa.Select[*tuple[object, ...]] | sa.CompoundSelect[*tuple[object, ...]]


def _gauge(conn: Connection, name: str, text: str, labels: tuple[str, ...], query: _Rows) -> Metric:
    return _filled(conn, GaugeMetricFamily(name, text, labels=labels), query)


def _counter(conn: Connection, name: str, text: str, labels: tuple[str, ...], query: sa.Select[*tuple[object, ...]]) -> Metric:
    return _filled(conn, CounterMetricFamily(name, text, labels=labels), query)


def _filled(conn: Connection, family: GaugeMetricFamily | CounterMetricFamily, query: _Rows) -> Metric:
    """Rows of labels and, last, a count."""
    for *labels, count in conn.execute(query):
        family.add_metric([str(label) for label in labels], float(str(count)))
    return family
