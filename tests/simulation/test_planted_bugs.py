"""A proof that cannot fail proves nothing: each bug here is planted, and the simulation finds it within its number of seeds."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from simulation.world.bugs import FOUND, PLANTS
from simulation.world.history import prepare, simulate

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


MISTAKES = ("TypeError", "AttributeError", "NameError", "KeyError")
"""What a plant ends in whose function is called in another way by now."""


@pytest.fixture(autouse=True)
def _remains() -> Iterator[None]:
    """Processes that die here leave their scratch files open, as those of real ones are: closing them is nobody's defect."""
    yield
    gc.collect()


@pytest.mark.timeout(900)  # the rarest takes some hundred histories
@pytest.mark.parametrize("bug", PLANTS)
def test_a_planted_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the seeds that it is given some history breaks, by a promise and not because the plant fits the code no more."""
    how, seeds, flavour = PLANTS[bug]
    prepare()  # the worlds that histories begin with are made without the bug
    how(monkeypatch)
    last = [FOUND[bug]] if bug in FOUND else []
    for seed in (*last, *range(seeds)):
        failure = simulate(seed, flavour=flavour).failure
        if failure is not None:
            assert not any(mistake in failure for mistake in MISTAKES), failure
            return
    pytest.fail(f"{bug} was not found in {seeds} seeds")
