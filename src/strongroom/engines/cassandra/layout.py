"""What a backup's entries are called.

<host id>/data/<keyspace>/<table>-<id>/<file>     a file of an SSTable, as it lay on the node
<host id>/node.json                               where the node stood: address, data centre, rack, tokens, version
<host id>/schema.json                             all that users have made (schema.py)
<host id>/roles.cql                               statements that make the roles and their rights again
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from strongroom.engines.base import Entry

DATA = "data"
NODE, SCHEMA, ROLES = DESCRIPTIONS = ("node.json", "schema.json", "roles.cql")


def folder_of(host_id: str) -> str:
    """How the names of a node's entries begin."""
    return host_id


@dataclass(frozen=True, slots=True)
class SSTableFile:
    """A file of an SSTable, as its entry's name tells."""

    entry: Entry
    host_id: str
    keyspace: str
    table: str
    name: str

    @property
    def is_of_index(self) -> bool:
        """Whether it is of an index that lies beside the rows (SAI) and is made anew by a restore."""
        return "-SAI+" in self.name


def sstable_files(entries: Iterable[Entry]) -> Iterator[SSTableFile]:
    """Those of the entries that are files of SSTables."""
    for entry in entries:
        host_id, _, rest = entry.name.partition("/")
        if rest.startswith(f"{DATA}/"):
            _, keyspace, folder, name = rest.split("/")
            yield SSTableFile(entry, host_id, keyspace, folder.rpartition("-")[0], name)
