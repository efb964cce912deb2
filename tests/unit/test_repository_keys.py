"""Keys, the small objects that they seal, and names."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.repository import names
from strongroom.repository.errors import Damaged, Misuse, RepositoryError, UnknownFormat, WrongKey
from strongroom.repository.keys import (
    GraveFacts,
    LineageKeys,
    RootKey,
    open_catalog,
    open_closed,
    open_grave,
    open_lineage_keys,
    open_owner,
    open_trail,
    seal_catalog,
    seal_closed,
    seal_grave,
    seal_lineage_keys,
    seal_owner,
    seal_trail,
)
from support.repository import LINEAGE, Seeded, flipped

ROOT, OTHER = RootKey(bytes(range(32))), RootKey(bytes(32))
KEYS = LineageKeys.create(Seeded())
FACTS = GraveFacts("project", "instance", LINEAGE, 7, 2, "backup")

SMALL_OBJECTS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "keys": (seal_lineage_keys(ROOT, LINEAGE, KEYS), lambda data: open_lineage_keys(ROOT, LINEAGE, data)),
    "closed": (seal_closed(ROOT, LINEAGE), lambda data: open_closed(ROOT, LINEAGE, data)),
    "owner": (seal_owner(ROOT, 3), lambda data: open_owner(ROOT, 3, data)),
    "grave": (seal_grave(KEYS, FACTS), lambda data: open_grave(KEYS, data)),
    "catalog": (seal_catalog(ROOT, 3, 7, b"lines"), lambda data: open_catalog(ROOT, 3, 7, data)),
    "trail": (seal_trail(bytes(32), LINEAGE, b"lines"), lambda data: open_trail(bytes(32), LINEAGE, data)),
}


def test_lineage_keys_come_back_and_both_copies_are_equal() -> None:
    """What was sealed opens to the same keys, and sealing again gives the same bytes: the two copies prove each other."""
    data = seal_lineage_keys(ROOT, LINEAGE, KEYS)
    assert open_lineage_keys(ROOT, LINEAGE, data) == KEYS
    assert data == seal_lineage_keys(ROOT, LINEAGE, KEYS)
    assert LineageKeys.create(Seeded(1)) != KEYS


def test_a_wrong_root_key_says_what_to_do() -> None:
    """WrongKey, which is permanent, names both keys by their ids and the remedy."""
    with pytest.raises(WrongKey, match=rf"{ROOT.id}.*{OTHER.id}.*start with the root key") as caught:
        open_lineage_keys(OTHER, LINEAGE, seal_lineage_keys(ROOT, LINEAGE, KEYS))
    assert caught.value.permanent
    for data, opened in ((seal_closed(ROOT, LINEAGE), open_closed), (seal_owner(ROOT, 1), open_owner)):
        with pytest.raises(WrongKey):
            opened(OTHER, LINEAGE if opened is open_closed else 1, data)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", SMALL_OBJECTS)
def test_every_flipped_bit_and_every_cut_of_a_small_object_is_noticed(kind: str) -> None:
    """No byte of it can change, go or come without an error of ours."""
    data, opened = SMALL_OBJECTS[kind]
    opened(data)
    for at in range(len(data)):
        with pytest.raises(RepositoryError):
            opened(flipped(data, at, at % 8))
        with pytest.raises(RepositoryError):
            opened(data[:at])
    with pytest.raises(RepositoryError):
        opened(data + b"\0")


def test_a_small_object_of_another_lineage_or_kind_is_refused() -> None:
    """What was put under another's name does not pass."""
    other = "2" * 32
    with pytest.raises(Damaged, match="another's name"):
        open_lineage_keys(ROOT, other, seal_lineage_keys(ROOT, LINEAGE, KEYS))
    with pytest.raises(Damaged, match="another's name"):
        open_closed(ROOT, other, seal_closed(ROOT, LINEAGE))
    with pytest.raises(Damaged, match="another's name"):
        open_owner(ROOT, 2, seal_owner(ROOT, 1))
    with pytest.raises(Damaged, match="begins with"):
        open_closed(ROOT, LINEAGE, seal_lineage_keys(ROOT, LINEAGE, KEYS))
    with pytest.raises(Damaged, match="another key"):
        open_grave(LineageKeys.create(Seeded(5)), seal_grave(KEYS, FACTS))


def test_a_grave_carries_its_facts_and_differs_with_each() -> None:
    """Any fact that changes makes another grave; opening gives them all."""
    assert open_grave(KEYS, seal_grave(KEYS, FACTS)) == FACTS
    variants = [
        replace(FACTS, project="x"), replace(FACTS, instance="x"), replace(FACTS, lineage="x"),
        replace(FACTS, seq=8), replace(FACTS, attempt=3), replace(FACTS, backup="x"),
    ]  # fmt: skip
    assert len({seal_grave(KEYS, facts) for facts in [FACTS, *variants]}) == 7


