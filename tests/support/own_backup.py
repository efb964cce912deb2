"""The service's own backup beside the backups: a running server puts and removes it whenever something has changed."""

from __future__ import annotations

OWN_KINDS = ("catalog", "trail")
"""Kinds of its objects."""


def is_own(name: str) -> bool:
    """Whether an object is of the service's own backup. What is measured over a server's store leaves these out."""
    return name.partition("/")[0] in OWN_KINDS
