"""The Redis engine when things go wrong: what is refused, what is kept, and how a target is freed again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from strongroom.ambient import Machine
from strongroom.engines.base import (
    CaptureBroken,
    EngineDenied,
    EngineError,
    EngineUnreachable,
    EngineUnsupported,
    RestoreBroken,
    Target,
)
from strongroom.engines.redis import RedisEngine, capture, marks, mastering
from strongroom.engines.redis.versions import Product, product_of, require_readable
from strongroom.engines.redis.wire import open_wire
from support.certificates import certificate
from support.logs import Recording
from support.redis_dumps import MemoryBackup, Quiet, dump, record, select, string
from support.redis_server import RedisServer, binaries, few_binaries, free_port, label_of, redis_server, version_of

ENGINE = RedisEngine()
BIG = 96 << 20  # more than any socket's buffers hold, so that a transfer can be met in its middle

pytestmark = pytest.mark.skipif(not binaries(), reason="no redis-server here")


class Cancelled(Exception):
    """What a job's control raises."""


@pytest.fixture(params=few_binaries(), ids=label_of)
def binary(request: pytest.FixtureRequest) -> str:
    """Each redis-server of this machine in turn."""
    return str(request.param)


@pytest.fixture
def server(tmp_path: Path, binary: str) -> Iterator[RedisServer]:
    """A server with a little data of its own."""
    with redis_server(tmp_path, {"rdbcompression": "no"}, binary=binary) as running:
        with running.client() as client:
            client.mset({"old": "data", "kept": "yes"})
        yield running


@pytest.fixture
def scratch(tmp_path: Path) -> str:
    """An empty private folder."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return str(folder)


class Acting(Quiet):
    """A job in which something happens once, when a phase has passed so many bytes."""

    def __init__(self, phase: str, after: int, act: Callable[[], object]) -> None:
        super().__init__()
        self._when = (phase, after)
        self._what = act
        self.acted = False

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        super().progress(phase, done, total)
        if phase == self._when[0] and done >= self._when[1] and not self.acted:
            self.acted = True
            self._what()


def cancel() -> None:
    raise Cancelled


def backup_of(data: bytes) -> MemoryBackup:
    return MemoryBackup({"rdb": data})


def big_backup() -> MemoryBackup:
    """Many values of a mebibyte, in the oldest format, so that any server takes it."""
    return backup_of(dump(select(0, 96), *[record(b"%03d" % n, 0, string(bytes(1 << 20))) for n in range(BIG >> 20)], version=9))


def small_backup() -> MemoryBackup:
    return backup_of(dump(select(0, 1), record(b"new", 0, string(b"data")), version=9))


def assert_untouched(server: RedisServer) -> None:
    """A master with its old data, its own settings and no memory of a restore; it takes writes."""
    with server.client() as client:
        info = client.info()
        assert info["role"] == "master"
        assert client.mget("old", "kept") == [b"data", b"yes"]
        assert client.dbsize() == 2
        assert client.config_get("masteruser") == {"masteruser": ""}
        assert client.config_get("repl-diskless-load") == {"repl-diskless-load": "disabled"}
        client.set("old", "data")


# Captures


def test_a_server_killed_in_the_middle_of_a_capture_leaves_no_backup(server: RedisServer, scratch: str) -> None:
    """The stream just ends; its length gives it away."""
    with server.client() as client:
        client.execute_command("DEBUG", "POPULATE", BIG >> 20, "key", 1 << 20)
    backup = MemoryBackup()
    control = Acting("read", 1 << 20, server.kill)
    with pytest.raises(EngineUnreachable, match="into the dump"):
        ENGINE.capture(Target(server.address), backup, control, scratch)
    assert control.acted
    assert backup.opened == []


def test_a_server_that_falls_silent_in_the_middle_is_given_up(
    server: RedisServer, scratch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process keeps its connections open: only the wait's bound ends the capture."""
    monkeypatch.setattr(capture, "STREAM_SECONDS", 1.0)
    with server.client() as client:
        client.config_set("repl-diskless-sync", "no")  # so that it is the stopped process itself that sends
        client.execute_command("DEBUG", "POPULATE", BIG >> 20, "key", 1 << 20)
    control = Acting("read", 1 << 20, lambda: os.kill(server.pid, signal.SIGSTOP))
    try:
        with pytest.raises(EngineUnreachable, match="does not answer"):
            ENGINE.capture(Target(server.address), MemoryBackup(), control, scratch)
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_a_hanging_server_is_probed_within_ten_seconds(server: RedisServer) -> None:
    """It accepts the connection and never answers."""
    os.kill(server.pid, signal.SIGSTOP)
    since = time.monotonic()
    try:
        with pytest.raises(EngineUnreachable, match="does not answer"):
            ENGINE.probe(Target(server.address))
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert time.monotonic() - since < 10


