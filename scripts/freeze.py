"""Freezes a release: what this version's server leaves behind becomes a fixture that every later version must read.

Started by scripts/freeze. A real Redis, a real MongoDB and a real server fill a data folder with its store by the command line
and the API. What the tests know of it is written beside it, with the release's schema on PostgreSQL. Keys and passwords in it
are made for it and open nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

import strongroom
from strongroom.catalog.database import open_catalog
from strongroom.catalog.migrating import migrate
from support.content import mongo_content, redis_content
from support.mongodb_server import PASSWORDS, MongoServer
from support.postgres import postgres_server, programs
from support.redis_server import RedisServer, binaries, is_valkey, redis_server, version_of
from support.released import FIXTURES, HELD, HOOK_PORT, MONGO_PORT, MONGO_USER, REDIS_PASSWORD, REDIS_PORT, digests
from support.server import Keys, ServerProcess

LARGEST = 1_500_000
"""Bytes of the packed data folder: it stays in the repository for ever."""

TRAIL = 2_000
"""Audit records beyond which the oldest of them lie in a segment in the store."""

SLOW = "64K"
"""Bytes a second of the source of the backup that the server is stopped in."""

WORDS = ("backup", "delete", "chain", "chunk", "pack", "grave", "manifest", "lineage", "promise", "receipt", "store", "sweep")

READS = {"Version": "5.0", "Statement": [{"Effect": "Allow", "Action": ["nosql:*:list", "nosql:*:get"]}]}


class Story:
    """The life of one data folder; `facts` becomes release.json."""

    def __init__(self, server: ServerProcess, cache: RedisServer, docs: MongoServer, work: Path) -> None:
        self.server, self.cache, self.docs, self.work = server, cache, docs, work
        self.facts: dict[str, Any] = {"users": {}, "backups": {}}
        self._random = random.Random(1)

    def tell(self) -> None:
        """All of it, in order; at the end the server is stopped in the middle of its work."""
        server = self.server
        self.people()
        self.instances()
        self.chain()
        self.documents()
        self.a_failure()
        self.much_audit()
        self.facts["head"] = server.cli("audit", "verify")["head"]
        self.facts["listed"] = sorted(one["id"] for one in server.cli("backup", "list")["backups"])
        assert server.stop() == 0  # puts the newest snapshot of the catalog
        server.start()
        self.unfinished()
        assert server.stop() == 0
        assert self._states() == {"QUEUED"}, "the backup was not interrupted"

    def people(self) -> None:
        """Ann has a key and a policy of the account's own, Bob a password and what his group may."""
        server, owner = self.server, self.server.owner
        document = self.work / "reads.json"
        document.write_text(json.dumps(READS))
        server.cli("policy", "put", "reads", str(document))
        server.cli("group", "add", "operators")
        server.cli("group", "grant", "operators", "operator", "--project", owner.project)
        self.facts["users"]["admin"] = _as_facts(owner)
        for name in ("ann", "bob"):
            password = f"{name.title()} of the fixture 1"
            server.cli("user", "add", name, "--password-stdin", stdin=f"{password}\n")
            key = server.cli("key", "add", name)
            keys = Keys(owner.account, owner.domain, owner.project, name, password, key["access_key"], key["secret_key"])
            self.facts["users"][name] = _as_facts(keys)
        server.cli("user", "grant", "ann", "reads", "--project", owner.project)
        server.cli("group", "join", "operators", "bob")

    def instances(self) -> None:
        """Both with their passwords; one with tags, the other with a schedule; a webhook and a quota."""
        server = self.server
        words = ("instance", "add", "cache", "--engine", "redis", "--address", self.cache.address, "--password-stdin")
        server.cli(*words, stdin=f"{REDIS_PASSWORD}\n")
        address = f"mongodb://{MONGO_USER}@127.0.0.1:{MONGO_PORT}/"
        words = ("instance", "add", "docs", "--engine", "mongodb", "--address", address, "--password-stdin")
        server.cli(*words, stdin=f"{PASSWORDS[MONGO_USER]}\n")
        server.cli("instance", "tag", "cache", "env=production")
        server.cli("schedule", "set", "docs", "--keep-days", "7", "--window", "02:00-03:00", "--days", "1,3")
        server.cli("quota", "set", "--backups", "100")
        made = server.cli("notify", "add", "team", f"http://127.0.0.1:{HOOK_PORT}/ok")
        self.facts["webhook"] = {"name": "team", "secret": made["secret"]}

    def chain(self) -> None:
        """Three backups of the Redis; the middle one is deleted, and some of what it alone had lies dead in living objects."""
        with self.cache.client() as client:
            client.mset({f"key:{number:04}": self._words() for number in range(600)})
            client.rpush("queue", "first", "second", "third")
            client.sadd("tags", "red", "green", "blue")
            client.zadd("scores", {"one": 1, "more": 2.5})
            client.hset("profile:1", mapping={"name": "Ada", "city": "London"})
            self._back_up("cache", "first", redis_content(client))
            client.mset({f"key:{number:04}": self._words() for number in range(100, 160)})
            client.mset({f"session:{number:04}": self._words() for number in range(60)})
            self._back_up("cache", "second", redis_content(client))
            client.delete(*(f"session:{number:04}" for number in range(60)))
            client.mset({f"key:{number:04}": self._words() for number in range(140, 180)})
            self._back_up("cache", "third", redis_content(client))
        gone = self.facts["backups"].pop("second")["id"]
        self.server.cli("backup", "delete", gone, "--wait", "--yes")
        receipt = self.server.cli("deletion", "show", gone)
        assert receipt["state"] == "done"
        assert receipt["receipt"]["waiting"] > 0, "nothing waits"
        self.facts["deletion"] = receipt

    def documents(self) -> None:
        """Two backups of the MongoDB, the first of them held."""
        with self.docs.client() as client:
            shop = client["shop"]
            shop.orders.insert_many([{"_id": number, "text": self._words(), "paid": False} for number in range(300)])
            shop.orders.create_index("paid")
            shop.people.insert_many([{"_id": name, "mail": f"{name}@example.org"} for name in ("ann", "bob")])
            self._back_up("docs", "shop-first", mongo_content(client, "shop"))
            shop.orders.update_many({"_id": {"$lt": 40}}, {"$set": {"paid": True}})
            self._back_up("docs", "shop-second", mongo_content(client, "shop"))
        self.server.cli("backup", "hold", self.facts["backups"]["shop-first"]["id"], "--reason", HELD)

    def a_failure(self) -> None:
        """A backup that found no source; who is told of it is away, so that it waits to be told."""
        self.docs.stop()
        told = self.server.cli("backup", "create", "docs", "failed", "--wait", status=1)
        self.facts["failed"] = told["backup_id"]

    def much_audit(self) -> None:
        """So many records that the oldest lie in a segment of their own."""
        server = self.server
        path = f"/strongroom/v1/{server.owner.project}/notifications/hours"
        with server.http() as client:
            for number in range(TRAIL):
                answer = client.put(path, json={"hours": 24 + number % 3})
                assert answer.status_code == 200, answer.text

    def unfinished(self) -> None:
        """A backup that is being taken, and a verification that waits behind it, when the server is stopped."""
        server = self.server
        with self.cache.client() as client:
            client.set("large", self._random.randbytes(4 << 20))  # a minute's worth
        server.cli("instance", "limit", "cache", "--speed", SLOW)
        building = server.cli("backup", "create", "cache", "unfinished")
        waiting = server.cli("verify", "--all")
        self.facts["unfinished"] = {"backup": building["backup_id"], "verification": waiting["job_id"]}
        end = time.monotonic() + 60
        while self._states() != {"RUNNING", "QUEUED"}:
            assert time.monotonic() < end, "the backup did not begin"
            time.sleep(0.05)

    def _states(self) -> set[str]:
        with contextlib.closing(sqlite3.connect(self.server.folder / "catalog.db")) as conn:
            return {state for (state,) in conn.execute("SELECT state FROM job WHERE kind IN ('backup', 'verify')")} - {
                "DONE", "FAILED"
            }  # fmt: skip

    def _back_up(self, instance: str, name: str, content: str) -> None:
        made = self.server.cli("backup", "create", instance, name, "--wait")
        self.facts["backups"][name] = {"id": made["backup_id"], "instance": instance, "content": content}

    def _words(self) -> str:
        """A text of some 1,000 bytes that compresses well."""
        return " ".join(self._random.choices(WORDS, k=150))


