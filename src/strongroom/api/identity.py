"""Our own calls that manage identity: users, groups, access keys, policies, projects, second factors, simulation.

They are about the account, and for its administrator alone: who could grant could grant himself everything. A temporary key
manages nothing, since what it makes would outlive it. Users, groups, policies and projects are named by id or by name; an id goes
first. What is made once is shown once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Depends, Response
from pydantic import BaseModel, Field, SecretStr
from sqlalchemy import Connection

from strongroom.api.authentication import authenticated_router, may
from strongroom.api.contract import Text, time_text
from strongroom.api.services import Services, given
from strongroom.identity import accounts, audit, totp
from strongroom.identity import tables as t
from strongroom.identity.conditions import read_context
from strongroom.identity.errors import Forbidden, NotKnown
from strongroom.identity.passwords import check_strength
from strongroom.identity.policies import BUILT_IN
from strongroom.identity.principal import Principal
from strongroom.identity.simulating import Question, simulate

router = authenticated_router("Identity")
Given = Annotated[Services, given(Services)]

_PATH = "/strongroom/v1/identity"
_LIST = "strongroom:identity:list"
_MANAGE = "strongroom:identity:manage"


def _administrator(action: str) -> Any:
    permitted = may(action)

    async def check(caller: Principal = permitted) -> Principal:
        if not caller.administrator or caller.temporary:
            raise Forbidden(action)
        return caller

    return Depends(check)


Looking = Annotated[Principal, _administrator(_LIST)]
Managing = Annotated[Principal, _administrator(_MANAGE)]

# --- requests ----------------------------------------------------------------------------------------------------------

Password = Annotated[SecretStr, Field(max_length=128)]


class NewUser(BaseModel):
    """Without a password the user signs with access keys only."""

    name: Text
    password: Password | None = None
    administrator: bool = False


class UserChange(BaseModel):
    """What is not given stays."""

    enabled: bool | None = None
    administrator: bool | None = None
    password: Password | None = None


class Name(BaseModel):
    name: Text


class Grant(BaseModel):
    """A policy in one project, or without one in all of the account's."""

    policy: Text
    project: Text | None = None


class KeyChange(BaseModel):
    enabled: bool


class Document(BaseModel):
    document: Annotated[str, Field(max_length=64 * 1024)]


class Code(BaseModel):
    passcode: SecretStr = Field(min_length=1, max_length=16)


class Simulation(BaseModel):
    """`documents` are tried beside what the user has; `context` maps condition keys to values."""

    user: Text
    action: Text
    project: Text | None = None
    documents: list[Annotated[str, Field(max_length=64 * 1024)]] = Field(default_factory=list, max_length=10)
    context: dict[str, Annotated[str, Field(max_length=256)]] = Field(default_factory=dict, max_length=50)


# --- users -------------------------------------------------------------------------------------------------------------


@router.get(f"{_PATH}/users")
def list_users(caller: Looking, services: Given) -> dict[str, Any]:
    """The account's users by name."""
    with services.catalog.read() as conn:
        rows = conn.execute(sa.select(t.user).where(t.user.c.account == caller.account).order_by(t.user.c.name)).all()
        return {"users": [_user_item(row, services.ambient.now()) for row in rows]}


@router.post(f"{_PATH}/users", status_code=201)
def create_user(body: NewUser, caller: Managing, services: Given) -> dict[str, Any]:
    """Makes a user, who may nothing before a policy is granted."""
    hashed = _hashed(services, body.password, body.name)
    with services.catalog.write() as conn:
        user = accounts.create_user(conn, services.ambient, caller.account, body.name, hashed, administrator=body.administrator)
        shown = _user_in_full(conn, services, user)
        _note(conn, services, caller, "createUser", "user", user, body.name, {"administrator": body.administrator})
    return shown


@router.get(_PATH + "/users/{user}")
def show_user(user: Text, caller: Looking, services: Given) -> dict[str, Any]:
    """A user with groups, policies and access keys."""
    with services.catalog.read() as conn:
        return _user_in_full(conn, services, _find(conn, t.user, "user", user, caller)[0])


