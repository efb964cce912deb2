"""What must hold whenever nothing fails and nobody acts, looked at from outside."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Iterable
from typing import Any

from support.own_backup import is_own
from torture.kit.api import NoAnswer, Stuck
from torture.kit.houses import House
from torture.kit.story import Story
from torture.kit.users import Fate, Taken, User

_REST = 180.0  # seconds: twice the longest pause between two tries of a job, and some
_JOB = 120.0
_MARK = re.compile(r"owner/\d+\Z|[0-9a-f]{32}/closed\Z")


class Laws:
    """Every check adds what it finds to the story; none stops another."""

    def __init__(self, house: House, story: Story, rnd: random.Random) -> None:
        self._house, self._story, self._rnd = house, story, rnd
        self._api = house.api
        self._troubles: set[str] = set()

    # ---- coming to rest -------------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Everything that was begun ends. Raises Stuck."""
        began = time.monotonic()
        self._house.mended()
        for user in self._house.users:
            user.settle(_REST)
        self._idle()
        self._end_deletions()
        for user in self._house.users:
            user.rested()
            self._insist_watch(user)
        self._story.took("way to rest after faults", time.monotonic() - began)

    def _idle(self) -> None:
        end = time.monotonic() + _REST
        while active := self._house.books.rows("SELECT kind, state, error FROM job WHERE state IN ('QUEUED', 'RUNNING')"):
            if time.monotonic() > end:
                raise Stuck(f"jobs are stuck: {active}")
            time.sleep(0.2)

    def _end_deletions(self) -> None:
        """A deletion that failed for good, since the store refused, goes on when it is asked for again."""
        for _ in range(3):
            failed = self._api.pages(self._rnd, self._api.own("deletions"), "deletions", state="failed")
            if not failed:
                return
            for one in failed:
                self._story.tell("rest", f"the deletion of {one['backup_name']} failed: {one['fail_reason']}")
                self._story.count("deletions that failed and were asked for again")
                answer = self._api.insist(self._rnd, "DELETE", self._api.contract(f"v3/backups/{one['backup_id']}"))
                if answer.status != 202:
                    self._story.breaks("a failed deletion goes on", f"{one['backup_name']}: {answer}")
            self._idle()
        self._story.breaks("a failed deletion goes on", f"{[one['fail_reason'] for one in failed]}")

    def _insist_watch(self, user: User) -> None:
        for _ in range(50):
            try:
                user.watch()
                return
            except NoAnswer:
                time.sleep(0.2)
        raise Stuck("the list of backups does not answer at rest")

    # ---- at rest --------------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """All but restores."""
        self.receipts()
        self.reconciled(close_late=False)
        self.store_is_catalog()
        self.failed_own_nothing()
        self.targets()
        self.logs()

    def receipts(self) -> None:
        """Every deletion is done; promised = freed and waiting; what was to be settled is; a preview's numbers were kept."""
        previews = {one.id: one.promise for user in self._house.users for one in user.backups.values() if one.promise}
        deletions = self._api.pages(self._rnd, self._api.own("deletions"), "deletions")
        for told in deletions:
            name, promised, receipt = told["backup_name"], told["promised"], told["receipt"]
            if told["state"] != "done":
                self._story.breaks("every deletion ends", f"{name} is {told['state']}: {told['fail_reason']}")
                continue
            if receipt["freed"] + receipt["hidden"] != promised["freed"] or receipt["waiting"] != promised["waiting"]:
                self._story.breaks("promise = receipt", f"{name}: {promised}, {receipt}")
            if not promised["undecided"] and receipt["settled_freed"] + receipt["settled_waiting"]:
                self._story.breaks("nothing is settled that was decided", f"{name}: {promised}, {receipt}")
            preview = previews.get(told["backup_id"])
            if preview is not None and preview != promised:
                self._story.breaks("preview = promise", f"{name}: {preview}, {promised}")
        self._story.count("receipts checked", len(deletions))
        self._require_deletions({told["backup_id"] for told in deletions})

    def _require_deletions(self, told: set[str]) -> None:
        for user in self._house.users:
            for taken in user.those(Fate.DELETED):
                if taken.id not in told:
                    self._story.breaks("an accepted delete is found for ever", f"{taken.name} {taken.id}")

    def reconciled(self, *, close_late: bool) -> None:
        """The service's own comparison agrees."""
        asked = self._api.insist(self._rnd, "POST", self._api.own("reconciliations"), {"close_late": close_late})
        result = self.job(asked.body["job_id"])["result"] or {}
        if result.get("outcome") != "clean":
            self._story.breaks("a reconciliation is clean at rest", str(result)[:1500])
        elif result["late"]["removed"]["count"]:
            self._story.count("puts that landed late and were removed again", result["late"]["removed"]["count"])
        self._idle()

    def _objects(self) -> dict[str, int]:
        """The store's, but for the service's own backup, which comes and goes as things change."""
        return {name: size for name, size in self._house.store.objects().items() if not is_own(name)}

    def store_is_catalog(self) -> None:
        """Object for object, byte for byte of size; nothing planned, condemned, unswept or stopped is left."""
        books = self._house.books
        there = self._objects()
        rows = books.rows("SELECT name, bytes, state FROM object WHERE kind NOT IN ('catalog', 'trail')")
        stored = {name: size for name, size, state in rows if state == "STORED"}
        late = {name for name, _, state in rows if state == "LATE"}
        odd = sorted({state for _, _, state in rows} - {"STORED", "LATE"})
        wrong = {name for name in stored.keys() & there.keys() if stored[name] != there[name]}
        for what, names in (
            ("not in the store", stored.keys() - there.keys()), ("of another size", wrong),
            ("in the store without a row", there.keys() - stored.keys()), ("late, and there", late & there.keys()),
        ):  # fmt: skip
            if names:
                self._story.breaks("store = catalog", f"{len(names)} objects {what}: {sorted(names)[:5]}")
        if odd:
            self._story.breaks("nothing is left on its way", f"objects are {odd}")
        for query in (
            "SELECT id, lineage, cause FROM decision WHERE swept = false",
            "SELECT id, lineage, cause FROM decision WHERE settled = false",
            "SELECT id, stopped FROM lineage WHERE stopped IS NOT NULL",
            "SELECT id, state FROM backup WHERE state NOT IN ('COMPLETED', 'FAILED', 'DELETED')",
            "SELECT id, rewriting FROM object WHERE rewriting IS NOT NULL",
        ):
            if left := books.rows(query):
                self._story.breaks("nothing is left on its way", f"{query}: {left[:3]}")
        for server in self._house.servers:
            if scratch := [str(one.name) for one in (server.folder / "scratch").glob("*")]:
                self._story.breaks("nothing is left on its way", f"{server.name}: scratch holds {scratch[:5]}")
        self._story.count("walks over the store")
        self._story.count("objects compared with the catalog", len(there))

    def failed_own_nothing(self) -> None:
        """A FAILED backup's deletion would free nothing."""
        for user in self._house.users:
            for taken in user.those(Fate.FAILED):
                seen = self._api.insist(self._rnd, "POST", self._api.own("backups/preview"), {"backup_ids": [taken.id]})
                if seen.status != 200 or seen.body["owned"]:
                    self._story.breaks("a failed backup owns nothing", f"{taken.name}: {seen} {seen.body}")

    def targets(self) -> None:
        """What a completed restore has left is the backup alone, and is so still."""
        for user in self._house.users:
            if user.restored is None:
                continue
            left = user.side.target.leftovers()
            if left is not None:
                self._story.breaks("a completed restore leaves nothing behind", f"{user.side.name}: {left}")
            user.prove(user.side.target, user.restored)

    def logs(self) -> None:
        """No server speaks of a defect."""
        for server in self._house.servers:
            for trouble in server.troubles():
                if trouble not in self._troubles:
                    self._troubles.add(trouble)
                    self._story.breaks("no job ends in a defect", f"{server.name}: {trouble}")

    # ---- acting at rest -----------------------------------------------------------------------------------------------------

    def job(self, job: str) -> dict[str, Any]:
        """A job once it has ended. Raises Stuck."""
        end = time.monotonic() + _JOB
        while time.monotonic() < end:
            answer = self._api.insist(self._rnd, "GET", self._api.own(f"jobs/{job}"))
            if answer.body.get("status") != "Running":
                return answer.body
            time.sleep(0.1)
        raise Stuck(f"job {job} does not end: {answer.body}")

    def works(self) -> None:
        """With nothing failing a backup completes and the oldest can be deleted."""
        for user in self._house.users:
            with contextlib.suppress(NoAnswer):
                taken = user.create()
                if taken is None:
                    self._story.breaks("at rest a backup can be taken", "it is refused")
                    continue
                user.settle(_REST)
                if taken.fate is not Fate.COMPLETED:
                    detail = self._api.insist(self._rnd, "GET", self._api.own(f"backups/{taken.id}")).body
                    self._story.breaks("at rest a backup completes", f"{taken.name}: {detail.get('fail_reason')}")
            there = user.those(Fate.COMPLETED, Fate.FAILED)
            if len(there) > 3:
                self.delete(user, there[0])

    def prove(self, some: Iterable[tuple[User, Taken]]) -> None:
        """Restores backups into databases that nothing else has touched, and compares all that is there then."""
        for user, taken in some:
            user.side.proof.empty()
            path = self._api.contract(f"v3/instances/{user.side.proof_instance}/recovery")
            answer = self._api.insist(self._rnd, "POST", path, {"backup_id": taken.id, "overwrite": True})
            if answer.status != 202:
                self._story.breaks("a completed backup can be restored", f"{taken.name}: {answer}")
                continue
            job = self.job(answer.body["job_id"])
            if job["status"] != "Completed":
                self._story.breaks("a surviving backup restores", f"{taken.name}: {job['fail_reason']}")
                continue
            user.prove(user.side.proof, taken)
            self._story.count("restores into fresh engines", total="restores")

    def survivors(self) -> list[tuple[User, Taken]]:
        """Every backup that must restore."""
        return [(user, taken) for user in self._house.users for taken in user.those(Fate.COMPLETED)]

    def some_survivors(self, most: int) -> list[tuple[User, Taken]]:
        """A few of them, at random."""
        every = self.survivors()
        return self._rnd.sample(every, min(most, len(every)))

    def delete(self, user: User, taken: Taken) -> None:
        """One delete with nothing beside it: the store's change is what its receipt says."""
        if taken.held:  # perhaps: its hold, or its release, was not answered
            self._api.insist(self._rnd, "DELETE", self._api.own(f"backups/{taken.id}/hold"))
        before = sum(self._objects().values())
        answer = self._api.insist(self._rnd, "DELETE", self._api.contract(f"v3/backups/{taken.id}"))
        self._story.count("deletes asked for")
        if answer.status != 202:
            self._story.breaks("a backup can be deleted", f"{taken.name}: {answer}")
            return
        taken.fate = Fate.DELETED
        self._story.count("deletes accepted", total="deletes")
        job = self.job(answer.body["job_id"])
        self._idle()
        told = self._api.insist(self._rnd, "GET", self._api.own(f"deletions/{taken.id}")).body
        receipt = told.get("receipt", {})
        if job["status"] != "Completed" or told.get("state") != "done":
            self._story.breaks("at rest a delete ends", f"{taken.name}: {job['fail_reason']}")
            return
        change = sum(self._objects().values()) - before
        wanted = receipt["put_bytes"] - receipt["freed"] - receipt["reclaimed"]["net"]
        if change != wanted:
            self._story.breaks("the store's change is what the receipt says", f"{taken.name}: {change}, not {wanted}: {receipt}")
        self._story.count("deletes whose change of the store was measured")

    def delete_all(self) -> None:
        """Everything goes, one after the other in random order; nothing is left but marks."""
        for user in self._house.users:
            there = user.those(Fate.COMPLETED, Fate.FAILED)
            self._rnd.shuffle(there)
            for taken in there:
                self.delete(user, taken)
        self.receipts()
        self.reconciled(close_late=True)
        self.store_is_catalog()
        left = [name for name in self._objects() if not _MARK.match(name)]
        if left:
            self._story.breaks("nothing is left but marks", f"{len(left)} objects: {sorted(left)[:5]}")

    def ends(self) -> None:
        """Every server ends in order when it is told to, and leaves no unfinished put."""
        for server in self._house.servers:
            status = server.end()
            if status != 0:
                self._story.breaks("a server ends in order", f"{server.name}: status {status}")
        if unfinished := self._house.store.unfinished():
            self._story.breaks("no unfinished put is left", f"{unfinished[:5]}")
