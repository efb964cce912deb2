"""The behaviour that every store has: a class of tests, inherited once for each implementation.

A test class inherits `StoreBehaviour` and gives a fixture `store`: an empty store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from strongroom.storage.base import InvalidName, ObjectExists, ObjectMissing, Stat, Store

MIB = 1 << 20
_PATTERN = bytes(range(251))  # a prime length: a chunk that is moved or swapped shows


def content_of(size: int) -> bytes:
    """`size` bytes in which every place is told from its neighbours."""
    return (_PATTERN * (size // len(_PATTERN) + 1))[:size]


def names(store: Store, prefix: str = "") -> set[str]:
    """The names that the store lists."""
    return {stat.name for stat in store.list(prefix)}


class StoreBehaviour:
    """What the port promises and a test can see."""

    @pytest.mark.parametrize("size", [0, 1, 4096, MIB + 1, 20 * MIB])
    def test_a_put_object_comes_back_whole(self, store: Store, size: int) -> None:
        """Its size is returned and stated, its bytes are the same, also for none and for a large pack."""
        data = content_of(size)
        assert store.put_new("l/pack/1.0/a", data) == size
        assert store.stat("l/pack/1.0/a") == Stat("l/pack/1.0/a", size)
        got = store.get("l/pack/1.0/a")
        assert type(got) is bytes
        assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()

    @pytest.mark.parametrize(
        "pieces",
        [[], [b""], [b"", b"abc", b""], [b"abc", memoryview(b"_defg_")[1:-1]], [content_of(300)] * 5000],
        ids=["none", "an empty one", "empty ones between", "a view", "thousands"],
    )
    def test_pieces_are_put_as_one_object(self, store: Store, pieces: Sequence[bytes | memoryview]) -> None:
        """However many and whatever their lengths, in their order."""
        data = b"".join(pieces)
        assert store.put_new("l/a", pieces) == len(data)
        assert store.get("l/a") == data

    def test_a_view_is_put_as_its_bytes(self, store: Store) -> None:
        """Also a view of something wider than bytes: sizes are in bytes."""
        assert store.put_new("l/a", memoryview(b"abcdefgh").cast("I")) == 8
        assert store.get("l/a") == b"abcdefgh"

    def test_a_taken_name_is_refused_and_keeps_its_bytes(self, store: Store) -> None:
        """Create-only: the second put changes nothing, also where it brings the same bytes."""
        store.put_new("l/grave/1", b"first")
        for second in (b"second", b"first", b""):
            with pytest.raises(ObjectExists):
                store.put_new("l/grave/1", second)
        assert store.get("l/grave/1") == b"first"

    def test_of_eight_puts_at_once_exactly_one_wins(self, store: Store) -> None:
        """And the object is the winner's, whole."""
        everyone = Barrier(8)

        def put(number: int) -> int | None:
            everyone.wait()
            try:
                store.put_new("l/new/folder/contested", bytes([number]) * 100_000)
            except ObjectExists:
                return None
            return number

        for _ in range(3):
            with ThreadPoolExecutor(8) as pool:
                winners = [number for number in pool.map(put, range(8)) if number is not None]
            assert len(winners) == 1
            assert store.get("l/new/folder/contested") == bytes(winners) * 100_000
            store.delete("l/new/folder/contested")

    def test_puts_and_deletes_beside_each_other_lose_nothing(self, store: Store) -> None:
        """Eight threads fill and empty the same folders: what a put returned is there, what a delete returned is gone."""

        def work(number: int) -> None:
            for turn in range(25):
                name = f"l/pack/{turn % 3}.0/{number}"
                store.put_new(name, name.encode())
                assert store.get(name) == name.encode()
                store.delete(name)
                assert store.stat(name) is None

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert names(store) == set()

    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [
            (0, None, b"0123456789"),
            (0, 10, b"0123456789"),
            (0, 99, b"0123456789"),
            (3, None, b"3456789"),
            (3, 4, b"3456"),
            (3, 0, b""),
            (8, 99, b"89"),
            (9, 1, b"9"),
            (10, None, b""),
            (10, 1, b""),
            (99, 5, b""),
            (-4, None, b"6789"),
            (-4, 2, b"67"),
            (-4, 99, b"6789"),
            (-10, None, b"0123456789"),
            (-99, None, b"0123456789"),
            (-99, 3, b"012"),
            (-4, 0, b""),
        ],
    )
    def test_a_range_gives_its_bytes_and_fewer_at_the_end(
        self, store: Store, start: int, length: int | None, expected: bytes
    ) -> None:
        """Every start and length, in the object, at its edges and beyond."""
        store.put_new("l/a", b"0123456789")
        assert store.get("l/a", start, length) == expected

    @pytest.mark.parametrize(("start", "length"), [(0, None), (0, 5), (3, None), (-3, None), (-3, 2), (0, 0)])
    def test_ranges_of_an_empty_object_are_empty(self, store: Store, start: int, length: int | None) -> None:
        """An object without bytes is an object all the same."""
        store.put_new("l/a", b"")
        assert store.get("l/a", start, length) == b""

    @pytest.mark.parametrize(("start", "length"), [(0, None), (0, 0), (5, 1), (-5, None)])
    def test_getting_a_missing_object_says_so(self, store: Store, start: int, length: int | None) -> None:
        """Whatever the range; also where the name is the folder of another."""
        store.put_new("l/folder/a", b"a")
        for name in ("l/missing", "nowhere/at/all", "l/folder"):
            with pytest.raises(ObjectMissing):
                store.get(name, start, length)

    def test_a_negative_length_is_a_defect_of_the_caller(self, store: Store) -> None:
        """It is never taken for "to the end" or "nothing"."""
        store.put_new("l/a", b"abc")
        with pytest.raises(ValueError, match="negative"):
            store.get("l/a", 0, -1)

    def test_stat_tells_what_is_there_now(self, store: Store) -> None:
        """None before, None for a folder, its size after, None after its removal."""
        assert store.stat("l/a/b") is None
        store.put_new("l/a/b", b"abc")
        assert store.stat("l/a") is None
        assert store.stat("l/a/b") == Stat("l/a/b", 3)
        store.delete("l/a/b")
        assert store.stat("l/a/b") is None

    def test_a_deleted_object_is_gone_and_its_name_is_free(self, store: Store) -> None:
        """A name may be put again: the store remembers nothing of it."""
        store.put_new("l/a", b"one")
        store.delete("l/a")
        with pytest.raises(ObjectMissing):
            store.get("l/a")
        store.put_new("l/a", b"two")
        assert store.get("l/a") == b"two"

    def test_deleting_what_is_missing_is_no_error(self, store: Store) -> None:
        """A repeated delete, a name that never was, a folder that never was; and none of it harms a neighbour."""
        store.put_new("l/a/b", b"abc")
        store.put_new("l/a/c", b"def")
        store.delete("l/a/b")
        for name in ("l/a/b", "l/a/never", "never/was/here", "l/a"):
            store.delete(name)
            store.delete_many([name, name])
        assert store.get("l/a/c") == b"def"

    def test_a_bulk_delete_removes_all_it_names_and_nothing_else(self, store: Store) -> None:
        """Over several folders, with names that are missing, and a name given twice."""
        there = [f"l/pack/{seq}.0/{number}" for seq in range(3) for number in range(4)]
        for name in there:
            store.put_new(name, b"x")
        going = [*there[:7], "l/pack/0.0/missing", "other/missing", there[0]]
        store.delete_many(going)
        assert names(store) == set(there[7:])
        assert all(store.stat(name) is None for name in going)

    def test_a_bulk_delete_of_nothing_does_nothing(self, store: Store) -> None:
        """An empty batch is a batch."""
        store.put_new("l/a", b"x")
        store.delete_many([])
        assert names(store) == {"l/a"}

    def test_a_listing_holds_exactly_what_lies_below_its_prefix(self, store: Store) -> None:
        """With sizes; a prefix is whole parts, so `l1/` does not find `l10/…`."""
        for name in ("l1/pack/1.0/a", "l1/pack/10.0/b", "l1/manifest/1.0/c", "l10/pack/1.0/d", "owner/1"):
            store.put_new(name, name.encode())
        assert set(store.list("l1/pack/1.0/")) == {Stat("l1/pack/1.0/a", 13)}
        assert names(store, "l1/pack/") == {"l1/pack/1.0/a", "l1/pack/10.0/b"}
        assert names(store, "l1/") == {"l1/pack/1.0/a", "l1/pack/10.0/b", "l1/manifest/1.0/c"}
        assert len(names(store)) == 5
        assert names(store, "nothing/here/") == set()

    def test_a_listing_of_thousands_is_complete(self, store: Store) -> None:
        """Each name once, beyond any page of the store; and one bulk delete takes them all."""
        put = [f"l/pack/{number % 7}.0/{number:05}" for number in range(2500)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: store.put_new(name, b"x"), put))
        listed = [stat.name for stat in store.list("l/")]
        assert len(listed) == len(put)
        assert set(listed) == set(put)
        store.delete_many(put)
        assert names(store) == set()

    def test_letters_that_differ_in_case_are_different_names(self, store: Store) -> None:
        """And every character that a name may hold comes back as it was."""
        put = {"L/a", "l/A", "l/a", "l/.hidden", "l/a-b_c.d", "l/" + "n" * 200, "l/x.tmp"}
        for name in put:
            store.put_new(name, name.encode())
        assert names(store) == put
        assert all(store.get(name) == name.encode() for name in put)

    @pytest.mark.parametrize(
        "name",
        ["", "/", "/l/a", "l/a/", "l//a", "l/../a", "..", "l/./a", "l/a b", "l/ä", "l/a\n", "l\\a", "l/a\0", "l/" + "n" * 201],
    )
    def test_a_name_that_is_none_is_refused_by_every_method(self, store: Store, name: str) -> None:
        """Before anything happens: nothing is put, and of a bulk delete nothing goes."""
        store.put_new("l/a", b"x")
        for call in (
            lambda: store.put_new(name, b"x"),
            lambda: store.get(name),
            lambda: store.delete(name),
            lambda: store.delete_many(["l/a", name]),
            lambda: store.stat(name),
        ):
            with pytest.raises(InvalidName):
                call()
        assert names(store) == {"l/a"}

    @pytest.mark.parametrize("prefix", ["l", "/", "l//", "../", "l/pack", "l/ö/"])
    def test_a_prefix_of_broken_parts_is_refused(self, store: Store, prefix: str) -> None:
        """At the call, not at the first step through the listing."""
        with pytest.raises(InvalidName):
            store.list(prefix)

    def test_nothing_stays_behind_a_delete(self, store: Store) -> None:
        """So that a receipt may say freed."""
        assert store.keeps_deleted_bytes() is None
