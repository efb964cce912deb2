"""Points in time of a Redis against real servers: what is recorded leads from a backup to exactly what the source held."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from strongroom.engines.base import (
    CaptureBroken,
    EngineDenied,
    EngineUnreachable,
    EngineUnsupported,
    RestoreBroken,
    Target,
    target_state,
)
from strongroom.engines.log import LogGap, Mark, Recorder
from strongroom.engines.redis import RedisEngine, restore
from strongroom.engines.redis import recording as recording_module
from strongroom.engines.redis.wire import packed
from support.logs import MemoryLog, Recording
from support.redis_cluster import cluster_port
from support.redis_dumps import MemoryBackup, Quiet, dump, record, select
from support.redis_server import RedisServer, binaries, few_binaries, is_valkey, label_of, redis_server, version_of

ENGINE = RedisEngine()
FEW = few_binaries()
SECONDS = 20.0

pytestmark = pytest.mark.skipif(not binaries(), reason="no redis-server here")


class Over(Exception):
    """What ends a recording from outside, as a job's control does."""


class Scene:
    """One test's folder, and recordings into one log that end when told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = itertools.count()

    def scratch(self) -> Path:
        """A new empty folder."""
        path = self._folder / f"scratch-{next(self._count)}"
        path.mkdir()
        return path

    def spooled(self) -> int:
        """Bytes in the newest of these folders."""
        folder = max(self._folder.glob("scratch-*"), key=lambda path: path.stat().st_ctime_ns)
        return sum(path.stat().st_size for path in folder.iterdir())

    def captured(self, server: RedisServer) -> tuple[MemoryBackup, Mark]:
        """A backup, and where in the log it stands."""
        backup = MemoryBackup()
        ENGINE.capture(Target(server.address), backup, Quiet(), str(self.scratch()))
        mark = ENGINE.mark_of(backup.kept["rdb"][1])
        assert mark is not None
        return backup, mark

    def record(self, server: RedisServer, recording: Recording, seconds: float = 0.0, address: str | None = None) -> None:
        """One recording to its end."""
        resume(recording)
        scratch = self.scratch()
        since = recording.marks[-1][0] if recording.marks else recording.begin
        target = Target(address or server.address, "secret" if address else None)
        try:
            ENGINE.record(target, since, recording, Quiet(), time.time() + seconds, str(scratch))
        finally:
            assert list(scratch.iterdir()) == []
            assert not [thread for thread in threading.enumerate() if thread.name == "redis-log"]

    @contextmanager
    def recording(self, server: RedisServer, recording: Recording) -> Iterator[list[BaseException]]:
        """A recording while the block runs, ended by the job's control; what else it raised is in the list."""
        resume(recording)
        scratch = self.scratch()
        since = recording.marks[-1][0] if recording.marks else recording.begin
        over = threading.Event()
        raised: list[BaseException] = []

        def look() -> None:
            if over.is_set():
                raise Over

        def run() -> None:
            try:
                ENGINE.record(Target(server.address), since, recording, Quiet(look), time.time() + 3600, str(scratch))
            except Over:
                pass
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield raised
        finally:
            over.set()
            thread.join(SECONDS)
            assert not thread.is_alive()
        assert list(scratch.iterdir()) == []

    def restored(self, server: RedisServer, backup: MemoryBackup, log: MemoryLog) -> None:
        """A restore to the log's end, which leaves nothing in the scratch folder."""
        scratch = self.scratch()
        facts = backup.kept["rdb"][1]
        try:
            ENGINE.restore_to(Target(server.address), backup, facts, log, Quiet(), str(scratch))
        finally:
            assert list(scratch.iterdir()) == []


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """The folder of this test."""
    return Scene(tmp_path)


def resume(recording: Recording) -> None:
    """Drops what is not marked, as every keeper of a log does."""
    del recording.data[recording.marks[-1][1] if recording.marks else 0 :]


