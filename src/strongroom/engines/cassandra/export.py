"""Writing a backup as Cassandra's own files, for `sstableloader` and `cqlsh`.

schema.cql                                      the whole schema, with the ids that the tables had
roles.cql                                       roles with hashed passwords, and their rights
<host id>/node.json                             where the node stood
<host id>/<keyspace>/<table>/<file>             its SSTables, without the indexes' own files
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from strongroom.engines.base import Control, EngineUnsupported, RestoreSource, Summary
from strongroom.engines.cassandra import layout
from strongroom.engines.cassandra.restore import Contents, all_files, read_contents
from strongroom.engines.exporting import new_folder, write_file

_BEYOND_A_FOLDER = frozenset({"", ".", ".."})


def export(source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
    """Into a private folder. Files are their owner's alone, and durable. Raises EngineUnsupported, CaptureBroken, OSError."""
    contents = read_contents(source, facts)
    files = total = read = 0
    described = [
        ("schema.cql", contents.schema.script()),
        ("roles.cql", contents.roles),
        *((f"{host}/{layout.NODE}", _text(source, f"{host}/{layout.NODE}")) for host in contents.hosts),
    ]
    for name, text in described:
        total += _write(folder / name, [text.encode()], folder)
        files += 1
    for file in all_files(contents):
        if file.is_of_index:
            continue
        parts = (file.host_id, file.keyspace, file.table, file.name)
        if any(part in _BEYOND_A_FOLDER for part in parts):
            raise EngineUnsupported(f"the entry {file.entry.name!r} is no file of an SSTable")
        total += _write(folder.joinpath(*parts), _watched(source.read(file.entry.name), read, contents, control), folder)
        files, read = files + 1, read + file.entry.size
    return Summary(files, total, {"tables": len(contents.schema.tables)})


def _text(source: RestoreSource, name: str) -> str:
    return b"".join(source.read(name)).decode()


def _watched(pieces: Iterable[bytes], done: int, contents: Contents, control: Control) -> Iterable[bytes]:
    for piece in pieces:
        done += len(piece)
        control.progress("export", done, contents.bytes)
        yield piece


def _write(path: Path, pieces: Iterable[bytes], root: Path) -> int:
    """A new file below `root`, in new folders where they lack."""
    missing = [folder for folder in path.parents if folder.is_relative_to(root) and not folder.exists()]
    for folder in reversed(missing):
        new_folder(folder)
    return write_file(path, pieces)
