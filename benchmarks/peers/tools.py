"""The tools, one small class each; a further one is a further class in TOOLS.

A tool keeps its repository in `root/repo` (the bytes that are measured) and whatever else it needs in `root/state`. Versions
that the classes were written for: restic 0.19, rustic 0.11, borg 1.4, kopia 0.23.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from benchmarks.peers.commands import Argv, Commands, Cost


class Stream:
    """A backup that is being taken of what is written to it."""

    def __init__(self, argv: Argv, env: Mapping[str, str], work: Path) -> None:
        self._out, self._err = (work / "stream.out").open("wb+"), (work / "stream.err").open("wb+")
        self._process = subprocess.Popen(
            list(argv), env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=self._out, stderr=self._err
        )

    def write(self, data: bytes) -> None:
        """Hands over more. A tool that has ended already does not raise here; `finish` tells."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(data)
            pipe.flush()
        except BrokenPipeError:
            return

    def finish(self) -> Cost:
        """Ends the stream and waits for the backup; only its code and texts are filled in."""
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
        code = self._process.wait()
        return Cost(code, 0.0, 0.0, 0, 0, 0, _text(self._out), _text(self._err)[-2000:])


def _text(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode("utf-8", "replace")


class Tool:
    """What every tool can do. Methods that return words say what to run; `run` runs it."""

    name = ""
    modes: Sequence[str] = ("default",)
    """Ways to give space back; the first is what a user gets without options."""

    def __init__(self, root: Path, commands: Commands) -> None:
        self.root, self.repo, self.state = root, root / "repo", root / "state"
        self._commands = commands
        self.env: dict[str, str] = {"HOME": str(self.state)}

    def open(self) -> None:
        """Called before the first command, and again after the folder was copied or put back."""

    def close(self) -> None:
        """Called before the folder is copied, put back or removed."""

    def run(self, words: Argv) -> Cost:
        """Runs one command to its end."""
        return self._commands.run(words, self.env)

    def stream(self, tree: Path, tag: str, work: Path) -> Stream:
        """Begins a backup of what will be written to it."""
        return Stream(self.backup_stream(tree, tag), self.env, work)

    def init(self) -> list[Argv]:
        """Makes the repository."""
        raise NotImplementedError

    def backup(self, tree: Path, tag: str) -> Argv:
        """Backs a tree up."""
        raise NotImplementedError

    def backup_stream(self, tree: Path, tag: str) -> Argv:
        """Backs standard input up; where a tool keeps a history by source, it is the tree's."""
        raise NotImplementedError

    def id_of(self, cost: Cost, tag: str) -> str:
        """The id of the backup that this command took."""
        del cost
        return tag

    def delete(self, backup: str) -> Argv:
        """Decides that a backup goes."""
        raise NotImplementedError

    def free(self, mode: str) -> list[Argv]:
        """What gives its space back."""
        raise NotImplementedError

    def restore(self, backup: str, to: Path) -> Argv:
        """Restores into an empty folder."""
        raise NotImplementedError

    def restored(self, to: Path, tree: Path) -> Path:
        """Where the tree lies after a restore."""
        del tree
        return to

    def check(self) -> Argv:
        """The tool's own look at its repository, without reading all data."""
        raise NotImplementedError

    @property
    def exact(self) -> str:
        """The mode that frees most."""
        return self.modes[-1]


class Restic(Tool):
    name = "restic"
    modes: Sequence[str] = ("default", "exact")
    binary = "restic"
    prefix = "RESTIC"

    def __init__(self, root: Path, commands: Commands) -> None:
        super().__init__(root, commands)
        self.env |= {
            f"{self.prefix}_REPOSITORY": str(self.repo), f"{self.prefix}_PASSWORD": "benchmark",
            f"{self.prefix}_CACHE_DIR": str(self.state / "cache"),
        }  # fmt: skip

    def init(self) -> list[Argv]:
        return [[self.binary, "init"]]

    def backup(self, tree: Path, tag: str) -> Argv:
        return [self.binary, "backup", "--json", "-q", "--tag", tag, str(tree)]

    def backup_stream(self, tree: Path, tag: str) -> Argv:
        del tree
        return [self.binary, "backup", "--json", "-q", "--tag", tag, "--stdin", "--stdin-filename", "stream"]

    def id_of(self, cost: Cost, tag: str) -> str:
        del tag
        for line in reversed(cost.out.splitlines()):
            if '"snapshot_id"' in line:
                return str(json.loads(line)["snapshot_id"])
        return ""

    def delete(self, backup: str) -> Argv:
        return [self.binary, "forget", "-q", backup]

    def free(self, mode: str) -> list[Argv]:
        return [[self.binary, "prune", "-q", *(["--max-unused", "0"] if mode == "exact" else [])]]

    def restore(self, backup: str, to: Path) -> Argv:
        return [self.binary, "restore", "-q", backup, "--target", str(to)]

    def restored(self, to: Path, tree: Path) -> Path:
        return to / tree.relative_to("/")

    def check(self) -> Argv:
        return [self.binary, "check", "-q"]


class Rustic(Restic):
    name = "rustic"
    modes = ("default", "instant", "exact")
    binary = "rustic"
    prefix = "RUSTIC"

    def __init__(self, root: Path, commands: Commands) -> None:
        super().__init__(root, commands)
        self.env |= {"RUSTIC_NO_PROGRESS": "true", "RUSTIC_LOG_LEVEL": "error"}

    def backup(self, tree: Path, tag: str) -> Argv:
        return [self.binary, "backup", "--json", "--tag", tag, str(tree)]

    def backup_stream(self, tree: Path, tag: str) -> Argv:
        del tree
        return [self.binary, "backup", "--json", "--tag", tag, "--stdin-filename", "stream", "-"]

    def id_of(self, cost: Cost, tag: str) -> str:
        del tag
        begin = cost.out.find("{")
        return str(json.loads(cost.out[begin:])["id"]) if begin >= 0 else ""

    def delete(self, backup: str) -> Argv:
        return [self.binary, "forget", backup]

    def free(self, mode: str) -> list[Argv]:
        words = [self.binary, "prune"]
        if mode != "default":
            words.append("--instant-delete")
        if mode == "exact":
            words += ["--max-unused", "0B", "--max-repack", "unlimited"]
        return [words]

    def restore(self, backup: str, to: Path) -> Argv:
        return [self.binary, "restore", backup, str(to)]

    def restored(self, to: Path, tree: Path) -> Path:
        nested = to / tree.relative_to("/")
        return nested if nested.exists() else to

    def check(self) -> Argv:
        return [self.binary, "check"]


class Borg(Tool):
    name = "borg"
    modes = ("default", "exact")
    compression = "lz4"

    def __init__(self, root: Path, commands: Commands) -> None:
        super().__init__(root, commands)
        self.env |= {
            "BORG_REPO": str(self.repo), "BORG_PASSPHRASE": "benchmark", "BORG_BASE_DIR": str(self.state),
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }  # fmt: skip

    def init(self) -> list[Argv]:
        return [["borg", "init", "-e", "repokey-blake2"]]

    def backup(self, tree: Path, tag: str) -> Argv:
        return ["borg", "create", "-C", self.compression, f"::{tag}", str(tree)]

    def backup_stream(self, tree: Path, tag: str) -> Argv:
        del tree
        return ["borg", "create", "-C", self.compression, "--stdin-name", "stream", f"::{tag}", "-"]

    def delete(self, backup: str) -> Argv:
        return ["borg", "delete", f"::{backup}"]

    def free(self, mode: str) -> list[Argv]:
        return [["borg", "compact", *(["--threshold", "0"] if mode == "exact" else [])]]

    def restore(self, backup: str, to: Path) -> Argv:
        return ["env", "-C", str(to), "borg", "extract", f"::{backup}"]

    def restored(self, to: Path, tree: Path) -> Path:
        return to / tree.relative_to("/")

    def check(self) -> Argv:
        return ["borg", "check"]


class BorgZstd(Borg):
    name = "borg-zstd"
    compression = "zstd,1"


class Kopia(Tool):
    """With compression on and automatic upkeep off, so that it runs in the timed step and in no other."""

    name = "kopia"
    modes = ("default", "unsafe")

    def __init__(self, root: Path, commands: Commands) -> None:
        super().__init__(root, commands)
        self.env |= {
            "KOPIA_CONFIG_PATH": str(self.state / "kopia.config"), "KOPIA_PASSWORD": "benchmark",
            "KOPIA_CACHE_DIRECTORY": str(self.state / "cache"), "KOPIA_LOG_DIR": str(self.state / "log"),
            "KOPIA_CHECK_FOR_UPDATES": "false", "KOPIA_USE_KEYRING": "false",
        }  # fmt: skip

    def init(self) -> list[Argv]:
        self.repo.mkdir(parents=True, exist_ok=True)
        return [
            self._words("repository", "create", "filesystem", "--path", str(self.repo)),
            self._words("maintenance", "set", "--enable-quick=false", "--enable-full=false"),
            self._words("policy", "set", "--global", "--keep-latest=1000000", "--compression=zstd-fastest"),
        ]

    def backup(self, tree: Path, tag: str) -> Argv:
        del tag
        return self._words("snapshot", "create", "--json", str(tree))

    def backup_stream(self, tree: Path, tag: str) -> Argv:
        del tree
        return self._words("snapshot", "create", "--json", "--stdin-file", "stream", f"/stream-{tag}")

    def id_of(self, cost: Cost, tag: str) -> str:
        del tag
        begin = cost.out.find("{")
        return str(json.loads(cost.out[begin:])["id"]) if begin >= 0 else ""

    def delete(self, backup: str) -> Argv:
        return self._words("snapshot", "delete", "--delete", backup)

    def free(self, mode: str) -> list[Argv]:
        return [self._words("maintenance", "run", "--full", *(["--safety=none"] if mode == "unsafe" else []))]

    def restore(self, backup: str, to: Path) -> Argv:
        return self._words("snapshot", "restore", backup, str(to))

    def check(self) -> Argv:
        return self._words("snapshot", "verify")

    def _words(self, *words: str) -> Argv:
        return ["kopia", *words, "--no-progress"]


class Copy(Tool):
    """Plain copies: the floor that the machine sets, without sharing, compression or sealing."""

    name = "cp"

    def init(self) -> list[Argv]:
        self.repo.mkdir(parents=True, exist_ok=True)
        return []

    def backup(self, tree: Path, tag: str) -> Argv:
        return ["cp", "-r", str(tree), str(self.repo / tag)]

    def delete(self, backup: str) -> Argv:
        return ["rm", "-r", str(self.repo / backup)]

    def free(self, mode: str) -> list[Argv]:
        del mode
        return []

    def restore(self, backup: str, to: Path) -> Argv:
        return ["cp", "-r", f"{self.repo / backup}/.", str(to)]

    def check(self) -> Argv:
        return ["true"]


PEERS: dict[str, type[Tool]] = {tool.name: tool for tool in (Restic, Rustic, Borg, BorgZstd, Kopia, Copy)}


def there(tool: type[Tool]) -> bool:
    """Whether the tool's program is on PATH (or it needs none)."""
    binary = {"restic": "restic", "rustic": "rustic", "borg": "borg", "borg-zstd": "borg", "kopia": "kopia"}.get(tool.name)
    return binary is None or shutil.which(binary) is not None
