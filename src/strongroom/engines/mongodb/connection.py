"""How MongoDB is reached: the client, the checks of server and rights, and what each of its errors means to us."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from bson.timestamp import Timestamp
from pymongo import MongoClient
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from strongroom.engines.base import (
    CaptureBroken,
    Control,
    EngineDenied,
    EngineError,
    EngineUnreachable,
    EngineUnsupported,
    Target,
)

OLDEST = (5, 0)  # the first with snapshot reads outside transactions
SELECTION_SECONDS = 5.0
SOCKET_SECONDS = 60.0

# Options of a target that are handed to the driver; all others are refused, so that a typing error is seen.
DRIVER_OPTIONS = frozenset(
    {
        "authMechanism",
        "authSource",
        "directConnection",
        "replicaSet",
        "tls",
        "tlsAllowInvalidCertificates",
        "tlsAllowInvalidHostnames",
        "tlsCAFile",
        "tlsCertificateKeyFile",
    }
)

Client = MongoClient[dict[str, Any]]

_SNAPSHOT_UNAVAILABLE, _SNAPSHOT_TRIES, _SNAPSHOT_PAUSE = 246, 50, 0.2  # the code, and how often and long it is waited for
UNAUTHORIZED, CURSOR_LOST = 13, 43
_AUTHENTICATION_FAILED, _TOO_LONG = 18, 50
_PRIMARY_CODES = frozenset({10107, 13435, 11602, 189, 91, 11600, 13436})
_STANDALONE = (
    "it is a stand-alone server without an oplog, so no consistent backup can be taken. Make it a replica set of one node: "
    "start mongod with --replSet rs0 (and --keyFile where it uses passwords), then run rs.initiate() once"
)


@contextlib.contextmanager
def connected(target: Target, *, socket_seconds: float | None = SOCKET_SECONDS) -> Iterator[Client]:
    """A client for the target, closed at the end. Inside the block the driver's errors become those of the engine port."""
    user, address = _split_user(target.address)
    unknown = sorted(set(target.options) - DRIVER_OPTIONS)
    if unknown:
        raise EngineUnsupported(f"unknown options for a MongoDB target: {', '.join(unknown)}")
    options: dict[str, Any] = {
        "serverSelectionTimeoutMS": int(SELECTION_SECONDS * 1000),
        "connectTimeoutMS": int(SELECTION_SECONDS * 1000),
        "socketTimeoutMS": int(socket_seconds * 1000) if socket_seconds else None,
        "appname": "strongroom",
        "readPreference": "primary",
        "uuidRepresentation": "standard",
        **target.options,
    }
    if user is not None:
        options.update(username=user, password=target.password)
    with translated():
        client: Client
        try:
            client = MongoClient(address, **options)
        except (OSError, TypeError, ValueError) as error:  # a file that cannot be read, a value of the wrong kind
            raise EngineUnsupported(f"an option of the target is wrong ({type(error).__name__})") from None
        with client:
            yield client


def _split_user(address: str) -> tuple[str | None, str]:
    """The user is taken out of the URL, since the driver wants it beside the password."""
    scheme, separator, rest = address.partition("://")
    if scheme not in ("mongodb", "mongodb+srv") or not separator:
        raise EngineUnsupported("the address is not of the form mongodb://[user@]host[:port][,...]/[?options]")
    hosts, slash, tail = rest.partition("/")
    user, at, hosts = hosts.rpartition("@")
    if ":" in user:
        raise EngineUnsupported("the address holds a password; give it apart from the address")
    return (unquote(user) if at else None), f"{scheme}://{hosts}{slash}{tail}"


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turns the driver's errors into the port's. Their texts hold hosts and users, never passwords."""
    try:
        yield
    except ConfigurationError as error:  # its text may quote the whole address
        raise EngineUnsupported(f"the address or the options of the target are wrong ({type(error).__name__})") from None
    except OperationFailure as error:
        raise _meaning(error) from error
    except ServerSelectionTimeoutError as error:
        raise EngineUnreachable(f"MongoDB does not answer, or has no primary: {_short(error)}") from error
    except ConnectionFailure as error:
        raise EngineUnreachable(f"the connection to MongoDB was lost: {_short(error)}") from error
    except PyMongoError as error:
        raise EngineError(f"MongoDB's driver failed: {_short(error)}") from error


def _meaning(error: OperationFailure) -> EngineError:
    if error.code == _AUTHENTICATION_FAILED:
        return EngineDenied("MongoDB refuses the user or the password")
    if error.code == UNAUTHORIZED:
        return EngineDenied(f"the user lacks a right: {_short(error)}")
    if error.code in _PRIMARY_CODES:
        return EngineUnreachable(f"the primary has changed or is shutting down: {_short(error)}")
    if error.code == CURSOR_LOST:
        return CaptureBroken("MongoDB gave up a cursor: nothing was read for too long, or the primary has changed")
    if error.code == _TOO_LONG:
        return EngineUnreachable("MongoDB did not answer in time: does a majority of the replica set run?")
    return EngineError(f"MongoDB refuses: {_short(error)} (code {error.code})")


def _short(error: Exception) -> str:
    return str(error).split(", full error:")[0].split(", Timeout:")[0][:500]


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself."""

    version: str
    feature_version: str
    set_name: str | None
    identity: tuple[str, str]  # who is primary, and by which election

    @property
    def release(self) -> tuple[int, int]:
        """(major, minor) of the version."""
        return release_of(self.version)


