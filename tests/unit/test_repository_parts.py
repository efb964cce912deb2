"""Writing a part and reading it back: what comes out is what went in, and what has not changed costs nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from strongroom.repository import dedup
from strongroom.repository.errors import Misuse
from strongroom.repository.pack import read_index
from strongroom.repository.records import Records
from strongroom.repository.writer import unused
from support.repository import LINEAGE, Seeded, Sink, Vault, Written, noise, rows, size_of

CONTENT = st.one_of(
    st.binary(max_size=200),
    st.builds(noise, st.integers(0, 60_000), st.integers(0, 3)),
    st.builds(rows, st.integers(0, 3000), st.integers(0, 2)),
    st.builds(bytes, st.integers(0, 200_000)),
    st.builds(lambda a, b: noise(a, 1) + rows(b) + noise(a, 1), st.integers(0, 20_000), st.integers(0, 500)),
)
ENTRIES = st.dictionaries(st.text(min_size=1, max_size=8), CONTENT, max_size=6)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    """An empty lineage in memory."""
    return Vault(tmp_path)


@settings(max_examples=40, deadline=None)
@given(st.lists(ENTRIES, min_size=1, max_size=3), st.sampled_from([1000, 100_000, 10**9]), st.sampled_from([20_000, 1 << 20]))
def test_whatever_goes_in_comes_out(parts: list[dict[str, bytes]], step: int, pack_target: int) -> None:
    """A lineage of up to three parts of any entries, in any steps and packs: each reads back byte for byte, in order."""
    with TemporaryDirectory() as folder:
        vault = Vault(Path(folder), pack_target=pack_target)
        written: list[Written] = []
        for seq, entries in enumerate(parts, 1):
            written.append(vault.write(seq, entries, written[-1] if written else None, step=step))
        for entries, part in zip(parts, written, strict=True):
            assert vault.read(part.root) == entries
            assert [entry.name for entry in part.manifest.entries()] == list(entries)
            assert part.sealed.plain_bytes == sum(map(len, entries.values()))


def test_the_manifest_says_whose_it_is_and_what_it_holds(vault: Vault) -> None:
    """Header, facts, totals, packs and entries survive the store."""
    part = vault.write(1, {"a": rows(5000), "b": b""})
    found = vault.manifest(part.root)
    assert (found.header.project, found.header.instance, found.header.lineage) == ("p", "i", LINEAGE)
    assert (found.header.seq, found.header.attempt, found.header.backup) == (1, 1, "backup-1")
    assert (found.parent, list(found.plan), found.engine_facts) == (0, [(LINEAGE, 1, "")], {"version": "7"})
    assert found.totals.entries == 2
    assert found.totals.stored_bytes == sum(stat.size for stat in vault.store.list(f"{LINEAGE}/pack/"))
    assert found.chunk_average == 4096
    assert found.entry("a").facts == {"length": len(rows(5000))}
    with pytest.raises(KeyError):
        found.entry("c")
    with vault.reader(found) as reader:
        assert [entry.name for entry in reader.entries("a")] == ["a"]
        with pytest.raises(KeyError):
            reader.read("c")


def test_what_is_used_is_what_is_named_and_own_packs_are_named_in_full(vault: Vault) -> None:
    """The coverage proof rests on it: the manifest and `used` agree, and no chunk is written that nothing names."""
    entries = {"a": rows(20_000), "b": noise(500_000), "c": rows(20_000), "d": bytes(300_000)}
    first = vault.write(1, entries)
    second = vault.write(2, {**entries, "e": noise(900_000, 7)}, first)
    for part in (first, second):
        named: dict[int, BitMap] = {}
        for packs, numbers, _ in part.manifest.named():
            for pack, number in zip(packs.tolist(), numbers.tolist(), strict=True):
                named.setdefault(pack, BitMap()).add(number)
        assert named == part.sealed.used
        for pack, count in part.manifest.packs:
            assert part.sealed.used[pack] == BitMap(range(count))


def test_equal_content_is_stored_once_in_a_part(vault: Vault) -> None:
    """Also after the hashes went to disk, and across entries."""
    part = vault.write(1, {"a": noise(300_000), "b": noise(300_000), "c": bytes(1 << 20)})
    assert part.sealed.stored_bytes < 350_000


def test_equal_content_is_stored_once_though_hashes_went_to_disk(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part whose hashes do not fit in memory shares with itself all the same, and reads back."""
    monkeypatch.setattr(dedup, "_RECENT", 20)
    entries = {"a": noise(600_000), "b": noise(600_000), "c": noise(600_000)}
    part = vault.write(1, entries)
    assert part.sealed.stored_bytes < 650_000
    assert vault.read(part.root) == entries