@router.put(_PATH + "/users/{user}")
def change_user(user: Text, body: UserChange, caller: Managing, services: Given) -> dict[str, Any]:
    """Enables, disables, makes an administrator, gives a password. All of the user's tokens end at once."""
    with services.catalog.read() as conn:
        id, name = _find(conn, t.user, "user", user, caller)
    hashed = _hashed(services, body.password, name)
    with services.catalog.write() as conn:
        if hashed is not None:
            accounts.set_password(conn, services.ambient, id, hashed)
        if body.administrator is not None:
            accounts.set_administrator(conn, services.ambient, id, body.administrator)
        if body.enabled is not None:
            accounts.set_enabled(conn, services.ambient, id, body.enabled)
        shown = _user_in_full(conn, services, id)
        detail: dict[str, Any] = body.model_dump(exclude_none=True, exclude={"password"})
        _note(conn, services, caller, "updateUser", "user", id, name, detail | ({"password": "changed"} if hashed else {}))
    return shown


@router.delete(_PATH + "/users/{user}", status_code=204, response_class=Response)
def delete_user(user: Text, caller: Managing, services: Given) -> None:
    """Removes a user with keys, tokens, memberships and grants."""
    with services.catalog.write() as conn:
        id, name = _find(conn, t.user, "user", user, caller)
        accounts.delete_user(conn, services.ambient, id)
        _note(conn, services, caller, "deleteUser", "user", id, name)


# --- second factors ----------------------------------------------------------------------------------------------------


@router.post(_PATH + "/users/{user}/totp", status_code=201)
def enrol(user: Text, caller: Managing, services: Given) -> dict[str, str]:
    """Draws the secret of a second factor and shows it once; it is asked for once a code was confirmed."""
    with services.catalog.write() as conn:
        id, name = _find(conn, t.user, "user", user, caller)
        made = totp.enrol(conn, services.ambient, services.sealer, id)
        _note(conn, services, caller, "createMFADevice", "user", id, name)
    return {"user_id": id, "secret": made.secret, "uri": made.uri}


@router.put(_PATH + "/users/{user}/totp", status_code=204, response_class=Response)
def confirm(user: Text, body: Code, caller: Managing, services: Given) -> None:
    """From here on every token by password needs a code."""
    with services.catalog.write() as conn:
        id, name = _find(conn, t.user, "user", user, caller)
        totp.confirm(conn, services.ambient, services.sealer, id, body.passcode.get_secret_value())
        _note(conn, services, caller, "bindMFADevice", "user", id, name)


@router.delete(_PATH + "/users/{user}/totp", status_code=204, response_class=Response)
def remove_factor(user: Text, caller: Managing, services: Given) -> None:
    """The user enters by password alone again."""
    with services.catalog.write() as conn:
        id, name = _find(conn, t.user, "user", user, caller)
        totp.remove(conn, services.ambient, id)
        _note(conn, services, caller, "unbindMFADevice", "user", id, name)


# --- access keys -------------------------------------------------------------------------------------------------------


@router.post(_PATH + "/users/{user}/keys", status_code=201)
def create_key(user: Text, caller: Managing, services: Given) -> dict[str, str]:
    """Makes an access key. Its secret is shown here and never again."""
    with services.catalog.write() as conn:
        id, name = _find(conn, t.user, "user", user, caller)
        key = accounts.create_access_key(conn, services.ambient, services.sealer, id)
        _note(conn, services, caller, "createCredential", "credential", key.id, name)
    return {"user_id": id, "access_key": key.id, "secret_key": key.secret}


@router.put(_PATH + "/keys/{key}")
def change_key(key: Text, body: KeyChange, caller: Managing, services: Given) -> dict[str, Any]:
    """Disables or enables an access key. All tokens of its user end at once."""
    with services.catalog.write() as conn:
        user, name = _owner_of(conn, key, caller)
        accounts.set_access_key_enabled(conn, services.ambient, user, key, body.enabled)
        _note(conn, services, caller, "updateCredential", "credential", key, name, {"enabled": body.enabled})
    return {"user_id": user, "access_key": key, "enabled": body.enabled}


