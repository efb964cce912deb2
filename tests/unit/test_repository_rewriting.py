"""Chunks between the objects that they come from and those that they go into: all of them, only them, each proven."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import SpooledTemporaryFile

import numpy as np
import pytest
from pyroaring import BitMap

from strongroom.repository import names
from strongroom.repository.errors import Damaged, MissingChunk, Misuse
from strongroom.repository.pack import ObjectIndex, read_index
from strongroom.repository.places import all_places
from strongroom.repository.rewriting import Copy, Survivors
from support.repository import LINEAGE, Vault, flipped, noise, rows

ENTRIES = {"noise": noise(90_000), "rows": rows(9000)}


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    """A part of several packs, each in an object of its own."""
    vault = Vault(tmp_path, pack_target=30_000)
    vault.write(1, ENTRIES)
    return vault


@pytest.fixture
def survivors(vault: Vault) -> Iterator[Survivors]:
    with SpooledTemporaryFile(max_size=1 << 20) as spool:
        yield Survivors(vault.store, vault.keys, LINEAGE, spool)


def index_of(vault: Vault, pack: int) -> ObjectIndex:
    """The object that a pack lies in."""
    key, name = vault.places[pack][0]
    return read_index(vault.store, vault.keys, LINEAGE, key, name)


def chunks(index: ObjectIndex, vault: Vault, pack: int) -> dict[int, bytes]:
    """The sealed chunks of a pack in an object."""
    held, data = index.packs[pack], vault.store.get(index.name)
    return {
        number: data[offset : offset + length]
        for number, length, offset in zip(held.numbers.tolist(), held.lengths.tolist(), held.offsets.tolist(), strict=True)
    }


def put(vault: Vault, copy: Copy, key: str) -> ObjectIndex:
    """The new object, put and read back."""
    size = vault.store.put_new(names.rewrite(LINEAGE, key), copy.pieces)
    assert size == copy.size
    return read_index(vault.store, vault.keys, LINEAGE, key, names.rewrite(LINEAGE, key))


def two_packs(vault: Vault) -> tuple[int, int]:
    """Packs with at least four chunks."""
    first, second = [pack for pack in vault.places if len(index_of(vault, pack).packs[pack].numbers) >= 4][:2]
    return first, second


def test_a_new_object_holds_what_was_wanted_as_it_was_sealed(vault: Vault, survivors: Survivors) -> None:
    """Chunks of several packs, in the order asked for; each byte for byte, with the facts of its pack; and no others."""
    one, two = two_packs(vault)
    for pack in (one, two):
        survivors.gather(index_of(vault, pack), {pack: index_of(vault, pack).packs[pack].number_set})
    wanted = {two: BitMap([0, 2, 3]), one: BitMap([1, 3]), 999: BitMap()}
    copy = survivors.make("c" * 32, wanted, ambient=vault.ambient)
    assert [(held.pack, held.numbers) for held in copy.holdings] == [(two, wanted[two]), (one, wanted[one])]
    index = put(vault, copy, "c" * 32)
    assert list(index.packs) == [two, one]
    for pack, _, sealed in copy.holdings:
        source, before = index_of(vault, pack).packs[pack], chunks(index_of(vault, pack), vault, pack)
        assert chunks(index, vault, pack) == {number: before[number] for number in wanted[pack]}
        assert sealed == sum(len(before[number]) for number in wanted[pack])
        found = index.packs[pack]
        assert (found.born, found.total, found.wrapped_key) == (source.born, source.total, source.wrapped_key)


def test_no_more_is_read_than_the_chunks_that_live(vault: Vault, survivors: Survivors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two neighbours: one range, from the first's beginning to the second's end."""
    pack, _ = two_packs(vault)
    index, get, asked = index_of(vault, pack), type(vault.store).get, list[tuple[int, int | None]]()

    def counted(store: object, name: str, start: int = 0, length: int | None = None) -> bytes:
        asked.append((start, length))
        return get(store, name, start, length)  # type: ignore[arg-type]

    monkeypatch.setattr(type(vault.store), "get", counted)
    survivors.gather(index, {pack: BitMap([1, 2])})
    held = index.packs[pack]
    assert asked == [(int(held.offsets[1]), int(held.lengths[1] + held.lengths[2]))]


def test_chunks_of_one_pack_come_together_from_several_objects(vault: Vault, survivors: Survivors) -> None:
    """Some lay here, some there, gathered in any order; also when it is moved a second time."""
    pack, other = two_packs(vault)
    whole = index_of(vault, pack)
    before, numbers = chunks(whole, vault, pack), whole.packs[pack].number_set
    survivors.gather(whole, {pack: numbers})
    survivors.gather(index_of(vault, other), {other: BitMap([0])})
    odd, even = BitMap(n for n in numbers if n % 2), BitMap(n for n in numbers if n % 2 == 0)
    parts = [
        put(vault, survivors.make(key * 32, wanted, ambient=vault.ambient), key * 32)
        for key, wanted in (("d", {pack: odd, other: BitMap([0])}), ("e", {pack: even}))
    ]
    with SpooledTemporaryFile(max_size=1 << 20) as spool:
        again = Survivors(vault.store, vault.keys, LINEAGE, spool)
        again.gather(parts[0], {other: BitMap([0]), pack: odd})
        again.gather(parts[1], {pack: even})
        wanted = numbers - BitMap([2])
        index = put(vault, again.make("f" * 32, {pack: wanted, other: BitMap([0])}, ambient=vault.ambient), "f" * 32)
    assert chunks(index, vault, pack) == {number: before[number] for number in wanted}
    assert chunks(index, vault, other) == {0: chunks(index_of(vault, other), vault, other)[0]}


