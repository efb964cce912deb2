"""The scope of a backup: the whole instance, or tables of it. One text, so that equal scopes are equal rows.

"" is the whole instance; else a JSON list of [database, [table, …]], in order, or [database, null] for all tables that the
database has when the backup is taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from strongroom.backups import errors
from strongroom.engines.base import Tables

WHOLE = ""


def scope_of(chosen: Iterable[Tables]) -> str:
    """The text of a choice; databases that are named twice are joined. Raises errors.BadScope where nothing is chosen."""
    found: dict[str, set[str] | None] = {}
    for one in chosen:
        if not one.database or not all(one.names or ()):
            raise errors.BadScope("a database or a table without a name is chosen")
        if one.names is None:
            found[one.database] = None
            continue
        if not one.names:
            raise errors.BadScope(f"no table of {one.database} is chosen: name some, or leave the list out for all")
        known = found.setdefault(one.database, set())
        if known is not None:
            known.update(one.names)
    if not found:
        raise errors.BadScope("no table is chosen")
    items = [[database, None if names is None else sorted(names)] for database, names in sorted(found.items())]
    return json.dumps(items, ensure_ascii=False, separators=(",", ":"))


def tables_of(scope: str) -> tuple[Tables, ...]:
    """What scope_of was given; () is the whole instance."""
    if scope == WHOLE:
        return ()
    return tuple(Tables(database, None if names is None else tuple(names)) for database, names in json.loads(scope))
