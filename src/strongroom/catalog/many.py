"""One statement for many rows: a list of values that PostgreSQL joins with, and that SQLite is given one by one.

PostgreSQL plans and answers every statement apart: thousands of single updates cost seconds. SQLite has them in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine


def execute_each(
    conn: Connection,
    statement: Callable[[Any], sa.Update | sa.Delete],
    rows: Sequence[Mapping[str, Any]],
    **types: TypeEngine[Any],
) -> None:
    """Executes what `statement` makes of a row, for all rows; it is given something with the row's fields as attributes.

    `types`: each field's. No two rows may touch the same row of the table.
    """
    if not rows:
        return
    if conn.dialect.name != "postgresql":
        fields = {name: sa.bindparam(name, type_=kind) for name, kind in types.items()}
        conn.execute(statement(SimpleNamespace(**fields)), rows)
        return
    columns = [sa.bindparam(None, [row[name] for row in rows], ARRAY(kind)) for name, kind in types.items()]
    listed = sa.func.unnest(*columns).table_valued(*(sa.column(name, kind) for name, kind in types.items()))
    conn.execute(statement(listed.render_derived(name="listed").c))
