"""Tables of medians from files of results:  python -m benchmarks.summary results.jsonl …"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reporting import load, table

Result = Mapping[str, Any]
_KEYS = ("benchmark", "database", "catalog", "victim", "case", "figure", "tool", "mode", "small_files")
_NESTED = ("first", "second", "restore")


def flat(row: Result) -> dict[str, Any]:
    """A result with the figures of its steps beside the others: `first.cpu` and the like."""
    told = {name: value for name, value in row.items() if name not in _NESTED}
    for step in _NESTED:
        if isinstance(row.get(step), Mapping):
            told |= {f"{step}.{name}": value for name, value in row[step].items()}
    if isinstance(row.get("walls"), Sequence) and row["walls"]:
        told["decision"] = row["walls"][0]
    if isinstance(row.get("machine"), Mapping):
        told["load"] = row["machine"]["load"]
    return told


def medians(rows: Sequence[Result], key: Callable[[Result], tuple[Any, ...]]) -> list[dict[str, Any]]:
    """One row for all results of the same key: medians of numbers, the first of anything else."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(flat(row))
    return [_merged(group) for group in groups.values()]


def _merged(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in group for name in row):
        values = [row[name] for row in group if row.get(name) is not None]
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        merged[name] = statistics.median(numbers) if numbers and len(numbers) == len(values) else values[0] if values else None
    return {**merged, "results": len(group)}


VIEWS: Mapping[tuple[str, str | None], Sequence[str]] = {
    ("limits", None): ("figure", "value"),
    ("catalog", None): (
        "database", "catalog", "victim", "packs", "deaths", "db_mib", "preview_s", "decide_s", "locked_s", "sweep_s",
        "swept_s", "begin_s", "freed_mib", "waiting_mib",
    ),
    ("latency", None): ("case", "deletes", "p10_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms", "until_gone_p50_ms"),
    ("W4", None): (
        "tool", "first_mbps", "first.cpu", "first.peak_mib", "second_s", "second.cpu", "stored_per_changed", "restore_mbps",
        "restore.cpu", "restore.peak_mib", "restored_right", "size", "load",
    ),
    ("CONC", None): ("tool", "mode", "victim", "codes", "freed", "backup_code", "running_backup_whole", "check"),
    ("W1", "built"): ("tool", "size", "owned", "beside", "first_s", "later_s"),
    ("W1", "delete"): (
        "tool", "mode", "decision", "wall", "cpu", "peak_mib", "freed_share", "rewritten", "owned", "neighbours_whole", "load",
    ),
    ("W2", "built"): ("tool", "size", "owned", "beside", "first_s", "later_s"),
    ("W2", "delete"): (
        "tool", "mode", "decision", "wall", "cpu", "peak_mib", "freed_share", "rewritten", "owned", "neighbours_whole", "load",
    ),
    ("W3F", None): ("tool", "mode", "small_files", "decision", "wall", "cpu", "rewritten", "load"),
}  # fmt: skip
"""Columns by benchmark and step."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    paths = [Path(word) for word in (sys.argv[1:] if argv is None else argv)]
    rows = [row for path in paths for row in load(path)]
    for (benchmark, what), columns in VIEWS.items():
        found = [row for row in rows if row["benchmark"] == benchmark and what in (None, row.get("what"))]
        if found:
            print(f"\n{benchmark}{'' if what is None else ', ' + what}\n")
            print(table(medians(found, lambda row: tuple(row.get(key) for key in _KEYS)), columns))


if __name__ == "__main__":
    main()
