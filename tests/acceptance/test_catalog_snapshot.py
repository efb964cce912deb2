"""The service's own backup on a real server: the database is lost, and what no manifest holds is there again."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.catalog import tables as t
from support.redis_server import RedisServer, binaries, redis_server
from support.server import Keys, ServerProcess

pytestmark = pytest.mark.skipif(not binaries(), reason="no redis-server here")

READS = {"Version": "5.0", "Statement": [{"Effect": "Allow", "Action": ["nosql:*:list", "nosql:*:get"]}]}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path, password="secret-word") as server:
        with server.client() as client:
            client.mset({f"key:{number:04}": "value" * 50 for number in range(2000)})
        yield server


def furnished(server: ServerProcess, redis: RedisServer) -> tuple[Keys, str, str]:
    """An instance with a password, limits, tags and a schedule, a user with a policy, a quota, two backups, one of them held."""
    words = ("instance", "add", "cache", "--engine", "redis", "--address", redis.address, "--password-stdin")
    server.cli(*words, stdin="secret-word\n")
    server.cli("schedule", "set", "cache", "--keep-days", "7", "--window", "02:00-03:00", "--days", "1,3")
    server.cli("instance", "limit", "cache", "--speed", "50M")
    free, held = (server.cli("backup", "create", "cache", name, "--wait")["backup_id"] for name in ("first", "second"))
    server.cli("backup", "hold", held, "--reason", "audit of May")
    return server.new_user(server.owner, "ann", READS, project=server.owner.project), free, held


def shown(server: ServerProcess, ann: Keys) -> dict[str, Any]:
    """What users see of all this, and that ann may look and not touch."""
    owner = server.owner
    server.token(owner)
    server.token(ann)
    with server.http(ann) as client:
        listed = client.get(f"/v4/{owner.project}/backups")
        assert listed.status_code == 200, listed.text
        assert client.delete(f"/v3/{owner.project}/backups/{listed.json()['backups'][0]['id']}").status_code == 403
    return {
        "users": [(one["name"], one["id"]) for one in server.cli("user", "list")["users"]],
        "policies": server.cli("policy", "list"),
        "schedule": server.cli("schedule", "show", "cache"),
        "instances": server.cli("instance", "list"),
        "limits": server.cli("instance", "limit", "cache"),
        "backups": holds(server),
    }


def snapshots(server: ServerProcess) -> set[str]:
    """Their names in the store."""
    return {path.name for path in (server.folder / "store").rglob("catalog/*")}


def holds(server: ServerProcess) -> dict[str, str | None]:
    """Why each backup is held."""
    keys = [one["id"] for one in server.cli("backup", "list")["backups"]]
    return {key: server.cli("backup", "show", key)["held"] for key in keys}


def test_everything_is_there_after_the_database_was_lost(tmp_path: Path, redis: RedisServer) -> None:
    """Users sign in, policies decide, holds hold, the schedule and the limits stand, the trail verifies against a head that was
    kept; and a backup is taken without anybody giving the password again."""
    with ServerProcess(tmp_path / "data") as server:
        ann, free, held = furnished(server, redis)
        before = shown(server, ann)
        head = server.cli("audit", "verify")["head"]
        server.stop()
        for file in server.folder.glob("catalog.db*"):
            file.unlink()
        report = server.cli("catalog", "rebuild")["report"]
        assert any("is the base: the catalog as it was at" in line for line in report)
        assert any("the credentials in" in line and "still enter" in line for line in report)
        server.start()
        assert shown(server, ann) == before
        assert server.cli("audit", "verify", "--kept", head)["head"]
        server.cli("backup", "delete", held, "--yes", status=1)
        server.cli("backup", "delete", free, "--yes", "--wait")
        assert server.cli("backup", "create", "cache", "third", "--wait")["job"]["status"] == "Completed"
        assert server.cli("reconcile", "--wait")["job"]["result"]["outcome"] == "clean"


def test_with_the_whole_folder_lost_a_root_key_and_the_store_suffice(tmp_path: Path, redis: RedisServer) -> None:
    """The server is killed some seconds after a change. On another machine the administrator gets a fresh access key, the old
    ones still sign, and the restored database is what it was."""
    with ServerProcess(tmp_path / "data") as server:
        ann, free, held = furnished(server, redis)
        owner = server.owner
        server.stop()  # a first snapshot
        server.start()
        server.cli("backup", "hold", free, "--reason", "a hold in the last minute")
        before = snapshots(server)
        with server.catalog() as catalog, catalog.write() as conn:  # a minute later
            conn.execute(sa.update(t.installation).values(snapshot_at=t.installation.c.snapshot_at - 60))
        end = time.monotonic() + 60
        while snapshots(server) == before:
            assert time.monotonic() < end, "no snapshot was put"
            time.sleep(0.1)
        server.kill()
        other = tmp_path / "other"
        other.mkdir()
        shutil.copytree(server.folder / "store", other / "store")
        shutil.copy(server.folder / "root.key", other / "root.key")
    with_key = ServerProcess(other)
    report = with_key.cli("catalog", "rebuild")["report"]
    assert any("a new access key of admin is in" in line for line in report)
    assert json.loads((other / "credentials.json").read_text())["access_key"] != owner.access_key
    assert (other / "credentials.json").stat().st_mode & 0o077 == 0
    with with_key as server:
        assert holds(server) == {free: "a hold in the last minute", held: "audit of May"}
        for keys in (owner, ann):
            with server.http(keys) as client:
                assert client.get(f"/v4/{owner.project}/backups").status_code == 200
        with redis.client() as client:
            client.flushall()
        server.cli("backup", "restore", held, "--into", "cache", "--overwrite", "--wait")
        with redis.client() as client:
            assert client.dbsize() == 2000
        assert server.cli("audit", "verify")["head"]
