"""Calls for which a policy alone does not suffice: it is given in one project, and they reach beyond it."""

from __future__ import annotations

from strongroom.backups import reconciling
from strongroom.backups.context import Context
from strongroom.identity.errors import Forbidden
from strongroom.identity.principal import Principal


def require_administrator(caller: Principal, action: str) -> None:
    """Raises Forbidden unless the caller is an administrator of the account."""
    if not caller.administrator:
        raise Forbidden(action)


def require_holder(ctx: Context, caller: Principal, action: str) -> None:
    """Raises Forbidden unless the caller is an administrator of the first account, which answers for what is nobody's."""
    require_administrator(caller, action)
    with ctx.catalog.read() as conn:
        if not reconciling.holds_the_rest(conn, caller.account):
            raise Forbidden(action)
