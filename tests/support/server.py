"""A real server process on a free loopback port, clients for it, and more accounts and users in its catalog."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.http.http_config import HttpConfig
from huaweicloudsdkgaussdbfornosql.v3 import GaussDBforNoSQLClient, ListJobsRequest

from strongroom.ambient import Machine
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.cli.client import Signer
from strongroom.identity import accounts
from strongroom.identity import tables as identity
from strongroom.identity.passwords import Passwords
from strongroom.identity.secrets import Sealer
from strongroom.settings import Settings
from support.own_backup import is_own


@dataclass(frozen=True, slots=True)
class Keys:
    """What somebody enters with, and where they belong."""

    account: str  # id
    domain: str  # the account's name
    project: str
    user: str  # name
    password: str
    access_key: str
    secret_key: str


class ServerProcess:
    """`strongroom serve` on a data folder."""

    def __init__(self, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._environ = {**os.environ, **(environ or {})}
        self._log = folder.parent / f"{folder.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> ServerProcess:
        """Starts it and waits until it answers."""
        begin = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "strongroom", "serve", "--data", str(self.folder), "--port", "0"],
                env=self._environ, stdout=log, stderr=log,
            )  # fmt: skip
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the server ended:\n{self.log[begin:]}"
            if "listens on" in self.log[begin:] and self._ready():
                return self
            time.sleep(0.05)
        raise AssertionError(f"the server does not answer:\n{self.log[begin:]}")

    def _ready(self) -> bool:
        try:
            with self.http(signed=False) as client:
                return client.get("/readyz", timeout=2).status_code == 200
        except (httpx.HTTPError, OSError):
            return False

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    @property
    def credentials(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / "credentials.json").read_text("utf-8"))
        return found

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                return self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self.process.returncode

    def __enter__(self) -> ServerProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def rss_anon(self) -> int:
        """Bytes of anonymous memory that the process holds now."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    # ---- the catalog from outside ---------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """What the process was started with."""
        return Settings.load(self.folder, self._environ)

    @contextlib.contextmanager
    def catalog(self) -> Iterator[Catalog]:
        """The server's own catalog, opened a second time."""
        opened = open_catalog(self.settings.catalog_url)
        try:
            yield opened
        finally:
            opened.close()

    @property
    def owner(self) -> Keys:
        """The administrator that the first start made."""
        told = self.credentials
        with self.catalog() as catalog, catalog.read() as conn:
            account = conn.execute(sa.select(identity.account.c.id).where(identity.account.c.name == told["domain"])).scalar_one()
        return Keys(
            account, told["domain"], told["project_id"], told["user"], told["password"], told["access_key"], told["secret_key"]
        )  # fmt: skip

    def new_account(self, name: str) -> Keys:
        """Another account with a project and an administrator."""
        password, ambient = f"Password of {name} 1", Machine()
        with self.catalog() as catalog, catalog.write() as conn:
            made = accounts.found(conn, ambient, name, "default", "admin", Passwords().hash(password))
            key = accounts.create_access_key(conn, ambient, self._sealer(), made.user)
        return Keys(made.account, name, made.project, "admin", password, key.id, key.secret)

    def new_user(self, owner: Keys, name: str, *policies: str | Mapping[str, Any], project: str = "") -> Keys:
        """A user of the owner's account with these policies: names of built-in ones, or documents."""
        password, ambient = f"Password of {name} 1", Machine()
        with self.catalog() as catalog, catalog.write() as conn:
            user = accounts.create_user(conn, ambient, owner.account, name, Passwords().hash(password))
            for number, policy in enumerate(policies):
                if not isinstance(policy, str):
                    policy = accounts.put_policy(conn, ambient, owner.account, f"{name}-{number}", json.dumps(policy))
                accounts.grant(conn, ambient, user, policy, project)
            key = accounts.create_access_key(conn, ambient, self._sealer(), user)
        return Keys(owner.account, owner.domain, owner.project, name, password, key.id, key.secret)

    def _sealer(self) -> Sealer:
        return Sealer(self.settings.root_key())

    # ---- clients ------------------------------------------------------------------------------------------------------

    def sdk(self, keys: Keys | None = None) -> GaussDBforNoSQLClient:
        """The public SDK's client with the owner's keys, or somebody's."""
        who = keys or self.owner
        signs, told = BasicCredentials(who.access_key, who.secret_key, who.project), self.credentials
        builder = GaussDBforNoSQLClient.new_builder().with_credentials(signs).with_endpoint(told["endpoint"])
        if "ca_file" in told:
            config = HttpConfig.get_default_config()
            config.ssl_ca_cert = told["ca_file"]
            builder = builder.with_http_config(config)
        return builder.build()

    def http(self, keys: Keys | None = None, *, signed: bool = True) -> httpx.Client:
        """A plain HTTP client that signs as the owner or as somebody, or not at all; the caller closes it."""
        told, auth = self.credentials, None
        if signed:
            who = keys or self.owner
            auth = Signer(who.access_key, who.secret_key, time.time)
        trust = ssl.create_default_context(cafile=told["ca_file"]) if "ca_file" in told else True
        return httpx.Client(base_url=told["endpoint"], auth=auth, trust_env=False, timeout=60, verify=trust)

    def token(self, keys: Keys | None = None) -> str:
        """A fresh token of the owner or of somebody, for their project."""
        who = keys or self.owner
        user = {"name": who.user, "password": who.password, "domain": {"name": who.domain}}
        identity = {"methods": ["password"], "password": {"user": user}}
        body = {"auth": {"identity": identity, "scope": {"project": {"id": who.project}}}}
        with self.http(signed=False) as client:
            answer = client.post("/v3/auth/tokens", json=body)
        assert answer.status_code == 201, answer.text
        return answer.headers["X-Subject-Token"]

    def cli(self, *words: str, stdin: str | None = None, status: int = 0) -> Any:
        """Runs the command line with --json and returns what it says."""
        done = subprocess.run(
            [sys.executable, "-m", "strongroom", *words, "--data", str(self.folder), "--json"],
            input=stdin, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def wait(self, job_id: str, seconds: float = 60) -> Any:
        """The job as the SDK shows it once it has ended."""
        end = time.monotonic() + seconds
        with contextlib.closing(self.sdk()) as client:
            while time.monotonic() < end:
                (job,) = client.list_jobs(ListJobsRequest(id=job_id)).jobs
                if job.status != "Running":
                    return job
                time.sleep(0.1)
        raise AssertionError(f"job {job_id} still runs:\n{self.log[-3000:]}")

    def store_size(self) -> int:
        """Bytes of all objects of the directory store, but for the service's own backup."""
        root = self.folder / "store" / "objects"
        inside = (path for path in root.rglob("*") if not is_own(str(path.relative_to(root))) and path.is_file())
        return sum(path.stat().st_size for path in inside)
