"""Migrations: what was released stays as it was, and one to come may make a table anew that others refer to."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.catalog.database import Catalog, CatalogError
from strongroom.catalog.migrating import migrate
from support.released import Release, digests, releases
from support.schemas import next_version


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.version)
def test_released_migrations_are_as_they_were_released(release: Release) -> None:
    """Catalogs out there were made by just these."""
    present = digests()
    changed = [name for name, digest in release.facts["migrations"].items() if present.get(name) != digest]
    assert not changed, (
        f"{', '.join(changed)} belongs to release {release.version}, and catalogs were made by it: put it back as it was, and "
        "write what is to change as a new migration after the newest one"
    )


def test_there_is_a_release() -> None:
    """Else the tests over all releases would test nothing."""
    assert [release.version for release in releases()][:1] == ["0.1.0"]


def _fill(catalog: Catalog) -> None:
    with catalog.write() as conn:
        conn.execute(sa.text("INSERT INTO account (id, name, created_at) VALUES ('a', 'ours', 1)"))
        conn.execute(sa.text("INSERT INTO project (id, account, name, created_at) VALUES ('p', 'a', 'default', 1)"))


def test_a_table_that_others_refer_to_can_be_made_anew(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows and the references to them stay, and references are enforced again afterwards."""
    _fill(catalog)
    next_version(tmp_path, monkeypatch, "SELECT 1")
    migrate(catalog)
    with catalog.read() as conn:
        assert conn.execute(sa.text("SELECT id, name, probe FROM account")).all() == [("a", "ours", None)]
    with pytest.raises(sa.exc.IntegrityError), catalog.write() as conn:
        conn.execute(sa.text("DELETE FROM account"))


def test_a_migration_that_loses_what_others_refer_to_changes_nothing(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, and the catalog is as before."""
    _fill(catalog)
    next_version(tmp_path, monkeypatch, "DELETE FROM account")
    with pytest.raises(CatalogError, match="a row of project refers to a row of account that is not there"):
        migrate(catalog)
    with catalog.read() as conn:
        assert conn.execute(sa.text("SELECT count(*) FROM account")).scalar() == 1
        assert "probe" not in {column["name"] for column in sa.inspect(conn).get_columns("account")}
    with pytest.raises(sa.exc.IntegrityError), catalog.write() as conn:
        conn.execute(sa.text("DELETE FROM account"))
