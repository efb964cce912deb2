"""The server's memory does not grow with what it backs up."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huaweicloudsdkgaussdbfornosql.v3 import (
    CreateBackRequest,
    NoSqlCreateBackupRequestBody,
    RestoreExistingInstanceRequest,
    RestoreRequestBody,
)

from support.redis_server import binaries, redis_server
from support.server import ServerProcess

MIB = 2**20
DATA_MIB = 400
MOST_MIB = 300


class Peak:
    """The most anonymous memory that was seen."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def sampled(server: ServerProcess) -> Iterator[Peak]:
    """Looks fifty times a second while it lasts."""
    peak, over = Peak(), threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            peak.bytes = max(peak.bytes, server.rss_anon())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.skipif(not binaries(), reason="no redis-server here")
def test_backups_and_restores_of_hundreds_of_megabytes_need_little_memory(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """400 MiB in values of 16 KiB and many small keys, half of it compressible: two backups and a restore each stay below
    300 MiB of anonymous memory, and the data comes back."""
    with redis_server(tmp_path) as engine, engine.client() as client, ServerProcess(tmp_path / "data") as server:
        rnd = random.Random(1)
        for number in range(DATA_MIB):
            values = (rnd.randbytes(8192) + f"{number:08}".encode() * 1024 for _ in range(56))
            client.mset({f"large:{number}:{part}": value for part, value in enumerate(values)})
            client.mset({f"small:{number}:{part}": rnd.randbytes(64) for part in range(1000)})
        digest = client.execute_command("DEBUG", "DIGEST")
        instance = server.cli("instance", "add", "cache", "--engine", "redis", "--address", engine.address)["id"]
        peaks = {"idle": server.rss_anon()}
        for name in ("first backup", "second backup"):
            client.mset({f"small:{number}:0": rnd.randbytes(64) for number in range(DATA_MIB)})
            digest = client.execute_command("DEBUG", "DIGEST")
            with sampled(server) as peak:
                body = NoSqlCreateBackupRequestBody(name="large-one", description="")
                made = server.sdk().create_back(CreateBackRequest(instance_id=instance, body=body))
                ended = server.wait(made.job_id, 150)
            assert ended.status == "Completed", ended.fail_reason
            peaks[name] = peak.bytes
        client.flushall()
        with sampled(server) as peak:
            request = RestoreExistingInstanceRequest(instance_id=instance, body=RestoreRequestBody(backup_id=made.backup_id))
            ended = server.wait(server.sdk().restore_existing_instance(request).job_id, 150)
        assert ended.status == "Completed", ended.fail_reason
        assert client.execute_command("DEBUG", "DIGEST") == digest
        peaks["restore"] = peak.bytes
        told = {name: f"{size / MIB:.0f} MiB" for name, size in peaks.items()}
        record_property("rss_anon", told)
        print("anonymous memory:", told)
        assert max(peaks.values()) < MOST_MIB * MIB, told
