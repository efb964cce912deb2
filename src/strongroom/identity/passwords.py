"""Passwords as argon2id hashes. Each check costs some 0.1 s and 64 MiB on purpose: never call this on the event loop."""

from __future__ import annotations

import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from strongroom.identity.errors import WeakPassword

_SHORTEST = 8
_LONGEST = 128


def check_strength(password: str, name: str) -> None:
    """Raises WeakPassword: 8 to 128 characters, two kinds of them, and not the user's name."""
    if not _SHORTEST <= len(password) <= _LONGEST:
        raise WeakPassword(f"A password has {_SHORTEST} to {_LONGEST} characters.")
    if name and password.lower() in (name.lower(), name.lower()[::-1]):
        raise WeakPassword("A password differs from the user's name.")
    kinds = (str.islower, str.isupper, str.isdigit, lambda char: not char.isalnum())
    if sum(any(kind(char) for char in password) for kind in kinds) < 2:
        raise WeakPassword("A password mixes at least two of: small letters, capitals, digits, other characters.")


class Passwords:
    """Hashes and checks passwords, at most `at_once` at a time, so that a flood of logins cannot take all memory."""

    def __init__(self, hasher: PasswordHasher | None = None, at_once: int = 2) -> None:
        self._hasher = hasher or PasswordHasher()
        self._turns = threading.BoundedSemaphore(at_once)
        self._nobody: str | None = None

    def hash(self, password: str) -> str:
        """A salted hash to store."""
        with self._turns:
            return self._hasher.hash(password)

    def holds(self, stored: str | None, password: str) -> bool:
        """Whether the password is the stored one. A user without a password, or none at all (None), takes as long as
        any other, so that time tells nobody which names exist."""
        with self._turns:
            known = stored if stored is not None else self._decoy()
            try:
                self._hasher.verify(known, password)
            except (VerificationError, InvalidHashError):
                return False
            return stored is not None

    def _decoy(self) -> str:
        if self._nobody is None:
            self._nobody = self._hasher.hash("nobody has this password")
        return self._nobody