def test_several_objects_are_made_of_one_spool(vault: Vault, survivors: Survivors) -> None:
    """Gathering goes on after objects were made: nothing is written over."""
    one, two = two_packs(vault)
    survivors.gather(index_of(vault, one), {one: BitMap([0, 1])})
    put(vault, survivors.make("a" * 32, {one: BitMap([0])}, ambient=vault.ambient), "a" * 32)
    survivors.gather(index_of(vault, two), {two: BitMap([0, 1])})
    for key, pack, number in (("b", one, 1), ("c", two, 1), ("d", one, 0), ("e", two, 0)):
        index = put(vault, survivors.make(key * 32, {pack: BitMap([number])}, ambient=vault.ambient), key * 32)
        assert chunks(index, vault, pack) == {number: chunks(index_of(vault, pack), vault, pack)[number]}


@pytest.mark.parametrize(
    ("gathered", "wanted", "said"),
    [
        ([], [0], "pack {} was not gathered in full"),
        ([0, 1], [1, 2], "pack {} was not gathered in full"),
        ([1, 3], [2], "pack {} was not gathered in full"),
        ([0, 1], [], "nothing to put into {}"),
    ],
)
def test_what_was_not_gathered_is_in_no_new_object(
    vault: Vault, survivors: Survivors, gathered: list[int], wanted: list[int], said: str
) -> None:
    """A caller's mistake is an error, never a smaller object."""
    pack, _ = two_packs(vault)
    survivors.gather(index_of(vault, pack), {pack: BitMap(gathered)})
    with pytest.raises(Misuse, match=said.format(pack if wanted else "c" * 32)):
        survivors.make("c" * 32, {pack: BitMap(wanted)}, ambient=vault.ambient)


def test_nothing_of_a_damaged_source_counts(vault: Vault, survivors: Survivors) -> None:
    """Neither its sound chunks; what came from sources before and after it is whole."""
    one, two = two_packs(vault)
    survivors.gather(index_of(vault, one), {one: BitMap([0, 1])})
    damaged = index_of(vault, two)
    whole = vault.store.get(damaged.name)
    held = damaged.packs[two]
    vault.change(damaged.name, flipped(whole, int(held.offsets[2]) + 5))
    with pytest.raises(Damaged, match=f"is damaged: chunk 2 of pack {two} is not what was written$") as caught:
        survivors.gather(damaged, {two: BitMap([0, 1, 2, 3])})
    assert (caught.value.object_name, caught.value.pack, caught.value.number) == (damaged.name, two, 2)
    with pytest.raises(Misuse):
        survivors.make("c" * 32, {two: BitMap([0])}, ambient=vault.ambient)
    vault.change(damaged.name, whole)
    survivors.gather(damaged, {two: BitMap([3])})
    index = put(vault, survivors.make("c" * 32, {one: BitMap([0, 1]), two: BitMap([3])}, ambient=vault.ambient), "c" * 32)
    for pack, numbers in ((one, [0, 1]), (two, [3])):
        before = chunks(index_of(vault, pack), vault, pack)
        assert chunks(index, vault, pack) == {number: before[number] for number in numbers}


def test_an_object_without_what_it_is_said_to_hold_is_told(vault: Vault, survivors: Survivors) -> None:
    """The first number that is missing, of a pack that is there or not."""
    pack, _ = two_packs(vault)
    index = index_of(vault, pack)
    for said, numbers, first in ((pack, [0, 7777, 8888], 7777), (pack + 1, [3, 4], 3)):
        with pytest.raises(MissingChunk, match=f"{index.name} does not hold chunk {first} of pack {said}$") as caught:
            survivors.gather(index, {said: BitMap(numbers)})
        assert (caught.value.object_name, caught.value.pack, caught.value.number) == (index.name, said, first)
        with pytest.raises(MissingChunk):
            all_places(index, {said: BitMap(numbers)})


def test_sizes_are_told_number_by_number(vault: Vault) -> None:
    """Sealed bytes, ascending by number."""
    pack, _ = two_packs(vault)
    index = index_of(vault, pack)
    lengths: Mapping[int, int] = {number: len(data) for number, data in chunks(index, vault, pack).items()}
    assert len(set(lengths.values())) > 1
    numbers = BitMap([3, 0, 2])
    assert np.array_equal(all_places(index, {pack: numbers}).lengths, [lengths[0], lengths[2], lengths[3]])
