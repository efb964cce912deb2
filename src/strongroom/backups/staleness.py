"""Noticing a catalog that is older than its store: a restored dump, a promoted replica, a copied data folder.

Freeing by such a catalog would take chunks from backups that it does not know. So before a process first frees or builds in a
lineage, at its start and after a fail-over, it compares the lineage's manifests and graves in the store with the catalog; and
before each batch that removes, it looks whether another catalog has taken the store over (`owner/<k+1>`). A listing can only
confirm presence: what it lacks is asked for by name.

A completed backup's manifest that is not there is such a sign only with a mark that says why: graves and closing marks are put
before what they bury goes. Without one the store has lost it. That harms one backup, which verification tells of, and is no
reason to stop the others: what the catalog frees, it decided.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups.context import Context
from strongroom.catalog import tables as t
from strongroom.catalog.database import Guard
from strongroom.repository import names

log = logging.getLogger("strongroom.backups")


class CatalogOutdated(Exception):
    """Nothing may be freed: the store knows more than the catalog."""

    permanent = True


def require_current(ctx: Context, lineage: str) -> None:
    """Raises CatalogOutdated if the store holds what the catalog has not decided yet, or a mark of what it holds as completed."""
    with ctx.catalog.read() as conn:
        line = conn.execute(sa.select(t.lineage).where(t.lineage.c.id == lineage)).one()
        if line.stopped is not None:
            raise CatalogOutdated(line.stopped)
        moves = ctx.catalog.moves  # on this connection: a fail-over after it makes what follows count no more
        if ctx.checked.get(lineage) == moves:
            return
        roots = _roots(conn, lineage)
    found = _difference(ctx, lineage, line, roots)
    if found is not None:
        with ctx.catalog.decide(lineages=[lineage]) as conn:
            explained = _explained(conn, lineage, found)
            if not explained:
                _stop(conn, lineage, found.reason)
        if not explained:
            raise CatalogOutdated(found.reason)
        return  # looked at while it moved: the next time is looked at again
    ctx.checked[lineage] = moves


def require_unended(ctx: Context, lineage: str, seq: int, guard: Guard | None = None) -> None:
    """For a part that begins here, or that a restored catalog shows as being built: raises CatalogOutdated and stops its
    lineage, if the store holds a manifest or the grave of that seq.

    A catalog of before has used the seq, then, and may have completed the backup: failing it here would take its packs, and a
    second manifest of the seq would hide it from a rebuild. `guard`: only while the caller's job is its own, since whoever took
    it over may have put the manifest meanwhile.
    """
    with ctx.catalog.read() as conn:
        here = sa.and_(t.object_.c.lineage == lineage, t.object_.c.kind == "manifest", t.object_.c.seq == seq)
        known = [row.name for row in conn.execute(sa.select(t.object_.c.name).where(here))]
    listed = [found.name for found in ctx.store.list(f"{lineage}/manifest/")]
    there = [name for name in listed if (parsed := names.parse(name)) is not None and parsed.seq == seq]
    there += [name for name in [*known, names.grave(lineage, seq)] if name not in there and ctx.store.stat(name) is not None]
    if there:
        reason = _told(lineage, f"{there[0]} is there and its backup is not completed here")
        with ctx.catalog.decide(guard, lineages=[lineage]) as conn:
            part = sa.and_(t.part.c.lineage == lineage, t.part.c.seq == seq)
            # One that was stopped meanwhile has a grave of its own.
            ended = conn.execute(sa.select(t.part.c.state).where(part)).scalar_one() != "BUILDING"
            if not ended:
                _stop(conn, lineage, reason)
        if not ended:
            raise CatalogOutdated(reason)


def require_sources(ctx: Context, lineage: str, planned: Sequence[str], sources: Sequence[str], guard: Guard) -> None:
    """For a rewrite that an earlier run had under way: raises CatalogOutdated and stops its lineage, if an object that it planned
    is in the store and one of its sources is not.

    Sources go only after what they held has moved: a catalog that does not know of that is older than the store, and giving the
    planned object up would take the only copy. (Should the source have been lost, a rebuild finds the copy all the same.)
    """
    there = [name for name in planned if ctx.store.stat(name) is not None]
    lost = [name for name in sources if ctx.store.stat(name) is None] if there else []
    if lost:
        reason = _told(lineage, f"{there[0]} is there and {lost[0]}, from which it was made, is not")
        with ctx.catalog.decide(guard, lineages=[lineage]) as conn:
            _stop(conn, lineage, reason)
        raise CatalogOutdated(reason)


def require_owner(ctx: Context) -> None:
    """Raises CatalogOutdated if a rebuilt catalog owns the store now: this one's workers must remove nothing more."""
    with ctx.catalog.read() as conn:
        mine = conn.execute(sa.select(t.installation.c.owner)).scalar_one()
    if ctx.store.stat(names.owner(mine + 1)) is not None:
        raise CatalogOutdated("another catalog was rebuilt from this store and owns it now: stop this server")