@router.delete(_PATH + "/keys/{key}", status_code=204, response_class=Response)
def delete_key(key: Text, caller: Managing, services: Given) -> None:
    """Removes an access key. All tokens of its user end at once."""
    with services.catalog.write() as conn:
        user, name = _owner_of(conn, key, caller)
        accounts.delete_access_key(conn, services.ambient, user, key)
        _note(conn, services, caller, "deleteCredential", "credential", key, name)


# --- groups ------------------------------------------------------------------------------------------------------------


@router.get(f"{_PATH}/groups")
def list_groups(caller: Looking, services: Given) -> dict[str, Any]:
    """The account's groups by name."""
    with services.catalog.read() as conn:
        rows = conn.execute(sa.select(t.group).where(t.group.c.account == caller.account).order_by(t.group.c.name)).all()
        return {"groups": [_group_item(conn, row) for row in rows]}


@router.post(f"{_PATH}/groups", status_code=201)
def create_group(body: Name, caller: Managing, services: Given) -> dict[str, Any]:
    """Makes a group without members and policies."""
    with services.catalog.write() as conn:
        group = accounts.create_group(conn, services.ambient, caller.account, body.name)
        _note(conn, services, caller, "createGroup", "group", group, body.name)
        return {"id": group, "name": body.name, "members": [], "grants": []}


@router.get(_PATH + "/groups/{group}")
def show_group(group: Text, caller: Looking, services: Given) -> dict[str, Any]:
    """A group with members and policies."""
    with services.catalog.read() as conn:
        id, _ = _find(conn, t.group, "group", group, caller)
        return _group_item(conn, conn.execute(sa.select(t.group).where(t.group.c.id == id)).one())


@router.delete(_PATH + "/groups/{group}", status_code=204, response_class=Response)
def delete_group(group: Text, caller: Managing, services: Given) -> None:
    """Removes a group; its members lose what it had, and their tokens end."""
    with services.catalog.write() as conn:
        id, name = _find(conn, t.group, "group", group, caller)
        accounts.delete_group(conn, services.ambient, id)
        _note(conn, services, caller, "deleteGroup", "group", id, name)


@router.put(_PATH + "/groups/{group}/members/{user}", status_code=204, response_class=Response)
def join(group: Text, user: Text, caller: Managing, services: Given) -> None:
    """Makes a user a member."""
    with services.catalog.write() as conn:
        id, name = _find(conn, t.group, "group", group, caller)
        member, member_name = _find(conn, t.user, "user", user, caller)
        accounts.join(conn, services.ambient, id, member)
        _note(conn, services, caller, "addUserToGroup", "group", id, name, {"user": member, "user_name": member_name})


@router.delete(_PATH + "/groups/{group}/members/{user}", status_code=204, response_class=Response)
def leave(group: Text, user: Text, caller: Managing, services: Given) -> None:
    """Ends a membership."""
    with services.catalog.write() as conn:
        id, name = _find(conn, t.group, "group", group, caller)
        member, member_name = _find(conn, t.user, "user", user, caller)
        accounts.leave(conn, services.ambient, id, member)
        _note(conn, services, caller, "removeUserFromGroup", "group", id, name, {"user": member, "user_name": member_name})


# --- policies and who has them -----------------------------------------------------------------------------------------


@router.get(f"{_PATH}/policies")
def list_policies(caller: Looking, services: Given) -> dict[str, Any]:
    """Built-in policies and the account's own."""
    with services.catalog.read() as conn:
        rows = conn.execute(sa.select(t.policy).where(t.policy.c.account == caller.account).order_by(t.policy.c.name)).all()
    built_in = [{"id": name, "name": name, "built_in": True} for name in sorted(BUILT_IN)]
    return {"policies": built_in + [{"id": row.id, "name": row.name, "built_in": False} for row in rows]}


@router.get(_PATH + "/policies/{policy}")
def show_policy(policy: Text, caller: Looking, services: Given) -> dict[str, Any]:
    """A policy with its document."""
    if policy in BUILT_IN:
        return {"id": policy, "name": policy, "built_in": True, "document": BUILT_IN[policy]}
    with services.catalog.read() as conn:
        id, name = _find(conn, t.policy, "policy", policy, caller)
        document = conn.scalar(sa.select(t.policy.c.document).where(t.policy.c.id == id))
    return {"id": id, "name": name, "built_in": False, "document": document}


