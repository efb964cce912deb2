"""kill -9 of the server at many moments of backups and deletes: after the restart the jobs end, every surviving backup restores
byte for byte, and the store holds exactly what the catalog names."""

from __future__ import annotations

import random
import time
from pathlib import Path

import redis
import sqlalchemy as sa
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkgaussdbfornosql.v3 import (
    CreateBackRequest,
    DeleteBackupRequest,
    ListBackupsRequest,
    ListJobsRequest,
    NoSqlCreateBackupRequestBody,
    RestoreExistingInstanceRequest,
    RestoreRequestBody,
)

from strongroom.catalog import tables as t
from strongroom.catalog.database import open_catalog
from support.redis_server import redis_server
from support.server import ServerProcess

ROUNDS = 14


def contents(client: redis.Redis) -> dict[bytes, bytes | None]:
    return {key: client.get(key) for key in client.scan_iter()}


def idle(server: ServerProcess) -> None:
    """Waits until no job runs."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if not server.sdk().list_jobs(ListJobsRequest(status="Running")).jobs and not active(server):
            return
        time.sleep(0.1)
    raise AssertionError(f"a job is stuck:\n{server.log[-3000:]}")


def active(server: ServerProcess) -> bool:
    catalog = open_catalog(f"sqlite:///{server.folder / 'catalog.db'}")
    try:
        with catalog.read() as conn:
            query = sa.select(t.job.c.id).where(t.job.c.state.in_(("QUEUED", "RUNNING")))
            return conn.execute(query).first() is not None
    finally:
        catalog.close()


def accounts(server: ServerProcess) -> None:
    """Objects in the store = objects in the catalog."""
    root = server.folder / "store" / "objects"
    there = {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}
    catalog = open_catalog(f"sqlite:///{server.folder / 'catalog.db'}")
    with catalog.read() as conn:
        rows = conn.execute(sa.select(t.object_)).all()
        unswept = conn.execute(sa.select(t.decision.c.id).where(t.decision.c.swept.is_(False))).all()
    catalog.close()
    assert {row.name: row.bytes for row in rows if row.state == "STORED"} == there
    assert {row.state for row in rows} <= {"STORED", "LATE"}
    assert not unswept


def test_kill_at_many_moments_loses_and_leaves_nothing(tmp_path: Path) -> None:
    """Each round a backup or a delete is begun and the server is killed a random moment later."""
    rnd = random.Random(20261124)
    with redis_server(tmp_path) as engine, engine.client() as client, ServerProcess(tmp_path / "data") as server:
        instance = server.cli("instance", "add", "cache", "--engine", "redis", "--address", engine.address)["id"]
        wanted: dict[str, dict[bytes, bytes | None]] = {}
        for number in range(3000):
            client.set(f"key:{number}", rnd.randbytes(100))
        for turn in range(ROUNDS):
            for _ in range(60):
                client.set(f"key:{rnd.randrange(3000)}", rnd.randbytes(100))
            sdk = server.sdk()
            try:
                if turn % 2 == 0 or not wanted:
                    body = NoSqlCreateBackupRequestBody(name=f"round-{turn}", description="")
                    made = sdk.create_back(CreateBackRequest(instance_id=instance, body=body))
                    wanted[made.backup_id] = contents(client)
                else:
                    victim = rnd.choice(sorted(wanted))
                    sdk.delete_backup(DeleteBackupRequest(backup_id=victim))
                    del wanted[victim]
            except ClientRequestException as error:
                raise AssertionError(f"{error.error_code} {error.error_msg}") from error
            time.sleep(rnd.choice((0, 0.01, 0.02, 0.05, 0.1, 0.2)))
            server.kill()
            server.start()
            idle(server)
        listed = {one.id: one.status for one in server.sdk().list_backups(ListBackupsRequest()).backups}
        assert listed == dict.fromkeys(wanted, "COMPLETED")
        accounts(server)
        for key, data in wanted.items():
            client.flushall()
            body = RestoreRequestBody(backup_id=key)
            job = server.sdk().restore_existing_instance(RestoreExistingInstanceRequest(instance_id=instance, body=body)).job_id
            assert server.wait(job).status == "Completed"
            assert contents(client) == data
        for key in list(wanted):
            server.wait(server.sdk().delete_backup(DeleteBackupRequest(backup_id=key)).job_id)
        idle(server)
        accounts(server)
