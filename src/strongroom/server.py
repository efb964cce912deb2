"""The composition root: from settings to a running server, and the offline commands.

One process holds API and worker. Order at start: the data folder is locked → the schema is current → the store is taken into
possession → a catalog that is not the one that ran here last is noticed → the first start makes account and credentials → leases
of a dead process are forgotten → worker → API. SIGTERM ends the API first, then puts a last snapshot of the catalog if something
has changed, then gives the jobs back.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from strongroom import logs
from strongroom.ambient import Ambient, Machine
from strongroom.api import (
    audit,
    backups,
    imports,
    instances,
    jobs,
    limits,
    maintenance,
    metrics,
    moments,
    notifications,
    pending,
    policies,
    quotas,
    recycling,
    refused,
    restorable,
    strongroom,
    tags,
)
from strongroom.api.app import build_app
from strongroom.api.health import Recent
from strongroom.api.refusals import register_refusals
from strongroom.api.services import Limits, Rate, Services
from strongroom.api.wire import limited
from strongroom.backups import automation, following, recording, rehearsal, snapshots
from strongroom.backups.automation import AutomateJob, ExpireJob
from strongroom.backups.context import Context, Options
from strongroom.backups.creation import BackupJob, PartJob
from strongroom.backups.damage import lost_mark
from strongroom.backups.deletion import DeleteJob
from strongroom.backups.gathering import TidyJob, node_queue
from strongroom.backups.importing import ImportJob
from strongroom.backups.incarnation import keep_watch, recognise, take_possession
from strongroom.backups.pacing import claimable
from strongroom.backups.policies import AUTOMATE, EXPIRE
from strongroom.backups.rebuilding import rebuild, require_root_key
from strongroom.backups.reconciling import ReconcileJob
from strongroom.backups.rekeying import RotationRefused, rotate
from strongroom.backups.removal import RemoveJob
from strongroom.backups.restoration import RestoreJob
from strongroom.backups.verification import VerifyJob
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, CatalogError, open_catalog
from strongroom.catalog.migrating import migrate, require_current
from strongroom.engines.base import Engine, Node
from strongroom.engines.cassandra import CassandraEngine
from strongroom.engines.influxdb import InfluxEngine
from strongroom.engines.mongodb import MongoEngine
from strongroom.engines.redis import RedisEngine
from strongroom.identity import accounts, forgetting
from strongroom.identity import audit as audit_trail
from strongroom.identity import tables as identity
from strongroom.identity.passwords import Passwords
from strongroom.identity.secrets import Sealer
from strongroom.jobs.embedded import forget_leases, lock_data_folder
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import Handler
from strongroom.jobs.schedules import put_schedule
from strongroom.jobs.worker import Worker
from strongroom.notifications import ages, delivery
from strongroom.notifications.outbox import NOTIFY
from strongroom.notifications.outbox import QUEUE as NOTIFICATIONS
from strongroom.repository.keys import RootKey
from strongroom.settings import RequestRate, Settings
from strongroom.storage.base import StoreUnavailable
from strongroom.storage.opening import open_store

log = logging.getLogger("strongroom")

_GRACE = 10.0  # seconds that a stopping process gives its jobs
_TELLING = 4  # threads that tell receivers; each has one at most
_RECORDINGS = 64  # threads that each follow one instance's log
_LAST_SNAPSHOT = 5.0  # seconds that it waits for a last snapshot of the catalog before that
_BACKLOG = 64  # connections that are taken at once: those of them that are too many have a file for a moment


FAMILIES = (
    backups, imports, policies, tags, recycling, restorable, moments, quotas, instances, limits, jobs, strongroom, pending,
    maintenance, notifications, audit, refused,
)  # fmt: skip
"""The API's families of calls, those that are refused last: a call that works goes before."""


