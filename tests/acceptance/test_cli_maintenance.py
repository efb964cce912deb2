"""Looking after the store by commands alone, against a real server, a real Redis and a directory that is damaged by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from strongroom.identity import tables as identity
from support.redis_server import RedisServer, binaries, redis_server
from support.server import Keys, ServerProcess

pytestmark = pytest.mark.skipif(not binaries(), reason="no redis-server here")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis with some data."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        with server.client() as client:
            client.mset({f"key:{number:04}": os.urandom(1000) for number in range(2000)})
        yield server


@pytest.fixture
def server(tmp_path: Path, redis: RedisServer) -> Iterator[ServerProcess]:
    """A Strongroom with that Redis registered as `cache`."""
    with ServerProcess(tmp_path / "data", {"STRONGROOM_REDIS_SERVER": redis.binary}) as running:
        running.cli("instance", "add", "cache", "--engine", "redis", "--address", redis.address)
        yield running


def back_up(server: ServerProcess, name: str) -> str:
    return str(server.cli("backup", "create", "cache", name, "--wait")["backup_id"])


def objects(server: ServerProcess) -> Path:
    return server.folder / "store" / "objects"


def packs(server: ServerProcess) -> list[Path]:
    """The files of packs, the largest first."""
    found = [path for path in objects(server).glob("*/pack/*/*") if path.is_file()]
    return sorted(found, key=lambda path: -path.stat().st_size)


def name_of(server: ServerProcess, path: Path) -> str:
    return str(path.relative_to(objects(server)))


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def plain(server: ServerProcess, *words: str) -> subprocess.CompletedProcess[str]:
    """A command as people run it."""
    command = [sys.executable, "-m", "strongroom", *words, "--data", str(server.folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_damage_is_found_by_a_command_and_healed_by_the_next_backup(server: ServerProcess, redis: RedisServer) -> None:
    """A flipped bit: status 1 and the backup's name; then a new backup is sound and restores, and the old one's restore fails."""
    first = back_up(server, "first")
    assert server.cli("verify", "--all", "--wait")["job"]["result"]["outcome"] == "sound"
    flip(packs(server)[0])
    told = server.cli("verify", "--backup", first, "--wait", status=1)["job"]["result"]
    assert (told["outcome"], told["damaged"]["chunks"]) == ("damaged", 1)
    shown = plain(server, "verify", "--instance", "cache", "--wait")
    assert shown.returncode == 1
    assert first in shown.stdout
    assert name_of(server, packs(server)[0]) in shown.stdout
    assert "damaged backups: 1." in shown.stderr
    second = back_up(server, "second")
    assert server.cli("verify", "--backup", second, "--wait")["job"]["result"]["outcome"] == "sound"
    with redis.client() as client:
        before = client.execute_command("DEBUG", "DIGEST")
        server.cli("backup", "restore", first, "--into", "cache", "--overwrite", "--wait", status=1)
        client.flushall()
        server.cli("backup", "restore", second, "--into", "cache", "--overwrite", "--wait")
        assert client.execute_command("DEBUG", "DIGEST") == before


def test_a_sample_is_asked_for_by_percent(server: ServerProcess) -> None:
    """And what is none is wrong use."""
    backup = back_up(server, "first")
    result = server.cli("verify", "--backup", backup, "--sample", "10", "--wait")["job"]["result"]
    assert (result["outcome"], result["sample"]) == ("sound", 10.0)
    for words in (("--sample", "0"), ("--sample", "101"), ("--all", "--backup", backup), ()):
        assert plain(server, "verify", *(words or ("--wait",))).returncode == 2


def test_unknown_and_missing_objects_are_told_and_unknown_ones_moved_aside(server: ServerProcess) -> None:
    """Reconcile, quarantine, reconcile: by their names, audited, and never what the catalog knows."""
    backup = back_up(server, "first")
    assert server.cli("reconcile", "--wait")["job"]["result"]["outcome"] == "clean"
    (objects(server) / "somebody").mkdir()
    (objects(server) / "somebody" / "else").write_bytes(b"what is this?")
    found = server.cli("reconcile", "--wait")["job"]["result"]
    assert [one["name"] for one in found["unknown"]["objects"]] == ["somebody/else"]
    known = packs(server)[0]
    server.cli("quarantine", "somebody/else", name_of(server, known), status=1)
    assert (objects(server) / "somebody" / "else").exists()
    assert known.exists()
    (moved,) = server.cli("quarantine", "somebody/else")["quarantined"]
    assert (objects(server) / moved["moved_to"]).read_bytes() == b"what is this?"
    assert not (objects(server) / "somebody" / "else").exists()
    assert "clean" in plain(server, "reconcile", "--wait").stdout
    gone = name_of(server, known)
    known.unlink()
    told = server.cli("reconcile", "--wait", status=1)["job"]["result"]
    assert [(one["name"], one["backups"]) for one in told["missing"]["objects"]] == [(gone, [backup])]
    shown = plain(server, "reconcile", "--wait")
    assert shown.returncode == 1
    assert gone in shown.stdout
    with server.catalog() as catalog, catalog.read() as conn:
        events = {row.event for row in conn.execute(sa.select(identity.audit.c.event))}
    assert {"StrongroomReconcile", "StrongroomQuarantine"} <= events


def test_without_wait_the_job_is_named_and_its_result_is_found_by_it(server: ServerProcess) -> None:
    """The answer is the job's id; the job's own call has the result."""
    back_up(server, "first")
    for words, outcome in ((("verify", "--all"), "sound"), (("reconcile", "--close-late"), "clean")):
        job = server.cli(*words)["job_id"]
        assert server.cli("job", "watch", job)["result"]["outcome"] == outcome
        assert "strongroom job show" in plain(server, *words).stdout


# ---- who may ------------------------------------------------------------------------------------------------------------


def ask(server: ServerProcess, keys: Keys, path: str, body: dict[str, Any]) -> httpx.Response:
    with server.http(keys) as http:
        return http.post(f"/strongroom/v1/{keys.project}/{path}", json=body)


CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("verifications", {}),
    ("reconciliations", {}),
    ("quarantine", {"names": ["somebody/else"]}),
)


def test_users_verify_by_permission_and_only_the_account_s_administrator_does_the_rest(server: ServerProcess) -> None:
    """A reader may nothing here, an operator verifies, and not even a project's administrator reconciles or moves."""
    users = {role: server.new_user(server.owner, f"user-{role}", role) for role in ("reader", "operator", "administrator")}
    allowed = {role: [ask(server, user, *call).status_code for call in CALLS] for role, user in users.items()}
    assert allowed == {"reader": [403, 403, 403], "operator": [202, 403, 403], "administrator": [202, 403, 403]}
    assert [ask(server, server.owner, *call).status_code for call in CALLS] == [202, 202, 400]