def release_of(version: str) -> tuple[int, int]:
    """(6, 0) of "6.0.5"; a text that is no version is older than all."""
    parts = version.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return 0, 0


def inspect(client: Client, rights: Sequence[Right] = (), role: str = "") -> Server:
    """Asks for version and place in the topology. Refuses a router, a member that cannot be written to, and a user that lacks
    one of the rights, which the built-in role would grant."""
    with _asking():
        hello = client.admin.command("hello")
        require_primary(hello)
        require_rights(client, rights, role)
        version = str(client.admin.command("buildInfo")["version"])
        setting = client.admin.command("getParameter", featureCompatibilityVersion=1)
    feature = str(setting["featureCompatibilityVersion"]["version"])
    identity = str(hello.get("me", "")), str(hello.get("electionId", ""))
    return Server(version, feature, hello.get("setName"), identity)


def history(client: Client, server: Server) -> str:
    """What stays the same for as long as a replica set goes on, whoever is its primary: its name, and the UUID of a collection
    that is made with it and never dropped (the role `backup` may not read the id of the set's configuration)."""
    for entry in client.admin.list_collections(filter={"name": "system.version"}):
        return f"{server.set_name}/{bytes(entry['info']['uuid']).hex()}"
    raise EngineUnsupported("the collection admin.system.version is missing")


def require_primary(hello: Mapping[str, Any]) -> None:
    """A router or config server of a sharded cluster is refused for good, a secondary until it is primary again."""
    if hello.get("msg") == "isdbgrid":
        raise EngineUnsupported("it is a mongos router: sharded clusters are not supported")
    if "configsvr" in hello:
        raise EngineUnsupported("it is a config server of a sharded cluster, which is not supported")
    if not hello.get("isWritablePrimary"):
        raise EngineUnreachable("it is not a primary that can be written to; give the addresses of all members of the set")


def require_oplog(server: Server) -> None:
    """A capture needs an oplog, and snapshot reads outside transactions."""
    if server.set_name is None:
        raise EngineUnsupported(_STANDALONE)
    if server.release < OLDEST:
        raise EngineUnsupported(f"MongoDB {server.version} is too old: {OLDEST[0]}.{OLDEST[1]} or later is needed")


def require_source(client: Client) -> Server:
    """A server whose state can be captured: a replica set's primary, new enough, not a shard, with the rights to read all."""
    server = inspect(client, CAPTURE_RIGHTS, "backup")
    require_oplog(server)
    if client.admin["system.version"].find_one({"_id": "shardIdentity"}) is not None:
        raise EngineUnsupported("it is a shard of a sharded cluster, which is not supported")
    return server


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """Without a user even the first questions are refused."""
    try:
        yield
    except OperationFailure as error:
        if error.code == UNAUTHORIZED:
            raise EngineDenied("MongoDB asks for a user and a password, or the user has no role") from error
        raise


@dataclass(frozen=True, slots=True)
class Right:
    """Actions on a resource. Database and collection None: the whole cluster; "" stands for any that is not a system's own."""

    database: str | None
    collection: str | None
    actions: tuple[str, ...]

    def __str__(self) -> str:
        where = "the cluster"
        if self.database is not None:
            where = f"{self.database or 'every database'}.{self.collection or '*'}"
        return f"{', '.join(self.actions)} on {where}"


CAPTURE_RIGHTS = (
    Right(None, None, ("appendOplogNote", "listDatabases")),
    Right("", "", ("find", "listCollections", "listIndexes", "collStats")),
    Right("local", "oplog.rs", ("find",)),
    Right("admin", "system.users", ("find",)),
    Right("admin", "system.roles", ("find",)),
)
RESTORE_RIGHTS = (
    Right("", "", ("insert", "createCollection", "dropCollection", "createIndex", "bypassDocumentValidation")),
    Right("", "", ("listCollections", "createUser", "dropUser", "createRole", "dropRole")),
    Right("admin", "system.users", ("find", "insert")),
)

REPLAYER = "strongroomReplay"  # the name that the role of who may replay an oplog has in our words


