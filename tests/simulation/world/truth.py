"""What must be so, seen from outside: the store's objects as they come and go, the catalog's rows after each commit.

After every commit and every removal: states move only as users asked, what is removed was condemned before, and of everything
that a completed backup needs some object is still there. A backup is read back through the shipped reader, byte for byte, when it
completes, when a job that removed something in its lineage ends, and at rest.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pyroaring import BitMap

from simulation.world.baton import Violation
from simulation.world.ledger import Ledger
from simulation.world.processes import Process, SimCatalog
from simulation.world.surroundings import Databases
from strongroom.backups.locating import CatalogLocator, read_manifest
from strongroom.repository import names
from strongroom.repository.errors import RepositoryError
from strongroom.repository.fetching import Holder, Locator
from strongroom.repository.keys import LineageKeys
from strongroom.repository.manifest import Manifest
from strongroom.repository.pack import read_index
from strongroom.repository.reader import BackupReader
from strongroom.repository.records import Named
from strongroom.storage._bytes import span
from strongroom.storage.base import StoreError
from strongroom.storage.memory import MemoryStore
from support.accounts import HOLDINGS, check_books

FAIR_FAILURES = re.compile(
    r"the store failed: |stopped by a user|its worker was lost|.*did not answer in time|cancelled by a user|the database was away"
    r"|the engine went away|.*no room|the catalog.s database was restored|.*condemned|OperationalError"
)
"""Why a build may fail here. Anything else is a defect that showed as a failed backup."""

_STORE = r"the store failed: |its worker was lost|.*did not answer in time|the database was away|OperationalError"
FAIR_ENDS = {
    "restore": re.compile(rf"{_STORE}|the engine went away|.*is not registered any more|.*access denied"),
    "delete": re.compile(r"access denied|nobody approved the deletion|backup \w+ is held"),
    "remove": re.compile(r"access denied"),
    "verify": re.compile(_STORE),
    "reconcile": re.compile(_STORE),
    "catalog-snapshot": re.compile(r"access denied|another catalog"),
}
"""The same of other jobs, by kind."""


_ROOTS = """
SELECT p.backup, o.name, l.sealed_keys FROM part p JOIN object o ON o.id = p.root JOIN lineage l ON l.id = p.lineage
WHERE o.state = 'STORED'
"""
_HOLDINGS = """
SELECT h.lineage, h.pack, h.*, o.name FROM holding h JOIN object o ON o.id = h.object WHERE o.state = 'STORED'
ORDER BY h.lineage, h.pack, h.object
"""


_MARKS = "SELECT backup, before, until, lapses, asked_by, approved_by FROM pending_deletion"


class WatchedStore(MemoryStore):
    """The true store, which tells what happens in it."""

    def __init__(self, removing: Callable[[Sequence[str]], None], landed: Callable[[str], None]) -> None:
        super().__init__()
        self._removing, self._landed = removing, landed
        self.sound: dict[str, bytes] = {}  # of objects that have rotten bytes: as they were

    def put_new(self, name: str, data: bytes | memoryview | Sequence[bytes | memoryview]) -> int:
        size = super().put_new(name, data)
        self._landed(name)
        return size

    def delete_many(self, names: Sequence[str]) -> None:
        self._removing([name for name in names if name in self._objects])
        super().delete_many(names)

    @property
    def objects(self) -> dict[str, bytes]:
        """Everything there is."""
        return self._objects

    def names(self) -> Iterable[str]:
        """Every object there is."""
        return self._objects.keys()

    def size(self) -> int:
        """Bytes of everything there is."""
        return sum(map(len, self._objects.values()))

    def damage(self, name: str, at: int) -> None:
        """One of the object's bytes rots."""
        self.sound.setdefault(name, self._objects[name])
        content = bytearray(self._objects[name])
        content[at] ^= 0x55
        self._objects[name] = bytes(content)


class _Sound(MemoryStore):
    """The store as it would be if nothing had rotted: rot takes the bytes from a backup, never its place."""

    def __init__(self, store: WatchedStore) -> None:
        super().__init__()
        self._store = store

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        content = self._store.sound.get(name) if name in self._store.objects else None
        if content is None:
            return self._store.get(name, start, length)
        first, end = span(len(content), start, length)
        return content[first:end]


@dataclass(slots=True)
class Needs:
    """What a completed backup consists of."""

    lineage: str
    seq: int
    root: str  # name of its manifest
    packs: dict[int, BitMap]


