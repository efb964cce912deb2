"""From a URL to the store it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from strongroom.storage.base import InvalidStoreUrl, Store

_KNOWN = "give memory:, file:///a/folder (or just the folder), or s3://bucket/prefix?endpoint=…&region=…"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


def open_store(url: str, environment: Mapping[str, str] | None = None) -> Store:
    """Opens the store that `url` names; docs/reference/stores.md lists the forms.

    S3's credentials come from `environment`, the process's own unless given.

    Raises InvalidStoreUrl for anything else, and whatever opening that store raises. An error never repeats the URL:
    somebody may have written a secret into it.
    """
    scheme = _SCHEME.match(url)
    match scheme and scheme[1].lower():
        case None if url:
            return _directory(url)
        case "memory" if url.lower() == "memory:":
            from strongroom.storage.memory import MemoryStore

            return MemoryStore()
        case "file":
            return _directory(_path_of(url))
        case "s3":
            from strongroom.storage.s3 import S3Store

            return S3Store.from_url(url, environment)
        case None:
            raise InvalidStoreUrl(f"the store's URL is empty: {_KNOWN}")
        case kind:
            raise InvalidStoreUrl(f"no store is known for this {kind}: URL: {_KNOWN}")


def _path_of(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not parts.path.startswith("/"):
        raise InvalidStoreUrl("a file: URL is file:///absolute/path, without host, '?' and '#'")
    return unquote(parts.path)


def _directory(path: str) -> Store:
    from strongroom.storage.directory import DirectoryStore

    return DirectoryStore(Path(path))