def test_another_tenant_learns_nothing_and_moves_nothing(server: ServerProcess) -> None:
    """Its administrator's reconciliation is empty beside our damage; our backup, instance and objects are nothing to it."""
    backup = back_up(server, "first")
    (instance,) = server.cli("instance", "list")["instances"]
    known = packs(server)[0]
    (known.parent / ("f" * 32)).write_bytes(b"late")
    (objects(server) / "somebody").mkdir()
    (objects(server) / "somebody" / "else").write_bytes(b"foreign")
    unknown = name_of(server, known.parent / ("f" * 32))
    known.unlink()
    theirs = server.new_account("theirs")
    for path in ("verifications", "reconciliations"):
        job = ask(server, theirs, path, {}).json()["job_id"]
        result = ended(server, theirs, job)
        assert result["outcome"] in ("sound", "clean"), result
        assert backup not in str(result)
        assert unknown not in str(result)
    assert ask(server, theirs, "verifications", {"backup_id": backup}).json()["error_code"] == "DBS.201214"
    assert ask(server, theirs, "verifications", {"instance_id": instance["id"]}).json()["error_code"] == "DBS.200002"
    for name in (unknown, name_of(server, known), packs_name(known, "0"), "somebody/else", "nothing/there"):
        answer = ask(server, theirs, "quarantine", {"names": [name]})
        assert answer.status_code == 400
        assert f"there is no unknown object '{name}'" in answer.json()["error_msg"]
    assert (objects(server) / unknown).exists()
    found = server.cli("reconcile", "--wait", status=1)["job"]["result"]
    assert {one["name"] for one in found["unknown"]["objects"]} == {unknown, "somebody/else"}


