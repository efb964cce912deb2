"""From a proven user to a Principal: which project, which policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.ambient import Ambient
from strongroom.catalog.database import Catalog
from strongroom.identity import signatures, tokens
from strongroom.identity import tables as t
from strongroom.identity.errors import Unauthenticated, WrongProject
from strongroom.identity.policies import BUILT_IN, Policy, parse
from strongroom.identity.principal import Principal
from strongroom.identity.secrets import Sealer
from strongroom.identity.signatures import Received


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says of itself beside its proof."""

    project: str | None  # the path's; None where the path names none
    request_id: str
    source: str


@dataclass(frozen=True, slots=True)
class ProjectView:
    """A project as its users see it."""

    id: str
    name: str
    account: str


def identify(catalog: Catalog, ambient: Ambient, sealer: Sealer, request: Received, asked: Asked) -> Principal:
    """Who made the request. Takes a token, a signature, or both (then both must hold and be the same user's).

    Raises Unauthenticated where they do not hold and WrongProject where the path's project is not theirs to use: another than
    the token's scope, or one in which the owner of the key has no part. A locked key, a wrong signature: see signatures.
    """
    text, signed = request.header("x-auth-token"), request.header("authorization") is not None
    if text is None and not signed:
        raise Unauthenticated("the request has neither a token nor a signature")
    signer = signatures.authenticate(catalog, sealer, request, ambient.now()) if signed else None
    with catalog.read() as conn:
        if text is None:
            return _principal(conn, str(signer), asked.project, "signature", asked)
        token = tokens.validate(conn, text, ambient.now())
        if signer not in (None, token.user):
            raise Unauthenticated("the token and the signature belong to different users")
        if asked.project is not None and asked.project != token.project:
            raise WrongProject
        return _principal(conn, token.user, token.project, "both" if signed else "token", asked)


def usable_projects(conn: Connection, user: str) -> list[ProjectView]:
    """The projects that a user may use, by name: the administrator all of the account's, others those they have a policy in."""
    p, g = t.project.c, t.user_grant.c
    row = conn.execute(sa.select(t.user.c.account, t.user.c.administrator).where(t.user.c.id == user)).one()
    wanted = sa.select(p.id, p.name, p.account).where(p.account == row.account).order_by(p.name)
    if not row.administrator:
        granted = sa.select(g.user).where(g.user == user, g.project.in_((p.id, ""))).exists()
        wanted = wanted.where(granted)
    return [ProjectView(project.id, project.name, project.account) for project in conn.execute(wanted)]


def _principal(
    conn: Connection, user: str, project: str | None, via: Literal["token", "signature", "both"], asked: Asked
) -> Principal:
    who = conn.execute(
        sa.select(t.user, t.account.c.name.label("account_name"))
        .join(t.account, t.account.c.id == t.user.c.account)
        .where(t.user.c.id == user)
    ).one()
    name = None
    if project is not None:
        name = conn.scalar(sa.select(t.project.c.name).where(t.project.c.id == project, t.project.c.account == who.account))
        policies = _policies(conn, user, project)
        if name is None or not (who.administrator or policies):
            raise WrongProject
    else:
        policies = _policies(conn, user, "")
    return Principal(
        account=who.account,
        account_name=who.account_name,
        user=user,
        user_name=who.name,
        administrator=who.administrator,
        project=project,
        project_name=name,
        via=via,
        request_id=asked.request_id,
        source=asked.source,
        policies=policies,
    )


def _policies(conn: Connection, user: str, project: str) -> tuple[Policy, ...]:
    """What the user was given in the project and in all projects."""
    g = t.user_grant.c
    rows = conn.execute(
        sa.select(g.policy, t.policy.c.document)
        .outerjoin(t.policy, t.policy.c.id == g.policy)
        .where(g.user == user, g.project.in_(("", project)))
        .distinct()
    )
    return tuple(parse(row.document if row.document is not None else BUILT_IN[row.policy]) for row in rows)
