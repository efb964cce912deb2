"""Loading a folder that mongodump's layout fills: by mongorestore where there is one, and by the written form alone.

The second way is what docs/how-to/export-mongodb.md describes for who has no mongorestore, and shares no code with the export.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import bson
from bson.json_util import CANONICAL_JSON_OPTIONS, loads
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient

from support.mongodb_server import MongoServer

LOADER = "loader"


def find_mongorestore() -> str | None:
    """The program: MONGORESTORE, or on PATH."""
    return os.environ.get("MONGORESTORE") or shutil.which("mongorestore")


def mongorestore(server: MongoServer, folder: Path, config: Path) -> str:
    """Runs mongorestore on the folder; returns what it said. The password goes by a file.

    It enters as a user whom the dump does not have: users of the dump take the place of those of their name, and who is
    replaced is logged out in mid-work.
    """
    config.write_text(f'password: "{LOADER}"\n')
    config.chmod(0o600)
    command = [
        str(find_mongorestore()), f"--config={config}", "--host=127.0.0.1", f"--port={server.port}", f"--username={LOADER}",
        "--authenticationDatabase=admin", "--bypassDocumentValidation", str(folder),
    ]  # fmt: skip
    with server.client() as client:
        client["admin"].command("createUser", LOADER, pwd=LOADER, roles=["root"])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        with server.client() as client:
            client["admin"].command("dropUser", LOADER)
    return done.stderr


def load(client: MongoClient[Any], folder: Path) -> None:
    """Collections by their metadata, time series first and views last; then documents, then indexes; then roles and users."""
    found = [(path.parent.name, loads(path.read_text("utf-8"), json_options=CANONICAL_JSON_OPTIONS), path)
             for path in folder.glob("*/*.metadata.json")]  # fmt: skip
    rank = {"timeseries": 0, "view": 2}
    for database, told, _ in sorted(found, key=lambda one: (rank.get(one[1]["type"], 1), one[1]["collectionName"])):
        client[database].command({"create": told["collectionName"], **told["options"]})
    for database, told, path in found:
        name = told["collectionName"]
        if told["type"] == "view":
            continue
        stored = f"system.buckets.{name}" if told["type"] == "timeseries" else name
        file = path.with_name(path.name.removesuffix(".metadata.json") + ".bson")
        if told["type"] == "timeseries":
            file = path.with_name(quote(stored, safe="") + ".bson")
        _insert(client, database, stored, file)
        simple = {"collation": {"locale": "simple"}}
        indexes = [simple | one for one in told["indexes"] if one["name"] != "_id_" and not one.get("clustered")]
        if indexes:
            client[database].command({"createIndexes": name, "indexes": indexes})
    _load_accounts(client, folder)


def _insert(client: MongoClient[Any], database: str, stored: str, file: Path) -> None:
    with file.open("rb") as opened:
        for document in bson.decode_file_iter(opened, bson.CodecOptions(document_class=RawBSONDocument)):
            client[database].command({"insert": stored, "documents": [document], "bypassDocumentValidation": True})


def _load_accounts(client: MongoClient[Any], folder: Path) -> None:
    standing = {one["_id"] for one in client["admin"]["system.users"].find({}, {"_id": 1})}
    databases = set()
    for name, temporary in (("system.users", "tempusers"), ("system.roles", "temproles")):
        client["admin"].create_collection(temporary)
        for account in bson.decode_all((folder / "admin" / f"{name}.bson").read_bytes()):
            if account["_id"] not in standing:
                client["admin"][temporary].insert_one(account)
                databases.add(account["db"])
    for database in databases:
        client["admin"].command(
            {
                "_mergeAuthzCollections": 1,
                "tempUsersCollection": "admin.tempusers",
                "tempRolesCollection": "admin.temproles",
                "db": database,
                "drop": False,
            }
        )
    client["admin"].drop_collection("tempusers")
    client["admin"].drop_collection("temproles")


def names_in(folder: Path) -> set[str]:
    """`database/collection` of every file of documents, as the file names alone tell."""
    return {f"{path.parent.name}/{unquote(path.name.removesuffix('.bson'))}" for path in folder.glob("*/*.bson")}
