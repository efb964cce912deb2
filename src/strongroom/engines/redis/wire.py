"""The Redis protocol over one socket: RESP2 as a client, and the little of it that a fake master needs.

Every wait is bounded: silence longer than `patience` seconds is EngineUnreachable, and while we wait the job is looked at
twice a second. Error texts carry what the server said, except in answer to AUTH, which could quote a password.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from strongroom.ambient import Ambient
from strongroom.engines.base import EngineDenied, EngineError, EngineUnreachable, EngineUnsupported, Target

CONNECT_SECONDS = 5.0
REPLY_SECONDS = 15.0  # one command's answer
STREAM_SECONDS = 60.0  # silence inside a transfer; Redis' own repl-timeout
_TURN_SECONDS = 0.5  # how long a single system call may block
_PIECE = 1 << 18

Reply = Any  # RESP2: bytes, int, None or a list of these; checked where it is used


class RightMissing(EngineDenied):
    """The user is known, but may not run a command."""


class NotNow(EngineUnreachable):
    """The server answers, but cannot do this just now: it loads, or has lost its master."""


@dataclass(frozen=True, slots=True)
class Place:
    """A target's address, taken apart."""

    host: str
    port: int
    user: str | None
    tls: bool

    @property
    def shown(self) -> str:
        """For error texts."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def place_of(target: Target) -> Place:
    """Takes `redis://[user@]host[:port]` apart; EngineUnsupported says what is wrong with any other form."""
    try:
        url = urlsplit(target.address)
        port = url.port or 6379
    except ValueError:
        raise EngineUnsupported("the instance's address is not a URL of the form redis://[user@]host:port") from None
    if url.scheme not in ("redis", "rediss") or not url.hostname:
        raise EngineUnsupported("the instance's address must have the form redis://[user@]host:port, or rediss:// for TLS")
    if url.password is not None:
        raise EngineUnsupported("the instance's address must not contain the password: store it as the password")
    unknown = sorted(set(target.options) - {"ca"})
    if unknown:
        raise EngineUnsupported(f"unknown options for a Redis target: {', '.join(unknown)}")
    if url.path not in ("", "/") or url.query or url.fragment:
        raise EngineUnsupported("the instance's address must end after the port: all databases are saved together")
    return Place(url.hostname, port, unquote(url.username) if url.username else None, url.scheme == "rediss")


def no_look() -> None:
    """For connections that belong to no job."""


class Wire:
    """One connection. Not for several threads at once. `beat` is called while waiting and may raise."""

    def __init__(
        self,
        sock: socket.socket,
        shown: str,
        ambient: Ambient,
        beat: Callable[[], None] = no_look,
        patience: float = REPLY_SECONDS,
    ) -> None:
        self.user = "default"
        self._patience = patience
        self._sock = sock
        self._shown = shown
        self._ambient = ambient
        self._beat = beat
        self._buffer = bytearray()
        sock.settimeout(_TURN_SECONDS)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Drops the connection without a word."""
        with contextlib.suppress(OSError):
            self._sock.close()

    @property
    def local_host(self) -> str:
        """Our own address on this connection: one that the other side can reach, as far as routing goes."""
        return str(self._sock.getsockname()[0])

    @property
    def peer_host(self) -> str:
        """The other side's numeric address."""
        return str(self._sock.getpeername()[0])

    @property
    def family(self) -> socket.AddressFamily:
        """IPv4 or IPv6."""
        return self._sock.family

    # Sending

    def send(self, data: bytes | memoryview, patience: float = STREAM_SECONDS) -> None:
        """Sends all of it; EngineUnreachable if the other side takes nothing for `patience` seconds."""
        left = memoryview(data)
        since = self._ambient.monotonic()
        while left:
            try:
                sent = self._sock.send(left)
            except TimeoutError:
                self._waited(since, patience, "takes no more data")
                continue
            except OSError as error:
                raise EngineUnreachable(f"the connection to {self._shown} was lost: {error.strerror or error}") from error
            left = left[sent:]
            since = self._ambient.monotonic()

    def send_command(self, *words: str | bytes) -> None:
        """Sends one command without waiting for its answer."""
        self.send(packed(*words), self._patience)

    # Receiving

    def read(self, limit: int, patience: float = STREAM_SECONDS) -> bytes:
        """The next 1 to `limit` bytes."""
        if not self._buffer:
            self._fill(patience)
        piece = bytes(self._buffer[:limit])
        del self._buffer[:limit]
        return piece

    def line(self, patience: float | None = None) -> bytes:
        """The next line without its end; empty lines, which Redis sends to keep a connection alive, are left out."""
        patience = self._patience if patience is None else patience
        while True:
            end = self._buffer.find(b"\n")
            if end < 0:
                if len(self._buffer) > 1 << 16:
                    raise EngineUnsupported(f"{self._shown} does not speak the Redis protocol")
                self._fill(patience)
                continue
            line = bytes(self._buffer[:end]).rstrip(b"\r")
            del self._buffer[: end + 1]
            if line:
                return line

    def _exactly(self, size: int, patience: float) -> bytes:
        while len(self._buffer) < size:
            self._fill(patience)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _fill(self, patience: float) -> None:
        since = self._ambient.monotonic()
        while True:
            try:
                piece = self._sock.recv(_PIECE)
            except TimeoutError:
                self._waited(since, patience, "does not answer")
                continue
            except OSError as error:
                raise EngineUnreachable(f"the connection to {self._shown} was lost: {error.strerror or error}") from error
            if not piece:
                raise EngineUnreachable(f"{self._shown} closed the connection")
            self._buffer += piece
            return

    def _waited(self, since: float, patience: float, what: str) -> None:
        self._beat()
        if self._ambient.monotonic() - since > patience:
            raise EngineUnreachable(f"{self._shown} {what} ({patience:.0f} s): see whether the server is alive and not blocked")

    def peek(self) -> bytes:
        """The first byte that comes, which stays there to be read."""
        if not self._buffer:
            self._fill(self._patience)
        return bytes(self._buffer[:1])

    def poll(self, limit: int) -> bytes:
        """The next bytes, at most so many; b"" if none have come within half a second."""
        if self._buffer:
            return self.read(limit)
        try:
            piece = self._sock.recv(limit)
        except TimeoutError:
            return b""
        except OSError as error:
            raise EngineUnreachable(f"the connection to {self._shown} was lost: {error.strerror or error}") from error
        if not piece:
            raise EngineUnreachable(f"{self._shown} closed the connection")
        return piece

    def readable(self) -> bool:
        """Whether something has come."""
        return bool(self._buffer) or bool(select.select([self._sock], [], [], 0)[0])

    def alone(self) -> None:
        """From here on it belongs to a thread beside the job's: `beat` is not called any more."""
        self._beat = no_look

    # Commands

    def command(self, *words: str | bytes, patience: float | None = None) -> Reply:
        """Runs one command; an error answer is raised as the EngineError that it means."""
        self.send_command(*words)
        return self.reply(_name(words), patience)

    def reply(self, name: str, patience: float | None = None) -> Reply:
        """The next answer, to the command `name`."""
        line = self.line(patience)
        kind, rest = line[:1], line[1:]
        try:
            if kind == b"+":
                return rest
            if kind == b"-":
                raise refusal(rest.decode("utf-8", "replace"), name, self.user, self._shown)
            if kind == b":":
                return int(rest)
            if kind == b"$":
                size = int(rest)
                return None if size < 0 else self._exactly(size + 2, self._patience if patience is None else patience)[:-2]
            if kind == b"*":
                return [self.reply(name, patience) for _ in range(int(rest))]
        except ValueError:
            pass
        raise EngineUnsupported(f"{self._shown} does not speak the Redis protocol")

    def request(self, patience: float = STREAM_SECONDS) -> list[bytes]:
        """The next command of the other side, as a master reads it; its keep-alive newlines are left out."""
        line = self.line(patience)
        if not line.startswith(b"*"):
            return line.split()
        words = []
        try:
            for _ in range(int(line[1:])):
                size = int(self.line(patience)[1:])
                words.append(self._exactly(size + 2, patience)[:-2])
        except ValueError:
            raise EngineUnsupported(f"{self._shown} does not speak the Redis protocol") from None
        return words

    def info(self) -> dict[str, str]:
        """INFO as a dictionary; EngineDenied without +info."""
        text = self.command("INFO")
        if not isinstance(text, bytes):
            raise EngineUnsupported(f"{self._shown} answers INFO in an unknown form")
        lines = text.decode("utf-8", "replace").splitlines()
        return {name: value for name, found, value in (line.partition(":") for line in lines) if found}

    def setting(self, name: str) -> str | None:
        """CONFIG GET of one setting, None where the server has none of that name."""
        pair = self.command("CONFIG", "GET", name)
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], bytes):
            return pair[1].decode("utf-8", "surrogateescape")
        return None

    def set(self, name: str, value: str) -> None:
        """CONFIG SET of one setting."""
        self.command("CONFIG", "SET", name, value.encode("utf-8", "surrogateescape"))


