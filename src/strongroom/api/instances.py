"""Instances: the contract's list and creation out of a backup, and our own registration under /strongroom/v1."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy import Connection, Row

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import (
    BackupId,
    DatastoreType,
    InstanceId,
    InstanceIdOrPart,
    InstanceName,
    JobAccepted,
    RowPage,
    TagKey,
    TagValue,
    Text,
    time_text,
)
from strongroom.api.errors import ParameterError
from strongroom.api.pending import person
from strongroom.api.services import given
from strongroom.api.times import iso
from strongroom.backups import anew, instances, listing, policies, tagging
from strongroom.backups.context import Context
from strongroom.backups.registered import find_instance
from strongroom.identity import audit
from strongroom.identity.principal import Principal, authorize

router = authenticated_router("Instances")
Here = Annotated[Context, given(Context)]


class InstanceFilters(RowPage):
    """Filters of the contract's list. An id or a name that begins with `*` is looked for anywhere in it."""

    id: InstanceIdOrPart | None = None
    name: Text | None = None
    datastore_type: DatastoreType | None = None
    mode: Text | None = None
    vpc_id: Text | None = None
    subnet_id: Text | None = None


class OwnFilters(RowPage):
    """Filters of our own list: `tag` is KEY or KEY=VALUE and may be given again."""

    tag: Annotated[list[Text], Field(max_length=tagging.MOST)] = Field(default_factory=list)


OptionName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Options = Annotated[dict[OptionName, Annotated[str, Field(max_length=32768)]], Field(max_length=16)]
"""What an engine takes beside address and password, by its own names; see its page. Certificates are PEM text."""


class RegisterRequest(BaseModel):
    """An instance to back up. The address holds no password; user and host go into it: `redis://user@host:6379`.

    `options` are the engine's own, such as `ca`; like the password they are kept sealed, and never shown.
    """

    name: InstanceName
    engine: DatastoreType
    address: Annotated[str, Field(min_length=1, max_length=1000)]
    password: Annotated[str | None, Field(max_length=1000, repr=False)] = None
    labels: Annotated[dict[TagKey, TagValue], Field(max_length=tagging.MOST)] = Field(default_factory=dict)
    options: Options = Field(default_factory=dict, repr=False)


class AccessRequest(BaseModel):
    """How an instance is entered from now on. What is not named stays; with an address, even the same, nothing that was kept is
    used: password and options are given anew, or there are none. Options replace all that there were."""

    address: Annotated[str | None, Field(min_length=1, max_length=1000)] = None
    password: Annotated[str | None, Field(max_length=1000, repr=False)] = None
    options: Options | None = Field(default=None, repr=False)

    def checked(self) -> Self:
        """ParameterError where nothing is to be changed."""
        if self.address is None and self.password is None and self.options is None:
            raise ParameterError("Parameter error: name what is to be changed: address, password or options.")
        return self


class Datastore(BaseModel):
    """What kind of database; the version is that of the server that is there."""

    type: DatastoreType


class RestoreInfo(BaseModel):
    """What the new instance is to hold: a backup, or what another instance held at a time, in milliseconds."""

    backup_id: BackupId | None = None
    source_instance_id: InstanceId | None = None
    restore_time: Annotated[int | None, Field(strict=True, ge=0, lt=1 << 45)] = None


class CreateInstanceRequest(BaseModel):
    """A new instance out of a backup. Of the contract's fields these count, not those of a cloud's network and hardware.

    `address` is ours: where the empty server is, with `password` and `options` as in registering. Without it an empty instance is
    registered under `name`.
    """

    name: InstanceName
    datastore: Datastore | None = None
    restore_info: RestoreInfo | None = None
    address: Annotated[str | None, Field(min_length=1, max_length=1000)] = None
    password: Annotated[str | None, Field(max_length=1000, repr=False)] = None
    options: Options = Field(default_factory=dict, repr=False)


