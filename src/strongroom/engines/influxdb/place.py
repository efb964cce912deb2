"""Where an InfluxDB is: its HTTP port, its backup port, and whether one database of it is meant or all."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from strongroom.engines.base import EngineUnsupported, Target

HTTP_PORT = 8086
BACKUP_PORT = 8088
FORM = "influxdb://[user@]host[:8086][/database][?backup=host:8088]"

INTERNAL = "_internal"  # the server's own measurements of itself
RESERVED = "strongroom_restore_"  # names of databases that a restore makes on its way


@dataclass(frozen=True, slots=True)
class Place:
    """A parsed target."""

    url: str  # of the HTTP port, without user
    user: str | None
    password: str | None = field(repr=False)
    backup: tuple[str, int]  # host and port of the backup service
    database: str | None  # None: the whole server
    tls: ssl.SSLContext | None

    @property
    def is_private(self) -> bool:
        """Whether the backup port is reached over loopback: then at least it may be bound there alone."""
        host = self.backup[0]
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def covers(self, database: str) -> bool:
        """Whether a database of the server belongs to this target."""
        if self.database is not None:
            return database == self.database
        return is_ordinary(database)


def is_ordinary(database: str) -> bool:
    """Whether it is neither the server's own nor one that a restore makes on its way."""
    return database != INTERNAL and not database.startswith(RESERVED)


def parse_target(target: Target) -> Place:
    """`influxdb://[user@]host[:8086][/database][?backup=host:8088]`, `influxdbs://` for TLS on the HTTP port.

    Raises EngineUnsupported.
    """
    try:
        parts = urlsplit(target.address)
        port = parts.port or HTTP_PORT
        query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else {}
    except ValueError:
        raise EngineUnsupported(f"the address is not of the form {FORM}") from None
    if parts.scheme not in ("influxdb", "influxdbs") or not parts.hostname or parts.fragment:
        raise EngineUnsupported(f"the address is not of the form {FORM}")
    if parts.password is not None:
        raise EngineUnsupported("the address holds a password; give it apart from the address")
    unknown = sorted(set(query) - {"backup"}) + sorted(set(target.options) - {"ca"})
    if unknown:
        raise EngineUnsupported(f"unknown options for an InfluxDB target: {', '.join(unknown)}")
    secure = parts.scheme == "influxdbs"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Place(
        url=f"{'https' if secure else 'http'}://{host}:{port}",
        user=unquote(parts.username) if parts.username else None,
        password=target.password,
        backup=_backup_place(query.get("backup", [""])[-1], parts.hostname),
        database=_database(parts.path),
        tls=_tls(target.options.get("ca")) if secure else None,
    )


def _backup_place(text: str, host: str) -> tuple[str, int]:
    """`host:port`, `host` or `:port`; what is missing is the HTTP port's host and 8088."""
    try:
        parts = urlsplit(f"//{text}")
        return parts.hostname or host, parts.port or BACKUP_PORT
    except ValueError:
        raise EngineUnsupported("the option backup is not of the form host:8088") from None


def _database(path: str) -> str | None:
    name = unquote(path.removeprefix("/"))
    if not name:
        return None
    if "/" in name or not is_ordinary(name):
        raise EngineUnsupported(f"{name!r} is not a database that can be backed up")
    return name


def _tls(ca: object) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=None if ca is None else str(ca))
    except (ssl.SSLError, ValueError):
        raise EngineUnsupported("the option ca is not a certificate in PEM form") from None
