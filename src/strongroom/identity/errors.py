"""What identity refuses.

IdentityError
├── Unauthenticated     nobody known asks: the token, signature or password does not hold
│   └── KeyLocked       too many wrong signatures in a row; passes with time
├── WrongProject        known, but the project asked for is not theirs
├── Forbidden           known, but no policy allows the action
├── PolicyInvalid       a policy document that cannot be understood
├── NotKnown            no such account, project, user, policy or key
├── NameTaken           the name is in use
├── LastAdministrator   an account keeps one enabled administrator
├── CodeRefused         a second factor cannot be enrolled or confirmed so
├── WeakPassword        the password is too easy
└── SecretUnreadable    a sealed secret does not open: another root key, or another place
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from strongroom.identity.principal import Principal


class IdentityError(Exception):
    """Identity refuses; the text is for the caller and holds no secret."""

    permanent = True


class Unauthenticated(IdentityError):
    """The token, signature or password does not hold."""


class KeyLocked(Unauthenticated):
    """The access key had too many wrong signatures in a row and rests."""

    permanent = False


class WrongProject(IdentityError):
    """The caller may not use the project that the request names. `caller`: who asked, in no project."""

    def __init__(self, caller: Principal) -> None:
        super().__init__("Authentication failed: the token or key does not belong to the project in the request.")
        self.caller = caller


class Forbidden(IdentityError):
    """No policy allows the action."""

    def __init__(self, action: str) -> None:
        super().__init__(
            f"You do not have permission to perform this operation: {action}. Contact the administrator to obtain permission."
        )
        self.action = action


class PolicyInvalid(IdentityError):
    """The policy document cannot be understood, so it may not be stored."""


class NotKnown(IdentityError):
    """The account has no such thing."""

    def __init__(self, kind: str, key: str) -> None:
        super().__init__(f"There is no {kind} {key}.")
        self.kind, self.key = kind, key


class NameTaken(IdentityError):
    """The account has one of that name already."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"There is a {kind} named {name} already.")
        self.kind, self.name = kind, name


class LastAdministrator(IdentityError):
    """The account would be left without an enabled administrator."""

    def __init__(self) -> None:
        super().__init__("An account keeps at least one enabled administrator: make another user one first.")


class CodeRefused(IdentityError):
    """The second factor's code is wrong, or there is none to confirm."""


class WeakPassword(IdentityError):
    """The password is too easy to guess."""


class SecretUnreadable(IdentityError):
    """The sealed secret does not open with this root key in this place."""

    def __init__(self) -> None:
        super().__init__("A sealed secret does not open: was the root key changed?")
