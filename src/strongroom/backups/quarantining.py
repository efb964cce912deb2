"""Moving aside what nobody knows: unknown objects, named by an operator, are copied below quarantine/ and then taken from their
place.

Order of effects: all names judged → audit event committed → for each: copy put and looked up → row and owner looked at once
more → original removed and looked up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pyroaring import BitMap
from sqlalchemy import Connection, Row

from strongroom.backups import errors, removal, staleness
from strongroom.backups.context import Context
from strongroom.catalog import tables as t
from strongroom.catalog.lifespans import living
from strongroom.catalog.space import holders
from strongroom.identity import tables as identity
from strongroom.repository import names
from strongroom.repository.errors import RepositoryError
from strongroom.repository.keys import open_closed, open_lineage_keys, open_owner
from strongroom.repository.pack import read_index
from strongroom.storage.base import InvalidName, ObjectMissing, StoreUnavailable, check_name

MOST_AT_ONCE = 100
"""Objects that one quarantine takes."""

LARGEST = 256 << 20
"""Bytes of an object that a quarantine copies: a put takes the whole of it."""

ASIDE = "quarantine"
"""The folder of what was moved aside: quarantine/<id>/<name that it had>."""

_LINEAGE = re.compile(r"[0-9a-f]{32}\Z")


class NotQuarantined(errors.Refused):
    """An object may not be moved aside. Nothing was moved."""


@dataclass(frozen=True, slots=True)
class Moved:
    """An object that was moved aside."""

    name: str
    moved_to: str
    bytes: int


def quarantine(
    ctx: Context,
    project: str,
    wanted: Sequence[str],
    note: Callable[[Connection, Mapping[str, str]], None],
    *,
    outside: bool,
) -> list[Moved]:
    """Moves unknown objects aside, all or none being judged first; `note` writes the audit event (name → new name).

    Raises NotQuarantined, staleness.CatalogOutdated, StoreError. After an error of the store some may be moved and one copied
    and still in its place; the call can be repeated with what is left.
    """
    chosen = list(dict.fromkeys(wanted))
    if not 1 <= len(chosen) <= MOST_AT_ONCE:
        raise NotQuarantined(f"one call takes 1 to {MOST_AT_ONCE} objects, these are {len(chosen)}")
    staleness.require_owner(ctx)
    folder = f"{ASIDE}/{ctx.ambient.hex_id()}"
    for name in chosen:
        _judge(ctx, project, name, outside, f"{folder}/{name}")
    with ctx.catalog.write() as conn:
        note(conn, {name: f"{folder}/{name}" for name in chosen})
    return [_move(ctx, name, f"{folder}/{name}") for name in chosen]


def _judge(ctx: Context, project: str, name: str, outside: bool, target: str) -> None:
    """Raises NotQuarantined unless the object is there, unknown, the caller's to move, and movable."""
    nothing = NotQuarantined(f"there is no unknown object {name[:200]!r}")
    try:
        check_name(name)
        check_name(target)
    except InvalidName as error:
        raise NotQuarantined(str(error)) from error
    folder, said = name.partition("/")[0], names.parse(name)
    line = _line(ctx, folder)
    if not outside and (line is None or line.project != project):
        raise nothing
    if line is not None and line.project != project and _is_somebodys(ctx, line.project):
        raise nothing
    _require_no_row(ctx, name)
    if folder == ASIDE:
        raise NotQuarantined(f"{name} is in quarantine already")
    if said is not None and said.kind in ("owner", "closed", "grave", "log", "catalog", "trail"):
        raise NotQuarantined(f"a rebuild of the catalog reads {name}: it stays")
    if line is not None:
        _require_not_newer(ctx, line, said)
        _require_no_only_copy(ctx, line, said, name)
    elif _LINEAGE.match(folder):
        _require_foreign(ctx, folder)
    found = ctx.store.stat(name)
    if found is None:
        raise nothing
    if found.size > LARGEST:
        raise NotQuarantined(f"{name} has {found.size} bytes; objects up to {LARGEST} are moved: use the store's own tools")


