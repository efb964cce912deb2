"""Damage: whatever happens to stored bytes, no wrong byte is ever handed out, and the error says where and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from strongroom.repository import names
from strongroom.repository.errors import Damaged, MissingChunk, MissingObject, Misuse, RepositoryError, UnknownFormat
from strongroom.repository.keys import LineageKeys
from strongroom.repository.manifest import Manifest, peek_header
from strongroom.repository.pack import PackBuilder, read_index
from strongroom.repository.records import Tree
from strongroom.repository.verification import check_object
from strongroom.repository.writer import PackSlot
from support.repository import LINEAGE, Seeded, Vault, Written, flipped, noise, rewrite, rows

ENTRIES = {"noise": noise(60_000), "rows": rows(6000), "small": b"x"}


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    """An empty lineage in memory with small packs."""
    return Vault(tmp_path, pack_target=30_000)


@pytest.fixture
def part(vault: Vault) -> Written:
    """A part of several packs."""
    return vault.write(1, ENTRIES)


def packs(vault: Vault) -> Iterator[tuple[int, str, str]]:
    """(pack, object id, name) of every pack."""
    return ((pack, *places[0]) for pack, places in vault.places.items())


def never_wrong(vault: Vault, root: str) -> bool:
    """Reads all; True if it was right, False if an error of ours was raised; anything else fails."""
    try:
        got = vault.read(root)
    except RepositoryError:
        return False
    assert got == ENTRIES
    return True


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found_and_never_read_as_right(vault: Vault, data: st.DataObject) -> None:
    """In any byte of any object: reading gives the right bytes or an error; a check of the object always finds it."""
    root = vault.write(1, ENTRIES).root if not vault.places else next(s.name for s in vault.store.list(f"{LINEAGE}/manifest/"))
    name = data.draw(st.sampled_from(sorted(stat.name for stat in vault.store.list(""))))
    whole = vault.store.get(name)
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    vault.change(name, flipped(whole, at, bit))
    try:
        read_right = never_wrong(vault, root)
        if name == root:
            assert not read_right
        else:
            assert not sound(vault, name)
    finally:
        vault.change(name, whole)
    assert never_wrong(vault, root)


def sound(vault: Vault, name: str) -> bool:
    """Whether a check of an object of chunks passes."""
    parsed = names.parse(name)
    assert parsed is not None
    assert parsed.id is not None
    try:
        return check_object(vault.store, vault.keys, LINEAGE, parsed.id, name).sound
    except RepositoryError:
        return False


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_truncated_or_lengthened_object_is_found(vault: Vault, data: st.DataObject) -> None:
    """Cut anywhere, down to nothing, or with bytes behind its end: never read as right, always found."""
    root = vault.write(1, ENTRIES).root if not vault.places else next(s.name for s in vault.store.list(f"{LINEAGE}/manifest/"))
    name = data.draw(st.sampled_from(sorted(stat.name for stat in vault.store.list(""))))
    whole = vault.store.get(name)
    changed = whole[: data.draw(st.integers(0, len(whole) - 1))] if data.draw(st.booleans()) else whole + noise(100)
    vault.change(name, changed)
    try:
        assert not never_wrong(vault, root)
        if name != root:
            assert not sound(vault, name)
    finally:
        vault.change(name, whole)


def test_damage_names_object_entry_chunk_and_what_to_do(vault: Vault, part: Written) -> None:
    """An operator learns what is lost and how it heals; a catalog learns which chunk is suspect."""
    record = next(part.manifest.records(part.manifest.entry("noise")))
    pack, number = int(record.packs[3]), int(record.numbers[3])
    key, name = vault.places[pack][0]
    index = read_index(vault.store, vault.keys, LINEAGE, key, name)
    [(_, offset, _)] = index.locate(pack, BitMap([number]))
    vault.change(name, flipped(vault.store.get(name), offset))
    with vault.reader(vault.manifest(part.root)) as reader, pytest.raises(Damaged) as caught:
        list(reader.read("noise"))
    error = caught.value
    assert (error.object_name, error.pack, error.number, error.permanent) == (name, pack, number, True)
    assert "entry noise" in str(error)
    assert "take a new one" in str(error)
    assert check_object(vault.store, vault.keys, LINEAGE, key, name).damaged == {pack: BitMap([number])}


def test_swapped_objects_are_refused(vault: Vault, part: Written) -> None:
    """An object under the name of another of the same lineage does not pass, pack or manifest."""
    (_, _, one), (_, _, other), *_ = packs(vault)
    first, second = vault.store.get(one), vault.store.get(other)
    vault.change(one, second)
    vault.change(other, first)
    assert not never_wrong(vault, part.root)
    assert not sound(vault, one)
    vault.change(one, first)
    vault.change(other, second)
    later = vault.write(2, {"a": b"y"})
    vault.change(part.root, vault.store.get(later.root))
    with pytest.raises(Damaged, match="swapped"):
        vault.manifest(part.root)


def test_swapped_chunks_of_equal_length_are_refused(vault: Vault) -> None:
    """Two sealed chunks that change places in their object, or come from another pack, do not open."""
    stolen = {}
    for pack, seed in ((5, 0), (6, 1)):
        builder = PackBuilder(vault.keys, LINEAGE, pack, "a" * 32, 1, Seeded(seed))
        for at in range(2):
            builder.add(b"\0" + (4).to_bytes(4, "big") + b"abc%d" % at)
        stolen[pack] = b"".join(builder.finish())
    size = 4 + 5 + 16
    mine = stolen[5]
    swapped = mine[:8] + mine[8 + size : 8 + 2 * size] + mine[8 : 8 + size] + mine[8 + 2 * size :]
    foreign = mine[:8] + stolen[6][8 : 8 + size] + mine[8 + size :]
    for data, bad in ((swapped, [0, 1]), (foreign, [0])):
        vault.store.delete("x/y")
        vault.store.put_new("x/y", data)
        assert check_object(vault.store, vault.keys, LINEAGE, "a" * 32, "x/y").damaged == {5: BitMap(bad)}
    with pytest.raises(Damaged, match="index does not open"):
        check_object(vault.store, vault.keys, LINEAGE, "b" * 32, "x/y")
    with pytest.raises(Damaged, match="index does not open"):
        check_object(vault.store, vault.keys, "2" * 32, "a" * 32, "x/y")


def test_the_header_of_a_root_that_does_not_open_can_be_read(vault: Vault, part: Written) -> None:
    """A rebuild learns whose the damaged manifest is, as far as its clear header is there."""
    root = vault.store.get(part.root)
    assert peek_header(root[:-20])["backup"] == "backup-1"
    for data in (b"", root[:30], b"XXXX" + root[4:]):
        with pytest.raises(Damaged):
            peek_header(data)


def test_another_lineages_keys_open_nothing(vault: Vault, part: Written) -> None:
    """Tenants never meet: neither root nor packs."""
    other = LineageKeys.create(Seeded(77))
    with pytest.raises(Damaged):
        Manifest.open(vault.store, other, LINEAGE, part.root, vault)
    with pytest.raises(Damaged):
        Manifest.open(vault.store, vault.keys, "2" * 32, part.root, vault)
    _, key, name = next(packs(vault))
    with pytest.raises(Damaged):
        read_index(vault.store, other, LINEAGE, key, name)


def test_a_chunk_that_is_sound_and_is_not_the_recorded_one_is_refused(vault: Vault, part: Written) -> None:
    """The record's hash and length are checked, so that nobody who can seal puts other bytes in a chunk's place unnoticed."""
    records = next(part.manifest.records(part.manifest.entry("noise")))
    part.manifest.fetcher.fetch(records)
    for wrong in (replace(records, hashes=records.hashes ^ np.uint8(1)), replace(records, plains=records.plains + np.uint32(1))):
        with pytest.raises(Damaged, match="is not what was written"):
            part.manifest.fetcher.fetch(wrong)


def test_an_entry_whose_chunks_are_sound_and_are_not_the_entry_is_refused(vault: Vault, part: Written) -> None:
    """Digest and size of the whole are checked at its end: chunks left out, doubled or in another order do not pass."""
    manifest = vault.manifest(part.root)
    entry = manifest.entry("noise")
    shorter = Tree(0, next(manifest.records(entry))[:-1])
    for wrong in (replace(entry, digest=bytes(32)), replace(entry, size=entry.size + 1), replace(entry, tree=shorter)):
        with pytest.MonkeyPatch.context() as patch, vault.reader(manifest) as reader:
            patch.setattr(manifest, "entry", lambda name, wrong=wrong: wrong)
            with pytest.raises(Damaged, match="restore another backup"):
                list(reader.read("noise"))


def test_a_newer_format_is_not_called_damaged(vault: Vault, part: Written) -> None:
    """Header and footer of an object, and a root."""
    _, key, name = next(packs(vault))
    whole = vault.store.get(name)
    for data in (whole[:4] + b"\0\2" + whole[6:], whole[:-6] + b"\0\2" + whole[-4:]):
        vault.change(name, data)
        with pytest.raises(UnknownFormat, match="format 2"):
            check_object(vault.store, vault.keys, LINEAGE, key, name)
    root = vault.store.get(part.root)
    vault.change(part.root, root[:4] + b"\0\2" + root[6:])
    with pytest.raises(UnknownFormat, match="format 2"):
        vault.manifest(part.root)


def test_a_pack_that_was_moved_is_looked_up_again(vault: Vault, part: Written) -> None:
    """A rewrite between two reads takes the object away; the reader finds the new one and goes on."""
    manifest = vault.manifest(part.root)
    with vault.reader(manifest) as reader:
        assert b"".join(reader.read("noise")) == ENTRIES["noise"]
        for pack, key, name in list(packs(vault)):
            move(vault, pack, key, name)
        assert b"".join(reader.read("noise")) == ENTRIES["noise"]
        assert b"".join(reader.read("rows")) == ENTRIES["rows"]


def move(vault: Vault, pack: int, key: str, name: str) -> None:
    """Rewrites a pack's object and takes the old one away."""
    new = vault.ambient.hex_id()
    whole = BitMap(read_index(vault.store, vault.keys, LINEAGE, key, name).packs[pack].numbers)
    copy = rewrite(vault, [(key, name, {pack: whole})], new)
    vault.store.put_new(names.rewrite(LINEAGE, new), copy.pieces)
    vault.places[pack] = [(new, names.rewrite(LINEAGE, new))]
    vault.store.delete(name)


