"""The contract's calls about tags: of an instance, of a project, and the instances that have them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, FailFast, Field
from sqlalchemy import Connection

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import BodyLimit100, BodyOffset, InstanceId, RowPage, TagKey, TagValue, Text, coded
from strongroom.api.errors import ParameterError
from strongroom.api.services import given
from strongroom.backups import tagging
from strongroom.backups.context import Context
from strongroom.identity import audit
from strongroom.identity.principal import Principal

router = authenticated_router("Tags")
Here = Annotated[Context, given(Context)]

MOST_VALUES = 20
"""Values of one key, and keys, that instances are looked for by."""


class TagChange(BaseModel):
    """One tag. When tags are put an absent value is the empty one; when they are removed it is any."""

    key: TagKey
    value: TagValue | None = None


class TagAction(BaseModel):
    """Tags that are put or removed, each key once."""

    action: Literal["create", "delete"]
    tags: Annotated[list[TagChange], Field(min_length=1, max_length=tagging.MOST), FailFast()]


class TagOption(BaseModel):
    """A key with one of these values; with none of them: with any value."""

    key: Text
    values: Annotated[list[Text], Field(max_length=MOST_VALUES), FailFast()] = Field(default_factory=list)


class MatchOption(BaseModel):
    """What the instance's id or name is; a name that begins with `*` is looked for anywhere."""

    key: Annotated[Literal["instance_id", "instance_name"], coded("DBS.280441", "Invalid key: instance_id or instance_name.")]
    value: Text


class InstancesByTags(BaseModel):
    """Which instances. `count` only counts them."""

    action: Literal["filter", "count"]
    tags: Annotated[list[TagOption], Field(max_length=MOST_VALUES), FailFast()] = Field(default_factory=list)
    matches: Annotated[list[MatchOption], Field(max_length=MOST_VALUES), FailFast()] = Field(default_factory=list)
    offset: BodyOffset = 0
    limit: BodyLimit100 = 100


@router.get("/v3/{project_id}/instances/{instance_id}/tags")
def list_instance_tags(
    instance_id: InstanceId,
    page: Annotated[RowPage, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:tag:list")],
) -> dict[str, Any]:
    """An instance's tags, by key."""
    with ctx.catalog.read() as conn:
        tags = tagging.tags_of(conn, caller.required_project(), instance_id)
    return {"tags": _pairs(tags)[page.first_row : page.first_row + page.limit]}


@router.post("/v3/{project_id}/instances/{instance_id}/tags/action", status_code=202)
def change_instance_tags(
    instance_id: InstanceId,
    request: TagAction,
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:tag:set")],
) -> dict[str, Any]:
    """Puts tags on an instance or takes them off, all or none."""
    keys = [tag.key for tag in request.tags]
    if len(set(keys)) != len(keys):
        raise ParameterError("Invalid key: a key stands there twice.", "DBS.280441")
    event = "NoSQLTagInstance" if request.action == "create" else "NoSQLUntagInstance"

    def note(conn: Connection, name: str) -> None:
        entry = audit.Entry.by(caller, event, "instance", instance_id, name, detail={"keys": keys})
        audit.append(conn, ctx.ambient, entry)

    if request.action == "create":
        put = {tag.key: tag.value or "" for tag in request.tags}
        tagging.change(ctx, caller.required_project(), instance_id, note, put=put)
    else:
        remove = {tag.key: tag.value for tag in request.tags}
        tagging.change(ctx, caller.required_project(), instance_id, note, remove=remove)
    return {}


@router.get("/v3/{project_id}/tags")
def list_project_tags(
    page: Annotated[RowPage, Query()], ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:tag:list")]
) -> dict[str, Any]:
    """Every key that instances of the project have, with its values."""
    with ctx.catalog.read() as conn:
        found = tagging.values_of(conn, caller.required_project())
    shown = found[page.first_row : page.first_row + page.limit]
    return {"tags": [{"type": "user", "key": key, "values": values} for key, values in shown], "total_count": len(found)}


@router.post("/v3/{project_id}/instances/resource-instances/action")
def find_instances_by_tags(
    request: InstancesByTags, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:tag:list")]
) -> dict[str, Any]:
    """Instances that have all these tags and fit all these matches."""
    return _find(request, ctx, caller)


@router.post("/v3/{project_id}/instances/resource_instances/action")
def find_instances_by_tags_older(
    request: InstancesByTags, ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:tag:list")]
) -> dict[str, Any]:
    """The same under its older path."""
    return _find(request, ctx, caller)


def _find(request: InstancesByTags, ctx: Context, caller: Principal) -> dict[str, Any]:
    keys = [tag.key.strip() for tag in request.tags]
    if not all(keys) or len(set(keys)) != len(keys):
        raise ParameterError("Invalid key: a key is empty or stands there twice.", "DBS.280441")
    wanted = tagging.Wanted(
        {key: {value.strip() for value in tag.values} for key, tag in zip(keys, request.tags, strict=True)},
        [match.value for match in request.matches if match.key == "instance_id"],
        [match.value for match in request.matches if match.key == "instance_name"],
    )
    with ctx.catalog.read() as conn:
        found = tagging.find(conn, caller.required_project(), wanted)
    shown = found[request.offset : request.offset + request.limit] if request.action == "filter" else []
    return {
        "instances": [{"instance_id": one.id, "instance_name": one.name, "tags": _pairs(one.tags)} for one in shown],
        "total_count": len(found),
    }


def _pairs(tags: Any) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in sorted(tags.items())]
