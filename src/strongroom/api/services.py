"""What the border's modules need, and how a handler asks for it by type.

Deleting = Annotated[Deletions, given(Deletions)]

@router.delete("/v3/{project_id}/backups/{backup_id}", status_code=202)
def delete_backup(backup_id: BackupId, deletions: Deleting, …) -> JobAccepted: …
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request

from strongroom.ambient import Ambient
from strongroom.catalog.database import Catalog
from strongroom.identity.passwords import Passwords
from strongroom.identity.secrets import Sealer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast one may ask: `per_second` for ever, after `burst` at once."""

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the border takes. A Rate of None is no limit."""

    body_bytes: int = 1024 * 1024
    body_seconds: float = 60.0  # until it is whole
    header_bytes: int = 32 * 1024
    headers: int = 100
    path_bytes: int = 8 * 1024  # with its query
    per_address: Rate | None = Rate(500, 2000)
    per_user: Rate | None = Rate(200, 1000)
    logins_per_address: Rate | None = Rate(1, 30)  # passwords: each check costs a tenth of a second


@dataclass(frozen=True, slots=True)
class Services:
    """What the whole border stands on."""

    catalog: Catalog
    ambient: Ambient
    sealer: Sealer
    passwords: Passwords
    limits: Limits = field(default_factory=Limits)


def given(kind: type[T]) -> Any:
    """A dependency on the object that build_app was given for this type."""

    async def look_up(request: Request) -> T:  # async: a look-up needs no hop to a thread
        provided: Mapping[type, Any] = request.app.state.provided
        found: T = provided[kind]
        return found

    return Depends(look_up)


def provide(app: FastAPI, objects: Mapping[type, Any]) -> None:
    """Sets what `given` finds."""
    app.state.provided = dict(objects)
