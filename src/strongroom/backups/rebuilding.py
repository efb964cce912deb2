"""Making a catalog from the store alone, conservatively: in every doubt a chunk stays and a backup keeps what it may need.

Backups are manifests without graves, in lineages that are not closed; of several manifests of a part the highest attempt counts.

* An unreadable manifest stays in the chain as *damaged* and needs every chunk that it may name.
* Lifespans are hulls: from the pack's part to the last part that names the chunk.
* Numbers of a claimed pack that nobody names are gone. A pack that no manifest claims is reported and left, never condemned.
* The same chunks in two objects: both are kept, either will do; rewriting keeps one.
* The newest snapshot of the catalog that opens is the base (rebasing.py): users, policies, instances and the audit trail come
  back from it, and the holds of the backups that it knows. It has no say in lifespans.
* Every backup that it does not know, or that is damaged, comes back held ("recovered") until a person releases it; instances that
  it does not know come back without their passwords.
* The log of changes between backups comes from the headers of its pieces (rebuilt_log.py).
* A lineage without a part that is left has nothing to say: its objects are reported and left.

Order of effects: the root key is proven; the next `owner/<k>` is put, which stops workers of the old catalog; then rows only, the
base in a transaction and each lineage in one, marked as unfinished until the last. Nothing is removed. A rebuild that died is
begun anew, in an empty catalog.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import sqlalchemy as sa
from pyroaring import BitMap
from sqlalchemy import Connection

from strongroom.backups import rebasing, rebuilt_log
from strongroom.backups.context import Context
from strongroom.backups.holds import RECOVERED, Hold
from strongroom.backups.incarnation import REBUILDING
from strongroom.backups.objects import register_found
from strongroom.catalog import tables as t
from strongroom.catalog.space import to_sizes
from strongroom.engines.log import Mark, Recorder
from strongroom.identity import tables as identity
from strongroom.repository import names
from strongroom.repository.errors import RepositoryError, WrongKey
from strongroom.repository.fetching import Holder
from strongroom.repository.keys import (
    Former,
    LineageKeys,
    RootKey,
    open_closed,
    open_grave,
    open_lineage_keys,
    open_owner,
    seal_owner,
)
from strongroom.repository.manifest import Manifest, peek_header
from strongroom.repository.pack import read_index
from strongroom.repository.records import Named
from strongroom.storage.base import ObjectExists, ObjectMissing, Stat, Store

_AHEAD = 1_000  # a lineage's counter goes on this far above what was seen

Report = Callable[[str], None]


@dataclass(slots=True)
class _Pack:
    """A pack as its objects tell of it."""

    born: int
    chunks: int
    sizes: dict[int, int] = field(default_factory=dict)  # number → sealed bytes
    objects: list[tuple[str, str, int, BitMap]] = field(default_factory=list)  # (id, name, bytes, numbers)

    @property
    def unmoved(self) -> bool:
        """Whether all of it lies in one object of its own."""
        first = self.objects[0]
        return len(self.objects) == 1 and "/pack/" in first[1] and len(first[3]) == self.chunks


@dataclass(slots=True)
class _Part:
    """A part that no grave buries. `named` None: damaged, it needs all that it may name."""

    seq: int
    attempt: int
    object_id: str
    name: str
    size: int
    header: dict[str, Any]
    manifest: Manifest | None = None
    named: dict[int, BitMap] | None = None
    reason: str | None = None


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild found."""

    lineages: int = 0
    closed: int = 0
    backups: int = 0
    damaged: int = 0
    unknown: list[str] = field(default_factory=list)  # objects that nothing claims: reported, left
    base: rebasing.Base | None = None  # the snapshot of the catalog that it began with
    known: int = 0  # backups whose holds are as that says
    plans: dict[str, list[tuple[str, int]]] = field(default_factory=dict)  # (lineage, seq) of the parts of backups of clusters


class _Locator:
    def __init__(self, packs: dict[int, _Pack]) -> None:
        self._packs = packs

    def objects_of(self, pack: int) -> Sequence[Holder]:
        found = self._packs.get(pack)
        return [] if found is None else [Holder(key, name, numbers) for key, name, _, numbers in found.objects]


