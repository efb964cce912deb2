"""Reading back after a delete by a real server on a directory; and on PostgreSQL, whose locks and plans are its own."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom.backups.context import Options
from strongroom.catalog.database import open_catalog
from strongroom.storage.opening import open_store
from support.damage import Keeper, flip_chunk
from support.redis_server import RedisServer, binaries, redis_server
from support.server import ServerProcess
from support.vault import generations


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis with some data."""
    with redis_server(tmp_path) as server:
        with server.client() as client:
            client.mset({f"key:{number:04}": os.urandom(1000) for number in range(2000)})
        yield server


def back_up(server: ServerProcess, name: str) -> str:
    return str(server.cli("backup", "create", "cache", name, "--wait")["backup_id"])


@pytest.mark.skipif(not binaries(), reason="no redis-server here")
def test_a_bit_that_flips_on_the_disk_is_in_the_receipt_of_the_neighbour_s_delete(tmp_path: Path, redis: RedisServer) -> None:
    """Three backups; the first is deleted: what it shared is read back and sound. A file of the store is damaged and the second
    deleted: the receipt by the command line names file and backup, the next backup restores, and is sound."""
    with ServerProcess(tmp_path / "data") as server:
        server.cli("instance", "add", "cache", "--engine", "redis", "--address", redis.address)
        first = back_up(server, "first")
        rnd = random.Random(1)
        backups = []
        for name in ("second", "third"):
            with redis.client() as client:
                client.mset({f"key:{number:04}": rnd.randbytes(1000) for number in rnd.sample(range(2000), 100)})
            backups.append(back_up(server, name))
        second, third = backups
        clean = server.cli("backup", "delete", first, "--yes", "--wait")["deletions"][0]["receipt"]["verified"]
        assert clean["bytes"] >= clean["of_bytes"] > 1_000_000
        assert (clean["damaged_objects"], clean["ended_early"]) == (0, None)
        file = max((tmp_path / "data" / "store").glob("*/*/**/*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
        data = bytearray(file.read_bytes())
        for place in range(100, len(data) - 50_000, 2_000):
            data[place] ^= 1
        file.chmod(0o600)
        file.write_bytes(bytes(data))
        server.cli("backup", "delete", second, "--yes", "--wait")
        told = server.cli("deletion", "show", second)["receipt"]["verified"]
        assert told["damaged_objects"] >= 1
        assert any(one["backups"] == [third] for one in told["damaged"])
        assert told["ended_early"] is None
        fourth = back_up(server, "fourth")
        assert server.cli("verify", "--backup", fourth, "--wait")["job"]["result"]["outcome"] == "sound"
        assert server.cli("verify", "--backup", third, "--wait", status=1)


def test_on_postgresql_shared_data_is_read_back_and_damage_found(tmp_path: Path, postgres_url: str) -> None:
    """With rewriting: of four generations each delete reads what was shared; a flipped chunk becomes suspect once, and the next
    backup is whole."""
    catalog, store = open_catalog(postgres_url), open_store(f"file://{tmp_path}/store", {})
    vault = Keeper(tmp_path, store, catalog, Options(chunk_average=4096, pack_target=32768))
    made = list(generations(4))
    keys = [vault.backup(data) for data in made]
    vault.delete(keys[0])
    vault.run()
    found = vault.receipt(keys[0])["verified"]
    assert found["bytes"] >= found["of_bytes"] > 50_000
    assert (found["damaged"], found["ended_early"]) == ([], None)
    still = next(name for name in vault.objects("pack") if name.split("/")[2].startswith("1."))
    flip_chunk(vault, still, *(held.numbers.tolist()[0] for held in vault.index(still).packs.values()))
    vault.delete(keys[1])
    vault.run()
    found = vault.receipt(keys[1])["verified"]
    assert [(one["name"], one["chunks"]) for one in found["damaged"]] == [(still, 1)]
    assert sum(len(numbers) for numbers in vault.suspects().values()) == 1
    newest = vault.backup(made[-1])
    assert vault.restored(newest) == made[-1]
    store.close()
    catalog.close()
