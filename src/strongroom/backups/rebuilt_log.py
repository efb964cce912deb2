"""What a rebuild makes of a lineage's log: chains from the headers of its pieces, and the parts that can go on by them.

A group of pieces counts when all of it is there; of two that begin at the same mark (one was put just before a crash) the longer.
A piece that is missing ends its chain: what follows the hole is a chain of its own, for the backups that stand in it. What no
backup can go on by is reported and left, like everything else that nothing needs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups.context import Context
from strongroom.backups.objects import register_found
from strongroom.backups.recording import lineage_of
from strongroom.catalog import tables as t
from strongroom.engines.log import Mark
from strongroom.repository import names
from strongroom.repository.errors import RepositoryError
from strongroom.repository.log import LogHeader, peek_log
from strongroom.storage.base import ObjectMissing, Stat

_HEAD = 4096  # bytes of an object that are read for its header


@dataclass(frozen=True, slots=True)
class Piece:
    """One object with what its header says."""

    key: str
    stat: Stat
    header: LogHeader


@dataclass(slots=True)
class Chain:
    """Groups of pieces of which each begins where the one before it ends."""

    number: int
    groups: list[list[Piece]] = field(default_factory=list)

    @property
    def begin(self) -> Mark:
        return Mark(*self.groups[0][0].header.begin)

    @property
    def end(self) -> Mark:
        found = self.groups[-1][-1].header.end
        assert found is not None
        return Mark(*found)

    def holds(self, place: Mark, *, newest: bool) -> bool:
        """Whether a part that stands there goes on by this chain; by the newest one also if it stands beyond what is there
        yet."""
        ours = {self.begin.stream} | {group[-1].header.end[0] for group in self.groups if group[-1].header.end}
        return place.stream in ours and self.begin.order <= place.order and (newest or place.order <= self.end.order)


def read_pieces(ctx: Context, lineage: str, found: Iterable[tuple[Stat, names.ParsedName]]) -> tuple[list[Piece], list[str]]:
    """Those whose header can be read, and a word about each other one. Headers are proven when a restore opens the pieces: the
    most that a false one does is to keep them. Raises StoreError."""
    pieces: list[Piece] = []
    trouble: list[str] = []
    for stat, parsed in found:
        try:
            header = peek_log(ctx.store.get(stat.name, 0, _HEAD), stat.name)
        except (RepositoryError, ObjectMissing) as error:
            trouble.append(f"{stat.name}: {error}; left as it is")
            continue
        if header.lineage == lineage:
            pieces.append(Piece(parsed.id or "", stat, header))
    return pieces, trouble


def chains_of(pieces: Sequence[Piece]) -> list[Chain]:
    """In the order in which they were recorded; numbers that were given twice by holes are given anew above all others."""
    groups: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        groups[piece.header.group].append(piece)
    whole: dict[int, dict[int, list[Piece]]] = defaultdict(dict)
    for group in groups.values():
        group.sort(key=lambda one: one.header.piece)
        if [one.header.piece for one in group] != list(range(len(group))) or not group[-1].header.last:
            continue
        chain, begin = group[-1].header.chain, group[-1].header.begin[1]
        known = whole[chain].get(begin)
        if known is None or _end(known) < _end(group):
            whole[chain][begin] = group
    found: list[Chain] = []
    above = max(whole, default=0)
    for number, by_begin in sorted(whole.items()):
        current: Chain | None = None
        for _, group in sorted(by_begin.items()):
            if current is None or current.end.order != group[0].header.begin[1]:
                above += current is not None
                current = Chain(number if current is None else above)
                found.append(current)
            current.groups.append(group)
    return found


def _end(group: list[Piece]) -> int:
    end = group[-1].header.end
    return -1 if end is None else end[1]


def write_chains(
    conn: Connection, lineage: str, instance: str, chains: Sequence[Chain], places: Sequence[tuple[int, Mark]]
) -> set[str]:
    """Registers what parts, as (seq, where it stands), can go on by; returns the names of those objects. A recording goes on with
    the newest chain."""
    newest = max(chains, key=lambda one: (one.end.at, one.number), default=None)
    registered: set[str] = set()
    for chain in sorted(chains, key=lambda one: one.number):
        ours = [(seq, place) for seq, place in places if chain.holds(place, newest=chain is newest)]
        if not ours:
            continue
        for seq, _ in ours:
            here = sa.and_(t.part.c.lineage == lineage, t.part.c.seq == seq)
            conn.execute(sa.update(t.part).where(here).values(log_chain=chain.number))
        floor = min(place.order for _, place in ours)
        for group in chain.groups:
            if _end(group) > floor:
                _write_group(conn, lineage, chain.number, group)
                registered |= {piece.stat.name for piece in group}
    _go_on(conn, lineage, instance, chains, newest)
    return registered


def _write_group(conn: Connection, lineage: str, chain: int, group: list[Piece]) -> None:
    begin, end = Mark(*group[0].header.begin), group[-1].header.end
    assert end is not None
    for number, piece in enumerate(group):
        register_found(conn, piece.key, lineage, "log", piece.stat.name, piece.stat.size)
        conn.execute(
            t.segment.insert().values(
                object=piece.key, lineage=lineage, chain=chain, since=begin.order, upto=end[1], piece=number,
                begin_at=begin.at, end_at=end[2], plain_bytes=piece.stat.size,
            )
        )  # fmt: skip


def _go_on(conn: Connection, lineage: str, instance: str, chains: Sequence[Chain], newest: Chain | None) -> None:
    """The recording, if the base of the rebuild knows of one, stands where the newest chain ends."""
    here = t.recording.c.instance == instance
    above = max((chain.number for chain in chains), default=0)
    known = conn.execute(sa.select(t.recording.c.chains).where(here)).scalar()
    if known is None:
        return
    conn.execute(sa.update(t.recording).where(here).values(chains=max(above, known)))
    if newest is not None and lineage_of(conn, instance) == lineage:
        end = newest.end
        conn.execute(
            sa.update(t.recording)
            .where(here)
            .values(
                lineage=lineage, chain=newest.number, began=newest.begin.order, stream=end.stream, position=end.order,
                reached_at=end.at,
            )
        )  # fmt: skip
