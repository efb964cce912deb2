"""Who asks, as every use case receives it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from strongroom.identity.conditions import Context, Value, address_or_none
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
    at: float = 0.0  # when it was asked
    secure: bool = False  # over TLS
    issued_at: float | None = None  # of the token; None for a signature
    mfa_at: float | None = None  # when the second factor was shown; None: it was not
    groups: tuple[str, ...] = ()  # names of the user's
    temporary: bool = False  # by a temporary key

    def required_project(self) -> str:
        """The project of a call that is about one; the border has proven that the caller may use it."""
        if self.project is None:
            raise LookupError("a call about no project asked for its project")
        return self.project


def may(principal: Principal, action: str) -> bool:
    """Whether the caller has the permission. The account's administrator has every one."""
    return allowed(principal.policies, action, context_of(principal)) or principal.administrator


def authorize(principal: Principal, action: str) -> None:
    """Raises Forbidden, which names the action, unless the caller has the permission."""
    if not may(principal, action):
        raise Forbidden(action)


def context_of(principal: Principal) -> Context:
    """What conditions can ask of the caller's request."""
    who = principal
    found: dict[str, Value | None] = {
        "g:MFAPresent": who.mfa_at is not None,
        "g:MFAAge": None if who.mfa_at is None else who.at - who.mfa_at,
        "g:PrincipalIsRootUser": who.administrator,
        "g:SecureTransport": who.secure,
        "g:SourceIp": address_or_none(who.source),
        "g:CurrentTime": who.at,
        "g:TokenIssueTime": who.issued_at,
        "g:UserId": who.user,
        "g:UserName": who.user_name,
        "g:DomainId": who.account,
        "g:DomainName": who.account_name,
        "g:ProjectId": who.project,
        "g:ProjectName": who.project_name,
        "strongroom:GroupNames": who.groups,
    }
    return {key: value for key, value in found.items() if value is not None}
