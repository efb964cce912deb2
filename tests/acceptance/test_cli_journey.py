"""The command line against a real server and a real Redis."""

from __future__ import annotations

import os
import pty
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.catalog import tables as t
from support.redis_server import RedisServer, binaries, redis_server
from support.server import ServerProcess

pytestmark = pytest.mark.skipif(not binaries(), reason="no redis-server here")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis with a password and some data."""
    with redis_server(tmp_path, password="secret-word") as server:
        with server.client() as client:
            client.mset({f"key:{number:04}": os.urandom(1000) for number in range(2000)})
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A Strongroom on a data folder of its own."""
    with ServerProcess(tmp_path / "data") as running:
        yield running


def digest(redis: RedisServer) -> str:
    with redis.client() as client:
        return str(client.execute_command("DEBUG", "DIGEST"))


def add(server: ServerProcess, redis: RedisServer) -> str:
    words = ("instance", "add", "cache", "--engine", "redis", "--address", redis.address, "--password-stdin")
    return str(server.cli(*words, stdin="secret-word\n")["id"])


def back_up(server: ServerProcess, name: str) -> str:
    return str(server.cli("backup", "create", "cache", name, "--wait")["backup_id"])


def test_a_database_is_backed_up_deleted_from_and_restored_by_commands_alone(server: ServerProcess, redis: RedisServer) -> None:
    """Every step answers JSON; the middle delete's receipt is its preview; the last backup restores the digest it had."""
    instance = add(server, redis)
    back_up(server, "first")
    with redis.client() as client:
        client.mset({f"more:{number:04}": os.urandom(1000) for number in range(2000)})
    middle = back_up(server, "second")
    with redis.client() as client:
        client.delete(*(f"more:{number:04}" for number in range(2000)))
    last, wanted = back_up(server, "third"), digest(redis)
    preview = server.cli("backup", "preview", middle)
    assert preview["owned"] > 0
    deleted = server.cli("backup", "delete", middle, "--if-match", preview["version"], "--yes", "--wait")
    (deletion,) = deleted["deletions"]
    for name in ("freed", "waiting", "undecided"):
        assert deletion["receipt"][name] == deletion["promised"][name] == preview[name]
    assert [one["name"] for one in server.cli("backup", "list", "--instance", instance)["backups"]] == ["third", "first"]
    kept = server.cli("backup", "restore", last, "--into", "cache", "--wait", status=1)["job"]
    assert "keys in 1 databases, which a restore would replace" in kept["fail_reason"]
    assert kept["result"]["target_state"] == "as it was: nothing was changed there"
    with redis.client() as client:
        client.set("another", "key")
    job = server.cli("backup", "restore", last, "--into", "cache", "--overwrite", "--wait")["job"]
    assert (job["status"], job["result"]["entries"]) == ("Completed", 1)
    assert job["result"]["bytes"] > 0
    assert digest(redis) == wanted
    assert server.cli("deletion", "list")["deletions"][0]["backup_id"] == middle
    assert server.cli("job", "list", "--status", "Completed")["jobs"]


def test_a_thorough_delete_gives_back_all_that_waits_at_the_stated_price(server: ServerProcess, redis: RedisServer) -> None:
    """Scattered changes; the preview says the price, the receipt what was written, and nothing waits afterwards."""
    add(server, redis)
    rnd = random.Random(4)
    backups = []
    for number in range(4):
        with redis.client() as client:
            client.mset({f"key:{one:05}": rnd.randbytes(500) for one in rnd.sample(range(4000), 4000 if number == 0 else 300)})
        backups.append(back_up(server, f"day-{number}"))
    price = server.cli("backup", "preview", backups[1])["thorough"]
    assert price["gives_back"] > 0
    server.cli("backup", "delete", backups[0], backups[1], "--thorough", "--yes", status=2)
    told = server.cli("backup", "delete", backups[1], "--thorough", "--yes", "--wait")["deletions"][0]["receipt"]
    assert told["thorough"] == {"rewrite": price["rewrite"]}
    assert 0 < told["reclaimed"]["written"] < 1.05 * price["rewrite"] + 4096
    with server.catalog() as catalog, catalog.read() as conn:
        assert conn.execute(sa.select(sa.func.sum(t.object_.c.dead_bytes))).scalar_one() == 0


def test_what_the_api_refuses_is_status_1_and_changes_nothing(server: ServerProcess, redis: RedisServer) -> None:
    """A held backup and one of a moved version stay; released, it goes."""
    add(server, redis)
    backup = back_up(server, "first")
    server.cli("backup", "hold", backup, "--reason", "audit of May")
    server.cli("backup", "delete", backup, "--yes", status=1)
    assert server.cli("backup", "preview", backup)["backups"][0]["refusal"]["code"] == "DBS.212003"
    server.cli("backup", "release", backup)
    old = server.cli("backup", "preview", backup)["version"]
    back_up(server, "second")
    server.cli("backup", "delete", backup, "--if-match", old, "--yes", status=1)
    assert server.cli("backup", "show", backup)["state"] == "COMPLETED"
    server.cli("backup", "delete", backup, "--yes", "--wait")
    server.cli("backup", "show", backup, status=1)
    server.cli("backup", "create", "nobody", "third", status=1)