def _as_facts(keys: Keys) -> dict[str, str]:
    return {name: getattr(keys, name) for name in keys.__slots__}


@contextlib.contextmanager
def documents(folder: Path) -> Iterator[MongoServer]:
    """A MongoDB at the fixture's own port."""
    server = MongoServer(str(folder))
    server.port = MONGO_PORT
    try:
        server.start()
        yield server
    finally:
        server.kill()


def packed(folder: Path) -> bytes:
    """The data folder as an archive: by name, of nobody, of no time; without what a server makes anew."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if info.name in ("data/scratch", "data/lock"):
            return None
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mtime = 0
        return info

    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as archive:
        archive.add(folder, "data", filter=plain)
    return out.getvalue()


def schema() -> str:
    """This version's schema, as PostgreSQL tells it."""
    with postgres_server() as server:
        name = server.create_database()
        catalog = open_catalog(server.url(name))
        migrate(catalog)
        catalog.close()
        folder = programs()
        assert folder is not None
        url = make_url(server.url(name))
        where = ["-h", str(url.query["host"]), "-U", str(url.username), name]
        command = [str(folder / "pg_dump"), "--schema-only", "--no-owner", *where]
        dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = (line for line in dump.splitlines() if line and not line.startswith(("--", "\\")))
    return "\n".join(lines) + "\n"


def freeze(target: Path) -> None:
    """Makes the fixture in a new folder."""
    work = Path(tempfile.mkdtemp(prefix="strongroom-freeze-"))
    binary = min((one for one in binaries() if not is_valkey(one)), key=version_of)  # what it writes, every later one reads
    environment = {"STRONGROOM_RECLAIM_BUDGET": "0", "STRONGROOM_WORKERS": "1", "STRONGROOM_NOTIFY_NETWORKS": "127.0.0.1"}
    try:
        cache_config = {"port": str(REDIS_PORT)}
        (work / "docs").mkdir()
        with (
            redis_server(work, cache_config, password=REDIS_PASSWORD, binary=binary) as cache,
            documents(work / "docs") as docs,
            ServerProcess(work / "data", environment) as server,
        ):
            story = Story(server, cache, docs, work)
            story.tell()
        data = packed(work / "data")
        if len(data) > LARGEST:
            sys.exit(f"the fixture has {len(data):,} bytes, {LARGEST:,} is the most")
        target.mkdir(parents=True)
        (target / "data.tar.gz").write_bytes(data)
        (target / "postgres.sql").write_text(schema(), "utf-8")
        facts = {"version": target.name, "migrations": digests(), **story.facts}
        (target / "release.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", "utf-8")
        print(f"{target}: {len(data):,} bytes")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main() -> None:
    """Freezes this version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=FIXTURES / strongroom.__version__, help="a folder that is not there yet")
    target: Path = parser.parse_args().into
    if target.exists():
        sys.exit(f"{target} is there already: what a release has left never changes")
    freeze(target)


if __name__ == "__main__":
    main()