def test_only_the_same_object_missing_twice_is_an_error(vault: Vault, part: Written) -> None:
    """The locator is asked again once; if it names the same object, that one is lost."""
    record = next(part.manifest.records(part.manifest.entry("small")))
    pack = int(record.packs[0])
    _, name = vault.places[pack][0]
    vault.store.delete(name)
    manifest = vault.manifest(part.root)
    with vault.reader(manifest) as reader, pytest.raises(MissingObject) as caught:
        list(reader.read("small"))
    assert caught.value.object_name == name


def test_a_pack_that_nothing_holds_is_missing(vault: Vault, part: Written) -> None:
    """No object, or objects that hold others of its chunks: MissingChunk, after asking anew."""
    record = next(part.manifest.records(part.manifest.entry("noise")))
    pack, number = int(record.packs[2]), int(record.numbers[2])
    key, name = vault.places[pack][0]
    rest = BitMap(read_index(vault.store, vault.keys, LINEAGE, key, name).packs[pack].numbers) - BitMap([number])
    new = vault.ambient.hex_id()
    copy = rewrite(vault, [(key, name, {pack: rest})], new)
    vault.store.put_new(names.rewrite(LINEAGE, new), copy.pieces)
    for places in ([], [(new, names.rewrite(LINEAGE, new))]):
        vault.places[pack] = places
        with vault.reader(vault.manifest(part.root)) as reader, pytest.raises(MissingChunk) as caught:
            list(reader.read("noise"))
        assert caught.value.pack == pack


