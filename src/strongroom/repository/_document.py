"""Sealed documents: a clear header that says whose it is, and content that only the right key opens. Header and content cannot be
taken apart, since the header is the additional data.

    magic (4) │ format u16 │ length of the header u32 │ header (canonical CBOR map) │ nonce (12) ‖ sealed content ‖ tag (16)

All numbers big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import cbor2
from cryptography.exceptions import InvalidTag

from strongroom.repository._aead import Box
from strongroom.repository.errors import Damaged, UnknownFormat

FORMAT = 1
_HEAD = struct.Struct(">4sHI")
_MOST_HEADER = 1 << 20


def seal_document(magic: bytes, box: Box, header: Mapping[str, Any], content: bytes) -> bytes:
    """The document's bytes; equal for equal input."""
    clear = cbor2.dumps(dict(header), canonical=True)
    about = _HEAD.pack(magic, FORMAT, len(clear)) + clear
    return about + box.seal(content, about)


def read_header(magic: bytes, data: bytes, what: str) -> dict[str, Any]:
    """The header, not yet proven: only opening proves it. Raises Damaged, UnknownFormat; `what` names the object there."""
    clear = _split(magic, data, what)[0][_HEAD.size :]
    try:
        header = cbor2.loads(clear)
    except (cbor2.CBORDecodeError, ValueError) as error:
        raise Damaged(f"{what} is damaged: its header cannot be read", object_name=what) from error
    if not isinstance(header, dict):
        raise Damaged(f"{what} is damaged: its header is no map", object_name=what)
    return header


def open_document(magic: bytes, box: Box, data: bytes, what: str) -> bytes:
    """The content. Raises Damaged if anything is not as it was sealed, UnknownFormat."""
    about, sealed = _split(magic, data, what)
    try:
        return box.open(sealed, about)
    except InvalidTag:
        raise Damaged(f"{what} is damaged, or was sealed under another key", object_name=what) from None


def _split(magic: bytes, data: bytes, what: str) -> tuple[bytes, bytes]:
    if len(data) < _HEAD.size:
        raise Damaged(f"{what} is damaged: it ends after {len(data)} bytes", object_name=what)
    found, version, length = _HEAD.unpack_from(data)
    if found != magic:
        raise Damaged(f"{what} is damaged: it begins with {found!r}, not {magic!r}", object_name=what)
    if version != FORMAT:
        raise UnknownFormat(f"{what} has format {version}; this version reads format {FORMAT}: use a newer one")
    end = _HEAD.size + length
    if length > _MOST_HEADER or end > len(data):
        raise Damaged(f"{what} is damaged: its header cannot be {length} bytes", object_name=what)
    return data[:end], data[end:]
