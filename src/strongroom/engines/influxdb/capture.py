"""Taking a backup: every shard through the backup port, each of its TSM files an entry.

A shard is exact at the moment at which the server begins to hand it out; shards are read one after the other. What a tar says
counts only when it has passed its end test. A file has a name of its own in its shard and never changes, so that where a shard
must be read again (see below) files that are kept already are compared and not kept twice.

**Deleted points.** A deletion lies beside a TSM file in a `.tombstone`, until the server has written the file anew without the
points. No server takes a tombstone in a restore, so a shard that has one is asked for again later, as often as it takes;
if it never compacts, the capture fails. A backup never holds a point that had been deleted.

**Coming and going.** Shards are created and dropped while a capture runs. The metastore at its end is the backup's: shards that
it names and that are not read yet are read then; those that it does not name any more are left out of the catalog.
"""

from __future__ import annotations

from collections import deque

from blake3 import blake3

from strongroom.ambient import Ambient
from strongroom.engines.base import CaptureBroken, CaptureControl, CaptureSink, EngineUnsupported, Summary, Target
from strongroom.engines.influxdb.catalog import CATALOG, META, File, entry_name, pack
from strongroom.engines.influxdb.http import Http
from strongroom.engines.influxdb.metastore import Metastore, narrowed
from strongroom.engines.influxdb.place import Place, parse_target
from strongroom.engines.influxdb.port import BackupPort
from strongroom.engines.influxdb.tar import CutShort, Member, ShardTar

PATIENCE_SECONDS = 300.0  # that a shard may keep tombstones, or give no answer
PAUSE_SECONDS = 0.5  # before a shard is asked for again
_ROUNDS = 1000  # of new shards; each adds at least one


def capture(target: Target, sink: CaptureSink, control: CaptureControl, ambient: Ambient) -> Summary:
    """See `Engine.capture`."""
    place = parse_target(target)
    with Http(place, look=control.check) as http:
        version = http.version()
        http.databases()  # whoever has the port but no password takes no backup through this service
    return _Capture(place, version, sink, control, ambient).run()


class _NotYet(Exception):
    """The shard cannot be taken now; a later try may do."""


class _Gone(Exception):
    """The shard does not exist any more."""