def rebuild(ctx: Context, report: Report, found: Callable[[], None] = lambda: None) -> Rebuilt:
    """Fills an empty catalog from the store and takes the store over. Raises RepositoryError (before anything is done: WrongKey,
    and UnknownFormat for what a newer version has written), StoreError.

    `found` is called once the base is there, before anything that belongs to an account: it makes one where there is none."""
    former = require_root_key(ctx.root_key, ctx.store)
    rebasing.require_ours(ctx)
    k = _take_store(ctx, former)
    report(f"the store is owner {k}'s now; workers of an older catalog stop")
    by_lineage: dict[str, list[tuple[Stat, names.ParsedName]]] = defaultdict(list)
    loose: list[tuple[Stat, names.ParsedName]] = []  # snapshots of the catalog, and segments of the audit trail
    result = Rebuilt()
    for stat in ctx.store.list(""):
        parsed = names.parse(stat.name)
        if parsed is None:
            result.unknown.append(stat.name)
        elif parsed.lineage is not None:
            by_lineage[parsed.lineage].append((stat, parsed))
        elif parsed.kind != "owner":
            loose.append((stat, parsed))
    result.base = rebasing.choose(ctx, [one for one in loose if one[1].kind == "catalog"], report)
    with ctx.catalog.write() as conn:
        if result.base is not None:
            rebasing.put_back(ctx, conn, result.base, report)
        known = set(conn.scalars(sa.select(t.object_.c.name).where(t.object_.c.lineage == "")))
    result.unknown.extend(stat.name for stat, _ in loose if stat.name not in known)
    found()
    for number, (lineage, objects) in enumerate(sorted(by_lineage.items()), 1):
        report(f"lineage {number} of {len(by_lineage)}: {len(objects)} objects")
        _Lineage(ctx, lineage, objects, former, result, report).rebuild()
    with ctx.catalog.write() as conn:
        _miss_parts(conn, result)
        if result.base is not None:
            result.known = rebasing.put_onto(conn, result.base)
        conn.execute(sa.update(t.installation).values(incarnation=""))
    report(
        f"{result.backups} backups in {result.lineages} lineages, {result.damaged} of them damaged; {result.closed} lineages "
        f"were closed; {len(result.unknown)} objects belong to nothing and were left"
    )
    return result


def _miss_parts(conn: Connection, result: Rebuilt) -> None:
    """A backup of which a planned part is not there, or is another backup's, was not completed, or has lost it."""
    for backup, plan in result.plans.items():
        rows = conn.execute(sa.select(t.part.c.lineage, t.part.c.seq).where(t.part.c.backup == backup))
        missing = set(plan) - {(row.lineage, row.seq) for row in rows}
        if missing:
            told = f"damaged: {len(missing)} of its {len(plan)} nodes' parts are not in the store"
            here = sa.and_(t.backup.c.id == backup, t.backup.c.state == "COMPLETED")
            result.damaged += conn.execute(sa.update(t.backup).where(here).values(state="FAILED", fail_reason=told)).rowcount


def require_root_key(root: RootKey, store: Store) -> Former:
    """Raises WrongKey unless the root key opens an owner's mark of the store, or where none can be read, a lineage's keys.

    Returns what the mark says of root keys that were rotated away."""
    k, wrong = 1, None
    while store.stat(names.owner(k)) is not None:
        k += 1
    for one in range(k - 1, 0, -1):
        try:
            return open_owner(root, one, store.get(names.owner(one)))
        except WrongKey:
            raise
        except (RepositoryError, ObjectMissing):
            continue
    for stat in store.list(""):
        parsed = names.parse(stat.name)
        if parsed is not None and parsed.kind == "key" and parsed.lineage is not None:
            try:
                open_lineage_keys(root, parsed.lineage, store.get(stat.name))
            except WrongKey as error:
                wrong = error
            except (RepositoryError, ObjectMissing):
                continue
            else:
                return {}
    if wrong is not None:
        raise wrong
    return {}


def _take_store(ctx: Context, former: Former) -> int:
    k = 1
    while ctx.store.stat(names.owner(k)) is not None:
        k += 1
    while True:
        try:
            size = ctx.store.put_new(names.owner(k), seal_owner(ctx.root_key, k, former))
            break
        except ObjectExists:
            k += 1
    sizes = [*(_size(ctx, names.owner(older)) for older in range(1, k)), size]
    with ctx.catalog.write() as conn:
        conn.execute(t.installation.insert().values(id=1, owner=k, incarnation=REBUILDING, created_at=ctx.ambient.now()))
        for owner, there in enumerate(sizes, 1):
            register_found(conn, ctx.ambient.hex_id(), "", "owner", names.owner(owner), there)
    return k


