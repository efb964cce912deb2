"""Where a root key comes from: the environment, a file, or a command.

RootKeyError        the key is missing or is none; the text never repeats it (permanent)
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT_KEY_BYTES = 32
_DIGITS = re.compile(rf"[0-9a-fA-F]{{{2 * ROOT_KEY_BYTES}}}")
_COMMAND_SECONDS = 60.0
_MOST_OUTPUT = 4096


class RootKeyError(Exception):
    """A root key cannot be had."""

    permanent = True


@dataclass(frozen=True, slots=True)
class KeySource:
    """One of the three; the environment's digits go before a command, which goes before the file. `name` is the variable's, for
    people. The command is split into words as a shell would, but runs without one; it prints the digits on standard output."""

    name: str
    digits: str | None = field(repr=False)
    command: str | None
    file: Path

    @classmethod
    def of(cls, name: str, environ: Mapping[str, str], file: Path) -> KeySource:
        """From `name`, `name_COMMAND` and `name_FILE`, else `file`. Reads nothing. Raises RootKeyError."""
        digits, command = environ.get(name) or None, environ.get(f"{name}_COMMAND") or None
        if digits is not None and command is not None:
            raise RootKeyError(f"{name} and {name}_COMMAND are both set: give one")
        if command is not None and not _words(name, command):
            raise RootKeyError(f"{name}_COMMAND is empty")
        found = cls(name, digits, command, Path(environ.get(f"{name}_FILE") or file).absolute())
        if digits is not None:
            _understood(name, digits)
        return found

    @property
    def from_file(self) -> bool:
        return self.digits is None and self.command is None

    def read(self) -> bytes | None:
        """The 32 bytes; None if it comes from a file that is not there. Raises RootKeyError."""
        if self.digits is not None:
            return _understood(self.name, self.digits)
        if self.command is not None:
            return _understood(f"what {self.name}_COMMAND prints", _printed(self.name, self.command))
        try:
            text = self.file.read_text("ascii")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise RootKeyError(f"the root key in {self.file} cannot be read: {error}") from error
        if not text.strip():
            raise RootKeyError(f"{self.file} is empty: put the root key back")
        return _understood(f"the file {self.file}", text)

    def write(self, key: bytes) -> bytes:
        """Puts a fresh key into the file, durably, readable by its owner only, in one step; never over one that is there. Raises
        RootKeyError."""
        if len(key) != ROOT_KEY_BYTES:
            raise ValueError(f"a root key has {ROOT_KEY_BYTES} bytes, not {len(key)}")
        path = self.file
        draft = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
                file.write(key.hex() + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # unlike a rename, never replaces a key that another process has just put there
            sync_folder(path.parent)
        except FileExistsError:
            raise RootKeyError(f"{path} has just been made by another process: start again") from None
        except OSError as error:
            raise RootKeyError(f"the root key cannot be written to {path}: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
        return key


def take_over(present: Path, following: Path, retired: Path) -> None:
    """Makes the next key's file the present one; the one before stays as `retired`. Doing it again is no error.

    Order of effects, each durable: the present key gets its second name, then the next one takes the first name in one step. So
    there is a key at any time, and none is lost."""
    if not following.exists():
        return
    if present.read_bytes() != following.read_bytes():
        draft = retired.with_name(f"{retired.name}.{os.getpid()}.new")
        draft.unlink(missing_ok=True)
        os.link(present, draft)
        draft.replace(retired)
        sync_folder(retired.parent)
    following.replace(present)
    sync_folder(present.parent)


def sync_folder(path: Path) -> None:
    """Makes a folder's names durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _words(name: str, command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise RootKeyError(f"{name}_COMMAND cannot be split into words: {error}") from None


def _printed(name: str, command: str) -> str:
    """What the command prints; its standard error goes to ours. Nothing that it printed is ever repeated."""
    try:
        done = subprocess.run(
            _words(name, command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_COMMAND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RootKeyError(f"{name}_COMMAND did not end within {_COMMAND_SECONDS:.0f} s") from None
    except OSError as error:
        raise RootKeyError(f"{name}_COMMAND cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        raise RootKeyError(f"{name}_COMMAND ended with status {done.returncode}")
    return done.stdout[:_MOST_OUTPUT].decode("ascii", "replace")


def _understood(what: str, text: str) -> bytes:
    if not _DIGITS.fullmatch(text.strip()):
        raise RootKeyError(f"{what} does not hold a root key: it is {2 * ROOT_KEY_BYTES} hexadecimal digits")
    return bytes.fromhex(text.strip())
