"""The contract's calls about backups: delete (the heart), batch delete, create, stop, the lists, recovery."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Header, Query, Response
from pydantic import BaseModel, FailFast, Field
from sqlalchemy import Connection, Row

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import (
    BackupId,
    BackupName,
    BackupScope,
    BackupType,
    Between,
    DatastoreType,
    Description,
    InstanceId,
    JobAccepted,
    Limit100,
    NumberedPage,
    Offset,
    OlderBackupType,
    RowPage,
    older_time_text,
    time_text,
)
from strongroom.api.pending import person
from strongroom.api.services import given
from strongroom.backups import creation, deletion, listing, pending, restoration
from strongroom.backups.context import Context
from strongroom.backups.scope import WHOLE, scope_of, tables_of
from strongroom.engines.base import Tables
from strongroom.identity import audit
from strongroom.identity.principal import Principal

router = authenticated_router("Backups")
Here = Annotated[Context, given(Context)]


class BatchDeleteRequest(BaseModel):
    """1 to 10 backups, all or nothing."""

    backup_ids: Annotated[list[BackupId], FailFast()]


class TableChoice(BaseModel):
    """Tables of a database (Cassandra)."""

    database_name: str
    table_names: list[str] | None = None


class CreateBackupRequest(BaseModel):
    """A manual backup of a whole instance, or of tables of it (Cassandra)."""

    name: BackupName
    description: Description | None = None
    database_tables: list[TableChoice] | None = None


class BackupCreated(BaseModel):
    """A backup that is being taken."""

    job_id: str
    backup_id: str


class StopRequest(BaseModel):
    """The only action is stop."""

    action: Literal["stop"]


class RecoveryRequest(BaseModel):
    """Which backup goes into the instance. The password is accepted for compatibility; the registered one is used.

    `overwrite` is ours beside the contract: whether data in the instance may be replaced. Without it the contract's
    meaning holds: the instance that the backup is of is replaced, any other must be empty.
    """

    backup_id: BackupId
    password: str | None = None
    overwrite: Annotated[bool | None, Field(strict=True)] = None


class Filters(Between, RowPage):
    """Filters of the current lists."""

    instance_id: InstanceId | None = None
    datastore_type: DatastoreType | None = None
    backup_id: BackupId | None = None
    backup_type: BackupType | None = None
    type: BackupScope = "Instance"


class OlderFilters(Between, NumberedPage):
    """Filters of the oldest list."""

    instance_id: InstanceId | None = None
    datastore_type: DatastoreType | None = None
    backup_id: BackupId | None = None
    backup_type: OlderBackupType | None = None


class Slice(RowPage):
    """A page of a list of instances."""

    limit: Limit100 = 100
    offset: Offset = 0


# The batch stands before {backup_id}'s neighbours: `backups` sits where an instance's id would be.
@router.delete("/v3/{project_id}/instances/backups", status_code=200)
def delete_backups(
    request: BatchDeleteRequest, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:instance:deleteBackup")]
) -> Response:
    """Deletes up to ten backups, all or nothing."""
    project = caller.required_project()
    deletion.delete_batch(ctx, project, request.backup_ids, _noted(ctx, caller), by=person(caller))
    return Response(status_code=200)


@router.delete("/v3/{project_id}/backups/{backup_id}", status_code=202)
def delete_backup(
    backup_id: BackupId,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:deleteBackup")],
    if_match: Annotated[str | None, Header()] = None,
    thorough: Annotated[bool, Query()] = False,
) -> JobAccepted:
    """Deletes a backup: decided and hidden when this answers, freed by the job. Where the project's policy says so it is only
    hidden then, and the job decides later.

    Ours beside the contract: If-Match takes a preview's version; `thorough=true` also rewrites all that waits in partly dead
    objects, at the price that the preview states.
    """
    version = None if if_match is None else if_match.strip().removeprefix("W/").strip('"')
    noted, who = _noted(ctx, caller), person(caller)
    job = deletion.delete(ctx, caller.required_project(), backup_id, noted, version, by=who, thorough=thorough)
    return JobAccepted(job_id=job)


@router.post("/v3/{project_id}/instances/{instance_id}/backups", status_code=202)
def create_backup(
    instance_id: InstanceId,
    request: CreateBackupRequest,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:createBackup")],
) -> BackupCreated:
    """Takes a manual backup of an instance."""
    chosen = [Tables(one.database_name, _names(one.table_names)) for one in request.database_tables or ()]
    wanted = creation.Wanted(request.name, request.description or "", scope=scope_of(chosen) if chosen else WHOLE)

    def note(conn: Connection, backup: str) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "NoSQLCreateBackup", "backup", backup, request.name))

    backup, job = creation.create(ctx, caller.required_project(), instance_id, wanted, note)
    return BackupCreated(job_id=job, backup_id=backup)


@router.put("/v3/{project_id}/backups/{backup_id}", status_code=202)
def stop_backup(
    backup_id: BackupId,
    request: StopRequest,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:stopBackup")],
) -> JobAccepted:
    """Stops a backup that is being taken; it ends as FAILED and owns nothing."""
    del request

    def note(conn: Connection) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "NoSQLStopBackup", "backup", backup_id))

    return JobAccepted(job_id=creation.stop(ctx, caller.required_project(), backup_id, note))


@router.get("/v4/{project_id}/backups")
def list_backups(
    filters: Annotated[Filters, Query()], ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:backup:list")]
) -> dict[str, Any]:
    """Backups, newest first (recommended)."""
    return _list(ctx, caller, filters)


@router.get("/v3.1/{project_id}/backups")
def list_backups_v31(
    filters: Annotated[Filters, Query()], ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:backup:list")]
) -> dict[str, Any]:
    """Backups, newest first."""
    return _list(ctx, caller, filters)


@router.get("/v3/{project_id}/backups")
def list_backups_v3(
    filters: Annotated[OlderFilters, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:listRestorableInstances")],
) -> dict[str, Any]:
    """Backups, newest first, by pages that are numbered from 1."""
    filters.checked()
    wanted = listing.BackupFilter(
        filters.instance_id, filters.datastore_type, filters.backup_id, filters.backup_type, filters.begin_time, filters.end_time
    )
    with ctx.catalog.read() as conn:
        page = listing.list_backups(conn, caller.required_project(), wanted, filters.first_row, filters.limit)
    return {"backups": [backup_fields(row, older=True) for row in page.rows], "total_count": page.total}


@router.get("/v3/{project_id}/backups/{backup_id}/restorable-instances")
def list_restorable_instances(
    backup_id: BackupId,
    page: Annotated[Slice, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:listRestorableInstances")],
) -> dict[str, Any]:
    """Instances that the backup can be restored into."""
    with ctx.catalog.read() as conn:
        rows = listing.restorable_instances(conn, caller.required_project(), backup_id)
    shown = rows[page.first_row : page.first_row + page.limit]
    return {"restorable_instances": [_restorable(row) for row in shown], "total_count": len(rows)}


@router.post("/v3/{project_id}/instances/{instance_id}/recovery", status_code=202)
def restore_backup(
    instance_id: InstanceId,
    request: RecoveryRequest,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:restore")],
) -> JobAccepted:
    """Restores a backup into an instance: the instance becomes what the backup was. The job's result says how it ended."""

    def note(conn: Connection) -> None:
        detail = {"backup": request.backup_id} | ({} if request.overwrite is None else {"overwrite": request.overwrite})
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "NoSQLRestoreInstance", "instance", instance_id, detail=detail))

    project = caller.required_project()
    return JobAccepted(job_id=restoration.restore(ctx, project, request.backup_id, instance_id, note, request.overwrite))


