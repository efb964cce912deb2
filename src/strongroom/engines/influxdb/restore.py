"""Restoring: nothing of the target is dropped before the whole backup has been in it once, under another name, and was read back.

    look        versions, rights, both ports one server, the backup complete by its catalog
    add         databases that the target lacks, under their own names; undone if anything fails
    try         databases that the target has: each under a name of its own, read back, dropped again
    ---         the point of no return
    replace     each of these: dropped, put there, read back, its policies and grants set
    queries     continuous queries of all
    remove      of a whole server: databases that the backup does not have

InfluxDB cannot rename a database, so what is there already is sent twice. A target needs room for its largest database once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from strongroom.ambient import Ambient
from strongroom.engines.base import Control, EngineError, EngineUnsupported, RestoreBroken, RestoreSource, Summary, Target
from strongroom.engines.influxdb import accounts
from strongroom.engines.influxdb.catalog import Backup, read_backup
from strongroom.engines.influxdb.http import DROP_SECONDS, Http, release_of
from strongroom.engines.influxdb.loading import Loader, Tally
from strongroom.engines.influxdb.marks import Mark, sweep
from strongroom.engines.influxdb.metastore import Database
from strongroom.engines.influxdb.place import Place, is_ordinary, parse_target
from strongroom.engines.influxdb.port import BackupPort


def restore(target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, ambient: Ambient) -> Summary:
    """See `Engine.restore`."""
    place = parse_target(target)
    with Http(place, DROP_SECONDS, control.check) as http:
        users = require_target(http, facts)
        port = BackupPort(place, control.check)
        port.metastore()
        backup = read_backup(source)
        sweep(http)
        plan = make_plan(place, str(facts.get("database", "")), backup, http.databases())
        mark = Mark(http, ambient.hex_id()[:12])
        mark.put(port)
        return _Restore(place, http, port, backup, source, plan, mark, users, control, ambient).run()


def require_target(http: Http, facts: Mapping[str, Any]) -> dict[str, bool]:
    """All users. Raises EngineUnsupported for a release older than the backup's, EngineDenied for who is no administrator."""
    version = http.version()
    if release_of(version) < release_of(str(facts.get("version", ""))):
        raise EngineUnsupported(f"the backup is of InfluxDB {facts['version']}, the target runs the older {version}")
    return http.users()  # only administrators may ask, and only they may do what follows


def recover(target: Target) -> None:
    """See `Engine.recover`."""
    with Http(parse_target(target), DROP_SECONDS) as http:
        sweep(http)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done with which database: the backup's and its name in the target."""

    add: tuple[tuple[Database, str], ...] = ()
    replace: tuple[tuple[Database, str], ...] = ()
    remove: tuple[str, ...] = ()
    whole: bool = False  # of a whole server into a whole server: users too


def make_plan(place: Place, scope: str, backup: Backup, there: list[str]) -> Plan:
    """`scope` is the one database that the backup is of, "" for a whole server. Raises EngineUnsupported."""
    databases = [one for one in backup.metastore.databases if is_ordinary(one.name)]
    pairs = [(one, one.name) for one in databases]
    if place.database is not None:
        chosen = databases if len(databases) == 1 else [one for one in databases if one.name == place.database]
        if not chosen:
            raise EngineUnsupported(
                f"the target's address names the database {place.database!r}, and the backup holds {len(databases)} others"
            )
        pairs = [(chosen[0], place.database)]
    whole = place.database is None and not scope
    names = {name for _, name in pairs}
    return Plan(
        add=tuple(pair for pair in pairs if pair[1] not in there),
        replace=tuple(pair for pair in pairs if pair[1] in there),
        remove=tuple(sorted(name for name in there if is_ordinary(name) and name not in names)) if whole else (),
        whole=whole,
    )


@dataclass(slots=True)
class _State:
    """What the target holds, in words."""

    done: list[str] = field(default_factory=list)
    broken: str = ""  # the database at work
    waiting: list[str] = field(default_factory=list)  # still with their old data
    last: str = ""

    def words(self) -> str:
        parts = []
        if self.done:
            parts.append(f"with the backup's data: {_listed(self.done)}")
        if self.broken:
            parts.append(f"the old {self.broken!r} is dropped and the backup's is not, or not wholly, in its place")
        if self.waiting:
            parts.append(f"still with its old data: {_listed(self.waiting)}")
        if self.last:
            parts.append(self.last)
        return "; ".join(parts)


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