@dataclass(frozen=True)
class House:
    """Everything that a process works with, opened."""

    settings: Settings
    context: Context
    jobs: LeasedJobs

    def handlers(self) -> dict[str, Handler]:
        """Every kind of job."""
        ctx = self.context
        return {
            "backup": BackupJob(ctx), "part": PartJob(ctx), "tidy": TidyJob(ctx), "restore": RestoreJob(ctx),
            "delete": DeleteJob(ctx), "remove": RemoveJob(ctx), "import": ImportJob(ctx),
            "verify": VerifyJob(ctx), "reconcile": ReconcileJob(ctx), rehearsal.KIND: rehearsal.RehearsalJob(ctx),
            rehearsal.REGULAR: rehearsal.RegularJob(ctx),
            AUTOMATE: AutomateJob(ctx), EXPIRE: ExpireJob(ctx),
            recording.RECORD: following.RecordJob(ctx), recording.TRIM: recording.TrimJob(ctx),
            NOTIFY: delivery.NotifyJob(ctx), delivery.TEST: delivery.TestJob(ctx), ages.REGULARLY.kind: ages.AgesJob(ctx),
            forgetting.HOURLY.kind: forgetting.ForgetTokensJob(ctx.catalog, ctx.ambient),
            snapshots.KIND: snapshots.SnapshotJob(ctx),
        }  # fmt: skip

    def app(self) -> FastAPI:
        """The whole border."""
        ctx, settings = self.context, self.settings
        register_refusals()
        most = Limits(per_user=_rate(settings.rate_per_user), per_address=_rate(settings.rate_per_address))
        services = Services(ctx.catalog, ctx.ambient, ctx.sealer, Passwords(), most)
        registry = CollectorRegistry()
        routers = [family.router for family in FAMILIES]
        routers.append(metrics.router(ctx.catalog, ctx.ambient, registry, settings.metrics_token))
        ready = {"store": Recent(partial(_require_store, ctx), ctx.ambient)}
        return build_app(services, routers, objects={Context: ctx}, ready=ready, observe=metrics.Latencies(registry))


def _require_store(ctx: Context) -> None:
    """Raises StoreError where the store does not answer, or is another one than the catalog's."""
    with suppress(sa.exc.DBAPIError):  # that the catalog is away says nothing of the store
        lost = lost_mark(ctx)
        if lost is not None:
            raise StoreUnavailable(lost)


def serve(settings: Settings) -> None:
    """Runs the server until SIGTERM or SIGINT. Raises CatalogBehind once a newer version has upgraded the catalog under it."""
    logs.configure(settings.log_format)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock_data_folder(settings.data_dir), _listening(settings) as sock, opened(settings) as house:
        endpoint = _endpoint(settings, sock.getsockname()[1])
        _begin(house, endpoint)
        may = partial(claimable, house.context)
        worker = Worker(house.jobs, house.handlers(), ["default"], threads=settings.workers, claimable=may)
        # Apart from the others, for a cluster's backup waits for its nodes' jobs.
        nodes = Worker(house.jobs, house.handlers(), node_queues(settings), threads=settings.workers, claimable=may)
        # Apart too: a receiver that is slow keeps nothing waiting but what is to be told.
        telling = Worker(house.jobs, house.handlers(), [NOTIFICATIONS], threads=_TELLING)
        # Apart as well: each holds its thread for as long as an instance's log is recorded.
        following = Worker(house.jobs, house.handlers(), [recording.QUEUE], threads=_RECORDINGS)
        workers = (worker, nodes, telling, following)
        for one in workers:
            one.start()
        watch = snapshots.Watch(house.context)
        watch.start()
        try:
            config = uvicorn.Config(
                house.app(), http=limited(settings.connections), log_config=None, access_log=False, server_header=False,
                date_header=True, backlog=_BACKLOG, timeout_graceful_shutdown=5, proxy_headers=False,
                h11_max_incomplete_event_size=65536, ssl_certfile=settings.tls_cert, ssl_keyfile=settings.tls_key,
            )  # fmt: skip
            for ending in (signal.SIGTERM, signal.SIGINT):
                signal.signal(
                    ending, lambda _number, _frame: None
                )  # the API server repeats it when it has ended: the jobs come next
            log.info("Strongroom listens on %s", endpoint)
            server = uvicorn.Server(config)
            _end_when_behind(house.context.catalog, server)
            server.run(sockets=[sock])
        finally:
            watch.stop(_LAST_SNAPSHOT)
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda one: one.shutdown(_GRACE), workers))
        house.context.catalog.require_own_schema()


def _end_when_behind(catalog: Catalog, server: uvicorn.Server) -> None:
    """A newer version that takes the catalog over ends this process."""

    def wait() -> None:
        catalog.behind.wait()
        server.should_exit = True

    threading.Thread(target=wait, name="schema", daemon=True).start()


def node_queues(settings: Settings) -> list[str]:
    """The queues of the cluster nodes on this host: those that the settings name, else its own addresses."""
    addresses = {"127.0.0.1", "::1"} if settings.nodes is None else set(settings.nodes)
    if settings.nodes is None:
        with suppress(OSError):
            addresses |= {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None)}
    return [node_queue(Node("", address)) for address in sorted(addresses)]


