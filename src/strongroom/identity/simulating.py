"""What a caller would be allowed, and by which statement: the same decision as for a real request, with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.identity import tables as t
from strongroom.identity.callers import Granted, groups_of, policies_of
from strongroom.identity.conditions import Value
from strongroom.identity.errors import NotKnown, PolicyInvalid
from strongroom.identity.policies import ACTIONS, decide, parse
from strongroom.identity.principal import Principal, context_of


@dataclass(frozen=True, slots=True)
class Verdict:
    """`policy`, `statement` (from 1), `sid` and `group` (who has the policy) say what decided; None: no statement spoke."""

    allowed: bool
    action: str  # the identity name
    reason: str
    policy: str | None = None
    statement: int | None = None
    sid: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """May this user do it? `documents` are policies to be tried beside what the user has; `context` replaces what a condition
    would ask of the request."""

    user: str
    action: str  # an identity name or an alias of one action
    project: str | None
    at: float
    documents: Sequence[str] = ()
    context: Mapping[str, Value] | None = None


def simulate(conn: Connection, asked: Question) -> Verdict:
    """Decides as for a real request. Raises NotKnown, PolicyInvalid."""
    action = action_named(asked.action)
    row = conn.execute(
        sa.select(t.user.c.id, t.user.c.name, t.user.c.account, t.user.c.administrator, t.account.c.name.label("account_name"))
        .join(t.account, t.account.c.id == t.user.c.account)
        .where(t.user.c.id == asked.user)
    ).one_or_none()
    if row is None:
        raise NotKnown("user", asked.user)
    granted = policies_of(conn, row.id, asked.project or "")
    granted += [Granted(f"document {number}", parse(text), None) for number, text in enumerate(asked.documents, 1)]
    who = Principal(
        row.account, row.account_name, row.id, row.name, row.administrator, asked.project,
        _project_name(conn, asked, row.account), "signature", "", "", at=asked.at, groups=groups_of(conn, row.id),
    )  # fmt: skip
    found = decide([one.policy for one in granted], action, {**context_of(who), **(asked.context or {})})
    if found.policy is None or found.statement is None:
        if row.administrator:
            return Verdict(True, action, "the account's administrator may everything")
        return Verdict(False, action, "no statement applies: what is not allowed is denied")
    one = granted[found.policy]
    spoke = partial(
        Verdict,
        action=action,
        policy=one.name,
        statement=found.statement + 1,
        sid=one.policy.statements[found.statement].sid or None,
        group=one.group,
    )
    if found.allowed:
        return spoke(True, reason="a statement allows it and none denies it")
    if row.administrator:
        return spoke(True, reason="the account's administrator may everything, whatever a policy denies")
    return spoke(False, reason="a statement denies it, and deny wins")


def action_named(name: str) -> str:
    """The identity name of an action that is given by any of its names. Raises PolicyInvalid, also where it has several."""
    meant = [one.name for one in ACTIONS.values() if name.lower() in (word.lower() for word in one.names)]
    if len(meant) != 1:
        choice = f"it is any of {', '.join(meant)}" if meant else "docs/reference/identity.md lists them"
        raise PolicyInvalid(f"{name[:100]!a} is no single action: {choice}.")
    return meant[0]


def _project_name(conn: Connection, asked: Question, account: str) -> str | None:
    if asked.project is None:
        return None
    p = t.project.c
    name: str | None = conn.scalar(sa.select(p.name).where(p.id == asked.project, p.account == account))
    if name is None:
        raise NotKnown("project", asked.project)
    return name
