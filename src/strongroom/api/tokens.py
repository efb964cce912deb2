"""Identity's own calls: tokens, and what a caller's account has. Forms and names are Keystone's version 3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import BoundedSemaphore
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import Header, Request, Response
from pydantic import AliasChoices, BaseModel, Field, SecretStr
from sqlalchemy import Connection

from strongroom.api.authentication import Caller, authenticated_router, public_router
from strongroom.api.contract import Text
from strongroom.api.errors import NOT_FOUND, TOO_MANY, ApiError, ParameterError, TooManyRequests
from strongroom.api.limiter import Limiter, site_of
from strongroom.api.middleware import arrival_of
from strongroom.api.services import Services, given
from strongroom.identity import audit, temporary
from strongroom.identity import tables as t
from strongroom.identity import tokens as kept
from strongroom.identity.callers import Asked, ProjectView, usable_projects
from strongroom.identity.errors import Unauthenticated
from strongroom.identity.principal import Principal
from strongroom.identity.signing_in import Door, User, Wanted, token_event, users

_public = public_router("identity")
_router = authenticated_router("identity")
ROUTERS = (_public, _router)

PASSWORDS_AT_ONCE = 24
"""Passwords that are checked or wait for it at once, of all callers; fewer than the server has threads."""

Given = Annotated[Services, given(Services)]
SubjectToken = Annotated[str, Header(alias="X-Subject-Token", min_length=1, max_length=4096)]

# --- requests ----------------------------------------------------------------------------------------------------------


class Named(BaseModel):
    """Something named by id or by name."""

    id: Text | None = None
    name: Text | None = None


class UserProof(Named):
    password: SecretStr = Field(max_length=1024)
    domain: Named | None = None


class PasswordProof(BaseModel):
    user: UserProof


class TokenProof(BaseModel):
    id: SecretStr = Field(min_length=1, max_length=4096)


class CodeUser(Named):
    passcode: SecretStr = Field(min_length=1, max_length=16)


class CodeProof(BaseModel):
    user: CodeUser


class IdentityProof(BaseModel):
    methods: list[Literal["password", "totp", "token"]] = Field(min_length=1, max_length=2)
    password: PasswordProof | None = None
    totp: CodeProof | None = None
    token: TokenProof | None = None


class Scope(BaseModel):
    project: Named | None = None
    domain: Named | None = None


class Auth(BaseModel):
    identity: IdentityProof
    scope: Scope | None = None


class TokenRequest(BaseModel):
    auth: Auth


class LentProof(BaseModel):
    id: SecretStr | None = Field(default=None, min_length=1, max_length=4096)
    duration_seconds: int = Field(
        temporary.SHORTEST,
        ge=temporary.SHORTEST,
        le=temporary.LONGEST,
        validation_alias=AliasChoices("duration_seconds", "duration-seconds"),
    )


class LentIdentity(BaseModel):
    methods: list[Literal["token"]] = Field(min_length=1, max_length=1)
    token: LentProof = Field(default_factory=lambda: LentProof.model_validate({}))
    policy: Any = None


class LentAuth(BaseModel):
    identity: LentIdentity


class SecurityTokenRequest(BaseModel):
    auth: LentAuth


# --- tokens ------------------------------------------------------------------------------------------------------------


@_public.post("/v3/auth/tokens", status_code=201)
def create_token(
    body: TokenRequest, request: Request, response: Response, services: Given, nocatalog: str | None = None
) -> dict[str, Any]:
    """Makes a token for 24 hours; its text is in the answer's header X-Subject-Token."""
    arrival = arrival_of(request.scope)
    asked = Asked(None, arrival.request_id, arrival.source)
    proof = body.auth.identity
    methods = sorted(set(proof.methods))
    if methods in (["password"], ["password", "totp"]):
        logins: Limiter = request.app.state.logins
        if wait := logins.take(site_of(arrival.source)):
            raise TooManyRequests("address", wait)
        with _turn(request.app.state.password_turns):
            user = _by_password(services, asked, proof, second="totp" in methods)
    elif methods == ["token"]:
        user = _by_token(services, proof.token)
    else:
        raise ParameterError("Parameter error: identity.methods is password, password and totp, or token.")
    method: Literal["password", "token"] = "token" if methods == ["token"] else "password"
    try:
        with services.catalog.write() as conn:
            project = _scope(conn, user, body.auth.scope)
            scoped = project.id if project else None
            issued = kept.issue(conn, services.ambient, user.id, user.epoch, scoped, method, user.ends_at, user.mfa_at)
            audit.append(conn, services.ambient, token_event(user, asked, scoped, methods))
    except Unauthenticated:  # they are who they say, but the scope is not theirs, or they were changed meanwhile
        with services.catalog.write() as conn:
            audit.append(conn, services.ambient, token_event(user, asked, None, methods, "REFUSED"))
        raise
    response.headers["X-Subject-Token"] = issued.text
    made = kept.Valid(user.id, user.epoch, scoped, method, issued.issued_at, issued.expires_at, user.mfa_at)
    return _token_body(request, user, project, made, catalog=nocatalog is None)