def test_a_pack_spread_over_two_objects_is_read_from_both(vault: Vault, part: Written) -> None:
    """What regrouping leaves: some of a pack's chunks here, some there, beside chunks of other packs."""
    (one, key_one, name_one), (two, key_two, name_two), *_ = packs(vault)
    all_one = BitMap(read_index(vault.store, vault.keys, LINEAGE, key_one, name_one).packs[one].numbers)
    all_two = BitMap(read_index(vault.store, vault.keys, LINEAGE, key_two, name_two).packs[two].numbers)
    low, high = BitMap(list(all_one)[:2]), BitMap(list(all_one)[2:])
    first, second = vault.ambient.hex_id(), vault.ambient.hex_id()
    sources_one = [(key_one, name_one, {one: low}), (key_two, name_two, {two: all_two})]
    for key, sources in ((first, sources_one), (second, [(key_one, name_one, {one: high})])):
        copy = rewrite(vault, sources, key)
        vault.store.put_new(names.rewrite(LINEAGE, key), copy.pieces)
    vault.places[one] = [(first, names.rewrite(LINEAGE, first)), (second, names.rewrite(LINEAGE, second))]
    vault.places[two] = [(first, names.rewrite(LINEAGE, first))]
    vault.store.delete_many([name_one, name_two])
    assert vault.read(part.root) == ENTRIES