def until(what: Callable[[], bool]) -> None:
    """Waits for it."""
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def marked(recording: Recording, server: RedisServer) -> Mark:
    """The first mark that covers all that the source has written by now."""
    with server.client() as client:
        order = client.info("replication")["master_repl_offset"]
    until(lambda: bool(recording.marks) and recording.marks[-1][0].order >= order)
    return next(mark for mark, _ in recording.marks if mark.order >= order)


def digest(server: RedisServer) -> tuple[list[Any], bytes]:
    """Keys by database, and Redis' own digest of everything."""
    with server.client() as client:
        spaces = {name: space["keys"] for name, space in client.info("keyspace").items()}
        return sorted(spaces.items()), client.execute_command("DEBUG", "DIGEST")


class Writer:
    """Writes of all the kinds that a server rewrites for its replicas, in several databases, each round with a counter."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self.rounds = 0
        self.begun: list[float] = []  # of each round
        self.ended: list[float] = []

    def write(self, rounds: int) -> None:
        """So many rounds."""
        clients = [self._server.client(db=db) for db in (0, 3, 9)]
        first, third, ninth = clients
        for _ in range(rounds):
            self.begun.append(time.time())
            number = self.rounds
            with first.pipeline(transaction=True) as pipe:
                pipe.incr("counter")
                pipe.set(f"k{number % 50}", number, ex=100_000)
                pipe.rpush("list", number)
                pipe.execute()
            third.eval("redis.call('INCR', KEYS[1]) redis.call('SADD', 'set', ARGV[1], ARGV[1] + 1)", 1, "counter", number)
            third.spop("set")
            ninth.xadd("stream", {"n": number}, maxlen=20)
            ninth.set("short", number, px=1)
            ninth.zadd("scores", {f"m{number % 7}": number / 2})
            ninth.incrbyfloat("float", 0.1)
            third.expire("set", 50_000)
            self.rounds += 1
            self.ended.append(time.time())
        until(lambda: ninth.get("short") is None)
        for client in clients:
            client.close()


def counters(server: RedisServer) -> list[int]:
    """What both counters say; the second is written after the first in each round."""
    found = []
    for db in (0, 3):
        with server.client(db=db) as client:
            found.append(int(client.get("counter") or 0))
    return found


PAIRS = [(binary, binary) for binary in FEW] + ([(min(FEW, key=version_of), max(FEW, key=version_of))] if len(FEW) > 1 else [])


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=label_of)
def test_a_source_is_restored_to_what_it_held_at_a_moment(old: str, new: str, scene: Scene, tmp_path: Path) -> None:
    """Two recordings that join without a gap; a backup before them and one amid them; moments of rest and of work."""
    assert isinstance(ENGINE, Recorder)
    with redis_server(tmp_path, binary=old) as source, redis_server(tmp_path, binary=new) as target:
        writer = Writer(source)
        writer.write(10)
        first, begin = scene.captured(source)
        recording = Recording(begin)
        with scene.recording(source, recording) as raised:
            writer.write(30)
            rest = marked(recording, source)
            held = digest(source)
            if source.version >= (7,):
                with source.client() as client:
                    client.function_load(
                        "#!lua name=f\nredis.register_function('f', function(k) return redis.call('INCR', k[1]) end)"
                    )
                    client.fcall("f", 1, "by a function")
        assert raised == []
        writer.write(20)  # nobody listens
        with scene.recording(source, recording) as raised:
            writer.write(20)
            second, middle = scene.captured(source)
            busy = threading.Thread(target=writer.write, args=(400,))
            busy.start()
            amid = len(recording.marks)
            until(lambda: len(recording.marks) > amid + 1 or not busy.is_alive())
            at_work = recording.marks[-1][0]
            busy.join()
            with source.client(db=2) as client:  # a replica's word that is none: nobody may count on a recording
                client.set("last", "write")
                assert client.wait(1, 50) == 0
            last = marked(recording, source)
        assert raised == []

        scene.restored(target, first, recording.log(begin, rest))
        assert digest(target) == held
        scene.restored(target, first, recording.log(begin, at_work))
        found = counters(target)
        assert found[0] - found[1] in (0, 1)
        assert writer.begun[found[0] - 1] <= at_work.at
        assert found[0] == writer.rounds or writer.ended[found[0]] >= at_work.at - 1
        assert middle.order > recording.begin.order
        scene.restored(target, second, recording.log(middle, last))
        assert digest(target) == digest(source)
        with target.client() as client:
            assert client.info("replication")["role"] == "master"
            if source.version >= (7,):
                assert client.fcall("f", 1, "by a function") == 2


@pytest.fixture
def newest() -> str:
    """One server for what all do alike."""
    return max(FEW, key=lambda binary: (not is_valkey(binary), version_of(binary)))


@pytest.fixture
def server(tmp_path: Path, newest: str) -> Iterator[RedisServer]:
    """A source or target with some data."""
    with redis_server(tmp_path, {"repl-backlog-size": "16kb"}, binary=newest) as running:
        with running.client() as client:
            client.set("old", "data")
        yield running


def test_a_recording_goes_on_after_a_fail_over(scene: Scene, tmp_path: Path, newest: str) -> None:
    """From the replica that took over, under its new name. The backup is the replica's too: what follows it says nothing of the
    database it is meant for, and a sorted dump neither."""
    with redis_server(tmp_path, binary=newest) as master, redis_server(tmp_path, binary=newest) as replica:
        with master.client(db=5) as fifth, replica.client() as client:
            fifth.set("k", "before")
            client.replicaof("127.0.0.1", master.port)
            until(lambda: client.info("replication")["master_link_status"] == "up")
            fifth.set("k", "selects for the stream")
            until(lambda: replica_has_all(master, replica))
            backup, begin = scene.captured(replica)
            recording = Recording(begin)
            with scene.recording(master, recording) as raised:
                fifth.set("k", "after")
                fifth.set("more", "after")
                marked(recording, master)
            assert raised == []
            assert b"SELECT" not in recording.data.upper()
            until(lambda: replica_has_all(master, replica))
            master.kill()
            client.execute_command("REPLICAOF", "NO", "ONE")
            client.set("new", "master")
            with scene.recording(replica, recording) as raised:
                last = marked(recording, replica)
            assert raised == []
            assert last.stream == client.info("replication")["master_replid"] != begin.stream
            held = digest(replica)
        with redis_server(tmp_path, binary=newest) as target:
            scene.restored(target, backup, recording.log(begin, last))
            assert digest(target) == held
            assert [pair[0] for pair in held[0]] == ["db0", "db5"]


def replica_has_all(master: RedisServer, replica: RedisServer) -> bool:
    offsets = []
    for server in (master, replica):
        with server.client() as client:
            offsets.append(client.info("replication")["master_repl_offset"])
    return bool(offsets[0] == offsets[1])


def test_what_the_source_has_dropped_is_a_gap(server: RedisServer, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it shows beforehand or was dropped a moment later, and whether the server then dumps at once or waits; no dump is
    made where it can be avoided."""
    _, begin = scene.captured(server)
    with server.client() as client:
        client.set("large", bytes(100_000))
        forks = client.info("stats")["total_forks"]
        recording = Recording(begin)
        with pytest.raises(LogGap, match=r"more than its backlog of 0.0 MiB holds.*repl-backlog-size to at least 1 MiB"):
            scene.record(server, recording)
        monkeypatch.setattr(recording_module, "_require_kept", lambda *_: None)
        client.config_set("repl-diskless-sync-delay", 60)
        with pytest.raises(LogGap, match="repl-backlog-size"):
            scene.record(server, recording)
        assert client.info("stats")["total_forks"] == forks
        client.config_set("repl-diskless-sync-delay", 0)
        with pytest.raises(LogGap, match=r"sent 100[0-9]{3} bytes of changes.*set repl-backlog-size"):
            scene.record(server, recording)
        assert recording.marks == []
        assert LogGap.permanent


