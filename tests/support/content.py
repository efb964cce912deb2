"""What a Redis or a MongoDB holds, as a digest that any version of a server and a client gives: for data that outlives both."""

from __future__ import annotations

import hashlib
from typing import Any

import bson
import redis
from pymongo import MongoClient


def redis_content(client: redis.Redis) -> str:
    """Over every key with its type and value; times to live are left out."""
    read: dict[bytes, Any] = {
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": lambda key: sorted(client.smembers(key)),
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"hash": lambda key: sorted(client.hgetall(key).items()),
    }
    found = hashlib.sha256()
    for key in sorted(client.scan_iter(count=1000)):
        kind = client.type(key)
        found.update(repr((key, kind, read[kind](key))).encode())
    return found.hexdigest()


def mongo_content(client: MongoClient[Any], database: str) -> str:
    """Over every document of every collection, by `_id`, and the names and keys of indexes."""
    found = hashlib.sha256()
    for name in sorted(client[database].list_collection_names()):
        found.update(name.encode())
        for document in client[database][name].find().sort("_id", 1):
            found.update(bson.encode(document))
        indexes = client[database][name].index_information()
        found.update(repr(sorted((index, facts["key"]) for index, facts in indexes.items())).encode())
    return found.hexdigest()