def _size(ctx: Context, name: str) -> int:
    found = ctx.store.stat(name)
    return 0 if found is None else found.size


class _Lineage:
    """One lineage's share of the rebuild."""

    def __init__(
        self,
        ctx: Context,
        lineage: str,
        objects: list[tuple[Stat, names.ParsedName]],
        former: Former,
        result: Rebuilt,
        report: Report,
    ) -> None:
        self._ctx, self._lineage, self._former, self._result, self._report = ctx, lineage, former, result, report
        self._objects = objects
        self._packs: dict[int, _Pack] = {}

    def rebuild(self) -> None:
        if self._is_closed():
            self._result.closed += 1
            return
        keys, sealed = self._keys()
        if keys is None or sealed is None:
            self._report(f"lineage {self._lineage}: no copy of its keys opens; its objects are left as they are")
            self._result.unknown.extend(stat.name for stat, _ in self._objects)
            return
        graves = self._graves(keys)
        self._read_packs(keys)
        parts = self._parts(keys, {seq for seq, _ in graves})
        if not parts:
            self._report(f"lineage {self._lineage}: no backup is left in it; its objects are left as they are")
            self._result.unknown.extend(sorted({stat.name for stat, _ in self._objects} - set(self._result.unknown)))
            return
        log, trouble = rebuilt_log.read_pieces(self._ctx, self._lineage, self._of("log"))
        for words in trouble:
            self._report(words)
        with self._ctx.catalog.write() as conn:
            self._write(conn, sealed, parts, graves)
            self._write_log(conn, parts, log)

    # ---- reading the store -------------------------------------------------------------------------------------------

    def _of(self, *kinds: str) -> list[tuple[Stat, names.ParsedName]]:
        return [(stat, parsed) for stat, parsed in self._objects if parsed.kind in kinds]

    def _is_closed(self) -> bool:
        for stat, _ in self._of("closed"):
            try:
                open_closed(self._ctx.root_key, self._lineage, self._ctx.store.get(stat.name), self._former)
            except RepositoryError as error:
                self._report(f"{stat.name}: {error}; the lineage counts as open")
                return False
            with self._ctx.catalog.write() as conn:
                _lineage_row(conn, self._lineage, "", "", "CLOSED", 0, None)
                register_found(conn, self._ctx.ambient.hex_id(), self._lineage, "closed", stat.name, stat.size)
            self._result.unknown.extend(other.name for other, parsed in self._objects if parsed.kind != "closed")
            return True
        return False

    def _keys(self) -> tuple[LineageKeys | None, bytes | None]:
        for stat, _ in self._of("key"):
            try:
                sealed = self._ctx.store.get(stat.name)
                return open_lineage_keys(self._ctx.root_key, self._lineage, sealed), sealed
            except (RepositoryError, ObjectMissing) as error:
                self._report(f"{stat.name}: {error}")
        return None, None

    def _graves(self, keys: LineageKeys) -> list[tuple[int, Stat]]:
        found = []
        for stat, parsed in self._of("grave"):
            try:
                facts = open_grave(keys, self._ctx.store.get(stat.name))
            except (RepositoryError, ObjectMissing) as error:
                self._report(f"{stat.name}: {error}; it buries nothing")
                continue
            if facts.lineage == self._lineage and facts.seq == parsed.seq:
                found.append((facts.seq, stat))
        return found

    def _read_packs(self, keys: LineageKeys) -> None:
        for stat, parsed in sorted(self._of("pack", "rewrite"), key=lambda item: item[1].kind):
            assert parsed.id is not None
            try:
                index = read_index(self._ctx.store, keys, self._lineage, parsed.id, stat.name)
            except (RepositoryError, ObjectMissing) as error:
                self._report(f"{stat.name}: {error}; left as it is")
                self._result.unknown.append(stat.name)
                continue
            for held in index.packs.values():
                sizes = dict(zip(held.numbers.tolist(), held.lengths.tolist(), strict=True))
                pack = self._packs.setdefault(held.pack, _Pack(held.born, 0))
                pack.chunks = max(pack.chunks, held.total or 0, max(sizes, default=-1) + 1)
                pack.sizes |= sizes
                pack.objects.append((parsed.id, stat.name, stat.size, BitMap(sizes)))

    def _parts(self, keys: LineageKeys, buried: set[int]) -> list[_Part]:
        newest: dict[int, tuple[Stat, names.ParsedName]] = {}
        for stat, parsed in self._of("manifest"):
            assert parsed.seq is not None
            assert parsed.attempt is not None
            known = newest.get(parsed.seq)
            if parsed.seq in buried or (known is not None and (known[1].attempt or 0) > parsed.attempt):
                self._result.unknown.append(stat.name)
                continue
            if known is not None:
                self._result.unknown.append(known[0].name)
            newest[parsed.seq] = (stat, parsed)
        return [self._part(keys, stat, parsed) for _, (stat, parsed) in sorted(newest.items())]

    def _part(self, keys: LineageKeys, stat: Stat, parsed: names.ParsedName) -> _Part:
        assert parsed.seq is not None
        assert parsed.attempt is not None
        assert parsed.id is not None
        part = _Part(parsed.seq, parsed.attempt, parsed.id, stat.name, stat.size, {})
        try:
            part.header = peek_header(self._ctx.store.get(stat.name))
            manifest = Manifest.open(self._ctx.store, keys, self._lineage, stat.name, _Locator(self._packs))
            named = Named()
            for _, records in manifest.everything():
                for _ in named.add(records):
                    pass
            part.manifest, part.header = manifest, asdict(manifest.header)
            missing = sum(len(numbers - BitMap(self._sizes(pack))) for pack, numbers in named.numbers.items())
            if missing:
                part.reason = f"{missing} of its chunks are in no object"
            part.named = {pack: numbers for pack, numbers in named.numbers.items() if pack in self._packs}
        except (RepositoryError, ObjectMissing) as error:
            part.reason = f"its manifest cannot be read: {error}"
        if part.reason is not None:
            self._report(f"{stat.name}: damaged: {part.reason}")
        return part

    def _sizes(self, pack: int) -> Iterable[int]:
        found = self._packs.get(pack)
        return () if found is None else found.sizes

    # ---- writing the catalog -----------------------------------------------------------------------------------------

    def _write(self, conn: Connection, sealed: bytes, parts: list[_Part], graves: list[tuple[int, Stat]]) -> None:
        highest = max([parsed.seq or 0 for _, parsed in self._objects] + [pack.born for pack in self._packs.values()], default=0)
        project, instance = _owner_of(parts, self._lineage)
        scope, node = _source_of(self._lineage, parts)
        node = _make_room(conn, instance, scope, node, self._lineage, parts)
        chunk_average = max((part.manifest.chunk_average for part in parts if part.manifest is not None), default=0)
        _lineage_row(conn, self._lineage, project, instance, "OPEN", highest + _AHEAD, sealed, chunk_average, node, scope)
        self._result.lineages += 1
        for stat, parsed in self._of("key"):
            register_found(conn, parsed.id or "", self._lineage, "key", stat.name, stat.size)
        for seq, stat in graves:
            register_found(conn, self._ctx.ambient.hex_id(), self._lineage, "grave", stat.name, stat.size, seq)
        _ensure_project(conn, self._ctx, project)
        newest = next((part.manifest.facts for part in reversed(parts) if part.manifest is not None), {})
        _ensure_instance(conn, instance, project, dict(newest), self._ctx.ambient.now())
        for part in parts:
            self._write_part(conn, part, project, instance)
        self._write_packs(conn, parts)

    def _write_part(self, conn: Connection, part: _Part, project: str, instance: str) -> None:
        backup = str(part.header.get("backup", ""))
        known = conn.execute(sa.select(t.backup).where(t.backup.c.id == backup)).first()
        if part.manifest is not None and len(part.manifest.plan) > 1:
            self._result.plans[backup] = [(lineage, seq) for lineage, seq, _ in part.manifest.plan]
        planned = (self._lineage, part.seq) in self._result.plans.get(backup, ())
        if known is not None and planned and (known.project, known.instance) == (project, instance):
            self._join(conn, part, known)
        else:
            if not backup or known is not None:
                backup = f"{self._ctx.ambient.hex_id()}br00"  # a manifest that does not open may say anything
            self._write_backup(conn, part, backup, project, instance)
        self._write_row(conn, part, backup)

    def _join(self, conn: Connection, part: _Part, known: Any) -> None:
        """A further part of a backup that another lineage told of."""
        values: dict[str, Any] = {}
        if part.manifest is not None:
            values["plain_bytes"] = known.plain_bytes + part.manifest.totals.plain_bytes
        if part.reason is not None and known.state == "COMPLETED":
            values |= {"state": "FAILED", "fail_reason": f"damaged: {part.reason}"}
            self._result.damaged += 1
        if values:
            conn.execute(sa.update(t.backup).where(t.backup.c.id == known.id).values(values))

    def _write_backup(self, conn: Connection, part: _Part, backup: str, project: str, instance: str) -> None:
        facts = {} if part.manifest is None else dict(part.manifest.facts)
        now = self._ctx.ambient.now()
        totals = None if part.manifest is None else part.manifest.totals
        conn.execute(
            t.backup.insert().values(
                id=backup, project=project, instance=instance, instance_name=facts.get("instance_name", "unknown"),
                engine=facts.get("engine", "unknown"), engine_version=facts.get("engine_version", ""),
                name=facts.get("name", f"recovered-{part.seq}"), description=facts.get("description", ""),
                origin=facts.get("origin", "Manual"), scope=facts.get("scope", ""),
                state="COMPLETED" if part.reason is None else "FAILED", version=0,
                begin_at=facts.get("begin_at", now), end_at=facts.get("end_at", facts.get("begin_at", now)),
                plain_bytes=0 if totals is None else totals.plain_bytes,
                fail_reason=None if part.reason is None else f"damaged: {part.reason}",
                **Hold(RECOVERED, "recovered").columns(now),
            )
        )  # fmt: skip
        self._result.backups += 1
        self._result.damaged += part.reason is not None

    def _write_row(self, conn: Connection, part: _Part, backup: str) -> None:
        totals = None if part.manifest is None else part.manifest.totals
        register_found(conn, part.object_id, self._lineage, "manifest", part.name, part.size, part.seq, part.attempt)
        conn.execute(
            t.part.insert().values(
                lineage=self._lineage, seq=part.seq, backup=backup,
                parent=0 if part.manifest is None else part.manifest.parent, attempt=part.attempt, committed=part.attempt,
                state="COMPLETED", version=0, root=part.object_id,
                entries=0 if totals is None else totals.entries, plain_bytes=0 if totals is None else totals.plain_bytes,
                stored_bytes=0 if totals is None else totals.stored_bytes,
                adopted_bytes=0 if totals is None else totals.adopted_bytes,
            )
        )  # fmt: skip

    def _write_log(self, conn: Connection, parts: list[_Part], pieces: list[rebuilt_log.Piece]) -> None:
        """What backups can go on by; other pieces are reported, and left."""
        places = [(part.seq, place) for part in parts if (place := self._place(part)) is not None]
        for seq, place in places:
            here = sa.and_(t.part.c.lineage == self._lineage, t.part.c.seq == seq)
            values = {"log_stream": place.stream, "log_order": place.order, "log_at": place.at}
            conn.execute(sa.update(t.part).where(here).values(values))
        _, instance = _owner_of(parts, self._lineage)
        chains = rebuilt_log.chains_of(pieces)
        needed = rebuilt_log.write_chains(conn, self._lineage, instance, chains, places)
        self._result.unknown.extend(stat.name for stat, _ in self._of("log") if stat.name not in needed)

    def _place(self, part: _Part) -> Mark | None:
        """Where in its source's log a part stands, as at its commit."""
        if part.manifest is None or part.reason is not None or part.manifest.facts.get("scope") or self._node(part.manifest):
            return None
        engine = self._ctx.engines.get(str(part.manifest.facts.get("engine", "")))
        return engine.mark_of(part.manifest.engine_facts) if isinstance(engine, Recorder) else None

    def _node(self, manifest: Manifest) -> str:
        return next((node for line, _, node in manifest.plan if line == self._lineage), "")

    def _write_packs(self, conn: Connection, parts: list[_Part]) -> None:
        """Lifespans from the newest part down: the first that names a number is the last that needs it."""
        spans = _spans(parts, self._packs)
        gone: dict[int, BitMap] = {}
        for key, needed in sorted(spans.items()):
            pack = self._packs[key]
            gone[key] = BitMap(range(pack.chunks)) - _union(needed.values())
            _pack_row(conn, self._lineage, key, pack, gone[key])
            _death_rows(conn, self._lineage, key, pack, needed, parts)
        held: dict[tuple[str, str, int], dict[int, BitMap]] = defaultdict(dict)
        for key, pack in sorted(self._packs.items()):
            for object_id, name, size, numbers in pack.objects:
                held[object_id, name, size][key] = numbers
        for (object_id, name, size), packs in held.items():
            self._write_object(conn, object_id, name, size, packs, gone)

    def _write_object(
        self, conn: Connection, object_id: str, name: str, size: int, packs: dict[int, BitMap], gone: dict[int, BitMap]
    ) -> None:
        """An object of chunks with what it holds; one that holds nothing that is needed is reported, and left."""
        live = dead = 0
        holdings: list[dict[str, Any]] = []
        for key, numbers in packs.items():
            pack = self._packs[key]
            died = numbers & gone.get(key, numbers)
            live += len(numbers) - len(died)
            dead += sum(pack.sizes[number] for number in died)
            sizes = np.array([pack.sizes[number] for number in numbers], np.uint32)
            holdings.append(
                {
                    "object": object_id, "lineage": self._lineage, "pack": key, "bytes": int(sizes.sum(dtype=np.uint64)),
                    "numbers": None if pack.unmoved else numbers.serialize(),
                    "sizes": None if pack.unmoved else to_sizes(sizes),
                }
            )  # fmt: skip
        if not live:
            self._result.unknown.append(name)
            return
        parsed = names.parse(name)
        assert parsed is not None
        register_found(
            conn, object_id, self._lineage, parsed.kind, name, size, parsed.seq or 0, parsed.attempt or 0, live=live, dead=dead
        )
        conn.execute(t.holding.insert(), holdings)