def test_nothing_changed_stores_nothing(vault: Vault) -> None:
    """All chunks and all pages are the parent's: no pack is opened, nothing dies."""
    entries = {"big": rows(60_000), **{f"file {at}": noise(3000, at) for at in range(300)}}
    first = vault.write(1, entries)
    sink = Sink(vault, 2)
    writer = vault.writer(2, first.manifest, sink)
    for name, data in entries.items():
        with writer.entry(name) as entry:
            entry.write(data)
            entry.finish({"length": len(data)})
    second = vault.seal(writer, 2, 1)
    assert sink.opened == []
    assert second.sealed.stored_bytes == 0
    assert second.sealed.used == first.sealed.used
    assert unused(first.manifest, second.sealed.used) == {}
    assert second.sealed.adopted_bytes == sealed_bytes(vault)


def sealed_bytes(vault: Vault) -> int:
    """Of everything that is stored, by the indexes of the packs."""
    indexes = (read_index(vault.store, vault.keys, LINEAGE, *places[0]).packs[pack] for pack, places in vault.places.items())
    return sum(int(held.lengths.sum()) for held in indexes)


def test_an_insertion_stores_a_few_chunks_and_pages_near_it(vault: Vault) -> None:
    """Some bytes in the middle of 8 MB: less than 40 KB new, and the parent loses about as much."""
    before = rows(120_000)
    middle = len(before) // 2
    after = before[:middle] + b'{"inserted": true}\n' + before[middle:]
    first = vault.write(1, {"a": before})
    second = vault.write(2, {"a": after}, first)
    assert second.sealed.stored_bytes < 40_000
    lost = unused(first.manifest, second.sealed.used)
    assert 1 <= size_of({pack: numbers for pack, (numbers, _) in lost.items()}) <= 12
    assert vault.read(second.root)["a"] == after
    assert vault.read(first.root)["a"] == before


def test_what_dies_is_weighed_by_its_sealed_bytes(vault: Vault) -> None:
    """`unused` gives exactly the sealed sizes that the packs' indexes say."""
    first = vault.write(1, {"a": noise(400_000), "b": rows(10_000)})
    second = vault.write(2, {"b": rows(10_000)}, first)
    lost = unused(first.manifest, second.sealed.used)
    for pack, (numbers, size) in lost.items():
        key, name = vault.places[pack][0]
        index = read_index(vault.store, vault.keys, LINEAGE, key, name)
        assert size == sum(length for _, _, length in index.locate(pack, numbers))
        assert not numbers & second.sealed.used.get(pack, BitMap())
    everything = {pack: BitMap(numbers) for pack, numbers in second.sealed.used.items() if pack in first.sealed.used}
    for pack, (numbers, _) in lost.items():
        everything[pack] = everything.get(pack, BitMap()) | numbers
    assert everything == first.sealed.used


def test_suspect_chunks_are_stored_anew(vault: Vault) -> None:
    """Chunks and pages that were found damaged are not shared: the next part heals them."""
    entries = {"a": noise(200_000), "b": rows(30_000)}
    first = vault.write(1, entries)
    suspects = {pack: BitMap([0, 3]) for pack, _ in first.manifest.packs}
    second = vault.write(2, entries, first, suspects=suspects)
    assert all(not (second.sealed.used.get(pack, BitMap()) & numbers) for pack, numbers in suspects.items())
    assert second.sealed.stored_bytes > 0
    assert vault.read(second.root) == entries


def test_an_entry_is_adopted_unread(vault: Vault) -> None:
    """Everything it names counts as used; it reads back, and nothing is stored for it."""
    entries = {f"file {at}": noise(30_000, at) for at in range(20)} | {"big": rows(40_000)}
    first = vault.write(1, entries)
    writer = vault.writer(2, first.manifest)
    for name in entries:
        assert writer.adopt_entry(name)
    assert not writer.adopt_entry("unknown")
    second = vault.seal(writer, 2, 1)
    assert second.sealed.used == first.sealed.used
    assert second.sealed.stored_bytes == 0
    assert vault.read(second.root) == entries


def test_an_entry_with_a_suspect_chunk_is_not_adopted(vault: Vault) -> None:
    """It must be read, so that the damage heals; without a parent there is nothing to adopt."""
    first = vault.write(1, {"a": noise(100_000), "b": noise(100_000, 1)})
    record = next(first.manifest.records(first.manifest.entry("a")))
    suspects = {int(record.packs[2]): BitMap([int(record.numbers[2])])}
    writer = vault.writer(2, first.manifest, suspects=suspects)
    assert not writer.adopt_entry("a")
    assert writer.adopt_entry("b")
    writer.abort()
    alone = vault.writer(3)
    assert not alone.adopt_entry("a")
    alone.abort()


def test_many_entries_are_found_by_name(vault: Vault) -> None:
    """Pages of entries, and pages of their pages: any name is found, in and out of order."""
    entries = {f"keyspace/table-{at * 7919 % 5000}/data-{at}.db": b"%d" % at for at in range(5000)}
    part = vault.write(1, entries)
    found = vault.manifest(part.root)
    wanted = list(entries)
    with vault.reader(found) as reader:
        for name in [*wanted[:30], wanted[-1], wanted[17], wanted[2500]]:
            assert b"".join(reader.read(name)) == entries[name]