def packs_name(path: Path, digit: str) -> str:
    """The name of an object that is not there, beside one that is."""
    return "/".join([*path.parts[-4:-1], digit * 32])


def ended(server: ServerProcess, keys: Keys, job: str) -> Any:
    """The result of somebody's job."""
    with server.http(keys) as http:
        for _ in range(600):
            one = http.get(f"/strongroom/v1/{keys.project}/jobs/{job}").json()
            if one["status"] != "Running":
                assert one["status"] == "Completed", one
                return one["result"]
    raise AssertionError(f"job {job} still runs")


def test_what_a_call_does_not_take_is_a_400(server: ServerProcess) -> None:
    """With the contract's error form."""
    for path, body in (
        ("verifications", {"sample": 0}),
        ("verifications", {"sample": 100.1}),
        ("verifications", {"backup_id": "x"}),
        ("verifications", {"backup_id": "0" * 32 + "br14", "instance_id": "0" * 32 + "in14"}),
        ("reconciliations", {"close_late": "perhaps"}),
        ("quarantine", {"names": []}),
        ("quarantine", {"names": ["a"] * 101}),
        ("quarantine", {}),
        ("quarantine", {"names": ["../credentials.json"]}),
        ("quarantine", {"names": ["a" * 901]}),
    ):
        answer = ask(server, server.owner, path, body)
        assert answer.status_code == 400, (path, body)
        assert set(answer.json()) == {"error_code", "error_msg"}


def tried(server: ServerProcess) -> list[Any]:
    """Test restores, the newest first."""
    return [one for one in server.cli("job", "list")["jobs"] if one["name"] == "TestRestore"]


def test_a_restore_is_tried_out_by_a_command(server: ServerProcess, redis: RedisServer) -> None:
    """The newest backup of an instance, in a server that is thrown away; wrong use and a wrong id are told."""
    back_up(server, "first")
    second = back_up(server, "second")
    told = server.cli("verify", "--restore", "--instance", "cache", "--wait")["job"]
    assert (told["name"], told["result"]["backup"], told["result"]["outcome"]) == ("TestRestore", second, "sound")
    with redis.client() as client:
        assert told["result"]["found"] == told["result"]["expected"] == {"keys in database 0": client.dbsize()}
    shown = plain(server, "verify", "--restore", "--backup", second, "--wait")
    assert shown.returncode == 0
    assert "sound" in shown.stdout
    assert "keys in database 0" in shown.stdout
    assert list((server.folder / "scratch").iterdir()) == []
    assert server.cli("schedule", "test-restores", "cache") == {"every_days": None}
    before = len(tried(server))
    assert server.cli("schedule", "test-restores", "cache", "--every", "7") == {"every_days": 7}
    end = time.monotonic() + 60
    while len(jobs := tried(server)) == before or jobs[0]["status"] != "Completed":  # for the first time at once
        assert time.monotonic() < end, jobs
        time.sleep(0.2)
    assert "every 7 days" in plain(server, "schedule", "test-restores", "cache").stdout
    assert server.cli("schedule", "test-restores", "cache", "--off") == {"every_days": None}
    assert plain(server, "verify", "--restore", "--all").returncode == 2
    assert plain(server, "verify", "--restore", "--backup", "0" * 32 + "br14").returncode == 1
