"""Data of every kind that a MongoDB can hold, and comparisons of two servers through an administrator."""

from __future__ import annotations

import datetime
import random
from collections.abc import Mapping
from typing import Any

import bson
from bson.regex import Regex
from pymongo import ASCENDING, DESCENDING, GEOSPHERE, HASHED, TEXT, IndexModel, MongoClient
from pymongo.database import Database

ODD_NAMES = ("with space", "dots..in.it", "quo\"te's", "ünïcödé 数据 🗝", "percent%2Fslash/back\\", "UPPER", "a?b#c&d=e:f")


def fill(client: MongoClient[Any], seed: int = 1) -> None:
    """Every kind of collection, index and view, in several databases, and users and roles."""
    dice = random.Random(seed)
    shop = client["shop"]
    shop["plain"].insert_many([_document(number, dice) for number in range(3000)])
    shop["plain"].create_indexes(
        [
            IndexModel([("number", ASCENDING), ("name", DESCENDING)], name="two fields"),
            IndexModel("email", unique=True, sparse=True),
            IndexModel([("text", TEXT)], default_language="german"),
            IndexModel([("place", GEOSPHERE)]),
            IndexModel([("any.$**", ASCENDING)]),
            IndexModel("number", partialFilterExpression={"number": {"$gt": 100}}, hidden=True, name="part"),
            IndexModel("when", expireAfterSeconds=10**8),
            IndexModel([("name", HASHED)]),
            IndexModel("name", collation={"locale": "de", "strength": 2}, name="collated"),
        ]
    )
    shop.create_collection("ids of all kinds").insert_many([{"_id": value} for value in _ids()])
    shop.create_collection("capped", capped=True, size=64 * 1024, max=50)
    shop["capped"].insert_many([{"_id": 1000 - number} for number in range(80)])
    shop["breaks the rule"].insert_one({"_id": 1, "a": "not a number"})
    shop.command("collMod", "breaks the rule", validator={"a": {"$type": "number"}}, validationLevel="moderate")
    shop.create_collection("nocase", collation={"locale": "en", "strength": 2})
    shop["nocase"].insert_many([{"_id": "Ab", "code": "x"}, {"_id": "cd", "code": "X"}])
    shop["nocase"].create_index("code", unique=True, collation={"locale": "simple"})
    shop.create_collection("images", changeStreamPreAndPostImages={"enabled": True}).insert_one({"_id": 1})
    shop.command("create", "clustered", clusteredIndex={"key": {"_id": 1}, "unique": True, "name": "by id"})
    shop["clustered"].insert_many([{"_id": number} for number in (5, 3, 9, 1)])
    shop.create_collection("empty")
    shop["system.js"].insert_one({"_id": "double", "value": bson.Code("function (x) { return 2 * x }")})
    _time_series(client)
    client["views"].command("create", "of plain", viewOn="plain", pipeline=[{"$match": {"number": {"$gt": 5}}}])
    shop.command("create", "view", viewOn="plain", pipeline=[{"$match": {"number": {"$gt": 5}}}], collation={"locale": "fr"})
    shop.command("create", "aview of a view", viewOn="view", pipeline=[{"$project": {"name": 1}}], collation={"locale": "fr"})
    for name in ODD_NAMES:
        put(client["odd_Nämes-1"], name, {"_id": name})
    client["admin"]["of a user"].insert_one({"_id": 1})
    client["shop"].command("createRole", "reader", privileges=[], roles=[{"role": "read", "db": "shop"}])
    client["shop"].command("createUser", "ann", pwd="pw ann", roles=["reader"], customData={"n": 1})
    client["admin"].command("createUser", "boss", pwd="pw boss", roles=["readAnyDatabase"])


def put(database: Database[Any], name: str, document: dict[str, Any]) -> None:
    """Inserts with a command: the driver itself refuses names with two dots in a row, the server does not."""
    database.command({"insert": name, "documents": [document]})


def _document(number: int, dice: random.Random) -> dict[str, Any]:
    return {
        "number": number,
        "name": f"name {dice.random()}",
        "email": f"{number}@example.org",
        "text": "der schnelle Fuchs",
        "place": {"type": "Point", "coordinates": [dice.uniform(-90, 90), dice.uniform(-90, 90)]},
        "any": {"thing": [dice.randrange(9), None, {"deep": True}]},
        "when": datetime.datetime(2026, 1, 1) + datetime.timedelta(seconds=number),
    }


def _ids() -> list[Any]:
    numbers = [1, 2.5, bson.Int64(2**40), bson.Decimal128("3.50"), float("inf"), float("nan"), -(2**31)]
    others = ["text", "", b"bytes", None, True, bson.ObjectId(b"twelve bytes"), bson.MinKey(), bson.MaxKey()]
    nested = [{"a": 1, "b": {"c": [1, "x"]}}, {"a": 1.5}, {}, bson.Timestamp(5, 6), datetime.datetime(2026, 5, 5)]
    return [*numbers, *others, *nested, bson.Code("x"), {"pattern": Regex("a.*", "i")}]


def _time_series(client: MongoClient[Any]) -> None:
    options = {"timeField": "t", "metaField": "m", "granularity": "minutes"}
    series = client["shop"].create_collection("series", timeseries=options, expireAfterSeconds=10**9)
    start = datetime.datetime(2026, 1, 1)
    series.insert_many([{"t": start + datetime.timedelta(minutes=n), "m": {"host": n % 5}, "v": n} for n in range(2000)])
    series.create_index([("m.host", ASCENDING), ("t", ASCENDING)])


def description(client: MongoClient[Any]) -> dict[str, Any]:
    """All that two servers must agree on: options, indexes, hashes of the documents, order, users, roles."""
    found: dict[str, Any] = {}
    for database in client.list_database_names():
        if database in ("local", "config"):
            continue
        hashes = client[database].command("dbHash")["collections"]
        for entry in client[database].list_collections():
            name = entry["name"]
            if name.startswith("system.") and name != "system.js" and not name.startswith("system.buckets."):
                continue
            indexes = [] if entry["type"] == "view" else _indexes(client[database], name)
            if name.startswith("system.buckets."):
                indexes = []  # named by the time series itself
            order = [one["_id"] for one in client[database][name].find({}, {"_id": 1})] if _ordered(entry) else None
            found[f"{database}.{name}"] = (
                entry["type"],
                entry["options"],
                sorted((dict(index) for index in indexes), key=lambda index: index["name"]),
                hashes.get(name),
                order,
            )
    found["users"] = sorted(client["admin"]["system.users"].find({}, {"userId": 0}), key=lambda user: user["_id"])
    found["roles"] = sorted(client["admin"]["system.roles"].find(), key=lambda role: role["_id"])
    return found


def _indexes(database: Database[Any], name: str) -> list[dict[str, Any]]:
    return list(database.command({"listIndexes": name})["cursor"]["firstBatch"])


def _ordered(entry: Mapping[str, Any]) -> bool:
    return bool(entry["options"].get("capped"))


def without_standing_users(found: dict[str, Any], standing: set[str]) -> dict[str, Any]:
    """The same, less the users of `admin` that a restore leaves as they are."""
    return {**found, "users": [user for user in found["users"] if user["_id"] not in standing]}
