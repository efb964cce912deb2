"""What must be so, seen from outside: the store's objects as they come and go, the catalog's rows after each commit.

After every commit and every removal: states move only as users asked, what is removed was condemned before, and of everything
that a completed backup needs some object is still there. A backup is read back through the shipped reader, byte for byte, when it
completes, when a job that removed something in its lineage ends, and at rest.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyroaring import BitMap

from simulation.world.baton import Violation
from simulation.world.processes import Process
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
from strongroom.storage.base import StoreError
from strongroom.storage.memory import MemoryStore
from support.accounts import HOLDINGS, check_books

FAIR_FAILURES = re.compile(
    r"the store failed: |stopped by a user|its worker was lost|.*did not answer in time|cancelled by a user|the database was away"
    r"|the engine went away|.*no room|the catalog.s database was restored|.*condemned|OperationalError"
)
"""Why a build may fail here. Anything else is a defect that showed as a failed backup."""


class WatchedStore(MemoryStore):
    """The true store, which tells what happens in it."""

    def __init__(self, removing: Callable[[Sequence[str]], None]) -> None:
        super().__init__()
        self.landed: Callable[[str], None] = lambda _name: None
        self._removing = removing

    def put_new(self, name: str, data: bytes | memoryview | Sequence[bytes | memoryview]) -> int:
        size = super().put_new(name, data)
        self.landed(name)
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

    def damage(self, name: str, at: int) -> None:
        """One of the object's bytes rots."""
        content = bytearray(self._objects[name])
        content[at] ^= 0x55
        self._objects[name] = bytes(content)


