"""Keys, and the small objects that are sealed by them alone.

root key      seals each lineage's keys, the mark of a closed lineage, owner marks, and snapshots of the catalog
lineage key   by derived subkeys: wraps the keys of packs and indexes, seals manifests, graves and logs
dedup key     hashes chunks; its own, so that it survives a rotation of the others
pack key      random per pack, in the pack's index only
trail key     random per segment of the audit trail, in the catalog and its snapshots only
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cbor2

from strongroom.ambient import Ambient
from strongroom.repository._aead import KEY, Box, derive
from strongroom.repository._document import open_document, read_header, seal_document
from strongroom.repository.errors import Damaged, Misuse, WrongKey

_KEYS, _CLOSED, _OWNER, _GRAVE, _CATALOG, _TRAIL = b"SRKY", b"SRCL", b"SROW", b"SRGV", b"SRCT", b"SRTR"
_CLOSING = "closed"

Former = Mapping[str, bytes]
"""The closing keys of root keys that were rotated away, by the root key's id."""


@dataclass(frozen=True)
class RootKey:
    """32 bytes that open everything. Never stored beside what they seal.

    It alone seals; what one of `accepted` sealed opens too: while a rotation is under way there are two.
    """

    secret: bytes = field(repr=False)
    accepted: tuple[RootKey, ...] = ()

    def __post_init__(self) -> None:
        if len(self.secret) != KEY:
            raise WrongKey(f"a root key is {KEY} bytes, this has {len(self.secret)}")

    @classmethod
    def from_hex(cls, text: str) -> RootKey:
        """From 64 hex digits, as an environment variable holds it. Raises WrongKey without repeating the text."""
        try:
            return cls(bytes.fromhex(text.strip()))
        except ValueError:
            raise WrongKey("the root key must be 64 hex digits: check STRONGROOM_ROOT_KEY") from None

    @classmethod
    def load_or_create(cls, path: Path, ambient: Ambient) -> RootKey:
        """From a file of 64 hex digits, made durably with mode 0600 if there is none. Raises WrongKey, OSError."""
        try:
            return cls.from_hex(path.read_text("ascii"))
        except FileNotFoundError:
            pass
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            secret = ambient.key()
            file.write(secret.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return cls(secret)

    @property
    def id(self) -> str:
        """16 hex digits that tell one root key from another and nothing else of it."""
        return derive(self.secret, "root key id")[:8].hex()

    @property
    def closing(self) -> bytes:
        """What seals closing marks and nothing else. The owner's mark keeps it when the key is rotated away, since closing marks
        stay for ever as they were put."""
        return derive(self.secret, _CLOSING)

    def _box(self, purpose: str) -> Box:
        return Box(derive(self.secret, purpose))


class LineageKeys:
    """What opens one lineage: its key, and the key of its chunk hashes."""

    def __init__(self, key: bytes, dedup: bytes) -> None:
        if len(key) != KEY or len(dedup) != KEY:
            raise Misuse(f"keys of a lineage are {KEY} bytes each")
        self._key = key
        self.dedup = dedup
        self.indexes = Box(derive(key, "index"))
        self.packs = Box(derive(key, "pack"))
        self.manifests = Box(derive(key, "manifest"))
        self.graves = Box(derive(key, "grave"))
        self.logs = Box(derive(key, "log"))

    def __repr__(self) -> str:
        return "LineageKeys(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LineageKeys) and (self._key, self.dedup) == (other._key, other.dedup)

    def __hash__(self) -> int:
        return hash((self._key, self.dedup))

    @classmethod
    def create(cls, ambient: Ambient) -> LineageKeys:
        """Fresh keys for a lineage that begins."""
        return cls(ambient.key(), ambient.key())

    def to_bytes(self) -> bytes:
        """For sealing under the root key, and for nothing else."""
        return cbor2.dumps({"lineage": self._key, "dedup": self.dedup}, canonical=True)

    @classmethod
    def from_bytes(cls, data: bytes) -> LineageKeys:
        """What to_bytes gave."""
        found = cbor2.loads(data)
        return cls(found["lineage"], found["dedup"])


def seal_lineage_keys(root: RootKey, lineage: str, keys: LineageKeys) -> bytes:
    """The content of `<lineage>/key/<id>`, which the caller puts twice. Equal for equal input."""
    header = {"lineage": lineage, "root": root.id}
    return seal_document(_KEYS, root._box("lineage keys"), header, keys.to_bytes())


def open_lineage_keys(root: RootKey, lineage: str, data: bytes) -> LineageKeys:
    """Raises WrongKey if another root key sealed them, Damaged, UnknownFormat."""
    what = f"the keys of lineage {lineage}"
    ours = _sealed_by(root, _own_header(_KEYS, data, what, {"lineage": lineage}), what)
    return LineageKeys.from_bytes(open_document(_KEYS, ours._box("lineage keys"), data, what))


def root_of_keys(data: bytes) -> str:
    """Id of the root key that says it sealed these keys of a lineage; unproven. Raises Damaged, UnknownFormat."""
    return str(read_header(_KEYS, data, "keys of a lineage").get("root"))


def seal_closed(root: RootKey, lineage: str) -> bytes:
    """The content of `<lineage>/closed`: under the root key, since it outlives the lineage's own."""
    return seal_document(_CLOSED, root._box(_CLOSING), {"lineage": lineage, "root": root.id}, b"")


def open_closed(root: RootKey, lineage: str, data: bytes, former: Former | None = None) -> None:
    """Returns if the mark is ours and of this lineage; `former` is what the owner's mark says. Raises WrongKey, Damaged,
    UnknownFormat."""
    what = f"the closing mark of lineage {lineage}"
    header = _own_header(_CLOSED, data, what, {"lineage": lineage})
    kept = (former or {}).get(str(header.get("root")))
    box = Box(kept) if kept is not None else _sealed_by(root, header, what)._box(_CLOSING)
    open_document(_CLOSED, box, data, what)


def seal_owner(root: RootKey, k: int, former: Former | None = None) -> bytes:
    """The content of `owner/<k>`."""
    content = cbor2.dumps({"former": dict(former)}, canonical=True) if former else b""
    return seal_document(_OWNER, root._box("owner"), {"owner": k, "root": root.id}, content)


def open_owner(root: RootKey, k: int, data: bytes) -> Former:
    """What the k-th mark says of former root keys; with the closing key of the one that sealed it, where that is not `root`
    itself. Raises WrongKey, Damaged, UnknownFormat."""
    what = f"owner mark {k}"
    ours = _sealed_by(root, _own_header(_OWNER, data, what, {"owner": k}), what)
    content = open_document(_OWNER, ours._box("owner"), data, what)
    former = dict(cbor2.loads(content)["former"]) if content else {}
    return former if ours is root else former | {ours.id: ours.closing}


def root_of_owner(data: bytes) -> str:
    """Id of the root key that says it sealed this owner's mark; unproven. Raises Damaged, UnknownFormat."""
    return str(read_header(_OWNER, data, "an owner's mark").get("root"))


def seal_catalog(root: RootKey, k: int, n: int, content: bytes) -> bytes:
    """The object `catalog/<k>.<n>`."""
    return seal_document(_CATALOG, root._box("catalog"), {"owner": k, "number": n, "root": root.id}, content)


def open_catalog(root: RootKey, k: int, n: int, data: bytes) -> bytes:
    """What seal_catalog was given. Raises WrongKey, Damaged, UnknownFormat."""
    what = f"catalog snapshot {k}.{n}"
    ours = _sealed_by(root, _own_header(_CATALOG, data, what, {"owner": k, "number": n}), what)
    return open_document(_CATALOG, ours._box("catalog"), data, what)


def root_of_catalog(data: bytes) -> str:
    """Id of the root key that says it sealed this snapshot, of which `data` is the beginning; unproven. Raises Damaged,
    UnknownFormat."""
    return str(read_header(_CATALOG, data, "a catalog snapshot").get("root"))


def seal_trail(key: bytes, id: str, content: bytes) -> bytes:
    """The object `trail/<id>`, under a key of its own."""
    return seal_document(_TRAIL, Box(derive(key, "trail")), {"trail": id}, content)


def open_trail(key: bytes, id: str, data: bytes) -> bytes:
    """What seal_trail was given. Raises Damaged, UnknownFormat."""
    what = f"segment {id} of the audit trail"
    _own_header(_TRAIL, data, what, {"trail": id})
    return open_document(_TRAIL, Box(derive(key, "trail")), data, what)


@dataclass(frozen=True, slots=True)
class GraveFacts:
    """Which part is gone."""

    project: str
    instance: str
    lineage: str
    seq: int
    attempt: int
    backup: str


def seal_grave(keys: LineageKeys, facts: GraveFacts) -> bytes:
    """The content of `<lineage>/grave/<seq>`."""
    return seal_document(_GRAVE, keys.graves, asdict(facts), b"")


def open_grave(keys: LineageKeys, data: bytes) -> GraveFacts:
    """Raises Damaged, UnknownFormat. The caller compares lineage and seq with the object's name."""
    header = read_header(_GRAVE, data, "a grave")
    open_document(_GRAVE, keys.graves, data, "a grave")
    return GraveFacts(**header)


def _own_header(magic: bytes, data: bytes, what: str, expected: dict[str, Any]) -> dict[str, Any]:
    header = read_header(magic, data, what)
    for name, value in expected.items():
        if header.get(name) != value and "root" in header:
            raise Damaged(f"{what} says {name} {header.get(name)!r}: it was put under another's name", object_name=what)
    return header


def _sealed_by(root: RootKey, header: dict[str, Any], what: str) -> RootKey:
    """Which of the keys at hand sealed it. Raises WrongKey."""
    for one in (root, *root.accepted):
        if header.get("root") == one.id:
            return one
    raise WrongKey(
        f"{what} is sealed under root key {header.get('root')}; the one given is {root.id}: start with the root key "
        "that this store was made with"
    )