def test_a_newer_format_is_named_as_such() -> None:
    """It is not called damaged: a newer version reads it."""
    data = bytearray(seal_closed(ROOT, LINEAGE))
    data[4:6] = (2).to_bytes(2, "big")
    with pytest.raises(UnknownFormat, match="format 2"):
        open_closed(ROOT, LINEAGE, bytes(data))


def test_the_root_key_file_is_made_once_private_and_read_again(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask allows; the second start reads the same key."""
    before = os.umask(0)
    try:
        made = RootKey.load_or_create(tmp_path / "root.key", Seeded())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "root.key").stat().st_mode) == 0o600
    assert RootKey.load_or_create(tmp_path / "root.key", Seeded(9)) == made
    assert RootKey.from_hex(made.secret.hex().upper() + "\n") == made


@pytest.mark.parametrize("text", ["", "00", "zz" * 32, "00" * 33])
def test_a_malformed_root_key_is_refused_and_never_repeated(text: str) -> None:
    """The error says what is wanted, not what was given."""
    with pytest.raises(WrongKey) as caught:
        RootKey.from_hex(text)
    assert not text or text not in str(caught.value)
    assert "00" * 32 not in repr(RootKey(bytes(32)))
    assert KEYS.dedup.hex() not in repr(KEYS)


def test_lineages_share_no_subkey() -> None:
    """Keys of one lineage open nothing of another, and within one each purpose has its own."""
    sealed = KEYS.packs.seal(b"secret", b"about")
    assert KEYS.packs.open(sealed, b"about") == b"secret"
    for box in (KEYS.indexes, KEYS.manifests, KEYS.graves, LineageKeys.create(Seeded(1)).packs):
        with pytest.raises(Exception, match=r"^$"):
            box.open(sealed, b"about")


IDS = st.text("0123456789abcdef", min_size=32, max_size=32)
COUNTS = st.integers(1, 10**18 - 1)


@given(IDS, IDS, COUNTS, COUNTS)
def test_every_name_that_is_built_is_parsed_back(lineage: str, key: str, seq: int, attempt: int) -> None:
    """Builders and parser agree on every part."""
    full = names.ParsedName("pack", lineage, seq, attempt, key)
    assert names.parse(names.pack(lineage, seq, attempt, key)) == full
    assert names.parse(names.manifest(lineage, seq, attempt, key)) == replace(full, kind="manifest")
    assert names.parse(names.rewrite(lineage, key)) == names.ParsedName("rewrite", lineage, id=key)
    assert names.parse(names.key(lineage, key)) == names.ParsedName("key", lineage, id=key)
    assert names.parse(names.grave(lineage, seq)) == names.ParsedName("grave", lineage, seq)
    assert names.parse(names.closed(lineage)) == names.ParsedName("closed", lineage)
    assert names.parse(names.owner(seq)) == names.ParsedName("owner", seq=seq)
    assert names.parse(names.catalog(attempt, seq)) == names.ParsedName("catalog", None, seq, attempt)
    assert names.parse(names.trail(key)) == names.ParsedName("trail", id=key)
    for kind in ("pack", "manifest", "rewrite", "key", "trail"):
        parsed = names.parse(names.for_kind(kind, lineage, key, seq, attempt))
        assert parsed is not None
        assert parsed.kind == kind


@pytest.mark.parametrize(
    "name",
    [
        "", "owner/0", "owner/01", "owner/1/", f"{LINEAGE}", f"{LINEAGE}/closed/", f"{LINEAGE}/grave/-1",
        f"{LINEAGE}/pack/1/{LINEAGE}",
        f"{LINEAGE}/pack/1.1/{LINEAGE}x", f"{LINEAGE}/other/{LINEAGE}", f"{LINEAGE.upper()}g/closed", f"{LINEAGE}/closed\n",
        f"{LINEAGE}/manifest/1.0/{LINEAGE}", f" {LINEAGE}/closed", "owner/\u0661", "catalog/1", "catalog/0.1", "catalog/1.01",
        "trail/1",
    ],
)  # fmt: skip
def test_a_foreign_name_is_not_ours(name: str) -> None:
    """Unknown objects are reported and never touched: nothing near to a name is taken for one."""
    assert names.parse(name) is None


def test_kinds_without_an_id_have_no_such_name() -> None:
    """A grave's name is its meaning; asking for one by id is a defect."""
    with pytest.raises(Misuse):
        names.for_kind("grave", LINEAGE, "0" * 32)