def backup_fields(row: Row[Any], *, older: bool = False) -> dict[str, Any]:
    """A backup in the contract's fields; size in KB."""
    text = older_time_text if older else time_text
    chosen = [{"database_name": one.database, "table_names": list(one.names or ())} for one in tables_of(row.scope)]
    more = {"database_tables": chosen} if chosen else {}
    return more | {
        "id": row.id, "name": row.name, "description": row.description, "instance_id": row.instance,
        "instance_name": row.instance_name, "datastore": {"type": row.engine, "version": row.engine_version},
        "type": row.origin, "size": round(row.plain_bytes / 1024, 3), "status": row.state,
        "begin_time": text(row.begin_at), "end_time": "" if row.end_at is None else text(row.end_at),
    }  # fmt: skip


def _names(names: list[str] | None) -> tuple[str, ...] | None:
    """An empty list is left out by some clients where others leave out the field: all tables."""
    return tuple(names) if names else None


def _list(ctx: Context, caller: Principal, filters: Filters) -> dict[str, Any]:
    filters.checked()
    wanted = listing.BackupFilter(
        filters.instance_id, filters.datastore_type, filters.backup_id, filters.backup_type, filters.begin_time, filters.end_time,
        tables=filters.type == "DatabaseTable",
    )  # fmt: skip
    with ctx.catalog.read() as conn:
        page = listing.list_backups(conn, caller.required_project(), wanted, filters.first_row, filters.limit)
    return {"backups": [backup_fields(row) for row in page.rows], "total_count": page.total}


def _restorable(row: Row[Any]) -> dict[str, Any]:
    return {
        "instance_id": row.id, "instance_name": row.name, "instance_mode": row.mode, "engine_name": row.engine,
        "engine_version": row.version, "vpc_id": "", "subnet_ids": [], "security_group_ids": [],
    }  # fmt: skip


def _noted(ctx: Context, caller: Principal) -> deletion.Note:
    def note(conn: Connection, backup: str, name: str) -> None:
        mark = pending.mark_of(conn, backup)
        detail = {} if mark is None else {"until": mark.until, "second_person": mark.lapses is not None}
        if mark is not None and mark.thorough:
            detail["thorough"] = True
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "NoSQLDeleteBackup", "backup", backup, name, detail=detail))

    return note
