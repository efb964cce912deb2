"""How Cassandra is reached: addresses, CQL sessions that speak with one node alone, and what the driver's errors mean to us.

An address names one or more nodes to begin with; the others are asked for. A node's own CQL address comes from the cluster's
system tables, its JMX port from the node's own table of system properties.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from cassandra import (
    AuthenticationFailed,
    DriverException,
    InvalidRequest,
    OperationTimedOut,
    RequestExecutionException,
    Unauthorized,
)
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import WhiteListRoundRobinPolicy
from cassandra.query import named_tuple_factory

from strongroom.engines.base import EngineDenied, EngineError, EngineUnreachable, EngineUnsupported, Target
from strongroom.engines.cassandra.handshakes import reason
from strongroom.engines.cassandra.jmx import Jmx
from strongroom.engines.cassandra.options import JmxEntry, jmx_entry_of, trust_of

CQL_PORT, JMX_PORT = 9042, 7199
OLDEST = (4, 1)  # the first that takes a role with its hashed password
CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 60.0

# Every error of the driver's is raised to us too, and told once.
logging.getLogger("cassandra").setLevel(logging.CRITICAL)

_NUMBERS = re.compile(r"\d+")
_PROTOCOL = 4  # the newest that every version since OLDEST speaks without asking
_JMX_PORTS = ("cassandra.jmx.local.port", "cassandra.jmx.remote.port")


@dataclass(frozen=True, slots=True)
class Address:
    """`cassandra://[user@]host[:port][,host[:port]…]`, `cassandras://…` for TLS."""

    user: str | None
    places: Sequence[tuple[str, int]]
    tls: bool = False


def parse(address: str) -> Address:
    """Raises EngineUnsupported."""
    try:
        parts = urlsplit(address)
        user, at, hosts = parts.netloc.rpartition("@")
        places = [_place(one) for one in hosts.split(",") if one]
    except ValueError as error:
        raise EngineUnsupported(f"the address is no URL: {error}") from error
    if parts.scheme not in ("cassandra", "cassandras") or not places or parts.path.strip("/") or parts.query:
        raise EngineUnsupported(
            "the address is not of the form cassandra://[user@]host[:port][,host[:port]...], or cassandras:// for TLS"
        )
    if ":" in user:
        raise EngineUnsupported("the address holds a password; give it apart from the address")
    return Address(unquote(user) if at else None, places, parts.scheme == "cassandras")


def _place(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest[1:]) if rest else CQL_PORT
    host, colon, port = text.partition(":")
    return host, int(port) if colon else CQL_PORT


@dataclass(frozen=True, slots=True)
class Member:
    """A node as the cluster's system tables tell of it."""

    id: str  # host id
    host: str
    port: int  # of CQL
    version: str
    data_center: str
    rack: str
    tokens: Sequence[str]


class Session:
    """CQL with one node."""

    def __init__(self, session: Any, host: str, port: int, user: str | None, jmx: JmxEntry) -> None:
        self._session, self.host, self.port, self.user, self.jmx = session, host, port, user, jmx

    def rows(self, statement: str, values: Sequence[Any] = (), seconds: float = REQUEST_SECONDS) -> list[Any]:
        """The rows of a statement, all of them. Raises EngineError."""
        with translated():
            return list(self._session.execute(statement, values or None, timeout=seconds))

    def members(self) -> list[Member]:
        """All nodes of the cluster, by id."""
        names = "host_id, data_center, rack, release_version, tokens"
        (own,) = self.rows(f"SELECT {names}, rpc_address, rpc_port FROM system.local")  # noqa: S608 (our own words)
        found = [_member(own, own.rpc_address, own.rpc_port)]
        for row in self.rows(f"SELECT {names}, native_address, native_port FROM system.peers_v2"):  # noqa: S608 (our own words)
            if row.host_id is not None and row.native_address is not None:
                found.append(_member(row, row.native_address, row.native_port))
        return sorted(found, key=lambda one: one.id)

    def jmx_port(self) -> int:
        """Of this node."""
        found = {row.name: row.value for row in self.rows("SELECT name, value FROM system_views.system_properties")}
        ports = [found[name] for name in _JMX_PORTS if str(found.get(name) or "").isdigit()]
        return int(ports[0]) if ports else JMX_PORT


def _member(row: Any, host: Any, port: int) -> Member:
    tokens = sorted(row.tokens or (), key=int)
    return Member(str(row.host_id), str(host), int(port), row.release_version, row.data_center, row.rack, tokens)


@contextlib.contextmanager
def connected(target: Target) -> Iterator[Session]:
    """A session with the first node of the address that answers; with the target's node, if it names one."""
    address = parse(target.address)
    refused: EngineUnreachable | None = None
    for host, port in address.places:
        try:
            session = _open(target, address, host, port)
        except EngineUnreachable as error:
            refused = refused or error
            continue
        with session as opened:
            if not target.node:
                yield opened
                return
            member = next((one for one in opened.members() if one.id == target.node), None)
        if member is None:
            raise EngineUnreachable(f"node {target.node} is not in the cluster any more")
        with _open(target, address, member.host, member.port) as own:
            yield own
        return
    raise refused or EngineUnreachable("the address names no node")


