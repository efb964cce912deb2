"""Reading a backup whole: all of its parts as one source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy import Connection, Row

from strongroom.backups.context import Context
from strongroom.backups.listing import parts_of
from strongroom.backups.locating import CatalogLocator, read_manifest
from strongroom.engines.base import RestoreSource
from strongroom.repository.reader import BackupReader, Joined


def parts_to_read(conn: Connection, backup: str) -> Sequence[Row[Any]]:
    """A backup's parts, by node."""
    return sorted(parts_of(conn, backup), key=lambda part: str(part.node))


@contextmanager
def reading(ctx: Context, parts: Sequence[Row[Any]]) -> Iterator[tuple[RestoreSource, Mapping[str, Any]]]:
    """A source over all parts of a backup, and the engine's facts of the first."""
    with ExitStack() as stack:
        readers, facts = list[BackupReader](), list[Mapping[str, Any]]()
        for part in parts:
            keys = ctx.keys(part.lineage)
            manifest = read_manifest(ctx, keys, part.lineage, part.seq)
            readers.append(stack.enter_context(BackupReader(manifest, ctx.store, keys, CatalogLocator(ctx, part.lineage))))
            facts.append(manifest.engine_facts)
        yield readers[0] if len(readers) == 1 else Joined(readers), facts[0]