def _spans(parts: list[_Part], packs: dict[int, _Pack]) -> dict[int, dict[int, BitMap]]:
    """For each pack of which something is needed, last part → numbers that it is the last to need."""
    spans: dict[int, dict[int, BitMap]] = {}
    assigned: dict[int, BitMap] = defaultdict(BitMap)
    for part in sorted(parts, key=lambda one: -one.seq):
        wanted = part.named if part.named is not None else _may_need(part, parts, packs)
        for key, numbers in wanted.items():
            fresh = (numbers & BitMap(packs[key].sizes)) - assigned[key]
            if fresh:
                spans.setdefault(key, {})[part.seq] = fresh
                assigned[key] |= fresh
    return spans


def _may_need(damaged: _Part, parts: list[_Part], packs: dict[int, _Pack]) -> dict[int, BitMap]:
    """Everything that a part whose manifest cannot be read may name: what was written after the sound part before it, and
    what that one names. (That one is its ancestor, since it is still there, and a part shares with its parent alone: what the
    ancestor had dropped could not come back.) Where there is none, everything written up to it."""
    sound = [one for one in parts if one.seq < damaged.seq and one.reason is None and one.named is not None]
    before = max(sound, key=lambda one: one.seq, default=None)
    since = 0 if before is None else before.seq
    found = {key: BitMap(pack.sizes) for key, pack in packs.items() if since < pack.born <= damaged.seq}
    return found if before is None or before.named is None else before.named | found


