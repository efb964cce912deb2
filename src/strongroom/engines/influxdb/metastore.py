"""What InfluxDB's metastore says: databases with retention policies, shards, continuous queries and subscriptions, and users.

The server hands it out as a message of Protocol Buffers (`services/meta/internal/meta.proto` of its source) and takes one for a
restore. What it takes is read with a single read of the socket, so a restore sends one database at a time and no more of it
than is needed: `import_blob`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace

from strongroom.engines.influxdb.protobuf import NotProtobuf, Value, fields, message, signed

_DATABASES, _USERS = 5, 6
_READ, _WRITE = 1, 2
_PRIVILEGES = {_READ: "READ", _WRITE: "WRITE", _READ | _WRITE: "ALL"}


@dataclass(frozen=True, slots=True)
class Group:
    """A shard group: the shards of one span of time. Times in nanoseconds since the epoch."""

    start: int
    end: int
    shards: tuple[int, ...]
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class Subscription:
    """Where new points of a retention policy are sent."""

    name: str
    mode: str
    destinations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A retention policy. Durations in nanoseconds; 0 keeps for ever."""

    name: str
    duration: int
    shard_duration: int
    replicas: int
    groups: tuple[Group, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()


@dataclass(frozen=True, slots=True)
class Database:
    """One database."""

    name: str
    default_policy: str
    policies: tuple[Policy, ...] = ()
    queries: tuple[tuple[str, str], ...] = ()  # name and text of each continuous query

    def shards(self) -> Iterator[tuple[Policy, Group, int]]:
        """Every shard that has not been deleted."""
        for policy in self.policies:
            for group in policy.groups:
                for shard in group.shards:
                    yield policy, group, shard


@dataclass(frozen=True, slots=True)
class User:
    """A user, without the hash of the password: nothing can be done with that over the network."""

    name: str
    admin: bool
    grants: tuple[tuple[str, str], ...] = ()  # database, and READ, WRITE or ALL


@dataclass(frozen=True, slots=True)
class Metastore:
    """All of it that a backup is about."""

    databases: tuple[Database, ...] = ()
    users: tuple[User, ...] = field(default=())

    def database(self, name: str) -> Database | None:
        """The database of this name, None if there is none."""
        return next((one for one in self.databases if one.name == name), None)


def parse(blob: bytes) -> Metastore:
    """Reads the server's message. Raises NotProtobuf."""
    try:
        found = list(fields(blob))
        return Metastore(
            tuple(_database(_bytes(value)) for number, value in found if number == _DATABASES),
            tuple(_user(_bytes(value)) for number, value in found if number == _USERS),
        )
    except (UnicodeDecodeError, KeyError) as error:
        raise NotProtobuf(f"not a metastore: {error}") from error


def narrowed(blob: bytes, covers: Callable[[str], bool], *, with_users: bool) -> bytes:
    """The message without the databases that are not covered; without `with_users` also without users who hold no right on
    one of these, and with no hash of a password."""
    kept: list[tuple[int, Value]] = []
    for number, value in fields(blob):
        if number == _DATABASES and not covers(_name_of(_bytes(value))):
            continue
        if number == _USERS and not with_users:
            user = _user(_bytes(value))
            grants = [(database, right) for database, right in user.grants if covers(database)]
            if not grants:
                continue
            value = _user_message(replace(user, grants=tuple(grants)))
        kept.append((number, value))
    return message(kept)


def import_blob(database: Database, shards: Collection[int]) -> bytes:
    """The message that makes the server create `database` with those of its shards, in the least bytes."""
    policies = []
    for policy in database.policies:
        groups = [replace(group, shards=tuple(one for one in group.shards if one in shards)) for group in policy.groups]
        policies.append(replace(policy, groups=tuple(group for group in groups if group.shards)))
    body = [(1, database.name), (2, database.default_policy)] + [(3, _policy_message(policy)) for policy in policies]
    most = max(shards, default=0)
    return message([(1, 1), (2, 1), (3, 1), (5, message(body)), (7, 1), (8, most), (9, most)])


def _name_of(data: bytes) -> str:
    return next((_bytes(value).decode() for number, value in fields(data) if number == 1), "")


def _database(data: bytes) -> Database:
    policies, queries, names = [], [], {1: "", 2: ""}
    for number, value in fields(data):
        if number in names:
            names[number] = _bytes(value).decode()
        elif number == 3:
            policies.append(_policy(_bytes(value)))
        elif number == 4:
            texts = {inner: _bytes(part).decode() for inner, part in fields(_bytes(value))}
            queries.append((texts[1], texts[2]))
    return Database(names[1], names[2], tuple(policies), tuple(queries))


def _policy(data: bytes) -> Policy:
    name, numbers, groups, subscriptions = "", {2: 0, 3: 0, 4: 1}, [], []
    for number, value in fields(data):
        if number == 1:
            name = _bytes(value).decode()
        elif number in numbers:
            numbers[number] = signed(_int(value))
        elif number == 5:
            group = _group(_bytes(value))
            if group is not None:
                groups.append(group)
        elif number == 6:
            subscriptions.append(_subscription(_bytes(value)))
    return Policy(name, numbers[2], numbers[3], numbers[4], tuple(groups), tuple(subscriptions))


def _group(data: bytes) -> Group | None:
    """None for a group that has been deleted: the server keeps such for a while."""
    numbers, shards = {2: 0, 3: 0, 4: 0, 6: 0}, []
    for number, value in fields(data):
        if number in numbers:
            numbers[number] = signed(_int(value))
        elif number == 5:
            shards += [_int(part) for inner, part in fields(_bytes(value)) if inner == 1]
    return None if numbers[4] else Group(numbers[2], numbers[3], tuple(shards), numbers[6])


def _subscription(data: bytes) -> Subscription:
    texts, destinations = {1: "", 2: ""}, []
    for number, value in fields(data):
        if number in texts:
            texts[number] = _bytes(value).decode()
        elif number == 3:
            destinations.append(_bytes(value).decode())
    return Subscription(texts[1], texts[2], tuple(destinations))


def _user(data: bytes) -> User:
    name, admin, grants = "", False, []
    for number, value in fields(data):
        if number == 1:
            name = _bytes(value).decode()
        elif number == 3:
            admin = bool(value)
        elif number == 4:
            parts = dict(fields(_bytes(value)))
            right = _PRIVILEGES.get(_int(parts.get(2, 0)))
            if right is not None:
                grants.append((_bytes(parts[1]).decode(), right))
    return User(name, admin, tuple(grants))


def _user_message(user: User) -> bytes:
    rights = {word: number for number, word in _PRIVILEGES.items()}
    grants = [(4, message([(1, database), (2, rights[right])])) for database, right in user.grants]
    return message([(1, user.name), (2, ""), (3, int(user.admin)), *grants])


def _policy_message(policy: Policy) -> bytes:
    parts: list[tuple[int, Value | str]] = [
        (1, policy.name), (2, policy.duration), (3, policy.shard_duration), (4, policy.replicas),
    ]  # fmt: skip
    for group in policy.groups:
        numbers: list[tuple[int, Value | str]] = [(1, group.shards[0]), (2, group.start), (3, group.end), (4, 0)]
        numbers += [(5, message([(1, shard)])) for shard in group.shards]
        if group.truncated:
            numbers.append((6, group.truncated))
        parts.append((5, message(numbers)))
    for one in policy.subscriptions:
        parts.append((6, message([(1, one.name), (2, one.mode), *((3, place) for place in one.destinations)])))
    return message(parts)


def _bytes(value: Value) -> bytes:
    if isinstance(value, int):
        raise NotProtobuf("a number where a text is expected")
    return value


def _int(value: Value) -> int:
    if isinstance(value, bytes):
        raise NotProtobuf("a text where a number is expected")
    return value