def packed(*words: str | bytes) -> bytes:
    """One command in the protocol's form."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word.encode() if isinstance(word, str) else word
        parts += (b"$%d\r\n" % len(data), data, b"\r\n")
    return b"".join(parts)


ASK = packed("REPLCONF", "GETACK", "*")  # a replica answers once it has done all before it, with an offset that leaves it out


def _name(words: Sequence[str | bytes]) -> str:
    """A command's name in the form in which rights are granted."""
    shown = [word if isinstance(word, str) else word.decode("ascii", "replace") for word in words[:2]]
    return "|".join(shown) if shown[0] == "CONFIG" else shown[0]


_PASSING = ("LOADING", "BUSY", "MASTERDOWN", "NOMASTERLINK", "CLUSTERDOWN", "TRYAGAIN")


def refusal(said: str, name: str, user: str, shown: str) -> EngineError:
    """The error that a server's error answer means, in words that tell what to do."""
    code = said.split(" ", 1)[0]
    if name == "AUTH":
        if "without any password configured" in said:
            return EngineDenied(f"{shown} has no password set for the default user: take the password out of the instance")
        return EngineDenied(f"{shown} refuses the password of user {user!r}: correct it (`strongroom instance change`)")
    if code == "NOAUTH":
        return EngineDenied(f"{shown} wants a password: store one with the instance")
    if code == "NOPERM":
        return RightMissing(f"user {user!r} on {shown} may not run {name}: grant +{name.lower()} with ACL SETUSER")
    if code == "DENIED":
        return EngineDenied(f"{shown} runs in protected mode: set a password there, or bind it to its private address")
    if code in _PASSING or "max number of clients" in said:
        return NotNow(f"{shown} cannot serve {name} now: {said[:200]}")
    if "unknown command" in said.lower() or "unknown subcommand" in said.lower():
        return EngineUnsupported(f"{shown} does not know {name}: it is renamed, disabled or too old")
    return EngineError(f"{shown} refuses {name}: {said[:200]}")


