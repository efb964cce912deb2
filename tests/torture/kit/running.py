"""One run: build → by turns let everything fail and come to rest → prove every survivor → delete everything."""

from __future__ import annotations

import random
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

from torture.kit.api import Stuck
from torture.kit.faults import Director
from torture.kit.houses import house
from torture.kit.laws import Laws
from torture.kit.stores import write_down
from torture.kit.story import Story
from torture.kit.users import User

_ROUND = 25.0  # seconds of trouble between two rests
_PACE = 0.5  # seconds between two faults, on average
_AT_ONCE = 2  # backups restored at a rest, of all


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    form: str
    seed: str
    broken: list[str]
    table: str
    last: str  # the last events, where something is broken


def torture(form: str, seconds: float, seed: str, folder: Path, *, loud: bool = False) -> Outcome:
    """Tortures one form for so many seconds of trouble; what comes before, between and after is not counted.

    Everything that it starts is ended. Logs and the story stay in `folder`. Raises what the surroundings fail with before the
    first fault; from then on everything is in the outcome.
    """
    folder.mkdir(parents=True)
    story = Story(folder, loud=loud)
    try:
        _run(form, seconds, seed, folder, story)
    finally:
        story.close()
    return Outcome(form, seed, story.broken, story.table(), story.last() if story.broken else "")


def _run(form: str, seconds: float, seed: str, folder: Path, story: Story) -> None:
    story.say(f"{form}, seed {seed}: building")
    with house(form, folder, seed, story) as built:
        director = Director(built.faults, f"{seed} {form} faults", _PACE, story)
        laws = Laws(built, story, random.Random(f"{seed} {form} laws"))
        story.say(f"{form}: {seconds:.0f} seconds of trouble begin")
        try:
            left = seconds
            while left > 0 and not story.broken:
                _trouble(built.users, director, min(_ROUND, left))
                left -= _ROUND
                laws.rest()
                laws.check()
                if story.broken:
                    break
                laws.works()
                survivors = laws.survivors()
                laws.prove(
                    laws.survivors() if left <= 0 else random.Random(left).sample(survivors, min(_AT_ONCE, len(survivors)))
                )
                story.say(_progress(story, max(0.0, left)))
            if not story.broken:
                laws.delete_all()
                laws.ends()
                laws.logs()
        except Stuck as error:
            story.breaks("everything comes to rest", str(error))
        finally:
            director.close()
            director.heal()
            if story.broken:
                write_down(built.books, built.store, folder / "catalog.txt")


def _trouble(users: list[User], director: Director, seconds: float) -> None:
    threads = [threading.Thread(target=_act, args=(user,), name=user.side.name) for user in users]
    for thread in threads:
        thread.start()
    try:
        director.run(seconds)
    finally:
        for user in users:
            user.pause()
        director.heal()
        for thread in threads:
            thread.join()


def _act(user: User) -> None:
    try:
        user.run()
    except Exception as error:  # the top of a thread: a user that is gone must not pass for one that found nothing
        user.breaks("a user goes on", "".join(traceback.format_exception(error)))


def _progress(story: Story, left: float) -> str:
    done = ", ".join(f"{number} {name}" for name, number in story.totals.items())
    return f"{left:.0f} s of trouble to come; {done}; {len(story.broken)} laws broken"
