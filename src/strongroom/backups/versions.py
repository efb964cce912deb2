"""Versions of engines, as far as they decide what fits where."""

from __future__ import annotations


def version_key(version: str) -> tuple[int, ...]:
    """Major and minor number: what decides whether data of one version fits another."""
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    return tuple(numbers)