@dataclass(slots=True)
class Needs:
    """What a completed backup consists of."""

    lineage: str
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
    """Follows one catalog and one store; `broken` is told what is wrong."""

    engine: Databases
    broken: Callable[[str], None]
    store: WatchedStore = field(init=False)
    checker: Process = field(init=False)
    states: dict[str, str] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)  # backups whose deletion a user asked for
    needs: dict[str, Needs] = field(default_factory=dict)  # of backups that must restore
    condemned: set[str] = field(default_factory=set)  # names that a committed decision gave to a removal
    removed: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # removal → bytes that really went
    went: set[str] = field(default_factory=set)  # names that went once: what a late put brings back counts no more
    keys: dict[str, LineageKeys] = field(default_factory=dict)
    contents: dict[str, dict[int, BitMap]] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)  # lineages that lost objects since they were read back
    spoilt: set[str] = field(default_factory=set)  # backups with rotten bytes: they need not read, and keep what they need
    rotten: list[tuple[int, int]] = field(default_factory=list)  # (pack, number)
    buried: set[str] = field(default_factory=set)  # backups that must never come back
    seen: int = -1
    read_backs: int = 0
    older: bool = False  # the catalog is older than the store: what it forgot is not its fault
    rebuilt: bool = False  # lifespans are hulls from here on

    def __post_init__(self) -> None:
        self.store = WatchedStore(self.removing)

    def continue_from(self, other: Truth, objects: Mapping[str, bytes]) -> None:
        """Begins with what another world knew at rest."""
        self.store.objects.update(objects)
        self.states, self.needs = dict(other.states), dict(other.needs)
        self.asked, self.condemned = set(other.asked), set(other.condemned)
        self.keys, self.contents = dict(other.keys), dict(other.contents)
        self.removed = defaultdict(int, other.removed)
        self.seen = self.checker.sim.commits

    # ---- after commits -----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """After a step: if anything was committed, the catalog's rows."""
        sim = self.checker.sim
        if sim.commits == self.seen:
            return
        self.seen = sim.commits
        rows = sim.raw.execute("SELECT id, state, held, fail_reason FROM backup").fetchall()
        for key, state, held, reason in rows:
            before = self.states.get(key)
            if state != before:
                self._moved(key, before, state, reason)
                self.states[key] = state
            if held is None:
                self.held.discard(key)
            else:
                self.held.add(key)
        self.condemned.update(name for (name,) in sim.raw.execute("SELECT name FROM object WHERE state IN ('CONDEMNED', 'LATE')"))

    def _moved(self, key: str, before: str | None, state: str, reason: str | None) -> None:
        if state == "COMPLETED" and before != "COMPLETED":
            if key in self.buried:
                self.broken(f"backup {key} was deleted and is COMPLETED")
            self.learn(key)
        elif state == "DELETING":
            if key not in self.asked:
                self.broken(f"backup {key} is being deleted and nobody asked for it")
            if key in self.held:
                self.broken(f"backup {key} is being deleted although it was held")
            self.needs.pop(key, None)
        elif state == "DELETED":
            self._check_receipt(key)
        elif state == "FAILED" and before == "BUILDING" and not self._fair(reason or ""):
            self.broken(f"the build {key} failed for a reason that there should not be: {reason}")
        elif before == "COMPLETED" and state != "COMPLETED":
            self.broken(f"backup {key} went from COMPLETED to {state}")

    def _fair(self, reason: str) -> bool:
        if (self.older and "older than the store" in reason) or (self.spoilt and re.search("damaged|suspect", reason)):
            return True
        return FAIR_FAILURES.match(reason) is not None

    def _check_receipt(self, key: str) -> None:
        row = self.checker.sim.raw.execute(
            "SELECT promised_freed, freed, promised_waiting, waiting, promised_objects, removed_objects, owned, rewrite_written,"
            " rewrite_dropped, thorough FROM deletion WHERE backup = ?",
            (key,),
        ).fetchone()
        self.buried.add(key)
        if self.older:
            return
        if row is None:
            self.broken(f"backup {key} is DELETED without a receipt")
            return
        for what, promised, done in (("freed", *row[0:2]), ("waiting", *row[2:4]), ("objects", *row[4:6])):
            if promised != done:
                self.broken(f"the delete of {key} promised {promised} ({what}) and reports {done}")
        went = self.removed[f"delete:{key}"]
        if went != row[1]:
            self.broken(f"the delete of {key} reports {row[1]} bytes freed, {went} went")
        if row[7] > row[6] and not row[9]:
            self.broken(f"the delete of {key} rewrote {row[7]} bytes and its backup owned {row[6]}")
        left = self.checker.sim.raw.execute(
            "SELECT name FROM object WHERE removal IN (?, ?) AND state IN ('CONDEMNED', 'PLANNED')",
            (f"delete:{key}", f"rewrite:{key}"),
        ).fetchall()
        if left:
            self.broken(f"backup {key} is DELETED and {len(left)} of its objects are not gone, first {left[0][0]}")

    # ---- the store ---------------------------------------------------------------------------------------------------

    def removing(self, some: Sequence[str]) -> None:
        """Just before objects go: may they, and does anything that must restore need them?"""
        self.look()
        going = set(some)
        self.touched.update(name.split("/")[0] for name in some)
        for name in some:
            if name not in self.condemned:
                self.broken(f"{name} is removed and no decision condemned it")
            row = self.checker.sim.raw.execute("SELECT removal, bytes FROM object WHERE name = ?", (name,)).fetchone()
            if row is not None and row[0] is not None and name not in self.went:
                self.removed[row[0]] += row[1]
                self.went.add(name)
            self._check_needed(name, going)

    def _check_needed(self, name: str, going: set[str]) -> None:
        parsed = names.parse(name)
        if parsed is None or parsed.lineage is None:
            return
        others = [(key, need) for key, need in self.needs.items() if need.lineage == parsed.lineage]
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
                "SELECT b.state FROM part p JOIN backup b ON b.id = p.backup WHERE p.lineage = ? AND p.seq = ?",
                (parsed.lineage, parsed.seq),
            ).fetchone()
            if row is not None and row[0] == "DELETING":
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
        if key in self.spoilt:
            return
        need = self.read_back(key)
        if need is not None:
            self.needs[key] = need

    def read_back(self, key: str) -> Needs | None:
        """Reads a completed backup through the shipped reader; None if it is not what was captured."""
        ctx = self.checker.ctx
        self.read_backs += 1
        lineage, seq, root = self.checker.sim.raw.execute(
            "SELECT p.lineage, p.seq, o.name FROM part p LEFT JOIN object o ON o.id = p.root WHERE p.backup = ?", (key,)
        ).fetchone()
        try:
            keys = self._keys(lineage)
            if self.older:
                locator: Locator = _ByStore(self, lineage)
                manifest = Manifest.open(self.store, keys, lineage, root, locator)
            else:
                locator = CatalogLocator(ctx, lineage)
                manifest = read_manifest(ctx, keys, lineage, seq)
            with BackupReader(manifest, self.store, keys, locator) as reader:
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
        return Needs(lineage, root, named.numbers)

    def read_touched(self) -> None:
        """Reads every backup that must restore in lineages that lost objects since they were read last."""
        if not self.older:
            for key, need in list(self.needs.items()):
                if need.lineage in self.touched and key not in self.spoilt:
                    self.read_back(key)
            self.touched.clear()

    def read_all(self) -> None:
        """Reads every backup that must restore."""
        if not self.older:
            self.touched.update(need.lineage for need in self.needs.values())
            self.read_touched()

    # ---- other catalogs ----------------------------------------------------------------------------------------------

    def forget_catalog(self) -> None:
        """Another catalog takes the place of the one so far: what must restore stays, what its rows say is looked at anew."""
        self.held.clear()
        self.condemned.clear()
        self.contents = {name: found for name, found in self.contents.items() if name in self.store.objects}
        self.seen = -1
        self.mark_rotten()

    def older_catalog(self) -> None:
        """A catalog of before was restored: its rows are not news."""
        self.forget_catalog()
        self.older = True
        self.states = dict(self.checker.sim.raw.execute("SELECT id, state FROM backup").fetchall())

    def rebuilt_catalog(self) -> None:
        """The catalog was made from the store: everything that must restore is in it and does, nothing buried is."""
        self.forget_catalog()
        self.older, self.rebuilt = False, True
        wanted, self.states = set(self.needs) - self.spoilt, {}
        self.look()
        for key in self.needs.keys() - self.states.keys():
            self.broken(f"backup {key} was complete, now damaged or not, and the rebuilt catalog does not know it")
        for key in wanted:
            if self.states.get(key) != "COMPLETED":
                self.broken(f"backup {key} was complete and the rebuilt catalog shows it as {self.states.get(key)}")

    def rot(self, key: str, place: int) -> tuple[int, int] | None:
        """One chunk of a backup rots in the store; (pack, number). All that need it are spoilt."""
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
        self.mark_rotten()
        return pack, number

    def mark_rotten(self) -> None:
        """A verification has found what is rotten and says so in the catalog."""
        raw = self.checker.sim.raw
        for pack, number in self.rotten:
            row = raw.execute("SELECT suspect FROM pack WHERE id = ?", (pack,)).fetchone()
            if row is not None:
                suspect = BitMap([number]) | (BitMap() if row[0] is None else BitMap.deserialize(row[0]))
                raw.execute("UPDATE pack SET suspect = ? WHERE id = ?", (suspect.serialize(), pack))

    # ---- at rest -----------------------------------------------------------------------------------------------------

    def at_rest(self, landed_late: set[str]) -> None:
        """Nothing is unaccounted for: objects, dead bytes, decisions, jobs. Raises Violation."""
        raw = self.checker.sim.raw
        self.look()
        self.read_all()
        rows = raw.execute("SELECT id, name, state, bytes, kind, live, dead_bytes, lineage FROM object").fetchall()
        booked = {row[1]: row[3] for row in rows if row[2] == "STORED"}
        late = {row[1] for row in rows if row[2] == "LATE"} | landed_late
        there = {stat.name: stat.size for stat in self.store.list("")}
        for name, size in there.items():
            if name not in booked and name not in late:
                self.broken(f"{name} is in the store and in no row")
            elif name in booked and booked[name] != size:
                self.broken(f"{name} has {size} bytes and its row says {booked[name]}")
        for name in booked.keys() - there.keys():
            self.broken(f"{name} is STORED and not in the store")
        for row in rows:
            if row[2] not in ("STORED", "LATE"):
                self.broken(f"{row[1]} is still {row[2]} at rest")
        if raw.execute("SELECT 1 FROM decision WHERE NOT swept").fetchone():
            self.broken("a decision is not swept at rest")
        for kind, error in raw.execute("SELECT kind, error FROM job WHERE state = 'FAILED'"):
            if kind not in ("backup", "restore"):
                self.broken(f"a job {kind} failed: {error}")
        self.buried.update(key for key, state in self.states.items() if state == "FAILED" and key not in self.needs)
        self._check_space(rows)

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