@_router.get("/v3/auth/tokens")
def show_token(
    subject: SubjectToken, request: Request, response: Response, caller: Caller, services: Given, nocatalog: str | None = None
) -> dict[str, Any]:
    """Says what a token is worth: one's own, or for the administrator any of the account."""
    with services.catalog.read() as conn:
        token, user = _subject(conn, services, caller, subject)
        projects = {project.id: project for project in usable_projects(conn, user.id)}
    response.headers["X-Subject-Token"] = subject
    return _token_body(request, user, projects.get(token.project or ""), token, catalog=nocatalog is None)


@_router.delete("/v3/auth/tokens", status_code=204, response_class=Response)
def revoke_token(subject: SubjectToken, caller: Caller, services: Given) -> None:
    """Ends a token at once: one's own, or for the administrator any of the account."""
    with services.catalog.write() as conn:
        _, user = _subject(conn, services, caller, subject)
        kept.revoke(conn, subject, services.ambient.now())
        audit.append(conn, services.ambient, audit.Entry.by(caller, "deleteToken", "token", user.id, user.name))


@_public.post("/v3.0/OS-CREDENTIAL/securitytokens", status_code=201)
def create_security_token(
    body: SecurityTokenRequest,
    request: Request,
    services: Given,
    token: Annotated[str | None, Header(alias="X-Auth-Token", max_length=4096)] = None,
) -> dict[str, Any]:
    """Makes a temporary access key with its security token, by a token in the header or the body."""
    arrival = arrival_of(request.scope)
    lent = body.auth.identity
    if lent.policy is not None:
        raise ParameterError("Parameter error: identity.policy is not supported; the credentials may do what their user may.")
    text = token or (lent.token.id.get_secret_value() if lent.token.id else None)
    if text is None:
        raise Unauthenticated("temporary credentials need a token in X-Auth-Token or in identity.token.id")
    user = _by_token(services, TokenProof(id=SecretStr(text)))
    with services.catalog.write() as conn:
        made = temporary.create(conn, services.ambient, services.sealer, user, lent.token.duration_seconds)
        entry = audit.Entry(
            "createSecurityToken", "credential", made.key.id, account=user.account, user=user.id, user_name=user.name,
            request_id=arrival.request_id, source=arrival.source,
        )  # fmt: skip
        audit.append(conn, services.ambient, entry)
    return {
        "credential": {
            "access": made.key.id,
            "secret": made.key.secret,
            "securitytoken": made.token,
            "expires_at": _keystone_time(made.expires_at),
        }
    }


@contextmanager
def _turn(turns: BoundedSemaphore) -> Iterator[None]:
    """One of the passwords that are checked, or wait for it, at once. Checking is slow on purpose: what many addresses send at
    once must not take all threads of the server."""
    if not turns.acquire(blocking=False):
        raise ApiError(429, TOO_MANY, "Too many passwords are being checked. Try again in 1 s.", {"Retry-After": "1"})
    try:
        yield
    finally:
        turns.release()


def _by_password(services: Services, asked: Asked, proof: IdentityProof, *, second: bool) -> User:
    named = proof.password.user if proof.password is not None else None
    if named is None or not (named.id or named.name):
        raise ParameterError("Parameter error: identity.password.user needs a password and an id or a name.")
    code = None
    if second:
        if proof.totp is None:
            raise ParameterError("Parameter error: identity.totp.user needs a passcode.")
        other = proof.totp.user
        if (other.id not in (None, named.id) and named.id) or (other.name not in (None, named.name) and named.name):
            raise ParameterError("Parameter error: identity.password and identity.totp name different users.")
        code = other.passcode.get_secret_value()
    domain = named.domain or Named()
    wanted = Wanted(named.id, named.name, domain.id, domain.name)
    door = Door(services.catalog, services.ambient, services.sealer, services.passwords)
    return door.by_password(wanted, named.password.get_secret_value(), code, asked)


def _by_token(services: Services, proof: TokenProof | None) -> User:
    if proof is None:
        raise ParameterError("Parameter error: identity.token needs an id.")
    with services.catalog.read() as conn:
        token = kept.validate(conn, proof.id.get_secret_value(), services.ambient.now())
        return _user(conn, token)


def _scope(conn: Connection, user: User, scope: Scope | None) -> ProjectView | None:
    """The project that a token is for; None: the account."""
    if scope is None or scope.project is None:
        domain = scope.domain if scope is not None else None
        if domain is not None and (domain.id or user.account, domain.name or user.account_name) != (
            user.account,
            user.account_name,
        ):
            raise Unauthenticated("the domain of the scope is not the user's")
        return None
    wanted = scope.project
    if not (wanted.id or wanted.name):
        raise ParameterError("Parameter error: scope.project needs an id or a name.")
    for project in usable_projects(conn, user.id):
        if wanted.id in (None, project.id) and wanted.name in (None, project.name):
            return project
    raise Unauthenticated("the user has no part in the project of the scope")


