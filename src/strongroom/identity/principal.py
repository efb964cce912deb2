"""Who asks, as every use case receives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from strongroom.identity.errors import Forbidden
from strongroom.identity.policies import Policy, allowed


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller and the request that was made."""

    account: str
    account_name: str
    user: str
    user_name: str
    administrator: bool
    project: str | None  # the request's; None where a call is about the account
    project_name: str | None
    via: Literal["token", "signature", "both"]
    request_id: str
    source: str  # the caller's address
    policies: tuple[Policy, ...] = field(default=(), repr=False)

    def required_project(self) -> str:
        """The project of a call that is about one; the border has proven that the caller may use it."""
        if self.project is None:
            raise LookupError("a call about no project asked for its project")
        return self.project


def may(principal: Principal, action: str) -> bool:
    """Whether the caller has the permission. The account's administrator has every one."""
    return allowed(principal.policies, action, _context(principal)) or principal.administrator


def authorize(principal: Principal, action: str) -> None:
    """Raises Forbidden, which names the action, unless the caller has the permission."""
    if not may(principal, action):
        raise Forbidden(action)


def _context(principal: Principal) -> Mapping[str, bool]:
    """What conditions can ask. No second factor exists here, so none is ever present."""
    return {"g:MFAPresent": False, "g:PrincipalIsRootUser": principal.administrator}
