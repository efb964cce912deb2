"""Statements for many rows: ids by the hundred in one `IN (…)`, and one statement for each of many rows.

PostgreSQL plans and answers every statement apart: thousands of single updates cost seconds, so that it joins with a list of
values. SQLite has them in one process, and is given them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine

T = TypeVar("T")

_IN = 800
"""Ids in one `IN (…)`."""


def batches(items: Iterable[T], size: int | None = None) -> Iterator[list[T]]:
    """The items in lists of at most `size`; as many as one `IN (…)` takes unless said."""
    size = size or _IN
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


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
