"""Names of entries go there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.engines.mongodb.names import DATA, entry_name, parse_entry_name, split_namespace

text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=30)


@given(text, text)
def test_any_name_comes_back(database: str, collection: str) -> None:
    """Whatever is in it; and the entry has exactly three parts, none of them `.` or `..`."""
    name = entry_name(DATA, database, collection)
    assert parse_entry_name(name) == (DATA, database, collection)
    assert len(name.split("/")) == 3
    assert not {".", ".."} & set(name.split("/"))
    assert name.isascii()


@given(st.tuples(text, text), st.tuples(text, text))
def test_different_collections_have_different_entries(one: tuple[str, str], other: tuple[str, str]) -> None:
    """Else one would overwrite the other."""
    assert (entry_name(DATA, *one) == entry_name(DATA, *other)) == (one == other)


@pytest.mark.parametrize("name", ["data/a", "data/a/b/c", "data/a b/c", "data/%61/b", "catalog"])
def test_names_that_we_would_not_write_are_refused(name: str) -> None:
    """A backup whose names are odd is not ours."""
    with pytest.raises(ValueError, match=r"."):
        parse_entry_name(name)


def test_a_namespace_is_split_at_its_first_dot() -> None:
    """Databases have no dots, collections may."""
    assert split_namespace("db.a.b") == ("db", "a.b")
