"""What a server is told at its start: one frozen value made of the data folder, the environment and `serve`'s options.

    SettingsError       a setting cannot be used; the text names it and what it takes (permanent)

Secrets come by environment, file or command, never as an option, and no setting shows one: the catalog's and the store's URL
lose their passwords in `repr`, the root key is not in it.
"""

from __future__ import annotations

import ipaddress
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from strongroom.logs import FORMATS
from strongroom.root_key import KeySource, RootKeyError, take_over

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8480
SOURCE_RATE = 64 << 20
LEAST_SOURCE_RATE = 64 << 10
"""Bytes a second: with less a server would take a reader for dead before it has read its next piece."""
CREDENTIALS_FILE = "credentials.json"
"""In the data folder: how this machine's clients enter (project, access key, secret key, endpoint)."""

MOST_HOURS = 24 * 366.0
"""Hours without a good backup: what is more is a slip."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)/([0-9]+)")
_PASSWORD_IN_URL = re.compile(r"(//[^/@:]*):[^/@]*@")
_SECRET_IN_QUERY = re.compile(r"([?&][^=&]*(?:secret|password|key|token)[^=&]*)=[^&]*", re.IGNORECASE)


class SettingsError(Exception):
    """A setting cannot be used."""

    permanent = True


@dataclass(frozen=True, slots=True)
class RequestRate:
    """How fast one may ask: `per_second` for ever, after `burst` at once."""

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a server of one data folder runs with."""

    data_dir: Path
    host: str
    port: int  # 0: any free one
    catalog_url: str
    store_url: str
    root_key_source: KeySource
    next_root_key_source: KeySource
    tls_cert: Path | None  # a chain in PEM; None: clear text
    tls_key: Path | None
    reclaim_budget: float  # bytes that a delete may rewrite per byte that the deleted backup owned
    verify_after_delete: int  # bytes that a delete reads back of what the deleted backup shared; 0 reads nothing
    source_rate: int | None  # bytes a second that a capture takes from an instance without limits of its own
    rate_per_user: RequestRate | None  # None: no limit
    rate_per_address: RequestRate | None
    connections: int  # that are open at once; more are turned away
    workers: int  # threads that run jobs
    nodes: tuple[str, ...] | None  # addresses of the cluster nodes on this host; None: the host's own addresses
    metrics_token: str | None = field(repr=False)  # None: metrics are told to this machine alone
    log_format: str  # one of logs.FORMATS
    imports: Path  # where operators put files that are to be imported, in PROJECT/BUCKET
    notify_command: tuple[str, ...] = field(repr=False)  # the program that is told of events, with its arguments; empty: none
    notify_networks: tuple[Network, ...]  # that webhooks may be in, beside public addresses
    notify_hours: float | None  # without a good backup, where nobody has set them; None: it is not told

    @classmethod
    def load(
        cls,
        data_dir: Path | str,
        environ: Mapping[str, str],
        *,
        host: str | None = None,
        port: int | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        clear_text: bool = False,
    ) -> Settings:
        """Reads `environ` (docs/reference/settings.md lists the names); what is given beside it goes before it.

        Touches no file. Raises SettingsError.
        """
        folder = Path(data_dir).absolute()
        listen = host or environ.get("STRONGROOM_HOST") or DEFAULT_HOST
        cert, key = _tls(tls_cert or environ.get("STRONGROOM_TLS_CERT"), tls_key or environ.get("STRONGROOM_TLS_KEY"))
        if cert is None and not (clear_text or _flag("STRONGROOM_CLEAR_TEXT", environ.get("STRONGROOM_CLEAR_TEXT"))):
            _require_loopback(listen)
        with _as_setting():
            root = KeySource.of("STRONGROOM_ROOT_KEY", environ, folder / "root.key")
            following = KeySource.of("STRONGROOM_NEXT_ROOT_KEY", environ, root.file.with_name(f"{root.file.name}.next"))
        return cls(
            data_dir=folder,
            host=listen,
            port=_whole(
                "STRONGROOM_PORT", str(port) if port is not None else environ.get("STRONGROOM_PORT"), DEFAULT_PORT, 0, 65535
            ),
            catalog_url=environ.get("STRONGROOM_CATALOG_URL") or f"sqlite:///{folder / 'catalog.db'}",
            store_url=environ.get("STRONGROOM_STORE_URL") or str(folder / "store"),
            root_key_source=root,
            next_root_key_source=following,
            tls_cert=cert,
            tls_key=key,
            reclaim_budget=_budget("STRONGROOM_RECLAIM_BUDGET", environ.get("STRONGROOM_RECLAIM_BUDGET")),
            verify_after_delete=_whole(
                "STRONGROOM_VERIFY_AFTER_DELETE", environ.get("STRONGROOM_VERIFY_AFTER_DELETE"), 64 << 20, 0, 1 << 40
            ),
            source_rate=_source_rate("STRONGROOM_SOURCE_RATE", environ.get("STRONGROOM_SOURCE_RATE")),
            rate_per_user=_rate("STRONGROOM_RATE_PER_USER", environ.get("STRONGROOM_RATE_PER_USER"), RequestRate(200, 1000)),
            rate_per_address=_rate(
                "STRONGROOM_RATE_PER_ADDRESS", environ.get("STRONGROOM_RATE_PER_ADDRESS"), RequestRate(500, 2000)
            ),
            connections=_whole("STRONGROOM_CONNECTIONS", environ.get("STRONGROOM_CONNECTIONS"), 500, 8, 100_000),
            workers=_whole("STRONGROOM_WORKERS", environ.get("STRONGROOM_WORKERS"), 4, 1, 256),
            nodes=_words(environ.get("STRONGROOM_NODES")),
            metrics_token=_token("STRONGROOM_METRICS_TOKEN", environ.get("STRONGROOM_METRICS_TOKEN")),
            log_format=_one_of("STRONGROOM_LOG", environ.get("STRONGROOM_LOG"), FORMATS),
            imports=Path(environ.get("STRONGROOM_IMPORTS") or folder / "imports").absolute(),
            notify_command=_command("STRONGROOM_NOTIFY_COMMAND", environ.get("STRONGROOM_NOTIFY_COMMAND")),
            notify_networks=_networks("STRONGROOM_NOTIFY_NETWORKS", environ.get("STRONGROOM_NOTIFY_NETWORKS")),
            notify_hours=_hours("STRONGROOM_NOTIFY_HOURS", environ.get("STRONGROOM_NOTIFY_HOURS")),
        )

    @property
    def credentials_file(self) -> Path:
        """Where a server leaves what the command line enters with; readable by its own user only."""
        return self.data_dir / CREDENTIALS_FILE

    @property
    def root_key_file(self) -> Path:
        """The file that holds the root key, where neither the environment nor a command does."""
        return self.root_key_source.file

    def root_key(self, create: Callable[[], bytes] | None = None) -> bytes:
        """The 32 bytes that every other key hangs on, from the environment, a command or the file.

        Where there is no file, `create` (if given) draws the key, and the file is durable, and readable by its owner
        only, before this returns. Give it only where nothing is sealed under another root key yet. Raises SettingsError.
        """
        with _as_setting():
            found = self.root_key_source.read()
            if found is None and create is not None:
                return self.root_key_source.write(create())
        if found is None:
            raise SettingsError(
                f"there is no root key in {self.root_key_file}: put it back, or name it by STRONGROOM_ROOT_KEY_FILE"
            )
        return found

    def next_root_key(self, create: Callable[[], bytes] | None = None) -> bytes | None:
        """The root key of a rotation that has begun; None if none has. `create` begins one: it draws the key, which is durable in
        its file before this returns. Raises SettingsError, also where only the operator can put a key into its place."""
        with _as_setting():
            found = self.next_root_key_source.read()
            if found is None and create is not None:
                if not self.root_key_source.from_file:
                    raise SettingsError(
                        "the root key does not come from a file: give the next one by STRONGROOM_NEXT_ROOT_KEY, "
                        "STRONGROOM_NEXT_ROOT_KEY_COMMAND or STRONGROOM_NEXT_ROOT_KEY_FILE"
                    )
                found = self.next_root_key_source.write(create())
        return found

    def end_rotation(self) -> Path | None:
        """Puts the next root key's file into the place of the present one, which stays beside it; returns where.

        None: the keys do not both come from files, and the operator has to name the next one as the root key from now on."""
        if not (self.root_key_source.from_file and self.next_root_key_source.from_file):
            return None
        retired = self.root_key_file.with_name(f"{self.root_key_file.name}.old")
        with _as_setting():
            take_over(self.root_key_file, self.next_root_key_source.file, retired)
        return retired

    def __repr__(self) -> str:
        return (
            f"Settings(data_dir={str(self.data_dir)!r}, host={self.host!r}, port={self.port}, "
            f"catalog_url={redacted(self.catalog_url)!r}, store_url={redacted(self.store_url)!r}, "
            f"reclaim_budget={self.reclaim_budget}, verify_after_delete={self.verify_after_delete}, "
            f"source_rate={self.source_rate}, "
            f"rate_per_user={self.rate_per_user}, rate_per_address={self.rate_per_address}, workers={self.workers}, "
            f"imports={str(self.imports)!r})"
        )


