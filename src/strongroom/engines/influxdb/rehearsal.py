"""Trying a restore out: an InfluxDB that is thrown away, and whether it holds what the backup says.

What a server may do by itself to what it holds is off in it: nothing expires, no continuous query runs, and no subscription sends
points to whoever listens to the source. Only that it compacts files cannot be turned off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strongroom.ambient import Ambient
from strongroom.engines import sandboxing
from strongroom.engines.base import Comparison, Control, RestoreSource, Target
from strongroom.engines.exporting import write_file
from strongroom.engines.influxdb import accounts
from strongroom.engines.influxdb.catalog import Backup, File, read_backup
from strongroom.engines.influxdb.http import Http
from strongroom.engines.influxdb.influxql import name as quoted
from strongroom.engines.influxdb.influxql import text
from strongroom.engines.influxdb.metastore import Database, Metastore
from strongroom.engines.influxdb.place import is_ordinary, parse_target
from strongroom.engines.influxdb.port import BackupPort
from strongroom.engines.influxdb.witness import files_of

_MOST_DIFFERENCES = 20
_USER = "rehearsal"
_CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:{backup}"
[meta]
  dir = {meta}
[data]
  dir = {data}
  wal-dir = {wal}
  query-log-enabled = false
  max-series-per-database = 0
  max-values-per-tag = 0
  compact-full-write-cold-duration = "8760h"
[http]
  bind-address = "127.0.0.1:{http}"
  auth-enabled = true
  log-enabled = false
[retention]
  enabled = false
[continuous_queries]
  enabled = false
[subscriber]
  enabled = false
[shard-precreation]
  enabled = false
[monitor]
  store-enabled = false
"""


@contextmanager
def sandbox(folder: Path, control: Control, ambient: Ambient) -> Iterator[Target]:
    """See Rehearser. The backup port asks nobody for a password, as everywhere: it is on the loopback while the server runs."""
    found = sandboxing.program("influxd", "STRONGROOM_INFLUXD")
    password = ambient.hex_id()
    config = folder / "influxdb.conf"
    backup = 0

    def command(port: int) -> list[str]:
        nonlocal backup
        backup = sandboxing.free_port()
        places = {name: json.dumps(str(folder / name)) for name in ("meta", "data", "wal")}
        config.unlink(missing_ok=True)
        write_file(config, [_CONFIG.format(http=port, backup=backup, **places).encode()])
        return [found, "-config", str(config)]

    def ready(port: int) -> bool:
        """Comes up, and lets in the first user, whom nobody needs to be to make."""
        with Http(parse_target(Target(f"influxdb://127.0.0.1:{port}"))) as http:
            http.run(f"CREATE USER {quoted(_USER)} WITH PASSWORD {text(password)} WITH ALL PRIVILEGES")
        return True

    with sandboxing.running(command, ready, folder, control, ambient) as port:
        yield Target(f"influxdb://{_USER}@127.0.0.1:{port}/?backup=127.0.0.1:{backup}", password)


def compare(target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, ambient: Ambient) -> Comparison:
    """See Rehearser: databases with their policies, continuous queries and subscriptions; grants where the backup is of a whole
    server; and every file of every shard by its digest."""
    port = BackupPort(parse_target(target), control.check)
    backup, now = read_backup(source), port.metastore()[1]
    report = _Report(port, backup, now, control, ambient)
    wanted = [one for one in backup.metastore.databases if is_ordinary(one.name)]
    for database in wanted:
        report.database(database)
    report.strangers({one.name for one in wanted})
    if not facts.get("database"):
        report.grants(wanted)
    return report.ended()


