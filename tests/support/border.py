"""The HTTP border for tests: a real catalog in a file, a clock that stands still, and a client that opens no socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from argon2 import PasswordHasher
from fastapi import APIRouter, FastAPI

from strongroom.ambient import Machine
from strongroom.api.app import build_app
from strongroom.api.services import Limits, Services
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.catalog.tables import metadata
from strongroom.identity import accounts, tables
from strongroom.identity.accounts import FirstStart
from strongroom.identity.passwords import Passwords
from strongroom.identity.secrets import Sealer

PASSWORD = "Correct-horse-7"
ROOT_KEY = bytes(range(32))
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()


class Clock(Machine):
    """Real ids and keys, but time stands still until a test moves it."""

    def __init__(self, now: float = NOON) -> None:
        self.seconds = now

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def quick_passwords() -> Passwords:
    """Argon2 at its cheapest."""
    return Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


def new_catalog(folder: Path) -> Catalog:
    """An empty catalog with all tables."""
    catalog = open_catalog(f"sqlite:///{folder}/catalog.db")
    metadata.create_all(catalog.engine)
    return catalog


@dataclass
class House:
    """A founded account, its services, and ways to ask them."""

    services: Services
    clock: Clock
    first: FirstStart
    app: FastAPI

    @property
    def project(self) -> str:
        return self.first.founded.project

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        **more: Any,
    ) -> httpx.Response:
        """Asks the app without a socket; the path goes out as it is."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, client=("192.0.2.7", 4711))
            async with httpx.AsyncClient(transport=transport, base_url="http://strongroom.test") as client:
                return await client.request(method, path, headers=headers, **more)

        return asyncio.run(ask())

    def login(self, user: str = "admin", password: str = PASSWORD, scope: Any = None) -> httpx.Response:
        """POST /v3/auth/tokens by password, for the first project unless said otherwise."""
        proof = {"user": {"name": user, "password": password, "domain": {"name": "strongroom"}}}
        identity = {"methods": ["password"], "password": proof}
        chosen = {"project": {"id": self.project}} if scope is None else scope
        return self.request("POST", "/v3/auth/tokens", json={"auth": {"identity": identity, "scope": chosen}})

    def token(self, user: str = "admin", password: str = PASSWORD, scope: Any = None) -> dict[str, str]:
        """The header that carries a fresh token."""
        answer = self.login(user, password, scope)
        assert answer.status_code == 201, answer.text
        return {"X-Auth-Token": answer.headers["X-Subject-Token"]}

    def new_user(self, name: str, policy: str | None, project: str = "") -> str:
        """A user with the usual password and one policy."""
        catalog, clock = self.services.catalog, self.clock
        stored = self.services.passwords.hash(PASSWORD)
        with catalog.write() as conn:
            user = accounts.create_user(conn, clock, self.first.founded.account, name, stored)
            if policy is not None:
                accounts.grant(conn, clock, user, policy, project)
        return user


def build_house(folder: Path, routers: Sequence[APIRouter] = (), limits: Limits | None = None) -> House:
    """A founded account on a fresh catalog, with the border around it."""
    clock, sealer, passwords = Clock(), Sealer(ROOT_KEY), quick_passwords()
    catalog = new_catalog(folder)
    first = accounts.first_start(catalog, clock, sealer, password_hash=passwords.hash(PASSWORD))
    assert first is not None
    services = Services(catalog, clock, sealer, passwords, limits or Limits())
    return House(services, clock, first, build_app(services, routers))


__all__ = ["NOON", "PASSWORD", "Clock", "House", "build_house", "new_catalog", "quick_passwords", "tables"]
