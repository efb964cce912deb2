"""What a restore would find in a target: its version, rights and room, and whether it holds anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymongo.errors import OperationFailure

from strongroom.engines.base import EngineUnsupported, Ground, Target
from strongroom.engines.mongodb.catalogue import belongs
from strongroom.engines.mongodb.connection import Client, connected, kept_databases
from strongroom.engines.mongodb.restore import require_target

ANSWER_SECONDS = 8.0
COMPRESSION = 4  # a server stores documents in no less than about a fourth of their bytes: with less room a restore fails surely


def survey(target: Target, facts: Mapping[str, Any], size: int) -> Ground:
    """See Surveyor. Room is on the server's disk, where the user may ask for it (`dbStats`; the role restore may not)."""
    with connected(target, socket_seconds=ANSWER_SECONDS) as client:
        require_target(client, facts)
        free = _free(client)
        if free is not None and size // COMPRESSION > free:
            raise EngineUnsupported(
                f"the backup has {size} bytes of documents, the target's disk {free} bytes free: make room, or restore elsewhere"
            )
        warnings = []
        if free is not None and size > free:
            warnings.append(f"the target's disk has {free} bytes free, the backup {size} bytes before the server's compression")
        return Ground(_holdings(client), warnings)


def _free(client: Client) -> int | None:
    """Bytes of the file system that holds the data, and of what is dropped before anything is inserted."""
    try:
        stats = client.admin.command("dbStats")
        databases = client.admin.command("listDatabases")["databases"]
    except OperationFailure:
        return None
    dropped = sum(int(one["sizeOnDisk"]) for one in databases if one["name"] not in ("local", "config"))
    return int(stats["fsTotalSize"] - stats["fsUsedSize"]) + dropped if "fsTotalSize" in stats else None


def _holdings(client: Client) -> str | None:
    collections, databases = 0, 0
    names = [name for name in client.list_database_names() if name not in ("local", "config")]
    for name in names:
        found = sum(belongs(name, one) for one in client[name].list_collection_names())
        collections, databases = collections + found, databases + bool(found)
    kept = kept_databases(client)
    users = client.admin["system.users"].find({}, {"db": 1})
    others = sum(str(user["db"]) not in kept for user in users)
    parts = []
    if collections:
        parts.append(f"{collections} collections in {databases} databases")
    if others:
        parts.append(f"{others} users")
    return " and ".join(parts) or None
