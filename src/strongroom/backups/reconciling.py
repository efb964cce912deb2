"""Comparing the store with the catalog: a job over a project's lineages tells what is unknown, missing or of another size, and
which backups that touches. What is unknown can be moved aside (quarantining.py).

A reconciliation removes nothing but LATE objects, whose removal was decided long ago: their puts may have landed since. A LATE
row goes when an operator says that its writer is gone. What a listing lacks is looked up by name; what a row lacks is looked up
again after the row was: an object's row is committed before its put and outlives the object, so neither can be mistaken beside
running backups and deletes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from strongroom.backups import quarantining, removal, staleness
from strongroom.backups.context import Context
from strongroom.backups.damage import Touched, going_by, needing, of_root
from strongroom.backups.verification import PRIORITY, require_store
from strongroom.catalog import tables as t
from strongroom.catalog.many import batches
from strongroom.catalog.space import held_by
from strongroom.identity import tables as identity
from strongroom.jobs.port import JobFailed, Running, TryAgain
from strongroom.repository import names
from strongroom.storage.base import StoreError

ATTEMPTS = 3
"""Times that a reconciliation is tried when the store fails in a way that passes, or its worker dies."""

MOST = 500
"""Objects that each list of a job's result holds; all of them are counted."""

_STEP = 500  # rows or names between two looks at the clock
_TOUCHED = {"manifest": of_root, "log": going_by}  # kinds of objects that hold no chunks → whose they are


def holds_the_rest(conn: Connection, account: str) -> bool:
    """Whether this account answers for what lies in no project's lineage: the one that the first start made."""
    first = conn.execute(sa.select(identity.account.c.id).order_by(identity.account.c.created_at, identity.account.c.id)).first()
    return first is not None and first.id == account


def reconcile(ctx: Context, project: str, note: Callable[[Connection], None], *, outside: bool, close_late: bool = False) -> str:
    """Submits a reconciliation of a project's lineages and, with `outside`, of what lies in no project's; returns its job's id.

    `close_late`: an operator's word that the writers of what is LATE now are gone. Of what becomes LATE until the job runs it
    says nothing.
    """
    with ctx.catalog.write() as conn:
        args = {"project": project, "outside": outside, "close_late": close_late}
        job = ctx.jobs.submit(
            conn, "reconcile", args, project=project, serial="reconcile", priority=PRIORITY, max_attempts=ATTEMPTS
        )
        if close_late:
            looked_at: sa.ColumnElement[bool] = t.object_.c.lineage.in_(_lineages_of(project, outside))
            if outside:
                looked_at = sa.or_(looked_at, t.object_.c.lineage == "")
            late = sa.and_(t.object_.c.state == "LATE", looked_at)
            conn.execute(sa.update(t.object_).where(late).values(closing=job))
        note(conn)
    return job


def _lineages_of(project: str, outside: bool) -> sa.Select[tuple[str]]:
    """The project's, and nobody's with those that are outside."""
    clause = t.lineage.c.project == project
    if outside:
        clause = sa.or_(clause, t.lineage.c.project.not_in(sa.select(identity.project.c.id)))
    return sa.select(t.lineage.c.id).where(clause)


