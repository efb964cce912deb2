"""Whether an InfluxDB can be backed up with what is known of it, and what its operator should know."""

from __future__ import annotations

from datetime import datetime, timedelta

from strongroom.engines.base import EngineDenied, EngineUnsupported, Probe, Target
from strongroom.engines.influxdb.http import Http
from strongroom.engines.influxdb.metastore import Metastore
from strongroom.engines.influxdb.place import Place, is_ordinary, parse_target
from strongroom.engines.influxdb.port import BackupPort

_SECONDS = 8.0  # that one answer may take
_TRIES = 3  # databases may come and go between two looks
_EPOCH = datetime(1970, 1, 1)


def probe(target: Target) -> Probe:
    """See `Engine.probe`. The size is that of the shards' files; 0 where the user is no administrator and may not ask."""
    place = parse_target(target)
    with Http(place, _SECONDS) as http:
        version = http.version()
        http.databases()
        try:
            http.users()
            admin = True
        except EngineDenied:
            admin = False
        _require_one_server(http, BackupPort(place, silence_seconds=_SECONDS), place, admin=admin)
        size = _size(http, place) if admin else 0
    with Http(Place(place.url, None, None, place.backup, place.database, place.tls), _SECONDS) as stranger:
        return Probe(version, "Single", size, _warnings(place, admin, _is_open(stranger)), records=False)


def _require_one_server(http: Http, port: BackupPort, place: Place, *, admin: bool) -> None:
    """What the HTTP port tells must be what the metastore says that the backup port hands out: to an administrator all of it, to
    others every database that they see. Two servers of which nothing of that differs cannot be told apart."""
    seen = _seen(http, admin=admin)
    for attempt in range(1, _TRIES + 1):
        metastore = port.metastore()[1]
        if place.database is not None and metastore.database(place.database) is None:
            raise EngineUnsupported(f"there is no database {place.database!r}; create it, or leave it out of the address")
        before, seen, known = seen, _seen(http, admin=admin), _known(metastore, admin=admin)
        if seen & before <= known and (not admin or known <= seen | before):
            return
        if attempt == _TRIES:
            raise EngineUnsupported("the HTTP port and the backup port belong to different servers: correct the address")


def _seen(http: Http, *, admin: bool) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = {(name,) for name in http.databases() if is_ordinary(name)}
    if admin:
        found |= {("user", name, str(rights)) for name, rights in http.users().items()}
        for _, row in http.tagged("SHOW SHARDS"):
            found.add((row["database"], row["retention_policy"], str(row["id"]), row["start_time"]))
    return found


def _known(metastore: Metastore, *, admin: bool) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = {(one.name,) for one in metastore.databases if is_ordinary(one.name)}
    if admin:
        found |= {("user", one.name, str(one.admin)) for one in metastore.users}
        for database in metastore.databases:
            for policy, group, shard in database.shards():
                found.add((database.name, policy.name, str(shard), _text(group.start)))
    return found


def _text(nanoseconds: int) -> str:
    return (_EPOCH + timedelta(seconds=nanoseconds // 10**9)).isoformat() + "Z"


def _size(http: Http, place: Place) -> int:
    return sum(
        int(row.get("diskBytes") or 0)
        for tags, row in http.tagged("SHOW STATS FOR 'shard'")
        if place.covers(tags.get("database", ""))
    )


def _is_open(stranger: Http) -> bool:
    """Whether the HTTP port lets anyone in."""
    try:
        stranger.databases()
    except EngineDenied:
        return False
    return True


def _warnings(place: Place, admin: bool, anyone: bool) -> list[str]:
    warnings = []
    if not place.is_private:
        warnings.append(
            f"the backup port {place.backup[0]}:{place.backup[1]} is not on this machine: InfluxDB lets anyone who reaches it "
            "read and write everything, without password or TLS. Bind it to a private address that only this machine reaches"
        )
    if anyone:
        warnings.append("the HTTP port takes statements from anyone: authentication is off (auth-enabled)")
    if not admin:
        warnings.append("the user is no administrator: captures work, restores do not")
    return warnings