class _Restore:
    def __init__(
        self, place: Place, http: Http, port: BackupPort, backup: Backup, source: RestoreSource, plan: Plan, mark: Mark,
        users: dict[str, bool], control: Control, ambient: Ambient,
    ) -> None:  # fmt: skip
        self._place, self._http, self._port, self._backup, self._plan = place, http, port, backup, plan
        self._mark, self._users, self._control, self._ambient = mark, users, control, ambient
        self._once = sum(self._size(one) for one, _ in (*plan.add, *plan.replace))
        self._tally = Tally(self._once + sum(self._size(one) for one, _ in plan.replace))
        self._loader = Loader(port, backup, source, control, self._tally, ambient)
        self._warnings: list[str] = []

    def run(self) -> Summary:
        """From the first change to the end."""
        try:
            self._prepare()
        except BaseException as error:  # also what the job raises, a lost lease among it
            self._undo(error)
            raise
        plan = self._plan
        state = _State(done=[name for _, name in plan.add], waiting=[name for _, name in plan.replace])
        try:
            self._replace(state)
        except EngineError as error:
            raise RestoreBroken(str(error), state.words()) from error
        except Exception as error:  # a source's or the job's own error keeps its type and learns what the target holds
            error.add_note(f"The target: {state.words()}")
            raise
        return Summary(len(plan.add) + len(plan.replace), self._once, {}, self._warnings)

    def _undo(self, error: BaseException) -> None:
        """Takes back what was added. The job is not looked at: it would raise again. Raises RestoreBroken, or leaves a note."""
        try:
            with Http(self._place, DROP_SECONDS) as http:
                self._mark.undo(http)
        except EngineError:
            added = _listed([name for _, name in self._plan.add])
            state = "nothing that it held is changed; a database made to try the backup may still be there"
            if added:
                state += f", and {added}, which it did not have, not whole"
            if isinstance(error, EngineError):
                raise RestoreBroken(str(error), state) from error
            error.add_note(f"The target: {state}")

    def _prepare(self) -> None:
        for database, name in self._plan.add:
            self._mark.note_new(name)
            self._loader.load(database, name, "data")
        for database, _ in self._plan.replace:
            self._loader.load(database, self._mark.trial, "try")
            self._http.drop(self._mark.trial)
        if self._plan.whole:
            self._users, told = accounts.make_users(self._http, self._backup.metastore, self._users, self._ambient)
            self._warnings += told
        for database, name in self._plan.add:
            self._finish(database, name, self._grants(database, {}))
        self._mark.settle()

    def _replace(self, state: _State) -> None:
        """From the point of no return on."""
        plan = self._plan
        for database, name in plan.replace:
            self._control.check()
            self._mark.require()
            grants = self._grants(database, accounts.grants_on(self._port.metastore()[1].users, name))
            state.waiting.remove(name)
            state.broken = name
            self._http.drop(name)
            self._loader.load(database, name, "data")
            self._finish(database, name, grants)
            state.broken = ""
            state.done.append(name)
        state.last = "continuous queries may be missing, and databases that the backup does not have may still be there"
        for database, name in (*plan.add, *plan.replace):  # last, since they may name any of them
            self._control.check()
            self._warnings += accounts.make_queries(self._http, database, name)
        for name in plan.remove:
            self._control.check()
            self._mark.require()
            self._http.drop(name)
        state.last = f"its mark, a database named {self._mark.trial.removesuffix('_try')}, may still be there"
        self._mark.drop()

    def _grants(self, database: Database, present: dict[str, str]) -> dict[str, str]:
        """The rights on a database after the restore: users of the backup get what they had, all others keep what they have."""
        old = accounts.grants_on(self._backup.metastore.users, database.name)
        known = {user.name for user in self._backup.metastore.users} if self._plan.whole else set(old)
        return {**{user: right for user, right in present.items() if user not in known}, **old}

    def _finish(self, database: Database, name: str, grants: dict[str, str]) -> None:
        """All but the data, then a look whether policies are as they were."""
        accounts.set_policies(self._http, database, name)
        self._warnings += accounts.subscribe(self._http, database, name)
        self._warnings += accounts.grant(self._http, name, grants, self._users)
        found = self._port.metastore()[1].database(name)
        same = name == database.name
        if (
            found is None
            or found.default_policy != database.default_policy
            or (
                accounts.comparable(found.policies, subscriptions=same)
                != accounts.comparable(database.policies, subscriptions=same)
            )
        ):
            raise EngineError(f"the retention policies of {name!r} are not those of the backup after the restore")

    def _size(self, database: Database) -> int:
        return sum(self._backup.size(shard) for _, _, shard in database.shards())
