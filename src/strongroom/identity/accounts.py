"""Accounts, their projects, users, groups, policies and access keys.

Every function works in the caller's transaction. What takes something away from a user raises the user's epoch in it, which
ends all of that user's tokens the moment it commits. Passwords arrive hashed (passwords.py): hashing takes too long for a
transaction.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from strongroom.ambient import Ambient
from strongroom.catalog.database import Catalog
from strongroom.identity import tables as t
from strongroom.identity.errors import IdentityError, LastAdministrator, NameTaken, NotKnown
from strongroom.identity.policies import BUILT_IN, parse
from strongroom.identity.secrets import Sealer

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


class NameInvalid(IdentityError):
    """Not a name for an account, project, user or policy."""


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A new access key: the only time that its secret is shown."""

    id: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Founded:
    """A new account with its first project and its administrator."""

    account: str
    project: str
    user: str


@dataclass(frozen=True, slots=True)
class FirstStart:
    """What the first start made, to be shown once."""

    founded: Founded
    key: AccessKey


def first_start(
    catalog: Catalog,
    ambient: Ambient,
    sealer: Sealer,
    *,
    password_hash: str | None,
    account: str = "strongroom",
    project: str = "default",
    user: str = "admin",
    tell: Callable[[FirstStart], None] = lambda _: None,
) -> FirstStart | None:
    """Founds the account with project, administrator and access key if the catalog has no account yet; None if it has.

    Safe to call at every start and by several processes at once: one of them founds. `tell` gets what was made before it is
    committed, so that no account exists whose secret nobody was told; if it raises, nothing was made.
    """
    try:
        with catalog.write() as conn:
            if conn.scalar(sa.select(sa.func.count()).select_from(t.account)):
                return None
            founded = found(conn, ambient, account, project, user, password_hash)
            made = FirstStart(founded, create_access_key(conn, ambient, sealer, founded.user))
            tell(made)
            return made
    except NameTaken:
        return None


def found(conn: Connection, ambient: Ambient, account: str, project: str, user: str, password_hash: str | None) -> Founded:
    """Makes an account with one project and its administrator. Raises NameTaken."""
    id = ambient.hex_id()
    row = {"id": id, "name": _named("account", account), "created_at": ambient.now()}
    _insert(conn, t.account, "account", account, row)
    made = create_project(conn, ambient, id, project)
    return Founded(id, made, create_user(conn, ambient, id, user, password_hash, administrator=True))


def create_project(conn: Connection, ambient: Ambient, account: str, name: str) -> str:
    """Makes a project and returns its id. Raises NameTaken."""
    id = ambient.hex_id()
    row = {"id": id, "account": account, "name": _named("project", name), "created_at": ambient.now()}
    _insert(conn, t.project, "project", name, row)
    return id


def create_user(
    conn: Connection, ambient: Ambient, account: str, name: str, password_hash: str | None, *, administrator: bool = False
) -> str:
    """Makes an enabled user without any permission and returns its id. Raises NameTaken."""
    id, now = ambient.hex_id(), ambient.now()
    row = {
        "id": id, "account": account, "name": _named("user", name), "password": password_hash,
        "administrator": administrator, "enabled": True, "epoch": 1, "wrong": 0, "totp_confirmed": False, "totp_last": 0,
        "created_at": now, "updated_at": now,
    }  # fmt: skip
    _insert(conn, t.user, "user", name, row)
    return id


def set_password(conn: Connection, ambient: Ambient, user: str, password_hash: str | None) -> None:
    """Changes the password; all tokens of the user end, and who was locked out may try again."""
    change_user(conn, ambient, user, password=password_hash, wrong=0, locked_until=None)


def set_enabled(conn: Connection, ambient: Ambient, user: str, enabled: bool) -> None:
    """Disables or enables a user; all tokens end, and a disabled user's keys sign nothing. Raises LastAdministrator."""
    account = change_user(conn, ambient, user, enabled=enabled)
    if not enabled:
        _keep_an_administrator(conn, account)


def set_administrator(conn: Connection, ambient: Ambient, user: str, administrator: bool) -> None:
    """Makes the user stand for the account itself, or no longer; all tokens end. Raises LastAdministrator."""
    account = change_user(conn, ambient, user, administrator=administrator)
    if not administrator:
        _keep_an_administrator(conn, account)