def _death_rows(conn: Connection, lineage: str, key: int, pack: _Pack, needed: dict[int, BitMap], parts: list[_Part]) -> None:
    """What an older part is the last to need is closed by the part after it."""
    after = {one.seq: following for one, following in pairwise(parts)}
    for last, numbers in needed.items():
        closer = after.get(last)
        if closer is None:
            continue  # the head needs them: open
        conn.execute(
            t.death.insert().values(
                lineage=lineage, pack=key, last=last, closer=closer.seq, attempt=closer.attempt, born=pack.born,
                numbers=numbers.serialize(), bytes=sum(pack.sizes[number] for number in numbers),
            )
        )  # fmt: skip


def _pack_row(conn: Connection, lineage: str, key: int, pack: _Pack, gone: BitMap) -> None:
    conn.execute(
        t.pack.insert().values(
            lineage=lineage, id=key, born=pack.born, attempt=1, stored=True, chunks=pack.chunks,
            bytes=sum(pack.sizes.values()), gone=gone.serialize() if gone else None,
            gone_bytes=sum(pack.sizes.get(number, 0) for number in gone), moved=not pack.unmoved,
        )
    )  # fmt: skip


def _lineage_row(
    conn: Connection, key: str, project: str, instance: str, state: str, counter: int, sealed: bytes | None, average: int = 0,
    node: str = "", scope: str = "",
) -> None:  # fmt: skip
    conn.execute(
        t.lineage.insert().values(
            id=key, project=project, instance=instance, scope=scope, node=node, state=state, counter=counter, version=0,
            chunk_average=average, pack_target=16 << 20 if average else 0, sealed_keys=sealed,
        )
    )  # fmt: skip


