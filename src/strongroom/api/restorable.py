"""The contract's look-ups of what can be restored beside whole backups: versions, databases and tables. Points in time:
moments.py.

Where an engine is backed up whole there are no tables to choose, and those lists are empty.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import Field

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import (
    DatastoreType,
    InstanceId,
    RowPage,
    Text,
)
from strongroom.api.services import given
from strongroom.backups import instances
from strongroom.backups.context import Context
from strongroom.engines.base import Versioned
from strongroom.identity.principal import Principal

router = authenticated_router("Restorable")
Here = Annotated[Context, given(Context)]


class TablesPage(RowPage):
    """The database whose tables are listed."""

    database_name: Annotated[Text, Field(min_length=1)]


@router.get("/v3/{project_id}/datastores/{datastore_name}/versions", dependencies=[may("gaussdbfornosql:instance:list")])
def list_datastore_versions(datastore_name: DatastoreType, ctx: Here) -> dict[str, Any]:
    """Releases of an engine that backups are tested with; none where the engine is not backed up yet."""
    engine = ctx.engines.get(datastore_name)
    return {"versions": list(engine.versions) if isinstance(engine, Versioned) else []}


@router.get("/v3/{project_id}/instances/{instance_id}/databases")
def list_restorable_databases(
    instance_id: InstanceId,
    page: Annotated[RowPage, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:listDatabase")],
) -> dict[str, Any]:
    """Databases whose tables can be backed up and restored one by one, as they are now."""
    found = list(instances.tables_of(ctx, caller.required_project(), instance_id))
    return {"database_names": found[page.first_row : page.first_row + page.limit], "total_count": len(found)}


@router.get("/v3/{project_id}/instances/{instance_id}/tables")
def list_restorable_tables(
    instance_id: InstanceId,
    page: Annotated[TablesPage, Query()],
    ctx: Here,
    caller: Annotated[Principal, may("gaussdbfornosql:instance:listDatabase")],
) -> dict[str, Any]:
    """Tables of one of those databases."""
    found = instances.tables_of(ctx, caller.required_project(), instance_id).get(page.database_name, [])
    return {"table_names": list(found[page.first_row : page.first_row + page.limit]), "total_count": len(found)}
