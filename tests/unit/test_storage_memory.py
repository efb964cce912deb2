"""The memory store."""

from __future__ import annotations

import pytest

from strongroom.storage.memory import MemoryStore
from support.stores import StoreBehaviour


class TestMemoryStore(StoreBehaviour):
    """It behaves as every store does."""

    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    def test_it_lists_in_the_order_of_names(self, store: MemoryStore) -> None:
        """So that a simulation replays."""
        for name in ("l/c", "l/a", "l/b"):
            store.put_new(name, b"")
        assert [stat.name for stat in store.list("")] == ["l/a", "l/b", "l/c"]

    def test_what_the_caller_does_to_its_buffer_afterwards_changes_no_object(self, store: MemoryStore) -> None:
        """Objects are immutable: a put copies what may change."""
        buffer = bytearray(b"abc")
        store.put_new("l/a", memoryview(buffer))
        buffer[:] = b"xyz"
        assert store.get("l/a") == b"abc"
