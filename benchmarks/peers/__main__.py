"""Takes tools through workloads.

python -m benchmarks.peers W1,W4 restic,borg,strongroom --work FOLDER --out results.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.commands import Commands
from benchmarks.peers.ours import OURS
from benchmarks.peers.session import Session
from benchmarks.peers.tools import PEERS, Tool, there
from benchmarks.peers.workloads import WORKLOADS, Bench
from benchmarks.reporting import Results

TOOLS: dict[str, type[Tool]] = {**PEERS, **OURS}


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", help=f"of {', '.join(WORKLOADS)}, with commas between")
    parser.add_argument("tools", help=f"of {', '.join(TOOLS)}, with commas between; those that are not installed are left out")
    parser.add_argument("--work", type=Path, required=True, help="a folder of its own, with some 10 GB of room")
    parser.add_argument("--out", type=Path, help="append results here, one JSON line each")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the files, for a quick look")
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    commands, results = Commands(options.work), Results(options.out)
    bench = Bench(options.work.resolve(), results, TOOLS, options.runs, options.scale)
    try:
        for workload in options.workloads.split(","):
            for name in options.tools.split(","):
                if not there(TOOLS[name]):
                    results.add(benchmark=workload, tool=name, what="not installed")
                    continue
                WORKLOADS[workload](bench, name, lambda at, name=name: _open(bench, commands, at, name))  # type: ignore[misc]
    finally:
        commands.close()


def _open(bench: Bench, commands: Commands, workload: str, name: str) -> Session:
    return Session(TOOLS[name](bench.work / workload / name, commands))


if __name__ == "__main__":
    main()
