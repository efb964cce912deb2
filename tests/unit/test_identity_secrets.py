"""Secrets at rest and passwords."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.identity.errors import SecretUnreadable, WeakPassword
from strongroom.identity.passwords import check_strength
from strongroom.identity.secrets import Sealer
from support.border import ROOT_KEY, quick_passwords

PLACES = st.lists(st.text(max_size=5), max_size=3).map(tuple)


@given(st.binary(max_size=100), PLACES, PLACES)
def test_a_secret_opens_in_its_own_place_only(plain: bytes, place: tuple[str, ...], other: tuple[str, ...]) -> None:
    """Moved to another row it does not open, however the parts of the place would join."""
    sealer = Sealer(ROOT_KEY)
    sealed = sealer.seal(plain, *place)
    assert sealer.open(sealed, *place) == plain
    if other != place:
        with pytest.raises(SecretUnreadable):
            sealer.open(sealed, *other)


@given(st.data())
def test_a_changed_or_cut_secret_does_not_open(data: st.DataObject) -> None:
    """Any byte, any length."""
    sealer = Sealer(ROOT_KEY)
    sealed = bytearray(sealer.seal(b"secret", "x"))
    if data.draw(st.booleans()):
        del sealed[data.draw(st.integers(0, len(sealed) - 1)) :]
    else:
        sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SecretUnreadable):
        sealer.open(bytes(sealed), "x")


def test_another_root_key_opens_nothing() -> None:
    """And a root key that is too short is refused."""
    with pytest.raises(SecretUnreadable):
        Sealer(bytes(32)).open(Sealer(ROOT_KEY).seal(b"secret"))
    with pytest.raises(ValueError, match="32"):
        Sealer(bytes(31))


def test_the_same_secret_twice_is_sealed_differently() -> None:
    """Nobody sees that two are equal."""
    sealer = Sealer(ROOT_KEY)
    assert sealer.seal(b"secret", "x") != sealer.seal(b"secret", "x")


def test_a_password_holds_and_another_does_not() -> None:
    """Nor does any for a user without one, or for nobody."""
    passwords = quick_passwords()
    stored = passwords.hash("Correct-horse-7")
    assert passwords.holds(stored, "Correct-horse-7")
    assert not passwords.holds(stored, "Correct-horse-8")
    assert not passwords.holds(None, "nobody has this password")
    assert not passwords.holds("no hash", "x")


@pytest.mark.parametrize("password", ["Short-7", "x" * 129, "alllowercase", "12345678901", "admin.user", "ADMIN.USER"])
def test_an_easy_password_is_refused(password: str) -> None:
    """Too short, too long, one kind of characters, the user's name."""
    with pytest.raises(WeakPassword):
        check_strength(password, "admin.user")


def test_a_decent_password_is_taken() -> None:
    """Two kinds are enough."""
    check_strength("correct horse battery", "admin")
