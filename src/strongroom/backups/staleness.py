"""Noticing a catalog that is older than its store: a restored dump, a promoted replica, a copied data folder.

Freeing by such a catalog would take chunks from backups that it does not know. So before a process first frees or builds in a
lineage, it compares the lineage's manifests and graves in the store with the catalog; and before each batch that removes, it
looks whether another catalog has taken the store over (`owner/<k+1>`). A listing can only confirm presence: what it lacks is
asked for by name.
"""

from __future__ import annotations

import sqlalchemy as sa

from strongroom.backups.context import Context
from strongroom.catalog import tables as t
from strongroom.repository import names


class CatalogOutdated(Exception):
    """Nothing may be freed: the store knows more than the catalog."""

    permanent = True


def require_current(ctx: Context, lineage: str) -> None:
    """Raises CatalogOutdated if the store holds what the catalog has not decided yet, or lacks what it holds as completed."""
    with ctx.catalog.read() as conn:
        line = conn.execute(sa.select(t.lineage).where(t.lineage.c.id == lineage)).one()
        if line.stopped is not None:
            raise CatalogOutdated(line.stopped)
        if lineage in ctx.checked:
            return
        roots = conn.execute(
            sa.select(t.object_.c.name, t.part.c.seq)
            .join(t.part, t.part.c.root == t.object_.c.id)
            .where(t.part.c.lineage == lineage, t.part.c.state == "COMPLETED")
        ).all()
    reason = _difference(ctx, lineage, line.counter, [row.name for row in roots])
    if reason is not None:
        with ctx.catalog.decide(lineages=[lineage]) as conn:
            conn.execute(sa.update(t.lineage).where(t.lineage.c.id == lineage).values(stopped=reason))
        raise CatalogOutdated(reason)
    ctx.checked.add(lineage)


def require_owner(ctx: Context) -> None:
    """Raises CatalogOutdated if a rebuilt catalog owns the store now: this one's workers must remove nothing more."""
    with ctx.catalog.read() as conn:
        mine = conn.execute(sa.select(t.installation.c.owner)).scalar_one()
    if ctx.store.stat(names.owner(mine + 1)) is not None:
        raise CatalogOutdated("another catalog was rebuilt from this store and owns it now: stop this server")


def _difference(ctx: Context, lineage: str, counter: int, roots: list[str]) -> str | None:
    seen: set[str] = set()
    for kind in ("manifest", "grave"):
        for found in ctx.store.list(f"{lineage}/{kind}/"):
            parsed = names.parse(found.name)
            if parsed is not None and parsed.seq is not None and parsed.seq > counter:
                return (
                    f"the catalog is older than the store (lineage {lineage}: {found.name} is unknown here): "
                    "nothing is freed there; stop the server and run `strongroom catalog rebuild`"
                )
            seen.add(found.name)
    for name in roots:
        if name not in seen and ctx.store.stat(name) is None:
            return (
                f"the catalog is older than the store (lineage {lineage}: {name} is completed here and not there): "
                "nothing is freed there; stop the server and run `strongroom catalog rebuild`"
            )
    return None
