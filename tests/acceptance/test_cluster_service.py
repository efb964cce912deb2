"""A Redis Cluster through the whole service: registered, backed up, exported and restored into one of other shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.redis_cluster import redis_cluster
from support.redis_server import binaries
from support.server import ServerProcess

pytestmark = pytest.mark.skipif(not binaries(), reason="no redis-server here")


def test_a_cluster_goes_there_and_back_through_the_service(tmp_path: Path) -> None:
    """By the command line alone; a second backup stores next to nothing; data is replaced only when that is said."""
    binary = binaries()[0]
    with (
        redis_cluster(tmp_path, 3, 1, binary=binary, password="of-a-test") as source,
        redis_cluster(tmp_path, 2, binary=binary) as other,
        ServerProcess(tmp_path / "data") as server,
    ):
        pairs = {f"key:{number}": f"{number}:" + "x" * 200 for number in range(2000)}
        source.set_many(pairs)
        added = server.cli(
            "instance", "add", "sessions", "--engine", "redis", "--address", source.target.address, "--password-stdin",
            stdin="of-a-test\n",
        )  # fmt: skip
        shown = server.cli("instance", "show", "sessions")
        assert (shown["id"], shown["mode"]) == (added["id"], "Cluster")
        server.cli("instance", "add", "empty", "--engine", "redis", "--address", other.target.address)
        first = server.cli("backup", "create", "sessions", "first", "--wait")
        before = server.store_size()
        source.set_many({"one more": "key"})
        second = server.cli("backup", "create", "sessions", "second", "--wait")
        assert server.store_size() - before < 60_000
        told = server.cli("backup", "restore", first["backup_id"], "--into", "empty", "--wait")
        assert told["job"]["result"]["entries"] == 3
        assert other.keys() == {key.encode() for key in pairs}
        refused = server.cli("backup", "restore", second["backup_id"], "--into", "empty", "--wait", status=1)
        assert "holds 2000 keys in 1 databases" in json.dumps(refused)
        server.cli("backup", "restore", second["backup_id"], "--into", "empty", "--overwrite", "--wait")
        assert other.keys() == {key.encode() for key in pairs} | {b"one more"}
        server.cli("backup", "export", second["backup_id"], str(tmp_path / "out"))
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "dump-00000.rdb", "dump-05462.rdb", "dump-10923.rdb", "export.json",
        ]  # fmt: skip
        assert server.stop() == 0
