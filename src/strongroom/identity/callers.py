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
    secure: bool = False  # over TLS


@dataclass(frozen=True, slots=True)
class _Proof:
    """How a user was proven."""

    user: str
    via: Literal["token", "signature", "both"]
    issued_at: float | None = None  # of the token
    mfa_at: float | None = None
    temporary: bool = False


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
    now = ambient.now()
    signer = signatures.authenticate(catalog, sealer, request, now) if signed else None
    with catalog.read() as conn:
        if text is None:
            assert signer is not None
            proof = _Proof(signer.user, "signature", mfa_at=signer.mfa_at, temporary=signer.temporary)
            return _principal(conn, proof, asked.project, asked, now)
        token = tokens.validate(conn, text, now)
        if signer is not None and signer.user != token.user:
            raise Unauthenticated("the token and the signature belong to different users")
        temporary = signer is not None and signer.temporary
        proof = _Proof(token.user, "both" if signed else "token", token.issued_at, token.mfa_at, temporary)
        if asked.project is not None and asked.project != token.project:
            raise WrongProject(_principal(conn, proof, None, asked, now))
        return _principal(conn, proof, token.project, asked, now)


def holders_of(user: str) -> sa.CompoundSelect[str]:
    """Whose grants count for a user: their own and their groups'."""
    m = t.membership.c
    return sa.select(sa.literal(user)).union_all(sa.select(m.group).where(m.user == user))


def usable_projects(conn: Connection, user: str) -> list[ProjectView]:
    """The projects that a user may use, by name: the administrator all of the account's, others those they have a policy in."""
    p, g = t.project.c, t.policy_grant.c
    row = conn.execute(sa.select(t.user.c.account, t.user.c.administrator).where(t.user.c.id == user)).one()
    wanted = sa.select(p.id, p.name, p.account).where(p.account == row.account).order_by(p.name)
    if not row.administrator:
        granted = sa.select(g.holder).where(g.holder.in_(holders_of(user)), g.project.in_((p.id, ""))).exists()
        wanted = wanted.where(granted)
    return [ProjectView(project.id, project.name, project.account) for project in conn.execute(wanted)]


def _principal(conn: Connection, proof: _Proof, project: str | None, asked: Asked, now: float) -> Principal:
    user = proof.user
    who = conn.execute(
        sa.select(t.user.c.account, t.user.c.name, t.user.c.administrator, t.account.c.name.label("account_name"))
        .join(t.account, t.account.c.id == t.user.c.account)
        .where(t.user.c.id == user)
    ).one()
    name = None
    policies = tuple(found.policy for found in policies_of(conn, user, project or ""))
    if project is not None:
        name = conn.scalar(sa.select(t.project.c.name).where(t.project.c.id == project, t.project.c.account == who.account))
        if name is None or not (who.administrator or policies):
            raise WrongProject(_principal(conn, proof, None, asked, now))
    return Principal(
        account=who.account,
        account_name=who.account_name,
        user=user,
        user_name=who.name,
        administrator=who.administrator,
        project=project,
        project_name=name,
        via=proof.via,
        request_id=asked.request_id,
        source=asked.source,
        policies=policies,
        at=now,
        secure=asked.secure,
        issued_at=proof.issued_at,
        mfa_at=proof.mfa_at,
        groups=groups_of(conn, user),
        temporary=proof.temporary,
    )


def groups_of(conn: Connection, user: str) -> tuple[str, ...]:
    """Names of a user's groups."""
    mine = sa.select(t.group.c.name).join(t.membership, t.membership.c.group == t.group.c.id)
    return tuple(conn.scalars(mine.where(t.membership.c.user == user).order_by(t.group.c.name)))


@dataclass(frozen=True, slots=True)
class Granted:
    """A policy that counts for a user, and by whose grant."""

    name: str
    policy: Policy
    group: str | None  # name of the group that has it; None: the user has


def policies_of(conn: Connection, user: str, project: str) -> list[Granted]:
    """What counts for a user in a project ("": for calls about the account): granted to them or their groups, there or in all."""
    g = t.policy_grant.c
    rows = conn.execute(
        sa.select(g.policy, t.policy.c.name, t.policy.c.document, t.group.c.name.label("group"))
        .outerjoin(t.policy, t.policy.c.id == g.policy)
        .outerjoin(t.group, t.group.c.id == g.holder)
        .where(g.holder.in_(holders_of(user)), g.project.in_(("", project)))
        .distinct()
        .order_by(g.policy, t.group.c.name)
    )
    return [
        Granted(row.policy, parse(BUILT_IN[row.policy]), row.group)
        if row.document is None
        else Granted(row.name, parse(row.document), row.group)
        for row in rows
    ]