@pytest.mark.parametrize("phase", ["read", "check", "sort", "save"])
def test_a_capture_can_be_cancelled_in_every_phase(server: RedisServer, scratch: str, phase: str) -> None:
    """What the job raises passes through, nothing is kept, and the server is free again."""
    with server.client() as client:
        client.execute_command("DEBUG", "POPULATE", 8, "key", 1 << 20)
        backup = MemoryBackup()
        with pytest.raises(Cancelled):
            ENGINE.capture(Target(server.address), backup, Acting(phase, 1 << 20, cancel), scratch)
        assert backup.names == []
        assert [path for path in Path(scratch).iterdir() if path.name != "original.rdb"] == []


def test_a_failing_scratch_folder_is_named(server: RedisServer, tmp_path: Path) -> None:
    """It is our disk that fails, and the text says so."""
    with pytest.raises(EngineError, match="scratch folder"):
        ENGINE.capture(Target(server.address), MemoryBackup(), Quiet(), str(tmp_path / "missing"))
    with pytest.raises(EngineError, match="scratch folder"):
        ENGINE.restore(Target(server.address), small_backup(), {}, Quiet(), str(tmp_path / "missing"))


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """The address of something that sends one answer a received packet and then hangs up. It is no cluster."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            left = list(answers)
            while left:
                connection, _ = listener.accept()
                with connection:
                    while left and (asked := connection.recv(1 << 16)):
                        connection.sendall(b"-ERR unknown command\r\n" if b"HELLO" in asked else left.pop(0))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join(10)


GOOD = dump(select(0, 1), record(b"k"))
RESYNC = b"+FULLRESYNC " + b"a" * 40 + b" 7\r\n"
MARK = b"m" * 40


@pytest.mark.parametrize(
    ("answers", "error", "says"),
    [
        ((b"+OK\r\n", RESYNC + b"$%d\r\n" % len(GOOD) + GOOD[:-1]), EngineUnreachable, f"{len(GOOD) - 1} bytes into"),
        ((b"+OK\r\n", RESYNC + b"$EOF:" + MARK + b"\r\n" + GOOD), EngineUnreachable, "into the dump"),
        ((b"+OK\r\n", RESYNC + b"$EOF:" + MARK + b"\r\n" + GOOD + MARK[:-1]), EngineUnreachable, "into the dump"),
        ((b"+OK\r\n", RESYNC + b"\n\n-ERR BGSAVE failed\r\n"), CaptureBroken, "could not make its dump: ERR BGSAVE failed"),
        ((b"+OK\r\n", RESYNC + b"$12x\r\n"), EngineUnsupported, "unknown form"),
        ((b"+OK\r\n", b"+CONTINUE\r\n"), EngineUnsupported, "full synchronisation"),
        ((b"+OK\r\n", RESYNC + b"$18\r\n" + b"REDIS0010" + bytes(9)), CaptureBroken, "no end mark"),
        ((b"+OK\r\n", RESYNC + b"$%d\r\n" % len(GOOD) + GOOD[:-1] + b"!"), CaptureBroken, "checksum"),
        ((b"-ERR Unrecognized REPLCONF option: rdb-only\r\n",), EngineUnsupported, r"older than Redis 6\.2"),
        ((b"-ERR unknown command `REPLCONF`\r\n",), EngineUnsupported, "does not know REPLCONF"),
        ((b"-DENIED Redis is running in protected mode\r\n",), EngineDenied, "protected mode"),
        ((b"-ERR max number of clients reached\r\n",), EngineUnreachable, "max number"),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), EngineUnsupported, "does not speak"),
        ((b"x" * 100_000,), EngineUnsupported, "does not speak"),
        ((b"",), EngineUnreachable, "closed the connection"),
    ],
)
def test_a_stream_that_is_not_a_whole_dump_is_never_a_backup(
    answers: tuple[bytes, ...], error: type[EngineError], says: str, scratch: str
) -> None:
    """Each way in which a server can end early, answer otherwise or send damage."""
    backup = MemoryBackup()
    with answering(*answers) as address, pytest.raises(error, match=says):
        ENGINE.capture(Target(address), backup, Quiet(), scratch)
    assert backup.opened == []


@pytest.mark.parametrize("framed", [b"$%d\r\n" % len(GOOD) + GOOD, b"\n\n$EOF:" + MARK + b"\r\n" + GOOD + MARK])
def test_the_same_scripted_server_with_a_whole_dump_is_saved(framed: bytes, scratch: str) -> None:
    """Proves that the cases above fail for their own reasons."""
    backup = MemoryBackup()
    with answering(b"+OK\r\n", RESYNC + framed) as address:
        summary = ENGINE.capture(Target(address), backup, Quiet(), scratch)
    assert backup.rdb == GOOD
    assert summary.facts["offset"] == 7


# Restores: refused before anything is changed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-1], "cut|checksum"),
        (lambda data: data[: len(data) // 2], "ends after"),
        (lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:], "checksum"),
        (lambda data: data[:-8] + bytes(8), "no checksum"),
    ],
)
def test_a_damaged_backup_is_refused_before_the_target_hears_of_it(
    server: RedisServer, scratch: str, change: Callable[[bytes], bytes], says: str
) -> None:
    """A server that loads such a dump exits, so it must never be sent."""
    with pytest.raises(CaptureBroken, match=says) as refused:
        ENGINE.restore(Target(server.address), backup_of(change(small_backup().rdb)), {}, Quiet(), scratch)
    assert "nothing was sent" in str(refused.value)
    assert_untouched(server)


def test_a_backup_of_a_newer_format_is_refused_before_the_target_hears_of_it(server: RedisServer, scratch: str) -> None:
    """What the target does not read, be it too new or the other product's: its usual settings would let it be emptied."""
    with server.client() as client:
        product = product_of({name: str(value) for name, value in client.info().items()})
    for version in (10, 11, 12, 80):
        with contextlib.suppress(EngineUnsupported):
            require_readable(product, version)
            continue
        with pytest.raises(EngineUnsupported, match=r"too new for the target|and the target is"):
            ENGINE.restore(Target(server.address), backup_of(dump(version=version)), {}, Quiet(), scratch)
    assert_untouched(server)