def test_pack_keys_and_nonces_are_never_used_twice(tmp_path: Path) -> None:
    """Every pack and every object has a key of its own, and a number occurs once in a pack: so no (key, nonce) repeats."""
    vault = Vault(tmp_path, pack_target=100_000)
    first = vault.write(1, {"a": noise(1_500_000), "b": rows(20_000)})
    vault.write(2, {"a": noise(1_500_000, 2)}, first)
    assert max(Counter(vault.ambient.keys).values()) == 1
    wrapped = set()
    for pack, places in vault.places.items():
        held = read_index(vault.store, vault.keys, LINEAGE, *places[0]).packs[pack]
        assert held.numbers.tolist() == list(range(len(held.numbers)))
        wrapped.add(held.wrapped_key)
    assert len(wrapped) == len(vault.places) > 20
    assert len(vault.ambient.keys) == 2 + 2 * len(vault.places)


def test_packs_hold_chunks_in_stream_order_and_keep_to_their_target(tmp_path: Path) -> None:
    """Neighbours in the stream are neighbours in the store, one pack after the other."""
    vault = Vault(tmp_path, pack_target=100_000)
    sink = Sink(vault, 1)
    writer = vault.writer(1, sink=sink)
    with writer.entry("a") as entry:
        entry.write(noise(1_000_000))
        entry.finish()
    part = vault.seal(writer, 1)
    found = Records.joined(list(part.manifest.records(part.manifest.entry("a"))))
    order = {slot.pack: at for at, slot in enumerate(sink.opened)}
    places = [(order[pack], number) for pack, number in zip(found.packs.tolist(), found.numbers.tolist(), strict=True)]
    assert places == sorted(places)
    assert all(sum(sizes) < 100_000 + 8 * 4096 + 64 for sizes in sink.sizes.values())


def test_large_packs_wait_on_disk_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack that is spooled to a file is the same object."""
    monkeypatch.setattr("strongroom.repository.writer._SPOOL_FROM", 0)
    monkeypatch.setattr("strongroom.repository.pack._SPOOL_STEP", 50_000)
    entries = {"a": noise(700_000), "b": rows(10_000)}
    spooled = Vault(tmp_path, pack_target=300_000)
    part = spooled.write(1, entries)
    assert spooled.read(part.root) == entries
    monkeypatch.undo()
    (tmp_path / "plain").mkdir()
    plain = Vault(tmp_path / "plain", pack_target=300_000)
    plain.write(1, entries)
    assert [(stat.name, stat.size) for stat in plain.store.list("")] == [
        (stat.name, stat.size) for stat in spooled.store.list("")
    ]


def test_the_same_input_and_randomness_give_the_same_store(tmp_path: Path) -> None:
    """Nothing but what is passed in decides: what the simulation replays is what happened."""
    stores = []
    for at in range(2):
        folder = tmp_path / str(at)
        folder.mkdir()
        vault = Vault(folder, ambient=Seeded(3), pack_target=200_000)
        first = vault.write(1, {"a": rows(20_000), "b": noise(300_000)})
        vault.write(2, {"a": rows(20_100), "b": noise(300_000)}, first)
        stores.append({stat.name: vault.store.get(stat.name) for stat in vault.store.list("")})
    assert stores[0] == stores[1]


def test_an_entry_that_is_not_finished_breaks_the_part(vault: Vault) -> None:
    """Leaving the block without `finish`, or by an error, keeps nothing: seal refuses."""
    writer = vault.writer(1)
    with writer.entry("a") as entry:
        entry.write(b"half")
    with pytest.raises(Misuse, match="entry a was not finished"):
        writer.seal()

    writer = vault.writer(2)
    with pytest.raises(ValueError, match="engine"), writer.entry("a"):
        raise ValueError("engine")
    with pytest.raises(Misuse, match="broken"):
        writer.seal()


def test_entries_are_one_at_a_time_unique_and_end_once(vault: Vault) -> None:
    """What breaks the order of calls is refused at once."""
    writer = vault.writer(1)
    with writer.entry("a") as entry:
        with pytest.raises(Misuse, match="another is open"), writer.entry("b"):
            pass
        entry.finish()
        with pytest.raises(Misuse, match="finished"):
            entry.finish()
        with pytest.raises(Misuse, match="finished"):
            entry.write(b"more")
    with pytest.raises(Misuse, match="already"), writer.entry("a"):
        pass
    writer.abort()


def test_a_buffer_may_be_reused_after_write(vault: Vault) -> None:
    """Any bytes-like object of any item size is taken, and copied."""
    writer = vault.writer(1)
    buffer = bytearray(b"first")
    with writer.entry("a") as entry:
        entry.write(buffer)
        buffer[:] = b"other"
        entry.write(memoryview(buffer))
        entry.write(memoryview(b"\1\0\0\0\2\0\0\0").cast("I"))
        entry.finish()
    part = vault.seal(writer, 1)
    assert vault.read(part.root) == {"a": b"firstother\1\0\0\0\2\0\0\0"}
