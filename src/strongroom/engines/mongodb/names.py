"""Names of entries: `<kind>/<database>/<collection>`, percent-encoded, so that any name MongoDB allows goes there and back."""

from __future__ import annotations

from urllib.parse import quote, unquote

CATALOG = "catalog"
USERS = "users"
ROLES = "roles"
DATA = "data"
PATCH = "patch"
TOUCHED = "touched"


def entry_name(kind: str, database: str, collection: str) -> str:
    """The entry of one collection. A leading dot is encoded too: no part is ever `.` or `..`."""
    return "/".join([kind, _encoded(database), _encoded(collection)])


def parse_entry_name(name: str) -> tuple[str, str, str]:
    """Back to (kind, database, collection). Raises ValueError if the name is not one of `entry_name`."""
    kind, database, collection = name.split("/")
    parsed = kind, unquote(database, errors="strict"), unquote(collection, errors="strict")
    if entry_name(*parsed) != name:
        raise ValueError(f"not the name of a collection's entry: {name!r}")
    return parsed


def split_namespace(namespace: str) -> tuple[str, str]:
    """`db.some.collection` into database and collection: a database's name has no dot."""
    database, _, collection = namespace.partition(".")
    return database, collection


def _encoded(part: str) -> str:
    text = quote(part, safe="")
    return "%2E" + text[1:] if text.startswith(".") else text
