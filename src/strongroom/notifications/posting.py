"""One POST to an address that a project's administrator chose: signed, bounded, and never into the server's own network.

Who registers a webhook need not be who runs this machine. So what the name of its host resolves to is looked at each time, and
the connection is made to what was looked at: only public addresses are reached, and the networks that the operator names.
Redirects are not followed, proxies of the environment not used, nothing of an answer is kept but its status, and all of it has
SECONDS.

    NotDelivered    it could not be told, or did not answer 2xx
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

SECONDS = 10.0
"""That a delivery may take in all, but for the system's resolving of the name."""

_CONNECT_SECONDS = 5.0
_LONGEST_URL = 2000
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class NotDelivered(Exception):
    """The receiver was not told, as far as is known. The text holds no URL; `status` is what it answered, if it did."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


class UrlRefused(Exception):
    """No webhook can be at this URL."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a webhook is."""

    tls: bool
    host: str
    port: int
    target: str  # path and query

    @property
    def origin(self) -> str:
        """The URL without path and query."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def parse(url: str, networks: Sequence[Network]) -> Place:
    """The URL understood; a host that is an address must be one that is reached. Raises UrlRefused."""
    if len(url) > _LONGEST_URL or not url.isascii() or not url.isprintable() or any(sign in url for sign in ' "<>\\^`{|}'):
        raise UrlRefused(f"a webhook's URL has at most {_LONGEST_URL} characters, printable ASCII without spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UrlRefused("it is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UrlRefused("a webhook's URL is http://HOST/… or https://HOST/…")
    if "@" in parts.netloc or parts.fragment:
        raise UrlRefused("a webhook's URL holds no user, password or fragment")
    with suppress(ValueError):
        if not reached(ipaddress.ip_address(parts.hostname), networks):
            raise UrlRefused(NOT_REACHED)
    tls = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(tls, parts.hostname, (443 if tls else 80) if port is None else port, target)


NOT_REACHED = (
    "its host is in a private network or on this machine: webhooks reach public addresses only, and the networks that the "
    "operator names by STRONGROOM_NOTIFY_NETWORKS"
)


def reached(address: Address, networks: Sequence[Network]) -> bool:
    """Whether a webhook may be at this address: a public one, or one of the operator's networks. An IPv6 address that leads to an
    IPv4 one is taken for that."""
    leads = _leads_to(address)
    named = any(one.version == network.version and one in network for one in (address, leads) for network in networks)
    return named or (leads.is_global and not leads.is_multicast and not leads.is_reserved)


def _leads_to(address: Address) -> Address:
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """HMAC-SHA-256 over the timestamp, a dot and the body, in hex."""
    return hmac.new(secret.encode(), str(timestamp).encode() + b"." + body, hashlib.sha256).hexdigest()


def post(place: Place, body: bytes, headers: Mapping[str, str], networks: Sequence[Network], seconds: float = SECONDS) -> int:
    """Posts JSON and returns the status, which is 2xx. Raises NotDelivered."""
    end = time.monotonic() + seconds
    connection = _Connection(place, lambda: _connected(place, networks, end), end)
    try:
        connection.request("POST", place.target, body, {"Content-Type": "application/json", "Connection": "close", **headers})
        status = connection.getresponse().status
        if connection.late:  # a head that was cut is taken for one that ended
            raise TimeoutError
    except ssl.SSLCertVerificationError as error:
        raise NotDelivered(f"its certificate is not trusted: {error.verify_message}") from error
    except (OSError, http.client.HTTPException) as error:
        if connection.late or isinstance(error, TimeoutError):
            raise NotDelivered(f"it did not answer within {seconds:.0f} s") from error
        why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise NotDelivered(f"it cannot be talked to: {why}") from error
    finally:
        connection.close()
    if not 200 <= status < 300:
        followed = " (redirects are not followed)" if 300 <= status < 400 else ""
        raise NotDelivered(f"it answered {status}{followed}", status)
    return status


class _Connection(http.client.HTTPConnection):
    """To a socket that was chosen already; whatever happens on it ends at `end`, however slowly the other side drips."""

    def __init__(self, place: Place, connected: Callable[[], socket.socket], end: float) -> None:
        super().__init__(place.host, place.port)
        self.late = False
        self._place, self._connected, self._end = place, connected, end
        self._timer: threading.Timer | None = None
        if place.port == (443 if place.tls else 80):
            self.default_port = place.port  # it is left out of the Host header

    def connect(self) -> None:
        """Opens the socket, with TLS where the URL says so."""
        self.sock = self._connected()
        if self._place.tls:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self._place.host, do_handshake_on_connect=False)
        self._timer = threading.Timer(max(self._end - time.monotonic(), 0.0), self._cut)
        self._timer.daemon = True
        self._timer.start()
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.do_handshake()

    def close(self) -> None:
        """Ends the timer too."""
        if self._timer is not None:
            self._timer.cancel()
        super().close()

    def _cut(self) -> None:
        self.late = True
        with suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


def _connected(place: Place, networks: Sequence[Network], end: float) -> socket.socket:
    """A socket to an address of the host, all of whose addresses may be reached. Raises NotDelivered, OSError."""
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NotDelivered("the name of its host does not resolve") from error
    for *_, place_of in found:
        if not reached(ipaddress.ip_address(str(place_of[0]).partition("%")[0]), networks):
            raise NotDelivered(NOT_REACHED)
    problem: OSError = OSError("it has no address")
    for family, kind, protocol, _, place_of in found:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(min(left, _CONNECT_SECONDS))
        try:
            sock.connect(place_of)
        except OSError as error:
            sock.close()
            problem = error
            continue
        sock.settimeout(max(end - time.monotonic(), 0.1))
        return sock
    raise problem