def require_rights(client: Client, rights: Sequence[Right], role: str) -> None:
    """Raises EngineDenied naming what is missing and the built-in role that grants it. A server without access control passes."""
    status = client.admin.command("connectionStatus", showPrivileges=True)["authInfo"]
    if not status["authenticatedUsers"]:
        try:
            client.admin.command("listDatabases", nameOnly=True, authorizedDatabases=False)
        except OperationFailure as error:
            raise EngineDenied("MongoDB asks for a user and a password, and none are set") from error
        return
    missing = [str(right) for right in rights if not allowed(status["authenticatedUserPrivileges"], right)]
    if missing:
        user = status["authenticatedUsers"][0]
        raise EngineDenied(
            f"the user {user['user']!r} of {user['db']!r} lacks rights: {'; '.join(missing)}. "
            f"Grant it the built-in role {role!r} on the database 'admin'"
        )


def require_replayer(client: Client) -> None:
    """Raises EngineDenied, with the role that it takes, where the user may not use applyOps: no built-in role but root's kin
    grants that. A server without access control passes."""
    status = client.admin.command("connectionStatus", showPrivileges=True)["authInfo"]
    everything = [one for one in status["authenticatedUserPrivileges"] if one["resource"].get("anyResource")]
    if not status["authenticatedUsers"] or any("anyAction" in one["actions"] for one in everything):
        return
    user = status["authenticatedUsers"][0]
    raise EngineDenied(
        f"the user {user['user']!r} of {user['db']!r} may not replay the oplog (applyOps): a restore to a point in time needs a "
        f"role of your own, made by db.getSiblingDB('admin').createRole({{role: '{REPLAYER}', privileges: "
        "[{resource: {anyResource: true}, actions: ['anyAction']}], roles: []}) and granted by "
        f"db.getSiblingDB({user['db']!r}).grantRolesToUser({user['user']!r}, [{{role: '{REPLAYER}', db: 'admin'}}])"
    )


def allowed(privileges: Sequence[Mapping[str, Any]], right: Right) -> bool:
    """Whether the privileges, as connectionStatus shows them, hold every action of the right."""
    held: set[str] = set()
    for privilege in privileges:
        if _covers(privilege["resource"], right):
            held.update(privilege["actions"])
    return "anyAction" in held or set(right.actions) <= held


def _covers(resource: Mapping[str, Any], right: Right) -> bool:
    if resource.get("anyResource"):
        return True
    if right.database is None or right.collection is None:
        return bool(resource.get("cluster"))
    if "db" not in resource or resource["db"] not in ("", right.database):
        return False
    system = right.collection.startswith("system.")
    return resource["collection"] == right.collection or (resource["collection"] == "" and not system)


def kept_databases(client: Client) -> frozenset[str]:
    """The databases whose users and roles let us in: `admin`, and where our own user and its roles live."""
    status = client.admin.command("connectionStatus")["authInfo"]
    own = [*status["authenticatedUsers"], *status["authenticatedUserRoles"]]
    return frozenset({"admin", *(str(item["db"]) for item in own)})


def patiently(client: Client, database: str, command: Mapping[str, Any], control: Control) -> dict[str, Any]:
    """Runs a command that may take hours, by a client without a limit of its own, and lets the job be cancelled meanwhile; the
    server then goes on alone. Raises the driver's errors."""
    replies: list[dict[str, Any]] = []
    failures: list[PyMongoError] = []

    def run() -> None:
        try:
            replies.append(client[database].command(dict(command)))
        except PyMongoError as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="mongodb-patience", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        control.check()
    if failures:
        raise failures[0]
    return replies[0]


def as_number(time: Timestamp) -> int:
    """A cluster time as one integer that sorts the same way."""
    return (time.time << 32) | time.inc


def as_timestamp(number: int) -> Timestamp:
    """Back from `as_number`."""
    return Timestamp(number >> 32, number & 0xFFFFFFFF)


def note_time(client: Client) -> int:
    """Writes a note into the oplog; what it returns is a time at or after everything acknowledged before the call."""
    reply = client.admin.command("appendOplogNote", data={"strongroom": "capture"})
    if "operationTime" in reply:
        return as_number(reply["operationTime"])
    # A server that has just started tells no times yet; the newest entry of its oplog is our note or a later one.
    newest = client.local["oplog.rs"].find_one({}, {"ts": 1}, sort=[("$natural", -1)])
    if newest is None:
        raise CaptureBroken("the oplog is empty")
    return as_number(newest["ts"])


def snapshot_time(client: Client) -> int:
    """The newest time before which nothing can change any more: majority-committed, without gaps."""
    command = {"find": "system.version", "limit": 1, "readConcern": {"level": "snapshot"}, "maxTimeMS": 30_000}
    for left in reversed(range(_SNAPSHOT_TRIES)):
        try:
            reply = client.admin.command(command)
            break
        except OperationFailure as error:  # a server that has just started has no such time yet
            if error.code != _SNAPSHOT_UNAVAILABLE or not left:
                raise
            time.sleep(_SNAPSHOT_PAUSE)
    found = reply["cursor"].get("atClusterTime") or reply.get("atClusterTime")
    if found is None:
        raise CaptureBroken("MongoDB did not tell the time of a snapshot read")
    return as_number(found)
