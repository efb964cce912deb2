"""Where chunks are: the catalog's answer to the repository's question."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from strongroom.backups.context import Context
from strongroom.catalog import tables as t
from strongroom.catalog.space import holders
from strongroom.repository.fetching import Holder
from strongroom.repository.keys import LineageKeys
from strongroom.repository.manifest import Manifest
from strongroom.storage.base import ObjectMissing


class CatalogLocator:
    """Finds the objects that hold a pack now; asked again when one that it named is gone (a rewrite replaced it)."""

    def __init__(self, ctx: Context, lineage: str) -> None:
        self._ctx, self._lineage = ctx, lineage

    def objects_of(self, pack: int) -> Sequence[Holder]:
        """Every stored object that holds chunks of the pack."""
        with self._ctx.catalog.read() as conn:
            return [Holder(held.id, held.name, held.numbers) for held in holders(conn, self._lineage, [pack])]


def read_manifest(ctx: Context, keys: LineageKeys, lineage: str, seq: int) -> Manifest:
    """The manifest of a completed part. Raises ObjectMissing if its root is gone, Damaged if it is not what was written."""
    with ctx.catalog.read() as conn:
        name = conn.execute(
            sa.select(t.object_.c.name)
            .join(t.part, t.part.c.root == t.object_.c.id)
            .where(t.part.c.lineage == lineage, t.part.c.seq == seq, t.object_.c.state == "STORED")
        ).scalar()
    if name is None:
        raise ObjectMissing(f"part {seq} of lineage {lineage} has no manifest")
    return Manifest.open(ctx.store, keys, lineage, str(name), CatalogLocator(ctx, lineage))