@contextmanager
def opened(settings: Settings, ambient: Ambient | None = None, root: RootKey | None = None) -> Iterator[House]:
    """Opens catalog (migrated), store, keys and jobs; closes them. `root` stands in for the settings' root key."""
    ambient = ambient or Machine()
    catalog = open_catalog(settings.catalog_url)
    try:
        migrate(catalog)
        fresh = _is_new(catalog)
        root = root or root_key(settings, create=ambient.key if fresh else None)
        store = open_store(settings.store_url)
        try:
            leased = LeasedJobs(catalog, ambient)
            scratch = settings.data_dir / "scratch"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(mode=0o700)
            options = Options(
                reclaim_budget=settings.reclaim_budget, verify_after_delete=settings.verify_after_delete,
                source_rate=settings.source_rate, notify_command=settings.notify_command,
                notify_networks=settings.notify_networks, notify_hours=settings.notify_hours,
            )  # fmt: skip
            context = Context(
                catalog, store, leased, engines(), root, _sealer(root), ambient, scratch, options, imports=settings.imports
            )
            yield House(settings, context, leased)
        finally:
            store.close()
    finally:
        catalog.close()


def root_key(settings: Settings, create: Callable[[], bytes] | None = None) -> RootKey:
    """The root key; while a rotation is under way also the next one opens what it sealed. `create` as in Settings.root_key."""
    present = settings.root_key(create)
    following = settings.next_root_key()
    return RootKey(present, () if following in (None, present) else (RootKey(following),))


def _sealer(root: RootKey) -> Sealer:
    return Sealer(root.secret, accepted=[one.secret for one in root.accepted])


def rotate_root_key(settings: Settings, report: Callable[[str], None]) -> None:
    """Rotates the root key of a data folder that no server uses; after a crash it goes on from there. Raises RotationRefused."""
    with lock_data_folder(settings.data_dir):
        present = settings.root_key()
        following = settings.next_root_key(create=Machine().key)
        assert following is not None
        if present == following and not settings.next_root_key_source.from_file:
            raise RotationRefused("the next root key is the present one: give another")
        before = () if present == following else (RootKey(present),)
        with opened(settings, root=RootKey(following, before)) as house:
            if _is_new(house.context.catalog):
                raise RotationRefused("nothing is sealed yet: start the server once first")
            rotate(house.context, report)
        retired = settings.end_rotation()
    if retired is None:
        report("the rotation is done: give the next root key as the root key from now on, and no next one")
    else:
        report(f"the rotation is done: {settings.root_key_file} holds the new root key (keep a copy), {retired} the old one")


@contextmanager
def opened_for_reading(settings: Settings) -> Iterator[Context]:
    """Opens catalog, store and keys to read backups, beside a running server or without one. Raises CatalogError, SettingsError,
    StoreError."""
    url = sa.make_url(settings.catalog_url)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():
        raise CatalogError(f"there is no catalog {url.database}: is this the server's data folder?")
    ambient, root = Machine(), root_key(settings)
    with closing(open_catalog(settings.catalog_url)) as catalog:
        require_current(catalog)
        with closing(open_store(settings.store_url)) as store:
            jobs, scratch = LeasedJobs(catalog, ambient), settings.data_dir / "scratch"
            yield Context(catalog, store, jobs, engines(), root, _sealer(root), ambient, scratch)


def engines() -> Mapping[str, Engine]:
    """The engines of this step, by name."""
    return {engine.name: engine for engine in (RedisEngine(), MongoEngine(), InfluxEngine(), CassandraEngine())}


def _begin(house: House, endpoint: str) -> None:
    ctx = house.context
    take_possession(ctx)
    if not recognise(ctx, house.settings.data_dir / "incarnation"):
        log.warning("this catalog is not the one that ran here last: builds of before are failed, lineages are compared first")
    keep_watch(ctx, house.settings.data_dir / "incarnation")
    _found(house, endpoint)
    with suppress(sa.exc.IntegrityError), ctx.catalog.write() as conn:  # another process has just put it
        for regular in (forgetting.HOURLY, automation.HOURLY, recording.HOURLY, ages.REGULARLY):
            put_schedule(house.jobs, conn, regular)
    if not ctx.catalog.postgres:
        with ctx.catalog.write() as conn:
            forget_leases(conn)


def _is_new(catalog: Catalog) -> bool:
    with catalog.read() as conn:
        return conn.execute(sa.select(t.installation.c.id)).first() is None


def _found(house: House, endpoint: str, project: str | None = None) -> None:
    """The first start makes an account and writes its credentials before that is committed: no account without them."""
    ctx, file, cert = house.context, house.settings.credentials_file, house.settings.tls_cert
    place = {"endpoint": endpoint} | ({} if cert is None else {"ca_file": str(cert)})
    with ctx.catalog.read() as conn:
        founded = conn.execute(sa.select(identity.account.c.id)).first() is not None
    if founded:
        if file.exists():
            before = json.loads(file.read_text("utf-8"))
            told = {name: value for name, value in before.items() if name != "ca_file"}
            changed = told | place | ({} if project is None else {"project_id": project})
            if changed != before:
                _write_private(file, changed)
        return
    password = secrets.token_urlsafe(18)

    def tell(made: accounts.FirstStart) -> None:
        _write_private(
            file,
            {
                "domain": "strongroom", "user": "admin", "password": password, "project_id": made.founded.project,
                "access_key": made.key.id, "secret_key": made.key.secret, **place,
            },
        )  # fmt: skip

    accounts.first_start(ctx.catalog, ctx.ambient, ctx.sealer, password_hash=Passwords().hash(password), tell=tell)