def _source_of(lineage: str, parts: list[_Part]) -> tuple[str, str]:
    """(scope, node) of a lineage, as its newest manifest that opens tells."""
    for part in reversed(parts):
        if part.manifest is not None:
            nodes = [node for line, _, node in part.manifest.plan if line == lineage]
            return str(part.manifest.facts.get("scope", "")), nodes[0] if nodes else ""
    return "", ""


def _make_room(conn: Connection, instance: str, scope: str, node: str, lineage: str, parts: list[_Part]) -> str:
    """What this lineage's row says of its node: the node itself for the one that its source goes on in.

    A source goes on in one lineage, the one with its newest backup; others of it (whose last backup was being deleted) keep
    what they hold and get no more.
    """
    same = (t.lineage.c.instance == instance, t.lineage.c.scope == scope, t.lineage.c.node == node)
    known = conn.execute(sa.select(t.lineage.c.id).where(*same, t.lineage.c.state == "OPEN")).scalar()
    if known is None:
        return node
    in_known = sa.select(t.part.c.backup).where(t.part.c.lineage == known)
    began = conn.execute(sa.select(sa.func.max(t.backup.c.begin_at)).where(t.backup.c.id.in_(in_known))).scalar() or 0.0
    if max((part.manifest.facts.get("begin_at", 0.0) for part in parts if part.manifest is not None), default=0.0) < began:
        return f"earlier-{lineage[:8]}"
    conn.execute(sa.update(t.lineage).where(t.lineage.c.id == known).values(node=f"earlier-{known[:8]}"))
    return node