def _subject(conn: Connection, services: Services, caller: Principal, text: str) -> tuple[kept.Valid, User]:
    """The token that a call is about, if it is the caller's business."""
    unknown = ApiError(404, NOT_FOUND, "Could not find the token.")
    try:
        token = kept.validate(conn, text, services.ambient.now())
    except Unauthenticated:
        raise unknown from None
    user = _user(conn, token)
    if user.id != caller.user and not (caller.administrator and user.account == caller.account):
        raise unknown
    return token, user


def _user(conn: Connection, token: kept.Valid) -> User:
    row = conn.execute(users().where(t.user.c.id == token.user)).one()
    who = (row.id, row.name, row.account, row.account_name, row.administrator)
    return User(*who, token.epoch, token.mfa_at, token.expires_at)


# --- lists -------------------------------------------------------------------------------------------------------------


@_router.get("/v3/projects")
def list_projects(request: Request, caller: Caller, services: Given, name: Text | None = None) -> dict[str, Any]:
    """The projects that the caller may use, all or by name."""
    with services.catalog.read() as conn:
        found = usable_projects(conn, caller.user)
    base = _base(request)
    projects = [_project_item(base, project) for project in found if name in (None, project.name)]
    return {"projects": projects, "links": _links(f"{base}/v3/projects")}


@_router.get("/v3/auth/projects")
def list_own_projects(request: Request, caller: Caller, services: Given) -> dict[str, Any]:
    """The projects that the caller may use."""
    with services.catalog.read() as conn:
        found = usable_projects(conn, caller.user)
    base = _base(request)
    projects = [_project_item(base, project) for project in found]
    return {"projects": projects, "links": _links(f"{base}/v3/auth/projects")}


@_router.get("/v3/auth/domains")
def list_own_domains(request: Request, caller: Caller) -> dict[str, Any]:
    """The caller's account."""
    base = _base(request)
    domain = {
        "id": caller.account,
        "name": caller.account_name,
        "enabled": True,
        "description": "",
        "links": {"self": f"{base}/v3/domains/{caller.account}"},
    }
    return {"domains": [domain], "links": _links(f"{base}/v3/auth/domains")}


@_router.get("/v3/users")
def list_users(request: Request, caller: Caller, services: Given, name: Text | None = None) -> dict[str, Any]:
    """The account's users for its administrator; for others, themselves."""
    u = t.user.c
    wanted = sa.select(u.id, u.name, u.account, u.enabled).where(u.account == caller.account).order_by(u.name)
    if not caller.administrator:
        wanted = wanted.where(u.id == caller.user)
    if name is not None:
        wanted = wanted.where(u.name == name)
    with services.catalog.read() as conn:
        rows = conn.execute(wanted).all()
    base = _base(request)
    found = [
        {
            "id": row.id,
            "name": row.name,
            "domain_id": row.account,
            "enabled": row.enabled,
            "description": "",
            "password_expires_at": None,
            "links": {"self": f"{base}/v3/users/{row.id}"},
        }
        for row in rows
    ]
    return {"users": found, "links": _links(f"{base}/v3/users")}


# --- answers -----------------------------------------------------------------------------------------------------------


def _token_body(request: Request, user: User, project: ProjectView | None, token: kept.Valid, *, catalog: bool) -> dict[str, Any]:
    domain = {"id": user.account, "name": user.account_name}
    role = "administrator" if user.administrator else "member"
    by_code = token.mfa_at is not None and token.method == "password"
    body: dict[str, Any] = {
        "methods": [token.method, "totp"] if by_code else [token.method],
        "issued_at": _keystone_time(token.issued_at),
        "expires_at": _keystone_time(token.expires_at),
        "user": {"id": user.id, "name": user.name, "domain": domain, "password_expires_at": ""},
        "roles": [{"id": role, "name": role}],
    }
    if project is None:
        body["domain"] = domain
    else:
        body["project"] = {"id": project.id, "name": project.name, "domain": domain}
    if catalog:
        body["catalog"] = _catalog(_base(request), project)
    return {"token": body}


def _catalog(base: str, project: ProjectView | None) -> list[dict[str, Any]]:
    """Where the services are: all of them here."""
    places = {"iam": f"{base}/v3"}
    if project is not None:
        places["nosql"] = f"{base}/v3/{project.id}"
    return [
        {
            "id": kind,
            "name": kind,
            "type": kind,
            "endpoints": [{"id": kind, "interface": "public", "region": "*", "region_id": "*", "url": url}],
        }
        for kind, url in places.items()
    ]


def _project_item(base: str, project: ProjectView) -> dict[str, Any]:
    return {
        "id": project.id,
        "name": project.name,
        "domain_id": project.account,
        "parent_id": project.account,
        "enabled": True,
        "is_domain": False,
        "description": "",
        "links": {"self": f"{base}/v3/projects/{project.id}"},
    }


def _links(own: str) -> dict[str, str | None]:
    return {"self": own, "previous": None, "next": None}


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _keystone_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