def test_rewriting_keeps_the_living_and_drops_the_dead(vault: Vault) -> None:
    """After a delete of the first part: the object shrinks by the dead chunks, the second part reads as before."""
    first = vault.write(1, {"a": noise(200_000), "b": rows(20_000)})
    second = vault.write(2, {"b": rows(20_000), "c": noise(50_000, 1)}, first)
    for pack, key, name in list(packs(vault)):
        living = second.sealed.used.get(pack, BitMap())
        whole = BitMap(read_index(vault.store, vault.keys, LINEAGE, key, name).packs[pack].numbers)
        before = vault.store.get(name)
        vault.store.delete(name)
        if not living:
            del vault.places[pack]
            continue
        vault.store.put_new(name, before)
        new = vault.ambient.hex_id()
        copy = rewrite(vault, [(key, name, {pack: living})], new)
        assert copy.size == vault.store.put_new(names.rewrite(LINEAGE, new), copy.pieces)
        assert [(held.pack, held.numbers) for held in copy.holdings] == [(pack, living)]
        assert copy.size < len(before) or living == whole
        index = read_index(vault.store, vault.keys, LINEAGE, new, names.rewrite(LINEAGE, new))
        assert copy.holdings[0].sealed_bytes == sum(length for _, _, length in index.locate(pack, living))
        assert (index.packs[pack].born, index.packs[pack].total) == (vault_born(vault, key, name, pack), len(whole))
        assert check_object(vault.store, vault.keys, LINEAGE, new, names.rewrite(LINEAGE, new)).chunks == len(living)
        vault.places[pack] = [(new, names.rewrite(LINEAGE, new))]
        vault.store.delete(name)
    assert vault.read(second.root) == {"b": rows(20_000), "c": noise(50_000, 1)}


def vault_born(vault: Vault, key: str, name: str, pack: int) -> int:
    """The part that wrote a pack, by its object."""
    return read_index(vault.store, vault.keys, LINEAGE, key, name).packs[pack].born


def test_rewriting_refuses_damage_and_nonsense(vault: Vault, part: Written) -> None:
    """A damaged chunk is never carried into a new object as if it were sound."""
    pack, key, name = next(packs(vault))
    whole = vault.store.get(name)
    copying = [(key, name, {pack: BitMap([0, 1])})]
    with pytest.raises(MissingChunk):
        rewrite(vault, [(key, name, {pack: BitMap([9999])})], "c" * 32)
    with pytest.raises(MissingChunk):
        rewrite(vault, [(key, name, {pack + 1: BitMap([0])})], "c" * 32)
    for sources in ([], [(key, name, {pack: BitMap()})]):
        with pytest.raises(Misuse):
            rewrite(vault, sources, "c" * 32)
    vault.change(name, flipped(whole, 20))
    with pytest.raises(Damaged) as caught:
        rewrite(vault, copying, "c" * 32)
    assert (caught.value.pack, caught.value.number) == (pack, 0)


def test_a_pack_id_is_a_positive_number_of_63_bits(vault: Vault) -> None:
    """Catalogs keep it as a signed 64-bit number; 0 and more are refused before anything is sealed."""
    for pack in (0, -1, 1 << 63):
        with pytest.raises(Misuse):
            PackBuilder(vault.keys, LINEAGE, pack, "a" * 32, 1, Seeded())
    assert PackSlot(1, "a") == PackSlot(1, "a", "")