def test_the_documented_rights_are_enough_to_record(server: RedisServer, scene: Scene) -> None:
    """Those of a backup, and each is needed; a recording that hears nothing ends on time with a mark."""
    _, begin = scene.captured(server)
    with server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "recorder", "on", ">secret", "resetkeys", "-@all", "+psync", "+replconf", "+info"
        )
        client.set("k", "v")
    recording = Recording(begin)
    scene.record(server, recording, 0.5, server.address.replace("//", "//recorder@"))
    with server.client() as client:
        for right in ("psync", "replconf", "info"):
            client.execute_command("ACL", "SETUSER", "recorder", f"-{right}")
            with pytest.raises(EngineDenied, match=rf"(?i)\+{right}"):
                scene.record(server, recording, 0.0, server.address.replace("//", "//recorder@"))
            client.execute_command("ACL", "SETUSER", "recorder", f"+{right}")
        order = recording.marks[-1][0].order
        assert begin.order < order <= client.info("replication")["master_repl_offset"]
    scene.record(server, recording, 0.0)
    assert recording.marks[-1][0].order >= order


def test_what_was_missed_is_not_told_as_of_now(server: RedisServer, scene: Scene) -> None:
    """What the source sends at once, since it was written while nobody listened, has no time of its own; what it leads to has."""
    _, begin = scene.captured(server)
    recording = Recording(Mark(begin.stream, begin.order, begin.at - 60))
    with server.client() as client:
        client.config_set("repl-backlog-size", "8mb")
        for number in range(40):
            client.set("missed", bytes([number]) * 100_000)
        now = client.info("replication")["master_repl_offset"]
        with scene.recording(server, recording) as raised:
            last = marked(recording, server)
        assert raised == []
    assert recording.marks[0][0].order >= now
    assert last.at > begin.at