def _owner_of(parts: list[_Part], lineage: str) -> tuple[str, str]:
    """(project, instance): from a manifest that opened, else from a header, which nobody vouches for."""
    for part in [*(one for one in parts if one.manifest is not None), *parts]:
        if part.header.get("project"):
            return str(part.header["project"]), str(part.header["instance"])
    return "0" * 32, f"{lineage}in00"


def _ensure_project(conn: Connection, ctx: Context, project: str) -> None:
    first = sa.select(identity.account.c.id).order_by(identity.account.c.created_at, identity.account.c.id).limit(1)
    account = conn.execute(first).scalar_one()
    if conn.execute(sa.select(identity.project.c.id).where(identity.project.c.id == project)).first() is None:
        conn.execute(
            identity.project.insert().values(
                id=project, account=account, name=f"recovered-{project[:8]}", created_at=ctx.ambient.now()
            )
        )


def _ensure_instance(conn: Connection, instance: str, project: str, facts: dict[str, Any], now: float) -> None:
    if conn.execute(sa.select(t.instance.c.id).where(t.instance.c.id == instance)).first() is None:
        name = str(facts.get("instance_name", f"recovered-{instance[:8]}"))
        if conn.execute(sa.select(t.instance.c.id).where(t.instance.c.project == project, t.instance.c.name == name)).first():
            name = f"{name}-{instance[:8]}"  # an instance that was removed before another took its name
        conn.execute(
            t.instance.insert().values(
                id=instance, project=project, name=name,
                engine=facts.get("engine", "unknown"), address=facts.get("address", ""), secret=None,
                mode=facts.get("mode", ""), version=facts.get("engine_version", ""), state="REGISTERED", labels="{}",
                created_at=now, updated_at=now,
            )
        )  # fmt: skip


def _union(sets: Iterable[BitMap]) -> BitMap:
    return BitMap.union(*sets) if (sets := list(sets)) else BitMap()
