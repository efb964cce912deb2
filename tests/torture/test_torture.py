"""A real service under load, killed, stopped, cut off and starved at random: nothing is lost or left, every promise is kept.

And the checks themselves can fail. scripts/torture runs the same for as long as one likes, and tells.
"""

from __future__ import annotations

import random
import secrets
from pathlib import Path as Folder

import pytest

from support.mongodb_server import find_mongod
from support.postgres import programs
from support.redis_server import binaries
from torture.kit.databases import Broken, RedisDatabase, cut_in
from torture.kit.running import torture
from torture.kit.writings import Writing, difference, digest

SECONDS = 35.0
"""Of trouble in each form; with building, rests and proofs a test takes about a minute."""

real = pytest.mark.skipif(not binaries() or find_mongod() is None, reason="no redis-server or no mongod here")


@real
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("form", ["embedded", "shared"])
def test_whatever_fails_nothing_is_lost_and_nothing_is_left(form: str, tmp_path: Folder) -> None:
    """A fresh seed each time; a failure prints it, with the last events and the folder of the logs."""
    if form == "shared" and programs() is None:
        pytest.skip("PostgreSQL's server is not installed")
    seed = secrets.token_hex(4)
    outcome = torture(form, SECONDS, seed, tmp_path / form)
    print(f"seed {seed}\n{outcome.table}")
    again = f"scripts/torture --form {form} --seed {seed}, logs in {tmp_path / form}"
    assert not outcome.broken, "\n".join([outcome.last, *outcome.broken, again])


def test_what_a_writer_has_written_is_known_to_the_byte() -> None:
    """The state after any number of writes is that of carrying them out one by one; another seed writes something else."""
    writing, state = Writing("a", 40, 100), dict[int, bytes]()
    for number in range(1, 400):
        key, value = writing.at(number)
        if value is None:
            state.pop(key, None)
        else:
            state[key] = value
        assert Writing("a", 40, 100).after(number) == state if number % 50 == 0 else True
    assert writing.after(399) == state
    assert len(state) < 40 < len({writing.at(number)[0] for number in range(1, 400)}) + 1
    assert Writing("b", 40, 100).after(399) != state


def test_a_state_that_no_moment_had_is_noticed(tmp_path: Folder) -> None:
    """A write that is missing, one too many, one of another moment, and counters that contradict each other."""
    database = RedisDatabase(tmp_path / "none", "seed", 30, 50)
    whole = database.expected((50, 60))
    assert cut_in(whole) == (50, 60)
    assert difference(whole, database.expected((50, 60))) is None
    rnd = random.Random(1)
    for _ in range(20):
        key = rnd.choice([name for name in whole if name.startswith("0/")])
        for spoiled in ({**whole, key: b"string\nother"}, {**whole, "0/0:999": b"x"}, _without(whole, key)):
            assert difference(spoiled, whole) is not None
            assert digest(spoiled) != digest(whole)
    assert difference(database.expected((51, 60)) | {"count/0": b"50", "again/0": b"50", "total": b"110"}, whole) is not None
    for name, value in (("count/0", b"51"), ("again/1", b"59"), ("total", b"111")):
        with pytest.raises(Broken):
            cut_in({**whole, name: value})
    with pytest.raises(Broken):
        cut_in(_without(whole, "count/1"))


def _without(contents: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {key: value for key, value in contents.items() if key != name}