def delete_user(conn: Connection, ambient: Ambient, user: str) -> None:
    """Removes a user with keys, tokens, memberships and grants; what they did stays in the audit trail. LastAdministrator."""
    account = change_user(conn, ambient, user, enabled=False)
    _keep_an_administrator(conn, account)
    for table, holder in (
        (t.policy_grant, t.policy_grant.c.holder), (t.membership, t.membership.c.user), (t.token, t.token.c.user),
        (t.access_key, t.access_key.c.user), (t.user, t.user.c.id),
    ):  # fmt: skip
        conn.execute(sa.delete(table).where(holder == user))


def _keep_an_administrator(conn: Connection, account: str) -> None:
    """The account's row is locked first: two administrators who disable each other at the same time do it one by one."""
    conn.execute(sa.update(t.account).where(t.account.c.id == account).values(name=t.account.c.name))
    u = t.user.c
    left = sa.select(sa.func.count()).where(u.account == account, u.administrator, u.enabled)
    if conn.scalar(left) == 0:
        raise LastAdministrator


def put_policy(conn: Connection, ambient: Ambient, account: str, name: str, document: str) -> str:
    """Stores a policy under a name of the account, replacing an older one; returns its id. Raises PolicyInvalid.

    Ends the tokens of all users who have it.
    """
    parse(document)
    if name in BUILT_IN:
        raise NameTaken("built-in policy", name)
    c, now = t.policy.c, ambient.now()
    old = sa.select(c.id).where(c.account == account, c.name == name)
    if (id := conn.scalar(old)) is not None:
        conn.execute(sa.update(t.policy).where(c.id == id).values(document=document, updated_at=now))
        _end_tokens_of_holders(conn, ambient, id)
        return str(id)
    id = ambient.hex_id()
    row = {"id": id, "account": account, "name": _named("policy", name), "document": document}
    _insert(conn, t.policy, "policy", name, row | {"created_at": now, "updated_at": now})
    return id


def delete_policy(conn: Connection, ambient: Ambient, account: str, policy: str) -> None:
    """Removes a policy and takes it from all users who have it."""
    where = sa.and_(t.policy.c.id == policy, t.policy.c.account == account)
    if conn.scalar(sa.select(t.policy.c.id).where(where)) is None:
        raise NotKnown("policy", policy)
    _end_tokens_of_holders(conn, ambient, policy)
    conn.execute(sa.delete(t.policy_grant).where(t.policy_grant.c.policy == policy))
    conn.execute(sa.delete(t.policy).where(where))


def grant(conn: Connection, ambient: Ambient, holder: str, policy: str, project: str = "") -> None:
    """Gives a user or a group a policy (an id or the name of a built-in one), in one project or ("") in all of the account's."""
    account = _change_holder(conn, ambient, holder)
    known = sa.select(t.policy.c.id).where(t.policy.c.id == policy, t.policy.c.account == account)
    if policy not in BUILT_IN and conn.scalar(known) is None:
        raise NotKnown("policy", policy)
    mine = sa.select(t.project.c.id).where(t.project.c.id == project, t.project.c.account == account)
    if project and conn.scalar(mine) is None:
        raise NotKnown("project", project)
    _forget_grant(conn, holder, policy, project)
    row = {"holder": holder, "policy": policy, "project": project, "created_at": ambient.now()}
    conn.execute(sa.insert(t.policy_grant).values(**row))


def revoke(conn: Connection, ambient: Ambient, holder: str, policy: str, project: str = "") -> None:
    """Takes a policy from a user or a group. Taking what they do not have is no error."""
    _change_holder(conn, ambient, holder)
    _forget_grant(conn, holder, policy, project)


def _forget_grant(conn: Connection, holder: str, policy: str, project: str) -> None:
    c = t.policy_grant.c
    conn.execute(sa.delete(t.policy_grant).where(c.holder == holder, c.policy == policy, c.project == project))


def create_group(conn: Connection, ambient: Ambient, account: str, name: str) -> str:
    """Makes a group without members or policies and returns its id. Raises NameTaken."""
    id = ambient.hex_id()
    row = {"id": id, "account": account, "name": _named("group", name), "created_at": ambient.now()}
    _insert(conn, t.group, "group", name, row)
    return id


def delete_group(conn: Connection, ambient: Ambient, group: str) -> None:
    """Removes a group; the tokens of its members end."""
    _change_holder(conn, ambient, group)
    conn.execute(sa.delete(t.policy_grant).where(t.policy_grant.c.holder == group))
    conn.execute(sa.delete(t.membership).where(t.membership.c.group == group))
    conn.execute(sa.delete(t.group).where(t.group.c.id == group))


def join(conn: Connection, ambient: Ambient, group: str, user: str) -> None:
    """Makes a user a member of a group of the same account; the user's tokens end. Joining again is no error."""
    _require_group(conn, group, change_user(conn, ambient, user))
    _forget_member(conn, group, user)
    conn.execute(sa.insert(t.membership).values(group=group, user=user))


