"""A user of one database: takes backups, deletes, restores, stops, holds and verifies them through the API at random, and knows
of each backup what must be true of it: whether it is there, and what it must restore to."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import redis
from pymongo.errors import PyMongoError

from torture.kit.api import Answer, Api, NoAnswer, Stuck
from torture.kit.databases import Broken, Database, Load, cut_in
from torture.kit.story import Story
from torture.kit.writings import Cut, difference, digest

ENGINE_ERRORS = (redis.RedisError, PyMongoError, OSError)
_MOST = 7  # backups of one database at a time
_QUIET_SECONDS = 12.0  # how long writers wait for a backup that is to be compared exactly
_GONE, _RESTORING, _BUSY, _HELD = "DBS.201214", "DBS.201319", "DBS.200019", "DBS.212003"


class Fate(Enum):
    """What the user knows of a backup."""

    BUILDING = "being built"
    COMPLETED = "completed"
    FAILED = "failed"
    ASKED = "asked to be deleted, without an answer"
    DELETED = "deleted"


@dataclass
class Taken:
    """One backup, and what it must restore to."""

    id: str
    name: str
    fate: Fate
    low: Cut  # acknowledged before it was asked for
    high: Cut | None = None  # the most that can have been written when it was seen completed
    digest: str | None = None  # of all content, where nobody wrote meanwhile
    held: bool = False  # perhaps, by a request that was not answered
    promise: dict[str, int] | None = None  # of a preview that its delete named


@dataclass
class Side:
    """A database with its load, a spare one to restore into, one that only proofs touch, and the names that the service gave."""

    name: str
    load: Load
    target: Database
    proof: Database
    instance: str = ""
    target_instance: str = ""
    proof_instance: str = ""


@dataclass
class _Restore:
    job: str
    taken: Taken


@dataclass
class User:
    """See the module. `act` does one random thing; everything that it learns is checked at once."""

    api: Api
    side: Side
    story: Story
    rnd: random.Random
    backups: dict[str, Taken] = field(default_factory=dict)
    _lost: dict[str, Cut] = field(default_factory=dict)  # names of backups whose creation was not answered
    _restore: _Restore | None = None
    _unsure: bool = False  # a restore may run that nobody answered for
    _checks: dict[str, str] = field(default_factory=dict)  # jobs of verifications and reconciliations
    restored: Taken | None = None  # what the target holds
    _number: int = 0
    _rest: threading.Event = field(default_factory=threading.Event)

    # ---- the loop ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Acts until `pause`."""
        self._rest.clear()
        while not self._rest.is_set():
            try:
                self.act()
            except NoAnswer as error:
                self.tell(f"no answer: {error}")
                self._rest.wait(0.3)
            self._rest.wait(self.rnd.uniform(0.02, 0.4))

    def pause(self) -> None:
        """Ends `run` after what it is doing."""
        self._rest.set()

    def act(self) -> None:
        """Looks around, then does one thing. Raises NoAnswer."""
        self.watch()
        acts: list[tuple[float, Callable[[], None]]] = [
            (30, self._back_up), (14, self._back_up_quietly), (24, self._delete), (8, self._delete_as_previewed),
            (6, self._delete_some), (12, self._begin_restore), (6, self._stop), (4, self._hold), (4, self._verify),
            (2, self._reconcile), (8, self._ask_again),
        ]  # fmt: skip
        (act,) = self.rnd.choices([act for _, act in acts], [weight for weight, _ in acts])
        act()

    def tell(self, what: str) -> None:
        """Into the story."""
        self.story.tell(self.side.name, what)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request. Raises NoAnswer."""
        return self.api.ask(self.rnd, method, path, body, headers)

    def breaks(self, law: str, what: str) -> None:
        """An invariant does not hold."""
        self.story.breaks(law, f"{self.side.name}: {what}")

    # ---- what is known ----------------------------------------------------------------------------------------------------

    def those(self, *fates: Fate) -> list[Taken]:
        """Backups of these fates, oldest first."""
        return [one for one in self.backups.values() if one.fate in fates]

    def watch(self) -> None:
        """Compares the list with what is known, and learns what has ended. Raises NoAnswer."""
        answer = self.api.ask(
            self.rnd, "GET", self.api.contract("v4/backups"), query={"instance_id": self.side.instance, "limit": 100}
        )
        if answer.status == 200:
            self._compare({one["id"]: one for one in answer.body["backups"]})
        self._watch_restore()
        self._watch_checks()

    def _compare(self, listed: dict[str, dict[str, Any]]) -> None:
        for key, one in listed.items():
            if key in self.backups:
                self._compare_one(self.backups[key], one["status"])
            elif one["name"] in self._lost:
                self.tell(f"{one['name']} was begun after all: {key}")
                self.backups[key] = Taken(key, one["name"], Fate.BUILDING, self._lost.pop(one["name"]))
            else:
                self.breaks("only what was asked for is there", f"{key} {one['name']} is listed")
        for taken in self.those(Fate.BUILDING, Fate.COMPLETED, Fate.FAILED):
            if taken.id not in listed:
                self.breaks("no backup vanishes", f"{taken.name} {taken.id} ({taken.fate.value}) is not listed")
                taken.fate = Fate.DELETED

    def _compare_one(self, taken: Taken, status: str) -> None:
        if taken.fate is Fate.DELETED:
            self.breaks("what is deleted stays hidden", f"{taken.name} {taken.id} is listed as {status}")
        elif taken.fate is Fate.BUILDING and status in ("COMPLETED", "FAILED"):
            taken.fate = Fate[status]
            taken.high = tuple(count + 1 for count in self.side.load.acknowledged)
            self.tell(f"{taken.name} is {status}")
            self.story.count(f"backups {status.lower()}", total="backups" if status == "COMPLETED" else None)
        elif taken.fate in (Fate.COMPLETED, Fate.FAILED) and status != taken.fate.name:
            self.breaks("what is completed or failed stays so", f"{taken.name}: {taken.fate.name}, then {status}")
            taken.fate = Fate[status] if status in Fate.__members__ else taken.fate

    def job(self, job: str) -> dict[str, Any]:
        """One job, as its detail tells. Raises NoAnswer."""
        answer = self.ask("GET", self.api.own(f"jobs/{job}"))
        if not answer.definite:
            raise NoAnswer(str(answer))
        if answer.status != 200:
            self.breaks("a job stays findable", f"{job}: {answer}")
        return answer.body

    # ---- taking backups -----------------------------------------------------------------------------------------------------

    def _back_up(self) -> None:
        if len(self.those(Fate.BUILDING, Fate.COMPLETED, Fate.FAILED)) < _MOST:
            self.create()

    def create(self) -> Taken | None:
        """Asks for a backup; None if it was refused. Raises NoAnswer."""
        self._number += 1
        name, low = f"{self.side.name}-{self._number}", self.side.load.acknowledged
        self.story.count("backups asked for")
        self._lost[name] = low
        path = self.api.contract(f"v3/instances/{self.side.instance}/backups")
        answer = self.ask("POST", path, {"name": name, "description": ""})
        if not answer.definite:
            raise NoAnswer(f"{name}: {answer}")
        del self._lost[name]
        if answer.status == 202:
            taken = self.backups[answer.body["backup_id"]] = Taken(answer.body["backup_id"], name, Fate.BUILDING, low)
            self.tell(f"{name} is begun: {taken.id}")
            return taken
        if answer.code != _BUSY:
            self.breaks("a backup can be begun", f"{name}: {answer}")
        self.story.count("backups refused")
        return None

    def _back_up_quietly(self) -> None:
        """While nobody writes: such a backup must give back exactly what was read before and after."""
        if len(self.those(Fate.BUILDING, Fate.COMPLETED, Fate.FAILED)) >= _MOST:
            return
        load, end = self.side.load, time.monotonic() + _QUIET_SECONDS
        with load.quiet():
            try:
                before, seen = load.read(), digest(load.database.contents())
            except ENGINE_ERRORS:
                return
            taken = self.create()
            while taken is not None and taken.fate is Fate.BUILDING and time.monotonic() < end:
                time.sleep(0.1)
                with contextlib.suppress(NoAnswer):
                    self.watch()
            with contextlib.suppress(*ENGINE_ERRORS):
                if taken is not None and taken.fate is Fate.COMPLETED and load.read() == before:
                    taken.low = taken.high = before
                    taken.digest = seen
                    self.story.count("backups taken while nobody wrote")

    def _stop(self) -> None:
        for taken in self.those(Fate.BUILDING):
            answer = self.ask("PUT", self.api.contract(f"v3/backups/{taken.id}"), {"action": "stop"})
            self.tell(f"stop of {taken.name}: {answer}")
            if answer.status == 202:
                self.story.count("backups stopped")

    # ---- deleting -----------------------------------------------------------------------------------------------------------

    def _victim(self) -> Taken | None:
        there = self.those(Fate.COMPLETED, Fate.FAILED)
        if len(there) < self.rnd.choice((1, 2, 3, 3, 4)):
            return None
        return there[-1] if self.rnd.random() < 0.3 else self.rnd.choice(there)

    def _delete(self) -> None:
        victim = self._victim()
        if victim is not None:
            self.delete(victim)

    def _delete_as_previewed(self) -> None:
        victim = self._victim()
        if victim is None:
            return
        seen = self.ask("POST", self.api.own("backups/preview"), {"backup_ids": [victim.id]})
        if seen.status == 200:
            self.delete(victim, seen.body)

    def delete(self, taken: Taken, preview: dict[str, Any] | None = None) -> None:
        """Asks for a deletion. Raises NoAnswer."""
        before, taken.fate = taken.fate, Fate.ASKED
        headers = {} if preview is None else {"If-Match": f'"{preview["version"]}"'}
        self.story.count("deletes asked for")
        answer = self.ask("DELETE", self.api.contract(f"v3/backups/{taken.id}"), headers=headers)
        self.tell(f"delete of {taken.name} {taken.id}: {answer}")
        if not answer.definite:
            raise NoAnswer(str(answer))
        self._judge(taken, before, answer)
        if answer.status == 202 and preview is not None and before is not Fate.ASKED:
            taken.promise = {name: preview[name] for name in ("owned", "freed", "waiting", "undecided", "objects")}

    def _judge(self, taken: Taken, before: Fate, answer: Answer) -> None:
        if answer.status in (200, 202):
            taken.fate = Fate.DELETED
            self.story.count("deletes accepted", total="deletes")
            self._require_not_restoring(taken)
        elif answer.code == _GONE and before is Fate.ASKED:
            taken.fate = Fate.DELETED
            self.story.count("deletes accepted", total="deletes")
        else:
            taken.fate = before
            self.story.count("deletes refused")
            if answer.code == _HELD and taken.held:
                self._release(taken)
                return
            restoring = self._unsure or (self._restore is not None and self._restore.taken is taken)
            allowed = {_BUSY, _RESTORING} if restoring else {_BUSY}
            if answer.code not in allowed and answer.status != 412:
                self.breaks("a delete is refused with reason only", f"{taken.name}: {answer}")

    def _require_not_restoring(self, taken: Taken) -> None:
        restore = self._restore
        if restore is None or restore.taken is not taken:
            return
        with contextlib.suppress(NoAnswer):
            job = self.job(restore.job)
            if job["status"] == "Running":
                self.breaks("a restore protects its backup", f"{taken.name} was deleted while job {restore.job} runs")

    def _delete_some(self) -> None:
        """All or nothing."""
        there = self.those(Fate.COMPLETED, Fate.FAILED)
        if len(there) < 4:
            return
        some = self.rnd.sample(there, self.rnd.randint(2, 3))
        before = {one.id: one.fate for one in some}
        for one in some:
            one.fate = Fate.ASKED
        self.story.count("deletes of several asked for")
        answer = self.ask("DELETE", self.api.contract("v3/instances/backups"), {"backup_ids": [one.id for one in some]})
        self.tell(f"delete of {', '.join(one.name for one in some)}: {answer}")
        if not answer.definite:
            raise NoAnswer(str(answer))
        for one in some:
            one.fate = Fate.DELETED if answer.status == 200 else before[one.id]
        if answer.status == 200:
            self.story.count("deletes accepted", len(some), total="deletes")

    def _ask_again(self) -> None:
        for taken in self.those(Fate.ASKED):
            self.delete(taken)

    def _hold(self) -> None:
        """What is held is not deleted, whatever is asked and answered; then it is released."""
        there = self.those(Fate.COMPLETED)
        if not there:
            return
        taken = self.rnd.choice(there)
        taken.held = True
        if self.ask("PUT", self.api.own(f"backups/{taken.id}/hold"), {"reason": "torture"}).status == 200:
            self.story.count("holds")
            with contextlib.suppress(NoAnswer):
                taken.fate = Fate.ASKED
                answer = self.ask("DELETE", self.api.contract(f"v3/backups/{taken.id}"))
                if answer.definite:
                    taken.fate = Fate.COMPLETED
                if answer.definite and answer.code not in (_HELD, _RESTORING, _BUSY):
                    self.breaks("what is held is not deleted", f"{taken.name}: {answer}")
        self._release(taken)

    def _release(self, taken: Taken) -> None:
        released = self.ask("DELETE", self.api.own(f"backups/{taken.id}/hold"))
        if released.definite and released.status != 200:
            self.breaks("a hold can be released", f"{taken.name}: {released}")

    # ---- restoring ----------------------------------------------------------------------------------------------------------

    def _begin_restore(self) -> None:
        there = self.those(Fate.COMPLETED)
        if there and self._restore is None:
            taken = self.rnd.choice(there)
            self.restore(taken)
            if self.rnd.random() < 0.4:
                self.delete(taken)  # refused, or the restore has ended

    def restore(self, taken: Taken) -> None:
        """Asks for a restore into the spare database. Raises NoAnswer."""
        self.restored, unsure, self._unsure = None, self._unsure, True
        self.story.count("restores asked for")
        path = self.api.contract(f"v3/instances/{self.side.target_instance}/recovery")
        answer = self.ask("POST", path, {"backup_id": taken.id, "overwrite": True})
        self.tell(f"restore of {taken.name}: {answer}")
        if not answer.definite:
            raise NoAnswer(str(answer))
        self._unsure = unsure
        if answer.status == 202:
            self._restore = _Restore(answer.body["job_id"], taken)
        else:
            self.breaks("a completed backup can be restored", f"{taken.name}: {answer}")

    def _watch_restore(self) -> None:
        if self._restore is None:
            return
        job = self.job(self._restore.job)
        if job.get("status") == "Running":
            return
        taken, self._restore = self._restore.taken, None
        self.tell(f"restore of {taken.name} is {job.get('status')} {job.get('fail_reason') or ''}")
        done = job.get("status") == "Completed"
        self.story.count("restores completed" if done else "restores failed", total="restores" if done else None)
        if job.get("status") == "Completed" and not self._unsure:
            self.restored = taken
            with contextlib.suppress(*ENGINE_ERRORS):
                self.prove(self.side.target, taken)

    def prove(self, database: Database, taken: Taken) -> None:
        """The database holds what the backup must give back, to the byte. Raises the client's errors."""
        contents = database.contents()
        try:
            cut = cut_in(contents)
        except Broken as error:
            self.breaks("a restore gives one moment back", f"{taken.name}: {error}")
            return
        other = difference(contents, database.expected(cut))
        high = taken.high or self.side.load.acknowledged
        if other is not None:
            self.breaks("a restore gives back what was there", f"{taken.name} at {cut}: {other}")
        elif not all(low <= count <= most for low, count, most in zip(taken.low, cut, high, strict=True)):
            self.breaks("a restore gives back its own moment", f"{taken.name}: {cut} is not in {taken.low} … {high}")
        elif taken.digest is not None and digest(contents) != taken.digest:
            self.breaks("a restore gives back what was read", f"{taken.name} at {cut}: another digest")
        else:
            self.story.count("restores proven to the byte", total="restores proven")

    # ---- checks of the store --------------------------------------------------------------------------------------------------

    def _verify(self) -> None:
        there = self.those(Fate.COMPLETED)
        body = {"backup_id": self.rnd.choice(there).id} if there and self.rnd.random() < 0.7 else {"sample": 20}
        self._check("verifications", body)

    def _reconcile(self) -> None:
        self._check("reconciliations", {})

    def _check(self, what: str, body: dict[str, Any]) -> None:
        answer = self.ask("POST", self.api.own(what), body)
        if answer.status == 202:
            self._checks[answer.body["job_id"]] = what

    def _watch_checks(self) -> None:
        for job, what in list(self._checks.items()):
            told = self.job(job)
            if told.get("status") != "Running":
                del self._checks[job]
                self.story.count(f"{what} ended")
                self._judge_check(what, told)

    def _judge_check(self, what: str, told: dict[str, Any]) -> None:
        """Whatever fails around a check, it must not find damage where there is none."""
        result = told.get("result") or {}
        if what == "verifications" and result.get("outcome") == "damaged":
            self.breaks("a verification finds no damage where there is none", str(result)[:600])
        if what == "reconciliations" and result and result["outcome"] != "clean":
            self.breaks("a reconciliation finds no difference where there is none", str(result)[:600])

    # ---- coming to rest -------------------------------------------------------------------------------------------------------

    def settle(self, seconds: float) -> None:
        """When nothing fails any more: everything that was begun ends, and everything uncertain becomes certain. Raises Stuck."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(NoAnswer):
                self._ask_again()
                self.watch()
                if not (self.those(Fate.BUILDING, Fate.ASKED) or self._restore or self._checks):
                    break
            if time.monotonic() > end:
                raise Stuck(f"{self.side.name}: {', '.join(self._pending())} {seconds:.0f} s after everything was mended")
            time.sleep(0.2)

    def rested(self) -> None:
        """No job runs any more: nothing is under way that was not answered."""
        self._unsure = False

    def _pending(self) -> Iterable[str]:
        for taken in self.those(Fate.BUILDING, Fate.ASKED):
            yield f"{taken.name} is {taken.fate.value}"
        if self._restore:
            yield f"the restore of {self._restore.taken.name} goes on"
        for what in self._checks.values():
            yield f"one of the {what} goes on"
