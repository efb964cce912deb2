"""Small secrets at rest: the secret half of access keys and the passwords of instances.

Each is sealed with AES-256-GCM under a key derived from the root key. What it belongs to (its *place*, such as
`("access-key", id)`) is additional data, so that a sealed secret moved to another row does not open there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from copy import copy

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from strongroom.identity.errors import SecretUnreadable

_FORMAT = b"\x01"
_NONCE_BYTES = 12
_ROOT_BYTES = 32
_PURPOSE = b"strongroom secrets at rest 1"


def _random_nonce() -> bytes:
    return os.urandom(_NONCE_BYTES)


class Sealer:
    """Seals and opens small secrets. Needs a root key of at least 32 bytes; keeps only the key derived from it. What one of the
    `accepted` root keys sealed opens too: while a rotation is under way there are two.

    Nonces are random, which is safe up to some 2^32 secrets for one root key.
    """

    def __init__(self, root_key: bytes, nonce: Callable[[], bytes] = _random_nonce, accepted: Sequence[bytes] = ()) -> None:
        self._ciphers = [_cipher(key) for key in (root_key, *accepted)]
        self._nonce = nonce

    def alone(self) -> Sealer:
        """The same without the accepted ones."""
        found = copy(self)
        found._ciphers = self._ciphers[:1]
        return found

    def seal(self, plain: bytes, *place: str) -> bytes:
        """Seals `plain` for `place`."""
        nonce = self._nonce()
        return _FORMAT + nonce + self._ciphers[0].encrypt(nonce, plain, _bound(place))

    def open(self, sealed: bytes, *place: str) -> bytes:
        """The plain secret. Raises SecretUnreadable for another root key, another place or changed bytes."""
        if sealed[:1] != _FORMAT:
            raise SecretUnreadable
        nonce, body = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, body, _bound(place))
            except (InvalidTag, ValueError):
                continue
        raise SecretUnreadable


def _cipher(root_key: bytes) -> AESGCM:
    if len(root_key) < _ROOT_BYTES:
        raise ValueError(f"the root key has {len(root_key)} bytes; it needs {_ROOT_BYTES}")
    return AESGCM(HKDF(SHA256(), 32, salt=None, info=_PURPOSE).derive(root_key))


def _bound(place: tuple[str, ...]) -> bytes:
    """The place as bytes that no other place shares."""
    parts = [part.encode() for part in place]
    return _FORMAT + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