def leave(conn: Connection, ambient: Ambient, group: str, user: str) -> None:
    """Ends a membership; the user's tokens end. Leaving again is no error."""
    _require_group(conn, group, change_user(conn, ambient, user))
    _forget_member(conn, group, user)


def _forget_member(conn: Connection, group: str, user: str) -> None:
    c = t.membership.c
    conn.execute(sa.delete(t.membership).where(c.group == group, c.user == user))


def _require_group(conn: Connection, group: str, account: str) -> None:
    known = sa.select(t.group.c.id).where(t.group.c.id == group, t.group.c.account == account)
    if conn.scalar(known) is None:
        raise NotKnown("group", group)


def create_access_key(
    conn: Connection, ambient: Ambient, sealer: Sealer, user: str, session: Mapping[str, object] | None = None
) -> AccessKey:
    """Makes a key for signing requests. Its secret is returned here and never again. `session`: what makes it a temporary one."""
    text = base64.b32encode(ambient.key()).decode()
    key = AccessKey("SR" + text[:18], base64.urlsafe_b64encode(ambient.key()).rstrip(b"=").decode())
    conn.execute(
        sa.insert(t.access_key).values(
            id=key.id,
            user=user,
            secret=sealer.seal(key.secret.encode(), "access-key", key.id),
            enabled=True,
            wrong=0,
            locked_until=None,
            created_at=ambient.now(),
            **(session or {}),
        )
    )
    return key


def set_access_key_enabled(conn: Connection, ambient: Ambient, user: str, key: str, enabled: bool) -> None:
    """Disables or enables one of the user's keys; all of the user's tokens end."""
    where = sa.and_(t.access_key.c.id == key, t.access_key.c.user == user)
    if not conn.execute(sa.update(t.access_key).where(where).values(enabled=enabled)).rowcount:
        raise NotKnown("access key", key)
    change_user(conn, ambient, user)


def delete_access_key(conn: Connection, ambient: Ambient, user: str, key: str) -> None:
    """Removes one of the user's keys; all of the user's tokens end."""
    where = sa.and_(t.access_key.c.id == key, t.access_key.c.user == user)
    if not conn.execute(sa.delete(t.access_key).where(where)).rowcount:
        raise NotKnown("access key", key)
    change_user(conn, ambient, user)


def change_user(conn: Connection, ambient: Ambient, user: str, **values: object) -> str:
    """Changes a user's row, ends the user's tokens and temporary keys, and returns the user's account. Raises NotKnown."""
    step = sa.update(t.user).where(t.user.c.id == user).returning(t.user.c.account)
    changed = conn.scalar(step.values(**values, epoch=t.user.c.epoch + 1, updated_at=ambient.now()))
    if changed is None:
        raise NotKnown("user", user)
    return str(changed)


def _change_holder(conn: Connection, ambient: Ambient, holder: str) -> str:
    """Ends the tokens of a user, or of a group's members, and returns the account. Raises NotKnown."""
    account = conn.scalar(sa.select(t.group.c.account).where(t.group.c.id == holder))
    if account is None:
        return change_user(conn, ambient, holder)
    _end_tokens(conn, ambient, sa.select(t.membership.c.user).where(t.membership.c.group == holder))
    return str(account)


def _end_tokens_of_holders(conn: Connection, ambient: Ambient, policy: str) -> None:
    holders = sa.select(t.policy_grant.c.holder).where(t.policy_grant.c.policy == policy)
    _end_tokens(conn, ambient, holders)
    _end_tokens(conn, ambient, sa.select(t.membership.c.user).where(t.membership.c.group.in_(holders)))


def _end_tokens(conn: Connection, ambient: Ambient, users: sa.Select[tuple[str]]) -> None:
    """Users' rows are locked by id, so that two changes of one group never wait for each other."""
    ids = conn.scalars(sa.select(t.user.c.id).where(t.user.c.id.in_(users)).order_by(t.user.c.id)).all()
    for user in ids:
        change_user(conn, ambient, user)


def _named(kind: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise NameInvalid(f"{name[:80]!a} is no name for a {kind}: 1 to 64 of A-Z a-z 0-9 _ . @ -, a letter or digit first.")
    return name


def _insert(conn: Connection, table: sa.Table, kind: str, name: str, row: Mapping[str, object]) -> None:
    try:
        conn.execute(sa.insert(table).values(**row))
    except IntegrityError as error:
        raise NameTaken(kind, name) from error