def open_wire(target: Target, ambient: Ambient, beat: Callable[[], None] = no_look, patience: float = REPLY_SECONDS) -> Wire:
    """Connects and authenticates; `patience` is the wait for each command's answer.

    Raises EngineUnreachable, EngineDenied or EngineUnsupported.
    """
    place = place_of(target)
    login: tuple[str, ...] = ()
    if target.password is not None:
        login = (target.password,) if place.user is None else (place.user, target.password)
    elif place.user is not None:
        raise EngineDenied(f"the address names user {place.user!r}, but no password is stored with the instance")
    wire = Wire(_connected(place, target), place.shown, ambient, beat, patience)
    try:
        wire.user = place.user or wire.user
        if login:
            wire.command("AUTH", *login)
    except BaseException:
        wire.close()
        raise
    return wire


def _connected(place: Place, target: Target) -> socket.socket:
    context = _tls(target) if place.tls else None
    try:
        sock = socket.create_connection((place.host, place.port), timeout=CONNECT_SECONDS)
    except OSError as error:
        why = error.strerror or str(error)
        raise EngineUnreachable(
            f"cannot connect to {place.shown}: {why}; see whether Redis runs there and is reachable"
        ) from error
    if context is None:
        return sock
    try:
        return context.wrap_socket(sock, server_hostname=place.host)
    except ssl.SSLCertVerificationError as error:
        sock.close()
        text = f'the certificate of {place.shown} is not trusted: {error.verify_message}; give its CA as option "ca"'
        raise EngineDenied(text) from error
    except OSError as error:
        sock.close()
        why = getattr(error, "reason", None) or error.strerror or str(error)
        raise EngineUnreachable(f"no TLS with {place.shown}: {why}; see whether this is its TLS port") from error


def _tls(target: Target) -> ssl.SSLContext:
    """The machine's CAs, or the one given as PEM text in the option `ca`."""
    authority = target.options.get("ca")
    try:
        return ssl.create_default_context(cadata=authority)
    except (ssl.SSLError, TypeError, ValueError) as error:
        raise EngineUnsupported('the option "ca" is not a certificate in PEM text') from error


@contextlib.contextmanager
def scratch_errors(scratch: str) -> Iterator[None]:
    """Says of a failing scratch folder that it is the folder, not the engine."""
    try:
        yield
    except OSError as error:
        raise EngineError(f"the scratch folder {scratch} failed: {error.strerror or error}; make room there") from error