class ReconcileJob:
    """The job `reconcile`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, job: Running) -> Mapping[str, Any]:
        try:
            return _Reconciliation(self._ctx, job).run()
        except staleness.CatalogOutdated as error:
            raise JobFailed(str(error)) from error
        except StoreError as error:
            if not error.permanent and job.attempts < ATTEMPTS:
                raise TryAgain(str(error)) from error
            raise JobFailed(f"the store failed: {error}") from error

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        """Nothing hangs on it."""


@dataclass(slots=True)
class _Listed:
    """Objects of one sort: all counted, some listed."""

    count: int = 0
    bytes: int = 0
    objects: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, size: int, **more: Any) -> None:
        self.count += 1
        self.bytes += size
        if len(self.objects) < MOST:
            self.objects.append({"name": name, "bytes": size, **more})


class _Reconciliation:
    """One run of the job."""

    def __init__(self, ctx: Context, job: Running) -> None:
        self._ctx, self._job = ctx, job
        self._project, self._outside = str(job.args["project"]), bool(job.args["outside"])
        self._close_late = bool(job.args["close_late"])
        self._unknown, self._missing, self._wrong, self._late = _Listed(), _Listed(), _Listed(), _Listed()
        self._seen, self._aside, self._condemned = _Listed(), _Listed(), _Listed()
        self._late_rows = self._late_closed = self._resumed = 0
        self._backups: dict[str, Touched] = {}
        self._outdated: list[str] = []

    def run(self) -> Mapping[str, Any]:
        require_store(self._ctx)
        with self._ctx.catalog.read() as conn:
            known = {row.id for row in conn.execute(sa.select(t.lineage.c.id))}
            mine = self._lineages(conn)
        for number, line in enumerate(mine):
            self._job.progress("comparing", number, len(mine))
            self._compare(line)
        if self._outside:
            self._compare_outside(known)
        return self._result(len(mine))

    def _lineages(self, conn: Connection) -> Sequence[Any]:
        columns = (t.lineage.c.id, t.lineage.c.state, t.lineage.c.counter, t.lineage.c.stopped)
        mine = t.lineage.c.id.in_(_lineages_of(self._project, self._outside))
        return conn.execute(sa.select(*columns).where(mine).order_by(t.lineage.c.id)).all()

    # One lineage

    def _compare(self, line: Row[Any]) -> None:
        if line.stopped is not None:
            self._outdated.append(line.stopped)
        there = self._listing(f"{line.id}/")
        with self._ctx.catalog.read() as conn:
            rows = {row.name: row for row in conn.execute(_rows_of(line.id))}
        for name in sorted(there.keys() - rows.keys()):
            self._judge_unknown(name, _why_unknown(line, name))
        self._judge_stored(line.id, rows, there)
        self._judge_condemned(line, rows)
        self._remove_late(line, [row for row in rows.values() if row.state == "LATE"])

    def _listing(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for stat in self._ctx.store.list(prefix):
            found[stat.name] = stat.size
            self._seen.count += 1
            self._seen.bytes += stat.size
            if len(found) % _STEP == 0:
                self._job.check()
        return found

    def _judge_unknown(self, name: str, why: str) -> None:
        """For a name that had no row after it was listed: unknown if it is there still."""
        found = self._ctx.store.stat(name)
        if found is not None:
            self._unknown.add(name, found.size, why=why)

    def _judge_stored(self, lineage: str, rows: Mapping[str, Row[Any]], there: Mapping[str, int]) -> None:
        """STORED rows whose object the listing does not show in full: by name it counts, and only if the row still says so."""
        doubtful = [row for row in rows.values() if row.state == "STORED" and there.get(row.name) != row.bytes]
        for some in batches(doubtful, _STEP):
            self._job.check()
            sizes = {row.id: found.size for row in some if (found := self._ctx.store.stat(row.name)) is not None}
            bad = [row for row in some if sizes.get(row.id) != row.bytes]
            with self._ctx.catalog.read() as conn:
                still = _stored_among(conn, [row.id for row in bad])
                for row in bad:
                    if row.id in still:
                        self._tell(conn, lineage, row, sizes.get(row.id))

    def _tell(self, conn: Connection, lineage: str, row: Row[Any], size: int | None) -> None:
        touched = _TOUCHED[row.kind](conn, row.id) if row.kind in _TOUCHED else needing(conn, lineage, held_by(conn, row.id))
        self._backups |= {one.id: one for one in touched}
        backups = [one.id for one in touched][:MOST]
        if size is None:
            self._missing.add(row.name, row.bytes, kind=row.kind, backups=backups)
        else:
            self._wrong.add(row.name, row.bytes, kind=row.kind, found=size, backups=backups)

    def _judge_condemned(self, line: Row[Any], rows: Mapping[str, Row[Any]]) -> None:
        """What waits for its removal. Where no job is left to carry a lineage's own removal out, a new one is submitted; so it is
        where all that a removal owes is a grave or a closing mark."""
        for row in rows.values():
            if row.state == "CONDEMNED":
                self._condemned.add(row.name, row.bytes)
        owed = (row for row in rows.values() if row.state in ("CONDEMNED", "PLANNED"))
        if line.stopped is not None or not any(row.removal == removal.of_lineage(line.id) for row in owed):
            return
        with self._ctx.catalog.write(self._job.guard) as conn:
            running = sa.and_(t.job.c.serial == f"remove:{line.id}", t.job.c.state.in_(("QUEUED", "RUNNING")))
            if conn.execute(sa.select(t.job.c.id).where(running)).first() is None:
                removal.submit(self._ctx, conn, line.id)
                self._resumed += 1

    def _remove_late(self, line: Row[Any], late: Sequence[Row[Any]]) -> None:
        """Removes LATE objects again, by name, and closes the rows that an operator's word was about."""
        self._late_rows += len(late)
        if not late:
            return
        try:
            staleness.require_current(self._ctx, line.id)
        except staleness.CatalogOutdated as error:
            self._outdated.append(str(error))
            return
        self._remove_again(late)

    def _remove_again(self, late: Sequence[Row[Any]]) -> None:
        for some in batches(late, _STEP):
            self._job.check()
            staleness.require_owner(self._ctx)
            there = [found for row in some if (found := self._ctx.store.stat(row.name)) is not None]
            wanted = [row.name for row in some]
            self._ctx.store.delete_many(wanted)
            removal.require_gone(self._ctx, wanted)
            for found in there:
                self._late.add(found.name, found.size)
            if self._close_late:
                with self._ctx.catalog.write(self._job.guard) as conn:
                    ids = [row.id for row in some]
                    said = sa.and_(t.object_.c.state == "LATE", t.object_.c.closing == self._job.id)
                    closed = conn.execute(sa.delete(t.object_).where(t.object_.c.id.in_(ids), said))
                    self._late_closed += closed.rowcount

    # What lies in no lineage

    def _compare_outside(self, known: set[str]) -> None:
        """Owner marks, snapshots of the catalog, what was moved aside, and whatever else is there. A lineage that began meanwhile
        is known by now."""
        self._job.progress("looking outside", 0)
        there: list[str] = []
        for number, stat in enumerate(self._ctx.store.list("")):
            if number % _STEP == 0:
                self._job.check()
            folder = stat.name.partition("/")[0]
            if folder in known:
                continue
            self._seen.count += 1
            self._seen.bytes += stat.size
            if folder == quarantining.ASIDE:
                self._aside.add(stat.name, stat.size)
            else:
                there.append(stat.name)
        with self._ctx.catalog.read() as conn:
            rows = {row.name: row for row in conn.execute(_rows_of(""))}
            begun = {row.id for row in conn.execute(sa.select(t.lineage.c.id))}
        for name in sorted(there):
            if name not in rows and name.partition("/")[0] not in begun:
                self._judge_unknown(name, _why_outside(name))
        self._judge_stored("", rows, {})
        for row in rows.values():
            if row.state == "CONDEMNED":  # the next snapshot's job removes it
                self._condemned.add(row.name, row.bytes)
        late = [row for row in rows.values() if row.state == "LATE"]
        self._late_rows += len(late)
        self._remove_again(late)

    def _result(self, lineages: int) -> Mapping[str, Any]:
        """For the job's row: bounded, whatever was found."""
        damaged = self._missing.count + self._wrong.count
        found = damaged + self._unknown.count + len(self._outdated)
        return {
            "outcome": "damaged" if damaged else "differences" if found else "clean",
            "lineages": lineages, "objects": self._seen.count, "bytes": self._seen.bytes,
            "unknown": asdict(self._unknown), "missing": asdict(self._missing), "wrong_size": asdict(self._wrong),
            "late": {"rows": self._late_rows, "closed": self._late_closed, "removed": asdict(self._late)},
            "condemned": {"count": self._condemned.count, "bytes": self._condemned.bytes, "resumed": self._resumed},
            "quarantined": {"count": self._aside.count, "bytes": self._aside.bytes},
            "outdated": sorted(set(self._outdated))[:MOST],
            "backups": [asdict(one) for one in sorted(self._backups.values(), key=lambda one: one.id)[:MOST]],
        }  # fmt: skip


def _rows_of(lineage: str) -> sa.Select[Any]:
    c = t.object_.c
    return sa.select(c.id, c.name, c.kind, c.state, c.bytes, c.removal).where(c.lineage == lineage)


def _stored_among(conn: Connection, ids: Sequence[str]) -> set[str]:
    rows = conn.execute(sa.select(t.object_.c.id).where(t.object_.c.id.in_(ids), t.object_.c.state == "STORED"))
    return {row.id for row in rows}


def _why_unknown(line: Row[Any], name: str) -> str:
    said = names.parse(name)
    if said is None:
        return "not a name of ours"
    if line.state == "CLOSED":
        return "left in a closed lineage"
    if said.seq is not None and said.seq > line.counter:
        return "newer than the catalog: rebuild it before anything is moved"
    return "no row: a put that landed after its removal, or left by a rebuild"


def _why_outside(name: str) -> str:
    said = names.parse(name)
    if said is None:
        return "not a name of ours"
    if said.kind == "owner":
        return "another catalog's mark: it has taken this store over"
    if said.kind in ("catalog", "trail"):
        return "of another catalog's snapshots, or left by a rebuild that could not open it"
    return "of a lineage that this catalog does not know"