@router.post("/v3/{project_id}/instances", status_code=202)
def create_instance(
    request: CreateInstanceRequest,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:create")],
) -> dict[str, Any]:
    """Restores a backup into a new instance: an empty server that is there. The caller needs the permission to restore, too."""
    authorize(caller, "gaussdbfornosql:instance:restore")
    wanted = _wanted(request)
    project = caller.required_project()
    if request.datastore is not None:
        engine = wanted.engine(ctx, project)
        if engine != request.datastore.type:
            raise ParameterError(f"Parameter error: the backup is of {engine}, not of {request.datastore.type}.", "DBS.280235")

    def note(event: str, detail: Mapping[str, Any]) -> instances.Note:
        def noted(conn: Connection, key: str) -> None:
            audit.append(conn, ctx.ambient, audit.Entry.by(caller, event, "instance", key, request.name, detail=detail))

        return noted

    notes = anew.Notes(
        registered=note("StrongroomRegisterInstance", {}),
        restoring=note("NoSQLCreateInstance", _what(wanted)),
        removed=note("StrongroomRemoveInstance", {}),
    )
    newcomer = anew.Newcomer(request.name, request.address, request.password, request.options)
    instance, job = anew.restore_anew(ctx, project, wanted, newcomer, notes)
    with ctx.catalog.read() as conn:
        row = find_instance(conn, project, instance)
    return {
        "id": row.id, "name": row.name, "datastore": {"type": row.engine, "version": row.version, "storage_engine": ""},
        "created": time_text(row.created_at), "status": "creating", "region": "", "availability_zone": "", "vpc_id": "",
        "subnet_id": "", "security_group_id": "", "mode": row.mode, "flavor": [], "enterprise_project_id": "0", "job_id": job,
    }  # fmt: skip


def _wanted(request: CreateInstanceRequest) -> anew.Wanted:
    info = request.restore_info
    if info is None:
        raise ParameterError(
            "Parameter error: restore_info is needed: Strongroom makes no servers, it restores into one that is there "
            "(POST /strongroom/v1/{project_id}/instances registers one)."
        )
    if info.backup_id is not None and info.source_instance_id is None and info.restore_time is None:
        return anew.Wanted(backup=info.backup_id)
    if info.backup_id is None and info.source_instance_id is not None and info.restore_time is not None:
        return anew.Wanted(source=info.source_instance_id, moment=info.restore_time / 1000)
    raise ParameterError("Parameter error: restore_info: give backup_id, or source_instance_id and restore_time together.")


def _what(wanted: anew.Wanted) -> Mapping[str, Any]:
    if wanted.backup is not None:
        return {"backup": wanted.backup}
    return {"source": wanted.source, "moment": iso(wanted.moment)}


@router.get("/v3/{project_id}/instances")
def list_instances(
    filters: Annotated[InstanceFilters, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:list")],
) -> dict[str, Any]:
    """Registered instances, newest first, in the contract's fields; what has no meaning here is empty."""
    if filters.vpc_id or filters.subnet_id:  # no instance is in any
        return {"instances": [], "total_count": 0}
    with ctx.catalog.read() as conn:
        page = listing.list_instances(
            conn, caller.required_project(), filters.first_row, filters.limit, newest_first=True,
            key=filters.id, name=filters.name, engine=filters.datastore_type, mode=filters.mode,
        )  # fmt: skip
        known = policies.of(conn, [row.id for row in page.rows])
    shown = [_contract_fields(row, known.get(row.id, policies.OFF)) for row in page.rows]
    return {"instances": shown, "total_count": page.total}


@router.delete("/v3/{project_id}/instances/{instance_id}", status_code=202)
def delete_instance(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:instance:delete")]
) -> JobAccepted:
    """Takes an instance off the register; the database itself is left alone. Its automated backups are deleted, its manual ones
    stay."""
    return _unregister(instance_id, ctx, caller, "NoSQLDeleteInstance")


@router.post("/strongroom/v1/{project_id}/instances", status_code=201)
def register_instance(
    request: RegisterRequest, ctx: Here, caller: Annotated[Principal, may("strongroom:instance:create")]
) -> dict[str, Any]:
    """Registers an instance after entering it once."""
    new = instances.NewInstance(request.name, request.engine, request.address, request.password, request.labels, request.options)

    def note(conn: Connection, key: str) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, "StrongroomRegisterInstance", "instance", key, request.name))

    key = instances.register(ctx, caller.required_project(), new, note)
    return show_instance(key, ctx, caller)


@router.get("/strongroom/v1/{project_id}/instances")
def list_own_instances(
    filters: Annotated[OwnFilters, Query()], ctx: Here, caller: Annotated[Principal, may("strongroom:instance:list")]
) -> dict[str, Any]:
    """Registered instances by name, with what is stored of them."""
    project, tags = caller.required_project(), _tags(filters.tag)
    with ctx.catalog.read() as conn:
        among = None if not tags else [one.id for one in tagging.find(conn, project, tagging.Wanted(tags))]
        found = listing.list_instances(conn, project, filters.first_row, filters.limit, among=among)
        rows = [_own_fields(conn, row) for row in found.rows]
    return {"instances": rows, "total_count": found.total}


