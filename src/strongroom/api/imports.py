"""The contract's call that puts files of Redis into an instance."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, FailFast, Field
from sqlalchemy import Connection

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import BucketName, FileName, InstanceId, JobAccepted
from strongroom.api.errors import ParameterError
from strongroom.api.services import given
from strongroom.backups import importing
from strongroom.backups.context import Context
from strongroom.identity import audit
from strongroom.identity.principal import Principal

router = authenticated_router("Imports")
Here = Annotated[Context, given(Context)]


class RecoveryInfo(BaseModel):
    """Where the files are: a bucket, and their names in it."""

    bucket_name: BucketName
    files: Annotated[list[FileName], Field(min_length=1, max_length=100), FailFast()]


class ImportRequest(BaseModel):
    """What goes into the instance. `overwrite` is ours: without it the instance must be empty."""

    recovery_info: RecoveryInfo
    overwrite: Annotated[bool, Field(strict=True)] = False


@router.post("/v3/{project_id}/redis/instances/{instance_id}/recovery", status_code=202)
def import_redis_files(
    instance_id: InstanceId,
    request: ImportRequest,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:restore")],
) -> JobAccepted:
    """Makes an instance hold what RDB files hold. A bucket is a folder of the caller's project on the server's machine."""
    info = request.recovery_info
    if len(set(info.files)) != len(info.files):
        raise ParameterError("Parameter error: files: a name stands there twice.")

    def note(conn: Connection) -> None:
        detail = {"bucket": info.bucket_name, "files": info.files, "overwrite": request.overwrite}
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "NoSQLRestoreInstance", "instance", instance_id, detail=detail))

    project = caller.required_project()
    job = importing.import_files(ctx, project, instance_id, info.bucket_name, info.files, note, request.overwrite)
    return JobAccepted(job_id=job)