@router.put(_PATH + "/policies/{policy}")
def put_policy(policy: Text, body: Document, caller: Managing, services: Given) -> dict[str, str]:
    """Stores a policy under a name, replacing an older one: the tokens of all who have it end."""
    with services.catalog.write() as conn:
        id = accounts.put_policy(conn, services.ambient, caller.account, policy, body.document)
        _note(conn, services, caller, "updatePolicy", "policy", id, policy)
    return {"id": id, "name": policy}


@router.delete(_PATH + "/policies/{policy}", status_code=204, response_class=Response)
def delete_policy(policy: Text, caller: Managing, services: Given) -> None:
    """Removes a policy and takes it from all who have it."""
    with services.catalog.write() as conn:
        id, name = _find(conn, t.policy, "policy", policy, caller)
        accounts.delete_policy(conn, services.ambient, caller.account, id)
        _note(conn, services, caller, "deletePolicy", "policy", id, name)


@router.put(_PATH + "/{kind}/{holder}/grants", status_code=204, response_class=Response)
def grant(kind: Text, holder: Text, body: Grant, caller: Managing, services: Given) -> None:
    """Gives a user or a group a policy."""
    _change_grant(services, caller, kind, holder, body, given_away=True)


@router.delete(_PATH + "/{kind}/{holder}/grants", status_code=204, response_class=Response)
def revoke(kind: Text, holder: Text, policy: Text, caller: Managing, services: Given, project: Text | None = None) -> None:
    """Takes a policy from a user or a group."""
    _change_grant(services, caller, kind, holder, Grant(policy=policy, project=project), given_away=False)


@router.post(f"{_PATH}/simulations")
def simulate_policy(body: Simulation, caller: Looking, services: Given) -> dict[str, Any]:
    """Whether a user may do it, and which statement decided. Nothing is done."""
    context = dict(read_context(key, value) for key, value in body.context.items())
    with services.catalog.read() as conn:
        user, _ = _find(conn, t.user, "user", body.user, caller)
        project = None if body.project is None else _find(conn, t.project, "project", body.project, caller)[0]
        asked = Question(user, body.action, project, services.ambient.now(), body.documents, context)
        return asdict(simulate(conn, asked))


# --- projects ----------------------------------------------------------------------------------------------------------


@router.get(f"{_PATH}/projects")
def list_projects(caller: Looking, services: Given) -> dict[str, Any]:
    """The account's projects by name."""
    p = t.project.c
    with services.catalog.read() as conn:
        rows = conn.execute(sa.select(p.id, p.name).where(p.account == caller.account).order_by(p.name)).all()
    return {"projects": [{"id": row.id, "name": row.name} for row in rows]}


@router.post(f"{_PATH}/projects", status_code=201)
def create_project(body: Name, caller: Managing, services: Given) -> dict[str, str]:
    """Makes a project."""
    with services.catalog.write() as conn:
        project = accounts.create_project(conn, services.ambient, caller.account, body.name)
        _note(conn, services, caller, "createProject", "project", project, body.name)
    return {"id": project, "name": body.name}


# --- what they share ---------------------------------------------------------------------------------------------------


def _change_grant(services: Services, caller: Principal, kind: str, holder: str, body: Grant, *, given_away: bool) -> None:
    table = {"users": t.user, "groups": t.group}.get(kind)
    if table is None:
        raise NotKnown("kind of holder", kind)
    with services.catalog.write() as conn:
        id, name = _find(conn, table, kind.removesuffix("s"), holder, caller)
        policy = body.policy if body.policy in BUILT_IN else _find(conn, t.policy, "policy", body.policy, caller)[0]
        project = "" if body.project is None else _find(conn, t.project, "project", body.project, caller)[0]
        change = accounts.grant if given_away else accounts.revoke
        change(conn, services.ambient, id, policy, project)
        event = "grantPolicy" if given_away else "revokePolicy"
        _note(conn, services, caller, event, kind.removesuffix("s"), id, name, {"policy": body.policy, "project": project})


