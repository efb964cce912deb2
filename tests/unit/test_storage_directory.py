"""The directory store: its behaviour, its order of effects, and what crashes, links and errors do to it."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from strongroom.storage.base import (
    InvalidName,
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from strongroom.storage.directory import DirectoryStore
from support.stores import MIB, StoreBehaviour, content_of, names

_EFFECTS = ("mkdir", "writev", "link", "unlink", "rmdir", "fsync")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DirectoryStore]:
    store = DirectoryStore(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def effects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Every effect on the disk from now on, in order, as "what path-in-the-store"; a temporary file is `new`."""
    seen: list[str] = []
    for effect in _EFFECTS:
        monkeypatch.setattr(os, effect, _recorded(effect, getattr(os, effect), tmp_path / "store", seen))
    return seen


def _recorded(effect: str, real: Callable[..., Any], root: Path, seen: list[str]) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)  # one that fails is no effect
        target, folder = (args[1], kwargs["dst_dir_fd"]) if effect == "link" else (args[0], kwargs.get("dir_fd"))
        path = str(target) if folder is None else f"{_path_of(folder)}/{target}"
        path = _path_of(target) if isinstance(target, int) else path
        short = path.removeprefix(f"{root}").removeprefix("/objects").lstrip("/") or "."
        seen.append(f"{effect} {'new' if short.startswith('.strongroom-partial') else short}")
        return result

    return recorded


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or not path.is_dir()}


