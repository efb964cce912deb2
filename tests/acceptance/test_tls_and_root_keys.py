"""TLS and the root key on real servers: what the public SDK and the command line meet, and a rotation that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from huaweicloudsdkcore.exceptions.exceptions import ConnectionException
from huaweicloudsdkgaussdbfornosql.v3 import ShowAllInstancesBackupsNewRequest

from support.certificates import self_signed
from support.redis_server import RedisServer, binaries, redis_server
from support.server import ServerProcess


def strongroom(*words: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "strongroom", *words],
        env={**os.environ, **(environ or {})}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


# --- TLS ---------------------------------------------------------------------------------------------------------------


def test_the_sdk_and_the_command_line_speak_tls(tmp_path: Path) -> None:
    """Both trust the certificate that the data folder names; without that trust, and in clear text, nothing is said."""
    certificate, key = self_signed(tmp_path)
    environ = {"STRONGROOM_TLS_CERT": str(certificate), "STRONGROOM_TLS_KEY": str(key)}
    with ServerProcess(tmp_path / "data", environ) as server:
        assert server.credentials["endpoint"].startswith("https://127.0.0.1:")
        assert server.sdk().show_all_instances_backups_new(ShowAllInstancesBackupsNewRequest()).backups == []
        assert server.cli("backup", "list") == {"total_count": 0, "backups": []}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.credentials['endpoint']}/healthz", trust_env=False)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{server.credentials['endpoint'].replace('https', 'http')}/healthz", trust_env=False)
        distrusting = server.sdk()
        distrusting._http_client._verify = True  # the certificates of the machine
        with pytest.raises(ConnectionException):
            distrusting.show_all_instances_backups_new(ShowAllInstancesBackupsNewRequest())
        silent = socket.create_connection(("127.0.0.1", int(server.credentials["endpoint"].rsplit(":", 1)[1])), 5)
        with silent, server.http() as client:  # who only connects and says nothing keeps nobody from entering
            assert client.get("/healthz").status_code == 200


def test_a_server_refuses_other_machines_in_clear_text_and_bad_certificates(tmp_path: Path) -> None:
    """With status 2 and what to do, before anything is made; a file that is no certificate with status 1."""
    data = str(tmp_path / "data")
    refused = strongroom("serve", "--data", data, "--host", "0.0.0.0", "--port", "0")  # noqa: S104
    assert refused.returncode == 2
    assert "--tls-cert" in refused.stderr
    assert not (tmp_path / "data").exists()
    (tmp_path / "bad.pem").write_text("no certificate")
    bad = str(tmp_path / "bad.pem")
    done = strongroom("serve", "--data", data, "--port", "0", "--tls-cert", bad, "--tls-key", bad)
    assert done.returncode == 1
    assert "certificate" in done.stderr
    assert "Traceback" not in done.stderr


# --- the root key ------------------------------------------------------------------------------------------------------

redis_is_here = pytest.mark.skipif(not binaries(), reason="no redis-server here")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path, password="secret-word") as server:
        with server.client() as client:
            client.mset({f"key:{number:04}": os.urandom(1000) for number in range(2000)})
        yield server


def digest(redis: RedisServer) -> str:
    with redis.client() as client:
        return str(client.execute_command("DEBUG", "DIGEST"))


def restored(server: ServerProcess, redis: RedisServer, backup: str) -> str:
    """What the database holds after it was emptied and restored."""
    with redis.client() as client:
        client.flushall()
    assert server.cli("backup", "restore", backup, "--into", "cache", "--wait")["job"]["status"] == "Completed"
    return digest(redis)


@redis_is_here
def test_a_rotated_root_key_restores_what_the_old_one_sealed(tmp_path: Path, redis: RedisServer) -> None:
    """Back up, stop, rotate by command, start: the backup restores, the keys sign, the instance's password opens, another backup
    is taken, and no pack was written. The old key opens nothing any more."""
    with ServerProcess(tmp_path / "data") as server:
        words = ("instance", "add", "cache", "--engine", "redis", "--address", redis.address, "--password-stdin")
        server.cli(*words, stdin="secret-word\n")
        backup = server.cli("backup", "create", "cache", "first", "--wait")["backup_id"]
        wanted = digest(redis)
        in_use = strongroom("key", "rotate", "--data", str(server.folder))
        assert (in_use.returncode, "in use" in in_use.stderr) == (1, True)
        server.stop()
        packs = {path: path.stat().st_mtime_ns for path in (server.folder / "store").rglob("*") if "/pack/" in str(path)}
        old = (server.folder / "root.key").read_text()
        done = strongroom("key", "rotate", "--data", str(server.folder))
        assert done.returncode == 0, done.stderr
        new = (server.folder / "root.key").read_text()
        assert old != new
        assert old.strip() not in done.stdout + done.stderr
        assert new.strip() not in done.stdout + done.stderr
        assert (server.folder / "root.key.old").read_text() == old
        assert not (server.folder / "root.key.next").exists()
        server.start()
        assert restored(server, redis, backup) == wanted
        server.cli("backup", "create", "cache", "second", "--wait")
        assert all(path.stat().st_mtime_ns == before for path, before in packs.items())
        assert server.cli("verify", "--all", "--wait")["job"]["status"] == "Completed"
        server.stop()
        wrong = strongroom("serve", "--data", str(server.folder), "--port", "0", environ={"STRONGROOM_ROOT_KEY": old.strip()})
        assert wrong.returncode == 1
        assert "root key" in wrong.stderr


@redis_is_here
def test_a_rotation_that_is_killed_goes_on_and_its_server_runs_in_between(tmp_path: Path, redis: RedisServer) -> None:
    """kill -9 at several moments: each time a server with what is in the folder restores, and in the end the rotation is done."""
    with ServerProcess(tmp_path / "data") as server:
        words = ("instance", "add", "cache", "--engine", "redis", "--address", redis.address, "--password-stdin")
        server.cli(*words, stdin="secret-word\n")
        backup = server.cli("backup", "create", "cache", "first", "--wait")["backup_id"]
        wanted = digest(redis)
        server.stop()
        old = (server.folder / "root.key").read_text()
        for delay in (0.0, 0.1):
            command = [sys.executable, "-m", "strongroom", "key", "rotate", "--data", str(server.folder)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not (server.folder / "root.key.next").exists():
                time.sleep(0.001)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            server.start()
            assert restored(server, redis, backup) == wanted
            server.stop()
        assert strongroom("key", "rotate", "--data", str(server.folder)).returncode == 0
        assert (server.folder / "root.key").read_text() != old
        server.start()
        assert restored(server, redis, backup) == wanted


def test_a_root_key_by_command_and_its_rotation_by_another(tmp_path: Path) -> None:
    """Nothing is in the data folder; after the rotation the new command alone starts the server, the old one does not."""
    commands = {}
    for name in ("old", "new"):
        (tmp_path / name).write_text(os.urandom(32).hex())
        commands[name] = f"cat {tmp_path / name}"
    with ServerProcess(tmp_path / "data", {"STRONGROOM_ROOT_KEY_COMMAND": commands["old"]}) as server:
        server.stop()
        both = {"STRONGROOM_ROOT_KEY_COMMAND": commands["old"], "STRONGROOM_NEXT_ROOT_KEY_COMMAND": commands["new"]}
        done = strongroom("key", "rotate", "--data", str(server.folder), environ=both)
        assert done.returncode == 0, done.stderr
        assert not list(server.folder.glob("root.key*"))
    stopped = strongroom(
        "serve", "--data", str(tmp_path / "data"), "--port", "0", environ={"STRONGROOM_ROOT_KEY_COMMAND": commands["old"]}
    )
    assert stopped.returncode == 1
    with ServerProcess(tmp_path / "data", {"STRONGROOM_ROOT_KEY_COMMAND": commands["new"]}) as server:
        assert server.cli("user", "list")["users"][0]["name"] == "admin"