@pytest.mark.parametrize(
    ("name", "version", "readable"),
    [
        ("Redis", "4.0", (7, 8)),
        ("Redis", "5.0.14", (9,)),
        ("Redis", "6.2.5", (9,)),
        ("Redis", "7.0.15", (9, 10)),
        ("Redis", "7.2.4", (9, 10, 11)),
        ("Redis", "7.4.1", (9, 10, 11, 12)),
        ("Redis", "8.0.0", (9, 10, 11, 12)),
        ("Valkey", "7.2.5", (9, 10, 11)),
        ("Valkey", "8.1.8", (9, 10, 11)),
        ("Valkey", "9.1.2", (9, 10, 11, 80)),
    ],
)
def test_the_formats_that_each_version_reads(name: str, version: str, readable: tuple[int, ...]) -> None:
    """RDB_VERSION in rdb.h of these releases; what only the other product writes is never read."""
    for rdb_version in (7, 8, 9, 10, 11, 12, 13, 79, 80, 81):
        if rdb_version in readable or rdb_version < min(readable):
            require_readable(Product(name, version), rdb_version)
        else:
            with pytest.raises(EngineUnsupported, match=name):
                require_readable(Product(name, version), rdb_version)


def test_a_source_that_cannot_be_read_to_its_end_changes_nothing(server: RedisServer, scratch: str) -> None:
    """The repository fails after the first pieces: its error passes through."""

    class Failing(MemoryBackup):
        def read(self, name: str) -> Iterator[bytes]:
            yield b"REDIS0009"
            raise Cancelled

    with pytest.raises(Cancelled):
        ENGINE.restore(Target(server.address), Failing({"rdb": b"REDIS0009" + bytes(99)}), {}, Quiet(), scratch)
    assert_untouched(server)
    assert list(Path(scratch).iterdir()) == []


def test_another_engines_backup_is_refused(server: RedisServer, scratch: str) -> None:
    """No entry of ours in it."""
    with pytest.raises(EngineUnsupported, match="no Redis dump"):
        ENGINE.restore(Target(server.address), MemoryBackup({"catalog": b"x"}), {}, Quiet(), scratch)