def _find(conn: Connection, table: sa.Table, kind: str, word: str, caller: Principal) -> tuple[str, str]:
    """(id, name) of what the caller's account has by this id or name; an id goes first. Raises NotKnown."""
    mine = sa.select(table.c.id, table.c.name).where(table.c.account == caller.account)
    for column in (table.c.id, table.c.name):
        row = conn.execute(mine.where(column == word)).one_or_none()
        if row is not None:
            return row.id, row.name
    raise NotKnown(kind, word)


def _owner_of(conn: Connection, key: str, caller: Principal) -> tuple[str, str]:
    """(id, name) of the user of the caller's account whose access key it is. Raises NotKnown."""
    row = conn.execute(
        sa.select(t.user.c.id, t.user.c.name)
        .join(t.access_key, t.access_key.c.user == t.user.c.id)
        .where(t.access_key.c.id == key, t.user.c.account == caller.account)
    ).one_or_none()
    if row is None:
        raise NotKnown("access key", key)
    return row.id, row.name


def _hashed(services: Services, password: SecretStr | None, name: str) -> str | None:
    """The password's hash, outside of any transaction: it takes a tenth of a second. Raises WeakPassword."""
    if password is None:
        return None
    check_strength(password.get_secret_value(), name)
    return services.passwords.hash(password.get_secret_value())


def _note(
    conn: Connection, services: Services, caller: Principal, event: str, kind: str, id: str, name: str,
    detail: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    audit.append(conn, services.ambient, audit.Entry.by(caller, event, kind, id, name, detail=detail))


def _user_item(row: sa.Row[Any], now: float) -> dict[str, Any]:
    resting = row.locked_until is not None and row.locked_until > now
    return {
        "id": row.id,
        "name": row.name,
        "enabled": row.enabled,
        "administrator": row.administrator,
        "password": row.password is not None,
        "second_factor": row.totp_confirmed,
        "resting_until": time_text(row.locked_until) if resting else None,
        "created_at": time_text(row.created_at),
    }


def _user_in_full(conn: Connection, services: Services, user: str) -> dict[str, Any]:
    now = services.ambient.now()
    row = conn.execute(sa.select(t.user).where(t.user.c.id == user)).one()
    member_of = sa.select(t.group.c.name).join(t.membership, t.membership.c.group == t.group.c.id)
    k = t.access_key.c
    keys = conn.execute(sa.select(t.access_key).where(k.user == user).order_by(k.created_at, k.id)).all()
    return _user_item(row, now) | {
        "groups": list(conn.scalars(member_of.where(t.membership.c.user == user).order_by(t.group.c.name))),
        "grants": _grants(conn, user),
        "keys": [
            {
                "access_key": key.id,
                "enabled": key.enabled,
                "created_at": time_text(key.created_at),
                "locked_until": time_text(key.locked_until) if key.locked_until is not None and key.locked_until > now else None,
                "expires_at": None if key.expires_at is None else time_text(key.expires_at),
            }
            for key in keys
        ],
    }


def _group_item(conn: Connection, row: sa.Row[Any]) -> dict[str, Any]:
    members = sa.select(t.user.c.name).join(t.membership, t.membership.c.user == t.user.c.id)
    return {
        "id": row.id,
        "name": row.name,
        "members": list(conn.scalars(members.where(t.membership.c.group == row.id).order_by(t.user.c.name))),
        "grants": _grants(conn, row.id),
    }


def _grants(conn: Connection, holder: str) -> list[dict[str, str | None]]:
    g = t.policy_grant.c
    rows = conn.execute(
        sa.select(g.policy, g.project, t.policy.c.name, t.project.c.name.label("project_name"))
        .outerjoin(t.policy, t.policy.c.id == g.policy)
        .outerjoin(t.project, t.project.c.id == g.project)
        .where(g.holder == holder)
        .order_by(g.policy, g.project)
    )
    return [{"policy": row.name or row.policy, "project": row.project_name} for row in rows]
