"""The composition root: from settings to a running server, and the offline commands.

One process holds API and worker. Order at start: the data folder is locked → the schema is current → the store is taken into
possession → a catalog that is not the one that ran here last is noticed → the first start makes account and credentials → leases
of a dead process are forgotten → worker → API. SIGTERM ends the API first, then gives the jobs back.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

from strongroom.ambient import Ambient, Machine
from strongroom.api import backups, instances, jobs, strongroom
from strongroom.api.app import build_app
from strongroom.api.refusals import register_refusals
from strongroom.api.services import Limits, Rate, Services
from strongroom.backups.context import Context, Options
from strongroom.backups.creation import BackupJob
from strongroom.backups.deletion import DeleteJob
from strongroom.backups.incarnation import recognise, take_possession
from strongroom.backups.removal import RemoveJob
from strongroom.backups.restoration import RestoreJob
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.catalog.migrating import migrate
from strongroom.engines.base import Engine
from strongroom.engines.mongodb import MongoEngine
from strongroom.engines.redis import RedisEngine
from strongroom.identity import accounts
from strongroom.identity import tables as identity
from strongroom.identity.passwords import Passwords
from strongroom.identity.secrets import Sealer
from strongroom.jobs.embedded import forget_leases, lock_data_folder
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import Handler
from strongroom.jobs.worker import Worker
from strongroom.repository.keys import RootKey
from strongroom.settings import RequestRate, Settings
from strongroom.storage.opening import open_store

log = logging.getLogger("strongroom")

_GRACE = 10.0  # seconds that a stopping process gives its jobs


@dataclass(frozen=True)
class House:
    """Everything that a process works with, opened."""

    settings: Settings
    context: Context
    jobs: LeasedJobs

    def handlers(self) -> dict[str, Handler]:
        """Every kind of job."""
        ctx = self.context
        return {"backup": BackupJob(ctx), "restore": RestoreJob(ctx), "delete": DeleteJob(ctx), "remove": RemoveJob(ctx)}

    def app(self) -> FastAPI:
        """The whole border."""
        ctx, settings = self.context, self.settings
        register_refusals()
        limits = Limits(per_user=_rate(settings.rate_per_user), per_address=_rate(settings.rate_per_address))
        services = Services(ctx.catalog, ctx.ambient, ctx.sealer, Passwords(), limits)
        routers = [backups.router, instances.router, jobs.router, strongroom.router]
        return build_app(services, routers, objects={Context: ctx})


def serve(settings: Settings) -> None:
    """Runs the server until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock_data_folder(settings.data_dir), _listening(settings) as sock, opened(settings) as house:
        endpoint = f"http://{settings.host}:{sock.getsockname()[1]}"
        _begin(house, endpoint)
        worker = Worker(house.jobs, house.handlers(), ["default"], threads=settings.workers)
        worker.start()
        try:
            config = uvicorn.Config(
                house.app(), log_config=None, access_log=False, server_header=False, date_header=True,
                timeout_graceful_shutdown=5, proxy_headers=False,
            )  # fmt: skip
            log.info("Strongroom listens on %s", endpoint)
            uvicorn.Server(config).run(sockets=[sock])
        finally:
            worker.shutdown(_GRACE)


@contextmanager
def opened(settings: Settings, ambient: Ambient | None = None) -> Iterator[House]:
    """Opens catalog (migrated), store, keys and jobs; closes them."""
    ambient = ambient or Machine()
    catalog = open_catalog(settings.catalog_url)
    try:
        migrate(catalog)
        fresh = _is_new(catalog)
        root = settings.root_key(create=ambient.key if fresh else None)
        store = open_store(settings.store_url)
        try:
            leased = LeasedJobs(catalog, ambient)
            scratch = settings.data_dir / "scratch"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(mode=0o700)
            options = Options(reclaim_budget=settings.reclaim_budget)
            context = Context(catalog, store, leased, engines(), RootKey(root), Sealer(root), ambient, scratch, options)
            yield House(settings, context, leased)
        finally:
            store.close()
    finally:
        catalog.close()


def engines() -> Mapping[str, Engine]:
    """The engines of this step, by name."""
    return {engine.name: engine for engine in (RedisEngine(), MongoEngine())}


def _begin(house: House, endpoint: str) -> None:
    ctx = house.context
    take_possession(ctx)
    if not recognise(ctx, house.settings.data_dir / "incarnation"):
        log.warning("this catalog is not the one that ran here last: builds of before are failed, lineages are compared first")
    _found(house, endpoint)
    if not ctx.catalog.postgres:
        with ctx.catalog.write() as conn:
            forget_leases(conn)


def _is_new(catalog: Catalog) -> bool:
    with catalog.read() as conn:
        return conn.execute(sa.select(t.installation.c.id)).first() is None


def _found(house: House, endpoint: str) -> None:
    """The first start makes an account and writes its credentials before the account is committed: no account without them."""
    ctx, file = house.context, house.settings.credentials_file
    password = secrets.token_urlsafe(18)
    hashed: str | None = None
    with ctx.catalog.read() as conn:
        founded = conn.execute(sa.select(identity.account.c.id)).first() is not None
    if not founded:
        hashed = Passwords().hash(password)
        with ctx.catalog.write() as conn:
            made = accounts.found(conn, ctx.ambient, "strongroom", "default", "admin", hashed)
            key = accounts.create_access_key(conn, ctx.ambient, ctx.sealer, made.user)
            _write_private(
                file,
                {
                    "domain": "strongroom", "user": "admin", "password": password, "project_id": made.project,
                    "access_key": key.id, "secret_key": key.secret, "endpoint": endpoint,
                },
            )  # fmt: skip
    elif file.exists():
        told = json.loads(file.read_text("utf-8"))
        if told.get("endpoint") != endpoint:
            _write_private(file, {**told, "endpoint": endpoint})


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


def _rate(rate: RequestRate | None) -> Rate | None:
    return None if rate is None else Rate(rate.per_second, rate.burst)
