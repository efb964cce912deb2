"""Objects as files of a directory, durable by fsync of file and folder.

Layout below the directory: `objects/<name>` (folders 0700, files 0600) and `.strongroom-partial/<session>/`, where a
put is written before it gets its name. Nothing else of the directory is looked at or touched.

Order of effects of a put:     temporary file written and fsynced → linked to its name (fails if taken) → temporary name
                               unlinked → folder fsynced. Every folder above was fsynced into its own parent before.
Order of effects of a removal: names unlinked → folder fsynced → the folder removed if it is empty now.

Several processes may use one directory. What makes it safe to remove empty folders beside puts: a put links into a
*descriptor* of its folder that this process has proven durable. A folder that was removed meanwhile refuses the link
even if another of the same name took its place, and a folder that holds something cannot be removed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from strongroom.storage._bytes import pieces_of, size_of, span
from strongroom.storage.base import (
    InvalidName,
    ObjectExists,
    ObjectMissing,
    Stat,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
    check_name,
    check_prefix,
)

_OBJECTS = "objects"
_PARTIAL = ".strongroom-partial"
_SESSION = re.compile(r"[0-9a-f]{32}\Z")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDERS_KEPT_OPEN = 64
_PIECES_PER_WRITE = 1024  # IOV_MAX of Linux
_TRIES = 100  # each lost one means that another worker removed the empty folder in between

_log = logging.getLogger(__name__)


class _Folder:
    """An open descriptor of a folder, closed with the last reference to it."""

    def __init__(self, descriptor: int) -> None:
        self.fd = descriptor

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:  # bound: `os` may be gone at the very end
        _close(self.fd)


class DirectoryStore:
    """A directory of this machine, or a mounted one that keeps POSIX promises (link, fsync and flock).

    Raises StoreDenied, StoreFull or StoreUnavailable with a sentence that says what to do. Symbolic links below the
    directory are never followed; the directory itself may be reached through one.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path).absolute()
        self._lock = threading.Lock()
        self._durable: OrderedDict[tuple[str, ...], _Folder] = OrderedDict()
        with self._errors():
            _make_durable(self._path)
            root = _Folder(os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            self._objects = _open_folder(root, _OBJECTS, create=True)
            partial = _open_folder(root, _PARTIAL, create=True)
            os.fsync(root.fd)
            _remove_abandoned(partial)
            self._partial = partial
            self._session_name, self._session = _new_session(partial)

    def __repr__(self) -> str:
        return f"DirectoryStore({str(self._path)!r})"

    def put_new(self, name: str, data: bytes | memoryview | Sequence[bytes | memoryview]) -> int:
        *folders, last = check_name(name).split("/")
        pieces = pieces_of(data)
        temporary = secrets.token_hex(16)
        with self._errors(name):
            try:
                _write_durably(self._session, temporary, pieces)
                self._link(temporary, tuple(folders), last)
            except FileExistsError:
                raise ObjectExists(f"{name} is there already") from None
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=self._session.fd)
        return size_of(pieces)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        *folders, last = check_name(name).split("/")
        with self._errors(name):
            folder = self._existing(folders)
            if folder is None or _kind(folder, last) != stat.S_IFREG:
                raise ObjectMissing(f"there is no {name}")
            try:
                descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder.fd)
            except FileNotFoundError:
                raise ObjectMissing(f"there is no {name}") from None
            try:
                return _read(descriptor, *span(os.fstat(descriptor).st_size, start, length))
            finally:
                os.close(descriptor)

    def delete(self, name: str) -> None:
        self.delete_many([name])

    def delete_many(self, names: Sequence[str]) -> None:
        """As the port says; each folder is fsynced once, however many of its objects go."""
        by_folder: dict[tuple[str, ...], list[str]] = {}
        for name in names:
            *folders, last = check_name(name).split("/")
            by_folder.setdefault(tuple(folders), []).append(last)
        for folders_of, lasts in by_folder.items():
            with self._errors("/".join((*folders_of, lasts[0]))):
                self._unlink(folders_of, lasts)

    def stat(self, name: str) -> Stat | None:
        *folders, last = check_name(name).split("/")
        with self._errors(name):
            folder = self._existing(folders)
            if folder is None or _kind(folder, last) != stat.S_IFREG:
                return None
            try:
                return Stat(name, os.stat(last, dir_fd=folder.fd, follow_symlinks=False).st_size)
            except FileNotFoundError:
                return None

    def list(self, prefix: str) -> Iterator[Stat]:
        """As the port says. Folders that vanish and objects that come or go meanwhile may or may not be seen."""
        return self._walk(tuple(check_prefix(prefix).split("/")[:-1]))

    def keeps_deleted_bytes(self) -> str | None:
        """None: an unlinked file is gone. A snapshot that the file system itself makes cannot be seen from here."""
        return None

    def close(self) -> None:
        """Lets go of every descriptor; no other method may be called afterwards, nor while one is running."""
        with self._lock:
            self._durable.clear()
        with suppress(OSError):
            os.rmdir(self._session_name, dir_fd=self._partial.fd)
        del self._session, self._partial, self._objects

    # Putting

    def _link(self, temporary: str, folders: tuple[str, ...], last: str) -> None:
        """Gives the written file its name for ever; FileExistsError where the name is taken (and durable)."""
        for _ in range(_TRIES):
            try:
                folder = self._durable_folder(folders)
                try:
                    os.link(temporary, last, src_dir_fd=self._session.fd, dst_dir_fd=folder.fd, follow_symlinks=False)
                    os.unlink(temporary, dir_fd=self._session.fd)
                finally:  # also where the name is taken: its putter may not have come to its own fsync yet
                    os.fsync(folder.fd)
                return
            except FileNotFoundError:
                os.stat(temporary, dir_fd=self._session.fd)  # else the whole store was removed under our feet
                self._forget(folders)
        raise StoreUnavailable(f"the folder of {last} was removed {_TRIES} times while it was put: try again")

    def _durable_folder(self, folders: tuple[str, ...]) -> _Folder:
        """The folder, open, made where it is missing, with every entry on the way to it fsynced by this process."""
        if not folders:
            return self._objects
        with self._lock:
            known = self._durable.get(folders)
            if known is not None:
                self._durable.move_to_end(folders)
                return known
        parent = self._durable_folder(folders[:-1])
        folder = _open_folder(parent, folders[-1], create=True)
        os.fsync(parent.fd)  # even if another made the folder: it may not have come to its own fsync yet
        with self._lock:
            self._durable[folders] = folder
            while len(self._durable) > _FOLDERS_KEPT_OPEN:
                self._durable.popitem(last=False)
        return folder

    def _forget(self, folders: tuple[str, ...]) -> None:
        with self._lock:
            for depth in range(1, len(folders) + 1):
                self._durable.pop(folders[:depth], None)

    # Removing

    def _unlink(self, folders: tuple[str, ...], lasts: Sequence[str]) -> None:
        folder = self._existing(folders)
        if folder is None:  # another removed the folder: this makes its removal durable, and so that of all it held
            self._sync_living_above(folders)
            return
        for last in lasts:
            if _kind(folder, last) == stat.S_IFREG:
                with suppress(FileNotFoundError):
                    os.unlink(last, dir_fd=folder.fd)
        os.fsync(folder.fd)  # even if all were missing: whoever removed them may not have come to its own fsync yet
        if os.fstat(folder.fd).st_nlink == 0:
            self._sync_living_above(folders)
        else:
            self._prune(folders)

    def _sync_living_above(self, folders: tuple[str, ...]) -> None:
        for depth in range(len(folders) - 1, -1, -1):
            folder = self._existing(folders[:depth])
            if folder is not None:
                os.fsync(folder.fd)
                if os.fstat(folder.fd).st_nlink:
                    return

    def _prune(self, folders: tuple[str, ...]) -> None:
        """Removes the folder and those above it as far as they are empty. Not fsynced: an empty folder harms nobody."""
        for depth in range(len(folders), 0, -1):
            above = self._existing(folders[: depth - 1])
            if above is None:
                return
            try:
                os.rmdir(folders[depth - 1], dir_fd=above.fd)
            except OSError:  # it holds something, is gone already or may not go: it may stay
                return
            self._forget(folders[:depth])

    # Looking

    def _existing(self, folders: Sequence[str]) -> _Folder | None:
        """The folder as it is now, or None. Never from the folders kept open: those may have been replaced."""
        folder = self._objects
        for part in folders:
            try:
                folder = _open_folder(folder, part, create=False)
            except (FileNotFoundError, InvalidName):
                return None
        return folder

    def _walk(self, folders: tuple[str, ...]) -> Iterator[Stat]:
        with self._errors("/".join(folders)):
            folder = self._existing(folders)
            files, below = _contents(folder) if folder is not None else ([], [])
        del folder  # nothing stays open while the caller works
        for name, size in files:
            full = "/".join((*folders, name))
            try:
                yield Stat(check_name(full), size)
            except InvalidName:
                _log.warning("%r leaves out a file that is no object: %r", self, full)
        for name in below:
            yield from self._walk((*folders, name))

    @contextmanager
    def _errors(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _translated(error, str(self._path), name) from error


def _translated(error: OSError, path: str, name: str) -> StoreError:
    where = f"the directory store {path}" + (f" ({name})" if name else "")
    reason = os.strerror(error.errno) if error.errno else str(error)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StoreFull(f"{where} has no room left: make room or raise the quota; deleting needs none ({reason})")
        case errno.EACCES | errno.EPERM:
            return StoreDenied(f"{where} refuses access: give it to the user that runs Strongroom ({reason})")
        case errno.EROFS:
            return StoreDenied(f"{where} is mounted read-only: look at the disk, then mount it writable ({reason})")
        case errno.ELOOP:
            return StoreDenied(f"{where} holds a symbolic link, which is never followed: replace it by what it names")
        case errno.EFBIG:
            return StoreDenied(f"{where} limits the size of files: raise the limit, see ulimit -f ({reason})")
    return StoreUnavailable(f"{where} does not answer: look at the disk and its mount ({reason})")


def _open_folder(parent: _Folder, part: str, *, create: bool) -> _Folder:
    """The folder below `parent`; FileNotFoundError, InvalidName where a file is in its place, ELOOP where a link is."""
    if create:
        with suppress(FileExistsError):
            os.mkdir(part, 0o700, dir_fd=parent.fd)
    try:
        return _Folder(os.open(part, _FOLDER_FLAGS, dir_fd=parent.fd))
    except NotADirectoryError:
        _kind(parent, part)
        raise InvalidName(f"{part} is an object and cannot be a folder of names as well") from None


def _kind(folder: _Folder, last: str) -> int:
    """The S_IF… of what is there, 0 if nothing is. ELOOP for a symbolic link: it must not pass for an absent object."""
    try:
        kind = stat.S_IFMT(os.stat(last, dir_fd=folder.fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return 0
    if kind == stat.S_IFLNK:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return kind


def _contents(folder: _Folder) -> tuple[list[tuple[str, int]], list[str]]:
    """Name and size of the files, and the names of the folders. Links are left out."""
    files: list[tuple[str, int]] = []
    below: list[str] = []
    with os.scandir(folder.fd) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    files.append((entry.name, entry.stat(follow_symlinks=False).st_size))
    return files, below


def _make_durable(path: Path) -> None:
    """Makes the folder and those above it that are missing, each fsynced into its parent."""
    if not path.is_dir():
        _make_durable(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        parent = _Folder(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        os.fsync(parent.fd)


def _write_durably(session: _Folder, temporary: str, pieces: list[memoryview]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=session.fd)
    try:
        _write_all(descriptor, pieces)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, pieces: list[memoryview]) -> None:
    for first in range(0, len(pieces), _PIECES_PER_WRITE):
        batch = pieces[first : first + _PIECES_PER_WRITE]
        while batch:
            written = os.writev(descriptor, batch)
            while batch and written >= batch[0].nbytes:
                written -= batch.pop(0).nbytes
            if written:
                batch[0] = batch[0][written:]


def _read(descriptor: int, first: int, end: int) -> bytes:
    """The bytes [first, end): one read and no copy, unless the system gives less at a time."""
    read = os.pread(descriptor, end - first, first)
    if len(read) == end - first:
        return read
    pieces = [read]
    while pieces[-1] and first + sum(map(len, pieces)) < end:
        at = first + sum(map(len, pieces))
        pieces.append(os.pread(descriptor, end - at, at))
    return b"".join(pieces)


def _new_session(partial: _Folder) -> tuple[str, _Folder]:
    """A folder of our own for unfinished puts, locked for as long as its descriptor is open."""
    for _ in range(_TRIES):
        name = secrets.token_hex(16)
        os.mkdir(name, 0o700, dir_fd=partial.fd)
        with suppress(FileNotFoundError, BlockingIOError):  # one that opens the store now may take it for abandoned
            session = _open_folder(partial, name, create=False)
            fcntl.flock(session.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(session.fd).st_nlink:
                return name, session
    raise StoreUnavailable("no folder for unfinished puts could be kept: is somebody removing them?")


def _remove_abandoned(partial: _Folder) -> None:
    """Removes the unfinished puts of processes that are gone: those whose session nobody holds locked."""
    _, sessions = _contents(partial)
    for name in filter(_SESSION.match, sessions):
        with suppress(FileNotFoundError, BlockingIOError):
            session = _open_folder(partial, name, create=False)
            fcntl.flock(session.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for temporary in filter(_SESSION.match, os.listdir(session.fd)):
                os.unlink(temporary, dir_fd=session.fd)
            with suppress(OSError):  # something that is not ours is in there: it stays
                os.rmdir(name, dir_fd=partial.fd)
