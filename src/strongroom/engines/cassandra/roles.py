"""Roles and what they may do, as CQL that makes them again: passwords as their hashes, which are all that a cluster keeps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from strongroom.engines.base import EngineDenied, EngineUnsupported
from strongroom.engines.cassandra.connection import Session
from strongroom.engines.cassandra.schema import quoted, split, text_of

_MADE = re.compile(r'CREATE ROLE IF NOT EXISTS "(?P<name>(?:[^"]|"")*)" WITH ')
_FUNCTION = re.compile(r"(?P<name>[^\[]+)\[(?P<types>.*)\]")


@dataclass(frozen=True, slots=True)
class Role:
    """A role without its grants."""

    name: str
    superuser: bool
    login: bool
    hash: str | None = None

    def options(self) -> str:
        """What CREATE ROLE and ALTER ROLE take after WITH."""
        told = f"SUPERUSER = {str(self.superuser).lower()} AND LOGIN = {str(self.login).lower()}"
        return told if self.hash is None else f"{told} AND HASHED PASSWORD = {text_of(self.hash)}"


@dataclass(frozen=True, slots=True)
class Access:
    """All roles, and the statements that grant what they have."""

    roles: Sequence[Role]
    grants: Sequence[str]
    missed: Sequence[str] = ()  # rights that CQL cannot grant, as sentences

    def script(self) -> str:
        """For cqlsh."""
        made = [f"CREATE ROLE IF NOT EXISTS {quoted(role.name)} WITH {role.options()}" for role in self.roles]
        return "".join(f"{statement};\n" for statement in [*made, *self.grants])


def read_access(session: Session) -> Access:
    """Raises EngineDenied if the user may not read them."""
    roles = [
        Role(row.role, bool(row.is_superuser), bool(row.can_login), row.salted_hash or None)
        for row in session.rows("SELECT role, is_superuser, can_login, salted_hash FROM system_auth.roles")
    ]
    members = session.rows("SELECT role, member FROM system_auth.role_members")
    grants = [f"GRANT {quoted(row.role)} TO {quoted(row.member)}" for row in members]
    missed: list[str] = []
    for row in session.rows("SELECT role, resource, permissions FROM system_auth.role_permissions"):
        try:
            where = resource(row.resource)
        except ValueError:
            missed.append(f"the rights of role {row.role} on {row.resource} are not in the backup: they cannot be granted by CQL")
            continue
        grants += [f"GRANT {permission} ON {where} TO {quoted(row.role)}" for permission in sorted(row.permissions or ())]
    return Access(sorted(roles, key=lambda role: role.name), sorted(grants), missed)


def resource(path: str) -> str:
    """What GRANT calls a resource, of the way that Cassandra stores it: "data/shop/orders" is TABLE "shop"."orders".

    ValueError: of no kind that is known here."""
    kind, *rest = path.split("/", 2)
    match kind, rest:
        case "data", []:
            return "ALL KEYSPACES"
        case "data", [keyspace]:
            return f"KEYSPACE {quoted(keyspace)}"
        case "data", [keyspace, "*"]:
            return f"ALL TABLES IN KEYSPACE {quoted(keyspace)}"
        case "data", [keyspace, table]:
            return f"TABLE {quoted(keyspace)}.{quoted(table)}"
        case "roles", []:
            return "ALL ROLES"
        case "roles", rest:
            return f"ROLE {quoted('/'.join(rest))}"
        case "functions", []:
            return "ALL FUNCTIONS"
        case "functions", [keyspace]:
            return f"ALL FUNCTIONS IN KEYSPACE {quoted(keyspace)}"
        case "mbean", []:
            return "ALL MBEANS"
        case "mbean", rest:
            return f"MBEAN {text_of('/'.join(rest))}"
        case "functions", [keyspace, signature]:
            found = _FUNCTION.fullmatch(signature)
            if found is not None:
                types = ", ".join(_cql_type(one) for one in found["types"].split("^") if one)
                return f"FUNCTION {quoted(keyspace)}.{quoted(found['name'])}({types})"
    raise ValueError(path)


def _cql_type(java: str) -> str:
    """The CQL name of a simple type's class; others are not granted here."""
    short = java.rpartition(".")[2].removesuffix("Type")
    names = {"UTF8": "text", "Int32": "int", "Long": "bigint", "Integer": "varint", "Bytes": "blob", "InetAddress": "inet",
             "Short": "smallint", "Byte": "tinyint", "SimpleDate": "date", "CounterColumn": "counter"}  # fmt: skip
    return names.get(short, short.lower())


def roles_in(script: str) -> dict[str, str]:
    """The statements of a script that make roles, by the roles' names."""
    made = ((statement, _MADE.match(statement)) for statement in split(script))
    return {found["name"].replace('""', '"'): statement for statement, found in made if found}


def make_from_script(session: Session, script: str) -> Iterator[str]:
    """Makes the roles of a script what they were and grants what they had; yields what the cluster refused, as sentences.

    The role that we have entered as stays as it is, or a wrong backup would lock us out. Roles that it does not name stay.
    """
    known = {row.role for row in session.rows("SELECT role FROM system_auth.roles")}
    held = set[str]()
    for row in session.rows("SELECT role, member FROM system_auth.role_members"):
        held.add(f"GRANT {quoted(row.role)} TO {quoted(row.member)}")
    for statement in split(script):
        if statement in held:
            continue
        if made := _MADE.match(statement):
            name = made["name"].replace('""', '"')
            if name == session.user:
                continue
            statement = f"{'ALTER' if name in known else 'CREATE'} ROLE {statement[made.start('name') - 1 :]}"
        try:
            session.rows(statement)
        except (EngineUnsupported, EngineDenied) as error:
            shown = statement.partition(" AND HASHED PASSWORD")[0]
            yield f"not made: {shown} ({str(error).replace(statement, shown)})"
