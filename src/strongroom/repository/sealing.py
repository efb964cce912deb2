"""Sealing of chunks: AES-256-GCM under the pack's own key, the chunk's number as nonce.

A pack's key is drawn by the process that fills the pack and never used for another; a number is used once in it. So no nonce
ever repeats under a key. The additional data binds a sealed chunk to (lineage, pack, number) and to nothing of where it lies, so
that it can be copied from object to object still sealed.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from strongroom.repository._aead import TAG
from strongroom.repository._document import FORMAT
from strongroom.repository.keys import LineageKeys

LARGEST_PACK_ID = (1 << 63) - 1


def wrap_pack_key(keys: LineageKeys, lineage: str, pack: int, key: bytes) -> bytes:
    """60 bytes that go into the index of every object that holds chunks of the pack."""
    return keys.packs.seal(key, _about_pack_key(lineage, pack))


def unwrap_pack_key(keys: LineageKeys, lineage: str, pack: int, wrapped: bytes) -> bytes:
    """Raises InvalidTag if it was wrapped for another pack or under other keys."""
    return keys.packs.open(wrapped, _about_pack_key(lineage, pack))


def _about_pack_key(lineage: str, pack: int) -> bytes:
    return b"pack key" + FORMAT.to_bytes(2, "big") + lineage.encode() + pack.to_bytes(8, "big")


class ChunkCipher:
    """Seals and opens the chunks of one pack. Safe for several threads."""

    def __init__(self, lineage: str, pack: int, key: bytes) -> None:
        self._about = b"chunk" + FORMAT.to_bytes(2, "big") + lineage.encode() + pack.to_bytes(8, "big")
        cipher = AESGCM(key)
        self._encrypt, self._decrypt = cipher.encrypt, cipher.decrypt

    def seal(self, number: int, frame: bytes) -> bytes:
        """The sealed chunk: TAG bytes longer than its frame. Each number once."""
        return self._encrypt(number.to_bytes(12, "big"), frame, self._about + number.to_bytes(4, "big"))

    def open(self, number: int, sealed: bytes | memoryview) -> bytes:
        """The frame. Raises InvalidTag if it is not exactly this chunk."""
        if len(sealed) < TAG:
            raise InvalidTag
        return self._decrypt(number.to_bytes(12, "big"), sealed, self._about + number.to_bytes(4, "big"))
