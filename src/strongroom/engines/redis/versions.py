"""Redis and Valkey: who a server is, and which dumps it reads.

Both read RDB 9 to 11. Redis goes on from 12 (7.4), Valkey from 80 (9.0) with a head of its own, and neither reads what the
other's newer versions write (rdb.h of both).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from strongroom.engines.base import EngineUnsupported

LAST_COMMON_RDB = 11
FIRST_VALKEY_RDB = 80
UNKNOWN = "unknown"
_NEWEST = {
    "Redis": ((7, 4, 12), (7, 2, 11), (7, 0, 10), (5, 0, 9)),  # what a server of at least this version reads
    "Valkey": ((9, 0, 80), (7, 2, 11)),
}


@dataclass(frozen=True, slots=True)
class Product:
    """Which of the two a server is, and its own version."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def product_of(info: Mapping[str, str]) -> Product:
    """Who answers INFO. Valkey's `redis_version` is the one that it is compatible with, not its own."""
    if "valkey_version" in info:
        return Product("Valkey", info["valkey_version"])
    return Product("Redis", info.get("redis_version", UNKNOWN))


def newest_rdb(product: Product) -> int:
    """The newest RDB version that the server reads. Raises EngineUnsupported if its version is no number."""
    parts = product.version.split(".")
    try:
        have = (int(parts[0]), int(parts[1]))
    except (ValueError, IndexError):
        raise EngineUnsupported(f"the target tells no version that is understood: {product.version[:40]!r}") from None
    return next((newest for major, minor, newest in _NEWEST[product.name] if have >= (major, minor)), 8)


def require_readable(product: Product, rdb: int) -> None:
    """Raises EngineUnsupported unless a server of this kind and version reads dumps of this RDB version."""
    if rdb > LAST_COMMON_RDB and (rdb >= FIRST_VALKEY_RDB) != (product.name == "Valkey"):
        other = "Valkey" if rdb >= FIRST_VALKEY_RDB else "Redis"
        raise EngineUnsupported(f"RDB version {rdb} is one of {other} alone, and the target is {product}: restore into a {other}")
    if rdb > newest_rdb(product):
        raise EngineUnsupported(f"RDB version {rdb} is too new for the target, {product}: restore into a newer server")