class _Capture:
    def __init__(self, place: Place, version: str, sink: CaptureSink, control: CaptureControl, ambient: Ambient) -> None:
        self._place, self._version, self._sink, self._control, self._ambient = place, version, sink, control, ambient
        self._port = BackupPort(place, control.check)
        self._kept: dict[tuple[int, str], File] = {}
        self._shards: dict[int, list[File]] = {}
        self._entries = self._bytes = 0
        self._patience = PATIENCE_SECONDS

    def run(self) -> Summary:
        began = self._ambient.now()
        blob, metastore, present = self._look()
        if self._place.database is not None and metastore.database(self._place.database) is None:
            raise EngineUnsupported(f"there is no database {self._place.database!r}")
        for _ in range(_ROUNDS):
            missing = [one for one in self._wanted(metastore) if one in present and one not in self._shards]
            if not missing:
                break
            self._take_all(missing)
            blob, metastore, present = self._look()
        else:
            raise CaptureBroken("shards are created faster than they can be read")
        wanted = set(self._wanted(metastore))
        shards = {shard: files for shard, files in self._shards.items() if shard in wanted}
        blob = narrowed(blob, self._place.covers, with_users=self._place.database is None)
        self._put(META, blob)
        self._put(CATALOG, pack(shards))
        facts = {
            "version": self._version, "database": self._place.database or "", "captured_from": began,
            "captured_until": self._ambient.now(), "shards": len(shards),
        }  # fmt: skip
        return Summary(self._entries, self._bytes, facts, self._warnings(metastore, wanted))

    def _look(self) -> tuple[bytes, Metastore, frozenset[int]]:
        """The metastore first: a shard that it does not know yet is none of this backup."""
        blob, metastore = self._port.metastore()
        return blob, metastore, self._port.shards()

    def _wanted(self, metastore: Metastore) -> list[int]:
        return [shard for one in metastore.databases if self._place.covers(one.name) for _, _, shard in one.shards()]

    def _warnings(self, metastore: Metastore, wanted: set[int]) -> list[str]:
        now = self._ambient.now() * 1e9
        warnings = []
        for database in metastore.databases:
            if not self._place.covers(database.name):
                continue
            for policy, group, shard in database.shards():
                if shard in wanted and shard not in self._shards and group.start <= now:
                    warnings.append(
                        f"shard {shard} of {database.name}.{policy.name} is not open on the server and not in the backup: it was "
                        "never written to, or could not be opened (the server's log tells)"
                    )
        return warnings

    def _take_all(self, shards: list[int]) -> None:
        """Takes these shards; those that cannot be taken yet last, until patience ends."""
        waiting = deque(shards)
        since: dict[int, float] = {}
        while waiting:
            shard = waiting.popleft()
            try:
                self._shards[shard] = self._take(shard)
            except _Gone:
                continue
            except _NotYet as reason:
                now = self._ambient.monotonic()
                if now - since.setdefault(shard, now) > self._patience:
                    raise CaptureBroken(f"shard {shard} {reason}, for {self._patience:.0f} seconds now") from None
                waiting.append(shard)
                if all(one in since for one in waiting):
                    self._pause()

    def _pause(self) -> None:
        self._control.check()
        self._ambient.sleep(PAUSE_SECONDS)

    def _take(self, shard: int) -> list[File]:
        """One try at a shard. Raises _NotYet or _Gone."""
        files: list[File] = []
        with self._port.shard(shard) as tar:
            try:
                for member in tar.members():
                    if member.file.endswith(".tombstone"):
                        raise _NotYet(
                            f"holds points that were deleted and not yet removed from {member.file}; the server does that "
                            "when it compacts the file, and a backup made before would bring them back"
                        )
                    if "/" not in member.file and member.file.endswith(".tsm"):
                        files.append(self._take_file(shard, member, tar))
            except CutShort as cut:
                self._require_open(shard)
                if tar.empty:
                    raise _NotYet("gave no answer, as it does while it writes its cache to disk") from None
                raise CaptureBroken(f"the tar of shard {shard} is not whole: {cut}") from None
        return files

    def _require_open(self, shard: int) -> None:
        """A tar that was cut short is no trouble if its shard was dropped meanwhile. A dead server does not answer this."""
        _, metastore = self._port.metastore()
        if shard not in self._wanted(metastore) or shard not in self._port.shards():
            raise _Gone

    def _take_file(self, shard: int, member: Member, tar: ShardTar) -> File:
        kept = self._kept.get((shard, member.file))
        if kept is not None:
            if self._digest(tar) != kept.digest:
                raise CaptureBroken(f"file {member.file} of shard {shard} has changed under its name")
            return kept
        digest = blake3()
        with self._sink.entry(entry_name(shard, member.file)) as entry:
            try:
                for piece in tar.pieces():
                    digest.update(piece)
                    entry.write(piece)
                    self._bytes += len(piece)
                    self._control.progress("data", self._bytes)
            except CutShort:
                entry.finish()  # a piece of a file that no catalog will name; the rest of the capture may go on
                raise
            entry.finish()
        self._entries += 1
        file = File(member.file, member.size, digest.hexdigest())
        self._kept[shard, member.file] = file
        return file

    def _digest(self, tar: ShardTar) -> str:
        digest = blake3()
        for piece in tar.pieces():
            digest.update(piece)
            self._control.took(len(piece))
        return digest.hexdigest()

    def _put(self, name: str, data: bytes) -> None:
        with self._sink.entry(name) as entry:
            entry.write(data)
            entry.finish()
        self._entries += 1
        self._bytes += len(data)
