"""Our own call about the audit trail: does it still say what was written?

A trail is an account's, not a project's, so the account's administrator alone may ask.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.services import Services, given
from strongroom.identity import audit
from strongroom.identity.errors import Forbidden
from strongroom.identity.principal import Principal

router = authenticated_router("Audit")

_VERIFY = "strongroom:audit:verify"


@router.get("/strongroom/v1/{project_id}/audit/verification")
def verify_audit(
    services: Annotated[Services, given(Services)],
    caller: Annotated[Principal, may(_VERIFY)],
    kept: Annotated[str | None, Query(pattern="^[0-9]{1,18}:[0-9a-f]{0,64}$")] = None,
) -> dict[str, Any]:
    """Reads the account's whole audit trail and proves that no record was changed, removed or moved.

    `kept`: a `head` that an earlier call told and that was kept elsewhere; the trail must still lead to it.
    """
    if not caller.administrator:
        raise Forbidden(_VERIFY)
    with services.catalog.read() as conn:
        head = audit.head(conn, caller.account)
        broken = audit.check_chain(conn, caller.account, None if kept is None else audit.Head.parse(kept))
    return {
        "outcome": "whole" if broken is None else "broken",
        "records": head.sequence,
        "head": str(head),
        "broken": None if broken is None else {"record": broken.sequence, "reason": broken.reason},
    }
