"""Looking after the store where catalog and store are servers: PostgreSQL with a directory, SQLite with S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom.catalog.database import open_catalog
from strongroom.repository import names
from strongroom.storage.opening import open_store
from support.damage import Keeper, flip_chunk, plant, remove
from support.seaweed import seaweed
from support.vault import generations


@pytest.fixture(params=["postgres and directory", "sqlite and s3"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Keeper]:
    """A vault on each pair."""
    if request.param == "postgres and directory":
        catalog, store = open_catalog(request.getfixturevalue("postgres_url")), open_store(f"file://{tmp_path}/store", {})
        yield Keeper(tmp_path, store, catalog)
        store.close()
        catalog.close()
        return
    (tmp_path / "seaweed").mkdir()
    with seaweed(tmp_path / "seaweed") as server:
        catalog = open_catalog(request.getfixturevalue("sqlite_url"))
        store = open_store(server.url("maintenance/1"), server.environment)
        yield Keeper(tmp_path, store, catalog)
        store.close()
        catalog.close()


def test_damage_is_found_and_healed_and_what_is_unknown_moved_aside(vault: Keeper) -> None:
    """Four generations with a delete: clean and sound; then a bit flips, a pack goes, an unknown one comes; it is mended."""
    made = list(generations(4))
    keys = [vault.backup(data) for data in made]
    vault.delete(keys[1])
    vault.run()
    assert (vault.reconcile()["outcome"], vault.verify()["outcome"]) == ("clean", "sound")
    cut, gone, *_ = vault.objects("pack", backup=keys[0])
    flip_chunk(vault, cut, 0)
    remove(vault.store, gone)
    unknown = plant(vault.store, names.pack(vault.lineage(), 1, 1, "f" * 32))
    compared = vault.reconcile()
    assert [one["name"] for one in compared["unknown"]["objects"]] == [unknown]
    assert [one["name"] for one in compared["missing"]["objects"]] == [gone]
    assert keys[0] in compared["missing"]["objects"][0]["backups"]
    verified = vault.verify()
    assert {one["name"]: one["what"] for one in verified["damaged_objects"]} == {cut: "chunks", gone: "missing"}
    newest = vault.backup(made[-1])
    assert vault.restored(newest) == made[-1]
    assert vault.verify(newest)["outcome"] == "sound"
    (moved,) = vault.quarantine(unknown)
    assert vault.store.get(moved.moved_to) == b"what is this?"
    assert vault.reconcile()["unknown"]["count"] == 0
