"""Quotas: the contract's look-ups, and our own call that sets them.

What may be used is the project's matter, so its users see it; only the account's administrator changes it. In the contract's
answers no limit is -1.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import DatastoreType, Filter, RowPage, Text
from strongroom.api.errors import ParameterError
from strongroom.api.services import given
from strongroom.backups import quotas
from strongroom.backups.context import Context
from strongroom.identity import audit
from strongroom.identity.errors import Forbidden
from strongroom.identity.principal import Principal

router = authenticated_router("Quotas")
Here = Annotated[Context, given(Context)]

NO_LIMIT = -1
_SET = "strongroom:quota:set"
_Amount = Annotated[int | None, Field(ge=0, le=2**53, strict=True)]


class QuotaFilters(Filter):
    """Narrows what is used; what is allowed is the project's in any case."""

    datastore_type: DatastoreType | None = None
    mode: Text | None = None
    product_type: Text | None = None


class EnterpriseFilters(RowPage):
    """There are no enterprise projects here."""

    enterprise_project_name: Text | None = None


class QuotaRequest(BaseModel):
    """What is named is set; null takes a limit away."""

    model_config = ConfigDict(extra="forbid")

    instance: _Amount = None
    backup: _Amount = None
    stored_bytes: _Amount = None


@router.get("/v3/{project_id}/quotas")
def show_quotas(
    filters: Annotated[QuotaFilters, Query()], ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:quota:list")]
) -> dict[str, Any]:
    """What the project uses and may use of instances, backups and stored bytes."""
    with ctx.catalog.read() as conn:
        found = quotas.show(conn, caller.required_project(), engine=filters.datastore_type, mode=filters.mode)
    shown = [{"type": one.kind, "quota": NO_LIMIT if one.allowed is None else one.allowed, "used": one.used} for one in found]
    return {"quotas": {"resources": shown}}


@router.get("/v3/{project_id}/enterprise-projects/quotas", dependencies=[may("gaussdbfornosql:quota:list")])
def list_enterprise_quotas(filters: Annotated[EnterpriseFilters, Query()]) -> dict[str, Any]:
    """Always empty: there are no enterprise projects here."""
    del filters
    return {"quotas": [], "total_count": 0}


@router.get("/strongroom/v1/{project_id}/quotas")
def show_own_quotas(ctx: Here, caller: Annotated[Principal, may("gaussdbfornosql:quota:list")]) -> dict[str, Any]:
    """What the project uses and may use; null is no limit."""
    with ctx.catalog.read() as conn:
        return _own(conn, caller)


@router.put("/strongroom/v1/{project_id}/quotas")
def set_quotas(request: QuotaRequest, ctx: Here, caller: Annotated[Principal, may(_SET)]) -> dict[str, Any]:
    """Sets what the project may use. What is more than that already stays; nothing is added to it."""
    if not caller.administrator:
        raise Forbidden(_SET)
    wanted: dict[quotas.Kind, int | None] = {
        kind: getattr(request, kind) for kind in quotas.KINDS if kind in request.model_fields_set
    }
    if not wanted:
        raise ParameterError(f"Parameter error: name at least one of {', '.join(quotas.KINDS)}.")
    project = caller.required_project()
    with ctx.catalog.write() as conn:
        quotas.put(conn, project, wanted)
        answer = _own(conn, caller)
        audit.append(
            conn, ctx.ambient, audit.Entry.by(caller, "StrongroomSetQuotas", "project", project, detail=dict(wanted.items()))
        )
    return answer


def _own(conn: Connection, caller: Principal) -> dict[str, Any]:
    found = quotas.show(conn, caller.required_project())
    return {"quotas": [{"type": one.kind, "quota": one.allowed, "used": one.used} for one in found]}
