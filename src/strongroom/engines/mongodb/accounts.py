"""Users and roles. In the databases through which we ourselves enter they are only added to, never changed or removed.

So a restore cannot lock this service, nor the operators, out of the target: what `admin` has stays, with its present
passwords; what it lacks comes back. Every other database gets exactly the users and roles of the backup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from strongroom.engines.base import Control
from strongroom.engines.mongodb.catalogue import TEMPORARY_ROLES, TEMPORARY_USERS
from strongroom.engines.mongodb.connection import Client, kept_databases
from strongroom.engines.mongodb.documents import decode, frames
from strongroom.engines.mongodb.names import ROLES, USERS


def restore_accounts(client: Client, read: Callable[[str], Iterator[bytes]], control: Control) -> list[str]:
    """Brings users and roles back, whose documents `read` hands out by the name of their entry; returns sentences on what was
    left as it is. Roles of a database come with its users."""
    kept = kept_databases(client)
    users = {str(user["_id"]): str(user["db"]) for user in client.admin["system.users"].find({}, {"db": 1})}
    roles = _existing_roles(client, kept)
    databases = set(users.values()) | set(client.list_database_names()) - {"local", "config"}
    left = 0
    for name, temporary, existing in ((USERS, TEMPORARY_USERS, set(users)), (ROLES, TEMPORARY_ROLES, roles)):
        client.admin.drop_collection(temporary)
        client.admin.create_collection(temporary, check_exists=False)
        for documents in frames(read(name)):
            control.check()
            accounts = list(map(decode, documents))
            databases.update(str(account["db"]) for account in accounts)
            wanted = [account for account in accounts if account["db"] not in kept or account["_id"] not in existing]
            left += len(accounts) - len(wanted)
            if wanted:
                client.admin[temporary].insert_many(wanted)
    for database in sorted(databases):
        control.check()
        _merge(client, database, exactly=database not in kept)
    for temporary in (TEMPORARY_USERS, TEMPORARY_ROLES):
        client.admin.drop_collection(temporary)
    if not left:
        return []
    return [f"{left} users and roles of {', '.join(sorted(kept))} are in the target already and were left as they are there"]


def _existing_roles(client: Client, databases: frozenset[str]) -> set[str]:
    return {str(role["_id"]) for database in databases for role in _roles_of(client, database)}


def _roles_of(client: Client, database: str) -> Iterator[dict[str, Any]]:
    yield from client[database].command("rolesInfo", 1)["roles"]


def _merge(client: Client, database: str, *, exactly: bool) -> None:
    """The server's own way to take in users and roles with their password hashes; `exactly` removes those not listed."""
    client.admin.command(
        {
            "_mergeAuthzCollections": 1,
            "tempUsersCollection": f"admin.{TEMPORARY_USERS}",
            "tempRolesCollection": f"admin.{TEMPORARY_ROLES}",
            "db": database,
            "drop": exactly,
        }
    )
