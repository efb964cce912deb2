"""Our own calls about the audit trail: what is in it, all of it, and whether it still says what was written.

A trail is an account's, not a project's: its administrator alone sees it whole. Who may list sees what happened in the project.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import Query
from fastapi.responses import StreamingResponse
from pydantic import Field
from sqlalchemy import Connection

from strongroom.api.administrators import require_administrator
from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import Filter, Text, Time, coded
from strongroom.api.errors import ParameterError
from strongroom.api.services import Services, given
from strongroom.identity import audit, trail
from strongroom.identity import tables as t
from strongroom.identity.principal import Principal

router = authenticated_router("Audit")
Given = Annotated[Services, given(Services)]

_LINES = "application/x-ndjson"
_VERIFY, _LIST, _EXPORT = "strongroom:audit:verify", "strongroom:audit:list", "strongroom:audit:export"
_Limit = Annotated[int, Field(ge=1, le=1000), coded("DBS.280439", "Invalid limit.")]
_Sequence = Annotated[int, Field(ge=0, le=10**15)]


class RecordFilters(Filter):
    """What is looked for; `before` is the `next` of the page before."""

    project: Text | None = None
    event: Text | None = None
    outcome: Literal["OK", "FAILED", "REFUSED"] | None = None
    level: Literal["Normal", "Major"] | None = None
    user: Text | None = None
    resource_type: Text | None = None
    resource_id: Text | None = None
    request_id: Text | None = None
    start_time: Time | None = None
    end_time: Time | None = None
    before: _Sequence | None = None
    limit: _Limit = 100


@router.get("/strongroom/v1/{project_id}/audit")
def list_records(
    filters: Annotated[RecordFilters, Query()], services: Given, caller: Annotated[Principal, may(_LIST)]
) -> dict[str, Any]:
    """Records, newest first: an administrator's are the account's, anybody else's those of the project. `project`: only what
    happened there, by id or name."""
    own = None if caller.administrator else caller.required_project()
    with services.catalog.read() as conn:
        named = None if filters.project is None else _project(conn, caller.account, filters.project)
        if own is not None and named not in (None, own):
            return {"records": [], "next": None}
        wanted = trail.Wanted(
            caller.account, named or own, filters.event, filters.outcome, filters.level, filters.user,
            filters.resource_type, filters.resource_id, filters.request_id, filters.start_time, filters.end_time,
        )  # fmt: skip
        found, following = trail.records(conn, wanted, filters.before, filters.limit)
    return {"records": found, "next": following}


@router.get(
    "/strongroom/v1/{project_id}/audit/export",
    responses={200: {"content": {_LINES: {"schema": {"type": "string"}}}}},
)
def export_records(
    services: Given,
    caller: Annotated[Principal, may(_EXPORT)],
    after: Annotated[_Sequence, Query()] = 0,
    start_time: Annotated[Time | None, Query()] = None,
    end_time: Annotated[Time | None, Query()] = None,
) -> StreamingResponse:
    """The account's whole trail after a sequence, oldest first, as lines of JSON; `strongroom audit verify --file` proves it.

    Of a time span: one run of records with the last one before the span and the first one after it. The header X-Audit-Head says
    with which record it must end.
    """
    require_administrator(caller, _EXPORT)
    if start_time is not None and end_time is not None and start_time > end_time:
        raise ParameterError("Time is illegal: the begin is after the end.", "DBS.201215")
    with services.catalog.read() as conn:
        head = audit.head(conn, caller.account)
        begin, head = trail.run_of(conn, caller.account, trail.Span(start_time, end_time), head)
    lines = trail.lines(services.catalog, caller.account, max(after, begin), head)
    return StreamingResponse(lines, media_type=_LINES, headers={"X-Audit-Head": str(head)})


def _project(conn: Connection, account: str, named: str) -> str:
    """The id of the account's project of this id or name; what is neither may be the id of one that is gone."""
    p = t.project.c
    mine = sa.select(p.id).where(p.account == account, sa.or_(p.id == named, p.name == named)).order_by(p.id != named)
    return conn.execute(mine).scalars().first() or named


@router.get("/strongroom/v1/{project_id}/audit/verification")
def verify_audit(
    services: Given,
    caller: Annotated[Principal, may(_VERIFY)],
    kept: Annotated[str | None, Query(pattern="^[0-9]{1,18}:[0-9a-f]{0,64}$")] = None,
) -> dict[str, Any]:
    """Reads the account's whole audit trail and proves that no record was changed, removed or moved.

    `kept`: a `head` that an earlier call told and that was kept elsewhere; the trail must still lead to it.
    """
    require_administrator(caller, _VERIFY)
    with services.catalog.read() as conn:
        head = audit.head(conn, caller.account)
        broken = audit.check_chain(conn, caller.account, None if kept is None else audit.Head.parse(kept))
    return {
        "outcome": "whole" if broken is None else "broken",
        "records": head.sequence,
        "head": str(head),
        "broken": None if broken is None else {"record": broken.sequence, "reason": broken.reason},
    }
