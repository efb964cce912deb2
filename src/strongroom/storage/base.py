"""The object-store port: immutable objects under names, and nothing that is not portable.

    StoreError                  what a caller may catch
    ├── ObjectExists            put_new: the name is taken (permanent)
    ├── ObjectMissing           get, stat: no such object (permanent)
    ├── InvalidName             the name is not one of ours (permanent, a defect of the caller)
    ├── InvalidStoreUrl         open_store: the URL names no store we know (permanent, raised before anything is opened)
    ├── StoreDenied             credentials or rights are missing (permanent until an operator acts)
    ├── StoreFull               no room, quota (may pass; a delete never needs room)
    └── StoreUnavailable        time-out, refused connection, 5xx (passes: try again)

Names are `/`-separated parts of `[A-Za-z0-9._-]`, no part empty, `.` or `..`; checked by `check_name` on the way in. A
listing leaves out, and logs, what cannot be an object's name: something else put it there. No object's name may be
another's folder (`a` beside `a/b`): a directory cannot hold both, so what the stores do with it differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class StoreError(Exception):
    """The store did not do what was asked."""

    permanent = False


class ObjectExists(StoreError):
    """An object of this name is there already."""

    permanent = True


class ObjectMissing(StoreError):
    """There is no object of this name."""

    permanent = True


class InvalidName(StoreError):
    """The name cannot be an object's name."""

    permanent = True


class InvalidStoreUrl(StoreError):
    """The URL names no store that can be opened."""

    permanent = True


class StoreDenied(StoreError):
    """The store refuses us: check its credentials and rights."""

    permanent = True


class StoreFull(StoreError):
    """The store has no room left."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or does not answer."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What the store knows of one object."""

    name: str
    size: int  # bytes


_PART = re.compile(r"[A-Za-z0-9._-]{1,200}\Z")


def check_name(name: str) -> str:
    """The name itself if it is one; else InvalidName."""
    parts = name.split("/")
    if len(name) > 900 or any(not _PART.match(part) or part in (".", "..") for part in parts):
        raise InvalidName(f"not an object name: {name!r}")
    return name


def check_prefix(prefix: str) -> str:
    """The prefix itself if it is a whole number of parts: empty, or a name and "/"; else InvalidName."""
    if prefix:
        if not prefix.endswith("/"):
            raise InvalidName(f"not a prefix of whole parts: {prefix!r} (it must end in '/')")
        check_name(prefix[:-1])
    return prefix


class Store(Protocol):
    """Immutable objects. Every method is safe to call from several threads and may raise StoreError.

    Atomic: an object is seen whole or not at all. Durable: see put_new and delete. Nothing else is promised:
    a listing may be stale or empty, so it can confirm presence, never absence; absence counts by `stat`.
    """

    def put_new(self, name: str, data: bytes | memoryview | Sequence[bytes | memoryview]) -> int:
        """Creates the object in one put and returns its size in bytes. `data` may be a sequence of pieces.

        When it returns, the object outlives a power cut. Raises ObjectExists and changes nothing where the name is
        taken; then the object that is there outlives a power cut too, so that "exists" may count as success for the
        names that mean the same whoever puts them (a grave). After any other error the object may or may not exist,
        now or later. Never retried inside: one call is one put, so that a caller knows whether an id was ever retried.
        """

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """The bytes [start, start+length) of the object, fewer at its end; a negative `start` counts from the end.

        A start at or behind the end gives b"", one before the beginning means the beginning. Raises ObjectMissing.
        """

    def delete(self, name: str) -> None:
        """Removes the object durably. A missing one is no error."""

    def delete_many(self, names: Sequence[str]) -> None:
        """Removes all of them durably; a missing one is no error. After an error any of them may be gone."""

    def stat(self, name: str) -> Stat | None:
        """What is there under this name now, or None if nothing is. Never answered from a listing."""

    def list(self, prefix: str) -> Iterator[Stat]:
        """Objects whose name starts with `prefix` (a whole number of parts, ending in "/", or empty), in any order."""

    def keeps_deleted_bytes(self) -> str | None:
        """A sentence if bytes stay behind a delete (versioning, object lock, soft delete), else None.

        A store that does not let us ask gives a sentence too: what is not known to be freed is not called freed.
        """

    def close(self) -> None:
        """Lets go of connections."""