def redacted(url: str) -> str:
    """The URL without its password and without query values that are named like secrets."""
    return _SECRET_IN_QUERY.sub(r"\1=…", _PASSWORD_IN_URL.sub(r"\1:…@", url))


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if not text else tuple(word.strip() for word in text.split(",") if word.strip())


def _command(name: str, text: str | None) -> tuple[str, ...]:
    """A program with its arguments; the error never repeats them."""
    try:
        words = tuple(shlex.split(text or ""))
    except ValueError as error:
        raise SettingsError(f"{name} cannot be split into words: {error}") from None
    if words and not Path(words[0]).is_absolute():
        raise SettingsError(f"{name} begins with no full path of a program, such as /usr/local/bin/tell")
    return words


def _networks(name: str, text: str | None) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(word) for word in _words(text) or ())
    except ValueError as error:
        raise SettingsError(f"{name}: {error}: give networks with commas between, such as 10.0.0.0/8,127.0.0.1") from None


def _hours(name: str, text: str | None) -> float | None:
    """A number of hours above 0, or none."""
    try:
        hours = float(text) if text else None
    except ValueError:
        hours = math.nan
    if hours is not None and not 0 < hours <= MOST_HOURS:
        raise SettingsError(f"{name} is {text!r}: give hours above 0, such as 26")
    return hours


