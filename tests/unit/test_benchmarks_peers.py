"""The driver of benchmarks/peers measures what it says: data, folders, commands and the tools' answers."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import pytest
from benchmarks.peers import folders
from benchmarks.peers.commands import Commands, Cost, together
from benchmarks.peers.data import LargeFiles, MiB, Rows, SmallFiles, noise, rows, write
from benchmarks.peers.tools import PEERS, Kopia, Restic, Rustic
from benchmarks.reporting import Results, load, table


def test_noise_does_not_shrink_and_rows_do() -> None:
    """The two halves of the data are what a compressor must fail and succeed at."""
    assert len(zlib.compress(noise(MiB, 1), 1)) > MiB * 0.99
    assert len(zlib.compress(rows(MiB, 1), 1)) < MiB * 0.5


def test_rows_of_different_seeds_share_no_row() -> None:
    """Blocks come from a small pool; without fresh ids a deduplicating tool would store each only once."""
    pool = Rows()
    first, second = pool.make(MiB, 1).splitlines()[1:-1], pool.make(MiB, 2).splitlines()[1:-1]
    assert not set(first) & set(second)
    assert pool.make(MiB, 1).splitlines()[1:-1] == first


def test_a_day_changes_only_what_it_says(tmp_path: Path) -> None:
    """Large files: three replaced and one changed in place. Small files: every thousandth replaced."""
    large = LargeFiles(count=8, size=3 * MiB)
    large.make(tmp_path / "large")
    before = {path: path.read_bytes() for path in folders.files(tmp_path / "large")}
    large.step(tmp_path / "large", 1)
    changed = [path for path, content in before.items() if path.read_bytes() != content]
    assert len(changed) == 4
    small = SmallFiles(count=2_000)
    small.make(tmp_path / "small")
    before = {path: path.read_bytes() for path in folders.files(tmp_path / "small")}
    small.step(tmp_path / "small", 1)
    assert sum(path.read_bytes() != content for path, content in before.items()) == 2


def test_what_a_step_wrote_is_counted_by_new_and_changed_files(tmp_path: Path) -> None:
    """New files count whole, grown ones by their growth, replaced ones whole, untouched and removed ones not."""
    for name in ("stays", "grows", "goes", "replaced"):
        write(tmp_path / name, b"x" * 1000)
    before = folders.listing(tmp_path)
    with (tmp_path / "grows").open("ab") as file:
        file.write(b"y" * 10)
    (tmp_path / "goes").unlink()
    write(tmp_path / "fresh", b"z" * 500)
    (tmp_path / "fresh").replace(tmp_path / "replaced")
    write(tmp_path / "new", b"n" * 7)
    assert folders.put_between(before, folders.listing(tmp_path)) == 10 + 500 + 7


def test_a_digest_sees_names_and_contents(tmp_path: Path) -> None:
    """A restore with one byte or one name wrong is not taken for right."""
    write(tmp_path / "a" / "one", b"1")
    first = folders.digest(tmp_path)
    (tmp_path / "a" / "one").rename(tmp_path / "a" / "two")
    renamed = folders.digest(tmp_path)
    write(tmp_path / "a" / "two", b"2")
    assert len({first, renamed, folders.digest(tmp_path)}) == 3


def test_a_command_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Code, output, time and memory are the command's; the driver's own memory does not count into its peak."""
    ballast = bytearray(300 * MiB)
    commands = Commands(tmp_path)
    try:
        script = "import sys; x = bytearray(64 << 20); print(len(x)); sys.stderr.write('said'); sys.exit(3)"
        cost = commands.run([sys.executable, "-c", script], {})
        missing = commands.run([str(tmp_path / "nothing")], {})
    finally:
        commands.close()
    assert (cost.code, cost.out.strip(), cost.err) == (3, str(64 * MiB), "said")
    assert 64 * MiB < cost.peak < len(ballast)
    assert cost.wall > 0
    assert missing.code == 127


def test_several_commands_add_up() -> None:
    """Seconds and bytes are sums, memory is the largest."""
    both = together([Cost(0, 1.0, 0.5, 10 * MiB, 1, 2), Cost(1, 2.0, 0.25, 5 * MiB, 3, 4)])
    assert (both["wall"], both["cpu"], both["peak_mib"], both["read"], both["written"]) == (3.0, 0.75, 10, 4, 6)
    assert both["codes"] == [0, 1]


@pytest.mark.parametrize(
    ("kind", "out", "wanted"),
    [
        (Restic, '{"message_type":"status"}\n{"message_type":"summary","snapshot_id":"abc"}\n', "abc"),
        (Restic, "no snapshot", ""),
        (Rustic, 'warning first\n{"id": "def"}', "def"),
        (Kopia, '{"id": "ghi"}', "ghi"),
    ],
)
def test_the_id_of_a_backup_is_read_from_the_tools_answer(
    kind: type[Restic | Rustic | Kopia], out: str, wanted: str, tmp_path: Path
) -> None:
    """A wrong id would make every later step measure an error."""
    commands = Commands(tmp_path)
    try:
        tool = kind(tmp_path / "root", commands)
        assert tool.id_of(Cost(0, 0, 0, 0, 0, 0, out), "tag") == wanted
    finally:
        commands.close()


def test_every_tool_has_its_own_name() -> None:
    """Results are told apart by it."""
    assert len(PEERS) == 6
    assert all(name == tool.name for name, tool in PEERS.items())


def test_results_are_on_disk_the_moment_they_are_known(tmp_path: Path) -> None:
    """A run that is broken off keeps what it measured."""
    results = Results(tmp_path / "results.jsonl")
    results.add(tool="one", wall=1.5)
    assert [row["wall"] for row in load(tmp_path / "results.jsonl")] == [1.5]
    assert json.loads((tmp_path / "results.jsonl").read_text())["tool"] == "one"


def test_a_table_shows_every_row_and_leaves_holes_empty() -> None:
    """Rows of different workloads lack each other's fields."""
    shown = table([{"a": 1234, "b": 0.5}, {"a": None, "b": "x"}], ["a", "b"])
    assert shown.splitlines() == ["| a | b |", "|---|---|", "| 1,234 | 0.500 |", "|  | x |"]
