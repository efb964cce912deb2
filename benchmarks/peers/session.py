"""One tool at one workload: its repository, taken through backups, deletes and restores."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import folders
from benchmarks.peers.commands import Argv, Cost, together
from benchmarks.peers.tools import Tool


@dataclass(frozen=True)
class Taken:
    """A finished backup."""

    id: str
    cost: Cost


class Session:
    """Everything below the tool's root belongs to the session."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self._saved = tool.root.with_name(tool.root.name + ".saved")
        self.drop()
        tool.state.mkdir(parents=True)
        tool.open()
        for words in tool.init():
            self.run(words)

    def run(self, words: Argv, quiet: bool = False) -> Cost:
        """Runs a command; one that fails is shown, and the workload goes on."""
        cost = self.tool.run(words)
        if cost.code and not quiet:
            print(f"{self.tool.name}: code {cost.code}: {list(words)}: {cost.err or cost.out}"[:800], file=sys.stderr)
        return cost

    def backup(self, tree: Path, tag: str) -> Taken:
        """Backs a tree up."""
        cost = self.run(self.tool.backup(tree, tag))
        return Taken(self.tool.id_of(cost, tag), cost)

    def size(self) -> int:
        """Bytes that the repository takes on disk."""
        return folders.on_disk(folders.listing(self.tool.repo))

    def delete_and_free(self, backup: str, mode: str) -> dict[str, Any]:
        """Deletes a backup and gives its space back; what that cost, freed and wrote."""
        before = folders.listing(self.tool.repo)
        costs = [self.run(self.tool.delete(backup))]
        costs += [self.run(words) for words in self.tool.free(mode)]
        begun = time.monotonic()
        after = folders.listing(self.tool.repo)
        return {
            **together(costs), "freed": folders.on_disk(before) - folders.on_disk(after),
            "rewritten": folders.put_between(before, after), "files": [len(before), len(after)],
            "sync": round(time.monotonic() - begun, 3),
        }  # fmt: skip

    def restores(self, backup: str, tree: Path, wanted: str, to: Path) -> tuple[bool, Cost]:
        """Restores a backup and tells whether every byte is what it was."""
        folders.fresh(to)
        cost = self.run(self.tool.restore(backup, to))
        right = cost.code == 0 and folders.digest(self.tool.restored(to, tree)) == wanted
        shutil.rmtree(to)
        return right, cost

    def save(self) -> None:
        """Keeps the repository as it is now, for `put_back`."""
        shutil.rmtree(self._saved, ignore_errors=True)
        self._closed(lambda: _copy(self.tool.root, self._saved))

    def put_back(self) -> None:
        """Makes the repository what it was at `save`."""

        def swap() -> None:
            shutil.rmtree(self.tool.root)
            _copy(self._saved, self.tool.root)

        self._closed(swap)

    def drop(self) -> None:
        """Removes the repository and what was saved of it."""
        self.tool.close()
        shutil.rmtree(self.tool.root, ignore_errors=True)
        shutil.rmtree(self._saved, ignore_errors=True)

    def _closed(self, work: Callable[[], None]) -> None:
        self.tool.close()
        work()
        self.tool.open()


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
