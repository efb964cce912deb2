"""What can go wrong between bytes and the store.

RepositoryError             what a caller may catch; StoreErrors of the store pass through as they are
├── Damaged                 stored bytes are not what was written
│   ├── MissingChunk        no object holds the chunk
│   └── MissingObject       the object that must hold it is gone, and nothing took its place
├── WrongKey                sealed under another root key
├── UnknownFormat           written by a newer version
└── Misuse                  the caller broke the order of calls, or a name is not what it must be (a defect)
"""

from __future__ import annotations


class RepositoryError(Exception):
    """The repository could not do what was asked."""

    permanent = True


class Damaged(RepositoryError):
    """Stored bytes are not what was written. Names the object, and pack and number where a chunk is meant."""

    def __init__(
        self, message: str, *, object_name: str | None = None, pack: int | None = None, number: int | None = None
    ) -> None:
        super().__init__(message)
        self.object_name = object_name
        self.pack = pack
        self.number = number


class MissingChunk(Damaged):
    """No object that is said to hold the pack holds this chunk."""


class MissingObject(Damaged):
    """The same object was missing twice: nothing has taken its place."""


class WrongKey(RepositoryError):
    """Sealed under another root key than the one given."""


class UnknownFormat(RepositoryError):
    """Written in a format that this version cannot read: use the version that wrote it, or a newer one."""


class Misuse(RepositoryError):
    """A caller broke the rules of an interface; nothing was written wrongly."""
