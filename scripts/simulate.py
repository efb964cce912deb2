"""Runs histories of the simulation, any number on several cores; a failing one is told in words, and shortened on request."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor

from simulation.world.history import Outcome, simulate
from simulation.world.met import DOINGS, TROUBLES
from simulation.world.shrinking import shrink

_BATCH = 5


def main() -> int:
    """The command. 0: no history failed."""
    options = _options()
    if options.seed is not None:
        return _one(options.seed, options.shrink)
    began, histories, steps, failed = time.monotonic(), 0, 0, 0
    met: Counter[str] = Counter()
    with ProcessPoolExecutor(options.jobs) as pool:
        for outcomes in _outcomes(pool, options.jobs, _batches(options.first, options.seeds, began + options.minutes * 60)):
            for outcome in outcomes:
                histories, steps = histories + 1, steps + outcome.steps
                met.update(outcome.met.keys())
                if outcome.failure is not None:
                    failed += 1
                    print(f"seed {outcome.seed} fails at step {outcome.steps}: {outcome.failure}")
                    print(f"    its story: scripts/simulate --seed {outcome.seed} --shrink 120", flush=True)
            if outcomes and histories % 500 < len(outcomes):
                print(f"{histories} histories, {failed} failed, {_rate(steps, began)}", flush=True)
    if options.met:
        print("\n".join(f"{met[situation]:8} {situation}" for situation in DOINGS + TROUBLES))
    print(f"{histories} histories, {failed} failed, {steps} steps, {steps // max(histories, 1)} each, {_rate(steps, began)}")
    return 1 if failed else 0


def _outcomes(pool: Executor, jobs: int, work: Iterator[tuple[range, float]]) -> Iterator[list[Outcome]]:
    """The batches' outcomes in their order; only a few batches wait for a process, however many there are."""
    waiting: deque[Future[list[Outcome]]] = deque()
    for batch in work:
        waiting.append(pool.submit(_batch, batch))
        if len(waiting) > 3 * jobs:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _rate(steps: int, began: float) -> str:
    took = time.monotonic() - began
    return f"{took:.0f} seconds, {steps / took:.0f} steps a second"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many histories (1000)")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (one per core)")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no more histories after so many minutes")
    parser.add_argument("--met", action="store_true", help="tell in how many histories each situation was met")
    parser.add_argument("--seed", type=int, help="run this one and tell its story")
    parser.add_argument("--shrink", type=float, default=0, metavar="SECONDS", help="with --seed: shorten a failing history first")
    return parser.parse_args()


def _batches(first: int, count: int, end: float) -> Iterator[tuple[range, float]]:
    for start in range(first, first + count, _BATCH):
        if time.monotonic() > end:
            break
        yield range(start, min(start + _BATCH, first + count)), end


def _batch(work: tuple[range, float]) -> list[Outcome]:
    seeds, end = work
    outcomes = []
    for seed in seeds:
        if time.monotonic() > end:
            break
        outcome = simulate(seed)
        outcomes.append(outcome.without_story())
    return outcomes


def _one(seed: int, seconds: float) -> int:
    outcome = simulate(seed)
    if outcome.failure is not None and seconds:
        outcome = shrink(outcome, seconds)
    print("\n".join(outcome.told()))
    return 1 if outcome.failure is not None else 0


if __name__ == "__main__":
    sys.exit(main())
