"""Fixtures that every test may use; what they are made of is in support/."""

from __future__ import annotations

import pytest

from support.catalogs import (
    ambient,
    catalog,
    catalog_url,
    parametrise,
    postgres,
    postgres_template,
    postgres_url,
    sqlite_template,
    sqlite_url,
)

__all__ = [
    "ambient", "catalog", "catalog_url", "postgres", "postgres_template", "postgres_url", "sqlite_template", "sqlite_url",
]  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Chooses the databases of a test."""
    parametrise(metafunc)