@router.get("/strongroom/v1/{project_id}/instances/{instance_id}")
def show_instance(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("strongroom:instance:get")]
) -> dict[str, Any]:
    """One registered instance."""
    with ctx.catalog.read() as conn:
        return _own_fields(conn, find_instance(conn, caller.required_project(), instance_id))


@router.put("/strongroom/v1/{project_id}/instances/{instance_id}/access")
def set_instance_access(
    instance_id: InstanceId,
    request: AccessRequest,
    ctx: Here,
    caller: Annotated[Principal, may("strongroom:instance:setAccess")],
) -> dict[str, Any]:
    """Changes address, password or options of an instance after entering it so once; its backups and all else stay."""
    project, asked = caller.required_project(), request.checked()

    def note(conn: Connection) -> None:
        row = find_instance(conn, project, instance_id)
        changed = sorted(name for name, value in asked if value is not None)
        detail = {"changed": changed, "address": row.address}
        entry = audit.Entry.by(caller, "StrongroomSetInstanceAccess", "instance", instance_id, row.name, detail=detail)
        audit.append(conn, ctx.ambient, entry)

    access = instances.Access(asked.address, asked.password, asked.options)
    instances.change(ctx, project, instance_id, access, note)
    return show_instance(instance_id, ctx, caller)


@router.delete("/strongroom/v1/{project_id}/instances/{instance_id}")
def unregister_instance(
    instance_id: InstanceId, ctx: Here, caller: Annotated[Principal, may("strongroom:instance:delete")]
) -> JobAccepted:
    """Takes an instance off the register. Its automated backups are deleted; its manual ones stay, to be restored elsewhere."""
    return _unregister(instance_id, ctx, caller, "StrongroomRemoveInstance")


def _unregister(instance: str, ctx: Context, caller: Principal, event: str) -> JobAccepted:
    def note(conn: Connection) -> None:
        audit.append(conn, ctx.ambient, audit.Entry.by(caller, event, "instance", instance))

    return JobAccepted(job_id=instances.unregister(ctx, caller.required_project(), instance, note, by=person(caller)))


def _own_fields(conn: Connection, row: Row[Any]) -> dict[str, Any]:
    count, newest = listing.backup_summary(conn, row.id)
    last = None
    if newest is not None:
        last = {"id": newest.id, "name": newest.name, "status": newest.state, "end_time": iso(newest.end_at)}
    return {
        "id": row.id, "name": row.name, "engine": row.engine, "address": row.address, "mode": row.mode, "version": row.version,
        "state": row.state, "labels": json.loads(row.labels), "created_at": iso(row.created_at), "backups": count,
        "last_backup": last, "stored_bytes": listing.stored_bytes(conn, row.id),
    }  # fmt: skip


def _contract_fields(row: Row[Any], policy: policies.Policy) -> dict[str, Any]:
    place = urlsplit(row.address)
    host, port = _host_and_port(place.netloc)
    return {
        "id": row.id, "name": row.name, "status": "normal", "port": port, "region": "", "mode": row.mode, "engine": "",
        "datastore": {"type": row.engine, "version": row.version, "patch_available": False, "whole_version": row.version},
        "created": time_text(row.created_at), "updated": time_text(row.updated_at), "db_user_name": place.username or "",
        "vpc_id": "", "subnet_id": "", "security_group_id": "",
        "backup_strategy": {"start_time": policy.start_time, "keep_days": policy.keep_days},
        "pay_mode": "0", "maintenance_window": "", "groups": [], "enterprise_project_id": "0", "time_zone": "UTC",
        "actions": [], "disk_encryption_id": "", "ssl": "1" if place.scheme in ("rediss", "influxdbs") else "0",
        "lb_ip_address": host, "lb_port": port,
    }  # fmt: skip


def _tags(words: Sequence[str]) -> dict[str, set[str]]:
    """What KEY and KEY=VALUE ask for: a key alone is met by any value, a key with several values by each of them."""
    wanted: dict[str, set[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        values = wanted.setdefault(key, set())
        if equals:
            values.add(value)
    return wanted


def _host_and_port(netloc: str) -> tuple[str, str]:
    """Of the first host of an address; empty where none is said."""
    first = netloc.rpartition("@")[2].split(",")[0]
    host, colon, port = first.rpartition(":")
    return (host, port) if colon and port.isdigit() else (first, "")
