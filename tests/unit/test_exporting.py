"""Exporting: a folder is there only when it is whole, says what it is, is its owner's alone, and nothing else is touched."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from strongroom.backups import errors
from strongroom.backups.exporting import SUMMARY, Incomplete, NoRoom, export
from strongroom.storage.base import StoreUnavailable
from support.vault import Vault, noise

DATA = {"one": noise(30_000, 1), "two": noise(3_000, 2)}


class Watched:
    """A control that acts at each look."""

    def __init__(self, act: Callable[[], None] = lambda: None) -> None:
        self._act = act

    def check(self) -> None:
        self._act()

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        self._act()


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    (tmp_path / "vault").mkdir()
    return Vault(tmp_path / "vault")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != SUMMARY}


def test_the_folder_holds_the_files_and_says_what_they_are(vault: Vault, tmp_path: Path) -> None:
    """Also an empty folder that is there is taken, and a second export elsewhere is the same files."""
    backup = vault.backup(DATA)
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        told = export(vault.ctx, vault.project, backup, tmp_path / name, Watched())
        assert content(tmp_path / name) == DATA
        assert json.loads((tmp_path / name / SUMMARY).read_text("utf-8")) == told
        assert (told["whole"], told["backup"], told["files"], told["bytes"]) == (True, backup, 2, 33_000)
    assert not list(tmp_path.glob("*.partial"))


def test_what_leaves_the_house_is_its_owners_alone(vault: Vault, tmp_path: Path) -> None:
    """Files 0600, folders 0700, also where an empty folder was open to all."""
    backup = vault.backup(DATA)
    (tmp_path / "out").mkdir(mode=0o777)
    export(vault.ctx, None, backup, tmp_path / "out", Watched())
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*")}
    assert (modes, stat.S_IMODE((tmp_path / "out").stat().st_mode)) == ({0o600}, 0o700)


def test_an_export_that_ends_early_is_named_partial_and_the_next_begins_anew(vault: Vault, tmp_path: Path) -> None:
    """The engine fails half-way, the store goes away, Ctrl-C: there is no DIR, and DIR.partial says that it is not whole."""
    backup, out = vault.backup(DATA), tmp_path / "out"
    partial = tmp_path / "out.partial"

    def interrupt() -> None:
        raise KeyboardInterrupt

    def away() -> None:
        raise StoreUnavailable("the store is away")

    for act, error in ((interrupt, KeyboardInterrupt), (away, Incomplete)):
        with pytest.raises(error):
            export(vault.ctx, None, backup, out, Watched(act))
        assert not out.exists()
        assert json.loads((partial / SUMMARY).read_text("utf-8"))["whole"] is False
        (partial / "half-written").write_bytes(b"x")
    vault.engine.broken = "it cannot be written so"
    with pytest.raises(Incomplete, match=r"cannot be written so.*out\.partial and is not whole"):
        export(vault.ctx, None, backup, out, Watched())
    vault.engine.broken = None
    export(vault.ctx, None, backup, out, Watched())
    assert content(out) == DATA
    assert not partial.exists()


def test_an_export_that_lacks_only_its_last_step_is_not_written_again(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends between the summary that says whole and the rename: the next one only renames."""
    backup, out = vault.backup(DATA), tmp_path / "out"

    def dies(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            export(vault.ctx, None, backup, out, Watched())
    vault.engine.broken = "nothing is asked of the engine"
    assert export(vault.ctx, None, backup, out, Watched())["whole"] is True
    assert content(out) == DATA


@pytest.mark.parametrize("there", ["a file in it", "a file", "a link", "no parent", "a strange partial", "another's partial"])
def test_what_is_there_is_never_touched(vault: Vault, tmp_path: Path, there: str) -> None:
    """A folder with something in it, a file or link of that name, a partial that is not this backup's: refused with words."""
    backup, other = vault.backup(DATA), vault.backup({"one": b"else"})
    out = tmp_path / "out" / "deep" if there == "no parent" else tmp_path / "out"
    if there == "a file in it":
        out.mkdir()
        (out / "mine").write_text("precious")
    elif there == "a file":
        out.write_text("precious")
    elif there == "a link":
        (tmp_path / "elsewhere").mkdir()
        out.symlink_to(tmp_path / "elsewhere")
    elif there == "a strange partial":
        (tmp_path / "out.partial").mkdir()
        (tmp_path / "out.partial" / "mine").write_text("precious")
    elif there == "another's partial":
        vault.engine.broken = "x"
        with pytest.raises(Incomplete):
            export(vault.ctx, None, other, out, Watched())
        vault.engine.broken = None
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "vault" not in path.parts}
    with pytest.raises(NoRoom, match=str(tmp_path)):
        export(vault.ctx, None, backup, out, Watched())
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "vault" not in path.parts}
    assert after == before


def test_a_delete_wins_over_an_export(vault: Vault, tmp_path: Path) -> None:
    """Its backup goes while it is read: the export says so, and leaves no folder that looks whole."""
    backup = vault.backup(DATA)
    before = list[str]()

    def delete() -> None:
        if not before:
            before.append(vault.delete(backup))
            vault.run()

    entry = next(iter(DATA))
    vault.engine.during = None
    original = vault.engine.export

    def slow(source, facts, folder, control):  # type: ignore[no-untyped-def]
        delete()
        list(source.read(entry))
        return original(source, facts, folder, control)

    vault.engine.export = slow  # type: ignore[method-assign]
    with pytest.raises(Incomplete, match="deleted meanwhile"):
        export(vault.ctx, None, backup, tmp_path / "out", Watched())
    assert not (tmp_path / "out").exists()
    with pytest.raises(errors.NoSuchBackup):
        export(vault.ctx, None, backup, tmp_path / "new", Watched())


def test_only_a_completed_backup_of_the_project_is_exported(vault: Vault, tmp_path: Path) -> None:
    """One that is being built, and one of another project where a project is given."""
    building, _ = vault.create(DATA)
    with pytest.raises(errors.NotRestorable, match="BUILDING"):
        export(vault.ctx, None, building, tmp_path / "out", Watched())
    vault.run()
    with pytest.raises(errors.NoSuchBackup):
        export(vault.ctx, "0" * 32, building, tmp_path / "out", Watched())
    assert not list(tmp_path.glob("out*"))