def _stop(conn: Connection, lineage: str, reason: str) -> None:
    """Nothing is built or freed in the lineage any more, by any server of this catalog."""
    conn.execute(sa.update(t.lineage).where(t.lineage.c.id == lineage).values(stopped=reason))


@dataclass(frozen=True, slots=True)
class _Difference:
    """An object that the store has and the catalog cannot know (`seq` above the counter, a closing mark), or one the other way
    round."""

    name: str
    seq: int | None
    reason: str


def _difference(ctx: Context, lineage: str, line: Row[Any], roots: set[str]) -> _Difference | None:
    closed = names.closed(lineage)
    if line.state == "OPEN" and ctx.store.stat(closed) is not None:
        return _Difference(closed, None, _told(lineage, f"{closed} is there: the lineage is open here and was ended there"))
    seen: set[str] = set()
    for kind in ("manifest", "grave"):
        for found in ctx.store.list(f"{lineage}/{kind}/"):
            parsed = names.parse(found.name)
            if parsed is not None and parsed.seq is not None and parsed.seq > line.counter:
                return _Difference(found.name, parsed.seq, _told(lineage, f"{found.name} is unknown here"))
            seen.add(found.name)
    for name in sorted(roots - seen):
        if ctx.store.stat(name) is not None:
            continue
        parsed = names.parse(name)
        assert parsed is not None
        assert parsed.seq is not None
        mark = names.grave(lineage, parsed.seq)
        if ctx.store.stat(mark) is not None:
            return _Difference(name, None, _told(lineage, f"{name} is completed here and deleted there, {mark} says"))
        log.warning("%s is not in the store, and no mark says why: its backup cannot be read; run `strongroom verify`", name)
    return None


def _told(lineage: str, what: str) -> str:
    return (
        f"the catalog is older than the store (lineage {lineage}: {what}): nothing is freed there; stop the server and run "
        "`strongroom catalog rebuild`"
    )


def _explained(conn: Connection, lineage: str, found: _Difference) -> bool:
    """Whether the catalog has decided it since it was read: a backup was begun, or deleted, while the store was being listed."""
    if found.seq is not None:
        counter = conn.execute(sa.select(t.lineage.c.counter).where(t.lineage.c.id == lineage)).scalar_one()
        return bool(found.seq <= counter)
    if found.name == names.closed(lineage):
        return bool(conn.execute(sa.select(t.lineage.c.state).where(t.lineage.c.id == lineage)).scalar_one() == "CLOSED")
    return found.name not in _roots(conn, lineage)


def _roots(conn: Connection, lineage: str) -> set[str]:
    """Names of the manifests of completed parts."""
    rows = conn.execute(
        sa.select(t.object_.c.name)
        .join(t.part, t.part.c.root == t.object_.c.id)
        .where(t.part.c.lineage == lineage, t.part.c.state == "COMPLETED")
    )
    return {row.name for row in rows}
