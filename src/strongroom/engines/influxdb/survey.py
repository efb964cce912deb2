"""What a restore would find in a target: its version and rights, and whether it would replace anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom.engines.base import Ground, Target
from strongroom.engines.influxdb.http import Http
from strongroom.engines.influxdb.marks import sweep
from strongroom.engines.influxdb.place import Place, is_ordinary, parse_target
from strongroom.engines.influxdb.port import BackupPort
from strongroom.engines.influxdb.restore import require_target

_SECONDS = 8.0  # that one answer may take


def survey(target: Target, facts: Mapping[str, Any], size: int) -> Ground:
    """See Surveyor. Data are shards that are open, and continuous queries; databases with neither are empty.

    InfluxDB tells nobody how much room its disk has.
    """
    place = parse_target(target)
    with Http(place, _SECONDS) as http:
        require_target(http, facts)
        sweep(http)  # what an earlier restore left there
    holds = _holdings(place, BackupPort(place, silence_seconds=_SECONDS), str(facts.get("database", "")))
    if holds is None:
        return Ground(None)
    return Ground(holds, [f"while it is tried, the target needs room for its data, and up to {size} bytes more"])


def _holdings(place: Place, port: BackupPort, scope: str) -> str | None:
    """Of the databases that a restore would replace or remove; `scope` is the one that the backup is of."""
    chosen = place.database or scope
    _, metastore = port.metastore()
    present = port.shards()
    shards = databases = 0
    for one in metastore.databases:
        if (one.name == chosen) if chosen else is_ordinary(one.name):
            found = sum(shard in present for _, _, shard in one.shards())
            shards += found
            databases += bool(found or one.queries)
    return f"{shards} shards of data in {databases} databases" if databases else None
