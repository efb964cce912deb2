"""Deleting backups on SQLite and a store in memory: exact, promised, refused where it must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.deletion_cases import DeletionCases, MakeVault
from support.vault import Vault


class TestDeletion(DeletionCases):
    """All of it without a server."""

    @pytest.fixture
    def make_vault(self, tmp_path: Path) -> MakeVault:
        return lambda options: Vault(tmp_path, options=options)
