"""Names of objects: what each kind is called, and what a name says.

<lineage>/pack/<seq>.<attempt>/<id>         <lineage>/grave/<seq>
<lineage>/manifest/<seq>.<attempt>/<id>     <lineage>/closed
<lineage>/rewrite/<id>                      owner/<k>
<lineage>/key/<id>                         catalog/<k>.<n>
<lineage>/log/<id>                         trail/<id>
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from strongroom.repository.errors import Misuse

_ID = r"[0-9a-f]{32}"
_COUNT = r"[1-9][0-9]{0,17}"
_FORMS = tuple(
    re.compile(form + r"\Z")
    for form in (
        rf"(?P<lineage>{_ID})/(?P<kind>pack|manifest)/(?P<seq>{_COUNT})\.(?P<attempt>{_COUNT})/(?P<id>{_ID})",
        rf"(?P<lineage>{_ID})/(?P<kind>rewrite|key|log)/(?P<id>{_ID})",
        rf"(?P<lineage>{_ID})/(?P<kind>grave)/(?P<seq>{_COUNT})",
        rf"(?P<lineage>{_ID})/(?P<kind>closed)",
        rf"(?P<kind>owner)/(?P<seq>{_COUNT})",
        rf"(?P<kind>catalog)/(?P<attempt>{_COUNT})\.(?P<seq>{_COUNT})",
        rf"(?P<kind>trail)/(?P<id>{_ID})",
    )
)


@dataclass(frozen=True, slots=True)
class ParsedName:
    """What an object's name says. `seq` is the owner's number for `owner`; of `catalog` it is the snapshot's, and `attempt` its
    owner's. What a kind has not is None."""

    kind: str
    lineage: str | None = None
    seq: int | None = None
    attempt: int | None = None
    id: str | None = None


def pack(lineage: str, seq: int, attempt: int, id: str) -> str:
    """A pack's first object."""
    return f"{lineage}/pack/{seq}.{attempt}/{id}"


def manifest(lineage: str, seq: int, attempt: int, id: str) -> str:
    """The root object of a part's manifest."""
    return f"{lineage}/manifest/{seq}.{attempt}/{id}"


def rewrite(lineage: str, id: str) -> str:
    """An object with chunks that were copied out of others."""
    return f"{lineage}/rewrite/{id}"


def key(lineage: str, id: str) -> str:
    """A copy of the lineage's sealed keys."""
    return f"{lineage}/key/{id}"


def log(lineage: str, id: str) -> str:
    """A piece of the source's log of changes."""
    return f"{lineage}/log/{id}"


def grave(lineage: str, seq: int) -> str:
    """Says that the part `seq` is gone; exists or not, whoever put it."""
    return f"{lineage}/grave/{seq}"


def closed(lineage: str) -> str:
    """Says that the lineage has ended; stays for ever."""
    return f"{lineage}/closed"


def owner(k: int) -> str:
    """Says that the k-th catalog owns the store."""
    return f"owner/{k}"


def catalog(k: int, n: int) -> str:
    """The n-th snapshot that the k-th owner of the store put of its catalog."""
    return f"catalog/{k}.{n}"


def trail(id: str) -> str:
    """A segment of the audit trail."""
    return f"trail/{id}"


def for_kind(kind: str, lineage: str, id: str, seq: int = 0, attempt: int = 0) -> str:
    """The name of an object of one of the kinds that carry an id. Raises Misuse for any other kind."""
    match kind:
        case "pack":
            return pack(lineage, seq, attempt, id)
        case "manifest":
            return manifest(lineage, seq, attempt, id)
        case "rewrite":
            return rewrite(lineage, id)
        case "key":
            return key(lineage, id)
        case "log":
            return log(lineage, id)
        case "trail":
            return trail(id)
    raise Misuse(f"objects of kind {kind!r} are not named by an id")


def parse(name: str) -> ParsedName | None:
    """What the name says, or None if it is not the name of one of our objects."""
    for form in _FORMS:
        found = form.match(name)
        if found is not None:
            parts = found.groupdict()
            seq, attempt = parts.get("seq"), parts.get("attempt")
            return ParsedName(
                parts["kind"],
                parts.get("lineage"),
                None if seq is None else int(seq),
                None if attempt is None else int(attempt),
                parts.get("id"),
            )
    return None
