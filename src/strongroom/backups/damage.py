"""Damage found while something else was being done: what is not as it was written becomes SUSPECT.

Suspect chunks leave the set that may be shared, so that the next backup of the lineage stores them anew. Nothing is removed:
backups that name them keep them, since what cannot be read today may be readable from a mended disk.
"""

from __future__ import annotations

import sqlalchemy as sa
from pyroaring import BitMap

from strongroom.backups.context import Context
from strongroom.catalog import tables as t
from strongroom.catalog.lifespans import suspect
from strongroom.catalog.space import held_by
from strongroom.repository.errors import Damaged
from strongroom.repository.verification import check_object
from strongroom.storage.base import ObjectMissing


def note_damage(ctx: Context, lineage: str, name: str) -> None:
    """Looks at every chunk of the object of this name and marks those that are damaged; all of them if it is gone or cannot be
    opened at all. Does nothing for names of anything but chunks' objects. Raises StoreError."""
    with ctx.catalog.read() as conn:
        row = conn.execute(
            sa.select(t.object_).where(t.object_.c.name == name, t.object_.c.kind.in_(("pack", "rewrite")))
        ).first()
    if row is None:
        return
    damaged: dict[int, BitMap] | None
    try:
        damaged = check_object(ctx.store, ctx.keys(lineage), lineage, row.id, name).damaged
    except (Damaged, ObjectMissing):
        damaged = None
    with ctx.catalog.decide(lineages=[lineage]) as conn:
        for pack, numbers in (held_by(conn, row.id) if damaged is None else damaged).items():
            suspect(conn, lineage, pack, numbers)


def damage_in(error: BaseException | None) -> str | None:
    """The name of the damaged object that an error, or what caused it, tells of."""
    while error is not None:
        if isinstance(error, Damaged) and error.object_name is not None:
            return error.object_name
        error = error.__cause__ or error.__context__
    return None