class _ByStore:
    """Finds packs by what is really in the store."""

    def __init__(self, truth: Truth, lineage: str) -> None:
        self._truth, self._lineage = truth, lineage

    def objects_of(self, pack: int) -> Sequence[Holder]:
        """Every object that holds chunks of the pack."""
        return [
            Holder(name.rsplit("/", 1)[1], name, None)
            for name in self._truth.store.names()
            if name.startswith(self._lineage) and pack in self._truth.content(name)
        ]


@dataclass
class Truth:
    """Follows one catalog and one store; `broken` is told what is wrong, `meet` what happens, `acting` says whose doing it is."""

    engine: Databases
    broken: Callable[[str], None]
    meet: Callable[[str], None]
    acting: Callable[[], Process | None]
    landed_late: set[str]  # objects that need no row: their puts came when nobody awaited them any longer
    store: WatchedStore = field(init=False)
    checker: Process = field(init=False)
    states: dict[str, str] = field(default_factory=dict)
    held: dict[str, float | None] = field(default_factory=dict)  # until when; None: until it is released
    asked: set[str] = field(default_factory=set)  # backups whose deletion a user asked for
    asks: Counter[str] = field(default_factory=Counter)  # of those, calls that are not answered yet
    undeletes: Counter[str] = field(default_factory=Counter)  # the same of calls that call one back
    marks: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # of deletions that wait: see _MARKS
    needs: dict[str, Needs] = field(default_factory=dict)  # of backups that must restore
    places: dict[str, object] = field(default_factory=dict)  # where the catalog said that they lie when they were read last
    condemned: set[str] = field(default_factory=set)  # names that a committed decision gave to a removal
    condemned_before: set[str] = field(default_factory=set)  # the same of catalogs that were replaced
    aside: set[str] = field(default_factory=set)  # unknown names that an operator wants moved aside
    overmarked: set[tuple[str, int | None]] = field(default_factory=set)  # (lineage, seq) of marks that such a worker put
    slipped: set[str] = field(default_factory=set)  # names that a worker of a catalog before removed after it was replaced
    ledger: Ledger = field(default_factory=Ledger)
    went: set[str] = field(default_factory=set)  # names that were removed
    keys: dict[str, LineageKeys] = field(default_factory=dict)
    contents: dict[str, dict[int, BitMap]] = field(default_factory=dict)
    spoilt: set[str] = field(default_factory=set)  # backups with rotten bytes: they need not read, and keep what they need
    rotten: list[tuple[int, int]] = field(default_factory=list)  # (pack, number)
    known_rotten: list[tuple[int, int]] = field(default_factory=list)  # those that a verification has told of
    buried: set[str] = field(default_factory=set)  # backups that must never come back
    never_whole: set[str] = field(default_factory=set)  # backups that were deleted after their build had failed
    sender: Process | None = None  # whose put lands just now, long after it was sent
    seen: int = -1
    read_backs: int = 0
    older: bool = False  # the catalog is older than the store: what it forgot is not its fault
    rebuilt: bool = False  # lifespans are hulls from here on
    between: bool = False  # the catalog is being replaced: what its rows say counts when that has ended
    taken_over: bool = False  # a rebuilt catalog has said in the store that it owns it
    store_was_full: bool = False  # then packs go before their backup's grave
    orderly: bool = True  # what goes before what is checked, not only what comes of it

    def __post_init__(self) -> None:
        self.store = WatchedStore(self.removing, self.landed)
        self._sound = _Sound(self.store)
        self._recovering = False
        self._answered: list[tuple[Counter[str], str]] = []

    def continue_from(self, other: Truth, objects: Mapping[str, bytes]) -> None:
        """Begins with what another world knew at rest."""
        self.store.objects.update(objects)
        self.states, self.needs = dict(other.states), dict(other.needs)
        self.places = dict(other.places)
        self.asked, self.condemned = set(other.asked), set(other.condemned)
        self.buried = set(other.buried)
        self.keys, self.contents = dict(other.keys), dict(other.contents)
        self.seen = self.checker.sim.commits

    # ---- after commits -----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """After a step: if anything was committed, the catalog's rows; and whatever lies elsewhere now is read back."""
        sim = self.checker.sim
        if sim.commits != self.seen and not self.between:
            self._look(sim)
        self._forget_answered()

    def _look(self, sim: SimCatalog) -> None:
        self.seen = sim.commits
        rows = sim.raw.execute("SELECT id, state, held, held_until, fail_reason FROM backup").fetchall()
        for key, state, held, until, reason in rows:
            before = self.states.get(key)
            if state != before:
                self._moved(key, before, state, reason)
                self.states[key] = state
            if state == "DELETING" and reason is not None:
                self.never_whole.add(key)
            if held is None:
                self.held.pop(key, None)
            else:
                self.held[key] = until
        self.marks = {row[0]: row for row in sim.raw.execute(_MARKS)}
        for name, late in sim.raw.execute("SELECT name, late FROM object WHERE state IN ('CONDEMNED', 'LATE')"):
            if late and name not in self.condemned and "/rewrite/" in name:
                self.meet("rewriting gives up what it planned")
            self.condemned.add(name)
        if not self.older:
            self._read_moved()

    @contextmanager
    def asking(self, *keys: str) -> Iterator[None]:
        """While a user's call asks for these to be deleted."""
        self.asked.update(keys)
        with self._calling(self.asks, *keys):
            yield

    @contextmanager
    def calling_back(self, key: str) -> Iterator[None]:
        """While a user's call calls the deletion of this back."""
        with self._calling(self.undeletes, key):
            yield

    @contextmanager
    def _calling(self, calls: Counter[str], *keys: str) -> Iterator[None]:
        """What a call has done is looked at once it is answered."""
        calls.update(keys)
        try:
            yield
        finally:
            self._answered += [(calls, key) for key in keys]

    def _forget_answered(self) -> None:
        for calls, key in self._answered:
            calls[key] -= 1
        self._answered.clear()

    def _check_asked(self, key: str, before: str | None, state: str) -> None:
        """A deletion begins within a call that asks for it, and once decided it is for ever; one that has waited was due."""
        if self.older or self.rebuilt:
            return
        if before in ("COMPLETED", "FAILED") and state in ("PENDING", "DELETING") and not self.asks[key]:
            self.broken(f"backup {key} went from {before} to {state} and nobody asks for it")
        elif before in ("DELETING", "DELETED") and state not in ("DELETING", "DELETED"):
            self.broken(f"backup {key} was {before} and is {state} again")
        elif before == "PENDING" and state == "DELETING":
            _, _, until, lapses, asked, approved = self.marks[key]
            self.meet("a deletion that waited is decided")
            if self.checker.ctx.ambient.now() < until:
                self.broken(f"backup {key} is being deleted before its window has ended")
            if lapses is not None and approved in (None, asked):
                self.broken(f"backup {key} is being deleted, asked for by {asked} and approved by {approved}")

    def _there_again(self, key: str, state: str) -> None:
        """A deletion that waited has ended otherwise: the backup is what it was."""
        self.meet("a deletion is called back" if self.undeletes[key] else "a deletion is called off")
        was = self.marks[key][1] if key in self.marks else state
        if state != was:
            self.broken(f"backup {key} was {was}, and is {state} once its deletion is called back")

    def _moved(self, key: str, before: str | None, state: str, reason: str | None) -> None:
        self._check_asked(key, before, state)
        if before == "PENDING" and state in ("COMPLETED", "FAILED"):
            self._there_again(key, state)
        elif state == "PENDING":
            self.meet("a deletion waits")
        elif state == "COMPLETED" and before != "COMPLETED":
            self.meet("a backup is completed")
            if key in self.buried:
                self.broken(f"backup {key} was deleted and is COMPLETED")
            self.learn(key)
        elif state == "DELETING":
            if key not in self.asked:
                self.broken(f"backup {key} is being deleted and nobody asked for it")
            if key in self.held:
                until = self.held[key]
                if until is None or self.checker.ctx.ambient.now() < until:
                    self.broken(f"backup {key} is being deleted although it was held")
                self.meet("a hold that is over lets a delete through")
            self._check_unread(key)
            self._tell_apart(key, before)
            self.needs.pop(key, None)
        elif state == "DELETED":
            self._check_receipt(key)
        elif state == "FAILED" and before == "BUILDING":
            self.meet("a build is stopped by a user" if (reason or "").startswith("stopped") else "a build fails")
            if not self._fair(reason or ""):
                self.broken(f"the build {key} failed for a reason that there should not be: {reason}")
        elif before == "COMPLETED" and state != "COMPLETED":
            self.broken(f"backup {key} went from COMPLETED to {state}")

    def _check_unread(self, key: str) -> None:
        reading = "SELECT id FROM job WHERE kind = 'restore' AND backup = ? AND state IN ('QUEUED', 'RUNNING')"
        row = self.checker.sim.raw.execute(reading, (key,)).fetchone()
        if row is not None and not self.older:
            self.broken(f"backup {key} is being deleted although job {row[0]} restores it")

    def _tell_apart(self, key: str, before: str | None) -> None:
        """What sort of deletion this is."""
        if before == "FAILED":
            self.meet("a failed backup is deleted")
        raw = self.checker.sim.raw
        gaps = raw.execute("SELECT lineage, seq, before, after FROM decision WHERE cause = 'DELETE' AND backup = ?", (key,))
        for lineage, seq, earlier, later in gaps.fetchall():
            if later is None:
                self.meet("a head is deleted" if earlier else "the last backup of a lineage is deleted")
            child = raw.execute("SELECT 1 FROM part WHERE lineage = ? AND parent = ? AND state = 'BUILDING'", (lineage, seq))
            if child.fetchone() is not None:
                self.meet("a parent is deleted while its child is being built")

    def _fair(self, reason: str) -> bool:
        if (self.older and "older than the store" in reason) or (self.rotten and re.search("damaged|suspect", reason)):
            return True
        return FAIR_FAILURES.match(reason) is not None

    def _check_receipt(self, key: str) -> None:
        row = self.checker.sim.raw.execute(
            "SELECT promised_freed, freed, promised_waiting, waiting, promised_objects, removed_objects, owned, rewrite_written,"
            " rewrite_dropped, put_bytes, thorough, promised_rewrite FROM deletion WHERE backup = ?",
            (key,),
        ).fetchone()
        self.buried.add(key)
        if self.older or (self.rebuilt and self.slipped):
            return
        if row is None:
            self.broken(f"backup {key} is DELETED without a receipt")
            return
        for what, promised, done in (("freed", *row[0:2]), ("waiting", *row[2:4]), ("objects", *row[4:6])):
            if promised != done:
                self.broken(f"the delete of {key} promised {promised} ({what}) and reports {done}")
        if not self.overmarked:
            self._check_change(key, freed=row[1], reclaimed=row[8] - row[7], put=row[9])
        if row[7] > row[6] and not row[10]:
            self.broken(f"the delete of {key} rewrote {row[7]} bytes and its backup owned {row[6]}")
        if row[8]:
            self.meet("rewriting replaces objects")
        left = self.checker.sim.raw.execute(
            "SELECT name FROM object WHERE removal IN (?, ?) AND state IN ('CONDEMNED', 'PLANNED')",
            (f"delete:{key}", f"rewrite:{key}"),
        ).fetchall()
        if left:
            self.broken(f"backup {key} is DELETED and {len(left)} of its objects are not gone, first {left[0][0]}")

    def _check_change(self, key: str, freed: int, reclaimed: int, put: int) -> None:
        """The store's change over the job is what the receipt says."""
        if freed != self.ledger.freed(key):
            self.broken(f"the delete of {key} reports {freed} bytes freed, {self.ledger.freed(key)} went")
        change = self.ledger.change(key)
        for name in self.ledger.put_by(key):
            row = self.row_of(name)
            if row is not None and row[0] == "CONDEMNED" and not row[2]:
                change += len(self.store.objects[name])
        if change != freed + reclaimed - put:
            self.broken(
                f"the delete of {key} reports {freed} bytes freed, {reclaimed} reclaimed and {put} put, and the store has"
                f" {change} less"
            )

    # ---- the store ---------------------------------------------------------------------------------------------------

    def row_of(self, name: str) -> tuple[str, str | None, int] | None:
        """What the catalog says of an object: (state, removal, bytes)."""
        found: tuple[str, str | None, int] | None = self.checker.sim.raw.execute(
            "SELECT state, removal, bytes FROM object WHERE name = ?", (name,)
        ).fetchone()
        return found

    def landed(self, name: str) -> None:
        """An object has come into being, by who acts or by who sent it long ago."""
        process, row = self.sender or self.acting(), self.row_of(name)
        if process is not None and process.kind == "operator" and name.startswith("owner/"):
            self.taken_over = True
        elif process is not None and not process.belongs and (process.beside or row is None):
            self.landed_late.add(name)
            if self.taken_over and self.sender is None:  # else it may have been sent before
                self._check_mark(process, name)
        elif row is not None:
            self.ledger.landed(name, len(self.store.objects[name]), row[0], row[1])

    def _check_mark(self, process: Process, name: str) -> None:
        """A worker of the catalog before may end the one mark that it was about to put when its catalog was replaced."""
        parsed = names.parse(name)
        if parsed is None or parsed.kind not in ("grave", "closed"):
            return
        self._slips(process, f"goes on putting marks: {name}")
        self.overmarked.add((parsed.lineage or "", parsed.seq))

    def removing(self, some: Sequence[str]) -> None:
        """Just before objects go: may they, and does anything that must restore need them?"""
        process = self.acting()
        going = set(some)
        stale = process is not None and not process.belongs
        if stale and some:
            assert process is not None
            self._by_one_of_before(process, some)
        for name in some:
            row = self.row_of(name)
            if not stale and not self._may_go(name, row):
                self.broken(f"{name} is removed and no decision condemned it")
            if row is not None:
                if row[0] == "LATE":
                    self.meet("a late object is removed again")
                if name not in self.went:  # what a late put brings back counts no more
                    self.ledger.went(name, len(self.store.objects[name]), *row)
            self.went.add(name)
            self._check_needed(name, going)

    def _may_go(self, name: str, row: tuple[str, str | None, int] | None) -> bool:
        if name in self.aside and row is None:
            self.meet("an unknown object is moved aside")
            return True
        return name in self.condemned

    def _by_one_of_before(self, process: Process, some: Sequence[str]) -> None:
        """By a worker of the catalog before: what that has condemned, and once the store has another owner, the one batch at most
        that it was about to remove just then. In the place of its catalog it goes on by what is there now."""
        condemned = {name for (name,) in process.sim.raw.execute("SELECT name FROM object WHERE state IN ('CONDEMNED', 'LATE')")}
        before = self.condemned_before | self.condemned if self.between else self.condemned_before
        for name in some:
            if name not in before and name not in condemned:
                self.broken(f"{name} is removed and no decision of the catalog before condemned it")
        if self.taken_over and (process.beside or not condemned.issuperset(some)):
            self._slips(process, f"goes on removing: {some[0]}")
            self.slipped.update(some)

    def _slips(self, process: Process, what: str) -> None:
        process.slips += 1
        if process.slips > 1:
            self.broken(f"{process.name}, of the catalog before, {what}")

    def _check_needed(self, name: str, going: set[str]) -> None:
        parsed = names.parse(name)
        if parsed is None or parsed.lineage is None:
            return
        given_up = self._given_up() if self.between else set()
        others = [(key, need) for key, need in self.needs.items() if need.lineage == parsed.lineage and key not in given_up]
        if self.orderly:
            self._check_order(name, parsed)
        if not others:
            return
        for key, need in others:
            if need.root == name:
                self.broken(f"the manifest of backup {key} is removed")
        if parsed.kind == "key" and not any(
            one.startswith(f"{parsed.lineage}/key/") for one in self.store.names() if one not in going
        ):
            self.broken(f"the last key of lineage {parsed.lineage} is removed while backups need it")
        if parsed.kind in ("pack", "rewrite"):
            for pack in self.content(name):
                left = self._there(parsed.lineage, pack, going)
                for key, need in others:
                    missing = need.packs.get(pack, BitMap()) - left
                    if missing:
                        self.broken(
                            f"{name} is removed: backup {key} needs {len(missing)} chunks of pack {pack} that are nowhere else"
                        )

    def _given_up(self) -> set[str]:
        """Backups whose deletion the catalog before has decided while it was being replaced."""
        process = self.acting()
        if process is None:
            return set()
        return {key for (key,) in process.sim.raw.execute("SELECT id FROM backup WHERE state IN ('DELETING', 'DELETED')")}

    def _check_order(self, name: str, parsed: names.ParsedName) -> None:
        """A key goes after its lineage is closed, a deleted backup's manifest after its grave is there."""
        closed = names.closed(parsed.lineage or "") in self.store.objects
        if parsed.kind == "key" and not closed:
            self.broken(f"{name} is removed before the lineage is closed")
        if (
            parsed.kind == "manifest"
            and not closed
            and names.grave(parsed.lineage or "", parsed.seq or 0) not in self.store.objects
        ):
            row = self.checker.sim.raw.execute(
                "SELECT b.state, b.fail_reason FROM part p JOIN backup b ON b.id = p.backup WHERE p.lineage = ? AND p.seq = ?",
                (parsed.lineage, parsed.seq),
            ).fetchone()
            if row == ("DELETING", None):  # a build that had failed: its lost writer removes what it put itself
                self.broken(f"{name} is removed before there is a grave")

    def _there(self, lineage: str, pack: int, but: set[str]) -> BitMap:
        found = BitMap()
        for name in self.store.names():
            if name not in but and name.startswith(lineage):
                found |= self.content(name).get(pack, BitMap())
        return found

    def content(self, name: str) -> dict[int, BitMap]:
        """What chunks an object holds, by its own index."""
        known = self.contents.get(name)
        if known is None:
            parsed, known = names.parse(name), {}
            if parsed is not None and parsed.kind in ("pack", "rewrite"):
                assert parsed.lineage is not None
                assert parsed.id is not None
                index = read_index(self.store, self._keys(parsed.lineage), parsed.lineage, parsed.id, name)
                known = {held.pack: BitMap(held.numbers.tolist()) for held in index.packs.values()}
            self.contents[name] = known
        return known

    def _keys(self, lineage: str) -> LineageKeys:
        if lineage not in self.keys:
            self.keys[lineage] = self.checker.ctx.keys(lineage)
        return self.keys[lineage]

    # ---- reading back ------------------------------------------------------------------------------------------------

    def learn(self, key: str) -> None:
        """A backup has completed: it must restore from here on, and this is what it needs."""
        need = self.read_back(key)
        if need is None:
            return
        self.needs[key] = need
        if any(number in need.packs.get(pack, BitMap()) for pack, number in self.rotten):
            self.spoilt.add(key)
        if not self._recovering:
            self._check_unsuspected(key, need)

    def _check_unsuspected(self, key: str, need: Needs) -> None:
        """What was known to be damaged before a backup was completed is stored anew in it."""
        rows = self.checker.sim.raw.execute(
            "SELECT id, suspect FROM pack WHERE suspect IS NOT NULL AND lineage = ?", (need.lineage,)
        )
        for pack, suspect in rows:
            shared = BitMap.deserialize(suspect) & need.packs.get(pack, BitMap())
            if shared:
                self.broken(f"backup {key} was completed with {len(shared)} chunks of pack {pack} that were known to be damaged")

    def read_back(self, key: str) -> Needs | None:
        """Reads a completed backup through the shipped reader; None if it is not what was captured."""
        ctx = replace(self.checker.ctx, store=self._sound)
        self.read_backs += 1
        lineage, seq, root = self.checker.sim.raw.execute(
            "SELECT p.lineage, p.seq, o.name FROM part p LEFT JOIN object o ON o.id = p.root WHERE p.backup = ?", (key,)
        ).fetchone()
        try:
            keys = self._keys(lineage)
            if self.older:
                locator: Locator = _ByStore(self, lineage)
                manifest = Manifest.open(self._sound, keys, lineage, root, locator)
            else:
                locator = CatalogLocator(ctx, lineage)
                manifest = read_manifest(ctx, keys, lineage, seq)
            with BackupReader(manifest, self._sound, keys, locator) as reader:
                found = {entry.name: b"".join(reader.read(entry.name)) for entry in reader.entries()}
            named = Named()
            for _, records in manifest.everything():
                for _ in named.add(records):
                    pass
        except (RepositoryError, StoreError) as error:
            self.broken(f"backup {key} cannot be read: {type(error).__name__}: {error}")
            return None
        backup, wanted = self.engine.captures[manifest.engine_facts["capture"]]
        if backup != key or found != wanted:
            self.broken(f"backup {key} is not what was captured")
            return None
        return Needs(lineage, seq, root, named.numbers)

    def _read_moved(self) -> None:
        """Reads every backup of which the catalog says that something lies elsewhere than when it was read last.

        Objects never change, so that a backup whose places are the same and there reads as it did.
        """
        raw = self.checker.sim.raw
        roots = {row[0]: row for row in raw.execute(_ROOTS)}
        holdings: dict[tuple[str, int], list[tuple[Any, ...]]] = defaultdict(list)
        for row in raw.execute(_HOLDINGS):
            holdings[row[0], row[1]].append(row)
        for key, need in list(self.needs.items()):
            if self.states.get(key) in ("COMPLETED", "PENDING"):
                place = roots.get(key), [holdings.get((need.lineage, pack)) for pack in need.packs]
                if self.places.get(key) != place:
                    self.places[key] = place
                    self.read_back(key)

    def read_all(self) -> None:
        """Reads every backup that must restore."""
        for key in self.needs:
            if self.states.get(key) in ("COMPLETED", "PENDING"):
                self.read_back(key)

    # ---- other catalogs ----------------------------------------------------------------------------------------------

    def forget_catalog(self) -> None:
        """Another catalog takes the place of the one so far: what must restore stays, what its rows say is looked at anew."""
        self.held.clear()
        self.condemned_before |= self.condemned
        self.condemned.clear()
        self.places.clear()
        self.ledger = Ledger()
        self.went.clear()
        self.contents = {name: found for name, found in self.contents.items() if name in self.store.objects}
        self.seen = -1
        self._mark_rotten()

    def older_catalog(self) -> None:
        """A catalog of before was restored: its rows are not news."""
        self.forget_catalog()
        self.older = True
        self.states = dict(self.checker.sim.raw.execute("SELECT id, state FROM backup").fetchall())

    def rebuilt_catalog(self, given_up: Iterable[str] = ()) -> None:
        """The catalog was made from the store: everything that must restore is in it and does, nothing buried is.

        `given_up`: backups whose deletion the catalog before decided while it was being replaced. Those whose grave, or whose
        lineage's closing mark, was put before the store had another owner stay deleted.
        """
        self.forget_catalog()
        self.older, self.between, self.rebuilt = False, False, True
        overmarked = {
            key for key, need in self.needs.items() if {(need.lineage, need.seq), (need.lineage, None)} & self.overmarked
        }
        for key in self._buried_meanwhile(given_up) - overmarked:
            del self.needs[key]
            self.buried.add(key)
        wanted = set(self.needs) - self.spoilt - overmarked
        going, self.states = {key for key, state in self.states.items() if state == "DELETING"}, {}
        self._recovering = True
        self.look()
        self._recovering = False
        for key in self.buried & self.states.keys():
            self.broken(f"backup {key} was deleted, and the rebuilt catalog shows it as {self.states[key]}")
        for key in going - self.spoilt - self.never_whole:  # packs of a failed build go before a manifest that lands late
            if self.states.get(key) == "FAILED" and not self.store_was_full:  # else what is left of it is still whole
                self.broken(f"backup {key}, which was being deleted, comes back damaged: its packs went first")
        for key in self.needs.keys() - self.states.keys() - overmarked:
            self.broken(f"backup {key} was complete, now damaged or not, and the rebuilt catalog does not know it")
        for key in wanted:
            if self.states.get(key) != "COMPLETED":
                self.broken(f"backup {key} was complete and the rebuilt catalog shows it as {self.states.get(key)}")

    def _buried_meanwhile(self, given_up: Iterable[str]) -> set[str]:
        found = set()
        for key in self.needs.keys() & self.asked & set(given_up):
            need = self.needs[key]
            if {names.grave(need.lineage, need.seq), names.closed(need.lineage)} & self.store.objects.keys():
                self.meet("a backup is buried while the catalog is rebuilt")
                found.add(key)
        return found

    def rot(self, key: str, place: int, *, known: bool) -> tuple[int, int]:
        """One chunk of a backup rots in the store; (pack, number). All that need it are spoilt. `known`: found out at once."""
        need = self.needs[key]
        chunks = [(pack, number) for pack, numbers in sorted(need.packs.items()) for number in numbers]
        pack, number = chunks[place % len(chunks)]
        for name in list(self.store.names()):
            if name.startswith(need.lineage) and number in self.content(name).get(pack, BitMap()):
                parsed = names.parse(name)
                assert parsed is not None
                assert parsed.id is not None
                held = read_index(self.store, self._keys(need.lineage), need.lineage, parsed.id, name).packs[pack]
                at = int(held.offsets[held.numbers.tolist().index(number)])
                self.store.damage(name, at + 3)
        self.spoilt.update(one for one, other in self.needs.items() if number in other.packs.get(pack, BitMap()))
        self.rotten.append((pack, number))
        if known:
            self.known_rotten.append((pack, number))
            self._mark_rotten()
        return pack, number

    def _mark_rotten(self) -> None:
        """A verification has found what is rotten and says so in the catalog."""
        raw = self.checker.sim.raw
        for pack, number in self.known_rotten:
            row = raw.execute("SELECT suspect FROM pack WHERE id = ?", (pack,)).fetchone()
            if row is not None:
                suspect = BitMap([number]) | (BitMap() if row[0] is None else BitMap.deserialize(row[0]))
                raw.execute("UPDATE pack SET suspect = ? WHERE id = ?", (suspect.serialize(), pack))

    # ---- at rest -----------------------------------------------------------------------------------------------------

    def at_rest(self) -> None:
        """Nothing is unaccounted for: objects, dead bytes, decisions, jobs."""
        raw = self.checker.sim.raw
        self.look()
        self.read_all()
        rows = raw.execute("SELECT id, name, state, bytes, kind, live, dead_bytes, lineage FROM object").fetchall()
        booked = {row[1]: row[3] for row in rows if row[2] == "STORED"}
        late = {row[1] for row in rows if row[2] == "LATE"} | self.landed_late
        there = {stat.name: stat.size for stat in self.store.list("")}
        for name, size in there.items():
            if name not in booked and name not in late and not name.startswith("quarantine/"):
                self.broken(f"{name} is in the store and in no row")
            elif name in booked and booked[name] != size:
                self.broken(f"{name} has {size} bytes and its row says {booked[name]}")
        for name in booked.keys() - there.keys() - self.slipped:
            self.broken(f"{name} is STORED and not in the store")
        for row in rows:
            if row[2] not in ("STORED", "LATE"):
                self.broken(f"{row[1]} is still {row[2]} at rest")
        if raw.execute("SELECT 1 FROM decision WHERE NOT swept").fetchone():
            self.broken("a decision is not swept at rest")
        self._check_jobs()
        if not self.rebuilt:  # there a damaged backup is FAILED too
            self.buried.update(key for key, state in self.states.items() if state == "FAILED" and key not in self.needs)
        self._check_space(rows)

    def _check_jobs(self) -> None:
        """None is left to run, and those that failed had a reason."""
        for kind, state, error, result in self.checker.sim.raw.execute("SELECT kind, state, error, result FROM job"):
            if state in ("QUEUED", "RUNNING"):
                self.broken(f"a job {kind} is {state} at rest: {error}")
            elif state == "FAILED":
                damaged = self.rotten and kind == "restore" and "damaged" in error
                if kind != "backup" and not damaged and not FAIR_ENDS[kind].match(error or ""):
                    self.broken(f"a job {kind} failed: {error}")
            elif state == "DONE" and kind in ("verify", "reconcile"):
                self.meet("a verification is done" if kind == "verify" else "a reconciliation is done")
                if json.loads(result)["outcome"] == "damaged" and kind == "verify":
                    self.meet("a verification finds damage")
                    if not self.spoilt and not self.slipped:
                        self.broken(f"a verification found damage where there is none: {result}")
        self._check_suspects()

    def check_reports(self, reports: Mapping[str, str]) -> None:
        """What a verification of everything and a reconciliation say at rest, as JSON by kind: all that is wrong, and no more."""
        found = json.loads(reports["reconcile"])
        odd = {one["name"] for one in found["unknown"]["objects"]} - self.landed_late
        odd |= {one["name"] for one in found["missing"]["objects"]} - self.slipped
        if odd or found["wrong_size"]["count"] or found["outdated"]:
            self.broken(f"a reconciliation at rest tells of {sorted(odd)}: {found}")
        damaged = {one["id"] for one in json.loads(reports["verify"])["damaged_backups"]}
        spoilt = {key for key in self.spoilt if self.states.get(key) == "COMPLETED" and key in self.needs}
        if (damaged - self.spoilt and not self.slipped) or spoilt - damaged:
            self.broken(f"a verification at rest tells of damage in {sorted(damaged)}, and there is some in {sorted(spoilt)}")

    def _check_suspects(self) -> None:
        rotten: dict[int, BitMap] = defaultdict(BitMap)
        for pack, number in self.rotten:
            rotten[pack].add(number)
        for pack, blob in self.checker.sim.raw.execute("SELECT id, suspect FROM pack WHERE suspect IS NOT NULL"):
            wrong = BitMap.deserialize(blob) - rotten[pack]
            if wrong and not self.slipped:
                self.broken(f"{len(wrong)} chunks of pack {pack} are suspect and nothing is wrong with them")

    def _check_space(self, rows: list[tuple[Any, ...]]) -> None:
        raw = self.checker.sim.raw
        chunks = [(row[0], row[1], row[5], row[6]) for row in rows if row[2] == "STORED" and row[4] in ("pack", "rewrite")]
        check_books(chunks, raw.execute(HOLDINGS).fetchall(), self.broken)
        for lineage, pack, chunks, blob in raw.execute("SELECT lineage, id, chunks, gone FROM pack"):
            alive = BitMap()
            for need in self.needs.values():
                if need.lineage == lineage:
                    alive |= need.packs.get(pack, BitMap())
            gone_numbers = BitMap() if blob is None else BitMap.deserialize(blob)
            living = BitMap(range(chunks)) - gone_numbers
            if not alive <= living or (alive != living and not self.rebuilt):
                self.broken(f"pack {pack}: {len(alive)} chunks are needed and {chunks - len(gone_numbers)} live")


__all__ = ["Needs", "Truth", "Violation", "WatchedStore"]