def test_a_wrong_password_registers_nothing(server: ServerProcess, redis: RedisServer) -> None:
    """The server enters a database before it registers it."""
    words = ("instance", "add", "cache", "--engine", "redis", "--address", redis.address, "--password-stdin")
    server.cli(*words, stdin="wrong\n", status=1)
    assert server.cli("instance", "list")["instances"] == []


def test_a_database_whose_password_was_changed_is_backed_up_again(server: ServerProcess, redis: RedisServer) -> None:
    """After one command; a wrong one changes nothing, and neither password is told anywhere."""
    instance, first = add(server, redis), back_up(server, "first")
    with redis.client() as client:
        client.config_set("requirepass", "changed-word")
    failed = server.cli("backup", "create", "cache", "second", "--wait", status=1)["job"]
    assert "strongroom instance change" in failed["fail_reason"]
    server.cli("instance", "change", "cache", "--password-stdin", stdin="wrong\n", status=1)
    server.cli("instance", "change", "cache", "--address", redis.address, status=1)
    server.cli("instance", "change", "cache", status=2)
    assert server.cli("instance", "change", "cache", "--password-stdin", stdin="changed-word\n")["id"] == instance
    third = back_up(server, "third")
    assert (
        server.cli("backup", "show", third)["parts"][0]["lineage"] == server.cli("backup", "show", first)["parts"][0]["lineage"]
    )
    told = server.cli("audit", "list", "--event", "StrongroomSetInstanceAccess")["records"]
    assert [one["outcome"] for one in told] == ["OK", "REFUSED", "REFUSED"]
    for word in ("changed-word", "secret-word"):
        assert word not in server.log + str(told)


def test_an_instance_is_removed_and_its_manual_backups_stay(server: ServerProcess, redis: RedisServer) -> None:
    """It is gone from the register, its backup from nowhere."""
    add(server, redis)
    backup = back_up(server, "first")
    server.cli("instance", "remove", "cache", "--yes")
    server.cli("instance", "show", "cache", status=1)
    assert [one["id"] for one in server.cli("backup", "list")["backups"]] == [backup]


@pytest.mark.parametrize(("reply", "left"), [("n", 1), ("y", 0)])
def test_on_a_terminal_the_preview_comes_before_the_question(
    server: ServerProcess, redis: RedisServer, reply: str, left: int
) -> None:
    """A no deletes nothing; a yes deletes what was shown."""
    add(server, redis)
    backup = back_up(server, "first")
    shown, status = on_terminal(server, reply, "backup", "delete", backup, "--wait")
    assert shown.index("OWNED") < shown.index("Delete this backup for ever?")
    assert (status, len(server.cli("backup", "list")["backups"])) == (left, left)
    assert ("RECEIPT" in shown) == (reply == "y")


def test_a_catalog_is_rebuilt_by_one_command(server: ServerProcess, redis: RedisServer) -> None:
    """With the catalog's files gone the command brings the backups back under their own ids: as they were held or not, from the
    snapshot that the server put at its end; without one, all of them held."""
    add(server, redis)
    free, held = back_up(server, "first"), back_up(server, "second")
    server.cli("backup", "hold", held, "--reason", "audit of May")
    server.stop()
    for file in server.folder.glob("catalog.db*"):
        file.unlink()
    assert server.cli("catalog", "rebuild")["report"]
    server.start()
    assert server.cli("backup", "show", free)["held"] is None
    assert server.cli("backup", "show", held)["held"] == "audit of May"
    server.stop()
    for file in [*server.folder.glob("catalog.db*"), *(server.folder / "store").rglob("catalog/*")]:
        file.unlink()
    server.cli("catalog", "rebuild")
    server.start()
    assert server.cli("backup", "show", free)["held"] == "recovered by a catalog rebuild"


def on_terminal(server: ServerProcess, reply: str, *words: str) -> tuple[str, int]:
    """Runs a command on a terminal of its own, replies to its question, and returns what was shown and the status."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "strongroom", *words, "--data", str(server.folder)]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    shown, end = "", time.monotonic() + 60
    try:
        while time.monotonic() < end:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed: the command has ended
                break
            asked = "for ever?" in shown
            shown += piece.decode()
            if "for ever?" in shown and not asked:
                os.write(ours, f"{reply}\n".encode())
        return shown, process.wait(30)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
