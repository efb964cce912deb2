"""Random histories of the shipped code: nothing is lost, nothing is left, every promise is kept; and a history replays."""

from __future__ import annotations

from simulation.world.history import simulate


def test_histories_end_well() -> None:
    """Some seeds, always the same here; scripts/simulate runs any number of others."""
    for seed in range(40):
        outcome = simulate(seed)
        assert outcome.failure is None, f"seed {seed}, step {outcome.steps}: {outcome.failure}"


def test_a_history_replays_to_the_step() -> None:
    """The same seed is the same story, and so is the tape that it drew."""
    first = simulate(7)
    assert simulate(7).story == first.story
    assert simulate(7, first.tape).story == first.story
