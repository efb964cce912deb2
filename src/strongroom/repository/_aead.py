"""Sealing of small things: keys, indexes, roots. One construction for all of them.

A sealing key gives two others by HKDF: one that encrypts and one that derives the nonce from what is sealed and its additional
data. So the nonce repeats only if all of it repeats, then the result is the same bytes; no source of randomness is needed.
"""

from __future__ import annotations

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY, NONCE, TAG = 32, 12, 16  # bytes
OVERHEAD = NONCE + TAG


def derive(key: bytes, purpose: str) -> bytes:
    """The subkey for a purpose: 32 bytes by HKDF-SHA256 without salt."""
    return HKDF(algorithm=SHA256(), length=KEY, salt=None, info=f"strongroom 1 {purpose}".encode()).derive(key)


class Box:
    """Seals and opens under one key. `open` raises InvalidTag unless key, additional data and bytes are those of the sealing."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(derive(key, "box encryption"))
        self._nonces = derive(key, "box nonce")

    def seal(self, plain: bytes, about: bytes) -> bytes:
        """nonce ‖ ciphertext ‖ tag."""
        hasher = blake3(key=self._nonces)
        hasher.update(len(about).to_bytes(8, "big"))
        hasher.update(about)
        hasher.update(plain)
        nonce = hasher.digest(NONCE)
        return nonce + self._cipher.encrypt(nonce, plain, about)

    def open(self, sealed: bytes, about: bytes) -> bytes:
        """What was sealed."""
        if len(sealed) < OVERHEAD:
            raise InvalidTag
        return self._cipher.decrypt(sealed[:NONCE], sealed[NONCE:], about)