class _Report:
    def __init__(self, port: BackupPort, backup: Backup, now: Metastore, control: Control, ambient: Ambient) -> None:
        self._port, self._backup, self._now = port, backup, now
        self._control, self._ambient = control, ambient
        names = ("databases", "retention policies", "continuous queries", "shards", "files", "bytes")
        self._expected = dict.fromkeys(names, 0)
        self._found = dict.fromkeys(names, 0)
        self._digests = self._compacted = 0
        self._differences: list[str] = []

    def database(self, wanted: Database) -> None:
        found = self._now.database(wanted.name)
        self._count(self._expected, wanted)
        if found is None:
            self._expect_shards(wanted)
            self._differ(f"the database {wanted.name!r} is missing")
            return
        self._count(self._found, found)
        if accounts.comparable(wanted.policies, subscriptions=True) != accounts.comparable(found.policies, subscriptions=True):
            self._differ(f"{wanted.name!r} has other retention policies or subscriptions than were captured")
        if wanted.default_policy != found.default_policy:
            self._differ(f"{wanted.name!r} has the default policy {found.default_policy!r} instead of {wanted.default_policy!r}")
        if sorted(wanted.queries) != sorted(found.queries):
            self._differ(f"{wanted.name!r} has other continuous queries than were captured")
        there = {(policy.name, group.start): shard for policy, group, shard in found.shards()}
        for policy, group, shard in wanted.shards():
            if files := self._backup.shards.get(shard):
                self._shard(f"{wanted.name}/{policy.name}/{shard}", files, there.pop((policy.name, group.start), None))
        for (policy_name, _), shard in there.items():
            if extra := files_of(self._port, shard, f"{wanted.name}/{policy_name}", self._ambient):
                self._tell(self._found, list(extra.values()))
                self._differ(f"{wanted.name!r} holds a shard of {policy_name!r} that was not captured")

    def _shard(self, place: str, wanted: Sequence[File], shard: int | None) -> None:
        self._control.check()
        self._tell(self._expected, wanted)
        if shard is None:
            self._differ(f"the shard {place} is missing")
            return
        there = files_of(self._port, shard, place, self._ambient)
        self._tell(self._found, list(there.values()))
        self._digests += len(there)
        names = {one.name for one in wanted}
        new = [name for name in there if name not in names]
        missing = [one.name for one in wanted if one.name not in there]
        other = [one.name for one in wanted if one.name in there and there[one.name] != one]
        if other:
            self._differ(f"the shard {place} holds another {other[0]} than was captured")
        elif new and missing and max(new) > max(missing):
            self._compacted += 1  # what is missing is in the new files, and was read back when it was put there
        elif new or missing:
            self._differ(f"the shard {place} lacks {len(missing)} files that were captured, and holds {len(new)} others")

    def strangers(self, known: set[str]) -> None:
        for one in self._now.databases:
            if is_ordinary(one.name) and one.name not in known:
                self._found["databases"] += 1
                self._differ(f"the database {one.name!r} is not in the backup")

    def grants(self, databases: Sequence[Database]) -> None:
        for database in databases:
            wanted = accounts.grants_on(self._backup.metastore.users, database.name)
            if wanted != accounts.grants_on(self._now.users, database.name):
                self._differ(f"other users have rights on {database.name!r}, or other rights, than were captured")

    def ended(self) -> Comparison:
        told = []
        if self._compacted:
            told.append(f"{self._compacted} shards were compacted since: each file of them was compared when it was put there")
        return Comparison(self._expected, self._found, self._digests, self._differences, told)

    def _expect_shards(self, database: Database) -> None:
        for _, _, shard in database.shards():
            if files := self._backup.shards.get(shard):
                self._tell(self._expected, files)

    @staticmethod
    def _count(counts: dict[str, int], database: Database) -> None:
        counts["databases"] += 1
        counts["retention policies"] += len(database.policies)
        counts["continuous queries"] += len(database.queries)

    @staticmethod
    def _tell(counts: dict[str, int], files: Sequence[File]) -> None:
        counts["shards"] += 1
        counts["files"] += len(files)
        counts["bytes"] += sum(one.size for one in files)

    def _differ(self, sentence: str) -> None:
        if len(self._differences) < _MOST_DIFFERENCES:
            self._differences.append(sentence)
