"""Several processes that start on one new catalog and store at once: the store becomes this catalog's, once, and nobody ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.ambient import Machine
from strongroom.backups.context import Context
from strongroom.backups.incarnation import take_possession
from strongroom.backups.staleness import CatalogOutdated
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog
from strongroom.identity.secrets import Sealer
from strongroom.jobs.leases import LeasedJobs
from strongroom.repository import names
from strongroom.repository.keys import RootKey
from strongroom.storage.base import Stat
from strongroom.storage.memory import MemoryStore

_ROOT = bytes(range(32))


class _Watched(MemoryStore):
    """Calls back around the look for the owner's mark."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    def stat(self, name: str) -> Stat | None:
        if name != names.owner(1):
            return super().stat(name)
        self.before()
        found = super().stat(name)
        self.after()
        return found


def _context(catalog: Catalog, store: MemoryStore, scratch: Path) -> Context:
    ambient = Machine()
    return Context(catalog, store, LeasedJobs(catalog, ambient), {}, RootKey(_ROOT), Sealer(_ROOT), ambient, scratch)


def _require_one_owner(catalog: Catalog, store: MemoryStore) -> None:
    with catalog.read() as conn:
        (row,) = conn.execute(sa.select(t.installation)).all()
        objects = conn.execute(sa.select(t.object_.c.name, t.object_.c.state)).all()
    assert row.owner == 1
    assert [tuple(one) for one in objects] == [(names.owner(1), "STORED")]
    assert [one.name for one in store.list("")] == [names.owner(1)]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_start_that_is_overtaken_by_another_goes_on(catalog: Catalog, tmp_path: Path, moment: str) -> None:
    """The other one founds everything right before, or right after, this one has looked whether the store is anybody's."""
    store = _Watched()
    context = _context(catalog, store, tmp_path)

    def overtake() -> None:
        store.before = store.after = lambda: None
        take_possession(_context(catalog, store, tmp_path))

    setattr(store, moment, overtake)
    take_possession(context)
    _require_one_owner(catalog, store)


def test_starts_at_once_found_once(catalog: Catalog, tmp_path: Path) -> None:
    """All have seen that nobody has founded before the first of them does."""
    store, together = _Watched(), threading.Barrier(4)
    waited = threading.local()

    def wait() -> None:
        if not getattr(waited, "once", False):
            waited.once = True
            together.wait(20)

    store.after = wait
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(take_possession, _context(catalog, store, tmp_path)) for _ in range(4)]:
            done.result()
    _require_one_owner(catalog, store)


def test_a_store_of_another_catalog_is_still_refused(catalog: Catalog, tmp_path: Path) -> None:
    """A new catalog on a store with an owner founds nothing."""
    store = _Watched()
    store.put_new(names.owner(1), b"another's")
    with pytest.raises(CatalogOutdated, match="belongs to another catalog"):
        take_possession(_context(catalog, store, tmp_path))
    with catalog.read() as conn:
        assert conn.execute(sa.select(t.installation)).all() == []
        assert conn.execute(sa.select(t.object_)).all() == []