def rebuild_catalog(settings: Settings, report: Callable[[str], None]) -> None:
    """Makes a new catalog from the store alone; an SQLite catalog that is there is moved aside first. Raises RebuildRefused."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock_data_folder(settings.data_dir):
        root = root_key(settings)  # with no key or another one nothing can be read: say so before anything is moved
        with closing(open_store(settings.store_url)) as store:
            require_root_key(root, store)
        _move_aside(settings, report)
        with opened(settings) as house:
            ctx = house.context
            if not _is_new(ctx.catalog):
                raise RebuildRefused("the catalog is not empty: give an empty database in STRONGROOM_CATALOG_URL")
            endpoint = _endpoint(settings, settings.port)
            result = rebuild(ctx, report, partial(_found_again, house, endpoint, report))
            with ctx.catalog.read() as conn:
                most = conn.execute(
                    sa.select(t.backup.c.project).group_by(t.backup.c.project).order_by(sa.func.count().desc()).limit(1)
                ).scalar()
            if result.base is None:
                _found(house, endpoint, most)
            (settings.data_dir / "incarnation").unlink(missing_ok=True)
            held = f"{result.backups - result.known} of {result.backups} backups are held as recovered"
            report(f"{held}, and what is damaged: release what you have checked")


def _found_again(house: House, endpoint: str, report: Callable[[str], None]) -> None:
    """Where no account came back, founds one as a first start does. Else users enter as before; credentials that do not enter any
    more, as where the data folder was lost, are replaced by a fresh access key of the first administrator."""
    ctx, file, u = house.context, house.settings.credentials_file, identity.user.c
    with ctx.catalog.read() as conn:
        first = conn.execute(
            sa.select(u.id, u.name, identity.account.c.name.label("account"), u.account.label("account_id"))
            .join_from(identity.user, identity.account, identity.account.c.id == u.account)
            .where(u.administrator, u.enabled)
            .order_by(identity.account.c.created_at, u.created_at, u.id)
        ).first()
        known = _access_key_in(file)
        enters = conn.execute(sa.select(identity.access_key.c.id).where(identity.access_key.c.id == known)).first() is not None
    if first is None:
        _found(house, endpoint)
        report(f"new credentials are in {file}")
        return
    if enters:
        _found(house, endpoint)
        report(f"users sign in as before; the credentials in {file} still enter")
        return
    with ctx.catalog.write() as conn:
        key = accounts.create_access_key(conn, ctx.ambient, ctx.sealer, first.id)
        p = identity.project.c
        project = conn.scalar(sa.select(p.id).where(p.account == first.account_id).order_by(p.created_at, p.id).limit(1))
        audit_trail.append(
            conn, ctx.ambient,
            audit_trail.Entry(
                "createCredential", "credential", key.id, first.name, level="Major", account=first.account_id,
                detail={"by": "catalog rebuild"},
            ),
        )  # fmt: skip
        _write_private(
            file,
            {
                "domain": first.account, "user": first.name, "project_id": project, "access_key": key.id,
                "secret_key": key.secret, "endpoint": endpoint,
            },
        )  # fmt: skip
    _found(house, endpoint)
    report(f"users sign in as before; a new access key of {first.name} is in {file}")


def _access_key_in(file: Path) -> str | None:
    try:
        return str(json.loads(file.read_text("utf-8"))["access_key"])
    except (OSError, ValueError, KeyError):
        return None


class RebuildRefused(Exception):
    """A rebuild needs an empty catalog."""


def _move_aside(settings: Settings, report: Callable[[str], None]) -> None:
    url = sa.make_url(settings.catalog_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    word = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    for suffix in ("", "-wal", "-shm"):
        old = Path(url.database + suffix)
        if old.exists():
            aside = old.with_name(f"{Path(url.database).name}.before-{word}{suffix}")
            old.rename(aside)
            report(f"the old catalog is kept as {aside}")


def _write_private(file: Path, content: Mapping[str, Any]) -> None:
    """Puts a file that only its owner reads into place in one step."""
    draft = file.with_suffix(".new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        json.dump(content, out, indent=2)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The server's socket, bound before anything else is done: a taken port ends the start at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((settings.host, settings.port))
        yield sock


def _endpoint(settings: Settings, port: int) -> str:
    """Where clients on this machine find the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    scheme = "http" if settings.tls_cert is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _rate(rate: RequestRate | None) -> Rate | None:
    return None if rate is None else Rate(rate.per_second, rate.burst)
