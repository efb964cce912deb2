"""Tags of instances: words that people give them, kept as the instance's labels; instances are found by them.

A project has at most some thousand instances, so looking for tags reads the labels of them all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.backups import errors
from strongroom.backups.context import Context
from strongroom.backups.registered import find_instance, lock_instance
from strongroom.catalog import tables as t

MOST = 20
"""Tags of one instance."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """A registered instance with its tags."""

    id: str
    name: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What instances are looked for by: every key with one of its values (none: with any), and all that is said of id and name.
    A name that begins with `*` is looked for anywhere in the instance's name."""

    tags: Mapping[str, Collection[str]] = field(default_factory=dict)
    ids: Collection[str] = ()
    names: Collection[str] = ()

    def fits(self, one: Tagged) -> bool:
        """Whether the instance is one of them."""
        tagged = all(key in one.tags and (not values or one.tags[key] in values) for key, values in self.tags.items())
        named = all(name[1:] in one.name if name.startswith("*") else name == one.name for name in self.names)
        return tagged and named and all(id == one.id for id in self.ids)


def tags_of(conn: Connection, project: str, instance: str) -> dict[str, str]:
    """The instance's tags by key. Raises errors.NoSuchInstance."""
    found: dict[str, str] = json.loads(find_instance(conn, project, instance).labels)
    return dict(sorted(found.items()))


def change(
    ctx: Context,
    project: str,
    instance: str,
    note: Callable[[Connection, str], None],
    *,
    put: Mapping[str, str] | None = None,
    remove: Mapping[str, str | None] | None = None,
) -> None:
    """Puts tags (a key that is there gets the value) and removes others (with a value: only if it has that one; one that is not
    there is no error). `note` gets the instance's name. Raises errors.NoSuchInstance, errors.TooManyTags."""
    with ctx.catalog.write() as conn:
        lock_instance(conn, project, instance)
        tags = tags_of(conn, project, instance)
        for key, value in (remove or {}).items():
            if value is None or tags.get(key) == value:
                tags.pop(key, None)
        tags |= put or {}
        if len(tags) > MOST:
            raise errors.TooManyTags(f"an instance has at most {MOST} tags; these would be {len(tags)}")
        labels = json.dumps(tags, sort_keys=True)
        here = t.instance.c.id == instance
        conn.execute(sa.update(t.instance).where(here).values(labels=labels, updated_at=ctx.ambient.now()))
        note(conn, find_instance(conn, project, instance).name)


def find(conn: Connection, project: str, wanted: Wanted) -> list[Tagged]:
    """Registered instances that fit, by name."""
    return [one for one in _all(conn, project) if wanted.fits(one)]


def values_of(conn: Connection, project: str) -> list[tuple[str, list[str]]]:
    """Every key that is used in the project with its values, both in order."""
    found: dict[str, set[str]] = {}
    for one in _all(conn, project):
        for key, value in one.tags.items():
            found.setdefault(key, set()).add(value)
    return [(key, sorted(values)) for key, values in sorted(found.items())]


def _all(conn: Connection, project: str) -> Sequence[Tagged]:
    i = t.instance.c
    rows = conn.execute(
        sa.select(i.id, i.name, i.labels).where(i.project == project, i.state == "REGISTERED").order_by(i.name, i.id)
    )
    return [Tagged(row.id, row.name, json.loads(row.labels)) for row in rows]