def test_a_replica_is_no_target(server: RedisServer, tmp_path: Path, binary: str, scratch: str) -> None:
    """Its master would be lost to it; the refusal names the master."""
    with redis_server(tmp_path, binary=binary) as replica, replica.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", server.port)
        with pytest.raises(EngineUnsupported, match=f"replica of 127.0.0.1:{server.port}"):
            ENGINE.restore(Target(replica.address), small_backup(), {}, Quiet(), scratch)
        assert client.info("replication")["role"] == "slave"


# Restores that break half-way


def test_a_restore_cancelled_in_mid_transfer_leaves_the_old_data(server: RedisServer, scratch: str) -> None:
    """The target is a master again, with its data and settings, and what the job raised passes through."""
    control = Acting("send", BIG // 2, cancel)
    with pytest.raises(Cancelled):
        ENGINE.restore(Target(server.address), big_backup(), {}, control, scratch)
    assert_untouched(server)
    assert list(Path(scratch).iterdir()) == []


def test_a_transfer_cut_in_the_middle_leaves_the_old_data_and_says_so(server: RedisServer, scratch: str) -> None:
    """Our copy of the dump fails while it is sent."""
    control = Acting("send", BIG // 4, lambda: os.truncate(Path(scratch) / "restore.rdb", BIG // 2))
    with pytest.raises(RestoreBroken, match="became shorter") as broken:
        ENGINE.restore(Target(server.address), big_backup(), {}, control, scratch)
    assert "old data" in broken.value.target_state
    assert_untouched(server)


def test_a_target_that_is_given_another_master_in_mid_transfer_keeps_that(server: RedisServer, scratch: str) -> None:
    """Somebody else decides over the server meanwhile: the restore gives up, and does not undo what it did not do."""

    def steal() -> None:  # the server reads commands again when it has given up waiting for us, who wait for it here
        with server.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", free_port())

    with server.client() as client:
        client.config_set("repl-timeout", 2)
    with pytest.raises(RestoreBroken) as broken:
        ENGINE.restore(Target(server.address), big_backup(), {}, Acting("send", BIG // 2, steal), scratch)
    assert "old data" in broken.value.target_state
    with server.client() as client:
        assert client.info("replication")["role"] == "slave"
        client.execute_command("REPLICAOF", "NO", "ONE")
    assert_untouched(server)


def test_a_target_killed_in_mid_transfer_is_reported_as_unknown(server: RedisServer, scratch: str) -> None:
    """Nobody can say what a dead server holds; after its start it is a master with what it had saved."""
    with server.client() as client:
        client.save()
    with pytest.raises(RestoreBroken) as broken:
        ENGINE.restore(Target(server.address), big_backup(), {}, Acting("send", BIG // 2, server.kill), scratch)
    assert "does not answer" in broken.value.target_state
    server.start()
    assert_untouched(server)


def test_a_target_that_cannot_reach_us_keeps_its_data(
    tmp_path: Path, binary: str, scratch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It connects from another address than the one we know it by, and only that one may have the data."""
    monkeypatch.setattr(mastering, "CALL_BACK_SECONDS", 2.0)
    other_way = {"bind-source-addr": "127.0.0.2"} if version_of(binary) >= (7,) else {"bind": "127.0.0.2 127.0.0.1"}
    with redis_server(tmp_path, other_way, binary=binary) as server:
        with server.client() as client:
            client.mset({"old": "data", "kept": "yes"})
        with pytest.raises(EngineUnreachable, match=r"127\.0\.0\.2 were turned away.*still holds its old data"):
            ENGINE.restore(Target(server.address), small_backup(), {}, Quiet(), scratch)
        assert_untouched(server)


CRASH = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from support.redis_dumps import MemoryBackup, Quiet
from strongroom.engines.base import Target
from strongroom.engines.redis import RedisEngine

class Dying(Quiet):
    def progress(self, phase, done, total=None):
        if phase == "send" and done > 1 << 25:
            os.kill(os.getpid(), signal.{how})

with open({dump!r}, "rb") as file:
    backup = MemoryBackup({{"rdb": file.read()}})
RedisEngine().restore(Target({address!r}), backup, {{}}, Dying(), {scratch!r})
"""


def started(server: RedisServer, folder: Path, how: str) -> subprocess.Popen[str]:
    """A process that restores into the server and sends itself this signal in mid-transfer."""
    path, scratch = folder / "backup.rdb", folder / "crashed"
    path.write_bytes(big_backup().rdb)
    scratch.mkdir()
    names = {"tests": str(Path(__file__).parents[1]), "dump": str(path), "address": server.address, "scratch": str(scratch)}
    script = textwrap.dedent(CRASH).format(how=how, **names)
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)


def crash_in(server: RedisServer, folder: Path) -> None:
    """A restore into the server whose process is killed in mid-transfer."""
    with started(server, folder, "SIGKILL") as process:
        assert process.wait(60) == -signal.SIGKILL


def test_a_restore_that_was_paused_and_replaced_harms_nobody(server: RedisServer, tmp_path: Path, scratch: str) -> None:
    """Its successor ends it and restores; when it wakes up it fails, and the successor's work stands."""
    with server.client() as client:
        client.config_set("repl-timeout", 2)
        with started(server, tmp_path, "SIGSTOP") as paused:
            try:
                os.waitid(os.P_PID, paused.pid, os.WSTOPPED | os.WNOWAIT)
                ENGINE.recover(Target(server.address))
                assert client.mget("old", "kept") == [b"data", b"yes"]
                wake = Acting("send", BIG // 4, lambda: os.kill(paused.pid, signal.SIGCONT))
                ENGINE.restore(Target(server.address), big_backup(), {}, wake, scratch)
                _, errors = paused.communicate(timeout=60)
            finally:
                paused.kill()
        assert "RestoreBroken" in errors
        assert client.info("replication")["role"] == "master"
        assert client.dbsize() == BIG >> 20
        assert client.config_get("masteruser") == {"masteruser": ""}


def test_a_restore_ends_only_what_bears_its_own_mark(server: RedisServer) -> None:
    """What `recover` may end, a restore that finds another one's mark at its end leaves alone."""
    with server.client() as client:
        place = ("127.0.0.1", free_port())
        with open_wire(Target(server.address), Machine()) as wire:
            marks.begin(wire, *place)
        marks.release(Target(server.address), Machine(), only=("127.0.0.1", place[1] + 1))
        assert client.info("replication")["role"] == "slave"
        marks.release(Target(server.address), Machine(), only=place)
    assert_untouched(server)


def test_two_restores_at_once_are_refused(server: RedisServer, tmp_path: Path, scratch: str) -> None:
    """The target's mark is seen by whoever would begin beside it."""
    with server.client() as client:
        client.config_set("masteruser", str(marks.Mark("127.0.0.1", 1, "disabled", "")))
        with open_wire(Target(server.address), Machine()) as wire, pytest.raises(EngineError, match="another restore"):
            marks.begin(wire, "127.0.0.1", free_port())
        assert client.info("replication")["role"] == "master"


def test_recover_frees_a_target_that_a_dead_restore_left(server: RedisServer, tmp_path: Path) -> None:
    """Read-only and a replica of nobody before; a master with its own data and settings after, however often it is called."""
    crash_in(server, tmp_path)
    with server.client() as client:
        assert client.info("replication")["role"] == "slave"
        assert client.config_get("repl-diskless-load") == {"repl-diskless-load": "swapdb"}
    for _ in range(2):
        ENGINE.recover(Target(server.address))
        assert_untouched(server)


def test_a_new_restore_first_ends_what_a_dead_one_left(server: RedisServer, tmp_path: Path, scratch: str) -> None:
    """Without a call of recover; and its own traces are gone too."""
    crash_in(server, tmp_path)
    ENGINE.restore(Target(server.address), small_backup(), {}, Quiet(), scratch)
    with server.client() as client:
        assert client.keys() == [b"new"]
        assert client.config_get("repl-diskless-load") == {"repl-diskless-load": "disabled"}
        assert client.config_get("masteruser") == {"masteruser": ""}


def test_recover_never_promotes_a_replica_of_somebody_else(server: RedisServer) -> None:
    """A replica whose own master is down looks much the same, and is none of our business; a leftover mark is cleared."""
    with server.client() as client:
        elsewhere = free_port()
        client.execute_command("REPLICAOF", "127.0.0.1", elsewhere)
        ENGINE.recover(Target(server.address))
        assert client.info("replication")["master_port"] == elsewhere
        client.config_set("masteruser", str(marks.Mark("127.0.0.1", free_port(), "on-empty-db", "my/own user")))
        ENGINE.recover(Target(server.address))
        assert client.info("replication")["master_port"] == elsewhere
        assert client.config_get("masteruser") == {"masteruser": "my/own user"}
        assert client.config_get("repl-diskless-load") == {"repl-diskless-load": "on-empty-db"}


@pytest.mark.parametrize("text", [None, "", "replicator", "strongroom-restore", "strongroom-restore/a/b/c/d", "x/h/1/a/b"])
def test_a_name_of_the_operators_own_is_no_mark(text: str | None) -> None:
    """Only what a restore has written is ever acted upon."""
    assert marks.read_mark(text) is None


def test_a_mark_reads_back_as_it_was_written() -> None:
    """Whatever characters the operator's own setting has."""
    mark = marks.Mark("fe80::1%eth0", 6379, "disabled", "a/b c%\udcff")
    assert marks.read_mark(str(mark)) == mark


# Targets with settings of their own


def test_a_targets_replication_credentials_stand_in_nobodys_way(tmp_path: Path, binary: str, scratch: str) -> None:
    """It logs in at us with its own masterauth; its settings are the same afterwards."""
    config = {"masterauth": "theirs", "masteruser": "them", "repl-diskless-load": "on-empty-db"}
    with redis_server(tmp_path, config, password="own", binary=binary) as server:
        ENGINE.restore(Target(server.address, "own"), small_backup(), {}, Quiet(), scratch)
        with server.client() as client:
            assert client.get("new") == b"data"
            for name, value in config.items():
                assert client.config_get(name) == {name: value}


@pytest.mark.parametrize("config", [{"save": "3600 1"}, {"appendonly": "yes"}, {"save": "3600 1", "appendonly": "yes"}])
def test_restored_data_outlives_a_crash_of_a_target_that_keeps_data(
    tmp_path: Path, binary: str, scratch: str, config: dict[str, str]
) -> None:
    """When the restore has returned, the new data is in the target's own dump or append-only file."""
    with redis_server(tmp_path, config, binary=binary) as server:
        with server.client() as client:
            client.set("old", "data")
        summary = ENGINE.restore(Target(server.address), small_backup(), {}, Quiet(), scratch)
        assert list(summary.warnings) == []
        assert summary.facts["keys"] == {"0": 1}
        server.kill()
        server.start()
        with server.client() as client:
            assert client.config_get("save")["save"] == config.get("save", "")
            assert client.keys() == [b"new"]


def test_tls_is_spoken_and_certificates_are_checked(tmp_path: Path, binary: str, scratch: str) -> None:
    """Capture, recording and restores, to a moment too, over TLS with the CA given; without it, or on the plain port, a clear
    refusal."""
    # Without a certificate it ends in any case: for want of one, or of the setting, or of what stands behind it.
    said = subprocess.run([binary, "--tls-port", "1", "--port", "0"], capture_output=True, check=False, cwd=tmp_path, timeout=20)
    if b"finding TLS support" in said.stdout or b"tls-port" in said.stdout + said.stderr:
        pytest.skip("this redis-server is built without TLS")
    cert, key = certificate(tmp_path)
    port = free_port()
    config = {
        "tls-port": str(port), "tls-cert-file": cert, "tls-key-file": key, "tls-ca-cert-file": cert, "tls-auth-clients": "no",
    }  # fmt: skip
    with redis_server(tmp_path, config, password="pw", binary=binary) as server:
        with server.client() as client:
            client.set("k", "v")
        trusted = Target(f"rediss://127.0.0.1:{port}", "pw", {"ca": Path(cert).read_text()})
        backup = MemoryBackup()
        ENGINE.capture(trusted, backup, Quiet(), scratch)
        facts = backup.kept["rdb"][1]
        begin = ENGINE.mark_of(facts)
        assert begin is not None
        recording = Recording(begin)
        with server.client() as client:
            client.set("k", "later")
        ENGINE.record(trusted, begin, recording, Quiet(), time.time() + 1, scratch)
        ENGINE.restore(trusted, backup, facts, Quiet(), scratch)
        with server.client() as client:
            assert client.get("k") == b"v"
        ENGINE.restore_to(trusted, backup, facts, recording.log(begin), Quiet(), scratch)
        with server.client() as client:
            assert client.get("k") == b"later"
        with pytest.raises(EngineDenied, match="not trusted"):
            ENGINE.probe(Target(trusted.address, "pw"))
        with pytest.raises(EngineUnreachable, match="no TLS with"):
            ENGINE.probe(Target(server.address.replace("redis:", "rediss:"), "pw"))
        with pytest.raises(EngineUnsupported, match="PEM"):
            ENGINE.probe(Target(trusted.address, "pw", {"ca": "nonsense"}))
        with server.client() as client:
            client.config_set("tls-replication", "yes")
            with pytest.raises(EngineUnsupported, match="tls-replication"):
                ENGINE.restore(trusted, backup, {}, Quiet(), scratch)
            assert client.get("k") == b"later"
