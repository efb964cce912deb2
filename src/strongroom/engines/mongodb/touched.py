"""The documents that changed: their `_id`s on disk, so that memory stays small however many there are."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence

PAGE = 1000
PAGE_BYTES = 1024 * 1024


class TouchedIds:
    """A set of (namespace, `_id`) with the time of the last change each, in a file of its own. Safe for several threads.

    After `freeze` what is added stays apart, invisible, until `thaw`: a patch needs a set that stands still.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-16384", "temp_store=FILE"):
            self._db.execute(f"PRAGMA {pragma}")
        for table in ("touched", "later"):
            self._db.execute(
                f"CREATE TABLE {table} (ns TEXT, key BLOB, id BLOB, last INTEGER, PRIMARY KEY (ns, key)) WITHOUT ROWID"
            )
        self._frozen = False

    def close(self) -> None:
        """Closes the file; it is the caller's to remove."""
        with self._lock:
            self._db.close()

    def add(self, rows: Iterable[tuple[str, bytes, bytes, int]]) -> None:
        """Adds (namespace, key, raw `_id`, time)."""
        with self._lock:
            self._db.execute("BEGIN")
            self._db.executemany(_UPSERT["later" if self._frozen else "touched"], rows)
            self._db.execute("COMMIT")

    def freeze(self) -> None:
        """From here on the visible set does not change."""
        with self._lock:
            self._frozen = True

    def thaw(self) -> None:
        """Makes visible what was added since `freeze`."""
        with self._lock:
            self._db.execute("BEGIN")
            self._db.execute(
                "INSERT INTO touched SELECT * FROM later WHERE true "
                "ON CONFLICT (ns, key) DO UPDATE SET last = max(last, excluded.last)"
            )
            self._db.execute("DELETE FROM later")
            self._db.execute("COMMIT")
            self._frozen = False

    def namespaces(self, after: int = -1) -> list[str]:
        """Namespaces with a change later than `after`, sorted."""
        with self._lock:
            rows = self._db.execute("SELECT DISTINCT ns FROM touched WHERE last > ? ORDER BY ns", (after,)).fetchall()
        return [row[0] for row in rows]

    def count(self, after: int = -1) -> int:
        """How many documents changed later than `after`."""
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM touched WHERE last > ?", (after,)).fetchone()[0])

    def page(self, namespace: str, after: int = -1, beyond: bytes = b"") -> list[tuple[bytes, bytes]]:
        """The next (key, raw `_id`) in order of keys, beyond the key given, up to PAGE of them and about PAGE_BYTES."""
        with self._lock:
            cursor = self._db.execute(
                "SELECT key, id FROM touched WHERE ns = ? AND key > ? AND last > ? ORDER BY key LIMIT ?",
                (namespace, beyond, after, PAGE),
            )
            rows, weight = [], 0
            for row in cursor:
                rows.append((row[0], row[1]))
                weight += len(row[1])
                if weight > PAGE_BYTES:
                    break
            cursor.close()
        return rows

    def changed_after(self, namespace: str, keys: Sequence[bytes], after: int = -1) -> set[bytes]:
        """Those of the keys that were changed later than `after`."""
        found: set[bytes] = set()
        with self._lock:
            for key in keys:
                row = self._db.execute("SELECT last FROM touched WHERE ns = ? AND key = ?", (namespace, key)).fetchone()
                if row is not None and row[0] > after:
                    found.add(key)
        return found


_UPSERT = {
    "touched": "INSERT INTO touched VALUES (?, ?, ?, ?) ON CONFLICT (ns, key) DO UPDATE SET last = max(last, excluded.last)",
    "later": "INSERT INTO later VALUES (?, ?, ?, ?) ON CONFLICT (ns, key) DO UPDATE SET last = max(last, excluded.last)",
}
