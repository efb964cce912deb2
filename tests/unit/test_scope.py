"""Scopes: equal choices are equal texts, and come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from strongroom.backups import creation, errors, listing
from strongroom.backups.scope import WHOLE, scope_of, tables_of
from strongroom.engines.base import Tables
from support.vault import Vault


def test_equal_choices_are_one_scope() -> None:
    one = scope_of([Tables("shop", ("b", "a")), Tables("x")])
    other = scope_of([Tables("x", ("y",)), Tables("shop", ("a",)), Tables("x"), Tables("shop", ("b", "a"))])
    assert one == other != scope_of([Tables("shop", ("a",)), Tables("x")])
    assert tables_of(one) == (Tables("shop", ("a", "b")), Tables("x"))
    assert tables_of(WHOLE) == ()


@pytest.mark.parametrize("chosen", [[], [Tables("")], [Tables("shop", ())], [Tables("shop", ("a", ""))]])
def test_what_chooses_nothing_is_refused(chosen: list[Tables]) -> None:
    with pytest.raises(errors.BadScope):
        scope_of(chosen)


def test_tables_are_for_engines_that_have_them(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.backup({"a": b"a"})
    wanted = creation.Wanted("tables", scope=scope_of([Tables("a")]))
    with pytest.raises(errors.BadScope, match="whole instance"):
        creation.create(vault.ctx, vault.project, vault.source, wanted, lambda conn, key: None)
    with vault.catalog.read() as conn:
        for tables, count in ((False, 1), (True, 0)):
            page = listing.list_backups(conn, vault.project, listing.BackupFilter(tables=tables), 0, 10)
            assert (page.total, len(page.rows)) == (count, count)
