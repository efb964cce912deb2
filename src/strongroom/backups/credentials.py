"""What an instance is entered with, as one secret: its password, and the options that its engine knows.

A password alone is kept as its UTF-8 bytes, as it always was. With options it is a byte that no UTF-8 text holds, and JSON. All
options are sealed, since some of them are passwords and keys, and which ones only the engine knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

_WITH_OPTIONS = b"\xff"


def packed(password: str | None, options: Mapping[str, str]) -> bytes | None:
    """The secret's plain bytes; None where there is nothing to keep."""
    if options:
        return _WITH_OPTIONS + json.dumps({"password": password, "options": dict(options)}, sort_keys=True).encode()
    return None if password is None else password.encode()


def unpacked(plain: bytes | None) -> tuple[str | None, dict[str, str]]:
    """Password and options of what `packed` gave, or a version before options."""
    if plain is None:
        return None, {}
    if not plain.startswith(_WITH_OPTIONS):
        return plain.decode(), {}
    kept = json.loads(plain.removeprefix(_WITH_OPTIONS))
    return kept["password"], kept["options"]
