"""The way out: a backup as the files that `influxd restore -portable` loads.

<time>.manifest             JSON: the names and sizes of the others
<time>.meta                 the metastore, in the envelope of the portable format
<time>.s<shard>.tar.gz      a shard's TSM files under `database/policy/shard/`
"""

from __future__ import annotations

import datetime
import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from strongroom.engines.base import Control, RestoreSource, Summary
from strongroom.engines.exporting import new_file
from strongroom.engines.influxdb import tar as tars
from strongroom.engines.influxdb.catalog import Backup, pieces_of, read_backup
from strongroom.engines.influxdb.protobuf import message

_LEVEL = 1  # of gzip; TSM files hardly shrink


def export(source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
    """See `Engine.export`."""
    backup = read_backup(source)
    stem = datetime.datetime.fromtimestamp(float(facts["captured_until"]), datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    total = sum(map(backup.size, backup.shards))
    files: list[dict[str, Any]] = []
    done = written = 0
    for database, policy, shard in _shards(backup):
        name = f"{stem}.s{shard}.tar.gz"
        size = 0
        with new_file(folder / name) as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=_LEVEL) as packed:
            for piece in _tar(source, backup, shard, f"{database}/{policy}/{shard}"):
                control.check()
                packed.write(piece)
                size += len(piece)
                control.progress("export", min(done + size, total), total)
        done += backup.size(shard)
        written += (folder / name).stat().st_size
        files.append(
            {"database": database, "policy": policy, "shardID": shard, "fileName": name, "size": size, "lastModified": 0}
        )
    meta = message([(1, backup.blob), (2, 1)])
    manifest = {"meta": {"fileName": f"{stem}.meta", "size": len(meta)}, "limited": bool(facts.get("database")), "files": files}
    if facts.get("database"):
        manifest["database"] = facts["database"]
    data = json.dumps(manifest, indent=2).encode()
    for name, content in ((f"{stem}.meta", meta), (f"{stem}.manifest", data)):
        with new_file(folder / name) as file:
            file.write(content)
    return Summary(len(files) + 2, written + len(meta) + len(data))


def _shards(backup: Backup) -> Iterator[tuple[str, str, int]]:
    for database in backup.metastore.databases:
        for policy, _, shard in database.shards():
            if shard in backup.shards:
                yield database.name, policy.name, shard


def _tar(source: RestoreSource, backup: Backup, shard: int, place: str) -> Iterator[bytes]:
    for file in backup.shards[shard]:
        yield tars.head(f"{place}/{file.name}", file.size)
        yield from pieces_of(source, shard, file)
        yield tars.padding(file.size)
    yield tars.END