def _whole(name: str, text: str | None, default: int, least: int, most: int) -> int:
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise SettingsError(f"{name} is {text!r}: give a whole number from {least} to {most}")
    return int(text)


def _budget(name: str, text: str | None) -> float:
    try:
        value = float(text) if text else 1.0
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise SettingsError(f"{name} is {text!r}: give a number from 0 up, such as 1.0 (0 never rewrites)")
    return value


def _source_rate(name: str, text: str | None) -> int | None:
    return None if text == "off" else _whole(name, text, SOURCE_RATE, LEAST_SOURCE_RATE, 1 << 40)


def _rate(name: str, text: str | None, default: RequestRate) -> RequestRate | None:
    if not text:
        return default
    if text == "off":
        return None
    found = _RATE.fullmatch(text)
    if found is None or float(found[1]) <= 0 or int(found[2]) < 1:
        raise SettingsError(f"{name} is {text!r}: give PER_SECOND/BURST, such as 200/1000, or off")
    return RequestRate(float(found[1]), int(found[2]))


def _tls(cert: str | None, key: str | None) -> tuple[Path | None, Path | None]:
    if not cert and not key:
        return None, None
    if not cert or not key:
        raise SettingsError("TLS needs both: --tls-cert (STRONGROOM_TLS_CERT) and --tls-key (STRONGROOM_TLS_KEY)")
    for file in (cert, key):
        if not Path(file).is_file():
            raise SettingsError(f"there is no file {file}: TLS needs a certificate and its key in PEM")
    return Path(cert).absolute(), Path(key).absolute()


def _one_of(name: str, text: str | None, words: Sequence[str]) -> str:
    """One of some words; the first unless said."""
    if text and text not in words:
        raise SettingsError(f"{name} is {text!r}: give {' or '.join(words)}")
    return text or words[0]


def _token(name: str, text: str | None) -> str | None:
    """A secret of at least 16 characters that a header can carry; the error never repeats it."""
    if not text:
        return None
    if len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text:
        raise SettingsError(f"{name} is too short or holds spaces: give 16 printable ASCII characters or more")
    return text


def _require_loopback(host: str) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise SettingsError(
            f"STRONGROOM_HOST is {host!r}, which other machines reach, and requests would travel in clear text: give --tls-cert "
            "and --tls-key, or say --clear-text (STRONGROOM_CLEAR_TEXT=yes) where a proxy in front does TLS"
        )


def _flag(name: str, text: str | None) -> bool:
    if text not in (None, "", "yes", "no"):
        raise SettingsError(f"{name} is {text!r}: give yes or no")
    return text == "yes"


@contextmanager
def _as_setting() -> Iterator[None]:
    try:
        yield
    except RootKeyError as error:
        raise SettingsError(str(error)) from error