class TestDirectoryStore(StoreBehaviour):
    """It behaves as every store does."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[DirectoryStore]:
        store = DirectoryStore(tmp_path / "behaviour")
        yield store
        store.close()
        left = list((tmp_path / "behaviour/.strongroom-partial").rglob("*"))
        assert not left, "an unfinished put was left behind"


class TestOrderOfEffects:
    """What a power cut at any moment may find, read off the order of the calls."""

    def test_a_put_is_durable_before_it_has_a_name_and_when_it_returns(self, store: DirectoryStore, effects: list[str]) -> None:
        """The file is fsynced before the link, its folder after it, every new folder in its parent before."""
        store.put_new("l/pack/1.0/a", b"x")
        assert effects == [
            "writev new",
            "fsync new",
            "mkdir l",
            "fsync .",
            "mkdir l/pack",
            "fsync l",
            "mkdir l/pack/1.0",
            "fsync l/pack",
            "link l/pack/1.0/a",
            "unlink new",
            "fsync l/pack/1.0",
        ]

    def test_a_second_put_syncs_its_file_and_its_folder_only(self, store: DirectoryStore, effects: list[str]) -> None:
        """What is known durable is not paid for again."""
        store.put_new("l/pack/1.0/a", b"x")
        effects.clear()
        store.put_new("l/pack/1.0/b", b"x")
        assert effects == ["writev new", "fsync new", "link l/pack/1.0/b", "unlink new", "fsync l/pack/1.0"]

    def test_a_folder_made_by_another_process_is_made_durable_by_us_too(
        self, store: DirectoryStore, effects: list[str], tmp_path: Path
    ) -> None:
        """The other may not have come to its own fsync when our put returns."""
        (tmp_path / "store/objects/l").mkdir()
        effects.clear()
        store.put_new("l/a", b"x")
        assert effects == ["writev new", "fsync new", "fsync .", "link l/a", "unlink new", "fsync l"]

    def test_exists_is_said_only_of_what_is_durable(self, store: DirectoryStore, effects: list[str]) -> None:
        """The winner may not have come to its fsync yet: a grave that "exists" must outlive a power cut."""
        store.put_new("l/grave/1", b"x")
        effects.clear()
        with pytest.raises(ObjectExists):
            store.put_new("l/grave/1", b"y")
        assert effects == ["writev new", "fsync new", "fsync l/grave", "unlink new"]

    def test_a_removal_is_durable_when_it_returns_and_before_its_folder_goes(
        self, store: DirectoryStore, effects: list[str]
    ) -> None:
        """Unlink, fsync of the folder, and only then are empty folders removed."""
        store.put_new("l/pack/1.0/a", b"x")
        store.put_new("l/closed", b"x")
        effects.clear()
        store.delete("l/pack/1.0/a")
        assert effects == ["unlink l/pack/1.0/a", "fsync l/pack/1.0", "rmdir l/pack/1.0", "rmdir l/pack"]

    def test_a_bulk_delete_syncs_each_folder_once(self, store: DirectoryStore, effects: list[str]) -> None:
        """However many objects go."""
        every = [f"l/{folder}/{number}" for folder in ("1", "2") for number in range(5)]
        for name in [*every, "l/1/stays", "l/2/stays"]:
            store.put_new(name, b"x")
        effects.clear()
        store.delete_many(every)
        assert [effect for effect in effects if effect.startswith("fsync")] == ["fsync l/1", "fsync l/2"]
        assert effects.index("fsync l/1") == effects.index("unlink l/1/4") + 1

    def test_removed_is_said_only_of_what_is_durably_gone(self, store: DirectoryStore, effects: list[str]) -> None:
        """A name that is missing may have been unlinked a moment ago by another who has not come to its fsync."""
        store.put_new("l/1/stays", b"x")
        effects.clear()
        store.delete("l/1/missing")
        assert effects == ["fsync l/1"]

    def test_removed_with_its_folder_is_durable_too(self, store: DirectoryStore, effects: list[str]) -> None:
        """Then it is the nearest folder that lives which makes it so."""
        store.put_new("l/closed", b"x")
        effects.clear()
        store.delete("l/pack/1.0/missing")
        assert effects == ["fsync l"]

    def test_a_folder_that_dies_during_a_removal_hands_its_durability_up(
        self, store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effects: list[str]
    ) -> None:
        """Another removes the folder between our unlink and our fsync of it."""
        store.put_new("l/closed", b"x")
        store.put_new("l/1/a", b"x")
        effects.clear()
        recorded = os.unlink

        def unlink_and_lose_the_folder(*args: Any, **kwargs: Any) -> None:
            recorded(*args, **kwargs)
            (tmp_path / "store/objects/l/1").rmdir()

        monkeypatch.setattr(os, "unlink", unlink_and_lose_the_folder)
        store.delete("l/1/a")
        assert effects[-1] == "fsync l"

    def test_a_put_into_a_folder_that_another_removed_and_made_again_is_durable(
        self, store: DirectoryStore, tmp_path: Path, effects: list[str]
    ) -> None:
        """The new folder of the same name is not the one that was proven durable: all is proven anew."""
        store.put_new("l/1/a", b"x")
        (tmp_path / "store/objects/l/1/a").unlink()
        (tmp_path / "store/objects/l/1").rmdir()
        (tmp_path / "store/objects/l/1").mkdir()
        effects.clear()
        store.put_new("l/1/b", b"y")
        assert effects.index("fsync l") < effects.index("link l/1/b") < effects.index("fsync l/1", 4)
        assert store.get("l/1/b") == b"y"

    def test_opening_makes_its_folders_durable(self, tmp_path: Path, effects: list[str]) -> None:
        """And those above it that were missing."""
        DirectoryStore(tmp_path / "store/deep/er").close()
        made = ["mkdir .", "mkdir deep", "fsync .", "mkdir deep/er", "fsync deep", "mkdir deep/er/objects", "fsync deep/er"]
        assert [effect for effect in effects if effect in made] == made

    @pytest.mark.parametrize("step", range(14))
    def test_a_process_killed_at_any_step_of_a_put_leaves_all_or_nothing(self, tmp_path: Path, step: int) -> None:
        """And the next opening removes what it left: no temporary file and no second name of the object."""
        root = tmp_path / "store"
        finished = _killed_at(step, lambda: DirectoryStore(root).put_new("l/pack/1.0/a", content_of(MIB)), tmp_path)
        store = DirectoryStore(root)
        found = store.stat("l/pack/1.0/a")
        if found is None:
            assert not finished
            store.put_new("l/pack/1.0/a", content_of(MIB))
        assert store.get("l/pack/1.0/a") == content_of(MIB)
        store.close()
        assert _files(root) == {"objects/l/pack/1.0/a"}
        assert (root / "objects/l/pack/1.0/a").stat().st_nlink == 1

    @pytest.mark.parametrize("step", range(8))
    def test_a_process_killed_at_any_step_of_a_removal_can_be_followed(self, tmp_path: Path, step: int) -> None:
        """The same removal again ends as one that was never cut."""
        root = tmp_path / "store"
        going = ["l/1/a", "l/1/b", "l/2/c"]
        store = DirectoryStore(root)
        for name in [*going, "l/2/stays"]:
            store.put_new(name, b"x")
        _killed_at(step, lambda: store.delete_many(going), tmp_path)
        store.delete_many(going)
        assert names(store) == {"l/2/stays"}
        store.close()


def _killed_at(step: int, work: Callable[[], Any], scratch: Path) -> bool:
    """Does the work in a process that dies without a word before its effect number `step`; True if it came through."""
    child = os.fork()
    if child == 0:
        left = iter(range(step))
        for effect in _EFFECTS:
            real = getattr(os, effect)

            def counted(*args: Any, real: Callable[..., Any] = real, **kwargs: Any) -> Any:
                if next(left, None) is None:
                    os._exit(9)
                return real(*args, **kwargs)

            setattr(os, effect, counted)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return code == 0


class TestBesideOthers:
    """Several processes and threads on one directory."""

    def test_opening_leaves_the_unfinished_puts_of_the_living(
        self, store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A second worker that starts while the first is putting takes nothing from it."""
        real = os.link

        def open_another_first(*args: Any, **kwargs: Any) -> None:
            DirectoryStore(tmp_path / "store").close()
            real(*args, **kwargs)

        monkeypatch.setattr(os, "link", open_another_first)
        assert store.put_new("l/a", b"x") == 1
        assert store.get("l/a") == b"x"

    def test_opening_removes_the_unfinished_puts_of_the_dead_and_nothing_else(self, tmp_path: Path) -> None:
        """Only our own names in our own folder; what is foreign stays, and so does every object."""
        root, session = tmp_path / "store", "0123456789abcdef" * 2
        DirectoryStore(root).close()
        kept = [f".strongroom-partial/{'f' * 32}/notes.txt", ".strongroom-partial/other", f"tmp/{session}/{session}", "a.txt"]
        for name in [*kept, f".strongroom-partial/{session}/{session}", f"objects/{session}/{session}"]:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"x")
        (root / ".strongroom-partial" / ("e" * 32)).symlink_to(root / "tmp")
        DirectoryStore(root).close()
        assert _files(root) == {*kept, f"objects/{session}/{session}", f".strongroom-partial/{'e' * 32}"}

    def test_two_openings_put_and_remove_in_the_same_folders(self, store: DirectoryStore, tmp_path: Path) -> None:
        """Each removes folders that the other still holds open; no put is lost and none fails."""
        other = DirectoryStore(tmp_path / "store")

        def work(number: int) -> None:
            mine = (store, other)[number % 2]
            for turn in range(100):
                mine.put_new(f"l/pack/{turn % 2}/{number}", b"x")
                assert (store, other)[turn % 2].get(f"l/pack/{turn % 2}/{number}") == b"x"
                mine.delete(f"l/pack/{turn % 2}/{number}")

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        assert names(store) == set()
        other.close()

    def test_an_object_is_never_seen_in_part(self, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """While it is written there is nothing under its name, nor in a listing; however little the system takes at once."""
        real = os.writev

        def look_first(descriptor: int, pieces: list[memoryview]) -> int:
            assert store.stat("l/a") is None
            assert names(store) == set()
            return real(descriptor, [pieces[0][:2]])

        monkeypatch.setattr(os, "writev", look_first)
        store.put_new("l/a", [b"abc", b"def", b"ghi"])
        assert store.get("l/a") == b"abcdefghi"

    def test_a_get_is_whole_however_little_the_system_gives_at_once(
        self, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And ends where the file ends, should something cut it meanwhile."""
        store.put_new("l/a", b"0123456789")
        real = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, min(size, 3), at))
        assert store.get("l/a", 1, 8) == b"12345678"
        monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, min(size, 3), at) if at < 4 else b"")
        assert store.get("l/a") == b"012345"

    def test_an_object_that_goes_while_it_is_looked_at_is_missing(
        self, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A delete beside a get or a stat makes it an absent object, not an error of the disk."""
        real = os.stat

        def lose_it(*args: Any, **kwargs: Any) -> os.stat_result:
            found = real(*args, **kwargs)
            (tmp_path / "store/objects/l/a").unlink(missing_ok=True)
            return found

        for look, absent in ((store.stat, None), (store.get, ObjectMissing)):
            store.put_new("l/a", b"x")
            with monkeypatch.context() as racing:
                racing.setattr(os, "stat", lose_it)
                if absent is None:
                    assert look("l/a") is None
                else:
                    with pytest.raises(absent):
                        look("l/a")

    def test_an_opening_that_another_takes_for_abandoned_begins_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between making our folder for unfinished puts and locking it, another may lock or remove it."""
        real, calls = fcntl.flock, itertools.count()

        def contested(descriptor: int, operation: int) -> None:
            call = next(calls)
            if call == 0:
                raise BlockingIOError
            if call == 1:
                os.rmdir(_path_of(descriptor))
            real(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", contested)
        store = DirectoryStore(tmp_path / "store")
        assert next(calls) == 3
        assert store.put_new("l/a", b"x") == 1
        store.close()

    def test_no_descriptor_leaks(self, store: DirectoryStore, tmp_path: Path) -> None:
        """Over hundreds of folders a bounded number stays open, and none after close."""
        before = _open_descriptors()
        other = DirectoryStore(tmp_path / "store")
        for number in range(200):
            other.put_new(f"l/pack/{number}/a", b"x")
            other.get(f"l/pack/{number}/a", 0, 1)
        iterator = other.list("")
        next(iterator)
        assert _open_descriptors() - before < 80
        other.close()
        del other, iterator
        assert _open_descriptors() == before


class TestWhatIsOnDisk:
    """Rights, links and foreign files."""

    def test_files_and_folders_are_the_owners_alone(self, store: DirectoryStore, tmp_path: Path) -> None:
        """Whatever the umask: 0600 and 0700, the unfinished ones too."""
        store.put_new("l/pack/a", b"x")
        for path in (tmp_path / "store", *(tmp_path / "store").rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path

    def test_folders_that_hold_nothing_go_with_their_last_object(self, store: DirectoryStore, tmp_path: Path) -> None:
        """Years of deleted backups leave no empty folders; those that hold something stay."""
        store.put_new("l/pack/1.0/a", b"x")
        store.put_new("l/manifest/1.0/b", b"x")
        store.delete("l/pack/1.0/a")
        assert not (tmp_path / "store/objects/l/pack").exists()
        store.delete("l/manifest/1.0/b")
        assert list((tmp_path / "store/objects").iterdir()) == []

    def test_a_link_in_place_of_a_folder_is_refused(self, store: DirectoryStore, tmp_path: Path) -> None:
        """Nothing outside is read, written or removed through it, and its objects do not pass for absent."""
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "a").write_bytes(b"precious")
        (tmp_path / "store/objects/l").symlink_to(outside)
        self._refused_everywhere(store)
        assert _files(outside) == {"a"}

    def test_a_link_in_place_of_an_object_is_refused(self, store: DirectoryStore, tmp_path: Path) -> None:
        """Not even removed: whoever put it there should be looked for."""
        outside = tmp_path / "precious"
        outside.write_bytes(b"precious")
        store.put_new("l/b", b"x")
        (tmp_path / "store/objects/l/a").symlink_to(outside)
        for call in (lambda: store.get("l/a"), lambda: store.stat("l/a"), lambda: store.delete("l/a")):
            with pytest.raises(StoreDenied, match="symbolic link"):
                call()
        with pytest.raises(ObjectExists):
            store.put_new("l/a", b"x")
        assert names(store) == {"l/b"}
        assert outside.read_bytes() == b"precious"

    def _refused_everywhere(self, store: DirectoryStore) -> None:
        for call in (
            lambda: store.get("l/a"),
            lambda: store.put_new("l/b", b"x"),
            lambda: store.delete("l/a"),
            lambda: store.stat("l/a"),
            lambda: list(store.list("l/")),
        ):
            with pytest.raises(StoreDenied, match="symbolic link"):
                call()
        assert names(store) == set()

    def test_a_listing_leaves_out_and_logs_foreign_files(
        self, store: DirectoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """They can be no objects, and must not end a listing."""
        store.put_new("l/a", b"x")
        (tmp_path / "store/objects/l/not an object").write_bytes(b"x")
        os.mkfifo(tmp_path / "store/objects/l/pipe")
        assert names(store) == {"l/a"}
        assert "not an object" in caplog.text

    def test_an_object_is_no_folder(self, store: DirectoryStore) -> None:
        """`a` and `a/b` cannot both be: the put is refused, looking finds nothing, removing removes nothing."""
        store.put_new("l/a", b"x")
        with pytest.raises(InvalidName, match="cannot be a folder"):
            store.put_new("l/a/b", b"y")
        assert store.stat("l/a/b") is None
        with pytest.raises(ObjectMissing):
            store.get("l/a/b")
        store.delete("l/a/b")
        assert names(store) == {"l/a"}


class TestErrors:
    """What the system says becomes one of ours, with a sentence that says what to do."""

    @pytest.mark.parametrize(
        ("number", "expected", "advice"),
        [
            (errno.ENOSPC, StoreFull, "make room"),
            (errno.EDQUOT, StoreFull, "make room"),
            (errno.EACCES, StoreDenied, "refuses access"),
            (errno.EPERM, StoreDenied, "refuses access"),
            (errno.EROFS, StoreDenied, "read-only"),
            (errno.EFBIG, StoreDenied, "raise the limit"),
            (errno.EIO, StoreUnavailable, "look at the disk"),
            (errno.EMFILE, StoreUnavailable, "look at the disk"),
        ],
        ids=errno.errorcode.get,
    )
    @pytest.mark.parametrize("effect", ["writev", "fsync", "link"])
    def test_an_error_of_a_put_leaves_nothing_of_it_behind(
        self,
        store: DirectoryStore,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        effect: str,
        number: int,
        expected: type[StoreError],
        advice: str,
    ) -> None:
        """Neither a temporary file (room is short as it is) nor an object; and the next put works."""
        with monkeypatch.context() as broken:
            broken.setattr(os, effect, _raising(number))
            with pytest.raises(expected, match=advice) as caught:
                store.put_new("l/a", b"x")
            assert str(tmp_path / "store") in str(caught.value)
        assert _files(tmp_path / "store") == set()
        assert store.put_new("l/a", b"x") == 1

    @pytest.mark.parametrize("effect", ["unlink", "fsync"])
    def test_an_error_of_a_removal_is_said(self, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, effect: str) -> None:
        """A removal that is not durable is none."""
        store.put_new("l/a", b"x")
        with monkeypatch.context() as broken:
            broken.setattr(os, effect, _raising(errno.EIO))
            with pytest.raises(StoreUnavailable):
                store.delete("l/a")
        store.delete("l/a")
        assert store.stat("l/a") is None

    def test_a_file_in_place_of_the_directory_is_refused(self, tmp_path: Path) -> None:
        """With the path in the sentence."""
        (tmp_path / "file").write_bytes(b"x")
        with pytest.raises(StoreError, match="file"):
            DirectoryStore(tmp_path / "file")

    def test_a_directory_that_was_removed_under_us_is_unavailable(self, tmp_path: Path) -> None:
        """A put does not go on for ever making what vanishes."""
        store = DirectoryStore(tmp_path / "store")
        (tmp_path / "store").rename(tmp_path / "moved")
        assert store.put_new("l/a", b"x") == 1  # it goes by descriptor: the directory moved, that is all
        (tmp_path / "moved/objects/l/a").unlink()
        for path in sorted((tmp_path / "moved").rglob("*"), reverse=True):
            path.rmdir()
        with pytest.raises(StoreUnavailable):
            store.put_new("l/a", b"x")


def _raising(number: int) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail
