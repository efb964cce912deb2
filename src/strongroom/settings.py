"""What a server is told at its start: one frozen value made of the data folder, the environment and `serve`'s options.

    SettingsError       a setting cannot be used; the text names it and what it takes (permanent)

Secrets come by environment or file, never as an option, and no setting shows one: the catalog's and the store's URL lose
their passwords in `repr`, the root key is not in it.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT_KEY_BYTES = 32
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8480
SOURCE_RATE = 64 << 20
LEAST_SOURCE_RATE = 64 << 10
"""Bytes a second: with less a server would take a reader for dead before it has read its next piece."""
CREDENTIALS_FILE = "credentials.json"
"""In the data folder: how this machine's clients enter (project, access key, secret key, endpoint)."""

_ROOT_KEY = re.compile(r"[0-9a-fA-F]{64}")
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
    root_key_hex: str | None = field(repr=False)
    root_key_file: Path
    reclaim_budget: float  # bytes that a delete may rewrite per byte that the deleted backup owned
    verify_after_delete: int  # bytes that a delete reads back of what the deleted backup shared; 0 reads nothing
    source_rate: int | None  # bytes a second that a capture takes from an instance without limits of its own
    rate_per_user: RequestRate | None  # None: no limit
    rate_per_address: RequestRate | None
    workers: int  # threads that run jobs
    nodes: tuple[str, ...] | None  # addresses of the cluster nodes on this host; None: the host's own addresses
    metrics_token: str | None = field(repr=False)  # None: metrics are told to this machine alone
    imports: Path  # where operators put files that are to be imported, in PROJECT/BUCKET

    @classmethod
    def load(
        cls, data_dir: Path | str, environ: Mapping[str, str], *, host: str | None = None, port: int | None = None
    ) -> Settings:
        """Reads `environ` (docs/reference/settings.md lists the names); a given `host` or `port` goes before it.

        Touches no file. Raises SettingsError.
        """
        folder = Path(data_dir).absolute()
        return cls(
            data_dir=folder,
            host=host or environ.get("STRONGROOM_HOST") or DEFAULT_HOST,
            port=_whole(
                "STRONGROOM_PORT", str(port) if port is not None else environ.get("STRONGROOM_PORT"), DEFAULT_PORT, 0, 65535
            ),
            catalog_url=environ.get("STRONGROOM_CATALOG_URL") or f"sqlite:///{folder / 'catalog.db'}",
            store_url=environ.get("STRONGROOM_STORE_URL") or str(folder / "store"),
            root_key_hex=_root_key("STRONGROOM_ROOT_KEY", environ.get("STRONGROOM_ROOT_KEY")),
            root_key_file=Path(environ.get("STRONGROOM_ROOT_KEY_FILE") or folder / "root.key").absolute(),
            reclaim_budget=_budget("STRONGROOM_RECLAIM_BUDGET", environ.get("STRONGROOM_RECLAIM_BUDGET")),
            verify_after_delete=_whole(
                "STRONGROOM_VERIFY_AFTER_DELETE", environ.get("STRONGROOM_VERIFY_AFTER_DELETE"), 64 << 20, 0, 1 << 40
            ),
            source_rate=_source_rate("STRONGROOM_SOURCE_RATE", environ.get("STRONGROOM_SOURCE_RATE")),
            rate_per_user=_rate("STRONGROOM_RATE_PER_USER", environ.get("STRONGROOM_RATE_PER_USER"), RequestRate(200, 1000)),
            rate_per_address=_rate(
                "STRONGROOM_RATE_PER_ADDRESS", environ.get("STRONGROOM_RATE_PER_ADDRESS"), RequestRate(500, 2000)
            ),
            workers=_whole("STRONGROOM_WORKERS", environ.get("STRONGROOM_WORKERS"), 4, 1, 256),
            nodes=_words(environ.get("STRONGROOM_NODES")),
            metrics_token=_token("STRONGROOM_METRICS_TOKEN", environ.get("STRONGROOM_METRICS_TOKEN")),
            imports=Path(environ.get("STRONGROOM_IMPORTS") or folder / "imports").absolute(),
        )

    @property
    def credentials_file(self) -> Path:
        """Where a server leaves what the command line enters with; readable by its own user only."""
        return self.data_dir / CREDENTIALS_FILE

    def root_key(self, create: Callable[[], bytes] | None = None) -> bytes:
        """The 32 bytes that every other key hangs on, from the environment or the file.

        Where there is no file, `create` (if given) draws the key, and the file is durable, and readable by its owner
        only, before this returns. Give it only where nothing is sealed under another root key yet. Raises SettingsError.
        """
        if self.root_key_hex is not None:
            return bytes.fromhex(self.root_key_hex)
        try:
            text = self.root_key_file.read_text("ascii").strip()
        except FileNotFoundError:
            if create is None:
                raise SettingsError(
                    f"there is no root key in {self.root_key_file}: put it back, or name it by STRONGROOM_ROOT_KEY_FILE"
                ) from None
            return _write_key(self.root_key_file, create())
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"the root key in {self.root_key_file} cannot be read: {error}") from error
        found = _root_key(f"the file {self.root_key_file}", text)
        if found is None:
            raise SettingsError(f"{self.root_key_file} is empty: put the root key back")
        return bytes.fromhex(found)

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


def _token(name: str, text: str | None) -> str | None:
    """A secret of at least 16 characters that a header can carry; the error never repeats it."""
    if not text:
        return None
    if len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text:
        raise SettingsError(f"{name} is too short or holds spaces: give 16 printable ASCII characters or more")
    return text


def _root_key(name: str, text: str | None) -> str | None:
    """The key's digits; the error never repeats them."""
    if not text:
        return None
    if not _ROOT_KEY.fullmatch(text.strip()):
        raise SettingsError(f"{name} does not hold a root key: it is {2 * ROOT_KEY_BYTES} hexadecimal digits")
    return text.strip()


def _write_key(path: Path, key: bytes) -> bytes:
    """Puts a fresh key into place in one step: a crash leaves the whole key or none."""
    if len(key) != ROOT_KEY_BYTES:
        raise ValueError(f"a root key has {ROOT_KEY_BYTES} bytes, not {len(key)}")
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            file.write(key.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike a rename, never replaces a key that another process has just put there
        _sync_folder(path.parent)
    except FileExistsError:
        raise SettingsError(f"{path} has just been made by another process: start again") from None
    except OSError as error:
        raise SettingsError(f"the root key cannot be written to {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return key


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
