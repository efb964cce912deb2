"""What a hold is: while it is in force nothing deletes the backup, and the refusal says who holds it, why and until when.

Rebuilt backups that no snapshot of the catalog knows come back held. A hold with an end needs nobody to end it: whoever would
delete the backup looks at it by the clock of the moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Row

from strongroom.backups.moments import utc

Kind = Literal["legal", "pin", "recovered"]

RECOVERED = "recovered by a catalog rebuild"
"""The reason of a hold that a rebuild places."""

_WORDS = {"legal": "legal hold", "pin": "pinned", "recovered": "held"}


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a backup must not go. `by`: the user's name, None for the service itself; `until`: seconds since the epoch, None for as
    long as nobody releases it."""

    reason: str
    kind: Kind = "pin"
    by: str | None = None
    until: float | None = None

    def columns(self, now: float) -> dict[str, Any]:
        """As the backup's row has it, placed now."""
        return {
            "held": self.reason, "held_kind": self.kind, "held_by": self.by, "held_at": now, "held_until": self.until,
        }  # fmt: skip


FREE: Mapping[str, Any] = dict.fromkeys(("held", "held_kind", "held_by", "held_at", "held_until"))
"""The columns of a backup that is not held."""


def of_reason(reason: str | None) -> dict[str, Any]:
    """The columns of a hold of which nothing but its reason was written down, as 0.1.0 did; of None, of a backup not held."""
    kind = None if reason is None else "recovered" if reason == RECOVERED else "pin"
    return {**FREE, "held": reason, "held_kind": kind}


def is_held(backup: Row[Any], now: float) -> bool:
    """Whether a hold is in force."""
    return backup.held is not None and (backup.held_until is None or now < backup.held_until)


def told(backup: Row[Any]) -> str:
    """A hold in words."""
    words = _WORDS[backup.held_kind]
    if backup.held_by is not None:
        words += f" by {backup.held_by}"
    if backup.held_at is not None:
        words += f" since {utc(backup.held_at)}"
    if backup.held_until is not None:
        words += f" until {utc(backup.held_until)}"
    return f"{words}: {backup.held}"