def _line(ctx: Context, folder: str) -> Row[Any] | None:
    with ctx.catalog.read() as conn:
        return conn.execute(sa.select(t.lineage).where(t.lineage.c.id == folder)).first()


def _is_somebodys(ctx: Context, project: str) -> bool:
    with ctx.catalog.read() as conn:
        return conn.execute(sa.select(identity.project.c.id).where(identity.project.c.id == project)).first() is not None


def _require_no_row(ctx: Context, name: str) -> None:
    with ctx.catalog.read() as conn:
        row = conn.execute(sa.select(t.object_.c.state).where(t.object_.c.name == name)).first()
    if row is not None:
        raise NotQuarantined(f"{name} is in the catalog ({row.state}): only unknown objects are moved")


def _require_not_newer(ctx: Context, line: Row[Any], said: names.ParsedName | None) -> None:
    """What an older catalog does not know may be a backup: raises CatalogOutdated where there is a sign of that."""
    if said is not None and said.seq is not None and said.seq > line.counter:
        raise staleness.CatalogOutdated(
            f"the catalog is older than the store (lineage {line.id} has a part {said.seq}): nothing is moved there; stop the "
            "server and run `strongroom catalog rebuild`"
        )
    if line.state == "OPEN":
        staleness.require_current(ctx, line.id)


def _require_no_only_copy(ctx: Context, line: Row[Any], said: names.ParsedName | None, name: str) -> None:
    """Raises CatalogOutdated for an unknown object of chunks, some of which backups need, where an object that the catalog has
    them in is not there: a newer catalog may have moved them into the unknown one, and removed the other."""
    if line.state != "OPEN" or said is None or said.kind not in ("pack", "rewrite") or said.id is None:
        return
    try:
        packs = read_index(ctx.store, ctx.keys(line.id), line.id, said.id, name).packs
    except (RepositoryError, ObjectMissing):
        return  # nobody can read it, whatever is done with it
    held = {pack: BitMap(one.numbers) for pack, one in packs.items()}
    with ctx.catalog.read() as conn:
        needed = [pack for pack, numbers in living(conn, line.id, held).items() if numbers & held[pack]]
        known = {one.name for one in holders(conn, line.id, needed)}
    for other in sorted(known):
        if ctx.store.stat(other) is None:
            raise staleness.CatalogOutdated(
                f"the catalog has chunks of {name} in {other}, which is not there: it may be older than the store and {name} the "
                "only copy; nothing is moved. Stop the server and run `strongroom catalog rebuild`"
            )


def _require_foreign(ctx: Context, lineage: str) -> None:
    """A lineage without a row is not this installation's, unless its keys open: then the catalog lacks it."""
    if _is_closed(ctx, lineage):
        return
    for stat in ctx.store.list(f"{lineage}/key/"):
        try:
            open_lineage_keys(ctx.root_key, lineage, ctx.store.get(stat.name))
        except (RepositoryError, ObjectMissing):
            continue
        raise staleness.CatalogOutdated(
            f"the catalog does not know lineage {lineage}, and its keys open with this root key: the catalog is older than the "
            "store; nothing is moved there; stop the server and run `strongroom catalog rebuild`"
        )


def _is_closed(ctx: Context, lineage: str) -> bool:
    try:
        data = ctx.store.get(names.closed(lineage))
        with ctx.catalog.read() as conn:
            k = conn.execute(sa.select(t.installation.c.owner)).scalar_one()
        open_closed(ctx.root_key, lineage, data, open_owner(ctx.root_key, k, ctx.store.get(names.owner(k))))
    except (RepositoryError, ObjectMissing):
        return False
    return True


def _move(ctx: Context, name: str, target: str) -> Moved:
    try:
        data = ctx.store.get(name)
    except ObjectMissing as error:
        raise NotQuarantined(f"{name} went away meanwhile") from error
    size = ctx.store.put_new(target, data)
    copy = ctx.store.stat(target)
    if copy is None or copy.size != len(data):
        raise StoreUnavailable(f"the copy {target} is not there as it was put; {name} stays in its place")
    staleness.require_owner(ctx)
    _require_no_row(ctx, name)
    ctx.store.delete(name)
    removal.require_gone(ctx, [name])
    return Moved(name, target, size)