def _open(target: Target, address: Address, host: str, port: int) -> contextlib.AbstractContextManager[Session]:
    """Connects at once; the session is closed with the context."""
    trust, jmx = trust_of(target, tls=address.tls), jmx_entry_of(target)
    context = None if trust is None else trust.context()
    entering = None if address.user is None else PlainTextAuthProvider(address.user, target.password or "")
    try:
        numeric = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise EngineUnreachable(f"the name {host} is not known: {error}") from error
    profile = ExecutionProfile(
        WhiteListRoundRobinPolicy([numeric]), request_timeout=REQUEST_SECONDS, row_factory=named_tuple_factory
    )
    cluster = Cluster(
        [numeric], port=port, auth_provider=entering, execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        protocol_version=_PROTOCOL, connect_timeout=CONNECT_SECONDS, control_connection_timeout=CONNECT_SECONDS,
        schema_metadata_enabled=False, token_metadata_enabled=False, application_name="strongroom", ssl_context=context,
        ssl_options=None if context is None else {"server_hostname": host},
    )  # fmt: skip
    try:
        with translated():
            session = cluster.connect()
    except EngineUnreachable as error:
        cluster.shutdown()
        raise reason(numeric, port, host, context) or error from error
    except BaseException:
        cluster.shutdown()
        raise

    @contextlib.contextmanager
    def opened() -> Iterator[Session]:
        try:
            yield Session(session, numeric, port, address.user, jmx)
        finally:
            cluster.shutdown()

    return opened()


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turns the driver's errors into the port's. Their texts hold hosts and names, never passwords."""
    try:
        yield
    except (AuthenticationFailed, Unauthorized) as error:
        raise _denied(error) from error
    except NoHostAvailable as error:
        causes = list(error.errors.values()) if isinstance(error.errors, dict) else list(error.errors or ())
        for cause in causes:
            if isinstance(cause, (AuthenticationFailed, Unauthorized)):
                raise _denied(cause) from error
        raise EngineUnreachable(f"Cassandra does not answer: {_short(causes[0] if causes else error)}") from error
    except InvalidRequest as error:
        raise EngineUnsupported(f"Cassandra refuses: {_short(error)}") from error
    except (OperationTimedOut, RequestExecutionException) as error:
        raise EngineUnreachable(f"Cassandra did not carry a request out: {_short(error)}") from error
    except (DriverException, OSError) as error:
        raise EngineError(f"Cassandra's driver failed: {_short(error)}") from error


def _denied(error: Exception) -> EngineDenied:
    if isinstance(error, AuthenticationFailed):
        return EngineDenied("Cassandra refuses the user or the password")
    return EngineDenied(f"the user lacks a right: {_short(error)}")


def _short(error: Exception) -> str:
    return " ".join(str(getattr(error, "message", None) or error).split())[:500] or type(error).__name__


def version_of(text: str) -> tuple[int, int]:
    """(5, 0) of "5.0.6"; a text that is no version is older than all."""
    numbers = text.split("-")[0].split(".")
    try:
        return int(numbers[0]), int(numbers[1])
    except (ValueError, IndexError):
        return 0, 0


def require_version(members: Sequence[Member]) -> str:
    """The cluster's version: all nodes run the same. Raises EngineUnsupported."""
    versions = sorted(
        {member.version for member in members}, key=lambda version: [int(part) for part in _NUMBERS.findall(version)]
    )
    if version_of(versions[0]) < OLDEST:
        raise EngineUnsupported(f"Cassandra {versions[0]} is too old: {OLDEST[0]}.{OLDEST[1]} or later is needed")
    if len({version_of(version) for version in versions}) > 1:
        raise EngineUnsupported(f"the nodes run different versions ({', '.join(versions)}): finish the upgrade first")
    return versions[0]


def require_up(members: Sequence[Member]) -> None:
    """Raises EngineUnreachable naming the node that does not listen for CQL."""
    for member in members:
        try:
            socket.create_connection((member.host, member.port), CONNECT_SECONDS).close()
        except OSError as error:
            raise EngineUnreachable(
                f"node {member.id} ({member.host}) is down: start it, or take it out of the cluster if it is gone for good"
            ) from error


@dataclass(frozen=True, slots=True)
class State:
    """What a node says of itself over JMX."""

    data_folders: Sequence[str]
    unreachable: Sequence[str]  # nodes that it thinks are down
    moving: Sequence[str]  # nodes that join, leave or move


@contextlib.contextmanager
def controlled(session: Session, check: Callable[[], None]) -> Iterator[tuple[Jmx, State]]:
    """JMX of the session's node, on this host, once the node is proven to be that node and to work as it should."""
    with Jmx("127.0.0.1", session.jmx_port(), check, session.jmx) as jmx:
        (own,) = session.rows("SELECT host_id FROM system.local")
        here, mode, native, gossip, folders, down, joining, leaving, moving = jmx.read(
            "LocalHostId", "OperationMode", "NativeTransportRunning", "GossipRunning", "AllDataFileLocations", "UnreachableNodes",
            "JoiningNodes", "LeavingNodes", "MovingNodes",
        )  # fmt: skip
        if here != str(own.host_id):
            raise EngineUnsupported(
                f"JMX on this host belongs to node {here}, not to {own.host_id} at {session.host}: a node's files are read by a "
                "worker on its own host (STRONGROOM_NODES)"
            )
        if mode != "NORMAL" or native != "true" or gossip != "true":
            # A node that could not write to its disk stops these two and still says NORMAL.
            raise EngineUnreachable(f"node {here} is in mode {mode}, CQL {native}, gossip {gossip}: see its log")
        words = [[item for item in text.split("|") if item] for text in (folders, down, joining, leaving, moving)]
        yield jmx, State(words[0], words[1], [*words[2], *words[3], *words[4]])