def test_a_source_that_dies_leaves_what_was_marked(server: RedisServer, scene: Scene, tmp_path: Path, newest: str) -> None:
    """All that it sent is in the log; started anew it has another history."""
    backup, begin = scene.captured(server)
    writer, recording = Writer(server), Recording(begin)
    with scene.recording(server, recording) as raised:
        writer.write(5)
        last = marked(recording, server)
        held = digest(server)
        server.kill()
        until(lambda: bool(raised))
    assert isinstance(raised[0], EngineUnreachable)
    assert recording.marks[-1][0].order == last.order
    with redis_server(tmp_path, binary=newest) as target:
        scene.restored(target, backup, recording.log(begin))
        assert digest(target) == held
    server.start()
    with pytest.raises(LogGap, match="started anew"):
        scene.record(server, recording)


def test_a_source_that_is_shut_down_is_not_held_up_and_gone_on_with(
    scene: Scene, tmp_path: Path, newest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for replicas that acknowledge (7.0); with what it saved it is the same history still. A WAIT costs no byte."""
    monkeypatch.setattr(recording_module, "_ASKED_SECONDS", 0.1)
    monkeypatch.setattr(recording_module, "_GONE_SECONDS", 0.5)
    with redis_server(tmp_path, {"save": "3600 1000000", "shutdown-timeout": "3600"}, binary=newest) as source:
        backup, begin = scene.captured(source)
        recording = Recording(begin)
        with scene.recording(source, recording) as raised, source.client() as client:
            until(lambda: client.info("replication")["connected_slaves"] == 1)
            client.set("k", "v")
            assert client.wait(1, 50) == 0  # asks for an acknowledgement
            until(lambda: client.info("stats")["sync_partial_ok"] == 2)
            client.set("k", "after the recording was gone for a moment")
            marked(recording, source)
            assert raised == []
            source.stop()
            until(lambda: bool(raised))
        assert isinstance(raised[0], EngineUnreachable)
        source.start()
        with source.client(db=4) as client:
            client.set("later", "v")
        with scene.recording(source, recording) as raised:
            last = marked(recording, source)
        assert raised == []
        assert last.stream != begin.stream
        held = digest(source)
        scene.restored(source, backup, recording.log(begin, last))
        assert digest(source) == held
        assert [pair[0] for pair in held[0]] == ["db0", "db4"]


def test_a_slow_store_does_not_hold_up_the_source(server: RedisServer, scene: Scene) -> None:
    """A server that would drop a replica with a mebibyte before it is read at once; everything comes in the end."""
    _, begin = scene.captured(server)
    free = threading.Event()

    class Slow(Recording):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            assert free.wait(SECONDS)
            super().write(data)

    recording = Slow(begin)
    with server.client() as client:
        client.config_set("client-output-buffer-limit", "replica 1mb 1mb 1")
        with scene.recording(server, recording) as raised:
            until(lambda: client.info("replication")["connected_slaves"] == 1)
            for number in range(100):
                client.set("large", bytes([number]) * (1 << 18))
                until(lambda least=number << 18: scene.spooled() > least)  # type: ignore[misc]
            client.set("last", "write")
            free.set()
            last = marked(recording, server)
        assert raised == []
        assert client.info("stats")["sync_partial_ok"] == 1
    assert last.order - begin.order == recording.marks[-1][1] > 25 << 20


def test_a_cluster_is_neither_recorded_nor_restored_into(server: RedisServer, scene: Scene, tmp_path: Path, newest: str) -> None:
    """Its shards have no order in common."""
    backup, begin = scene.captured(server)
    config = {"cluster-enabled": "yes", "port": str(cluster_port())}
    with redis_server(tmp_path, config, binary=newest) as node:
        with pytest.raises(EngineUnsupported, match="cluster"):
            scene.record(node, Recording(begin))
        with pytest.raises(EngineUnsupported, match=r"cluster.*nothing was sent"):
            scene.restored(node, backup, MemoryLog(begin, begin, begin, b""))


# Handmade logs

SKIPPED = packed("SELECT", "0") + packed("SET", "early", "1")
FOLLOWING = packed("SET", "a", "1") + packed("SELECT", "1") + packed("MULTI") + packed("SET", "b", "2") + packed("EXEC")
OFFSET = 1000
FACTS = {"replid": "a" * 40, "offset": OFFSET, "stream_db": 7, "time": 1, "at": 1.0, "rdb_version": 9}
BASE = Mark("a" * 40, OFFSET, 1.0)
BEGIN = Mark("a" * 40, OFFSET - len(SKIPPED), 0.5)


def handmade() -> MemoryBackup:
    backup = MemoryBackup({"rdb": dump(select(0, 1), record(b"new"), version=9)})
    backup.kept["rdb"][1].update(FACTS)
    return backup


def log_of(following: bytes = FOLLOWING, before: bytes = SKIPPED, length: int | None = None) -> MemoryLog:
    end = OFFSET + (len(following) if length is None else length)
    return MemoryLog(BEGIN, BASE, Mark("b" * 40, end, 2.0), before + following, piece=5)


def keys(server: RedisServer) -> dict[int, list[bytes]]:
    found = {}
    for db in range(8):
        with server.client(db=db) as client:
            if names := sorted(client.keys()):
                found[db] = names
    return found


def test_a_log_goes_on_in_the_database_of_the_backup(server: RedisServer, scene: Scene) -> None:
    """What it says of before the backup is passed over; what follows is meant for the database that the backup tells."""
    scene.restored(server, handmade(), log_of())
    assert keys(server) == {0: [b"new"], 1: [b"b"], 7: [b"a"]}
    scene.restored(server, handmade(), log_of(b""))
    assert keys(server) == {0: [b"new"]}


@pytest.mark.parametrize("binary", FEW, ids=label_of)
def test_what_has_expired_by_now_is_replayed_as_it_was(binary: str, scene: Scene, tmp_path: Path) -> None:
    """A key that lived on, though a time that it once had has passed, is there; one whose time has passed is not."""
    past = str(int(time.time() * 1000) - 3_600_000)
    words = [
        ("SET", "lived", "5", "PXAT", past), ("INCR", "lived"), ("COPY", "lived", "copied"), ("PERSIST", "lived"),
        ("PERSIST", "copied"), ("SADD", "set", "a"), ("PEXPIREAT", "set", past), ("SUNIONSTORE", "other", "set"),
        ("SADD", "set", "b"), ("PERSIST", "set"),
        ("SET", "passed", "1", "PXAT", past), ("SET", "gone", "1", "PXAT", past), ("DEL", "gone"),
    ]  # fmt: skip
    with redis_server(tmp_path, binary=binary) as target, target.client(db=7) as client:
        scene.restored(target, handmade(), log_of(b"".join(packed(*line) for line in words)))
        assert client.mget("lived", "copied", "passed", "gone") == [b"6", b"6", None, None]
        assert client.smembers("set") == {b"a", b"b"}
        assert client.smembers("other") == {b"a"}


def test_a_log_that_is_not_whole_is_refused_before_the_target_is_touched(server: RedisServer, scene: Scene) -> None:
    """Cut, damaged, too long, ending or beginning amid what happens together, of another backup, too many databases."""
    middle = FOLLOWING[: FOLLOWING.index(packed("EXEC"))]
    for log, why in (
        (log_of(FOLLOWING[:-3], length=len(FOLLOWING)), "not whole"),
        (log_of(FOLLOWING[:-3]), "not whole"),
        (log_of(FOLLOWING + b"\n", length=len(FOLLOWING)), "not whole"),
        (log_of(middle), "not whole"),
        (log_of(FOLLOWING.replace(b"*3", b"*4", 1)), "not a command"),
        (log_of(before=SKIPPED[:-1] + b"x"), "not a command"),
        (log_of(before=packed("MULTI") + b"\n" * (len(SKIPPED) - len(packed("MULTI")))), "in the middle"),
        (log_of(packed("SELECT", "16")), "needs 17 databases, and the target has 16"),
        (MemoryLog(BEGIN, Mark("a" * 40, OFFSET - 1, 1.0), BASE, SKIPPED), "does not lead"),
        (MemoryLog(BEGIN, BASE, BEGIN, b""), "does not lead"),
        (MemoryLog(Mark("a" * 40, OFFSET + 1, 1.5), BASE, Mark("a" * 40, OFFSET + 2, 1.5), b"\n"), "does not lead"),
    ):
        with pytest.raises((CaptureBroken, EngineUnsupported), match=f"{why}.*nothing was sent"):
            scene.restored(server, handmade(), log)
    with pytest.raises(EngineUnsupported, match="where in the log it stands"):
        ENGINE.restore_to(Target(server.address), handmade(), {"offset": 1}, log_of(), Quiet(), str(scene.scratch()))
    with server.client() as client:
        assert keys(server) == {0: [b"old"]}
        assert client.info("stats")["sync_full"] == 0
        assert client.info("replication")["role"] == "master"
        assert client.config_get("masteruser") == {"masteruser": ""}


def test_what_the_target_could_not_do_is_told(server: RedisServer, scene: Scene) -> None:
    """A replica that cannot run a command goes on without a word; the restore does not."""
    with pytest.raises(RestoreBroken, match=r"could not run 2 commands of the log.*what followed it") as broken:
        scene.restored(server, handmade(), log_of(FOLLOWING + packed("OF.A.MODULE", "k") + packed("LPUSH", "b", "x")))
    assert broken.value.target_state == restore.PART_OF_SEQUEL
    assert keys(server)[1] == [b"b"]
    with server.client() as client:
        assert client.info("replication")["role"] == "master"


def test_a_restore_that_is_cancelled_amid_the_log_frees_the_target(server: RedisServer, scene: Scene) -> None:
    """It is a master again, with the backup's data and a part of what followed."""

    class Cancelling(Quiet):
        def progress(self, phase: str, done: int, total: int | None = None) -> None:
            if phase == "replay":
                raise Over

    log, scratch = log_of(packed("SET", "k", bytes(1 << 20)) * 8), str(scene.scratch())
    log.piece = 1 << 20
    with pytest.raises(Over) as ended:
        ENGINE.restore_to(Target(server.address), handmade(), FACTS, log, Cancelling(), scratch)
    assert target_state(ended.value) == restore.PART_OF_SEQUEL
    with server.client() as client:
        assert client.info("replication")["role"] == "master"
        assert client.get("new") == b"v"
        assert client.config_get("masteruser") == {"masteruser": ""}
